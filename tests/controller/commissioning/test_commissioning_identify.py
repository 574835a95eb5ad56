"""Who is there: scan and probe against simulated devices, libmodbus and an OPC UA server."""

import asyncio
import contextlib
import json
import time

import pytest

from controller.commissioning import scan
from controller.commissioning.nameplate import named
from controller.commissioning.target import ToolError
from controller.config import load_config
from firmware_sim.opcua_device import OpcuaDevice
from protocols.modbus.answer import ExceptionCode, Refusal
from protocols.modbus.server import Access, ModbusServer
from protocols.profile import load_profile
from tests.brokers import free_port
from tests.controller.commissioning.devices_on_site import PDU, PDU_VALUES, RPU, powerblock, process, served
from tests.protocols.modbus.libmodbus_peer import Bus, FaultServer, needs_libmodbus
from tests.protocols.modbus.test_modbus_server import LOOPBACK, Registers
from tests.protocols.test_sunspec import Device as Map
from tests.protocols.test_sunspec import common, made, registers

# --- probe ---------------------------------------------------------------------------------------------------


def test_a_probe_names_the_profile_and_the_lines_it_prints_are_a_configuration(site, tmp_path):
    pdu = site.pdu()
    found = powerblock("probe", pdu.url, "--json")
    assert found.exit_code == 0, found.stderr
    said = json.loads(found.stdout)
    assert said["chosen"] == ["xerus_pdu"]
    path = tmp_path / "block.yaml"
    path.write_text(f"block: b\nstate_dir: {tmp_path}\nrun_dir: {tmp_path}\n{said['block_yaml']}\n")
    (device,) = load_config(path).devices
    assert (device.profile, device.url, device.kind) == ("xerus_pdu", pdu.url, "pdu")


def test_what_fits_without_an_identity_is_not_called_proven(site):
    found = powerblock("probe", site.pdu().url)
    assert "fits, and nothing proves it" in found.stdout
    assert "plausible, not proven" in found.stdout
    assert "carrier_30xv" in found.stdout  # and what it is not


def test_a_device_that_says_zero_everywhere_proves_nothing(site):
    for profile, url in ((PDU, site.pdu(values={}).url), (RPU, site.pdu(values={}, profile=RPU).url)):
        found = powerblock("probe", url, "--profile", profile.name, "--json")
        assert found.exit_code == 1
        assert json.loads(found.stdout)["profiles"][0]["verdict"] == "proves nothing"
    assert "give it load" in powerblock("probe", url, "--profile", "orv3_rpu").stdout


def test_an_identity_that_is_there_is_a_match_and_another_is_not(site):
    liebert = load_profile("liebert_hpc")
    values = {name: 20.0 for name, point in liebert.points.items() if point.unit == "degC"}
    url = site.pdu(values=values | {"server_class": 2.0}, profile=liebert).url
    said = json.loads(powerblock("probe", url, "--profile", "liebert_hpc", "--json").stdout)
    assert said["profiles"][0]["verdict"] == "matches"
    url = site.pdu(values=values | {"server_class": 9.0}, profile=liebert).url
    said = json.loads(powerblock("probe", url, "--profile", "liebert_hpc", "--json").stdout)
    assert said["profiles"][0]["verdict"] == "does not fit"
    assert "server_class says nothing" in said["profiles"][0]["why"]


def test_a_probe_reads_the_name_plate_in_as_many_pieces_as_it_has(site):
    server = ModbusServer(Registers(), Access(read_from=LOOPBACK), host="127.0.0.1", port=0)
    site.add(served(server))
    found = powerblock("probe", f"modbus+tcp://127.0.0.1:{server.port}", "--json")
    plate = json.loads(found.stdout)["nameplate"]
    assert plate["vendor"] == "vendor"
    assert plate["product"] == "x" * 190
    assert plate["model"] == "y" * 190


def test_a_probe_asks_nothing_that_writes(site):
    server = ModbusServer(
        Registers(), Access(read_from=LOOPBACK, write_from=LOOPBACK), host="127.0.0.1", port=0
    )
    site.add(served(server))
    powerblock("probe", f"modbus+tcp://127.0.0.1:{server.port}")
    assert server.counts.requests > 20
    assert server.counts.writes == server.counts.writes_refused == server.counts.frames_malformed == 0
    assert server.counts.connections == 1


def test_a_device_that_hangs_up_over_the_name_plate_is_probed_all_the_same(site):
    """Some do, when they do not know a function."""
    pdu = site.pdu()

    async def relay(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", pdu.port)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(7)
                body = await reader.readexactly(int.from_bytes(head[4:6], "big") - 1)
                if body[0] == 43:
                    break
                back.write(head + body)
                answer = await there.readexactly(7)
                writer.write(answer + await there.readexactly(int.from_bytes(answer[4:6], "big") - 1))
        writer.close()
        back.close()

    server = site.do(asyncio.start_server(relay, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    said = json.loads(powerblock("probe", f"modbus+tcp://127.0.0.1:{port}", "--json").stdout)
    assert "closed the connection" in said["nameplate_fault"]
    assert said["chosen"] == ["xerus_pdu"]
    site.loop.call_soon_threadsafe(server.close)


def test_a_probe_of_nobody_says_what_to_check(site):
    found = powerblock("probe", f"modbus+tcp://127.0.0.1:{free_port()}")
    assert found.exit_code == 1
    assert "is the device on" in found.stderr


@needs_libmodbus
def test_a_probe_of_libmodbus_finds_no_profile_and_says_how_to_go_on(site):
    peer = site.add(FaultServer())
    found = powerblock("probe", f"modbus+tcp://127.0.0.1:{peer.port}", "--unit", "7")
    assert "unit 7" in found.stdout
    assert "name plate" in found.stdout


def test_a_probe_of_an_opcua_server_tells_endpoints_namespaces_and_profile(site):
    cdu = load_profile("opcua_cdu")
    values = {"coolant_supply_c": 30.0, "flow_l_per_min": 900.0, "running": 1.0}
    server = site.add(OpcuaDevice(cdu, lambda: values, port=free_port()))
    found = powerblock("probe", server.url, "--json")
    assert found.exit_code == 0, found.stderr
    said = json.loads(found.stdout)
    assert said["endpoints"][0]["policy"] == "None"
    assert "urn:powerblock:cdu" in said["namespaces"]
    assert said["chosen"] == ["opcua_cdu"]
    assert "security: none" in said["block_yaml"]
    assert said["about"]["clock"] == "right"
    assert "opcua_cdu" in powerblock("probe", server.url).stdout


def test_nobody_at_an_opcua_url_is_said_with_its_remedy():
    found = powerblock("probe", f"opc.tcp://127.0.0.1:{free_port()}")
    assert found.exit_code == 1
    assert "check address, port and path" in found.stderr


@needs_libmodbus
def test_a_serial_line_is_scanned_like_any_other(site):
    bus = site.add(Bus(4))
    url = f"modbus+rtu://{bus.path}?baud=19200&parity=N&stop_bits=1"
    said = json.loads(powerblock("scan", url, "--units", "3-4", "--rate", "50", "--json").stdout)
    assert [(one["unit"], one["said"]) for one in said["units"]] == [(4, "holding 0 is 800")]


# --- SunSpec -------------------------------------------------------------------------------------------------


class SunSpecBank:
    """A SunSpec map as the Alliance's own library lays it out."""

    def __init__(self, *models):
        self.map = Map([registers(model) for model in models])

    def read(self, table, unit, first, count, peer):
        wanted = range(first, first + count)
        if table != "holding" or not all(at in self.map.words for at in wanted):
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        return [self.map.words[at] for at in wanted]

    async def write(self, table, unit, first, values, peer):
        self.map.words.update(enumerate(values, first))

    def identity(self, unit):
        raise Refusal(ExceptionCode.ILLEGAL_FUNCTION)


@pytest.fixture
def inverter(site):
    limits = {
        "WMaxLimPctEna": 0, "WMaxLimPct": 1000, "WMaxLimPctRvrtTms": 0, "WMaxLimPctRvrtRem": 0,
        "WMaxLimPct_SF": -1,
    }  # fmt: skip
    bank = SunSpecBank(common(), made(713, {"SoC": 55, "Pct_SF": 0}), made(704, limits))
    server = ModbusServer(bank, Access(read_from=LOOPBACK, write_from=LOOPBACK), host="127.0.0.1", port=0)
    site.add(served(server))
    return server


def test_a_sunspec_device_is_identified_and_read_without_a_profile(inverter):
    url = f"modbus+tcp://127.0.0.1:{inverter.port}"
    said = json.loads(powerblock("probe", url, "--json").stdout)
    assert said["chosen"] == ["sunspec"]
    assert "1, 713, 704" in said["sunspec"]
    assert "profile: sunspec" in said["block_yaml"]
    said = json.loads(powerblock("read", url, "m713_state_of_charge_ratio", "m1_model", "--json").stdout)
    assert [one["value"] for one in said["values"]] == [0.55, "M1"]
    assert "m704_w_max_lim_pct_ratio" in powerblock("points", url).stdout


def test_a_command_with_a_reversion_timer_shows_what_is_armed_before_it(inverter):
    words = ("write", f"modbus+tcp://127.0.0.1:{inverter.port}", "m704_w_max_lim_pct_ratio", "0.5")
    shown = json.loads(powerblock(*words, "--json").stdout)
    assert [one["what"].split(" = ")[0] for one in shown["sends"]] == [
        "m704_w_max_lim_pct_ena", "m704_w_max_lim_pct_rvrt_tms_s", "m704_w_max_lim_pct_ratio",
    ]  # fmt: skip
    assert any("falls back by itself within 60 s" in note for note in shown["notes"])
    assert inverter.counts.writes == 0
    sent = powerblock(*words, "--confirm", "--json")
    assert sent.exit_code == 0, sent.stderr
    assert json.loads(sent.stdout)["written"]["value"] == 0.5
    assert inverter.counts.writes == 3


# --- the name plate ------------------------------------------------------------------------------------------


def test_a_name_plate_is_told_by_name_and_without_what_is_empty():
    told = named({1: "PDU", 0: "ACME", 3: "", 130: "rev B"})
    assert told == {"vendor": "ACME", "product_code": "PDU", "object_130": "rev B"}


# --- scan ----------------------------------------------------------------------------------------------------


@needs_libmodbus
def test_a_scan_finds_the_units_that_answer_and_no_others(site):
    peer = site.add(FaultServer())
    for unit in (1, 3, 5):
        site.do(peer.fault(unit, "silent"))
    url = f"modbus+tcp://127.0.0.1:{peer.port}"
    found = powerblock("scan", url, "--units", "1-6", "--rate", "50", "--json")
    said = json.loads(found.stdout)
    assert [one["unit"] for one in said["units"]] == [2, 4, 6]
    assert said["units"][0]["said"] == "holding 0 is 400"  # of its own registers
    assert said["complete"]
    assert {function for _, function, _, _ in peer.requests} <= {3, 43}


@needs_libmodbus
def test_a_late_answer_on_a_serial_line_is_never_another_units(site):
    bus = site.add(Bus(2, 4))
    site.do(bus.servers[0].fault(2, "late", 600))  # after our patience has ended
    url = f"modbus+rtu+tcp://127.0.0.1:{bus.port}"
    said = json.loads(powerblock("scan", url, "--units", "2-4", "--rate", "50", "--json").stdout)
    assert [(one["unit"], one["said"]) for one in said["units"]] == [(4, "holding 0 is 800")]


def test_a_device_that_ignores_unit_ids_is_said_to(site):
    class Everybody(Registers):
        def read(self, table, unit, first, count, peer):
            return super().read(table, 1, first, count, peer)

        def identity(self, unit):
            return super().identity(1)

    server = ModbusServer(Everybody(), Access(read_from=LOOPBACK), host="127.0.0.1", port=0)
    site.add(served(server))
    found = powerblock("scan", "127.0.0.1", "--ports", server.port, "--units", "1-5", "--rate", "50")
    assert "5 unit ids answer alike" in found.stdout
    assert found.exit_code == 0


def test_closed_addresses_are_counted_and_cost_no_wait(site):
    found = powerblock("scan", "127.0.0.1-3", "--ports", str(free_port()), "--units", "1-247")
    assert found.exit_code == 1
    assert "3 places without a connection: connection refused" in found.stdout


def test_an_interrupted_scan_shows_what_it_has(site):
    pdu = site.pdu()
    scanning = process("scan", pdu.url, "--units", "1-200", "--rate", "5", "--json")
    scanning.stderr.readline()  # it has begun
    try:
        time.sleep(1.5)
        scanning.send_signal(2)
        out, err = scanning.communicate(timeout=20)
    finally:
        scanning.kill()
    assert scanning.returncode == 1, err
    said = json.loads(out)
    assert not said["complete"]
    assert 1 <= said["asked"] < 200
    assert said["units"][0]["unit"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["10.0.0.0/8"], "write the range out"),
        (["10.0.0.1-10.0.9.1"], "256 hosts at most"),
        (["10.0.0.9-3"], "from the lower to the higher"),
        (["10.0.0.1-254", "10.0.1.1-254"], "256 at most"),
        (["10.0.0.1-200", "--units", "1-247"], "10000 at most"),
        (["10.0.0.1", "--units", "0-20"], "use 1 to 247"),
        (["10.0.0.1", "--units", "a"], "is no range"),
        (["10.0.0.1", "--ports", "1-1000"], "8 at most"),
        (["10.0.0.1", "--rate", "1000"], "50 questions a second"),
        (["ftp://10.0.0.1"], "unknown scheme"),
    ],
)
def test_an_absurd_range_is_refused_with_its_remedy(words, said):
    found = powerblock("scan", *words)
    assert found.exit_code == 2
    assert said in found.stderr


def test_hosts_are_written_out_in_the_ways_people_write_them():
    assert scan.hosts(["10.0.0.7-9", "10.0.0.7", "rack-pdu.example"]) == [
        "10.0.0.7", "10.0.0.8", "10.0.0.9", "rack-pdu.example",
    ]  # fmt: skip
    assert scan.hosts(["10.0.0.254-10.0.1.1"]) == ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"]
    with pytest.raises(ToolError):
        scan.hosts(["10.0.0.1-x"])


def test_a_scan_keeps_its_pace(site):
    """Twelve questions at ten a second take more than a second, however quick the device is."""
    pdu = site.pdu(values=PDU_VALUES)
    begun_s = time.monotonic()
    powerblock("scan", pdu.url, "--units", "1-6", "--rate", "10")  # a word and a name plate each
    assert time.monotonic() - begun_s > 1.0
