"""The facility: the plant in real time, with everything that has a plug.

    plant <-> GPU memories  <- NVML ->       node agents
    plant  -> PDUs, meter   <- Modbus TCP -> controller
    plant  -> CDU           <- OPC UA ->     controller
    plant <-> other devices <- Modbus ->     controller

The plant follows the monotonic clock in whole steps; when the process was held up it catches up, and it
counts what it could not catch up. Twenty times a second a sample is taken: means over 50 ms from energy
counters, not instants.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Final, Self

import numpy as np

from firmware_sim.device_fault import DeviceFault
from firmware_sim.electrical import FEEDS
from firmware_sim.field_devices import Tied, tie
from firmware_sim.gpu_firmware import GPU_IS_LOST, NONE, GpuMemory
from firmware_sim.gpu_power import Floats
from firmware_sim.metering import Meter
from firmware_sim.modbus_device import ModbusDevice, ModbusLine, ModbusUnit
from firmware_sim.opcua_device import OpcuaDevice
from firmware_sim.plant import STEP_S, Plant
from firmware_sim.scenario import Fault, Scenario
from firmware_sim.watched import Truth, WatchedPoint, watched_points
from protocols.profile import load_profile

SAMPLE_S: Final = 0.050
CATCH_UP_MAX_S: Final = 0.25  # more than that in one go would starve the device servers
SLOW_EVERY_STEPS: Final = 20  # temperatures and clocks: 10 Hz
SW_POWER_CAP: Final = 0x4  # NVML clocks event reason
MAINS_HZ: Final = 50.0
POWER_FACTOR_RATIO: Final = 0.98
LOOP_TO_GPU_K_PER_W: Final = 0.04  # a cold plate at 700 W runs 28 K above its water

Heal = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Sample:
    """Means over the 50 ms that end at `t_s`, the plant's time."""

    t_s: float
    utc_s: float
    block_w: float
    metered_w: float  # what the block meter shows at the end of it
    gpu_w: float
    tokens_per_s: float
    capacity_w: float
    facility_c: float
    gpu_limit_w: float  # sum of the enforced limits
    rack_w: tuple[float, ...]
    truth: tuple[float, ...] = ()  # of the watched points, at the end of it


class Facility:
    """Use as an async context manager: devices serve inside it. `run()` lets time pass."""

    def __init__(self, scenario: Scenario, work_dir: Path) -> None:
        self.scenario = scenario
        self.plant = Plant(scenario.plant_type())
        self.samples: list[Sample] = []
        self.lost_s = 0.0  # real time the plant could not follow
        model = self.plant.type.gpu
        self.memories = {
            node.name: GpuMemory.create(
                work_dir / f"{node.name}.gpus", node.gpus, node=node.name,
                min_w=model.min_w, max_w=model.max_w, default_w=model.max_w,
                idle_w=model.idle_w, name=f"Simulated {model.name}",
            )
            for node in scenario.block.nodes
        }  # fmt: skip
        self._rows = {host.name: np.array(host.gpus) for host in self.plant.type.hosts}
        self.tied: dict[str, Tied] = {
            device.name: tie(device, self.plant) for device in scenario.facility.devices
        }
        self.watched: dict[WatchedPoint, Truth] = (
            dict(watched_points(scenario, self.plant, self.tied)) if scenario.facility.serve else {}
        )
        self.devices: dict[str, ModbusUnit | OpcuaDevice] = {}
        self.urls: dict[str, str] = {}
        self._lines: dict[str, ModbusLine] = {}
        self._stack = AsyncExitStack()
        self._started_at_s = 0.0
        self._started_utc_s = 0.0
        self._steps = 0

    async def __aenter__(self) -> Self:
        self.devices = {**self._wire(), **self._wire_others()}
        try:
            for name, device in self.devices.items():
                if isinstance(device, ModbusDevice | OpcuaDevice):
                    await self._stack.enter_async_context(device)
                    self.urls[name] = device.url
            for line in self._lines.values():
                await self._stack.enter_async_context(line)
        except BaseException:
            await self._stack.aclose()
            raise
        self.urls |= {
            device.name: self._lines[device.line].url
            for device in self.scenario.facility.devices
            if device.line
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def now_s(self) -> float:
        """Plant time of this instant, between two steps as well."""
        return time.monotonic() - self._started_at_s

    async def run(self) -> None:
        """Let time pass until cancelled."""
        self._started_at_s = time.monotonic()
        self._started_utc_s = time.time()
        summing = _Sums(self)
        while True:
            behind_s = self.now_s() - self.plant.now_s
            if behind_s > CATCH_UP_MAX_S:
                skipped_s = behind_s - CATCH_UP_MAX_S
                self.lost_s += skipped_s
                self._started_at_s += skipped_s
                self._started_utc_s += skipped_s
            for _ in range(int(min(behind_s, CATCH_UP_MAX_S) / STEP_S)):
                self._step()
                if (sample := summing.take(self._started_utc_s)) is not None:
                    self.samples.append(sample)
            await asyncio.sleep(STEP_S)

    def limits_w(self) -> Floats:
        """What the boards enforce now, shape (n)."""
        return np.concatenate([memory.enforced_mw() for memory in self.memories.values()]) / 1000.0

    def _step(self) -> None:
        limits_w = self.limits_w()
        locked_mhz = np.concatenate([m.gpus["locked_clock_max_mhz"] for m in self.memories.values()])
        clocks_hz = (
            None if (locked_mhz == NONE).all() else np.where(locked_mhz == NONE, np.inf, locked_mhz * 1e6)
        )
        self.plant.step(STEP_S, limits_w, clocks_hz)
        sensors = self.plant.sensors
        for name, memory in self.memories.items():
            rows = self._rows[name]
            memory.gpus["instant_mw"] = sensors.instant_w[rows] * 1000
            memory.gpus["average_mw"] = sensors.average_w[rows] * 1000
            memory.gpus["energy_mj"] = sensors.energy_j[rows] * 1000
        self._steps += 1
        if self._steps % SLOW_EVERY_STEPS == 0:
            self._write_slow_columns()

    def _write_slow_columns(self) -> None:
        plant = self.plant
        capped = plant.bank.ceiling_w < plant.workload.demand_w
        for name, memory in self.memories.items():
            rows = self._rows[name]
            memory.gpus["temperature_c"] = plant.cdu.loop_c + LOOP_TO_GPU_K_PER_W * plant.bank.power_w[rows]
            memory.gpus["clock_reasons"] = np.where(capped[rows], SW_POWER_CAP, 0)

    # ---- devices --------------------------------------------------------------------------------------

    def _wire(self) -> dict[str, ModbusUnit | OpcuaDevice]:
        """Those that the law lives by."""
        devices: dict[str, ModbusUnit | OpcuaDevice] = {}
        pdu = load_profile("xerus_pdu")
        for row, rack in enumerate(self.scenario.block.racks):
            for column, feed in enumerate(FEEDS):
                meter = self.plant.inlet_meters[row][column]
                values = _pdu_values(meter, rack.voltage_v, rack.phases)
                devices[f"{rack.name}-{feed}"] = ModbusDevice(pdu, values)
        block_meter = self.plant.block_meter
        devices["meter"] = ModbusDevice(load_profile("pm5000_meter"), _block_meter_values(block_meter))
        devices["cdu"] = OpcuaDevice(load_profile("opcua_cdu"), self._cdu_values, port=free_port())
        return devices

    def _wire_others(self) -> dict[str, ModbusUnit]:
        """Those of the scenario, alone or on the line that they share."""
        devices: dict[str, ModbusUnit] = {}
        lines: dict[str, list[ModbusUnit]] = {}
        for device in self.scenario.facility.devices:
            tied = self.tied[device.name]
            made = ModbusUnit if device.line else ModbusDevice
            devices[device.name] = unit = made(tied.layout, tied.values, unit=device.unit, write=tied.write)
            if device.line:
                lines.setdefault(device.line, []).append(unit)
        self._lines = {name: ModbusLine(units, "rtu") for name, units in lines.items()}
        return devices

    def _cdu_values(self) -> Mapping[str, float]:
        cdu = self.plant.cdu
        return {
            "coolant_supply_c": cdu.supply_c,
            "coolant_return_c": cdu.return_c,
            "flow_l_per_min": cdu.flow_lpm,
            "heat_w": cdu.heat_w,
            "capacity_w": cdu.capacity_w,
            "pump_speed_ratio": cdu.pump_speed_ratio,
            "running": 1.0,
        }

    # ---- faults ---------------------------------------------------------------------------------------

    async def break_device(self, fault: Fault) -> Heal:
        device = self.devices[fault.name]
        await device.set_fault(DeviceFault(fault.mode, fault.scale_ratio))  # type: ignore[arg-type]
        return lambda: device.set_fault(None)

    async def break_gpu(self, fault: Fault) -> Heal:
        """lost: fallen off the bus; oob_limit: the BMC caps it; reset: the driver forgot its limit."""
        node, index = self.scenario.gpu_index(fault.name)
        gpu, row = self.memories[node].gpus, int(self._rows[node][index])
        if fault.mode == "reset":
            gpu["requested_mw"][index] = gpu["default_mw"][index]
        elif fault.mode == "oob_limit":
            gpu["oob_limit_mw"][index] = round(fault.limit_w * 1000)
        else:
            gpu["forced_error"][index] = GPU_IS_LOST
            self.plant.alive[row] = False

        async def heal() -> None:
            gpu["forced_error"][index] = 0
            gpu["oob_limit_mw"][index] = NONE
            self.plant.alive[row] = True

        return heal

    async def break_feed(self, fault: Fault) -> Heal:
        """The feed dies; its PDUs die with it, and the other feed takes the racks."""
        column = FEEDS.index(fault.name)
        pdus = [self.devices[f"{rack.name}-{fault.name}"] for rack in self.scenario.block.racks]
        self.plant.electrical.feed_live[column] = False
        for pdu in pdus:
            await pdu.set_fault(DeviceFault("silent"))

        async def heal() -> None:
            self.plant.electrical.feed_live[column] = True
            for pdu in pdus:
                await pdu.set_fault(None)

        return heal

    async def break_chiller(self, fault: Fault) -> Heal:
        cdu = self.plant.cdu
        good_c = cdu.facility_target_c
        cdu.facility_target_c = fault.facility_c

        async def heal() -> None:
            cdu.facility_target_c = good_c

        return heal


class _Sums:
    """Means between two samples, from what the plant has counted."""

    def __init__(self, facility: Facility) -> None:
        self._facility = facility
        self._steps_per_sample = round(SAMPLE_S / STEP_S)
        self._steps = 0
        self._block_j = facility.plant.block_energy_j
        self._gpu_j = float(facility.plant.bank.energy_j.sum())
        self._tokens = 0.0
        self._rack_j = np.zeros(len(facility.plant.electrical.rack_w))

    def take(self, started_utc_s: float) -> Sample | None:
        """Count one step; a sample when it completes one."""
        plant = self._facility.plant
        self._steps += 1
        self._tokens += plant.tokens_per_s * STEP_S
        self._rack_j += plant.electrical.rack_w * STEP_S
        if self._steps < self._steps_per_sample:
            return None
        block_j, gpu_j = plant.block_energy_j, float(plant.bank.energy_j.sum())
        sample = Sample(
            t_s=plant.now_s,
            utc_s=started_utc_s + plant.now_s,
            block_w=(block_j - self._block_j) / SAMPLE_S,
            metered_w=plant.block_meter.reading_w,
            gpu_w=(gpu_j - self._gpu_j) / SAMPLE_S,
            tokens_per_s=self._tokens / SAMPLE_S,
            capacity_w=plant.cdu.capacity_w,
            facility_c=plant.cdu.facility_c,
            gpu_limit_w=float(self._facility.limits_w().sum()),
            rack_w=tuple(float(w) for w in self._rack_j / SAMPLE_S),
            truth=tuple(value() for value in self._facility.watched.values()),
        )
        self._block_j, self._gpu_j = block_j, gpu_j
        self._steps, self._tokens = 0, 0.0
        self._rack_j[:] = 0
        return sample


def free_port() -> int:
    """A TCP port that nobody on loopback listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pdu_values(meter: Meter, voltage_v: float, phases: int) -> Callable[[], dict[str, float]]:
    def values() -> dict[str, float]:
        power_w = meter.reading_w
        apparent_va = power_w / POWER_FACTOR_RATIO
        current_a = apparent_va / (voltage_v * phases)
        return {
            "voltage_v": voltage_v,
            "current_a": current_a,
            "power_w": power_w,
            "apparent_power_va": apparent_va,
            "power_factor_ratio": POWER_FACTOR_RATIO,
            "frequency_hz": MAINS_HZ,
            "ocp_1_current_a": current_a,
            "inlets": 1,
            "outlets": 1,
        }

    return values


def _block_meter_values(meter: Meter, voltage_v: float = 230.0) -> Callable[[], dict[str, float]]:
    def values() -> dict[str, float]:
        power_w = meter.reading_w
        current_a = power_w / POWER_FACTOR_RATIO / (3 * voltage_v)
        return {
            "current_l1_a": current_a,
            "current_l2_a": current_a,
            "current_l3_a": current_a,
            "current_a": current_a,
            "voltage_l1_l2_v": voltage_v * sqrt(3),
            "voltage_v": voltage_v,
            "power_w": power_w,
            "frequency_hz": MAINS_HZ,
        }

    return values
