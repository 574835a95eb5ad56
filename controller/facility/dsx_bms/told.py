"""One point on the bus, and what was told of it: on change beyond its deadband, and when its time has come.

A value that is missing, stale or doubted is told as such: null with quality 0, or the value with quality 2.
"""

from collections.abc import Sequence
from typing import Final

from controller.clock import now_utc_s
from controller.facility.dsx_bms.bus_map import BusPoint
from controller.image.image import GroupCells
from controller.image.model import Cell, Quality
from protocols.bms import BAD, GOOD, UNCERTAIN, Value
from protocols.mqtt import Outgoing

QUALITIES: Final = {Quality.GOOD: GOOD, Quality.UNCERTAIN: UNCERTAIN, Quality.BAD: BAD}
DIGITS: Final = 9  # a factor of 0.001 shall not tell 1.2345000000000002


class Told:
    """One point, and what was told of it."""

    def __init__(self, point: BusPoint, sources: Sequence[tuple[GroupCells, int]], share: float) -> None:
        self.point = point
        self.metadata = Outgoing(point.metadata_topic, point.meta.payload(), 0, retain=True)
        self.due_at_s = 0.0  # 0: nothing was told in this session
        self._share = share  # of a period: so that not all are due at once
        self._sources = sources
        self._value: float | None = None
        self._quality = -1

    def messages(self, at_s: float, repeat_s: float, *, alive: bool) -> tuple[Outgoing, ...]:
        """What is to be told now."""
        value = self._now(at_s) if alive else _missing()
        due = at_s >= self.due_at_s
        if not due and not self._differs(value):
            return ()
        self._value, self._quality = value.value, value.quality
        message = Outgoing(self.point.value_topic, value.payload())
        if not due:
            return (message,)
        self.due_at_s = at_s + repeat_s * (self._share if self.due_at_s == 0.0 else 1.0)
        return self.metadata, message

    def _differs(self, value: Value) -> bool:
        if value.quality != self._quality or value.value is None or self._value is None:
            return value.quality != self._quality
        return abs(value.value - self._value) > self.point.deadband

    def _now(self, at_s: float) -> Value:
        cells = [cells.cell(place, at_s) for cells, place in self._sources]
        quality = min(cell.quality for cell in cells)
        numbers = [cell.value for cell in cells if isinstance(cell.value, (int, float))]
        if quality is Quality.BAD or len(numbers) < len(cells):
            return _missing()
        return Value(self._number(sum(numbers)), _source_ms(cells), QUALITIES[quality])

    def _number(self, value: float) -> float:
        return float(value != 0.0) if self.point.nonzero else round(value * self.point.scale, DIGITS)


def _missing() -> Value:
    return Value(None, int(now_utc_s() * 1000), BAD)


def _source_ms(cells: Sequence[Cell]) -> int:
    return int(min(cell.source_at_utc_s for cell in cells) * 1000)
