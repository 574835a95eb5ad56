"""When the intervals of an event are: texts to numbers, and intervals onto the time axis.

Texts first. The standard restricts ISO 8601 and RFC 3339, and its guide breaks both; every spelling found
there is read. A time without its offset is refused: a limit moved by a time zone is a wrong limit. P9999Y is
infinity, and a sentinel, since no calendar reaches that far.

Then the axis. Each field of a period that an interval does not say is inherited on its own: the duration
from the event, the start from the end of the interval before. Gaps and overlaps stay as they are said. The
event's own duration loops the intervals to fill it, or cuts them where it ends; a loop that began years ago
is entered at the turn that covers now. Last, randomizeStart: one draw moves the first interval and all that
follow, until a later one says start and randomizeStart of its own.

Source: OpenADR 3.1 User Guide 7.3 and 7.4, durations by the pattern in the openapi. No clock and no dice
here: `now_utc_s` and the draws are arguments.
"""

import math
import re
from collections.abc import Iterator, Sequence
from datetime import MAXYEAR, UTC, datetime
from typing import Final, NamedTuple

from protocols.openadr.fields import TEXT_MAX_CHARS, OpenAdrError, shown
from protocols.openadr.model import AT_ONCE_UTC_S, Duration, Event, Interval

FOREVER_UTC_S: Final = 1e12  # no end; finite because journals are JSON, which knows no infinity
YEAR_10000_UTC_S: Final = 253_402_300_800.0  # beyond the calendar
INFINITE_MONTHS: Final = 9999 * 12  # P9999Y, the standard's infinity
RANDOM_MAX_S: Final = 86_400.0  # no start moves further: the standard bounds it from above alone
MONTH_S: Final = 30 * 86_400.0  # of a randomizeStart, which has no start to count from

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


# -- texts --------------------------------------------------------------------------------------------------


def parse_time(text: str, path: str) -> float:
    """UTC seconds of an RFC 3339 time, or AT_ONCE_UTC_S for 0001-01-01 in any of its spellings.

    Raises:
        OpenAdrError: no such time, or one without its offset.
    """
    return _time_utc_s(text, path, offset_if_missing=None)


def parse_stamp(text: str, path: str) -> float:
    """As `parse_time` for a server's stamps: all are of one clock, so one without offset may pass for UTC."""
    return _time_utc_s(text, path, offset_if_missing="+00:00")


def parse_duration(text: str, path: str) -> Duration:
    """An ISO 8601 duration as the standard restricts it. Negative ones are read here and judged in use.

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
    raise OpenAdrError(f"{path}: {shown(text)} is not a duration; send one like PT15M, P1D or P9999Y")


def _time_utc_s(text: str, path: str, *, offset_if_missing: str | None) -> float:
    if len(text) <= TEXT_MAX_CHARS:
        if AT_ONCE.fullmatch(text):
            return AT_ONCE_UTC_S
        if match := RFC_3339.fullmatch(text):
            offset = "+00:00" if match[3] in ("Z", "z") else match[3] or offset_if_missing
            if offset is None:
                raise OpenAdrError(f"{path}: {shown(text)} has no offset; append Z or one like +01:00")
            try:
                utc_s = datetime.fromisoformat(f"{match[1]}T{match[2]}{offset}").timestamp()
            except (ValueError, OverflowError):  # 31 February
                utc_s = math.nan
            if AT_ONCE_UTC_S <= utc_s < YEAR_10000_UTC_S:  # an offset may lead out of the calendar
                return utc_s
    raise OpenAdrError(f"{path}: {shown(text)} is not a time; send one like 2026-11-21T18:00:00Z")


# -- the axis -----------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """An interval, or one turn of it. What of it lies behind `until_utc_s` is cut off, not moved."""

    position: int  # of the interval in its event
    starts_utc_s: float
    ends_utc_s: float
    until_utc_s: float = FOREVER_UTC_S


def is_cancelled(event: Event) -> bool:
    """There is no status field: an event is called off by start 0001-01-01 and no duration but zero.

    A server may write the schema's default PT0S where nothing was said: an interval that says how long it
    lasts is meant to be acted upon. So is a question that may be answered at any time (guide, 8.6).
    """
    if not event.intervals and any(asked.frequency == 0 for asked in event.report_descriptors):
        return False
    starts_utc_s = event.period.starts_utc_s
    if starts_utc_s is None and event.intervals:
        starts_utc_s = event.intervals[0].period.starts_utc_s
    durations = [event.duration, event.period.duration, *(one.period.duration for one in event.intervals)]
    said = [duration for duration in durations if duration is not None]
    return starts_utc_s == AT_ONCE_UTC_S and bool(said) and all(duration.is_zero for duration in said)


def is_timeless(event: Event) -> bool:
    """Whether it begins when it is heard, so that its age alone tells it from yesterday's."""
    firsts = (event.period, *(interval.period for interval in event.intervals[:1]))
    return any(period.starts_utc_s == AT_ONCE_UTC_S for period in firsts)


def life_ends_utc_s(event: Event, now_utc_s: float) -> float:
    """When an event is over, whatever is in it; FOREVER_UTC_S: when it is deleted.

    Raises:
        OpenAdrError: as `lay_out`.
    """
    if is_cancelled(event):
        return -math.inf
    return ends_utc_s(event, lay_out(event, now_utc_s)) if event.intervals else FOREVER_UTC_S


def ends_utc_s(event: Event, spans: Sequence[Span]) -> float:
    """When the last of its spans is over, or the last turn of them."""
    if event.duration is None:
        return max(span.ends_utc_s for span in spans)
    return add(min(span.starts_utc_s for span in spans), event.duration, f"event {event.id}: duration")


def lay_out(event: Event, now_utc_s: float) -> list[Span]:
    """The intervals on the time axis, once through.

    Raises:
        OpenAdrError: a start or a duration is said nowhere, or lasts less than nothing.
    """
    spans: list[Span] = []
    for index, interval in enumerate(event.intervals):
        path = f"event {event.id}: intervals[{index}]"
        previous_end_utc_s = spans[-1].ends_utc_s if spans else None
        starts_utc_s = _start_utc_s(event, interval, previous_end_utc_s, now_utc_s)
        duration = interval.period.duration or event.period.duration
        if duration is None:
            raise OpenAdrError(
                f"{path}: no duration, here or in the event's intervalPeriod; send one, P9999Y for no end"
            )
        spans.append(Span(index, starts_utc_s, add(starts_utc_s, duration, f"{path}.duration")))
    return spans


def _start_utc_s(
    event: Event, interval: Interval, previous_end_utc_s: float | None, now_utc_s: float
) -> float:
    said, default = interval.period.starts_utc_s, event.period.starts_utc_s
    if said is not None and said != AT_ONCE_UTC_S:
        return said
    if previous_end_utc_s is not None:
        return previous_end_utc_s
    if default is not None and default != AT_ONCE_UTC_S:
        return default
    if AT_ONCE_UTC_S in (said, default):
        return now_utc_s
    raise OpenAdrError(f"event {event.id}: intervalPeriod.start: missing; send a time, or 0001-01-01 for now")


def repeat(
    event: Event, spans: Sequence[Span], asks: Sequence[bool], now_utc_s: float, *, single: bool
) -> Iterator[Span]:
    """The spans that ask for something; with an event.duration looped to fill it, or cut where it ends.

    Yields without end when the site loops for ever: the caller counts.

    Args:
        event: whose duration counts.
        spans: from `lay_out`.
        asks: for each interval, whether it asks for anything.
        now_utc_s: turns that ended before are left out.
        single: one interval of one value: a loop of it is that value, for as long.

    Raises:
        OpenAdrError: event.duration lasts less than nothing.
    """
    asking = [span for span in spans if asks[span.position] and span.starts_utc_s < span.ends_utc_s]
    if event.duration is None or not asking:
        yield from asking
        return
    first_utc_s = min(span.starts_utc_s for span in spans)
    period_s = max(span.ends_utc_s for span in spans) - first_utc_s
    until_utc_s = add(first_utc_s, event.duration, f"event {event.id}: duration")
    if single:
        yield Span(spans[0].position, first_utc_s, until_utc_s)
        return
    # A loop that began years ago is entered at the turn that covers now.
    offset_s = period_s * max(0, math.floor((min(now_utc_s, until_utc_s) - first_utc_s) / period_s))
    while first_utc_s + offset_s < until_utc_s:
        for position, starts_utc_s, ends_utc_s, _ in asking:
            if starts_utc_s + offset_s < until_utc_s:
                yield Span(position, starts_utc_s + offset_s, ends_utc_s + offset_s, until_utc_s)
        offset_s += period_s


def split(span: Span, parts: int) -> Iterator[tuple[float, float]]:
    """Equal parts of a span as (start, end), cut where the event ends."""
    length_s = (span.ends_utc_s - span.starts_utc_s) / parts
    edges_utc_s = [span.starts_utc_s + number * length_s for number in range(parts)]
    for starts_utc_s, ends_utc_s in zip(edges_utc_s, [*edges_utc_s[1:], span.ends_utc_s], strict=True):
        if starts_utc_s < span.until_utc_s:
            yield starts_utc_s, min(ends_utc_s, span.until_utc_s)


# -- chance -------------------------------------------------------------------------------------------------


def draws_needed(event: Event) -> int:
    """How many numbers from -1 to 1 the starts of this event need."""
    return sum(extent_s is not None for extent_s in _extents_s(event))


def shifts_s(event: Event, draws: Sequence[float]) -> list[float]:
    """How far each interval moves.

    Args:
        event: with a randomizeStart in some of its periods, or none.
        draws: from -1 to 1, at least `draws_needed` of them.
    """
    shifts: list[float] = []
    drawn = iter(draws)
    shift_s = 0.0
    for extent_s in _extents_s(event):
        if extent_s is not None:
            shift_s = extent_s * next(drawn)
        shifts.append(shift_s)
    return shifts


def shifted(at_utc_s: float, shift_s: float) -> float:
    """An end that never comes does not come earlier for being moved."""
    return at_utc_s if at_utc_s >= FOREVER_UTC_S else min(at_utc_s + shift_s, FOREVER_UTC_S)


def _extents_s(event: Event) -> Iterator[float | None]:
    """For each interval, the reach of its own draw; None: it moves as the one before."""
    for index, interval in enumerate(event.intervals):
        said = interval.period.randomize
        if index == 0:
            said = said or event.period.randomize
        elif interval.period.starts_utc_s in (None, AT_ONCE_UTC_S):
            said = None  # it follows immediately, wherever that is
        yield None if said is None else _extent_s(said)


def _extent_s(duration: Duration) -> float:
    return min(abs(duration.months) * MONTH_S + abs(duration.seconds_s), RANDOM_MAX_S)


# -- the calendar -------------------------------------------------------------------------------------------


def add(starts_utc_s: float, duration: Duration, path: str) -> float:
    """Never beyond FOREVER_UTC_S. Raises OpenAdrError on a negative duration."""
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
