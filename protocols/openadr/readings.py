"""What can be told of this block, and in which units: the report payload types of OpenADR that are served.

`TYPES` is the one table of it: what a type asks of whoever has measured (`Metered`), in which units it is
told, and which reading types change nothing about it. A unit outside the table is not converted by guess,
and a type outside it is not served; both are said when the question comes. Storage, generation and
reservations are not here: a block of computers has none of them.

Powers are W and energies Wh on this side, kW and kWh on the wire. UP is what relieves the grid: for a load,
drawing less. The energy of a report is that of its interval, never a counter's.

Source: OpenADR 3.1 enumerations (report-payloads, reading-types, units), User Guide 7.8.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from protocols.openadr.model import ReportDescriptor

QUALITY: Final = "DATA_QUALITY"

Quality = Literal["OK", "MISSING", "ESTIMATED", "BAD"]


@dataclass(frozen=True)
class Reading:
    """A value over a span of time; None: there is none."""

    value: float | str | None
    quality: Quality


MISSING: Final = Reading(None, "MISSING")


class Metered(Protocol):
    """Who knows the power of this block. Spans are [start, end) in UTC s; one to come is a forecast."""

    def mean(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W."""

    def peak(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W."""

    def energy(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """Wh."""

    def baseline(self, event_starts_utc_s: float, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W that would have been drawn without the event."""

    def shed_available(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W that could have been drawn less."""

    def rise_available(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W that could have been drawn more."""

    def operating_state(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """One of the standard's words for it."""


class Slot(NamedTuple):
    """An interval to report on."""

    id: int
    starts_utc_s: float
    ends_utc_s: float


@dataclass(frozen=True)
class Served:
    """How a report's payload type is read.

    Attributes:
        units: what a unit makes of what `read` gives; the first one is meant where none is said.
        read: the value; its arguments are who knows it, the slot, and the start of the event.
        readings: reading types that change nothing. PEAK is told apart for DEMAND alone.
        forecast: can be told in advance.
    """

    units: "Factors"
    read: Callable[[Metered, Slot, float], Reading]
    readings: Collection[str | None] = (None, "DIRECT_READ", "MEAN", "AVERAGE", "FORECAST")
    forecast: bool = True


def _kilo(_slot: Slot) -> float:
    return 1e-3


def _kilo_hours(slot: Slot) -> float:
    return 1e-3 * (slot.ends_utc_s - slot.starts_utc_s) / 3600.0


def _as_it_is(_slot: Slot) -> float:
    return 1.0


Factors = Mapping[str | None, Callable[[Slot], float]]
KW: Final[Factors] = {"KW": _kilo}
KW_OR_KWH: Final[Factors] = {"KW": _kilo, "KWH": _kilo_hours}
NO_UNIT: Final[Factors] = {None: _as_it_is}

TYPES: Final[Mapping[str, Served]] = {
    "DEMAND": Served(KW, lambda metered, slot, _: metered.mean(*slot[1:])),
    "USAGE": Served(
        {"KWH": _kilo},
        lambda metered, slot, _: metered.energy(*slot[1:]),
        readings=(None, "DIRECT_READ", "SUMMED", "FORECAST"),
    ),
    "BASELINE": Served(
        KW_OR_KWH,
        lambda metered, slot, event_starts_utc_s: metered.baseline(event_starts_utc_s, *slot[1:]),
        readings=(None, "MEAN", "AVERAGE", "ESTIMATED", "FORECAST"),
    ),
    "LOAD_SHED_DELTA_AVAILABLE": Served(
        KW_OR_KWH, lambda metered, slot, _: metered.shed_available(*slot[1:])
    ),
    "UP_REGULATION_AVAILABLE": Served(KW, lambda metered, slot, _: metered.shed_available(*slot[1:])),
    "DOWN_REGULATION_AVAILABLE": Served(KW, lambda metered, slot, _: metered.rise_available(*slot[1:])),
    "OPERATING_STATE": Served(
        NO_UNIT, lambda metered, slot, _: metered.operating_state(*slot[1:]), forecast=False
    ),
    QUALITY: Served(NO_UNIT, lambda metered, slot, _: metered.mean(*slot[1:])),
}
PEAK: Final = Served(KW, lambda metered, slot, _: metered.peak(*slot[1:]), readings=("PEAK",))


def served(asked: ReportDescriptor) -> Served | None:
    """How the report that is asked for is read; None: not at all."""
    peak = asked.reading_type == "PEAK" and asked.payload_type == "DEMAND"
    return PEAK if peak else TYPES.get(asked.payload_type)
