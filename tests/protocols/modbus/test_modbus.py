"""The Modbus client against real sockets: a pymodbus server, and a device that misbehaves on purpose."""

import asyncio
import itertools
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modbus_peers import PROFILE, RULES, Device, Readings, hang_up, healthy, running, unit
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from protocols import codec
from protocols.modbus import ModbusLink, Tcp, plan_reads
from protocols.profile import Block, Point, ProfileError, load_profile
from protocols.reading import DeviceError, retry_delay_s

# ---- the plan ----


@given(
    st.sets(st.integers(0, 60), min_size=1, max_size=20),
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.integers(2, 16),
)
def test_no_read_crosses_a_block_or_exceeds_the_length_and_no_point_is_left_out(addresses, sizes, longest):
    edges = [0, *itertools.accumulate(sizes)]
    blocks = tuple(Block(table="holding", first=a, last=b - 1) for a, b in itertools.pairwise(edges))
    points = [Point(name=f"n{a}", unit="count", address=a, type="u32") for a in addresses]
    points = [p for p in points if any(b.holds(p) for b in blocks)]
    spans = plan_reads(points, replace(PROFILE, blocks=blocks, max_registers_per_read=longest))
    assert sorted(p.name for s in spans for p in s.points) == sorted(p.name for p in points)
    for span in spans:
        assert span.count <= longest
        assert any(b.first <= span.first and span.first + span.count - 1 <= b.last for b in blocks)


def points_at(*addresses, table="holding", **fields):
    return [
        Point(name=f"n{a}", unit="count", address=a, **{"type": "u16", "table": table, **fields})
        for a in addresses
    ]


def shapes(points, **fields):
    return [(s.first, s.count) for s in plan_reads(points, replace(PROFILE, **fields))]


def test_p22_neighbours_in_one_block_share_a_read():
    """Thirty devices of sixteen registers are thirty reads, not four hundred and eighty."""
    blocks = (Block(table="holding", first=0, last=99), Block(table="holding", first=200, last=299))
    assert shapes(points_at(*range(16)), blocks=blocks) == [(0, 16)]
    assert shapes(points_at(0, 3, 98, 200, 210), blocks=blocks) == [(0, 99), (200, 11)]


def test_a_device_that_cannot_read_across_points_is_asked_for_each():
    assert shapes(points_at(0, 1, 2), one_request_per_point=True) == [(0, 1), (1, 1), (2, 1)]


def test_bits_have_a_limit_of_their_own():
    blocks = (Block(table="coil", first=0, last=99),)
    coils = points_at(*range(40), table="coil", type="bool")
    assert shapes(coils, blocks=blocks, max_bits_per_read=16, max_registers_per_read=1) == [
        (0, 16), (16, 16), (32, 8),
    ]  # fmt: skip


def test_reads_that_carry_scale_factors_come_first():
    """What rests on them can then be decoded as it comes."""
    scaled = Point(name="p_w", unit="W", address=0, type="i16", scale_factor="p_sf")
    factor = Point(name="p_sf", unit="count", address=10, type="i16")
    spans = plan_reads([scaled, factor], PROFILE)
    assert [s.points for s in spans] == [(factor,), (scaled,)]


# ---- normal function ----


async def test_values_scales_and_coils_arrive_with_the_moment_before_the_request():
    async with Device() as device:
        device.registers[1][0:5] = [0x459C, 0x4000, 0, 0, 2305]
        device.registers[1][10] = 1234
        device.coils[3] = 1
        readings = Readings()
        async with running(device, unit(readings)):
            first = await readings.until()
        assert first.values == pytest.approx(
            {"power_w": 5000.0, "voltage_v": 230.5, "current_a": 12.34, "running": 1.0}
        )
        assert healthy(first)
        assert first.taken_at_s == first.unchanged_since_s
        assert device.requests[:3] == [(1, 3, 0, 5), (1, 3, 10, 1), (1, 1, 3, 1)]


async def test_a_pymodbus_server_is_read_and_written():
    """An independent peer: floats, the block edges, a write of two registers, and read-back."""
    data = [SimData(0, values=0, count=20, datatype=DataType.REGISTERS)]
    server = ModbusTcpServer(SimDevice(id=1, simdata=data), address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    port = server.transport.sockets[0].getsockname()[1]
    readings = Readings()
    points = ("power_w", "voltage_v", "current_a")
    try:
        where = Tcp("127.0.0.1", port)
        async with running(None, unit(readings, points=points, writes=RULES), transport=where) as link:
            await readings.until(healthy)
            await link.write("meter", "power_w", 4321.5)
            await link.write("meter", "voltage_v", 400.1)
            reading = await readings.until(lambda r: r.values["power_w"] == 4321.5)
            assert reading.values["voltage_v"] == pytest.approx(400.1)
            written = await server.async_getValues(1, 3, 0, 2)
            assert list(written) == codec.encode(PROFILE.points["power_w"], 4321.5)
    finally:
        await server.shutdown()


async def test_slow_points_are_read_less_often():
    profile = replace(
        PROFILE, points={**PROFILE.points, "current_a": replace(PROFILE.points["current_a"], poll="slow")}
    )
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings, profile=profile, poll_s=0.01)):
            for _ in range(12):
                await readings.until()
        slow = [i for i, reading in enumerate(readings) if "current_a" in reading.values]
        assert slow[:2] == [0, 10]


# ---- a device that misbehaves ----


def bend(**changes):
    """A fault that changes the reply to reads of holding registers from address 0."""

    def fault(tid, unit_id, pdu, frame):
        if struct.unpack(">BH", pdu[:3]) != (3, 0):
            return frame
        return Device.frame(
            changes.get("tid", tid), changes.get("unit", unit_id), changes.get("pdu", frame[7:])
        )

    return fault


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (bend(pdu=bytes([4, 10]) + bytes(10)), "asked with function 3, answered with 4"),
        (bend(pdu=bytes([3, 20]) + bytes(20)), "5 asked, 10 came"),
        (bend(pdu=bytes([3, 2]) + bytes(2)), "5 asked, 1 came"),
        (bend(pdu=bytes([3, 4]) + bytes(10)), "10 bytes came and are said to be 4"),
        (bend(pdu=bytes([3, 0, 0, 0, 5])), "the question itself came back: an echo"),
        (bend(unit=9), "asked unit 1, the answer is of unit 9"),
        (bend(pdu=bytes([0x83, 4])), "device failure"),
        (bend(pdu=bytes([0x83, 99])), "exception 99"),
    ],
)
async def test_a_wrong_reply_costs_its_own_points_and_no_others(fault, sentence):
    """The library takes the first three of these for good."""
    async with Device() as device:
        device.fault = fault
        device.registers[1][10] = 500
        readings = Readings()
        async with running(device, unit(readings)):
            reading = await readings.until()
            assert sentence in reading.fault
            assert reading.link == "up"
            assert reading.values == {"power_w": None, "voltage_v": None, "current_a": 5.0, "running": 0.0}
            device.fault = None
            await readings.until(healthy)


async def test_an_answer_to_another_transaction_is_not_taken_and_named():
    """The library takes transaction 0 for any."""
    async with Device() as device:
        device.fault = bend(tid=0)
        readings = Readings()
        async with running(device, unit(readings)):
            reading = await readings.until()
            assert (reading.link, set(reading.values.values())) == ("down", {None})
            assert "no answer within 0.15 s (an answer to transaction 0 came)" in reading.fault


async def test_a_refused_register_does_not_stop_the_points_that_shared_its_read():
    async with Device() as device:
        device.refused = {(3, 2)}  # in the gap between power and voltage
        device.registers[1][4] = 2305
        readings = Readings()
        async with running(device, unit(readings)):
            assert "illegal data address" in (await readings.until()).fault
            reading = await readings.until(healthy)
        assert reading.values["voltage_v"] == pytest.approx(230.5)


async def test_a_register_that_is_always_refused_is_named_and_stands_alone():
    async with Device() as device:
        device.refused = {(3, 4)}
        device.registers[1][0:2] = [0x459C, 0x4000]
        readings = Readings()
        async with running(device, unit(readings)):
            await readings.until()
            reading = await readings.until()
        assert reading.values["power_w"] == 5000.0
        assert reading.values["voltage_v"] is None
        assert "holding 4..4: illegal data address" in reading.fault


async def test_nan_is_no_value_and_names_its_point():
    async with Device() as device:
        device.registers[1][0:2] = [0x7FC0, 0]
        readings = Readings()
        async with running(device, unit(readings)):
            reading = await readings.until()
        assert reading.values["power_w"] is None
        assert reading.values["voltage_v"] == 0.0
        assert reading.fault == "power_w: not present or implausible"


async def test_p05_a_late_reply_never_answers_the_next_request():
    """The reply to poll n says n; each is held back beyond the wait, every second time."""
    async with Device() as device:
        count = itertools.count(1)
        sent = {}

        async def fault(tid, unit_id, pdu, frame):
            n = next(count)
            sent[tid] = n
            if n % 2:
                await asyncio.sleep(0.08)
            return Device.frame(tid, unit_id, bytes([3, 2]) + n.to_bytes(2, "big"))

        device.fault = fault
        readings = Readings()
        profile = replace(PROFILE, reply_wait_max_s=0.05)
        async with running(device, unit(readings, profile=profile, points=("current_a",))):
            for _ in range(3):
                reading = await readings.until(healthy)
                assert round(reading.values["current_a"] * 100) == next(reversed(sent.values()))
        assert any(r.link == "down" and "no answer within 0.05 s" in r.fault for r in readings)


async def test_a_silent_device_is_given_up_and_found_again():
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings)):
            await readings.until(healthy)
            device.fault = lambda *_: None
            down = await readings.until(lambda r: r.link == "down")
            assert set(down.values.values()) == {None}
            assert "is the unit on, and its id right?" in down.fault
            anew = await readings.until(lambda r: "connecting anew" in r.fault)
            assert anew.link == "down"
            device.fault = None
            await readings.until(healthy)
        assert device.connections >= 2


async def test_a_connection_closed_in_the_middle_of_a_request_is_known_at_once():
    """The library would wait out its time-out; this profile's wait is a minute."""
    async with Device() as device:

        def hang_up_once(*_):
            device.fault = None
            raise ConnectionResetError

        readings = Readings()
        device.fault = hang_up_once
        async with running(device, unit(readings, profile=replace(PROFILE, reply_wait_max_s=60))):
            lost = await readings.until(within_s=1)
            assert lost.link == "down"
            assert "closed the connection" in lost.fault
            await readings.until(healthy)


async def test_garbage_instead_of_a_reply_ends_in_a_new_connection():
    async with Device() as device:
        readings = Readings()
        device.fault = lambda *_: b"HTTP/1.1 400 Bad Request\r\n"
        async with running(device, unit(readings)):
            assert (await readings.until()).link == "down"
            device.fault = None
            await readings.until(healthy)


async def test_a_closed_port_is_named_and_found_when_it_opens():
    device = Device()
    await device.start()
    await device.stop()
    readings = Readings()
    async with running(device, unit(readings)):
        refused = await readings.until()
        assert (
            refused.fault == f"connection refused by 127.0.0.1:{device.port}: is the device on, is Modbus on?"
        )
        assert (refused.link, set(refused.values.values())) == ("down", {None})
        await device.start(device.port)
        await readings.until(healthy)
        await device.stop()
        await readings.until(lambda r: r.link == "down")
        await device.start(device.port)
        await readings.until(healthy)
    await device.stop()


async def test_a_device_that_accepts_and_closes_is_not_knocked_at_without_pause():
    async with Device() as device:
        device.fault = hang_up
        readings = Readings()
        async with running(device, unit(readings)):
            await asyncio.sleep(0.5)
        assert device.connections <= 5


async def test_frozen_registers_keep_the_moment_of_their_last_change():
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings)):
            await readings.until(lambda r: r.unchanged_since_s < r.taken_at_s)
            since_s = readings[-1].unchanged_since_s
            await readings.until()
            assert readings[-1].unchanged_since_s == since_s == readings[0].taken_at_s
            device.registers[1][5] = 1  # no point reads it
            device.registers[1][10] += 1  # the last digit of one point is enough
            moved = await readings.until(lambda r: r.unchanged_since_s > since_s)
            assert moved.unchanged_since_s == moved.taken_at_s


# ---- several units behind one connection ----


async def test_p03_a_silent_unit_costs_the_others_one_wait_and_is_asked_less_and_less():
    async with Device() as device:
        device.fault = lambda _tid, unit_id, _pdu, frame: None if unit_id == 2 else frame
        good, dead = Readings(), Readings()
        units = [unit(good, "a", unit_id=1), unit(dead, "b", unit_id=2), unit(good, "c", unit_id=3)]
        loop = asyncio.get_running_loop()
        async with running(device, *units):
            start_s = loop.time()
            arrivals_s = []
            while loop.time() < start_s + 1.2:
                await good.until(healthy)
                arrivals_s.append(loop.time())
        assert device.connections == 1
        assert all(reading.link == "up" for reading in good)
        assert {r.link for r in dead} == {"down"}
        assert len(dead) <= 6  # 60 polls were due
        longest_s = max(b - a for a, b in itertools.pairwise(arrivals_s))
        assert longest_s < 2 * PROFILE.reply_wait_max_s


async def test_one_living_unit_keeps_the_connection_of_many_dead_ones():
    async with Device() as device:
        device.fault = lambda _tid, unit_id, _pdu, frame: frame if unit_id == 1 else None
        good, dead = Readings(), Readings()
        profile = replace(PROFILE, reply_wait_max_s=0.02)
        units = [unit(dead, f"dead {n}", unit_id=n, profile=profile) for n in range(2, 7)]
        async with running(device, unit(good, "alive", poll_s=0.3), *units):
            for _ in range(6):
                await good.until(healthy)
        assert device.connections == 1
        assert len(dead) > len(units)  # each once, and some again


async def test_a_gateway_that_cannot_reach_a_unit_says_so_of_that_unit_alone():
    async with Device() as device:
        device.fault = lambda tid, unit_id, pdu, frame: (
            Device.frame(tid, 2, bytes([pdu[0] | 0x80, 11])) if unit_id == 2 else frame
        )
        good, dead = Readings(), Readings()
        async with running(device, unit(good, "a"), unit(dead, "b", unit_id=2)):
            down = await dead.until()
            await good.until(healthy)
            await asyncio.sleep(0.3)
        assert (down.link, down.fault) == (
            "down",
            "b: reading holding 0..4: gateway target does not respond: is the unit on, and its id right?",
        )
        assert device.connections == 1


async def test_p13_the_line_rests_between_reply_and_request():
    profile = replace(PROFILE, min_gap_s=0.03)
    times_s = []
    async with Device() as device:

        def stamp(_tid, _unit, _pdu, frame):
            times_s.append(asyncio.get_running_loop().time())
            return frame

        device.fault = stamp
        readings = Readings()
        async with running(device, unit(readings, profile=profile), unit(readings, "b", unit_id=2)):
            while len(times_s) < 8:
                await readings.until()
    assert min(b - a for a, b in itertools.pairwise(times_s)) >= 0.029


async def test_p13_a_lost_frame_is_noise_and_a_silence_is_a_silence():
    """One unanswered request of a unit on a shared line: asked again at once, not in ten seconds."""
    async with Device() as device:
        readings, other = Readings(), Readings()
        slow = replace(PROFILE, reply_wait_max_s=0.5)  # a dead unit would be asked every ten seconds
        units = [unit(readings, profile=slow), unit(other, "b", unit_id=2, profile=slow)]
        async with running(device, *units):
            await readings.until(healthy)
            lost = iter([None])
            device.fault = lambda _tid, unit_id, _pdu, frame: next(lost, frame) if unit_id == 1 else frame
            await readings.until(lambda r: r.link == "down")
            await readings.until(healthy, within_s=1)


# ---- writes ----


async def test_a_write_is_read_back_on_the_wire():
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings, poll_s=60, writes=RULES)) as link:
            await readings.until(healthy)
            device.requests.clear()
            await link.write("meter", "power_w", 5000.0)
            await link.write("meter", "voltage_v", 230.5)
            await link.write("meter", "running", 1.0)
        assert device.registers[1][0:5] == [0x459C, 0x4000, 0, 0, 2305]
        assert device.coils[3] == 1
        assert device.requests == [
            (1, 16, 0, 2), (1, 3, 0, 2), (1, 6, 4, 2305), (1, 3, 4, 1), (1, 5, 3, 0xFF00), (1, 1, 3, 1),
        ]  # fmt: skip


async def test_a_write_that_does_not_take_is_an_error():
    async with Device() as device:
        readings = Readings()
        device.fault = lambda _tid, _unit, pdu, frame: (
            device.registers[1].__setitem__(4, 7) or frame if pdu[0] == 6 else frame
        )
        async with running(device, unit(readings, writes=RULES)) as link:
            await readings.until(healthy)
            with pytest.raises(DeviceError, match=r"wrote \[2305\], reads back \[7\]; local mode"):
                await link.write("meter", "voltage_v", 230.5)


async def test_writes_that_must_not_be_are_refused_before_the_wire():
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings, poll_s=60, writes=RULES)) as link:
            await readings.until(healthy)
            device.requests.clear()
            with pytest.raises(DeviceError, match=r"meter\.current_a: read-only"):
                await link.write("meter", "current_a", 1.0)
            with pytest.raises(DeviceError, match="does not fit"):
                await link.write("meter", "voltage_v", 7000.0)
            with pytest.raises(DeviceError, match="no device 'motor'"):
                await link.write("motor", "power_w", 1.0)
            with pytest.raises(DeviceError, match="no point 'speed'"):
                await link.write("meter", "speed", 1.0)
        assert device.requests == []


async def test_a_write_to_a_lost_or_silent_device_fails_within_its_wait():
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings, poll_s=60, writes=RULES)) as link:
            await readings.until(healthy)
            device.fault = lambda *_: None
            with pytest.raises(DeviceError, match="no answer within"):
                await link.write("meter", "voltage_v", 1.0)
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            with pytest.raises(DeviceError, match="not connected"):
                await link.write("meter", "voltage_v", 1.0)


# ---- construction ----


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"points": ("powr_w",)}, "no point 'powr_w'"),
        ({"unit_id": 0}, "unit id 0; use 1 to 247"),
        ({"poll_s": 0}, "poll_s 0"),
        ({"profile": load_profile("opcua_cdu")}, "speaks opcua, not modbus"),
    ],
)
async def test_a_unit_that_cannot_work_is_refused_when_built(fields, sentence):
    with pytest.raises(ProfileError, match=sentence):
        ModbusLink(Tcp("127.0.0.1", 1), [unit(Readings(), **fields)], clock=lambda: 0.0)


async def test_two_units_of_one_name_and_no_units_are_refused():
    with pytest.raises(ProfileError, match="named twice"):
        ModbusLink(Tcp("127.0.0.1", 1), [unit(Readings()), unit(Readings())], clock=lambda: 0.0)
    with pytest.raises(ProfileError, match="no units"):
        ModbusLink(Tcp("127.0.0.1", 1), [], clock=lambda: 0.0)


def test_pauses_grow_are_bounded_and_differ():
    assert all(0.05 <= retry_delay_s(0) <= 0.1 for _ in range(20))
    assert all(1.0 <= retry_delay_s(n) <= 2.0 for n in (6, 50, 10_000))
    assert len({retry_delay_s(5) for _ in range(20)}) > 10
