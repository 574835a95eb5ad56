"""One value as a person sees it: what it says, how good it is, why not, and what was on the wire.

The same row comes from a device asked directly and from the image of a running controller, so that `read`,
`watch` and `checkout` need not know which of the two it was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controller.field import ABSENT
from controller.image.model import Quality, Value
from protocols.profile import Identity, Point, Profile

EXACT_BELOW: Final = 1e7  # seven digits are what a 32-bit float carries; a counter beyond is shown whole
MINUS: Final = "\u2212"
STATES_SHOWN: Final = 4  # of an enumeration, in the column for the expected range

NOT_FITTED: Final = "not fitted"

STYLES: Final = {"good": "green", "uncertain": "yellow", "bad": "bold red", NOT_FITTED: "dim"}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A value of a point, once.

    Attributes:
        raw: registers or variable as they came; "" where that is not known.
        age_s: since it was taken.
        why: it is not good, or hardly.
        refused: the number that came and is not believed; None: none came.
        absent: the device says that it does not have it, as SunSpec lets it: no fault.
    """

    point: Point
    value: Value
    quality: Quality
    why: str = ""
    raw: str = ""
    age_s: float = 0.0
    refused: float | None = None
    absent: bool = False

    @property
    def said(self) -> str:
        return said(self.point, self.value)

    @property
    def came(self) -> str:
        """For a person: what it says, believed or not; "" where nothing came."""
        return self.said or ("" if self.refused is None else number(self.refused))

    @property
    def standing(self) -> str:
        return NOT_FITTED if self.absent else self.quality.name.lower()

    def as_json(self) -> dict[str, Any]:
        return {
            "point": self.point.name,
            "value": self.value,
            "said": self.said,
            "unit": self.point.unit,
            "quality": self.quality.name.lower(),
            "why": self.why,
            "raw": self.raw,
            "refused": self.refused,
            "absent": self.absent,
            "age_s": round(self.age_s, 3),
        }


def good(point: Point, value: Value, raw: str = "", why: str = "") -> Shown:
    return Shown(point=point, value=value, quality=Quality.GOOD, raw=raw, why=why)


def bad(point: Point, why: str, raw: str = "", refused: float | None = None) -> Shown:
    return Shown(point=point, value=None, quality=Quality.BAD, why=why, raw=raw, refused=refused)


def absent(point: Point, raw: str = "") -> Shown:
    return Shown(point=point, value=None, quality=Quality.BAD, why=ABSENT, raw=raw, absent=True)


def said(point: Point, value: Value) -> str:
    """The value in words: states and flags by their names."""
    if value is None or isinstance(value, str):
        return printable(value or "")
    if point.enum:
        return f"{value:g} {point.enum.get(int(value), '?')}"
    if point.bits:
        active = [bit.name for number, bit in point.bits.items() if int(value) >> number & 1 == bit.active]
        return ", ".join(active) or "none"
    if point.unit == "bool":
        return "on" if value else "off"
    return number(value)


def wanted(profile: Profile, one: Identity) -> str:
    """What a point must say, a state by its name."""
    point = profile.points[one.point]
    named = point.unit == "bool" or bool(point.enum)
    return said(point, one.equals) if named and one.equals is not None else one.wanted


def printable(text: str) -> str:
    """What a device says about itself, without what would steer a terminal or break a line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def number(value: float) -> str:
    if value == int(value) and abs(value) >= EXACT_BELOW:
        return f"{value:.0f}"
    return f"{value:.7g}"


def unit(point: Point) -> str:
    """As it stands behind a number; states, flags and texts have none."""
    return "" if point.unit in ("bool", "count", "enum", "bits", "text") else point.unit


WITHOUT_RANGE: Final = {"bool": "on or off", "text": "a text"}


def expected(point: Point, lowest: float | None = None, highest: float | None = None) -> str:
    """What a plausible value looks like; bounds of the site stand in for those of the profile."""
    if point.enum:
        states = [f"{value} {name}" for value, name in point.enum.items()]
        rest = f" and {len(states) - STATES_SHOWN} more" if len(states) > STATES_SHOWN else ""
        return ", ".join(states[:STATES_SHOWN]) + rest
    if point.bits:
        return f"{len(point.bits)} flags"
    if point.unit in WITHOUT_RANGE:
        return WITHOUT_RANGE[point.unit]
    low = point.lowest if lowest is None else lowest
    high = point.highest if highest is None else highest
    if math.isinf(high):
        return "any number" if math.isinf(low) else f"{_bound(low, point)} or more"
    if math.isinf(low):
        return f"{_bound(high, point)} or less"
    return f"{grouped(low)} to {_bound(high, point)}"


def _bound(value: float, point: Point) -> str:
    return f"{grouped(value)} {unit(point)}".strip()


def grouped(value: float) -> str:
    """`50,000,000`: a bound is compared by eye. Its minus is none that a spreadsheet takes for a formula."""
    text = f"{value:,.0f}" if value == int(value) else number(value)
    return text.replace("-", MINUS)


def words_said(words: Sequence[int]) -> str:
    """Registers as people compare them with a document; bits as they are."""
    return " ".join(f"{word:04X}" for word in words)


def counted(shown: Mapping[str, Shown]) -> str:
    """`12 good, 1 uncertain, 2 bad, 40 not fitted`."""
    counts = {standing: sum(one.standing == standing for one in shown.values()) for standing in STYLES}
    return ", ".join(
        f"{count} {standing}" for standing, count in counts.items() if count or standing == "good"
    )
