"""What an event means: for each payload type, which value holds when. Strict, and as a whole or not at all.

`TYPES` is the one table of what is understood: kind of value, units, bounds. A wrong unit, a negative limit,
several values where one is meant, a missing duration: any of these rejects the whole event, never a part of
it. Types outside the table are legal (private words are), and are passed over and named; so are those that
the caller does not act on, whatever is in them: a price that nobody reads cannot spoil a limit.

Units come from the event's descriptor, else from the programme's. The standard knows KW alone for power;
"MW" and "W" are legal private words, and guessing at them risks a factor of 1000.

Two windows of one type at one time are a conflict, resolved per type and not per event (`winners`): priority
0 is the highest, none the lowest. Among equals, of which the standard says nothing, the lower power wins;
what is no power is said by the newer version of its event, then by the later id.

Source: OpenADR 3.1 enumerations (event-interval-payloads, units), User Guide 7.3, 7.6, 7.9.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from protocols.openadr.fields import OpenAdrError, shown
from protocols.openadr.model import PRIORITY_LOWEST, Event, Payload, Units
from protocols.openadr.timing import (
    FOREVER_UTC_S,
    Span,
    is_cancelled,
    lay_out,
    repeat,
    shifted,
    shifts_s,
    split,
)

WINDOWS_MAX: Final = 1000  # per event: 3 days of 5-minute windows, or 40 days of hours
VALUES_MAX: Final = 10_000  # per event, over ones included: a year of hours, and read within a beat
TURNS_MAX: Final = 20_000  # spans looked at to find them; a day of loops of 5 s
VALUE_MAX: Final = 1e12  # of a price, or a power in kW: beyond any grid, a mistake
ALERT_MAX_CHARS: Final = 128  # as the standard bounds the text of an emergency; the rest is cut off
NO_UNITS: Final[Units] = MappingProxyType({})

# What a unit makes of a value; None: no unit is said.
KW: Final[Mapping[str | None, float]] = {"KW": 1000.0}
UNITLESS: Final[Mapping[str | None, float]] = {None: 1.0}
FRACTION: Final[Mapping[str | None, float]] = {None: 1.0, "PERCENT": 1.0}  # -1..1 in the standard
PER_KWH: Final[Mapping[str | None, float]] = {None: 1.0, "KWH": 1.0}
GRAMS_PER_KWH: Final[Mapping[str | None, float]] = {None: 1.0, "GHG": 1.0}


@dataclass(frozen=True)
class Meaning:
    """How the values of a payload type are read.

    Attributes:
        noun: what a value is, for the error.
        wants: what to send instead, for the error.
        units: factor for each unit that may be said.
        low: smallest value, as sent.
        high: largest value, as sent.
        whole: a whole number.
        text: a text for people; the value is 1.0.
        packed: several values share the interval equally, and a long series may be cut.
        power: W; the lower one wins among equals.
    """

    noun: str
    wants: str
    units: Mapping[str | None, float]
    low: float = -VALUE_MAX
    high: float = VALUE_MAX
    whole: bool = False
    text: bool = False
    packed: bool = False
    power: bool = False


POWER: Final = Meaning("a power", "kW, 0 or more", KW, low=0.0, power=True)
CHANGE: Final = Meaning("a change of power", "kW, below 0 for less", KW, power=True)
LEVEL: Final = Meaning("a level", "0, 1, 2 or 3", UNITLESS, low=0.0, high=3.0, whole=True)
OFFSET: Final = Meaning(
    "a level", "a whole number from -10 to 10", UNITLESS, low=-10.0, high=10.0, whole=True
)
RATIO: Final = Meaning("a change", "-1 to 1", FRACTION, low=-1.0, high=1.0)
PRICE: Final = Meaning("a price", "a number per kWh", PER_KWH, packed=True)
CARBON: Final = Meaning("an emission", "g/kWh, 0 or more", GRAMS_PER_KWH, low=0.0, packed=True)
ALERT: Final = Meaning("a text", "one text", UNITLESS, text=True)

TYPES: Final[Mapping[str, Meaning]] = {
    "IMPORT_CAPACITY_LIMIT": POWER,
    "IMPORT_CAPACITY_SUBSCRIPTION": POWER,
    "IMPORT_CAPACITY_RESERVATION": POWER,
    "DISPATCH_SETPOINT": POWER,
    "DISPATCH_SETPOINT_RELATIVE": CHANGE,  # the schema bounds it to 0, which would make it useless
    "CONTROL_LEVEL_OFFSET": OFFSET,
    "CONTROL_LEVEL_OFFSET_PERCENT": RATIO,
    "SIMPLE": LEVEL,
    "ALERT_GRID_EMERGENCY": ALERT,
    "ALERT_BLACK_START": ALERT,
    "ALERT_POSSIBLE_OUTAGE": ALERT,
    "PRICE": PRICE,
    "EXPORT_PRICE": PRICE,
    "GHG": CARBON,
}
ALL_TYPES: Final = frozenset(TYPES)


@dataclass(frozen=True)
class Window:
    """One value of one type for one span of time. Windows of one event may overlap when the site says so."""

    event_id: str
    type: str  # payload type
    value: float  # W for a power, 1.0 for an alert, else the number as sent
    starts_utc_s: float
    ends_utc_s: float  # FOREVER_UTC_S: until deleted
    priority: int  # lower wins
    interval_id: int
    modified_utc_s: float  # of the version of the event that says so
    text: str = ""  # of an alert


@dataclass(frozen=True)
class Demand:
    """What one interval asks for, of one type."""

    type: str
    values: tuple[float, ...]
    text: str = ""

    @property
    def meaning(self) -> Meaning:
        return TYPES[self.type]


def resolve(
    event: Event,
    now_utc_s: float,
    *,
    acts_on: Collection[str] = ALL_TYPES,
    program_units: Units = NO_UNITS,
    draws: Sequence[float] = (),
) -> tuple[Window, ...]:
    """The windows of an event that are not over yet, in the order of their intervals.

    Empty when the event is cancelled, lapsed, or says nothing of a type that is acted on. A series of prices
    or emissions is cut after WINDOWS_MAX windows: the standard's own tariffs repeat for ever.

    Args:
        event: from `parse`.
        now_utc_s: moment of its arrival; 0001-01-01 means this.
        acts_on: payload types to read, of those in `TYPES`; all others are passed over.
        program_units: what the event's programme says of units.
        draws: numbers from -1 to 1 for its randomizeStart, `timing.draws_needed` of them; none: not applied.

    Raises:
        OpenAdrError: something in it cannot be meant; then none of it counts.
    """
    if is_cancelled(event):
        return ()
    _check_size(event, acts_on)
    demands = [_demands(event, index, program_units, acts_on) for index in range(len(event.intervals))]
    shifts = shifts_s(event, draws) if draws else [0.0] * len(demands)
    spans = lay_out(event, now_utc_s)
    windows: list[Window] = []
    bounded = any(
        not demand.meaning.packed for span in spans if _lasts(span) for demand in demands[span.position]
    )
    for turn, span in enumerate(_turns(event, spans, demands, now_utc_s - max(shifts, default=0.0))):
        for demand in demands[span.position]:
            windows += _windows(event, span, demand, shifts[span.position], now_utc_s)
        if len(windows) > WINDOWS_MAX or turn >= TURNS_MAX:
            if bounded:
                raise OpenAdrError(
                    f"event {event.id}: over {WINDOWS_MAX} windows ahead; send fewer or shorter ones"
                )
            break
    return tuple(windows[:WINDOWS_MAX])


def ignored_types(event: Event, acts_on: Collection[str] = ALL_TYPES) -> tuple[str, ...]:
    """Payload types in the event that are not acted on, sorted."""
    return tuple(sorted(payload_types(event).difference(acts_on)))


def payload_types(event: Event) -> frozenset[str]:
    return frozenset(payload.type for interval in event.intervals for payload in interval.payloads)


def winners(windows: Iterable[Window]) -> dict[str, Window]:
    """Of windows that are open at one time, the one of each payload type that counts."""
    best: dict[str, Window] = {}
    for window in windows:
        rival = best.get(window.type)
        if rival is None or _rank(window) < _rank(rival):
            best[window.type] = window
    return best


def _rank(window: Window) -> tuple[int, float, float, str]:
    is_power = window.type in TYPES and TYPES[window.type].power
    return window.priority, window.value if is_power else 0.0, -window.modified_utc_s, window.event_id


def _lasts(span: Span) -> bool:
    return span.starts_utc_s < span.ends_utc_s


def _turns(
    event: Event, spans: Sequence[Span], demands: Sequence[tuple[Demand, ...]], now_utc_s: float
) -> Iterator[Span]:
    single = len(spans) == 1 and all(len(demand.values) == 1 for demand in demands[0])
    return repeat(event, spans, [bool(asked) for asked in demands], now_utc_s, single=single)


def _windows(event: Event, span: Span, demand: Demand, shift_s: float, now_utc_s: float) -> Iterator[Window]:
    """One window for each value, over the equal parts of the span; none for what is over."""
    if len(demand.values) > 1 and span.ends_utc_s >= FOREVER_UTC_S:
        raise OpenAdrError(
            f"event {event.id}: {len(demand.values)} values of {demand.type} share an interval without end; "
            "send one value, or a duration"
        )
    for value, part in zip(demand.values, split(span, len(demand.values)), strict=False):
        starts_utc_s, ends_utc_s = (shifted(edge, shift_s) for edge in part)
        if ends_utc_s <= now_utc_s:
            continue
        yield Window(
            event_id=event.id,
            type=demand.type,
            value=value,
            starts_utc_s=starts_utc_s,
            ends_utc_s=ends_utc_s,
            priority=PRIORITY_LOWEST if event.priority is None else event.priority,
            interval_id=event.intervals[span.position].id,
            modified_utc_s=-math.inf if event.modified_utc_s is None else event.modified_utc_s,
            text=demand.text,
        )


def _check_size(event: Event, acts_on: Collection[str]) -> None:
    asked = (one for interval in event.intervals for one in interval.payloads if one.type in acts_on)
    count = sum(len(payload.values) for payload in asked)
    if count > VALUES_MAX:
        raise OpenAdrError(f"event {event.id}: {count} values; send {VALUES_MAX} at most, or several events")


def _demands(event: Event, index: int, program_units: Units, acts_on: Collection[str]) -> tuple[Demand, ...]:
    """What one interval asks for, at most once per payload type."""
    demands: dict[str, Demand] = {}
    for number, payload in enumerate(event.intervals[index].payloads):
        meaning = TYPES.get(payload.type)
        if meaning is None or payload.type not in acts_on:
            continue
        path = f"event {event.id}: intervals[{index}].payloads[{number}]"
        if payload.type in demands:
            raise OpenAdrError(f"{path}: a second {payload.type} in one interval; send one")
        factor = _factor(event, payload.type, meaning, program_units)
        demands[payload.type] = (
            _alert(payload, meaning, path) if meaning.text else _numbers(payload, meaning, factor, path)
        )
    return tuple(demands.values())


def _factor(event: Event, payload_type: str, meaning: Meaning, program_units: Units) -> float:
    unit = event.units.get(payload_type) or program_units.get(payload_type)
    factor = meaning.units.get(unit)
    if factor is not None:
        return factor
    wanted = " or ".join(name or "none" for name in meaning.units)
    if unit is None:
        raise OpenAdrError(
            f"event {event.id}: payloadDescriptors: no units for {payload_type}; send units {wanted} for it"
        )
    raise OpenAdrError(
        f"event {event.id}: payloadDescriptors: units {shown(unit)} for {payload_type}; send {wanted}"
    )


def _alert(payload: Payload, meaning: Meaning, path: str) -> Demand:
    """An alert is meant even if its text was forgotten."""
    _check_count(payload, 1 if payload.values else 0, path)
    text = payload.values[0] if payload.values else ""
    if not isinstance(text, str):
        raise OpenAdrError(f"{path}.values[0]: {shown(text)} is not {meaning.noun}; send {meaning.wants}")
    return Demand(payload.type, (1.0,), text[:ALERT_MAX_CHARS])


def _numbers(payload: Payload, meaning: Meaning, factor: float, path: str) -> Demand:
    if not (meaning.packed and payload.values):
        _check_count(payload, 1, path)
    if len(payload.values) > WINDOWS_MAX:
        raise OpenAdrError(f"{path}.values: {len(payload.values)} values; send {WINDOWS_MAX} at most")
    values = [
        _number(value, meaning, f"{path}.values[{number}]") * factor
        for number, value in enumerate(payload.values)
    ]
    return Demand(payload.type, tuple(values))


def _check_count(payload: Payload, wanted: int, path: str) -> None:
    if len(payload.values) != wanted:
        raise OpenAdrError(f"{path}.values: {len(payload.values)} values for one {payload.type}; send one")


def _number(value: Any, meaning: Meaning, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OpenAdrError(f"{path}: {shown(value)} is not a number; send {meaning.wants}")
    if not meaning.low <= value <= meaning.high or (meaning.whole and value != int(value)):
        raise OpenAdrError(f"{path}: {shown(value)} is not {meaning.noun}; send {meaning.wants}")
    return float(value)
