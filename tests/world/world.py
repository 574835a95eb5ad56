"""One seed, one history: the real law, board, orders and leases in a world that misbehaves.

Phase one: faults drawn from the seed. Phase two: everything healed; within `HEAL_S` the block must be back
under control and back at work, and stay so. Time is a number; messages are entries in a heap with a delivery time.
"""

import heapq
from dataclasses import dataclass, field, replace
from random import Random
from types import ModuleType

import numpy as np

from controller.actuate import Actuate, Heard
from controller.agent import lease as leases
from controller.backstop import Heard as OfAgent
from controller.backstop import obeys
from controller.board import Board
from controller.core import frequency
from controller.core import law as real_law
from controller.core.model import (
    FOREVER_S,
    Carried,
    Contact,
    Decision,
    FailsafeSettings,
    Gpus,
    Measurement,
    Ramp,
    Running,
    Setpoint,
    Settings,
    ShedLevel,
    ShedRequest,
    Site,
    Topology,
)
from protocols.agent_link import Facts
from tests.world.bmc import Bmcs
from tests.world.checkers import Broken, Checkers, Moment
from tests.world.facility import Meter, Truth
from tests.world.faults import BLOCK_SCALE, DEAD_HOSTS, FAULTS, INSTRUMENT, LATER, ROUGHER, WORK, Fault
from tests.world.grid import FINE_S, Grid, commit, grid_for
from tests.world.nodes import MAX_W, MIN_W, Agent, Levers, Network

LENGTH_S = 60.0
FAULTS_FROM_S, FAULTS_UNTIL_S = 6.0, 40.0
HEAL_S = 15.0
UTC_0 = 1_790_000_000.0
LEASE_S = 2.0
MEASURED_AFTER_S = 3.5  # the window of the base load, its lag, and a meter reading
SLOW_RATIO = (
    0.8  # of the worlds that would beat at 20 Hz beat at 10: the harder case, and more worlds an hour
)


@dataclass
class Controller:
    """The shell in small: board, law, orders, and what is written to disk before it acts."""

    settings: Settings
    law: ModuleType
    epoch: int
    board: Board
    actuate: Actuate
    state: object
    started_at_s: float
    next_beat_s: float = 0.0
    spoke: set[int] = field(default_factory=set)  # sources that have stated a plan to it
    facts: set[str] = field(default_factory=set)  # nodes that have told it what they are
    decision: Decision | None = None


@dataclass
class Disk:
    """What survives a kill."""

    epoch: int = 0
    setpoints: tuple[Setpoint, ...] = ()
    running: tuple[Running, ...] = ()
    carried: Carried | None = None


def settings_for(rng: Random, tick_s: float, inlet_ratio: float) -> Settings:
    nodes, per_node = rng.choice(((2, 4), (3, 4), (2, 2)))
    count, racks = nodes * per_node, 2
    gpu_node = np.repeat(np.arange(nodes), per_node)
    topology = Topology(
        node_names=tuple(f"n{i}" for i in range(nodes)),
        rack_names=("r0", "r1"),
        inlet_names=("r0-a", "r0-b", "r1-a", "r1-b"),
        gpu_node=gpu_node,
        gpu_rack=gpu_node % racks,
        inlet_rack=np.array([0, 0, 1, 1]),
        inlet_continuous_w=np.full(4, inlet_ratio * rng.choice((3000.0, 6000.0))),
        gpu_min_w=np.full(count, MIN_W),
        gpu_max_w=np.full(count, MAX_W),
        gpu_floor_w=np.array([rng.choice((200.0, 300.0)) for _ in range(count)]),
        gpu_weight=np.array([rng.choice((1.0, 4.0)) for _ in range(count)]),
    )
    peak_w = 1.06 * count * MAX_W + 2500.0
    rating_w = rng.uniform(0.9, 1.2) * peak_w
    return Settings(
        topology=topology,
        failsafes=(
            FailsafeSettings(
                limit_w=rng.uniform(0.6, 0.8) * peak_w, heartbeat_timeout_s=4.0, source="openadr"
            ),
        ),
        tick_s=tick_s,
        feed_rating_w=rating_w,
        ramp=Ramp(rng.uniform(0.03, 0.2) * peak_w, rng.uniform(0.02, 0.1) * peak_w),
        block_w_per_gpu_w=1.06,
        base_min_w=600.0,
        base_max_w=2600.0,
        base_margin_w=20.0,
        rack_base_max_w=np.full(racks, 1300.0),
        cooling_blind_w=rng.choice((None, 0.75 * peak_w)),
        lead_s=0.4 + 2 * tick_s,
        settle_s=0.2,
        base_age_max_s=8.0,
        witness_tolerance_w=0.03 * rating_w,
        skew_s=0.15,  # messages move in whole steps here
        inlet_lag_s=0.3,  # to the end of the second that a lag of 0.8 s averages over
    )


class World:
    """All parts of one history. `law` may be a broken one: then a checker must say so."""

    def __init__(
        self, seed: int, law: ModuleType = real_law, *, faults: bool = True, later: bool = True
    ) -> None:
        self.seed, self.rng = seed, Random(seed)
        rng = self.rng
        self.dt_s = rng.choice((0.05, 0.1))
        if later and Random(f"beat {seed}").random() < SLOW_RATIO:
            self.dt_s = 0.1
        self.later_rng = Random(f"later {seed}")
        self.scale_rng = Random(f"block scale {seed}")
        self.rough_rng = Random(f"rougher {seed}")
        self.grid_rng, self.bmc_rng = Random(f"grid {seed}"), Random(f"bmcs {seed}")
        tight = later and self.later_rng.random() < 0.4  # racks that their inlets hold
        self.settings = settings_for(rng, self.dt_s, 0.5 if tight else 1.0)
        self.second_silent_s, self.second_plan, self.second_next_s = (0.0, 0.0), (), 0.5
        self.sheds: tuple[tuple[float, float, ShedRequest], ...] = ()  # (from, until, request)
        if later:
            self._draw_second_source()
            self._draw_sheds()
        self.grid = self._draw_grid() if later else None
        topology = self.settings.topology
        count = len(topology.gpu_node)
        self.truth = Truth(
            rng=rng,
            gpu_rack=topology.gpu_rack,
            limit_w=np.array([float(rng.choice((MAX_W, 500.0))) for _ in range(count)]),
            oob_w=np.full(count, 1e6),
            bmc_w=np.full(count, 1e6),
            max_w=np.full(count, MAX_W),
            demand_w=np.full(count, MAX_W),
            power_w=np.full(count, 400.0),
            gain=rng.uniform(1.045, 1.06),
            base_w=1500.0,
            base_target_w=1500.0,
            saturated=rng.random() < 0.4,
            lost=np.zeros(count, dtype=bool),
            wild=np.zeros(count, dtype=bool),
            decodes=np.zeros(count, dtype=bool),
            floor_w=np.zeros(count),
            ceiling_mhz=np.zeros(count, dtype=np.int64),
            clock_deaf=np.zeros(count, dtype=bool),
            generation=np.zeros(count, dtype=np.int64),
        )
        self.meter = Meter(rng.uniform(0.15, 0.3), 0.1)
        self.inlets = [Meter(1.0, 0.8) for _ in topology.inlet_names]
        self.cooling = Meter(1.0, 1.0)
        self.cooling_w = 0.9 * self.settings.feed_rating_w
        self.network = Network(rng)
        self.fallback_w = 250.0
        lease_settings = leases.LeaseSettings(
            fallback_w=(self.fallback_w,) * int((topology.gpu_node == 0).sum()),
            fallback_ramp_w_per_s=200.0,
            lease_max_s=10.0,
            waiting_max_s=20.0,
        )
        self.agents = [
            Agent(
                name,
                np.flatnonzero(topology.gpu_node == i),
                self.truth,
                lease_settings,
                rng.uniform(10.0, 1e6),
            )
            for i, name in enumerate(topology.node_names)
        ]
        self.lever_rng = Random(f"levers {seed}")
        self.levers: Levers | None = self._draw_levers() if later else None
        self.bmcs: Bmcs | None = None
        if later and self.bmc_rng.random() < 0.5:
            self.bmcs = Bmcs(self.bmc_rng, self.truth, {one.name: one.members for one in self.agents})
        self.law, self.disk, self.controller = law, Disk(), None
        self.utc_step_s = 0.0
        self.site_states, self.plan_since_s = True, 0.0
        self.site_up, self.site_next_s = True, rng.uniform(0.0, 3.0)
        self.plan = self._plan()
        if later:
            self.plan = self._with_ramps(self.plan)
        self.site_known = Site()
        self.wanted: dict[str, tuple[Setpoint, float, float]] = {}
        self.disturbed_at_s = 0.0
        self.meter_honest_from_s = 0.0
        self.measurable_at_s = self.unmeasurable_at_s = self.able_since_s = 1000.0
        self.checkers = Checkers(self.settings)
        self.timeline = self._draw_faults() if faults else []
        if faults and later:
            self.timeline = sorted(
                [
                    *self.timeline,
                    *self._draw_more(LATER, self.later_rng, (0, 0, 1, 2)),
                    *self._draw_more(BLOCK_SCALE, self.scale_rng, (0, 0, 1, 1, 2)),
                    *self._draw_more(ROUGHER, self.rough_rng, (0, 0, 1)),
                    *self._draw_more(INSTRUMENT, self.grid_rng, (0, 0, 1, 2) if self.grid else (0,)),
                    *self._draw_more(DEAD_HOSTS, self.bmc_rng, (0, 1, 1, 2) if self.bmcs else (0,)),
                    *self._draw_more(WORK, self.lever_rng, (0, 1, 2) if self.levers else (0,)),
                ]
            )
        self.ending: list[tuple[float, int, str, object]] = []
        self.log: list[str] = []
        self.now_s = 1000.0
        self.start_s = self.now_s

    # --- drawing the history ----------------------------------------------------------------------------

    def _plan(self) -> tuple[Setpoint, ...]:
        rng, peak_w = self.rng, self.settings.feed_rating_w
        plan = []
        for number in range(rng.randrange(0, 4)):
            starts_s = rng.uniform(2.0, 45.0)
            plan.append(
                Setpoint(
                    source="openadr",
                    id=f"event-{number}",
                    kind=rng.choice(("IMPORT_CAPACITY_LIMIT", "DISPATCH_SETPOINT")),
                    limit_w=rng.uniform(0.5, 0.95) * peak_w,
                    starts_utc_s=UTC_0 + starts_s,
                    ends_utc_s=UTC_0 + starts_s + rng.uniform(3.0, 30.0),
                    priority=rng.choice((0, 5, 1_000_000)),
                    arrive_at_start=rng.random() < 0.3,
                )
            )
        return tuple(plan)

    def _draw_second_source(self) -> None:
        """In some worlds another source is watched as well, falls silent at a time of its own, has its own wish."""
        rng, peak_w = Random(f"second source {self.seed}"), self.settings.feed_rating_w
        if rng.random() < 0.6:
            return
        limit_w = self.settings.failsafe_w * rng.uniform(0.9, 1.2)
        other = FailsafeSettings(limit_w, heartbeat_timeout_s=rng.uniform(2.0, 6.0), source="dsx")
        self.settings = replace(self.settings, failsafes=(*self.settings.failsafes, other))
        silent_from_s = rng.uniform(3.0, 35.0)
        self.second_silent_s = (
            silent_from_s,
            min(FAULTS_UNTIL_S, silent_from_s + rng.choice((0.0, 4.0, 12.0))),
        )
        starts_s = rng.uniform(2.0, 45.0)
        wish = Setpoint(
            source="dsx",
            id="target",
            kind="feed a",
            limit_w=rng.uniform(0.5, 0.95) * peak_w,
            starts_utc_s=UTC_0 + starts_s,
            ends_utc_s=UTC_0 + starts_s + rng.uniform(3.0, 30.0),
        )
        self.second_plan = rng.choice(((), (wish,)))

    def _draw_sheds(self) -> None:
        """In some worlds levels of shedding were agreed, and are called now and then, by one or by two at once."""
        rng, peak_w = Random(f"sheds {self.seed}"), self.settings.feed_rating_w
        if rng.random() < 0.4:
            return
        gentle = rng.uniform(0.55, 0.85)
        levels = (
            ShedLevel("gentle", gentle * peak_w),
            ShedLevel("deep", rng.uniform(0.4, 0.9) * gentle * peak_w),
        )
        self.settings = replace(self.settings, shed_levels=levels)
        self.sheds = tuple(
            (from_s, min(FAULTS_UNTIL_S, from_s + rng.uniform(0.1, 12.0)), ShedRequest(source, level))
            for source, level in (("contact", 0), ("operator", rng.choice((0, 1))))
            for from_s in (rng.uniform(3.0, 38.0) for _ in range(rng.choice((0, 1, 2))))
        )

    def _draw_grid(self) -> Grid | None:
        """In some worlds something was committed to the grid."""
        rng, settings = self.grid_rng, self.settings
        if rng.random() < 0.4:
            return None
        product = commit(rng, settings.feed_rating_w, settings.ramp)
        self.settings = replace(settings, frequency=product)
        return grid_for(rng, product)

    def _draw_levers(self) -> Levers | None:
        """In some worlds agents tell which lever moves which GPU; some GPUs do not do what is told of them."""
        rng, truth = self.lever_rng, self.truth
        if rng.random() < 0.4:
            return None
        count = len(truth.limit_w)

        def some(ratio: float) -> np.ndarray:
            return np.array([rng.random() < ratio for _ in range(count)])

        truth.decodes = some(rng.choice((0.3, 0.6, 1.0)))
        truth.clock_deaf = some(rng.choice((0.0, 0.0, 0.5)))
        smoothed = some(rng.choice((0.0, 0.0, 0.4)))
        truth.floor_w = np.where(smoothed, rng.uniform(MIN_W, 450.0), 0.0)
        by_clock = truth.decodes | truth.clock_deaf
        levers = Levers(by_clock, truth.floor_w, np.zeros(count), by_clock.copy())
        for agent in self.agents:
            agent.levers = levers
        return levers

    def learn_levers(self) -> None:
        """Agents have seen enough of the work as it is now. One whose clock does nothing is not found out."""
        self.levers.by_clock = self.truth.decodes | self.truth.clock_deaf

    def work_fully(self, members: np.ndarray) -> None:
        """As after a reboot: work that takes all it can get, and agents that know it."""
        self.truth.work_fully(members)
        if self.levers is not None:
            self.learn_levers()

    def _with_ramps(self, plan: tuple[Setpoint, ...]) -> tuple[Setpoint, ...]:
        """In some worlds, some setpoints bring a ramp of their own."""
        rng, ramp = Random(f"ramps {self.seed}"), self.settings.ramp
        if rng.random() < 0.6:
            return plan
        return tuple(
            replace(
                setpoint,
                ramp=rng.choice(
                    (
                        None,
                        Ramp(
                            rng.uniform(0.5, 4.0) * ramp.down_w_per_s, rng.uniform(0.5, 2.0) * ramp.up_w_per_s
                        ),
                    )
                ),
            )
            for setpoint in plan
        )

    def _draw_faults(self) -> list[tuple[float, str, float]]:
        rng, names = self.rng, list(FAULTS)
        drawn = rng.choices(names, weights=[FAULTS[name].weight for name in names], k=rng.randrange(1, 7))
        timeline = []
        for name in drawn:
            at_s = rng.uniform(FAULTS_FROM_S, FAULTS_UNTIL_S - 2.0)
            length_s = rng.uniform(FAULTS[name].shortest_s, FAULTS[name].longest_s)
            timeline.append((at_s, name, min(length_s, FAULTS_UNTIL_S - at_s)))
        return sorted(timeline)

    def _draw_more(
        self, faults: dict[str, Fault], rng: Random, counts: tuple[int, ...]
    ) -> list[tuple[float, str, float]]:
        names = list(faults)
        drawn = rng.choices(names, weights=[faults[name].weight for name in names], k=rng.choice(counts))
        timeline = []
        for name in drawn:
            fault = faults[name]
            at_s = rng.uniform(FAULTS_FROM_S, FAULTS_UNTIL_S - max(2.0, fault.room_s))
            length_s = rng.uniform(fault.shortest_s, fault.longest_s)
            timeline.append((at_s, name, min(length_s, FAULTS_UNTIL_S - at_s)))
        return timeline

    def replan(self, plan: tuple[Setpoint, ...]) -> None:
        """The site changes its mind. What it asked before need not bind any more."""
        self.plan = plan

    # --- running it -------------------------------------------------------------------------------------

    def run(self, length_s: float = LENGTH_S) -> "World":
        for agent in self.agents:
            agent.start(self.now_s)
        self.start_controller()
        beat_s, steps = self.dt_s, round(length_s / self.dt_s)
        for step in range(steps):
            at_s = self.start_s + step * beat_s
            young = self.grid is not None and self.grid.is_young(at_s - self.start_s)
            parts = round(beat_s / FINE_S) if young else 1
            self.dt_s = beat_s / parts
            for part in range(parts):
                self.now_s = at_s + part * self.dt_s
                self._step(self.now_s - self.start_s)
        return self

    def _step(self, t_s: float) -> None:
        now_s, network = self.now_s, self.network
        while self.timeline and self.timeline[0][0] <= t_s:
            _, name, length_s = self.timeline.pop(0)
            self._break(name, length_s)
        while self.ending and self.ending[0][0] <= now_s:
            heapq.heappop(self.ending)[3]()
        self._site(t_s)
        self._second_source(t_s)
        for to, message in network.arrived(now_s):
            self._deliver(to, message)
        for agent in self.agents:
            agent.step(now_s, network)
        if any(agent.astray for agent in self.agents):
            self.disturbed_at_s = now_s  # what its GPUs hold is not what anybody is told
        self.truth.step(self.dt_s, now_s)
        self._measure()
        if self.grid is not None:
            self.grid.step(t_s, now_s, self.dt_s)
        if self.bmcs is not None and self.controller is not None:
            self.bmcs.step(now_s, self._heard_of_agent)
        decided = self._is_beat() and self._decide()
        self.checkers.see(self._moment(decided))

    def _deliver(self, to: str, message: object) -> None:
        controller = self.controller
        if to == "controller":
            if controller is None:
                return
            if isinstance(message, Facts):
                controller.board.put_facts(message)
                controller.facts.add(message.node)
            else:
                controller.board.put_report(message, self.now_s)
        elif to == "site":
            if controller is not None:
                self._heard(0, message)
        else:
            self.agents[int(to)].hear(message, self.now_s, self.network)

    def _heard(self, index: int, plan: tuple[Setpoint, ...] | None) -> None:
        """A sign of life of one source reaches the controller; with None for a plan, without a statement."""
        now_s, known = self.now_s, self.site_known
        contacts = [known.contact(number) for number in range(len(self.settings.failsafes))]
        setpoints = known.setpoints
        if plan is None:
            contacts[index] = contacts[index]._replace(heartbeat_at_s=now_s)
        else:
            contacts[index] = Contact(now_s, now_s)
            source = self.settings.failsafes[index].source
            setpoints = (*(one for one in setpoints if one.source != source), *plan)
            setpoints = tuple(sorted(setpoints, key=lambda one: one.id))
            self.controller.spoke.add(index)
        if setpoints != known.setpoints:
            self.plan_since_s = now_s
        self.site_known = Site(tuple(contacts), setpoints)
        self.disk.setpoints = setpoints
        self.controller.board.site = self.site_known

    def _second_source(self, t_s: float) -> None:
        """It has no network of its own to draw faults from: it is heard, or it is silent."""
        silent = self.second_silent_s[0] <= t_s < self.second_silent_s[1] or "site" in self.network.cut
        if len(self.settings.failsafes) > 1 and t_s >= self.second_next_s:
            self.second_next_s = t_s + 1.0
            if not silent and self.controller is not None:
                self._heard(1, self.second_plan)

    def _site(self, t_s: float) -> None:
        if t_s >= self.site_next_s and self.site_up:
            self.site_next_s = t_s + 1.0
            self.network.send(self.now_s, "site", self.plan if self.site_states else None, via="site")

    def _measure(self) -> None:
        truth, now_s, rng = self.truth, self.now_s, self.rng
        self.meter.step(truth.block_w, now_s, self.dt_s, rng)
        for number, inlet in enumerate(self.inlets):
            inlet.step(truth.rack_w[number // 2] / 2.0, now_s, self.dt_s, rng)
        self.cooling.step(self.cooling_w, now_s, self.dt_s, rng)

    def _heard_of_agent(self, name: str) -> OfAgent:
        """As the shell tells its backstop."""
        controller = self.controller
        heard_s, seq, leased = controller.board.heard(name)
        node = self.settings.topology.node_names.index(name)
        is_obeying = obeys(
            controller.state.ledger, node, seq, self.now_s, leased=leased, wait_s=self.settings.ack_wait_s
        )
        return OfAgent(self.now_s - max(heard_s, controller.started_at_s), is_obeying)

    def _is_beat(self) -> bool:
        """On the beat, or when what the instrument tells is worth one of its own."""
        controller, grid = self.controller, self.grid
        if controller is None:
            return False
        if self.now_s >= controller.next_beat_s - 1e-6:
            controller.next_beat_s = self.now_s + self.settings.tick_s
            return True
        if grid is None:
            return False
        product, response = self.settings.frequency, controller.state.frequency
        return any(
            one.good and frequency.wakes(product, response, one.value)
            for one in (grid.shown_before, grid.shown)
        )

    def _decide(self) -> bool:
        controller = self.controller
        now_s, board = self.now_s, controller.board
        if self.grid is not None:
            board.frequency = self.grid.shown
        if self.bmcs is not None:
            board.put_proven({one.node: one.limit_w for one in self.bmcs.proven(now_s)})
        board.meter = Measurement(self.meter.shown_w, self.meter.mode != "bad", self.meter.shown_at_s)
        for number, inlet in enumerate(self.inlets):
            board.put_inlet(number, Measurement(inlet.shown_w, inlet.mode != "bad", inlet.shown_at_s))
        board.cooling = Measurement(self.cooling.shown_w, True, self.cooling.shown_at_s)
        t_s = now_s - self.start_s
        board.sheds = tuple(request for from_s, until_s, request in self.sheds if from_s <= t_s < until_s)
        snapshot = board.snapshot(now_s, self._utc_s())
        decision = controller.law.tick(controller.settings, controller.state, snapshot)
        controller.state, controller.decision = decision.state, decision
        self._persist(decision)
        self._send(controller, decision, snapshot.gpus)
        return True

    def _send(self, controller: Controller, decision: Decision, gpus: Gpus) -> None:
        now_s, board, actuate = self.now_s, controller.board, controller.actuate
        call = actuate.call(decision, now_s)
        if call is not None:
            for number, agent in enumerate(self.agents):
                self.network.send(now_s, str(number), call, via=agent.name)
        heard = Heard(
            gpus.node_seq.tolist(),
            board.report_at_s.tolist(),
            board.known_at_s.tolist(),
            gpus.node_table.tolist(),
        )
        for node, message in (
            *actuate.orders(decision, heard, now_s),
            *actuate.tables(decision.state.shedding.table, heard, now_s),
        ):
            self.network.send(now_s, str(node), message, via=self.agents[node].name)

    def _persist(self, decision: Decision) -> None:
        ends = [r.ends_at_s for r in decision.state.running if r.setpoint.limit_w == decision.binding.power_w]
        self.disk.running = decision.state.running
        base = decision.state.base
        self.disk.carried = Carried(
            decision.binding.power_w,
            decision.budget_w,
            decision.binding.source,
            max(ends, default=FOREVER_S),
            base.upper_w,
            base.measured_at_s,
            decision.state.pace.up_w_per_s,
            decision.state.cooling_w,
            frequency.to_inherit(self.settings.frequency, decision.state.frequency),
        )

    def _utc_s(self) -> float:
        """What the wall clock says."""
        return UTC_0 + self.now_s - self.start_s + self.utc_step_s

    def start_controller(self) -> None:
        self.disk.epoch += 1
        settings, disk = self.settings, self.disk
        board = Board(settings, disk.epoch)
        self.site_known = board.site = Site(setpoints=disk.setpoints)
        self.controller = Controller(
            settings=settings,
            law=self.law,
            epoch=disk.epoch,
            board=board,
            actuate=Actuate(settings, disk.epoch, LEASE_S),
            state=self.law.start(settings, self.now_s, disk.carried, disk.running),
            started_at_s=self.now_s,
        )
        self.inherited = disk.carried

    # --- faults -----------------------------------------------------------------------------------------

    def _break(self, name: str, length_s: float) -> None:
        self.log.append(f"{self.now_s - self.start_s:6.2f} s  {name} for {length_s:.2f} s")
        table, rng = next(
            (table, rng)
            for table, rng in (
                (FAULTS, self.rng),
                (LATER, self.later_rng),
                (BLOCK_SCALE, self.scale_rng),
                (ROUGHER, self.rough_rng),
                (INSTRUMENT, self.grid_rng),
                (DEAD_HOSTS, self.bmc_rng),
                (WORK, self.lever_rng),
            )
            if name in table
        )
        fault = table[name]
        gpu, agent = rng.randrange(len(self.truth.limit_w)), rng.choice(self.agents)
        heal = fault.strike(self, gpu, agent)
        if heal is not None:
            heapq.heappush(self.ending, (self.now_s + length_s, len(self.log), name, heal))

    # --- what the checkers may see ----------------------------------------------------------------------

    def _moment(self, decided: bool) -> Moment:
        truth, controller, now_s = self.truth, self.controller, self.now_s
        decision = None if controller is None else controller.decision
        if decided:
            self._note_wanted(controller.board.site.setpoints)
        if self.meter.mode in ("frozen", "lying"):
            self.meter_honest_from_s = now_s + MEASURED_AFTER_S
        cut_off = self.network.cut or self.network.loss or self.network.late_s or truth.lost.any()
        if (
            cut_off
            or controller is None
            or self.meter.mode != "good"
            or not all(agent.up for agent in self.agents)
        ):
            self.unmeasurable_at_s = now_s
        elif now_s - self.unmeasurable_at_s > MEASURED_AFTER_S:
            self.measurable_at_s = now_s
        if self._is_amiss() or now_s - self.unmeasurable_at_s < self.dt_s / 2:
            self.able_since_s = now_s
        carried = self.inherited
        spoke = set() if controller is None else controller.spoke
        unheard = [one.limit_w for index, one in enumerate(self.settings.failsafes) if index not in spoke]
        inherited_w = budget_max_w = min(unheard, default=self.settings.failsafe_w)
        if carried is not None:
            budget_max_w = min(budget_max_w, max(carried.budget_w, carried.limit_w))
            if now_s < carried.ends_at_s:
                inherited_w = min(inherited_w, carried.limit_w)
            else:
                budget_max_w = inherited_w
        return Moment(
            now_s=now_s,
            limits_w=truth.limit_w,
            capped_w=np.minimum(truth.limit_w, truth.bmc_w),
            unknowable_w=0.0 if self.bmcs is None else self.bmcs.unknowable_w(now_s),
            block_w=truth.block_w,
            base_w=truth.base_w,
            rack_w=truth.rack_w,
            clock_true=not any("wall clock" in line for line in self.log),
            decision=decision,
            decided_now=decided,
            healed=now_s - self.start_s >= FAULTS_UNTIL_S + HEAL_S,
            started_at_s=now_s if controller is None else controller.started_at_s,
            site_spoke=not unheard,
            heard_at_s=self.site_known.contact(0).heartbeat_at_s,
            contacts=self.site_known.contacts,
            plan_since_s=self.plan_since_s,
            inherited_w=inherited_w,
            budget_max_w=budget_max_w,
            wanted=tuple(self.wanted.values()),
            plan=self.site_known.setpoints,
            utc_s=self._utc_s(),
            cooling_w=self.cooling_w,
            agents=self.agents,
            meter_honest=self.measurable_at_s >= self.meter_honest_from_s,
            measurable_at_s=self.measurable_at_s,
            metered_at_s=self.meter.shown_at_s,
            disturbed_at_s=self.disturbed_at_s,
            grid=self.grid,
            able_since_s=self.able_since_s,
            truth=truth,
            epoch=0 if controller is None else controller.epoch,
            facts=frozenset() if controller is None else controller.facts,
            by_clock=None if self.levers is None else self.levers.told_by_clock,
        )

    def _is_amiss(self) -> bool:
        """Something keeps GPUs from obeying, power from being known, or moves it besides the law."""
        truth, settings = self.truth, self.settings
        return (
            truth.wild.any()
            or (np.minimum(truth.oob_w, truth.bmc_w) < truth.limit_w).any()
            or any(agent.deaf_to_writes or agent.inert for agent in self.agents)
            or abs(truth.base_target_w - truth.base_w) > 0.03 * settings.feed_rating_w
            or self.now_s - self.disturbed_at_s < settings.silent_max_after_s
        )

    def _note_wanted(self, setpoints: tuple[Setpoint, ...]) -> None:
        """A window opens when the wall clock first says so, and lasts its length by true time."""
        utc_s = self._utc_s()
        known = {setpoint.id: setpoint for setpoint in setpoints}
        for name, (_, opened_s, ends_s) in list(self.wanted.items()):
            if name in known:
                self.wanted[name] = (known[name], opened_s, ends_s)
            else:
                del self.wanted[name]
        for setpoint in setpoints:
            if setpoint.id not in self.wanted and setpoint.starts_utc_s <= utc_s < setpoint.ends_utc_s:
                until_s = self.now_s + setpoint.ends_utc_s - utc_s
                self.wanted[setpoint.id] = (setpoint, self.now_s, until_s)


def run(seed: int, law: ModuleType = real_law, *, faults: bool = True, later: bool = True) -> World:
    """One history. Raises `Broken`, its notes naming the seed and the faults drawn."""
    world = World(seed, law, faults=faults, later=later)
    try:
        return world.run()
    except Broken as broken:
        broken.add_note(f"seed {seed}")
        for line in world.log:
            broken.add_note(line)
        raise
