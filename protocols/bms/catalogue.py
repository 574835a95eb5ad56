"""What may be on the bus: object types, the point types of each, and how a point type is measured.

Source: `schemas/asyncapi/bms/bms.yaml` of NVIDIA/dsx-exchange, version 1.0.0. Four ways to measure:

    FIXED    a unit that the contract prescribes: kW of a rack, degrees Celsius of a liquid
    FREE     a unit that the publisher chooses; ours are the contract's "typical" ones
    STATES   numbers that stand for states, each with its text
    NONE     neither: a power factor, a time stamp

`GenericPoint` may have a unit, or states, or neither, and says in `processArea` what it is. Racks have no
generic points: what the contract does not foresee of a rack is not told.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple


class BmsError(ValueError):
    """Something that must not be on the bus; the text says what, and what would be right."""


class Kind(Enum):
    """How a point type is measured."""

    FIXED = "fixed unit"
    FREE = "unit"
    STATES = "states"
    NONE = "neither"
    GENERIC = "unit, states or neither"


class PointType(NamedTuple):
    """How it is measured, and its unit or states as the contract has them."""

    kind: Kind
    unit: str = ""
    states: Mapping[int, str] = {}
    by_integration: bool = False  # its value comes from the IT side


def _fixed(unit: str, *, by_integration: bool = False) -> PointType:
    return PointType(Kind.FIXED, unit, by_integration=by_integration)


def _free(unit: str) -> PointType:
    return PointType(Kind.FREE, unit)


def _states(no: str, yes: str, *, by_integration: bool = False) -> PointType:
    return PointType(Kind.STATES, states={0: no, 1: yes}, by_integration=by_integration)


GENERIC: Final = "GenericPoint"
STAMP: Final = PointType(Kind.NONE)
INTEGRATION_STAMP: Final = PointType(Kind.NONE, by_integration=True)

POINTS: Final[Mapping[str, PointType]] = {
    "RackLiquidSupplyTemperature": _fixed("C"),
    "RackLiquidReturnTemperature": _fixed("C"),
    "RackLiquidFlow": _fixed("LPM"),
    "RackLiquidDifferentialPressure": _fixed("kPa"),
    "RackLiquidDifferentialPressureSp": _fixed("kPa"),
    "RackControlValvePosition": _fixed("%"),
    "RackPower": _fixed("kW"),
    "RackLeakDetect": _states("NoLeak", "Leak"),
    "RackLeakSensorFault": _states("NoFault", "Fault"),
    "RackLeakDetectTray": _states("NoLeak", "Leak", by_integration=True),
    "RackLiquidIsolationStatus": _states("NotIsolated", "Isolated"),
    "RackElectricalIsolationStatus": _states("NotIsolated", "Isolated"),
    "RackLiquidIsolationRequest": PointType(
        Kind.STATES,
        states={-1: "Unknown", 0: "NoIsolationRequested", 1: "IsolationRequested"},
        by_integration=True,
    ),
    "RackElectricalIsolationRequest": _states(
        "NoIsolationRequested", "IsolationRequested", by_integration=True
    ),
    "Voltage": _free("V"),  # mean, line to line
    "PowerFactor": PointType(Kind.NONE),
    "Frequency": _free("Hz"),
    "ApparentPower": _free("kVA"),
    "ActivePower": _free("kW"),
    "Current": _free("A"),
    "CurrentLimit": _free("A"),
    "PhaseCurrent": _free("A"),
    "LiquidTemperature": _fixed("C"),
    "LiquidDifferentialPressure": _free("kPa"),
    "LiquidFlow": _free("LPM"),
    "LiquidPressure": _free("kPa"),
    "Status": _states("NotOperating", "Operating"),
    "Available": _states("NotAvailable", "Available"),
    "ValvePosition": _free("%"),
    "PumpSpeed": _free("RPM"),
    "FanSpeed": _free("RPM"),
    "DamperPosition": _free("%"),
    "AirTemperature": _fixed("C"),
    "AirDifferentialPressure": _free("Pa"),
    "AirRelativeHumidity": _free("%RH"),
    "AirFlow": _free("CFM"),
    "AirPressure": _free("Pa"),
    "LeakDetect": _states("NoLeak", "Leak"),
    "LiquidTemperatureSpRequest": _fixed("C", by_integration=True),
    "Sound": _free("dB"),
    "HeartbeatTimestampBms": STAMP,
    "HeartbeatEchoBms": STAMP,
    "HeartbeatTimestampIntegration": INTEGRATION_STAMP,
    "HeartbeatEchoIntegration": INTEGRATION_STAMP,
    GENERIC: PointType(Kind.GENERIC),
}

_ELECTRICAL: Final = ("Status", "Available", GENERIC)
_LIQUID: Final = ("LiquidTemperature", "LiquidDifferentialPressure", "LiquidFlow", "LiquidPressure")
_AIR: Final = ("AirTemperature", "AirDifferentialPressure", "AirRelativeHumidity", "AirFlow", "AirPressure")
_PLANT: Final = (
    *_LIQUID,
    "Status",
    "Available",
    "ValvePosition",
    "PumpSpeed",
    "FanSpeed",
    "DamperPosition",
    *_AIR,
    "LeakDetect",
    GENERIC,
)

OBJECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "Rack": tuple(name for name in POINTS if name.startswith("Rack")),
    "PowerMeter": (
        "Voltage",
        "PowerFactor",
        "Frequency",
        "ApparentPower",
        "ActivePower",
        "Current",
        "CurrentLimit",
        "PhaseCurrent",
        GENERIC,
    ),
    **dict.fromkeys(("BESS", "UPS", "ATS", "Generator", "Shunt", "Breaker"), _ELECTRICAL),
    "CDU": (*_PLANT, "LiquidTemperatureSpRequest"),
    **dict.fromkeys(("CoolingTower", "HX", "CRAH", "CRAC", "AHU", "Chiller", "Tank"), _PLANT),
    "Valve": ("ValvePosition", "Available", GENERIC),
    "Pump": ("PumpSpeed", "Available", GENERIC),
    "Fan": ("FanSpeed", "Available", GENERIC),
    "Damper": ("DamperPosition", "Available", GENERIC),
    "Sensor": (*_LIQUID, *_AIR, "LeakDetect", "Sound", "Available", GENERIC),
    "GenericObject": (*_PLANT, "LiquidTemperatureSpRequest", "Sound"),
    "System": (
        "HeartbeatTimestampBms",
        "HeartbeatEchoBms",
        "HeartbeatTimestampIntegration",
        "HeartbeatEchoIntegration",
        "Status",
        "Available",
        GENERIC,
    ),
}
