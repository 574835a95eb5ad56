"""What lies between the law and the drivers: a network that loses things, and agents with the real lease."""

import heapq
from collections import deque
from dataclasses import dataclass, field
from random import Random

import numpy as np

from controller.agent import lease as leases
from protocols.agent_link import Call, Facts, Gpu, GpuFacts, Order, Report, Table
from tests.world.facility import CLOCK_MAX_MHZ, IDLE_W, Truth

REPORT_S, FACTS_S = 0.1, 10.0
IDLE_AFTER_S = 5.0  # shares of what was seen fade as slowly: see controller/agent/levers.py
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
    astray: bool = False  # so it was, and has not written since
    boots: int = 0
    lease: leases.Lease | None = None
    echo_sent_at_s: float = -1.0
    echo_heard_at_s: float = 0.0
    next_report_s: float = 0.0
    table: Table | None = None
    right_until_s: float = 0.0  # true time: the latest that any order heard allowed; for the checkers
    levers: "Levers | None" = None  # None: it knows of limits alone
    ceilings: list = field(default_factory=list)  # what it knows of those in the driver
    left_mhz: dict = field(default_factory=dict)  # ceilings by GPU, on disk
    generation: np.ndarray | None = None  # of the driver, as last seen
    next_facts_s: float = 0.0
    began_s: float = 0.0  # its own clock
    granted: Order | None = None  # the newest order that it obeys; for the checkers
    granted_mhz: tuple = ()  # and its ceilings, or lower where a call came after

    def start(self, now_s: float) -> None:
        self.up, self.boots = True, self.boots + 1
        self.ceilings = [leases.Ceiling(self.left_mhz.get(gpu)) for gpu in range(len(self.members))]
        self.generation = self.truth.generation[self.members]
        self.next_facts_s, self.began_s = now_s, now_s + self.clock_offset_s
        self.granted, self.granted_mhz = None, ()
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
        level = self.table.levels[call.level]
        own_s = now_s + self.clock_offset_s
        self.lease, refusal = leases.shed(self.lease, call, level.limits_w, level.clocks_mhz, own_s)
        if refusal is None:
            if level.clocks_mhz and self.granted is not None:
                pairs = zip(self.granted_mhz, level.clocks_mhz, strict=True)
                self.granted_mhz = tuple(min(one, other) or max(one, other) for one, other in pairs)
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
            if self.granted is None or (order.epoch, order.seq) > (self.granted.epoch, self.granted.seq):
                self.granted_mhz = order.clocks_mhz or (0,) * len(self.members)
                self.granted = order
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
        if self.levers is not None and now_s >= self.next_facts_s:
            self.next_facts_s = now_s + FACTS_S
            self.tell_facts(now_s, network)

    def found_w(self) -> list:
        truth = self.truth
        limits_w = truth.limit_w[self.members].tolist()
        if not truth.lost.any():
            return limits_w
        return [
            None if lost else w for lost, w in zip(truth.lost[self.members].tolist(), limits_w, strict=True)
        ]

    def write(self, found_w: list) -> None:
        self.astray = self.astray or self.inert
        if self.deaf_to_writes or self.inert:
            return
        self.astray = False
        self.write_ceilings()
        if tuple(found_w) == self.lease.held_w:
            return
        found = [None if w is None else leases.Found(w, MIN_W, MAX_W) for w in found_w]
        for write in leases.due(self.lease, found):
            index = self.members[write.gpu]
            if not self.truth.lost[index]:
                self.truth.limit_w[index] = write.limit_w

    def write_ceilings(self) -> None:
        truth = self.truth
        if (truth.generation[self.members] != self.generation).any():
            self.generation = truth.generation[self.members]
            self.ceilings = [leases.Ceiling(one.asked_mhz, sure=False) for one in self.ceilings]
        for gpu, ceiling_mhz in leases.due_clocks(self.lease, self.ceilings):
            index = self.members[gpu]
            if not truth.lost[index]:
                self.left_mhz[gpu] = ceiling_mhz or None
                self.ceilings[gpu] = leases.Ceiling(ceiling_mhz)
                truth.ceiling_mhz[index] = ceiling_mhz

    def tell_facts(self, now_s: float, network: Network) -> None:
        facts = Facts(
            node=self.name,
            boot=f"{self.name}-{self.boots}",
            at_s=now_s + self.clock_offset_s,
            driver="",
            lease_max_s=self.settings.lease_max_s,
            waiting_max_s=self.settings.waiting_max_s,
            fallback_ramp_w_per_s=self.settings.fallback_ramp_w_per_s,
            gpus=tuple(
                GpuFacts(fallback_w=fallback_w, clock_max_mhz=CLOCK_MAX_MHZ)
                for fallback_w in self.settings.fallback_w
            ),
        )
        network.send(now_s, "controller", facts, via=self.name)

    def shown_mhz(self, gpu: int) -> int:
        if self.inert:
            return self.lease.held_mhz[gpu] or 0
        asked_mhz, sure = self.ceilings[gpu]
        return asked_mhz if asked_mhz and sure else 0

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
                **told,
            )
            for power_w, limit_w, lost, told in zip(
                t.power_w[self.members].tolist(),
                shown_w,
                t.lost[self.members].tolist(),
                [{}] * len(self.members) if self.levers is None else self.levers.told(self, now_s),
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


@dataclass
class Levers:
    """What agents tell of the levers of their GPUs, arrays (n) over GPUs. Learning takes time: not always the truth."""

    by_clock: np.ndarray  # while busy, as agents have it
    floor_w: np.ndarray
    busy_at_s: np.ndarray  # when a report last said so
    told_by_clock: np.ndarray  # in the newest report

    def told(self, agent: Agent, now_s: float) -> list[dict]:
        """For a report, by GPU of this agent."""
        truth, members = agent.truth, agent.members
        held_down = truth.wished_w > truth.enforced_w
        self.busy_at_s[members] = np.where(truth.demand_w > IDLE_W, now_s, self.busy_at_s)[members]
        idle = now_s - self.busy_at_s > IDLE_AFTER_S
        self.told_by_clock[members] = (self.by_clock & ~idle)[members]
        told: list[dict] = [{"floor_w": floor_w} for floor_w in self.floor_w[members].tolist()]
        for gpu, index in enumerate(members):
            if truth.lost[index]:
                self.told_by_clock[index] = False
                continue
            busy = "clock" if self.by_clock[index] else "cap"
            told[gpu] |= {
                "capped": bool(held_down[index]),
                "lever": "none" if idle[index] else busy,
                "ceiling_mhz": agent.shown_mhz(gpu),
            }
        return told
