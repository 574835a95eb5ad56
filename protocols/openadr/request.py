"""What an event wants to be told: which reports, about which intervals, and when each is due.

A `reportDescriptor` counts in intervals. Those of the event, looped with it; without any, implied ones: the
event's intervalPeriod over and over; without that, ours. Numbered from 0 they are an `Axis`, and each report
is about a range of them:

* frequency -1: one report, about all intervals or those that startInterval and numIntervals name;
* frequency n: one every n intervals, the first about what ends with startInterval (historical), or begins
  with it (forecast); numIntervals of them, else n (historical), or all that are left (forecast);
* frequency 0, "whenever we see fit": after every interval, as 1.

A historical report is due when its last interval ends, a forecast when its first begins, and at once where
no startInterval is said. randomizeStart moves no report: they tell of the intervals as they were said.

Source: OpenADR 3.1 User Guide 7.5, 8.6 to 8.8; where its text and its pictures disagree, its text.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Annotated, Final

import msgspec

from protocols.openadr.fields import shown
from protocols.openadr.model import AT_ONCE_UTC_S, Event, ReportDescriptor
from protocols.openadr.readings import TYPES, Slot, served
from protocols.openadr.timing import (
    FOREVER_UTC_S,
    YEAR_10000_UTC_S,
    add,
    ends_utc_s,
    is_cancelled,
    lay_out,
)

OWN_INTERVAL_S: Final = 900.0  # where the choice is ours: what meters and markets settle by
EVENT_INTERVALS_MAX: Final = 1000  # of an event that asks for reports: 3 days of 5 minutes
INTERVALS_MAX: Final = 300  # in a report, which is written within a beat: a day of 5 minutes
DESCRIPTORS_MAX: Final = 8  # served per event: one of each type that is served
DESCRIPTORS_READ_MAX: Final = 64  # of an event; what stands behind is not looked at
REASONS_MAX: Final = 3  # of what is not served, in one sentence
ID_TURNS: Final = 2**31  # ids are int32
LAYOUTS: Final = ("INTERVALS", "SUB_INTERVALS", "OPEN_INTERVALS")


@dataclass(frozen=True)
class Axis:
    """Slots numbered from 0 on: one turn of them, repeated.

    Attributes:
        turn: at least one.
        period_s: from turn to turn; 0: there is one turn.
        until_utc_s: what lies behind is cut off.
        counted: their numbers are their ids; else they carry the event's.
    """

    turn: Annotated[tuple[Slot, ...], msgspec.Meta(min_length=1)]
    period_s: float
    until_utc_s: float
    counted: bool

    @property
    def size(self) -> int:
        """Intervals that the event itself has."""
        return 0 if self.counted else len(self.turn)

    def slot(self, number: int) -> Slot | None:
        turn, position = divmod(number, len(self.turn))
        slot_id, starts_utc_s, ends_utc_s = self.turn[position]
        starts_utc_s += turn * self.period_s
        if turn and not self.period_s:
            return None
        if not AT_ONCE_UTC_S <= starts_utc_s < min(self.until_utc_s, YEAR_10000_UTC_S):
            return None
        ends_utc_s = min(ends_utc_s + turn * self.period_s, self.until_utc_s)
        return Slot(number % ID_TURNS if self.counted else slot_id, starts_utc_s, ends_utc_s)

    def slots(self, numbers: range) -> list[Slot]:
        """Those that exist."""
        return [slot for number in numbers if (slot := self.slot(number)) is not None]


@dataclass(frozen=True)
class Request:
    """What one version of an event asks to be told, as far as it is served.

    Attributes:
        event_id: to be repeated in the reports.
        program_id: likewise; None: it names none.
        modified_utc_s: of this version.
        since_utc_s: when it was heard.
        ends_utc_s: of the event.
        axis: its intervals, or implied ones.
        descriptors: served ones; those whose payload type, unit or counts are not understood are left out.
    """

    event_id: str
    program_id: str | None
    modified_utc_s: float
    since_utc_s: float
    ends_utc_s: float
    axis: Axis
    descriptors: tuple[ReportDescriptor, ...]

    def numbers(self, asked: ReportDescriptor, report: int) -> range:
        """Which intervals report number `report` is about; it exists if its slots do."""
        size = self.axis_of(asked).size
        first, wanted = asked.start_interval, max(asked.num_intervals, 0)
        step = _step(asked, size)
        if asked.frequency == -1:
            last_ones = asked.historical and first == -1 and 0 < wanted < size
            low = size - wanted if last_ones else max(first, 0)
            high = low + (wanted or max(size - low, 1))
            high = min(high, size) if size else high
        elif asked.historical:
            high = step if first == -1 else first + 1
            low = high - (wanted or step)
        else:
            low = max(first, 0)
            high = low + (wanted or size or step)
        return range(max(0, low + report * step), high + report * step)

    def due_utc_s(self, asked: ReportDescriptor, report: int) -> float:
        """When report number `report` is due; `inf`: never."""
        axis, numbers = self.axis_of(asked), self.numbers(asked, report)
        if asked.historical:
            news = numbers[-_step(asked, axis.size) :]  # without any, it would repeat the one before
            newest = next((slot for number in reversed(news) if (slot := axis.slot(number))), None)
            if newest is None or newest.ends_utc_s >= FOREVER_UTC_S:
                return math.inf
            return newest.ends_utc_s
        slot = axis.slot(numbers.start) if numbers else None
        if slot is None:
            return math.inf
        at_once = report == 0 and asked.start_interval == -1
        return min(slot.starts_utc_s, self.since_utc_s) if at_once else slot.starts_utc_s

    def axis_of(self, asked: ReportDescriptor) -> Axis:
        """The choice is ours where we are told so, and needed where an interval never ends."""
        slots = self.axis.turn
        open_or_endless = asked.report_intervals == "OPEN_INTERVALS" or slots[-1].ends_utc_s >= FOREVER_UTC_S
        if asked.frequency == 0 and open_or_endless:
            return _repeated(slots[0].starts_utc_s, OWN_INTERVAL_S, self.axis.until_utc_s)
        return self.axis

    def slots_of(self, asked: ReportDescriptor, report: int) -> list[Slot]:
        """The intervals that a report shows, at most INTERVALS_MAX."""
        slots = self.axis_of(asked).slots(self.numbers(asked, report))
        if asked.report_intervals == "SUB_INTERVALS":
            most = max(1, INTERVALS_MAX // max(len(slots), 1))
            return [Slot(slot.id, *part) for slot in slots for part in _parts(*slot[1:], most)]
        if asked.report_intervals == "OPEN_INTERVALS" and asked.frequency != 0 and slots:
            starts_utc_s = min(slot.starts_utc_s for slot in slots)
            parts = _parts(starts_utc_s, slots[-1].ends_utc_s, INTERVALS_MAX)
            return [Slot(number, *part) for number, part in enumerate(parts)]
        return slots


def read_request(event: Event, now_utc_s: float, names: Collection[str] = ()) -> tuple[Request | None, str]:
    """What an event asks to be told, and what of it is not served, as a sentence; empty: nothing.

    Args:
        event: from `parse`, with its date.
        now_utc_s: moment of its arrival.
        names: whom a descriptor may name in its targets to mean us; none: whomever.

    Raises:
        OpenAdrError: an interval lasts less than nothing.
    """
    if not event.report_descriptors or is_cancelled(event):
        return None, ""
    if len(event.intervals) > EVENT_INTERVALS_MAX:
        return None, f"no reports on more than {EVENT_INTERVALS_MAX} intervals; send several events"
    axis, over_utc_s = _axis(event, now_utc_s)
    if over_utc_s <= now_utc_s:
        return None, ""
    assert event.modified_utc_s is not None
    asks = event.report_descriptors[:DESCRIPTORS_READ_MAX]
    whole = Request(
        event.id, event.program_id, event.modified_utc_s, now_utc_s, over_utc_s, axis, asks
    )  # fmt: skip
    told: list[ReportDescriptor] = []
    reasons: list[str] = []
    for asked in asks:
        why_not = _why_not(asked, whole, names)
        if not why_not and len(told) == DESCRIPTORS_MAX:
            why_not = f"only {DESCRIPTORS_MAX} are, per event"
        if why_not:
            reasons.append(f"{shown(asked.payload_type)}: {why_not}")
        else:
            told.append(asked)
    others = len(event.report_descriptors) - len(told) - REASONS_MAX
    more = f"; and {others} more" if others > 0 else ""
    said = f"reports not served: {'; '.join(reasons[:REASONS_MAX])}{more}" if reasons else ""
    return (replace(whole, descriptors=tuple(told)) if told else None), said


def _why_not(asked: ReportDescriptor, request: Request, names: Collection[str]) -> str:
    """Why a report cannot be given; empty: it can."""
    known = served(asked)
    impossible = "DIRECT_READ" if not asked.historical else "FORECAST"
    largest = max(asked.frequency, asked.num_intervals, len(request.numbers(asked, ID_TURNS)))
    checks = (
        (known is None, f"not one of {', '.join(TYPES)}"),
        (known and asked.units not in (None, *known.units), f"units {shown(asked.units)}"),
        (known and asked.reading_type not in known.readings, f"readingType {shown(asked.reading_type)}"),
        (asked.reading_type == impossible, f"historical {asked.historical} and {impossible} contradict"),
        (known and not asked.historical and not known.forecast, "not known in advance"),
        (asked.report_intervals not in LAYOUTS, f"reportIntervals {shown(asked.report_intervals)}"),
        (bool(names) and bool(asked.targets) and not _names_us(asked, names), "its targets name others"),
        (0 in (asked.repeat, asked.num_intervals), "repeat or numIntervals of 0 asks for nothing"),
        (largest > INTERVALS_MAX, f"more than {INTERVALS_MAX} intervals in one report; ask for fewer"),
    )
    for wrong, why in checks:
        if wrong:
            return why
    if request.due_utc_s(asked, 0) == math.inf:
        return "it never falls due; its interval has no end, or the event has no such interval"
    return ""


def _names_us(asked: ReportDescriptor, names: Collection[str]) -> bool:
    """A target of 3.0 has its type before a colon."""
    return any(target in names or target.partition(":")[2] in names for target in asked.targets)


def _step(asked: ReportDescriptor, size: int) -> int:
    """Intervals from report to report."""
    if asked.frequency == -1:
        return size or max(asked.num_intervals, 1)
    return max(asked.frequency, 1)


def _axis(event: Event, now_utc_s: float) -> tuple[Axis, float]:
    """The intervals to report on, and when the event ends."""
    if event.intervals:
        axis = _said_axis(event, now_utc_s)
        return axis, axis.until_utc_s
    said = event.period.starts_utc_s
    starts_utc_s = now_utc_s if said is None or said == AT_ONCE_UTC_S else said
    until_utc_s = FOREVER_UTC_S
    if event.duration is not None:
        until_utc_s = add(starts_utc_s, event.duration, f"event {event.id}: duration")
    length_s = 0.0
    if event.period.duration is not None:
        path = f"event {event.id}: intervalPeriod.duration"
        length_s = add(starts_utc_s, event.period.duration, path) - starts_utc_s
    axis = _repeated(starts_utc_s, length_s or OWN_INTERVAL_S, until_utc_s)
    if event.duration is not None or not length_s:
        return axis, until_utc_s
    return axis, _implied_end_utc_s(event, axis, now_utc_s)


def _said_axis(event: Event, now_utc_s: float) -> Axis:
    spans = lay_out(event, now_utc_s)
    slots = (Slot(event.intervals[span.position].id, span.starts_utc_s, span.ends_utc_s) for span in spans)
    turn = tuple(sorted(slots, key=itemgetter(2, 1)))  # counted as they end, in whatever order they are sent
    length_s = max(span.ends_utc_s for span in spans) - min(span.starts_utc_s for span in spans)
    loop_s = 0.0 if event.duration is None else length_s
    return Axis(turn, loop_s, ends_utc_s(event, spans), counted=False)


def _repeated(starts_utc_s: float, length_s: float, until_utc_s: float) -> Axis:
    return Axis((Slot(0, starts_utc_s, starts_utc_s + length_s),), length_s, until_utc_s, counted=True)


def _implied_end_utc_s(event: Event, axis: Axis, now_utc_s: float) -> float:
    """Implied intervals last as long as somebody wants to be told about them."""
    asks = event.report_descriptors[:DESCRIPTORS_READ_MAX]
    request = Request(event.id, None, 0.0, now_utc_s, FOREVER_UTC_S, axis, asks)
    return max(_wanted_until_utc_s(request, asked) for asked in request.descriptors)


def _wanted_until_utc_s(request: Request, asked: ReportDescriptor) -> float:
    last = request.numbers(asked, max(asked.repeat, 1) - 1).stop - 1
    slot = request.axis_of(asked).slot(max(last, 0))
    return FOREVER_UTC_S if asked.repeat == -1 or slot is None else slot.ends_utc_s


def _parts(starts_utc_s: float, ends_utc_s: float, most: int) -> list[tuple[float, float]]:
    """Equal parts of about OWN_INTERVAL_S, at most `most`; what leads out of the calendar stays whole."""
    length_s = ends_utc_s - starts_utc_s
    count = 1 if ends_utc_s >= YEAR_10000_UTC_S else min(max(math.ceil(length_s / OWN_INTERVAL_S), 1), most)
    edges = [starts_utc_s + length_s * number / count for number in range(count)]
    return list(zip(edges, [*edges[1:], ends_utc_s], strict=True))
