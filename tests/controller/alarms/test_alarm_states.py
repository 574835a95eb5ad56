"""The truth table of one alarm: every state, every thing that can happen to it."""

import pytest

from controller.alarms.model import TRANSITIONS, State, Turn
from tests.controller.alarms.alarm_play import Play, entry

LATCHING = entry("a", latching=True)

# state, how it is reached (per kind), then what follows: condition, no condition, acknowledge, reset
PLAIN = [
    ("normal", "", "unacknowledged", "normal", "refused", "refused"),
    ("unacknowledged", "+", "unacknowledged", "returned", "acknowledged", "refused"),
    ("acknowledged", "+A", "acknowledged", "normal", "refused", "refused"),
    ("returned", "+-", "unacknowledged", "returned", "normal", "refused"),
    ("normal", "+A-", "unacknowledged", "normal", "refused", "refused"),
]
CATCHING = [
    ("unacknowledged", "+", "unacknowledged", "latched, unacknowledged", "acknowledged", "refused"),
    ("acknowledged", "+A", "acknowledged", "latched", "refused", "refused"),
    ("latched, unacknowledged", "+-", "unacknowledged", "latched, unacknowledged", "latched", "returned"),
    ("latched", "+A-", "unacknowledged", "latched", "refused", "normal"),
    ("returned", "+-R", "unacknowledged", "returned", "normal", "refused"),
    ("normal", "+A-R", "unacknowledged", "normal", "refused", "refused"),
]
ROWS = [*(((), *row) for row in PLAIN), *(((LATCHING,), *row) for row in CATCHING)]
IDS = [f"{'latching' if own else 'plain'} {state} {way}" for own, state, way, *_ in ROWS]


def played(own, way):
    play = Play(*own).step("a").step()  # known, and quiet again
    play.order("acknowledge")
    play.order("reset")
    assert play.state() == "normal"
    for sign in way:
        {
            "+": lambda: play.step("a", after_s=100.0),  # far apart: no chatter
            "-": lambda: play.step(after_s=100.0),
            "A": lambda: play.order("acknowledge"),
            "R": lambda: play.order("reset"),
        }[sign]()
    return play


@pytest.mark.parametrize(("own", "state", "way", "holds", "gone", "acknowledged", "reset"), ROWS, ids=IDS)
def test_every_state_answers_everything_that_can_happen(own, state, way, holds, gone, acknowledged, reset):
    assert played(own, way).state() == state
    assert played(own, way).step("a", after_s=100.0).state() == holds
    assert played(own, way).step(after_s=100.0).state() == gone
    for verb, after in (("acknowledge", acknowledged), ("reset", reset)):
        play = played(own, way)
        refused = play.order(verb)
        assert (bool(refused), play.state()) == (after == "refused", state if after == "refused" else after)


def test_every_state_can_be_reached_and_every_one_but_normal_can_be_left():
    reached = {State.NORMAL}
    while more := {after for (state, _), after in TRANSITIONS.items() if state in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert {turn for _, turn in TRANSITIONS} == set(Turn)


def test_only_a_reset_leads_out_of_a_latch_unless_the_condition_comes_again():
    caught = {State.LATCHED, State.LATCHED_UNACKNOWLEDGED}
    out = {turn for (state, turn), after in TRANSITIONS.items() if state in caught and after not in caught}
    assert out == {Turn.RESET, Turn.RAISED}


def test_only_people_turn_what_nobody_has_seen_into_what_was_seen():
    seen = {State.NORMAL, State.ACKNOWLEDGED, State.LATCHED}
    ways = {turn for (state, turn), after in TRANSITIONS.items() if state not in seen and after in seen}
    assert ways == {Turn.ACKNOWLEDGED}
