"""What went wrong on site: words in the wrong order, the wrong device behind an address, nothing said for a minute."""

import csv
import io
import json
import socket
from dataclasses import replace

import pytest
import structlog

from controller.clock import now_s, now_utc_s
from controller.commissioning import belief, cli, recording, sources
from controller.commissioning.target import ToolError
from controller.config import load_config
from controller.image.wire import Update
from firmware_sim.opcua_device import OpcuaDevice
from protocols import codec
from protocols.profile import Point, load_profile
from tests.brokers import free_port
from tests.controller.commissioning.devices_on_site import (
    PDU,
    PDU_VALUES,
    Meter,
    block,
    powerblock,
    process,
)
from tests.controller.commissioning.test_commissioning_values import Controller, url_of, writes

SWAPPED = """
title: bench meter
protocol: modbus
provenance: {document: bench, page: "1", evidence: document}
blocks: [{table: holding, first: 0, last: 9}]
points:
  voltage_v: {unit: V, address: 0, type: f32, lowest: 0, highest: 500}
  power_w: {unit: W, address: 2, type: f32, lowest: -500000, highest: 500000}
  energy_wh: {unit: Wh, address: 4, type: u32, highest: 4.0e+9, lowest: 0}
  switch: {unit: enum, address: 6, type: u16, access: rw, enum: {0: stop, 1: start}}
  valve: {unit: enum, address: 7, type: u16, access: rw, enum: {0: "ON", 1: "OFF"}}
  limit_a: {unit: A, address: 8, type: u16, access: rw, lowest: 0, highest: 32}
  state: {unit: enum, address: 9, type: u16, enum: {0: local, 1: network}}
control:
  requires: [{point: state, equals: 1}]
  release: [{point: switch, value: 0}]
examples:
  - {point: limit_a, registers: [16], value: 16, source: bench}
"""


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "my pdu.yaml"
    path.write_text(SWAPPED)
    return path


@pytest.fixture
def meter(site):
    """Its documents are silent about the order of words, and its maker puts the low one first."""
    device = site.add(Meter())
    device.registers[1][0:2] = 0x4000, 0x4367  # 231.25 V
    device.registers[1][2:4] = 0x7FFF, 0x4525  # 2655.99 W; the other way round a NaN's neighbour
    device.registers[1][8:10] = 900, 1
    return device


def said_by(meter, profile, *points):
    found = powerblock("read", url_of(meter), "--profile", profile, *points, "--json")
    return {one["point"]: one for one in json.loads(found.stdout)["values"]}


# --- what is hardly true ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([0xA800, 0x4525], "with word_order: little it would be 2650.5 W"),  # -7.1e-15 W, and good
        ([0x5A00, 0x4525], "with word_order: little it would be 2645.625 W"),  # 9e+15 W
        ([0x0000, 0x4525], "with word_order: little it would be 2640 W"),  # 2.5e-41 W
        ([0x4525, 0xA800], ""),
        ([0x0000, 0x0000], ""),
        ([0x7FC0, 0x0000], ""),  # not a number: a mark, and no number the other way round
        ([0x0000, 0x0001], ""),  # neither way
    ],
)
def test_words_that_say_something_ordinary_the_other_way_round_are_hinted_at(words, hint):
    point = Point(name="power_w", unit="W", address=0, type="f32", lowest=-5e5, highest=5e5)
    assert belief.other_order(point, words, {}) == hint
    free = replace(point, lowest=float("-inf"), highest=float("inf"))
    assert belief.other_order(free, words, {}) == hint
    back = replace(point, word_order="little")
    assert belief.other_order(back, words[::-1], {}) == hint.replace("little", "big")


def test_a_mark_for_not_present_is_no_word_order():
    point = Point(name="p_w", unit="W", address=0, type="i32", sentinels=(0x8000_0000,), highest=1e6)
    assert codec.decode(replace(point, word_order="little"), [0x8000, 0x0000]) == 32768.0
    assert belief.other_order(point, [0x8000, 0x0000], {}) == ""


def test_a_counter_of_ordinary_size_is_left_alone():
    point = Point(name="energy_wh", unit="Wh", address=0, type="u32", lowest=0)
    assert belief.other_order(point, [0x0A5A, 0x0001], {}) == ""


def test_a_value_near_to_nothing_is_not_just_called_good(meter, profile):
    voltage = said_by(meter, profile)["voltage_v"]
    assert voltage["quality"] == "good" or voltage["refused"] is not None
    meter.registers[1][0:2] = 0x332B, 0x4367
    shown = powerblock("read", url_of(meter), "--profile", profile, "voltage_v").stdout
    assert "with word_order: little it would be 231.2 V" in shown.replace("231.1999", "231.2")


def test_a_number_out_of_its_range_is_shown_with_the_range(meter, profile):
    limit = said_by(meter, profile, "limit_a")["limit_a"]
    assert (limit["value"], limit["refused"]) == (None, 900.0)
    assert limit["why"] == "implausible: its profile allows 0 to 32 A"
    row = next(
        line
        for line in powerblock("read", url_of(meter), "--profile", profile).stdout.splitlines()
        if line.startswith("limit_a")
    )
    assert row.split()[1] == "900"
    assert "?" not in row


def test_a_value_that_is_hardly_true_is_a_doubt_on_the_sheet_and_no_pass(meter, profile, tmp_path):
    meter.registers[1][0:2] = 0x332B, 0x4367
    meter.registers[1][2:4] = 0x4525, 0xA800
    meter.registers[1][8] = 16
    path = block(tmp_path, f"{{name: m1, profile: '{profile}', url: '{url_of(meter)}'}}")
    found = powerblock("checkout", path, "--json")
    said = json.loads(found.stdout)
    assert found.exit_code == 1
    assert (said["doubted"], said["failed"]) == (1, 0)


def test_a_probe_does_not_count_as_plausible_what_is_hardly_true(meter, profile):
    meter.registers[1][0:2] = 0x332B, 0x4367
    meter.registers[1][8] = 16
    found = powerblock("probe", url_of(meter), "--profile", profile)
    assert "does not fit" in found.stdout
    assert "with word_order: little it would be" in found.stdout
    assert "my pdu does not fit as it is" in found.stdout
    meter.registers[1][0:4] = 0x7FC0, 0x0000, 0x332B, 0x4525  # a hint is worth more than the first reason
    found = powerblock("probe", url_of(meter), "--profile", profile)
    assert "power_w: with word_order: little" in found.stdout


# --- frozen or not ------------------------------------------------------------------------------------------


@pytest.fixture
def _quiet():
    """The controller's log shares this process with the command's output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def held(_quiet, site, tmp_path):
    device = site.add(Meter())
    path = block(tmp_path, f"{{name: pdu-a1, profile: xerus_pdu, url: '{url_of(device)}'}}")
    return path, device, site.add(Controller(path, PDU_VALUES))


def test_a_steady_device_is_in_doubt_and_has_not_failed(site, held, tmp_path):
    path, _, controller = held
    frozen = "answers, but no register has moved for 31 s: frozen?"
    update = Update(0, controller.values, now_s(), now_utc_s(), doubt=frozen)
    site.loop.call_soon_threadsafe(controller.server.update, update)
    found = powerblock("checkout", path, "-o", tmp_path / "sheet")
    assert found.exit_code == 1  # nobody signs for what may stand still
    assert f"0 pass, 0 fail, {len(PDU.points)} doubt" in found.stdout
    assert "frozen?" in found.stdout
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sheet.csv").read_text(encoding="utf-8-sig"))))
    assert {(row["result"], row["reason"]) for row in rows} == {("doubt", frozen)}
    page = (tmp_path / "sheet.html").read_text()
    assert f"{len(PDU.points)} of {len(PDU.points)} in doubt" in page
    assert 'class="doubt"' in page


# --- the controller of this host ----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["1", "7"])
@pytest.mark.parametrize("command", ["read", "watch", "probe", "capture"])
def test_whoever_goes_past_this_hosts_controller_by_a_url_is_warned(held, monkeypatch, command, unit):
    path, device, _ = held
    monkeypatch.setattr(sources, "HOST_RUN_DIR", path.parent / "run")
    monkeypatch.setattr(cli, "_interruptible", lambda what: what.close())
    words = ["-o", path.with_name("c.yaml")] if command == "capture" else []
    found = powerblock(command, url_of(device), "--profile", "xerus_pdu", "--unit", unit, *words)
    assert "warning: this host's controller is connected there, for pdu-a1" in found.stderr
    assert "connected" not in powerblock("points", "xerus_pdu").stderr


def test_whoever_may_not_ask_this_hosts_controller_is_told_so_and_reads_all_the_same(site, monkeypatch):
    def forbidden(_run_dir):
        raise ToolError("permission denied")

    monkeypatch.setattr(sources, "controller_runs", forbidden)
    found = powerblock("read", site.pdu().url, "--profile", "xerus_pdu", "power_w")
    assert found.exit_code == 0
    assert "warning: a controller runs on this host and may hold this device" in found.stderr


def test_a_device_that_no_controller_holds_is_read_without_a_word(held, site, monkeypatch):
    path, _, _ = held
    monkeypatch.setattr(sources, "HOST_RUN_DIR", path.parent / "run")
    assert powerblock("read", site.pdu().url, "--profile", "xerus_pdu", "power_w").stderr == ""


# --- lines to paste -----------------------------------------------------------------------------------------


def pasted(tmp_path, lines):
    path = tmp_path / "elsewhere" / "block.yaml"
    path.parent.mkdir()
    path.write_text(f"block: b\nstate_dir: {tmp_path}\nrun_dir: {tmp_path}\n{lines}\n")
    (device,) = load_config(path).devices
    return device


def test_the_lines_for_a_profile_of_ones_own_are_a_configuration(site, tmp_path, monkeypatch):
    """Pasted into another folder, and of a path that YAML would take for something else."""
    folder = tmp_path / "my: profiles"
    folder.mkdir()
    text = (load_profile.__globals__["BUILTIN"] / "xerus_pdu.yaml").read_text(encoding="utf-8")
    (folder / "bench meter 2.yaml").write_text(text)
    monkeypatch.chdir(folder)
    found = powerblock("probe", site.pdu().url, "--profile", "bench meter 2.yaml", "--json")
    said = json.loads(found.stdout)
    assert found.exit_code == 0, found.output
    device = pasted(tmp_path, said["block_yaml"])
    assert (device.profile, device.name) == (str(folder / "bench meter 2.yaml"), "bench-meter-2-1")
    assert "    # kind: pdu  # or meter, cdu," in said["block_yaml"]


def test_a_profile_of_ones_own_that_is_called_a_pdu_is_one(site, tmp_path):
    path = tmp_path / "mypdu.yaml"
    path.write_text((load_profile.__globals__["BUILTIN"] / "xerus_pdu.yaml").read_text(encoding="utf-8"))
    said = json.loads(powerblock("probe", site.pdu().url, "--profile", path, "--json").stdout)
    assert pasted(tmp_path, said["block_yaml"]).kind == "pdu"


def test_an_opcua_profile_of_ones_own_is_named_by_its_path(site, tmp_path):
    text = (load_profile.__globals__["BUILTIN"] / "opcua_cdu.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    values = {"coolant_supply_c": 30.0, "flow_l_per_min": 900.0, "running": 1.0}
    server = site.add(OpcuaDevice(load_profile("opcua_cdu"), lambda: values, port=free_port()))
    said = json.loads(powerblock("probe", server.url, "--profile", path, "--json").stdout)
    assert said["chosen"] == [str(path)]
    assert pasted(tmp_path, said["block_yaml"]).profile == str(path)


def test_a_probe_for_sunspec_asks_for_the_model_chain_alone(site):
    found = powerblock("probe", site.pdu().url, "--profile", "sunspec")
    assert "no built-in profile 'sunspec'" not in found.stderr
    assert "no SunSpec map" in found.stdout
    assert "profile  " not in found.stdout  # an empty table has no head


# --- write --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confirm", [[], ["--confirm"]])
def test_a_point_that_cannot_even_be_read_is_not_written(meter, profile, confirm):
    meter.refused.add((3, 8))
    found = powerblock("write", url_of(meter), "--profile", profile, "limit_a", "16", *confirm)
    assert found.exit_code == 1
    assert "limit_a: cannot be read: reading holding 8..8: illegal data address" in found.stderr
    assert "is it the device of profile" in found.stderr
    assert found.stderr.endswith("nothing was sent\n")
    assert writes(meter) == []


def test_a_point_that_says_something_absurd_now_may_still_be_set_right(meter, profile):
    found = powerblock("write", url_of(meter), "--profile", profile, "limit_a", "16")
    assert found.exit_code == 0
    assert "900 A  (implausible: its profile allows 0 to 32 A)" in found.stdout


@pytest.mark.parametrize(
    ("point", "word", "sent"),
    [
        ("switch", "on", 1),
        ("switch", "OFF", 0),
        ("switch", "Start", 1),
        ("valve", "on", 0),
        ("valve", "off", 1),
    ],
)
def test_a_point_of_two_states_is_switched_by_on_and_off_unless_its_states_are_called_so(
    meter, profile, point, word, sent
):
    found = powerblock("write", url_of(meter), "--profile", profile, point, word, "--confirm")
    assert found.exit_code == 0, found.stderr
    assert [request[3] for request in writes(meter)] == [sent]


def test_states_are_named_in_what_a_write_needs_and_leaves_behind(meter, profile):
    found = powerblock("write", url_of(meter), "--profile", profile, "switch", "on")
    assert "it needs state to be 1 network" in found.stdout
    assert "what would release it: switch = 0 stop" in found.stdout
    assert "switch = 1 start: function 6" in found.stdout
    assert "a command needs state to be 1 network" in powerblock("points", profile).stdout


# --- while it takes its time --------------------------------------------------------------------------------


def test_a_long_capture_says_in_a_pipe_where_it_is(site, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "STEP_SAID_S", 0.05)
    meter = site.add(Meter())
    meter.refused.update((3, at) for at in range(1, 20))
    found = powerblock(
        "capture", url_of(meter), "--range", "holding:0-19", "--rate", "50", "-o", tmp_path / "c.yaml"
    )
    assert found.exit_code == 0, found.output
    assert "round 1 of 1: holding 1" in found.stderr
    assert "to go" in found.stderr


def test_one_question_at_one_place_is_said_in_the_singular(site):
    found = powerblock("scan", url_of(site.add(Meter())))
    assert found.stderr.startswith("1 question at 1 place;")


def test_words_of_a_capture_are_written_in_hex_and_bits_as_bits(tmp_path):
    taken = recording.Recording(
        url="u", unit=1, began_utc="x",
        reads=[
            recording.Taken(at_s=0.0, table="holding", first=0, words=[0x4366, 10]),
            recording.Taken(at_s=0.1, table="coil", first=0, words=[1, 0]),
        ],
    )  # fmt: skip
    text = recording.as_text(taken, ".yaml")
    assert "words: [0x4366, 0x000A]" in text
    assert "words: [1, 0]" in text
    for suffix in (".yaml", ".json"):
        file = tmp_path / f"c{suffix}"
        file.write_text(recording.as_text(taken, suffix))
        assert recording.loaded(file) == taken


@pytest.fixture
def file(tmp_path):
    taken = recording.Recording(url="u", unit=1, began_utc="x")
    path = tmp_path / "c.yaml"
    path.write_text(recording.as_text(taken, ".yaml"))
    return path


def test_a_playback_says_where_it_is_once_it_is_there(file):
    playing = process("playback", file, "--listen", "127.0.0.1:0")
    try:
        line = playing.stderr.readline()
        port = int(line.partition("127.0.0.1:")[2].partition(";")[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        playing.send_signal(2)
        playing.communicate(timeout=20)
    finally:
        playing.kill()
    assert playing.returncode == 0


def test_a_playback_that_cannot_listen_does_not_say_that_it_does(file):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = powerblock("playback", file, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert found.exit_code == 2
    assert "choose another address or port" in found.stderr
    assert "modbus+tcp://" not in found.stderr
