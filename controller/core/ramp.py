"""The ramp: how the budget walks from where it is to where the limits want it.

Two numbers move. `aim_w` is what the law commands now. `budget_w` is the line the block promises to be
under now: the highest aim of the last `lead_s`, because a command needs that long to become power. So a
fall of the budget is always commanded ahead of time, and a rise is commanded and promised together.

Every limit pulls the aim down at its own rate, and the lowest result counts: a gentle limit that is the
lowest does not slow an urgent one above it. Protection does not ramp. The way up is at the gentlest rate
agreed with whoever held the aim down last, failsafe and restarts in between or not.

A fall starts where limits begin to take power away (`Brink`), not at what was once allowed: ramping down
through empty headroom would look obedient on paper and do nothing at the meter. That lies above what the
block draws, because limits hold peaks and power is a mean; so the aim falls a little faster than power may,
since some of that room goes on the way, and not by as much as if all of it went. After a gap in the beat the
line down is caught up at once, the line up is not: lateness may never add power.
"""

from collections.abc import Sequence
from typing import NamedTuple

from controller.core.model import Limit, Pace, Ramp, Settings

RISE_TICKS_MAX = 2.0  # a late tick earns at most this many beats of rise
ROOM_KEPT_RATIO = 1 / 3  # of what limits leave unused at the brink they leave unused to the end, or more
STEEPER_MAX_RATIO = 2.0  # on a short way not all that swings leave unused goes in step: the rest goes at once


class Brink(NamedTuple):
    """Where power begins to fall."""

    draw_w: float  # what the block draws
    aim_w: float  # the aim at which it draws that just barely: limits hold peaks, power is a mean


def start(budget_w: float, now_s: float, up_w_per_s: float) -> Pace:
    trail = ((now_s, budget_w),)
    return Pace(
        aim_w=budget_w,
        budget_w=budget_w,
        line_w=budget_w,
        target_w=budget_w,
        falling=False,
        sure=True,
        up_w_per_s=up_w_per_s,
        trail=trail,
    )


def step(
    pace: Pace,
    limits: Sequence[Limit],
    *,
    now_s: float,
    elapsed_s: float,
    tick_s: float,
    brink: Brink | None,
    ramp: Ramp,
    lead_s: float,
) -> Pace:
    """One beat of the ramp.

    Args:
        pace: as the last beat left it.
        limits: all that hold now, one at least.
        now_s: this moment.
        elapsed_s: since the last beat.
        tick_s: between two beats, as planned.
        brink: where a fall that begins now leaves from; None: unknown.
        ramp: of limits that bring none.
        lead_s: from a command to obeyed power.
    """
    aim_w, line_w, up_w_per_s = pace.aim_w, pace.line_w, pace.up_w_per_s
    binding = min(limits, key=power_w)
    target_w = binding.power_w
    if target_w <= aim_w:
        up_w_per_s = _way_up_w_per_s(limits, up_w_per_s, ramp)
    falling, sure = target_w < aim_w, pace.sure
    if falling:
        if not pace.falling:
            line_w, sure = aim_w, False
        if brink is not None:
            aim_w, line_w = _left_from(aim_w, target_w, brink)
            sure = True
        pulls = [_pulled(limit, aim_w, line_w, elapsed_s, ramp) for limit in limits]
        aim_w, line_w = min(aim for aim, _ in pulls), min(line for _, line in pulls)
    else:
        rise_s = min(elapsed_s, RISE_TICKS_MAX * tick_s)
        aim_w = line_w = min(target_w, aim_w + up_w_per_s * rise_s)
    trail = window(pace.trail, now_s, aim_w, lead_s)
    falling = falling and aim_w > target_w
    return Pace(aim_w, highest(trail), line_w, target_w, falling, sure, up_w_per_s, trail)


def leaves(pace: Pace, limits: Sequence[Limit], settings: Settings) -> bool:
    """Whether a fall begins now for which it must be known where: see `Brink`.

    It begins where the lowest limit lies further down than a line that is followed moves from beat to beat,
    and again where its beginning was not known. Whoever is on the way down already only goes on.
    """
    binding = min(limits, key=power_w)
    step_w = (binding.ramp or settings.ramp).down_w_per_s * RISE_TICKS_MAX * settings.tick_s
    if binding.protection or pace.line_w < pace.aim_w:
        return False
    known_w = pace.target_w if pace.falling and pace.sure else pace.aim_w
    return binding.power_w < min(pace.aim_w, known_w) - step_w


def _left_from(aim_w: float, target_w: float, brink: Brink) -> tuple[float, float]:
    """Where a fall to `target_w` begins: the aim, and the power that it is to lead down."""
    way_w = brink.draw_w - target_w
    if way_w <= 0.0:
        return min(aim_w, target_w), min(aim_w, target_w)  # nobody draws what is taken away
    aim_w = min(aim_w, brink.aim_w, target_w + STEEPER_MAX_RATIO * way_w)
    return aim_w, min(aim_w, brink.draw_w + ROOM_KEPT_RATIO * max(0.0, aim_w - brink.draw_w))


def _pulled(limit: Limit, aim_w: float, line_w: float, elapsed_s: float, ramp: Ramp) -> tuple[float, float]:
    """Aim and line as this limit alone would have them: the line at its rate, the aim so that both arrive."""
    if limit.protection or line_w <= limit.power_w:
        return min(aim_w, limit.power_w), min(line_w, limit.power_w)
    fallen_w = max(limit.power_w, line_w - (limit.ramp or ramp).down_w_per_s * elapsed_s)
    steeper_ratio = (aim_w - limit.power_w) / (line_w - limit.power_w)
    return limit.power_w + (fallen_w - limit.power_w) * max(1.0, steeper_ratio), fallen_w


def _way_up_w_per_s(limits: Sequence[Limit], known_w_per_s: float, ramp: Ramp) -> float:
    """What holds for the way up while limits hold the aim down: the gentlest that was agreed for any.

    Those above the aim count as well, since the way up leads past them. A limit about which nothing was
    agreed (the failsafe limit) may make the way gentler, never steeper; only the top, where protection alone
    is left, ends an agreement.
    """
    agreed = [limit.ramp.up_w_per_s for limit in limits if limit.ramp is not None]
    if agreed:
        return min(agreed)
    if all(limit.protection for limit in limits):
        return ramp.up_w_per_s
    return min(known_w_per_s, ramp.up_w_per_s)


def power_w(limit: Limit) -> float:
    return limit.power_w


def window(
    trail: tuple[tuple[float, float], ...], now_s: float, value_w: float, length_s: float
) -> tuple[tuple[float, float], ...]:
    """The trail of the last `length_s`, with the newest value added.

    A value that stood until the oldest kept moment is kept with it; equal neighbours are stored once.
    """
    while len(trail) > 1 and trail[1][0] <= now_s - length_s:
        trail = trail[1:]
    if len(trail) > 1 and trail[-1][1] == value_w == trail[-2][1]:
        return (*trail[:-1], (now_s, value_w))
    return (*trail, (now_s, value_w))


def highest(trail: tuple[tuple[float, float], ...]) -> float:
    return max(value_w for _, value_w in trail)


def arrival_line_w(target_w: float, left_s: float, down_w_per_s: float) -> float:
    """What is allowed `left_s` before a limit must be met: start no earlier than the ramp needs."""
    return target_w + down_w_per_s * max(0.0, left_s)
