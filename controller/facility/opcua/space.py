"""The process image as an OPC UA address space.

One object per group, below PowerBlock, by its path; what has slashes in its name becomes objects, too
(`nodes/n1/gpus/0/power_w`). Identifiers are group path and point name, so a client's configuration survives
restarts, updates and new devices.

A group is a batch: when a subscription is about to publish, the group compares what the image holds with what
was last told, once for all subscriptions, and only the points that somebody watches. A change within the
point's deadband is none. Quality becomes a status code by the table below; a value that is bad has no value.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Final

import msgspec
from asyncua import ua

from controller.clock import now_s, now_utc_s
from controller.image.feed import ImageFeed
from controller.image.image import ALL, NO_UPDATE, GroupCells
from controller.image.model import KINDS, Group, Point, Value
from controller.image.wire import Update
from controller.verbs import VERBS
from protocols.opcua.server_space import ROOT, Kind, Space, Thing
from protocols.opcua.server_values import BAD, GOOD, Meaning, Variable, ticks

BLOCK: Final = "PowerBlock"  # identifier and name of the object that everything hangs under
TYPES: Final = {kind: f"types/{kind}" for kind in (*KINDS, "gpu", "control")}
FOLDER: Final = ua.ObjectIds.FolderType

Judged = tuple[Value, int]

# What a value is when it is not good, by what the image says of it; the first that fits.
NEVER_HEARD: Final = int(ua.StatusCodes.BadWaitingForInitialData)
CONTROLLER_GONE: Final = int(ua.StatusCodes.BadNoCommunication)
DEVICE_GONE: Final = int(ua.StatusCodes.BadNoCommunication)
STALE: Final = int(ua.StatusCodes.BadNoCommunication)
POINT_FAULT: Final = int(ua.StatusCodes.BadSensorFailure)
NO_VALUE: Final = int(ua.StatusCodes.BadNoDataAvailable)
DOUBTED: Final = int(ua.StatusCodes.Uncertain)
WORDS: Final = (  # in a fault or a doubt, whatever point or device it is of
    ("out of service", int(ua.StatusCodes.BadOutOfService)),
    ("not heard yet", NEVER_HEARD),
    ("not configured", int(ua.StatusCodes.BadConfigurationError)),
    ("frozen", int(ua.StatusCodes.UncertainLastUsableValue)),
)


class GroupBatch:
    """One group of the image, as its watchers see it."""

    def __init__(self, cells: GroupCells, feed: ImageFeed) -> None:
        self.group: Group = cells.group
        self.version = 0
        self._cells, self._feed = cells, feed
        self._watched: list[Variable] = []
        self._revision = -1
        self._alive = False
        self._stale_s = math.inf  # when the first of the values watched grows too old

    def refresh(self) -> int:
        cells, alive = self._cells, self._feed.alive
        at_s = now_s()
        if cells.revision == self._revision and alive == self._alive and at_s < self._stale_s:
            return self.version
        self._revision, self._alive, self._stale_s = cells.revision, alive, math.inf
        values, updates, points = cells.values, cells.updates, cells.group.points
        update, source_ticks, server_ticks, changed = NO_UPDATE, 0, 0, False
        for variable in self._watched:
            place = variable.place
            value, point = values[place], points[place]
            if updates[place] is not update:
                update = updates[place]
                source_ticks = server_ticks = ticks(update.received_at_utc_s)
            until_s = update.taken_at_s + point.stale_after_s
            if value is not None and alive and at_s <= until_s and not update.doubt:
                status = GOOD
            else:
                value, status = _judged(value, update, place, alive=alive, is_stale=at_s > until_s)
            if at_s <= until_s < self._stale_s:
                self._stale_s = until_s
            if status == variable.status and (
                status & BAD or _is_told(value, variable.value, point.deadband)
            ):
                continue
            own_utc_s = update.sources_utc_s.get(place) if update.sources_utc_s else None
            variable.tell(value, status, ticks(own_utc_s) if own_utc_s else source_ticks, server_ticks)
            changed = True
        if changed:
            self.version += 1
        return self.version

    def watch(self, variable: Variable) -> None:
        variable.watchers += 1
        if variable.watchers == 1:
            self._watched.append(variable)
            self._revision = -1

    def unwatch(self, variable: Variable) -> None:
        variable.watchers -= 1
        if not variable.watchers:
            self._watched.remove(variable)

    def read(self, variable: Variable) -> ua.DataValue:
        place = variable.place
        update, point = self._cells.updates[place], self.group.points[place]
        is_stale = now_s() > update.taken_at_s + point.stale_after_s
        value, status = _judged(
            self._cells.values[place], update, place, alive=self._feed.alive, is_stale=is_stale
        )
        source_utc_s = (update.sources_utc_s or {}).get(place, update.received_at_utc_s)
        server_utc_s = now_utc_s() if status & BAD else update.received_at_utc_s
        return variable.data_value(value, status, source_utc_s, server_utc_s)


def _is_told(value: Value, told: Value, deadband: float) -> bool:
    if value == told:
        return True
    if not deadband or not isinstance(value, float) or not isinstance(told, float):
        return False
    return abs(value - told) <= deadband


def _judged(value: Value, update: Update, place: int, *, alive: bool, is_stale: bool) -> Judged:
    """Value and status; no value if that is bad."""
    if update is NO_UPDATE:
        return None, NEVER_HEARD
    if not alive:
        return None, CONTROLLER_GONE
    if value is None:
        return None, _fault(update.faults or {}, place)
    if is_stale:
        return None, STALE
    status = _in_words(update.doubt, DOUBTED) if update.doubt else GOOD
    return (None if status & BAD else value), status


def _fault(faults: Mapping[int, str], place: int) -> int:
    """Why there is no value: its own reason goes before the one of all."""
    if place in faults:
        return _in_words(faults[place], POINT_FAULT)
    return _in_words(faults[ALL], DEVICE_GONE) if ALL in faults else NO_VALUE


def _in_words(why: str, otherwise: int) -> int:
    return next((status for words, status in WORDS if words in why), otherwise)


def add_types(space: Space) -> None:
    """A type for each kind of group."""
    for kind, id_ in TYPES.items():
        name = "".join(part.capitalize() for part in kind.split())
        space.add(Kind(id_, f"{name}Type", f"{KINDS.get(kind, kind)} of a power block"))


def add_groups(space: Space, feed: ImageFeed, kept: Iterable[str]) -> Iterator[Variable]:
    """Build everything that the image has; yields the variables that have a history.

    Args:
        space: with the types, and the block's object in it.
        feed: the mirror.
        kept: patterns of `path/name`.
    """
    meanings: dict[bytes, Meaning] = {}  # a thousand GPUs have two
    for cells in feed.image.groups:
        group, batch = cells.group, GroupBatch(cells, feed)
        _add_group(space, group)
        for place, point in enumerate(group.points):
            id_ = f"{group.path}/{point.name}"
            parent, _, name = id_.rpartition("/")
            if parent != group.path:
                _add_parts(space, group.path, parent)
            is_kept = not point.text and any(fnmatchcase(id_, pattern) for pattern in kept)
            meaning = _meaning(point, is_kept=is_kept)
            meaning = meanings.setdefault(_encoded(meaning), meaning)
            variable = Variable(id_, parent, name, meaning, batch, place)
            space.add(variable)
            if is_kept:
                yield variable


def _add_group(space: Space, group: Group) -> None:
    parent, _, name = group.path.rpartition("/")
    if parent and parent not in space.entries:
        space.add(Thing(parent, BLOCK, parent, type=FOLDER))
    facts = {fact: ua.Variant(value, ua.VariantType.String) for fact, value in group.about.items()}
    space.add(Thing(group.path, parent or BLOCK, name, group.title, TYPES.get(group.kind, FOLDER), facts))


def _add_parts(space: Space, group: str, path: str) -> None:
    """Objects between a group and a point whose name has slashes."""
    if path == group or path in space.entries:
        return
    parent, _, name = path.rpartition("/")
    _add_parts(space, group, parent)
    above = parent.rpartition("/")[2]
    space.add(Thing(path, parent, name, type=TYPES["gpu"] if above == "gpus" else FOLDER))


def _meaning(point: Point, *, is_kept: bool) -> Meaning:
    return Meaning(
        title=point.title,
        unit=point.unit,
        lowest=point.lowest,
        highest=point.highest,
        states=point.states,
        bits=point.bits,
        text=point.text,
        needs=int(VERBS["write"].role) if point.writable else None,
        is_kept=is_kept,
    )


_encoded = msgspec.msgpack.Encoder().encode

__all__ = ["BLOCK", "FOLDER", "ROOT", "TYPES", "GroupBatch", "add_groups", "add_types"]
