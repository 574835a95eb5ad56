"""Alarms of single points: limits with their deadband, flags of a device, values that are not known."""

import math

import pytest

from controller.alarms.points import Flag, Level, PointRules, Threshold
from controller.alarms.table import AlarmSettings, Priority
from tests.controller.alarms.alarm_play import Play

POWER = "devices/pdu-a1/power_w"
HIGH = Threshold(point=POWER, level=Level.HIGH, limit=30e3, deadband=500.0, unit="W")
TOP = Threshold(point=POWER, level=Level.HIGH_HIGH, limit=32e3, deadband=500.0, unit="W")
COLD = Threshold(point="devices/cdu/supply_c", level=Level.LOW, limit=18.0, deadband=1.0, unit="degC")
LEAK = Flag(point="devices/cdu/status", bit=2, name="leak", severity="critical", latching=True)


def played(rules, *values):
    """Conditions that hold after each value of the rules' only point."""
    (point,) = rules.points
    held = {}
    for value in values:
        held = rules.judged(held, {point: value})
        yield set(held)


@pytest.mark.parametrize(
    ("rule", "values", "holds"),
    [
        (HIGH, [30e3, 30_001, 29_600, 29_500, 29_499, 30e3], [0, 1, 1, 0, 0, 0]),
        (COLD, [18.0, 17.9, 18.9, 19.0, 18.5, 17.0], [0, 1, 1, 0, 0, 1]),
        (HIGH, [31e3, None, math.nan, math.inf, 29e3], [1, 1, 1, 1, 0]),
        (HIGH, [None, math.nan, -math.inf], [0, 0, 0]),
        (LEAK, [0, 0b100, 0b111, 0b011, None], [0, 1, 1, 0, 0]),
        (Flag(point="p", bit=0, name="ok", active=0), [1, 0, 2, 3], [0, 1, 1, 0]),
    ],
    ids=["high", "low", "unknown while it is up", "unknown before", "flag", "flag that is up at zero"],
)
def test_a_value_raises_and_clears_what_it_must(rule, values, holds):
    assert [bool(held) for held in played(PointRules([rule]), *values)] == [bool(one) for one in holds]


def test_both_limits_of_a_point_stand_for_themselves():
    keys = list(played(PointRules([HIGH, TOP]), 33e3, 31e3, 29e3))
    assert keys == [{HIGH.key, TOP.key}, {HIGH.key}, set()]


def test_the_sentence_says_value_limit_and_unit():
    held = PointRules([HIGH, LEAK]).judged({}, {POWER: 31_234.0, LEAK.point: 4.0})
    assert held == {
        f"high {POWER}": f"{POWER} reads 31234 W, above 30000 W",
        "flag devices/cdu/status leak": "devices/cdu/status reports leak",
    }


def test_only_points_that_changed_are_looked_at_and_nothing_new_is_nothing_new():
    rules = PointRules([HIGH, COLD])
    held = rules.judged({}, {POWER: 31e3, COLD.point: 10.0})
    assert set(rules.judged(held, {POWER: 1.0})) == {COLD.key}
    assert rules.judged(held, {}) is held
    assert rules.judged(held, {"devices/other/x": 1e9}) is held


def test_levels_and_severities_have_the_priority_and_the_latch_that_goes_with_them():
    told = {rule.key: rule.entry() for rule in (HIGH, TOP, LEAK, Flag(point="p", bit=0, name="n"))}
    assert [(one.priority, one.latching, one.suppressible) for one in told.values()] == [
        (Priority.MEDIUM, False, True),
        (Priority.CRITICAL, True, False),
        (Priority.CRITICAL, True, False),
        (Priority.HIGH, False, True),
    ]


def test_what_is_configured_for_a_point_is_what_counts():
    own = Threshold(
        point=POWER,
        level=Level.HIGH_HIGH,
        limit=1.0,
        priority=Priority.LOW,
        latching=False,
        response="call Ben",
    )
    settings = AlarmSettings(PointRules([own]).entries())
    entry = settings.entry(own.key)
    assert (entry.priority, entry.latching, entry.suppressible, entry.response) == (
        Priority.LOW,
        False,
        True,
        "call Ben",
    )


def test_delays_of_a_point_are_kept_by_the_book():
    rule = Threshold(point=POWER, level=Level.HIGH, limit=1.0, on_delay_s=4.0, off_delay_s=6.0)
    play, told = Play(*PointRules([rule]).entries()), (rule.key, "high")
    play.step(told).step(told, after_s=3.9)
    assert play.state(rule.key) == "normal"
    assert play.step(told, after_s=0.1).step().step(after_s=5.9).state(rule.key) == "unacknowledged"
    assert play.step(after_s=0.1).state(rule.key) == "returned"


def test_what_tripped_a_device_came_first():
    play = Play(*PointRules([HIGH, TOP, LEAK]).entries())
    for _ in range(2):
        play.step((TOP.key, ""), (HIGH.key, ""))
    assert play.book.records[TOP.key].first_out == HIGH.key, "as configured, where both came at once"
    play.step((TOP.key, ""), (HIGH.key, ""), (LEAK.key, ""))
    assert play.book.records[LEAK.key].first_out == LEAK.key, "another device"


@pytest.mark.parametrize(
    "broken",
    [{"limit": math.nan}, {"limit": math.inf}, {"limit": 1.0, "deadband": -1.0}],
    ids=["no number", "infinite", "deadband below zero"],
)
def test_a_limit_that_cannot_work_is_refused_by_name(broken):
    with pytest.raises(ValueError, match=f"high {POWER}: limit and deadband"):
        Threshold(point=POWER, level=Level.HIGH, **broken)


def test_a_flag_that_is_no_alarm_is_refused_by_name():
    with pytest.raises(
        ValueError, match="flag p n: severity 'info' is no alarm; use warning, alarm, critical"
    ):
        Flag(point="p", bit=0, name="n", severity="info")
