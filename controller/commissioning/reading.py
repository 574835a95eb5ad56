"""`read` once and `watch` for ever: values with quality, age and reason, as a table or as plain lines.

A watch survives what a device does: while it is away its points are bad, with the reason, and it is looked
for again with every turn. Least and greatest values are of what has been seen here, good ones alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.commissioning.shown import QUALITY_STYLES, Shown, bad, counted, number
from controller.commissioning.shown import unit as unit_of
from controller.commissioning.sources import Source, opened
from controller.commissioning.target import Target
from controller.image.model import Quality
from controller.views.figures import span
from protocols.profile import Point
from protocols.reading import DeviceError

EVERY_LEAST_S: Final = 0.1  # the wire of a slow device is not ours alone


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
        return not self.stranger and all(one.quality is Quality.GOOD for one in self.shown.values())

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
    """

    target: Target
    names: Sequence[str]
    every_s: float
    seen: dict[str, Seen] = field(default_factory=dict)

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
                yield _look(self.target, source, shown)
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


def seconds(text: str) -> float:
    """`1s`, `0.5`, `200ms`, `2m`. Raises ValueError with the remedy."""
    for ending, factor in (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("", 1.0)):
        if text.endswith(ending):
            try:
                value = float(text.removesuffix(ending)) * factor
            except ValueError:
                break
            if EVERY_LEAST_S <= value <= 3600.0:
                return value
            break
    raise ValueError(f"{text!r} is no period; write 1s, 500ms or 2m, from {EVERY_LEAST_S:g} s to an hour")


# --- on paper -----------------------------------------------------------------------------------------------


def render(seen: Look) -> RenderableType:
    return Group(*_head(seen), _table(seen.shown, {}))


def render_watch(seen: Look, ranges: Mapping[str, Seen]) -> RenderableType:
    when = datetime.fromtimestamp(seen.at_utc_s, UTC)
    return Group(*_head(seen), _table(seen.shown, ranges), Text(f"{when:%H:%M:%S} UTC", style="dim"))


def lines(seen: Look) -> str:
    """One line per point, for a pipe: time, point, value, unit, quality, reason, separated by tabs."""
    when = datetime.fromtimestamp(seen.at_utc_s, UTC).isoformat(timespec="milliseconds")
    return "\n".join(
        "\t".join((when, name, one.said, unit_of(one.point), one.quality.name.lower(), one.why)).rstrip()
        for name, one in seen.shown.items()
    )


def _head(seen: Look) -> list[RenderableType]:
    head: list[RenderableType] = [
        Text.assemble((seen.name, "bold"), f"  {seen.where}  ", (counted(seen.shown), "dim"))
    ]
    if seen.stranger:
        head.append(Text(seen.stranger, style="bold red"))
    return head


def _table(shown: Mapping[str, Shown], ranges: Mapping[str, Seen]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("point", no_wrap=True)
    table.add_column("value", justify="right", overflow="fold")
    table.add_column("unit")
    table.add_column("quality")
    table.add_column("age", justify="right", no_wrap=True)
    if ranges:
        table.add_column("least", justify="right")
        table.add_column("greatest", justify="right")
    table.add_column("raw", overflow="fold", style="dim")
    table.add_column("why", overflow="fold")
    for name, one in shown.items():
        cells: list[RenderableType] = [
            Text(name, style="bold"),
            Text(one.said or "?"),
            Text(unit_of(one.point)),
            Text(one.quality.name.lower(), style=QUALITY_STYLES[one.quality]),
            Text(span(one.age_s)),
        ]
        if ranges:
            seen = ranges.get(name, Seen())
            cells += [Text("" if end is None else number(end)) for end in (seen.lowest, seen.highest)]
        table.add_row(*cells, Text(one.raw), Text(one.why))
    return table
