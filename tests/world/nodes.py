"""What lies between the law and the drivers: a network that loses things, and agents with the real lease."""

import heapq
from collections import deque
from dataclasses import dataclass, field
from random import Random

import numpy as np

from controller.agent import lease as leases
from protocols.agent_link import Call, Gpu, Order, Report, Table
from tests.world.facility import Truth

REPORT_S = 0.1
MIN_W, MAX_W = 200.0, 700.0


@dataclass
class Network:
    """Messages on their way: lost, late, twice, out of order, or cut off altogether."""

    rng: Random
    loss: float = 0.0
    twice: float = 0.0
    late_s: float = 0.0
    cut: set = field(default_factory=set)  # names of cut-off ends
    queue: list = field(default_factory=list)
    number: int = 0
    again: int = 0  # so many old messages to agents with every new one
    old: deque = field(default_factory=lambda: deque(maxlen=200))

    def send(self, now_s: float, to: str, message: object, via: str) -> None:
        if via in self.cut or self.rng.random() < self.loss:
            return
        for _ in range(2 if self.rng.random() < self.twice else 1):
            delay_s = 0.002 + self.rng.expovariate(1.0 / 0.004)
            if self.late_s and self.rng.random() < 0.1:
                delay_s += self.rng.uniform(0.0, self.late_s)
            self.number += 1
            heapq.heappush(self.queue, (now_s + delay_s, self.number, to, message))
        if to.isdecimal():
            self.old.append((to, message))
            for _ in range(self.again):
                self.number += 1
                heapq.heappush(self.queue, (now_s + 0.01, self.number, *self.rng.choice(self.old)))

    def heal(self) -> None:
        self.loss = self.twice = self.late_s = 0.0

    def arrived(self, now_s: float) -> list[tuple[str, object]]:
        out = []
        while self.queue and self.queue[0][0] <= now_s:
            _, _, to, message = heapq.heappop(self.queue)
            out.append((to, message))
        return out


@dataclass
class Agent:
    """A node agent: the real lease logic between the network and the drivers of `truth`."""

    name: str
    members: np.ndarray
    truth: Truth
    settings: leases.LeaseSettings
    clock_offset_s: float
    up: bool = True
    deaf_to_writes: bool = False  # the driver blocks
    inert: bool = False  # confirms and shows what it is told, and writes nothing
    boots: int = 0
    lease: leases.Lease | None = None
    echo_sent_at_s: float = -1.0
    echo_heard_at_s: float = 0.0
    next_report_s: float = 0.0
    table: Table | None = None
    right_until_s: float = 0.0  # true time: the latest that any order heard allowed; for the checkers

    def start(self, now_s: float) -> None:
        self.up, self.boots = True, self.boots + 1
        self.right_until_s = now_s + self.settings.waiting_max_s
        self.lease = leases.begin(self.settings, now_s + self.clock_offset_s, observe=False)
        self.echo_sent_at_s = -1.0
        self.table = None

    def hear(self, message: Order | Table | Call, now_s: float, network: Network) -> None:
        if not self.up:
            return
        if isinstance(message, Table):
            if self.table is None or (message.epoch, message.version) > (
                self.table.epoch,
                self.table.version,
            ):
                self.table = message
        elif isinstance(message, Call):
            self.hear_call(message, now_s, network)
        else:
            self.hear_order(message, now_s, network)

    def hear_call(self, call: Call, now_s: float, network: Network) -> None:
        if self.table is None or self.table.epoch != call.epoch:
            return
        found_w = self.found_w()
        limits_w = self.table.levels[call.level].limits_w
        self.lease, refusal = leases.shed(self.lease, call, limits_w)
        if refusal is None:
            self.write(found_w)
            self.report(now_s, network)

    def hear_order(self, order: Order, now_s: float, network: Network) -> None:
        own_s = now_s + self.clock_offset_s
        self.right_until_s = max(self.right_until_s, order.echo_at_s + order.lease_s - self.clock_offset_s)
        if order.sent_at_s > self.echo_sent_at_s:
            self.echo_sent_at_s, self.echo_heard_at_s = order.sent_at_s, own_s
        found_w = self.found_w()
        self.lease, refusal = leases.offer(self.settings, self.lease, order, own_s)
        if refusal is None:
            self.write(found_w)
            self.report(now_s, network)

    def step(self, now_s: float, network: Network) -> None:
        if not self.up:
            return
        found_w = self.found_w()
        self.lease = leases.beat(self.settings, self.lease, found_w, now_s + self.clock_offset_s)
        self.write(found_w)
        if now_s >= self.next_report_s:
            self.next_report_s = now_s + REPORT_S
            self.report(now_s, network)

    def found_w(self) -> list:
        truth = self.truth
        limits_w = truth.limit_w[self.members].tolist()
        if not truth.lost.any():
            return limits_w
        return [
            None if lost else w for lost, w in zip(truth.lost[self.members].tolist(), limits_w, strict=True)
        ]

    def write(self, found_w: list) -> None:
        if self.deaf_to_writes or self.inert or tuple(found_w) == self.lease.held_w:
            return
        found = [None if w is None else leases.Found(w, MIN_W, MAX_W) for w in found_w]
        for write in leases.due(self.lease, found):
            index = self.members[write.gpu]
            if not self.truth.lost[index]:
                self.truth.limit_w[index] = write.limit_w

    def report(self, now_s: float, network: Network) -> None:
        own_s, t = now_s + self.clock_offset_s, self.truth
        noise_w = t.rng.gauss(0.0, 2.0)
        shown_w = t.limit_w[self.members].tolist()
        if self.inert:
            shown_w = [
                shown if held is None else held
                for shown, held in zip(shown_w, self.lease.held_w, strict=True)
            ]
        gpus = tuple(
            Gpu(
                uuid="",
                power_w=None if lost else max(0.0, power_w + noise_w),
                limit_w=None if lost else limit_w,
                enforced_w=None,
                min_w=MIN_W,
                max_w=MAX_W,
                fault="lost" if lost else "",
            )
            for power_w, limit_w, lost in zip(
                t.power_w[self.members].tolist(),
                shown_w,
                t.lost[self.members].tolist(),
                strict=True,
            )
        )
        epoch, seq = self.lease.newest
        if self.deaf_to_writes:
            seq = 0
        network.send(
            now_s,
            "controller",
            Report(
                node=self.name,
                boot=f"{self.name}-{self.boots}",
                at_s=own_s,
                echo_sent_at_s=self.echo_sent_at_s,
                echo_age_s=own_s - self.echo_heard_at_s,
                epoch=epoch,
                seq=seq,
                mode=str(self.lease.mode),
                gpus=gpus,
                table_epoch=0 if self.table is None else self.table.epoch,
                table=0 if self.table is None else self.table.version,
            ),
            via=self.name,
        )
