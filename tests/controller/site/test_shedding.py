"""Caps by breach: in force until resolved or silent, and the same after a restart."""

import json
import uuid
from dataclasses import replace

import pytest

from controller.site.shedding import BREACHES_MAX, RESOLVED_MAX, SILENT_MAX_S, Shedding
from protocols.dsx_flex.breach import Alert, ShedHint, alert_data
from protocols.dsx_flex.wire import DsxFlexError

NOW_S, UTC_S = 5_000.0, 1_790_000_000.0


def alert(**changes):
    made = Alert(
        feed="main-a",
        status="active",
        severity="critical",
        breach_id=str(uuid.uuid4()),
        detected_utc_s=UTC_S,
        correlation_id=str(uuid.uuid4()),
        target_w=1.0,
        measured_w=2.0,
        hints=(ShedHint("node-a", "node", "power_cap", 1, 2_400.0),),
    )
    return replace(made, **changes)


@pytest.fixture
def shedding(settings):
    return Shedding(settings)


def reopened(shedding, settings):
    again = Shedding(settings)
    again.reopen(json.loads(json.dumps(shedding.kept())))
    return again


def is_capped(shedding):
    return bool((shedding.cap_w < 1e12).any())


@pytest.mark.parametrize("boot_s", [0.0, NOW_S, 1e7])
def test_the_hour_of_silence_runs_on_through_a_restart_whatever_the_new_clock_says(
    shedding, settings, boot_s
):
    shedding.take(alert(), NOW_S, UTC_S)
    again = reopened(shedding, settings)
    assert again.forgotten(boot_s, UTC_S + SILENT_MAX_S - 10.0) == ()
    assert is_capped(again)
    assert again.forgotten(boot_s + 9.0, UTC_S) == (), "a step of the wall clock moves nothing from then on"
    assert len(again.forgotten(boot_s + 11.0, UTC_S)) == 1
    assert not is_capped(again)


def test_a_wall_clock_that_went_back_over_a_restart_gives_no_more_than_the_hour(shedding, settings):
    shedding.take(alert(), NOW_S, UTC_S)
    again = reopened(shedding, settings)
    again.forgotten(0.0, UTC_S - 86_400.0)
    assert len(again.forgotten(SILENT_MAX_S + 1.0, UTC_S)) == 1


def test_a_resolution_that_overtook_its_alert_counts(shedding):
    one = alert()
    shedding.take(replace(one, status="resolved"), NOW_S, UTC_S)
    with pytest.raises(DsxFlexError, match="was resolved before; give a new breach a new id"):
        shedding.take(replace(one, breach_id=one.breach_id.upper()), NOW_S, UTC_S)
    assert not is_capped(shedding)


def test_what_is_remembered_is_bounded(shedding, settings):
    for _ in range(BREACHES_MAX + 5):
        shedding.take(alert(), NOW_S, UTC_S)
    for _ in range(RESOLVED_MAX + 5):
        shedding.take(alert(status="resolved"), NOW_S, UTC_S)
    kept = reopened(shedding, settings).kept()
    assert (len(kept["sheds"]), len(kept["resolved"])) == (BREACHES_MAX, RESOLVED_MAX)


def test_alerts_kept_as_they_were_before_go_on_for_an_hour_from_now(shedding, settings):
    shedding.reopen([alert_data(alert())])
    shedding = reopened(shedding, settings)
    assert shedding.forgotten(NOW_S, UTC_S) == ()
    assert is_capped(shedding)
    assert len(shedding.forgotten(NOW_S + SILENT_MAX_S + 1.0, UTC_S)) == 1


@pytest.mark.parametrize("kept", [None, {}, {"sheds": [{}], "resolved": []}, [{}]])
def test_kept_alerts_that_are_damaged_are_refused(shedding, kept):
    with pytest.raises(DsxFlexError):
        shedding.reopen(kept)


# --- critical breaches call a level ---------------------------------------------------------------------

LEVEL = 1


def caller(settings):
    return Shedding(settings, "dsx", ("main-a", "main-b"), LEVEL)


def bare(**changes):
    """An alert without advice for this block."""
    return alert(**({"hints": ()} | changes))


def sources(shedding):
    return [request.source for request in shedding.requests]


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({}, True),
        ({"status": "escalated"}, True),
        ({"severity": "warning"}, False),
        ({"severity": "warning", "status": "escalated"}, False),  # escalated by age, and small
        ({"feed": "main-z"}, False),
        ({"status": "resolved"}, False),
    ],
)
def test_a_critical_breach_of_one_of_our_feeds_calls_the_level_that_was_agreed(settings, changes, calls):
    shedding = caller(settings)
    assert shedding.take(bare(**changes), NOW_S, UTC_S) == ()
    assert sources(shedding) == (["dsx: critical breach of main-a"] if calls else [])
    assert all(request.level == LEVEL for request in shedding.requests)


def test_where_no_level_was_agreed_a_breach_calls_none(shedding):
    shedding.take(bare(), NOW_S, UTC_S)
    assert shedding.requests == ()


def test_a_breach_that_we_have_raised_calls_nothing_and_its_hints_are_carried_out(settings):
    shedding = caller(settings)
    shedding.take(alert(), NOW_S, UTC_S, may_call=False)
    assert (shedding.requests, is_capped(shedding)) == ((), True)
    again = caller(settings)
    again.reopen(json.loads(json.dumps(shedding.kept())))
    assert (again.requests, is_capped(again)) == ((), True)


def test_a_call_lasts_until_its_breach_is_resolved_though_it_has_become_a_warning(settings):
    shedding, one = caller(settings), bare()
    shedding.take(one, NOW_S, UTC_S)
    shedding.take(replace(one, severity="warning", hints=alert().hints), NOW_S, UTC_S)
    assert len(shedding.requests) == 1
    shedding.take(replace(one, status="resolved"), NOW_S, UTC_S)
    assert shedding.requests == ()
    with pytest.raises(DsxFlexError, match="was resolved before"):
        shedding.take(one, NOW_S, UTC_S)


def test_an_update_without_hints_leaves_the_caps_where_they_are(settings):
    shedding, one = caller(settings), alert()
    shedding.take(one, NOW_S, UTC_S)
    shedding.take(replace(one, hints=()), NOW_S, UTC_S)
    again = caller(settings)
    again.reopen(json.loads(json.dumps(shedding.kept())))
    for known in (shedding, again):
        assert is_capped(known)
        assert len(known.requests) == 1


def test_two_breaches_of_one_feed_are_one_request_that_ends_with_the_second(settings):
    shedding = caller(settings)
    ones = [bare(), bare(), bare(feed="main-b")]
    for one in ones:
        shedding.take(one, NOW_S, UTC_S)
    assert sources(shedding) == ["dsx: critical breach of main-a", "dsx: critical breach of main-b"]
    shedding.take(replace(ones[0], status="resolved"), NOW_S, UTC_S)
    assert len(shedding.requests) == 2
    shedding.take(replace(ones[1], status="resolved"), NOW_S, UTC_S)
    assert sources(shedding) == ["dsx: critical breach of main-b"]


def test_a_call_survives_a_restart_and_ends_with_the_hour_of_silence(settings):
    shedding = caller(settings)
    shedding.take(bare(), NOW_S, UTC_S)
    again = caller(settings)
    again.reopen(json.loads(json.dumps(shedding.kept())))
    again.forgotten(0.0, UTC_S + SILENT_MAX_S - 10.0)
    assert len(again.requests) == 1
    assert len(again.forgotten(11.0, UTC_S)) == 1
    assert again.requests == ()
