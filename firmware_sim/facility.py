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
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from firmware_sim.contact_plc import ContactPlc
from firmware_sim.device_fault import DeviceFault
from firmware_sim.electrical import FEEDS
from firmware_sim.field_devices import Tied, tie
from firmware_sim.gpu_firmware import GPU_IS_LOST, NONE, PRESETS, GpuMemory
from firmware_sim.gpu_power import Floats, Floor
from firmware_sim.mains import FrequencyStream, Mains
from firmware_sim.metering import Meter
from firmware_sim.modbus_device import ModbusDevice, ModbusLine, ModbusUnit
from firmware_sim.opcua_device import OpcuaDevice
from firmware_sim.plant import STEP_S, Plant
from firmware_sim.scenario import Fault, Scenario
from firmware_sim.scenario_block import Node
from firmware_sim.watched import Truth, WatchedPoint, watched_points
from protocols.profile import load_profile

SAMPLE_S: Final = 0.050
CATCH_UP_MAX_S: Final = 0.25  # more than that in one go would starve the device servers
SLOW_EVERY_STEPS: Final = 10  # averages, energies, temperatures, clocks: 20 Hz
EXCESS_RATIO: Final = 0.02  # above its limit in the 1 s mean: a GPU that does not do as it says
EXCESS_TAU_S: Final = 1.0
SW_POWER_CAP: Final = 0x4  # NVML clocks event reason
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
    frequency_hz: float = 50.0


@dataclass
class Fine:
    """The block at every step: what reactions are measured by. Lists of one length, plant time and W."""

    t_s: list[float]
    block_w: list[float]
    limit_w: list[float]  # sum of the enforced limits
    frequency_hz: list[float]


class Facility:
    """Use as an async context manager: devices serve inside it. `run()` lets time pass."""

    def __init__(self, scenario: Scenario, work_dir: Path) -> None:
        self.scenario = scenario
        self.plant = Plant(scenario.plant_type())
        self.samples: list[Sample] = []
        self.lost_s = 0.0  # real time the plant could not follow
        self.fine = Fine([], [], [], [])
        rows = {host.name: np.array(host.gpus) for host in self.plant.type.hosts}
        block = scenario.block
        drivers = {**{node.name: (node,) for node in block.apart}, **block.farms}
        self.memories = {
            name: self._memory(work_dir, name, sum(node.gpus for node in nodes))
            for name, nodes in drivers.items()
        }
        self._rows = {
            name: np.concatenate([rows[node.name] for node in nodes]) for name, nodes in drivers.items()
        }
        self._place = dict(_places(drivers))
        self.excess = Excess(self.plant.bank.count)
        self.tied: dict[str, Tied] = {
            device.name: tie(device, self.plant) for device in scenario.facility.devices
        }
        self.watched: dict[WatchedPoint, Truth] = (
            dict(watched_points(scenario, self.plant, self.tied)) if scenario.facility.serve else {}
        )
        self.contacts: ContactPlc | None = None
        if block.shed is not None and block.shed.contacts:
            self.contacts = ContactPlc(tuple(block.shed.contacts), work_dir)
        self.phasor_port = free_port(socket.SOCK_DGRAM) if block.frequency is not None else 0
        self.phasor: FrequencyStream | None = None
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
            if self.scenario.block.frequency is not None:
                stream = FrequencyStream(
                    self.plant.mains, self.phasor_port, self.scenario.block.frequency.form
                )
                self.phasor = await self._stack.enter_async_context(stream)
            if self.contacts is not None:
                device = await self._stack.enter_async_context(self.contacts.device)
                self.urls[ContactPlc.NAME] = device.url
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
        limits_w = np.empty(self.plant.bank.count)
        for name, memory in self.memories.items():
            limits_w[self._rows[name]] = memory.enforced_mw()
        return limits_w / 1000.0

    def gpus_of(self, node: str) -> NDArray[np.void]:
        """The rows of that node in its driver's memory, live."""
        driver, first, count = self._place[node]
        return self.memories[driver].gpus[first : first + count]

    def _memory(self, work_dir: Path, name: str, count: int) -> GpuMemory:
        model = self.plant.type.gpu
        memory = GpuMemory.create(
            work_dir / f"{name}.gpus", count, node=name,
            min_w=model.min_w, max_w=model.max_w, default_w=model.max_w, idle_w=model.idle_w,
            clock_max_mhz=round(model.clock_max_hz / 1e6), name=f"Simulated {model.name}",
        )  # fmt: skip
        if model.module_max_w:
            memory.add_smoothing(model.module_max_w)
        return memory

    def _step(self) -> None:
        limits_w = self.limits_w()
        self.plant.step(STEP_S, limits_w, self._clock_limit_hz(), self._floor())
        for name, memory in self.memories.items():
            memory.gpus["instant_mw"] = self.plant.sensors.instant_w[self._rows[name]] * 1000
        fine = self.fine
        fine.t_s.append(self.plant.now_s)
        fine.block_w.append(self.plant.block_w)
        fine.limit_w.append(float(limits_w.sum()))
        fine.frequency_hz.append(self.plant.mains.frequency_hz)
        self._steps += 1
        if self._steps % SLOW_EVERY_STEPS == 0:
            self._write_slow_columns()

    def _clock_limit_hz(self) -> Floats | None:
        """Shape (n); None where no clock is locked, which costs nothing."""
        if all((memory.gpus["locked_clock_max_mhz"] == NONE).all() for memory in self.memories.values()):
            return None
        clocks_hz = np.empty(self.plant.bank.count)
        for name, memory in self.memories.items():
            clocks_hz[self._rows[name]] = memory.clock_limit_hz()
        return clocks_hz

    def _floor(self) -> Floor | None:
        """Power smoothing that is on; None where the boards have none."""
        if not self.plant.type.gpu.module_max_w:
            return None
        columns = np.zeros((4, self.plant.bank.count))
        for name, memory in self.memories.items():
            active = np.minimum(memory.gpus["smoothing_preset"], PRESETS - 1)
            preset = memory.gpus["presets"][np.arange(len(active)), active]
            columns[0, self._rows[name]] = memory.floor_w()
            columns[1:, self._rows[name]] = preset[:, 1:].T / 1000
        return Floor(*columns)

    def _write_slow_columns(self) -> None:
        plant = self.plant
        clock_mhz = plant.bank.clock_hz() / 1e6
        reasons = np.where(plant.bank.capped, SW_POWER_CAP, 0)
        warm_c = plant.cdu.loop_c + LOOP_TO_GPU_K_PER_W * plant.bank.power_w
        for name, memory in self.memories.items():
            rows, gpus = self._rows[name], memory.gpus
            gpus["average_mw"] = plant.sensors.average_w[rows] * 1000
            gpus["energy_mj"] = plant.sensors.energy_j[rows] * 1000
            gpus["temperature_c"] = warm_c[rows]
            gpus["clock_mhz"] = clock_mhz[rows]
            gpus["clock_reasons"] = reasons[rows]
        requested_w = np.empty(plant.bank.count)
        for name, memory in self.memories.items():
            requested_w[self._rows[name]] = memory.gpus["requested_mw"] / 1000
        self.excess.step(SLOW_EVERY_STEPS * STEP_S, plant.bank.power_w, requested_w)

    def gpu_names(self) -> list[str]:
        """Of all GPUs, as faults and verdicts have them."""
        return [f"{node.name}/{i}" for node in self.scenario.block.nodes for i in range(node.gpus)]

    # ---- devices --------------------------------------------------------------------------------------

    def _wire(self) -> dict[str, ModbusUnit | OpcuaDevice]:
        """Those that the law lives by."""
        devices: dict[str, ModbusUnit | OpcuaDevice] = {}
        pdu = load_profile("xerus_pdu")
        for row, rack in enumerate(self.scenario.block.racks):
            for column, feed in enumerate(FEEDS):
                meter = self.plant.inlet_meters[row][column]
                values = _pdu_values(meter, self.plant.mains, rack.voltage_v, rack.phases)
                devices[f"{rack.name}-{feed}"] = ModbusDevice(pdu, values)
        block_meter = self.plant.block_meter
        devices["meter"] = ModbusDevice(
            load_profile("pm5000_meter"), _block_meter_values(block_meter, self.plant.mains)
        )
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
        """What a board, its driver or somebody else does to it.

        lost: fallen off the bus; oob_limit: the BMC caps it; reset: the driver forgot its limit; inert: it
        says yes and does nothing; foreign: another program on the host puts a limit of its own back.
        """
        node, index = self.scenario.gpu_index(fault.name)
        gpu, rows = self.gpus_of(node), self._rows_of(node)[index]
        first = self._place[node][1]
        milliwatts = round(fault.limit_w * 1000)
        if fault.mode == "reset":
            driver = self.memories[self._place[node][0]]
            for one in np.arange(len(gpu))[index].reshape(-1):
                driver.reset_limits(first + int(one))
        elif fault.mode == "oob_limit":
            gpu["oob_limit_mw"][index] = milliwatts
        elif fault.mode == "inert":
            gpu["inert"][index] = 1
        elif fault.mode == "foreign":
            gpu["foreign_mw"][index] = gpu["requested_mw"][index] = milliwatts
        else:
            gpu["forced_error"][index] = GPU_IS_LOST
            self.plant.alive[rows] = False

        async def heal() -> None:
            gpu["forced_error"][index] = gpu["inert"][index] = 0
            gpu["oob_limit_mw"][index] = gpu["foreign_mw"][index] = NONE
            self.plant.alive[rows] = True

        return heal

    def power_off(self, node: str) -> None:
        """The host goes down; its boards forget what was set."""
        self.plant.alive[self._rows_of(node)] = False
        driver, first, count = self._place[node]
        for index in range(first, first + count):
            self.memories[driver].reset_limits(index)

    def power_on(self, node: str) -> None:
        """The host's work begins again, at the limits that its boards have."""
        self.plant.alive[self._rows_of(node)] = True

    def _rows_of(self, node: str) -> NDArray[np.int64]:
        driver, first, count = self._place[node]
        rows: NDArray[np.int64] = self._rows[driver][first : first + count]
        return rows

    async def break_phasor(self, _fault: Fault) -> Heal:
        """The instrument says nothing any more."""
        stream = self.phasor
        assert stream is not None  # the scenario was checked
        stream.silent = True

        async def heal() -> None:
            stream.silent = False

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
            gpu_limit_w=self._facility.fine.limit_w[-1],
            rack_w=tuple(float(w) for w in self._rack_j / SAMPLE_S),
            truth=tuple(value() for value in self._facility.watched.values()),
            frequency_hz=plant.mains.frequency_hz,
        )
        self._block_j, self._gpu_j = block_j, gpu_j
        self._steps, self._tokens = 0, 0.0
        self._rack_j[:] = 0
        return sample


class Excess:
    """How far GPUs draw more than the limit that their driver shows, in means over a second. Arrays (n).

    Attributes:
        worst_w: the most so far.
        for_s: how long beyond the band.
    """

    def __init__(self, count: int) -> None:
        self.worst_w: Floats = np.zeros(count)
        self.for_s: Floats = np.zeros(count)
        self._mean_w: Floats = np.zeros(count)

    def step(self, dt_s: float, power_w: Floats, limit_w: Floats) -> None:
        keep = np.exp(-dt_s / EXCESS_TAU_S)
        self._mean_w = np.minimum(keep * self._mean_w + (1 - keep) * (power_w - limit_w), limit_w)
        above = np.minimum(self._mean_w, power_w - limit_w) > EXCESS_RATIO * limit_w
        self.for_s += above * dt_s
        self.worst_w = np.where(above, np.maximum(self.worst_w, self._mean_w), self.worst_w)


def _places(drivers: Mapping[str, tuple[Node, ...]]) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Node -> its driver, and first and number of its GPUs there."""
    for driver, nodes in drivers.items():
        first = 0
        for node in nodes:
            yield node.name, (driver, first, node.gpus)
            first += node.gpus


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port that nobody on loopback listens on now, TCP or UDP."""
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pdu_values(meter: Meter, mains: Mains, voltage_v: float, phases: int) -> Callable[[], dict[str, float]]:
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
            "frequency_hz": mains.frequency_hz,
            "ocp_1_current_a": current_a,
            "inlets": 1,
            "outlets": 1,
        }

    return values


def _block_meter_values(
    meter: Meter, mains: Mains, voltage_v: float = 230.0
) -> Callable[[], dict[str, float]]:
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
            "frequency_hz": mains.frequency_hz,
        }

    return values
