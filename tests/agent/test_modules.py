"""Boards whose limit is that of a module: GPUs that share it are told, and ordered, their shares of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from controller.actuate import Actuate, Heard
from controller.agent.config import NodeConfig
from controller.agent.lanes import TIMEOUT
from controller.agent.node import APART_AFTER_S, Agent
from controller.agent.shares import Range, Share, modules_of, shares
from controller.board import Board
from controller.core import law
from firmware_sim import gpu_firmware
from protocols import agent_link
from protocols.agent_link import Level
from protocols.nvml import Device, NvmlFault, Reading, Smoothing
from tests.agent.test_restore import restore
from tests.core.blocks import MAX_W, MIN_W, UTC_0, good, settings
from tests.core.test_law import Block

BASE_W = 600.0
PAIRS = {"count": 4, "per_module": 2}
ORDER_W = (700.0, 500.0, 450.0, 450.0)


class Driver:
    """GPUs in a row that share the limit of their module, and draw as much as their work and that allow."""

    first, driver_version = 0, "1"

    def __init__(self, gpu_count=4, per_module=2, *, told_by_module=True, demand_w=MAX_W) -> None:
        self.gpu_count, self.per_module = gpu_count, per_module
        self.demand_w = demand_w  # of one GPU
        self.limits_w = [MAX_W * per_module] * (gpu_count // per_module)
        self.writes: list[tuple[int, float]] = []
        self.lost: set[int] = set()
        self.devices = [
            Device(
                index=gpu,
                uuid=f"GPU-{id(self)}-{gpu}",
                name="g",
                min_w=MIN_W * per_module,
                max_w=MAX_W * per_module,
                default_w=MAX_W * per_module,
                module=told_by_module,
            )
            for gpu in range(gpu_count)
        ]

    def drawn_w(self, module: int) -> float:
        return min(self.limits_w[module], self.demand_w * self.per_module)

    def read(self, gpu: int) -> Reading:
        limit_w, drawn_w = self.read_limit_w(gpu), self.drawn_w(gpu // self.per_module)
        return Reading(self.devices[gpu], drawn_w, False, limit_w, limit_w, reasons=4 * (drawn_w == limit_w))

    def read_limit_w(self, gpu: int) -> float:
        if gpu in self.lost:
            raise NvmlFault(15, "GPU is lost")
        return self.limits_w[gpu // self.per_module]

    def set_limit_w(self, gpu: int, limit_w: float) -> float:
        if gpu in self.lost:
            raise NvmlFault(15, "GPU is lost")
        self.writes.append((gpu, limit_w))
        self.limits_w[gpu // self.per_module] = limit_w
        return limit_w

    def lower_limit_w(self, gpu: int, limit_w: float) -> float:
        return self.set_limit_w(gpu, min(limit_w, self.read_limit_w(gpu)))


class Clock:
    """Time of all that ask for it, given by hand."""

    def __init__(self, monkeypatch) -> None:
        self.now_s = 1000.0
        for module in ("node", "hearing", "found_limits"):
            monkeypatch.setattr(f"controller.agent.{module}.now_s", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def agent_of(driver, folder, *, per_module=2, node="n", fallback_w=500, ramp_w_per_s=10_000.0) -> Agent:
    config = NodeConfig(
        block="b",
        node=node,
        mqtt={"url": "mqtt://127.0.0.1"},
        gpus=None if per_module is None else {"count": driver.gpu_count, "per_module": per_module},
        fallback_w=fallback_w,
        fallback_ramp_w_per_s=ramp_w_per_s,
        state_dir=folder,
    )
    return Agent(config, driver, observe=False)


def called(calls):
    def outcome(call):
        try:
            return call()
        except NvmlFault as fault:
            return fault

    return {key: outcome(call) for key, call in calls.items()}


def sweep(agent, clock) -> None:
    agent.swept(called(agent.reads()), clock.now_s)
    agent.beat(clock.now_s)


def apply(agent, clock) -> None:
    written = called(agent.limit_writes(clock.now_s))
    agent.limits_wrote(written, called(agent.read_backs()), clock.now_s)
    agent.obeyed(clock.now_s)


def order(agent, clock, limits_w, seq=1, lease_s=5.0) -> None:
    clock.now_s += 0.01
    message = agent_link.Order(
        epoch=1,
        seq=seq,
        sent_at_s=1.0,
        echo_at_s=clock.now_s,
        known_at_s=clock.now_s,
        lease_s=lease_s,
        limits_w=limits_w,
    )
    agent.on_message("powerblock/b/agent/n/order", agent_link.encode(message), False)


def told(agent, clock) -> agent_link.Report:
    return agent_link.decode_report(agent.report(clock.now_s))


def limits_w(agent, clock) -> list[float]:
    return [gpu.limit_w for gpu in told(agent, clock).gpus]


# ---- what is whose


def test_gpus_in_a_row_share_where_the_driver_limits_one_of_them_by_its_module():
    assert modules_of([True, True, True, False], 2) == ((0, 1), (2, 3))
    assert modules_of([False, False, True, True], 2) == ((0,), (1,), (2, 3))
    assert modules_of([True] * 4, 2, apart={2, 3}) == ((0, 1), (2,), (3,))
    assert modules_of([True, True, True], 1) == ((0,), (1,), (2,))
    assert modules_of([False] * 4, 2) == ()


def test_shares_are_as_what_each_should_hold_and_equal_where_nobody_has_said():
    allowed = (Range(400.0, 1400.0), None)
    assert shares((300.0, 600.0), allowed, ((0, 1),)) == (Share(1 / 3, 0.5), Share(2 / 3, 0.5))
    assert shares((100.0, 900.0), allowed, ((0, 1),)) == (Share(2 / 9, 0.5), Share(7 / 9, 0.5))
    for unsaid in ((None, 500.0), (None, None), (0.0, 0.0)):
        assert shares(unsaid, (None, None), ((0, 1),)) == (Share(0.5, 0.5),) * 2
    assert shares((300.0, 600.0), allowed, ((0,), (1,))) == (Share(), Share())


# ---- one agent


def test_a_module_gets_one_write_of_the_sum_and_each_gpu_reads_back_its_order(tmp_path, clock):
    driver = Driver()
    agent = agent_of(driver, tmp_path)
    sweep(agent, clock)
    assert limits_w(agent, clock) == [700.0] * 4
    order(agent, clock, ORDER_W)
    apply(agent, clock)
    assert sorted(driver.writes) == [(0, 1200.0), (2, 900.0)]
    assert [gpu for gpu, _ in driver.writes] == [2, 0], "the larger cut first"
    assert limits_w(agent, clock) == list(ORDER_W)
    clock.now_s += 0.1
    sweep(agent, clock)
    report = told(agent, clock)
    assert [gpu.limit_w for gpu in report.gpus] == list(ORDER_W)
    assert [gpu.power_w for gpu in report.gpus] == list(ORDER_W)
    assert {(gpu.min_w, gpu.max_w, gpu.fault) for gpu in report.gpus} == {(MIN_W, MAX_W, "")}
    assert report.seq == 1
    assert agent.limit_writes(clock.now_s) == {}
    facts = agent_link.decode_facts(agent.facts(clock.now_s))
    assert [gpu.module for gpu in facts.gpus] == [0, 0, 1, 1]
    assert {(gpu.min_w, gpu.max_w, gpu.default_w, gpu.found_w, gpu.fallback_w) for gpu in facts.gpus} == {
        (MIN_W, MAX_W, MAX_W, MAX_W, 500.0)
    }


def test_what_a_module_holds_is_told_whole_whoever_has_set_it(tmp_path, clock):
    """Another writer, a board that allows less than was ordered: the parts are always the module."""
    driver = Driver()
    agent = agent_of(driver, tmp_path)
    sweep(agent, clock)
    order(agent, clock, (400.0, 200.0, 450.0, 450.0))
    apply(agent, clock)
    driver.limits_w = [900.0, 300.0]
    clock.now_s += 0.1
    agent.swept(called(agent.reads()), clock.now_s)
    assert limits_w(agent, clock) == pytest.approx([600.0, 300.0, 150.0, 150.0])
    order(agent, clock, (400.0, 200.0, 450.0, 450.0), seq=2)
    apply(agent, clock)
    assert driver.limits_w == [600.0, 900.0]


def test_while_a_cut_is_on_its_way_nobody_is_told_its_share_of_it(tmp_path, clock):
    driver = Driver()
    agent = agent_of(driver, tmp_path)
    sweep(agent, clock)
    order(agent, clock, (300.0, 300.0, 300.0, 300.0))
    apply(agent, clock)
    order(agent, clock, (200.0, 300.0, 300.0, 300.0), seq=2)
    assert limits_w(agent, clock) == [300.0] * 4
    apply(agent, clock)
    assert limits_w(agent, clock) == pytest.approx([200.0, 300.0, 300.0, 300.0])


def test_a_lapse_takes_each_module_to_the_sum_of_the_fallbacks_of_its_gpus(tmp_path, clock):
    driver = Driver()
    agent = agent_of(driver, tmp_path, fallback_w=[300, 400, 250, 600])
    sweep(agent, clock)
    order(agent, clock, ORDER_W, lease_s=1.0)
    apply(agent, clock)
    for _ in range(30):
        clock.now_s += 0.1
        sweep(agent, clock)
        apply(agent, clock)
    assert driver.limits_w == [700.0, 700.0]  # 450 W is below the fallback of the last GPU, and stays
    assert limits_w(agent, clock) == pytest.approx([300.0, 400.0, 250.0, 450.0])


def test_a_module_that_nobody_has_ordered_ramps_down_from_what_it_holds(tmp_path, clock):
    driver = Driver()
    agent = agent_of(driver, tmp_path, ramp_w_per_s=100.0)
    sweep(agent, clock)
    clock.now_s += agent.config.waiting_max_s + 1.0
    sweep(agent, clock)
    apply(agent, clock)
    assert driver.limits_w == pytest.approx([1200.0, 1200.0])
    assert limits_w(agent, clock) == pytest.approx([600.0] * 4)


def test_a_call_lowers_a_module_to_the_sum_of_its_level(tmp_path, clock):
    driver = Driver()
    agent = agent_of(driver, tmp_path)
    sweep(agent, clock)
    order(agent, clock, ORDER_W)
    apply(agent, clock)
    table = agent_link.Table(epoch=1, version=1, levels=(Level(limits_w=(250.0, 650.0, 300.0, 300.0)),))
    call = agent_link.Call(epoch=1, seq=2, version=1, level=0, sent_at_s=2.0)
    agent.on_message("powerblock/b/agent/n/table", agent_link.encode(table), False)
    agent.on_message("powerblock/b/agents/call", agent_link.encode(call), False)
    apply(agent, clock)
    assert driver.limits_w == [750.0, 600.0]
    report = told(agent, clock)
    assert [gpu.limit_w for gpu in report.gpus] == pytest.approx([250.0, 500.0, 300.0, 300.0])
    assert report.seq == 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_module_is_limited_by_the_gpu_that_is_well(tmp_path, clock, lost):
    driver = Driver()
    agent = agent_of(driver, tmp_path)
    sweep(agent, clock)
    order(agent, clock, ORDER_W)
    apply(agent, clock)
    driver.lost.add(lost)
    for seq, ordered_w in enumerate(((300.0,) * 4, (600.0,) * 4), 2):
        clock.now_s += 0.1
        sweep(agent, clock)
        order(agent, clock, ordered_w, seq=seq)
        apply(agent, clock)
        assert driver.limits_w == [2 * ordered_w[0]] * 2
        assert told(agent, clock).gpus[1 - lost].fault == ""
        expected_w = [None if gpu == lost else ordered_w[0] for gpu in range(4)]
        clock.now_s += 0.1
        sweep(agent, clock)
        assert limits_w(agent, clock) == expected_w
        assert told(agent, clock).gpus[1 - lost].fault == ""


def test_while_a_write_hangs_nobody_knows_what_its_module_will_hold(tmp_path, clock):
    driver = Driver()
    agent = agent_of(driver, tmp_path)
    sweep(agent, clock)
    order(agent, clock, ORDER_W)
    apply(agent, clock)
    order(agent, clock, (550.0, 550.0, 600.0, 600.0), seq=2)
    hangs = NvmlFault(TIMEOUT, "has not returned")
    keys = [*agent.limit_writes(clock.now_s)]
    assert sorted(keys) == [0, 2]
    agent.limits_wrote({0: hangs, 2: 1200.0}, {0: hangs, 1: 1100.0, 2: 1200.0, 3: 1200.0}, clock.now_s)
    driver.limits_w[1] = 1200.0
    for _ in range(2):  # the lane calls no GPU that hangs
        clock.now_s += 0.1
        agent.swept(called(agent.reads()) | {0: hangs}, clock.now_s)
        assert limits_w(agent, clock) == [None, None, 600.0, 600.0]
    assert [write.func.__name__ for write in agent.limit_writes(clock.now_s).values()] == ["_write"]
    apply(agent, clock)
    assert driver.writes[-1] == (1, 1100.0), "the other GPU of the module takes the write"
    clock.now_s += 0.1
    sweep(agent, clock)
    assert limits_w(agent, clock) == [550.0, 550.0, 600.0, 600.0]


def test_smoothing_that_keeps_a_gpu_above_its_share_is_told(tmp_path, clock):
    driver = Driver()
    smoothing = Smoothing(enabled=True, floor_w=600.0)
    driver.devices = [replace(device, smoothing=smoothing) for device in driver.devices]
    agent = agent_of(driver, tmp_path)
    sweep(agent, clock)
    order(agent, clock, (500.0, 500.0, 650.0, 650.0))
    apply(agent, clock)
    clock.now_s += 0.1
    sweep(agent, clock)
    noticed = ["100 W above its limit" in gpu.notice for gpu in told(agent, clock).gpus]
    assert noticed == [True, True, False, False]


def test_gpus_that_do_not_follow_each_other_are_of_no_module_and_hold_their_own(tmp_path, clock):
    """node.yaml says pairs, the host has none: the sum would be held twice."""
    driver = Driver(per_module=1)
    agent = agent_of(driver, tmp_path)
    sweep(agent, clock)
    order(agent, clock, (300.0, 250.0, 300.0, 300.0), lease_s=9.0)
    for _ in range(round(APART_AFTER_S / 0.1) + 5):
        apply(agent, clock)
        clock.now_s += 0.1
        sweep(agent, clock)
    assert driver.limits_w == [300.0, 250.0, 300.0, 300.0]
    report = told(agent, clock)
    assert [gpu.limit_w for gpu in report.gpus] == [300.0, 250.0, 300.0, 300.0]
    assert all("correct `gpus.per_module`" in gpu.fault for gpu in report.gpus)


@pytest.mark.parametrize(
    ("per_module", "told_by_module", "wrong"), [(None, True, True), (None, False, False), (1, True, False)]
)
def test_node_yaml_has_to_say_who_shares_where_the_driver_limits_modules(
    tmp_path, clock, per_module, told_by_module, wrong
):
    agent = agent_of(Driver(per_module=1, told_by_module=told_by_module), tmp_path, per_module=per_module)
    sweep(agent, clock)
    assert ["`gpus.per_module`" in gpu.fault for gpu in told(agent, clock).gpus] == [wrong] * 4


# ---- a block of modules, under the law


class ModuleBlock(Block):
    """Two nodes of two GPUs, each with its real agent; ideal instruments."""

    def __init__(self, clock, folder, per_module) -> None:
        super().__init__(settings(base_min_w=100.0, base_max_w=1000.0), at_s=clock.now_s)
        self.clock = clock
        self.drivers = [Driver(2, per_module, told_by_module=per_module > 1) for _ in range(2)]
        self.agents = [
            agent_of(driver, folder / node, node=node, per_module=per_module)
            for node, driver in zip(("n0", "n1"), self.drivers, strict=True)
        ]
        self.board = Board(self.settings, 1)
        self.actuate = Actuate(self.settings, 1, 5.0)

    def drawn_w(self) -> float:
        return sum(
            driver.drawn_w(module) for driver in self.drivers for module in range(len(driver.limits_w))
        )

    def step(self, limit_w) -> None:
        self.clock.now_s = self.now_s = self.now_s + self.settings.tick_s
        for agent in self.agents:
            sweep(agent, self.clock)
            apply(agent, self.clock)
            assert self.board.put_report(told(agent, self.clock), self.now_s) == ""
        self.history.append((self.now_s, self.drawn_w()))
        metered_w = self.metered_w()
        self.board.meter, self.board.site = good(metered_w, self.now_s), self.site(limit_w)
        for inlet in range(4):
            self.board.put_inlet(inlet, good(metered_w / 4, self.now_s))
        self.decision = law.tick(
            self.settings, self.state, self.board.snapshot(self.now_s, UTC_0 + self.now_s)
        )
        self.state = self.decision.state
        heard = Heard(
            [self.board.heard(agent.config.node)[1] for agent in self.agents],
            self.board.report_at_s.tolist(),
            self.board.known_at_s.tolist(),
            [0, 0],
        )
        for node, message in self.actuate.orders(self.decision, heard, self.now_s):
            agent = self.agents[node]
            agent.on_message(f"powerblock/b/agent/n{node}/order", agent_link.encode(message), False)
            apply(agent, self.clock)


@pytest.mark.parametrize("per_module", [1, 2], ids=["a limit for each GPU", "a limit for each module"])
def test_base_load_is_the_truth_and_the_block_draws_what_it_may_whoever_has_the_limit(
    tmp_path, clock, per_module
):
    block = ModuleBlock(clock, tmp_path, per_module)
    for limit_w, drawn_w in ((2400.0, 2400.0), (1500.0, 1500.0), (1450.0, 1450.0), (4000.0, 3400.0)):
        for _ in range(round(12.0 / block.settings.tick_s)):
            block.step(limit_w)
        assert block.decision.base_w == pytest.approx(BASE_W, abs=5.0)
        assert block.drawn_w() + BASE_W == pytest.approx(drawn_w, abs=10.0)
        assert block.decision.shortfall_w == 0.0
        assert [alarm.key for alarm in block.decision.alarms] == []
        ordered_w = block.decision.gpu_limits_w
        seen_w = np.concatenate([limits_w(agent, clock) for agent in block.agents])
        assert seen_w == pytest.approx(ordered_w, abs=1.0)


# ---- the real agent, on a driver that knows modules alone


async def test_the_agent_keeps_a_host_of_modules_and_tells_it_once(node):
    async with node(gpus=PAIRS) as n:
        n.memory.share_limits(2)
        n.memory.gpus["instant_mw"] = (400_000, 300_000, 250_000, 250_000)
        n.start()
        report = await n.report()
        assert [gpu.power_w for gpu in report.gpus] == [350.0, 350.0, 250.0, 250.0]
        await n.lead(ORDER_W)
        assert [n.limits_w()[gpu] for gpu in (0, 2)] == [1200.0, 900.0]
        report = await n.report()
        assert [gpu.limit_w for gpu in report.gpus] == pytest.approx(ORDER_W, abs=0.01)
        assert sum(gpu.power_w for gpu in report.gpus) == pytest.approx(1200.0)
        assert {(gpu.min_w, gpu.max_w, gpu.fault, gpu.notice) for gpu in report.gpus} == {
            (200.0, 700.0, "", "")
        }
        await n.table(Level(limits_w=(300.0, 250.0, 200.0, 220.0)))
        seq = n.call(0).seq
        await n.report(lambda report: report.seq == seq)
        assert [n.limits_w()[gpu] for gpu in (0, 2)] == [550.0, 420.0]
        await n.lead(ORDER_W, lease_s=2.0)
        await n.until(lambda: [n.limits_w()[gpu] for gpu in (0, 2)] == [600.0, 600.0], within_s=20)
        assert sum(n.memory.gpus["refused_count"]) == 0


async def test_the_limit_that_a_module_was_found_at_is_put_back_once(node):
    """A GPU that was ill when the agent came was met with the limit that the agent had set by then."""
    async with node(gpus=PAIRS) as n:
        n.memory.share_limits(2)
        n.memory.gpus["requested_mw"] = 1_350_000
        n.memory.gpus["forced_error"][1] = gpu_firmware.GPU_IS_LOST
        n.start()
        await n.report()
        await n.lead(ORDER_W)
        n.memory.gpus["forced_error"][1] = 0
        file = n.folder / "state" / "found-limits.jsonl"
        await n.until(lambda: file.exists() and len(file.read_text().splitlines()) == 4, within_s=20)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert sorted((line["gpu"], line["limit_w"]) for line in lines) == [
            (0, 1350.0), (1, 1200.0), (2, 1350.0), (3, 1350.0)
        ]  # fmt: skip
        n.stop()
        restored = restore(n)
        assert restored.returncode == 0, restored.stderr
        assert [n.limits_w()[gpu] for gpu in (0, 2)] == [1350.0, 1350.0]


async def test_gpus_beside_one_that_turns_out_to_be_limited_by_its_module_are_read_as_it_is(node):
    """The driver shows limits of GPUs and sets those of modules alone."""
    async with node(gpus=PAIRS) as n:
        n.memory.share_limits(2)
        n.memory.gpus["power_scopes"] = gpu_firmware.GPU_SCOPE_READS | gpu_firmware.MODULE_SCOPE
        n.memory.gpus["instant_mw"] = 400_000
        n.start()
        report = await n.report(lambda report: report.gpus[1].max_w == 700.0)
        await n.lead((500.0, 600.0, 500.0, 500.0))
        report = await n.report()
        assert [n.limits_w()[gpu] for gpu in (0, 2)] == [1100.0, 1000.0]
        assert sum(gpu.power_w for gpu in report.gpus) == pytest.approx(1600.0)
