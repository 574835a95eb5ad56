"""From the standard's words to the house's: point names, units and types.

A point of model 203 called `W` becomes `m203_power_w`: model, what it is, unit. The rule, in this order:

* a second model of the same number in one device gets its number: `m203_2_power_w`;
* groups stand before the point, repeating ones with their index: `m714_prt_1_dc_power_w`;
* the names that everybody reads (`W`, `PhVphA`, `TotWhImp`, `SoC`) are spelled out, with phases A, B, C as
  l1, l2, l3; all others are the standard's own in lower case: `WMaxLimPctEna` is `w_max_lim_pct_ena`;
* the unit ends the name. Percentages are ratios here: 100 % of the standard is 1.

These names are a promise to the configurations that use them: they change with a major version, or never.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from protocols.profile import UNITS, Bit, unit_suffix

# standard's name without its phase -> ours
STEMS: Final = {
    "A": "current", "W": "power", "VA": "apparent_power", "V": "voltage",
    "VAR": "reactive_power", "VAr": "reactive_power", "Var": "reactive_power",
    "PF": "power_factor", "Hz": "frequency", "PhV": "voltage", "LNV": "voltage",
    "PPV": "voltage_line_to_line", "LLV": "voltage_line_to_line",
    "DCA": "dc_current", "DCV": "dc_voltage", "DCW": "dc_power",
    "WH": "energy", "TotWhExp": "energy_exported", "TotWhImp": "energy_imported",
    "TotWhInj": "energy_injected", "TotWhAbs": "energy_absorbed",
    "TotVAhExp": "apparent_energy_exported", "TotVAhImp": "apparent_energy_imported",
    "TotVarhInj": "reactive_energy_injected", "TotVarhAbs": "reactive_energy_absorbed",
    "TotVArhImpQ1": "reactive_energy_imported_q1", "TotVArhImpQ2": "reactive_energy_imported_q2",
    "TotVArhExpQ3": "reactive_energy_exported_q3", "TotVArhExpQ4": "reactive_energy_exported_q4",
    "DCWhInj": "dc_energy_injected", "DCWhAbs": "dc_energy_absorbed",
    "WHRtg": "energy_rating", "WHAvail": "energy_available", "AHRtg": "charge_rating",
    "Tmp": "temperature", "TmpAmb": "ambient_temperature", "TmpCab": "cabinet_temperature",
    "TmpSnk": "heat_sink_temperature", "TmpTrns": "transformer_temperature",
    "TmpSw": "switch_temperature", "TmpOt": "other_temperature", "St": "state",
    "SoC": "state_of_charge", "SoH": "state_of_health", "DoD": "depth_of_discharge",
    "Mn": "manufacturer", "Md": "model", "Opt": "options", "Vr": "version", "SN": "serial_number",
    "DA": "device_address",
}  # fmt: skip
PHASED_STEMS: Final = {**STEMS, "PPV": "voltage"}  # between two phases, and its name says which
PHASES: Final = {"A": "l1", "B": "l2", "C": "l3", "AB": "l1_l2", "BC": "l2_l3", "CA": "l3_l1"}
_PHASE: Final = re.compile(r"(?P<stem>.+?)(?:[pP]h(?P<letters>AB|BC|CA|A|B|C)|(?P<lines>L[123](?:L[123N])?))")
_WORDS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_ONE_WORD: Final = (("SoC", "Soc"), ("SoH", "Soh"), ("DoD", "Dod"), ("VAr", "Var"), ("WHA", "WhA"))

# standard's unit -> ours and factor; what is not here has no unit of the house and says its own in the title
SUNSPEC_UNITS: Final = {
    "A": ("A", 1.0), "V": ("V", 1.0), "W": ("W", 1.0), "VA": ("VA", 1.0), "var": ("var", 1.0),
    "Var": ("var", 1.0), "Wh": ("Wh", 1.0), "WH": ("Wh", 1.0), "kWh": ("Wh", 1000.0), "VAh": ("VAh", 1.0),
    "varh": ("varh", 1.0), "Varh": ("varh", 1.0), "Ah": ("Ah", 1.0), "AH": ("Ah", 1.0), "kAH": ("Ah", 1000.0),
    "Hz": ("Hz", 1.0), "Hz/s": ("Hz/s", 1.0), "W/s": ("W/s", 1.0), "C": ("degC", 1.0), "ohms": ("Ohm", 1.0),
    "kO": ("Ohm", 1000.0), "Secs": ("s", 1.0), "Sec": ("s", 1.0), "mSecs": ("s", 0.001),
    "Tmh": ("s", 3600.0), "Pct": ("ratio", 0.01), "%": ("ratio", 0.01), "%WHRtg": ("ratio", 0.01),
    "% WMax": ("ratio", 0.01), "% VArMax": ("ratio", 0.01), "% VArAval": ("ratio", 0.01),
    "% WChaMax": ("ratio", 0.01), "% AhrRtg": ("ratio", 0.01), "% WDisChaMax": ("ratio", 0.01),
    "VNomPct": ("ratio", 0.01), "WMaxPct": ("ratio", 0.01), "VarPct": ("ratio", 0.01),
    "cos()": ("ratio", 1.0), "PF": ("ratio", 1.0),
}  # fmt: skip

# standard's type -> ours and the pattern that means "not implemented"
TYPES: Final[Mapping[str, tuple[Any, tuple[int, ...]]]] = {
    "int16": ("i16", (0x8000,)), "uint16": ("u16", (0xFFFF,)), "count": ("u16", (0xFFFF,)),
    "acc16": ("u16", (0,)), "enum16": ("u16", (0xFFFF,)), "bitfield16": ("u16", (0xFFFF,)),
    "sunssf": ("i16", (0x8000,)),
    "int32": ("i32", (0x8000_0000,)), "uint32": ("u32", (0xFFFF_FFFF,)), "acc32": ("u32", (0,)),
    "enum32": ("u32", (0xFFFF_FFFF,)), "bitfield32": ("u32", (0xFFFF_FFFF,)),
    "int64": ("i64", (1 << 63,)), "uint64": ("u64", ((1 << 64) - 1,)), "acc64": ("u64", (0,)),
    "float32": ("f32", ()), "float64": ("f64", ()), "string": ("string", ()),
}  # fmt: skip
_ENDS: Final = {"count": "_number", "enum": "_state", "bits": "_bits", "text": "_text"}
_ALARMS: Final = re.compile(r"Evt|Alr?m|Alarm|Flt|Fault")


def point_name(prefix: str, path: tuple[str, ...], name: str, unit: str) -> str:
    """Name of a point of the standard; the second spelling of a name is up to the caller."""
    stem = "_".join((prefix, *map(snake, path), _stem(name)))
    return _with_unit(stem, unit)


def plain_name(prefix: str, path: tuple[str, ...], name: str, unit: str) -> str:
    """The same without spelling out, for the rare model in which two points would share a name."""
    return _with_unit("_".join((prefix, *map(snake, path), snake(name))), unit)


def snake(name: str) -> str:
    """`WMaxLimPctEna` -> `w_max_lim_pct_ena`."""
    for said, word in _ONE_WORD:
        name = name.replace(said, word)
    return re.sub(r"[^a-z0-9]+", "_", _WORDS.sub("_", name).lower()).strip("_")


def unit_of(definition: Mapping[str, Any]) -> tuple[str, float]:
    """Unit of the house and the factor into it."""
    kind = definition["type"]
    if kind == "string":
        return "text", 1.0
    if kind.startswith("bitfield"):
        return "bits", 1.0
    if kind.startswith("enum"):
        return ("enum" if definition.get("symbols") else "count"), 1.0
    if definition.get("sf") == "PF_SF" and not definition.get("units"):
        return "ratio", 1.0  # models 701 to 704 give power factors no unit
    return SUNSPEC_UNITS.get(str(definition.get("units", "")).strip(), ("count", 1.0))


def states_of(definition: Mapping[str, Any]) -> dict[int, str]:
    """Numbers and names of an enumeration."""
    return {int(symbol["value"]): snake(symbol["name"]) for symbol in definition.get("symbols", ())}


def bits_of(definition: Mapping[str, Any]) -> dict[int, Bit]:
    """Bits and their names; those of events and alarms deserve an alarm, all others are states."""
    return dict(_bits(definition))


def _bits(definition: Mapping[str, Any]) -> Iterator[tuple[int, Bit]]:
    alarms = _ALARMS.search(definition["name"]) is not None
    seen: set[str] = set()
    for symbol in definition.get("symbols", ()):
        bit, name = int(symbol["value"]), snake(symbol["name"])
        name = f"{name}_{bit}" if name in seen else name
        seen.add(name)
        if alarms:
            yield bit, Bit(name=name, severity="warning" if "warning" in name else "alarm")
        else:
            yield bit, Bit(name=name, severity="info")


def _stem(name: str) -> str:
    if name in STEMS:
        return STEMS[name]
    match = _PHASE.fullmatch(name)
    if match is None:
        return snake(name)
    stem = PHASED_STEMS.get(match["stem"], snake(match["stem"]))
    phase = (
        PHASES[match["letters"]] if match["letters"] else "_".join(re.findall(r"L.", match["lines"])).lower()
    )
    return f"{stem}_{phase}"


def _with_unit(stem: str, unit: str) -> str:
    suffix = UNITS[unit]
    if suffix or not unit_suffix(stem):
        return stem + suffix
    return stem + _ENDS[unit]  # a name without a unit must not look as if it had one
