"""From points of the image to points of the BMS bus: the mapping that DSX Exchange leaves to the integrator.

Most of it follows from what is known already. A group's kind (`pdu`, `cdu`, `chiller` ...) says what object it
is; a point's unit and name say its point type, its unit on the bus and where in the object it sits; a rack's
power is the sum of its PDUs where nobody measures it; a meter in front of others serves them, and a PDU its
rack. `RULES` is all there is to it, read from the top, the first row that fits counts. What is wrong or
missing is said in the configuration, by address and with wildcards:

    bms:
      objects:
        devices/cdu-1: {id: CDU-07, area: [Secondary]}
        devices/meter: {serves: [MSB-1]}
      points:
        devices/pdu-*/outlet_*: {publish: false}
        devices/cdu-1/t7_c: {type: LiquidTemperature, area: [Primary, Return]}

Nothing is left out in silence: `BusMap.left_out` names every point that is not told, and why; `rows` shows
the whole of it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from controller.facility.config import BmsConfig, BmsObjectConfig, BmsPointConfig, BmsRequestConfig
from controller.image.model import Group, Point
from protocols.bms import OBJECTS, POINTS, BmsError, Kind, Metadata, metadata_topic, value_topic
from protocols.bms.catalogue import GENERIC

KINDS: Final[Mapping[str, str]] = {
    "pdu": "PowerMeter", "meter": "PowerMeter", "feed": "PowerMeter", "rack": "Rack",
    "cdu": "CDU", "rpu": "CDU", "chiller": "Chiller", "ups": "UPS",
    "bess": "BESS", "bbu": "BESS", "battery": "BESS", "storage": "BESS",
    "breaker": "Breaker", "ats": "ATS", "generator": "Generator", "shunt": "Shunt",
    "pump": "Pump", "fan": "Fan", "valve": "Valve", "damper": "Damper", "tank": "Tank", "hx": "HX",
    "crah": "CRAH", "crac": "CRAC", "ahu": "AHU", "cooling_tower": "CoolingTower", "sensor": "Sensor",
}  # fmt: skip

LAW_KINDS: Final = frozenset({"block", "facility", "node", "source", "feed"})
LAW_WHY: Final = "what the law decides is no equipment; give it an object's type if it shall be told"

UNITS: Final[Mapping[str, tuple[str, float]]] = {  # of the image -> of the bus, and the factor
    "W": ("kW", 1e-3), "VA": ("kVA", 1e-3), "var": ("kvar", 1e-3),
    "Wh": ("kWh", 1e-3), "VAh": ("kVAh", 1e-3), "varh": ("kvarh", 1e-3),
    "V": ("V", 1.0), "A": ("A", 1.0), "Ah": ("Ah", 1.0), "Hz": ("Hz", 1.0), "Ohm": ("Ohm", 1.0),
    "degC": ("C", 1.0), "kPa": ("kPa", 1.0), "L/min": ("LPM", 1.0), "rpm": ("RPM", 1.0), "s": ("s", 1.0),
    "W/s": ("kW/s", 1e-3), "Hz/s": ("Hz/s", 1.0), "ratio": ("%", 100.0), "count": ("", 1.0),
}  # fmt: skip
PA_PER_KPA: Final = 1000.0
SPECIAL_UNITS: Final[Mapping[str, tuple[str, float]]] = {
    "PowerFactor": ("", 1.0),
    "AirDifferentialPressure": ("Pa", PA_PER_KPA),
    "AirPressure": ("Pa", PA_PER_KPA),
    "AirRelativeHumidity": ("%RH", 100.0),
}

YES_NO: Final = {0: "No", 1: "Yes"}


class Rule(NamedTuple):
    """Points of these units whose name fits are of this type, if the object has it."""

    units: frozenset[str]
    name: re.Pattern[str]
    point_type: str


def _rule(units: str, name: str, *point_types: str) -> Iterator[Rule]:
    for point_type in point_types:
        yield Rule(frozenset(units.split()), re.compile(name), point_type)


RULES: Final = (
    # electrical: only what is of the whole meter; its parts are generic
    *_rule("W", r"(total_|active_)?power_w", "ActivePower", "RackPower"),
    *_rule("VA", r"(total_)?apparent_power_va", "ApparentPower"),
    *_rule("ratio", r"(total_)?power_factor(_ratio)?", "PowerFactor"),
    *_rule("Hz", r"(line_)?frequency_hz", "Frequency"),
    *_rule("V", r"voltage(_ll)?_v", "Voltage"),
    *_rule("A", r"current_a", "Current"),
    *_rule("A", r"current_(limit|rating)_a", "CurrentLimit"),
    *_rule("A", r"current_l[123]_a", "PhaseCurrent"),
    # states
    *_rule("bool enum bits", r".*leak.*sensor.*fault.*", "RackLeakSensorFault"),
    *_rule("bool bits", r".*leak.*", "LeakDetect", "RackLeakDetect"),
    *_rule("bool", r".*available.*", "Available"),
    *_rule("bool", r"(is_)?(running|operating|on)", "Status"),
    *_rule("enum", r"(operating_|operation_|unit_|device_)?(state|status|mode)", "Status"),
    # air before liquid: a name that says nothing means the coolant
    *_rule("degC", r".*(air|ambient|outdoor|room|inlet_air).*", "AirTemperature"),
    *_rule("ratio", r".*humidity.*", "AirRelativeHumidity"),
    *_rule("kPa", r".*air.*(differential|delta).*", "AirDifferentialPressure"),
    *_rule("kPa", r".*air.*", "AirPressure"),
    *_rule("degC", r".*(supply|outlet|leaving)(_temperature)?_c", "RackLiquidSupplyTemperature"),
    *_rule("degC", r".*(return|inlet|entering)(_temperature)?_c", "RackLiquidReturnTemperature"),
    *_rule("degC", r".*", "LiquidTemperature"),
    *_rule("kPa", r".*(differential|delta).*(target|setpoint).*", "RackLiquidDifferentialPressureSp"),
    *_rule("kPa", r".*(differential|delta).*", "LiquidDifferentialPressure", "RackLiquidDifferentialPressure"),
    *_rule("kPa", r".*", "LiquidPressure"),
    *_rule("L/min", r"((?!target|setpoint).)*", "RackLiquidFlow"),
    *_rule("L/min", r".*", "LiquidFlow"),
    *_rule("rpm ratio", r".*pump.*", "PumpSpeed"),
    *_rule("rpm ratio", r".*fan.*", "FanSpeed"),
    *_rule("ratio", r".*valve.*", "ValvePosition", "RackControlValvePosition"),
    *_rule("ratio", r".*damper.*", "DamperPosition"),
)  # fmt: skip

SETPOINT: Final = re.compile(r"(^|_)(target|setpoint|sp)(_|$)")
AREAS: Final[Mapping[str, str]] = {
    "primary": "Primary", "secondary": "Secondary", "facility": "Primary", "rack": "Secondary",
    "supply": "Supply", "return": "Return", "inlet": "Inlet", "outlet": "Outlet",
    "entering": "Entering", "leaving": "Leaving",
}  # fmt: skip
PHASE: Final = re.compile(r"_l([123])_")
ONE_PER_OBJECT: Final = frozenset({"Status", "Available"}) | OBJECTS["PowerMeter"] - {GENERIC, "PhaseCurrent"} if isinstance(OBJECTS["PowerMeter"], frozenset) else frozenset()
