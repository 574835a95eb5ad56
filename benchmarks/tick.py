"""One beat's thinking: how long from the board's newest values to a decision, for blocks of any size.

A block in curtailment, ramp and hold, with demand that never stands still: every node reports ten times a
second and acknowledges each order in the beat after it. Snapshot and law are timed together; what stands
around them in the same beat is timed beside them: taking in the reports (decoded from their JSON), and
writing the orders. The collector runs as it does in the daemon, with what lives frozen.
"""

import gc
import time
from dataclasses import dataclass, field
from typing import Final

from benchmarks import plant as plants
from benchmarks.plant import TICK_S, UTC_0_S, Plant
from benchmarks.result import Figure, Mode, quantiles_ms
from controller.actuate import Actuate, Heard
from controller.board import Board
from controller.core import law
from controller.core.model import Decision, Measurement, Setpoint
from protocols import agent_link
from protocols.agent_link import Gpu, Order, Report

TARGETS_MS: Final = {72: 1.0, 1152: 2.0, 4608: None, 20160: 10.0}  # GPUs -> p99 of a tick
WARM_UP_TICKS: Final = 200  # base load measured, budget ramped up from the failsafe limit
TICKS: Final = {Mode.TINY: 20, Mode.NORMAL: 400, Mode.FULL: 1200}
REPEATS: Final = {Mode.TINY: 1, Mode.NORMAL: 3, Mode.FULL: 5}
SIZES: Final = {Mode.TINY: (72,), Mode.NORMAL: tuple(TARGETS_MS), Mode.FULL: tuple(TARGETS_MS)}
LEASE_S: Final = 3.0
EPOCH: Final = 1
KEPT_RATIO: Final = 0.75  # of its power before: what the block is curtailed to


@dataclass
class Node:
    """An agent in small: holds the newest order, and answers it with its next report."""

    name: str
    first_gpu: int
    order: Order | None = None
    heard_at_s: float = 0.0
    answers: bool = False

    def report(self, plant: Plant) -> bytes:
        members = slice(self.first_gpu, self.first_gpu + plants.GPUS_PER_NODE)
        order, now_s = self.order, plant.now_s
        self.answers = False
        return agent_link.encode(
            Report(
                node=self.name,
                boot="b",
                at_s=now_s,
                echo_sent_at_s=order.sent_at_s if order else -1.0,
                echo_age_s=now_s - self.heard_at_s if order else 0.0,
                epoch=order.epoch if order else 0,
                seq=order.seq if order else 0,
                mode="leased" if order else "waiting",
                gpus=tuple(
                    Gpu(uuid="GPU", power_w=power_w, limit_w=limit_w, enforced_w=limit_w,
                        min_w=plants.MIN_W, max_w=plants.MAX_W)
                    for power_w, limit_w in zip(
                        plant.power_w[members].tolist(), plant.limit_w[members].tolist(), strict=True
                    )
                ),
            )
        )  # fmt: skip


@dataclass
class Times:
    """Seconds per beat."""

    tick_s: list[float] = field(default_factory=list)
    reports_s: list[float] = field(default_factory=list)
    orders_s: list[float] = field(default_factory=list)


class Loop:
    """The daemon's beat without its wires, around a plant."""

    def __init__(self, gpus: int, seed: int) -> None:
        self.settings = plants.settings(gpus)
        self.plant = Plant(self.settings, seed)
        self.board = Board(self.settings, EPOCH)
        self.actuate = Actuate(self.settings, EPOCH, LEASE_S)
        self.state = law.start(self.settings, self.plant.now_s)
        self.plan: tuple[Setpoint, ...] = ()
        names = self.settings.topology.node_names
        self.nodes = [Node(name, i * plants.GPUS_PER_NODE) for i, name in enumerate(names)]
        self.times = Times()

    def curtail(self) -> None:
        starts_s = self.plant.now_s + TICK_S
        self.plan = (plants.curtailment(1, KEPT_RATIO * self.plant.block_w, starts_s, 3600.0),)

    def beat(self) -> Decision:
        plant, board = self.plant, self.board
        plant.step()
        self._instruments()
        payloads = self._reports()
        now_s = plant.now_s
        began_s = time.perf_counter()
        for payload in payloads:
            refused = board.put_report(agent_link.decode_report(payload), now_s)
            assert not refused, refused
        reported_s = time.perf_counter()
        decision = law.tick(self.settings, self.state, board.snapshot(now_s, UTC_0_S + now_s))
        decided_s = time.perf_counter()
        heard = Heard(
            confirmed_seq=self._confirmed_seq(),
            report_at_s=board.report_at_s.tolist(),
            known_at_s=board.known_at_s.tolist(),
            table=[0] * len(self.nodes),
        )
        orders = self.actuate.orders(decision, heard, now_s)
        encoded = [agent_link.encode(order) for _, order in orders]
        ended_s = time.perf_counter()
        assert len(encoded) == len(orders)
        self.state = decision.state
        self._deliver(orders)
        self.times.reports_s.append(reported_s - began_s)
        self.times.tick_s.append(decided_s - reported_s)
        self.times.orders_s.append(ended_s - decided_s)
        return decision

    def _confirmed_seq(self) -> list[int]:
        return [node.order.seq if node.order else 0 for node in self.nodes]

    def _instruments(self) -> None:
        plant, board = self.plant, self.board
        board.meter = plant.metered()
        read, inlets = plant.inlets()
        for inlet in read.tolist():
            board.put_inlet(inlet, Measurement(inlets.power_w[inlet], good=True, taken_at_s=plant.now_s))
        board.cooling = Measurement(self.settings.feed_rating_w, good=True, taken_at_s=plant.now_s)
        board.site = plant.site(self.plan)

    def _reports(self) -> list[bytes]:
        turn = self.plant.ticks % plants.REPORT_TICKS
        return [
            node.report(self.plant)
            for number, node in enumerate(self.nodes)
            if node.answers or number % plants.REPORT_TICKS == turn
        ]

    def _deliver(self, orders: list[tuple[int, Order]]) -> None:
        """At once: the answer comes a beat later, which is what the real path takes."""
        for number, order in orders:
            node = self.nodes[number]
            node.order, node.heard_at_s, node.answers = order, self.plant.now_s, True
            members = slice(node.first_gpu, node.first_gpu + plants.GPUS_PER_NODE)
            self.plant.limit_w[members] = order.limits_w


def measure(gpus: int, ticks: int, seed: int) -> Times:
    """Times of `ticks` beats from the first one of a curtailment on."""
    loop = Loop(gpus, seed)
    for _ in range(WARM_UP_TICKS):
        loop.beat()
    loop.curtail()
    loop.beat()
    loop.times = Times()
    gc.collect()
    gc.freeze()
    for _ in range(ticks):
        decision = loop.beat()
        assert decision.binding.source == "openadr event-1", decision.binding
    gc.unfreeze()
    return loop.times


def run(mode: Mode) -> list[Figure]:
    figures = []
    for gpus in SIZES[mode]:
        runs = [measure(gpus, TICKS[mode], seed) for seed in range(REPEATS[mode])]
        tick = [quantiles_ms(times.tick_s) for times in runs]
        figures += [
            Figure(f"tick_{gpus}_p50_ms", tuple(p50 for p50, _ in tick)),
            Figure(f"tick_{gpus}_p99_ms", tuple(p99 for _, p99 in tick), at_most=TARGETS_MS[gpus]),
            Figure(f"reports_{gpus}_p50_ms", tuple(quantiles_ms(times.reports_s)[0] for times in runs)),
            Figure(f"orders_{gpus}_p50_ms", tuple(quantiles_ms(times.orders_s)[0] for times in runs)),
        ]
    return figures
