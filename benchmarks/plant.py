"""A light block of any size: vectorised GPUs, base load, instruments. No wires, no clock, one seed.

Racks of 72 GPUs, nodes of 4, two inlets per rack: the shape of an NVL72. Every GPU wants power that jitters
from step to step, and a few change their mind altogether. Power follows the lower of wish and limit with one
lag. The meter looks at the block five times a second, each PDU at its rack once a second with a lag of its
own, not all at once. As much physics as the law can notice, and as little work as that takes, because here
the law is to be measured and not the plant.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from controller.core.model import (
    Contact,
    FailsafeSettings,
    Inlets,
    Measurement,
    Ramp,
    Setpoint,
    Settings,
    Site,
    Topology,
)

Floats = npt.NDArray[np.float64]

TICK_S: Final = 0.05
GPUS_PER_RACK: Final = 72
GPUS_PER_NODE: Final = 4
MIN_W: Final = 200.0
MAX_W: Final = 1000.0
GAIN_RATIO: Final = 1.05  # what the power supplies really add; the law assumes a little more
RACK_BASE_W: Final = 9000.0
FOLLOW_RATIO: Final = 0.7  # of the gap to its target that power closes in a tick
JITTER_RATIO: Final = 0.03  # standard deviation of demand from tick to tick
JITTER_ROWS: Final = 256  # drawn once: drawing 20,000 normal numbers costs more than a tick
WISHES: Final = 4093  # a prime: no GPU meets the same wish in every round
MIND_CHANGE_S: Final = 20.0  # how long a GPU wants about the same, on average
METER_TICKS: Final = 4
INLET_TICKS: Final = 20
REPORT_TICKS: Final = 2
UTC_0_S: Final = 1_800_000_000.0


def settings(gpus: int) -> Settings:
    """Settings of a block of full racks. `gpus`: a multiple of 72."""
    racks, nodes = gpus // GPUS_PER_RACK, gpus // GPUS_PER_NODE
    peak_w = 1.06 * gpus * MAX_W + 1.3 * racks * RACK_BASE_W
    gpu = np.arange(gpus)
    topology = Topology(
        node_names=tuple(f"n{node}" for node in range(nodes)),
        rack_names=tuple(f"r{rack}" for rack in range(racks)),
        inlet_names=tuple(f"r{rack}-{feed}" for rack in range(racks) for feed in "ab"),
        gpu_node=gpu // GPUS_PER_NODE,
        gpu_rack=gpu // GPUS_PER_RACK,
        inlet_rack=np.repeat(np.arange(racks), 2),
        inlet_continuous_w=np.full(2 * racks, 0.6 * peak_w / racks),
        gpu_min_w=np.full(gpus, MIN_W),
        gpu_max_w=np.full(gpus, MAX_W),
        gpu_floor_w=np.where(gpu // GPUS_PER_NODE % 4 == 0, 500.0, 250.0),
        gpu_weight=np.where(gpu // GPUS_PER_NODE % 4 == 0, 4.0, 1.0),
    )
    return Settings(
        topology=topology,
        failsafes=(FailsafeSettings(limit_w=0.8 * peak_w, heartbeat_timeout_s=5.0, source="openadr"),),
        tick_s=TICK_S,
        feed_rating_w=peak_w,
        ramp=Ramp(down_w_per_s=0.03 * peak_w, up_w_per_s=0.02 * peak_w),
        block_w_per_gpu_w=1.06,
        base_min_w=0.3 * racks * RACK_BASE_W,
        base_max_w=1.3 * racks * RACK_BASE_W,
        base_margin_w=0.002 * peak_w,
        rack_base_max_w=np.full(racks, 1.3 * RACK_BASE_W),
        cooling_blind_w=0.8 * peak_w,
        witness_tolerance_w=0.03 * peak_w,
    )


def curtailment(number: int, limit_w: float, starts_s: float, length_s: float) -> Setpoint:
    """One window of a plan, in seconds of the plant's time."""
    starts_utc_s = UTC_0_S + starts_s
    return Setpoint(
        source="openadr",
        id=f"event-{number}",
        kind="IMPORT_CAPACITY_LIMIT",
        limit_w=limit_w,
        starts_utc_s=starts_utc_s,
        ends_utc_s=starts_utc_s + length_s,
    )


@dataclass
class Plant:
    """The truth of a block, and what its instruments say. `limit_w` (n): what the drivers hold."""

    settings: Settings
    seed: int

    def __post_init__(self) -> None:
        topology = self.settings.topology
        self.count, self.racks = len(topology.gpu_node), len(topology.rack_names)
        self.ticks = 0
        rng = np.random.default_rng(self.seed)
        self.limit_w = topology.gpu_max_w.copy()
        self._jitter = 1.0 + JITTER_RATIO * rng.standard_normal((JITTER_ROWS, self.count))
        self._wishes_w = MAX_W * rng.choice((0.15, 0.6, 0.8, 0.9, 1.0, 1.0), size=WISHES)
        self._wish_w = rng.choice(self._wishes_w, size=self.count)
        self._wishes_changed = 0
        self.power_w = np.minimum(self._wish_w, self.limit_w)
        self._rack_w = np.tile(self._racks_now_w(), (2 * INLET_TICKS, 1))  # of the last two seconds, a ring
        self._metered = Measurement(self.block_w, good=True, taken_at_s=self.now_s)
        self._inlet_phase = np.arange(2 * self.racks) % INLET_TICKS
        self._inlets = Inlets(
            power_w=0.5 * self._rack_w[0][topology.inlet_rack],
            good=np.ones(2 * self.racks, dtype=np.bool_),
            taken_at_s=np.full(2 * self.racks, self.now_s),
        )

    @property
    def now_s(self) -> float:
        return 1000.0 + self.ticks * TICK_S

    @property
    def block_w(self) -> float:
        """Power at the feed in this instant."""
        return GAIN_RATIO * float(self.power_w.sum()) + self.racks * self._rack_base_w()

    def step(self) -> None:
        """One tick of physics."""
        self.ticks += 1
        self._change_minds()
        wanted_w = self._wish_w * self._jitter[self.ticks % JITTER_ROWS]
        np.minimum(wanted_w, self.limit_w, out=wanted_w)
        self.power_w = self.power_w + FOLLOW_RATIO * (wanted_w - self.power_w)
        self._rack_w[self.ticks % len(self._rack_w)] = self._racks_now_w()

    def metered(self) -> Measurement:
        """What the block meter shows; a new reading every fourth tick."""
        if self.ticks % METER_TICKS == 0:
            lagged_w = float(self._rack_w[(self.ticks - 2) % len(self._rack_w)].sum())
            self._metered = Measurement(lagged_w, good=True, taken_at_s=self.now_s)
        return self._metered

    def inlets(self) -> tuple[npt.NDArray[np.intp], Inlets]:
        """Which PDU inlets were read in this tick, and what all of them show."""
        new = np.flatnonzero(self._inlet_phase == self.ticks % INLET_TICKS)
        if len(new):
            lagged = (self.ticks - 2 * INLET_TICKS + 1 + np.arange(INLET_TICKS)) % len(self._rack_w)
            power_w, taken_at_s = self._inlets.power_w.copy(), self._inlets.taken_at_s.copy()
            power_w[new] = 0.5 * self._rack_w[lagged].mean(axis=0)[self.settings.topology.inlet_rack[new]]
            taken_at_s[new] = self.now_s
            self._inlets = Inlets(power_w, self._inlets.good, taken_at_s)
        return new, self._inlets

    def site(self, plan: tuple[Setpoint, ...]) -> Site:
        return Site(contacts=(Contact(self.now_s, self.now_s),), setpoints=plan)

    def _rack_base_w(self) -> float:
        """Fans breathe: 8 % up and down in two minutes."""
        return RACK_BASE_W * (1.0 + 0.08 * float(np.sin(self.ticks * TICK_S * 0.05)))

    def _racks_now_w(self) -> Floats:
        gpu_w: Floats = self.power_w.reshape(self.racks, GPUS_PER_RACK).sum(axis=1)
        return GAIN_RATIO * gpu_w + self._rack_base_w()

    def _change_minds(self) -> None:
        due = int(self.ticks * TICK_S * self.count / MIND_CHANGE_S)
        while self._wishes_changed < due:
            self._wishes_changed += 1
            gpu = (
                self._wishes_changed * 7919 % self.count
            )  # a prime: all take their turn, none its neighbour's
            self._wish_w[gpu] = self._wishes_w[self._wishes_changed % WISHES]
