"""All points of one read request, compiled once: what a poll costs is decided here.

All numbers of one word and byte order are unpacked by one struct. Taking the registers of a read backwards
turns swapped words into plain ones, so two directions and two byte orders cover everything. Points that share
registers (masks) get a layer each. Scale factors are decoded before what rests on them.
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from protocols.codec.point import (
    EXPONENT_MAX,
    FLOATS,
    NOTHING_KNOWN,
    TYPES,
    CodecError,
    Value,
    decode,
    fraction,
    from_raw,
    lowest_bit,
    width,
)

if TYPE_CHECKING:
    from protocols.profile.model import Point

FINITE: Final = math.nextafter(math.inf, 0.0)  # infinity compares like a number, but is none


class _Plain(NamedTuple):
    """A number that needs its range checked and nothing else."""

    name: str
    numerator: float
    denominator: float
    offset: float
    lowest: float
    highest: float


class _Checked(NamedTuple):
    """A number with marks, a mask, named states or a scale factor."""

    name: str
    scale: float
    scale_factor: str
    offset: float
    lowest: float
    highest: float
    sentinels: frozenset[int]
    mask: int
    shift: int
    states: frozenset[float]


_S = TypeVar("_S", _Plain, _Checked)


class _Layer(NamedTuple, Generic[_S]):
    """Numbers of one order that share no register: one struct unpacks them all."""

    backward: bool
    unpack: Callable[[bytes], tuple[Any, ...]]
    steps: tuple[_S, ...]


class SpanDecoder:
    """Compiled decoder of the points that one read request carries.

    Raises CodecError when built with a point that does not lie in first..first+count-1.
    """

    __slots__ = ("_backward", "_bits", "_checked", "_count", "_none", "_odd", "_plain", "_words")

    def __init__(self, points: Sequence["Point"], first: int, count: int) -> None:
        for point in points:
            if not first <= point.address <= point.last_address < first + count:
                raise CodecError(f"{point.name}: lies outside the read {first}..{first + count - 1}")
        self._count = count
        self._words = struct.Struct(f">{count}H")
        self._none: dict[str, Value] = dict.fromkeys(point.name for point in points)
        bits = [point for point in points if point.type == "bool"]
        if bits and len(bits) != len(points):
            raise CodecError(f"{bits[0].name}: coils and registers do not come with one read")
        odd = [point for point in points if _is_odd(point)]
        numbers = [point for point in points if point.type != "bool" and not _is_odd(point)]
        checked = [point for point in numbers if not _is_plain(point)]
        free = [point for point in checked if not point.scale_factor]
        resting = [point for point in checked if point.scale_factor]
        self._bits = [(point, point.address - first) for point in bits]
        self._odd = [(point, point.address - first) for point in odd]
        self._plain = list(_layers([point for point in numbers if _is_plain(point)], first, count, _plain))
        self._checked = [
            layer for group in (free, resting) for layer in _layers(group, first, count, _checked)
        ]
        self._backward = any(width(point) > 1 and point.word_order != point.byte_order for point in numbers)

    def values(
        self, registers: Sequence[int] | bytes, known: Mapping[str, Value] = NOTHING_KNOWN
    ) -> dict[str, Value]:
        """Value of every point, in the order they were given; None as in `decode`.

        Args:
            registers: of the whole read, or the reply's data as it came (two bytes per register; eight coils
                per byte, the first in the lowest bit).
            known: values of points of other reads, for scale factors that lie there.

        Raises:
            CodecError: not `count` registers of 16 bits (or not `count` bits).
        """
        if self._bits:
            return self._of_bits(registers)
        values = self._none.copy()
        forward = registers if isinstance(registers, bytes) else self._packed(registers)
        if len(forward) != 2 * self._count:
            raise CodecError(f"{len(forward)} bytes are not the {self._count} registers of this read")
        words = self._words.unpack(forward) if self._backward or self._odd else ()
        backward = self._words.pack(*words[::-1]) if self._backward else b""
        for layer in self._plain:
            raws = layer.unpack(backward if layer.backward else forward)
            for (name, numerator, denominator, offset, lowest, highest), raw in zip(
                layer.steps, raws, strict=True
            ):
                value = raw * numerator / denominator + offset
                if lowest <= value <= highest:
                    values[name] = value
        for other in self._checked:
            raws = other.unpack(backward if other.backward else forward)
            _check(other.steps, raws, values, known)
        for point, at in self._odd:
            values[point.name] = decode(point, words[at : at + width(point)], {**known, **values})
        return values

    def _packed(self, registers: Sequence[int]) -> bytes:
        try:
            return self._words.pack(*registers)
        except struct.error as error:
            raise CodecError(f"not {self._count} registers of 16 bits: {error}") from error

    def _of_bits(self, bits: Sequence[int] | bytes) -> dict[str, Value]:
        if isinstance(bits, bytes):
            bits = [byte >> i & 1 for byte in bits for i in range(8)][: self._count]
        if len(bits) < self._count:
            raise CodecError(f"{len(bits)} bits are not the {self._count} of this read")
        return {point.name: from_raw(point, float(bool(bits[at]))) for point, at in self._bits}


def _check(
    steps: Sequence[_Checked], raws: Sequence[Any], values: dict[str, Value], known: Mapping[str, Value]
) -> None:
    """Enter the value of each step that passes into `values`, where its scale factor may stand already."""
    for (name, scale, factor, offset, lowest, highest, sentinels, mask, shift, states), raw in zip(
        steps, raws, strict=True
    ):
        if raw in sentinels:
            continue
        exponent: Value = 0.0
        if factor:
            exponent = values[factor] if factor in values else known.get(factor)
        if not isinstance(exponent, float | int) or not -EXPONENT_MAX <= exponent <= EXPONENT_MAX:
            continue
        numerator, denominator = fraction(scale, int(exponent))
        value = ((raw & mask) >> shift if mask else raw) * numerator / denominator + offset
        if lowest <= value <= highest and (not states or value in states):
            values[name] = value


def _is_odd(point: "Point") -> bool:
    """Whether `decode` itself must look: texts, and marks that two bit patterns of a float could share."""
    return point.type == "string" or (point.type in FLOATS and bool(point.sentinels))


def _is_plain(point: "Point") -> bool:
    return not (point.sentinels or point.mask or point.enum or point.scale_factor)


def _plain(point: "Point") -> _Plain:
    numerator, denominator = fraction(point.scale, 0)
    return _Plain(point.name, numerator, denominator, point.offset, *_finite_range(point))


def _checked(point: "Point") -> _Checked:
    return _Checked(
        name=point.name,
        scale=point.scale,
        scale_factor=point.scale_factor,
        offset=point.offset,
        lowest=_finite_range(point)[0],
        highest=_finite_range(point)[1],
        sentinels=frozenset(_as_unpacked(point, mark) for mark in point.sentinels),
        mask=point.mask,
        shift=lowest_bit(point.mask),
        states=frozenset(point.enum),
    )


def _finite_range(point: "Point") -> tuple[float, float]:
    """The range without infinity, which would compare like a number; NaN fails every comparison by itself."""
    return max(point.lowest, -FINITE), min(point.highest, FINITE)


def _code(point: "Point") -> str:
    """A mask is of the unsigned pattern, everything else of the number."""
    _, number, pattern = TYPES[point.type]
    return pattern if point.mask else number


def _as_unpacked(point: "Point", mark: int) -> int:
    pattern = struct.pack(f">{TYPES[point.type][2]}", mark)
    number: int = struct.unpack(f">{_code(point)}", pattern)[0]
    return number


def _layers(
    points: Sequence["Point"], first: int, count: int, step: Callable[["Point"], _S]
) -> Iterator[_Layer[_S]]:
    """The fewest structs that unpack `points`, each of one direction and byte order."""
    orders: dict[tuple[bool, str], list[tuple[int, Point]]] = {}
    for point in points:
        backward = width(point) > 1 and point.word_order != point.byte_order
        at = count - 1 - (point.last_address - first) if backward else point.address - first
        orders.setdefault((backward, "<" if point.byte_order == "little" else ">"), []).append((at, point))
    for (backward, endian), placed in orders.items():
        waiting = sorted(placed, key=lambda entry: entry[0])
        while waiting:
            code, layer, waiting = _one_layer(waiting)
            yield _Layer(backward, struct.Struct(endian + code).unpack_from, tuple(map(step, layer)))


def _one_layer(
    placed: Sequence[tuple[int, "Point"]],
) -> tuple[str, list["Point"], list[tuple[int, "Point"]]]:
    """Struct code and points that do not overlap, and what is left for the next layer."""
    code, end = "", 0
    layer: list[Point] = []
    left: list[tuple[int, Point]] = []
    for at, point in placed:
        if at < end:
            left.append((at, point))
            continue
        code += f"{2 * (at - end)}x{_code(point)}"
        end = at + width(point)
        layer.append(point)
    return code, layer, left
