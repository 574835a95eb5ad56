"""Limits that nobody here has ordered: how many GPUs of the whole block hold them, and what that costs."""

import numpy as np
import pytest

from controller.board import Board
from controller.core import law
from controller.core.model import Ramp
from controller.other_limits import SPAN_S, OtherLimits
from protocols.agent_link import Gpu, Report
from tests.core.blocks import good, settings, snapshot

KEY = "other limits"
BEAT_S = 0.05
ORDERED_W = (600.0, 600.0, 500.0, 500.0)


class Watched:
    """A block that has been ordered the same for long."""

    def __init__(self, **changes) -> None:
        self.settings = settings(**changes)
        self.others = OtherLimits(self.settings)
        self.share_w = np.array(ORDERED_W)
        self.now_s = 0.0
        self.order(ORDERED_W, for_s=3 * SPAN_S)

    def order(self, limits_w, for_s=BEAT_S):
        for _ in range(round(for_s / BEAT_S)):
            self.now_s += BEAT_S
            self.others.ordered(np.broadcast_to(limits_w, 4).astype(float), self.now_s)

    def said(self, limit_w=ORDERED_W, enforced_w=np.nan, **told):
        seen = snapshot(self.now_s, limit_w=limit_w, **told)
        enforced_w = np.broadcast_to(enforced_w, 4).astype(float)
        found = dict(self.others.conditions(seen, self.share_w, enforced_w))
        assert found.keys() <= {KEY}
        return found.get(KEY, "")


def test_a_block_that_holds_what_it_was_ordered_says_nothing():
    assert Watched().said() == ""


def test_what_a_bmc_takes_from_gpus_is_told_in_kw_of_the_block_with_their_names():
    block = Watched(block_w_per_gpu_w=1.5)
    said = block.said(enforced_w=(400.0, np.nan, 400.0, 500.0))
    assert said == "2 of 4 GPUs (n0/0, n1/0) hold 0.5 kW less than their share: work is lost"


def test_what_somebody_holds_above_the_orders_is_counted_and_told_beside_it():
    said = Watched().said(limit_w=(700.0, 700.0, 700.0, 100.0))
    assert said == (
        "1 of 4 GPUs (n1/1) hold 0.4 kW less than their share: work is lost; "
        "3 of 4 GPUs (n0/0, n0/1, n1/0) hold 0.4 kW more than ordered: counted, others give way"
    )


def test_more_than_three_are_named_by_number():
    assert "4 of 4 GPUs (n0/0, n0/1, n1/0 and 1 more) hold" in Watched().said(limit_w=200.0)


def test_a_cut_under_way_and_the_rise_after_it_are_nobody_else():
    block = Watched()
    block.order(300.0)
    assert block.said() == "", "the agents hold what was ordered a beat ago"
    block.order(300.0, for_s=3 * SPAN_S)
    block.order(600.0)
    block.share_w[:] = 600.0
    assert block.said(limit_w=300.0) == ""
    block.order(600.0, for_s=2 * SPAN_S)
    assert "hold 1.2 kW less" in block.said(limit_w=300.0)


def test_right_after_the_start_nobody_knows_what_was_ordered():
    block = Watched()
    block.others = OtherLimits(block.settings)
    block.order(ORDERED_W)
    assert block.said(limit_w=250.0) == ""
    assert block.said(limit_w=690.0) == ""


@pytest.mark.parametrize(
    "told",
    [{"leased": False}, {"at_s": 0.0}, {"limit_w": np.nan}],
    ids=["fell back", "silent", "not readable"],
)
def test_a_node_that_is_not_ours_to_judge_is_left_to_its_own_alarm(told):
    assert Watched().said(**{"limit_w": 200.0, **told}) == ""


@pytest.mark.parametrize("held_w", [(599.6, 599.0, 500.4, 503.0), (597.0, 604.0, 504.0, 499.0)])
def test_what_rounding_leaves_is_not_worth_a_word(held_w):
    assert Watched().said(limit_w=held_w, enforced_w=np.array(held_w) - 0.9) == ""


def test_a_board_that_rounds_what_it_enforces_is_nobody_else_while_the_ramp_keeps_orders_below_shares():
    block = Watched()
    block.share_w[:] = 700.0
    assert block.said(enforced_w=np.array(ORDERED_W) - 0.9) == ""


def test_a_device_that_cannot_go_as_low_or_as_high_as_ordered_obeys():
    block = Watched()
    block.order(100.0, for_s=3 * SPAN_S)
    assert block.said(limit_w=200.0, min_w=200.0) == ""
    block.order(900.0, for_s=3 * SPAN_S)
    block.share_w[:] = 900.0
    assert block.said(limit_w=700.0, max_w=700.0) == ""


@pytest.mark.parametrize("up_w_per_s", [20.0, 2000.0])
def test_the_loss_is_told_although_the_law_lets_its_order_come_down_to_it(up_w_per_s):
    """The law tries again from the limit that others hold, a step of the ramp above it."""
    block = settings(failsafes=(), feed_rating_w=3600.0, ramp=Ramp(500.0, up_w_per_s))
    others, state, said = OtherLimits(block), law.start(block, 0.0), {}
    limits_w = np.full(4, 700.0)
    for beat in range(1, 600):
        now_s, held_w = beat * BEAT_S, limits_w.copy()
        if now_s > 15.0:
            held_w[0] = min(held_w[0], 400.0)
        power_w = np.minimum(held_w, 650.0)
        seen = snapshot(
            now_s,
            meter=good(float(power_w.sum()) + 500.0, now_s),
            limit_w=held_w,
            power_w=power_w,
            seq=state.ledger.seq,
            revision=beat,
        )
        decision = law.tick(block, state, seen)
        state, limits_w = decision.state, decision.gpu_limits_w
        others.ordered(limits_w, now_s)
        now = dict(others.conditions(seen, state.shares.desired_w, np.full(4, np.nan)))
        assert not (now and now_s < 15.0), "while all obey"
        said = now
    assert said == {KEY: "1 of 4 GPUs (n0/0) hold 0.3 kW less than their share: work is lost"}


def test_the_board_keeps_what_is_enforced_and_nothing_that_cannot_be():
    block = settings()
    board = Board(block, epoch=1)
    gpus = tuple(
        Gpu(power_w=300.0, limit_w=600.0, enforced_w=enforced_w, min_w=200.0, max_w=700.0)
        for enforced_w in (400.0, 0.0)
    )
    report = Report(
        node="n1",
        boot="b",
        at_s=1.0,
        echo_sent_at_s=1.0,
        echo_age_s=0.0,
        epoch=1,
        seq=7,
        mode="leased",
        gpus=gpus,
    )
    assert board.put_report(report, 50.0) == ""
    np.testing.assert_array_equal(board.enforced_w, (np.nan, np.nan, 400.0, np.nan))
