"""What a point of the image is on the BMS bus, by its unit and its name: tables, and who reads them.

`RULES` is read from the top: the first row whose unit and name fit, and whose point type the object has and
is not taken yet, counts. What no row fits is a `GenericPoint`, with its name for an area; of a rack, which
has no generic points, it is not told. Names are those of device profiles: quantity, qualifier, unit.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from controller.image.model import Point
from protocols.bms import POINTS, Kind
from protocols.bms.catalogue import GENERIC
from protocols.bms.metadata import SETPOINTS
from protocols.profile.model import UNITS as SUFFIXES

KINDS: Final[Mapping[str, str]] = {
    "pdu": "PowerMeter", "meter": "PowerMeter", "rack": "Rack",
    "cdu": "CDU", "rpu": "CDU", "chiller": "Chiller", "ups": "UPS",
    "bess": "BESS", "bbu": "BESS", "battery": "BESS", "storage": "BESS",
    "breaker": "Breaker", "ats": "ATS", "generator": "Generator", "shunt": "Shunt",
    "pump": "Pump", "fan": "Fan", "valve": "Valve", "damper": "Damper", "tank": "Tank", "hx": "HX",
    "crah": "CRAH", "crac": "CRAC", "ahu": "AHU", "cooling_tower": "CoolingTower", "sensor": "Sensor",
}  # fmt: skip

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


WATER: Final = (
    r".*(coolant|water|liquid|loop|supply|return|inlet|outlet|entering|leaving|primary|secondary|facility).*"
)
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
    *_rule("enum", r"(operating_|operation_|unit_|device_)?(state|status)", "Status"),
    # air, then water by its words: what may be oil, refrigerant or a circuit board is generic
    *_rule("degC", r".*(air|ambient|outdoor|room).*", "AirTemperature"),
    *_rule("ratio", r".*humidity.*", "AirRelativeHumidity"),
    *_rule("kPa", r".*air.*(differential|delta).*", "AirDifferentialPressure"),
    *_rule("kPa", r".*air.*", "AirPressure"),
    *_rule("degC", r".*(supply|outlet|leaving)(_temperature)?_c", "RackLiquidSupplyTemperature"),
    *_rule("degC", r".*(return|inlet|entering)(_temperature)?_c", "RackLiquidReturnTemperature"),
    *_rule("degC", WATER, "LiquidTemperature"),
    *_rule("kPa", r".*(differential|delta).*(target|setpoint).*", "RackLiquidDifferentialPressureSp"),
    *_rule("kPa", r".*(differential|delta).*", "LiquidDifferentialPressure"),
    *_rule("kPa", r".*(differential|delta).*", "RackLiquidDifferentialPressure"),
    *_rule("kPa", WATER, "LiquidPressure"),
    *_rule("L/min", r"((?!target|setpoint).)*", "RackLiquidFlow"),
    *_rule("L/min", r".*", "LiquidFlow"),
    *_rule("rpm ratio", r".*pump.*", "PumpSpeed"),
    *_rule("rpm ratio", r".*fan.*", "FanSpeed"),
    *_rule("ratio", r".*valve.*", "ValvePosition", "RackControlValvePosition"),
    *_rule("ratio", r".*damper.*", "DamperPosition"),
)  # fmt: skip

SETPOINT: Final = re.compile(r"(^|_)(target|setpoint|sp)(_|$)")
PHASE: Final = re.compile(r"_l([123])(?=_)")
AREAS: Final[Mapping[str, str]] = {
    "primary": "Primary", "facility": "Primary", "secondary": "Secondary",
    "supply": "Supply", "return": "Return", "inlet": "Inlet", "outlet": "Outlet",
    "entering": "Entering", "leaving": "Leaving",
}  # fmt: skip

NUMBERED: Final = re.compile(r"(?:^|_)([a-z]+)_(\d+)(?=_|$)")

LEAKS: Final = frozenset({"LeakDetect", "RackLeakDetect", "RackLeakSensorFault"})


def kind_of_profile(profile: str) -> str:
    """The kind of a device that nobody has given one, by the name of its profile; "" = no idea."""
    words = re.split(r"[^a-z]+", profile.lower())
    return next((word for word in words if word in KINDS), "")


def sort_of(point: Point) -> str:
    """bool, enum, bits, or the unit."""
    if point.unit == "bits" or point.bits:
        return "bits"
    if point.unit == "bool" or (point.states and point.states.keys() <= {0, 1}):
        return "bool"
    return "enum" if point.states else point.unit


def is_asked(point_type: str) -> bool:
    return POINTS[point_type].by_integration


def type_of(point: Point, allowed: Sequence[str]) -> str:
    """By the first rule that fits and that the object allows; "" = none."""
    sort = sort_of(point)
    for rule in RULES:
        if rule.point_type in allowed and sort in rule.units and rule.name.fullmatch(point.name):
            if rule.point_type == "Voltage" and "neutral" in point.title:
                continue  # on the bus it is the mean from line to line
            return rule.point_type
    return GENERIC if GENERIC in allowed else ""


def unit_of(point: Point, point_type: str) -> tuple[str, float]:
    return SPECIAL_UNITS.get(point_type) or UNITS.get(point.unit, ("", 1.0))


def states_of(point: Point, point_type: str) -> Mapping[int, str]:
    kind = POINTS[point_type].kind
    if kind is Kind.STATES and (point_type in LEAKS or not point.states):
        return POINTS[point_type].states
    if kind is Kind.STATES or (kind in {Kind.GENERIC, Kind.FREE} and point.states):
        return point.states
    return YES_NO if kind is Kind.GENERIC and point.unit == "bool" else {}


def has_area(object_type: str) -> bool:
    return object_type not in {"Rack", "PowerMeter", "System"}


def area_of(point: Point, point_type: str, object_type: str) -> tuple[str, ...]:
    """Where in the object; of a generic point: what it is."""
    if point_type == GENERIC:
        return (point.name.removesuffix(SUFFIXES.get(point.unit, "")).replace("_", " "),)
    if not has_area(object_type):
        return ()
    words = [AREAS[word] for word in re.split(r"[_/]", point.name) if word in AREAS]
    parts = [f"{part.capitalize()} {number}" for part, number in NUMBERED.findall(point.name)]
    return tuple(dict.fromkeys((*parts, *words)))


def phase_of(point: Point, point_type: str) -> str:
    phases = PHASE.findall(f"_{point.name}_")
    return phases[0] if len(phases) == 1 and point_type in {GENERIC, "PhaseCurrent"} else ""


def is_setpoint(point: Point, point_type: str) -> bool:
    return bool(SETPOINT.search(point.name)) and point_type in SETPOINTS
