"""What a server's words mean: DataValue to value, number to Variant. Pure.

Only Good counts. Uncertain mostly means "the last one I had", so it is no value either, and its name says so.
An array, a structure or a text where a number belongs is a fault of the profile, not a guess.

Numbers go out as the node's own type, which the server names; most servers refuse any other, and some refuse
a value that comes with a status or a time stamp.
"""

import math
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from asyncua import ua

from protocols import codec
from protocols.opcua.fence import explained, status_name
from protocols.profile import Point
from protocols.reading import Value

SHOWN_MAX_CHARS: Final = 60  # of what a server says, in the sentence about it
TRUTHS: Final = ("bool", "enum")  # units whose number may come as True or False
OLDEST_STAMP: Final = datetime(1990, 1, 1, tzinfo=UTC)  # before that it is the zero of OPC UA's calendar

INTEGERS: Final = {
    ua.VariantType.SByte: (-(2**7), 2**7 - 1),
    ua.VariantType.Byte: (0, 2**8 - 1),
    ua.VariantType.Int16: (-(2**15), 2**15 - 1),
    ua.VariantType.UInt16: (0, 2**16 - 1),
    ua.VariantType.Int32: (-(2**31), 2**31 - 1),
    ua.VariantType.UInt32: (0, 2**32 - 1),
    ua.VariantType.Int64: (-(2**63), 2**63 - 1),
    ua.VariantType.UInt64: (0, 2**64 - 1),
    ua.VariantType.Boolean: (0, 1),
}
FLOATS: Final = {ua.VariantType.Float: "<f", ua.VariantType.Double: "<d"}


class UnfitError(ValueError):
    """A number that the node cannot hold, and why."""


def judge(point: Point, answer: ua.DataValue) -> tuple[Value, str]:
    """(value, "") or (None, why not)."""
    if answer.StatusCode is not None and not answer.StatusCode.is_good():
        name = status_name(answer.StatusCode)
        said = explained(name)
        return None, said if said != name else f"{name}; see the server's own diagnosis"
    raw = raw_of(answer)
    wanted, name = (str, "text") if point.unit == "text" else (float | int, "number")
    truth = isinstance(raw, bool) and point.unit not in TRUTHS  # True is no watt
    if truth or not isinstance(raw, wanted):
        what = "an array" if isinstance(raw, list) else f"a {type(raw).__name__}"
        return None, f"{what} where a {name} belongs; check the profile's node"
    split = point.unit == "bool" and not point.enum and raw not in (0, 1)  # a switch is on or off
    value = None if split else codec.from_raw(point, raw)
    if value is None:
        expected = "one of its states" if point.enum else f"{point.lowest} to {point.highest} {point.unit}"
        shown = repr(raw[:SHOWN_MAX_CHARS] if isinstance(raw, str) else raw)[:SHOWN_MAX_CHARS]
        return None, f"{shown} is implausible; expected {expected}"
    return value, ""


def trace(raw: Any) -> str:
    """By which a change shows: a stuck NaN equals itself, and arrays, no values here, equal one another."""
    return repr(raw) if isinstance(raw, float | int | str) else type(raw).__name__


def raw_of(answer: ua.DataValue) -> Any:
    """The bare value: number, bool, text, list or whatever else a server may say; None for nothing."""
    raw = answer.Value.Value if answer.Value is not None else None
    return raw.Text if isinstance(raw, ua.LocalizedText) else raw


def source_stamp_s(answer: ua.DataValue) -> float | None:
    """UTC of the value as the device dates it, or else as its server does; None if neither says."""
    return utc_s(answer.SourceTimestamp) or utc_s(answer.ServerTimestamp)


def utc_s(moment: Any) -> float | None:
    if not isinstance(moment, datetime):
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return moment.timestamp() if moment > OLDEST_STAMP else None


def variant(point: Point, value: float, kind: ua.VariantType, lowest: float, highest: float) -> ua.Variant:
    """`value` (in the point's unit) as the node holds it: the nearest step of its type within the bounds.

    Raises:
        UnfitError: no number goes into the type, or none of its steps lies within the bounds.
        codec.CodecError: outside what is plausible for the point.
    """
    wanted = codec.to_raw(point, value)
    for raw in _steps(wanted, kind):
        shown = codec.from_raw(point, raw)
        if isinstance(shown, float | int) and lowest <= shown <= highest:
            return ua.Variant(bool(raw) if kind is ua.VariantType.Boolean else raw, kind)
    raise UnfitError(f"the device wants a {kind.name}, and {wanted:g} is none that the rule allows")


def exact(value: float, kind: ua.VariantType) -> ua.Variant:
    """`value` as an argument of a method: whole for integer types. Raises UnfitError if it does not fit."""
    for raw in _steps(value, kind):
        if kind in FLOATS or raw == value:
            return ua.Variant(bool(raw) if kind is ua.VariantType.Boolean else raw, kind)
    raise UnfitError(f"the method wants a {kind.name}, not {value:g}")


def plain(output: ua.Variant) -> Value:
    """What a method returned, as far as it is a number or a text."""
    raw = output.Value.Text if isinstance(output.Value, ua.LocalizedText) else output.Value
    if isinstance(raw, str):
        return raw
    return float(raw) if isinstance(raw, float | int) and math.isfinite(raw) else None


def same(wanted: ua.Variant, raw: Any) -> bool:
    """Whether the device shows what it was told."""
    if not isinstance(raw, float | int):
        return False
    if wanted.VariantType in FLOATS:
        return math.isclose(wanted.Value, raw, rel_tol=1e-6, abs_tol=1e-12)  # as much as a Float can carry
    return bool(wanted.Value == raw)


def _steps(wanted: float, kind: ua.VariantType) -> Iterator[float]:
    if kind in FLOATS:
        try:
            yield struct.unpack(FLOATS[kind], struct.pack(FLOATS[kind], wanted))[0]
        except OverflowError:
            return
    elif kind in INTEGERS and math.isfinite(wanted):
        lowest, highest = INTEGERS[kind]
        for step in (round(wanted), math.floor(wanted), math.ceil(wanted)):
            if lowest <= step <= highest:
                yield step
