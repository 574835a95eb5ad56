"""Which lever moves the power of a GPU: learned from readings and from our own writes."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agent.levers import (
    LEARN_PERIOD_S,
    NOTHING_YET,
    VERDICT_S,
    Lever,
    Seen,
    learn,
    lever,
    pulled_ceiling,
    pulled_limit,
)


def seen(
    at_s, power_w=290.0, *, clock_mhz=1500, capped=False, idle=False, limit_w=700.0, slowed=False
) -> Seen:
    return Seen(at_s, power_w, limit_w, clock_mhz, capped, idle, 700.0, slowed)


def watched(learned, from_s, to_s, **what):
    at_s = from_s
    while at_s < to_s:
        learned = learn(learned, seen(at_s, **what))
        at_s += LEARN_PERIOD_S
    return learned


def test_before_enough_was_seen_nothing_is_claimed():
    assert lever(NOTHING_YET) is Lever.UNKNOWN
    assert lever(watched(NOTHING_YET, 0.0, 2.5, capped=True)) is Lever.UNKNOWN
    assert lever(watched(NOTHING_YET, 0.0, 10.0)) is Lever.UNKNOWN, (
        "work has phases, and a ceiling would hide them"
    )


@pytest.mark.parametrize(
    ("what", "found"),
    [({"capped": True}, Lever.CAP), ({"capped": False}, Lever.CLOCK), ({"idle": True}, Lever.NONE)],
)
def test_what_the_driver_says_of_the_clocks_tells_the_lever(what, found):
    assert lever(watched(NOTHING_YET, 0.0, 30.0, **what)) is found


def test_work_that_is_capped_now_and_then_is_left_open():
    learned = NOTHING_YET
    for beat in range(200):
        learned = learn(learned, seen(beat * LEARN_PERIOD_S, capped=beat % 4 == 0))
    assert lever(learned) is Lever.UNKNOWN


def test_work_that_no_limit_holds_because_none_is_set_may_be_held_by_one():
    """Under the highest limit nothing is capped, whatever it computes."""
    learned = watched(NOTHING_YET, 0.0, 60.0, power_w=600.0)
    assert lever(learned) is Lever.UNKNOWN


def test_a_ceiling_of_ours_does_not_prove_itself():
    """What computes is slowed by it below its limit: not capped, and drawing little, as if it decoded."""
    learned = watched(NOTHING_YET, 0.0, 60.0, power_w=600.0)
    assert lever(watched(learned, 60.0, 120.0, power_w=300.0, slowed=True)) is Lever.UNKNOWN
    decoding = watched(NOTHING_YET, 0.0, 60.0)
    assert lever(watched(decoding, 60.0, 120.0, power_w=200.0, slowed=True)) is Lever.CLOCK


def test_what_is_capped_takes_more_than_it_draws():
    learned = watched(NOTHING_YET, 0.0, 60.0, power_w=300.0, capped=True, limit_w=300.0)
    assert lever(watched(learned, 60.0, 64.0, power_w=250.0, slowed=True)) is Lever.CAP
    assert lever(watched(learned, 60.0, 120.0, power_w=250.0, slowed=True)) is Lever.UNKNOWN


def test_what_draws_much_now_and_then_does_not_spare_power():
    """Prompts are read in bursts: on average little is drawn, and a ceiling would cost most of the work."""
    learned = NOTHING_YET
    for beat in range(400):
        learned = learn(learned, seen(beat * LEARN_PERIOD_S, power_w=690.0 if beat % 5 < 2 else 290.0))
        assert lever(learned) is Lever.UNKNOWN


def test_the_lever_follows_the_work_within_half_a_minute():
    learned = watched(NOTHING_YET, 0.0, 60.0, capped=True)
    learned = watched(learned, 60.0, 90.0, capped=False)
    assert lever(learned) is Lever.CLOCK


@pytest.mark.parametrize(("after_w", "found"), [(410.0, Lever.CAP), (600.0, Lever.CLOCK)])
def test_a_limit_that_power_does_not_obey_is_no_lever(after_w, found):
    learned = watched(NOTHING_YET, 0.0, 20.0, power_w=600.0, capped=True)
    learned = pulled_limit(learned, 400.0, 20.0)
    assert lever(watched(learned, 20.5, 24.0, power_w=after_w, capped=True, limit_w=400.0)) is found


def test_a_limit_that_was_lifted_before_power_could_follow_proves_nothing():
    """While limits climb, one is lowered below the draw now and then, and raised again at the next beat."""
    before = watched(NOTHING_YET, 0.0, 20.0, power_w=600.0, capped=True)
    ours = pulled_limit(pulled_limit(before, 500.0, 20.0), 650.0, 20.05)
    assert lever(watched(ours, 20.5, 24.0, power_w=640.0, limit_w=650.0)) is Lever.CAP
    foreign = pulled_limit(before, 500.0, 20.0)
    assert lever(watched(foreign, 20.5, 24.0, power_w=640.0, limit_w=650.0)) is Lever.CAP


def test_a_ceiling_that_was_taken_away_at_once_proves_nothing():
    learned = pulled_ceiling(watched(NOTHING_YET, 0.0, 20.0), 1200, 20.0)
    learned = pulled_ceiling(learned, 0, 20.05)
    assert lever(watched(learned, 20.5, 24.0)) is Lever.CLOCK


def test_a_limit_that_is_lowered_again_and_again_in_vain_is_found_out():
    learned, now_s = watched(NOTHING_YET, 0.0, 20.0, power_w=600.0, capped=True), 20.0
    for limit_w in range(500, 440, -10):
        learned = pulled_limit(learned, float(limit_w), now_s)
        learned = watched(learned, now_s + 0.25, now_s + 1.5, power_w=600.0, capped=True, limit_w=limit_w)
        now_s += 1.5
    assert lever(learned) is Lever.CLOCK


def test_work_that_wavers_does_not_look_like_a_ceiling_that_acts():
    learned, rng = watched(NOTHING_YET, 0.0, 30.0), Random(5)
    in_vain = 0
    for _ in range(100):
        tried = pulled_ceiling(learned, 1200, 29.5)
        for beat in range(8):
            tried = learn(tried, seen(30.0 + beat * LEARN_PERIOD_S, power_w=rng.gauss(290.0, 9.0)))
        in_vain += lever(tried) is Lever.UNKNOWN
    assert in_vain > 75


def test_a_quiet_stretch_under_a_ceiling_is_not_believed_for_ever():
    """Who serves is quiet at night and is slowed then; in the morning a ceiling hides what it would take."""
    learned = watched(NOTHING_YET, 0.0, 60.0)
    assert lever(watched(learned, 60.0, 150.0, power_w=200.0, slowed=True)) is Lever.CLOCK
    assert lever(watched(learned, 60.0, 300.0, power_w=200.0, slowed=True)) is Lever.UNKNOWN


def test_one_reading_of_another_phase_of_the_work_is_no_verdict():
    learned = pulled_limit(watched(NOTHING_YET, 0.0, 20.0, power_w=420.0, capped=True), 410.0, 20.0)
    learned = watched(learned, 20.5, 21.5, power_w=440.0, limit_w=410.0, capped=True)
    assert lever(watched(learned, 21.5, 26.0, power_w=409.0, limit_w=410.0, capped=True)) is Lever.CAP


@pytest.mark.parametrize(("after_w", "found"), [(215.0, Lever.CLOCK), (285.0, Lever.UNKNOWN)])
def test_a_ceiling_that_moves_no_power_is_no_lever(after_w, found):
    learned = watched(NOTHING_YET, 0.0, 20.0)
    learned = pulled_ceiling(learned, 1200, 20.0)
    learned = watched(learned, 20.5, 24.0, power_w=after_w, clock_mhz=1200)
    assert lever(learned) is found
    both = pulled_limit(learned, 200.0, 24.0)
    both = watched(both, 24.5, 28.0, power_w=after_w + 100.0, limit_w=200.0)
    assert lever(both) is (Lever.NONE if found is Lever.UNKNOWN else Lever.CLOCK)


def test_a_verdict_is_forgotten():
    learned = pulled_ceiling(watched(NOTHING_YET, 0.0, 20.0), 1200, 20.0)
    learned = watched(learned, 20.5, 24.0)
    assert lever(learned) is Lever.UNKNOWN
    assert lever(watched(learned, 24.0, 26.0 + VERDICT_S)) is Lever.CLOCK


@pytest.mark.parametrize("limit_w", [290.0, 340.0])
def test_a_limit_above_the_power_drawn_is_no_experiment(limit_w):
    learned = watched(NOTHING_YET, 0.0, 20.0)
    assert pulled_limit(learned, limit_w, 20.0) is learned


@pytest.mark.parametrize("ceiling_mhz", [0, 1500, 1980])
def test_a_ceiling_above_the_clock_or_a_release_is_no_experiment(ceiling_mhz):
    learned = watched(NOTHING_YET, 0.0, 20.0)
    assert pulled_ceiling(learned, ceiling_mhz, 20.0) is learned


def test_work_that_stops_during_an_experiment_gives_no_verdict():
    learned = pulled_limit(watched(NOTHING_YET, 0.0, 20.0, capped=True), 400.0, 20.0)
    learned = watched(learned, 20.5, 21.0, power_w=80.0, idle=True)
    learned = watched(learned, 21.0, 60.0, power_w=600.0, capped=True)
    assert lever(learned) is Lever.CAP


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["read", "limit", "ceiling"]),
        st.floats(0.0, 3.0),
        st.floats(50.0, 1400.0),
        st.integers(200, 2000),
        st.booleans(),
        st.booleans(),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_happens_shares_stay_shares_and_an_idle_gpu_is_never_called_capped(events):
    """Shares are ratios, and "cap" is only said of a GPU that was seen capped while busy."""
    now_s, learned, ever_capped = 100.0, NOTHING_YET, False
    for kind, wait_s, power_w, clock_mhz, capped, idle in events:
        now_s += wait_s
        if kind == "read":
            ever_capped = ever_capped or capped
            learned = learn(learned, seen(now_s, power_w, clock_mhz=clock_mhz, capped=capped, idle=idle))
        elif kind == "limit":
            learned = pulled_limit(learned, power_w, now_s)
        else:
            learned = pulled_ceiling(learned, clock_mhz, now_s)
        assert 0.0 <= learned.capped_share <= 1.0
        assert 0.0 <= learned.idle_share <= 1.0
        assert lever(learned) is not Lever.CAP or ever_capped


@given(EVENTS)
def test_a_lever_that_acts_again_is_believed_again(events):
    """After any history two minutes of plain capped work end in "cap"."""
    now_s, learned = 100.0, NOTHING_YET
    for kind, wait_s, power_w, clock_mhz, capped, idle in events:
        now_s += wait_s
        if kind == "read":
            learned = learn(learned, seen(now_s, power_w, clock_mhz=clock_mhz, capped=capped, idle=idle))
        elif kind == "limit":
            learned = pulled_limit(learned, power_w, now_s)
        else:
            learned = pulled_ceiling(learned, clock_mhz, now_s)
    assert lever(watched(learned, now_s + 1.0, now_s + VERDICT_S + 10.0, capped=True)) is Lever.CAP


def test_a_verdict_does_not_flicker_with_work_that_is_capped_now_and_then():
    """Capped a tenth of the time, in bursts of a second."""
    now_s, learned, verdicts = 0.0, NOTHING_YET, []
    while now_s < 300.0:
        learned = learn(learned, seen(now_s, capped=now_s % 10.0 < 1.0))
        verdicts.append(lever(learned))
        now_s += 0.5
    settled = verdicts[120:]
    assert sum(one is not two for one, two in pairwise(settled)) <= 1
