"""Groups and their newest cells: the same class in the controller and in the facility server.

Newest wins: an update replaces what it names and leaves the rest. Age is judged when somebody looks, on the
host's clock that does not step, so a value grows stale although nobody tells so: its writer may be dead.
`revision` counts updates; whoever remembers the one that he has seen learns what has changed since.

Each point remembers the update it came with, instead of a copy of its times and faults: forty devices of
sixty points, ten times a second, cost next to nothing this way.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from controller.image.model import Cell, Group, Point, Quality, Value
from controller.image.wire import Update

NOT_YET: Final = "not heard yet"
ALL: Final = -1  # in the faults of an update: they all are bad for this reason
NO_UPDATE: Final = Update(-1, [], 0.0, 0.0, faults={ALL: NOT_YET})


class MisfitError(ValueError):
    """An update that does not fit the catalogue: two programs of different age?"""


class GroupCells:
    """The newest cells of one group."""

    __slots__ = ("group", "places", "revision", "updates", "values")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.places = {point.name: place for place, point in enumerate(group.points)}
        self.revision = 0
        self.forget()

    def forget(self) -> None:
        """Nothing is known any more."""
        self.values: list[Value] = [None] * len(self.group.points)
        self.updates: list[Update] = [NO_UPDATE] * len(self.group.points)

    def take(self, update: Update) -> None:
        """Raises MisfitError."""
        count = len(self.values)
        if update.points is None:
            if len(update.values) != count:
                raise MisfitError(f"{self.group.path}: {count} points, {len(update.values)} values came")
            self.values, self.updates = list(update.values), [update] * count
            return
        if len(update.values) != len(update.points) or not all(0 <= one < count for one in update.points):
            raise MisfitError(f"{self.group.path}: values for points that it does not have")
        for place, value in zip(update.points, update.values, strict=True):
            self.values[place] = value
            self.updates[place] = update

    def cell(self, place: int, now_s: float) -> Cell:
        """As of now: what came too long ago is bad."""
        update, value = self.updates[place], self.values[place]
        faults = update.faults or {}
        age_s = max(0.0, now_s - update.taken_at_s) if update is not NO_UPDATE else 0.0
        if value is None:
            quality, why = Quality.BAD, faults.get(place) or faults.get(ALL) or "no value"
        elif age_s > self.group.points[place].stale_after_s:
            value, quality, why = None, Quality.BAD, f"stale: nothing new for {age_s:.0f} s"
        elif update.doubt:
            quality, why = Quality.UNCERTAIN, update.doubt
        else:
            quality, why = Quality.GOOD, ""
        came_utc_s = update.received_at_utc_s
        source_at_utc_s = (update.sources_utc_s or {}).get(place, came_utc_s)
        return Cell(value, quality, source_at_utc_s, came_utc_s, age_s, why)

    def cells(self, now_s: float) -> Iterator[tuple[Point, Cell]]:
        for place, point in enumerate(self.group.points):
            yield point, self.cell(place, now_s)

    def all_updates(self) -> Iterator[Update]:
        """What brings somebody who knows nothing up to date."""
        for update in {id(one): one for one in self.updates if one is not NO_UPDATE}.values():
            places = [place for place, one in enumerate(self.updates) if one is update]
            yield Update(
                update.group,
                [self.values[place] for place in places],
                update.taken_at_s,
                update.received_at_utc_s,
                places,
                update.sources_utc_s,
                update.faults,
                update.doubt,
            )


class Image:
    """All groups, in the order of the catalogue.

    Attributes:
        revision: grows with every update and every change of the catalogue.
        shaped_at: its value when the catalogue changed last.
    """

    def __init__(self, groups: Sequence[Group] = ()) -> None:
        self.revision = 0
        self.shaped_at = 0
        self.learn(groups)

    def learn(self, groups: Sequence[Group]) -> None:
        """Begin anew, with these."""
        self.groups = [GroupCells(group) for group in groups]
        self._index = {group.path: index for index, group in enumerate(groups)}
        self.revision += 1
        self.shaped_at = self.revision

    def forget(self) -> None:
        """Nothing is known any more; the catalogue stays, and so do the cells that others hold."""
        self.revision += 1
        for cells in self.groups:
            cells.forget()
            cells.revision = self.revision

    def regroup(self, index: int, group: Group) -> None:
        """One group is something else than was thought. Raises MisfitError."""
        if not 0 <= index < len(self.groups) or group.path != self.groups[index].group.path:
            raise MisfitError(f"{group.path}: is not group {index}")
        self.groups[index] = GroupCells(group)
        self.revision += 1
        self.shaped_at = self.groups[index].revision = self.revision

    def index(self, path: str) -> int:
        """Raises KeyError."""
        return self._index[path]

    def take(self, update: Update) -> None:
        """Raises MisfitError."""
        if not 0 <= update.group < len(self.groups):
            raise MisfitError(f"no group {update.group}")
        cells = self.groups[update.group]
        cells.take(update)
        self.revision += 1
        cells.revision = self.revision

    def cell(self, path: str, name: str, now_s: float) -> Cell:
        """Raises KeyError for what is not in the catalogue."""
        cells = self.groups[self._index[path]]
        return cells.cell(cells.places[name], now_s)

    def changed_since(self, revision: int) -> Iterator[GroupCells]:
        """Groups with an update newer than this revision."""
        return (cells for cells in self.groups if cells.revision > revision)
