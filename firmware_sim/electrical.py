"""From the GPUs to the feed: hosts, fans, power supplies, racks and the two feeds.

What no GPU limit can move is not constant: fans follow the heat of the GPUs late and with the cube of their
speed, power supplies lose a share that depends on how loaded they are. So one watt less at the GPUs is a
little more than one watt less at the meter, and some of it comes seconds later.

Each rack hangs on feeds A and B, its power supplies split between them. When one feed dies, the other takes
the whole rack within a mains period, at another point of the efficiency curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from firmware_sim.gpu_power import Floats

FEEDS: Final = ("a", "b")
LOAD_RATIO: Final = (0.0, 0.05, 0.10, 0.20, 0.50, 1.00)  # of the supplies' rating
EFFICIENCY_RATIO: Final = (0.70, 0.85, 0.90, 0.94, 0.96, 0.94)  # 80 PLUS Titanium, with the usual top end
FAN_TAU_S: Final = 6.0  # fan controllers answer a temperature, which answers power
BASE_WANDER_TAU_S: Final = 2.0
BASE_WANDER_RATIO: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Host:
    """One GPU host. `gpus` are indices into the bank."""

    name: str
    rack: str
    gpus: tuple[int, ...]
    base_w: float = 700.0  # processors, memory, network cards, storage
    fan_min_w: float = 60.0
    fan_max_w: float = 180.0  # liquid takes the GPUs' heat; fans cool the rest
    gpu_heat_max_w: float = 5600.0
    supply_rating_w: float = 13_200.0  # all supplies of the host together


@dataclass(frozen=True, kw_only=True)
class Rack:
    name: str
    share_a_ratio: float = 0.5  # of the rack's power taken from feed A while both live
    switch_w: float = 120.0


class Electrical:
    """Power of hosts (h), racks (r) and inlets (r, 2), W."""

    def __init__(self, hosts: Sequence[Host], racks: Sequence[Rack], rng: np.random.Generator) -> None:
        self.feed_live = np.array([True, True])
        self.host_ac_w: Floats = np.zeros(len(hosts))
        self.rack_w: Floats = np.zeros(len(racks))
        self.inlet_w: Floats = np.zeros((len(racks), 2))
        self._rng = rng
        self._gpus = np.array([gpu for host in hosts for gpu in host.gpus], dtype=np.intp)
        self._gpu_host = np.repeat(np.arange(len(hosts)), [len(host.gpus) for host in hosts])
        names = [rack.name for rack in racks]
        self._host_rack = np.array([names.index(host.rack) for host in hosts], dtype=np.intp)
        self._base_w: Floats = np.array([host.base_w for host in hosts])
        self._fan_min_w: Floats = np.array([host.fan_min_w for host in hosts])
        self._fan_span_w: Floats = np.array([host.fan_max_w - host.fan_min_w for host in hosts])
        self._heat_max_w: Floats = np.array([host.gpu_heat_max_w for host in hosts])
        self._rating_w: Floats = np.array([host.supply_rating_w for host in hosts])
        self._switch_w: Floats = np.array([rack.switch_w for rack in racks])
        share_a = np.array([rack.share_a_ratio for rack in racks])
        self._share: Floats = np.stack([share_a, 1 - share_a], axis=1)
        self._fan_speed: Floats = np.zeros(len(hosts))
        self._wander: Floats = np.zeros(len(hosts))

    def settle(self, gpu_w: Floats) -> None:
        """Fans as after hours at this GPU power (n)."""
        self._fan_speed = self._heat_ratio(gpu_w)

    def step(self, dt_s: float, gpu_w: Floats) -> None:
        """Advance by `dt_s` with the GPUs drawing `gpu_w` (n)."""
        keep = float(np.exp(-dt_s / FAN_TAU_S))
        target = self._heat_ratio(gpu_w)
        self._fan_speed = target + (self._fan_speed - target) * keep
        keep = float(np.exp(-dt_s / BASE_WANDER_TAU_S))
        noise = BASE_WANDER_RATIO * np.sqrt(1 - keep * keep) * self._rng.standard_normal(len(self._wander))
        self._wander = keep * self._wander + noise
        dc_w = self._host_gpu_w(gpu_w) + self._base_w * (1 + self._wander)
        dc_w += self._fan_min_w + self._fan_span_w * self._fan_speed**3
        live = int(self.feed_live.sum())
        if live == 0:
            self.host_ac_w = np.zeros_like(dc_w)
            self.rack_w = np.zeros_like(self.rack_w)
            self.inlet_w = np.zeros_like(self.inlet_w)
            return
        load = dc_w / (self._rating_w * live / len(FEEDS))
        self.host_ac_w = dc_w / np.interp(load, LOAD_RATIO, EFFICIENCY_RATIO)
        self.rack_w = self._switch_w + np.bincount(
            self._host_rack, self.host_ac_w, minlength=len(self._switch_w)
        )
        share = self._share * self.feed_live
        self.inlet_w = self.rack_w[:, None] * share / share.sum(axis=1, keepdims=True)

    def _host_gpu_w(self, gpu_w: Floats) -> Floats:
        counted = np.bincount(self._gpu_host, weights=gpu_w[self._gpus], minlength=len(self._base_w))
        return counted.astype(np.float64, copy=False)

    def _heat_ratio(self, gpu_w: Floats) -> Floats:
        return np.minimum(self._host_gpu_w(gpu_w) / self._heat_max_w, 1.0)
