"""The truth: GPUs, hosts and instruments of a small block, as simple as the promises allow.

First-order lags stand for firmware and power supplies: limits bite in 40 ms, lifted ones in 150 ms (the
orders of magnitude measured on a V100). The law never sees this; it sees what `Instruments` and the agents
say about it.

GPUs that decode want about half of what others do; a ceiling on the clock takes from all that is above idle.
Power smoothing keeps up a floor, whatever limit, clock and work say.
"""

from dataclasses import dataclass, field
from math import exp
from random import Random

import numpy as np

DOWN_S, UP_S = 0.04, 0.15
IDLE_W, CLOCK_MAX_MHZ = 70.0, 1980
DECODE_RATIO = 0.5  # of what is above idle
RACKS = 2
RACK_BASE_RATIO = 0.45  # of the base load: what each rack has of it, the rest is not behind PDUs


@dataclass
class Truth:
    """What really is. Arrays (n) over GPUs."""

    rng: Random
    gpu_rack: np.ndarray
    limit_w: np.ndarray  # what the driver holds
    oob_w: np.ndarray  # out-of-band ceiling
    bmc_w: np.ndarray  # the same, as set by our own backstop
    max_w: np.ndarray
    demand_w: np.ndarray
    power_w: np.ndarray
    gain: float
    base_w: float
    base_target_w: float
    saturated: bool
    lost: np.ndarray  # fell off the bus: neither readable nor writable
    wild: np.ndarray  # draws what it likes, whatever its limit
    decodes: np.ndarray  # waits for its memory: draws well below its limit
    floor_w: np.ndarray  # of power smoothing; 0: none
    ceiling_mhz: np.ndarray  # of the SM clock; 0: none
    clock_deaf: np.ndarray  # its power is the same whatever the ceiling
    generation: np.ndarray  # grows when the driver forgets what was set
    block_w: float = 0.0
    rack_w: list[float] = field(default_factory=list)

    def step(self, dt_s: float, now_s: float) -> None:
        rng = self.rng
        if not self.saturated:
            count = len(self.demand_w)
            if rng.random() < 0.1 * dt_s * count:
                self.demand_w[rng.randrange(count)] = rng.choice((IDLE_W, rng.uniform(150.0, 700.0), 700.0))
        target = np.minimum(self.wished_w, self.enforced_w)
        target = np.where(self.wild, self.demand_w, np.maximum(target, self.floor_w))
        part = np.where(target < self.power_w, 1.0 - exp(-dt_s / DOWN_S), 1.0 - exp(-dt_s / UP_S))
        self.power_w += (target - self.power_w) * part
        if rng.random() < 0.05 * dt_s:
            self.base_target_w = rng.uniform(1200.0, 2200.0)
        self.base_w += (self.base_target_w - self.base_w) * (1.0 - exp(-dt_s / 4.0))

        gpu_rack_w = np.bincount(self.gpu_rack, self.power_w, RACKS)
        self.block_w = self.gain * float(self.power_w.sum()) + self.base_w
        self.rack_w = (self.gain * gpu_rack_w + RACK_BASE_RATIO * self.base_w).tolist()

    @property
    def enforced_w(self) -> np.ndarray:
        return np.minimum(np.minimum(self.limit_w, self.oob_w), self.bmc_w)

    @property
    def wished_w(self) -> np.ndarray:
        """What the work takes at the clock it may have."""
        slowed = (self.ceiling_mhz > 0) & ~self.clock_deaf
        ratio = np.where(self.decodes, DECODE_RATIO, 1.0)
        ratio = np.where(slowed, self.ceiling_mhz / CLOCK_MAX_MHZ, 1.0) * ratio
        return IDLE_W + (self.demand_w - IDLE_W) * ratio

    def work_fully(self, members: np.ndarray) -> None:
        self.demand_w[members] = self.max_w[members]
        self.decodes[members] = False

    def forget_settings(self, members: np.ndarray) -> None:
        """As a driver does that is loaded anew."""
        self.limit_w[members] = self.max_w[members]
        self.ceiling_mhz[members] = 0
        self.generation[members] += 1


@dataclass
class Meter:
    """Samples the truth with a lag of its own; faults change what it says, never what is."""

    period_s: float
    lag_s: float
    value_w: float | None = None
    shown_w: float = 0.0
    shown_at_s: float = -1e12
    next_s: float = 0.0
    mode: str = "good"  # good, silent, frozen, lying, bad

    def step(self, true_w: float, now_s: float, dt_s: float, rng: Random) -> None:
        self.value_w = true_w if self.value_w is None else self.value_w
        self.value_w += (true_w - self.value_w) * min(1.0, dt_s / max(self.lag_s, dt_s))
        if now_s < self.next_s or self.mode == "silent":
            return
        self.next_s = now_s + self.period_s * rng.uniform(0.9, 1.1)
        factor = 0.9 if self.mode == "lying" else 1.0
        if self.mode != "frozen":
            self.shown_w = self.value_w * factor * rng.gauss(1.0, 0.001)
        self.shown_at_s = now_s
