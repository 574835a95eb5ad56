"""Which setpoints are in force, on clocks that misbehave."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core import schedule
from controller.core.model import FOREVER_S, Ramp, Running, Setpoint
from tests.core.blocks import UTC_0


def setpoint(limit_w=1000.0, starts_s=0.0, ends_s=60.0, **fields) -> Setpoint:
    return Setpoint(
        **{"source": "openadr", "id": "e/0", "kind": "limit"}
        | {"limit_w": limit_w, "starts_utc_s": UTC_0 + starts_s, "ends_utc_s": UTC_0 + ends_s}
        | fields
    )


def opened(setpoints, moments):
    """What is in force after a history of (monotonic, wall) seconds."""
    running, ended = (), frozenset()
    for now_s, wall_s in moments:
        running, ended = schedule.open_windows(running, ended, tuple(setpoints), now_s, UTC_0 + wall_s)
    return [entry.setpoint for entry in running]


ONE = setpoint()


@pytest.mark.parametrize(
    ("what", "moments", "in_force"),
    [
        ("before it opens", [(0, -1)], False),
        ("at its start", [(0, 0)], True),
        ("just before its end", [(0, 0), (59.9, 59.9)], True),
        ("at its end", [(0, 0), (60, 60)], False),
        ("wall clock jumps past its end", [(0, 10), (1, 1000)], True),
        ("and stays there until its time has passed", [(0, 10), (51, 1000)], False),
        ("wall clock jumps back before its start", [(0, 10), (1, -500)], True),
        ("it ended, then the wall clock is set back", [(0, 0), (60, 60), (61, 30)], False),
        ("first seen after its end", [(0, 61)], False),
        ("first seen after its end, clock then corrected", [(0, 61), (1, 30)], True),
    ],
)
def test_the_wall_clock_may_open_a_window_and_never_close_one(what, moments, in_force):
    assert opened([ONE], moments) == ([ONE] if in_force else []), what


def test_a_withdrawn_setpoint_is_gone_at_once():
    running, ended = schedule.open_windows((), frozenset(), (ONE,), 0.0, UTC_0)
    assert schedule.open_windows(running, ended, (), 1.0, UTC_0 + 1) == ((), frozenset())


def test_a_changed_setpoint_is_a_new_one():
    changed = replace(ONE, limit_w=500.0, ends_utc_s=UTC_0 + 90)
    running, ended = schedule.open_windows((), frozenset(), (ONE,), 0.0, UTC_0)
    running, _ = schedule.open_windows(running, ended, (changed,), 30.0, UTC_0 + 30)
    assert [(e.setpoint, e.ends_at_s) for e in running] == [(changed, 90.0)]


def test_a_window_without_end_stays():
    assert opened([setpoint(ends_s=FOREVER_S)], [(0, 0), (1e9, 1e9)])


@pytest.mark.parametrize(
    ("rivals", "winner_w"),
    [
        ([setpoint(1000.0), setpoint(800.0)], [800.0]),  # no priorities: the lowest
        ([setpoint(1000.0, priority=0), setpoint(800.0, priority=1)], [1000.0]),  # priority before power
        ([setpoint(1000.0, priority=1), setpoint(800.0, priority=1)], [800.0]),
        ([setpoint(1000.0, kind="target"), setpoint(800.0)], [1000.0, 800.0]),  # kinds are independent
        ([setpoint(1000.0, source="scada", priority=0), setpoint(800.0)], [1000.0, 800.0]),  # sources too
        ([], []),
    ],
)
def test_one_wins_per_source_and_kind(rivals, winner_w):
    for order in (rivals, rivals[::-1]):
        assert sorted(s.limit_w for s in schedule.winners(order)) == sorted(winner_w)


def limits(setpoints, wall_s, *, lead_s=0.5, down=100.0):
    running, ended = schedule.open_windows((), frozenset(), tuple(setpoints), 0.0, UTC_0 + wall_s)
    return {
        limit.source: limit.power_w
        for limit in schedule.limits(
            running, ended, tuple(setpoints), now_utc_s=UTC_0 + wall_s, lead_s=lead_s, ramp=Ramp(down, 0.0)
        )
    }


def test_an_open_window_yields_a_limit_with_its_name():
    assert limits([setpoint()], 1.0) == {"openadr e/0": 1000.0}


def test_a_coming_window_casts_no_limit_ahead_unless_asked():
    assert limits([setpoint(starts_s=10.0)], 0.0) == {}


def test_what_must_be_met_at_its_start_binds_ahead_along_the_ramp():
    coming = setpoint(starts_s=10.0, arrive_at_start=True)
    (line_w,) = limits([coming], 0.0).values()
    assert line_w == pytest.approx(1000.0 + 100.0 * (10.0 - 0.5))
    (at_hand_w,) = limits([coming], 9.8).values()
    assert at_hand_w == 1000.0


def test_a_coming_window_that_will_lose_casts_nothing_ahead():
    stronger = setpoint(1500.0, 0.0, 60.0, id="s/0", priority=0, arrive_at_start=True)
    weaker = setpoint(500.0, 10.0, 20.0, priority=5, arrive_at_start=True)
    assert limits([stronger, weaker], 1.0) == {"openadr s/0": 1500.0}


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(1, 50), st.floats(0, 5000)), min_size=1, max_size=6),
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=12),
)
def test_no_step_of_the_wall_clock_releases_an_active_limit(windows, steps_s):
    """Whatever the wall clock does, a window that is open stays until its length has passed."""
    setpoints = tuple(setpoint(w, a, a + n, id=f"{i}") for i, (a, n, w) in enumerate(windows))
    running, ended = schedule.open_windows((), frozenset(), setpoints, 0.0, UTC_0 + 50.0)
    for number, step_s in enumerate(steps_s):
        now_s = 0.5 * (number + 1)
        before = running
        running, ended = schedule.open_windows(running, ended, setpoints, now_s, UTC_0 + 50.0 + step_s)
        for entry in before:
            assert (entry in running) == (now_s < entry.ends_at_s)


def test_a_new_version_of_an_open_window_keeps_its_end_whatever_the_wall_clock_says():
    """Same times, another limit: the clock may have been stepped meanwhile; the window stays open."""
    old = Setpoint("openadr", "e/0", "limit", 1600.0, UTC_0, UTC_0 + 600.0)
    new = replace(old, limit_w=1500.0)
    for step_s in (-7200.0, 0.0, 7200.0):
        running, ended = schedule.open_windows(
            (Running(old, 700.0),), frozenset(), (new,), 200.0, UTC_0 + step_s
        )
        assert (running, ended) == ((Running(new, 700.0),), frozenset())


def test_a_window_of_the_past_casts_no_line_ahead():
    past = Setpoint("openadr", "e/0", "limit", 1600.0, UTC_0, UTC_0 + 10.0, arrive_at_start=True)
    cast = schedule.limits(
        (), frozenset(), (past,), now_utc_s=UTC_0 + 99.0, lead_s=0.4, ramp=Ramp(100.0, 0.0)
    )
    assert list(cast) == []


def test_a_window_that_stays_open_is_the_same_entry_from_beat_to_beat():
    """So that whoever keeps it sees at a glance that nothing has changed."""
    before, ended = schedule.open_windows((), frozenset(), (ONE,), 0.0, UTC_0)
    after, _ = schedule.open_windows(before, ended, (ONE,), 1.0, UTC_0 + 1.0)
    assert after[0] is before[0]
