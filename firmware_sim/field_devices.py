"""Field devices beside the block's own instruments: what a gateway meets in the rooms around the racks.

    rpu      Open Rack V3 pumping unit in the CDU's loop       RTU behind a serial converter
    em24     power meter of a rack, or of the loop's pumps     RTU, often on the same line
    branch   Liebert subfeed of a rack, or of the block        Modbus TCP, whole kilowatts
    chiller  Carrier 30XV that makes the facility water        Modbus TCP, demand limit
    battery  SunSpec storage on the site's side of the meter   Modbus TCP, told by its model chain

Every value is the plant's own at that moment, so two devices that measure one thing agree within what their
registers resolve, and whoever reads both can tell which way a value went wrong. What is written changes the
plant: flow and temperature of the loop, the share that the chiller may take.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sin, sqrt
from typing import Final

from firmware_sim.modbus_device import Layout, Values
from firmware_sim.plant import Plant
from firmware_sim.scenario_facility import DEVICE_KINDS, FieldDevice
from firmware_sim.sunspec_device import SunspecLayout
from protocols.profile import Profile, load_profile

MAINS_HZ: Final = 50.0
POWER_FACTOR_RATIO: Final = 0.98
PHASE_V: Final = 230.0
MAINS_SWAY_RATIO: Final = 0.002  # the mains are never still, and meters that are, are dead
MAINS_SWAY_PER_S: Final = 0.7
S_PER_MIN: Final = 60.0
WH_PER_J: Final = 1 / 3600

PUMP_RPM: Final = 6000.0
LOOP_KPA: Final = 120.0  # difference over the racks at full speed
STATIC_KPA: Final = 150.0

BATTERY_SHARE_RATIO: Final = 0.1  # of the block's power that comes from it
BATTERY_WH: Final = 100_000.0
BATTERY_MODELS: Final = (1, 701, 713)  # nameplate, AC measurement, storage capacity
BATTERY_POINTS: Final[Mapping[str, str]] = {  # what a reader of the chain calls them -> MODEL.POINT
    "m701_power_w": "701.W",
    "m701_frequency_hz": "701.Hz",
    "m713_state_of_charge_ratio": "713.SoC",
}
PERCENT: Final = 100.0
CONTROL_BY_NETWORK: Final = 1.0
NORMAL: Final = 1.0

Write = Callable[[str, float], None]


@dataclass(frozen=True)
class Tied:
    """A device tied to the plant.

    Attributes:
        layout: of its registers.
        values: what they hold now.
        write: what a write does to the plant; None: it cannot be written.
        truth: name of a point, as a gateway has it -> what it should be now, in its unit; beside `values`.
    """

    layout: Layout | Profile
    values: Callable[[], Values]
    write: Write | None = None
    truth: Mapping[str, Callable[[], float]] = field(default_factory=dict)

    def true_value(self, point: str) -> float:
        """In the point's unit."""
        made = self.truth.get(point)
        return float(self.values()[point]) if made is None else made()


def tie(device: FieldDevice, plant: Plant) -> Tied:
    """That device, on this plant."""
    return _TIES[device.type](device, plant)


def _power_w(device: FieldDevice, plant: Plant) -> float:
    """Of the rack that it measures, as the meters at its inlets show it; else of the whole block."""
    names = [rack.name for rack in plant.type.racks]
    if not device.of:
        return plant.block_meter.reading_w
    return sum(meter.reading_w for meter in plant.inlet_meters[names.index(device.of)])


def _phase_v(plant: Plant) -> float:
    return PHASE_V * (1 + MAINS_SWAY_RATIO * sin(MAINS_SWAY_PER_S * plant.now_s))


def _rpu(device: FieldDevice, plant: Plant) -> Tied:
    def values() -> Values:
        cdu = plant.cdu
        return {
            "flow_l_per_min": cdu.flow_lpm,
            "coolant_supply_c": cdu.supply_c,
            "coolant_return_c": cdu.return_c,
            "supply_pressure_kpa": STATIC_KPA + LOOP_KPA * cdu.pump_speed_ratio**2,
            "return_pressure_kpa": STATIC_KPA,
            "power_w": cdu.pump_w,
            "pump_speed_ratio": cdu.pump_speed_ratio,
            **{f"pump_{pump}_rpm": PUMP_RPM * cdu.pump_speed_ratio for pump in (1, 2)},
            "part_number": "RIG-RPU",
            "model": "RDF040DSS5193E0",
            "serial_number": device.name,
            "hardware": "1",
            "firmware": "1.0",
            "flow_target_l_per_min": cdu.flow_lpm,
            "coolant_supply_target_c": cdu.setpoint_c,
            "auto_flow_control": 1.0,
        }

    def write(point: str, value: float) -> None:
        if point == "flow_target_l_per_min":
            plant.cdu.flow_kg_per_s = value / S_PER_MIN
        elif point == "coolant_supply_target_c":
            plant.cdu.setpoint_c = value

    return Tied(load_profile("orv3_rpu"), values, write)


def _em24(device: FieldDevice, plant: Plant) -> Tied:
    def values() -> Values:
        power_w = _power_w(device, plant) if device.of else plant.cdu.pump_w
        phase_w, phase_v = power_w / 3, _phase_v(plant)
        current_a = phase_w / POWER_FACTOR_RATIO / phase_v
        phases = {
            name.format(phase): value
            for phase in (1, 2, 3)
            for name, value in (
                ("power_l{}_w", phase_w),
                ("voltage_l{}_v", phase_v),
                ("current_l{}_a", current_a),
            )
        }
        return {
            "power_w": power_w,
            "apparent_power_va": power_w / POWER_FACTOR_RATIO,
            "voltage_v": phase_v,
            "power_factor_ratio": POWER_FACTOR_RATIO,
            "frequency_hz": MAINS_HZ,
            **phases,
        }

    return Tied(load_profile("em24_meter"), values)


def _branch(device: FieldDevice, plant: Plant) -> Tied:
    def values() -> Values:
        power_w = _power_w(device, plant)
        current_a = power_w / POWER_FACTOR_RATIO / (3 * PHASE_V)
        return {
            "power_w": power_w,
            "apparent_power_va": power_w / POWER_FACTOR_RATIO,
            "power_factor_ratio": POWER_FACTOR_RATIO,
            **{f"current_l{phase}_a": current_a for phase in (1, 2, 3)},
            "energy_wh": 0.0 if device.of else plant.block_energy_j * WH_PER_J,
            "load_ratio": current_a / device.rating_a,
            "system_status": NORMAL,
        }

    return Tied(load_profile("liebert_branch"), values)


def _chiller(_device: FieldDevice, plant: Plant) -> Tied:
    def values() -> Values:
        chiller = plant.chiller
        return {
            "control_type": CONTROL_BY_NETWORK,
            "start": 1.0,
            "occupied": 1.0,
            "capacity_ratio": chiller.load_ratio,
            "emergency_stop": 0.0,
            "demand_limit_ratio": chiller.demand_limit_ratio,
            "demand_limit_minimum_ratio": chiller.minimum_ratio,
        }

    def write(point: str, value: float) -> None:
        if point == "demand_limit_ratio":
            plant.chiller.demand_limit_ratio = value

    return Tied(load_profile("carrier_30xv"), values, write)


def _battery(device: FieldDevice, plant: Plant) -> Tied:
    """It carries a share of the block; its meter is the block's own."""

    def values() -> Values:
        power_w, phase_v = BATTERY_SHARE_RATIO * plant.block_meter.reading_w, _phase_v(plant)
        left_wh = BATTERY_WH - BATTERY_SHARE_RATIO * plant.block_energy_j * WH_PER_J
        return {
            "701.W": power_w,
            "701.VA": power_w,
            "701.A": power_w / (3 * phase_v),
            "701.LLV": phase_v * sqrt(3),
            "701.LNV": phase_v,
            "701.Hz": MAINS_HZ,
            "713.WHRtg": BATTERY_WH,
            "713.WHAvail": left_wh,
            "713.SoC": PERCENT * left_wh / BATTERY_WH,
            "713.SoH": PERCENT,
        }

    def scaled(key: str) -> float:
        value = float(values()[key])
        return value / PERCENT if key == "713.SoC" else value

    nameplate = {"Mn": "Rig", "Md": "Battery", "SN": device.name}
    truth = {point: (lambda key=key: scaled(key)) for point, key in BATTERY_POINTS.items()}
    return Tied(SunspecLayout(BATTERY_MODELS, nameplate), values, truth=truth)


_TIES: Final[Mapping[str, Callable[[FieldDevice, Plant], Tied]]] = {
    "rpu": _rpu,
    "em24": _em24,
    "branch": _branch,
    "chiller": _chiller,
    "battery": _battery,
}
assert _TIES.keys() == DEVICE_KINDS.keys()
