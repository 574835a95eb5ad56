"""What the SCADA side makes of what it hears, and what the rig and the device under test agree on."""

import asyncio
import io
import json
import stat
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from controller.config import BlockConfig, GatewayConfig, load_config
from firmware_sim import bms_check, plot, scada_side
from firmware_sim.facility import Facility, Sample
from firmware_sim.field_devices import tie
from firmware_sim.live import LiveView, verdict_table
from firmware_sim.plant import Plant
from firmware_sim.rig import Outcome, Rig, View
from firmware_sim.scada_plan import Plan, ServedAt, published_map, read_plan
from firmware_sim.scada_side import Line, ScadaSide, Sight
from firmware_sim.scada_ways import BusReader, MirrorReader, PrometheusReader, _samples, _series
from firmware_sim.scenario import ScenarioError, load_scenario, parse_scenario
from firmware_sim.scenario_facility import DEVICE_KINDS
from firmware_sim.verdict import Expectation, Verdict
from firmware_sim.watched import WatchedPoint, watched_points
from tests.brokers import until
from tests.protocols.bms.bms_contract import CONTRACT, needs_contract

ROOT = Path(__file__).parents[2]
PDU = WatchedPoint("r1-a", "devices/r1-a", "power_w", "W", 30.0)
BLOCK = WatchedPoint("", "block", "power_w", "W", 30.0, "devices/meter")
PHASE = WatchedPoint("b1", "devices/b1", "current_l1_a", "A", 1.0)
FLOW = WatchedPoint("rpu", "devices/rpu", "flow_l_per_min", "L/min", 0.2)
CHILLER = DEVICE_KINDS["chiller"].watched
SHARE = WatchedPoint("chiller", "devices/chiller", "capacity_ratio", "ratio", 0.01)


def a_document(**facility):
    return {
        "name": "test",
        "warm_up_s": 0,
        "duration_s": 1,
        "block": {"racks": [{"name": "r1"}], "nodes": [{"name": "n1", "rack": "r1", "gpus": 2}]},
        "facility": {"serve": ["opcua"], "devices": [{"name": "chiller", "type": "chiller"}], **facility},
    }


def errors_of(document):
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(document, "test.yaml")
    return str(refused.value)


# ---- scenarios ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facility", "words"),
    [
        ({"devices": [{"name": "meter", "type": "em24"}]}, "'meter' stands there twice"),
        ({"devices": [{"name": "b", "type": "branch", "of": "r9"}]}, "no rack 'r9'; use one of r1"),
        (
            {"devices": [{"name": "b", "type": "battery", "line": "hall"}]},
            "a port of its own; leave line out",
        ),
        ({"alone": True, "devices": []}, "a gateway needs devices"),
        (
            {"devices": [{"name": n, "type": "em24", "line": "hall", "unit": 4} for n in "ab"]},
            "unit 4 is twice on line 'hall'",
        ),
    ],
)
def test_a_facility_that_cannot_stand_is_refused_with_a_remedy(facility, words):
    assert words in errors_of(a_document(**facility))


@pytest.mark.parametrize(
    ("moment", "facility", "words"),
    [
        (
            {"command": {"id": "c", "via": "modbus", "limit_kw": 3, "duration_s": 5}},
            {},
            "modbus is not served",
        ),
        ({"command": {"id": "c", "via": "opcua", "duration_s": 5}}, {}, "either reduce_ratio or limit_kw"),
        (
            {"command": {"id": "c", "via": "opcua", "limit_kw": 3, "duration_s": 5}},
            {"alone": True},
            "no power to limit",
        ),
        ({"event": {"id": "e", "limit_kw": 3}}, {"alone": True}, "a gateway hears no grid"),
        ({"write": {"device": "cdu", "point": "x", "value": 1}}, {}, "no 'cdu'; use one of chiller"),
        (
            {"write": {"device": "chiller", "point": "capacity_ratio", "value": 1}},
            {},
            "cannot be written; use demand_limit_ratio",
        ),
        (
            {"write": {"device": "chiller", "point": "demand_limit_ratio", "value": 0.1}},
            {},
            "outside 0.3 to 1",
        ),
        ({"fault": {"target": "server", "mode": "kill"}}, {"serve": []}, "nothing is served"),
        ({"fault": {"target": "agent", "mode": "kill", "name": "n1"}}, {"alone": True}, "has no agent"),
    ],
)
def test_an_order_that_cannot_be_given_is_refused_with_a_remedy(moment, facility, words):
    assert words in errors_of(a_document(**facility) | {"timeline": [{"at_s": 1, **moment}]})


def test_a_command_is_nobodys_event():
    command = {"id": "x", "via": "opcua", "limit_kw": 3, "duration_s": 5}
    timeline = [{"at_s": 0, "event": {"id": "x", "limit_kw": 3}}, {"at_s": 1, "command": command}]
    assert "'x' is an event's" in errors_of(a_document() | {"timeline": timeline})
    timeline = [{"at_s": 0, "command": command}, {"at_s": 1, "cancel": "x"}]
    assert "no event 'x' before it" in errors_of(a_document() | {"timeline": timeline})


# ---- what the device under test is given ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("gateway", BlockConfig), ("plain_gateway", GatewayConfig)])
async def test_the_generated_configuration_is_what_the_gateway_accepts(tmp_path, name, kind):
    scenario = load_scenario(ROOT / "examples" / f"{name}.yaml")
    rig = Rig(scenario, tmp_path / "report", None)
    async with rig.facility() as facility:
        config = load_config(rig.block_path)
        assert type(config) is kind
        assert {device.name: device.url for device in config.devices} == {
            device.name: facility.urls[device.name] for device in scenario.facility.devices
        }
        served = config.facility
        ways = {way for way in type(served).model_fields if getattr(served, way) is not None}
        assert ways == set(scenario.facility.serve)
        assert (served.opcua.anonymous, served.opcua.unsecured) == ("nobody", False)
        assert served.modbus.allow == ("127.0.0.1",)
        assert stat.S_IMODE(served.opcua.users.stat().st_mode) == 0o600
        assert bool(rig.node_paths) is (kind is BlockConfig)
        assert set(rig.scada.endpoints()) == set(scenario.facility.serve)


async def test_without_a_facility_nothing_is_served_and_nobody_looks(tmp_path):
    document = a_document() | {"facility": {}}
    rig = Rig(parse_scenario(document, "test.yaml"), tmp_path / "report", None)
    async with rig.facility() as facility:
        assert rig.scada is None
        assert not facility.watched
        assert not {"devices", "facility"} & yaml.safe_load(rig.block_path.read_text()).keys()


async def test_a_plan_reads_as_it_was_written_and_is_nobody_elses_business(tmp_path):
    plan = await a_plan(tmp_path, PDU, BLOCK)
    path = tmp_path / "plan.json"
    plan.write(path)
    assert read_plan(path) == plan
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_map_is_read_as_it_is_published(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text(
        "Modbus map of demo\n\nunit id,address,registers,type,name,unit\n"
        '110,4,2,f32,devices/r1-a/power_w,W\n110,6,1,u16,"devices/r1-a/power_w quality",\n'
    )
    assert published_map(path)["devices/r1-a/power_w"] == (110, 4, "f32")


# ---- the readers ----------------------------------------------------------------------------------------


async def a_plan(tmp_path, *points, **changes):
    served = await ServedAt.prepare(tmp_path)
    settings = {
        "report_port": 1, "site": "demo", "ways": ("bms",), "points": points, "mqtt": {"url": "mqtt://x:1"},
        "register_map": tmp_path / "map.csv", "bms_schema": None, "opcua_port": served.opcua_port,
        "modbus_port": served.modbus_port, "prometheus_port": served.prometheus_port,
        "password": served.password, "certificate": served.certificate, "key": served.key,
    }  # fmt: skip
    return Plan(**(settings | changes))


async def a_reader(kind, tmp_path, *points, **changes):
    seen = []
    reader = kind(await a_plan(tmp_path, *points, **changes), lambda *sighting: seen.append(sighting))
    return reader, seen


def on_bus(tag, sort="Value", of="PowerMeter/ActivePower", **content):
    object_type, point_type = of.split("/")
    if sort == "Metadata":
        content = {"objectType": object_type, "pointType": point_type, **content}
    return f"BMS/v1/PUB/{sort}/{of}/demo/{tag}", json.dumps(content).encode()


def value(number, quality=1):
    return {"value": number, "timestamp": 1_700_000_000_000, "quality": quality}


async def test_a_value_on_the_bus_means_what_its_metadata_says(tmp_path):
    reader, seen = await a_reader(BusReader, tmp_path, PDU, BLOCK)
    reader._hear(*on_bus("devices/r1-a/power_w", **value(3.5)), retained=False)
    assert not seen, "of no known unit"
    reader._hear(*on_bus("devices/r1-a/power_w", "Metadata", engUnit="kW"), retained=True)
    reader._hear(*on_bus("devices/r1-a/power_w", **value(3.5)), retained=False)
    reader._hear(*on_bus("devices/r1-a/power_w", **value(3.5, quality=2)), retained=False)
    reader._hear(*on_bus("devices/r1-a/power_w", **value(None, quality=0)), retained=False)
    address = "devices/r1-a/power_w"
    assert seen == [("bms", address, 3500.0), ("bms", address, None), ("bms", address, None)]


async def test_the_blocks_power_on_the_bus_is_its_meters(tmp_path):
    reader, seen = await a_reader(BusReader, tmp_path, BLOCK)
    reader._hear(*on_bus("devices/meter/power_w", "Metadata", engUnit="kW"), retained=True)
    reader._hear(*on_bus("devices/meter/power_w", **value(13.0)), retained=False)
    assert seen == [("bms", "block/power_w", 13_000.0)]


async def test_what_does_not_fit_the_bus_is_counted_with_its_reason(tmp_path):
    reader, seen = await a_reader(BusReader, tmp_path, PDU)
    good = on_bus("devices/r1-a/power_w", "Metadata", engUnit="kW")
    reader._hear(*good, retained=True)
    reader._hear("BMS/v1/PUB/Value/PowerMeter/ActivePower/demo/x", b"{}", retained=False)
    assert (reader.messages, reader.invalid) == (2, 1)
    assert "a value with the members []" in reader.first_fault
    assert not seen


@pytest.mark.parametrize(
    ("topic", "payload", "word"),
    [
        ("BMS/v1/PUB/Value/PowerMeter", b"{}", "no topic"),
        ("BMS/v2/PUB/Value/PowerMeter/ActivePower/x", b"{}", "no topic"),
        ("BMS/v1/PUB/Value/PowerMeter/ActivePower/x", b"{", "no JSON"),
        ("BMS/v1/PUB/Value/PowerMeter/ActivePower/x", b"[]", "no object"),
        ("BMS/v1/PUB/Metadata/PowerMeter/ActivePower/x", b'{"objectType": "Rack"}', "metadata of"),
        (*on_bus("x", **value("12")), "value '12'"),
        (*on_bus("x", **value(True)), "value True"),
        (*on_bus("x", **(value(1) | {"timestamp": 1.5})), "timestamp 1.5"),
    ],
)
def test_a_message_of_another_shape_is_no_message_of_the_bus(topic, payload, word):
    assert word in bms_check.shape_fault(topic, payload)


@needs_contract
def test_the_contract_itself_is_a_yardstick_where_it_is_at_hand():
    contract = bms_check.Contract(CONTRACT)
    assert contract.fault(*on_bus("x", **value(3.5))) == ""
    assert "fit" in contract.fault(*on_bus("x", of="PowerMeter/Beauty", **value(3.5)))
    named = {"objectName": "m", "objectId": "m", "servesId": [], "engUnit": "kW"}
    assert contract.fault(*on_bus("x", "Metadata", **named)) == ""
    assert "fit" in contract.fault(*on_bus("x", "Metadata", **(named | {"servesId": "m"})))


async def test_a_bus_without_heartbeat_shows_nothing_good(tmp_path, monkeypatch):
    monkeypatch.setattr("firmware_sim.scada_ways.BUS_SILENT_S", 0.01)
    monkeypatch.setattr("firmware_sim.scada_ways.LOOK_S", 0.02)
    reader, seen = await a_reader(BusReader, tmp_path, PDU)
    reader._beat_at_s = 0.0
    watching = asyncio.create_task(reader._watch_beat())
    await asyncio.sleep(0.1)
    watching.cancel()
    assert seen[0] == ("bms", PDU.address, None)


async def test_the_mirror_is_believed_while_it_is_online_and_live(tmp_path):
    reader, seen = await a_reader(MirrorReader, tmp_path, PDU)
    topic = "points/demo/devices/r1-a"
    reader._hear(topic, json.dumps({"at": 1, "values": {"power_w": 5.0}}).encode(), retained=False)
    doubted = {"at": 1, "values": {"power_w": 5.0}, "quality": {"power_w": "uncertain"}}
    reader._hear(topic, json.dumps(doubted).encode(), retained=False)
    stored = {"at": 1, "values": {"power_w": 7.0}, "stored": True}
    reader._hear(topic, json.dumps(stored).encode(), retained=False)
    reader._hear("points/demo/mirror", b'{"online": false}', retained=True)
    address = PDU.address
    assert seen == [("mirror", address, 5.0), ("mirror", address, None), ("mirror", address, None)]


def test_metrics_are_found_by_their_conventional_names():
    assert _series(BLOCK) == ("powerblock_power_watts", "block", "block", "")
    assert _series(PHASE) == ("powerblock_current_amperes", "device", "b1", "l1")
    assert _series(FLOW) == ("powerblock_flow_liters_per_second", "device", "rpu", "")
    assert _series(SHARE) == ("powerblock_capacity_ratio", "device", "chiller", "")


def test_a_metric_counts_with_its_quality():
    labels = 'block="demo",kind="device",name="b1",part="l1"'
    text = (
        f"# TYPE powerblock_current_amperes gauge\npowerblock_current_amperes{{{labels}}} 7\n"
        f'# TYPE powerblock_quality gauge\npowerblock_quality{{{labels},quantity="current_amperes"}} 1\n'
    )
    values, qualities = _samples(text)
    assert (values[_series(PHASE)], qualities[_series(PHASE)]) == (7, 1)
    assert PrometheusReader.way == "prometheus"


# ---- the rig's end --------------------------------------------------------------------------------------


async def test_what_the_readers_tell_is_kept_by_way_and_point_and_orders_are_answered(tmp_path):
    """A scripted reader on the other end of the line."""
    scenario = parse_scenario(a_document(alone=True), "test.yaml")
    async with Facility(scenario, tmp_path) as facility:
        served = await ServedAt.prepare(tmp_path)
        async with ScadaSide(scenario, tmp_path, served, {"url": "mqtt://x:1"}, facility) as scada:
            plan = read_plan(tmp_path / "scada.json")
            address = "devices/chiller/capacity_ratio"
            reader, writer = await asyncio.open_connection("127.0.0.1", plan.report_port)
            writer.write(json.dumps(["opcua", address, 0.4, 0.0]).encode() + b"\n")
            writer.write(b'{"bus": [7, 1, "why"]}\n')
            await until(lambda: scada.seen["opcua", address].values, within_s=10)
            order = asyncio.create_task(scada.limit("opcua", 9000.0, 20.0))
            said = json.loads(await reader.readline())
            assert (said["via"], said["limit_w"], said["for_s"]) == ("opcua", 9000.0, 20.0)
            writer.write(
                json.dumps({"answer": said["order"], "refused": "switched to LOCAL"}).encode() + b"\n"
            )
            await order
            writer.close()
        assert scada.seen["opcua", address].values == [0.4]
        assert scada.bus == (7, 1, "why")
        assert scada.refused == ["switched to LOCAL"]
        assert scada.bounds()["orders_refused"] == (None, 0.0)


def shown_on(width, what):
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue().splitlines()


def live_view(width, *lines):
    sample = Sample(1, 1, 13_000, 13_010, 9000, 100, 22_000, 22, 9000, (6000.0, 7000.0))
    view = LiveView(parse_scenario(a_document(), "t.yaml"))
    return shown_on(width, view.render(View(1.0, sample, {}, (), lines)))


def test_the_live_view_shows_plant_and_ways_side_by_side():
    shown = {"opcua": Sight(13_020.0, 0.4), "modbus": Sight(None, 2.0), "bms": None}
    said = live_view(120, Line("block power", "W", 13_000.0, shown))
    row = next(line for line in said if "block power" in line)
    assert row.split()[2:9] == ["power", "13.000", "kW", "13.020", "0.4s", "bad", "2.0s"]


def test_each_point_has_one_line_of_the_live_view_with_all_ways_and_the_widest_values():
    scenario = load_scenario(ROOT / "examples" / "plain_gateway.yaml")
    plant = Plant(scenario.plant_type())
    tied = {device.name: tie(device, plant) for device in scenario.facility.devices}
    points = [point for point, _ in watched_points(scenario, plant, tied)]
    widest = {"W": 12_345.6, "degC": 100.0, "ratio": 1.0, "A": 1000.0, "L/min": 1000.0}
    lines = [
        Line(
            point.label, point.unit, widest[point.unit],
            dict.fromkeys(scenario.facility.serve, Sight(widest[point.unit], 999.0)),
        )
        for point in points
    ]  # fmt: skip
    said = live_view(120, *lines)
    assert {"battery power", "battery state of charge"} <= {line.label for line in lines}
    for line in lines:
        (row,) = [one for one in said if f" {line.label} " in one]
        assert row.count("999s") == len(scenario.facility.serve)


def test_figures_are_written_as_people_read_them():
    figures = {"peak_w": 13_170.4, "bms_messages": 39_140.0, "opcua_lag_s": 1.15, "settle_s": None}
    outcome = Outcome(Verdict(figures, (Expectation("peak_w", 13_170.4, None, 20_000.0),)), (), ROOT)
    said = "\n".join(" ".join(line.split()) for line in shown_on(120, verdict_table(outcome)))
    for words in ("peak_w │ 13.2 kW │ │ 20 kW │ ok", "39140", "│ 1.15 │", "│ none │"):
        assert words in said


def test_no_way_is_drawn_in_the_colour_of_a_mark():
    assert not {colour for _, colour in plot.WAYS.values()} & {*plot.MARK.values(), plot.LIMIT}


async def test_the_map_is_asked_for_until_it_has_what_a_device_says_of_itself(tmp_path, monkeypatch):
    """The device under test has not read its devices yet when it is asked first."""
    monkeypatch.setattr(scada_side, "MAP_AGAIN_S", 0.01)
    head = "unit id,address,type,name"
    rows = {point: f"3,{n},f32,devices/chiller/{point}" for n, point in enumerate(CHILLER)}
    (tmp_path / "few").write_text(f"{head}\n{rows[CHILLER[0]]}\n")
    (tmp_path / "all").write_text("\n".join([head, *rows.values(), ""]))
    command = tmp_path / "powerblock"
    asked = f"echo >> {tmp_path}/asked; [ $(wc -l < {tmp_path}/asked) -lt 3 ] && cp {tmp_path}/few $4"
    command.write_text(f"#!/bin/sh\n{asked} || cp {tmp_path}/all $4\n")
    command.chmod(0o755)
    scenario = parse_scenario(a_document(alone=True, serve=["modbus"]), "test.yaml")
    async with Facility(scenario, tmp_path) as facility:
        served = await ServedAt.prepare(tmp_path)
        async with ScadaSide(scenario, tmp_path, served, {"url": "mqtt://x:1"}, facility) as scada:
            monkeypatch.setattr(scada.child, "start", lambda: None)
            await scada.begin(str(command), tmp_path / "block.yaml")
            assert {address for _, address in scada.seen} == {f"devices/chiller/{one}" for one in CHILLER}
    assert len((tmp_path / "asked").read_text().splitlines()) == 3


def test_every_watched_point_is_of_a_device_that_stands_there():
    scenario = load_scenario(ROOT / "examples" / "gateway.yaml")
    plant = Plant(scenario.plant_type())
    tied = {device.name: tie(device, plant) for device in scenario.facility.devices}
    points = dict(watched_points(scenario, plant, tied))
    assert {point.device for point in points} <= {"", *scenario.devices}
    assert {"block/power_w", "devices/cooling/coolant_supply_c", "devices/r1-a/power_w"} <= {
        point.address for point in points
    }
    assert all(isinstance(truth(), float) for truth in points.values())
