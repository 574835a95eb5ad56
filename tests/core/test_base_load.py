"""Base load: an upper estimate that only two measurements of one moment may lower."""

from dataclasses import replace

import numpy as np
import pytest

from controller.core import base_load
from controller.core.model import UNKNOWN, Carried, Inlets, Measurement
from tests.core.blocks import good, settings, snapshot

TRUE_BASE_W = 600.0
BLOCK = settings(meter_lag_s=0.1, skew_s=0.0, witness_tolerance_w=5000.0)


def run(
    seconds_s, gpu_w, *, base=None, start_s=100.0, base_w=TRUE_BASE_W, meter=True, known=True, block=BLOCK
):
    """Beats at 10 Hz with a meter of the block's own lag; `gpu_w(t)` is the draw of each of four GPUs."""
    base = base_load.start(block, start_s) if base is None else base
    for number in range(round(seconds_s * 10)):
        now_s = start_s + number * 0.1
        metered_w = base_w + 4.0 * gpu_w(now_s - block.meter_lag_s)
        power_w = np.array([gpu_w(now_s), gpu_w(now_s), gpu_w(now_s), gpu_w(now_s) if known else np.nan])
        seen = snapshot(
            now_s,
            meter=good(metered_w, now_s) if meter else UNKNOWN,
            power_w=power_w,
            revision=number,
        )
        base = base_load.update(block, base, seen, power_w, reported=True)
    return base, now_s


def steady(_t):
    return 300.0


def upper(base, now_s, block=BLOCK):
    return base_load.upper_w(block, base, now_s)


def test_nothing_known_counts_as_the_assumed_most():
    assert upper(base_load.start(BLOCK, 100.0), 100.0) == BLOCK.base_max_w


def test_a_steady_block_is_measured_within_seconds():
    assert upper(*run(8.0, steady)) == pytest.approx(TRUE_BASE_W, abs=5.0)


def test_the_margin_comes_on_top():
    block = replace(BLOCK, base_margin_w=40.0)
    assert upper(*run(8.0, steady, block=block), block) == pytest.approx(TRUE_BASE_W + 40.0, abs=5.0)


def test_a_swing_of_the_gpus_is_not_mistaken_for_base_load():
    """Meter and GPUs are held against each other at the same moment, the meter's lag taken off."""
    base, now_s = run(10.0, lambda t: 300.0 + 150.0 * (int(t) % 2))
    assert TRUE_BASE_W - 60.0 <= upper(base, now_s) <= TRUE_BASE_W + 400.0


def test_it_rises_at_once_and_falls_slowly():
    base, now_s = run(8.0, steady)
    risen, risen_s = run(1.5, steady, base=base, start_s=now_s + 0.1, base_w=900.0)
    assert upper(risen, risen_s) == pytest.approx(900.0, abs=30.0)
    fallen, fallen_s = run(1.2, steady, base=risen, start_s=risen_s + 0.1)
    assert TRUE_BASE_W + 30.0 < upper(fallen, fallen_s) < 900.0


@pytest.mark.parametrize("unknown_s", [0.0, BLOCK.base_age_max_s + 1.0], ids=["known", "long unknown"])
def test_limits_gain_what_it_loses_so_it_falls_no_faster_than_the_block_may_ramp_up(unknown_s):
    block = replace(BLOCK, ramp=BLOCK.ramp._replace(up_w_per_s=100.0))
    base, now_s = run(8.0, steady, base_w=1500.0, block=block)
    if unknown_s:
        base, now_s = run(unknown_s, steady, base=base, start_s=now_s + 0.1, known=False, block=block)
    stood_w = upper(base, now_s, block)
    assert stood_w > TRUE_BASE_W + 200.0
    fallen, fallen_s = run(2.0, steady, base=base, start_s=now_s + 0.1, block=block)
    assert stood_w - 210.0 <= upper(fallen, fallen_s, block) <= stood_w - 90.0


def test_the_first_readings_after_a_gap_count_beside_those_before_it():
    base, now_s = run(8.0, steady)
    blind, blind_s = run(3.0, steady, base=base, start_s=now_s + 0.1, known=False)
    back, back_s = run(0.5, steady, base=blind, start_s=blind_s + 0.1, base_w=300.0)
    assert upper(back, back_s) >= TRUE_BASE_W - 150.0  # half of a second's readings, those before it the rest
    later, later_s = run(4.0, steady, base=back, start_s=back_s + 0.1, base_w=300.0)
    assert upper(later, later_s) == pytest.approx(300.0, abs=5.0)


def after_a_cut(order_counts):
    """The highest estimate after every GPU went from 300 to 150 W; readings are dated 0.3 s before their moment."""
    base, cut_s, highest_w = base_load.start(BLOCK, 100.0), 108.0, 0.0
    for number in range(120):
        now_s = 100.0 + 0.1 * number
        drawn_w = 4 * (300.0 if now_s - BLOCK.meter_lag_s < cut_s else 150.0)
        power_w = 300.0 if now_s < cut_s + 0.05 else 150.0  # an order takes some time
        meter = good(TRUE_BASE_W + drawn_w, now_s)
        seen = snapshot(now_s, at_s=now_s - 0.3, meter=meter, power_w=power_w, revision=number)
        base = base_load.update(BLOCK, base, seen, seen.gpus.power_w, reported=True)
        if order_counts and now_s - 0.05 < cut_s <= now_s + 0.05:
            base = base_load.after_order(BLOCK, base, np.full(4, 150.0), np.full(4, 300.0), now_s)
        if now_s > cut_s:
            highest_w = max(highest_w, upper(base, now_s))
    return highest_w


def test_a_cut_that_nobody_can_date_to_a_tenth_of_a_second_is_not_mistaken_for_base_load():
    assert after_a_cut(order_counts=False) > TRUE_BASE_W + 60.0, "or this shows nothing"
    assert after_a_cut(order_counts=True) <= TRUE_BASE_W + 5.0


def interrupted(every, by_cuts):
    """The estimate after the base load fell, where each `every`-th beat lacks a GPU, or cuts much power."""
    base, now_s = run(8.0, steady, base_w=900.0)
    for number in range(60):
        now_s += 0.1
        hit = number % every == 0
        known = np.full(4, 300.0) if by_cuts or not hit else np.array((300.0, 300.0, 300.0, np.nan))
        meter = good(TRUE_BASE_W + 4 * 300.0, now_s)
        seen = snapshot(now_s, meter=meter, power_w=known, revision=200 + number)
        base = base_load.update(BLOCK, base, seen, known, reported=True)
        assert upper(base, now_s) >= TRUE_BASE_W - 1.0
        if by_cuts and hit:
            base = base_load.after_order(BLOCK, base, np.full(4, 150.0), np.full(4, 300.0), now_s)
    return upper(base, now_s)


@pytest.mark.parametrize(("every", "by_cuts"), [(10, False), (5, False), (10, True), (7, True)])
def test_interruptions_that_come_again_and_again_cost_their_own_moments_alone(every, by_cuts):
    """One late report of many, or a load that jumps each second, would else keep the estimate where it is."""
    assert interrupted(every, by_cuts) == pytest.approx(TRUE_BASE_W, abs=10.0)


def test_a_block_that_nobody_has_heard_of_lately_is_not_unbroken():
    base, now_s = run(3.0, steady)
    assert base_load.is_unbroken(base, now_s - 0.5)
    assert not base_load.is_unbroken(base, now_s + 0.5)


def test_samples_from_both_sides_of_a_cut_vouch_for_nothing_between_them():
    """No sample came while it settled: a line from 300 W before it to 150 W after it is no measurement."""
    base, cut_s = run(8.0, steady)
    base = base_load.after_order(BLOCK, base, np.full(4, 150.0), np.full(4, 300.0), cut_s)
    now_s = cut_s
    for number in range(12):
        now_s += 0.1
        drawn_w = 4 * (300.0 if now_s - BLOCK.meter_lag_s < cut_s + 0.25 else 150.0)
        seen = snapshot(now_s, meter=good(TRUE_BASE_W + drawn_w, now_s), power_w=150.0, revision=200 + number)
        base = base_load.update(BLOCK, base, seen, seen.gpus.power_w, reported=number >= 3)
        assert upper(base, now_s) <= TRUE_BASE_W + 5.0


def test_a_restart_does_not_take_its_first_readings_for_the_whole_truth():
    """The process before measured 600 W; two seconds of swings look like 300 W at first."""
    carried = Carried(limit_w=3000.0, budget_w=3000.0, source="x", base_w=600.0, base_at_s=99.0)
    base = base_load.start(BLOCK, 100.0, carried)
    base, now_s = run(0.9, steady, base=base, start_s=100.1, base_w=300.0)
    assert upper(base, now_s) >= 600.0


def test_a_rack_does_not_chase_one_reading_of_its_pdus():
    block = replace(BLOCK, inlet_lag_s=1.0)
    base, now_s = run(5.0, steady, block=block)
    now_s += 0.1
    inlets = Inlets(np.array([900.0, 900.0, 500.0, 500.0]), np.ones(4, bool), np.full(4, now_s))
    seen = snapshot(now_s, inlets=inlets, power_w=np.full(4, 300.0), revision=999)
    base = base_load.update(block, base, seen, np.full(4, 300.0), reported=True)
    assert 400.0 < base_load.rack_upper_w(block, base, now_s)[0] < 500.0  # that reading alone says 1,200 W


def test_a_gap_in_the_gpus_keeps_the_last_good_value_until_it_is_too_old():
    base, now_s = run(8.0, steady)
    blind, blind_s = run(3.0, steady, base=base, start_s=now_s + 0.1, known=False)
    assert upper(blind, blind_s) == pytest.approx(TRUE_BASE_W, abs=5.0)
    assert upper(base, now_s + BLOCK.base_age_max_s + 1.0) == BLOCK.base_max_w


def test_meter_less_the_known_gpus_may_lower_the_assumption_and_never_the_truth():
    base, now_s = run(5.0, lambda _t: 20.0, known=False)
    assert upper(base, now_s) == pytest.approx(TRUE_BASE_W + 20.0, abs=5.0)


def lowest_over_a_silence(silent_s):
    """The lowest estimate when GPUs fall from 300 to 100 W and nobody hears of them meanwhile."""
    base, now_s = run(3.0, steady, known=False)
    silent_until_s = now_s + silent_s
    lowest_w = upper(base, now_s)
    for number in range(round(10 * silent_s) + 20):
        now_s += 0.1
        draws_w = 300.0 if number < 3 else 100.0
        power_w = np.array([draws_w, draws_w, draws_w, np.nan])
        heard = now_s > silent_until_s
        seen = snapshot(
            now_s,
            at_s=now_s if heard else silent_until_s - silent_s,
            meter=good(TRUE_BASE_W + 4.0 * (300.0 if number < 4 else 100.0), now_s),
            power_w=power_w,
            revision=100 + number,
        )
        base = base_load.update(BLOCK, base, seen, power_w, reported=heard)
        lowest_w = min(lowest_w, upper(base, now_s))
    return lowest_w


def test_what_gpus_drew_in_a_silence_is_not_read_off_between_its_ends():
    assert lowest_over_a_silence(1.5) >= TRUE_BASE_W


def test_a_bound_is_not_read_off_while_a_cut_of_much_power_settles():
    """The meter shows it already, and GPUs are still told as they were: what is left would be too little."""
    base, cut_s = run(0.3, steady, known=False)  # as after a restart
    base = base_load.after_order(BLOCK, base, np.full(4, 150.0), np.full(4, 300.0), cut_s)
    now_s = cut_s
    for number in range(20):
        now_s += 0.1
        told_w = 300.0 if number < 2 else 150.0
        power_w = np.array([told_w, told_w, told_w, np.nan])
        seen = snapshot(
            now_s, meter=good(TRUE_BASE_W + 4.0 * 150.0, now_s), power_w=power_w, revision=100 + number
        )
        base = base_load.update(BLOCK, base, seen, power_w, reported=True)
        assert upper(base, now_s) >= TRUE_BASE_W


def test_a_bound_is_as_old_as_the_reading_that_it_comes_from():
    base, now_s = run(3.0, steady, known=False)
    assert upper(base, now_s) < BLOCK.base_max_w
    for _ in range(30):  # the meter goes on, and no GPU is heard any more
        now_s += 0.1
        seen = snapshot(now_s, at_s=now_s - 3.0, meter=good(TRUE_BASE_W, now_s), power_w=np.nan)
        base = base_load.update(BLOCK, base, seen, seen.gpus.power_w, reported=False)
    assert upper(base, now_s) == BLOCK.base_max_w


def test_a_silent_meter_leaves_the_assumption():
    assert upper(*run(5.0, steady, meter=False)) == BLOCK.base_max_w


@pytest.mark.parametrize(
    "reading",
    [
        Measurement(1800.0, good=False, taken_at_s=100.0),
        Measurement(1800.0, good=True, taken_at_s=98.0),
        Measurement(1800.0, good=True, taken_at_s=100.5),
    ],
    ids=["bad", "stale", "from the future"],
)
def test_a_reading_that_is_not_usable_is_not_used(reading):
    seen = snapshot(100.0, meter=reading)
    base = base_load.update(BLOCK, base_load.start(BLOCK, 0.0), seen, seen.gpus.power_w, reported=True)
    assert len(base.meter_at_s) == 0


def test_a_meter_that_says_less_than_is_possible_is_not_believed():
    base, now_s = run(8.0, steady)
    lied, lied_s = run(3.0, steady, base=base, start_s=now_s + 0.1, base_w=50.0)
    assert upper(lied, lied_s) > BLOCK.base_min_w
    assert lied_s - lied.disbelieved_at_s < 0.2


def test_the_pdus_contradict_a_meter_that_lies_low():
    block = replace(BLOCK, witness_tolerance_w=100.0, inlet_lag_s=1.0)
    base, now_s = run(8.0, steady, block=block, base_w=300.0)  # PDUs: 2,000 W less 1,200 W of GPUs is 800 W
    assert upper(base, now_s, block) == pytest.approx(700.0, abs=20.0)


def test_a_meter_that_says_less_than_the_gpus_draw_is_named_although_the_pdus_vouch():
    block = replace(BLOCK, witness_tolerance_w=100.0, inlet_lag_s=1.0)
    base, now_s = run(8.0, steady, block=block, base_w=-500.0)
    assert upper(base, now_s, block) == pytest.approx(800.0, abs=20.0)  # no tolerance for such a meter
    assert now_s - base.disbelieved_at_s < 0.2


def test_a_rack_counts_at_its_assumed_most_until_all_its_inlets_are_measured():
    block = replace(BLOCK, inlet_lag_s=1.0)
    base, now_s = run(5.0, steady, block=block)
    assert base_load.rack_upper_w(block, base_load.start(block, now_s), now_s).tolist() == [500.0, 500.0]
    assert base_load.rack_upper_w(block, base, now_s).tolist() == pytest.approx([400.0, 400.0], abs=1.0)


def test_an_inlet_is_usable_while_it_is_good_and_young():
    seen = snapshot(
        100.0,
        inlets=Inlets(
            np.full(4, 500.0), np.array([True, True, True, False]), np.array([100.0, 94.0, 100.5, 100.0])
        ),
    )
    assert base_load.inlets_usable(BLOCK, seen).tolist() == [True, False, False, False]
