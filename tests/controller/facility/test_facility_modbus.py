"""The native map over the wire: mbpoll (C, libmodbus) as master, and a raw one where timing matters."""

import asyncio
import contextlib
import math
import shutil
import struct
import time

import pytest
from pydantic import ValidationError

from controller.facility.config import ModbusServerConfig
from controller.facility.modbus import native
from controller.facility.modbus.registers import ANSWER, REQUEST, STATUS, fingerprint, size
from controller.facility.modbus.server import ModbusFacility
from controller.facility.modbus.shown import register_map
from controller.image.model import Group, Outcome, Point, Result, Role
from protocols.modbus.answer import Peer
from tests.controller.facility.modbus_site import GROUPS, Site, config, serving

MBPOLL = shutil.which("mbpoll")
needs_mbpoll = pytest.mark.skipif(MBPOLL is None, reason="mbpoll is not installed: apt install mbpoll")
PLACES = {register.name: (register.unit_id, register.address) for register in register_map(GROUPS)}


class Master:
    """A connection with one request at a time."""

    def __init__(self, reader, writer):
        self._reader, self._writer, self._transaction = reader, writer, 0

    async def ask(self, unit, pdu):
        self._transaction += 1
        self._writer.write(struct.pack(">HHHB", self._transaction, 0, len(pdu) + 1, unit) + pdu)
        async with asyncio.timeout(10):
            transaction, _, length, _ = struct.unpack(">HHHB", await self._reader.readexactly(7))
            assert transaction == self._transaction
            return await self._reader.readexactly(length - 1)

    async def read(self, unit, first, count, function=3):
        pdu = await self.ask(unit, struct.pack(">BHH", function, first, count))
        if pdu[0] & 0x80:
            return pdu[1]
        return list(struct.unpack(f">{count}H", pdu[2:]))

    async def write(self, unit, first, words):
        """The exception code; 0: done."""
        count = len(words)
        pdu = await self.ask(unit, struct.pack(f">BHHB{count}H", 16, first, count, 2 * count, *words))
        return pdu[1] if pdu[0] & 0x80 else 0

    async def request(self, **points):
        """All of the request block at once, what is not named as at the start."""
        start = native.decode(REQUEST, native.AT_START)
        return await self.write(2, 100, native.encode(REQUEST, {**start, **points}))

    async def answer(self):
        return native.decode(ANSWER, await self.read(2, 200, size(ANSWER)))

    async def decided(self, seq):
        """The answer once it is about this request."""
        async with asyncio.timeout(5):
            while True:
                told = await self.answer()
                if told["SP_Ack"] == seq and not told["SP_Busy"]:
                    return {**told, "SP_Reason": told["SP_Reason"].rstrip(b"\0").decode()}
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def master_of(facility, source="127.0.0.1"):
    port = facility.servers[0].port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        yield Master(reader, writer)
    finally:
        writer.close()


async def mbpoll(facility, *arguments, values=()):
    """What mbpoll prints; it must have been content."""
    port = str(facility.servers[0].port)
    made = await asyncio.create_subprocess_exec(
        MBPOLL, "-m", "tcp", "-p", port, "-0", "-1", *arguments, "127.0.0.1", *values,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    told, _ = await made.communicate()
    assert made.returncode == 0, told.decode()
    return told.decode()


# --- reading ----------------------------------------------------------------------------------------------


@needs_mbpoll
async def test_mbpoll_reads_power_and_a_device_as_floats():
    async with serving(Site()) as facility:
        for name, expected in (("power_w", "9000"), ("devices/meter/power_w", "9001.5")):
            unit, address = PLACES[name]
            for table in ("3:float", "4:float"):  # input and holding registers alike
                told = await mbpoll(facility, "-a", str(unit), "-r", str(address), "-t", table, "-B")
                assert f"[{address}]: \t{expected}" in told


@needs_mbpoll
async def test_mbpoll_sets_a_limit_with_the_handshake():
    site = Site()
    async with serving(site) as facility:
        limit, valid, seq = PLACES["SP_Limit_W"], PLACES["SP_ValidFor_s"], PLACES["SP_Seq"]
        await mbpoll(facility, "-a", "2", "-r", "100", "-t", "4", values=["1"])
        await mbpoll(facility, "-a", "2", "-r", str(limit[1]), "-t", "4:float", "-B", values=["8000"])
        await mbpoll(facility, "-a", "2", "-r", str(valid[1]), "-t", "4:int", "-B", values=["300"])
        assert site.asked == []
        await mbpoll(facility, "-a", "2", "-r", str(seq[1]), "-t", "4", values=["17"])
        told = await mbpoll(facility, "-a", "2", "-r", "200", "-c", "3", "-t", "4")
        assert "[200]: \t17\n[201]: \t1\n[202]: \t0\n" in told
        assert site.asked == [("set_power_limit", {"limit_w": 8000.0, "valid_for_s": 300.0, "priority": 8})]


async def test_the_status_block_says_which_map_runs_and_how_the_block_is():
    async with serving(Site()) as facility, master_of(facility) as master:
        told = native.decode(STATUS, await master.read(2, 0, size(STATUS)))
        assert told["map_fingerprint"] == fingerprint(register_map(GROUPS))
        assert told["controller_heard"] == 1
        assert (told["power_w"], told["limit_w"], told["rating_w"]) == (9000.0, 12_000.0, 14_000.0)
        assert (told["alarms_active"], told["alarms_unacknowledged"], told["switch"]) == (2, 1, 0)
        assert told["limit_source"].rstrip(b"\0") == b"grid operator"


async def test_every_value_comes_with_its_quality_and_age_in_one_read():
    site = Site()
    site.tell("devices/meter", [9001.5, None, 230.5, 1.0, 5.0, "SN-17", 18.0], doubt="framing lost lately")
    async with serving(site) as facility, master_of(facility) as master:
        unit, first = PLACES["devices/meter: quality"]
        words = await master.read(unit, first, 4 + 4 * 5 + 18)
        assert words[0] == 0  # the worst of its points
        assert words[3] == 7
        power = struct.unpack(">f", struct.pack(">2H", *words[4:6]))[0]
        assert (power, words[6]) == (9001.5, 1)
        assert words[7] <= 20
        missing = struct.unpack(">f", struct.pack(">2H", *words[8:10]))[0]
        assert math.isnan(missing)
        assert words[10] == 0
        assert words[16:19] == [0, 1, 1]  # the state "on", uncertain
        assert bytes(struct.pack(">5H", *words[24:29])) == b"SN-17" + bytes(5)


async def test_bits_keep_all_thirty_two_of_them():
    async with serving(Site()) as facility, master_of(facility) as master:
        unit, address = PLACES["devices/meter/flags"]
        assert await master.read(unit, address, 2) == [0x8000, 0x0001]


async def test_values_never_heard_are_marked_in_every_type():
    site = Site()
    site.image.learn(GROUPS)
    async with serving(site) as facility, master_of(facility) as master:
        unit, first = PLACES["devices/meter: quality"]
        words = await master.read(unit, first, 20)
        assert words[:2] == [0, 0xFFFF]
        assert words[4] & 0x7F80 == 0x7F80
        assert words[7] == 0xFFFF  # age
        assert words[16:18] == [0xFFFF, 0xFFFF]  # state


async def test_values_grow_stale_in_the_registers_when_the_controller_falls_silent():
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        unit, address = PLACES["devices/meter/power_w"]
        assert (await master.read(unit, address, 4))[2] == 2
        site.alive = False
        site.tell("devices/meter", [9001.5, *[None] * 6], taken_at_s=time.monotonic() - 11)
        assert (await master.read(unit, address, 4))[2] == 0
        assert (await master.read(2, PLACES["controller_heard"][1], 1)) == [0]


async def test_when_the_controller_dies_everything_is_bad_however_long_it_would_have_stayed_good():
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        unit, first = PLACES["devices/meter: quality"]
        assert (await master.read(unit, first, 7))[6] == 2
        site.alive = False
        words = await master.read(unit, first, 7)
        assert (words[0], words[6]) == (0, 0)
        assert math.isnan(native.number("f32", words[4:6]))
        told = native.decode(STATUS, await master.read(2, 0, size(STATUS)))
        assert math.isnan(told["power_w"])
        assert (told["power_quality"], told["switch"], told["limit_source"].strip(b"\0")) == (0, 0xFFFF, b"")
        assert told["power_age"] < 0xFFFF
        assert math.isnan((await master.answer())["SP_Active_W"])


async def test_room_between_values_reads_as_ones_and_beyond_the_map_is_refused():
    async with serving(Site()) as facility, master_of(facility) as master:
        assert await master.read(2, 99, 1) == [0xFFFF]
        assert len(await master.read(2, 50, 125)) == 125
        assert await master.read(2, 3000, 1) == 2
        assert await master.read(1, 0, 2) == 2
        assert await master.read(9, 0, 1) == 11
        assert await master.read(1, 40_000, 2, function=4) == 2  # SunSpec: holding registers alone


async def test_a_read_is_of_one_moment():
    """Two values that always change together are never seen apart."""
    site = Site()
    async with serving(site, requests_per_s=100_000) as facility, master_of(facility) as master:
        unit, first = PLACES["devices/meter/power_w"]
        for number in range(200):
            site.put("devices/meter", power_w=float(number), frequency_hz=float(number))
            words = await master.read(unit, first, 8)
            assert words[0:2] == words[4:6]


async def test_a_changed_catalogue_is_served_at_once():
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        assert await master.read(110, 2000, 1) == 2
        before = await master.read(2, PLACES["map_fingerprint"][1], 2)
        new = Group(path="devices/new", kind="device", points=(Point(name="x_w", unit="W"),))
        site.image.learn((*GROUPS, new))
        assert await master.read(110, 2000, 1) == [0]
        assert await master.read(2, PLACES["map_fingerprint"][1], 2) != before


async def test_the_device_identification_names_block_and_map():
    async with serving(Site()) as facility, master_of(facility) as master:
        told = await master.ask(2, bytes((43, 14, 3, 0)))
        assert b"powerblock" in told
        assert b"hall-a" in told
        assert f"{fingerprint(register_map(GROUPS)):08x}".encode() in told


# --- the handshake ----------------------------------------------------------------------------------------


async def test_a_request_is_acknowledged_with_its_number_and_its_result():
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        assert (await master.answer())["SP_Result"] == 0
        request = {
            "SP_Request": 1,
            "SP_Limit_W": 6000.0,
            "SP_Ramp_W_per_s": 100.0,
            "SP_ValidFor_s": 60,
            "SP_Then_W": 9000.0,
        }
        assert await master.request(**request, SP_Priority=5, SP_Seq=1) == 0
        told = await master.decided(1)
        assert (told["SP_Result"], told["SP_Set_W"]) == (1, 6000.0)
        arguments = {
            "limit_w": 6000.0,
            "ramp_w_per_s": 100.0,
            "valid_for_s": 60.0,
            "then_w": 9000.0,
            "priority": 5,
        }
        assert site.asked == [("set_power_limit", arguments)]
        assert (site.commands[0].by, site.commands[0].role) == ("127.0.0.1", Role.OPERATE)


async def test_a_repeated_write_does_nothing_twice():
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        for _ in range(3):
            await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=1)
            await master.decided(1)
        assert len(site.commands) == 1


async def test_a_write_repeated_after_a_restart_does_nothing_twice_and_its_answer_still_stands(tmp_path):
    site = Site()
    for _ in range(2):
        async with serving(site, state_dir=tmp_path) as facility, master_of(facility) as master:
            await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=7)
            told = await master.decided(7)
            assert (told["SP_Result"], told["SP_Set_W"]) == (1, 6000.0)
    assert len(site.commands) == 1


async def test_fields_written_before_a_restart_count_for_the_request_that_follows(tmp_path):
    site = Site()
    async with serving(site, state_dir=tmp_path) as facility, master_of(facility) as master:
        await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Priority=10, SP_ValidFor_s=60)
    async with serving(site, state_dir=tmp_path) as facility, master_of(facility) as master:
        await master.write(2, PLACES["SP_Seq"][1], [1])
        await master.decided(1)
    assert site.asked == [("set_power_limit", {"limit_w": 6000.0, "priority": 10, "valid_for_s": 60.0})]


async def test_a_request_in_hand_when_the_server_dies_is_answered_in_doubt_and_not_sent_again(tmp_path):
    site = Site()
    site.gate.clear()
    async with serving(site, state_dir=tmp_path) as facility, master_of(facility) as master:
        await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=7)
        assert (await master.answer())["SP_Busy"] == 1
    site.gate.set()
    async with serving(site, state_dir=tmp_path) as facility, master_of(facility) as master:
        told = await master.decided(7)
        assert told["SP_Result"] == 3
        assert "may be in force or not" in told["SP_Reason"]
        await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=7)
        await master.request(SP_Request=2, SP_Seq=8)
        await master.decided(8)
    assert site.asked == [("release", {"priority": 8})]


@pytest.mark.parametrize("content", [b"", b"{", b'{"masters": {"a": {"request": [1]}}}'])
async def test_a_file_that_makes_no_sense_stops_nobody(tmp_path, content):
    (tmp_path / "modbus.json").write_bytes(content)
    async with serving(Site(), state_dir=tmp_path) as facility, master_of(facility) as master:
        await master.request(SP_Request=4, SP_Seq=1)
        assert (await master.decided(1))["SP_Result"] == 1


async def test_a_full_disk_stops_no_request(tmp_path):
    (tmp_path / "state").write_bytes(b"")  # no folder
    async with serving(Site(), state_dir=tmp_path / "state") as facility, master_of(facility) as master:
        await master.request(SP_Request=4, SP_Seq=1)
        assert (await master.decided(1))["SP_Result"] == 1


async def test_a_request_is_what_it_was_when_its_number_moved():
    site = Site()
    async with serving(site) as facility:
        request = {**native.decode(REQUEST, native.AT_START), "SP_Request": 1, "SP_Limit_W": 6000.0}
        words = native.encode(REQUEST, {**request, "SP_Seq": 1})
        peer = Peer(address="127.0.0.1", name="127.0.0.1", may_write=True)
        await facility.write("holding", 2, 100, words, peer)
        later = native.encode(REQUEST, {**request, "SP_Limit_W": 13_000.0, "SP_Seq": 1})
        await facility.write("holding", 2, 100, later, peer)
        async with master_of(facility) as master:
            await master.decided(1)
    assert site.asked == [("set_power_limit", {"limit_w": 6000.0, "priority": 8})]


@pytest.mark.parametrize(("said", "meant"), [(0, 8), (5, 5), (8, 8)])
async def test_a_release_is_of_one_priority(said, meant):
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        await master.request(SP_Request=2, SP_Priority=said, SP_Seq=1)
        await master.decided(1)
    assert site.asked == [("release", {"priority": meant})]


@pytest.mark.parametrize(
    ("outcome", "result", "code"),
    [
        (Outcome(result=Result.CLAMPED, reason="limit to 4000 W", value=4000.0), 2, 0),
        (Outcome(result=Result.REJECTED, reason="the block is switched to LOCAL"), 3, 2),
    ],
)
async def test_what_is_not_done_as_asked_says_so_in_words(outcome, result, code):
    site = Site()
    site.outcomes["set_power_limit"] = outcome
    async with serving(site) as facility, master_of(facility) as master:
        await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=1)
        told = await master.decided(1)
        assert (told["SP_Result"], told["SP_ReasonCode"], told["SP_Reason"]) == (result, code, outcome.reason)


@pytest.mark.parametrize(
    "request_points",
    [
        {"SP_Request": 1, "SP_Limit_W": math.nan},
        {"SP_Request": 1, "SP_Limit_W": -1.0},
        {"SP_Request": 99},
        {"SP_Request": 3, "SP_Mode": 7},
    ],
)
async def test_a_request_that_makes_no_sense_is_rejected_before_it_reaches_the_block(request_points):
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        await master.request(**request_points, SP_Seq=5)
        told = await master.decided(5)
        assert (told["SP_Result"], told["SP_ReasonCode"]) == (3, 1)
        assert told["SP_Reason"]
        assert site.commands == []


async def test_a_request_waits_for_nobody_and_a_second_one_is_told_to_wait():
    site = Site()
    site.gate.clear()
    async with serving(site) as facility, master_of(facility) as master:
        assert await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=1) == 0
        assert (await master.answer())["SP_Busy"] == 1
        assert await master.request(SP_Request=2, SP_Seq=2) == 6
        site.gate.set()
        await master.decided(1)
        assert await master.request(SP_Request=2, SP_Seq=2) == 0
        assert math.isnan((await master.decided(2))["SP_Set_W"])
        assert [verb for verb, _ in site.asked] == ["set_power_limit", "release"]


async def test_two_masters_cannot_take_each_others_acknowledgement_for_theirs():
    site = Site()
    site.outcomes["release"] = Outcome(result=Result.REJECTED, reason="holds no such limit")
    async with serving(site) as facility, master_of(facility) as one, master_of(facility, "127.0.0.2") as two:
        await one.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=7)
        await two.request(SP_Request=2, SP_Seq=7)
        assert (await one.decided(7))["SP_Result"] == 1
        assert (await two.decided(7))["SP_Result"] == 3
        assert {command.by for command in site.commands} == {"127.0.0.1", "127.0.0.2"}


async def test_a_limit_without_end_may_live_on_the_masters_heartbeat():
    site = Site()
    async with serving(site, heartbeat_timeout_s=30) as facility, master_of(facility) as master:
        await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Heartbeat=1, SP_Seq=1)
        await master.decided(1)
        beat = PLACES["SP_Heartbeat"][1]
        for number in (2, 2, 3):
            assert await master.write(2, beat, [number]) == 0
        limit = {"limit_w": 6000.0, "priority": 8, "heartbeat_timeout_s": 30.0}
        assert site.asked == [("set_power_limit", limit), *[("heartbeat", {})] * 3]


async def test_a_heartbeat_beside_a_request_is_passed_on():
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        await master.request(SP_Request=4, SP_Heartbeat=9, SP_Seq=1)
        await master.decided(1)
        await master.answer()
    assert site.asked == [("acknowledge", {}), ("heartbeat", {})]


async def test_a_heartbeat_that_nobody_hears_is_no_success_and_is_sent_again():
    site = Site()
    site.outcomes["heartbeat"] = Outcome(result=Result.REJECTED, reason="the controller is not heard")
    beat = PLACES["SP_Heartbeat"][1]
    async with serving(site) as facility, master_of(facility) as master:
        assert await master.write(2, beat, [3]) == 4
        assert await master.write(2, beat, [3]) == 4
        del site.outcomes["heartbeat"]
        assert await master.write(2, beat, [3]) == 0
        assert await master.write(2, beat, [3]) == 0
        assert len(site.commands) == 3
        assert await master.write(2, beat, [0]) == 0  # not a heartbeat
        assert len(site.commands) == 3


async def test_alarms_are_acknowledged_and_reset_and_the_switch_takes_an_engineer():
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        for seq, request in enumerate((4, 5, 3), start=1):
            await master.request(SP_Request=request, SP_Mode=1, SP_Seq=seq)
            told = await master.decided(seq)
        assert site.asked == [("acknowledge", {}), ("reset", {}), ("set_mode", {"mode": "local"})]
        assert (told["SP_Result"], told["SP_Reason"]) == (3, "set_mode needs engineer")


async def test_the_answer_says_whose_limit_counts_for_how_long():
    site = Site()
    site.put("facility", limit_w=5000.0, priority=5.0, remaining_s=99.0, by="opcua alice")
    async with serving(site) as facility, master_of(facility) as master:
        told = await master.answer()
        assert (told["SP_Active_W"], told["SP_Remaining_s"], told["SP_ActivePriority"]) == (5000.0, 99, 5)
        assert told["SP_Source"].rstrip(b"\0") == b"opcua alice"


async def test_half_a_field_is_not_written():
    async with serving(Site()) as facility, master_of(facility) as master:
        assert await master.write(2, 101, [0]) == 2
        assert await master.write(2, 102, [0, 0]) == 2
        assert await master.write(2, 0, [0]) == 2
        assert await master.write(2, 200, [0]) == 2
        assert await master.write(2, 113, [0] * 20) == 2


async def test_so_many_masters_are_remembered_and_not_more(monkeypatch):
    monkeypatch.setattr("controller.facility.modbus.server.MASTERS_MAX", 3)
    facility = ModbusFacility(config(), Site(), version="1", now_s=time.monotonic)
    for number in range(10):
        peer = Peer(address=f"10.0.0.{number}", name=f"10.0.0.{number}", may_write=True)
        await facility.write("holding", 2, 100, [4], peer)
    assert list(facility._masters) == ["modbus 10.0.0.7", "modbus 10.0.0.8", "modbus 10.0.0.9"]


async def test_readers_cannot_have_a_request_carried_out_again():
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=7)
        await master.decided(7)
        for number in range(200):
            reader = Peer(address=f"10.1.0.{number}", name=f"10.1.0.{number}")
            facility.read("holding", 2, 100, 113, reader)
        await master.request(SP_Request=1, SP_Limit_W=6000.0, SP_Seq=7)
        await master.decided(7)
    assert len(site.commands) == 1


# --- points of devices ------------------------------------------------------------------------------------


@needs_mbpoll
async def test_mbpoll_writes_a_writable_point_of_a_device():
    site = Site()
    async with serving(site) as facility:
        unit, address = PLACES["devices/meter/setpoint_c"]
        await mbpoll(facility, "-a", str(unit), "-r", str(address), "-t", "4:float", "-B", values=["17.5"])
        assert site.asked == [("write", {"device": "meter", "point": "setpoint_c", "value": 17.5})]


async def test_a_write_that_the_device_or_the_block_refuses_is_exception_4_and_others_2():
    site = Site()
    site.outcomes["write"] = Outcome(result=Result.REJECTED, reason="LOCAL")
    async with serving(site) as facility, master_of(facility) as master:
        unit, address = PLACES["devices/meter/setpoint_c"]
        assert await master.write(unit, address, [0x4190, 0]) == 4
        assert await master.write(unit, address, [0x4190]) == 2
        assert await master.write(unit, address, [0x7FC0, 0]) == 3  # NaN
        assert len(site.commands) == 1
        assert await master.write(unit, address + 1, [0]) == 2
        unit, address = PLACES["devices/meter/power_w"]
        assert await master.write(unit, address, [0x4190, 0]) == 2


async def test_a_gateway_without_a_block_serves_its_devices_and_has_no_limit_to_set():
    site = Site(GROUPS[1:])
    async with serving(site) as facility, master_of(facility) as master:
        unit, address = PLACES["devices/meter/power_w"]
        assert (await master.read(unit, address, 4))[2] == 2
        limit = PLACES["704.WMaxLimPct"][1]
        assert await master.read(1, limit, 1) == [0xFFFF]
        assert await master.write(1, limit, [5000]) == 2
        assert await master.write(1, PLACES["715.AlarmReset"][1], [1]) == 0
        power = PLACES["213.W"][1]
        assert struct.unpack(">f", struct.pack(">2H", *await master.read(1, power, 2))) == (9001.5,)
        assert site.asked == [("reset", {})]


# --- who may ----------------------------------------------------------------------------------------------


async def test_a_master_outside_the_write_list_commands_nothing_anywhere():
    site = Site()
    async with serving(site, write_allow=("127.0.0.2",)) as facility, master_of(facility) as master:
        for unit, first, words in ((1, 40_000, [0]), (2, 100, [1]), (2, 112, [1]), (110, 4, [0, 0])):
            assert await master.write(unit, first, words) == 1
        assert len(await master.read(2, 0, 10)) == 10
    assert site.commands == []


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"allow": ("10.1.0.0/8",)}, "write a network"),
        ({"allow": ("10.0.0.0/8",), "write_allow": ("11.0.0.1",)}, "add it to `allow`"),
        ({"allow": ("10.0.0.0/8",), "write_allow": ("::1",)}, "add it to `allow`"),
        ({"allow": ("10.0.0.0/8",), "port": None}, "give one of them"),
        ({"allow": ()}, "at least 1"),
        ({"allow": ("10.0.0.0/8",), "roles": {"x": "king"}}, "observe"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused_with_its_remedy(changes, remedy):
    with pytest.raises(ValidationError, match=remedy):
        ModbusServerConfig(**changes)


def test_without_more_said_a_server_listens_on_loopback_and_nobody_writes():
    made = ModbusServerConfig(allow=("10.0.0.0/8",))
    assert (made.host, made.port, made.write_allow) == ("127.0.0.1", 502, ())


# --- levels of shedding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({"SP_Request": 7}, ("shed", {"number": 1})),
        ({"SP_Request": 14, "SP_ValidFor_s": 600}, ("shed", {"number": 8, "valid_for_s": 600.0})),
        ({"SP_Request": 6}, ("end_shed", {})),
    ],
)
async def test_a_level_of_shedding_is_called_by_its_number_and_ended(said, asked):
    site = Site()
    async with serving(site) as facility, master_of(facility) as master:
        await master.request(**said, SP_Seq=5)
        assert (await master.decided(5))["SP_Result"] == 1
    assert site.asked == [asked]


async def test_a_call_is_no_limit_in_the_answer():
    site = Site()
    site.outcomes["shed"] = Outcome(result=Result.ACCEPTED, value=8600.0)
    async with serving(site) as facility, master_of(facility) as master:
        await master.request(SP_Request=8, SP_Seq=5)
        assert math.isnan((await master.decided(5))["SP_Set_W"])
