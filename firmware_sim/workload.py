"""What the GPUs are asked to do: demand in W, and what comes of it in tokens per second.

Three kinds of job.

* training: all GPUs of a job compute and exchange in step. Each step ends in an exchange that draws less
  (H100 jobs swing by up to 40 %, arXiv 2508.14318 as cited by GridPilot); now and then a checkpoint lets
  all of them idle. The job runs at the pace of its slowest GPU.
* inference: requests come in bursts, GPU by GPU, independent of each other. While a server is busy, one GPU
  draws between 40 and 100 % of its limit, median 70 %, without memory beyond 0.2 s (quantiles below: eight
  GPUs serving an LLM, GPU_Inference.csv of github.com/chennnnnyize/voltage-regulation-with-data-centers,
  MIT).
  A saturated server draws steadily 92 % (infer_llama_8b of the sweep below): `intensity_ratio` sets the
  mean, `swing_ratio` how much of the measured burst is kept.
* idle.

Throughput follows a limit along a curve that is concave above half the limit and convex below: the last
third of the power buys 7 % of the work. Points: dvfs_sweep.csv of
github.com/ai-emerald/emerald-ai-demo-may-2025 (256 A100 of 400 W, Apache-2.0, arXiv 2507.00909), means of
the workloads of one kind, normalised by the highest limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from firmware_sim.gpu_power import Bools, Floats, GpuModel

Kind = Literal["training", "finetuning", "inference", "idle"]

CURVE_LIMIT_RATIO: Final = (0.10, 0.25, 0.50, 0.625, 0.75, 0.875, 1.0)  # below 10 %: idle power, no work
CURVE_SPEED_RATIO: Final[dict[Kind, tuple[float, ...]]] = {
    "inference": (0.0, 0.225, 0.781, 0.871, 0.931, 0.976, 1.0),
    "finetuning": (0.0, 0.234, 0.796, 0.891, 0.944, 0.974, 1.0),
    "training": (0.0, 0.187, 0.629, 0.784, 0.867, 0.923, 1.0),
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
CHECKPOINT_DEMAND_RATIO: Final = 0.25  # of full power, while state goes to storage


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job on `gpus` (indices into the bank). Ratios of power are of the model's highest limit."""

    kind: Kind
    gpus: tuple[int, ...]
    tokens_per_s: float = 1000.0  # per GPU at full power
    intensity_ratio: float = 0.92
    swing_ratio: float = 1.0  # inference: share of the measured burst that is kept
    step_s: float = 0.25  # training: one step at full speed
    exchange_share_ratio: float = 0.10  # training: share of a step spent exchanging
    exchange_demand_ratio: float = 0.75
    checkpoint_every_s: float = 0.0  # 0: none
    checkpoint_s: float = 2.0


def speed_ratio(kind: Kind, power_ratio: Floats) -> Floats:
    """Normalised throughput at a power limit, both as ratios of the highest limit."""
    return np.interp(power_ratio, CURVE_LIMIT_RATIO, CURVE_SPEED_RATIO[kind])


class Workload:
    """All jobs of a bank."""

    def __init__(self, jobs: Sequence[Job], model: GpuModel, count: int, rng: np.random.Generator) -> None:
        self.demand_w: Floats = np.full(count, model.idle_w)
        self.tokens_per_s: Floats = np.zeros(count)
        self._model = model
        self._jobs = tuple(_RunningJob(job, model, rng) for job in jobs)

    def step(self, now_s: float, dt_s: float, ceiling_w: Floats, alive: Bools) -> None:
        """Advance all jobs. `ceiling_w`: what the firmware allows now; a dead GPU stops its training job."""
        for job in self._jobs:
            demand_w, tokens_per_s = job.step(now_s, dt_s, ceiling_w[job.index], alive[job.index])
            self.demand_w[job.index] = demand_w
            self.tokens_per_s[job.index] = tokens_per_s


class _RunningJob:
    def __init__(self, job: Job, model: GpuModel, rng: np.random.Generator) -> None:
        self.job = job
        self.index = np.array(job.gpus, dtype=np.intp)
        self._model = model
        self._rng = rng
        self._phase_ratio = 0.0
        self._burst: Floats = rng.standard_normal(len(job.gpus))

    def step(self, now_s: float, dt_s: float, ceiling_w: Floats, alive: Bools) -> tuple[Floats, Floats]:
        kind = self.job.kind
        if kind == "idle":
            idle_w = np.full(len(ceiling_w), self._model.idle_w)
            return idle_w, np.zeros(len(ceiling_w))
        if kind == "inference":
            return self._serve(dt_s, ceiling_w, alive)
        return self._train(now_s, dt_s, ceiling_w, alive)

    def _serve(self, dt_s: float, ceiling_w: Floats, alive: Bools) -> tuple[Floats, Floats]:
        keep = float(np.exp(-dt_s / BURST_TAU_S))
        noise = self._rng.standard_normal(len(self._burst))
        self._burst = keep * self._burst + np.sqrt(1 - keep * keep) * noise
        drawn_ratio = np.interp(self._burst, BURST_SIGMA, BURST_DEMAND_RATIO)
        swing_ratio = (drawn_ratio - BURST_MEAN_RATIO) * self.job.swing_ratio
        wanted_ratio = np.clip(self.job.intensity_ratio + swing_ratio, 0.1, 1.0)
        demand_w = self._power_w(wanted_ratio, alive)
        speed = self._speed(ceiling_w, demand_w)
        return demand_w, self.job.tokens_per_s * wanted_ratio * speed * alive

    def _train(self, now_s: float, dt_s: float, ceiling_w: Floats, alive: Bools) -> tuple[Floats, Floats]:
        full_w = np.full(len(ceiling_w), self.job.intensity_ratio * self._model.max_w)
        pace = float(self._speed(ceiling_w, full_w).min()) if alive.all() else 0.0
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

    def _speed(self, ceiling_w: Floats, demand_w: Floats) -> Floats:
        """Throughput under the ceiling, relative to the same work without one."""
        kind, max_w = self.job.kind, self._model.max_w
        held = speed_ratio(kind, np.minimum(ceiling_w, demand_w) / max_w)
        return held / np.maximum(speed_ratio(kind, demand_w / max_w), 1e-9)
