"""The ramp: how the budget walks from where it is to where the limits want it.

Two numbers move. `aim_w` is what the law commands now. `budget_w` is the line the block promises to be
under now: the highest aim of the last `lead_s`, because a command needs that long to become power. So a
fall of the budget is always commanded ahead of time, and a rise is commanded and promised together.

A fall starts at what the block draws, not at what it was once allowed: ramping down through empty
headroom would look obedient on paper and do nothing at the meter. Protection does not ramp. After a gap
in the beat the line down is caught up at once, the line up is not: lateness may never add power.
"""

from controller.core.model import Pace

RISE_TICKS_MAX = 2.0  # a late tick earns at most this many beats of rise


def start(budget_w: float, now_s: float) -> Pace:
    return Pace(aim_w=budget_w, budget_w=budget_w, falling=False, trail=((now_s, budget_w),))


def step(
    pace: Pace,
    *,
    now_s: float,
    elapsed_s: float,
    tick_s: float,
    target_w: float,
    protection_w: float,
    draw_w: float | None,
    down_w_per_s: float,
    up_w_per_s: float,
    lead_s: float,
) -> Pace:
    """One beat of the ramp towards `target_w`; `draw_w` is what the block lately drew, None when unknown."""
    aim_w = pace.aim_w
    falling = target_w < aim_w
    if falling:
        if not pace.falling and draw_w is not None:
            aim_w = min(aim_w, draw_w)
        aim_w = max(target_w, aim_w - down_w_per_s * elapsed_s)
    else:
        rise_s = min(elapsed_s, RISE_TICKS_MAX * tick_s)
        aim_w = min(target_w, aim_w + up_w_per_s * rise_s)
    aim_w = min(aim_w, protection_w)
    trail = window(pace.trail, now_s, aim_w, lead_s)
    return Pace(aim_w=aim_w, budget_w=highest(trail), falling=falling and aim_w > target_w, trail=trail)


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
