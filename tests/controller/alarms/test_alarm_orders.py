"""Orders of operators: obeyed or refused with a reason, and always written down."""

import math

import pytest

from controller.alarms.model import WORDS_MAX_CHARS
from controller.alarms.orders import ALL
from controller.alarms.table import TABLE
from tests.controller.alarms.alarm_play import SHELVE_MAX_S, Play, entry

LATCHING = entry("l", latching=True)
GUARDED = entry("g", suppressible=False)


@pytest.mark.parametrize(
    ("verb", "key", "changes", "why"),
    [
        ("acknowledge", "nix", {}, "no alarm 'nix' is known here"),
        ("acknowledge", "a", {"by": " "}, "say who asks"),
        ("reset", "a", {}, "cannot be reset while it lasts: a holds"),
        ("reset", "n", {}, "not latched"),
        ("acknowledge", "n", {}, "nothing to acknowledge"),
        ("shelve", "g", {}, "could cost equipment"),
        ("out_of_service", "g", {}, "could cost equipment"),
        ("shelve", "a", {"reason": ""}, "say why"),
        ("out_of_service", "a", {"reason": "  "}, "say why"),
        ("shelve", "a", {"for_s": 0.0}, "600 s at most"),
        ("shelve", "a", {"for_s": -1.0}, "600 s at most"),
        ("shelve", "a", {"for_s": SHELVE_MAX_S + 1.0}, "600 s at most"),
        ("shelve", "a", {"for_s": math.nan}, "600 s at most"),
        ("shelve", "a", {"for_s": math.inf}, "600 s at most"),
        ("unshelve", "a", {}, "a is unacknowledged, not shelved"),
        ("return_to_service", "a", {}, "a is unacknowledged, not out of service"),
        ("shelve", "o", {}, "out of service: nothing is left to shelve"),
        ("out_of_service", "o", {}, "out of service already"),
        ("unshelve", "o", {}, "o is out of service, not shelved"),
        ("return_to_service", "s", {}, "s is shelved, not out of service"),
        ("shelve", ALL, {}, "needs the name of one alarm"),
        ("unshelve", ALL, {}, "needs the name of one alarm"),
    ],
)
def test_an_order_that_cannot_be_is_refused_with_its_reason_and_changes_nothing(verb, key, changes, why):
    play = Play(LATCHING, GUARDED, entry("n"), entry("o"), entry("s")).step("n").step()
    play.order("acknowledge", "n")
    play.step("a", "l", "g", "o", "s")
    play.order("out_of_service", "o")
    play.order("shelve", "s")
    before = play.book
    assert why in play.order(verb, key, **changes)
    assert play.book == before
    assert (play.told[-1].what, why in play.told[-1].why) == (f"{verb} refused", True)


def test_who_and_why_are_written_down_with_the_old_and_the_new_state():
    play = Play().step("a")
    play.order("acknowledge", by="anna", reason="on my way")
    line = play.told[-1]
    assert (line.key, line.what, line.was, line.now) == ("a", "acknowledge", "unacknowledged", "acknowledged")
    assert (line.by, line.why, play.book.records["a"].by) == ("anna", "on my way", "anna")


def test_what_a_client_writes_is_cut():
    play = Play().step("a")
    play.order("shelve", by="x" * 9999, reason="y" * 9999)
    hidden = play.book.records["a"].hidden
    assert (len(hidden.by), len(hidden.reason)) == (WORDS_MAX_CHARS, WORDS_MAX_CHARS)
    play.order("acknowledge", "z" * 9999)
    assert len(play.told[-1].key) < 300


def test_acknowledging_all_leaves_what_is_hidden():
    play = Play(LATCHING, GUARDED, entry("s")).step("a", "l", "g", "s")
    play.order("shelve", "s")
    assert play.order("acknowledge", ALL) == ""
    assert [play.state(key) for key in ("a", "l", "g", "s")] == ["acknowledged"] * 3 + ["shelved"]
    assert play.book.records["s"].state == "unacknowledged", "whoever has not been shown it has not seen it"
    assert play.step("a", "l", "g", "s", after_s=60.0).state("s") == "unacknowledged"


def test_resetting_all_takes_only_what_is_over():
    play = Play(LATCHING, entry("m", latching=True)).step("l", "m")
    play.order("acknowledge", ALL)
    play.step("m")
    assert play.order("reset", ALL) == ""
    assert (play.state("l"), play.state("m")) == ("normal", "acknowledged")


def test_an_order_for_all_says_once_who_gave_it_and_for_how_many():
    play = Play(LATCHING).step("a", "l")
    play.order("acknowledge", ALL, by="anna")
    assert [(one.key, one.by, one.text) for one in play.told if one.key == "all"] == [
        ("all", "anna", "2 alarms")
    ]
    assert play.order("acknowledge", ALL) == ""


def test_a_reset_does_not_acknowledge():
    play = Play(LATCHING).step("l").step()
    play.order("reset", "l")
    assert play.state("l") == "returned"


# --- shelving ----------------------------------------------------------------------------------------------


def test_a_shelved_alarm_comes_back_by_itself_and_asks_anew():
    play = Play().step("a")
    play.order("acknowledge")
    play.order("shelve", for_s=60.0)
    assert play.step("a", after_s=59.9).state() == "shelved"
    assert play.step("a", after_s=0.1).state() == "unacknowledged"
    assert play.whats()[-1] == "shown again"


def test_what_comes_and_goes_on_the_shelf_is_not_forgotten():
    play = Play(LATCHING)
    play.order("shelve", "l", for_s=60.0)
    play.step("l").step().step(after_s=60.0)
    assert play.state("l") == "latched, unacknowledged"


def test_what_was_over_before_the_shelf_ends_does_not_come_back():
    play = Play().step("a")
    play.order("acknowledge")
    play.order("shelve", for_s=60.0)
    assert play.step().step(after_s=60.0).state() == "normal"


def test_shelving_again_sets_the_time_anew_and_never_adds_up_beyond_the_most():
    play = Play().step("a")
    play.order("shelve", for_s=SHELVE_MAX_S)
    play.step("a", after_s=100.0)
    play.order("shelve", for_s=SHELVE_MAX_S, by="ben")
    assert play.step("a", after_s=SHELVE_MAX_S - 0.1).state() == "shelved"
    assert play.step("a", after_s=0.1).state() == "unacknowledged"


def test_unshelving_shows_it_at_once():
    play = Play().step("a")
    play.order("shelve")
    assert play.order("unshelve") == ""
    assert play.state() == "unacknowledged"


def test_out_of_service_lasts_until_somebody_returns_it():
    play = Play().step("a")
    play.order("acknowledge")
    play.order("out_of_service")
    assert play.step("a", after_s=1e6).state() == "out of service"
    assert play.order("return_to_service") == ""
    assert play.state() == "unacknowledged"


def test_what_is_shelved_can_be_taken_out_of_service():
    play = Play().step("a")
    play.order("shelve")
    assert play.order("out_of_service") == ""
    assert play.step("a", after_s=1e6).state() == "out of service"


def test_an_alarm_that_never_came_can_be_hidden_before_the_repair_if_it_is_one_of_ours():
    play = Play()
    assert play.order("out_of_service", "meter") == ""
    assert "no alarm 'pdu …'" in play.order("out_of_service", "pdu …")
    assert "no alarm 'pdu typo'" in play.order("out_of_service", "pdu typo")
    assert play.step("meter").state("meter") == "out of service"


@pytest.mark.parametrize("pattern", [one.pattern for one in TABLE if not one.suppressible])
def test_what_could_cost_equipment_is_never_hidden(pattern):
    key = pattern.replace("…", "r1")
    play = Play().step(key)
    for verb in ("shelve", "out_of_service"):
        assert "could cost equipment" in play.order(verb, key)
    assert play.state(key) == "unacknowledged"
