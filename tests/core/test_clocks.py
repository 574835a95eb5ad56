"""Clock ceilings: what GPUs that no limit holds give to those that are held."""

from dataclasses import replace

import numpy as np
import pytest

from controller.core import clocks, law
from controller.core.model import ShedLevel, ShedRequest
from tests.core.blocks import SETTINGS, TOPOLOGY, gpus, settings
from tests.core.test_law import Block

CLOCK_MAX_MHZ = 1980
DECODING = np.array([False, False, True, True])  # node n1
TRAINS_W, DECODES_W = 690.0, 300.0


class Mixed(Block):
    """Two GPUs take all they get; two draw 300 W, or what a ceiling on their clock leaves of it."""

    def __init__(self, block=SETTINGS, **kept) -> None:
        super().__init__(block, **kept)
        self.clocks_mhz = np.zeros(4, dtype=np.int64)

    def tick(self, **told):
        ratio = np.where(self.clocks_mhz > 0, self.clocks_mhz / CLOCK_MAX_MHZ, 1.0)
        wants_w = np.where(DECODING, 200.0 + (DECODES_W - 200.0) * ratio, TRAINS_W)
        power_w = np.minimum(wants_w, self.limit_w)
        signs = {"by_clock": DECODING, "capped": power_w >= 0.99 * self.limit_w, "power_w": power_w}
        decision = super().tick(**(signs | {"ceiling_mhz": self.clocks_mhz} | told))
        self.history[-1] = (self.now_s, float(power_w.sum()))
        self.clocks_mhz = decision.clocks_mhz
        return decision


def test_while_nothing_is_short_no_clock_is_touched():
    block = Mixed()
    assert block.under_control(30.0).clocks_mhz.tolist() == [0, 0, 0, 0]


def test_in_a_curtailment_those_whom_no_limit_holds_are_slowed_and_the_others_get_what_that_leaves():
    alone = Mixed(settings(clock_least_ratio=1.0))
    block = Mixed()
    for one in (alone, block):
        one.under_control(30.0)
        one.under_control(20.0, 2000.0)
    assert alone.clocks_mhz.tolist() == [0, 0, 0, 0]
    assert block.clocks_mhz.tolist() == [0, 0, 1185, 1185], "0.6 of the highest clock, in steps of 15 MHz"
    assert block.limit_w[:2].min() > alone.limit_w[:2].max() + 20.0
    assert block.limit_w.sum() <= 2000.0 - 600.0, "limits are the guarantee"


def test_the_end_of_a_curtailment_frees_the_clocks():
    block = Mixed()
    block.under_control(30.0)
    block.under_control(20.0, 2000.0)
    assert block.under_control(30.0).clocks_mhz.tolist() == [0, 0, 0, 0]


def test_another_ceiling_is_a_new_order_even_where_no_limit_moves():
    block = Mixed()
    block.under_control(30.0)
    seqs = {}
    for _ in range(400):
        decision = block.tick(site=block.site(2000.0))
        seqs.setdefault(tuple(decision.clocks_mhz), int(decision.node_seq[1]))
    assert len(seqs) > 2, "step by step"
    assert len(set(seqs.values())) == len(seqs)


def test_a_call_brings_the_ceilings_of_its_table():
    levels = (ShedLevel("deep", 1800.0),)

    class Prepared(Mixed):
        def tick(self, **told):
            return super().tick(**({"table": self.state.shedding.table.node_version} | told))

    block = Prepared(settings(shed_levels=levels))
    block.under_control(30.0)
    table = block.state.shedding.table
    assert table.clocks_mhz.tolist() == [[0, 0, 1185, 1185]]
    called = block.tick(site=block.site(), sheds=(ShedRequest("contact", 0),))
    assert called.state.shedding.call is not None
    assert called.clocks_mhz.tolist() == [0, 0, 1185, 1185]
    assert block.tick(site=block.site(), sheds=(ShedRequest("contact", 0),)).clocks_mhz.tolist() == [
        0, 0, 1185, 1185
    ]  # fmt: skip


def test_a_restart_lifts_no_ceiling_before_the_highest_clocks_are_known():
    block = Mixed(state=law.start(SETTINGS, 100.0))
    block.clocks_mhz = np.array([0, 0, 990, 990])
    decision = block.tick(site=block.site(2000.0), clock_max_mhz=0)
    assert decision.clocks_mhz.tolist() == [0, 0, 990, 990]


def test_a_table_takes_no_ceiling_from_a_gpu_whose_highest_clock_is_not_known():
    """What it reports may be of long ago; in a table it would stay until somebody else's share moved."""
    block = Mixed(settings(shed_levels=(ShedLevel("deep", 1800.0),)))
    block.clocks_mhz = np.array([0, 0, 990, 990])
    for _ in range(600):
        block.tick(site=block.site(), clock_max_mhz=0)
    table = block.state.shedding.table
    assert table.version > 0
    assert table.clocks_mhz.tolist() == [[0, 0, 0, 0]]
    assert block.clocks_mhz.tolist() == [0, 0, 990, 990]


@pytest.mark.parametrize(
    ("before", "limits_w", "after"),
    [
        (1.0, 690.0, 1.0),  # 0.986: nobody is really held
        (1.0, 660.0, 1.0),  # 0.94: not worth a driver call
        (1.0, 550.0, 0.8),
        (0.8, 510.0, 0.8),  # 0.73: less than a step
        (0.8, 480.0, 0.7),
        (0.7, 200.0, 0.6),  # the lowest that is set
        (0.6, 700.0, 1.0),
        (0.9, 670.0, 1.0),  # 0.957: all but free
    ],
)
def test_ceilings_move_in_steps(before, limits_w, after):
    found = clocks.wanted(SETTINGS, before, np.full(4, limits_w), ~DECODING, DECODING, np.full(4, 700.0))
    assert found == pytest.approx(after)


@pytest.mark.parametrize(
    ("held", "by_clock"),
    [(~DECODING & False, DECODING), (DECODING, DECODING), (~DECODING, DECODING & False)],
    ids=["nobody is held", "only those who could be slowed", "nobody could be slowed"],
)
def test_where_there_is_nothing_to_trade_there_is_no_ceiling(held, by_clock):
    assert clocks.wanted(SETTINGS, 0.7, np.full(4, 300.0), held, by_clock, np.full(4, 700.0)) == 1.0


def test_ceilings_fall_at_once_and_rise_a_step_at_a_time():
    ordered = clocks.step(SETTINGS, clocks.start(4), gpus(by_clock=DECODING), 0.6, 100.0)
    assert ordered.ratio == 0.6
    soon = clocks.step(SETTINGS, ordered, gpus(by_clock=DECODING), 1.0, 104.0)
    assert soon.ratio == 0.6
    later = clocks.step(SETTINGS, soon, gpus(by_clock=DECODING), 1.0, 105.0)
    assert later.ratio == pytest.approx(0.7)
    for number in range(1, 4):
        ordered = clocks.step(
            SETTINGS, later if number == 1 else ordered, gpus(by_clock=DECODING), 1.0, 105.0 + 5 * number
        )
    assert (ordered.ratio, ordered.ceilings_mhz.tolist()) == (1.0, [0, 0, 0, 0])
    assert clocks.slowed(later, 105.5).tolist() == [False, False, True, True]


def test_the_ceiling_of_one_gpu_says_nothing_of_the_others():
    alone = np.array([False, False, False, True])
    ordered = clocks.step(SETTINGS, clocks.start(4), gpus(by_clock=alone), 0.6, 100.0)
    both = clocks.step(SETTINGS, ordered, gpus(by_clock=DECODING), 0.6, 110.0)
    assert clocks.slowed(both, 110.1).tolist() == [False, False, True, False]


def test_higher_tiers_keep_their_clocks():
    weight = np.array([1.0, 1.0, 4.0, 1.0])
    tiers = settings(topology=replace(TOPOLOGY, gpu_weight=weight))
    ordered = clocks.step(tiers, clocks.start(4), gpus(by_clock=DECODING), 0.7, 1.0)
    assert ordered.ceilings_mhz.tolist() == [0, 0, 0, 1380]
