"""A Modbus device that does everything wrong, and knows what it said: no wrong value may come out as a good one.

The device holds other words at every request, so each value tells when and where it was read. It answers
late, twice, in part, damaged, as another unit, with another function or count, with an exception, with noise.
What a reading may then call good is one of

* what the device said in answer to this very request, whole and sound;
* for TCP, whatever else came as a frame with the right transaction, unit, function and count: TCP has a
  checksum of its own, so there is no telling a flipped bit from a value.

Never the late answer to an older request. A device answers in order, within ten of its waits; what it has
answered once it may repeat, though never instead of an answer: on RTU framing nobody could know that.

When the tape is over the device behaves, and every unit must become good again by itself.
"""

import asyncio
import random
import struct
from collections import defaultdict
from typing import Final

from protocols.modbus import ModbusLink, ModbusUnit, Replay
from protocols.modbus.frames import sealed
from protocols.modbus.station import EARLY_S, LATE_WAITS
from protocols.profile import Block, Point, Profile, Provenance
from protocols.reading import Reading
from tests.fuzz.tape import Tape
from tests.virtual_time import VirtualTimeLoop

PROFILE: Final = Profile(
    name="twins", title="twins", protocol="modbus", examples=(), reply_wait_max_s=0.15,
    provenance=Provenance(document="twins", page="1", evidence="document"),
    blocks=(
        Block(table="holding", first=0, last=9),
        Block(table="holding", first=100, last=109),
        Block(table="holding", first=50, last=59),
        Block(table="input", first=0, last=9),
        Block(table="coil", first=0, last=39),
    ),
    points={
        "first": Point(name="first", unit="count", address=0, type="u16"),
        "second": Point(name="second", unit="count", address=100, type="u16"),
        "third": Point(name="third", unit="count", address=50, type="u32"),
        "fourth": Point(name="fourth", unit="count", table="input", address=3, type="u16", poll="slow"),
        "fifth": Point(name="fifth", unit="bool", table="coil", address=1, type="bool"),
        "sixth": Point(name="sixth", unit="bool", table="coil", address=30, type="bool"),
    },
)  # fmt: skip
UNITS: Final = {1: (), 7: ("first", "second")}  # the second one is asked the same shape again and again
TABLES: Final = {1: "coil", 3: "holding", 4: "input"}
HEADER: Final = struct.Struct(">HHHB")
MIXER: Final = 0x9E3779B1  # odd: no two of 2^32 requests read the same coils
FIRST_TID: Final = b"\0\1"
STREAM_MAX: Final = 600  # bytes of a stream that can still be the beginning of a frame
HEALS_S: Final = 30.0
SPINS_MAX: Final = 20

LOOP: Final[list[VirtualTimeLoop]] = []  # made once: a loop costs more than a conversation


def over_tcp(payload: bytes) -> int:
    return _play(payload, rtu=False)


def over_rtu(payload: bytes) -> int:
    """On a serial line, or the same frames through TCP."""
    return _play(payload, rtu=True)


def _play(payload: bytes, *, rtu: bool) -> int:
    """Number of answers that were played."""
    if not LOOP:
        LOOP.append(VirtualTimeLoop(early_s=EARLY_S))
    LOOP[0].begin_anew()
    random.seed(len(payload))  # pauses have jitter; an input must do the same each time
    device = Device(Tape(payload), LOOP[0], rtu=rtu)
    LOOP[0].run_until_complete(device.converse())
    return device.requests


class Device:
    """The peer of a link, and the judge of its readings."""

    def __init__(self, tape: Tape, loop: VirtualTimeLoop, *, rtu: bool) -> None:
        self.requests = 0
        self._tape, self._loop, self._rtu = tape, loop, rtu
        self._late: dict[int, list[tuple[float, bytes]]] = defaultdict(list)  # by unit: when asked, frame
        self._answered: dict[int, bytes] = {}
        self._may_be: dict[int, dict[str, set[float]]] = {unit: defaultdict(set) for unit in UNITS}
        self._stream = b""
        self._stale: set[bytes] = set()
        self._moment, self._readings = (0.0, 0), 0
        self._wrong = ""
        self._healed: set[int] = set()
        self._over = loop.create_future()

    async def converse(self) -> None:
        units = [
            ModbusUnit(
                name=f"u{unit}",
                profile=PROFILE,
                poll_s=0.05,
                unit_id=unit,
                points=UNITS[unit],
                on_reading=lambda reading, unit=unit: self.judge(unit, reading),
            )
            for unit in UNITS
        ]
        link = ModbusLink(Replay(self.answer, rtu=self._rtu), units, clock=self._loop.time)
        task = self._loop.create_task(link.run())
        task.add_done_callback(lambda _: self._end("the link ended by itself"))
        try:
            await self._over
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        assert not self._wrong, self._wrong

    def _end(self, wrong: str = "") -> None:
        if not self._over.done():
            self._wrong = wrong
            self._over.set_result(None)

    # ---- what is said ----

    def answer(self, request: bytes) -> bytes:
        """Whatever comes back for a request; b"" is silence."""
        self.requests += 1
        if not self._rtu and request[:2] == FIRST_TID:
            self._forget()
        unit, code, first, count = struct.unpack_from(">BBHH", request, 0 if self._rtu else 6)
        tid = b"" if self._rtu else request[:2]
        right = self._frame(tid, unit, self._pdu(code, first, count))
        if self._tape.is_over:
            move = _right
            self._heal_by = getattr(self, "_heal_by", self._loop.time() + HEALS_S)
            if self._loop.time() > self._heal_by:
                self._end(f"no good reading of all units within {HEALS_S:g} s after the last fault")
        else:
            move = self._tape.pick(MOVES)
        self._late[unit] = [
            late
            for late in self._late[unit]
            if self._loop.time() - late[0] < LATE_WAITS * PROFILE.reply_wait_max_s
        ]
        said = move(self, unit, tid, code, right)
        self._take_down(tid, unit, code, first, count, said)
        return said

    def _forget(self) -> None:
        """A new TCP connection: what was on its way through the old one is lost. A serial line forgets nothing."""
        self._late.clear()
        self._answered.clear()
        self._stream = b""

    def _pdu(self, code: int, first: int, count: int) -> bytes:
        """What its registers hold at this request and at no other."""
        if code == 1:
            size = (count + 7) // 8
            return bytes((1, size)) + (self.requests * MIXER & (1 << 8 * size) - 1).to_bytes(size, "little")
        words = [(self.requests * 8 + (first + place) % 8) & 0xFFFF for place in range(count)]
        return struct.pack(f">BB{count}H", code, 2 * count, *words)

    def _frame(self, tid: bytes, unit: int, pdu: bytes) -> bytes:
        if self._rtu:
            return sealed(bytes((unit,)) + pdu)
        return tid + struct.pack(">HHB", 0, len(pdu) + 1, unit) + pdu

    def _bent(self, tid: bytes, unit: int, right: bytes, bend) -> bytes:
        """A frame around another PDU, and otherwise sound."""
        return self._frame(tid, unit, bend(right[1:-2] if self._rtu else right[7:]))

    # ---- what may be believed ----

    def _take_down(self, tid: bytes, unit: int, code: int, first: int, count: int, said: bytes) -> None:
        """All values that a careful reader may take from what was said."""
        size = 2 * count if code != 1 else (count + 7) // 8
        head = bytes((unit, code, size))
        if self._rtu:
            stream, lead, tail = said, b"", 2
        else:
            self._stream = (self._stream + said)[-STREAM_MAX:]
            stream, lead, tail = self._stream, tid + struct.pack(">HH", 0, size + 3), 0
        start, at = lead + head, -1
        while (at := stream.find(start, at + 1)) >= 0:
            frame = stream[at : at + len(start) + size + tail]
            whole = len(frame) == len(start) + size + tail
            if whole and frame not in self._stale and (not self._rtu or sealed(frame[:-2]) == frame):
                self._believable(unit, code, first, frame[len(start) :])

    def _believable(self, unit: int, code: int, first: int, content: bytes) -> None:
        for point in PROFILE.points.values():
            at = point.address - first
            if point.table != TABLES[code]:
                continue
            if code == 1:
                value = float(content[at // 8] >> at % 8 & 1) if 0 <= at < 8 * len(content) else None
            else:
                words = content[2 * at : 2 * at + (4 if point.type == "u32" else 2)] if at >= 0 else b""
                value = float(int.from_bytes(words, "big")) if words else None
            if value is not None:
                self._may_be[unit][point.name].add(value)

    def judge(self, unit: int, reading: Reading) -> None:
        self._demand_pause()
        may_be, self._may_be[unit] = self._may_be[unit], defaultdict(set)
        if reading.link == "down" or reading.doubt:
            return
        for name, value in reading.values.items():
            if value is not None and value not in may_be[name]:
                self._end(
                    f"{reading.device}.{name} reads {value} and is called good; it may be {may_be[name]}"
                )
        if self._tape.is_over and not reading.fault and None not in reading.values.values():
            self._healed.add(unit)
            if self._healed == set(UNITS):
                self._end()

    def _demand_pause(self) -> None:
        """Raises AssertionError at once: whoever spins would never come to an end."""
        moment = self._loop.time(), self.requests
        self._readings = self._readings + 1 if moment == self._moment else 0
        self._moment = moment
        assert self._readings < SPINS_MAX, (
            f"{SPINS_MAX} readings at one moment, and nothing was asked: it spins"
        )

    # ---- the moves ----

    def withhold(self, unit: int, frame: bytes) -> None:
        self._late[unit].append((self._loop.time(), frame))

    def late(self, unit: int) -> bytes:
        """What it still had to say."""
        frames, self._late[unit] = [frame for _, frame in self._late[unit]], []
        self._stale.update(frames)
        return b"".join(frames)

    def done(self, unit: int, frame: bytes) -> bytes:
        """It has answered: whatever is older will not come any more."""
        self._stale.update(old for _, old in self._late[unit])
        self._late[unit].clear()
        self._answered[unit] = frame
        return frame

    def again(self, unit: int) -> bytes:
        frame = self._answered.get(unit, b"")
        self._stale.add(frame)
        return frame


def _right(device, unit, _tid, _code, right):
    return device.done(unit, right)


def _silent(device, unit, _tid, _code, right):
    device.withhold(unit, right)
    return b""


def _late_alone(device, unit, _tid, _code, right):
    late = device.late(unit)
    device.withhold(unit, right)
    return late


def _late_first(device, unit, _tid, _code, right):
    return device.late(unit) + device.done(unit, right)


def _late_after(device, unit, _tid, _code, right):
    late = device.late(unit)
    return device.done(unit, right) + late


def _again_first(device, unit, _tid, _code, right):
    again = device.again(unit)
    return again + device.done(unit, right)


def _twice(device, unit, _tid, _code, right):
    return 2 * device.done(unit, right)


def _half(device, unit, _tid, _code, right):
    """The rest comes with whatever is said next."""
    cut = device._tape.byte() % len(right)
    device.withhold(unit, right[cut:])
    return right[:cut]


def _short(device, unit, _tid, _code, right):
    return device.done(unit, right)[: device._tape.byte() % len(right)]


def _flipped(device, unit, _tid, _code, right):
    at = device._tape.byte() % len(right)
    return right[:at] + bytes((right[at] ^ (1 << device._tape.byte() % 8),)) + right[at + 1 :]


def _other_function(device, unit, tid, _code, right):
    code = device._tape.byte()
    return device.done(unit, device._bent(tid, unit, right, lambda pdu: bytes((code,)) + pdu[1:]))


def _other_count(device, unit, tid, _code, right):
    count = device._tape.byte()
    return device.done(unit, device._bent(tid, unit, right, lambda pdu: pdu[:1] + bytes((count,)) + pdu[2:]))


def _other_length(device, unit, tid, code, right):
    content = device._tape.bytes(device._tape.byte())
    return device.done(unit, device._bent(tid, unit, right, lambda _: bytes((code, len(content))) + content))


def _other_unit(device, unit, tid, _code, right):
    device.withhold(unit, right)
    return device._bent(tid, device._tape.byte(), right, lambda pdu: pdu)


def _exception(device, unit, tid, code, right):
    number = device._tape.byte()
    return device.done(unit, device._bent(tid, unit, right, lambda _: bytes((code | 0x80, number))))


def _noise(device, unit, _tid, _code, right):
    device.withhold(unit, right)
    return device._tape.bytes(device._tape.byte() % 64)


def _noise_first(device, unit, _tid, _code, right):
    return device._tape.bytes(device._tape.byte() % 16) + device.done(unit, right)


def _other_head(device, unit, tid, _code, right):
    """Another transaction, protocol or length; over RTU one more flipped bit."""
    at = device._tape.byte() % 6
    return right[:at] + bytes((device._tape.byte(),)) + right[at + 1 :]


MOVES: Final = (
    *(_right,) * 8, _silent, _silent, _late_alone, _late_alone, _late_first, _late_after, _again_first, _twice,
    _half, _short, _flipped, _other_function, _other_count, _other_length, _other_unit, _exception, _noise,
    _noise_first, _other_head,
)  # fmt: skip
