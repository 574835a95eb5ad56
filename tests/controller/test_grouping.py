"""Racks, nodes and GPUs as agents tell them, against block.yaml: what is found, and what it costs."""

import json
import time

import msgspec
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from controller.alarms.model import TEXT_MAX_CHARS
from controller.board import Board
from controller.cli import app
from controller.clock import now_s, now_utc_s
from controller.config import ConfigError, load_block, settings_of
from controller.core import law
from controller.grouping import (
    KEPT_S,
    LOOK_S,
    PROCESSES_MAX,
    STRANGERS_MAX,
    TWIN_AFTER_S,
    FoundGpu,
    Grouping,
    Host,
    Kind,
    Plan,
    Planned,
    check,
    plan_of,
)
from controller.service import Controller
from protocols import agent_link
from protocols.agent_link import Facts, Gpu, GpuFacts, Place, Report

EPOCH = 7
MIN_W, MAX_W = 200.0, 700.0
A, B = "1821324190001", "1821324190002"


def uuid(node: str, gpu: int) -> str:
    return f"GPU-{node.encode().hex()}-{gpu}"


def gpus(node: str, count=2, *, chassis="", **other) -> tuple[FoundGpu, ...]:
    return tuple(
        FoundGpu(uuid(node, gpu), "H200", MIN_W, **({"max_w": MAX_W} | other), chassis=chassis)
        for gpu in range(count)
    )


def plan(chassis=None, uuids=(), **racks: int) -> Plan:
    """`plan(r1=3)`: rack r1 with nodes r1-0 to r1-2, two GPUs each; `uuids`: nodes whose GPUs are listed."""
    nodes = {
        f"{rack}-{number}": Planned(
            rack,
            2,
            MAX_W,
            frozenset(uuid(f"{rack}-{number}", gpu) for gpu in range(2) if f"{rack}-{number}" in uuids),
        )
        for rack, count in racks.items()
        for number in range(count)
    }
    return Plan(nodes, {rack: frozenset(serials) for rack, serials in (chassis or {}).items()})


def told(expected: Plan, **other: tuple[FoundGpu, ...]) -> list[Host]:
    """All nodes with GPUs of their own, but for `other`, `_` for `-`."""
    named = {name.replace("_", "-"): found for name, found in other.items()}
    return [Host(name, named.get(name, gpus(name))) for name in {**expected.nodes, **named}]


def wrong(expected: Plan, hosts: list[Host]) -> list[tuple]:
    return [(one.node, one.kind, one.gpus, one.most_w) for one in check(expected, hosts)]


# --- the check ---------------------------------------------------------------------------------------


def test_a_block_that_is_as_configured_has_nothing_to_say():
    expected = plan(r1=2, r2=2, uuids=("r1-0",), chassis={"r1": [A]})
    at_home = {"r1_0": A, "r1_1": A, "r2_0": B, "r2_1": B}
    hosts = told(expected, **{name: gpus(name.replace("_", "-"), chassis=at) for name, at in at_home.items()})
    assert check(expected, hosts) == ()


@pytest.mark.parametrize(
    ("count", "most_w"), [(1, 2 * MAX_W), (3, 3 * MAX_W)], ids=["the missing count too", "and the surplus"]
)
def test_a_node_with_fewer_or_more_gpus_counts_at_all_that_there_may_be(count, most_w):
    expected = plan(r1=2)
    assert wrong(expected, told(expected, r1_1=gpus("r1-1", count))) == [("r1-1", Kind.COUNT, (0, 1), most_w)]


def test_a_gpu_that_is_missing_is_named_where_the_uuids_are_known():
    expected = plan(r1=1, uuids=("r1-0",))
    (found,) = check(expected, told(expected, r1_0=gpus("r1-0", 1)))
    assert uuid("r1-0", 1) in found.found


def test_a_gpu_that_two_nodes_claim_is_in_doubt_in_both():
    expected = plan(r1=3)
    assert wrong(expected, told(expected, r1_2=gpus("r1-0"))) == [
        ("r1-0", Kind.TWICE, (0, 1), 2 * MAX_W),
        ("r1-2", Kind.TWICE, (0, 1), 2 * MAX_W),
    ]


def test_a_node_that_counts_one_gpu_twice_is_in_doubt():
    expected = plan(r1=1)
    one = gpus("r1-0", 1)
    assert wrong(expected, told(expected, r1_0=one + one)) == [("r1-0", Kind.TWICE, (0, 1), 2 * MAX_W)]


def test_what_a_silent_node_had_once_is_not_held_against_others():
    expected = plan(r1=2)
    hosts = [Host("r1-0", gpus("r1-0"), live=False), Host("r1-1", gpus("r1-0"))]
    assert check(expected, hosts) == ()


def test_a_gpu_that_was_replaced_is_in_doubt_and_its_neighbour_is_not():
    expected = plan(r1=1, uuids=("r1-0",))
    swapped = (gpus("r1-0")[0], FoundGpu("GPU-new", "H200", MIN_W, MAX_W))
    (found,) = check(expected, told(expected, r1_0=swapped))
    assert (found.kind, found.gpus, found.most_w) == (Kind.OTHER, (1,), MAX_W)
    assert (found.configured, found.found) == (uuid("r1-0", 1), "GPU-new, not known")


def test_hosts_that_changed_names_are_told_whose_gpus_they_have():
    expected = plan(r1=2, uuids=("r1-0", "r1-1"))
    first, second = check(expected, told(expected, r1_0=gpus("r1-1"), r1_1=gpus("r1-0")))
    assert f"{uuid('r1-1', 0)} of r1-1" in first.found
    assert f"{uuid('r1-0', 0)} of r1-0" in second.found


def test_a_gpu_that_was_never_readable_is_not_held_against_anybody():
    expected = plan(r1=2, uuids=("r1-0",))
    assert check(expected, told(expected, r1_0=(FoundGpu(""),) * 2, r1_1=(FoundGpu(""),) * 2)) == ()


def test_a_gpu_that_can_do_more_than_configured_counts_at_that():
    expected = plan(r1=1)
    assert wrong(expected, told(expected, r1_0=gpus("r1-0", max_w=1000.0))) == [
        ("r1-0", Kind.MAXIMUM, (0, 1), 2000.0)
    ]
    assert check(expected, told(expected, r1_0=gpus("r1-0", max_w=600.0))) == ()


def test_modules_where_gpus_were_meant_count_at_what_modules_can():
    expected = plan(r1=1)
    assert wrong(expected, told(expected, r1_0=gpus("r1-0", max_w=2900.0), x=gpus("x", 1, max_w=2900.0))) == [
        ("r1-0", Kind.MAXIMUM, (0, 1), 5800.0),
        ("x", Kind.STRANGER, (), 2900.0),
    ]


def test_a_maximum_that_no_gpu_can_have_is_told_and_not_counted():
    expected = plan(r1=1)
    (found,) = check(expected, told(expected, r1_0=gpus("r1-0", max_w=1e6)))
    assert (found.kind, found.most_w) == (Kind.MAXIMUM, 2 * MAX_W)


def test_the_one_whose_chassis_is_full_of_another_racks_nodes_is_in_doubt():
    expected = plan(r1=3, r2=3)
    hosts = [
        Host(name, gpus(name, chassis=A if name.startswith("r1") or name == "r2-1" else B))
        for name in expected.nodes
    ]
    (found,) = check(expected, hosts)
    assert (found.node, found.kind, found.gpus) == ("r2-1", Kind.RACK, (0, 1))
    assert (found.configured, found.found) == ("rack r2", f"chassis {A}, of rack r1")


def test_one_chassis_half_in_either_rack_puts_both_halves_in_doubt():
    expected = plan(r1=1, r2=1)
    hosts = [Host(name, gpus(name, chassis=A)) for name in expected.nodes]
    assert [one.node for one in check(expected, hosts)] == ["r1-0", "r2-0"]


def test_a_rack_of_many_chassis_is_no_contradiction():
    """Boards in servers with a chassis each."""
    expected = plan(r1=3)
    assert check(expected, [Host(name, gpus(name, chassis=f"S{name}")) for name in expected.nodes]) == ()


@pytest.mark.parametrize(
    ("serial", "chassis", "where"),
    [
        (B, {"r1": [A], "r2": [B]}, "of rack r2"),
        (B, {"r1": [A]}, "of no rack that is known"),
        (B, {"r2": [B]}, "of rack r2"),
    ],
)
def test_serials_that_are_configured_decide(serial, chassis, where):
    expected = plan(r1=1, r2=1, chassis=chassis)
    (found,) = check(expected, told(expected, r1_0=gpus("r1-0", chassis=serial)))
    assert (found.node, found.kind) == ("r1-0", Kind.RACK)
    assert where in found.found


def test_a_misplaced_node_does_not_outvote_a_rack_that_names_no_serials():
    expected = plan(r1=1, r2=1, chassis={"r1": [A]})
    hosts = [Host(name, gpus(name, chassis=B)) for name in expected.nodes]
    assert [one.node for one in check(expected, hosts)] == ["r1-0"]


def test_one_chassis_in_two_racks_is_fine_where_the_file_says_so():
    expected = plan(r1=1, r2=1, chassis={"r1": [A], "r2": [A]})
    assert check(expected, [Host(name, gpus(name, chassis=A)) for name in expected.nodes]) == ()


def test_a_node_that_the_file_does_not_know_is_told_with_what_it_may_draw_and_who_it_may_be():
    expected = plan(r1=1, uuids=("r1-0",))
    (found,) = check(expected, [Host("r1-O", gpus("r1-0"))])
    assert (found.kind, found.node, found.gpus, found.most_w) == (Kind.STRANGER, "r1-O", (), 2 * MAX_W)
    assert "those of r1-0" in found.found


def test_two_hosts_of_one_name_count_together_and_two_agents_of_one_host_do_not():
    expected = plan(r1=1)
    own, other = gpus("r1-0"), gpus("elsewhere", 3)
    assert wrong(expected, [Host("r1-0", own, twins=(other,))]) == [("r1-0", Kind.TWINS, (0, 1), 5 * MAX_W)]
    assert [one.kind for one in check(expected, [Host("r1-0", own, twins=(own,))])] == [Kind.TWO_AGENTS]


def test_every_mismatch_says_what_was_found_what_it_costs_and_what_to_do():
    expected = plan(r1=2, uuids=("r1-0",))
    hosts = [
        Host("r1-0", gpus("x", max_w=900.0, chassis=A), twins=(gpus("y"),)),
        Host("r1-1", gpus("x", 3)),
        Host("z", gpus("z")),
    ]
    for one in check(expected, hosts):
        assert one.found in one.sentence
        assert one.configured in one.sentence
        assert one.cost in one.sentence
        assert one.sentence.endswith(one.remedy)
        assert "{" not in one.sentence


# --- what is remembered ------------------------------------------------------------------------------


def facts(node="node-a", *, boot="b1", count=8, of="", chassis="", max_w=MAX_W, persistence=None) -> Facts:
    place = Place(chassis_serial=chassis, slot=3, tray=1, host_id=0, module_id=1) if chassis else None
    told = tuple(
        GpuFacts(
            fallback_w=300.0,
            uuid=uuid(of or node, gpu),
            name="H200",
            min_w=MIN_W,
            max_w=max_w,
            place=place,
            persistence=persistence,
        )
        for gpu in range(count)
    )
    return Facts(
        node=node, boot=boot, at_s=1.0, driver="1", lease_max_s=10.0, waiting_max_s=30.0,
        fallback_ramp_w_per_s=50.0, gpus=told,
    )  # fmt: skip


@pytest.fixture
def grouping(config, settings) -> Grouping:
    return Grouping(settings, plan_of(config))


def kinds(grouping, at_s=100.0) -> list[tuple[str, Kind]]:
    grouping.look(at_s)
    return [(one.node, one.kind) for one in grouping.mismatches]


def test_what_is_told_again_is_not_looked_at_again(grouping):
    grouping.hear(facts(), 0.0)
    grouping.look(0.0)
    revision = grouping.revision
    for at_s in (1.0, 2.0, 3.0):
        grouping.hear(facts(), at_s)
        assert not grouping.look(at_s)
        assert at_s + LOOK_S > grouping._look_at_s
    assert grouping.revision == revision


def test_a_restart_of_an_agent_with_other_gpus_is_seen_at_once(grouping):
    grouping.hear(facts(), 0.0)
    assert kinds(grouping, 0.0) == []
    grouping.hear(facts(boot="b2", max_w=1000.0), 1.0)
    assert kinds(grouping, 1.0) == [("node-a", Kind.MAXIMUM)]
    grouping.hear(facts(boot="b3"), 2.0)
    assert kinds(grouping, 2.0) == []


def test_an_agent_that_was_replaced_is_no_second_one_unless_it_goes_on_speaking(grouping):
    grouping.hear(facts(boot="b1"), 0.0)
    grouping.hear(facts(boot="b2", of="x"), 1.0)
    grouping.hear(facts(boot="b1"), 1.0 + 0.9 * TWIN_AFTER_S)  # on the way when it died
    assert kinds(grouping, 10.0) == []
    grouping.hear(facts(boot="b1"), 11.0)
    assert kinds(grouping, 11.0) == [("node-a", Kind.TWINS)]
    assert kinds(grouping, 11.1 + KEPT_S) == []


def test_gpus_that_moved_to_another_host_are_free_again_when_the_old_one_has_been_silent(grouping):
    grouping.hear(facts("node-a"), 0.0)
    grouping.hear(facts("node-b", of="node-a"), 1.0)
    assert kinds(grouping, 1.0) == [("node-a", Kind.TWICE), ("node-b", Kind.TWICE)]
    grouping.hear(facts("node-b", of="node-a"), KEPT_S)
    assert kinds(grouping, KEPT_S + 0.1) == []


def test_a_hall_of_hosts_with_the_name_of_this_block_counts_whole(grouping):
    for number in range(144):
        grouping.hear(facts(f"x{number}"), 0.0)
    grouping.look(0.0)
    assert grouping.doubts.stray_w == 144 * 8 * MAX_W


def test_strangers_are_told_in_one_alarm_in_bounds_and_forgotten(grouping):
    for number in range(10 * STRANGERS_MAX):
        grouping.hear(facts(f"x{number}"), 0.0)
    assert len(kinds(grouping, 0.0)) == STRANGERS_MAX
    ((key, text),) = grouping.conditions()
    assert key == "unknown nodes"
    assert f"{STRANGERS_MAX * 5.6:.2f} kW" in text
    assert len(text) < 300
    assert kinds(grouping, KEPT_S + 0.1) == []
    assert grouping.told()["nodes"] == []


def test_whatever_comes_from_the_wire_makes_no_long_sentence(grouping):
    grouping.hear(facts("x" * 9000, chassis="c" * 9000), 0.0)
    grouping.hear(facts("node-a", of="y" * 9000, count=200, chassis="c" * 9000), 0.0)
    grouping.hear(facts("node-b", of="y" * 9000, chassis="c" * 9000), 0.0)
    grouping.look(0.0)
    assert len(grouping.mismatches) > 3
    said = dict(grouping.conditions())
    assert said.keys() == {"grouping node-a", "grouping node-b", "unknown nodes"}
    assert max(len(text) for text in said.values()) <= TEXT_MAX_CHARS
    assert "1 more of this node" in said["grouping node-b"]


def test_agents_that_restart_for_ever_are_remembered_in_bounds(grouping):
    for number in range(100):
        grouping.hear(facts(boot=f"b{number}"), 0.0)
    assert len(grouping._processes["node-a"]) == PROCESSES_MAX


def report(node="node-a", **fields) -> Report:
    one = Gpu(power_w=300.0, limit_w=400.0, enforced_w=400.0, min_w=MIN_W, max_w=MAX_W)
    return Report(
        **{"node": node, "boot": "b1", "at_s": 1.0, "gpus": (one,) * 8, "mode": "leased"}
        | {"epoch": EPOCH, "seq": 1, "echo_sent_at_s": 0.0, "echo_age_s": 0.0}
        | fields
    )


def test_a_stranger_that_never_tells_what_it_is_is_known_by_its_reports(grouping):
    for at_s in np.arange(0.0, 2 * KEPT_S, 1.0):
        grouping.hear_stranger(report("x"), at_s)
        assert kinds(grouping, at_s) == [("x", Kind.STRANGER)]


def strange(power_w, max_w=MAX_W, count=8) -> Report:
    one = Gpu(power_w=power_w, limit_w=max_w, enforced_w=max_w, min_w=MIN_W, max_w=max_w)
    return report("x", gpus=(one,) * count)


def test_an_unknown_node_counts_at_its_most_beside_what_the_meter_shows_of_it(grouping):
    grouping.hear_stranger(strange(300.0), 0.0)
    grouping.look(0.0)
    assert grouping.doubts.stray_w == 8 * (MAX_W - 300.0)
    assert f"{8 * MAX_W / 1e3:.2f} kW" in dict(grouping.conditions())["unknown nodes"]
    grouping.look(KEPT_S + 0.1)
    assert grouping.doubts.stray_w == 0.0


def test_what_an_unknown_node_draws_less_it_may_draw_again_at_once(grouping):
    for at_s in np.arange(0.0, 13.0, 0.1):
        grouping.hear_stranger(strange(600.0), at_s)
        grouping.look(at_s)
    assert grouping.doubts.stray_w == pytest.approx(800.0, rel=0.05)
    grouping.hear_stranger(strange(100.0), 13.0)
    assert grouping.look(13.0)
    assert grouping.doubts.stray_w == 4800.0
    grouping.hear_stranger(strange(650.0), 13.1)
    grouping.hear(facts("node-a"), 13.1)
    grouping.look(13.1)
    assert grouping.doubts.stray_w > 4000.0, "the meter has not seen it yet"


@pytest.mark.parametrize("power_w", [-1e300, -1.0, 1e300, 2100.1])
def test_a_power_of_an_unknown_node_that_no_gpu_can_draw_is_one_that_the_meter_does_not_show(
    grouping, power_w
):
    for at_s in np.arange(0.0, 30.0, 0.1):
        grouping.hear_stranger(strange(300.0), at_s)
    grouping.hear_stranger(strange(power_w), 30.0)
    grouping.look(30.0)
    assert grouping.doubts.stray_w == 8 * MAX_W
    for at_s in np.arange(30.1, 60.0, 0.1):
        grouping.hear_stranger(strange(300.0), at_s)
        grouping.look(at_s)
    assert grouping.doubts.stray_w == pytest.approx(8 * (MAX_W - 300.0), rel=0.01)


def test_one_gpu_of_an_unknown_node_above_its_most_takes_no_room_from_the_others(grouping):
    """A spike of one says nothing of what the others may still draw."""
    idle = Gpu(power_w=0.0, limit_w=MAX_W, enforced_w=MAX_W, min_w=MIN_W, max_w=MAX_W)
    spike = msgspec.structs.replace(idle, power_w=2 * MAX_W)
    for at_s in np.arange(0.0, 30.0, 0.1):
        grouping.hear_stranger(report("x", gpus=(spike, *(idle,) * 7)), at_s)
    grouping.look(30.0)
    assert grouping.doubts.stray_w == pytest.approx(7 * MAX_W)


@pytest.mark.parametrize(
    "max_w", [0.0, -1e300, 1e12], ids=["not told", "less than none", "not to be believed"]
)
def test_a_maximum_of_an_unknown_node_that_is_none_counts_as_the_greatest_configured(grouping, max_w):
    grouping.hear_stranger(strange(0.0, max_w), 0.0)
    grouping.look(0.0)
    assert grouping.doubts.stray_w == 8 * MAX_W


def test_two_hosts_of_one_unknown_name_both_count(grouping):
    for at_s in np.arange(0.0, 2 * TWIN_AFTER_S, 0.5):
        for boot in ("b1", "b2"):
            grouping.hear(facts("x", of=boot, boot=boot), at_s)
    grouping.look(2 * TWIN_AFTER_S)
    assert grouping.doubts.stray_w == 16 * MAX_W


def test_what_a_stranger_tells_of_itself_is_more_than_its_reports_say(grouping):
    grouping.hear_stranger(report("x"), 0.0)
    grouping.hear(facts("x"), 0.1)
    grouping.look(0.1)
    grouping.hear_stranger(report("x"), 0.2)
    assert not grouping.look(0.2)
    assert grouping.told()["nodes"][0]["gpus"][0]["uuid"] == uuid("x", 0)


def test_nodes_whose_driver_forgets_limits_are_told_and_nothing_else_is_wrong_with_them(grouping):
    grouping.hear(facts("node-a", persistence=True), 0.0)
    grouping.hear(facts("x", persistence=False), 0.0)
    assert kinds(grouping, 0.0) == [("x", Kind.STRANGER)]
    assert "persistence" not in dict(grouping.conditions()), "an unknown node is told as that"
    grouping.hear(facts("node-a", persistence=False), 1.0)
    assert kinds(grouping, 1.0) == [("x", Kind.STRANGER)]
    said = dict(grouping.conditions())["persistence"]
    assert said.startswith("persistence mode is off on 8 GPUs of node-a: limits are lost")
    assert "nvidia-persistenced" in said


def test_who_has_told_nothing_is_not_checked_and_said_to_be_so(grouping):
    grouping.hear(facts("node-b"), 0.0)
    grouping.look(0.0)
    why = {(one["node"], one["why"].partition(":")[0]) for one in grouping.told()["unchecked"]}
    assert why == {
        ("node-a", "has not told its GPUs"),
        ("node-b", "no `gpu_uuids` configured"),
        ("node-b", "its boards do not know their chassis"),
    }


# --- what it costs -----------------------------------------------------------------------------------


class Block:
    """The law on the block of the tests, whose agents do as they are told until they are silent."""

    def __init__(self, settings, grouping) -> None:
        self.settings, self.grouping = settings, grouping
        self.board = Board(settings, EPOCH)
        self.now_s = 0.0
        self.state = law.start(settings, 0.0)
        self.decision = None
        self.silent: set[str] = set()
        self.max_w = MAX_W

    def run(self, for_s: float) -> None:
        names = self.settings.topology.node_names
        for _ in range(round(for_s / self.settings.tick_s)):
            self.now_s += self.settings.tick_s
            for number, name in enumerate(names):
                if name not in self.silent and self.decision is not None:
                    limits_w = self.decision.gpu_limits_w[8 * number : 8 * number + 8]
                    self.board.put_report(self.report(name, limits_w, number), self.now_s)
            if self.grouping.look(self.now_s):
                self.board.put_doubts(self.grouping.doubts)
            self.decision = law.tick(self.settings, self.state, self.board.snapshot(self.now_s, 0.0))
            self.state = self.decision.state

    def report(self, name, limits_w, number) -> Report:
        said = [
            Gpu(power_w=0.9 * w, limit_w=w, enforced_w=w, min_w=MIN_W, max_w=self.max_w) for w in limits_w
        ]
        return Report(
            node=name, boot="b1", at_s=self.now_s, epoch=EPOCH, seq=int(self.decision.node_seq[number]),
            mode="leased", gpus=tuple(said), echo_sent_at_s=self.now_s, echo_age_s=0.0,
        )  # fmt: skip

    @property
    def counted_w(self) -> float:
        """What the law counts all GPUs at while it cannot cover that: shortfall and all."""
        over_w = self.decision.shortfall_w + self.decision.budget_w - self.decision.base_w
        return over_w / self.settings.block_w_per_gpu_w

    def limits_w(self, node: int) -> set[float]:
        return set(self.decision.gpu_limits_w[8 * node : 8 * node + 8].tolist())


@pytest.fixture
def block(settings, grouping) -> Block:
    made = Block(settings, grouping)
    for node in ("node-a", "node-b"):
        grouping.hear(facts(node), 0.0)
    made.run(15.0)
    assert made.decision.shortfall_w == 0.0
    assert made.counted_w <= 16 * MAX_W
    return made


@pytest.mark.parametrize(
    ("said", "most_w"),
    [
        (facts("node-b", boot="b2", of="node-a"), 16 * MAX_W),  # both in doubt
        (facts("node-b", boot="b2", chassis=A), 8 * MAX_W + 8 * MIN_W),
    ],
    ids=["the GPUs of another node", "in the chassis of another rack"],
)
def test_gpus_in_doubt_are_ordered_to_their_least_and_counted_at_their_most(
    block_with, settings, block, said, most_w
):
    block.grouping._plan = plan_of(load_block(block_with({"racks.0.chassis_serials": [A]})))
    block.grouping.hear(said, block.now_s)
    block.run(1.0)
    assert block.limits_w(1) == {MIN_W}
    block.run(settings.silent_max_after_s)
    assert block.counted_w == pytest.approx(most_w)


def test_when_the_file_is_put_right_power_comes_back(block, settings):
    before_w = block.limits_w(1)
    block.grouping.hear(facts("node-b", boot="b2", of="node-a"), block.now_s)
    block.run(12.0)
    block.grouping.hear(facts("node-b", boot="b3"), block.now_s)
    block.run(60.0)
    assert block.decision.shortfall_w == 0.0
    assert min(block.limits_w(1)) >= 0.9 * min(before_w)


def test_gpus_that_nobody_has_configured_count_with_the_node_that_has_them(block, settings):
    block.grouping.hear(facts("node-b", boot="b2", count=9), block.now_s)
    block.silent = {"node-b"}  # the board refuses its reports
    block.run(2.0 + settings.silent_max_after_s)
    assert block.counted_w == pytest.approx(9 * MAX_W + 8 * MIN_W)


def test_room_is_held_for_an_unknown_node_that_may_start_to_work(block, settings):
    room_w = block.decision.budget_w - block.decision.base_w
    idle = strange(75.0, 500.0, count=1)
    for _ in range(20):
        block.grouping.hear_stranger(idle, block.now_s)
        block.run(0.1)
    held_w = settings.block_w_per_gpu_w * (500.0 - 75.0)
    assert block.decision.budget_w - block.decision.base_w == pytest.approx(room_w - held_w)
    assert block.decision.gpu_limits_w.sum() * settings.block_w_per_gpu_w <= room_w - held_w
    block.run(KEPT_S + LOOK_S)
    assert block.decision.budget_w - block.decision.base_w == pytest.approx(room_w)


def test_a_greater_model_is_never_given_more_and_counts_at_the_higher_when_it_is_silent(block, settings):
    block.max_w = 1000.0
    block.run(15.0)
    assert block.decision.shortfall_w == 0.0  # it obeys: that costs nothing
    assert max(block.decision.gpu_limits_w) <= MAX_W
    block.silent = {"node-b"}
    block.run(2.0 + settings.silent_max_after_s)
    assert block.counted_w == pytest.approx(8 * 1000.0 + 8 * MIN_W)


def test_a_hundred_and_forty_four_nodes_are_checked_in_a_moment():
    expected = plan(
        uuids=[f"r{r}-{n}" for r in range(16) for n in range(9)], **{f"r{r}": 9 for r in range(16)}
    )
    hosts = [
        Host(name, gpus(name, 8, chassis=f"S{planned.rack}")) for name, planned in expected.nodes.items()
    ]
    began_s = time.thread_time()  # of the processor: the machine may be busy
    assert len(check(expected, hosts)) == 144  # 8 GPUs instead of 2
    assert time.thread_time() - began_s < 0.25


# --- block.yaml, the controller, the command ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"racks.0.nodes.0.gpu_uuids": ["GPU-1"]}, "1 for 8 GPUs; list all, or none"),
        ({"racks.0.nodes.0.gpu_uuids": ["0"] * 8}, "racks[0].nodes[0].gpu_uuids"),
        ({"racks.0.nodes.0.gpu_uuids": ["GPU-1"] * 8}, "'GPU-1' is used twice; a GPU is in one node"),
        ({"racks.0.chassis_serials": [1821324190001]}, "racks[0].chassis_serials[0]"),
    ],
)
def test_identities_that_cannot_be_are_refused(block_with, changes, sentence):
    with pytest.raises(ConfigError) as refused:
        load_block(block_with(changes))
    assert sentence in str(refused.value)


def powerblock(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100", "TERM": "dumb"})


def say(controller, *messages) -> None:
    for message in messages:
        topic = agent_link.facts_topic if isinstance(message, Facts) else agent_link.report_topic
        controller._on_message(topic("hall-a", message.node), agent_link.encode(message), False)
    controller._due = dict.fromkeys(controller._due, -1e12)
    controller._beat()


@pytest.fixture
def running(block_with):
    path = block_with()
    controller = Controller(load_block(path))
    yield controller, path
    controller.close()


async def test_a_mismatch_is_an_alarm_and_its_gpus_are_unknown_to_the_law(running):
    controller, path = running
    say(controller, report("node-a"), facts("node-a"))
    assert not np.isnan(controller._board.snapshot(now_s(), now_utc_s()).gpus.limit_w[:8]).any()
    say(controller, facts("node-b", of="node-a"), report("x"))
    alarms = {one["key"]: one for one in json.loads(controller._status.path.read_text())["alarms"]}
    assert {"grouping node-a", "grouping node-b", "unknown nodes"} <= alarms.keys()
    assert alarms["grouping node-b"]["priority"] == "high"
    assert "5.60 kW" in alarms["grouping node-b"]["text"]
    assert np.isnan(controller._board.snapshot(now_s(), now_utc_s()).gpus.limit_w).all()
    found = powerblock("grouping", path)
    assert found.exit_code == 1
    for words in ("3 do not agree", "node-b one GPU on two nodes", "x unknown node", "→ one host answers"):
        assert words in " ".join(found.stdout.split())
    assert len(json.loads(powerblock("grouping", path, "--json").stdout)["mismatches"]) == 3
    say(controller, facts("node-b", boot="b2"))
    assert "grouping node-b" not in dict(controller._grouping.conditions())


async def test_all_that_agrees_is_said_too_and_what_was_not_checked(running):
    controller, path = running
    say(controller, facts("node-b"))
    found = powerblock("grouping", path)
    assert found.exit_code == 1, "who has not told anything does not agree"
    assert "told their GPUs: 1, with 8; they agree with block.yaml, 1 of its nodes are missing" in " ".join(
        found.stdout.split()
    )
    assert "silent since the start, or an older agent: node-a" in " ".join(found.stdout.split())
    say(controller, facts("node-a"))
    found = powerblock("grouping", path)
    assert found.exit_code == 0
    assert "nodes that have told their GPUs: 2, with 16; all agree" in " ".join(found.stdout.split())


async def test_a_node_whose_driver_forgets_limits_has_a_line_and_agrees(running):
    controller, path = running
    say(controller, facts("node-a", persistence=True), facts("node-b", persistence=False))
    found = powerblock("grouping", path)
    assert found.exit_code == 0
    assert "enable nvidia-persistenced: node-b (8 GPUs)" in " ".join(found.stdout.split())
    alarms = {one["key"]: one for one in json.loads(controller._status.path.read_text())["alarms"]}
    assert alarms["persistence"]["priority"] == "low"
    say(controller, facts("node-b", persistence=True))
    assert "persistence" not in powerblock("grouping", path).stdout


async def test_before_anybody_has_told_anything_nothing_is_known(running):
    controller, path = running
    say(controller)
    found = powerblock("grouping", path)
    assert found.exit_code == 1
    assert "nothing is known yet" in found.stdout
    assert "silent since the start, or an older agent: node-a, node-b" in " ".join(found.stdout.split())


async def test_a_proposal_names_the_nodes_that_it_knows_nothing_of(running):
    controller, path = running
    say(controller, facts("node-b"))
    proposed = powerblock("grouping", path, "--propose")
    assert proposed.exit_code == 1
    assert "have not told their GPUs: node-a\n" in proposed.stdout
    assert "gpu_uuids" not in yaml.safe_load(proposed.stdout)["racks"][0]["nodes"][0]
    say(controller, facts("node-a"))
    proposed = powerblock("grouping", path, "--propose")
    assert (proposed.exit_code, "have not told" in proposed.stdout) == (0, False)


async def test_what_was_found_can_be_proposed_as_a_configuration_that_holds(running, block_with):
    """node-a is found in the chassis of nobody, with a neighbour that block.yaml does not know."""
    controller, path = running
    say(
        controller,
        facts("node-a", chassis=A),
        facts("node-b", chassis=B, max_w=1000.0),
        facts("node-c", chassis=A),
    )
    proposed = yaml.safe_load(powerblock("grouping", path, "--propose").stdout)["racks"]
    assert [(rack["name"], rack["chassis_serials"]) for rack in proposed] == [("r1", [A]), ("r2", [B])]
    assert [node["name"] for node in proposed[0]["nodes"]] == ["node-a", "node-c"]
    assert proposed[1]["nodes"][0]["max_w"] == 1000.0
    assert proposed[1]["nodes"][0]["tier"] == "critical"
    config = load_block(block_with({"racks": proposed, "feed.rating_kw": 40, "site.failsafe_kw": 30}))
    hosts = [
        Host(name, tuple(FoundGpu(*msgspec.structs.astuple(gpu)[1:5], at) for gpu in facts(name).gpus))
        for name, at in (("node-a", A), ("node-b", B), ("node-c", A))
    ]
    assert check(plan_of(config), hosts) == ()
    assert len(settings_of(config).topology.gpu_node) == 24


async def test_a_chassis_of_no_rack_is_proposed_without_the_inlets_that_nobody_can_know(running):
    controller, path = running
    say(controller, facts("node-z", chassis=B))
    proposed = yaml.safe_load(powerblock("grouping", path, "--propose").stdout)["racks"]
    assert proposed[-1] | {"nodes": []} == {
        "name": f"rack-{B}", "inlets": [], "chassis_serials": [B], "nodes": []
    }  # fmt: skip


def test_without_a_controller_there_is_nothing_to_show(block_with):
    found = powerblock("grouping", block_with())
    assert found.exit_code == 1
    assert "grouping.json" in found.stderr
