"""Steps of the book: delays, chatter, first-out, floods, restarts."""

import pytest

from controller.alarms import book as books
from controller.alarms.book import CASCADE_S, CHATTER_COUNT, CHATTER_S, KIND_MAX, SETTLE_S
from controller.alarms.model import KEY_MAX_CHARS, TEXT_MAX_CHARS
from controller.alarms.orders import ALL
from controller.alarms.points import Flag, PointRules
from controller.alarms.table import TABLE, Priority
from tests.controller.alarms.alarm_play import UTC_0, Play, entry

SLOW = entry("a", on_delay_s=3.0, off_delay_s=5.0)
B = entry("b", group="plant")
C = entry("c", group="plant")
D = entry("d", group="plant", on_delay_s=5.0)


# --- delays ------------------------------------------------------------------------------------------------


def test_a_condition_becomes_an_alarm_after_its_delay_and_not_before():
    play = Play(SLOW).step("a").step("a", after_s=2.9)
    assert play.state() == "normal"
    assert play.step("a", after_s=0.1).state() == "unacknowledged"


def test_an_interrupted_condition_begins_its_delay_anew():
    play = Play(SLOW).step("a").step("a", after_s=2.0).step().step("a").step("a", after_s=2.9)
    assert play.state() == "normal"


def test_an_alarm_stands_until_its_condition_has_been_gone_for_its_delay():
    play = Play(SLOW).step("a").step("a", after_s=3.0).step(after_s=1.0).step(after_s=4.9)
    assert play.state() == "unacknowledged"
    assert play.step(after_s=0.1).state() == "returned"


def test_a_condition_that_comes_back_within_the_delay_is_the_same_alarm():
    play = (
        Play(SLOW).step("a").step("a", after_s=3.0).step(after_s=1.0).step(after_s=4.0).step("a", after_s=0.1)
    )
    assert play.whats() == ["raised"]
    assert play.book.records["a"].count == 1


def test_an_alarm_is_as_old_as_its_condition_not_as_the_end_of_its_delay():
    play = Play(SLOW).step("a").step("a", after_s=3.0)
    assert play.book.records["a"].since_utc_s == UTC_0 + 1001.0


def test_an_alarm_says_the_newest_sentence_and_keeps_the_last_one():
    play = Play().step(("a", "31 kW")).step(("a", "32 kW")).step()
    assert play.book.records["a"].text == "32 kW"
    assert play.told[-1].text == "32 kW"


def test_what_a_stranger_writes_is_cut_to_what_a_panel_shows():
    play = Play().step(("x" * 9999, "y" * 9999))
    assert [(len(key), len(one.text)) for key, one in play.book.records.items()] == [
        (KEY_MAX_CHARS, TEXT_MAX_CHARS)
    ]


# --- chatter -----------------------------------------------------------------------------------------------


def test_a_chattering_contact_rises_three_times_a_minute_at_most():
    play = Play()
    for number in range(2400):  # ten minutes, four times a second
        play.step(*(("a",) if number % 2 else ()), after_s=0.25)
    raised = [one.at_utc_s for one in play.told if one.what == "raised"]
    assert len(raised) <= CHATTER_COUNT * 11
    for first, fourth in zip(raised, raised[CHATTER_COUNT:], strict=False):
        assert fourth - first >= CHATTER_S
    assert play.book.records["a"].count == len(raised)


def test_what_is_kept_up_over_its_time_says_that_it_has_gone():
    play = Play()
    for _ in range(CHATTER_COUNT):
        play = play.step().step(("a", "deep is called"), after_s=5.0)
    assert books.text(play.book.records["a"]) == "deep is called"
    play = play.step(after_s=5.0)
    assert play.state() == "unacknowledged"
    assert books.text(play.book.records["a"]).startswith("deep is called (gone again")


def test_a_chattering_contact_is_shown_as_active_until_it_is_quiet():
    play = Play()
    for _ in range(CHATTER_COUNT):
        play.step("a").step()
    assert play.state() == "unacknowledged"
    assert play.step(after_s=CHATTER_S).state() == "returned"


def test_slow_coming_and_going_is_told_every_time():
    play = Play()
    for _ in range(10):
        play.step("a", after_s=CHATTER_S).step(after_s=CHATTER_S)
    assert play.whats().count("raised") == play.whats().count("cleared") == 10


# --- first-out ---------------------------------------------------------------------------------------------


def firsts(play):
    return {key: one.first_out for key, one in play.book.records.items()}


def test_the_first_of_a_cascade_is_marked_and_the_others_name_it():
    play = Play(B, C).step("c").step("c", "b")
    assert firsts(play) == {"c": "c", "b": "c"}


def test_of_one_moment_the_cause_is_what_stands_first_in_the_table():
    assert firsts(Play(B, C).step("c", "b")) == {"c": "b", "b": "b"}
    order = {one.pattern: number for number, one in enumerate(TABLE)}
    for cause, effect in (
        ("broker", "agent …"),
        ("agent …", "shortfall"),
        ("excess …", "inlet …"),
        ("shortfall", "over budget"),
        ("broker …", "site lost …"),
    ):
        assert order[cause] < order[effect]


def test_the_condition_that_came_first_is_first_though_its_delay_is_longer():
    play = Play(B, C, D).step("d").step("d", "b").step("d", "b", "c").step("d", "b", "c", after_s=4.0)
    assert firsts(play) == {"d": "d", "b": "d", "c": "d"}


def test_what_comes_long_after_begins_a_cascade_of_its_own():
    play = Play(B, C).step("b").step("b", "c", after_s=CASCADE_S + 0.1)
    assert firsts(play) == {"b": "b", "c": "c"}


def test_what_comes_after_the_first_is_dealt_with_begins_a_cascade_of_its_own():
    play = Play(B, C).step("b").step()
    play.order("acknowledge", "b")
    assert firsts(play.step("c")) == {"b": "", "c": "c"}


def test_of_one_kind_and_one_moment_the_first_told_is_first():
    assert set(firsts(Play().step(*many("agent", 3))).values()) == {"agent n0"}


def test_alarms_without_a_group_have_no_first():
    assert firsts(Play(entry("e")).step("a").step("a", "e")) == {"a": "", "e": ""}


def test_groups_do_not_mix():
    assert firsts(Play(B, entry("z", group="other")).step("b").step("b", "z")) == {"b": "b", "z": "z"}


# --- floods ------------------------------------------------------------------------------------------------


def many(kind, count, first=0):
    return [f"{kind} n{number}" for number in range(first, first + count)]


def test_a_flood_of_one_kind_is_counted_and_crowds_out_no_other():
    play = Play().step(*many("report", 5000)).step(*many("report", 5000), "shortfall")
    listed = play.book.records
    assert sum(key.startswith("report ") for key in listed) == KIND_MAX
    assert play.state("shortfall") == "unacknowledged"
    assert (
        listed["alarms report"].text
        == f"{5000 - KIND_MAX} more of `report` than the {KIND_MAX} that are listed"
    )


def test_points_share_the_room_of_their_kind_and_priority():
    quiet = [Flag(point=f"devices/d{n}/status", bit=0, name="door", severity="warning") for n in range(500)]
    leak = Flag(point="devices/cdu/status", bit=1, name="leak", severity="critical")
    play = Play(*PointRules([*quiet, leak]).entries())
    play.step(*(rule.key for rule in quiet), leak.key)
    assert play.state(leak.key) == "unacknowledged"
    assert sum(key.startswith("flag ") for key in play.book.records) == KIND_MAX + 1
    assert play.book.records["alarms flag low"].text.startswith(f"{500 - KIND_MAX} more of `flag low`")


def test_names_without_end_leave_a_bounded_book():
    play = Play()
    for number in range(50):
        play.step(*many("report", 40, 40 * number), *many("nobody knows", 40, 40 * number))
    assert len(play.book.records) <= 2 * (KIND_MAX + 1)


def test_the_number_of_kinds_is_the_bound_of_the_alarms_that_count():
    points = 5 * len(Priority)  # kinds of alarms of single points
    assert len(TABLE) + points <= KIND_MAX


def test_what_stands_is_never_pushed_out_by_what_comes():
    play = Play().step(*many("report", KIND_MAX)).step(*many("report", 3 * KIND_MAX))
    assert all(play.state(key) == "unacknowledged" for key in many("report", KIND_MAX))


def test_to_make_room_the_quiet_go_first_and_then_what_has_returned_which_is_said():
    play = Play().step(*many("report", KIND_MAX)).step().step(after_s=9.0)
    play.order("acknowledge", "report n7")
    play.step("report x")
    assert "report n7" not in play.book.records
    assert books.FORGOTTEN not in [one.what for one in play.told]
    play.step("report x", "report y")
    assert len(play.book.records) == KIND_MAX
    assert [one.was for one in play.told if one.what == books.FORGOTTEN] == ["returned"]


def test_what_is_out_of_service_keeps_its_place():
    play = Play().step(*many("report", KIND_MAX))
    play.order("out_of_service", "report n0")
    play.step().step(after_s=9.0).order("acknowledge", ALL)
    play.step(*many("report", KIND_MAX, 1000))
    assert play.state("report n0") == "out of service"


def test_what_is_told_again_in_the_same_step_is_not_pushed_out():
    play = Play().step(*many("report", KIND_MAX))
    play.step(after_s=9.0)
    play.step(*many("report", KIND_MAX), "report new", after_s=9.0)
    assert all(play.state(key) == "unacknowledged" for key in many("report", KIND_MAX))
    assert play.state("alarms report") == "unacknowledged"


def test_the_count_of_the_rest_goes_when_there_is_room_again():
    play = Play().step(*many("report", KIND_MAX + 5)).step(*many("report", 3), after_s=9.0)
    play.step(*many("report", 3), after_s=9.0)
    assert play.state("alarms report") == "returned"


# --- restarts ----------------------------------------------------------------------------------------------


def test_what_stood_before_a_restart_stands_until_it_can_be_judged_again():
    play = Play().step("a")
    play.order("acknowledge")
    play.restart()
    assert play.step(after_s=SETTLE_S - 1.0).state() == "acknowledged"
    assert play.step(after_s=2.0).state() == "normal"


def test_an_acknowledged_alarm_whose_condition_lasts_over_a_restart_stays_acknowledged():
    play = Play().step("a")
    play.order("acknowledge")
    play.restart()
    play.step(after_s=3.0).step("a", after_s=1.0).step("a", after_s=SETTLE_S)
    assert (play.state(), play.book.records["a"].count) == ("acknowledged", 1)


def test_what_nobody_had_seen_before_a_restart_is_still_to_be_seen():
    play = Play(entry("l", latching=True)).step("a", "l").step()
    play.restart()
    play.step(after_s=SETTLE_S + 1.0)
    assert (play.state("a"), play.state("l")) == ("returned", "latched, unacknowledged")


def test_a_cascade_is_not_joined_over_a_restart():
    play = Play(B, C).step("b")
    play.restart()
    assert firsts(play.step("b", "c")) == {"b": "b", "c": "c"}


@pytest.mark.parametrize(
    ("off_s", "left_s"),
    [(0.0, 60.0), (20.0, 40.0), (59.0, 1.0), (90.0, 0.0), (-86_400.0, 60.0), (1e9, 0.0)],
    ids=["at once", "later", "just", "too late", "clock in the past", "clock in the future"],
)
def test_a_shelf_ends_when_it_was_meant_to_and_never_later_than_it_was_long(off_s, left_s):
    play = Play().step("a")
    play.order("shelve", for_s=60.0)
    play.restart(off_s=off_s)
    if left_s > 0.5:
        assert play.step("a", after_s=left_s - 0.5).state() == "shelved"
    assert play.step("a", after_s=0.5).state() == "unacknowledged"


def test_a_shelf_is_no_longer_than_the_configuration_now_allows():
    play = Play().step("a")
    play.order("shelve", for_s=600.0)
    play.settings = Play(shelve_max_s=30.0).settings
    play.restart()
    assert play.step("a", after_s=29.0).state() == "shelved"
    assert play.step("a", after_s=1.0).state() == "unacknowledged"


@pytest.mark.parametrize("verb", ["shelve", "out_of_service"])
def test_what_may_no_longer_be_hidden_is_shown_after_a_restart(verb):
    play = Play().step("a")
    play.order("acknowledge")
    play.order(verb)
    play.settings = Play(entry("a", suppressible=False)).settings
    play.restart()
    assert play.step("a").state() == "unacknowledged"


def test_out_of_service_outlasts_restarts():
    play = Play().step("a")
    play.order("out_of_service")
    play.restart(off_s=1e7)
    assert play.step("a", after_s=1e6).state() == "out of service"


def test_of_too_many_that_were_kept_those_that_stand_are_taken_first():
    play = Play().step(*many("report", KIND_MAX))
    for _ in range(2):
        play.step(after_s=9.0)
    play.order("acknowledge", ALL)
    kept = {**play.book.records, **Play().step(*many("report", KIND_MAX, 1000)).book.records}
    book = books.resumed(play.settings, kept.values(), 0.0, UTC_0)
    assert sorted(book.records) == sorted(many("report", KIND_MAX, 1000))
