"""What one group of the image says over MQTT: all of an update, or what moved, and that it fell silent.

    {"at": ms UTC, "values": {point: value}, "age_s": since they were taken, "quality": {point: "bad" or
     "uncertain"}, "why": {point: reason}, "source_at": {point: ms UTC by the device's clock}}

A point that `quality` does not name is good; the last three members are left out when they would be empty.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from controller.clock import now_s
from controller.image.image import ALL, NO_UPDATE, GroupCells
from controller.image.model import Value
from controller.image.wire import Update

UNCERTAIN: Final = "uncertain"
BAD: Final = "bad"
UNHEARD: Final = "the controller is not heard"


class Voice:
    """What one group says, and has said."""

    def __init__(self, prefix: str, cells: GroupCells) -> None:
        group = cells.group
        self.topic = f"{prefix}/{group.path}"
        self.catalogue_topic = f"{prefix}/catalogue/{group.path}"
        self.cells = cells
        self.names = [point.name for point in group.points]
        self.stale: set[int] = set()
        self.told_at_s = 0.0  # as a whole
        self._deadbands = [point.deadband for point in group.points]
        self._told: list[Value] = [None] * len(self.names)
        self._told_good: list[bool] = [True] * len(self.names)

    def changed(self, update: Update) -> Update | None:
        """The part of an update that moved beyond its deadbands; None: nothing did."""
        places = range(len(self.names)) if update.points is None else update.points
        moved = []
        for position, (place, value) in enumerate(zip(places, update.values, strict=True)):
            if self._told_good[place] == bool(update.doubt) or _moved(
                self._told[place], value, self._deadbands[place]
            ):
                self._told[place], self._told_good[place] = value, not update.doubt
                moved.append(position)
        if not moved:
            return None
        points = [places[position] for position in moved]
        values = [update.values[position] for position in moved]
        return msgspec.structs.replace(update, points=points, values=values)

    def whole(self, at_s: float, at_utc_s: float) -> Iterator[Update]:
        """All that is known, as it came; what is stale, as missing."""
        if self.stale:
            yield self.silence(sorted(self.stale), at_s, at_utc_s)
        for update in self.cells.all_updates():
            fresh = [at for at, place in enumerate(update.points or ()) if place not in self.stale]
            if fresh:
                assert update.points is not None
                points = [update.points[at] for at in fresh]
                yield msgspec.structs.replace(
                    update, points=points, values=[update.values[at] for at in fresh]
                )

    def silence(self, places: Sequence[int], at_s: float, at_utc_s: float) -> Update:
        """That nothing has been heard of these for too long, or of the controller."""
        cells = {place: self.cells.cell(place, at_s) for place in places}
        faults = {place: cell.why if cell.value is None else UNHEARD for place, cell in cells.items()}
        for place in places:  # whatever comes next is news
            self._told[place] = None
        taken_at_s = min(self.cells.updates[place].taken_at_s for place in places)
        if any(self.cells.updates[place] is NO_UPDATE for place in places):
            taken_at_s = at_s
        return Update(-1, [None] * len(places), taken_at_s, at_utc_s, list(places), faults=faults)

    def newly_stale(self, at_s: float, *, alive: bool) -> list[int]:
        """Points that have grown stale since this was asked last; without a controller, all are."""
        points, before = self.cells.group.points, self.stale
        self.stale = {
            place
            for place, update in enumerate(self.cells.updates)
            if not alive or at_s - update.taken_at_s > points[place].stale_after_s
        }
        return sorted(self.stale - before)


def _moved(told: Value, value: Value, deadband: float) -> bool:
    if isinstance(told, float) and isinstance(value, float):
        return abs(value - told) > deadband
    return told != value


def body_of(names: Sequence[str], update: Update) -> dict[str, Any]:
    """What one message says."""
    values, points = update.values, update.points
    told = names if points is None else [names[place] for place in points]
    body: dict[str, Any] = {
        "at": int(update.received_at_utc_s * 1000),
        "values": dict(zip(told, values, strict=True)),
        "age_s": round(max(0.0, now_s() - update.taken_at_s), 3),
    }
    if update.doubt:
        body["quality"] = dict.fromkeys(told, UNCERTAIN)
        body["why"] = dict.fromkeys(told, update.doubt)
    if None in values:
        _add_missing(body, names, update)
    if update.sources_utc_s:
        times_utc_s = update.sources_utc_s.items()
        body["source_at"] = {
            names[place]: int(at_utc_s * 1000)
            for place, at_utc_s in times_utc_s
            if names[place] in body["values"]
        }
    return body


def _add_missing(body: dict[str, Any], names: Sequence[str], update: Update) -> None:
    faults = update.faults or {}
    places = range(len(names)) if update.points is None else update.points
    quality, why = body.setdefault("quality", {}), body.setdefault("why", {})
    for place, value in zip(places, update.values, strict=True):
        if value is None:
            quality[names[place]] = BAD
            why[names[place]] = faults.get(place) or faults.get(ALL) or "no value"
