"""What to think of registers whose number is not believed, or hardly: what they hold, and the usual mistake.

The order of the words of a 32- or 64-bit value is the vendor's own, and documents are silent about it or
wrong. Read the other way round, a float of ordinary size becomes a number far out of range, or one so near to
nothing that every range allows it: `voltage_v 4.17e-08 V`, and good. So where a number is out of its range,
tiny or absurd, and the same words the other way round are what one would expect, that is said. It is a hint
and no more: the value stays what its profile says that it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from controller.commissioning.shown import expected, said
from controller.commissioning.shown import unit as unit_of
from protocols import codec
from protocols.profile import Point
from protocols.reading import Value

TINY: Final = 1e-6  # of any unit: below what an instrument of a plant resolves
ABSURD: Final = 1e10  # beyond a 32-bit counter
ORDINARY: Final = (1e-3, 1e7)  # of whatever has no range
UNKNOWN: Final = "not present or implausible"
ONE_WORD: Final = 1
HINT: Final = "with word_order: "


def number_in(point: Point, words: Sequence[int], known: Mapping[str, Value]) -> float | None:
    """The number that registers hold, whatever the profile thinks of it; None for a mark, a NaN or a text."""
    free = replace(point, lowest=-math.inf, highest=math.inf, enum={})
    value = codec.decode(free, words, known)
    return None if isinstance(value, str) else value


def why_refused(point: Point, came: float | None) -> str:
    """Why registers that hold this number have no value."""
    if came is None:
        return UNKNOWN
    return f"implausible: its profile allows {expected(point)}"


def other_order(point: Point, words: Sequence[int], known: Mapping[str, Value]) -> str:
    """`with word_order: little it would be 2650.5 W`; "" where nothing speaks for it."""
    if codec.width(point) == ONE_WORD or point.unit in ("text", "bits") or codec.is_absent(point, words):
        return ""
    came = codec.decode(point, words, known)
    if isinstance(came, float | int) and (came == 0 or TINY <= abs(came) <= ABSURD):
        return ""
    order: Literal["big", "little"] = "little" if point.word_order == "big" else "big"
    value = codec.decode(replace(point, word_order=order), words, known)
    if not isinstance(value, float | int) or not _is_ordinary(point, abs(value)):
        return ""
    return f"{HINT}{order} it would be {said(point, value)} {unit_of(point)}".rstrip()


def _is_ordinary(point: Point, size: float) -> bool:
    least, most = ORDINARY
    is_bounded = bool(point.enum) or math.isfinite(point.highest)
    return (bool(point.enum) or size >= least) and (is_bounded or size <= most)
