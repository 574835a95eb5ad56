"""Metadata, values and topics of the BMS event bus, held against the published contract."""

import contextlib
import json

import jsonschema
import pytest
from bms_contract import channels, check, needs_contract
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.bms import (
    BAD,
    GOOD,
    OBJECTS,
    POINTS,
    BmsError,
    Kind,
    Metadata,
    Value,
    metadata_topic,
    read_value,
    request_filter,
    request_topic,
    value_topic,
)


def least(object_type, point_type, **more):
    """The metadata that a point needs at least."""
    point = POINTS[point_type]
    given = {"object_type": object_type, "point_type": point_type, "name": "One", "id": "one"}
    if point.kind in {Kind.FIXED, Kind.FREE}:
        given["unit"] = point.unit
    if point.kind is Kind.STATES:
        given["states"] = point.states
    if point.kind is Kind.GENERIC:
        given["area"] = ("somewhere",)
    if point_type == "PhaseCurrent":
        given["phase"] = "A"
    if point.by_integration:
        given["integration"] = "MEPAI1"
    return Metadata(**given | more)


EVERY = [(object_type, point_type) for object_type, points in OBJECTS.items() for point_type in points]


@needs_contract
def test_the_catalogue_is_that_of_the_contract():
    assert {
        object_type: points for (_, sort, object_type), points in channels().items() if sort == "Metadata"
    } == {object_type: set(points) for object_type, points in OBJECTS.items()}
    ours = {
        (object_type, point_type)
        for (publisher, sort, object_type), points in channels().items()
        for point_type in points
        if publisher == "PUB" and sort == "Value"
    }
    assert ours == {(one, point) for one, point in EVERY if not POINTS[point].by_integration}


@needs_contract
@pytest.mark.parametrize(("object_type", "point_type"), EVERY)
def test_metadata_of_every_point_type_are_valid(object_type, point_type):
    meta = least(object_type, point_type)
    check(metadata_topic(object_type, point_type, "hall-a/one/x"), meta.payload())


WORD = st.sampled_from(["", "a", "Supply"])
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "name": WORD,
        "id": WORD,
        "unit": st.sampled_from(["", "kW", "C", "LPM", "kPa", "%", "A"]),
        "states": st.sampled_from([{}, {0: "Off", 1: "On"}]),
        "serves": st.sampled_from([(), ("r1",)]),
        "associate_id": st.sampled_from(["", "m1"]),
        "area": st.sampled_from([(), ("Primary", "Return")]),
        "phase": st.sampled_from(["", "A", "3", "N"]),
        "integration": st.sampled_from(["", "MEPAI1"]),
        "is_setpoint": st.booleans(),
        "scope": st.sampled_from(["", "BMS/v1/PUB/#"]),
    },
)


@needs_contract
@settings(max_examples=600, deadline=None)
@given(st.sampled_from(EVERY), CHANGES)
def test_whatever_can_be_made_is_valid(point, changes):
    """No combination passes our own check and fails the contract's."""
    try:
        meta = least(*point, **changes)
    except BmsError:
        return
    check(metadata_topic(meta.object_type, meta.point_type, "t"), meta.payload())


@needs_contract
def test_the_yardstick_measures():
    """A message with one fault each fails: else the tests above would prove nothing."""
    topic = metadata_topic("Rack", "RackPower", "t")
    content = json.loads(least("Rack", "RackPower").payload())
    check(topic, json.dumps(content))
    for wrong in ({"engUnit": "W"}, {"more": 1}, {"rackLocationId": 5}):
        with pytest.raises(jsonschema.ValidationError):
            check(topic, json.dumps(content | wrong))
    value = value_topic("Rack", "RackPower", "t")
    check(value, Value(1.5, 1_763_726_400_000, GOOD).payload())
    for wrong in (
        b"{}",
        b'{"value":"1","timestamp":1,"quality":1}',
        b'{"value":1,"timestamp":1.5,"quality":1}',
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(value, wrong)
    with pytest.raises(AssertionError):
        check(value_topic("Rack", "RackLiquidIsolationRequest", "t"), Value(1.0, 1, GOOD).payload())


@needs_contract
def test_a_missing_value_is_null_and_not_good():
    payload = Value(None, 1_763_726_400_000, BAD).payload()
    check(value_topic("CDU", "LiquidFlow", "t"), payload)
    assert json.loads(payload) == {"value": None, "timestamp": 1_763_726_400_000, "quality": 0}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"object_type": "Racks"}, "no object type"),
        ({"point_type": "ActivePower"}, "a Rack has no ActivePower"),
        ({"unit": "W"}, "its unit is kW, not W"),
        ({"unit": ""}, "its unit is kW, not none"),
        ({"id": ""}, "a name and an id"),
        ({"serves": ("r2",)}, "serves nobody"),
        ({"area": ("Supply",)}, "has no area"),
        ({"integration": "MEPAI1"}, "name no integration"),
        ({"states": {0: "Off"}}, "a unit and states"),
        ({"is_setpoint": True}, "never a setpoint"),
        ({"scope": "x"}, "only a heartbeat"),
        ({"phase": "A"}, "has no phase"),
    ],
)
def test_a_wrong_point_is_refused_with_the_reason(fields, words):
    with pytest.raises(BmsError, match=words):
        Metadata(
            **{"object_type": "Rack", "point_type": "RackPower", "name": "R", "id": "r", "unit": "kW"}
            | fields
        )


def test_a_part_of_another_object_has_no_name_of_its_own():
    part = Metadata(object_type="UPS", point_type="Status", associate_id="m1", states={0: "Off", 1: "On"})
    assert json.loads(part.payload())["associateId"] == "m1"
    with pytest.raises(BmsError, match="give no name"):
        least("UPS", "Status", associate_id="m1")


def test_a_request_is_told_where_its_metadata_says():
    tag = "site1/row3/cdu5"
    assert metadata_topic("CDU", "LiquidTemperatureSpRequest", tag) == (
        "BMS/v1/PUB/Metadata/CDU/LiquidTemperatureSpRequest/site1/row3/cdu5"
    )
    assert request_topic("MEPAI", "CDU", "LiquidTemperatureSpRequest", tag) == (
        "BMS/v1/MEPAI/Value/CDU/LiquidTemperatureSpRequest/site1/row3/cdu5"
    )
    assert request_filter("MEPAI") == "BMS/v1/MEPAI/Value/#"


@pytest.mark.parametrize("tag", ["", "a//b", "/a", "a/", "a/+", "a/#", "a/b\n", "x" * 2000])
def test_a_tag_path_that_cannot_be_a_topic_is_refused(tag):
    with pytest.raises(BmsError):
        value_topic("Rack", "RackPower", tag)


@pytest.mark.parametrize("name", ["PUB", "", "a/b", "+", "#"])
def test_an_integration_cannot_take_a_name_that_opens_other_topics(name):
    with pytest.raises(BmsError):
        request_filter(name)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"1",
        b"[]",
        b"\xff",
        b'{"value":1,"timestamp":1}',
        b'{"value":"1","timestamp":1,"quality":1}',
        b'{"value":true,"timestamp":1,"quality":1}',
        b'{"value":NaN,"timestamp":1,"quality":1}',
        b'{"value":1e999,"timestamp":1,"quality":1}',
        b'{"value":1,"timestamp":1,"quality":1,"more":1}',
        b'{"value":1,"timestamp":1,"quality":' + b"1" * 2000 + b"}",
    ],
)
def test_a_reading_that_breaks_the_contract_is_refused(payload):
    with pytest.raises(BmsError):
        read_value(payload)


@given(st.binary(max_size=80))
def test_no_bytes_from_the_bus_raise_anything_else(payload):
    with contextlib.suppress(BmsError):
        read_value(payload)


def test_a_reading_says_what_it_was_sent_with():
    assert read_value(b'{"value":21,"timestamp":1763726400000,"quality":1}') == Value(21.0, 1763726400000, 1)
    assert read_value(b'{"value":null,"timestamp":1,"quality":0}').value is None
