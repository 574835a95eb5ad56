"""Sharing out: whatever the numbers, the limits fit their bounds; and the order of the steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.allocation import Wants, decayed_peak_w, need_w, share_out

PLENTY = 1e6


def wants(count=2, *, min_w=200.0, floor_w=300.0, need_w=400.0, max_w=700.0, weight=1.0) -> Wants:
    return Wants(*(np.broadcast_to(v, count).astype(float) for v in (min_w, floor_w, need_w, max_w, weight)))


def shared(budget_w, wishes, rack=None, racks_w=(PLENTY,)):
    rack = np.zeros(len(wishes.min_w), dtype=np.int64) if rack is None else np.array(rack)
    return share_out(budget_w, wishes, rack, np.array(racks_w, dtype=float)).tolist()


@pytest.mark.parametrize(
    ("budget_w", "limits_w"),
    [
        (100.0, [200.0, 200.0]),  # below the minima: the minima stand, the caller names the shortfall
        (400.0, [200.0, 200.0]),
        (500.0, [250.0, 250.0]),
        (600.0, [300.0, 300.0]),
        (800.0, [400.0, 400.0]),
        (1000.0, [500.0, 500.0]),
        (1400.0, [700.0, 700.0]),
        (9000.0, [700.0, 700.0]),
    ],
)
def test_equals_climb_together(budget_w, limits_w):
    assert shared(budget_w, wants()) == pytest.approx(limits_w)


def test_floors_come_before_needs_and_needs_before_the_rest():
    """A GPU with a high floor gets it before its idle neighbour gets a watt above its own."""
    wishes = wants(floor_w=[500.0, 250.0], need_w=[600.0, 250.0])
    assert shared(650.0, wishes) == pytest.approx([400.0, 250.0])  # level, until the lower floor is full
    assert shared(750.0, wishes) == pytest.approx([500.0, 250.0])
    assert shared(850.0, wishes) == pytest.approx([600.0, 250.0])  # the neighbour needs no more
    assert shared(950.0, wishes) == pytest.approx([650.0, 300.0])


def test_a_tier_of_four_times_the_weight_climbs_four_times_as_fast():
    wishes = wants(floor_w=200.0, need_w=200.0, weight=[4.0, 1.0])
    assert shared(500.0, wishes) == pytest.approx([280.0, 220.0])


def test_a_full_rack_leaves_the_rest_to_the_others():
    assert shared(1400.0, wants(), rack=[0, 1], racks_w=[300.0, PLENTY]) == pytest.approx([300.0, 700.0])


def test_a_rack_below_its_minima_gets_them_all_the_same():
    assert shared(1400.0, wants(), rack=[0, 1], racks_w=[50.0, PLENTY])[0] == 200.0


def test_a_floor_above_the_most_is_the_most():
    assert shared(9000.0, wants(floor_w=900.0)) == [700.0, 700.0]


numbers = st.integers(1, 12)


@st.composite
def blocks(draw):
    count = draw(numbers)
    each = st.lists(st.floats(0.0, 800.0), min_size=count, max_size=count)
    low, high = np.array(draw(each)), np.array(draw(each))
    wishes = Wants(
        min_w=np.minimum(low, high),
        floor_w=np.array(draw(each)),
        need_w=np.array(draw(each)),
        max_w=np.maximum(low, high),
        weight=np.array(draw(st.lists(st.floats(0.01, 100.0), min_size=count, max_size=count))),
    )
    racks = draw(st.integers(1, 4))
    rack = np.array(draw(st.lists(st.integers(0, racks - 1), min_size=count, max_size=count)))
    rack_w = np.array(draw(st.lists(st.floats(0.0, 4000.0), min_size=racks, max_size=racks)))
    return draw(st.floats(0.0, 9000.0)), wishes, rack, rack_w


@given(blocks())
def test_limits_fit_their_devices_their_racks_and_the_budget(block):
    budget_w, wishes, rack, rack_w = block
    limits_w = share_out(budget_w, wishes, rack, rack_w)
    assert (limits_w >= wishes.min_w - 1e-6).all()
    assert (limits_w <= wishes.max_w + 1e-6).all()
    assert limits_w.sum() <= max(budget_w, wishes.min_w.sum()) + 1e-6
    per_rack = np.bincount(rack, weights=limits_w, minlength=len(rack_w))
    least = np.bincount(rack, weights=wishes.min_w, minlength=len(rack_w))
    assert (per_rack <= np.maximum(rack_w, least) + 1e-6).all()


@given(blocks())
def test_nothing_is_left_over_while_someone_could_take_it(block):
    budget_w, wishes, rack, rack_w = block
    limits_w = share_out(budget_w, wishes, rack, rack_w)
    if budget_w < wishes.min_w.sum() or budget_w - limits_w.sum() < 1e-3:
        return
    room_w = rack_w - np.bincount(rack, weights=limits_w, minlength=len(rack_w))
    assert ((limits_w >= wishes.max_w - 1e-3) | (room_w[rack] < 1e-3)).all()


@given(blocks())
def test_no_need_is_met_above_a_floor_while_another_floor_in_the_same_rack_is_short(block):
    budget_w, wishes, rack, rack_w = block
    limits_w = share_out(budget_w, wishes, rack, rack_w)
    floor_w = np.clip(wishes.floor_w, wishes.min_w, wishes.max_w)
    short = limits_w < floor_w - 1e-3
    above = limits_w > floor_w + 1e-3
    assert not (short.any() and above[np.isin(rack, rack[short])].any())


@given(blocks(), st.floats(0.0, 500.0))
def test_a_larger_budget_never_means_less_for_the_whole(block, more_w):
    budget_w, wishes, rack, rack_w = block
    before_w = share_out(budget_w, wishes, rack, rack_w).sum()
    assert share_out(budget_w + more_w, wishes, rack, rack_w).sum() >= before_w - 1e-6


def test_a_gpu_at_its_limit_may_need_all_it_can_take():
    held, by_clock = np.array([True, False, True]), np.array([False, False, True])
    need = need_w(np.full(3, 300.0), held, by_clock, max_w=np.full(3, 700.0))
    assert need.tolist() == pytest.approx([700.0, 318.5, 360.0]), "the third has just had its clock lifted"


def test_peaks_rise_fast_fall_slowly_and_outlast_an_unreadable_gpu():
    peak_w = np.full(4, 300.0)
    slowed = np.array([False, False, False, True])
    after = decayed_peak_w(peak_w, np.array([500.0, 100.0, np.nan, 100.0]), slowed, 0.1)
    assert after[0] > 400.0
    assert 280.0 < after[1] < 300.0
    assert after[2] == 300.0
    assert after[3] < 250.0, "what a lower clock has taken is needed no longer"
