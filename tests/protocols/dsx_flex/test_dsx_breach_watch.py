"""Breaches: one id and one life, told by the meter."""

import json

import pytest
from dsx_parts import FUZZ, T0_UTC_S, an_id
from hypothesis import given
from hypothesis import strategies as st

from protocols.dsx_flex.breach import alert_data
from protocols.dsx_flex.breach_watch import BreachWatch


def lived(*steps):
    """Steps are (second, metered kW, target kW); returns (second, alert)."""
    watch, story, ids = BreachWatch("main-a", raise_s=3, clear_s=5, escalate_s=60), [], iter(range(1, 99))
    for second, metered_kw, target_kw in steps:
        watch, alert = watch.step(
            now_s=second,
            now_utc_s=T0_UTC_S + second,
            metered_w=None if metered_kw is None else metered_kw * 1e3,
            target_w=None if target_kw is None else target_kw * 1e3,
            correlation_id=an_id(9),
            make_breach_id=lambda: an_id(next(ids)),
        )
        story += [] if alert is None else [(second, alert)]
    return story


def statuses(*steps):
    return [(second, one.status, one.severity) for second, one in lived(*steps)]


def held(first, last, metered_kw, target_kw=100):
    return [(second, metered_kw, target_kw) for second in range(first, last + 1)]


def test_a_breach_lives_from_active_over_escalated_to_resolved_under_one_id():
    story = lived(*held(0, 4, 110), *held(5, 9, 130), *held(10, 20, 95))
    assert [(second, one.status, one.severity) for second, one in story] == [
        (3, "active", "warning"),
        (8, "escalated", "critical"),
        (15, "resolved", "critical"),
    ]
    assert {one.breach_id for _, one in story} == {an_id(1)}
    assert {one.detected_utc_s for _, one in story} == {T0_UTC_S}
    assert [one.resolved_utc_s for _, one in story] == [None, None, T0_UTC_S + 15]
    assert [one.measured_w for _, one in story] == [110e3, 130e3, 95e3]


@pytest.mark.parametrize(
    ("metered_kw", "severity"), [(101.5, "warning"), (120, "warning"), (120.1, "critical")]
)
def test_severity_turns_critical_beyond_twenty_percent(metered_kw, severity):
    assert statuses(*held(0, 3, metered_kw)) == [(3, "active", severity)]


def test_a_spike_and_the_meters_error_raise_nothing():
    assert statuses(*held(0, 2, 150), (3, 99, 100), *held(4, 6, 150)) == []
    assert statuses(*held(0, 30, 101)) == []


def test_a_load_that_dances_on_the_line_raises_one_alert():
    steps = [*held(0, 3, 105), *((second, 99.5 if second % 4 else 101.5, 100) for second in range(4, 40))]
    assert statuses(*steps) == [(3, "active", "warning")]


def test_within_the_tolerance_is_not_yet_resolved():
    assert statuses(*held(0, 3, 105), *held(4, 40, 100.5)) == [(3, "active", "warning")]
    assert statuses(*held(0, 3, 105), *held(4, 40, 100))[-1] == (9, "resolved", "warning")


def test_a_breach_that_lasts_escalates_and_one_that_worsens_is_told_again():
    assert statuses(*held(0, 70, 110), *held(71, 80, 140), *held(81, 200, 110)) == [
        (3, "active", "warning"),
        (63, "escalated", "warning"),
        (74, "escalated", "critical"),
    ]


def test_a_critical_breach_escalates_by_age_alone():
    assert statuses(*held(0, 70, 140)) == [(3, "active", "critical"), (63, "escalated", "critical")]


def test_without_a_target_there_is_nothing_to_breach():
    assert statuses(*held(0, 9, 500, None)) == []
    story = lived(*held(0, 4, 110), (5, 110, None))
    assert [(second, one.status, one.target_w) for second, one in story] == [
        (3, "active", 100e3),
        (5, "resolved", 100e3),
    ]


def test_a_silent_meter_neither_raises_nor_resolves():
    assert statuses(*held(0, 20, None)) == []
    assert statuses(*held(0, 2, 110), *held(3, 9, None)) == []
    assert statuses(*held(0, 3, 110), *held(4, 30, None)) == [(3, "active", "warning")]
    assert statuses(*held(0, 3, 110), *held(4, 8, 90), (8.5, None, 100), *held(9, 13, 90)) == [
        (3, "active", "warning")
    ]


def test_the_next_breach_has_the_next_id():
    story = lived(*held(0, 3, 110), *held(4, 9, 90), *held(10, 13, 110))
    assert [(one.status, one.breach_id) for _, one in story] == [
        ("active", an_id(1)),
        ("resolved", an_id(1)),
        ("active", an_id(2)),
    ]


def test_a_target_of_zero_is_breached_by_anything():
    assert statuses(*held(0, 3, 0.1, 0)) == [(3, "active", "critical")]
    assert statuses(*held(0, 3, 0, 0)) == []


@FUZZ
@given(
    st.lists(
        st.tuples(st.floats(0.1, 20), st.none() | st.integers(0, 200), st.none() | st.integers(0, 150)),
        max_size=60,
    )
)
def test_no_life_skips_its_order(moves):
    now_s, steps = 0.0, []
    for pause_s, metered_kw, target_kw in moves:
        now_s += pause_s
        steps.append((now_s, metered_kw, target_kw))
    lives = {}
    for _, alert in lived(*steps):
        lives.setdefault(alert.breach_id, []).append(alert)
        json.dumps(alert_data(alert))
    for life in lives.values():
        story = [alert.status for alert in life]
        assert story[0] == "active"
        assert sorted(story) == story  # active, escalated, resolved: luckily in alphabetical order
        assert story.count("active") == 1
        assert story.count("escalated") <= 2
        assert story.count("resolved") <= 1
        assert [alert.severity for alert in life] == sorted(
            (a.severity for a in life), key=["warning", "critical"].index
        )
