"""What a plant has in store: other services, devices with manners of their own, full disks, small screens."""

import asyncio
import contextlib
import io
import resource
import signal
import time

import pytest
from asyncua import Server, ua
from rich.console import Console

from controller.commissioning import files
from controller.commissioning.reading import Look, Screen, Seen
from controller.commissioning.shown import bad, good
from controller.commissioning.target import ToolError
from protocols.profile import Point
from tests.brokers import free_port
from tests.controller.commissioning.devices_on_site import PDU, Meter, powerblock, process
from tests.protocols.modbus.modbus_peers import Device, hang_up

METER = """
title: bench meter [auto]
protocol: modbus
provenance: {document: bench, page: "1", evidence: document}
reply_wait_max_s: 0.3
blocks: [{table: holding, first: 0, last: 9}]
points:
  trim_c: {unit: degC, address: 7, type: i16, access: rw, lowest: -50, highest: 50, scale: 0.5}
examples:
  - {point: trim_c, registers: [3], value: 1.5, source: bench}
"""


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text(METER)
    return path


class Stranger:
    """A service that is not Modbus: says `banner` unasked, then `answer(bytes)`."""

    def __init__(self, banner=b"", answer=lambda _: b""):
        self._banner, self._answer = banner, answer

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"modbus+tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        with contextlib.suppress(OSError):
            writer.write(self._banner)
            while asked := await reader.read(1000):
                writer.write(self._answer(asked))
                await writer.drain()
        writer.close()


def ssh():
    return Stranger(banner=b"SSH-2.0-OpenSSH_9.6\r\n")


def http():
    return Stranger(answer=lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n")


def echo():
    return Stranger(answer=lambda asked: asked)


def url_of(device):
    return f"modbus+tcp://127.0.0.1:{device.port}"


# --- scan ----------------------------------------------------------------------------------------------------


def test_a_device_that_hangs_up_over_a_foreign_unit_id_is_found_at_its_own(site):
    meter = site.add(Meter())
    meter.fault = lambda _tid, unit, _pdu, frame: frame if unit in (2, 5) else hang_up()
    found = powerblock("scan", url_of(meter), "--units", "1-6", "--rate", "50", "--json")
    assert found.exit_code == 0
    assert '"unit": 2' in found.stdout
    assert '"unit": 5' in found.stdout
    assert "hangs up when asked for unit 1, 3, 4, 6" in found.stdout


def test_a_device_that_answers_every_id_is_seen_through_its_changing_values(site):
    class Live(Meter):
        def answer(self, unit, pdu):
            self.registers[unit][0] = 100 + len(self.requests)
            return super().answer(unit, pdu)

    found = powerblock("scan", url_of(site.add(Live())), "--units", "1-6", "--rate", "50")
    assert "ids that cannot be there" in found.stdout


@pytest.mark.parametrize(
    ("service", "said"),
    [(ssh, "not Modbus TCP"), (http, "not Modbus TCP"), (echo, "not as Modbus does"), (Stranger, "0 answer")],
)
def test_another_service_is_no_unit_to_a_scan(site, service, said):
    found = powerblock("scan", site.add(service()).url)
    assert found.exit_code == 1
    assert said in found.stdout
    assert "next: " not in found.stdout


def test_places_that_fail_alike_are_told_together_and_others_apart(site):
    closed = [f"modbus+tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    found = powerblock("scan", *closed, site.add(ssh()).url, "modbus+rtu:///dev/nowhere")
    assert "no way to it: [Errno 2]" in found.stdout
    assert "2 places without a connection: connection refused" in found.stdout
    assert "1 place without a connection: bytes came" in found.stdout


def test_a_scan_asks_for_one_register_and_a_name_plate_and_nothing_else(site):
    frames = []

    class Listening(Meter):
        def answer(self, unit, pdu):
            frames.append(bytes(pdu))
            return super().answer(unit, pdu)

    powerblock("scan", url_of(site.add(Listening())), "--units", "1-3", "--rate", "50")
    assert set(frames) == {b"\x03\x00\x00\x00\x01", frames[1]}
    assert frames[1][:2] == b"\x2b\x0e"


def test_sigterm_leaves_what_was_found_like_ctrl_c(site):
    meter = site.add(Meter())
    meter.fault = lambda _tid, unit, _pdu, frame: frame if unit == 1 else None
    running = process("scan", url_of(meter), "--units", "1-200")
    while not any(request[0] == 2 for request in meter.requests):
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    told, _ = running.communicate(timeout=20)
    assert running.returncode == 1
    assert "1 answer; interrupted" in told


# --- what was typed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["opc.tcp", "modbus+tcp"])
@pytest.mark.parametrize("command", ["scan", "probe", "read", "points"])
def test_a_password_in_a_url_is_refused_and_never_repeated(command, scheme):
    found = powerblock(command, f"{scheme}://operator:hunter2@127.0.0.1:4840")
    assert found.exit_code == 2
    assert "password_file" in found.stderr
    assert "hunter2" not in found.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scan", "10.0.0..7"], "no host"),
        (["scan", "10.0.0.7:1502"], "--ports"),
        (["read", "modbus+tcp://10.0.0..7", "--profile", "xerus_pdu"], "no host"),
        (["scan", "modbus+tls://10.0.0.7", "--ca", "/nope", "--cert", "/nope", "--key", "/nope"], "/nope"),
    ],
)
def test_a_host_with_a_typing_error_is_named_and_no_traceback(words, said):
    found = powerblock(*words)
    assert found.exit_code in (1, 2)
    assert said in found.output


# --- probe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [ssh, http, echo])
def test_a_probe_says_of_another_service_that_it_is_not_modbus(site, service):
    found = powerblock("probe", site.add(service()).url)
    assert found.exit_code == 1
    assert "is it Modbus" in found.stderr


def test_a_device_that_refuses_the_name_plate_and_is_else_silent_has_answered(site):
    meter = site.add(Meter())
    meter.fault = lambda _tid, _unit, pdu, frame: frame if pdu[0] == 43 else None
    found = powerblock("probe", url_of(meter), "--profile", "xerus_pdu")
    assert "nobody answers" not in found.stderr
    assert "illegal function" in found.stdout


class Foul:
    """An OPC UA server whose name would steer a terminal."""

    async def __aenter__(self):
        self._server = Server()
        await self._server.init()
        self.url = f"opc.tcp://127.0.0.1:{free_port()}/foul"
        self._server.set_endpoint(self.url)
        self._server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        self._server.set_server_name("\x1b[2Jgood\x07")
        await self._server.register_namespace("urn:\x1b[31mfoul")
        await self._server.start()
        return self

    async def __aexit__(self, *_):
        await self._server.stop()


@pytest.mark.parametrize("command", ["probe", "scan"])
def test_what_a_server_calls_itself_does_not_steer_the_terminal(site, command):
    found = powerblock(command, site.add(Foul()).url)
    assert "good" in found.stdout
    assert not {"\x1b", "\x07"} & set(found.stdout)


# --- write ---------------------------------------------------------------------------------------------------


def test_a_negative_value_is_typed_as_it_is(site, profile):
    meter = site.add(Meter())
    found = powerblock("write", url_of(meter), "trim_c", "-5", "--confirm", "--profile", profile)
    assert found.exit_code == 0, found.output
    assert meter.registers[1][7] == 0x10000 - 10


def test_a_value_between_two_steps_of_a_register_is_said_to_be_rounded(site, profile):
    found = powerblock("write", url_of(site.add(Meter())), "trim_c", "1.3", "--profile", profile)
    assert "the register has no 1.3: it will say 1.5 degC" in found.stdout


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["capture", "checkout"])
def test_a_folder_that_cannot_be_written_to_is_found_out_before_any_question(site, tmp_path, command):
    meter = site.add(Meter())
    block = tmp_path / "block.yaml"
    block.write_text(
        f"block: b\nstate_dir: {tmp_path}\nrun_dir: {tmp_path}\ndevices:\n"
        f"  - {{name: m, profile: xerus_pdu, url: '{url_of(meter)}'}}\n"
    )
    words = (block, "m") if command == "capture" else (block,)
    found = powerblock(command, *words, "-o", tmp_path / "nowhere" / "x.yaml")
    assert found.exit_code == 2
    assert "cannot be written" in found.stderr
    assert meter.connections == 0


def test_a_disk_that_is_full_leaves_no_half_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ToolError, match="cannot be written"):
            files.written(tmp_path / "x.yaml", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "x.yaml").exists()


def test_a_device_that_was_busy_once_is_recorded_whole(site, tmp_path):
    meter = site.add(Meter())
    busy = [True]

    def fault(tid, unit, pdu, frame):
        if pdu[0] == 3 and busy:
            busy.clear()
            return Device.frame(tid, unit, b"\x83\x06")
        return frame

    meter.fault = fault
    file = tmp_path / "x.yaml"
    found = powerblock("capture", url_of(meter), "--range", "holding:0-9", "--rate", "50", "-o", file)
    assert found.exit_code == 0, found.output
    assert "refused" not in file.read_text()
    assert "words" in file.read_text()


# --- screens -------------------------------------------------------------------------------------------------


def drawn(screen, width, height):
    console = Console(file=io.StringIO(), width=width, height=height, legacy_windows=False)
    console.print(screen)
    return console.file.getvalue()


@pytest.mark.parametrize("why", ["", "a long reason why the registers of this device are doubted now"])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_figure_is_cut_on_a_small_screen(width, live, why):
    points = list(PDU.points.values())[:6]
    shown = {point.name: good(point, 12345.625, "4640 E680") for point in points}
    shown["x"] = bad(Point(name="x", unit="W", address=0, type="u16"), why) if why else shown[points[0].name]
    look = Look(name="pdu", where="asked directly", stranger="", shown=shown, at_utc_s=0.0)
    seen = {point.name: Seen(12345.625, 54321.125) for point in points}
    page = drawn(Screen(look, seen, live=live), width, 24)
    assert page.count("12345.62") >= len(points)
    assert page.count("12345.") == page.count("12345.62")
    assert page.count("54321.") == page.count("54321.12")
    assert (why if width == 160 else why[:15]) in page


def test_points_that_do_not_fit_the_screen_are_counted_with_their_quality():
    points = [Point(name=f"p{i}", unit="W", address=i, type="u16") for i in range(40)]
    shown = {
        point.name: bad(point, "no answer") if i > 30 else good(point, 1.0) for i, point in enumerate(points)
    }
    look = Look(name="pdu", where="asked directly", stranger="", shown=shown, at_utc_s=0.0)
    page = drawn(Screen(look, live=True), 80, 24)
    assert page.count("\n") <= 24
    assert "20 more do not fit (11 good, 9 bad)" in page


def test_the_reason_of_a_bad_point_is_on_the_narrowest_screen():
    point = Point(name="a_point_with_a_long_name", unit="L/min", address=0, type="u16")
    shown = {point.name: bad(point, "illegal data address", "0000")}
    look = Look(name="pdu", where="asked directly", stranger="", shown=shown, at_utc_s=0.0)
    assert "illegal" in drawn(Screen(look), 60, 24)


def test_brackets_in_a_title_are_not_read_as_markup(profile):
    assert "bench meter [auto]" in powerblock("points", profile).stdout
