"""Figures of merit on synthetic traces whose right answers are known."""

import math

import numpy as np
import pytest

from firmware_sim import verdict
from firmware_sim.verdict import FIGURES, RIG_LOST, RIG_LOST_MAX_S, Contract, Request, Trace, judge, line_w

STEP_S = 0.05
CONTRACT = Contract(ramp_down_w_per_s=600, ramp_up_w_per_s=400, rating_w=20_000, response_s=0.5)
REQUEST = Request(published_s=15, starts_s=15, ends_s=45, baseline_w=13_200, limit_w=9_900)
FALL_S, RISE_S = 5.5, 8.25


def a_trace(
    power_of=None, *, until_s=70.0, noise_w=0.0, dips_w=0.0, tokens_of=None, capacity_w=22_000.0, seed=1
):
    """50 ms means of `power_of(t)`, optionally with noise and with exchange dips every 0.25 s."""
    t_s = np.arange(1, round(until_s / STEP_S) + 1) * STEP_S
    centre_s = t_s - STEP_S / 2
    power_w = ideal(centre_s) if power_of is None else power_of(centre_s)
    power_w = power_w + noise_w * np.random.default_rng(seed).standard_normal(len(t_s))
    power_w = power_w - np.where(np.arange(len(t_s)) % 5 == 2, dips_w, 0.0)
    tokens = np.full(len(t_s), 1000.0) if tokens_of is None else tokens_of(centre_s)
    return Trace(t_s, power_w, tokens, np.full(len(t_s), capacity_w))


def ideal(t_s, late_s=0.0):
    """Power that follows the contract's line, `late_s` behind."""
    return line_w(t_s - late_s, REQUEST, CONTRACT)


def late(by_s):
    return lambda t_s: ideal(t_s, by_s)


def plus(extra_w, from_s, to_s):
    """The ideal line with an excursion."""
    return lambda t_s: ideal(t_s) + np.where((t_s > from_s) & (t_s < to_s), extra_w, 0.0)


def ramped(down=600.0, up=400.0):
    """Power that ramps at other rates than the contract's."""

    def power_w(t_s):
        falling = np.maximum(REQUEST.baseline_w - down * np.maximum(t_s - 15, 0), REQUEST.limit_w)
        rising = np.minimum(REQUEST.limit_w + up * np.maximum(t_s - 45, 0), REQUEST.baseline_w)
        return np.where(t_s < 45, falling, rising)

    return power_w


def figure(name, trace, request=REQUEST):
    return verdict.FIGURES[name][0](trace, request, CONTRACT)


# ---- the line -------------------------------------------------------------------------------------------


def test_the_line_goes_down_holds_and_comes_back():
    t_s = np.array([10, 15, 17, 20.5, 30, 45, 47, 53.25, 60.0])
    expected_w = [13_200, 13_200, 12_000, 9_900, 9_900, 9_900, 10_700, 13_200, 13_200]
    assert line_w(t_s, REQUEST, CONTRACT) == pytest.approx(np.array(expected_w))


def test_an_event_that_ends_within_its_ramp_comes_back_from_where_it_was():
    short = Request(15, 15, 17, 13_200, 9_900)
    t_s = np.array([16.9, 17, 18, 60.0])
    assert line_w(t_s, short, CONTRACT) == pytest.approx(np.array([12_060, 12_000, 12_400, 13_200]))


def test_an_event_without_an_end_holds_for_ever():
    endless = Request(15, 15, math.inf, 13_200, 9_900)
    assert line_w(np.array([21.0, 70.0]), endless, CONTRACT) == pytest.approx(9_900)


# ---- reaction -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late_s", [0.1, 0.25, 0.6, 1.5])
@pytest.mark.parametrize(("noise_w", "dips_w"), [(0, 0), (30, 0), (30, 400)])
def test_reaction_is_never_shorter_than_the_truth_and_little_longer(late_s, noise_w, dips_w):
    trace = a_trace(late(late_s), noise_w=noise_w, dips_w=dips_w)
    longer_s = figure("reaction_s", trace) - late_s
    assert 0 <= longer_s <= 0.35


@pytest.mark.parametrize("late_s", [0.1, 0.25, 0.6, 1.5])
@pytest.mark.parametrize(("noise_w", "dips_w"), [(0, 0), (30, 0), (30, 400)])
def test_the_fitted_reaction_sees_through_noise_and_exchange_dips(late_s, noise_w, dips_w):
    trace = a_trace(late(late_s), noise_w=noise_w, dips_w=dips_w)
    assert figure("reaction_fit_s", trace) == pytest.approx(late_s, abs=0.06)


@pytest.mark.parametrize(("name", "within_s"), [("reaction_s", 0.25), ("reaction_fit_s", 0.03)])
def test_reaction_counts_from_the_start_of_an_event_announced_ahead(name, within_s):
    ahead = Request(published_s=5, starts_s=15, ends_s=45, baseline_w=13_200, limit_w=9_900)
    assert figure(name, a_trace(late(0.3)), ahead) == pytest.approx(0.3, abs=within_s)


def test_a_fall_that_begins_with_a_drop_shows_as_a_fit_before_the_signal():
    trace = a_trace(lambda t_s: ideal(t_s) - np.where(t_s > 15.1, 300, 0))
    assert figure("reaction_fit_s", trace) < 0
    assert figure("reaction_s", trace) == pytest.approx(0.15, abs=0.06)


def test_noise_alone_is_no_reaction():
    for seed in range(20):
        trace = a_trace(lambda t_s: np.full_like(t_s, 13_200), noise_w=30, dips_w=400, seed=seed)
        assert figure("reaction_s", trace) is None
        assert figure("reaction_fit_s", trace) is None


def test_power_that_does_not_fall_is_no_reaction():
    flat, rising = (
        a_trace(lambda t_s: 13_200 + 0 * t_s),
        a_trace(lambda t_s: 13_200 + 500 * np.maximum(t_s - 15, 0)),
    )
    for name in ("reaction_s", "reaction_fit_s"):
        assert figure(name, flat) is None
        assert figure(name, rising) is None


# ---- settling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power_of", "expected_s"),
    [
        (None, 0.0),
        (late(0.2), 0.0),  # 120 W behind: within 2 % of 9.9 kW
        (late(0.6), 0.0),  # the line is promised half a second late
        (plus(-250, 25, 26), 0.0),  # GPUs hold a little less than their limits
        (plus(-500, 25, 26), 11.6),  # so much less is not what was asked for
        (late(1.0), 6.5),  # 600 W behind until the ramp has ended
        (plus(500, 25, 26), 11.6),  # back within 198 W once the 1 s mean has let go of it
        (plus(500, 44, 46), None),  # leaves the band for good
    ],
)
def test_settling_counts_to_the_last_second_outside_the_band(power_of, expected_s):
    settled_s = figure("settle_s", a_trace(power_of))
    assert settled_s is None if expected_s is None else settled_s == pytest.approx(expected_s, abs=0.5)


# ---- overshoot ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power_of", "expected_ratio"),
    [
        (None, 0.0),
        (plus(99, 30, 32), 0.01),
        (plus(198, 30, 30.5), 0.01),  # half a second counts half
        (plus(990, 16, 20), 0.0),  # before the deadline it is the ramp's business
        (plus(990, 46, 50), 0.0),  # after the end as well
        (plus(-990, 30, 32), 0.0),  # below is allowed
        (late(0.2), 0.0),
        (late(2.0), 600 / 9900),  # still coming down after the deadline: 600 W over in that first second
    ],
)
def test_overshoot_is_the_worst_second_after_the_deadline(power_of, expected_ratio):
    assert figure("overshoot_ratio", a_trace(power_of)) == pytest.approx(expected_ratio, abs=0.002)


def test_an_event_shorter_than_its_deadline_has_no_overshoot_to_tell():
    short = Request(15, 15, 18, 13_200, 9_900)
    assert figure("overshoot_ratio", a_trace(), short) is None


@pytest.mark.parametrize(
    ("power_of", "expected_ratio"),
    [
        (None, 0.0),
        (late(0.5), 0.0),  # the promised dead time
        (late(1.0), 300 / 9900),
        (plus(198, 30, 32), 0.02),
        (plus(198, 48, 50), 0.02),  # recovery may not run ahead
        (plus(198, 60, 62), 0.0),  # but the event is over some time
    ],
)
def test_nothing_may_stand_above_the_line(power_of, expected_ratio):
    assert figure("above_line_ratio", a_trace(power_of)) == pytest.approx(expected_ratio, abs=0.002)


# ---- ramps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power_of", "expected_ratio"),
    [
        (None, 0.0),
        (late(0.3), 0.0),
        (ramped(down=900), 0.5),
        (ramped(up=800), 1.0),
        (ramped(down=300, up=200), 0.0),  # slower is another figure's business
        (lambda t_s: np.where(t_s < 15, 13_200.0, 9_900.0), 4.5),  # a cliff: 3300 W in the second
        (plus(300, 18, 60), 0.0),  # a step up while falling at 600 W/s: still falling
        (plus(300, 47, 70), 0.75),  # while rising at 400 W/s it adds 300 W to one second
    ],
)
def test_ramp_excess_is_the_worst_second_of_both_ramps(power_of, expected_ratio):
    assert figure("ramp_excess_ratio", a_trace(power_of)) == pytest.approx(expected_ratio, abs=0.01)


def test_ramp_error_is_the_rms_distance_from_the_line():
    assert figure("ramp_error_rms_ratio", a_trace()) == pytest.approx(0.0, abs=1e-9)
    behind = figure("ramp_error_rms_ratio", a_trace(late(0.5)))
    assert 0.008 < behind < 0.015, "300 W behind going down, 200 W coming back, of 20 kW"
    assert figure("ramp_error_rms_ratio", a_trace(late(1.0))) == pytest.approx(2 * behind, rel=0.25)


# ---- tokens ---------------------------------------------------------------------------------------------


def test_tokens_are_compared_while_held_and_before():
    trace = a_trace(tokens_of=lambda t_s: np.where((t_s > 21) & (t_s < 45), 850.0, 1000.0))
    assert figure("tokens_kept_ratio", trace) == pytest.approx(0.85)
    assert figure("tokens_per_s_per_w_before", trace) == pytest.approx(1000 / 13_200)
    assert figure("tokens_per_s_per_w_during", trace) == pytest.approx(850 / 9_900)


# ---- bounds that need no request ------------------------------------------------------------------------


def test_time_above_a_bound_is_counted_on_1_s_means():
    trace = a_trace(plus(1000, 30, 34), capacity_w=10_400)
    judged = judge(trace, [REQUEST], CONTRACT, {})
    above_s = judged.figures["over_capacity_s"]
    before_s, after_s = 15 + 2800 / 600, 70 - (45 + 500 / 400)  # until it is low enough, and after it is not
    assert above_s == pytest.approx(4 + before_s + after_s, abs=1.5)
    assert judged.figures["over_capacity_ratio"] == pytest.approx(13_200 / 10_400 - 1, abs=0.001)
    assert judged.figures["over_rating_s"] == 0
    assert judged.figures["peak_w"] == pytest.approx(13_200)


# ---- the judgement --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "met"),
    [
        ({"reaction_s": (None, 0.5)}, True),
        ({"reaction_s": (None, 0.1)}, False),
        ({"tokens_kept_ratio": (0.9, None)}, True),
        ({"tokens_kept_ratio": (1.1, None)}, False),
        ({"tokens_kept_ratio": (0.9, 1.1)}, True),
        ({"no_such_figure": (None, 1)}, False),
        ({}, True),
    ],
)
def test_one_broken_bound_fails_the_run(bound, met):
    assert judge(a_trace(late(0.2)), [REQUEST], CONTRACT, bound).passed is met


def test_a_figure_the_trace_cannot_give_fails_its_bound():
    short = Request(published_s=15, starts_s=15, ends_s=16, baseline_w=13_200, limit_w=9_900)
    judged = judge(a_trace(), [short], CONTRACT, {"overshoot_ratio": (None, 1.0)})
    assert judged.figures["overshoot_ratio"] is None
    assert not judged.passed


def test_where_nothing_was_requested_no_figure_of_a_request_stands_there_and_a_bound_on_one_fails():
    assert not FIGURES.keys() & judge(a_trace(), [], CONTRACT, {}).figures.keys()
    assert not judge(a_trace(), [], CONTRACT, {"overshoot_ratio": (None, 1.0)}).passed


def test_of_several_requests_the_lowest_throughput_counts():
    trace = a_trace(tokens_of=lambda t_s: np.where(t_s > 40, 700.0, 1000.0))
    early = Request(published_s=15, starts_s=15, ends_s=35, baseline_w=13_200, limit_w=9_900)
    late_one = Request(published_s=35, starts_s=35, ends_s=60, baseline_w=13_200, limit_w=9_900)
    judged = judge(trace, [early, late_one], CONTRACT, {})
    assert judged.figures["tokens_kept_ratio"] == pytest.approx(0.7, abs=0.01)


def test_of_several_requests_the_worst_counts():
    second = Request(published_s=15, starts_s=15.5, ends_s=45, baseline_w=13_200, limit_w=9_700)
    both = judge(a_trace(), [REQUEST, second], CONTRACT, {})
    assert both.figures["overshoot_ratio"] == pytest.approx(9_900 / 9_700 - 1, abs=1e-3)


def test_a_rig_that_lost_real_time_judges_nobody_and_nobody_has_passed():
    words = {}
    for lost_s in (0.0, 0.97):
        for kept_ratio in (0.1, 2.0):
            bounds = {RIG_LOST: (None, RIG_LOST_MAX_S), "tokens_kept_ratio": (kept_ratio, None)}
            judged = judge(a_trace(), [REQUEST], CONTRACT, bounds, {RIG_LOST: lost_s})
            words[lost_s, kept_ratio] = (judged.word, judged.judged, judged.passed)
    assert words == {
        (0.0, 0.1): ("PASSED", True, True),
        (0.0, 2.0): ("FAILED", True, False),
        (0.97, 0.1): ("not judged", False, False),
        (0.97, 2.0): ("not judged", False, False),
    }
