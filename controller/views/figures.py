"""Numbers as people read them: kW, spans of time, moments, bars.

The program counts in W and s throughout; this file is the last step before an eye. Two decimals of a kW are
ten watts, which is finer than any block is metered and coarse enough to compare at a glance. Moments are
UTC, because a block and its grid operator compare notes.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

FOREVER_UTC_S: Final = 253_402_300_799.0  # the last second a calendar knows; later is "no end"
DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0
MINUTE_S: Final = 60.0
UNITS_S: Final = {"s": 1.0, "m": MINUTE_S, "h": HOUR_S, "d": DAY_S}
MARK: Final = "┃"
BAR_COLUMNS_MIN: Final = 8  # shorter ones say nothing


def kw(power_w: float | None) -> str:
    """`9,876.54 kW`; a power that is not known is a question mark."""
    return "? kW" if power_w is None else f"{power_w / 1e3:,.2f} kW"


def percent(ratio: float) -> str:
    return f"{100.0 * ratio:.0f} %"


def span(length_s: float) -> str:
    """A length of time in its two leading units: `0.4 s`, `2 min 05 s`, `3 h`, `4 d 06 h`."""
    if length_s < 10.0:
        return f"{length_s:.1f} s"
    whole_s = round(length_s)
    for unit_s, unit, part_s, part in (
        (DAY_S, "d", HOUR_S, "h"),
        (HOUR_S, "h", MINUTE_S, "min"),
        (MINUTE_S, "min", 1.0, "s"),
    ):
        if whole_s >= unit_s:
            whole, rest = f"{whole_s // unit_s:.0f} {unit}", int(whole_s % unit_s // part_s)
            return f"{whole} {rest:02d} {part}" if rest else whole
    return f"{whole_s} s"


def short(length_s: float | None) -> str:
    """A moment's length: `0.4 ms`, `15 ms`, `1.20 s`; one that was not seen is a question mark."""
    if length_s is None:
        return "?"
    if length_s >= 1.0:
        return f"{length_s:.2f} s"
    return f"{1e3 * length_s:.1f} ms" if length_s < 0.01 else f"{1e3 * length_s:.0f} ms"


def length_s(text: str) -> float:
    """A length of time as people type it: `90s`, `15m`, `2h`, `1d`. Raises ValueError."""
    if text[-1:] not in UNITS_S or not text[:-1].isdecimal():
        raise ValueError(f"{text!r} is no length of time; write 90s, 15m, 2h")
    return int(text[:-1]) * UNITS_S[text[-1]]


def relative(at_utc_s: float, now_utc_s: float) -> str:
    """`in 2 min 05 s`, `12 s ago`, `now`, `never`."""
    if at_utc_s >= FOREVER_UTC_S:
        return "never"
    ahead_s = at_utc_s - now_utc_s
    if abs(ahead_s) < 0.05:
        return "now"
    return f"in {span(ahead_s)}" if ahead_s > 0 else f"{span(-ahead_s)} ago"


def moment(at_utc_s: float, near_utc_s: float) -> str:
    """`18:00:00` on the day of `near_utc_s`, `11-21 18:00:00` in its year, with the year otherwise."""
    if at_utc_s >= FOREVER_UTC_S:
        return "no end"
    at, near = datetime.fromtimestamp(at_utc_s, UTC), datetime.fromtimestamp(near_utc_s, UTC)
    if at.date() == near.date():
        return f"{at:%H:%M:%S}"
    return f"{at:%m-%d %H:%M:%S}" if at.year == near.year else f"{at:%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class Bar:
    """A bar from 0 to `top` over the columns it is given, with a mark where the `mark` lies."""

    value: float
    mark: float
    top: float
    style: str

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        filled = self._column(self.value, width)
        place = min(width - 1, self._column(self.mark, width))
        text = Text("█" * filled, style=self.style)
        text.append("░" * (width - filled), style="dim")
        yield text[:place] + Text(MARK, style="bold") + text[place + 1 :]

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(BAR_COLUMNS_MIN, options.max_width)

    def _column(self, at: float, width: int) -> int:
        return min(width, max(0, round(width * at / self.top))) if self.top > 0.0 else 0
