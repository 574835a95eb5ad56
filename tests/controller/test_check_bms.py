"""`powerblock check` of the DSX BMS bus: which points go there, as what, which not and why, before it runs."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from controller.cli import app

BMS = {"mqtt": {"url": "mqtt://127.0.0.1"}}
GATEWAY = {
    "block": "hall-a",
    "devices": [
        {"name": "pdu-a1", "profile": "xerus_pdu", "url": "modbus+tcp://10.0.0.7", "rack": "r1"},
        {"name": "pdu-b1", "profile": "xerus_pdu", "url": "modbus+tcp://10.0.0.8", "rack": "r1"},
        {"name": "rpu-1", "profile": "orv3_rpu", "url": "modbus+rtu:///dev/ttyUSB0", "unit": 3,
         "writes": {"flow_target_l_per_min": {"lowest": 100, "highest": 180}}},
        {"name": "psu-1", "profile": "orv3_psu", "url": "modbus+tcp://10.0.0.9"},
        {"name": "meter-1", "profile": "sunspec", "url": "modbus+tcp://10.0.0.10"},
    ],
}  # fmt: skip


@pytest.fixture
def check(tmp_path):
    def run(*arguments, columns=400, content=GATEWAY, status=0, **bms):
        folder = str(tmp_path)
        path = tmp_path / "block.yaml"
        facility = {"facility": {"bms": {**BMS, **bms}}}
        path.write_text(yaml.safe_dump({"state_dir": folder, "run_dir": folder, **content, **facility}))
        found = CliRunner().invoke(app, ["check", str(path), *arguments], env={"COLUMNS": str(columns)})
        assert found.exit_code == status, found.output
        return found.output

    return run


def test_devices_of_which_the_same_is_told_share_one_branch(check):
    said = check()
    assert "pdu-a1, pdu-b1" in said
    assert said.count("power_w as ActivePower kW") == 1
    assert "r1  Rack: devices/pdu-a1/power_w + devices/pdu-b1/power_w as RackPower kW" in said


def test_points_without_a_type_of_their_own_are_named_as_generic_and_fold_by_their_numbers(check):
    said = check()
    assert "CDU, as GenericPoint: power_w, sensor_alarms, status_alarms, sticky_leak_chassis_* (4)" in said
    assert "pump_*_rpm as PumpSpeed RPM (4)" in said


def test_what_is_not_told_is_named_with_its_reason(check):
    said = check(points={"devices/pdu-*/outlet_*": {"publish": False}}, generic=False)
    assert "not told: part_number, model, serial_number, hardware, firmware (a text" in said
    assert "outlet_1_power_factor_ratio (publish: false)" in said
    assert "(generic: false)" in said
    assert "psu-1" in said
    assert "not told: all of it (no kind is given; give the device one of pdu, meter" in said


def test_a_device_whose_points_only_the_running_controller_knows_is_not_left_out_in_silence(check):
    assert "its points are known when the controller has read it" in check()
    assert json.loads(check("--json"))["bms"]["known_at_run_time"] == ["devices/meter-1"]


def test_what_fits_no_point_of_such_a_device_may_still_turn_out_to(check):
    said = check(points={"devices/meter-1/m201_a": {}, "devices/pdu-a1/m201_a": {}}, status=1)
    assert said.count("unless it turns out at run time") == 1
    assert "block.yaml: facility.bms: points: devices/pdu-a1/m201_a: nothing fits" in said
    for pattern in ("devices/*/m201_a", "*m201_a"):
        check(points={pattern: {}})


MISTAKES = {
    "an object": ({"objects": {"devices/cdu-7": {}}}, "objects: devices/cdu-7: nothing fits"),
    "an object that is nearly one whose points nobody knows yet": (
        {"objects": {"devices/metre-1": {}}},
        "objects: devices/metre-1: nothing fits; devices/meter-1?",
    ),
    "a point": ({"points": {"devices/pdu-a1/nix": {}}}, "points: devices/pdu-a1/nix: nothing fits"),
    "a type": ({"points": {"devices/pdu-a1/power_w": {"type": "Nix"}}}, "no point type 'Nix'"),
    "a request": (
        {"integrations": {"IT": {"requests": [{"point": "RackLeakDetectTray", "at": "racks/r9"}]}}},
        "at: no rack racks/r9",
    ),
}


@pytest.mark.parametrize(("bms", "words"), MISTAKES.values(), ids=MISTAKES)
def test_what_fits_nothing_is_an_error_and_not_only_a_remark(check, bms, words):
    said = check(status=1, **bms)
    assert any(line.startswith("block.yaml: facility.bms") and words in line for line in said.splitlines())


def test_an_integration_that_may_ask_nothing_is_shown_as_one(check):
    assert "gx  may ask nothing; its heartbeat is listened to" in check(integrations={"gx": {}})


def test_an_object_with_another_id_on_the_bus_shows_it(check):
    assert "rpu-1 (CDU-07)" in check(objects={"devices/rpu-1": {"id": "CDU-07"}})


def test_mistakes_of_the_configuration_stand_first_and_what_others_may_ask_follows(check):
    request = {
        "point": "LiquidTemperatureSpRequest", "at": "devices/rpu-1", "rate_per_s": 1,
        "writes": "devices/rpu-1/flow_target_l_per_min", "lowest": 100, "highest": 150,
    }  # fmt: skip
    said = check(
        objects={"devices/cdu-9": {"id": "X"}},
        integrations={"IT": {"requests": [request, {"point": "RackLeakDetectTray", "at": "racks/r1"}]}},
        status=1,
    )
    assert "! objects: devices/cdu-9: nothing fits" in said
    asks = "writes devices/rpu-1/flow_target_l_per_min, 100 to 150, 1 per s"
    assert f"IT  may ask LiquidTemperatureSpRequest at devices/rpu-1: {asks}" in said
    assert "IT  may ask RackLeakDetectTray at racks/r1: only shown and said" in said
    assert said.index("nothing fits") < said.index("may ask") < said.index("pdu-a1, pdu-b1")


def test_for_programs_every_point_has_its_row(check):
    found = json.loads(check("--json"))["bms"]
    rows = {row["address"]: row for row in found["points"]}
    assert rows["devices/pdu-a1/power_w"]["topic"] == "PowerMeter/ActivePower/hall-a/devices/pdu-a1/power_w"
    assert rows["devices/rpu-1/model"]["note"].startswith("not told")
    assert found["complaints"] == []


@pytest.mark.parametrize("columns", [80, 120])
def test_it_stays_within_the_terminal(check, columns):
    assert max(map(len, check(columns=columns).splitlines())) <= columns


def test_a_block_with_gpus_shows_it_too(check, block_with):
    said = check(content=yaml.safe_load(block_with().read_text()))
    assert "r1-a, r1-b, r2-a, r2-b" in said
    assert "what the law decides is no equipment" in said
