"""Enforcements: what became of each hint, written and read back, or refused whole."""

import contextlib
import json

import pytest
from dsx_parts import ALERT, FUZZ, HINTS, T0_UTC_S, an_id
from hypothesis import given
from hypothesis import strategies as st

from protocols.dsx_flex.enforcement import (
    RESULTS_MAX,
    Enforcement,
    Result,
    enforcement_data,
    overall_code,
    read_enforcement,
)
from protocols.dsx_flex.wire import DsxFlexError

RESULTS = (
    Result.of(HINTS[0], "applied", applied_w=4200.0),
    Result.of(HINTS[1], "failed", "agent silent"),
    Result.of(HINTS[2], "skipped"),
)
ANSWER = Enforcement.of(ALERT, "applied", RESULTS, done_utc_s=T0_UTC_S + 2, message="1 of 3")


def test_an_enforcement_says_what_became_of_each_hint():
    results = [
        Result.of(HINTS[0], "applied", applied_w=4200.0),
        Result.of(HINTS[1], "failed", "agent silent"),
        Result.of(HINTS[2], "skipped", "no such resource here"),
    ]
    answer = Enforcement.of(ALERT, "applied", results, done_utc_s=T0_UTC_S + 2, message="1 of 3")
    data = enforcement_data(answer)
    assert (data["breach_id"], data["feed_tag"], data["code"]) == (an_id(5), "main-a", "partial")
    assert data["results"][0]["applied_power"] == {"value": 4200.0, "unit": "watt"}
    assert [one["code"] for one in data["results"]] == ["applied", "failed", "skipped"]
    assert (data["timestamp"], data["diag_msg"]) == ("2026-11-21T18:00:02.000Z", "1 of 3")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], "success"),
        (["applied", "applied"], "success"),
        (["applied", "skipped"], "partial"),
        (["applied", "failed"], "partial"),
        (["failed"], "error"),
        (["skipped"], "error"),
    ],
)
def test_the_overall_code_follows_from_the_results(codes, expected):
    assert overall_code(tuple(Result.of(HINTS[0], code) for code in codes)) == expected


@pytest.mark.parametrize("phase", ["applied", "reverted"])
@pytest.mark.parametrize("results", [RESULTS, ()])
def test_an_enforcement_reads_back_as_it_was_written(phase, results):
    answer = Enforcement.of(ALERT, phase, results, done_utc_s=T0_UTC_S)
    assert read_enforcement(json.loads(json.dumps(enforcement_data(answer)))) == answer


def test_what_people_read_is_shown_as_far_as_it_can_be_and_spoils_nothing():
    data = enforcement_data(ANSWER)
    data["results"][1]["message"] = "Traceback:\n\x1b[31m" + "x" * 999
    assert read_enforcement(data | {"diag_msg": "a\nb"}).message == "a b"
    assert read_enforcement(data).results[1].message == "Traceback:  [31m" + "x" * 240


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("breach_id", "5"),
        ("feed_tag", None),
        ("action", "done"),
        ("code", "partly"),
        ("results", None),
        ("results", [{}] * (RESULTS_MAX + 1)),
        ("results.0.resource_id", ""),
        ("results.0.resource_type", "rack"),
        ("results.0.requested_action", None),
        ("results.0.code", "success"),
        ("results.0.message", 5),
        ("results.0.applied_power", {"value": 4, "unit": "kW"}),
        ("timestamp", "2026-11-21T18:00:00"),
        ("diag_msg", []),
    ],
)
def test_an_enforcement_that_cannot_be_meant_is_refused_whole(path, value):
    data = json.loads(json.dumps(enforcement_data(ANSWER)))
    *parents, last = path.split(".")
    place = data
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    place[last] = value
    with pytest.raises(DsxFlexError, match=path.replace(".0.", r"\[0\].")):
        read_enforcement(data)


KEYS = [*enforcement_data(ANSWER), *enforcement_data(ANSWER)["results"][0], "value", "unit"]
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=10,
)


@FUZZ
@given(st.dictionaries(st.sampled_from(KEYS), JSONISH))
def test_no_enforcement_raises_anything_but_the_packages_error(changes):
    with contextlib.suppress(DsxFlexError):
        read_enforcement(enforcement_data(ANSWER) | changes)
