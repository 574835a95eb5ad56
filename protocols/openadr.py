"""OpenADR 3 events over bare MQTT: what the site asks of this block, in W and UTC seconds.

This is the OpenADR 3.1 notification payload over topics that the site configures, without a VTN's REST side:
no conformance is claimed. Source: OpenADR 3.1.0 openapi, Definition and User Guide (sections 7 and 8).

Two steps. `parse` is tolerant of how an event is written: camelCase or snake_case, 3.0 or 3.1, the illegal
dates and durations that the guide itself prints. `resolve` is strict about what it means: a wrong unit, a
negative limit or a missing duration rejects the whole event, never a part of it. What is left are `Window`s:
one power, one span of time. `EventBook` keeps the windows in force, orders versions by modificationDateTime,
and survives a restart as a plain dict. No IO and no clock here: `now_utc_s` is an argument.

Deliberate: randomizeStart is never applied. It protects a feeder from a thousand loads that return at once;
a block that ramps needs no dice, and a reduction must not come late. Targets are not read: the topic decides.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import MAXYEAR, UTC, datetime
from typing import Any, Final, Literal

import msgspec

PAYLOAD_MAX_BYTES: Final = 256 * 1024  # an event of 1,000 intervals is 120 kB
WINDOWS_MAX: Final = 1000  # per event: 3 days of 5-minute windows, or 40 days of hours
EVENTS_MAX: Final = 256  # remembered, deleted ones included; 40 times what a site runs at once
TEXT_MAX_CHARS: Final = 64  # of a date or a duration; the longest honest one has 40
ID_END: Final = 2**31  # interval ids are int32 in the standard
OVER_KEPT_S: Final = 86_400.0  # windows stay that long after their end: a wall clock may be wrong by hours
RETAINED_AGE_MAX_S: Final = 86_400.0  # a retained wish without an end of its own is yesterday's at most

FOREVER_UTC_S: Final = 1e12  # no end; finite because journals are JSON, which knows no infinity
YEAR_10000_UTC_S: Final = 253_402_300_800.0  # beyond the calendar
AT_ONCE_UTC_S: Final = -62_135_596_800.0  # 0001-01-01, the standard's way to write "now" or "right after"
PRIORITY_LOWEST: Final = 2**31 - 1  # lower number wins; an event without priority yields to all others
INFINITE_MONTHS: Final = 9999 * 12  # P9999Y, the standard's infinity

Kind = Literal["limit", "target"]  # stay at or below; go there
Operation = Literal["CREATE", "UPDATE", "DELETE"]

# Payload types that move power, and what they mean here. What is not in this table is ignored and named.
KINDS: Final[Mapping[str, Kind]] = {
    "IMPORT_CAPACITY_LIMIT": "limit",
    "DISPATCH_SETPOINT": "target",
}
# The standard knows KW alone. "MW" and "W" are legal private words; guessing at them risks a factor of 1000.
UNITS_W: Final[Mapping[str, float]] = {"KW": 1000.0}
# 3.0 named the operation after the HTTP verb, and the 3.1 text still prints one.
OPERATIONS: Final[Mapping[str, Operation]] = {
    "CREATE": "CREATE",
    "UPDATE": "UPDATE",
    "DELETE": "DELETE",
    "POST": "CREATE",
    "PUT": "UPDATE",
}

# Normative, from the OpenADR 3.1 openapi; and two forms that its User Guide uses against it (P0S, P12H).
DURATION: Final = re.compile(
    r"(-?)P(?=\d|T\d)(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)([DW]))?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)
DURATION_OF_THE_GUIDE: Final = re.compile(r"P(\d+)([HS])", re.ASCII)
# 0000-00-00 is what drafts of 3.0 wrote for the same thing.
AT_ONCE: Final = re.compile(r"(0001-01-01|0000-00-00)([Tt ]00:00:00(\.0+)?([Zz]|[+-]\d\d:\d\d)?)?", re.ASCII)
RFC_3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d(?:\.\d+)?)([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
EVENT_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}", re.ASCII)


class OpenAdrError(ValueError):
    """A message that must not be acted on; the text names the place in it and the remedy."""


# -- what a message says ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Duration:
    """Months are kept apart: their length depends on where they start."""

    months: int = 0
    seconds_s: float = 0.0

    @property
    def is_zero(self) -> bool:
        return self.months == 0 and self.seconds_s == 0


@dataclass(frozen=True)
class Payload:
    type: str
    values: tuple[Any, ...]  # as sent; `resolve` judges them


@dataclass(frozen=True)
class Interval:
    id: int
    starts_utc_s: float | None  # None: not said; AT_ONCE_UTC_S: 0001-01-01
    duration: Duration | None
    payloads: tuple[Payload, ...]


@dataclass(frozen=True)
class Event:
    """One version of an event, as said. Times None: not said."""

    id: str
    modified_utc_s: float | None
    priority: int | None = None
    starts_utc_s: float | None = None  # default of the first interval
    interval_duration: Duration | None = None  # default of every interval
    duration: Duration | None = None  # of the whole: loops or cuts the intervals (3.1)
    units: Mapping[str, str | None] = field(default_factory=dict)  # payload type -> unit
    intervals: tuple[Interval, ...] = ()


@dataclass(frozen=True)
class Notification:
    operation: Operation
    event: Event


@dataclass(frozen=True)
class Heartbeat:
    """The site is alive. Sent by the site's application, since the standard has no heartbeat.

    Attributes:
        sent_at_utc_s: by the site's clock.
        seq: grows by one per heartbeat; None: the site does not count.
        event_ids: the whole plan: every event in force or to come; None: the site does not say.
    """

    sent_at_utc_s: float
    seq: int | None
    event_ids: frozenset[str] | None


# -- what it means ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """One power for one span of time. Windows of one event may overlap when the site says so."""

    event_id: str
    kind: Kind
    limit_w: float
    starts_utc_s: float
    ends_utc_s: float  # FOREVER_UTC_S: until deleted
    priority: int  # lower wins
    interval_id: int


def resolve(event: Event, now_utc_s: float) -> tuple[Window, ...]:
    """The windows of an event that are not over yet, in the order of their intervals.

    Empty when the event is cancelled, lapsed, or asks for no power (see `ignored_types`).

    Raises:
        OpenAdrError: something in it cannot be meant; then none of it counts.
    """
    if _is_cancelled(event):
        return ()
    demands = [_demands(event, index) for index in range(len(event.intervals))]
    spans = list(_lay_out(event, now_utc_s))
    windows: list[Window] = []
    for index, starts_utc_s, ends_utc_s in _repeat(event, spans, demands, now_utc_s):
        if ends_utc_s <= now_utc_s:
            continue
        for kind, limit_w in demands[index]:
            windows.append(
                Window(
                    event_id=event.id,
                    kind=kind,
                    limit_w=limit_w,
                    starts_utc_s=starts_utc_s,
                    ends_utc_s=ends_utc_s,
                    priority=PRIORITY_LOWEST if event.priority is None else event.priority,
                    interval_id=event.intervals[index].id,
                )
            )
        if len(windows) > WINDOWS_MAX:
            raise OpenAdrError(
                f"event {event.id}: over {WINDOWS_MAX} windows ahead; send fewer or shorter ones"
            )
    return tuple(windows)


def ignored_types(event: Event) -> tuple[str, ...]:
    """Payload types in the event that this block does not act on, sorted."""
    return tuple(sorted({p.type for interval in event.intervals for p in interval.payloads} - KINDS.keys()))


def _is_cancelled(event: Event) -> bool:
    """There is no status field: an event is called off by start 0001-01-01 and duration PT0S."""
    default = event.interval_duration
    return event.starts_utc_s == AT_ONCE_UTC_S and default is not None and default.is_zero


def _demands(event: Event, index: int) -> tuple[tuple[Kind, float], ...]:
    """What one interval asks for: (kind, power in W), at most one per payload type."""
    demands: dict[str, tuple[Kind, float]] = {}
    for number, payload in enumerate(event.intervals[index].payloads):
        kind = KINDS.get(payload.type)
        if kind is None:
            continue
        path = f"event {event.id}: intervals[{index}].payloads[{number}]"
        if payload.type in demands:
            raise OpenAdrError(f"{path}: a second {payload.type} in one interval; send one")
        demands[payload.type] = (kind, _power_w(payload, _unit_w(event, payload.type), path))
    return tuple(demands.values())


def _unit_w(event: Event, payload_type: str) -> float:
    unit = event.units.get(payload_type)
    if unit is None:
        raise OpenAdrError(
            f"event {event.id}: payloadDescriptors: no units for {payload_type}; send units KW for it"
        )
    if unit not in UNITS_W:
        raise OpenAdrError(
            f"event {event.id}: payloadDescriptors: units {unit!r} for {payload_type}; send KW"
        )
    return UNITS_W[unit]


def _power_w(payload: Payload, unit_w: float, path: str) -> float:
    if len(payload.values) != 1:
        raise OpenAdrError(f"{path}.values: {len(payload.values)} values for one {payload.type}; send one")
    value = payload.values[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OpenAdrError(f"{path}.values[0]: {_shown(value)} is not a number; send a power in kW")
    power_w = float(value) * unit_w if abs(value) < FOREVER_UTC_S else math.inf
    if not 0 <= power_w < math.inf:
        raise OpenAdrError(f"{path}.values[0]: {_shown(value)} is not a power; send kW, 0 or more")
    return power_w


Span = tuple[int, float, float]  # index of the interval, its start and its end in UTC s


def _lay_out(event: Event, now_utc_s: float) -> Iterator[Span]:
    """The intervals on the time axis, once through. Each field not said is inherited on its own."""
    previous_end_utc_s: float | None = None
    for index, interval in enumerate(event.intervals):
        starts_utc_s = _start_utc_s(event, interval, previous_end_utc_s, now_utc_s)
        duration = interval.duration or event.interval_duration
        if duration is None:
            raise OpenAdrError(
                f"event {event.id}: intervals[{index}]: no duration, here or in the event's intervalPeriod; "
                "send one, P9999Y for no end"
            )
        previous_end_utc_s = _add(starts_utc_s, duration, f"event {event.id}: intervals[{index}].duration")
        yield index, starts_utc_s, previous_end_utc_s


def _start_utc_s(
    event: Event, interval: Interval, previous_end_utc_s: float | None, now_utc_s: float
) -> float:
    said = interval.starts_utc_s
    if said is not None and said != AT_ONCE_UTC_S:
        return said
    if previous_end_utc_s is not None:
        return previous_end_utc_s
    if event.starts_utc_s is not None and event.starts_utc_s != AT_ONCE_UTC_S:
        return event.starts_utc_s
    if AT_ONCE_UTC_S in (said, event.starts_utc_s):
        return now_utc_s
    raise OpenAdrError(f"event {event.id}: intervalPeriod.start: missing; send a time, or 0001-01-01 for now")


def _repeat(
    event: Event, spans: list[Span], demands: list[tuple[tuple[Kind, float], ...]], now_utc_s: float
) -> Iterator[Span]:
    """The spans that ask for power; with an event.duration looped to fill it, or cut where it ends.

    Yields without end when the site loops for ever: the caller counts.
    """
    asking = [span for span in spans if demands[span[0]] and span[1] < span[2]]
    if event.duration is None or not asking:
        yield from asking
        return
    first_utc_s = min(starts for _, starts, _ in spans)
    period_s = max(ends for _, _, ends in spans) - first_utc_s
    until_utc_s = _add(first_utc_s, event.duration, f"event {event.id}: duration")
    if len(spans) == 1:  # a loop of one value is that value, for as long
        yield spans[0][0], first_utc_s, until_utc_s
        return
    # A loop that began years ago is entered at the turn that covers now.
    offset_s = period_s * max(0, math.floor((min(now_utc_s, until_utc_s) - first_utc_s) / period_s))
    while first_utc_s + offset_s < until_utc_s:
        for index, starts, ends in asking:
            if starts + offset_s < until_utc_s:
                yield index, starts + offset_s, min(ends + offset_s, until_utc_s)
        offset_s += period_s


def _add(starts_utc_s: float, duration: Duration, path: str) -> float:
    """Never beyond FOREVER_UTC_S."""
    if duration.months < 0 or duration.seconds_s < 0:
        raise OpenAdrError(f"{path}: negative; send how long it lasts")
    if duration.months >= INFINITE_MONTHS or starts_utc_s >= FOREVER_UTC_S:
        return FOREVER_UTC_S
    if duration.months:
        starts_utc_s = _add_months(starts_utc_s, duration.months)
    return min(starts_utc_s + duration.seconds_s, FOREVER_UTC_S)


def _add_months(starts_utc_s: float, months: int) -> float:
    """The same day and time of a later month; the month's last day where it has no such day."""
    if starts_utc_s >= YEAR_10000_UTC_S:
        return FOREVER_UTC_S
    start = datetime.fromtimestamp(starts_utc_s, UTC)
    years, month0 = divmod(start.month - 1 + months, 12)
    if start.year + years > MAXYEAR:
        return FOREVER_UTC_S
    for day in (start.day, 30, 29, 28):
        try:
            return start.replace(year=start.year + years, month=month0 + 1, day=day).timestamp()
        except ValueError:
            continue
    raise AssertionError("every month has 28 days")


# -- the book of events -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of a message.

    Attributes:
        accepted: the book now says what the site wants. False: the book is as it was.
        reason: "accepted", "duplicate", "deleted", "cancelled", or a sentence.
        ignored: payload types in it that this block does not act on.
    """

    accepted: bool
    reason: str
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """The newest version of an event. Without windows: deleted, cancelled or long over."""

    modified_utc_s: float
    windows: tuple[Window, ...]

    def is_over(self, now_utc_s: float) -> bool:
        return all(window.ends_utc_s <= now_utc_s for window in self.windows)


LAPSED_BUT_KNOWN: Final = " by our clock; the known version stays in force, DELETE it to end it"


class EventBook:
    """The events in force and to come. Windows are resolved once, on arrival: "now" must not move with time.

    Deleted events are remembered without windows, so that a create that comes late stays without effect; so
    are those over for more than OVER_KEPT_S, so that a year of events is no larger than a day of them.
    """

    def __init__(self, *, retained_age_max_s: float = RETAINED_AGE_MAX_S) -> None:
        self._retained_age_max_s = retained_age_max_s
        self._entries: dict[str, Entry] = {}
        self._ordered: tuple[Window, ...] | None = None  # all windows by start; None: the book has changed
        self._first_end_utc_s = math.inf  # of those
        self.duplicates = 0

    def apply(self, notification: Notification, now_utc_s: float, *, retained: bool = False) -> Verdict:
        """Takes a message into the book, as a whole or not at all.

        Args:
            notification: from `parse`.
            now_utc_s: the moment of its arrival.
            retained: the broker kept it; it may be of any age.
        """
        event = notification.event
        known = self._entries.get(event.id)
        if notification.operation == "DELETE":
            if retained and event.modified_utc_s is None:
                return Verdict(False, f"event {event.id}: retained, without a date: it could be of any age")
            return self._delete(event, known, now_utc_s)
        if event.modified_utc_s is None:
            return Verdict(False, f"event {event.id}: modificationDateTime: missing; it tells new from old")
        if known is not None and event.modified_utc_s <= known.modified_utc_s:
            return self._not_news(event, known)
        try:
            windows = resolve(event, now_utc_s)
            if retained:
                self._check_age(event, windows, now_utc_s)
        except OpenAdrError as error:
            return Verdict(False, str(error))
        return self._enter(event, Entry(event.modified_utc_s, windows), now_utc_s)

    def windows(self, now_utc_s: float) -> tuple[Window, ...]:
        """All windows that are not over, by start."""
        if self._ordered is None:
            kept = [window for entry in self._entries.values() for window in entry.windows]
            kept.sort(key=lambda window: (window.starts_utc_s, window.event_id, window.interval_id))
            self._ordered = tuple(kept)
            self._first_end_utc_s = min((window.ends_utc_s for window in kept), default=math.inf)
        if now_utc_s < self._first_end_utc_s:
            return self._ordered
        return tuple(window for window in self._ordered if window.ends_utc_s > now_utc_s)

    def event_ids(self, now_utc_s: float) -> frozenset[str]:
        """Events with a window that is not over: to be held against a heartbeat's `event_ids`."""
        return frozenset(name for name, entry in self._entries.items() if not entry.is_over(now_utc_s))

    def to_dict(self) -> dict[str, Any]:
        """The whole book, ready for JSON."""
        return {"v": 1, "events": msgspec.to_builtins(self._entries)}

    @classmethod
    def from_dict(cls, said: object, *, retained_age_max_s: float = RETAINED_AGE_MAX_S) -> "EventBook":
        """Raises OpenAdrError on anything that `to_dict` did not make."""
        if not isinstance(said, dict) or said.get("v") != 1:
            raise OpenAdrError(
                "kept events: not a book of version 1; move the file away and let the site send anew"
            )
        book = cls(retained_age_max_s=retained_age_max_s)
        try:
            book._entries = msgspec.convert(said.get("events"), dict[str, Entry])
        except msgspec.ValidationError as error:
            raise OpenAdrError(
                f"kept events: {error}; move the file away and let the site send anew"
            ) from error
        return book

    def _not_news(self, event: Event, known: Entry) -> Verdict:
        if event.modified_utc_s != known.modified_utc_s:
            return Verdict(False, f"event {event.id}: older than known")
        self.duplicates += 1
        return Verdict(True, "duplicate")

    def _delete(self, event: Event, known: Entry | None, now_utc_s: float) -> Verdict:
        known_utc_s = -math.inf if known is None else known.modified_utc_s
        modified_utc_s = known_utc_s if event.modified_utc_s is None else event.modified_utc_s
        if modified_utc_s < known_utc_s:
            return Verdict(False, f"event {event.id}: older than known")
        # Without a date, or in a book full of events in force, an unknown event's end is not worth a line.
        if modified_utc_s > -math.inf and self._has_room(event.id, now_utc_s):
            self._remember(event.id, Entry(modified_utc_s, ()))
        return Verdict(True, "deleted")

    def _enter(self, event: Event, entry: Entry, now_utc_s: float) -> Verdict:
        ignored = ignored_types(event)
        known = self._entries.get(event.id)
        if not self._has_room(event.id, now_utc_s):
            return Verdict(False, f"event {event.id}: {EVENTS_MAX} events are in force; delete some", ignored)
        if entry.windows:
            reason = "accepted"
        elif _is_cancelled(event):
            reason = "cancelled"
        elif any(p.type in KINDS for interval in event.intervals for p in interval.payloads):
            # Our clock may be wrong, and a wrong clock must not release what the site holds us to.
            stays = "" if known is None or not known.windows else LAPSED_BUT_KNOWN
            return Verdict(False, f"event {event.id}: lapsed{stays}", ignored)
        else:
            reason = f"accepted; it asks for no power: {', '.join(ignored) or 'no payload'}"
        self._remember(event.id, entry)
        self._shed(now_utc_s)
        return Verdict(True, reason, ignored)

    def _has_room(self, event_id: str, now_utc_s: float) -> bool:
        """Makes room by forgetting what is over, the longest known first."""
        if event_id in self._entries or len(self._entries) < EVENTS_MAX:
            return True
        for other_id, entry in self._entries.items():
            if entry.is_over(now_utc_s):
                del self._entries[other_id]
                self._ordered = None
                return True
        return False

    def _shed(self, now_utc_s: float) -> None:
        """Of events long over only id and date stay, in their place."""
        for event_id, entry in self._entries.items():
            if entry.windows and entry.is_over(now_utc_s - OVER_KEPT_S):
                self._entries[event_id] = Entry(entry.modified_utc_s, ())
                self._ordered = None

    def _remember(self, event_id: str, entry: Entry) -> None:
        self._entries.pop(event_id, None)  # the newest stand last
        self._entries[event_id] = entry
        self._ordered = None

    def _check_age(self, event: Event, windows: tuple[Window, ...], now_utc_s: float) -> None:
        """A wish that starts "now" or never ends has no times of its own: its age decides."""
        assert event.modified_utc_s is not None
        said = (event.starts_utc_s, *(interval.starts_utc_s for interval in event.intervals[:1]))
        timeless = AT_ONCE_UTC_S in said or any(window.ends_utc_s >= FOREVER_UTC_S for window in windows)
        if timeless and now_utc_s - event.modified_utc_s > self._retained_age_max_s:
            raise OpenAdrError(
                f"event {event.id}: retained, and too old for a wish without times of its own; send it anew"
            )


# -- reading ------------------------------------------------------------------------------------------------


def parse(payload: bytes | str) -> Notification:
    """Reads a notification, or a bare event object as found in files (then as if just created).

    Raises:
        OpenAdrError: not an OpenADR event.
    """
    said = _object(_json(payload), "message")
    if "object" not in said and "operation" in said:
        raise OpenAdrError(
            "object: missing; subscribe to the topic that carries whole events, not just their ids"
        )
    if "object" not in said:
        return Notification("CREATE", _event(said, "event", bare=True))
    object_type = said.get("objecttype")
    if object_type != "EVENT":
        raise OpenAdrError(f"objectType: {_shown(object_type)}; subscribe to topics of EVENT alone")
    operation = OPERATIONS.get(_text(said.get("operation"), "operation").upper())
    if operation is None:
        raise OpenAdrError(f"operation: {_shown(said['operation'])}; send CREATE, UPDATE or DELETE")
    event = _object(said["object"], "object")
    if operation == "DELETE":  # who calls an event off need not repeat it without fault
        return Notification("DELETE", Event(_event_id(event, "object"), _modified_utc_s(event, "object")))
    return Notification(operation, _event(event, "object", bare=False))


def parse_heartbeat(payload: bytes | str) -> Heartbeat:
    """Reads `{"sent_at": RFC 3339 time, "seq": 7, "event_ids": ["a"]}`; the last two may be missing.

    Raises:
        OpenAdrError: anything in it is not what it should be.
    """
    said = _object(_json(payload), "heartbeat")
    seq = said.get("seq")
    if seq is not None and (isinstance(seq, bool) or not isinstance(seq, int) or seq < 0):
        raise OpenAdrError(f"heartbeat.seq: {_shown(seq)}; send a count from 0 on, or leave it out")
    sent_at_utc_s = parse_time(_text(said.get("sentat"), "heartbeat.sent_at"), "heartbeat.sent_at")
    if sent_at_utc_s == AT_ONCE_UTC_S:
        raise OpenAdrError("heartbeat.sent_at: 0001-01-01; send the time of sending")
    ids = said.get("eventids")
    return Heartbeat(
        sent_at_utc_s=sent_at_utc_s,
        seq=seq,
        event_ids=None if ids is None else frozenset(_ids(ids, "heartbeat.event_ids")),
    )


def parse_time(text: str, path: str) -> float:
    """UTC seconds of an RFC 3339 time, or AT_ONCE_UTC_S for 0001-01-01 in any of its spellings.

    Raises:
        OpenAdrError: no such time, or one without its offset: a limit moved by a time zone is a wrong limit.
    """
    return _time_utc_s(text, path, offset_if_missing=None)


def parse_duration(text: str, path: str) -> Duration:
    """An ISO 8601 duration as the standard restricts it. Negative ones are read here and refused in use.

    Raises:
        OpenAdrError: not a duration.
    """
    if len(text) <= TEXT_MAX_CHARS:
        if match := DURATION_OF_THE_GUIDE.fullmatch(text):
            return Duration(seconds_s=float(match[1]) * (3600.0 if match[2] == "H" else 1.0))
        if match := DURATION.fullmatch(text):
            sign = -1 if match[1] else 1
            years, months, days, hours, minutes, seconds = (float(match[n] or 0) for n in (2, 3, 4, 6, 7, 8))
            days *= 7 if match[5] == "W" else 1
            return Duration(
                months=sign * min(int(years) * 12 + int(months), INFINITE_MONTHS),
                seconds_s=sign * min(((days * 24 + hours) * 60 + minutes) * 60 + seconds, FOREVER_UTC_S),
            )
    raise OpenAdrError(f"{path}: {_shown(text)} is not a duration; send one like PT15M, P1D or P9999Y")


def _time_utc_s(text: str, path: str, *, offset_if_missing: str | None) -> float:
    if len(text) <= TEXT_MAX_CHARS:
        if AT_ONCE.fullmatch(text):
            return AT_ONCE_UTC_S
        if match := RFC_3339.fullmatch(text):
            offset = "+00:00" if match[3] in ("Z", "z") else match[3] or offset_if_missing
            if offset is None:
                raise OpenAdrError(f"{path}: {_shown(text)} has no offset; append Z or one like +01:00")
            try:
                utc_s = datetime.fromisoformat(f"{match[1]}T{match[2]}{offset}").timestamp()
            except (ValueError, OverflowError):  # 31 February
                utc_s = math.nan
            if AT_ONCE_UTC_S <= utc_s < YEAR_10000_UTC_S:  # an offset may lead out of the calendar
                return utc_s
    raise OpenAdrError(f"{path}: {_shown(text)} is not a time; send one like 2026-11-21T18:00:00Z")


def _event(said: dict[str, Any], path: str, *, bare: bool) -> Event:
    object_type = said.get("objecttype")
    if object_type not in (None, "EVENT"):
        raise OpenAdrError(f"{path}.objectType: {_shown(object_type)}; only EVENT is understood")
    starts_utc_s, interval_duration = _period(said.get("intervalperiod"), f"{path}.intervalPeriod")
    intervals = _list(said.get("intervals"), f"{path}.intervals")
    return Event(
        id=_event_id(said, path, fallback=said.get("eventname") or "unnamed" if bare else None),
        modified_utc_s=_modified_utc_s(said, path),
        priority=_priority(said.get("priority"), f"{path}.priority"),
        starts_utc_s=starts_utc_s,
        interval_duration=interval_duration,
        duration=_duration(said.get("duration"), f"{path}.duration"),
        units=_units(_list(said.get("payloaddescriptors"), f"{path}.payloadDescriptors"), path),
        intervals=tuple(_interval(one, n, f"{path}.intervals[{n}]") for n, one in enumerate(intervals)),
    )


def _interval(value: object, index: int, path: str) -> Interval:
    said = _object(value, path)
    starts_utc_s, duration = _period(said.get("intervalperiod"), f"{path}.intervalPeriod")
    interval_id = said.get("id", index)
    if isinstance(interval_id, bool) or not isinstance(interval_id, int) or abs(interval_id) >= ID_END:
        raise OpenAdrError(f"{path}.id: {_shown(interval_id)}; send a whole number")
    payloads = []
    for number, one in enumerate(_list(said.get("payloads"), f"{path}.payloads")):
        inner = f"{path}.payloads[{number}]"
        payload = _object(one, inner)
        values = _list(payload.get("values"), f"{inner}.values")
        payloads.append(Payload(_text(payload.get("type"), f"{inner}.type"), tuple(values)))
    return Interval(interval_id, starts_utc_s, duration, tuple(payloads))


def _period(value: object, path: str) -> tuple[float | None, Duration | None]:
    if value is None:
        return None, None
    said = _object(value, path)
    start = said.get("start")
    starts_utc_s = None if start is None else parse_time(_text(start, f"{path}.start"), f"{path}.start")
    return starts_utc_s, _duration(said.get("duration"), f"{path}.duration")


def _units(descriptors: list[Any], path: str) -> dict[str, str | None]:
    """Unit per payload type. The guide's examples leave objectType out: only a report's is passed over."""
    units: dict[str, str | None] = {}
    for number, one in enumerate(descriptors):
        inner = f"{path}.payloadDescriptors[{number}]"
        said = _object(one, inner)
        if said.get("objecttype") == "REPORT_PAYLOAD_DESCRIPTOR":
            continue
        payload_type = _text(said.get("payloadtype"), f"{inner}.payloadType")
        unit = None if said.get("units") is None else _text(said["units"], f"{inner}.units")
        if units.get(payload_type, unit) != unit:
            raise OpenAdrError(
                f"{inner}.units: {_shown(unit)}, but {payload_type} has another one above; send one"
            )
        units[payload_type] = unit
    return units


def _event_id(said: dict[str, Any], path: str, fallback: object = None) -> str:
    value = said.get("id", fallback)
    if not isinstance(value, str) or (not EVENT_ID.fullmatch(value) and value != fallback):
        raise OpenAdrError(f"{path}.id: {_shown(value)}; send 1 to 128 letters, digits, - or _")
    return value


def _ids(value: object, path: str) -> Iterator[str]:
    for number, one in enumerate(_list(value, path)):
        yield _event_id({"id": one}, f"{path}[{number}]")


def _modified_utc_s(said: dict[str, Any], path: str) -> float | None:
    """Orders the versions of one event. All come from one clock, so one without offset may pass for UTC."""
    value = said.get("modificationdatetime")
    path = f"{path}.modificationDateTime"
    return None if value is None else _time_utc_s(_text(value, path), path, offset_if_missing="+00:00")


def _priority(value: object, path: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= PRIORITY_LOWEST:
        raise OpenAdrError(f"{path}: {_shown(value)}; send a whole number from 0 (first) on, or null (last)")
    return value


def _duration(value: object, path: str) -> Duration | None:
    return None if value is None else parse_duration(_text(value, path), path)


def _json(payload: bytes | str) -> object:
    """JSON with its keys folded, so that object_type and objectType are one."""
    size = len(payload)
    if size > PAYLOAD_MAX_BYTES:
        raise OpenAdrError(f"message of {size} bytes; send {PAYLOAD_MAX_BYTES} at most, in several events")
    try:
        text = payload if isinstance(payload, str) else payload.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_fold, parse_constant=_no_constant)
    except OpenAdrError:
        raise
    except RecursionError as error:
        raise OpenAdrError("message: nested too deeply; send an OpenADR event") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ones
        raise OpenAdrError(f"message: not JSON: {error}") from error


def _fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    folded: dict[str, Any] = {}
    for key, value in pairs:
        name = key.replace("_", "").lower()
        if name in folded and folded[name] != value:
            raise OpenAdrError(f"{key}: given twice with different values; send it once")
        folded[name] = value
    return folded


def _no_constant(name: str) -> float:
    raise OpenAdrError(f"message: {name} is not JSON; send a number")


def _object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OpenAdrError(f"{path}: {_shown(value)}; send an object")
    return value


def _list(value: object, path: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise OpenAdrError(f"{path}: {_shown(value)}; send a list")
    return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise OpenAdrError(f"{path}: {_shown(value)}; send a text")
    return value


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring = 2, 2 * TEXT_MAX_CHARS  # plain repr recurses as deep as the sender nested


def _shown(value: object) -> str:
    """Short enough for a log line, whatever was sent."""
    if value is None:
        return "missing"
    shown = _short.repr(value)
    return shown if len(shown) <= TEXT_MAX_CHARS else f"{shown[:TEXT_MAX_CHARS]}..."
