"""Commands over Modbus: what may leave, in which order, and what keeps it alive or ends it."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
from modbus_peers import PROFILE, RULES, Device, Readings, healthy, running, unit
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from protocols import codec
from protocols.modbus import ModbusLink, Tcp
from protocols.modbus import orders as orders_module
from protocols.modbus.questions import READ_CODES, write_question
from protocols.profile import Block, Control, Heartbeat, Identity, Point, ProfileError, Reversion, Setting
from protocols.reading import DeviceError, WriteRule

WRITES = (5, 6, 15, 16)


def written(device):
    return [request[1:] for request in device.requests if request[1] in WRITES]


@contextlib.asynccontextmanager
async def commanded(device, **fields):
    """A link that polls seldom, after its first reading."""
    readings = Readings()
    one = unit(readings, **({"poll_s": 60, "writes": RULES} | fields))
    async with running(device, one) as link:
        await readings.until(healthy)
        device.requests.clear()
        yield link


# ---- what may leave ----


@pytest.mark.parametrize("point", list(PROFILE.points))
async def test_p11_a_link_without_rules_never_sends_a_write(point):
    """Whatever the profile allows and whoever asks: no function code that writes is seen on the wire."""
    async with Device() as device, commanded(device, writes={}) as link:
        with pytest.raises(DeviceError, match="nothing was sent"):
            await link.write("meter", point, 1.0)
        await link.release("meter")
        assert written(device) == []


async def test_p11_not_even_its_own_wire_would_send_one_for_it():
    async with Device() as device, commanded(device, writes={}) as link:
        question = write_question("holding", 4, [1], "auto", "voltage_v")
        with pytest.raises(DeviceError, match="this link may not write"):
            await link._asker.wire.ask(1, question, 1.0)
        assert written(device) == []


async def test_p11_a_rule_for_one_point_allows_no_other():
    async with Device() as device:
        async with commanded(device, writes={"voltage_v": RULES["voltage_v"]}) as link:
            await link.write("meter", "voltage_v", 230.0)
            with pytest.raises(DeviceError, match=r"meter\.power_w: nobody may write it here"):
                await link.write("meter", "power_w", 1.0)
        assert written(device) == [(6, 4, 2300)]


async def test_p11_the_function_that_sends_writes_asks_the_rules_itself():
    """Whoever calls it: a restored command, the control block, or somebody's next feature."""
    async with Device() as device:
        async with commanded(device, writes={"voltage_v": WriteRule(200, 240)}) as link:
            put, station = link._commands._put, link._stations["meter"]
            for name, value in (("power_w", 1.0), ("voltage_v", 250.0), ("current_a", 1.0)):
                for by_us in (False, True):
                    with pytest.raises(DeviceError, match="nothing was sent"):
                        await put(station, PROFILE.points[name], value, None, None, by_us=by_us)
        assert written(device) == []


async def test_a_rule_bounds_the_value_and_its_rate():
    rule = WriteRule(200.0, 240.0, rate_per_s=5.0)
    async with Device() as device:
        device.registers[1][4] = 2300
        async with commanded(device, writes={"voltage_v": rule}) as link:
            with pytest.raises(DeviceError, match="250 is outside 200 to 240"):
                await link.write("meter", "voltage_v", 250.0)
            with pytest.raises(DeviceError, match="outside"):
                await link.write("meter", "voltage_v", float("nan"))
            with pytest.raises(DeviceError, match=r"from 230 to 236 .* 5 per s, so 5 now; ramp it"):
                await link.write("meter", "voltage_v", 236.0)
            assert (await link.write("meter", "voltage_v", 234.0)).was == 230.0
            with pytest.raises(DeviceError, match="ramp it"):
                await link.write("meter", "voltage_v", 238.0)
        assert written(device) == [(6, 4, 2340)]


def test_a_rule_for_a_point_that_its_profile_makes_read_only_is_refused_when_built():
    with_rule = unit(Readings(), writes={"current_a": WriteRule(0, 1)})
    with pytest.raises(
        ProfileError, match="writes of current_a are allowed and its profile makes it read-only"
    ):
        ModbusLink(Tcp("127.0.0.1", 1), [with_rule], clock=lambda: 0.0)


# ---- what a write says ----


async def test_a_write_tells_what_was_what_is_and_that_it_is_so():
    async with Device() as device:
        device.registers[1][4] = 2200
        async with commanded(device) as link:
            done = await link.write("meter", "voltage_v", 230.04)
        assert (done.was, done.value, done.confirmed) == (220.0, 230.0, True)


@pytest.mark.parametrize("word_order", ["big", "little"])
@pytest.mark.parametrize("byte_order", ["big", "little"])
async def test_p14_a_write_of_several_registers_keeps_the_order_of_the_read(word_order, byte_order):
    """And all of them leave in one request, read by an independent server."""
    point = replace(PROFILE.points["power_w"], word_order=word_order, byte_order=byte_order)
    profile = replace(PROFILE, points={"power_w": point})
    data = [SimData(0, values=0, count=20, datatype=DataType.REGISTERS)]
    server = ModbusTcpServer(SimDevice(id=1, simdata=data), address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    where = Tcp("127.0.0.1", server.transport.sockets[0].getsockname()[1])
    readings = Readings()
    try:
        one = unit(readings, profile=profile, writes={"power_w": RULES["power_w"]})
        async with running(None, one, transport=where) as link:
            await readings.until(healthy)
            assert (await link.write("meter", "power_w", 4321.5)).value == 4321.5
            await readings.until(lambda r: r.values["power_w"] == 4321.5)
            assert list(await server.async_getValues(1, 3, 0, 2)) == codec.encode(point, 4321.5)
    finally:
        await server.shutdown()


async def test_the_write_function_is_the_one_that_the_profile_names():
    points = PROFILE.points | {"voltage_v": replace(PROFILE.points["voltage_v"], write="multiple")}
    async with Device() as device:
        async with commanded(device, profile=replace(PROFILE, points=points)) as link:
            await link.write("meter", "voltage_v", 230.0)
        assert written(device) == [(16, 4, 1)]


def test_several_registers_never_leave_by_a_single_write():
    with pytest.raises(ValueError, match="2 registers do not fit a single write"):
        write_question("holding", 0, [1, 2], "single", "power_w")
    assert write_question("coil", 3, [1], "multiple", "x").pdu == bytes((15, 0, 3, 0, 1, 1, 1))


async def test_a_point_in_a_shared_register_leaves_its_neighbours_alone():
    points = {"mode": Point(name="mode", unit="count", address=4, type="u16", mask=0x0F00, access="rw")}
    async with Device() as device:
        device.registers[1][4] = 0xABCD
        profile = replace(PROFILE, points=points)
        async with commanded(device, profile=profile, writes={"mode": WriteRule(0, 15)}) as link:
            done = await link.write("meter", "mode", 5)
        assert device.registers[1][4] == 0xA5CD
        assert (done.was, done.value) == (11.0, 5.0)


async def test_a_command_that_resets_itself_is_acknowledged_but_not_confirmed():
    points = {
        **PROFILE.points,
        "reset": Point(name="reset", unit="count", address=6, type="u16", access="w", read_back=False),
    }
    async with Device() as device:
        profile = replace(PROFILE, points=points)
        async with commanded(device, profile=profile, writes={"reset": WriteRule(0, 1)}) as link:
            assert not (await link.write("meter", "reset", 1)).confirmed
        assert device.requests == [(1, 6, 6, 1)]


async def test_a_register_that_wears_out_is_written_seldom_and_never_twice_the_same():
    async with Device() as device:
        async with commanded(device, profile=replace(PROFILE, write_gap_s=0.3)) as link:
            await link.write("meter", "voltage_v", 230.0)
            with pytest.raises(DeviceError, match=r"bears one write per 0.3 s; nothing was sent"):
                await link.write("meter", "voltage_v", 231.0, wait_max_s=0.05)
            assert (await link.write("meter", "voltage_v", 230.0)).confirmed
            await link.write("meter", "voltage_v", 231.0)
        assert written(device) == [(6, 4, 2300), (6, 4, 2310)]


async def test_an_echo_of_something_else_is_no_confirmation():
    async with Device() as device, commanded(device) as link:
        device.fault = lambda tid, unit_id, pdu, frame: (
            Device.frame(tid, unit_id, pdu[:4] + b"\x63") if pdu[0] == 6 else frame
        )
        with pytest.raises(DeviceError, match=r"confirmed with .* check what the device did"):
            await link.write("meter", "voltage_v", 230.0)


# ---- in which order ----


async def test_p07_newest_wins_and_nothing_old_is_carried_out_late():
    """Ten writes to a device that hangs: the first is under way, the last waits, eight are told at once."""
    async with Device() as device:
        async with commanded(device, profile=replace(PROFILE, reply_wait_max_s=5)) as link:
            gate = asyncio.Event()

            async def held(frame):
                await gate.wait()
                return frame

            device.fault = lambda _tid, _unit, _pdu, frame: held(frame)
            values = [200.0 + n for n in range(10)]
            tasks = []
            for value in values:
                tasks.append(asyncio.create_task(link.write("meter", "voltage_v", value, wait_max_s=0.1)))
                await asyncio.sleep(0.005)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum("replaced by a newer write" in str(o) for o in outcomes) == 8
            assert "0.1 s are over; not confirmed: it may be in force or not" in str(outcomes[0])
            assert "0.1 s are over; nothing was sent: the line is busy" in str(outcomes[-1])
            gate.set()
            await asyncio.sleep(0.3)
        assert written(device) == [(6, 4, 2000)]


async def test_p07_the_queue_is_bounded(monkeypatch):
    monkeypatch.setattr(orders_module, "ORDERS_MAX", 1)
    async with Device() as device:
        async with commanded(device) as link:
            first = asyncio.create_task(link.write("meter", "voltage_v", 230.0))
            second = asyncio.create_task(link.write("meter", "power_w", 1.0))
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert outcomes[0].confirmed
        assert "1 writes wait already; nothing was sent" in str(outcomes[1])


async def test_a_write_goes_before_the_reads_that_are_due():
    """Three reads a round, each held for 50 ms: the write goes between two of them."""
    async with Device() as device:

        async def slow(frame):
            await asyncio.sleep(0.05)
            return frame

        readings = Readings()
        async with running(device, unit(readings, poll_s=0.05, writes=RULES)) as link:
            await readings.until(healthy)
            device.fault = lambda _tid, _unit, _pdu, frame: slow(frame)
            await readings.until(healthy)
            device.requests.clear()
            await link.write("meter", "voltage_v", 230.0)
            codes = [request[1] for request in device.requests]
            assert codes.index(6) <= 1


async def test_a_flood_of_writes_does_not_blind_us():
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings, poll_s=0.05, writes=RULES)) as link:
            await readings.until(healthy)

            async def flood(point):
                for n in range(10_000):
                    with contextlib.suppress(DeviceError):
                        await link.write("meter", point, float(n % 2))

            floods = [asyncio.create_task(flood(point)) for point in RULES]
            before = len(readings)
            await asyncio.sleep(0.5)
            assert len(readings) - before >= 5
            for task in floods:
                task.cancel()
            await asyncio.gather(*floods, return_exceptions=True)


async def test_a_caller_that_goes_away_takes_its_write_along():
    async with Device() as device:
        async with commanded(device) as link:
            task = asyncio.create_task(link.write("meter", "voltage_v", 230.0))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.1)
        assert written(device) == []


async def test_p12_a_link_that_runs_again_writes_and_one_that_does_not_says_so():
    async with Device() as device:
        readings = Readings()
        one = unit(readings, writes=RULES)
        async with running(device, one) as link:
            await readings.until(healthy)
            await link.write("meter", "voltage_v", 230.0)
        with pytest.raises(DeviceError, match="not connected: not running; nothing was sent"):
            await link.write("meter", "voltage_v", 231.0)
        task = asyncio.create_task(link.run())
        await readings.until(healthy)
        assert (await link.write("meter", "voltage_v", 232.0)).confirmed
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert written(device) == [(6, 4, 2300), (6, 4, 2320)]


# ---- what keeps a command alive ----

CONTROLLED = replace(
    PROFILE,
    blocks=(Block(table="holding", first=0, last=19), Block(table="coil", first=0, last=9)),
    points={
        "limit_w": Point(name="limit_w", unit="W", address=0, type="u16", access="rw"),
        "mode": Point(name="mode", unit="count", address=1, type="u16", access="rw"),
        "beat": Point(name="beat", unit="count", address=2, type="u16", access="rw", read_back=False),
        "timer_s": Point(name="timer_s", unit="s", address=3, type="u16", access="rw"),
        "fallback_w": Point(name="fallback_w", unit="W", address=4, type="u16", access="rw"),
        "enable": Point(name="enable", unit="count", address=5, type="u16", access="rw"),
        "remote": Point(name="remote", unit="count", address=6, type="u16"),
    },
    control=Control(
        requires=(Identity(point="remote", equals=1),),
        arm=(Setting(point="mode", value=3),),
        release=(Setting(point="mode", value=0), Setting(point="enable", value=0)),
        heartbeat=Heartbeat(point="beat", period_s=0.1, wraps_at=3),
        reversion=Reversion(
            timer_point="timer_s", seconds=1, value_point="fallback_w", value=500, enable_point="enable"
        ),
    ),
)  # fmt: skip
LIMIT = {"limit_w": WriteRule(0, 10_000)}
ARMS = [(6, 1, 3), (6, 4, 500), (6, 3, 1), (6, 5, 1)]


@contextlib.asynccontextmanager
async def controlled(device, readings, remote=1, **fields):
    device.registers[1][6] = remote
    one = unit(readings, **({"profile": CONTROLLED, "poll_s": 0.1, "writes": LIMIT} | fields))
    async with running(device, one) as link:
        await readings.until(healthy)
        yield link


def of(device, *addresses):
    return [request for request in written(device) if request[1] in addresses]


async def test_no_command_no_trace_and_the_first_one_arms_in_order():
    async with Device() as device, controlled(device, Readings()) as link:
        await asyncio.sleep(0.3)
        assert written(device) == []
        await link.write("meter", "limit_w", 4000)
        assert written(device)[:5] == [*ARMS, (6, 0, 4000)]


async def test_while_a_command_stands_the_heart_beats_and_the_timer_is_written_anew():
    async with Device() as device, controlled(device, Readings()) as link:
        await link.write("meter", "limit_w", 4000)
        await asyncio.sleep(1.2)
        beats = [value for _, _, value in of(device, 2)]
        assert len(beats) >= 9
        assert beats[:8] == [1, 2, 3, 0, 1, 2, 3, 0]
        assert len(of(device, 3)) >= 3  # armed, then every third of a second
        await link.write("meter", "limit_w", 4100)
        assert len(of(device, 1)) == 1  # armed once


async def test_a_release_ends_all_of_it():
    async with Device() as device, controlled(device, Readings()) as link:
        await link.write("meter", "limit_w", 4000)
        await link.release("meter")
        assert written(device)[-2:] == [(6, 1, 0), (6, 5, 0)]
        device.requests.clear()
        await asyncio.sleep(0.4)
        assert written(device) == []
        await link.release("meter")  # nothing stands: nothing to do
        assert written(device) == []


async def test_after_a_reconnect_a_standing_command_is_armed_and_told_again():
    async with Device() as device:
        readings = Readings()
        async with controlled(device, readings) as link:
            await link.write("meter", "limit_w", 4000)
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            device.registers[1] = [500, 0, 0, 0, 500, 0, 1, *[0] * 13]  # it has fallen back meanwhile
            device.requests.clear()
            await device.start(device.port)
            await readings.until(lambda r: r.link == "up" and r.values["limit_w"] == 4000, within_s=5)
            assert [w for w in written(device) if w[1] != 2][:5] == [*ARMS, (6, 0, 4000)]


async def test_a_release_while_the_device_is_away_is_made_good_when_it_is_back():
    async with Device() as device:
        readings = Readings()
        async with controlled(device, readings) as link:
            await link.write("meter", "limit_w", 4000)
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            with pytest.raises(DeviceError, match="not connected"):
                await link.release("meter")
            device.requests.clear()
            await device.start(device.port)
            await readings.until(healthy, within_s=5)
            await asyncio.sleep(0.2)
            assert written(device) == [(6, 1, 0), (6, 5, 0)]


async def test_a_device_in_local_mode_is_not_commanded():
    async with Device() as device, controlled(device, Readings(), remote=0) as link:
        with pytest.raises(DeviceError, match=r"remote reads 0.0, a command needs 1.*local mode"):
            await link.write("meter", "limit_w", 4000)
        assert written(device) == []


async def test_what_was_armed_for_a_command_that_failed_is_released():
    async with Device() as device:
        device.refused = {(6, 0)}
        readings = Readings()
        async with controlled(device, readings) as link:
            with pytest.raises(DeviceError, match="illegal data address"):
                await link.write("meter", "limit_w", 4000)
            await readings.until(lambda r: "not released yet" in r.fault)
            await readings.until(healthy)
            assert written(device)[-2:] == [(6, 1, 0), (6, 5, 0)]


async def test_upkeep_that_fails_is_a_fault_in_the_readings_until_it_works_again():
    async with Device() as device:
        readings = Readings()
        async with controlled(device, readings) as link:
            await link.write("meter", "limit_w", 4000)
            device.refused = {(6, 2)}
            bad = await readings.until(lambda r: "commands not kept alive" in r.fault)
            assert "illegal data address" in bad.fault
            assert bad.values["limit_w"] == 4000
            device.refused = set()
            await readings.until(healthy)


async def test_rules_name_commands_only_and_the_control_block_writes_nothing_else():
    """`mode` is written to arm; a caller may not write it."""
    async with Device() as device, controlled(device, Readings()) as link:
        with pytest.raises(DeviceError, match="nobody may write it here"):
            await link.write("meter", "mode", 1)
        assert written(device) == []


def test_reads_and_writes_share_no_function_code():
    assert not set(READ_CODES.values()) & set(WRITES)
