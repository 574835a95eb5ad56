"""Boards without a plant: GPUs draw what their work wants or their limit, if that is less; meters show it.

The physics of a shed are the rig's business (`block_1152`). Here only the way to the limit is measured, so
the world beside the processes under test is as cheap as it can be: twenty steps a second over all GPUs, a few
NumPy calls each. Work wanders a little, so that shares move and orders flow as they do in business.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from firmware_sim.gpu_firmware import GpuMemory
from firmware_sim.scenario_block import Node

MIN_W, MAX_W, IDLE_W = 200.0, 700.0, 70.0  # H100
WANTED_W: Final = 640.0
WANDER_W, WANDER_TAU_S = 20.0, 2.0
CLOCK_MHZ: Final = 1980.0
SW_POWER_CAP: Final = 0x4  # NVML clocks event reason
AVERAGE_TAU_S: Final = 0.5
SUPPLY_W_PER_W: Final = 1.06
FANS_W: Final = 10.0  # a meter whose value stands still is taken for frozen
VOLTAGE_V: Final = 230.0

Floats = NDArray[np.float64]


class Boards:
    """All GPUs of a block, in the order of drivers, and of nodes within a driver.

    Args:
        drivers: driver -> its nodes, in the order of their GPUs.
        folder: for the memories.
        base_w: what each rack draws beside its GPUs.
    """

    def __init__(self, drivers: Mapping[str, tuple[Node, ...]], folder: Path, base_w: float) -> None:
        self.memories = {
            name: GpuMemory.create(
                folder / f"{name}.gpus", sum(node.gpus for node in nodes), node=name,
                min_w=MIN_W, max_w=MAX_W, default_w=MAX_W, idle_w=IDLE_W, name="Simulated H100",
            )
            for name, nodes in drivers.items()
        }  # fmt: skip
        racks = [node.rack for nodes in drivers.values() for node in nodes for _ in range(node.gpus)]
        self._names = sorted(set(racks))
        self._rack = np.array([self._names.index(rack) for rack in racks])
        self._base_w = base_w
        self._rng = np.random.default_rng(1)
        self._wanted_w = np.full(len(racks), WANTED_W)
        self._average_w = np.full(len(racks), IDLE_W)
        self.rack_w: Floats = np.zeros(len(self._names))

    def __len__(self) -> int:
        return len(self._rack)

    @property
    def limits_w(self) -> Floats:
        """What is requested of each GPU now, shape (n)."""
        return self._column("requested_mw") * 1e-3

    @property
    def written_s(self) -> Floats:
        """When each limit was last written, by the driver's own monotonic clock, shape (n)."""
        return self._column("last_write_ns") * 1e-9

    @property
    def writes(self) -> int:
        """Limits written so far."""
        return int(self._column("write_count").sum())

    def step(self, length_s: float) -> None:
        """Let time pass."""
        shocks = self._rng.standard_normal(len(self)) * WANDER_W * (2.0 * length_s / WANDER_TAU_S) ** 0.5
        self._wanted_w += (WANTED_W - self._wanted_w) * length_s / WANDER_TAU_S + shocks
        limits_w = np.concatenate([memory.enforced_mw() for memory in self.memories.values()]) * 1e-3
        power_w = np.minimum(self._wanted_w, limits_w)
        self._average_w += (power_w - self._average_w) * length_s / AVERAGE_TAU_S
        gpus_w = np.bincount(self._rack, power_w, len(self._names)).astype(np.float64)
        fans_w = FANS_W * self._rng.standard_normal(len(self._names))
        self.rack_w = self._base_w + fans_w + SUPPLY_W_PER_W * gpus_w
        columns = {
            "instant_mw": power_w * 1e3,
            "average_mw": self._average_w * 1e3,
            "clock_mhz": CLOCK_MHZ * power_w / np.maximum(self._wanted_w, power_w),
            "clock_reasons": np.where(limits_w < self._wanted_w, SW_POWER_CAP, 0),
        }
        first = 0
        for memory in self.memories.values():
            rows = slice(first, first + len(memory.gpus))
            for name, values in columns.items():
                memory.gpus[name] = values[rows]
            first = rows.stop

    def meter(self) -> Mapping[str, float]:
        """What the block's meter shows."""
        return {"power_w": float(self.rack_w.sum()), "voltage_v": VOLTAGE_V}

    def inlet(self, rack: str) -> Callable[[], Mapping[str, float]]:
        """What each of the two PDUs of a rack shows."""
        place = self._names.index(rack)
        return lambda: {"power_w": 0.5 * float(self.rack_w[place]), "voltage_v": VOLTAGE_V, "inlets": 1}

    def _column(self, name: str) -> Floats:
        column: Floats = np.concatenate([memory.gpus[name] for memory in self.memories.values()], dtype=float)
        return column
