"""One point: registers to its value and back."""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # profiles check their worked examples with this module: the import must not come back
    from protocols.profile.model import Point

# a number (bool as 0.0 and 1.0, states and bits as their number), a text, or None: nothing good to say
Value = float | str | None

# raw type -> (registers, struct code of the number, struct code of its bit pattern)
TYPES: Final = {
    "u16": (1, "H", "H"),
    "i16": (1, "h", "H"),
    "u32": (2, "I", "I"),
    "i32": (2, "i", "I"),
    "u64": (4, "Q", "Q"),
    "i64": (4, "q", "Q"),
    "f32": (2, "f", "I"),
    "f64": (4, "d", "Q"),
}
FLOATS: Final = ("f32", "f64")
REGISTER_MAX: Final = 0xFFFF
TEXT_MAX: Final = 4096  # characters of an OPC UA text that we pass on; more is not the name of anything
EXPONENT_MAX: Final = 10  # SunSpec Device Information Model Specification V1.1: scale factors are -10..10
NOTHING_KNOWN: Final[Mapping[str, Value]] = MappingProxyType({})


class CodecError(ValueError):
    """A value or registers that do not fit the point; the text says which and what would fit."""


def width(point: "Point") -> int:
    """How many registers (coils and discrete inputs: bits) the point takes; 1, 2 or 4, a string more."""
    if point.type == "string":
        return point.registers
    return 1 if point.type == "bool" else TYPES[point.type][0]


def decode(point: "Point", registers: Sequence[int], known: Mapping[str, Value] = NOTHING_KNOWN) -> Value:
    """Value of `point` in its unit; None where the device says or implies that it has none.

    Args:
        point: a Modbus point.
        registers: `width(point)` registers in wire order; one bit (0 or 1) for coils and discrete inputs.
        known: values of other points of the device, for one that has a scale factor.

    Raises:
        CodecError: the wrong number of registers, or one that is not 16 bits.
    """
    pattern = _pattern(point, registers)
    if point.type == "string":
        return _text(pattern)
    if point.type == "bool":
        return from_raw(point, float(any(registers)))
    bits = int.from_bytes(pattern, "big")
    if bits in point.sentinels:
        return None
    if point.mask:
        return from_raw(point, (bits & point.mask) >> lowest_bit(point.mask), known)
    raw = struct.unpack(f">{TYPES[point.type][1]}", pattern)[0]
    return from_raw(point, raw, known)


def is_absent(point: "Point", registers: Sequence[int]) -> bool:
    """Whether the device says that it has no such value: a mark, a text without characters, a float NaN.

    That is how SunSpec says "not implemented". Raises CodecError as `decode` does.
    """
    pattern = _pattern(point, registers)
    if point.type == "string":
        return not pattern.strip(b"\0 ")
    if point.type in FLOATS and math.isnan(struct.unpack(f">{TYPES[point.type][1]}", pattern)[0]):
        return True
    return int.from_bytes(pattern, "big") in point.sentinels


def encode(
    point: "Point",
    value: float | str,
    known: Mapping[str, Value] = NOTHING_KNOWN,
    onto: Sequence[int] | None = None,
) -> list[int]:
    """Registers that say `value`, to the nearest step the type has; never a step beyond the point's range.

    Args:
        point: a Modbus point.
        value: in the point's unit.
        known: values of other points of the device, for one that has a scale factor.
        onto: the registers as just read, for a point that shares them with others (`mask`).

    Raises:
        CodecError: not a finite number, outside the point's range, beyond its type, without its scale factor,
            or onto nothing.
    """
    if point.type == "string":
        return _words(point, _text_bytes(point, value))
    raw = to_raw(point, value, known)
    if point.type == "bool":
        return [int(bool(raw))]
    if point.mask:
        return _words(point, _masked(point, raw, known, onto))
    pattern = _nearest(point, raw, known)
    if int.from_bytes(pattern, "big") in point.sentinels:
        raise CodecError(f"{point.name}: {value} {point.unit} is the device's mark for 'not present'")
    return _words(point, pattern)


def from_raw(point: "Point", raw: float | str, known: Mapping[str, Value] = NOTHING_KNOWN) -> Value:
    """Value in the point's unit of what the device says (Modbus raw number, OPC UA variable)."""
    if isinstance(raw, str) or point.unit == "text":
        return _printable(raw) if isinstance(raw, str) and point.unit == "text" else None
    factor = _factor(point, known)
    if factor is None:
        return None
    try:
        value = raw * factor[0] / factor[1] + point.offset
    except OverflowError:  # an OPC UA integer of any length
        return None
    if not (math.isfinite(value) and point.lowest <= value <= point.highest):
        return None
    return None if point.enum and value not in point.enum else value


def to_raw(point: "Point", value: float | str, known: Mapping[str, Value] = NOTHING_KNOWN) -> float:
    """The number the device wants to hear for `value`; CodecError if it must not be said."""
    if isinstance(value, str):
        raise CodecError(f"{point.name}: {value!r} is a text; use a number in {point.unit}")
    if not (point.lowest <= value <= point.highest):  # also catches NaN
        raise CodecError(
            f"{point.name}: {value} {point.unit} refused; use {point.lowest} to {point.highest} {point.unit}"
        )
    if point.enum and value not in point.enum:
        states = ", ".join(f"{number} {name}" for number, name in point.enum.items())
        raise CodecError(f"{point.name}: {value} is none of its states; use {states}")
    factor = _factor(point, known)
    if factor is None:
        raise CodecError(f"{point.name}: its scale factor {point.scale_factor} is not known; read it first")
    return (value - point.offset) * factor[1] / factor[0]


# ---- registers and patterns ----


def _pattern(point: "Point", registers: Sequence[int]) -> bytes:
    """Bit pattern of the point, most significant byte first."""
    if len(registers) != width(point) or not all(0 <= r <= REGISTER_MAX for r in registers):
        raise CodecError(f"{point.name}: {list(registers)} is not {width(point)} register(s) of 16 bits")
    return b"".join(_bytes(point, r) for r in _ordered(point, registers))


def _words(point: "Point", pattern: bytes) -> list[int]:
    words = struct.unpack(f">{len(pattern) // 2}H", pattern)
    return [int.from_bytes(_bytes(point, word), "big") for word in _ordered(point, words)]


def _ordered(point: "Point", words: Sequence[int]) -> Sequence[int]:
    return words if point.word_order == "big" else words[::-1]


def _bytes(point: "Point", word: int) -> bytes:
    return word.to_bytes(2, "big" if point.byte_order == "big" else "little")


def lowest_bit(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _nearest(point: "Point", raw: float, known: Mapping[str, Value]) -> bytes:
    """The step of the type nearest to `raw` that still lies within the point's range."""
    code = f">{TYPES[point.type][1]}"
    try:
        patterns = _float_steps(point, raw) if point.type in FLOATS else _integer_steps(point, raw)
        for pattern in patterns:
            if from_raw(point, struct.unpack(code, pattern)[0], known) is not None:
                return pattern
    except (struct.error, OverflowError, ValueError) as error:
        raise CodecError(f"{point.name}: {raw:g} does not fit a {point.type}: {error}") from error
    raise CodecError(f"{point.name}: no step of a {point.type} lies in {point.lowest}..{point.highest}")


def _integer_steps(point: "Point", raw: float) -> Iterator[bytes]:
    code = f">{TYPES[point.type][1]}"
    yield struct.pack(code, round(raw))
    yield struct.pack(code, math.floor(raw))
    yield struct.pack(code, math.ceil(raw))


def _float_steps(point: "Point", raw: float) -> Iterator[bytes]:
    """The nearest float and its two neighbours, which are neighbours as bit patterns, too."""
    _, code, pattern_code = TYPES[point.type]
    nearest = struct.pack(f">{code}", raw)
    middle = struct.unpack(f">{pattern_code}", nearest)[0]
    yield nearest
    yield struct.pack(f">{pattern_code}", max(middle - 1, 0))
    yield struct.pack(f">{pattern_code}", middle + 1)


def _masked(point: "Point", raw: float, known: Mapping[str, Value], onto: Sequence[int] | None) -> bytes:
    if onto is None:
        raise CodecError(f"{point.name}: shares its register with other points; read it, then write onto it")
    steps = (round(raw), math.floor(raw), math.ceil(raw)) if math.isfinite(raw) else ()
    step = next((step for step in steps if from_raw(point, step, known) is not None), -1)
    field = step << lowest_bit(point.mask) if step >= 0 else -1
    if field < 0 or field & ~point.mask:
        raise CodecError(f"{point.name}: {raw:g} does not fit the mask {point.mask:#x}")
    before = int.from_bytes(_pattern(point, onto), "big")
    after = before & ~point.mask | field
    if not {before, after}.isdisjoint(point.sentinels):
        raise CodecError(f"{point.name}: its register is, or would become, the mark for 'not present'")
    return after.to_bytes(2 * width(point), "big")


# ---- scale and text ----


@lru_cache(maxsize=1024)  # one entry per scale and exponent in use; a profile has a dozen
def fraction(scale: float, exponent: int) -> tuple[float, float]:
    """`scale * 10**exponent` as a fraction: 3 / 10 is 0.3, but 3 * 0.1 is 0.30000000000000004."""
    over = round(1 / scale) if scale and abs(scale) < 1 else 0
    numerator, denominator = (1.0, float(over)) if over and 1 / over == scale else (scale, 1.0)
    if exponent < 0:
        return numerator, denominator * 10.0**-exponent
    return numerator * 10.0**exponent, denominator


def _factor(point: "Point", known: Mapping[str, Value]) -> tuple[float, float] | None:
    if not point.scale_factor:
        return fraction(point.scale, 0)
    exponent = known.get(point.scale_factor)
    if not isinstance(exponent, float | int) or not -EXPONENT_MAX <= exponent <= EXPONENT_MAX:
        return None
    return fraction(point.scale, int(exponent))


def _text(pattern: bytes) -> str | None:
    """Characters up to the first NUL, without blanks around; None if there are none or they are not ASCII."""
    try:
        return _printable(pattern.split(b"\0", 1)[0].decode("ascii"))
    except UnicodeDecodeError:
        return None


def _printable(text: str) -> str | None:
    text = text.strip()
    return text if text and text.isprintable() and len(text) <= TEXT_MAX else None


def _text_bytes(point: "Point", value: float | str) -> bytes:
    room = 2 * width(point)
    if not isinstance(value, str) or not value.isascii() or _printable(value) != value or len(value) > room:
        raise CodecError(f"{point.name}: {value!r} is not 1 to {room} printable ASCII characters")
    return value.encode("ascii").ljust(room, b"\0")
