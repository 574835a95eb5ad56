"""Who confirms and does not obey, in a block that has no watt to spare: the others give way, or it is caught."""

import numpy as np
import pytest

from controller.core import watch
from controller.core.model import Setpoint
from tests.world.checkers import Broken
from tests.world.nodes import MAX_W, MIN_W
from tests.world.world import UTC_0, World

BEGINS_S, LENGTH_S = 22.0, 18.0
SEEDS = range(80_000, 80_012)
FAULTS = ("gpu takes all", "agent acts not", "driver forgets and blocks")


def play(fault, seed):
    """All GPUs take what they may, under a limit that is half way between their least and their most."""
    world = World(seed, faults=False, later=False)
    gain, count = world.settings.block_w_per_gpu_w, len(world.settings.topology.gpu_node)
    limit_w = world.settings.base_max_w + gain * count * 0.5 * (MIN_W + MAX_W)
    world.replan((Setpoint("openadr", "line", "IMPORT_CAPACITY_LIMIT", limit_w, UTC_0 + 2.0, UTC_0 + 59.0),))
    world.truth.saturated = True
    world.work_fully(np.arange(count))
    world.timeline = [(BEGINS_S, fault, LENGTH_S)]
    world.run()


def promises_broken(fault):
    for seed in SEEDS:
        try:
            play(fault, seed)
        except Broken as broken:
            yield broken.number


@pytest.mark.parametrize("fault", FAULTS)
def test_1_the_others_give_way(fault):
    assert list(promises_broken(fault)) == []


def test_1_a_draw_above_the_limit_that_is_only_said(monkeypatch):
    monkeypatch.setattr(watch, "EXCESS_LASTS_S", 1e9)
    assert next(promises_broken("gpu takes all")) == 1


def test_1_a_host_that_confirms_and_does_not_act_is_only_said(monkeypatch):
    monkeypatch.setattr(watch, "EXCESS_LASTS_S", 1e9)
    assert next(promises_broken("agent acts not")) == 1
