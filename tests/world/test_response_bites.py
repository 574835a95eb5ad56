"""What promise 11 says of frequency response, and what is said of BMCs: for each part a law that breaks it, caught."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from controller.core import frequency, law, ledger, watch
from controller.core.frequency_model import Phase
from controller.core.model import NEVER_S
from tests.world.bmc import Bmcs
from tests.world.grid import Dip
from tests.world.response import Broken, wanted
from tests.world.world import World, run

SEEDS = range(50_000, 50_080)
EARLY_SEED = 50_000  # Nordic short support, armed after some seconds
QUICK_SEED = 50_003  # back before it is armed again


def caught(broken_law=law, seeds=SEEDS) -> str:
    """The first broken promise 11, in words; promises that break with it are not what is asked for."""
    for seed in seeds:
        world = World(seed, broken_law)
        if world.grid is None:
            continue
        try:
            world.run()
        except Broken as broken:
            if broken.number == 11:
                return str(broken)
    return "nothing"


def stepping(monkeypatch, change):
    """The real response, edited after each step: `change(settings, before, after)`."""
    honest = frequency.step

    def step(settings, state, *args):
        return change(settings, state, honest(settings, state, *args))

    monkeypatch.setattr(frequency, "step", step)


def test_the_worlds_have_what_is_judged():
    """Every kind of product, activated; and hosts that count at what their BMC has proven."""
    products, acted, delivered, measured, proven, proven_and_silent = set(), 0, 0, 0, 0, 0
    for seed in range(50_000, 50_016):
        world = run(seed)
        if world.grid is not None:
            products.add(world.settings.frequency.product)
            acted += world.checkers.response.acted
            delivered += world.checkers.response.delivered > 0
            measured += world.checkers.response.measured > 0
        if world.bmcs is not None:
            proven += world.bmcs.proofs > 0
            proven_and_silent += world.bmcs.counted > 0
    assert len(products) >= 5
    assert acted >= 6
    assert delivered >= 2
    assert measured >= 2
    assert proven >= 4
    assert proven_and_silent >= 2


def test_a_response_of_half_of_what_was_committed(monkeypatch):
    honest = frequency.limit

    def half(settings, state):
        found = honest(settings, state)
        if found is None:
            return None
        return type(found)((found.power_w + state.baseline_w) / 2, found.source, found.protection, found.ramp)

    monkeypatch.setattr(frequency, "limit", half)
    assert "are asked" in caught()


def test_a_limit_that_is_not_obeyed():
    def tick(settings, state, snapshot):
        decision = law.tick(settings, state, snapshot)
        kept = tuple(one for one in decision.limits if not one.source.startswith("frequency"))
        return decision._replace(limits=kept, binding=min(kept, key=lambda one: one.power_w))

    assert "states None" in caught(SimpleNamespace(start=law.start, tick=tick))


def test_a_response_that_waits_for_the_comfort_ramp(monkeypatch):
    honest = frequency.limit

    def gentle(settings, state):
        found = honest(settings, state)
        return None if found is None else type(found)(found.power_w, found.source, False, found.ramp)

    monkeypatch.setattr(frequency, "limit", gentle)
    assert "is stated" in caught()


def test_a_response_that_comes_too_late(monkeypatch):
    monkeypatch.setattr(frequency, "_is_due", lambda _, state, now_s: now_s - state.crossed_at_s >= 1.0)
    assert "of it wanted for" in caught()


def test_a_response_that_never_arms_again(monkeypatch):
    def stuck(_settings, before, after):
        stays = before.phase is Phase.WAITING and before.activations > 0
        return after._replace(phase=Phase.WAITING) if stays else after

    stepping(monkeypatch, stuck)
    assert "not armed for" in caught()


def test_a_spike_that_is_believed(monkeypatch):
    monkeypatch.setattr(frequency, "SAMPLES_MIN", 1)
    monkeypatch.setattr(frequency, "_believed", lambda *_: True)
    monkeypatch.setattr(frequency, "_trail", lambda _samples, sample, _hold_s: (sample,))
    monkeypatch.setattr(
        frequency,
        "_seen",
        lambda settings, heard, _now_s: (
            frequency._Seen(
                *(frequency.share(settings, heard.samples[-1].hz),) * 2, heard.samples[-1].at_s, 0.0
            )
            if heard.samples
            else None
        ),
    )
    assert "activated, and the frequency was never below" in caught()


def test_a_sample_of_long_ago_that_is_believed(monkeypatch):
    honest = frequency._hear

    def hear(settings, heard, hz, now_s):
        fresh = type(hz)(hz.value, hz.good, now_s)
        return honest(settings, heard, fresh, now_s)

    monkeypatch.setattr(frequency, "_hear", hear)
    world = World(EARLY_SEED)
    world.timeline = [(14.8, "frequency silent", 1.5), (16.4, "frequency late", 3.0)]
    world.grid.dips = (Dip(15.0, 0.6, 0.3, 0.7, 0.2),)
    with pytest.raises(Broken, match="was never below"):
        world.run()


def test_a_response_that_does_not_hold(monkeypatch):
    def hasty(settings, before, after):
        over = after.phase is Phase.ACTIVE and settings.steps and after.at_s - after.raised_at_s > 1.0
        return after._replace(phase=Phase.RECOVERING) if over and before.share > 0.0 else after

    stepping(monkeypatch, hasty)
    assert "fell from" in caught()


def test_a_response_that_comes_back_at_once(monkeypatch):
    honest = frequency._fallen
    monkeypatch.setattr(
        frequency, "_fallen", lambda settings, state, target, _: honest(settings, state, target, 1e9)
    )
    assert "limit rose" in caught()


def test_a_restart_that_forgets_what_was_held():
    """The site says the first word after it, and lifts what it never asked for."""

    def start(settings, now_s, carried=None, running=()):
        if carried is not None:
            carried = replace(carried, source="of before", response=None)
        return law.start(settings, now_s, carried, running)

    assert "limit rose" in caught(SimpleNamespace(start=start, tick=law.tick))


def test_activations_in_quick_succession(monkeypatch):
    stepping(monkeypatch, lambda _settings, _before, after: after._replace(ready_from_s=NEVER_S))
    world = World(QUICK_SEED)
    world.timeline = []
    world.grid.dips = (Dip(10.0, 0.6, 0.3, 0.5, 0.2), Dip(17.5, 0.6, 0.3, 0.5, 0.2))
    with pytest.raises(Broken, match="activated twice"):
        world.run()


def test_a_baseline_that_nobody_drew(monkeypatch):
    def generous(_settings, before, after):
        began = after.activations > before.activations
        return after._replace(baseline_w=1.15 * after.baseline_w) if began else after

    stepping(monkeypatch, generous)
    assert "baseline" in caught()


def following(monkeypatch, change):
    """A law that states all limits as they are, and follows others: `change(limits, settings, its own decision)`."""
    honest = law._limits

    def tick(settings, state, snapshot):
        decision = law.tick(settings, state, snapshot)
        others = change(decision.limits, settings, decision)
        monkeypatch.setattr(law, "_limits", lambda *_args, **_given: iter(others))
        try:
            blind = law.tick(settings, state, snapshot)
        finally:
            monkeypatch.setattr(law, "_limits", honest)
        return blind._replace(limits=decision.limits, binding=decision.binding)

    return SimpleNamespace(start=law.start, tick=tick)


def test_gpus_that_do_not_follow(monkeypatch):
    """The limit is stated and named, and what goes out knows nothing of it."""

    def without(limits, _settings, _decision):
        return [one for one in limits if not one.source.startswith("frequency")]

    said = caught(following(monkeypatch, without))
    assert "budget" in said or "were asked" in said


def test_a_response_of_more_than_what_was_committed(monkeypatch):
    def generous(_settings, before, after):
        return after._replace(share=1.55 * after.share) if after.share > before.share else after

    stepping(monkeypatch, generous)
    assert "wanted at most" in caught()


def test_gpus_that_give_more_than_is_asked(monkeypatch):
    """The limit is right, and what goes out is 155 % of it: nothing but the meter shows it."""

    def deeper(limits, settings, decision):
        more_w = (
            0.55 * decision.state.frequency.share * settings.frequency.committed_w
            if settings.frequency
            else 0.0
        )
        return [
            replace(one, power_w=one.power_w - more_w) if one.source.startswith("frequency") else one
            for one in limits
        ]

    assert "more are given" in caught(following(monkeypatch, deeper))


def test_a_commitment_that_cannot_be_kept_and_is_not_said(monkeypatch):
    monkeypatch.setattr(watch, "_commitment", lambda *_: iter(()))
    assert "without an alarm" in caught()


# --- BMCs ---------------------------------------------------------------------------------------------


def broken_by_bmcs(fault: str) -> int | None:
    """Which promise breaks in the end, when nothing happens but this."""
    for seed in range(50_000, 50_030):
        world = World(seed)
        if world.bmcs is None:
            continue
        world.timeline = [(8.0, fault, 24.0)]
        try:
            world.run()
        except Broken as broken:
            return broken.number
    return None


def test_a_proof_that_never_grows_old(monkeypatch):
    honest = Bmcs.proven
    monkeypatch.setattr(Bmcs, "proven", lambda bmcs, _now_s: honest(bmcs, 0.0))
    assert broken_by_bmcs("held host reboots") == 1


def test_a_cap_that_counts_before_it_is_seen(monkeypatch):
    honest = Bmcs._read

    def hopeful(bmcs, bmc, now_s):
        return [replace(lever, setpoint_w=300.0) for lever in honest(bmcs, bmc, now_s)]

    monkeypatch.setattr(Bmcs, "_read", hopeful)
    assert broken_by_bmcs("bmc ignores") == 1


def test_a_silent_host_that_counts_at_its_cap_without_any_proof(monkeypatch):
    honest = ledger.take_in

    def take_in(settings, orders, gpus, seen_at_s, *more, **given):
        orders, standing = honest(settings, orders, gpus, seen_at_s, *more, **given)
        silent = more[-1] - seen_at_s > 5.0
        return orders, standing._replace(held_w=np.where(silent, 300.0, standing.held_w))

    monkeypatch.setattr(ledger, "take_in", take_in)
    assert broken_by_bmcs("bmc dead") == 1


@pytest.mark.parametrize(
    ("hz", "share"), [(50.0, 0.0), (49.985, 0.0), (49.8, 0.05), (49.65, 0.525), (49.5, 1.0), (49.0, 1.0)]
)
def test_the_plain_reading_of_a_droop_is_the_one_that_was_sold(hz, share):
    product = SimpleNamespace(steps=(), droop=((49.985, 0.0), (49.8, 0.05), (49.5, 1.0)))
    assert wanted(product, hz) == pytest.approx(share)
