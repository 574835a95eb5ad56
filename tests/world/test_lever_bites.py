"""Ceilings and floors: for each way to break what was promised about them, it is broken, and caught."""

from dataclasses import replace

import numpy as np

from controller.agent import lease as leases
from controller.core import clocks
from controller.gpu_levers import Levers
from tests.world.test_checkers_bite import caught

FROM, LATER = 70_000, 70_030


def test_10_ceilings_that_the_law_never_takes_away(monkeypatch):
    honest = clocks.step

    def sticky(settings, before, gpus, ratio, now_s):
        return honest(settings, before, gpus, min(before.ratio, ratio), now_s)

    monkeypatch.setattr(clocks, "step", sticky)
    assert caught(seeds=range(FROM, FROM + 60)) == 10


def test_10_ceilings_that_agents_never_take_away(monkeypatch):
    honest = leases.due_clocks
    monkeypatch.setattr(
        leases, "due_clocks", lambda *given: tuple(write for write in honest(*given) if write.ceiling_mhz)
    )
    assert caught(seeds=range(FROM, FROM + 60)) == 10


def test_9_ceilings_that_go_when_the_right_lapses(monkeypatch):
    honest = leases.due_clocks

    def generous(lease, ceilings):
        if lease.mode is not leases.Mode.FALLBACK:
            return honest(lease, ceilings)
        return tuple(leases.ClockWrite(gpu, 0) for gpu, (asked_mhz, _) in enumerate(ceilings) if asked_mhz)

    monkeypatch.setattr(leases, "due_clocks", generous)
    assert caught(seeds=range(FROM + 10, FROM + 60)) == 9


def test_9_ceilings_that_go_by_the_order_of_one_who_cannot_know(monkeypatch):
    honest = leases.due_clocks
    monkeypatch.setattr(
        leases,
        "due_clocks",
        lambda lease, ceilings: honest(lease._replace(lowers_only=False), ceilings),
    )
    assert caught(seeds=range(FROM + 10, FROM + 110)) == 9


def test_9_a_restart_that_lifts_ceilings_before_it_knows_the_clocks(monkeypatch):
    honest = clocks.step
    monkeypatch.setattr(
        clocks,
        "step",
        lambda settings, before, gpus, *more: honest(
            settings, before, replace(gpus, ceiling_mhz=np.zeros_like(gpus.ceiling_mhz)), *more
        ),
    )
    assert caught(seeds=range(LATER, LATER + 100)) == 9


def test_6_floors_that_nobody_counts(monkeypatch):
    honest = Levers.put_report

    def forgetful(levers, report, node):
        honest(levers, report, node)
        levers.floor_w[:] = 0.0

    monkeypatch.setattr(Levers, "put_report", forgetful)
    assert caught(seeds=range(FROM, FROM + 40)) == 6
