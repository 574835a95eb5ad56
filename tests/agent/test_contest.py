"""Other writers of our limits: corrected at once, not fought for ever, and named."""

import pytest

from controller.agent import contest
from controller.agent.contest import NONE_YET, REASSERTS_PER_MINUTE_MAX


def fought(times, now_s=0.0, every_s=1.0):
    state = NONE_YET
    for beat in range(times):
        state = contest.reasserted(state, now_s + beat * every_s)
    return state


@pytest.mark.parametrize("lowering", [True, False])
def test_the_first_six_times_in_a_minute_it_is_put_right_at_once(lowering):
    state = fought(REASSERTS_PER_MINUTE_MAX - 1)
    assert contest.may_reassert(state, 5.0, lowering=lowering)


def test_after_that_a_limit_below_ours_is_left_alone_until_the_minute_is_over():
    state = fought(REASSERTS_PER_MINUTE_MAX)
    assert not contest.may_reassert(state, 30.0, lowering=False)
    assert contest.may_reassert(state, 60.0, lowering=False)


def test_after_that_a_limit_above_ours_is_lowered_once_a_second_for_ever():
    state, written, now_s = fought(REASSERTS_PER_MINUTE_MAX), 0, 5.0
    for _ in range(600):  # a minute of beats
        now_s += 0.1
        if contest.may_reassert(state, now_s, lowering=True):
            state, written = contest.reasserted(state, now_s), written + 1
    assert 50 <= written <= 60


def test_a_program_that_reconciles_every_fifteen_seconds_is_corrected_every_time():
    state = NONE_YET
    for turn in range(40):
        assert contest.may_reassert(state, turn * 15.0, lowering=False)
        state = contest.reasserted(state, turn * 15.0)


def test_the_sentence_says_what_it_costs():
    assert contest.changed(450.0, 500.0, hot=True).startswith(
        "is held at 450 W by someone else: 50 W below ours"
    )
    assert "is now lowered once a second" in contest.changed(600.0, 500.0, hot=True)
    assert contest.held_down(500.0, 450.0).startswith("is held at 450 W by someone else: 50 W below ours")
    assert contest.held_down(500.0, 499.5) == ""
