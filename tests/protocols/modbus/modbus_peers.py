"""What the tests of the Modbus client share: a small profile, devices made by hand, a collector of readings."""

import asyncio
import collections
import contextlib
import itertools
import struct

import pytest

from protocols.modbus import ModbusLink, ModbusUnit, Tcp
from protocols.profile import Block, Point, Profile, Provenance
from protocols.reading import WriteRule

PROFILE = Profile(
    name="bench", title="bench", protocol="modbus", examples=(), reply_wait_max_s=0.15,
    provenance=Provenance(document="bench", page="1", evidence="document"),
    blocks=(
        Block(table="holding", first=0, last=9),
        Block(table="holding", first=10, last=19),
        Block(table="coil", first=0, last=9),
    ),
    points={
        "power_w": Point(name="power_w", unit="W", address=0, type="f32", access="rw"),
        "voltage_v": Point(name="voltage_v", unit="V", address=4, type="u16", scale=0.1, access="rw"),
        "current_a": Point(name="current_a", unit="A", address=10, type="u16", scale=0.01),
        "running": Point(name="running", unit="bool", table="coil", address=3, type="bool", access="rw"),
    },
)  # fmt: skip


RULES = {
    "power_w": WriteRule(-1e6, 1e6),
    "voltage_v": WriteRule(0.0, 7000.0),
    "running": WriteRule(0.0, 1.0),
}


class Device:
    """A Modbus TCP device written by hand, frame by frame. `fault` bends or withholds its replies."""

    def __init__(self):
        self.registers = collections.defaultdict(lambda: [0] * 20)  # by unit
        self.coils = [0] * 16
        self.requests = []  # (unit, function, address, count or value)
        self.connections = 0
        self.fault = None  # (request, reply PDU) -> reply frame, None for silence; or raises to close
        self.refused = set()  # (table function, address) answered with "illegal data address"

    async def __aenter__(self):
        await self.start()
        return self

    async def start(self, port=0):
        self._writers = []
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def __aexit__(self, *_):
        await self.stop()

    async def _serve(self, reader, writer):
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                tid, _, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
                pdu = await reader.readexactly(length - 1)
                frame = self.frame(tid, unit, self.answer(unit, pdu))
                if self.fault is not None:
                    frame = self.fault(tid, unit, pdu, frame)
                    if asyncio.iscoroutine(frame):
                        frame = await frame
                if frame is not None:
                    writer.write(frame)
        writer.close()

    @staticmethod
    def frame(tid, unit, pdu):
        return struct.pack(">HHHB", tid, 0, len(pdu) + 1, unit) + pdu

    def answer(self, unit, pdu):
        code, address, number = struct.unpack(">BHH", pdu[:5])
        self.requests.append((unit, code, address, number))
        asked = range(address, address + (number if code in (1, 3) else 1))
        if any((code, a) in self.refused for a in asked):
            return bytes([code | 0x80, 2])
        if code == 1:
            bits = self.coils[address : address + number]
            return bytes([1, 1, sum(bit << i for i, bit in enumerate(bits))])
        if code == 3:
            words = self.registers[unit][address : address + number]
            return struct.pack(f">BB{number}H", 3, 2 * number, *words)
        if code == 5:
            self.coils[address] = int(number == 0xFF00)
        elif code == 6:
            self.registers[unit][address] = number
        elif code == 16:
            self.registers[unit][address : address + number] = struct.unpack(f">{number}H", pdu[6:])
        return pdu[:5]


class Readings(list):
    """Collects readings and lets a test wait for one that satisfies it."""

    def __init__(self):
        super().__init__()
        self._more = asyncio.Event()

    def put(self, reading):
        self.append(reading)
        self._more.set()

    async def until(self, wanted=lambda _reading: True, within_s=3.0):
        """First reading from now on that is wanted."""
        seen = len(self)
        async with asyncio.timeout(within_s):
            while True:
                for reading in self[seen:]:
                    if wanted(reading):
                        return reading
                seen = len(self)
                self._more.clear()
                await self._more.wait()


def unit(readings, name="meter", **fields):
    return ModbusUnit(
        **({"name": name, "profile": PROFILE, "poll_s": 0.02, "on_reading": readings.put} | fields)
    )


@contextlib.asynccontextmanager
async def running(device, *units, transport=None, clock=None):
    ticks = itertools.count(1)
    transport = transport or Tcp("127.0.0.1", device.port)
    link = ModbusLink(transport, units, clock=clock or (lambda: float(next(ticks))))
    task = asyncio.create_task(link.run())
    try:
        yield link
        assert not task.done(), task.result()
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def hang_up(*_):
    raise ConnectionResetError


def healthy(reading):
    return reading.link == "up" and not reading.fault
