"""The Modbus client against libmodbus devices that answer late, wrong, twice, in pieces or not at all.

Every register of a device begins as unit * 200 + address, so each value tells where it came from: one taken
for another is seen, whatever the client believes.
"""

import asyncio
import socket
import time
from dataclasses import replace

import pytest
from libmodbus_peer import Bus, FaultServer, needs_libmodbus
from modbus_peers import Readings, healthy, running, unit

from protocols.modbus import RtuOverTcp, Serial, Tcp
from protocols.modbus import link as link_module
from protocols.modbus import station as station_module
from protocols.profile import Block, Line, Point, Profile, Provenance

pytestmark = needs_libmodbus


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The latest answer here comes after two waits."""
    monkeypatch.setattr(station_module, "LATE_WAITS", 4)


LINE = Line(parity="N")  # a pseudo terminal has no parity bit to set
# Two reads of one shape: the answer to the one looks like the answer to the other.
TWINS = Profile(
    name="twins", title="twins", protocol="modbus", examples=(), reply_wait_max_s=0.15,
    provenance=Provenance(document="twins", page="1", evidence="document"),
    blocks=(
        Block(table="holding", first=0, last=9),
        Block(table="holding", first=100, last=109),
        Block(table="holding", first=50, last=59),
    ),
    points={
        "first": Point(name="first", unit="count", address=0, type="u16"),
        "second": Point(name="second", unit="count", address=100, type="u16"),
        "third": Point(name="third", unit="count", address=50, type="u32"),
    },
)  # fmt: skip


def truth(unit_id):
    base = unit_id * 200
    return {"first": base, "second": base + 100, "third": (base + 50) * 65536 + base + 51}


def untrue(readings, unit_id):
    """Readings that are not in doubt, with values that the device never had."""
    wanted = truth(unit_id)
    return [
        reading
        for reading in readings
        if not reading.doubt
        for name, value in reading.values.items()
        if value not in (None, wanted[name])
    ]


def twins(readings, name="a", **fields):
    return unit(readings, name, **({"profile": TWINS, "poll_s": 0.03} | fields))


def wire_of(kind, bus):
    return Serial(bus.path, LINE) if kind == "serial" else RtuOverTcp("127.0.0.1", bus.port)


rtu = pytest.mark.parametrize("kind", ["serial", "rtu over tcp"])


# ---- late ----


@rtu
async def test_p05_a_late_rtu_reply_never_becomes_another_answer(kind):
    """Held back beyond its wait, again and again: no value is ever another's, and what follows is in doubt."""
    async with Bus(7) as bus:
        readings = Readings()
        async with running(None, twins(readings, unit_id=7), transport=wire_of(kind, bus)):
            await readings.until(healthy)
            for held_ms in (165, 240, 320):
                await bus.servers[0].fault(7, "late", -held_ms)
                down = await readings.until(lambda r: r.link == "down", within_s=10)
                assert "no answer within" in down.fault
                doubtful = await readings.until(lambda r: r.link == "up", within_s=10)
                assert "in doubt until a full round has come cleanly" in doubtful.doubt
                await readings.until(lambda r: healthy(r) and not r.doubt, within_s=10)
        assert untrue(readings, 7) == []


async def test_p05_a_device_that_is_always_too_late_is_never_believed_wrongly():
    async with Bus(7) as bus:
        readings = Readings()
        async with running(None, twins(readings, unit_id=7), transport=RtuOverTcp("127.0.0.1", bus.port)):
            await bus.servers[0].fault(7, "late", 200)
            await asyncio.sleep(1.2)
        assert untrue(readings, 7) == []
        assert all(r.doubt for r in readings if r.link == "up" and any(r.values.values()))


async def test_p05_a_late_tcp_reply_is_dropped_by_its_transaction():
    async with FaultServer() as server:
        readings = Readings()
        async with running(None, twins(readings), transport=Tcp("127.0.0.1", server.port)):
            await readings.until(healthy)
            for held_ms in (160, 200, 300):
                await server.fault(1, "late", -held_ms)
                await readings.until(lambda r: r.link == "down", within_s=10)
                assert (await readings.until(healthy, within_s=10)).doubt == ""
        assert untrue(readings, 1) == []


# ---- wrong ----


HASTY = replace(TWINS, reply_wait_max_s=0.05)


@pytest.mark.parametrize("kind", ["rtu over tcp", "tcp"])
@pytest.mark.parametrize(
    ("name", "argument", "sentence"),
    [
        ("function", 4, "asked with function 3, answered with 4"),
        ("count", 5, "asked, 5 came"),
        ("count", 0, "asked, 0 came"),
        ("exception", 4, "device failure"),
        ("exception", 6, "device busy"),
        ("unit", 9, "unit 9"),
        ("garbage", 0, ""),
        ("noise", 0, ""),
    ],
)
async def test_no_wrong_answer_becomes_a_value(kind, name, argument, sentence):
    if (kind, name) == ("tcp", "noise"):
        pytest.skip("TCP has its own checksum: a flipped bit is a value")
    async with Bus(7) as bus, FaultServer() as server:
        device = server if kind == "tcp" else bus.servers[0]
        transport = Tcp("127.0.0.1", server.port) if kind == "tcp" else wire_of(kind, bus)
        readings = Readings()
        async with running(None, twins(readings, unit_id=7, profile=HASTY), transport=transport):
            await readings.until(healthy)
            await device.fault(7, name, argument)
            await readings.until(lambda r: r.fault and sentence in r.fault, within_s=10)
            for _ in range(2):
                wrong = await readings.until(within_s=10)
                assert set(wrong.values.values()) == {None}
            await device.fault(7, "none")
            await readings.until(lambda r: healthy(r) and not r.doubt, within_s=20)
        assert untrue(readings, 7) == []


@rtu
async def test_an_answer_in_pieces_or_behind_noise_is_an_answer(kind):
    async with Bus(7) as bus:
        readings = Readings()
        async with running(None, twins(readings, unit_id=7), transport=wire_of(kind, bus)):
            for name, argument in (("split", 20), ("prefix", 0)):
                await bus.servers[0].fault(7, name, argument)
                await readings.until(within_s=5)
                for _ in range(5):
                    assert healthy(await readings.until(within_s=5))
        assert untrue(readings, 7) == []


# ---- twice ----


@rtu
async def test_a_second_answer_casts_doubt_and_never_answers_the_next_question(kind):
    async with Bus(7) as bus:
        readings = Readings()
        async with running(None, twins(readings, unit_id=7), transport=wire_of(kind, bus)):
            await readings.until(healthy)
            await bus.servers[0].fault(7, "twice", 0)
            doubtful = await readings.until(lambda r: r.doubt, within_s=5)
            assert "two devices with one unit id?" in doubtful.doubt
            for _ in range(10):
                assert (await readings.until(within_s=5)).doubt
            await bus.servers[0].fault(7, "none")
            await readings.until(lambda r: healthy(r) and not r.doubt, within_s=5)
        assert untrue(readings, 7) == []


async def test_two_devices_with_one_id_on_a_line_are_never_good():
    """They differ in every register; whichever is heard, nothing is believed, and a neighbour is."""
    async with Bus(7, 7, 9) as bus:
        for address in (0, 50, 51, 100):
            await bus.servers[1].set(7, address, 60000 + address)
        doubled, alone = Readings(), Readings()
        units = [twins(doubled, "double", unit_id=7), twins(alone, "alone", unit_id=9)]
        async with running(None, *units, transport=Serial(bus.path, LINE)):
            await alone.until(healthy, within_s=5)
            await asyncio.sleep(1.2)
        later = doubled[3:]
        assert later
        assert all(r.doubt or r.link == "down" or r.fault for r in later)
        good = [r for r in alone if healthy(r)]
        assert len(good) > 10
        assert untrue(alone, 9) == []


async def test_a_second_tcp_answer_casts_doubt():
    async with FaultServer() as server:
        readings = Readings()
        async with running(None, twins(readings), transport=Tcp("127.0.0.1", server.port)):
            await readings.until(healthy)
            await server.fault(1, "twice", 0)
            doubtful = await readings.until(lambda r: r.doubt)
            assert doubtful.doubt.startswith("answered twice: two devices with one unit id?")
        assert untrue(readings, 1) == []


# ---- silent: what a dead one costs the others ----


async def _rate(readings, window_s):
    """Good readings per second over a window from now on."""
    before = sum(map(healthy, readings))
    await asyncio.sleep(window_s)
    return (sum(map(healthy, readings)) - before) / window_s


async def test_p03_one_dead_unit_of_eight_on_a_line_costs_the_others_less_than_a_tenth():
    """Also P8: its time-outs drop nothing of theirs. A wait is longer than one of their periods."""
    ids = range(1, 9)
    everyone = {unit_id: Readings() for unit_id in ids}
    units = [twins(everyone[n], f"u{n}", unit_id=n, poll_s=0.1, points=("first", "third")) for n in ids]
    async with (
        Bus(*ids) as bus,
        running(None, *units, transport=Serial(bus.path, LINE), clock=time.monotonic),
    ):
        for readings in everyone.values():
            await readings.until(healthy, within_s=10)
        await asyncio.sleep(0.3)
        dead = bus.servers[2]
        full = await asyncio.gather(*(_rate(everyone[n], 1) for n in ids if n != 3))
        await dead.fault(3, "silent")
        await everyone[3].until(lambda r: r.link == "down", within_s=5)
        await everyone[3].until(lambda r: r.link == "down", within_s=5)
        beside = await asyncio.gather(*(_rate(everyone[n], 2) for n in ids if n != 3))
        await dead.fault(3, "none")
        await everyone[3].until(healthy, within_s=10)  # and it is found again
    assert sum(beside) >= 0.9 * sum(full)
    assert min(beside) >= 0.85 * min(full)
    assert all(untrue(everyone[n], n) == [] for n in ids)


async def test_p03_dead_units_share_a_small_part_of_the_line_among_them():
    """Five of eight are dead; each alone would be asked every other second."""
    everyone = {n: Readings() for n in range(1, 9)}
    units = [twins(everyone[n], f"u{n}", unit_id=n, poll_s=0.1, profile=HASTY) for n in everyone]
    async with FaultServer() as server:
        for n in range(4, 9):
            await server.fault(n, "silent")
        async with running(None, *units, transport=Tcp("127.0.0.1", server.port)):
            for n in range(4, 9):
                await everyone[n].until(lambda r: r.link == "down", within_s=10)
            server.requests.clear()
            await asyncio.sleep(2)
        wasted_s = HASTY.reply_wait_max_s * sum(request[0] >= 4 for request in server.requests)
    assert 0 < wasted_s <= 2 * 0.05 * 2


async def test_p03_five_black_holes_of_forty_devices_cost_the_others_nothing():
    """Three accept and never answer, two do not even accept."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fill = [socket.socket() for _ in range(4)]
    for each in fill:  # a backlog that is full drops what comes: no answer, no refusal
        each.setblocking(False)
        each.connect_ex(full.getsockname())
    try:
        async with FaultServer() as server:
            for n in (5, 17, 29):
                await server.fault(n, "silent")
            everyone = {n: Readings() for n in range(1, 41)}
            async with asyncio.TaskGroup() as group:
                tasks = []
                for n, readings in everyone.items():
                    port = full.getsockname()[1] if n in (3, 33) else server.port
                    one = twins(readings, f"d{n}", unit_id=n, poll_s=0.1)
                    link = link_module.ModbusLink(Tcp("127.0.0.1", port), [one], clock=time.monotonic)
                    tasks.append(group.create_task(link.run()))
                await asyncio.sleep(1)
                counts = {n: len(readings) for n, readings in everyone.items()}
                await asyncio.sleep(2)
                for task in tasks:
                    task.cancel()
    finally:
        for each in (full, *fill):
            each.close()
    holes = {3, 5, 17, 29, 33}
    got = {n: sum(map(healthy, everyone[n][counts[n] :])) for n in everyone}
    assert {n for n, count in got.items() if count == 0} == holes
    assert min(count for n, count in got.items() if n not in holes) >= 17  # of 20
    assert all(everyone[n][-1].link == "down" for n in holes)
    assert all(untrue(everyone[n], n) == [] for n in everyone)


# ---- half open ----


async def test_a_connection_that_is_half_open_is_given_up_and_made_anew():
    """The peer keeps the socket, reads nothing and says nothing: no reset, no end."""
    async with FaultServer() as server:
        readings = Readings()
        async with running(None, twins(readings), transport=Tcp("127.0.0.1", server.port)):
            await readings.until(healthy)
            await server.tell("hang")
            down = await readings.until(lambda r: r.link == "down")
            assert "no answer within 0.15 s" in down.fault
            anew = await readings.until(lambda r: "connecting anew" in r.fault)
            assert anew.link == "down"
            await readings.until(healthy)


async def test_p02_a_power_cycle_in_the_middle_of_everything_needs_nobody():
    """Closed at every third request for a while."""
    async with FaultServer() as server:
        readings = Readings()
        async with running(None, twins(readings), transport=Tcp("127.0.0.1", server.port)):
            for _ in range(5):
                await readings.until(healthy, within_s=5)
                await server.fault(1, "close", -1)
                await readings.until(lambda r: r.link == "down")
            await readings.until(healthy, within_s=5)
        assert untrue(readings, 1) == []
