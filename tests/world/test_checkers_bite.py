"""A checker that cannot fail is worth nothing: for each promise, a law that breaks it, and is caught."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from controller.agent import lease as leases
from controller.core import base_load, failsafe, law, ledger, ramp, schedule, sharing, watch
from controller.core.model import FOREVER_S, Limit, Mode, Running
from tests.world.checkers import Broken
from tests.world.world import run

SEEDS = range(60)  # histories within which a broken law must be caught


def caught(broken_law=law, seeds=SEEDS):
    """Number of the promise that is first found broken."""
    for seed in seeds:
        try:
            run(seed, broken_law)
        except Broken as broken:
            return broken.number
    return None


def edited(**changes):
    """The real law, with its decisions edited on the way out."""

    def tick(settings, state, snapshot):
        decision = law.tick(settings, state, snapshot)
        return decision._replace(**{name: edit(decision) for name, edit in changes.items()})

    return SimpleNamespace(start=law.start, tick=tick)


def test_1_rises_before_the_cuts_they_live_on_are_confirmed(monkeypatch):
    honest = ledger.take_in

    def hasty(*args, **given):
        orders, standing = honest(*args, **given)
        return orders, standing._replace(held_w=orders.limits_w[-1].copy())

    monkeypatch.setattr(ledger, "take_in", hasty)
    assert caught() == 1


def test_1_a_silent_node_forgotten(monkeypatch):
    honest = ledger.take_in

    def forgetful(settings, orders, gpus, seen_at_s, *more, **given):
        orders, standing = honest(settings, orders, gpus, seen_at_s, *more, **given)
        return orders, standing._replace(held_w=np.where(more[-1] - seen_at_s > 1.0, 0.0, standing.held_w))

    monkeypatch.setattr(ledger, "take_in", forgetful)
    assert caught() == 1


def test_1_racks_that_forget_their_inlets(monkeypatch):
    monkeypatch.setattr(sharing, "rack_budget_w", lambda settings, *_: np.full(2, 1e9))
    monkeypatch.setattr(watch, "_instruments", lambda *_: iter(()))
    assert caught() == 1


def test_1_a_gpu_that_disobeys_is_not_counted(monkeypatch):
    monkeypatch.setattr(watch, "disobedience_w", lambda excess_w, _held_w: np.zeros(len(excess_w)))
    monkeypatch.setattr(watch, "_gpus", lambda *_: iter(()))
    assert caught() in (1, 6)


def test_2_the_highest_limit_binds_instead_of_the_lowest(monkeypatch):
    monkeypatch.setattr(ramp, "power_w", lambda limit: -limit.power_w)
    assert caught() == 2


def test_2_a_limit_without_a_name():
    assert caught(edited(binding=lambda decision: Limit(decision.binding.power_w, ""))) == 2


def test_3_an_old_measurement_believed_for_ever(monkeypatch):
    monkeypatch.setattr(base_load, "upper_w", lambda _settings, base, _now_s: base.upper_w)
    assert caught() == 3


def test_4_a_difference_of_two_moments(monkeypatch):
    def careless(settings, base, chosen):
        newest_w = float(base.gpu_rack_w[-1].sum())
        return float(base.meter_w[-1]) - settings.block_w_per_gpu_w * newest_w

    monkeypatch.setattr(base_load, "_rest_w", careless)
    assert caught() == 4


@pytest.mark.parametrize("rate", ["up_w_per_s", "down_w_per_s"])
def test_5_a_budget_that_does_not_ramp(monkeypatch, rate):
    honest = ramp.step

    def hasty(pace, limits, **given):
        steep = given["ramp"]._replace(**{rate: 1e9})
        limits = tuple(limit if limit.ramp is None else replace(limit, ramp=steep) for limit in limits)
        return honest(pace, limits, **{**given, "ramp": steep})

    monkeypatch.setattr(ramp, "step", hasty)
    assert caught() == 5


def test_5_power_that_a_fault_took_comes_back_at_once(monkeypatch):
    monkeypatch.setattr(sharing, "_lift", lambda shares, *_: (1e9, shares.sums))
    assert caught(seeds=range(10, 60)) == 5


def test_5_limits_to_be_met_at_their_start_begin_to_ramp_then(monkeypatch):
    honest = schedule.limits

    def late(running, _ended, _setpoints, **given):
        return honest(running, frozenset(), (), **given)

    monkeypatch.setattr(schedule, "limits", late)
    assert caught(seeds=range(200)) == 5


def test_6_silence_about_what_cannot_be_shed():
    assert caught(edited(shortfall_w=lambda _: 0.0)) == 1  # the truth is above what was promised and said


def test_6_a_law_without_alarms():
    assert caught(edited(alarms=lambda _: ())) == 6


def test_7_windows_that_end_by_the_wall_clock(monkeypatch):
    def by_the_wall(_running, _ended, setpoints, now_s, now_utc_s):
        opened = (s for s in setpoints if s.starts_utc_s <= now_utc_s < s.ends_utc_s)
        return tuple(Running(s, FOREVER_S) for s in opened), frozenset()

    monkeypatch.setattr(schedule, "open_windows", by_the_wall)
    assert caught() == 7


def test_8_no_failsafe_limit_before_the_site_has_spoken(monkeypatch):
    monkeypatch.setattr(failsafe, "limit", lambda *_: None)
    assert caught() == 8


def test_8_a_heartbeat_that_counts_as_a_statement(monkeypatch):
    honest = failsafe.step

    def hasty(settings, link, contact, now_s, *, limited):
        stated = contact._replace(plan_at_s=contact.heartbeat_at_s)
        return honest(settings, link, stated, now_s, limited=limited)

    monkeypatch.setattr(failsafe, "step", hasty)
    assert caught(seeds=range(200)) == 8


def test_8_a_restart_that_forgets_what_bound_before():
    forgetful = SimpleNamespace(start=lambda settings, now_s, *_: law.start(settings, now_s), tick=law.tick)
    assert caught(forgetful) in (7, 8)


def test_9_a_lease_that_never_runs_out(monkeypatch):
    monkeypatch.setattr(leases, "beat", lambda _settings, lease, *_: lease)
    assert caught() == 9


def test_10_a_block_that_never_comes_back_from_failsafe(monkeypatch):
    stuck = {key: mode for key, mode in failsafe.TRANSITIONS.items() if key[0] is not Mode.FAILSAFE}
    monkeypatch.setattr(failsafe, "TRANSITIONS", stuck)
    assert caught() == 10


@pytest.mark.parametrize("speed", [0.0, 0.02])
def test_10_a_budget_that_does_not_come_back_at_the_agreed_rate(monkeypatch, speed):
    honest = ramp.step
    monkeypatch.setattr(
        ramp,
        "step",
        lambda pace, limits, **given: honest(
            pace,
            limits,
            **{**given, "ramp": given["ramp"]._replace(up_w_per_s=speed * given["ramp"].up_w_per_s)},
        ),
    )
    assert caught(seeds=range(20)) == 10


def test_10_a_base_load_that_stays_assumed(monkeypatch):
    monkeypatch.setattr(base_load, "upper_w", lambda settings, *_: settings.base_max_w)
    assert caught(seeds=range(5)) == 10


def test_10_racks_that_never_get_what_their_inlets_carry(monkeypatch):
    honest = sharing.rack_budget_w
    monkeypatch.setattr(sharing, "rack_budget_w", lambda *given: 0.3 * honest(*given))
    monkeypatch.setattr(watch, "_instruments", lambda *_: iter(()))  # an alarm would tell on it
    assert caught(seeds=range(5)) == 10


def test_10_a_limit_that_nothing_in_the_world_asks_for(monkeypatch):
    honest = law._limits

    def haunted(settings, *args, **given):
        yield from honest(settings, *args, **given)
        yield Limit(0.55 * settings.feed_rating_w, "cooling capacity", protection=True)

    monkeypatch.setattr(law, "_limits", haunted)
    assert caught(seeds=range(5)) == 10


def test_10_alarms_that_never_end(monkeypatch):
    honest = watch.look

    def sticky(settings, before, *args):
        watched = honest(settings, before, *args)
        standing = {alarm.key: alarm for alarm in (*before.alarms, *watched.alarms)}
        return watched._replace(alarms=tuple(standing.values()))

    monkeypatch.setattr(watch, "look", sticky)
    assert caught(seeds=range(5)) == 10


def test_8_a_second_source_whose_silence_means_nothing(monkeypatch):
    honest = law._links

    def one_is_enough(settings, before, snapshot, running):
        first = honest(settings, before, snapshot, running)[0]
        return (first,) * len(settings.failsafes)

    monkeypatch.setattr(law, "_links", one_is_enough)
    assert caught(seeds=range(100)) == 8
