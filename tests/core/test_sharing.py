"""Sharing: where limits begin to take power away."""

from functools import partial

import numpy as np
import pytest

from controller.core import law, sharing
from controller.core.model import Inlets, Ramp, Site
from tests.core import test_law
from tests.core.blocks import MAX_W, SETTINGS, good, gpus, settings, snapshot
from tests.core.test_law import TICK_S, Block

ALL = np.full(4, True)
INLETS_W = np.full(4, 800.0)


def knee_w(*moments_w):
    """Of four GPUs that drew this at these moments, and hold the most they can."""
    now_s = 100.0
    recent_w = np.array(moments_w, dtype=np.float64)
    shares = law.start(SETTINGS, now_s).shares._replace(recent_w=recent_w, peak_w=recent_w.max(axis=0))
    seen = snapshot(
        now_s,
        site=Site(),
        meter=good(3000.0, now_s),
        inlets=Inlets(INLETS_W, ALL, np.full(4, now_s)),
        limit_w=np.full(4, MAX_W),
        power_w=recent_w[-1],
        seq=np.ones(2, dtype=np.int64),
        revision=1,
    )
    heard = sharing.Heard(ALL, ALL, ALL, ALL, np.full(4, now_s))
    held_w = np.full(4, MAX_W)
    divided_w = partial(sharing.divided_w, SETTINGS, seen, shares, np.full(2, 1e6), held_w, held_w, heard)
    return sharing.knee_w(recent_w, float(held_w.sum()), divided_w)


def test_steady_gpus_feel_a_budget_that_is_a_little_above_what_they_draw():
    """A limit that binds is not drawn to the last watt."""
    assert knee_w([500.0] * 4, [500.0] * 4) == pytest.approx(4 * 500.0 / 0.985, rel=0.01)


def test_gpus_that_swing_feel_a_budget_that_is_far_above_what_they_draw():
    """Limits hold the peaks: here 2,600 W, where 2,100 W are drawn at any moment."""
    knee = knee_w([650.0, 650.0, 400.0, 400.0], [400.0, 400.0, 650.0, 650.0])
    assert knee == pytest.approx(4 * 650.0 / 0.985, rel=0.02)


@pytest.mark.parametrize(
    ("power_w", "limit_w", "capped", "held"),
    [
        (300.0, 300.0, False, False),  # idle, kept up by the floor
        (300.0, 300.0, True, True),  # the driver says that it would take more
        (318.0, 320.0, False, True),  # more than the floor, and at its limit
        (300.0, 320.0, False, False),
    ],
)
def test_a_gpu_that_smoothing_keeps_up_is_not_held_by_its_limit(power_w, limit_w, capped, held):
    shares = law.start(SETTINGS, 0.0).shares
    seen = gpus(limit_w=limit_w, power_w=power_w, floor_w=300.0, capped=capped)
    slowed = np.full(4, False)
    for now_s in np.arange(0.1, 3.0, 0.1):
        shares = sharing.observe(shares, seen, seen.power_w, seen.limit_w, slowed, now_s)
    assert set(shares.held_ratio > sharing.HELD_LEAST_RATIO) == {held}


def test_gpus_that_draw_little_leave_their_room_to_the_others():
    knee = knee_w([690.0, 690.0, 250.0, 250.0])
    needs_w = 250.0 * 1.045 + 5.0
    assert knee == pytest.approx(2 * 690.0 / 0.985 + 2 * needs_w, rel=0.02)


WALK = Ramp(down_w_per_s=50.0, up_w_per_s=50.0)  # 1 % of the rating per second


def beats(block, seconds_s, limit_w):
    """How many beats ordered something; what the block drew and was allowed after each, arrays."""
    ordered, walked = 0, []
    for _ in range(round(seconds_s / TICK_S)):
        before_w = block.limit_w.copy()
        decision = block.tick(site=block.site(limit_w))
        ordered += int((block.limit_w != before_w).any())
        walked.append((block.block_w(), decision.budget_w))
    return ordered, *np.array(walked).T


@pytest.mark.parametrize(("from_w", "to_w"), [(2400.0, 2000.0), (2000.0, 2400.0)])
def test_a_budget_that_walks_is_followed_in_strides(from_w, to_w):
    """A driver call takes up to 30 ms: not twenty of them a second for each GPU."""
    block = Block(settings(ramp=WALK, lead_s=1.0))
    block.under_control(60.0, from_w)
    ordered, drawn_w, budget_w = beats(block, 6.0, to_w)
    assert 20 <= ordered <= 32
    assert abs(drawn_w[-1] - from_w) == pytest.approx(6.0 * WALK.up_w_per_s, abs=25.0)
    second = round(1.0 / TICK_S)
    assert np.abs(drawn_w[second:] - drawn_w[:-second]).max() <= 1.2 * WALK.up_w_per_s
    assert (drawn_w <= budget_w).all()


def test_a_leap_of_the_budget_does_not_wait_for_the_stride():
    block = Block(settings(cooling_blind_w=1500.0))
    for _ in range(1200):
        block.tick(site=block.site(2400.0), cooling=good(3000.0, block.now_s))
    for capacity_w in (2100.0, 2000.0):
        block.tick(site=block.site(2400.0), cooling=good(capacity_w, block.now_s))
        assert block.block_w() <= capacity_w


def test_before_protection_not_even_a_small_fall_waits():
    block = Block(settings(cooling_blind_w=1500.0, base_margin_w=5.0))
    for _ in range(1200):
        block.tick(site=block.site(3000.0), cooling=good(2400.0, block.now_s))
    for beat in range(40):  # 0.1 % of the rating at each
        capacity_w = 2400.0 - 5.0 * beat
        block.tick(site=block.site(3000.0), cooling=good(capacity_w, block.now_s))
        assert block.block_w() <= capacity_w


@pytest.mark.parametrize("beat_s", [1 / 7, 1 / 9, 1 / 13, 1 / 20, 1 / 50])
def test_strides_take_nothing_off_the_way_up_at_any_beat(beat_s, monkeypatch):
    monkeypatch.setattr(test_law, "TICK_S", beat_s)
    block = Block(settings(ramp=WALK, tick_s=beat_s))
    block.under_control(60.0, 2000.0)
    from_w = block.block_w()
    block.under_control(8.0, 3000.0)
    assert block.block_w() - from_w == pytest.approx(8.0 * WALK.up_w_per_s, rel=0.08)


@pytest.mark.parametrize(
    "held_w",
    [lambda ordered_w: 10.0 * np.floor(ordered_w / 10.0), lambda ordered_w: np.minimum(ordered_w, 300.0)],
    ids=["rounded by the board", "held down by others"],
)
def test_who_holds_less_than_ordered_gets_no_more_orders_than_others(held_w):
    block = Block(settings(ramp=WALK))
    block.under_control(60.0, 2000.0)
    ordered = 0
    for _ in range(round(4.0 / TICK_S)):
        before_w = block.limit_w.copy()
        shown_w = held_w(before_w)
        block.tick(site=block.site(2400.0), limit_w=shown_w, power_w=shown_w)
        ordered += int((block.limit_w != before_w).any())
    assert ordered <= 26


@pytest.mark.parametrize(("waited_s", "sum_w"), [(0.05, 1400.0), (0.2, 1410.0)])
def test_watts_that_change_hands_do_not_wait_for_a_stride(waited_s, sum_w):
    """One GPU gave 200 W up, which came back; beyond them there is the way up, at 50 W/s."""
    now_s = 100.0
    shares = law.start(SETTINGS, now_s).shares._replace(
        desired_w=np.array([200.0, 500.0, 500.0, 500.0]),
        rack_budget_w=np.full(2, 1e6),
        controllable=ALL,
        strode_at_s=now_s - waited_s,
        lift_w=1410.0,
        sums=((now_s - 0.5, 1400.0), (now_s - 0.05, 1200.0)),
    )
    present_w = np.array([200.0, 400.0, 300.0, 300.0])
    up = sharing.Up(50.0, 0.0)
    seen = snapshot(now_s)
    _, next_w = sharing.hand_over(seen, shares, SETTINGS.topology, present_w, present_w, 2000.0, up)
    assert next_w.sum() == pytest.approx(sum_w, abs=4.0)


def test_a_rack_that_is_full_takes_nothing_from_the_way_up_of_others():
    """As when power smoothing keeps its GPUs up: what they want as well has no room, and is not shared with."""
    now_s = 100.0
    shares = law.start(SETTINGS, now_s).shares._replace(
        desired_w=np.array([600.0, 600.0, 400.0, 400.0]),
        rack_budget_w=np.array([400.0, 1e6]),
        controllable=ALL,
        lift_w=1000.0,
        sums=((now_s - 0.05, 1000.0),),
    )
    present_w = np.array([200.0, 200.0, 300.0, 300.0])
    up = sharing.Up(100.0, 1.0)
    seen = snapshot(now_s)
    _, next_w = sharing.hand_over(seen, shares, SETTINGS.topology, present_w, present_w, 2000.0, up)
    assert next_w.tolist() == [200.0, 200.0, 350.0, 350.0]
