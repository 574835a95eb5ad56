"""The story of a feed: six events in their order, and the meter's truth about compliance."""

from itertools import pairwise

import pytest
from dsx_parts import FUZZ
from hypothesis import given
from hypothesis import strategies as st

from protocols.dsx_flex.load_target import Window
from protocols.dsx_flex.power_state import FeedRating, FeedState, Happening, PowerEvents, data, is_compliant
from protocols.dsx_flex.wire import moment

NOW_UTC_S = 1.8e9


def told(*steps, state=None):
    """Steps are (second, metered kW, target kW, direction, revision); returns (second, event, happening)."""
    state = PowerEvents(period_s=10.0, calm_s=1.0, settle_max_s=5.0) if state is None else state
    story = []
    for second, metered_kw, target_kw, direction, revision in steps:
        state, happenings = state.step(
            now_s=second,
            now_utc_s=NOW_UTC_S + second,
            metered_w=None if metered_kw is None else metered_kw * 1e3,
            target_w=None if target_kw is None else target_kw * 1e3,
            direction=direction,
            revision=revision,
        )
        story += [(second, one.event, one) for one in happenings]
    return story


def events(*steps):
    return [(second, event) for second, event, _ in told(*steps)]


def test_a_curtailment_and_its_recovery_are_told_in_order():
    story = told(
        (0, 100, None, "steady", 0),
        (1, 100, 60, "down", 1),
        (2, 80, 60, "down", 1),
        (3, 60, 60, "steady", 1),
        (4, 60, 60, "steady", 1),
        (6, 60, None, "up", 1),
        (7, 100, None, "steady", 1),
        (8, 100, None, "steady", 1),
    )
    assert [
        (second, event, one.in_flight, one.compliant, one.event_start_utc_s) for second, event, one in story
    ] == [
        (0, "periodic", False, True, None),
        (1, "target_set", False, False, NOW_UTC_S + 1),
        (1, "start_ramp_down", True, False, NOW_UTC_S + 1),
        (4, "end_ramp_down", False, True, NOW_UTC_S + 1),
        (6, "start_ramp_up", True, True, NOW_UTC_S + 1),
        (8, "end_ramp_up", False, True, None),
    ]


def test_a_target_for_later_is_told_when_set_and_ramps_when_due():
    assert events(
        (0, 100, None, "steady", 3),
        (1, 100, None, "steady", 4),
        (5, 100, 60, "down", 4),
        (6, 60, 60, "down", 4),
    ) == [(0, "periodic"), (1, "target_set"), (5, "start_ramp_down")]


def test_a_ramp_that_turns_round_ends_before_the_next_one_starts():
    assert events((0, 100, 60, "down", 0), (1, 80, 90, "up", 1), (2, 90, 50, "down", 2))[1:] == [
        (1, "target_set"),
        (1, "end_ramp_down"),
        (1, "start_ramp_up"),
        (2, "target_set"),
        (2, "end_ramp_up"),
        (2, "start_ramp_down"),
    ]


def test_tightening_in_the_middle_of_a_ramp_is_still_that_ramp():
    assert events(
        (0, 100, 60, "down", 0), (1, 80, 50, "down", 1), (2, 50, 50, "steady", 1), (3, 50, 50, "steady", 1)
    ) == [
        (0, "start_ramp_down"),
        (1, "target_set"),
        (3, "end_ramp_down"),
    ]


def test_a_short_rest_does_not_end_a_ramp():
    steps = [
        (0, 100, 60, "down", 0),
        (1, 60, 60, "steady", 0),
        (1.9, 60, 60, "down", 0),
        (2.5, 60, 60, "steady", 0),
    ]
    assert events(*steps) == [(0, "start_ramp_down")]
    assert events(*steps, (3.4, 60, 60, "steady", 0)) == [(0, "start_ramp_down")]
    assert events(*steps, (3.5, 60, 60, "steady", 0))[1:] == [(3.5, "end_ramp_down")]


@pytest.mark.parametrize("metered_kw", [80, None])
def test_a_ramp_that_the_meter_does_not_confirm_ends_late_and_not_compliant(metered_kw):
    steps = [(0, 100, 60, "down", 0), *((second, metered_kw, 60, "steady", 0) for second in (1, 3, 5.9, 6))]
    (_, _, first), (second, event, last) = told(*steps)
    assert (second, event, last.compliant, last.in_flight) == (6, "end_ramp_down", False, False)
    assert not first.compliant


def test_a_status_goes_out_at_once_after_a_start_and_then_on_the_beat():
    assert events(*((second, 50, None, "steady", 7) for second in range(25))) == [
        (0, "periodic"),
        (10, "periodic"),
        (20, "periodic"),
    ]


def test_an_event_puts_off_the_beat_and_a_stepped_wall_clock_does_not():
    state, first = PowerEvents().step(
        now_s=0, now_utc_s=NOW_UTC_S, metered_w=1.0, target_w=None, direction="steady", revision=0
    )
    state, none = state.step(
        now_s=9.9, now_utc_s=NOW_UTC_S - 9e6, metered_w=1.0, target_w=None, direction="steady", revision=0
    )
    state, second = state.step(
        now_s=10, now_utc_s=NOW_UTC_S - 9e6, metered_w=1.0, target_w=None, direction="steady", revision=0
    )
    assert ([one.event for one in first], none, [one.event for one in second]) == (
        ["periodic"],
        (),
        ["periodic"],
    )
    assert events((0, 9, None, "steady", 0), (9, 9, None, "steady", 1), (18, 9, None, "steady", 1)) == [
        (0, "periodic"),
        (9, "target_set"),
    ]


def test_a_restart_in_mid_schedule_sets_no_target():
    assert events((0, 50, 60, "steady", 12)) == [(0, "periodic")]


@pytest.mark.parametrize(
    ("metered_w", "target_w", "expected"),
    [
        (100, None, True),
        (None, None, True),
        (None, 100, False),
        (101, 100, True),
        (101.1, 100, False),
        (0, 0, True),
        (1, 0, False),
    ],
)
def test_compliance_is_what_the_meter_says(metered_w, target_w, expected):
    assert is_compliant(metered_w, target_w, 0.01) is expected


STEPS = st.lists(
    st.tuples(
        st.floats(0.05, 4.0),
        st.none() | st.integers(0, 100),
        st.none() | st.integers(0, 100),
        st.sampled_from(["down", "steady", "up"]),
        st.integers(0, 1),
    ),
    max_size=60,
)


@FUZZ
@given(STEPS)
def test_whatever_happens_each_start_has_its_end_and_no_two_ramps_run_at_once(moves):
    now_s, revision, steps = 0.0, 0, []
    for pause_s, metered_kw, target_kw, direction, news in moves:
        now_s, revision = now_s + pause_s, revision + news
        steps.append((now_s, metered_kw, target_kw, direction, revision))
    story = told(*steps)
    ramps = [event for _, event, _ in story if "ramp" in event]
    assert all(one.startswith("start") != two.startswith("start") for one, two in pairwise(ramps))
    assert all(two == one.replace("start", "end") for one, two in pairwise(ramps) if one.startswith("start"))
    assert [event for _, event, _ in story].count("target_set") == sum(news for *_, news in moves[1:])
    in_flight = False
    for _, event, one in story:
        in_flight = event.startswith("start") if "ramp" in event else in_flight
        assert one.in_flight == in_flight
        assert not one.in_flight or one.event_start_utc_s is not None
    spoken = [second for second, _, _ in story]
    assert all(two - one < 14.01 for one, two in pairwise(spoken))  # the beat, and one step of at most 4 s


def test_a_status_tells_the_target_in_force_and_those_that_come_next_and_no_more():
    starts_s = range(-300, 300 * 1000, 300)
    windows = tuple(
        Window("a", 1e3, NOW_UTC_S + at_s, NOW_UTC_S + at_s + 300, False, 1, "//s", "m", "c")
        for at_s in starts_s
    )
    calm = Happening("periodic", in_flight=False, event_start_utc_s=None, compliant=True)
    said = data({"a": FeedState(FeedRating(0.0, 1e3, 1e3), windows, 0.0, calm)}, NOW_UTC_S + 1)
    told_of = said["feeds"]["a"]["targets"]
    assert [one["active"] for one in told_of] == [True] + [False] * 20
    assert told_of[1]["interval"]["start_time"] == moment(NOW_UTC_S + 300)
