"""What an OpenADR 3 message says, before anyone asks what it means.

One set of objects for both generations (3.0.1 and 3.1): targets are texts, operations carry the names of
3.1, times are UTC seconds. None stands for "not said", so that each field can be inherited on its own:
an interval's period from the event's, a unit from the programme's. Values are kept as they were sent.

Source: OpenADR 3.1.0 openapi, Definition; 3.0.1 where it differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

AT_ONCE_UTC_S: Final = -62_135_596_800.0  # 0001-01-01, the standard's way to write "now" or "right after"
PRIORITY_LOWEST: Final = 2**31 - 1  # lower number wins; an event without priority yields to all others

Operation = Literal["CREATE", "UPDATE", "DELETE"]
Units = Mapping[str, str | None]  # payload type -> unit; None: described without one


@dataclass(frozen=True)
class Duration:
    """Months are kept apart: their length depends on where they start."""

    months: int = 0
    seconds_s: float = 0.0

    @property
    def is_zero(self) -> bool:
        return self.months == 0 and self.seconds_s == 0


@dataclass(frozen=True)
class Period:
    """An intervalPeriod."""

    starts_utc_s: float | None = None  # AT_ONCE_UTC_S: 0001-01-01
    duration: Duration | None = None
    randomize: Duration | None = None  # randomizeStart: start may move by as much, either way


@dataclass(frozen=True)
class Payload:
    type: str
    values: tuple[Any, ...]  # as sent; `resolve` judges them


@dataclass(frozen=True)
class Interval:
    id: int  # the sender's label, no sequence number
    period: Period
    payloads: tuple[Payload, ...]


@dataclass(frozen=True)
class ReportDescriptor:
    """A report that an event asks for. Counts are of intervals; -1 means all, or for ever."""

    payload_type: str
    reading_type: str | None = None
    units: str | None = None
    targets: tuple[str, ...] = ()
    aggregate: bool = False
    start_interval: int = -1  # -1: the end of the last one
    num_intervals: int = -1
    historical: bool = True  # the intervals before the start; False: those after it, a forecast
    frequency: int = -1  # intervals from report to report; 0: whenever we see fit
    repeat: int = 1
    report_intervals: str = "INTERVALS"


@dataclass(frozen=True)
class Event:
    """One version of an event."""

    id: str
    modified_utc_s: float | None
    program_id: str | None = None
    priority: int | None = None
    period: Period = Period()  # start of the first interval and duration of each, unless they say otherwise
    duration: Duration | None = None  # of the whole: loops or cuts the intervals (3.1)
    units: Units = field(default_factory=dict)
    intervals: tuple[Interval, ...] = ()
    report_descriptors: tuple[ReportDescriptor, ...] = ()
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """What a programme says once for all of its events."""

    id: str
    modified_utc_s: float | None
    name: str = ""
    units: Units = field(default_factory=dict)
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notification:
    operation: Operation
    event: Event
