"""Reports to the site: the words of those that are due, each handed out once.

Which report is due when is said by the `Request` of its event; here is what it says, and how far each has
come, across restarts. Of reports that are late together only the newest is sent, as the guide wants it of an
event that is heard in its middle. What was handed out is not handed out again, even if it is lost on the
way: a report too few is asked for, a report too many is counted.

Every value has its DATA_QUALITY beside it, and a value that nobody measured is left out: 0 would be a lie.

Source: OpenADR 3.1 User Guide 7.5 to 7.8, openapi (report). No IO and no clock: `now_utc_s` is an argument,
and what is measured comes through `Metered`.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Protocol

import msgspec

from protocols.openadr.fields import OpenAdrError
from protocols.openadr.model import ReportDescriptor
from protocols.openadr.readings import QUALITY, Metered, Reading, served
from protocols.openadr.request import Request
from protocols.openadr.timing import FOREVER_UTC_S

# Per call of `due`; the rest with the next, since the caller has a beat to keep: an interval takes 15 us.
REPORTS_AT_ONCE_MAX: Final = 16
INTERVALS_AT_ONCE_MAX: Final = 200  # a single report may have more
REPEATS_MAX: Final = 2**53  # for ever
CLOCK_BACK_S: Final = 60.0  # a wall clock set back by more has been wrong before: count anew
NEVER_UTC_S: Final = -1e15  # finite, for JSON
VERSION: Final = 1
AGGREGATED: Final = "AGGREGATED_REPORT"


def write(
    request: Request, asked: ReportDescriptor, report: int, metered: Metered, resource_name: str
) -> dict[str, Any]:
    """A report as OpenADR 3.1 wants it, all but the clientName, which its sender knows.

    It has no reportName: nobody needs one, and a VTN may refuse a second report of the same name.
    """
    known = served(asked)
    assert known is not None  # a request holds what is served alone
    unit = asked.units or next(iter(known.units))
    descriptor = {
        "objectType": "REPORT_PAYLOAD_DESCRIPTOR",
        "payloadType": asked.payload_type,
        "readingType": asked.reading_type,
        "units": unit,
    }
    begun_utc_s = min(slot.starts_utc_s for slot in request.axis.turn)
    intervals = [
        {
            "id": slot.id,
            "intervalPeriod": {
                "start": time_text(slot.starts_utc_s),
                "duration": duration_text(slot.starts_utc_s, slot.ends_utc_s),
            },
            "payloads": _payloads(asked, known.read(metered, slot, begun_utc_s), known.units[unit](slot)),
        }
        for slot in request.slots_of(asked, report)
    ]
    said = {
        "eventID": request.event_id,
        "payloadDescriptors": [{key: value for key, value in descriptor.items() if value is not None}],
        "resources": [
            {"resourceName": AGGREGATED if asked.aggregate else resource_name, "intervals": intervals}
        ],
    }
    return said if request.program_id is None else said | {"programID": request.program_id}


def _payloads(asked: ReportDescriptor, reading: Reading, factor: float) -> list[dict[str, Any]]:
    value, quality = reading.value, reading.quality
    if isinstance(value, int | float):
        value = round(value * factor, 3) if math.isfinite(value * factor) else None  # to 1 W or 1 Wh
        quality = "BAD" if value is None else quality
    said = {"type": QUALITY, "values": [quality]}
    if asked.payload_type == QUALITY or value is None or quality == "MISSING":
        return [said]
    return [{"type": asked.payload_type, "values": [value]}, said]


def time_text(utc_s: float) -> str:
    """RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(utc_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration_text(starts_utc_s: float, ends_utc_s: float) -> str:
    """ISO 8601 as the standard restricts it."""
    if ends_utc_s >= FOREVER_UTC_S:
        return "P9999Y"
    return f"PT{ends_utc_s - starts_utc_s:.3f}".rstrip("0").rstrip(".") + "S"


# -- what was said already ----------------------------------------------------------------------------------


class Told(msgspec.Struct):
    """How far the reports of one descriptor have come."""

    next: Annotated[int, msgspec.Meta(ge=0, le=REPEATS_MAX)]  # number of the next one
    due_utc_s: float  # when the last one was due


class Progress(msgspec.Struct):
    """Of one version of an event, in the order of its descriptors."""

    modified_utc_s: float
    told: list[Told]


class Kept(msgspec.Struct):
    v: int
    events: dict[str, Progress]


class Asking(Protocol):
    """Where requests are found."""

    @property
    def requests(self) -> Mapping[str, Request]:
        """By event; another object after every change."""


class Reports:
    """Says which reports are due, each at most once: what was handed out is not handed out again."""

    def __init__(self, book: Asking, *, resource_name: str = "block") -> None:
        self._book = book
        self._resource_name = resource_name
        self._progress: dict[str, Progress] = {}
        self._seen: Mapping[str, Request] = {}
        self._due_utc_s: dict[str, list[float]] = {}  # of the next ones
        self._soonest_utc_s = math.inf
        self._last_utc_s = NEVER_UTC_S  # moment of the latest report that was due

    def due(self, now_utc_s: float, metered: Metered) -> tuple[dict[str, Any], ...]:
        """Reports that are due and were not handed out yet; costs nothing until the next one is.

        Not all at once: ask again. Keep `to_dict` before they are sent.
        """
        if self._book.requests is not self._seen:
            self._follow()
        if self._last_utc_s > now_utc_s + CLOCK_BACK_S:
            self._count_anew(now_utc_s)
        if now_utc_s < self._soonest_utc_s:
            return ()
        found: list[dict[str, Any]] = []
        intervals = 0
        for event_id, dues_utc_s in self._due_utc_s.items():
            for index, due_utc_s in enumerate(dues_utc_s):
                has_room = len(found) < REPORTS_AT_ONCE_MAX and intervals < INTERVALS_AT_ONCE_MAX
                if due_utc_s <= now_utc_s and has_room:
                    report = self._tell(self._seen[event_id], index, now_utc_s, metered)
                    intervals += len(report["resources"][0]["intervals"])
                    found.append(report)
        self._soonest_utc_s = min(
            (due for dues in self._due_utc_s.values() for due in dues), default=math.inf
        )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """What has been told, ready for JSON; small, and changed with every report."""
        said: dict[str, Any] = msgspec.to_builtins(Kept(VERSION, self._progress))
        return said

    @classmethod
    def from_dict(cls, said: object, book: Asking, *, resource_name: str = "block") -> "Reports":
        """Reads what `to_dict` made.

        Raises:
            OpenAdrError: it is anything else.
        """
        reports = cls(book, resource_name=resource_name)
        try:
            kept = msgspec.convert(said, Kept)
        except msgspec.ValidationError as error:
            raise OpenAdrError(f"kept reports: {error}; move the file away") from error
        if kept.v != VERSION:
            raise OpenAdrError(f"kept reports: version {kept.v}, not {VERSION}; move the file away")
        reports._progress = kept.events
        reports._last_utc_s = max(
            (t.due_utc_s for p in kept.events.values() for t in p.told), default=NEVER_UTC_S
        )
        return reports

    def _tell(self, request: Request, index: int, now_utc_s: float, metered: Metered) -> dict[str, Any]:
        """The newest report that is due; older ones are skipped, as the guide wants it of late ones."""
        asked, told = request.descriptors[index], self._progress[request.event_id].told[index]
        number = max(_passed(request, asked, told.next, now_utc_s) - 1, told.next)
        self._set(request, index, Told(number + 1, request.due_utc_s(asked, number)))
        return write(request, asked, number, metered, self._resource_name)

    def _set(self, request: Request, index: int, told: Told) -> None:
        asked = request.descriptors[index]
        self._progress[request.event_id].told[index] = told
        left = told.next < _most(asked)
        self._due_utc_s[request.event_id][index] = request.due_utc_s(asked, told.next) if left else math.inf
        self._last_utc_s = max(self._last_utc_s, told.due_utc_s)

    def _follow(self) -> None:
        """The book has changed: what was told of an older version is not told again."""
        before, self._seen = self._seen, self._book.requests
        progress, dues_utc_s = self._progress, self._due_utc_s
        self._progress, self._due_utc_s = {}, {}
        for event_id, request in self._seen.items():
            known = progress.get(event_id)
            if known is not None and before.get(event_id) is request:
                self._progress[event_id], self._due_utc_s[event_id] = known, dues_utc_s[event_id]
                continue
            told = _carried(request, known)
            self._progress[event_id] = Progress(request.modified_utc_s, told)
            self._due_utc_s[event_id] = [math.inf] * len(told)
            for index, one in enumerate(told):
                self._set(request, index, one)
        self._soonest_utc_s = -math.inf

    def _count_anew(self, now_utc_s: float) -> None:
        """The clock was ahead; what it skipped is still to come."""
        self._last_utc_s = NEVER_UTC_S
        for event_id, request in self._seen.items():
            for index, told in enumerate(self._progress[event_id].told):
                if told.due_utc_s > now_utc_s:
                    next_one = _passed(request, request.descriptors[index], 0, now_utc_s)
                    self._set(request, index, Told(next_one, now_utc_s))
        self._soonest_utc_s = -math.inf


def _carried(request: Request, known: Progress | None) -> list[Told]:
    """Where a request starts, or goes on."""
    if known is None or len(known.told) != len(request.descriptors):
        return [Told(0, NEVER_UTC_S) for _ in request.descriptors]
    if known.modified_utc_s == request.modified_utc_s:
        return known.told
    return [
        Told(_passed(request, asked, 0, told.due_utc_s), told.due_utc_s)
        for asked, told in zip(request.descriptors, known.told, strict=True)
    ]


def _passed(request: Request, asked: ReportDescriptor, first: int, at_utc_s: float) -> int:
    """Number of the first report, from `first` on, that is due after that moment; it is near, most times."""

    def due_utc_s(number: int) -> float:
        return request.due_utc_s(asked, number)

    width = 1
    while first + width < _most(asked) and due_utc_s(first + width - 1) <= at_utc_s:
        width *= 2
    numbers = range(first, min(first + width, _most(asked)))
    return first + bisect_right(numbers, at_utc_s, key=due_utc_s)


def _most(asked: ReportDescriptor) -> int:
    return REPEATS_MAX if asked.repeat == -1 else asked.repeat
