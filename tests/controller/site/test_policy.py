"""What a signal means here: every payload type and every agreement, as a table."""

from dataclasses import replace

import pytest

from controller.config import load_block
from controller.core import schedule
from controller.core.model import NO_LIMIT_W, Ramp
from controller.site.policy import ACTS, FALLBACK_PRIORITY, PLAIN, Way, Ways, acted_on, policy_of
from protocols.dsx_flex import load_target
from protocols.openadr import FOREVER_UTC_S, TYPES, Window

AGREED = {
    "site.meanings": {
        "nominal_kw": 12,
        "offset_step_kw": 0.5,
        "levels_kw": [11, 10, 9],
        "alerts_kw": {"ALERT_GRID_EMERGENCY": 8, "ALERT_BLACK_START": 7.5, "ALERT_POSSIBLE_OUTAGE": 11},
        "price_kw": [{"above": 0.3, "kw": 11}, {"above": 0.6, "kw": 9}],
        "carbon_kw": [{"above": 400, "kw": 10}],
    }
}
START, END = 1_000.0, 2_000.0


def window(payload_type, value=1.0, *, event_id="e", starts=START, ends=END, priority=5):
    return Window(event_id, payload_type, value, starts, ends, priority, 0, 0.0)


@pytest.fixture
def policy(block_with):
    config = load_block(block_with(AGREED))
    return policy_of(config, config.site.sources[0])


@pytest.mark.parametrize(
    ("payload_type", "value", "limit_w"),
    [
        ("IMPORT_CAPACITY_LIMIT", 9_500.0, 9_500.0),
        ("IMPORT_CAPACITY_SUBSCRIPTION", 13_000.0, 13_000.0),
        ("DISPATCH_SETPOINT", 8_000.0, 8_000.0),
        ("DISPATCH_SETPOINT_RELATIVE", -3_000.0, 9_000.0),
        ("DISPATCH_SETPOINT_RELATIVE", 1_000.0, 13_000.0),
        ("DISPATCH_SETPOINT_RELATIVE", -99_000.0, 0.0),
        ("CONTROL_LEVEL_OFFSET", -4.0, 10_000.0),
        ("CONTROL_LEVEL_OFFSET", 0.0, 12_000.0),
        ("CONTROL_LEVEL_OFFSET_PERCENT", -0.25, 9_000.0),
        ("SIMPLE", 0.0, NO_LIMIT_W),
        ("SIMPLE", 1.0, 11_000.0),
        ("SIMPLE", 3.0, 9_000.0),
        ("ALERT_GRID_EMERGENCY", 1.0, 8_000.0),
        ("ALERT_BLACK_START", 1.0, 7_500.0),
        ("ALERT_POSSIBLE_OUTAGE", 1.0, 11_000.0),
        ("PRICE", 0.3, NO_LIMIT_W),
        ("PRICE", 0.31, 11_000.0),
        ("PRICE", 7.0, 9_000.0),
        ("GHG", 401.0, 10_000.0),
    ],
)
def test_every_payload_becomes_the_limit_that_was_agreed(policy, payload_type, value, limit_w):
    setpoint = policy.of_openadr(window(payload_type, value))
    assert setpoint.limit_w == pytest.approx(limit_w)
    assert (setpoint.starts_utc_s, setpoint.ends_utc_s) == (START, END)


def test_everything_that_the_standard_lets_move_power_has_an_act():
    assert set(ACTS) == set(TYPES) - {"EXPORT_PRICE"}


def test_what_was_not_agreed_is_not_acted_on():
    plain = {
        "IMPORT_CAPACITY_LIMIT",
        "IMPORT_CAPACITY_SUBSCRIPTION",
        "IMPORT_CAPACITY_RESERVATION",
        "DISPATCH_SETPOINT",
    }
    assert PLAIN.acts_on == plain


def test_types_replace_each_other_only_where_the_standard_says_so(policy):
    kinds = {name: policy.of_openadr(window(name)).kind for name in ACTS}
    assert kinds.pop("IMPORT_CAPACITY_SUBSCRIPTION") == kinds.pop("IMPORT_CAPACITY_RESERVATION") == "limit"
    assert len(set(kinds.values())) == len(kinds)


def test_subscribed_capacity_yields_to_any_import_limit(policy):
    limit = policy.of_openadr(window("IMPORT_CAPACITY_LIMIT", 13_500.0, priority=2**31 - 1))
    fallback = policy.of_openadr(window("IMPORT_CAPACITY_SUBSCRIPTION", 13_000.0, priority=0))
    assert fallback.kind == limit.kind
    assert fallback.priority >= FALLBACK_PRIORITY > limit.priority


def test_reserved_capacity_counts_on_top_of_the_subscribed_while_it_lasts():
    windows = (
        window("IMPORT_CAPACITY_SUBSCRIPTION", 10_000.0, ends=FOREVER_UTC_S),
        window("IMPORT_CAPACITY_RESERVATION", 2_000.0, event_id="r", starts=1_500.0, ends=1_800.0),
        window("IMPORT_CAPACITY_RESERVATION", 500.0, event_id="before", starts=0.0, ends=500.0),
        window("IMPORT_CAPACITY_LIMIT", 9_000.0, starts=1_100.0),
    )
    found = [
        (one.type, one.value, one.starts_utc_s, one.ends_utc_s) for one in acted_on(windows, PLAIN.acts_on)
    ]
    assert found == [
        ("IMPORT_CAPACITY_SUBSCRIPTION", 10_000.0, START, 1_500.0),
        ("IMPORT_CAPACITY_LIMIT", 9_000.0, 1_100.0, END),
        ("IMPORT_CAPACITY_SUBSCRIPTION", 12_000.0, 1_500.0, 1_800.0),
        ("IMPORT_CAPACITY_SUBSCRIPTION", 10_000.0, 1_800.0, FOREVER_UTC_S),
    ]


def test_a_year_of_reservations_is_added_up_in_no_time():
    hours = [
        window("IMPORT_CAPACITY_RESERVATION", 1.0 + n % 2, starts=3600.0 * n, ends=3600.0 * (n + 1))
        for n in range(8760)
    ]
    subscribed = window("IMPORT_CAPACITY_SUBSCRIPTION", 10.0, starts=0.0, ends=FOREVER_UTC_S)
    assert len(acted_on((subscribed, *hours), PLAIN.acts_on)) == 8761


URGENT = {"site.sources.0.urgent_ramp": {"down_kw_per_s": 3, "up_kw_per_s": 0.2, "arrive_at_start": True}}


@pytest.mark.parametrize(
    ("payload_type", "value", "urgent"),
    [
        ("ALERT_GRID_EMERGENCY", 1.0, True),
        ("SIMPLE", 3.0, True),
        ("SIMPLE", 2.0, False),
        ("IMPORT_CAPACITY_LIMIT", 9_000.0, False),
    ],
)
def test_alerts_and_the_highest_level_take_the_urgent_ramp(block_with, payload_type, value, urgent):
    config = load_block(block_with(AGREED | URGENT | {"site.ramp_margin_ratio": 0.0}))
    setpoint = policy_of(config, config.site.sources[0]).of_openadr(window(payload_type, value))
    assert setpoint.ramp == (Ramp(3_000.0, 200.0) if urgent else None)
    assert setpoint.arrive_at_start is urgent


def test_recovery_is_spread_by_a_draw_that_a_restart_repeats(policy):
    way = Way(None, False, 60.0)
    spread = replace(policy, ways=Ways(way, way))
    ends = [spread.of_openadr(window("SIMPLE", event_id=f"e{n}")).ends_utc_s - END for n in range(200)]
    assert ends == [
        spread.of_openadr(window("SIMPLE", event_id=f"e{n}")).ends_utc_s - END for n in range(200)
    ]
    assert 0.0 <= min(ends) < 5.0
    assert 55.0 < max(ends) <= 60.0
    other = replace(spread, block="another")
    assert other.of_openadr(window("SIMPLE", event_id="e0")).ends_utc_s - END != ends[0]
    forever = window("SIMPLE", ends=FOREVER_UTC_S)
    assert spread.of_openadr(forever).ends_utc_s == FOREVER_UTC_S


def target(limit_w, feed="main-a", *, best_effort=False):
    return load_target.Window(feed, limit_w, START, END, best_effort, 7, "//grid/v1/isv/i", "m", "c")


def test_a_target_on_one_feed_bounds_the_block_by_the_share_it_carries(policy):
    shared = replace(policy, feeds={"main-a": 0.5, "main-b": 0.5})
    setpoint = shared.of_dsx(target(5_000.0))
    assert (setpoint.limit_w, setpoint.kind, setpoint.id) == (10_000.0, "feed main-a", "c")


def test_best_effort_leaves_every_tier_its_floor(policy):
    single = replace(policy, feeds={"main-a": 1.0})
    assert single.floors_w == pytest.approx(5_000.0 + 1.06 * 8 * (250.0 + 500.0))
    assert single.of_dsx(target(1_000.0, best_effort=True)).limit_w == single.floors_w
    assert single.of_dsx(target(1_000.0)).limit_w == 1_000.0
    assert single.of_dsx(target(13_000.0, best_effort=True)).limit_w == 13_000.0


def test_capacity_that_overlaps_a_thousandfold_is_added_up_as_fast():
    """Each span has the winner of all that are open; spans in which nothing changes are one."""
    many = [
        window(
            "IMPORT_CAPACITY_SUBSCRIPTION", 10_000.0 - n, event_id=f"s{n}", starts=float(n), ends=9_000.0 + n
        )
        for n in range(3000)
    ]
    found = acted_on(tuple(many), PLAIN.acts_on)
    assert [one.value for one in found] == [10_000.0 - n for n in range(3000)]
    assert (found[0].starts_utc_s, found[-1].ends_utc_s) == (0.0, 9_000.0 + 2999)


def test_a_slow_ramp_lets_the_law_see_further_ahead(block_with):
    slow = {"site.ramp.down_kw_per_s": 0.001}
    config = load_block(block_with(slow))
    assert policy_of(config, config.site.sources[0]).horizon_s > 14_000.0


# --- alerts that call a level of shedding ---------------------------------------------------------------

SHED = {
    "levels": [{"name": "gentle", "kw": 10.0}, {"name": "deep", "kw": 8.6}],
    "alerts": {"ALERT_GRID_EMERGENCY": "deep", "ALERT_BLACK_START": "gentle"},
}


@pytest.mark.parametrize(
    ("payload_type", "level", "limit_w"),
    [
        ("ALERT_GRID_EMERGENCY", 1, 8_600.0),
        ("ALERT_BLACK_START", 0, 10_000.0),
        ("IMPORT_CAPACITY_LIMIT", -1, 1.0),
    ],
)
def test_an_alert_calls_the_level_that_was_agreed_for_it_and_nothing_else_does(
    block_with, payload_type, level, limit_w
):
    config = load_block(block_with({"shed": SHED}))
    policy = policy_of(config, config.site.sources[0])
    setpoint = policy.of_openadr(window(payload_type))
    assert (setpoint.shed_level, setpoint.limit_w) == (level, limit_w)
    assert "ALERT_POSSIBLE_OUTAGE" not in policy.acts_on, "no level and no power was agreed for it"
    assert policy.breach_level == -1


def test_an_alert_that_calls_is_no_limit_of_its_own_and_opens_and_ends_with_its_window(block_with):
    config = load_block(block_with({"shed": SHED}))
    alert = policy_of(config, config.site.sources[0]).of_openadr(window("ALERT_GRID_EMERGENCY"))
    running, ended = (), frozenset()
    for now_s, calls in ((0.0, 0), (START, 1), (END - 1.0, 1), (END, 0)):
        running, ended = schedule.open_windows(running, ended, (alert,), now_s, now_s)
        assert [one.level for one in schedule.called(running)] == [1] * calls
        way = {"now_utc_s": now_s, "lead_s": 0.0, "ramp": Ramp(1.0, 1.0)}
        assert list(schedule.limits(running, ended, (alert,), **way)) == []


def test_a_critical_breach_has_its_level(block_with):
    config = load_block(block_with({"shed": SHED | {"critical_breach": "deep"}}))
    assert policy_of(config, config.site.sources[0]).breach_level == 1
