"""What a plant does to a client: devices exchanged, restarted and half there, commands that come at a bad moment."""

import asyncio
import contextlib
import itertools
import struct
import time
from dataclasses import replace

import pytest
from libmodbus_peer import Bus, needs_libmodbus
from modbus_peers import PROFILE, RULES, Device, Readings, healthy, running, unit
from test_modbus_faults import TWINS
from test_modbus_writes import ARMS, CONTROLLED, LIMIT, controlled, of, written

from protocols.modbus import RtuOverTcp, Tcp, transport_of
from protocols.modbus import link as link_module
from protocols.modbus import station as station_module
from protocols.profile import Block, Identity, Point
from protocols.reading import DeviceError, WriteRule
from tests.protocols.test_sunspec import Device as Map
from tests.protocols.test_sunspec import common, made, registers

SCALED = replace(
    PROFILE,
    blocks=(Block(table="holding", first=0, last=4), Block(table="holding", first=10, last=19)),
    points={
        "power_w": Point(name="power_w", unit="W", address=0, type="u16", scale_factor="sf", access="rw"),
        "sf": Point(name="sf", unit="count", address=10, type="i16"),
    },
)


def silent(*_):
    """Instead of an answer."""


async def until(true):
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110  (a peer's state is no event)
            await asyncio.sleep(0.005)


# ---- commands that stand ----

TWO = replace(
    CONTROLLED,
    points=CONTROLLED.points
    | {"cap_w": Point(name="cap_w", unit="W", address=8, type="u16", access="rw")},
)  # fmt: skip
BOTH = LIMIT | {"cap_w": WriteRule(0, 10_000)}
FALLEN_BACK = [500, 0, 0, 0, 500, 0, 1, *[0] * 13]


async def test_a_command_that_could_not_be_restored_is_a_fault_until_it_is():
    """The device takes its arms after the restart and refuses the command: busy still."""
    async with Device() as device:
        readings = Readings()
        async with controlled(device, readings) as link:
            await link.write("meter", "limit_w", 4000)
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            device.registers[1] = list(FALLEN_BACK)
            device.refused = {(6, 0)}
            await device.start(device.port)
            await readings.until(lambda r: "commands not kept alive" in r.fault, within_s=5)
            since = len(readings)
            await asyncio.sleep(1.5)
            assert all(r.fault for r in readings[since:])
            device.refused = set()
            await readings.until(lambda r: healthy(r) and r.values["limit_w"] == 4000, within_s=5)


async def test_a_command_that_cannot_be_restored_does_not_cost_the_others():
    async with Device() as device:
        readings = Readings()
        async with controlled(device, readings, profile=TWO, writes=BOTH) as link:
            await link.write("meter", "limit_w", 4000)
            await link.write("meter", "cap_w", 5000)
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            device.registers[1] = list(FALLEN_BACK)
            device.refused = {(6, 0)}
            await device.start(device.port)
            back = await readings.until(lambda r: r.link == "up" and r.values["cap_w"] == 5000, within_s=5)
            assert back.values["limit_w"] == 500
            await readings.until(lambda r: "commands not kept alive" in r.fault)


async def test_a_new_command_right_after_a_reconnect_does_not_make_the_others_forgotten():
    async with Device() as device:
        readings = Readings()
        profile = replace(TWO, pause_after_connect_s=0.2)
        async with controlled(device, readings, profile=profile, writes=BOTH) as link:
            await link.write("meter", "limit_w", 4000)
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            device.registers[1] = list(FALLEN_BACK)
            connections = device.connections
            await device.start(device.port)
            await until(lambda: device.connections > connections)
            await asyncio.sleep(0.05)
            await link.write("meter", "cap_w", 5000)
            await readings.until(lambda r: r.link == "up" and r.values["limit_w"] == 4000, within_s=2)


async def test_a_unit_that_restarts_behind_a_gateway_that_stays_is_told_its_commands_again():
    async with Device() as device:
        readings, others = Readings(), Readings()
        device.registers[1][6] = 1
        one = unit(readings, profile=CONTROLLED, poll_s=0.1, writes=LIMIT)
        other = unit(others, "neighbour", unit_id=2, poll_s=0.1)
        async with running(device, one, other) as link:
            await readings.until(healthy)
            await link.write("meter", "limit_w", 4000)
            device.fault = lambda _tid, unit_id, _pdu, frame: None if unit_id == 1 else frame
            await readings.until(lambda r: r.link == "down")
            await readings.until(lambda r: r.link == "down")
            device.registers[1] = list(FALLEN_BACK)
            device.fault = None
            await readings.until(lambda r: healthy(r) and r.values["limit_w"] == 4000, within_s=5)
        assert device.connections == 1


async def test_a_release_ends_a_command_that_is_under_way():
    """Whoever releases after somebody's write began has the last word."""
    async with Device() as device:
        readings = Readings()

        async def slow(_tid, _unit, pdu, frame):
            if pdu[:3] == bytes((6, 0, 0)):
                await asyncio.sleep(0.1)
            return frame

        device.fault = slow
        async with controlled(device, readings) as link:
            writing = asyncio.create_task(link.write("meter", "limit_w", 4000))
            await until(lambda: of(device, 0))
            await link.release("meter")
            with contextlib.suppress(DeviceError):
                await writing
            await asyncio.sleep(0.3)
            assert written(device)[-2:] == [(6, 1, 0), (6, 5, 0)]


async def test_a_command_whose_caller_was_told_that_it_failed_does_not_stay_armed():
    async with Device() as device:
        readings = Readings()

        async def slow(_tid, _unit, pdu, frame):
            if pdu[:3] == bytes((6, 0, 0)):
                await asyncio.sleep(0.1)
            return frame

        device.fault = slow
        async with controlled(device, readings) as link:
            with pytest.raises(DeviceError, match="it may be in force or not"):
                await link.write("meter", "limit_w", 4000, wait_max_s=0.05)
            await readings.until(lambda r: "not released yet" in r.fault)
            await readings.until(healthy)
            assert written(device)[-2:] == [(6, 1, 0), (6, 5, 0)]


async def test_a_heart_beats_between_the_reads_of_a_slow_round():
    async with Device() as device:
        readings = Readings()
        profile = replace(CONTROLLED, one_request_per_point=True)
        async with controlled(device, readings, profile=profile, poll_s=1.0) as link:
            await link.write("meter", "limit_w", 4000)

            async def slow(_tid, _unit, _pdu, frame):
                await asyncio.sleep(0.05)
                return frame

            device.fault = slow
            loop = asyncio.get_running_loop()
            beats = []
            for _ in range(100):
                before = len(of(device, 2))
                await asyncio.sleep(0.02)
                if len(of(device, 2)) > before:
                    beats.append(loop.time())
            assert max(b - a for a, b in itertools.pairwise(beats)) < 0.3


async def test_what_was_not_answered_is_not_delivered_after_its_connection_was_given_up():
    """A kernel goes on delivering what a closed socket has not sent yet: a command of a minute ago."""
    ended = asyncio.get_running_loop().create_future()

    async def mute(reader, writer):
        try:
            while await reader.read(100):
                pass
            ended.set_result("closed")
        except ConnectionResetError:
            ended.set_result("reset")
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    readings = Readings()
    async with running(None, unit(readings), transport=Tcp("127.0.0.1", server.sockets[0].getsockname()[1])):
        async with asyncio.timeout(5):
            assert await ended == "reset"
    server.close()


async def test_a_value_that_is_there_already_is_not_in_force_before_it_is_armed():
    """A register that wears out is spared; what makes the device follow it is not."""
    async with Device() as device:
        device.registers[1][0] = 4000
        readings = Readings()
        profile = replace(CONTROLLED, write_gap_s=60)
        async with controlled(device, readings, profile=profile) as link:
            assert (await link.write("meter", "limit_w", 4000)).confirmed
            assert [w for w in written(device) if w[1] != 2] == ARMS
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            device.requests.clear()
            await device.start(device.port)
            await readings.until(healthy, within_s=5)
            await asyncio.sleep(0.3)
            assert {w for w in written(device) if w[1] != 2} == {(6, 3, 1)}  # only what ran down by itself


async def test_a_standing_command_goes_back_to_its_value_no_faster_than_its_rule_allows():
    async with Device() as device:
        device.registers[1][0] = 4000
        readings = Readings()
        rules = {"limit_w": WriteRule(0, 10_000, rate_per_s=2000)}
        async with controlled(device, readings, writes=rules) as link:
            await link.write("meter", "limit_w", 4000)
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            device.registers[1] = list(FALLEN_BACK)
            device.requests.clear()
            await asyncio.sleep(1)
            await device.start(device.port)
            await readings.until(lambda r: "on its way back to 4000, at 2500" in r.fault, within_s=5)
            await readings.until(lambda r: healthy(r) and r.values["limit_w"] == 4000, within_s=5)
            assert of(device, 0) == [(6, 0, 2500), (6, 0, 4000)]


# ---- values that are written ----


async def test_rounding_never_leaves_the_range_of_a_rule():
    """10.06 V in steps of 0.1 V would be 10.1 V, and 0.1 W as a float32 is a little more than 0.1 W."""
    rules = {"voltage_v": WriteRule(9.96, 10.06), "power_w": WriteRule(0.0, 0.1)}
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings, writes=rules)) as link:
            await readings.until(healthy)
            assert (await link.write("meter", "voltage_v", 10.06)).value == 10.0
            assert (await link.write("meter", "voltage_v", 9.96)).value == 10.0
            assert (await link.write("meter", "power_w", 0.1)).value <= 0.1
            device.requests.clear()
            for wrong in (float("nan"), float("inf"), -float("inf"), 10.0601):
                with pytest.raises(DeviceError, match="nothing was sent"):
                    await link.write("meter", "voltage_v", wrong)
            assert written(device) == []


async def test_a_write_rests_on_the_scale_factor_of_this_moment():
    """Somebody has set the device to another scale since it was read."""
    async with Device() as device:
        device.registers[1][10] = 0xFFFF
        readings = Readings()
        one = unit(readings, profile=SCALED, poll_s=60, writes={"power_w": WriteRule(0, 10_000)})
        async with running(device, one) as link:
            await readings.until(healthy)
            device.registers[1][10] = 1
            await link.write("meter", "power_w", 500.0)
            assert device.registers[1][0] == 50


# ---- values that are read ----


async def test_a_scale_factor_that_is_refused_leaves_no_value_with_the_old_one():
    async with Device() as device:
        device.registers[1][0] = 7
        device.registers[1][10] = 2
        readings = Readings()
        async with running(device, unit(readings, profile=SCALED)):
            assert (await readings.until(healthy)).values["power_w"] == 700
            device.refused = {(3, 10)}
            refused = await readings.until(lambda r: r.fault)
            assert refused.values == {"power_w": None, "sf": None}


async def test_points_that_nobody_named_are_read_for_their_factors_and_not_told():
    async with Device() as device:
        device.registers[1][0], device.registers[1][10] = 7, 2
        readings = Readings()
        async with running(device, unit(readings, profile=SCALED, points=("power_w",))):
            assert (await readings.until(healthy)).values == {"power_w": 700}
            device.refused = {(3, 10)}
            assert (await readings.until(lambda r: r.fault)).values == {"power_w": None}


KNOWN = replace(
    PROFILE,
    points=PROFILE.points
    | {"version": Point(name="version", unit="count", address=8, type="u16", poll="once")},
    identity=(Identity(point="version", equals=4),),
)


async def test_a_device_exchanged_between_two_polls_is_noticed_after_one_lost_answer():
    async with Device() as device:
        device.registers[1][8] = 4
        readings = Readings()
        async with running(device, unit(readings, profile=KNOWN)):
            await readings.until(healthy)
            lost = iter((None,))
            device.fault = lambda _tid, _unit, _pdu, frame: next(lost, frame)
            await readings.until(lambda r: r.link == "down")
            device.registers[1][8] = 5
            device.registers[1][4] = 9999
            since = len(readings)
            await readings.until(lambda r: "another device" in r.fault)
            assert all(r.values["voltage_v"] != 999.9 for r in readings[since:])


async def test_a_device_that_is_asked_seldom_is_asked_who_it_is_each_time(monkeypatch):
    """Between two polls that lie far apart it can be exchanged without missing one."""
    monkeypatch.setattr(station_module, "EXCHANGE_S", 0.1)
    async with Device() as device:
        device.registers[1][8] = 4
        readings = Readings()
        one = unit(readings, profile=KNOWN, poll_s=60.0, writes=RULES)
        async with running(device, one, clock=time.monotonic) as link:
            await readings.until(healthy)
            await asyncio.sleep(0.12)
            device.registers[1][8] = 5
            with pytest.raises(DeviceError, match="another device"):
                await link.write("meter", "voltage_v", 230.0)
            assert written(device) == []


async def test_a_busy_device_is_asked_who_it_is_again_at_its_next_poll():
    async with Device() as device:
        device.registers[1][8] = 4
        device.fault = lambda tid, unit_id, _pdu, _frame: Device.frame(tid, unit_id, b"\x83\x06")
        readings = Readings()
        async with running(device, unit(readings, profile=KNOWN, poll_s=0.1)):
            busy = await readings.until()
            assert "device busy" in busy.fault
            assert set(busy.values.values()) == {None}
            device.fault = None
            await readings.until(healthy, within_s=2)


async def test_frozen_registers_are_frozen_across_connections():
    async with Device() as device:
        readings, now = Readings(), [0.0]
        async with running(device, unit(readings), clock=lambda: now[0]):
            await readings.until(healthy)
            for _ in range(3):
                now[0] += 10
                for writer in device._writers:
                    writer.transport.abort()
                await readings.until(lambda r: r.link == "down")
                await readings.until(healthy)
            now[0] += 10
            last = await readings.until(healthy)
            assert last.unchanged_since_s <= 10.0


# ---- SunSpec ----


class Chain(Device):
    """A SunSpec device: a name plate and an inverter, whose registers lie at 40000."""

    def __init__(self, version="1", power_w=500):
        super().__init__()
        self.say(version, power_w)

    def say(self, version, power_w, *, first=()):
        inverter = made(103, {"W": power_w, "W_SF": 0, "St": 4})
        models = [registers(model) for model in (common(Vr=version), *first, inverter)]
        self.map = Map(models).words

    def answer(self, unit, pdu):
        code, address, count = struct.unpack(">BHH", pdu[:5])
        wanted = range(address, address + count)
        self.requests.append((unit, code, address, count))
        if code != 3 or any(at not in self.map for at in wanted):
            return bytes((code | 0x80, 2))
        return struct.pack(f">BB{count}H", 3, 2 * count, *(self.map[at] for at in wanted))


async def test_what_a_sunspec_device_does_not_implement_is_no_fault():
    async with Chain() as device:
        readings = Readings()
        async with running(device, unit(readings, profile=None)):
            seen = await readings.until(healthy)
            assert seen.values["m103_power_w"] == 500
            assert seen.values["m103_dc_power_w"] is None
            assert "m103_dc_power_w" in seen.absent
            assert all((value is None) == (name in seen.absent) for name, value in seen.values.items())
            device.map[40_000 + 2 + 68 + 2 + 36] = 99  # a state that has no name
            assert (await readings.until(lambda r: r.fault)).fault == (
                "m103_state: not present or implausible"
            )


async def test_another_firmware_with_another_chain_is_never_read_by_the_old_one(monkeypatch):
    """It restarted while nobody asked: the same model at the same address, and its registers have moved."""
    monkeypatch.setattr(link_module, "STRANGER_RETRY_S", 0.1)
    async with Chain() as device:
        readings, told = Readings(), []
        one = unit(readings, profile=None, on_profile=told.append)
        async with running(device, one):
            await readings.until(healthy)
            lost = iter((None,))
            device.fault = lambda _tid, _unit, _pdu, frame: next(lost, frame)
            device.say("2", 700, first=[made(122, {"StorAval": 9})])
            since = len(readings)
            await readings.until(lambda r: r.values.get("m103_power_w") == 700, within_s=5)
            assert {r.values.get("m103_power_w") for r in readings[since:]} <= {None, 500, 700}
            assert any("another device" in r.fault for r in readings[since:])
        assert len(told) == 2


async def test_a_chain_that_lost_a_point_that_may_be_written_leaves_readings_of_the_old_shape(monkeypatch):
    """Whoever listens knows the points of the last profile that was told, and no others."""
    monkeypatch.setattr(link_module, "STRANGER_RETRY_S", 0.1)
    async with Chain() as device:
        device.say("1", 500, first=[made(123, {"WMaxLimPct": 100, "WMaxLimPct_SF": 0})])
        readings, told = Readings(), []
        rules = {"m123_w_max_lim_pct_ratio": WriteRule(0, 1)}
        one = unit(readings, profile=None, on_profile=told.append, writes=rules)
        async with running(device, one):
            await readings.until(healthy)
            device.say("2", 500)
            for writer in device._writers:
                writer.transport.abort()
            refused = await readings.until(lambda r: "cannot tell what device it is" in r.fault)
            assert "m123_w_max_lim_pct_ratio" in refused.fault
            assert set(refused.values) <= set(told[0].points)
        assert len(told) == 1


# ---- who else is on the line ----


@pytest.mark.parametrize("first", [True, False])
async def test_a_long_discovery_does_not_make_the_neighbours_wait(monkeypatch, first):
    async def discover(read, *, name):
        for _ in range(20):
            await read(0, 2)
        return PROFILE

    monkeypatch.setattr(link_module, "discover", discover)
    async with Device() as device:

        async def slow(_tid, unit_id, _pdu, frame):
            if unit_id == 1:
                await asyncio.sleep(0.05)
            return frame

        device.fault = slow
        readings, others = Readings(), Readings()
        taken = []
        loop = asyncio.get_running_loop()
        other = unit(others, "neighbour", unit_id=2, poll_s=0.05)
        other = replace(other, on_reading=lambda _r: taken.append(loop.time()))
        units = [other, unit(readings, profile=None, poll_s=0.5)]
        async with running(device, *(units if first else reversed(units))):
            await readings.until(healthy)
        assert len(taken) > 5
        assert max(b - a for a, b in itertools.pairwise(taken)) < 0.3


async def test_one_byte_a_second_is_no_answer_and_harms_nobody():
    async def trickle(reader, writer):
        with contextlib.suppress(OSError):
            while request := await reader.read(100):
                tid, unit_id = struct.unpack(">H4xB", request[:7])
                for byte in Device.frame(tid, unit_id, bytes((3, 4)) + b"\x45\x9c\x40\x00"):
                    writer.write(bytes((byte,)))
                    await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    readings = Readings()
    async with running(None, unit(readings), transport=Tcp("127.0.0.1", server.sockets[0].getsockname()[1])):
        await asyncio.sleep(1.5)
    server.close()
    assert readings
    assert all(value is None for reading in readings for value in reading.values.values())


@needs_libmodbus
async def test_after_a_slip_the_slow_points_are_out_of_doubt_as_soon_as_the_others(monkeypatch):
    monkeypatch.setattr(station_module, "LATE_WAITS", 4)
    points = TWINS.points | {"third": replace(TWINS.points["third"], poll="once")}
    async with Bus(7) as bus:
        readings = Readings()
        one = unit(readings, profile=replace(TWINS, points=points), poll_s=0.05, unit_id=7)
        async with running(None, one, transport=RtuOverTcp("127.0.0.1", bus.port)):
            await readings.until(lambda r: "third" in r.values)
            await bus.servers[0].fault(7, "late", -240)
            await readings.until(lambda r: r.link == "down", within_s=10)
            await readings.until(lambda r: r.doubt, within_s=10)
            sure = await readings.until(lambda r: healthy(r) and not r.doubt, within_s=10)
            assert set(sure.values) == {"first", "second", "third"}


# ---- addresses ----


@pytest.mark.parametrize(
    "url",
    ["modbus+tcp://meter..hall:502", f"modbus+tcp://{'m' * 64}.hall", "modbus+rtu+tcp://a..b:4001"],
)
def test_a_host_that_cannot_be_a_name_is_refused_with_the_url(url):
    with pytest.raises(ValueError, match="no host name"):
        transport_of(url)


@pytest.mark.parametrize("url", ["modbus+tcp://meter:0", "modbus+rtu+tcp://meter:0"])
def test_port_zero_is_no_port(url):
    with pytest.raises(ValueError, match="port 0"):
        transport_of(url)
