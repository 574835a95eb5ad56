"""Foreign JSON: to the letter or not at all, in the words of whoever reads it."""

import pytest

from protocols.members import SHOWN_MAX_CHARS, Members, shown


class NoteError(ValueError):
    """A protocol's own."""


PLAIN = Members(NoteError, "a note", bytes_max=1000)
FOLDED = Members(NoteError, "a note", bytes_max=1000, spelled=str.lower)


def refused(payload, says, members=PLAIN):
    with pytest.raises(NoteError, match=says):
        members.decode(payload, "note")


@pytest.mark.parametrize(
    "payload", ['{"a": [1, "ä"]}', '{"a": [1, "ä"]}'.encode(), b'\xef\xbb\xbf{"a":[1,"\\u00e4"]}']
)
def test_json_is_read_as_text_or_bytes(payload):
    assert PLAIN.decode(payload, "note") == {"a": [1, "ä"]}


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "note: not JSON"),
        (b"\xff", "note: not JSON"),
        (b"1 2", "note: not JSON"),
        (b"[NaN]", "NaN is not JSON; send a number"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[1e999]", "1e999 is beyond all numbers"),
        (b"[-1" + b"0" * 400 + b".0]", "-1000.* is beyond all numbers"),
        (b" " * 1001, "note: 1001 bytes; send 1000 at most"),
        (b"[" + b"9" * 990 + b"9" * 5000 + b"]", "at most"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(payload, says):
    refused(payload, says)


def test_what_is_nested_too_deeply_is_refused():
    deep = Members(NoteError, "a note", bytes_max=10**6)
    refused(b"[" * 10**5, "note: nested too deeply; send a note", deep)
    refused(b'{"a":' * 10**5, "note: nested too deeply", deep)


@pytest.mark.parametrize("half", [rb'["\ud800"]', rb'["\uD83D"]', rb'{"\udfff": 1}', rb'["\ude00\ud83d"]'])
def test_half_a_character_is_no_text(half):
    refused(half, "note: not JSON: .*surrogate")


def test_a_whole_character_in_two_escapes_is_one():
    assert PLAIN.decode(rb'["\ud83d\ude00", "\\ud800"]', "note") == ["\U0001f600", r"\ud800"]


def test_a_name_given_twice_has_one_value_or_none():
    assert PLAIN.decode('{"a": 1, "a": 1, "A": 2}', "note") == {"a": 1, "A": 2}
    refused('{"a": 1, "a": 2}', "^a: given twice with different values; send it once")
    refused('[{"b": {"a": 1, "a": null}}]', "a: given twice")
    assert FOLDED.decode('{"a": [1], "A": [1]}', "note") == {"a": [1]}
    refused('{"a": 1, "A": 2}', "^A: given twice", FOLDED)
    refused('{"a\\n": 1, "A\\n": 2}', r"^A\\n: given twice", FOLDED)


def test_values_are_typed_or_refused_with_their_place():
    assert PLAIN.an_object({"a": 1}, "note") == {"a": 1}
    assert PLAIN.a_list([1], "note.a") == [1]
    assert PLAIN.a_whole(3, "note.b", low=0, high=3, remedy="a count") == 3
    for value in ([], None, "x"):
        with pytest.raises(NoteError, match=r"note.a: .*; send an object"):
            PLAIN.an_object(value, "note.a")
    for value in ({}, None, "x"):
        with pytest.raises(NoteError, match=r"note.a: .*; send a list"):
            PLAIN.a_list(value, "note.a")
    for value in (-1, 4, 1.0, True, "1", None, 10**4000):
        with pytest.raises(NoteError, match=r"note.b: .*; send a count"):
            PLAIN.a_whole(value, "note.b", low=0, high=3, remedy="a count")


def test_what_is_shown_is_short_and_on_one_line():
    deep: list = []
    for _ in range(10**4):
        deep = [deep]
    for value in (deep, "x\n" * 999, {"a" * 999: ["b" * 999]}, b"x" * 10**6, 10**4000):
        assert len(shown(value)) <= SHOWN_MAX_CHARS + 3
        assert shown(value).isprintable()
    assert shown(None) == "missing"
    assert shown("7") == "'7'"
