"""How long a simulated day of a block takes: 72 GPUs, twenty ticks a second, in one process.

The law around the light plant, without wires, processes or real time. Orders are obeyed and acknowledged a
tick later; once an hour the block is curtailed for twenty minutes. A normal run simulates a stretch and
scales it up; `--full` runs all 1,728,000 ticks. What was simulated is checked while it runs: the worst
second above the budget is a figure of its own, because a fast day that breaks its promises is worth nothing.
CPU seconds stand beside the wall's: they hardly notice what else the machine does.
"""

import gc
import time
from typing import Final

import numpy as np

from benchmarks import plant as plants
from benchmarks.plant import TICK_S, UTC_0_S, Plant
from benchmarks.result import Figure, Mode
from controller.core import law
from controller.core.model import NO_LIMIT_W, Decision, Gpus, Measurement, Snapshot

GPUS: Final = 72
DAY_S: Final = 86_400.0
TARGET_S: Final = 240.0
LENGTH_S: Final = {Mode.TINY: 15.0, Mode.NORMAL: 3600.0, Mode.FULL: DAY_S}
REPEATS: Final = {Mode.TINY: 1, Mode.NORMAL: 3, Mode.FULL: 1}
WARM_UP_S: Final = 10.0
PERIOD_S: Final = 3600.0
EVENT_FROM_S, EVENT_LENGTH_S = 600.0, 1200.0
KEPT_W: Final = 45_000.0  # three quarters of what the block draws by itself
SITE_TICKS: Final = 20  # the site repeats itself once a second
MEAN_TICKS: Final = 20  # promises are judged over one second


class Day:
    """A block living through its day."""

    def __init__(self, length_s: float, seed: int) -> None:
        self.settings = plants.settings(GPUS)
        self.plant = Plant(self.settings, seed)
        self.state = law.start(self.settings, self.plant.now_s)
        starts_s = np.arange(self.plant.now_s + EVENT_FROM_S, self.plant.now_s + length_s, PERIOD_S).tolist()
        self.plan = tuple(
            plants.curtailment(number, KEPT_W, start_s, EVENT_LENGTH_S)
            for number, start_s in enumerate(starts_s)
        )
        self.node_seq = np.zeros(len(self.settings.topology.node_names), dtype=np.int64)
        self.leased = np.ones(len(self.node_seq), dtype=np.bool_)
        self.proven_w = np.full(GPUS, NO_LIMIT_W)
        self.tables = np.zeros(len(self.node_seq), dtype=np.int64)
        self.site = self.plant.site(self.plan)
        self.cooling = Measurement(self.settings.feed_rating_w, good=True, taken_at_s=self.plant.now_s)
        self.curtailed_ticks = 0
        self.over_ratio = 0.0
        self._block_w = self._budget_w = 0.0

    def live(self, ticks: int) -> None:
        for _ in range(ticks):
            self.plant.step()
            self._obey(law.tick(self.settings, self.state, self._snapshot()))

    def _snapshot(self) -> Snapshot:
        plant, now_s = self.plant, self.plant.now_s
        if plant.ticks % SITE_TICKS == 0:
            self.site = plant.site(self.plan)
            self.cooling = Measurement(self.settings.feed_rating_w, good=True, taken_at_s=now_s)
        _, inlets = plant.inlets()
        meter, gpus = plant.metered(), self._report()
        return Snapshot(now_s, UTC_0_S + now_s, meter, inlets, self.cooling, gpus, self.site)

    def _report(self) -> Gpus:
        """In every tick: agents that report ten times a second, each in its own phase, leave none out."""
        topology, plant = self.settings.topology, self.plant
        return Gpus(
            revision=plant.ticks,
            power_w=plant.power_w,
            limit_w=plant.limit_w,
            min_w=topology.gpu_min_w,
            max_w=topology.gpu_max_w,
            cap_w=np.full(GPUS, NO_LIMIT_W),
            node_at_s=np.full(len(self.node_seq), plant.now_s),
            node_seq=self.node_seq,
            node_leased=self.leased,
            node_table=self.tables,
            proven_w=self.proven_w,
            floor_w=np.zeros(GPUS),
            capped=np.zeros(GPUS, dtype=np.bool_),
            by_clock=np.zeros(GPUS, dtype=np.bool_),
            clock_max_mhz=np.zeros(GPUS, dtype=np.int64),
            ceiling_mhz=np.zeros(GPUS, dtype=np.int64),
        )

    def _obey(self, decision: Decision) -> None:
        plant = self.plant
        self.state = decision.state
        plant.limit_w, self.node_seq = decision.gpu_limits_w, decision.node_seq
        self.curtailed_ticks += decision.binding.source.startswith("openadr")
        self._block_w += plant.block_w
        self._budget_w += decision.budget_w
        if plant.ticks % MEAN_TICKS == 0:
            self.over_ratio = max(self.over_ratio, self._block_w / self._budget_w - 1.0)
            self._block_w = self._budget_w = 0.0


def measure(length_s: float, seed: int) -> tuple[float, float, float, float]:
    """Wall and CPU seconds per simulated day, its share under curtailment, worst second above the budget."""
    day = Day(length_s, seed)
    day.live(round(WARM_UP_S / TICK_S))
    day.over_ratio = 0.0
    ticks = round((length_s - WARM_UP_S) / TICK_S)
    gc.collect()
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    day.live(ticks)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    per_day = DAY_S / TICK_S / ticks
    return took_s * per_day, cpu_s * per_day, day.curtailed_ticks / ticks, day.over_ratio


def run(mode: Mode) -> list[Figure]:
    runs = [measure(LENGTH_S[mode], seed) for seed in range(REPEATS[mode])]
    per_day_s, cpu_per_day_s, curtailed_ratio, over_ratio = (
        tuple(column) for column in zip(*runs, strict=True)
    )
    return [
        Figure("block_day_s", per_day_s, at_most=TARGET_S),
        Figure("block_day_cpu_s", cpu_per_day_s),
        Figure("block_day_tick_cpu_us", tuple(1e6 * value / DAY_S * TICK_S for value in cpu_per_day_s)),
        Figure("block_day_real_time_ratio", tuple(DAY_S / value for value in per_day_s)),
        Figure("block_day_curtailed_ratio", curtailed_ratio),
        Figure("block_day_over_budget_ratio", over_ratio, at_most=0.01),
    ]
