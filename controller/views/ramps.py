"""The way from limit to limit, worked out ahead of time by the law's own schedule and ramp.

Nothing is computed twice: the same functions that will walk the aim in the daemon walk it here, beat by beat
while it moves, and skip to the next moment at which anything can change while it rests. What is left out is
what nobody can know beforehand: draws, base load, faults.

A fall is done when the block's power is there: `lead_s` after the aim, which is the time obeying takes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Final, NamedTuple

from controller.core import ramp, schedule
from controller.core.model import FOREVER_S, Limit, Running, Setpoint, Settings

STEPS_MAX: Final = 200_000  # nearly three hours of moving; a second of work
NEAR_W: Final = 1e-3  # smaller moves are none


@dataclass(frozen=True)
class Ramp:
    begins_utc_s: float
    done_utc_s: float
    from_w: float
    to_w: float
    towards: str


class Corner(NamedTuple):
    """Where the aim stands after a beat, and what draws it."""

    at_utc_s: float
    aim_w: float
    towards: str


def ramps(
    setpoints: Sequence[Setpoint], settings: Settings, now_utc_s: float, full_w: float
) -> tuple[Ramp, ...]:
    """The ramps of a block that is at full power now."""
    found: list[Ramp] = []
    pieces = pairwise(walk(tuple(setpoints), settings, now_utc_s, full_w))
    moves = ((_direction(before, after), after.towards, before, after) for before, after in pieces)
    for (direction, towards), group in groupby(moves, itemgetter(0, 1)):
        run = list(group)
        first, last = run[0][2], run[-1][3]
        if direction:
            obeyed_s = settings.lead_s if direction < 0 else 0.0
            found.append(Ramp(first.at_utc_s, last.at_utc_s + obeyed_s, first.aim_w, last.aim_w, towards))
    return tuple(found)


def walk(
    setpoints: tuple[Setpoint, ...], settings: Settings, now_utc_s: float, full_w: float
) -> Iterator[Corner]:
    """The aim at every beat in which it moves, and on both sides of every rest."""
    pace = ramp.start(full_w, 0.0, settings.ramp.up_w_per_s)
    full = Limit(full_w, "full power")
    running: tuple[Running, ...] = ()
    ended: frozenset[Setpoint] = frozenset()
    at_s = elapsed_s = 0.0
    yield Corner(now_utc_s, full_w, full.source)
    for _ in range(STEPS_MAX):
        utc_s = now_utc_s + at_s
        running, ended = schedule.open_windows(running, ended, setpoints, at_s, utc_s)
        limits = [full, *_limits(settings, running, ended, setpoints, utc_s)]
        before_w = pace.aim_w
        pace = ramp.step(
            pace,
            limits,
            now_s=at_s,
            elapsed_s=elapsed_s,
            tick_s=settings.tick_s,
            brink=None,
            ramp=settings.ramp,
            lead_s=settings.lead_s,
        )
        binding = min(limits, key=ramp.power_w)
        yield Corner(utc_s, pace.aim_w, binding.source)
        moves = abs(pace.aim_w - before_w) > NEAR_W or abs(binding.power_w - pace.aim_w) > NEAR_W
        casts = any(
            _casts_from_utc_s(one, settings, pace.aim_w) <= utc_s < one.starts_utc_s for one in setpoints
        )
        if moves or casts:
            at_s, elapsed_s = at_s + settings.tick_s, settings.tick_s
            continue
        next_s = min(_moments_s(setpoints, settings, at_s, now_utc_s, pace.aim_w), default=FOREVER_S)
        if next_s >= FOREVER_S:
            return
        at_s, elapsed_s = next_s, 0.0  # a beat after a rest catches nothing up


def _limits(
    settings: Settings,
    running: tuple[Running, ...],
    ended: frozenset[Setpoint],
    setpoints: tuple[Setpoint, ...],
    utc_s: float,
) -> Iterator[Limit]:
    yield Limit(settings.feed_rating_w, "feed rating", protection=True)
    yield from schedule.limits(
        running,
        ended,
        setpoints,
        now_utc_s=utc_s,
        lead_s=settings.lead_s,
        ramp=settings.ramp,
        ceiling_w=settings.feed_rating_w,
    )


def _moments_s(
    setpoints: Sequence[Setpoint], settings: Settings, at_s: float, now_utc_s: float, aim_w: float
) -> Iterator[float]:
    """When a resting aim may next be drawn: a window opens, ends, or casts its line ahead this far."""
    for setpoint in setpoints:
        casts_utc_s = _casts_from_utc_s(setpoint, settings, aim_w)
        moments_utc_s = (casts_utc_s, setpoint.starts_utc_s, setpoint.ends_utc_s)
        yield from (utc_s - now_utc_s for utc_s in moments_utc_s if at_s < utc_s - now_utc_s)


def _casts_from_utc_s(setpoint: Setpoint, settings: Settings, aim_w: float) -> float:
    """When its line, if it casts one, comes down to the aim."""
    if not setpoint.arrive_at_start:
        return setpoint.starts_utc_s
    fall_s = max(0.0, aim_w - setpoint.limit_w) / (setpoint.ramp or settings.ramp).down_w_per_s
    return setpoint.starts_utc_s - settings.lead_s - fall_s - settings.tick_s


def _direction(before: Corner, after: Corner) -> int:
    """Down (-1), up (1) or level (0)."""
    if abs(after.aim_w - before.aim_w) <= NEAR_W:
        return 0
    return 1 if after.aim_w > before.aim_w else -1
