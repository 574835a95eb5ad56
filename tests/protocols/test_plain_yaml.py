"""YAML that was written to hurt: refused with one kind of error, in a moment."""

import time

import pytest
import yaml

from protocols import plain_yaml

MOMENT_S = 2.0  # of CPU time; a bomb takes hours


def read(text, values_max=1000):
    return plain_yaml.load(text, yaml.SafeLoader, values_max=values_max)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, 2.5, ~, yes]", {"a": 1, "b": ["x", 2.5, None, True]}),
        ("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}),
        ("", None),
        ("2026-11-21T18:00:00Z", None),
    ],
)
def test_what_is_meant_is_read(text, value):
    assert read(text) == value or (value is None and text)


def bomb(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (bomb(12), "once its aliases are written out"),
        ("&a [*a]", "once its aliases are written out"),
        ("a: &a {b: *a}", "once its aliases are written out"),
        ("a: &a {x: 1}\nb: {<<: [" + "*a, " * 2000 + "*a]}", "once its aliases are written out"),
        ("[" * 5000, "nested too deeply"),
        ("{a: " * 5000, "nested too deeply"),
        ("9" * 5000, "digits"),
        ("0x" + "f" * 5000, "digits"),
        (":".join(["1"] * 3000), "digits"),
        ("2001-13-45", "a value that cannot be"),
        ("!!int abc", "a value that cannot be"),
        ("!!int ''", "a value that cannot be"),
        ("!!bool abc", "a value that cannot be"),
        ("!!float abc", "a value that cannot be"),
        ("!!timestamp abc", "a value that cannot be"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: [", "expected"),
    ],
)
def test_what_was_written_to_hurt_is_refused_in_a_moment(text, sentence):
    began_s = time.thread_time()
    with pytest.raises(yaml.YAMLError, match=sentence):
        read(text)
    assert time.thread_time() - began_s < MOMENT_S


def test_the_bound_counts_values_as_often_as_they_are_meant():
    text = "[&a [1, 2, 3], *a]"  # the list, twice a list of three
    assert read(text, values_max=9) == [[1, 2, 3], [1, 2, 3]]
    with pytest.raises(yaml.YAMLError, match="more than 8 values"):
        read(text, values_max=8)
