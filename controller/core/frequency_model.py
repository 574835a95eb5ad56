"""The nouns of a frequency response: what was committed, and all memory of it. How it acts: frequency.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from controller.core.bounds import FOREVER_S, NEVER_S

HOLD_MAX_S: Final = 0.5  # longer than any product leaves for measuring
BELIEVED_HZ: Final = 5.0  # from nominal: generators and relays have tripped long before
ROUNDING_HZ: Final = 1e-9


class Phase(StrEnum):
    """Where a response stands."""

    WAITING = "waiting"  # not armed: just started, at rest after a response, or power never measured
    READY = "ready"
    ACTIVE = "active"
    RECOVERING = "recovering"


class Point(NamedTuple):
    """At this frequency, this share of the commitment."""

    hz: float
    share: float


@dataclass(frozen=True, slots=True)
class FrequencySettings:
    """What was committed, and how. Raises ValueError with a sentence on what can not be.

    Attributes:
        product: as people name it.
        nominal_hz: of the grid.
        committed_w: what is shed at share 1.
        full_s: from the crossing to full response, as the product has it; for the record, not for control.
        sustain_s: a step holds at least this long; blind, a droop holds this long.
        release_w_per_s: how fast the limit rises at the end.
        rearm_s: from one activation to the earliest next one.
        dead_band_hz: below nominal, in which nothing ever happens.
        droop: falling frequency, rising share, from 0 on; straight lines between.
        steps: falling thresholds, each with the share it asks for.
        release_hz: a step is held beyond `sustain_s` until this is reached; None: it is not.
        hold_s: how long a crossing must stand before it is believed.
        delay_s: from the crossing, what it waits on purpose to act after others.
        age_max_s: an older sample is none.
        frozen_after_s: the same bits for so long are a dead instrument; live frequency is never still.
        over_max_ratio: of what is asked: more is over-delivery; None: the product says nothing of it.
    """

    product: str
    nominal_hz: float
    committed_w: float
    full_s: float
    sustain_s: float
    release_w_per_s: float
    rearm_s: float = 0.0
    dead_band_hz: float = 0.0
    droop: tuple[Point, ...] = ()
    steps: tuple[Point, ...] = ()
    release_hz: float | None = None
    hold_s: float = 0.015
    delay_s: float = 0.0
    age_max_s: float = 0.2
    frozen_after_s: float = 10.0
    over_max_ratio: float | None = None

    def __post_init__(self) -> None:
        complaints = "; ".join(_complaints(self))
        if complaints:
            raise ValueError(complaints)


def _complaints(settings: FrequencySettings) -> Iterator[str]:
    yield from _shape_complaints(settings)
    if not min(settings.committed_w, settings.release_w_per_s, settings.nominal_hz) > 0.0:
        yield "committed_w, release_w_per_s and nominal_hz are above 0"
    if not min(settings.sustain_s, settings.rearm_s, settings.delay_s, settings.dead_band_hz) >= 0.0:
        yield "times and the dead band are not below 0"
    if not 0.0 <= settings.hold_s <= HOLD_MAX_S:
        yield f"hold_s is from 0 to {HOLD_MAX_S:g}"
    if not max(settings.hold_s, settings.delay_s) < settings.full_s:
        yield f"hold_s or delay_s leaves nothing of the {settings.full_s:g} s that the product gives"


def _shape_complaints(settings: FrequencySettings) -> Iterator[str]:
    points = settings.droop or settings.steps
    edge_hz = settings.nominal_hz - settings.dead_band_hz
    if not points or (settings.droop and settings.steps):
        yield "give a droop or steps, one of the two"
        return
    if any(after.hz >= before.hz or after.share < before.share for before, after in pairwise(points)):
        yield "order its points by falling frequency, with a share that does not fall"
    if not all(0.0 <= point.share <= 1.0 for point in points):
        yield "a share of the commitment is from 0 to 1"
    if settings.droop and settings.droop[0].share > 0.0:
        yield "a droop begins with share 0"
    if not points[0].hz <= edge_hz + ROUNDING_HZ:
        yield f"{points[0].hz:g} Hz is inside the dead band, which ends at {edge_hz:g} Hz"
    if not points[-1].hz >= settings.nominal_hz - BELIEVED_HZ:
        yield f"{points[-1].hz:g} Hz is further from nominal than any sample that is believed"


class Sample(NamedTuple):
    at_s: float
    hz: float


class Heard(NamedTuple):
    """What is known of the frequency: the believed samples that reach back over `hold_s`, oldest first."""

    samples: tuple[Sample, ...] = ()
    looked_at_s: float = NEVER_S  # moment of the newest sample, believed or not
    unchanged_since_s: float = NEVER_S  # since when all samples had the same bits
    wild: int = 0  # samples beyond reason, since start
    wild_at_s: float = NEVER_S


class FrequencyState(NamedTuple):
    """All memory of a response."""

    at_s: float
    phase: Phase
    heard: Heard
    share: float = 0.0  # of the commitment, held now
    baseline_w: float = 0.0  # block power when it activated
    began_at_s: float = NEVER_S  # first sample of the activation: the product's clock runs from here
    activated_at_s: float = NEVER_S
    raised_at_s: float = NEVER_S  # when the share last went up
    crossed_at_s: float = FOREVER_S  # since when more is wanted than is held
    ready_from_s: float = NEVER_S  # no new activation before
    draw_w: float | None = None  # block power as last known
    draw_at_s: float = NEVER_S
    activations: int = 0
    found_by_s: float = NEVER_S  # until then silence is no blindness: a start has to find the instrument


@dataclass(frozen=True, slots=True)
class Underway:
    """What of a response a restart inherits. In watts, since the commitment may be another one by then."""

    phase: Phase
    baseline_w: float
    shed_w: float  # held below the baseline; 0: it is over, and not armed again yet
    raised_at_s: float
    ready_from_s: float
