"""Registers to numbers with units, and back. Pure: no IO, no clock.

A register is 16 bits. A number takes one, two or four of them; the Modbus standard fixes the order of the
two bytes inside a register and leaves the order of the registers to the vendor. Hence three steps, each
undone by `encode` in reverse:

    registers --(byte and word order)--> bit pattern --(type)--> raw number --(scale, offset)--> value

A value is None wherever a number would be a lie: the pattern is one of the vendor's "not present" marks,
the float is NaN or infinite, or the value lies outside what the point can plausibly be. None means bad
quality; there is no second way to say so. Nothing is clamped: a wrong number made plausible is worse than
no number.
"""

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # profile.py checks its worked examples with this module: the import must not come back
    from protocols.profile import Point

# raw type -> (registers, struct code of the number, struct code of its bit pattern)
TYPES: Final = {
    "u16": (1, ">H", ">H"),
    "i16": (1, ">h", ">H"),
    "u32": (2, ">I", ">I"),
    "i32": (2, ">i", ">I"),
    "u64": (4, ">Q", ">Q"),
    "i64": (4, ">q", ">Q"),
    "f32": (2, ">f", ">I"),
    "f64": (4, ">d", ">Q"),
}
FLOATS: Final = ("f32", "f64")
REGISTER_MAX: Final = 0xFFFF


class CodecError(ValueError):
    """A value or registers that do not fit the point; the text says which and what would fit."""


def width(point: "Point") -> int:
    """How many registers (or bits, for coils and discrete inputs) the point takes; 1, 2 or 4."""
    return 1 if point.type == "bool" else TYPES[point.type][0]


def decode(point: "Point", registers: Sequence[int]) -> float | None:
    """Value of `point` in its unit; None where the device says or implies that it has none.

    Args:
        point: a Modbus point.
        registers: `width(point)` registers in wire order; one bit (0 or 1) for coils and discrete inputs.

    Raises:
        CodecError: the wrong number of registers, or one that is not 16 bits.
    """
    if len(registers) != width(point) or not all(0 <= r <= REGISTER_MAX for r in registers):
        raise CodecError(f"{point.name}: {list(registers)} is not {width(point)} register(s) of 16 bits")
    if point.type == "bool":
        return from_raw(point, float(bool(registers[0])))
    pattern = b"".join(_bytes(point, r) for r in _ordered(point, registers))
    _, number_code, pattern_code = TYPES[point.type]
    if struct.unpack(pattern_code, pattern)[0] in point.sentinels:
        return None
    return from_raw(point, struct.unpack(number_code, pattern)[0])


def encode(point: "Point", value: float) -> list[int]:
    """Registers that say `value`, to the nearest step the type has.

    Raises:
        CodecError: not a finite number, outside the point's range, or beyond its type.
    """
    raw = to_raw(point, value)
    if point.type == "bool":
        return [int(bool(raw))]
    count, number_code, pattern_code = TYPES[point.type]
    try:
        pattern = struct.pack(number_code, raw if point.type in FLOATS else round(raw))
    except (struct.error, OverflowError) as error:
        raise CodecError(
            f"{point.name}: {value} {point.unit} does not fit a {point.type}: {error}"
        ) from error
    if struct.unpack(pattern_code, pattern)[0] in point.sentinels:
        raise CodecError(f"{point.name}: {value} {point.unit} is the device's mark for 'not present'")
    words = struct.unpack(f">{count}H", pattern)
    return [int.from_bytes(_bytes(point, word), "big") for word in _ordered(point, words)]


def from_raw(point: "Point", raw: float) -> float | None:
    """Value in the point's unit of a number as the device says it (Modbus raw number, OPC UA variable)."""
    value = raw * point.scale + point.offset
    return value if math.isfinite(value) and point.lowest <= value <= point.highest else None


def to_raw(point: "Point", value: float) -> float:
    """The number the device wants to hear for `value`; CodecError if it must not be said."""
    if not point.lowest <= value <= point.highest:  # also catches NaN
        raise CodecError(
            f"{point.name}: {value} {point.unit} refused; use {point.lowest} to {point.highest} {point.unit}"
        )
    return (value - point.offset) / point.scale


def _ordered(point: "Point", words: Sequence[int]) -> Sequence[int]:
    return words if point.word_order == "big" else words[::-1]


def _bytes(point: "Point", word: int) -> bytes:
    return word.to_bytes(2, "big" if point.byte_order == "big" else "little")
