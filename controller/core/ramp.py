"""The ramp: how the budget walks from where it is to where the limits want it.

Two numbers move. `aim_w` is what the law commands now. `budget_w` is the line the block promises to be
under now: the highest aim of the last `lead_s`, because a command needs that long to become power. So a
fall of the budget is always commanded ahead of time, and a rise is commanded and promised together.

Every limit pulls the aim down at its own rate, and the lowest result counts: a gentle limit that is the
lowest does not slow an urgent one above it. Protection does not ramp. The way up is at the gentlest rate
agreed with whoever held the aim down last, failsafe and restarts in between or not.

A fall starts at what the block draws, not at what it was once allowed: ramping down through empty
headroom would look obedient on paper and do nothing at the meter. After a gap in the beat the line down is
caught up at once, the line up is not: lateness may never add power.
"""

from collections.abc import Sequence

from controller.core.model import Limit, Pace, Ramp

RISE_TICKS_MAX = 2.0  # a late tick earns at most this many beats of rise


def start(budget_w: float, now_s: float, up_w_per_s: float) -> Pace:
    trail = ((now_s, budget_w),)
    return Pace(aim_w=budget_w, budget_w=budget_w, falling=False, up_w_per_s=up_w_per_s, trail=trail)


def step(
    pace: Pace,
    limits: Sequence[Limit],
    *,
    now_s: float,
    elapsed_s: float,
    tick_s: float,
    draw_w: float | None,
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
        draw_w: what the block lately drew; None: unknown.
        ramp: of limits that bring none.
        lead_s: from a command to obeyed power.
    """
    aim_w, up_w_per_s = pace.aim_w, pace.up_w_per_s
    binding = min(limits, key=power_w)
    target_w = binding.power_w
    if target_w <= aim_w:
        up_w_per_s = _way_up_w_per_s(limits, up_w_per_s, ramp)
    falling = target_w < aim_w
    if falling:
        if not pace.falling and draw_w is not None:
            aim_w = min(aim_w, draw_w)
        aim_w = min(_fallen_w(limit, aim_w, elapsed_s, ramp) for limit in limits)
    else:
        rise_s = min(elapsed_s, RISE_TICKS_MAX * tick_s)
        aim_w = min(target_w, aim_w + up_w_per_s * rise_s)
    trail = window(pace.trail, now_s, aim_w, lead_s)
    falling = falling and aim_w > target_w
    return Pace(aim_w=aim_w, budget_w=highest(trail), falling=falling, up_w_per_s=up_w_per_s, trail=trail)


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


def _fallen_w(limit: Limit, aim_w: float, elapsed_s: float, ramp: Ramp) -> float:
    """Where this limit alone would have the aim, were it above."""
    if limit.protection:
        return limit.power_w
    return max(limit.power_w, aim_w - (limit.ramp or ramp).down_w_per_s * elapsed_s)


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
