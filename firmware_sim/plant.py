"""The plant: everything physical of one power block, advanced together in small steps.

    workload -> demand --+
                         v
    limits ----------> GPUs -> hosts -> racks -> feeds -> PDUs, block meter
                         |                          |
                         +-> tokens                 +-> heat -> CDU -> capacity
                                                                 ^-- chiller

`step(dt_s, ...)` takes what the outside commands (GPU limits, faults are plain attributes) and returns
nothing; whoever wants to know reads the attributes. Time is the sum of the steps, chance comes from one seed:
the same steps give the same plant. 200 steps a second of 5 ms resolve a GPU's fall of 20 ms.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from firmware_sim.cooling import Cdu, CduType, Chiller
from firmware_sim.electrical import FEEDS, Electrical, Host, Rack
from firmware_sim.gpu_power import Bools, Floats, Floor, GpuBank, GpuModel, GpuSensors
from firmware_sim.mains import Mains
from firmware_sim.metering import BLOCK_METER, PDU, Meter
from firmware_sim.workload import Job, Workload

STEP_S: Final = 0.005
STEP_MAX_S: Final = 0.020  # longer steps would jump over a GPU's fall
CHILLER_OVER_CDU: Final = 1.5  # chillers are bought for the halls to come
WARM_UP_S: Final = 0.5  # until power has settled on demand, before time 0


@dataclass(frozen=True, kw_only=True)
class PlantType:
    """What a plant is made of. GPUs are numbered through all hosts."""

    gpu: GpuModel
    hosts: tuple[Host, ...]
    racks: tuple[Rack, ...]
    jobs: tuple[Job, ...]
    cdu: CduType
    seed: int = 1

    @property
    def gpu_count(self) -> int:
        return sum(len(host.gpus) for host in self.hosts)


class Plant:
    """One power block. Arrays: GPUs (n), racks (r), inlets (r, 2), the last in the order A, B."""

    def __init__(self, plant_type: PlantType) -> None:
        rng = np.random.default_rng(plant_type.seed)
        count = plant_type.gpu_count
        self.type = plant_type
        self.now_s = 0.0
        self.alive: Bools = np.ones(count, dtype=bool)  # a lost GPU stops working and idles
        self.bank = GpuBank(plant_type.gpu, count, rng)
        self.workload = Workload(plant_type.jobs, plant_type.gpu, count, rng)
        self.electrical = Electrical(plant_type.hosts, plant_type.racks, rng)
        self.cdu = Cdu(plant_type.cdu, rng)
        self.chiller = Chiller(CHILLER_OVER_CDU * self.cdu.capacity_w)
        self.mains = Mains(rng)
        self.block_w = 0.0
        self.block_energy_j = 0.0
        self._settle()
        self.sensors = GpuSensors(self.bank, rng)
        self.inlet_meters = tuple(tuple(Meter(PDU, rng) for _ in FEEDS) for _ in plant_type.racks)
        self.block_meter = Meter(BLOCK_METER, rng)

    @property
    def tokens_per_s(self) -> float:
        return float(self.workload.tokens_per_s.sum())

    def step(
        self, dt_s: float, limit_w: Floats, clock_limit_hz: Floats | None = None, floor: Floor | None = None
    ) -> None:
        """Advance by `dt_s` under the GPUs' enforced limits (n), locked clocks (n) and power smoothing."""
        if not 0 < dt_s <= STEP_MAX_S:
            raise ValueError(f"a step of {dt_s} s: use more than 0 and at most {STEP_MAX_S} s")
        self._step_physics(dt_s, limit_w, clock_limit_hz, floor)
        self.mains.step(dt_s)
        self.sensors.step(self.now_s)
        for row, meters in enumerate(self.inlet_meters):
            for column, meter in enumerate(meters):
                meter.step(self.now_s, dt_s, float(self.electrical.inlet_w[row, column]))
        self.block_meter.step(self.now_s, dt_s, self.block_w)

    def _step_physics(
        self, dt_s: float, limit_w: Floats, clock_limit_hz: Floats | None, floor: Floor | None = None
    ) -> None:
        self.now_s += dt_s
        work = self.workload
        work.step(self.now_s, dt_s, self.bank.ceiling_w, self.alive, self.bank.clock_ratio)
        before_j = self.bank.energy_j.copy()
        memory_w = work.memory_w if work.has_memory_part else None
        self.bank.step(dt_s, work.demand_w, limit_w, clock_limit_hz, memory_w=memory_w, floor=floor)
        self.electrical.step(dt_s, (self.bank.energy_j - before_j) / dt_s)
        racks_w = float(self.electrical.rack_w.sum())
        self.chiller.step(dt_s, racks_w)
        self.cdu.step(dt_s, racks_w, self.chiller.warmer_k)
        self.block_w = racks_w + self.cdu.pump_w
        self.block_energy_j += self.block_w * dt_s

    def _settle(self) -> None:
        """Time 0 finds the plant at work, not at the moment of switching on."""
        limit_w = np.full(self.bank.count, self.type.gpu.max_w)
        for _ in range(round(WARM_UP_S / STEP_S)):
            self._step_physics(STEP_S, limit_w, None)
            self.electrical.settle(self.bank.power_w)
        self.now_s = 0.0
        self.bank.energy_j[:] = 0.0
        self.block_energy_j = 0.0
