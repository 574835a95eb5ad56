"""The mapping from field devices to the BMS bus: what follows by itself, and what the configuration says."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.agent.config import MqttConfig
from controller.facility.config import BmsConfig
from controller.facility.dsx_bms.bus_map import GROUPS_NAMED_MAX, reasons, rows
from controller.facility.dsx_bms.mapping import bus_map
from controller.facility.dsx_bms.rules import KINDS, UNITS
from controller.image.model import Group, Point
from protocols.profile import builtin_profiles, load_profile
from tests.protocols.bms.bms_contract import check, needs_contract


def device(name, profile, **about):
    """A group as the controller makes it of a profile."""
    known = load_profile(profile)
    points = tuple(
        Point(
            name=point.name,
            unit=point.unit,
            title=point.title,
            states=dict(point.enum),
            bits={number: bit.name for number, bit in point.bits.items()},
            text=point.type == "string" or point.unit == "text",
            deadband=point.deadband,
        )
        for point in known.points.values()
    )
    return Group(
        path=f"devices/{name}",
        kind="device",
        title=known.title,
        points=points,
        about={"profile": profile, **about},
    )


def plain(name, kind, *points, **about):
    return Group(path=f"devices/{name}", kind="device", points=points, about={"kind": kind, **about})


def mapped(*groups, **said):
    return bus_map(BmsConfig(mqtt=MqttConfig(url="mqtt://x"), **said), groups, "hall-a")


def told(bus):
    """topic without its head -> point."""
    return {point.value_topic.removeprefix("BMS/v1/PUB/Value/"): point for point in bus.points}


SITE = (
    device("meter", "pm5000_meter"),
    device("pdu-a1", "xerus_pdu", kind="pdu", rack="r1", feed="A"),
    device("pdu-b1", "xerus_pdu", kind="pdu", rack="r1", feed="B"),
    device("rpu-1", "orv3_rpu", kind="cdu", rack="r1"),
    device("cdu-1", "opcua_cdu", kind="cdu"),
)


@needs_contract
def test_everything_that_a_site_tells_is_valid():
    bus = mapped(*SITE)
    assert len(bus.points) > 60
    assert not bus.complaints
    for point in bus.points:
        check(point.metadata_topic, point.meta.payload())


@needs_contract
def test_reasons_name_groups_and_counts_the_most_frequent_first_and_are_bounded():
    left_out = {f"devices/m-{n}/p{k}": "no kind is given" for n in range(9) for k in range(3)}
    left_out |= {"block/power_w": "no equipment", "nodes/n1/gpus/0/power_w": "no equipment"}
    paths = {address.rpartition("/")[0] for address in left_out} | {"nodes/n1"}
    (first, second) = reasons(left_out, paths)
    named = ", ".join(f"3 of devices/m-{n}" for n in range(GROUPS_NAMED_MAX))
    assert first == ("no kind is given", f"{named}, 12 of others")
    assert second == ("no equipment", "1 of block, 1 of nodes/n1")


@needs_contract
@pytest.mark.parametrize("kind", ["pdu", "cdu", "ups", "sensor"])
def test_every_profile_under_every_kind_is_valid(kind):
    bus = mapped(*(device(profile, profile, kind=kind, rack="r1") for profile in builtin_profiles()))
    for point in bus.points:
        check(point.metadata_topic, point.meta.payload())
    assert not bus.complaints


def test_a_pdu_is_a_power_meter_in_kilowatts_that_serves_its_rack():
    power = told(mapped(*SITE))["PowerMeter/ActivePower/hall-a/devices/pdu-a1/power_w"]
    assert json.loads(power.meta.payload()) == {
        "objectType": "PowerMeter",
        "pointType": "ActivePower",
        "objectName": "Xerus rack PDU (Raritan PX, Legrand, Server Technology PRO3X/PRO4X)",
        "objectId": "pdu-a1",
        "servesId": ["r1"],
        "engUnit": "kW",
    }
    assert power.scale == 0.001


def test_the_meter_in_front_serves_the_pdus_behind_it():
    bus = told(mapped(*SITE))
    assert bus["PowerMeter/ActivePower/hall-a/devices/meter/power_w"].meta.serves == ("pdu-a1", "pdu-b1")
    phase = bus["PowerMeter/PhaseCurrent/hall-a/devices/meter/current_l2_a"].meta
    assert (phase.phase, phase.unit) == ("2", "A")


def test_a_voltage_to_neutral_is_not_told_as_one_between_lines():
    points = Point(name="voltage_v", unit="V", title="mean phase to neutral"), Point(name="power_w", unit="W")
    bus = told(mapped(plain("m", "meter", *points)))
    assert bus["PowerMeter/GenericPoint/hall-a/devices/m/voltage_v"].meta.area == ("voltage",)
    points = {"devices/m/voltage_v": {"type": "Voltage", "scale": 1.7320508}}
    bus = told(
        mapped(plain("m", "meter", Point(name="voltage_v", unit="V", title="to neutral")), points=points)
    )
    assert bus["PowerMeter/Voltage/hall-a/devices/m/voltage_v"].scale == 1.7320508


def test_the_power_of_a_rack_is_the_sum_of_its_pdus_where_nobody_measures_it():
    power = told(mapped(*SITE))["Rack/RackPower/hall-a/racks/r1/power_w"]
    assert list(map(str, power.sources)) == ["devices/pdu-a1/power_w", "devices/pdu-b1/power_w"]
    rack = Group(
        path="racks/r1", kind="rack", points=(Point(name="power_w", unit="W"), Point(name="gpu_w", unit="W"))
    )
    bus = mapped(*SITE, rack)
    powers = [point for point in bus.points if point.meta.point_type == "RackPower"]
    assert [str(one.sources[0]) for one in powers] == ["racks/r1/power_w"]
    assert bus.left_out["racks/r1/gpu_w"] == "a Rack has no point type for it"


def test_what_a_unit_in_a_rack_measures_is_told_of_the_rack_too():
    bus = told(mapped(*SITE))
    for point_type, name in (
        ("RackLiquidSupplyTemperature", "coolant_supply_c"),
        ("RackLiquidReturnTemperature", "coolant_return_c"),
        ("RackLiquidFlow", "flow_l_per_min"),
        ("RackLeakDetect", "leak_alarms"),
    ):
        point = bus[f"Rack/{point_type}/hall-a/racks/r1/rpu-1/{name}"]
        assert point.meta.id == "r1"
    assert bus["Rack/RackLeakDetect/hall-a/racks/r1/rpu-1/leak_alarms"].nonzero
    tags = [point.tag for point in bus.values()]
    assert len(tags) == len(set(tags))


def test_cooling_plant_says_where_it_measures():
    bus = told(mapped(*SITE))
    supply = bus["CDU/LiquidTemperature/hall-a/devices/cdu-1/coolant_supply_c"].meta
    assert (supply.unit, supply.area, supply.is_setpoint) == ("C", ("Supply",), False)
    target = bus["CDU/LiquidTemperature/hall-a/devices/rpu-1/coolant_supply_target_c"].meta
    assert target.is_setpoint
    pump = bus["CDU/PumpSpeed/hall-a/devices/cdu-1/pump_speed_ratio"]
    assert (pump.meta.unit, pump.scale) == ("%", 100.0)
    assert bus["CDU/Status/hall-a/devices/cdu-1/running"].meta.states == {0: "NotOperating", 1: "Operating"}


def test_states_of_a_ups_are_told_with_their_words_and_the_rest_as_generic_points():
    points = (
        Point(name="state", unit="enum", states={0: "standby", 1: "online", 2: "on battery"}),
        Point(name="charge_ratio", unit="ratio"),
        Point(name="breaker_closed", unit="bool"),
        Point(name="serial_number", unit="text", text=True),
    )
    bus = mapped(plain("ups-1", "ups", *points))
    state = told(bus)["UPS/Status/hall-a/devices/ups-1/state"].meta
    assert state.states[2] == "on battery"
    charge = told(bus)["UPS/GenericPoint/hall-a/devices/ups-1/charge_ratio"]
    assert (charge.meta.unit, charge.meta.area, charge.scale) == ("%", ("charge",), 100.0)
    assert bus.left_out == {"devices/ups-1/serial_number": "a text; the bus carries numbers"}
    assert "devices/ups-1/charge_ratio" in mapped(plain("ups-1", "ups", *points), generic=False).left_out


def test_what_is_no_equipment_is_left_out_with_the_reason():
    block = Group(path="block", kind="block", points=(Point(name="power_w", unit="W"),))
    bus = mapped(block, plain("x", "toaster", Point(name="power_w", unit="W")))
    assert not bus.points
    assert "no equipment" in bus.left_out["block/power_w"]
    assert "kind 'toaster'" in bus.left_out["devices/x/power_w"]
    assert told(mapped(block, objects={"block": {"type": "PowerMeter", "id": "BLOCK"}}))


WORD = st.sampled_from(
    ["power", "coolant", "supply", "air", "leak", "l1", "1", "valve", "target", "+", "", "a b"]
)
ANY_POINT = st.builds(
    Point,
    name=st.lists(WORD, max_size=4).map("_".join),
    unit=st.sampled_from([*UNITS, "", "furlong", "bool", "enum", "bits"]),
    states=st.sampled_from([{}, {0: "off", 1: "on"}, {3: "tripped"}]),
    text=st.booleans(),
    deadband=st.floats(0, 10),
)


@needs_contract
@settings(max_examples=150, deadline=None)
@given(
    st.lists(ANY_POINT, max_size=4, unique_by=lambda one: one.name),
    st.sampled_from([*KINDS, "", "toaster"]),
    st.sampled_from(["", "r1", "r/+"]),
)
def test_whatever_devices_there_are_every_point_is_valid_or_left_out_with_a_reason(points, kind, rack):
    group = plain("x", kind, *points, rack=rack)
    bus = mapped(group)
    for point in bus.points:
        check(point.metadata_topic, point.meta.payload())
    told_of = {str(source) for point in bus.points for source in point.sources}
    assert told_of | bus.left_out.keys() >= {f"devices/x/{point.name}" for point in points}
    assert len({point.tag for point in bus.points}) == len(bus.points)
    list(rows(bus))


def test_a_few_lines_correct_what_does_not_follow_by_itself():
    bus = mapped(
        *SITE,
        site="site1/hall-a",
        objects={
            "devices/cdu-1": {"id": "CDU-07", "name": "CDU 7", "area": ("Secondary",)},
            "racks/r1": {"id": "R-0101", "name": "Rack 1.1"},
            "devices/pdu-b1": {"publish": False},
        },
        points={
            "devices/pdu-*/outlet_*": {"publish": False},
            "devices/cdu-1/heat_w": {"area": ("Heat",), "deadband": 500.0},
        },
    )
    points = told(bus)
    assert points["CDU/LiquidFlow/site1/hall-a/devices/cdu-1/flow_l_per_min"].meta.area == ("Secondary",)
    heat = points["CDU/GenericPoint/site1/hall-a/devices/cdu-1/heat_w"]
    assert heat.meta.area == ("Secondary", "Heat")
    assert heat.deadband == pytest.approx(0.5)
    assert points["PowerMeter/ActivePower/site1/hall-a/devices/pdu-a1/power_w"].meta.serves == ("R-0101",)
    assert points["Rack/RackPower/site1/hall-a/racks/r1/power_w"].meta.name == "Rack 1.1"
    assert not any("outlet_" in topic or "pdu-b1" in topic for topic in points)
    assert bus.left_out["devices/pdu-b1/power_w"] == "publish: false"


def test_a_rack_can_be_named_where_the_device_does_not_say_it():
    group = plain("pdu-9", "pdu", Point(name="power_w", unit="W"))
    bus = told(mapped(group, objects={"devices/pdu-9": {"rack": "r9"}}))
    assert "Rack/RackPower/hall-a/racks/r9/power_w" in bus


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"points": {"devices/cdu-1/flow_l": {}}},
            r"points: devices/cdu-1/flow_l: nothing fits; devices/cdu-1/flow_l_",
        ),
        ({"objects": {"devices/cdu-2": {}}}, r"objects: devices/cdu-2: nothing fits; devices/cdu-1\?"),
        ({"points": {"devices/cdu-1/heat_w": {"type": "LiquidHeat"}}}, "no point type 'LiquidHeat'"),
        ({"points": {"devices/cdu-1/heat_w": {"type": "LiquidTemperature"}}}, "its unit is C, not kW"),
        ({"points": {"devices/cdu-1/heat_w": {"type": "RackPower"}}}, "a CDU has no RackPower"),
        ({"objects": {"devices/cdu-1": {"type": "Cdu"}}}, "no object type 'Cdu'"),
        (
            {"objects": {"devices/cdu-1": {"id": "meter"}}},
            "devices/cdu-1, devices/meter share the id 'meter'",
        ),
        ({"site": "a//b"}, "empty level"),
    ],
)
def test_a_mistake_is_a_sentence_and_costs_itself_alone(said, words):
    bus = mapped(*SITE, **said)
    assert any(re.search(words, one) for one in bus.complaints), bus.complaints
    assert said.keys() == {"site"} or len(bus.points) > 40


def test_the_listing_shows_every_point_and_why_the_others_are_missing():
    bus = mapped(*SITE, points={"devices/pdu-*/outlet_*": {"publish": False}})
    listed = {row.address: row for row in rows(bus)}
    addresses = {f"{group.path}/{point.name}" for group in SITE for point in group.points}
    assert addresses <= listed.keys()
    assert listed["devices/cdu-1/heat_w"].topic == "CDU/GenericPoint/hall-a/devices/cdu-1/heat_w"
    assert listed["devices/pdu-a1/outlet_1_power_w"].note == "not told: publish: false"
    assert listed["devices/pdu-a1/power_w + devices/pdu-b1/power_w"].unit == "kW"


REQUEST = {
    "point": "LiquidTemperatureSpRequest",
    "at": "devices/rpu-1",
    "writes": "devices/rpu-1/coolant_supply_target_c",
    "lowest": 18.0,
    "highest": 40.0,
}


@needs_contract
def test_requests_are_introduced_with_the_name_of_their_integration():
    requests = (REQUEST, {"point": "RackLiquidIsolationRequest", "at": "racks/r1"})
    bus = mapped(*SITE, integrations={"MEPAI1": {"requests": requests}})
    assert not bus.complaints
    temperature, isolation = bus.requests
    for request in bus.requests:
        check(request.metadata_topic, request.meta.payload())
    assert temperature.topic == (
        "BMS/v1/MEPAI1/Value/CDU/LiquidTemperatureSpRequest/hall-a/devices/rpu-1/LiquidTemperatureSpRequest"
    )
    assert isolation.meta.id == "r1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"at": "devices/meter"}, "devices/meter is no CDU"),
        (
            {"writes": "devices/rpu-1/supply_target_c"},
            "no point devices/rpu-1/supply_target_c; devices/rpu-1/",
        ),
        ({"point": "RackLiquidIsolationRequest", "at": "racks/r7"}, "no rack racks/r7"),
    ],
)
def test_a_request_that_leads_nowhere_is_a_complaint(changes, words):
    bus = mapped(*SITE, integrations={"MEPAI1": {"requests": (REQUEST | changes,)}})
    assert words in "".join(bus.complaints)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"integrations": {"A": {"requests": (REQUEST,)}, "B": {"requests": (REQUEST,)}}}, "asked for twice"),
        (
            {"integrations": {"A": {"requests": (REQUEST | {"lowest": None},)}}},
            "missing; what others may write",
        ),
        ({"integrations": {"A": {"requests": (REQUEST | {"safe": 50.0},)}}}, "safe: outside"),
        (
            {"integrations": {"A": {"requests": (REQUEST | {"writes": "block/x"},)}}},
            "write devices/NAME/POINT",
        ),
        ({"integrations": {"BMS": {}}}, "are the BMS itself"),
        ({"integrations": {"a/b": {}}}, "pattern"),
        ({"repeat_s": 200.0}, "less than or equal to 100"),
    ],
)
def test_a_configuration_without_guardrails_is_refused(said, words):
    with pytest.raises(ValueError, match=words):
        mapped(**said)
