"""The way worked out ahead is the way the law goes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as limits_of_search
from hypothesis import strategies as st

from controller.core import ramp, schedule
from controller.core.model import Setpoint
from controller.views.ramps import UNBOUNDED_W, Step, ramps, walk

FULL_W, DOWN, UP, LEAD_S, TICK_S = 14_000.0, 600.0, 400.0, 0.4, 0.05
UTC_0 = 1_790_000_000.0
RATES = {"from_w": FULL_W, "down_w_per_s": DOWN, "up_w_per_s": UP, "lead_s": LEAD_S}


def law_goes(windows, seconds_s, *, arrive):
    """(time, aim) at every beat of the real schedule and the real ramp."""
    setpoints = tuple(
        Setpoint("openadr", f"{n}", "limit", w, UTC_0 + a, UTC_0 + b, arrive_at_start=arrive)
        for n, (a, b, w) in enumerate(windows)
    )
    pace, running, ended, way = ramp.start(FULL_W, 0.0), (), frozenset(), []
    for number in range(round(seconds_s / TICK_S) + 1):
        now_s = number * TICK_S
        running, ended = schedule.open_windows(running, ended, setpoints, now_s, UTC_0 + now_s)
        limits = schedule.limits(
            running, ended, setpoints, now_utc_s=UTC_0 + now_s, lead_s=LEAD_S, down_w_per_s=DOWN
        )
        pace = ramp.step(
            pace,
            now_s=now_s,
            elapsed_s=TICK_S if number else 0.0,
            tick_s=TICK_S,
            target_w=min((limit.power_w for limit in limits), default=FULL_W),
            protection_w=FULL_W,
            draw_w=None,
            down_w_per_s=DOWN,
            up_w_per_s=UP,
            lead_s=LEAD_S,
        )
        way.append((now_s, pace.aim_w))
    return way


def steps_of(windows, *, arrive):
    moments = sorted({0.0, *(m for a, b, _ in windows for m in (a, b) if m > 0.0)})
    steps = []
    for at_s in moments:
        opened = [(w, a) for a, b, w in windows if a <= at_s < b]
        limit_w = min((w for w, _ in opened), default=FULL_W)
        lowest = min(opened, default=(UNBOUNDED_W, -1.0))
        meets = arrive and lowest[1] == at_s > 0.0
        steps.append(Step(UTC_0 + at_s, min(FULL_W, limit_w), "", lowest[0] if meets else UNBOUNDED_W))
    return steps


def aim_at(corners, at_s):
    """Between two corners the way is straight."""
    for before, after in pairwise(corners):
        if before.at_utc_s - UTC_0 <= at_s <= after.at_utc_s - UTC_0:
            share = (at_s - before.at_utc_s + UTC_0) / max(1e-9, after.at_utc_s - before.at_utc_s)
            return before.aim_w + (after.aim_w - before.aim_w) * share
    return corners[-1].aim_w


windows = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(40, 150)).map(
        lambda said: (float(said[0]), float(said[0] + said[1]), 100.0 * said[2])
    ),
    max_size=4,
)


@given(windows, st.booleans())
@limits_of_search(max_examples=60, deadline=None)
def test_the_way_worked_out_ahead_is_the_way_the_law_goes(said, arrive):
    corners = list(walk(steps_of(said, arrive=arrive), **RATES))
    beat_w = 2.5 * DOWN * TICK_S  # where a beat falls against a corner
    for at_s, aim_w in law_goes(said, 130.0, arrive=arrive)[::7]:
        assert aim_at(corners, at_s) == pytest.approx(aim_w, abs=beat_w), at_s


def ramp_list(steps):
    return [
        (r.begins_utc_s - UTC_0, r.done_utc_s - UTC_0, r.from_w, r.to_w, r.towards)
        for r in ramps(steps, **RATES)
    ]


def step(at_s, limit_w, source, arrive_w=UNBOUNDED_W):
    return Step(UTC_0 + at_s, limit_w, source, arrive_w)


def test_a_window_shorter_than_its_ramps_never_reaches_its_limit():
    found = ramp_list([step(0, FULL_W, "feed"), step(10, 8000.0, "dr"), step(12, FULL_W, "feed")])
    assert len(found) == 2
    assert found[0][:4] == pytest.approx((10.0, 12.4, FULL_W, 12_800.0), abs=1e-3)
    assert found[1][:4] == pytest.approx((12.0, 15.0, 12_800.0, FULL_W), abs=1e-3)
    assert (found[0][4], found[1][4]) == ("dr", "feed")


def test_a_descent_to_be_done_in_time_begins_early_enough_through_several_windows():
    """10 kW are 16.7 s down: the way to 4 kW begins before the window in between."""
    found = ramp_list(
        [step(0, FULL_W, "feed"), step(30, 12_000.0, "a", 12_000.0), step(32, 4000.0, "b", 4000.0)]
    )
    (only,) = found
    assert only[:4] == pytest.approx((32.0 - 0.4 - 10_000.0 / DOWN, 32.0, FULL_W, 4000.0), abs=1e-3)
    assert only[4] == "b"


def test_without_a_change_there_is_no_ramp():
    assert ramp_list([step(0, FULL_W, "feed"), step(10, FULL_W, "dr")]) == []


def test_a_block_that_is_already_under_a_limit_comes_down_at_once():
    (only,) = ramp_list([step(0, 8000.0, "dr")])
    assert only[:4] == pytest.approx((0.0, 10.4, FULL_W, 8000.0), abs=1e-3)
