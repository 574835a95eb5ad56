"""The board: newest values, and how old a node's readings can be at most."""

from dataclasses import replace

import numpy as np
import pytest

from controller.board import OLD_BOOTS_MAX, RIVAL_SHOWN_S, Board
from controller.core.model import NEVER_S, NO_LIMIT_W, Measurement
from protocols.agent_link import Facts, Gpu, GpuFacts, Report

EPOCH = 7


def report(
    node="node-a",
    *,
    boot="b1",
    at_s=1.0,
    gpus=8,
    power_w=300.0,
    limit_w=400.0,
    bounds_w=(150.0, 650.0),
    **fields,
) -> Report:
    min_w, max_w = bounds_w
    one = Gpu(uuid="u", power_w=power_w, limit_w=limit_w, enforced_w=limit_w, min_w=min_w, max_w=max_w)
    return Report(
        **{"node": node, "boot": boot, "at_s": at_s, "gpus": (one,) * gpus, "mode": "leased"}
        | {"epoch": EPOCH, "seq": 5, "echo_sent_at_s": 99.0, "echo_age_s": 0.5}
        | fields
    )


@pytest.fixture
def board(settings) -> Board:
    return Board(settings, EPOCH)


def gpus(board, now_s=100.0):
    return board.snapshot(now_s, 0.0).gpus


def test_before_anything_is_heard_everything_is_unknown(board, settings):
    seen = board.snapshot(100.0, 0.0)
    assert np.isnan(seen.gpus.power_w).all()
    assert np.isnan(seen.gpus.limit_w).all()
    assert seen.gpus.max_w.tolist() == settings.topology.gpu_max_w.tolist()
    assert (seen.gpus.node_at_s == NEVER_S).all()
    assert not seen.meter.good
    assert not seen.inlets.good.any()


def test_a_report_fills_the_gpus_of_its_node_alone(board):
    assert board.put_report(report("node-b"), 100.0) == ""
    assert gpus(board).power_w.tolist()[8:] == [300.0] * 8
    assert np.isnan(gpus(board).power_w[:8]).all()
    assert gpus(board).max_w.tolist() == [700.0] * 8 + [650.0] * 8


def test_readings_are_as_old_as_the_order_they_echo_and_its_age(board):
    board.put_report(report(echo_sent_at_s=99.0, echo_age_s=0.75), 100.0)
    assert gpus(board).node_at_s[0] == 99.75


@pytest.mark.parametrize(
    ("echo", "why"),
    [
        ({"echo_sent_at_s": -1.0, "echo_age_s": 0.0}, "has heard nothing from us"),
        ({"echo_sent_at_s": 99.0, "echo_age_s": 5.0}, "claims to come from the future"),
        ({"echo_sent_at_s": 5000.0, "echo_age_s": 0.0}, "echoes a controller of another boot"),
    ],
)
def test_a_report_of_unknown_age_is_infinitely_old(board, echo, why):
    board.put_report(report(**echo), 100.0)
    assert gpus(board).node_at_s[0] == NEVER_S, why


def test_an_echo_that_rounds_into_the_future_is_now(board):
    board.put_report(report(echo_sent_at_s=99.0, echo_age_s=1.004), 100.0)
    assert gpus(board).node_at_s[0] == 100.0


@pytest.mark.parametrize(
    ("fields", "leased", "seq"),
    [
        ({}, True, 5),
        ({"mode": "fallback"}, False, 5),
        ({"mode": "observe"}, False, 5),
        ({"mode": "waiting", "epoch": 0, "seq": 0}, False, 0),
        ({"epoch": EPOCH - 1}, False, 0),  # it obeys a controller that is gone
    ],
)
def test_only_a_lease_of_ours_counts(board, fields, leased, seq):
    board.put_report(report(**fields), 100.0)
    assert (bool(gpus(board).node_leased[0]), int(gpus(board).node_seq[0])) == (leased, seq)


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"at_s": 1.0}, "late or repeated"),
        ({"at_s": 0.5}, "late or repeated"),
        ({"node": "node-x"}, "no such node"),
        ({"gpus": 4}, "reports 4 GPUs, configured are 8"),
    ],
)
def test_what_is_old_or_not_ours_is_refused_and_counted(board, second, sentence):
    board.put_report(report(), 100.0)
    revision = gpus(board).revision
    why = board.put_report(report(**{"power_w": 1.0} | second), 101.0)
    assert sentence in why
    assert board.refused[why] == 1
    assert gpus(board).revision == revision
    assert gpus(board).power_w[0] == 300.0


def test_a_restarted_agent_may_count_its_time_from_the_start(board):
    board.put_report(report(boot="b1", at_s=500.0), 100.0)
    assert board.put_report(report(boot="b2", at_s=1.0), 101.0) == ""


def test_what_a_dead_agent_still_has_on_the_way_is_refused(board):
    board.put_report(report(boot="b1", at_s=500.0), 100.0)
    board.put_report(report(boot="b2", at_s=1.0), 101.0)
    assert "replaced" in board.put_report(report(boot="b1", at_s=501.0), 101.1)


def test_a_thousand_restarts_are_remembered_in_bounds(board):
    for number in range(1000):
        board.put_report(report(boot=f"b{number}"), 100.0)
    assert len(board._boots[0]) <= OLD_BOOTS_MAX + 1


def test_an_unreadable_gpu_is_not_a_number(board):
    board.put_report(report(power_w=None, limit_w=None), 100.0)
    assert np.isnan(gpus(board).power_w[:8]).all()


@pytest.mark.parametrize("power_w", [-0.1, 2100.1, 4_294_967.295])
def test_a_power_that_no_gpu_can_draw_is_unknown_and_its_limit_still_counts(board, power_w):
    board.put_report(report(power_w=power_w), 100.0)
    assert np.isnan(gpus(board).power_w[:8]).all()
    assert gpus(board).limit_w[0] == 400.0


@pytest.mark.parametrize("limit_w", [1e6, float("inf")])
def test_a_limit_beyond_all_reason_counts_as_the_most_that_is_configured(board, settings, limit_w):
    board.put_report(report(limit_w=limit_w, bounds_w=(150.0, 200.0)), 100.0)
    assert gpus(board).limit_w[:8].tolist() == settings.topology.gpu_max_w[:8].tolist()


def test_a_limit_is_believed_whatever_the_device_claims_to_be_able_to(board):
    board.put_report(report(limit_w=640.0, bounds_w=(150.0, 200.0)), 100.0)
    assert (gpus(board).limit_w[:8] == 640.0).all()


@pytest.mark.parametrize("limit_w", [0.0, -1.0])
def test_a_limit_that_no_gpu_can_hold_is_unknown_and_confirms_nothing(board, limit_w):
    board.put_report(report(limit_w=limit_w), 100.0)
    assert np.isnan(gpus(board).limit_w[:8]).all()
    assert (gpus(board).power_w[:8] == 300.0).all()


def test_a_late_report_is_no_alarm_when_a_newer_one_was_taken(board):
    board.put_report(report(at_s=2.0), 100.0)
    assert "late" in board.put_report(report(at_s=1.0), 100.1)
    assert board.last_refusal == {}


@pytest.mark.parametrize(
    "bounds_w", [(150.0, 700.1), (701.0, 702.0), (400.0, 300.0), (0.0, 650.0), (-5.0, -1.0)]
)
def test_bounds_that_do_not_fit_the_configuration_are_not_believed_and_told(board, settings, bounds_w):
    assert board.put_report(report(bounds_w=bounds_w), 100.0) == ""
    assert gpus(board).min_w.tolist() == settings.topology.gpu_min_w.tolist()
    assert gpus(board).max_w.tolist() == settings.topology.gpu_max_w.tolist()
    assert len(board.gpu_faults["node-a"]) == 8
    assert [why for why in board.refused if "node-a GPU 3" in why and "do not fit block.yaml" in why]
    assert board.last_refusal == {}  # the report itself was taken


def test_why_a_node_is_not_heard_is_kept_until_it_is_heard(board):
    board.put_report(report(gpus=4), 100.0)
    board.refuse("Report version 2: update", "node-b")
    board.refuse("Report version 2: update", "node-x")
    assert "reports 4 GPUs" in board.last_refusal["node-a"]
    assert board.last_refusal["node-b"] == "Report version 2: update"
    assert board.last_refusal.keys() == {"node-a", "node-b"}
    board.put_report(report(), 101.0)
    assert board.last_refusal.keys() == {"node-b"}


def test_a_snapshot_stays_as_it_was(board):
    board.put_report(report(), 100.0)
    board.put_inlet(0, Measurement(500.0, good=True, taken_at_s=99.0))
    before = board.snapshot(100.0, 0.0)
    board.put_report(report(at_s=2.0, power_w=1.0), 101.0)
    board.put_inlet(0, Measurement(1.0, good=True, taken_at_s=100.0))
    assert before.gpus.power_w[0] == 300.0
    assert before.inlets.power_w[0] == 500.0


def test_parts_that_did_not_change_are_the_same_object(board):
    """The journal writes only what is new."""
    one, two = board.snapshot(100.0, 0.0), board.snapshot(100.05, 0.0)
    assert one.gpus is two.gpus
    assert one.inlets is two.inlets


# --- what many agents say together -------------------------------------------------------------------


def facts(node: str, fallback_w=150.0, *, gpus=8, module=-1) -> Facts:
    told = tuple(GpuFacts(fallback_w=fallback_w, module=module) for _ in range(gpus))
    return Facts(
        node=node, boot="b1", at_s=1.0, driver="1", lease_max_s=10.0, waiting_max_s=30.0,
        fallback_ramp_w_per_s=50.0, gpus=told,
    )  # fmt: skip


def wrong(board, now_s=100.0) -> dict[str, str]:
    return dict(board.conditions(now_s))


@pytest.fixture
def tight(settings) -> Board:
    """A block whose feed carries all agents at 150 W per GPU, and not at 300."""
    count = len(settings.topology.gpu_node)
    rating_w = settings.base_max_w + settings.block_w_per_gpu_w * 200.0 * count
    return Board(replace(settings, feed_rating_w=rating_w), EPOCH)


def test_fallbacks_that_do_not_fit_under_the_feed_together_are_told(tight):
    assert tight.put_facts(facts("node-a", 300.0)) == ""
    assert tight.put_facts(facts("node-b", 300.0)) == ""
    assert "fallback_w" in wrong(tight)["fallback"]
    for node in ("node-a", "node-b"):
        tight.put_facts(facts(node))
    assert wrong(tight) == {}


def test_a_node_that_has_never_told_its_fallback_counts_at_its_most(tight):
    tight.put_facts(facts("node-a"))
    assert "fallback" in wrong(tight)


def test_gpus_of_one_module_share_one_fallback(tight):
    tight.put_facts(facts("node-a", 600.0, module=0))
    tight.put_facts(facts("node-b", 600.0, module=0))
    assert wrong(tight) == {}
    tight.put_facts(facts("node-b", 6000.0, module=0))
    assert "fallback" in wrong(tight)


@pytest.mark.parametrize(
    "told", [facts("node-z"), facts("node-a", gpus=3), facts("node-a", 0.0), facts("node-a", -5.0)]
)
def test_facts_that_cannot_be_leave_what_was_known(tight, told):
    assert tight.put_facts(told)
    assert "fallback" in wrong(tight)


def test_a_second_controller_is_told_while_agents_hear_it_and_a_moment_longer(board):
    board.put_report(report(rivals_s=2.0), 100.0)
    assert "node-a" in wrong(board)["two controllers"]
    assert "two controllers" in wrong(board, 98.0 + RIVAL_SHOWN_S)
    assert "two controllers" not in wrong(board, 98.1 + RIVAL_SHOWN_S)


def test_what_a_bmc_has_proven_is_of_its_node_and_goes_when_it_is_not_proven_any_more(board):
    board.put_proven({"node-b": (250.0,) * 7 + (float("inf"),)})
    assert gpus(board).proven_w.tolist() == [NO_LIMIT_W] * 8 + [250.0] * 7 + [NO_LIMIT_W]
    board.put_proven({})
    assert (gpus(board).proven_w == NO_LIMIT_W).all()
