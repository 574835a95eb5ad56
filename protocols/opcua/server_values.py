"""Served values: each encoded once, however many clients watch it.

A client that watches is told a DataValue when it changes. The library would copy, compare and encode it anew
for every client, 44 us each time; ten clients with 2,000 values at 10 Hz would need nine cores. Here a value
is encoded when it changes, and telling it to one more client is a concatenation.

Values that come together (a device, a rack) form a `Batch`. Nothing happens when they come. A subscription
that is about to publish asks the batch to bring itself up to date, which is done once per update, and only
for what somebody watches. Whatever changed has a higher `version` than the one last told.

The encoding is that of OPC 10000-6, 5.2.2.17: a byte that says what follows, the value with its type, the
status unless good, source and server time in ticks of 100 ns since 1601.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

from asyncua import ua

Value = float | str | None

GOOD: Final = 0
TICKS_PER_S: Final = 10_000_000
EPOCH_TICKS: Final = 116_444_736_000_000_000  # from 1601 to 1970
HAS_VALUE, HAS_STATUS, HAS_SOURCE_TIME, HAS_SERVER_TIME = 1, 2, 4, 8
BOTH_TIMES: Final = HAS_SOURCE_TIME | HAS_SERVER_TIME
BAD: Final = 0x8000_0000
OUT_OF_RANGE: Final = int(ua.StatusCodes.BadOutOfRange)
OVERFLOW: Final = 0x0480  # a data value, and others were lost before it: OPC 10000-4, 7.39.1
STATUS_BYTES, TIMES_BYTES = 4, 16

Encoder = Callable[[Value, int, int, int], bytes]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a value is.

    Attributes:
        unit: as in profiles; "" = none.
        lowest, highest: of a number, in `unit`; None: not known.
        states: of a number that stands for one.
        bits: of a number that is a row of flags.
        text: it is a string.
        needs: role that may write it; None: nobody.
        is_kept: it has a history.
    """

    title: str = ""
    unit: str = ""
    lowest: float | None = None
    highest: float | None = None
    states: Mapping[int, str] = field(default_factory=dict)
    bits: Mapping[int, str] = field(default_factory=dict)
    text: bool = False
    needs: int | None = None
    is_kept: bool = False

    @property
    def kind(self) -> ua.VariantType:
        if self.text:
            return ua.VariantType.String
        if self.states:
            return ua.VariantType.Int32 if min(self.states) < 0 else ua.VariantType.UInt32
        if self.bits:
            return ua.VariantType.UInt64 if max(self.bits) > 31 else ua.VariantType.UInt32
        return ua.VariantType.Double


class Batch(Protocol):
    """Values that come together.

    Attributes:
        version: grows when any watched value has changed.
    """

    version: int

    def refresh(self) -> int:
        """Bring what is watched up to date, and say the version."""

    def watch(self, variable: "Variable") -> None:
        """Somebody watches one more time; the next refresh takes it in."""

    def unwatch(self, variable: "Variable") -> None:
        """Somebody watches one time less."""

    def read(self, variable: "Variable") -> ua.DataValue:
        """What it is now, watched or not."""


class Variable:
    """A value with its place in the address space, as last told.

    Attributes:
        id: identifier of its node, for good.
        parent: identifier of the node that it belongs to.
        name: within its parent.
        place: within its batch.
        version: grows with every change that is worth telling.
        value, status, encoded: as of that version.
        watchers: how many monitored items there are.
    """

    __slots__ = (
        "batch", "encode", "encoded", "id", "meaning", "name",
        "parent", "place", "status", "value", "version", "watchers",
    )  # fmt: skip

    def __init__(self, id_: str, parent: str, name: str, meaning: Meaning, batch: Batch, place: int) -> None:
        self.id, self.parent, self.name, self.meaning = id_, parent, name, meaning
        self.batch, self.place = batch, place
        self.version = 0
        self.watchers = 0
        self.value: Value = None
        self.status = int(ua.StatusCodes.BadWaitingForInitialData)
        self.encode = ENCODERS[meaning.kind]
        self.encoded = self.encode(None, self.status, 0, 0)

    def tell(self, value: Value, status: int, source_ticks: int, server_ticks: int) -> None:
        """A change. A value of a bad status is none."""
        self.value, self.status = value, status
        self.version += 1
        self.encoded = self.encode(value, status, source_ticks, server_ticks)

    def data_value(self, value: Value, status: int, source_utc_s: float, server_utc_s: float) -> ua.DataValue:
        """The same for the library's own encoder."""
        kind = self.meaning.kind
        shown: float | int | str | None = value
        if isinstance(value, float) and kind is not ua.VariantType.Double:
            whole = _whole(value, kind)
            shown, status = (whole, status) if whole is not None else (None, OUT_OF_RANGE)
        if shown is None or status & BAD:
            variant = ua.Variant(None, ua.VariantType.Null)
        else:
            variant = ua.Variant(shown, kind)
        return ua.DataValue(
            variant,
            ua.StatusCode(ua.UInt32(status)),
            SourceTimestamp=moment(source_utc_s),
            ServerTimestamp=moment(server_utc_s),
        )


def ticks(utc_s: float) -> int:
    """UTC as the wire has it; 0 is "never" here and there."""
    return int(utc_s * TICKS_PER_S) + EPOCH_TICKS if utc_s > 0 else 0


def moment(utc_s: float) -> datetime | None:
    return datetime.fromtimestamp(utc_s, UTC) if utc_s > 0 else None


def stamped(encoded: bytes, times: ua.TimestampsToReturn) -> bytes:
    """Only the times that a client asked for; of an encoded value that carries both."""
    wanted = TIMES[times]
    if wanted == BOTH_TIMES:
        return encoded
    head, source, server = encoded[:-TIMES_BYTES], encoded[-TIMES_BYTES:-8], encoded[-8:]
    if not wanted & HAS_SOURCE_TIME:
        source = b""
    if not wanted & HAS_SERVER_TIME:
        server = b""
    return bytes([head[0] & ~BOTH_TIMES | wanted]) + head[1:] + source + server


def overflowed(encoded: bytes) -> bytes:
    """The same value, marked: others before it were lost."""
    head, times = encoded[:-TIMES_BYTES], encoded[-TIMES_BYTES:]
    status = 0
    if head[0] & HAS_STATUS:
        status = int.from_bytes(head[-STATUS_BYTES:], "little")
        head = head[:-STATUS_BYTES]
    return bytes([head[0] | HAS_STATUS]) + head[1:] + (status | OVERFLOW).to_bytes(4, "little") + times


TIMES: Final = {
    ua.TimestampsToReturn.Source: HAS_SOURCE_TIME,
    ua.TimestampsToReturn.Server: HAS_SERVER_TIME,
    ua.TimestampsToReturn.Both: BOTH_TIMES,
    ua.TimestampsToReturn.Neither: 0,
}

_bad = struct.Struct("<BIqq").pack


def _number(kind: ua.VariantType, letter: str) -> Encoder:
    """Encoder of numbers of one size. The first branch is what nearly all values take."""
    good, doubted = struct.Struct(f"<BB{letter}qq").pack, struct.Struct(f"<BB{letter}Iqq").pack
    of_type, is_whole = int(kind), letter != "d"

    def encode(value: Value, status: int, source_ticks: int, server_ticks: int) -> bytes:
        shown: Value | int = _whole(value, kind) if is_whole else value
        if shown is None and value is not None:
            status = OUT_OF_RANGE
        if status == GOOD:
            return good(HAS_VALUE | BOTH_TIMES, of_type, shown, source_ticks, server_ticks)
        if shown is None or status & BAD:
            return _bad(HAS_STATUS | BOTH_TIMES, status, source_ticks, server_ticks)
        return doubted(
            HAS_VALUE | HAS_STATUS | BOTH_TIMES, of_type, shown, status, source_ticks, server_ticks
        )

    return encode


def _whole(value: Value, kind: ua.VariantType) -> int | None:
    """A number as an integer that the type can hold."""
    lowest, highest = WHOLE[kind]
    if isinstance(value, str) or value is None or not lowest <= value <= highest:
        return None
    return round(value)


def _text(value: Value, status: int, source_ticks: int, server_ticks: int) -> bytes:
    if not isinstance(value, str) or status & BAD:
        return _bad(HAS_STATUS | BOTH_TIMES, status, source_ticks, server_ticks)
    words = value.encode("utf-8", errors="replace")
    head = struct.pack("<BBi", HAS_VALUE | HAS_STATUS | BOTH_TIMES, int(ua.VariantType.String), len(words))
    return head + words + struct.pack("<Iqq", status, source_ticks, server_ticks)


WHOLE: Final = {
    ua.VariantType.Int32: (-(2**31), 2**31 - 1),
    ua.VariantType.UInt32: (0, 2**32 - 1),
    ua.VariantType.UInt64: (0, 2**53),  # as far as a float counts
}
ENCODERS: Final[Mapping[ua.VariantType, Encoder]] = {
    ua.VariantType.Double: _number(ua.VariantType.Double, "d"),
    ua.VariantType.Int32: _number(ua.VariantType.Int32, "i"),
    ua.VariantType.UInt32: _number(ua.VariantType.UInt32, "I"),
    ua.VariantType.UInt64: _number(ua.VariantType.UInt64, "Q"),
    ua.VariantType.String: _text,
}
