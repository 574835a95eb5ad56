"""The board: newest values, and how old a node's readings can be at most."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from controller.board import CLOCK_STEP_MAX_S, OLD_BOOTS_MAX, Board, _by_gpu
from controller.core.model import NEVER_S, NO_LIMIT_W, Measurement
from controller.grouping import BOARD_MAX_W, Doubts
from controller.rivals import SHOWN_S
from protocols.agent_link import Facts, Gpu, GpuFacts, Report, Smoothing

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


@pytest.mark.parametrize(
    ("echo_epoch", "node_at_s"),
    [
        (EPOCH, 99.875),
        (0, 99.875),  # of an agent that does not tell
        (EPOCH - 1, 99.875),  # of our predecessor on this host: the same clock
        (EPOCH + 1, NEVER_S),  # of a controller on a host that was booted two seconds before this one
    ],
)
def test_the_clock_of_another_host_does_not_make_readings_look_young(settings, echo_epoch, node_at_s):
    """They lay in a broker for two seconds. By that clock they were taken a moment ago."""
    board = Board(settings, EPOCH, same_clock=frozenset({EPOCH - 1}))
    board.put_report(report(echo_sent_at_s=99.75, echo_age_s=0.125, echo_epoch=echo_epoch), 100.0)
    assert gpus(board).node_at_s[0] == node_at_s
    assert board.known_at_s[0] == (1.0 if node_at_s > 0 else -1.0), "no order may say that it knew them"


def test_between_an_order_of_another_start_and_its_acknowledgement_only_the_clock_is_the_others(board):
    """The agent has taken the other's order and still writes it: ours is the one in force that it names."""
    board.put_report(report(echo_sent_at_s=99.75, echo_age_s=0.125, echo_epoch=EPOCH + 1), 100.0)
    assert gpus(board).node_at_s[0] == NEVER_S
    assert board.heard("node-a")[1:] == (5, True)


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


def tenths(board, first: int, last: int, ahead_s=-90.0, **fields) -> list[str]:
    """Ten reports a second that answer our orders, on a clock `ahead_s` of ours. What became of each."""
    return [
        board.put_report(
            report(at_s=now_s + ahead_s, echo_sent_at_s=now_s - 0.1, echo_age_s=0.05, **fields), now_s
        )
        for now_s in (100.0 + tenth / 10 for tenth in range(first, last))
    ]


@pytest.mark.parametrize("at_s", [1e300, 3600.0, -1e300])
def test_one_stamp_that_cannot_be_costs_that_report_alone(board, at_s):
    assert tenths(board, 0, 10) == [""] * 10
    assert board.put_report(report(at_s=at_s, power_w=1.0), 100.95)
    assert tenths(board, 10, 20) == [""] * 10
    assert board.report_at_s[0] == pytest.approx(11.9), "orders echo it"


@pytest.mark.parametrize("at_s", [1e300, -1e300])
def test_a_first_stamp_that_cannot_be_costs_two_seconds(board, at_s):
    assert board.put_report(report(at_s=at_s), 100.0) == ""
    taken = tenths(board, 1, 40)
    assert taken[int(10 * CLOCK_STEP_MAX_S) :] == [""] * (39 - int(10 * CLOCK_STEP_MAX_S))
    assert board.report_at_s[0] == board.known_at_s[0] == pytest.approx(13.9)


def test_an_agent_whose_clock_has_leapt_is_believed_two_seconds_later(board):
    tenths(board, 0, 10)
    for first, ahead_s in ((10, 3600.0), (60, -95.0)):
        taken = tenths(board, first, first + 50, ahead_s)
        assert taken[0]
        assert taken[20:] == [""] * 30


def test_what_was_stuck_on_the_way_does_not_make_the_next_one_look_early(board):
    """The link stood still for a minute; one report lay in it, the others were dropped for newer ones."""
    tenths(board, 0, 10)
    stuck = report(at_s=11.0, echo_sent_at_s=100.9, echo_age_s=0.05)
    assert board.put_report(stuck, 161.0) == ""
    assert tenths(board, 611, 620) == [""] * 9


def test_old_reports_told_again_when_the_agent_is_silent_are_never_believed(board):
    """Only an echo of an order of just now proves that a report of an earlier time is no repetition."""
    tenths(board, 0, 10, limit_w=600.0)
    for tenth in range(10):
        old = report(at_s=10.0 + tenth / 10, limit_w=300.0, echo_sent_at_s=99.9, echo_age_s=0.05)
        assert "late or repeated" in board.put_report(old, 110.0 + tenth / 10)
    assert gpus(board).limit_w[0] == 600.0


def test_what_a_dead_agent_still_has_on_the_way_is_refused(board):
    board.put_report(report(boot="b1", at_s=500.0), 100.0)
    board.put_report(report(boot="b2", at_s=1.0), 101.0)
    assert "replaced" in board.put_report(report(boot="b1", at_s=501.0), 101.1)


def test_an_agent_that_another_had_replaced_is_heard_again_when_that_one_has_ended(board):
    """Somebody tried one by hand beside the service, or a second host had taken the wrong name."""
    board.put_report(report(boot="b1", at_s=50.0), 99.6)
    board.put_report(report(boot="b2", at_s=1.0), 100.0)
    soon = report(boot="b1", at_s=51.0, echo_sent_at_s=100.4)
    assert "another has replaced" in board.put_report(soon, 101.0)
    again = report(boot="b1", at_s=53.0, echo_sent_at_s=102.4, power_w=444.0)
    late = report(boot="b1", at_s=54.0, echo_sent_at_s=99.0, power_w=555.0)
    assert "another has replaced" in board.put_report(late, 103.0), "what was stuck on the way"
    assert board.put_report(again, 103.0) == ""
    assert gpus(board).power_w[0] == 444.0
    assert "another has replaced" in board.put_report(
        report(boot="b2", at_s=2.0, echo_sent_at_s=102.5), 103.1
    )


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


@pytest.mark.parametrize("limit_w", [2100.1, 1e300])
def test_a_limit_beyond_all_reason_is_not_readable(board, limit_w):
    board.put_report(report(limit_w=limit_w, bounds_w=(150.0, 200.0)), 100.0)
    assert np.isnan(gpus(board).limit_w[:8]).all()
    assert (gpus(board).power_w[:8] == 300.0).all()


def test_a_board_of_four_times_the_configured_power_counts_at_what_it_can_and_holds(board):
    """block.yaml says 700 W; the host has modules of a GB300, 500 to 2900 W."""
    assert board.put_report(report(power_w=2300.0, limit_w=2400.0, bounds_w=(500.0, 2900.0)), 100.0) == ""
    seen = gpus(board)
    assert (seen.power_w[0], seen.limit_w[0], seen.max_w[0], seen.cap_w[0]) == (2300.0, 2400.0, 2900.0, 700.0)
    assert (
        "node-a GPU 0: its power limits, 500 to 2900 W, do not fit block.yaml: ordered 700 W at most, counted"
        " at 2900 W when silent"
    ) in board.gpu_faults["node-a"]


def test_of_constraints_that_no_board_has_it_is_told_what_counts_instead(board):
    board.put_report(report(bounds_w=(150.0, 1e300)), 100.0)
    assert (
        "do not fit block.yaml: ordered 700 W at most, counted at 700 W when silent"
        in (board.gpu_faults["node-a"][0])
    )
    assert len(board.gpu_faults["node-a"][0]) < 150


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
    ("bounds_w", "min_w", "max_w"),
    [
        ((150.0, 700.1), 150.0, 700.1),
        ((701.0, 702.0), 200.0, 702.0),
        ((150.0, 2900.0), 150.0, 2900.0),
        ((150.0, BOARD_MAX_W + 0.1), 200.0, 700.0),  # no board is that great
        ((150.0, 1e300), 200.0, 700.0),
        ((400.0, 300.0), 200.0, 700.0),
        ((0.0, 650.0), 200.0, 700.0),
        ((-5.0, -1.0), 200.0, 700.0),
    ],
)
def test_a_device_beyond_its_configuration_counts_at_its_most_and_is_given_no_more(
    board, bounds_w, min_w, max_w
):
    assert board.put_report(report(bounds_w=bounds_w), 100.0) == ""
    assert (gpus(board).min_w[0], gpus(board).max_w[0]) == (min_w, max_w)
    assert min(gpus(board).cap_w[0], gpus(board).max_w[0]) == 700.0
    assert len(board.gpu_faults["node-a"]) == 8
    assert [why for why in board.refused if "node-a GPU 3" in why and "do not fit block.yaml" in why]
    assert board.last_refusal == {}  # the report itself was taken


def test_what_is_in_doubt_is_unknown_and_what_is_not_stays(board):
    board.put_report(report(), 100.0)
    nobody = np.zeros(16, dtype=np.bool_)
    first, most_w = nobody.copy(), np.zeros(16)
    first[0], most_w[0] = True, 1400.0
    second = np.roll(first, 1)
    board.put_doubts(Doubts(first, second, most_w))
    seen = gpus(board)
    assert np.flatnonzero(np.isnan(seen.limit_w[:8])).tolist() == [0]
    assert np.flatnonzero(np.isnan(seen.power_w[:8])).tolist() == [1]
    assert (seen.power_w[0], seen.limit_w[1]) == (300.0, 400.0)
    assert (seen.max_w[0], seen.cap_w[0], seen.max_w[1]) == (1400.0, 700.0, 650.0)
    board.put_doubts(Doubts(nobody, nobody, np.zeros(16)))
    assert (gpus(board).limit_w[0], gpus(board).cap_w[0]) == (400.0, NO_LIMIT_W)


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


def facts(node: str, fallback_w=150.0, *, gpus=8, module=-1, **fields) -> Facts:
    told = tuple(GpuFacts(fallback_w=fallback_w, module=module, **fields) for _ in range(gpus))
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


def test_fallbacks_that_fit_under_the_feed_and_not_the_failsafe_limit_are_told(settings):
    failsafe_w = settings.base_max_w + settings.block_w_per_gpu_w * 200.0 * len(settings.topology.gpu_node)
    failsafes = tuple(replace(one, limit_w=failsafe_w) for one in settings.failsafes)
    board = Board(replace(settings, failsafes=failsafes, feed_rating_w=1e6), EPOCH)
    for fallback_w, says in ((210.0, f"its failsafe limit is {failsafe_w / 1e3:.1f} kW"), (190.0, "")):
        for node in ("node-a", "node-b"):
            board.put_facts(facts(node, fallback_w))
        assert ("fallback" in wrong(board)) == bool(says)
        assert says in wrong(board).get("fallback", "")


def test_an_agent_that_would_wait_for_ever_falls_back_to_nothing(tight):
    for node, waiting_max_s in (("node-a", 30.0), ("node-b", None)):
        tight.put_facts(msgspec.structs.replace(facts(node), waiting_max_s=waiting_max_s))
    assert "fallback" in wrong(tight)


def test_a_node_that_has_never_told_its_fallback_counts_at_its_most(tight):
    tight.put_facts(facts("node-a"))
    assert "fallback" in wrong(tight)


def test_fallbacks_of_gpus_of_one_module_are_their_shares_and_add_up(tight):
    """Agents tell what of its module's limit is each GPU's."""
    tight.put_facts(facts("node-a", 150.0, module=0))
    tight.put_facts(facts("node-b", 150.0, module=0))
    assert wrong(tight) == {}
    tight.put_facts(facts("node-b", 300.0, module=0))
    assert "fallback" in wrong(tight)


@pytest.mark.parametrize(
    ("least", "fits"),
    [
        ({"min_w": 100.0, "max_w": 700.0}, True),
        ({"min_w": 300.0, "max_w": 700.0}, False),
        ({"min_w": 1050.0, "max_w": 1400.0}, False),
        ({"smoothing": Smoothing(enabled=True, floor_w=300.0)}, False),
        ({"smoothing": Smoothing(enabled=True, floor_w=None)}, True),  # alarm `floors unknown`
        ({"module": 0, "smoothing": Smoothing(enabled=True, floor_w=199.0)}, True),
        ({"module": 0, "smoothing": Smoothing(enabled=True, floor_w=300.0)}, False),  # each keeps its own
        ({"min_w": 1e300, "max_w": 1e300}, True),  # no board's
        ({"smoothing": Smoothing(enabled=True, floor_w=-1e300)}, True),
        ({"smoothing": Smoothing(enabled=True, floor_w=1e300)}, False),
    ],
)
def test_no_fallback_goes_below_what_a_gpu_can_or_smoothing_lets_it(tight, least, fits):
    for node in ("node-a", "node-b"):
        assert tight.put_facts(facts(node, 100.0, **least)) == ""
    assert ("fallback" not in wrong(tight)) == fits
    assert len(wrong(tight).get("fallback", "")) < 300


@pytest.mark.parametrize(
    "told", [facts("node-z"), facts("node-a", gpus=3), facts("node-a", 0.0), facts("node-a", -5.0)]
)
def test_facts_that_cannot_be_leave_what_was_known(tight, told):
    assert tight.put_facts(told)
    assert "fallback" in wrong(tight)


def test_who_speaks_in_the_name_of_another_is_told_for_a_while(board):
    assert "node-a" in board.refuse_false_name("node-a", "node-b", 100.0)
    text = wrong(board)["false name"]
    assert "topic of 'node-a'" in text
    assert "'node-b'" in text
    assert "false name" in wrong(board, 100.0 + SHOWN_S)
    assert "false name" not in wrong(board, 100.1 + SHOWN_S)
    board.refuse_false_name("x" * 9000, "y" * 60_000, 100.0)
    assert len(wrong(board)["false name"]) < 400


def test_a_second_controller_is_told_while_agents_hear_it_and_a_moment_longer(board):
    board.put_report(report(rivals_s=2.0), 100.0)
    assert "node-a" in wrong(board)["two controllers"]
    assert "two controllers" in wrong(board, 98.0 + SHOWN_S)
    assert "two controllers" not in wrong(board, 98.1 + SHOWN_S)


def test_of_two_controllers_it_is_told_which_is_obeyed_by_whom_and_what_it_costs(board):
    board.put_report(report(rivals_s=0.1), 100.0)
    assert "refuse it and obey this one" in wrong(board)["two controllers"]
    board.put_report(report(at_s=1.1, rivals_s=0.1, epoch=EPOCH + 1), 100.1)
    assert (
        f"1 of 2 nodes obey start {EPOCH + 1} and not this one ({EPOCH}), and count here at the most"
        in wrong(board, 100.1)["two controllers"]
    )


def test_a_flood_of_stale_orders_is_told_with_its_nodes_and_a_few_late_ones_are_not(board):
    for tenth in range(30):
        now_s, refused = 100.0 + tenth / 10, {"overtaken": 2 * tenth, "expired": 2 * tenth}
        board.put_report(report(at_s=20.0 + tenth, refused=refused), now_s)
        board.put_report(report(at_s=20.0 + tenth, node="node-b", refused={"overtaken": tenth // 4}), now_s)
    text = wrong(board, 103.0)["stale orders"]
    assert text.startswith("node-a: 40 orders a second")
    for tenth in range(30, 45):
        board.put_report(report(at_s=20.0 + tenth, refused=refused), 100.0 + tenth / 10)
    assert "stale orders" not in wrong(board, 104.5)


def test_what_an_agent_says_of_its_gpus_is_told_with_their_numbers_and_not_too_often(board):
    def said(number: int, **words) -> Gpu:
        return Gpu(
            uuid=f"u{number}", power_w=1.0, limit_w=400.0, enforced_w=400.0, min_w=150.0, max_w=650.0, **words
        )

    few = [said(0), said(1, fault="lost"), said(2, notice="60 W below ours"), said(3, fault="lost")]
    many = [said(number, notice=f"{number} W below ours") for number in range(8)]
    board.put_report(replace_gpus(report(), [*few, *map(said, range(4, 8))]), 100.0)
    assert board.gpu_faults["node-a"] == ["GPU 1, 3: lost"]
    assert board.gpu_notices["node-a"] == ["GPU 2: 60 W below ours"]
    board.put_report(replace_gpus(report(at_s=2.0), many), 100.1)
    assert len(board.gpu_notices["node-a"]) == 8
    assert _by_gpu(f"{number} W" for number in range(72))[8:] == ["64 more GPUs"]


def replace_gpus(told: Report, gpus) -> Report:
    return msgspec.structs.replace(told, gpus=tuple(gpus))


def test_what_a_bmc_has_proven_is_of_its_node_and_goes_when_it_is_not_proven_any_more(board):
    board.put_proven({"node-b": (250.0,) * 7 + (float("inf"),)})
    assert gpus(board).proven_w.tolist() == [NO_LIMIT_W] * 8 + [250.0] * 7 + [NO_LIMIT_W]
    board.put_proven({})
    assert (gpus(board).proven_w == NO_LIMIT_W).all()
