"""Alerts on the wire: written and read back, first things first, or refused whole."""

import contextlib
import json
from dataclasses import replace

import pytest
from dsx_parts import ALERT, FUZZ, HINTS, T0_UTC_S
from hypothesis import given
from hypothesis import strategies as st

from protocols.dsx_flex.breach import alert_data, read_alert
from protocols.dsx_flex.wire import DsxFlexError


def test_an_alert_reads_back_as_it_was_written():
    assert read_alert(json.loads(json.dumps(alert_data(ALERT)))) == ALERT


def test_a_resolved_alert_carries_its_end_and_no_advice():
    data = alert_data(replace(ALERT, status="resolved", resolved_utc_s=T0_UTC_S + 60))
    assert "shed_hints" not in data
    assert data["infrastructure_actions"] == []
    assert data["breach"]["resolved_at"] == "2026-11-21T18:01:00.000Z"
    assert "resolved_at" not in alert_data(replace(ALERT, resolved_utc_s=T0_UTC_S))["breach"]


def test_hints_are_written_and_read_first_things_first():
    data = alert_data(replace(ALERT, hints=HINTS[::-1]))
    assert [hint["priority"] for hint in data["shed_hints"]] == [1, 2, 3]
    data["shed_hints"].reverse()
    assert read_alert(data).hints == HINTS


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("feed_tag", None),
        ("status", "raised"),
        ("severity", "fatal"),
        ("breach", []),
        ("breach.breach_id", "5"),
        ("breach.detected_at", "now"),
        ("breach.resolved_at", 5),
        ("target", None),
        ("target.correlation_id", None),
        ("target.load_constraint", None),
        ("measured_load", {"value": -1, "unit": "watt"}),
        ("shed_hints", "x"),
        ("shed_hints", [{}] * 2049),
        ("shed_hints.0.resource_id", ""),
        ("shed_hints.0.resource_type", "rack"),
        ("shed_hints.0.action", "off"),
        ("shed_hints.0.priority", 0),
        ("shed_hints.0.priority", True),
        ("shed_hints.0.priority", 1.5),
        ("shed_hints.0.target_power", {"value": 4, "unit": "kW"}),
        ("infrastructure_actions", None),
        ("infrastructure_actions", ["PULL_PLUG"]),
        ("infrastructure_actions", ["SHUTDOWN_NODES"] * 5),
    ],
)
def test_an_alert_that_cannot_be_meant_is_refused_whole(path, value):
    data = json.loads(json.dumps(alert_data(ALERT)))
    *parents, last = path.split(".")
    place = data
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    place[last] = value
    with pytest.raises(
        DsxFlexError, match=path.replace(".0.", r"\[0\].").replace("target.load", "target.load")
    ):
        read_alert(data)


KEYS = [*alert_data(ALERT), *alert_data(ALERT)["shed_hints"][0], "breach_id", "detected_at", "value", "unit"]
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=10,
)


@FUZZ
@given(st.dictionaries(st.sampled_from(KEYS), JSONISH))
def test_no_alert_raises_anything_but_the_packages_error(changes):
    with contextlib.suppress(DsxFlexError):
        read_alert(alert_data(ALERT) | changes)
