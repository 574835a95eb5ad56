"""Which windows the law gets to see."""

from controller.core.model import Setpoint
from controller.site.outlook import HORIZON_S, NEAR_MAX, Outlook, key
from protocols.openadr import Window

NOW = 10_000.0


def setpoint_of(window):
    return Setpoint("s", window.event_id, "limit", window.value, window.starts_utc_s, window.ends_utc_s)


def window(name, starts, ends, value=1.0):
    return Window(name, "IMPORT_CAPACITY_LIMIT", value, starts, ends, 0, 0, 0.0)


def outlook(*windows, spread_max_s=0.0):
    found = Outlook(setpoint_of, spread_max_s)
    found.learn(sorted(windows, key=lambda one: one.starts_utc_s))
    return found


def near(found, running=(), over=()):
    held = frozenset(key(one) for one in running)
    return [one.id for one in found.near(NOW, held, frozenset(over))]


def test_windows_within_reach_are_near_and_others_wait():
    found = outlook(
        window("over", 0.0, NOW - 1.0),
        window("open", NOW - 1.0, NOW + 1.0),
        window("soon", NOW + 5.0, NOW + 6.0),
        window("far", NOW + HORIZON_S + 1.0, NOW + HORIZON_S + 2.0),
    )
    assert near(found) == ["open", "soon"]


def test_what_the_law_runs_stays_near_whatever_the_wall_clock_says():
    over = window("over", 0.0, NOW - 1.0)
    assert near(outlook(over), running=[setpoint_of(over)]) == ["over"]


def test_what_the_law_has_seen_end_does_not_come_back():
    opened = window("open", NOW - 1.0, NOW + 1.0)
    found = outlook(opened)
    assert near(found, over=[setpoint_of(opened)]) == []
    assert found.still_known([setpoint_of(opened)]) == {setpoint_of(opened)}
    found.learn(())
    assert found.still_known([setpoint_of(opened)]) == set()


def test_a_window_that_ends_later_for_its_spread_stays_near_until_then():
    late = Outlook(_late, 60.0)
    late.learn([window("just over", 0.0, NOW - 10.0)])
    assert near(late) == ["just over"]


def _late(one):
    return Setpoint("s", one.event_id, "limit", 1.0, one.starts_utc_s, one.ends_utc_s + 30.0)


def test_a_window_that_is_near_and_runs_is_told_once():
    opened = window("open", NOW - 1.0, NOW + 1.0)
    assert near(outlook(opened), running=[setpoint_of(opened)]) == ["open"]


def test_what_the_law_runs_stays_near_though_the_clock_was_set_back_behind_its_start():
    coming = window("coming", NOW + HORIZON_S + 50.0, NOW + HORIZON_S + 60.0)
    assert near(outlook(coming)) == []
    assert near(outlook(coming), running=[setpoint_of(coming)]) == ["coming"]


def test_of_too_many_windows_those_that_run_and_the_lowest_open_ones_find_a_place():
    crowd = [window(f"e{n}", NOW - 1.0, NOW + 60.0, 1000.0 - n) for n in range(NEAR_MAX + 50)]
    high = window("running", NOW - 1.0, NOW + 60.0, 9999.0)
    soon = window("soon", NOW + 1.0, NOW + 60.0, 1.0)
    found = outlook(*crowd, high, soon)
    names = near(found, running=[setpoint_of(high)])
    assert len(names) == NEAR_MAX
    assert found.left_out == 52
    assert names[0] == "running"
    assert "soon" not in names
    assert {f"e{n}" for n in range(51, NEAR_MAX + 50)} < set(names)


def test_a_ramp_that_takes_hours_is_seen_hours_ahead():
    far = Outlook(setpoint_of, 0.0, horizon_s=3 * HORIZON_S)
    far.learn([window("far", NOW + 2 * HORIZON_S, NOW + 3 * HORIZON_S)])
    assert near(far) == ["far"]
