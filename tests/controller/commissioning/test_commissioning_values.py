"""Values: read, watch and write, directly and through a running controller."""

import asyncio
import contextlib
import json
import socket

import pytest
import structlog

from controller.clock import now_s, now_utc_s
from controller.commissioning import sources
from controller.commissioning.talk import Talk
from controller.config import load_config
from controller.field import group_of
from controller.gateway_config import Device as Configured
from controller.image.image import Image
from controller.image.model import Outcome, Result
from controller.image.server import ImageServer
from controller.image.wire import Update
from firmware_sim.device_fault import DeviceFault
from firmware_sim.opcua_device import OpcuaDevice
from protocols.modbus import Tcp
from protocols.modbus.questions import write_question
from protocols.profile import load_profile
from protocols.reading import DeviceError
from tests.brokers import free_port
from tests.controller.commissioning.devices_on_site import PDU, PDU_VALUES, Meter, block, powerblock, process

METER = """
title: bench meter
protocol: modbus
provenance: {document: bench, page: "1", evidence: document}
reply_wait_max_s: 0.3
blocks:
  - {table: holding, first: 0, last: 9}
  - {table: holding, first: 10, last: 19}
points:
  power_w: {unit: W, address: 0, type: f32}
  limit_w: {unit: W, address: 4, type: u16, access: rw, lowest: 0, highest: 5000, scale: 10}
  manual: {unit: bool, address: 6, type: u16, mask: 0x0200, access: rw}
  mode: {unit: enum, address: 10, type: u16, access: rw, enum: {0: auto, 1: by_hand}}
  reset: {unit: bool, address: 11, type: u16, access: w, read_back: false}
examples:
  - {point: limit_w, registers: [250], value: 2500, source: bench}
"""


@pytest.fixture
def meter_profile(tmp_path):
    path = tmp_path / "bench_meter.yaml"
    path.write_text(METER)
    return path


@pytest.fixture
def meter(site):
    device = site.add(Meter())
    device.registers[1][4], device.registers[1][6], device.registers[1][10] = 250, 0x00FF, 1
    return device


def url_of(device):
    return f"modbus+tcp://127.0.0.1:{device.port}"


def writes(device):
    return [request for request in device.requests if request[1] in (5, 6, 15, 16)]


# --- read ----------------------------------------------------------------------------------------------------


def test_a_value_comes_with_its_unit_its_quality_and_its_registers(site):
    found = powerblock("read", site.pdu().url, "--profile", "xerus_pdu", "power_w", "--json")
    assert found.exit_code == 0
    (value,) = json.loads(found.stdout)["values"]
    assert (value["value"], value["unit"], value["quality"], value["raw"]) == (
        2650.5,
        "W",
        "good",
        "4525 A800",
    )


def test_a_point_that_is_refused_is_bad_and_the_others_are_good(site, meter, meter_profile):
    meter.registers[1][0:2] = 0x459C, 0x4000  # 5 kW
    meter.refused.add((3, 4))
    found = powerblock("read", url_of(meter), "--profile", meter_profile, "--json")
    assert found.exit_code == 1
    said = {one["point"]: one for one in json.loads(found.stdout)["values"]}
    assert "illegal data address" in said["limit_w"]["why"]
    assert said["power_w"]["value"] == 5000.0  # the same question would have brought both
    assert said["mode"]["said"] == "1 by_hand"


def test_one_silence_costs_its_own_points(meter, meter_profile):
    meter.fault = lambda _tid, _unit, pdu, frame: None if pdu[2] == 10 else frame
    found = powerblock("read", url_of(meter), "--profile", meter_profile, "--json")
    assert found.exit_code == 1
    said = {one["point"]: one for one in json.loads(found.stdout)["values"]}
    assert "no answer within 0.3 s" in said["mode"]["why"]
    assert said["limit_w"]["value"] == 2500.0


def test_states_are_said_by_their_names(meter, meter_profile):
    found = powerblock("read", url_of(meter), "--profile", meter_profile)
    assert "1 by_hand" in found.stdout


def test_an_implausible_value_is_bad_and_its_registers_are_shown(site):
    pdu = site.pdu()
    site.do(pdu.set_fault(DeviceFault(mode="nan")))
    found = powerblock("read", pdu.url, "--profile", "xerus_pdu", "power_w", "--json")
    assert found.exit_code == 1
    (value,) = json.loads(found.stdout)["values"]
    assert (value["value"], value["quality"], value["raw"]) == (None, "bad", "7FC0 0000")


def test_a_silent_device_ends_the_read_within_its_waits(site):
    pdu = site.pdu()
    site.do(pdu.set_fault(DeviceFault(mode="silent")))
    found = powerblock("read", pdu.url, "--profile", "xerus_pdu")
    assert found.exit_code == 1
    assert "is the unit on, and its id right?" in found.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["modbus+tcp://127.0.0.1", "--profile", "nix"], "no built-in profile 'nix'"),
        (["modbus+tcp://127.0.0.1", "--profile", "opcua_cdu"], "needs opc.tcp://"),
        (["http://127.0.0.1", "--profile", "xerus_pdu"], "unknown scheme"),
        (["10.0.0.7", "--profile", "xerus_pdu"], "give its URL"),
        (["opc.tcp://127.0.0.1:4840"], "--profile with opcua_cdu"),
        (["nix.yaml", "pdu-a1"], "cannot be read"),
        (["modbus+tls://127.0.0.1", "--profile", "xerus_pdu"], "give ca, cert and key"),
    ],
)
def test_bad_input_is_named_with_its_remedy(words, said):
    found = powerblock("read", *words)
    assert found.exit_code == 2
    assert said in found.stderr


def test_an_unknown_point_is_bad_input_and_the_known_ones_are_listed(site):
    found = powerblock("read", site.pdu().url, "--profile", "xerus_pdu", "nix_w")
    assert found.exit_code == 2
    assert "power_w" in found.stderr


def test_a_configured_device_is_read_by_its_name(site, tmp_path):
    path = block(tmp_path, f"{{name: pdu-a1, profile: xerus_pdu, url: '{site.pdu().url}'}}")
    found = powerblock("read", path, "pdu-a1", "power_w")
    assert found.exit_code == 0
    assert "2650.5" in found.stdout
    assert "asked directly" in found.stdout
    found = powerblock("read", path, "pdu-b9")
    assert found.exit_code == 2
    assert "no device 'pdu-b9'; it has pdu-a1" in found.stderr
    assert powerblock("read", path, "pdu-a1", "--unit", "4").exit_code == 2


def test_an_opcua_device_is_read_like_any_other(site):
    cdu = load_profile("opcua_cdu")
    server = site.add(OpcuaDevice(cdu, lambda: {"heat_w": 612_500.0}, port=free_port()))
    found = powerblock("read", server.url, "--profile", "opcua_cdu", "heat_w", "--json")
    assert found.exit_code == 0, found.stderr
    (value,) = json.loads(found.stdout)["values"]
    assert (value["value"], value["raw"]) == (612_500.0, "612.5")


# --- through a running controller ----------------------------------------------------------------------------


class Controller:
    """The image socket of a controller that runs the block; remembers commands."""

    def __init__(self, path, values):
        config = load_config(path)
        (device,) = config.devices
        profile = load_profile(device.profile)
        self.group = group_of(Configured("devices[0]", device.name, device, ""), profile)
        self.commands = []
        self.values = [values.get(point.name, 0.0) for point in self.group.points]
        self.server = ImageServer(
            config.run_dir / "image.sock",
            Image([self.group]),
            block="b",
            epoch=1,
            on_command=self.do,
            now_s=now_s,
        )

    async def do(self, command):
        self.commands.append(command)
        return Outcome(result=Result.ACCEPTED, value=command.arguments["value"], was=1.0)

    async def __aenter__(self):
        self.task = asyncio.create_task(self.server.run())
        self.server.update(Update(0, self.values, now_s(), now_utc_s()))
        await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
def _quiet():
    """The controller's log shares this process with the command's output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def held(_quiet, site, tmp_path):
    """A device that is polled by a running controller: (file, device, controller)."""
    device = site.add(Meter())
    path = block(tmp_path, f"{{name: pdu-a1, profile: xerus_pdu, url: '{url_of(device)}', unit: 1}}")
    return path, device, site.add(Controller(path, PDU_VALUES))


def test_a_device_that_a_controller_holds_is_never_connected_to(held):
    path, device, _ = held
    found = powerblock("read", path, "pdu-a1", "power_w", "--json")
    assert found.exit_code == 0, found.stderr
    said = json.loads(found.stdout)
    assert said["values"][0]["value"] == 2650.5
    assert "running controller" in said["where"]
    assert powerblock("probe", path, "pdu-a1").exit_code == 2
    assert powerblock("capture", path, "pdu-a1", "-o", path.with_name("c.yaml")).exit_code == 2
    assert device.connections == 0


def test_a_device_that_this_hosts_controller_holds_is_not_written_to_by_its_url(held, monkeypatch):
    """Two writers to one register: the later one wins, and nobody knows which that was."""
    path, device, _ = held
    monkeypatch.setattr(sources, "HOST_RUN_DIR", path.parent / "run")
    found = powerblock("write", url_of(device), "power_w", "5", "--confirm", "--profile", "xerus_pdu")
    assert found.exit_code == 2
    assert "as pdu-a1" in found.stderr
    assert device.connections == 0
    elsewhere = powerblock("write", url_of(device), "power_w", "5", "--profile", "xerus_pdu", "--unit", "2")
    assert "as pdu-a1" not in elsewhere.stderr


def test_a_checkout_of_a_running_block_reads_from_its_controller(held):
    path, device, _ = held
    found = powerblock("checkout", path, "--json")
    assert found.exit_code == 0, found.stdout
    assert json.loads(found.stdout)["passed"] == len(PDU.points)
    assert device.connections == 0


def test_a_socket_that_nobody_serves_does_not_hide_the_device(site, tmp_path):
    pdu = site.pdu()
    path = block(tmp_path, f"{{name: pdu-a1, profile: xerus_pdu, url: '{pdu.url}'}}")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "run" / "image.sock"))
    found = powerblock("read", path, "pdu-a1", "power_w")
    assert "asked directly" in found.stdout


# --- watch ---------------------------------------------------------------------------------------------------


def lines_of(*words, count, during=lambda _number: None):
    watching = process("watch", *words)
    try:
        lines = []
        for number in range(count):
            lines.append(watching.stdout.readline().rstrip("\n").split("\t"))
            during(number)
        watching.send_signal(2)
        watching.communicate(timeout=20)
    finally:
        watching.kill()
    assert watching.returncode == 0
    return lines


def test_a_watch_in_a_pipe_is_plain_lines_until_ctrl_c(site):
    lines = lines_of(site.pdu().url, "--profile", "xerus_pdu", "power_w", "--every", "200ms", count=3)
    assert all(line[1:] == ["power_w", "2650.5", "W", "good"] for line in lines)


def test_a_watch_outlives_the_loss_of_its_device(site):
    pdu = site.pdu()
    faults = {1: DeviceFault(mode="refusing"), 4: None}

    def during(number):
        if number in faults:
            site.do(pdu.set_fault(faults[number]))

    lines = lines_of(pdu.url, "--profile", "xerus_pdu", "power_w", "--every", "200ms", count=9, during=during)
    qualities = [line[4] for line in lines]
    assert qualities[0] == "good"
    assert "bad" in qualities
    assert qualities[-1] == "good"


@pytest.mark.parametrize("every", ["0", "10ms", "1h30", "nix"])
def test_a_period_that_cannot_be_is_refused(every):
    found = powerblock("watch", "modbus+tcp://127.0.0.1", "--profile", "xerus_pdu", "--every", every)
    assert found.exit_code == 2
    assert "write 1s" in found.stderr


# --- write ---------------------------------------------------------------------------------------------------


def test_without_confirm_the_exact_frame_is_shown_and_nothing_is_written(meter, meter_profile):
    found = powerblock("write", url_of(meter), "--profile", meter_profile, "limit_w", "2000")
    assert found.exit_code == 0
    assert "00 01 00 00 00 06 01 06 00 04 00 c8" in found.stdout
    assert "2500 W" in found.stdout  # as it is
    assert "add --confirm" in found.stdout
    assert writes(meter) == []


def test_with_confirm_just_that_frame_goes_out_and_the_value_is_read_back(meter, meter_profile):
    found = powerblock(
        "write", url_of(meter), "--profile", meter_profile, "limit_w", "2000", "--confirm", "--json"
    )
    assert found.exit_code == 0, found.stderr
    said = json.loads(found.stdout)
    assert said["written"] == {"value": 2000.0, "was": 2500.0, "confirmed": True}
    assert writes(meter) == [(1, 6, 4, 200)]


def test_a_bit_of_a_register_is_written_onto_the_others(meter, meter_profile):
    shown = powerblock("write", url_of(meter), "--profile", meter_profile, "manual", "on")
    assert "02FF" in shown.stdout
    powerblock("write", url_of(meter), "--profile", meter_profile, "manual", "on", "--confirm")
    assert writes(meter) == [(1, 6, 6, 0x02FF)]


def test_a_state_is_written_by_its_name(meter, meter_profile):
    found = powerblock("write", url_of(meter), "--profile", meter_profile, "mode", "auto", "--confirm")
    assert found.exit_code == 0, found.stderr
    assert writes(meter) == [(1, 6, 10, 0)]


def test_a_command_that_cannot_be_read_back_is_said_to_be_unproven(meter, meter_profile):
    found = powerblock("write", url_of(meter), "--profile", meter_profile, "reset", "on", "--confirm")
    assert found.exit_code == 0, found.stderr
    assert "cannot be read back" in found.stdout
    assert writes(meter) == [(1, 6, 11, 1)]


@pytest.mark.parametrize(
    ("point", "value", "said"),
    [
        ("power_w", "1", "read-only by its profile"),
        ("limit_w", "5001", "use 0"),
        ("limit_w", "nan", "nothing was sent"),
        ("limit_w", "much", "a number in W"),
        ("mode", "7", "none of its states"),
        ("nix", "1", "limit_w, manual, mode, reset"),
    ],
)
def test_what_must_not_be_written_is_refused_with_and_without_confirm(
    meter, meter_profile, point, value, said
):
    for confirm in ([], ["--confirm"]):
        found = powerblock("write", url_of(meter), "--profile", meter_profile, point, value, *confirm)
        assert found.exit_code == 2
        assert said in found.stderr
    assert writes(meter) == []


def test_a_device_that_does_not_do_what_it_was_told_is_a_failure(meter, meter_profile):
    def stubborn(_tid, _unit, pdu, frame):
        if pdu[0] == 6:
            meter.registers[1][4] = 250
        return frame

    meter.fault = stubborn
    found = powerblock("write", url_of(meter), "--profile", meter_profile, "limit_w", "2000", "--confirm")
    assert found.exit_code == 1
    assert "reads back" in found.stderr


def test_the_rules_of_a_block_hold_for_its_integrator_too(meter, meter_profile, tmp_path):
    path = block(
        tmp_path,
        f"{{name: m1, profile: {meter_profile}, url: '{url_of(meter)}', "
        "writes: {limit_w: {lowest: 1000, highest: 3000}}}",
    )
    assert powerblock("write", path, "m1", "limit_w", "2000", "--confirm").exit_code == 0
    found = powerblock("write", path, "m1", "limit_w", "4000", "--confirm")
    assert (found.exit_code, "1000 to 3000" in found.stderr) == (2, True)
    found = powerblock("write", path, "m1", "mode", "auto", "--confirm")
    assert (found.exit_code, "name it under `writes`" in found.stderr) == (2, True)
    assert writes(meter) == [(1, 6, 4, 200)]


@pytest.mark.usefixtures("_quiet")
def test_a_running_controller_carries_the_write_out_itself(site, meter, meter_profile, tmp_path):
    path = block(
        tmp_path,
        f"{{name: m1, profile: {meter_profile}, url: '{url_of(meter)}', "
        "writes: {limit_w: {lowest: 1000, highest: 3000}}}",
    )
    controller = site.add(Controller(path, {"limit_w": 2500.0}))
    found = powerblock("write", path, "m1", "limit_w", "2000", "--confirm", "--json")
    assert found.exit_code == 0, found.stderr
    (command,) = controller.commands
    assert (command.verb, command.arguments) == ("write", {"device": "m1", "point": "limit_w", "value": 2000})
    assert meter.connections == 0


@pytest.fixture
def chiller(site, tmp_path):
    """An OPC UA server with one node that may be written; (server, file of its profile)."""
    path = tmp_path / "bench_cdu.yaml"
    path.write_text(
        """
title: bench CDU
protocol: opcua
provenance: {document: bench, page: "1", evidence: document}
points:
  flow_l_per_min: {unit: L/min, node: "nsu=urn:bench;s=Flow", access: rw, lowest: 0, highest: 2000}
examples:
  - {point: flow_l_per_min, raw: 900.0, value: 900.0, source: bench}
"""
    )
    server = OpcuaDevice(load_profile(path), lambda: {"flow_l_per_min": 900.0}, port=free_port())
    site.add(server)
    site.do(server._nodes["flow_l_per_min"].set_writable())
    server._pushing.get_loop().call_soon_threadsafe(server._pushing.cancel)  # the plant does not argue
    return server, path


def test_an_opcua_write_shows_node_and_type_and_is_read_back(chiller):
    server, profile = chiller
    words = ("write", server.url, "--profile", profile, "flow_l_per_min", "850")
    shown = powerblock(*words)
    assert "Double 850.0" in shown.stdout
    assert "add --confirm" in shown.stdout
    sent = powerblock(*words, "--confirm", "--json")
    assert sent.exit_code == 0, sent.stderr
    assert json.loads(sent.stdout)["written"] == {"value": 850.0, "was": 900.0, "confirmed": True}


async def test_what_the_tools_read_with_cannot_write():
    """Read-only is kept at the wire, whatever is asked of it."""
    async with Meter() as device, Talk(Tcp("127.0.0.1", device.port)) as talk:
        with pytest.raises(DeviceError, match="may not write"):
            await talk.ask(1, write_question("holding", 0, [1], "auto", "x"))
        assert await talk.words(1, "holding", 0, 2) == [0, 0]
        assert writes(device) == []
