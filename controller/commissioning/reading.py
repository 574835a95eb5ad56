"""`read` once and `watch` for ever: values with quality, age and reason, as a table or as plain lines.

A watch survives what a device does: while it is away its points are bad, with the reason, and it is looked
for again with every turn. Least and greatest values are of what has been seen here, good ones alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from controller.commissioning.shown import STYLES, Shown, bad, counted, number
from controller.commissioning.shown import unit as unit_of
from controller.commissioning.sources import Source, opened
from controller.commissioning.target import Target
from controller.image.model import Quality
from controller.views.figures import span
from protocols.profile import Point
from protocols.reading import DeviceError

GAP: Final = 2  # between two columns
ROWS_BESIDE: Final = 4  # of a screen: who it is, a stranger's mark, names of columns, the time
FOLDING: Final = {"value": 24, "why": 20, "raw": 20}  # characters that they want at least
NEVER_LEFT_OUT: Final = ("point", "value", "quality", "why")
COLUMNS: Final[dict[str, Literal["left", "right"]]] = {
    "point": "left", "value": "right", "unit": "left", "quality": "left", "age": "right", "least": "right",
    "greatest": "right", "raw": "left", "why": "left",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a device."""

    name: str
    where: str
    stranger: str
    shown: Mapping[str, Shown]
    at_utc_s: float

    @property
    def well(self) -> bool:
        """Whether all that the device has is good, and something is."""
        fitted = [one for one in self.shown.values() if not one.absent]
        return bool(fitted) and not self.stranger and all(one.quality is Quality.GOOD for one in fitted)

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.name,
            "where": self.where,
            "at_utc_s": round(self.at_utc_s, 3),
            "stranger": self.stranger,
            "values": [one.as_json() for one in self.shown.values()],
        }


@dataclass
class Seen:
    """Least and greatest good value of a point."""

    lowest: float | None = None
    highest: float | None = None

    def take(self, shown: Shown) -> None:
        value = shown.value
        if shown.quality is Quality.GOOD and isinstance(value, float | int):
            self.lowest = value if self.lowest is None else min(self.lowest, value)
            self.highest = value if self.highest is None else max(self.highest, value)


async def look(target: Target, names: Sequence[str]) -> Look:
    """One look. Raises DeviceError or ToolError."""
    source = await opened(target)
    try:
        points = source.points(names)
        return _look(target, source, await source.take(points))
    finally:
        await source.close()


def _look(target: Target, source: Source, shown: Mapping[str, Shown]) -> Look:
    return Look(
        name=target.name, where=source.where, stranger=source.stranger, shown=shown, at_utc_s=time.time()
    )


@dataclass
class Watch:
    """Looks, one after the other.

    Attributes:
        target: whom to look at.
        names: its points; none: all.
        every_s: from the beginning of one look to that of the next.
        seen: what has been seen, by point.
        last: the newest look.
    """

    target: Target
    names: Sequence[str]
    every_s: float
    seen: dict[str, Seen] = field(default_factory=dict)
    last: Look | None = None

    async def looks(self) -> AsyncIterator[Look]:
        """For ever. Raises DeviceError or ToolError if the first one fails: a typing error, most likely."""
        source = await opened(self.target)
        try:
            points = source.points(self.names)
            shown: dict[str, Shown] = {}
            taken_at_s: dict[str, float] = {}
            while True:
                begun_s = time.monotonic()
                shown = await self._shown(source, points, shown, taken_at_s)
                for name, one in shown.items():
                    self.seen.setdefault(name, Seen()).take(one)
                self.last = _look(self.target, source, shown)
                yield self.last
                await asyncio.sleep(max(0.0, begun_s + self.every_s - time.monotonic()))
        finally:
            await source.close()

    async def _shown(
        self,
        source: Source,
        points: Sequence[Point],
        before: Mapping[str, Shown],
        taken_at_s: dict[str, float],
    ) -> dict[str, Shown]:
        """Newest values; while there are none the reason, and the age of what was good last."""
        try:
            shown = await source.take(points)
        except DeviceError as error:
            shown = {point.name: bad(point, str(error)) for point in points}
        now_s = time.monotonic()
        for name, one in shown.items():
            if one.quality is not Quality.BAD:
                taken_at_s[name] = now_s - one.age_s
            elif name in before:
                shown[name] = replace(one, age_s=now_s - taken_at_s.get(name, now_s))
        return shown


# --- on paper -----------------------------------------------------------------------------------------------


def lines(seen: Look) -> str:
    """One line per point, for a pipe: time, point, value, unit, quality, reason, separated by tabs."""
    when = datetime.fromtimestamp(seen.at_utc_s, UTC).isoformat(timespec="milliseconds")
    return "\n".join(
        "\t".join((when, name, one.said, unit_of(one.point), one.quality.name.lower(), one.why)).rstrip()
        for name, one in seen.shown.items()
    )


@dataclass(frozen=True)
class Screen:
    """A look as a table that fits: no figure is ever cut, so what does not fit is left out whole.

    Attributes:
        seen: the look.
        ranges: what has been seen before, for the columns of a watch.
        live: fills the screen, and says which rows did not fit.
    """

    seen: Look
    ranges: Mapping[str, Seen] = field(default_factory=dict)
    live: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        seen = self.seen
        head = f"  {seen.where}  "
        yield Text.assemble((seen.name, "bold"), head, (counted(seen.shown), "dim"), no_wrap=self.live)
        if seen.stranger:
            yield Text(seen.stranger, style="bold red", no_wrap=self.live)
        rows = list(seen.shown.values())
        room = console.height - ROWS_BESIDE if self.live else len(rows)
        yield self._table(rows[:room], options.max_width)
        if not self.live:
            return
        hidden = {one.point.name: one for one in rows[room:]}
        more = f"; {len(hidden)} more do not fit ({counted(hidden)}): name points to watch" if hidden else ""
        yield Text(f"{datetime.fromtimestamp(seen.at_utc_s, UTC):%H:%M:%S} UTC{more}", style="dim")

    def _table(self, rows: Sequence[Shown], width: int) -> Table:
        columns = _fitting(self._columns(rows), width)
        table = Table(box=None, padding=(0, GAP, 0, 0), header_style="dim")
        shown = {name: columns[name] for name in COLUMNS if name in columns}
        for name, (_, wide) in shown.items():
            folds = name in FOLDING and not self.live
            table.add_column(name, justify=COLUMNS[name], no_wrap=not folds, min_width=wide, overflow="fold")
        for row in zip(*(cells for cells, _ in shown.values()), strict=True):
            table.add_row(*row)
        if self.live:  # one line each: that is how they are counted
            for cells, wide in shown.values():
                for cell in cells:
                    cell.truncate(wide, overflow="ellipsis")
        return table

    def _columns(self, rows: Sequence[Shown]) -> dict[str, list[Text]]:
        """By name, in the order in which they are missed."""
        columns = {
            "point": [Text(one.point.name, style="bold") for one in rows],
            "value": [Text(one.came or ("" if one.absent else "?")) for one in rows],
            "quality": [Text(one.standing, style=STYLES[one.standing]) for one in rows],
            "why": [Text(one.why) for one in rows],
            "unit": [Text(unit_of(one.point)) for one in rows],
        }
        ranges = [self.ranges.get(one.point.name, Seen()) for one in rows]
        if self.ranges:
            columns["least"] = [Text(_figure(one.lowest)) for one in ranges]
            columns["greatest"] = [Text(_figure(one.highest)) for one in ranges]
        columns["raw"] = [Text(one.raw, style="dim") for one in rows]
        columns["age"] = [Text(span(one.age_s)) for one in rows]
        return columns


def _fitting(columns: dict[str, list[Text]], width: int) -> dict[str, tuple[list[Text], int]]:
    """Columns that are not empty and have room without a figure being cut, and how wide each is at least."""
    kept: dict[str, tuple[list[Text], int]] = {}
    for name, cells in columns.items():
        widest = max((cell.cell_len for cell in cells), default=0)
        wide = max(len(name), min(widest, FOLDING.get(name, widest)))
        if widest and (wide + GAP <= width or name in NEVER_LEFT_OUT):
            kept[name] = cells, wide
            width -= wide + GAP
    if "why" in kept:  # what is left over is for the reasons
        cells, wide = kept["why"]
        kept["why"] = cells, min(wide + max(width, 0), max(cell.cell_len for cell in cells))
    return kept


def _figure(value: float | None) -> str:
    return "" if value is None else number(value)
