"""What the GPUs are asked to do: demand in W, and what comes of it in tokens per second.

Five kinds of job.

* training: all GPUs of a job compute and exchange in step. Each step ends in an exchange that draws less
  (H100 jobs swing by up to 40 %, arXiv 2508.14318 as cited by GridPilot); now and then a checkpoint lets
  all of them idle. The job runs at the pace of its slowest GPU.
* inference: requests come in bursts, GPU by GPU, independent of each other. While a server is busy, one GPU
  draws between 40 and 100 % of its limit, median 70 %, without memory beyond 0.2 s (quantiles below: eight
  GPUs serving an LLM, GPU_Inference.csv of github.com/chennnnnyize/voltage-regulation-with-data-centers,
  MIT).
  A saturated server draws steadily 92 % (infer_llama_8b of the sweep below): `intensity_ratio` sets the
  mean, `swing_ratio` how much of the measured burst is kept.
* decode: a language model that writes. Its memory is the bottleneck: it draws `intensity_ratio` of the limit,
  far below its cap, a power limit above that does nothing, and the SM clock costs it little work (2842 to
  180 MHz: 1 to 6 % of latency, arXiv 2501.08219).
* prefill: prompts come when they come, GPU by GPU. A GPU that reads one draws all it may for some tenths of
  a second, and between two of them what decoding draws: `swing_ratio` is the share of time that reads.
* idle.

What a clock ceiling leaves of a compute-bound job is what a power limit would that takes as much power.
Throughput follows a limit along a curve that is concave above half the limit and convex below: the last
third of the power buys 7 % of the work. Points: dvfs_sweep.csv of
github.com/ai-emerald/emerald-ai-demo-may-2025 (256 A100 of 400 W, Apache-2.0, arXiv 2507.00909), means of
the workloads of one kind, normalised by the highest limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final, Literal

import numpy as np

from firmware_sim.gpu_power import CLOCK_EXPONENT, DECODE_MEMORY_RATIO, Bools, Floats, GpuModel

Kind = Literal["training", "finetuning", "inference", "decode", "prefill", "idle"]

IN_STEP: Final[frozenset[Kind]] = frozenset({"training", "finetuning"})
CURVE_LIMIT_RATIO: Final = (0.10, 0.25, 0.50, 0.625, 0.75, 0.875, 1.0)  # below 10 %: idle power, no work
CURVE_SPEED_RATIO: Final[dict[Kind, tuple[float, ...]]] = {
    "inference": (0.0, 0.225, 0.781, 0.871, 0.931, 0.976, 1.0),
    "finetuning": (0.0, 0.234, 0.796, 0.891, 0.944, 0.974, 1.0),
    "training": (0.0, 0.187, 0.629, 0.784, 0.867, 0.923, 1.0),
    "decode": (0.0, 0.225, 0.781, 0.871, 0.931, 0.976, 1.0),
    "prefill": (0.0, 0.225, 0.781, 0.871, 0.931, 0.976, 1.0),
    "idle": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
}

BURST_SIGMA: Final = (
    -2.33,
    -1.64,
    -0.67,
    0.0,
    0.67,
    1.64,
    2.33,
)  # normal quantiles 1, 5, 25, 50, 75, 95, 99 %
BURST_DEMAND_RATIO: Final = (0.40, 0.52, 0.63, 0.70, 0.88, 0.99, 1.0)  # of the limit, same quantiles
BURST_MEAN_RATIO: Final = 0.74
BURST_TAU_S: Final = 0.10  # samples 0.37 s apart are uncorrelated in the trace
DECODE_JITTER_RATIO: Final = 0.03  # batches come and go
DECODE_CLOCK_COST_RATIO: Final = 0.06  # of the work, at a clock of nothing
PREFILL_TAU_S: Final = 0.25  # a prompt of some thousand tokens
CHECKPOINT_DEMAND_RATIO: Final = 0.25  # of full power, while state goes to storage


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job on `gpus` (indices into the bank). Ratios of power are of the model's highest limit."""

    kind: Kind
    gpus: tuple[int, ...]
    tokens_per_s: float = 1000.0  # per GPU at full power
    intensity_ratio: float = 0.92
    swing_ratio: float = 1.0  # inference: share of the measured burst that is kept; prefill: of time
    step_s: float = 0.25  # training: one step at full speed
    exchange_share_ratio: float = 0.10  # training: share of a step spent exchanging
    exchange_demand_ratio: float = 0.75
    checkpoint_every_s: float = 0.0  # 0: none
    checkpoint_s: float = 2.0


def speed_ratio(kind: Kind, power_ratio: Floats) -> Floats:
    """Normalised throughput at a power limit, both as ratios of the highest limit."""
    return np.interp(power_ratio, CURVE_LIMIT_RATIO, CURVE_SPEED_RATIO[kind])


class Workload:
    """All jobs of a bank. Arrays have shape (n).

    Attributes:
        demand_w: what the GPUs would draw if nothing held them.
        memory_w: the part of it that no SM clock moves.
        tokens_per_s: what comes of it.
    """

    def __init__(self, jobs: Sequence[Job], model: GpuModel, count: int, rng: np.random.Generator) -> None:
        self.demand_w: Floats = np.full(count, model.idle_w)
        self.memory_w: Floats = np.zeros(count)
        self.tokens_per_s: Floats = np.zeros(count)
        self.has_memory_part = any(job.kind == "decode" for job in jobs)
        self._jobs = tuple(_RunningJob(job, model, rng) for job in _joined(jobs))
        self._decoding = np.array([gpu for job in jobs if job.kind == "decode" for gpu in job.gpus], np.intp)
        self._idle_w = model.idle_w

    def step(
        self, now_s: float, dt_s: float, ceiling_w: Floats, alive: Bools, clock_ratio: Floats | None = None
    ) -> None:
        """Advance all jobs; a dead GPU stops its training job.

        Args:
            now_s: plant time.
            dt_s: since the last step.
            ceiling_w: what the firmware allows now.
            alive: whether the GPU works at all.
            clock_ratio: highest SM clock in force, over the model's highest; None: all of it.
        """
        for job in self._jobs:
            clock = None if clock_ratio is None else clock_ratio[job.index]
            demand_w, tokens_per_s = job.step(now_s, dt_s, ceiling_w[job.index], alive[job.index], clock)
            self.demand_w[job.index] = demand_w
            self.tokens_per_s[job.index] = tokens_per_s
        if self.has_memory_part:
            work_w = np.maximum(self.demand_w[self._decoding] - self._idle_w, 0)
            self.memory_w[self._decoding] = DECODE_MEMORY_RATIO * work_w


def _joined(jobs: Sequence[Job]) -> list[Job]:
    """The GPUs of all but training jobs know nothing of each other: those that work alike are one job."""
    joined: dict[Job, Job] = {}
    for number, job in enumerate(jobs):
        stays = job.kind in IN_STEP
        key = replace(job, gpus=(number,) if stays else ())
        before = joined.get(key)
        joined[key] = job if before is None else replace(before, gpus=(*before.gpus, *job.gpus))
    return list(joined.values())


class _RunningJob:
    def __init__(self, job: Job, model: GpuModel, rng: np.random.Generator) -> None:
        self.job = job
        self.index = np.array(job.gpus, dtype=np.intp)
        self._model = model
        self._rng = rng
        self._phase_ratio = 0.0
        self._burst: Floats = rng.standard_normal(len(job.gpus))
        self._reads_above = NormalDist().inv_cdf(1 - min(max(job.swing_ratio, 1e-6), 1 - 1e-6))

    def step(
        self, now_s: float, dt_s: float, ceiling_w: Floats, alive: Bools, clock_ratio: Floats | None
    ) -> tuple[Floats, Floats]:
        kind = self.job.kind
        if kind == "idle":
            idle_w = np.full(len(ceiling_w), self._model.idle_w)
            return idle_w, np.zeros(len(ceiling_w))
        if kind in IN_STEP:
            return self._train(now_s, dt_s, ceiling_w, alive, clock_ratio)
        wanted_ratio = np.clip(self._wanted_ratio(dt_s), 0.1, 1.0)
        demand_w = self._power_w(wanted_ratio, alive)
        speed = self._speed(ceiling_w, demand_w, clock_ratio)
        return demand_w, self.job.tokens_per_s * wanted_ratio * speed * alive

    def _wanted_ratio(self, dt_s: float) -> Floats:
        """Of the highest limit, before anything holds it."""
        job = self.job
        keep = float(np.exp(-dt_s / (PREFILL_TAU_S if job.kind == "prefill" else BURST_TAU_S)))
        noise = self._rng.standard_normal(len(self._burst))
        self._burst = keep * self._burst + np.sqrt(1 - keep * keep) * noise
        if job.kind == "decode":
            return job.intensity_ratio * (1 + DECODE_JITTER_RATIO * self._burst)
        if job.kind == "prefill":
            return np.where(self._burst > self._reads_above, 1.0, job.intensity_ratio)
        drawn_ratio = np.interp(self._burst, BURST_SIGMA, BURST_DEMAND_RATIO)
        return job.intensity_ratio + (drawn_ratio - BURST_MEAN_RATIO) * job.swing_ratio

    def _train(
        self, now_s: float, dt_s: float, ceiling_w: Floats, alive: Bools, clock_ratio: Floats | None
    ) -> tuple[Floats, Floats]:
        full_w = np.full(len(ceiling_w), self.job.intensity_ratio * self._model.max_w)
        pace = float(self._speed(ceiling_w, full_w, clock_ratio).min()) if alive.all() else 0.0
        if self._is_checkpointing(now_s):
            return self._power_w(np.full(len(ceiling_w), CHECKPOINT_DEMAND_RATIO), alive), np.zeros(
                len(ceiling_w)
            )
        self._phase_ratio = (self._phase_ratio + dt_s * pace / self.job.step_s) % 1.0
        exchanging = self._phase_ratio > 1 - self.job.exchange_share_ratio
        # a job that lost a GPU hangs in its exchange, waiting
        ratio = self.job.exchange_demand_ratio if exchanging or not alive.all() else 1.0
        demand_w = self._power_w(np.full(len(ceiling_w), ratio * self.job.intensity_ratio), alive)
        return demand_w, np.full(len(ceiling_w), self.job.tokens_per_s * pace)

    def _is_checkpointing(self, now_s: float) -> bool:
        every_s = self.job.checkpoint_every_s
        return every_s > 0 and now_s % every_s > every_s - self.job.checkpoint_s

    def _power_w(self, ratio: Floats, alive: Bools) -> Floats:
        return np.where(alive, np.maximum(ratio * self._model.max_w, self._model.idle_w), self._model.idle_w)

    def _speed(self, ceiling_w: Floats, demand_w: Floats, clock_ratio: Floats | None) -> Floats:
        """Throughput under ceiling and clock, relative to the same work without them."""
        kind, model = self.job.kind, self._model
        held_w = np.minimum(ceiling_w, demand_w)
        clock_cost: Floats | float = 0.0
        if clock_ratio is not None and kind == "decode":
            clock_cost = DECODE_CLOCK_COST_RATIO * (1 - clock_ratio)
        elif clock_ratio is not None:
            clocked_w = model.idle_w + (demand_w - model.idle_w) * clock_ratio**CLOCK_EXPONENT
            held_w = np.minimum(held_w, clocked_w)
        held = speed_ratio(kind, held_w / model.max_w)
        return held / np.maximum(speed_ratio(kind, demand_w / model.max_w), 1e-9) * (1 - clock_cost)
