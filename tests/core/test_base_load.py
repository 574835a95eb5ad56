"""Base load: an upper estimate that only two measurements of one moment may lower."""

from dataclasses import replace

import numpy as np
import pytest

from controller.core import base_load
from controller.core.model import UNKNOWN, Inlets, Measurement
from tests.core.blocks import good, settings, snapshot

TRUE_BASE_W = 600.0
BLOCK = settings(meter_lag_s=0.1, skew_s=0.0, witness_tolerance_w=5000.0)


def run(
    seconds_s, gpu_w, *, base=None, start_s=100.0, base_w=TRUE_BASE_W, meter=True, known=True, block=BLOCK
):
    """Beats at 10 Hz with a meter of the block's own lag; `gpu_w(t)` is the draw of each of four GPUs."""
    base = base_load.start(block) if base is None else base
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
    assert upper(base_load.start(BLOCK), 100.0) == BLOCK.base_max_w


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


def test_the_first_readings_after_a_gap_lower_nothing():
    base, now_s = run(8.0, steady)
    blind, blind_s = run(3.0, steady, base=base, start_s=now_s + 0.1, known=False)
    back, back_s = run(0.9, steady, base=blind, start_s=blind_s + 0.1, base_w=300.0)
    assert upper(back, back_s) >= TRUE_BASE_W - 5.0
    later, later_s = run(4.0, steady, base=back, start_s=back_s + 0.1, base_w=300.0)
    assert upper(later, later_s) == pytest.approx(300.0, abs=5.0)


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
    base = base_load.update(BLOCK, base_load.start(BLOCK), seen, seen.gpus.power_w, reported=True)
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
    assert base_load.rack_upper_w(block, base_load.start(block), now_s).tolist() == [500.0, 500.0]
    assert base_load.rack_upper_w(block, base, now_s).tolist() == pytest.approx([400.0, 400.0], abs=1.0)


def test_an_inlet_is_usable_while_it_is_good_and_young():
    seen = snapshot(
        100.0,
        inlets=Inlets(
            np.full(4, 500.0), np.array([True, True, True, False]), np.array([100.0, 94.0, 100.5, 100.0])
        ),
    )
    assert base_load.inlets_usable(BLOCK, seen).tolist() == [True, False, False, False]
