"""The events in force and to come, as windows: what the site said last, across restarts.

Versions of an event are ordered by modificationDateTime: a newer one replaces, an older one is refused. Of
one date, what says the same is a duplicate, and else the last one delivered counts: servers stamp by the
second. A date far ahead is refused, for nothing could follow it. A message is taken in as a whole, or refused
with a reason and the book is as it was.
Windows are laid out once, on arrival: "now" must not move with time, nor the dice of randomizeStart fall
twice, so both stay with the event, newer versions of it included.

Deleted events are remembered without windows, so that a create that comes late stays without effect; so are
those over for more than OVER_KEPT_S, so that a year of events is no larger than a day of them. A delete
without a date is no word of the site's but a conclusion, that the event is listed no more: it ends the event,
which counts again, unchanged, as soon as the same version of it is listed again. The wall clock may be wrong:
a version that is over on arrival does not release what an earlier one holds us to, and what the caller
still acts on (`hold`) is neither emptied nor forgotten.

Asked every beat, so each answer holds until the next moment at which a window opens or closes. No IO, no
clock and no dice here: `now_utc_s` is an argument, and the draw comes with the rules.
"""

import math
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from protocols.openadr.digest import digest
from protocols.openadr.fields import OpenAdrError
from protocols.openadr.model import Event, Notification, Units
from protocols.openadr.request import Request, read_request
from protocols.openadr.resolve import (
    ALL_TYPES,
    NO_UNITS,
    Window,
    ignored_types,
    payload_types,
    resolve,
    winners,
)
from protocols.openadr.timing import FOREVER_UTC_S, draws_needed, is_cancelled, is_timeless, life_ends_utc_s

VERSION: Final = 4
READABLE: Final = (1, 2, 3, VERSION)
EVENTS_MAX: Final = 256  # remembered, deleted ones included; 40 times what a site runs at once
WINDOWS_KEPT_MAX: Final = 20_000  # of all events: 20 of the largest; sorted and written within a beat
OVER_KEPT_S: Final = 86_400.0  # windows stay that long after their end: a wall clock may be wrong by hours
RETAINED_AGE_MAX_S: Final = 86_400.0  # a retained wish without an end of its own is yesterday's at most
AHEAD_MAX_S: Final = (
    86_400.0  # of a date: no clock is wrong by more, and what it stamped would rule for years
)
LAPSED_BUT_KNOWN: Final = " by our clock; the known version stays in force, DELETE it to end it"
OTHER_RETAINED: Final = "retained, and other than the known version of the same date; send it with a new one"
TOO_MANY_WINDOWS: Final = f"over {WINDOWS_KEPT_MAX} windows in all events; delete some, or send fewer"
SET_ASIDE: Final = "move the file away and let the site send anew"
KIND_TYPES: Final = {"limit": "IMPORT_CAPACITY_LIMIT", "target": "DISPATCH_SETPOINT"}  # of version 1

_start, _end = attrgetter("starts_utc_s"), attrgetter("ends_utc_s")


def no_units(_program_id: str) -> Units:
    """For a caller that knows of no programmes."""
    return NO_UNITS


@dataclass(frozen=True)
class Rules:
    """What the caller decides for the book.

    Attributes:
        acts_on: payload types that the caller acts on; all others are passed over, and named in the verdict.
        units_of: what the programme of that id says of units.
        draw: a number from -1 to 1, evenly spread; None: randomizeStart is not applied.
        randomize_reductions: apply it; whatever is acted on, a price too, may reduce power.
        retained_age_max_s: how old a retained wish without times of its own may be.
        names: ours, in the targets of reports; none: all targets mean us, since the topic decides.
    """

    acts_on: Collection[str] = ALL_TYPES
    units_of: Callable[[str], Units] = no_units
    draw: Callable[[], float] | None = None
    randomize_reductions: bool = False
    retained_age_max_s: float = RETAINED_AGE_MAX_S
    names: Collection[str] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of a message.

    Attributes:
        accepted: the book now says what the site wants. False: the book is as it was.
        reason: "accepted", "duplicate", "deleted", "cancelled", or a sentence.
        ignored: payload types in it that the caller does not act on; their values were not judged.
        unserved: a sentence about reports that it asks for and that will not be sent; empty: there are none.
    """

    accepted: bool
    reason: str
    ignored: tuple[str, ...] = ()
    unserved: str = ""


class Row(NamedTuple):
    """A window on disk; what all windows of an event share stands beside them, once."""

    type: str
    value: float
    starts_utc_s: float
    ends_utc_s: float
    interval_id: int
    text: str


class KeptEntry(msgspec.Struct, frozen=True):
    """As written since version 2; 3 has added what stands below the windows, and 4 the digest."""

    modified_utc_s: float
    priority: int = 0
    draws: tuple[float, ...] = ()
    windows: tuple[Row, ...] = ()
    ends_utc_s: float = -math.inf
    vanished: bool = False
    request: Request | None = None
    digest: str = ""


class KeptWindow(msgspec.Struct, frozen=True):
    """A window as version 1 kept it."""

    event_id: str
    kind: str
    limit_w: float
    starts_utc_s: float
    ends_utc_s: float
    priority: int
    interval_id: int


class KeptEntryV1(msgspec.Struct, frozen=True):
    modified_utc_s: float
    windows: tuple[KeptWindow, ...]


@dataclass(frozen=True)
class Entry:
    """The newest version of an event.

    Attributes:
        modified_utc_s: orders versions.
        windows: none: deleted, cancelled, long over, or it asks for no power.
        draws: from -1 to 1, in the order in which its intervals need them.
        life_ends_utc_s: of the event itself: it may outlast its windows, or have none.
        vanished: it is listed no more, and counts for nothing until it is again.
        request: for reports.
        digest: of what it says; empty: it is not known, and counts as the same.
    """

    modified_utc_s: float
    windows: tuple[Window, ...] = ()
    draws: tuple[float, ...] = ()
    life_ends_utc_s: float = -math.inf
    vanished: bool = False
    request: Request | None = None
    digest: str = ""

    @cached_property
    def windows_end_utc_s(self) -> float:
        """Until then it holds us to something."""
        if self.vanished:
            return -math.inf
        return max((window.ends_utc_s for window in self.windows), default=-math.inf)

    @cached_property
    def ends_utc_s(self) -> float:
        return -math.inf if self.vanished else max(self.windows_end_utc_s, self.life_ends_utc_s)

    @cached_property
    def kept(self) -> dict[str, Any]:
        """As on disk; made once, since a book of thousands of windows is written with every signal."""
        rows = [(w.type, w.value, w.starts_utc_s, w.ends_utc_s, w.interval_id, w.text) for w in self.windows]
        said: dict[str, Any] = {
            "modified_utc_s": self.modified_utc_s, "draws": list(self.draws), "windows": rows
        }  # fmt: skip
        if self.windows:
            said["priority"] = self.windows[0].priority
        if self.life_ends_utc_s > -math.inf:
            said["ends_utc_s"] = self.life_ends_utc_s
        if self.vanished:
            said["vanished"] = True
        if self.request is not None:
            said["request"] = msgspec.to_builtins(self.request)
        if self.digest:
            said["digest"] = self.digest
        return said


Found = TypeVar("Found", bound=Hashable)


@dataclass(frozen=True)
class Answer(Generic[Found]):
    """What was found, and the time in which it is the answer to the question that found it."""

    found: Found
    since_utc_s: float
    until_utc_s: float

    def holds(self, now_utc_s: float) -> bool:
        return self.since_utc_s <= now_utc_s < self.until_utc_s


NEVER_ASKED: Final[Answer[Any]] = Answer((), math.inf, -math.inf)
EMPTY: Final[Mapping[str, Window]] = {}


class EventBook:
    """Takes messages in, and says which windows there are.

    Attributes:
        duplicates: messages that said again what was known.
        revision: another number after every change.
    """

    def __init__(self, rules: Rules = Rules()) -> None:
        self.duplicates = 0
        self.revision = 0
        self._rules = rules
        self._entries: dict[str, Entry] = {}
        self._held: frozenset[str] = frozenset()
        self._change()

    # -- what is said ---------------------------------------------------------------------------------------

    def apply(self, notification: Notification, now_utc_s: float, *, retained: bool = False) -> Verdict:
        """Takes a message into the book, as a whole or not at all.

        Args:
            notification: from `parse`.
            now_utc_s: the moment of its arrival.
            retained: the broker kept it; it may be of any age.
        """
        event = notification.event
        known = self._entries.get(event.id)
        if fault := _date_fault(notification, known, now_utc_s, retained=retained):
            return Verdict(False, f"event {event.id}: {fault}")
        if notification.operation == "DELETE":
            return self._delete(event, known, now_utc_s, retained=retained)
        assert event.modified_utc_s is not None
        if known is not None and (verdict := self._not_news(event, known, retained=retained)):
            return verdict
        try:
            entry, unserved = self._read(event, event.modified_utc_s, known, now_utc_s)
            if retained:
                self._check_age(event, entry, now_utc_s)
        except OpenAdrError as error:
            return Verdict(False, str(error))
        return replace(self._enter(event, entry, known, now_utc_s), unserved=unserved)

    def hold(self, event_ids: Collection[str]) -> None:
        """Names the events that the caller acts on: a clock that steps must not empty what still counts.

        Args:
            event_ids: instead of those named before; they are neither shed nor forgotten.
        """
        self._held = frozenset(event_ids)

    def _read(
        self, event: Event, modified_utc_s: float, known: Entry | None, now_utc_s: float
    ) -> tuple[Entry, str]:
        """What it means to us, and what of the reports that it asks for will not be sent."""
        rules = self._rules
        draws = () if known is None else known.draws
        if rules.draw is not None and rules.randomize_reductions:
            draws += tuple(rules.draw() for _ in range(draws_needed(event) - len(draws)))
        drawn = rules.randomize_reductions and len(draws) >= draws_needed(event)
        windows = resolve(
            event,
            now_utc_s,
            acts_on=rules.acts_on,
            program_units=NO_UNITS if event.program_id is None else rules.units_of(event.program_id),
            draws=draws if drawn else (),
        )
        request, unserved = read_request(event, now_utc_s, rules.names)
        ends_utc_s = life_ends_utc_s(event, now_utc_s) if request is None else request.ends_utc_s
        said = digest(event, rules.acts_on)
        return Entry(modified_utc_s, windows, draws, ends_utc_s, request=request, digest=said), unserved

    def _not_news(self, event: Event, known: Entry, *, retained: bool) -> Verdict | None:
        """None: it is news."""
        assert event.modified_utc_s is not None
        if event.modified_utc_s > known.modified_utc_s:
            return None
        if event.modified_utc_s < known.modified_utc_s:
            return Verdict(False, f"event {event.id}: older than known")
        if known.digest and known.digest != digest(event, self._rules.acts_on):
            # The last one delivered counts, and a broker's memory is not that.
            return Verdict(False, f"event {event.id}: {OTHER_RETAINED}") if retained else None
        if known.vanished and not retained:  # a broker's memory lists nothing
            self._remember(event.id, replace(known, vanished=False))
            return Verdict(True, "accepted; it is listed again", ignored_types(event, self._rules.acts_on))
        self.duplicates += 1
        return Verdict(True, "duplicate")

    def _delete(self, event: Event, known: Entry | None, now_utc_s: float, *, retained: bool) -> Verdict:
        if event.modified_utc_s is None:
            if known is not None and known.ends_utc_s > -math.inf:
                self._remember(event.id, replace(known, vanished=True))
            return Verdict(True, "deleted")
        # A date to come was a mistake, and must not keep the site from ending what bears it.
        stands = known is not None and (retained or known.modified_utc_s <= now_utc_s)
        if known is not None and stands and event.modified_utc_s < known.modified_utc_s:
            return Verdict(False, f"event {event.id}: older than known")
        # In a book full of events in force, an unknown event's end is not worth a line.
        if self._has_room(event.id, now_utc_s, reports_yield=False):
            self._remember(event.id, Entry(event.modified_utc_s))
        return Verdict(True, "deleted")

    def _enter(self, event: Event, entry: Entry, known: Entry | None, now_utc_s: float) -> Verdict:
        acts_on = self._rules.acts_on
        ignored = ignored_types(event, acts_on)
        if any(window.type in acts_on for window in entry.windows):
            reason = "accepted"
        elif is_cancelled(event):
            reason = "cancelled"
        elif not payload_types(event).isdisjoint(acts_on):
            # Our clock may be wrong, and a wrong clock must not release what the site holds us to.
            stays = "" if known is None or known.windows_end_utc_s == -math.inf else LAPSED_BUT_KNOWN
            return Verdict(False, f"event {event.id}: lapsed{stays}", ignored)
        else:
            reason = f"accepted; it asks for no power: {', '.join(ignored) or 'no payload'}"
        crowd = self._crowd(event.id, entry, now_utc_s)
        if crowd is None:
            return Verdict(False, f"event {event.id}: {TOO_MANY_WINDOWS}", ignored)
        if not self._has_room(event.id, now_utc_s):
            return Verdict(False, f"event {event.id}: {EVENTS_MAX} events are in force; delete some", ignored)
        for over in crowd:
            self._entries.pop(over, None)
        self._remember(event.id, entry)
        self._shed(now_utc_s)
        return Verdict(True, reason, ignored)

    def _check_age(self, event: Event, entry: Entry, now_utc_s: float) -> None:
        """A wish that starts "now" or never ends has no times of its own: its age decides."""
        timeless = is_timeless(event) or entry.windows_end_utc_s >= FOREVER_UTC_S
        if timeless and now_utc_s - entry.modified_utc_s > self._rules.retained_age_max_s:
            raise OpenAdrError(
                f"event {event.id}: retained, and too old for a wish without times of its own; send it anew"
            )

    # -- what is remembered ---------------------------------------------------------------------------------

    def _has_room(self, event_id: str, now_utc_s: float, *, reports_yield: bool = True) -> bool:
        """Makes room by forgetting what is over, the longest known first; then what is of reports alone."""
        if event_id in self._entries or len(self._entries) < EVENTS_MAX:
            return True
        free = [(name, entry) for name, entry in self._entries.items() if name not in self._held]
        over = (name for name, entry in free if entry.ends_utc_s <= now_utc_s)
        idle = (name for name, entry in free if entry.windows_end_utc_s <= now_utc_s)
        forgotten = next(chain(over, idle if reports_yield else ()), None)
        if forgotten is not None:
            del self._entries[forgotten]
            self._change()
        return forgotten is not None

    def _crowd(self, event_id: str, entry: Entry, now_utc_s: float) -> list[str] | None:
        """What is over and has to go for its windows to fit, the longest known first; None: they do not."""
        others = {name: one for name, one in self._entries.items() if name != event_id and one.windows}
        excess = len(entry.windows) + sum(len(one.windows) for one in others.values()) - WINDOWS_KEPT_MAX
        crowd: list[str] = []
        for name, one in others.items():
            if excess > 0 and one.ends_utc_s <= now_utc_s and name not in self._held:
                crowd.append(name)
                excess -= len(one.windows)
        return crowd if excess <= 0 else None

    def _shed(self, now_utc_s: float) -> None:
        """Of events long over only id, date and digest stay, in their place."""
        for event_id, entry in self._entries.items():
            long_over = -math.inf < entry.ends_utc_s <= now_utc_s - OVER_KEPT_S
            if long_over and event_id not in self._held:
                self._entries[event_id] = Entry(entry.modified_utc_s, digest=entry.digest)
                self._change()

    def _remember(self, event_id: str, entry: Entry) -> None:
        self._entries.pop(event_id, None)  # the newest stand last
        self._entries[event_id] = entry
        self._change()

    def _change(self) -> None:
        self.revision += 1
        self._ordered: tuple[Window, ...] | None = None
        self._requests: Mapping[str, Request] | None = None
        self._coming: Answer[tuple[Window, ...]] = NEVER_ASKED
        self._open: Answer[tuple[Window, ...]] = NEVER_ASKED
        self._standing: Answer[frozenset[str]] = NEVER_ASKED
        self._winners: Mapping[str, Window] = EMPTY

    # -- what is asked --------------------------------------------------------------------------------------

    def windows(self, now_utc_s: float) -> tuple[Window, ...]:
        """All windows that are not over, by start; the same object until they change."""
        if not self._coming.holds(now_utc_s):
            known, ends_utc_s = self._all(), list(map(_end, self._all()))
            first_utc_s = min(ends_utc_s, default=math.inf)
            if now_utc_s < first_utc_s:  # nothing is over: so asks whoever wants them all
                self._coming = Answer(known, -math.inf, first_utc_s)
            else:
                left = tuple(window for window in known if window.ends_utc_s > now_utc_s)
                self._coming = _answer(left, ends_utc_s, now_utc_s)
        return self._coming.found

    def in_force(self, now_utc_s: float) -> Mapping[str, Window]:
        """For each payload type with an open window, the one that counts: see `winners`."""
        if not self._open.holds(now_utc_s):
            edges = [*map(_start, self._all()), *map(_end, self._all())]
            opened = tuple(w for w in self._all() if w.starts_utc_s <= now_utc_s < w.ends_utc_s)
            self._open = _answer(opened, edges, now_utc_s)
            self._winners = winners(opened)
        return self._winners

    @property
    def requests(self) -> Mapping[str, Request]:
        """What events ask to be told, by event; the same object until the book changes."""
        if self._requests is None:
            standing = ((name, entry) for name, entry in self._entries.items() if not entry.vanished)
            self._requests = {name: entry.request for name, entry in standing if entry.request is not None}
        return self._requests

    def event_ids(self, now_utc_s: float) -> frozenset[str]:
        """Events that are not over, reports alone included: to be held against a heartbeat's `event_ids`.

        The same object until they change.
        """
        if not self._standing.holds(now_utc_s):
            standing = (name for name, entry in self._entries.items() if entry.ends_utc_s > now_utc_s)
            edges_utc_s = [entry.ends_utc_s for entry in self._entries.values()]
            self._standing = _answer(frozenset(standing), edges_utc_s, now_utc_s)
        return self._standing.found

    def _all(self) -> tuple[Window, ...]:
        """By start, then by event, then as the event has them."""
        if self._ordered is None:
            entries = (entry for _, entry in sorted(self._entries.items()) if not entry.vanished)
            found = (window for entry in entries for window in entry.windows)
            self._ordered = tuple(sorted(found, key=_start))
        return self._ordered

    # -- across restarts ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The whole book, ready for JSON. Not to be changed: parts of it are kept for the next time."""
        return {"v": VERSION, "events": {event_id: entry.kept for event_id, entry in self._entries.items()}}

    @classmethod
    def from_dict(cls, said: object, rules: Rules = Rules()) -> "EventBook":
        """Reads what `to_dict` made, of this version or an older one.

        Raises:
            OpenAdrError: it is anything else.
        """
        version = said.get("v") if isinstance(said, dict) else None
        if not isinstance(said, dict) or version not in READABLE:
            raise OpenAdrError(f"kept events: not a book of version 1 to {VERSION}; {SET_ASIDE}")
        book = cls(rules)
        try:
            book._entries = (_entries_v1 if version == 1 else _entries)(said.get("events"))
        except (msgspec.ValidationError, KeyError) as error:
            raise OpenAdrError(f"kept events: {error}; {SET_ASIDE}") from error
        return book


def _date_fault(said: Notification, known: Entry | None, now_utc_s: float, *, retained: bool) -> str:
    """Why its date cannot tell new from old; empty: it can, or need not."""
    modified_utc_s = said.event.modified_utc_s
    if modified_utc_s is None:
        if said.operation != "DELETE":
            return "modificationDateTime: missing; it tells new from old"
        return "retained, without a date: it could be of any age" if retained else ""
    is_news = known is None or modified_utc_s > known.modified_utc_s
    if is_news and modified_utc_s > now_utc_s + AHEAD_MAX_S:
        return "modificationDateTime: over a day ahead of our clock; correct the wrong one and send it anew"
    return ""


def _answer(found: Found, edges_utc_s: list[float], now_utc_s: float) -> Answer[Found]:
    past = [edge_utc_s for edge_utc_s in edges_utc_s if edge_utc_s <= now_utc_s]
    coming = [edge_utc_s for edge_utc_s in edges_utc_s if edge_utc_s > now_utc_s]
    return Answer(found, max(past, default=-math.inf), min(coming, default=math.inf))


def _entries(said: object) -> dict[str, Entry]:
    return {
        event_id: Entry(
            kept.modified_utc_s,
            tuple(
                Window(
                    event_id, row.type, row.value, row.starts_utc_s, row.ends_utc_s,
                    kept.priority, row.interval_id, kept.modified_utc_s, row.text,
                )
                for row in kept.windows
            ),
            kept.draws,
            kept.ends_utc_s,
            kept.vanished,
            kept.request,
            kept.digest,
        )
        for event_id, kept in msgspec.convert(said, dict[str, KeptEntry]).items()
    }  # fmt: skip


def _entries_v1(said: object) -> dict[str, Entry]:
    return {
        event_id: Entry(
            kept.modified_utc_s,
            tuple(
                Window(
                    event_id, KIND_TYPES[w.kind], w.limit_w, w.starts_utc_s, w.ends_utc_s,
                    w.priority, w.interval_id, kept.modified_utc_s,
                )
                for w in kept.windows
            ),
        )
        for event_id, kept in msgspec.convert(said, dict[str, KeptEntryV1]).items()
    }  # fmt: skip
