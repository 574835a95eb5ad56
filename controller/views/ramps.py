"""The way from limit to limit, worked out ahead of time.

The law walks its aim beat by beat: down at one rate, up at another, and ahead of a limit that must be met
when its window opens along the line that ends there. Between beats nothing else happens, so the way is a
chain of straight pieces. `walk` finds their corners; `ramps` names those that move.

    ceiling     the limit of the step that holds, or a line cast ahead by a coming step, whichever is lower
    aim         falls or rises towards the ceiling, then goes along with it

A fall is done when the block's power is there: `lead_s` after the aim, which is the time obeying takes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import Final, NamedTuple

NEAR_W: Final = 1e-3  # closer than this to the ceiling is on it
NEAR_S: Final = 1e-6  # below it, the time of day cannot be told apart
FOR_EVER_S: Final = math.inf
UNBOUNDED_W: Final = math.inf


class Step(NamedTuple):
    """A limit from a moment on. `arrive_w`: to be met at that moment; infinite: the way may start then."""

    at_utc_s: float
    limit_w: float
    source: str
    arrive_w: float = UNBOUNDED_W


@dataclass(frozen=True)
class Ramp:
    begins_utc_s: float
    done_utc_s: float
    from_w: float
    to_w: float
    towards: str


class Corner(NamedTuple):
    at_utc_s: float
    aim_w: float


def ramps(
    steps: Sequence[Step], *, from_w: float, down_w_per_s: float, up_w_per_s: float, lead_s: float
) -> tuple[Ramp, ...]:
    """The ramps of a block that draws `from_w` when the first step begins."""
    corners = walk(steps, from_w=from_w, down_w_per_s=down_w_per_s, up_w_per_s=up_w_per_s, lead_s=lead_s)
    found: list[Ramp] = []
    for (direction, towards), pieces in groupby(pairwise(corners), partial(_direction, steps)):
        if direction == 0:
            continue
        run = list(pieces)
        first, last = run[0][0], run[-1][1]
        obeyed_s = lead_s if direction < 0 else 0.0
        found.append(Ramp(first.at_utc_s, last.at_utc_s + obeyed_s, first.aim_w, last.aim_w, towards))
    return tuple(found)


def _direction(steps: Sequence[Step], piece: tuple[Corner, Corner]) -> tuple[int, str]:
    """Down (-1), up (1) or level (0), and the source of the limit that draws the aim there."""
    before, after = piece
    if abs(after.aim_w - before.aim_w) <= NEAR_W:
        return 0, ""
    middle_s = 0.5 * (before.at_utc_s + after.at_utc_s)
    holding = [step for step in steps if step.at_utc_s <= middle_s][-1]
    if after.aim_w > before.aim_w:
        return 1, holding.source
    if holding.limit_w <= after.aim_w + NEAR_W:
        return -1, holding.source
    coming = (step for step in steps if step.at_utc_s > middle_s)
    ahead = [step.source for step in coming if step.arrive_w <= after.aim_w + NEAR_W]
    return -1, ahead[0] if ahead else holding.source


def walk(
    steps: Sequence[Step], *, from_w: float, down_w_per_s: float, up_w_per_s: float, lead_s: float
) -> Iterator[Corner]:
    """Corners of the aim, the last one where it rests for good."""
    at_s, aim_w, index = steps[0].at_utc_s, from_w, 0
    yield Corner(at_s, aim_w)
    while True:
        while index + 1 < len(steps) and steps[index + 1].at_utc_s <= at_s + NEAR_S:
            index += 1
        ceiling = _ceiling(steps, index, at_s, down_w_per_s, lead_s)
        slope, reach_s = _way(aim_w, ceiling, down_w_per_s, up_w_per_s)
        length_s = min(ceiling.until_utc_s - at_s, reach_s)
        if length_s == FOR_EVER_S:
            return
        reached = length_s == reach_s
        at_s += length_s
        aim_w = ceiling.power_w + ceiling.slope * length_s if reached else aim_w + slope * length_s
        yield Corner(at_s, aim_w)


class _Ceiling(NamedTuple):
    """What bounds the aim now, how that moves, and the next moment at which it may bend."""

    power_w: float
    slope: float
    until_utc_s: float


def _ceiling(steps: Sequence[Step], index: int, at_s: float, down_w_per_s: float, lead_s: float) -> _Ceiling:
    flat_w, falling_w = steps[index].limit_w, UNBOUNDED_W
    bends_at_s = [step.at_utc_s for step in steps[index + 1 : index + 2]]
    coming = [(s.arrive_w, s.at_utc_s - lead_s) for s in steps[index + 1 :] if s.arrive_w < UNBOUNDED_W]
    for arrive_w, line_ends_at_s in coming:
        if line_ends_at_s <= at_s + NEAR_S:
            flat_w = min(flat_w, arrive_w)
        else:
            falling_w = min(falling_w, arrive_w + down_w_per_s * (line_ends_at_s - at_s))
            bends_at_s.append(line_ends_at_s)
    if falling_w < flat_w + max(NEAR_W, down_w_per_s * NEAR_S):
        return _Ceiling(falling_w, -down_w_per_s, min(bends_at_s))
    if falling_w < UNBOUNDED_W:
        bends_at_s.append(at_s + (falling_w - flat_w) / down_w_per_s)
    return _Ceiling(flat_w, 0.0, min(bends_at_s, default=FOR_EVER_S))


def _way(aim_w: float, ceiling: _Ceiling, down_w_per_s: float, up_w_per_s: float) -> tuple[float, float]:
    """Slope of the aim, and the time after which it meets the ceiling."""
    above_w = aim_w - ceiling.power_w
    if above_w > NEAR_W:
        return -down_w_per_s, above_w / down_w_per_s if ceiling.slope == 0.0 else FOR_EVER_S
    if above_w < -NEAR_W:
        return up_w_per_s, -above_w / (up_w_per_s - ceiling.slope)
    return ceiling.slope, FOR_EVER_S
