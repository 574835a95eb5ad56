"""GPUs that confirm their orders and do not keep to them: what they draw is counted, and the others give way."""

from dataclasses import replace

import numpy as np
import pytest

from controller.core.ledger import READ_BACK_TOLERANCE_W
from controller.core.model import Inlets
from controller.core.watch import EXCESS_LASTS_S, EXCESS_RATIO
from tests.core import blocks
from tests.core.blocks import settings
from tests.core.test_law import BASE_W, TICK_S, Block
from tests.core.test_shed import DEEP, Prepared

LINE_W = 2000.0
WILD_W = 700.0
GIVEN_WAY_S = EXCESS_LASTS_S + 2.0  # the excess is smoothed over a second before it counts
ALL_DRAW = {"capped": True}


class Held(Block):
    """A block in a curtailment in which some GPUs hold or draw what they like."""

    def go(self, seconds_s, limit_w=LINE_W, *, drawn_w=None, shown_w=None):
        """`drawn_w`, `shown_w`: draws and limits for (orders); None: as ordered."""
        for _ in range(round(seconds_s / TICK_S)):
            shown = self.limit_w.copy() if shown_w is None else shown_w(self.limit_w.copy())
            drawn = shown if drawn_w is None else drawn_w(self.limit_w.copy())
            self.history[-1] = (self.history[-1][0], float(drawn.sum()))
            self.drawn_w = drawn
            self.tick(site=self.site(limit_w), limit_w=shown, power_w=drawn, **ALL_DRAW)
        return self.decision

    def true_w(self):
        return float(self.drawn_w.sum()) + BASE_W


def first_at(watts):
    def drawn(ordered_w):
        ordered_w[0] = max(watts, ordered_w[0])
        return ordered_w

    return drawn


def alarms(decision):
    return {alarm.key for alarm in decision.alarms}


@pytest.mark.parametrize("how", ["drawn_w", "shown_w"])
def test_who_confirms_and_does_not_hold_is_counted_and_the_others_give_way(how):
    """Draws above its limit, or shows a limit that somebody else has written."""
    block = Held()
    block.go(40.0)
    assert block.true_w() == pytest.approx(LINE_W, rel=0.01)
    block.go(GIVEN_WAY_S, **{how: first_at(WILD_W)})
    for _ in range(100):
        block.go(0.2, **{how: first_at(WILD_W)})
        assert block.true_w() <= LINE_W + 6.0
    last = block.decision
    assert last.shortfall_w == 0.0
    assert min(last.gpu_limits_w[1:]) > 220.0  # what is left is theirs
    assert alarms(last) == {"excess n0/0" if how == "drawn_w" else "gpu n0/0"}


def test_who_was_ordered_his_least_long_ago_is_not_believed_for_ever():
    """No order of his changes any more, so nothing else would ever ask whether he still holds it."""
    topology = replace(blocks.TOPOLOGY, gpu_floor_w=np.array([0.0, 0.0, 600.0, 600.0]))
    block = Held(settings(topology=topology))
    block.go(40.0)
    assert block.limit_w[0] == 200.0
    block.go(GIVEN_WAY_S, shown_w=first_at(WILD_W))
    assert block.limit_w[0] == 200.0
    assert block.true_w() <= LINE_W + 4.0


def test_what_cannot_be_given_way_to_is_short():
    block = Held()
    block.go(40.0)
    last = block.go(10.0, LINE_W - 250.0, drawn_w=first_at(WILD_W))
    assert last.gpu_limits_w[1:].tolist() == [200.0] * 3
    assert last.shortfall_w == pytest.approx(WILD_W + 600.0 + BASE_W - (LINE_W - 250.0), abs=10.0)
    assert "shortfall" in alarms(last)


def test_in_a_rack_that_is_full_its_own_gpus_give_way():
    topology = replace(blocks.TOPOLOGY, inlet_continuous_w=np.full(4, 600.0))  # 1,200 W per rack
    block = Block(settings(topology=topology))
    for step in range(round(60.0 / TICK_S)):
        drawn = block.limit_w.copy()
        drawn[0] = WILD_W if step * TICK_S > 40.0 else drawn[0]
        block.history[-1] = (block.history[-1][0], float(drawn.sum()))
        rack_w = np.array([drawn[:2].sum(), drawn[2:].sum()]) + BASE_W / 2
        inlets = Inlets(np.repeat(rack_w / 2, 2), np.full(4, True), np.full(4, block.now_s + TICK_S))
        block.tick(site=block.site(), power_w=drawn, inlets=inlets, **ALL_DRAW)
    assert rack_w[0] <= 1200.0 + 1.0
    assert block.limit_w[2:].min() > 400.0  # the other rack keeps its power


def test_a_shed_is_reached_by_those_who_obey():
    block = Prepared()
    for step in range(round(15.0 / TICK_S)):
        drawn = block.limit_w.copy()
        drawn[0] = 500.0
        block.history[-1] = (block.history[-1][0], float(drawn.sum()))
        if step * TICK_S > 1.0:
            block.ask(("contact", DEEP), power_w=drawn, **ALL_DRAW)
        else:
            block.tick(site=block.site(), power_w=drawn, **ALL_DRAW)
    least_w = 500.0 + 3 * 200.0 + BASE_W
    assert float(drawn.sum()) + BASE_W <= max(block.settings.shed_levels[DEEP].limit_w, least_w) + 4.0


def test_a_level_that_only_the_obedient_could_reach_is_said_before_it_is_called():
    block = Prepared()
    for _ in range(round(15.0 / TICK_S)):
        drawn = block.limit_w.copy()
        drawn[0] = 1.5 * drawn[0]
        block.history[-1] = (block.history[-1][0], float(drawn.sum()))
        block.tick(site=block.site(), power_w=drawn, **ALL_DRAW)
    assert "shed plan deep" in alarms(block.decision)


@pytest.mark.parametrize("above_ratio", [0.5 * EXCESS_RATIO, 3.0 * EXCESS_RATIO])
def test_a_board_that_draws_somewhat_more_than_its_limit_is_counted_so_and_gets_its_power_back(above_ratio):
    def more(ordered_w):
        ordered_w[0] *= 1.0 + above_ratio
        return np.minimum(ordered_w, WILD_W)

    block = Held()
    block.go(40.0, drawn_w=more)
    assert block.true_w() <= LINE_W * 1.01
    block.go(40.0, 3600.0, drawn_w=more)
    assert block.limit_w[0] >= 600.0


def test_who_obeys_again_is_believed_again_and_the_others_come_back_by_the_ramp():
    block = Held()
    before_w = block.go(40.0).gpu_limits_w.copy()
    block.go(20.0, shown_w=first_at(WILD_W))
    sums_w = []
    for _ in range(round(20.0 / TICK_S)):
        block.go(TICK_S)
        sums_w.append(block.true_w())
    assert block.limit_w == pytest.approx(before_w, abs=2.0)
    seconds = round(1.0 / TICK_S)
    rises_w = [later - earlier for earlier, later in zip(sums_w, sums_w[seconds:], strict=False)]
    assert max(rises_w) <= 1.05 * block.settings.ramp.up_w_per_s + 4.0
    assert not alarms(block.decision)


def test_another_writer_who_is_corrected_within_a_beat_costs_the_others_nothing():
    block = Held()
    before_w = block.go(40.0).gpu_limits_w.copy()
    block.go(2 * TICK_S, shown_w=first_at(WILD_W))
    assert block.go(1.0).gpu_limits_w == pytest.approx(before_w, abs=READ_BACK_TOLERANCE_W)


def test_who_was_seen_with_more_and_can_be_read_no_longer_still_holds_it():
    def gone(shown_w):
        shown_w[0] = np.nan
        return shown_w

    def drawn(ordered_w):
        return first_at(WILD_W)(ordered_w)

    block = Held()
    block.go(40.0)
    block.go(3.0, shown_w=first_at(WILD_W), drawn_w=drawn)
    for _ in range(25):
        block.go(0.2, shown_w=gone, drawn_w=drawn)
        assert block.true_w() <= LINE_W + 4.0


def test_a_silent_host_is_asked_for_no_more_than_its_bmc_holds_it_at_so_nothing_is_short():
    block = Held()
    block.go(40.0)
    silent_at_s = block.now_s
    capped_w = np.array([0.0, 0.0, 300.0, 300.0])
    for _ in range(round((block.settings.silent_max_after_s + 10.0) / TICK_S)):
        drawn = np.where(capped_w > 0.0, capped_w, block.limit_w)
        block.history[-1] = (block.history[-1][0], float(drawn.sum()))
        block.tick(
            site=block.site(LINE_W),
            power_w=drawn,
            at_s=[block.now_s + TICK_S, silent_at_s],
            seq=[block.seq[0], 1],
            proven_w=np.where(capped_w > 0.0, capped_w, 1e9),
            **ALL_DRAW,
        )
    last = block.decision
    assert last.gpu_limits_w[2:].max() <= 300.0
    assert last.shortfall_w == 0.0
    assert float(drawn.sum()) + BASE_W <= LINE_W + 4.0
