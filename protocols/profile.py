"""Device profiles: what a type of device says, where it says it, and in which unit.

A profile is one YAML file. It maps names that this house uses (`power_w`, `coolant_supply_c`) to places on
the wire, and fixes type, order, scale and plausible range of each. Everything odd about a vendor (kilowatts,
swapped words, numbers that start at 1, gaps that must not be read) ends here.

Two rules keep it honest. The unit is the last part of every name, checked against the unit field: nobody
can read kW into a name that ends in `_w`. And each profile carries worked examples, registers to value,
verified when it is loaded: driver and simulator share the profile, so between the two a wrong scale would
cancel out; an example taken from a document or an instrument does not.

A profile loads whole or not at all, and a refusal lists every error of the file, each with its remedy.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from protocols import codec

BUILTIN: Final = Path(__file__).parent / "profiles"
FILE_MAX_BYTES: Final = 256 * 1024  # the largest vendor map seen, fully written out, needs a quarter of it
ADDRESS_MAX: Final = 0xFFFF
READ_MAX_REGISTERS: Final = 125  # Modbus Application Protocol V1.1b3, 6.3
EXAMPLE_TOLERANCE: Final = 1e-6  # relative: what a float32 can carry

# unit -> how a name says it. '' = the name carries no unit and must not look as if it did.
UNITS: Final = {
    "W": "_w", "VA": "_va", "var": "_var", "Wh": "_wh", "V": "_v", "A": "_a", "Hz": "_hz",
    "degC": "_c", "kPa": "_kpa", "L/min": "_l_per_min", "rpm": "_rpm", "s": "_s",
    "W/s": "_w_per_s", "ratio": "_ratio", "bool": "", "count": "", "bits": "",
}  # fmt: skip
UNIT_REMEDIES: Final = {
    "kW": "use W with scale: 1000", "MW": "use W with scale: 1000000", "mW": "use W with scale: 0.001",
    "kWh": "use Wh with scale: 1000", "kVA": "use VA with scale: 1000", "kvar": "use var with scale: 1000",
    "mA": "use A with scale: 0.001", "mV": "use V with scale: 0.001", "kV": "use V with scale: 1000",
    "%": "use ratio with scale: 0.01", "C": "use degC", "LPM": "use L/min", "bar": "use kPa with scale: 100",
    "Pa": "use kPa with scale: 0.001", "min": "use s with scale: 60", "ms": "use s with scale: 0.001",
}  # fmt: skip

_STRICT: Final = ConfigDict(extra="forbid")

Table = Literal["holding", "input", "coil", "discrete"]
BIT_TABLES: Final = ("coil", "discrete")
WRITABLE_TABLES: Final = ("holding", "coil")


class ProfileError(ValueError):
    """A profile that must not be used, or a use that its profile does not allow; one line per error."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One named value of a device. Modbus points live at `table` and `address`, OPC UA points at `node`.

    value in `unit` = raw number * scale + offset; None outside lowest..highest (see `codec`).
    """

    __pydantic_config__ = _STRICT

    name: str
    unit: str
    access: Literal["r", "rw"] = "r"
    title: str = ""
    scale: float = 1.0  # a Q-format with n fraction bits has scale 2**-n
    offset: float = 0.0
    lowest: float = -math.inf  # plausible range, in `unit`
    highest: float = math.inf
    poll: Literal["fast", "slow"] = "fast"
    # Modbus
    table: Table = "holding"
    address: int = -1  # on the wire, starting at 0; documents often start at 1
    type: Literal["u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "bool", "number"] = "number"
    word_order: Literal["big", "little"] = "big"
    byte_order: Literal["big", "little"] = "big"
    sentinels: tuple[int, ...] = ()  # bit patterns (unsigned, after ordering) that mean "not present"
    # OPC UA; type stays "number": the server says what it sends
    node: str = ""  # nsu=<namespace URI>;s=<name>: a namespace's index may change with every server start

    @property
    def last_address(self) -> int:
        return self.address + codec.width(self) - 1

    @property
    def namespace_uri(self) -> str:
        """Namespace of an OPC UA point; '' for the namespace of OPC UA itself (`i=2258`)."""
        uri, semicolon, _ = self.node.removeprefix("nsu=").rpartition(";")
        return uri if semicolon else ""

    @property
    def identifier(self) -> str:
        """Node id without its namespace, such as `s=Cdu.Flow` or `i=2258`."""
        return self.node.rpartition(";")[2]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Addresses first..last that one request may read across; no request may leave it."""

    __pydantic_config__ = _STRICT

    table: Table
    first: int
    last: int

    def holds(self, point: Point) -> bool:
        return point.table == self.table and self.first <= point.address and point.last_address <= self.last


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers come from, and how far they have been proven."""

    __pydantic_config__ = _STRICT

    document: str
    page: str
    evidence: Literal["document", "interop", "hardware"]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Example:
    """What the device says (Modbus registers, or one OPC UA number) and what it means in the point's unit."""

    __pydantic_config__ = _STRICT

    point: str
    value: float
    source: str
    registers: tuple[int, ...] = ()
    raw: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A device type. `points` keeps the order of the file."""

    __pydantic_config__ = _STRICT

    name: str
    title: str
    protocol: Literal["modbus", "opcua"]
    provenance: Provenance
    points: Mapping[str, Point]
    examples: tuple[Example, ...]
    blocks: tuple[Block, ...] = ()
    max_registers_per_read: int = READ_MAX_REGISTERS
    min_gap_s: float = 0.0  # rest the device needs between a reply and the next request
    reply_wait_max_s: float = 0.5

    def select(self, names: tuple[str, ...]) -> tuple[Point, ...]:
        """The named points as ordered, all points for (); ProfileError for one it does not have."""
        unknown = [name for name in names if name not in self.points]
        if unknown:
            raise ProfileError(
                f"profile {self.name}: no point {', '.join(map(repr, unknown))}; use {', '.join(self.points)}"
            )
        return tuple(self.points[name] for name in names or self.points)


def builtin_profiles() -> tuple[str, ...]:
    """Names that `load_profile` knows without a path, sorted."""
    return tuple(sorted(path.stem for path in BUILTIN.glob("*.yaml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile of that name (built in) or in that file (anything that ends in .yaml).

    Raises:
        ProfileError: not there, not readable or not right; every error of the file, one per line.
    """
    path = Path(name_or_path)
    if path.suffix != ".yaml":
        if str(name_or_path) not in builtin_profiles():
            raise ProfileError(
                f"no built-in profile {str(name_or_path)!r}; "
                f"use {', '.join(builtin_profiles())}, or the path of a .yaml file"
            )
        path = BUILTIN / f"{name_or_path}.yaml"
    document = _read(path)
    errors: list[str] = []
    profile = _profile(document, path.stem, errors)
    if errors or profile is None:
        raise ProfileError("\n".join(f"{path.name}: {error}" for error in errors))
    return profile


def _read(path: Path) -> dict[Any, Any]:
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ProfileError(f"{path}: larger than {FILE_MAX_BYTES} bytes; this is not a profile")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}; check path and permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ProfileError(f"{path}: a profile is a mapping of title, protocol, points, ...; see {BUILTIN}")
    return document


def _profile(document: dict[Any, Any], name: str, errors: list[str]) -> Profile | None:
    """Build part by part, so that a fault in one point does not hide the fault in the next."""
    points = {
        str(key): point
        for key, raw in _mapping(document.get("points", {}), "points", errors).items()
        if (point := _build(Point, raw, f"points.{key}", errors, name=str(key)))
    }
    blocks = _build_each(Block, document.get("blocks", ()), "blocks", errors)
    examples = _build_each(Example, document.get("examples", ()), "examples", errors)
    profile = _build(
        Profile, document, "", errors, name=name, points=points, blocks=blocks, examples=examples
    )
    whole = not errors
    for point in points.values():
        errors.extend(f"points.{point.name}.{text}" for text in _point_complaints(point))
    if profile is not None and whole:  # how parts fit together is worth a word once all parts are there
        errors.extend(_complaints(profile))
    return profile


_T = TypeVar("_T")


def _build(cls: type[_T], raw: object, path: str, errors: list[str], **given: object) -> _T | None:
    fields = _mapping(raw, path, errors)
    try:
        return TypeAdapter(cls).validate_python({**fields, **given})
    except ValidationError as failure:
        for error in failure.errors(include_url=False):
            place = ".".join([path, *map(str, error["loc"])]).lstrip(".")
            errors.append(f"{place}: {_REMEDIES.get(error['type'], '{msg}').format(**error)}")
        return None


# pydantic's words -> ours, where ours name the remedy better
_REMEDIES: Final = {
    "missing": "missing; add it",
    "unexpected_keyword_argument": "unknown key; check the spelling or remove it",
    "literal_error": "{input!r} is not known; use {ctx[expected]}",
}


def _build_each(cls: type[_T], raw: object, path: str, errors: list[str]) -> tuple[_T, ...]:
    if not isinstance(raw, (list, tuple)):
        errors.append(f"{path}: must be a list; start each entry with '- '")
        return ()
    built = (_build(cls, entry, f"{path}[{i}]", errors) for i, entry in enumerate(raw))
    return tuple(entry for entry in built if entry is not None)


def _mapping(raw: object, path: str, errors: list[str]) -> dict[str, Any]:
    if isinstance(raw, dict):
        return {str(key): value for key, value in raw.items()}
    errors.append(f"{path}: must be a mapping of names to values, not {type(raw).__name__}")
    return {}


# ---- meaning, once the shape is right: each yields "path: what; remedy" ----


def _complaints(profile: Profile) -> Iterator[str]:
    if not profile.points:
        yield "points: none; a profile needs at least one"
    for point in profile.points.values():
        texts = _PROTOCOL_COMPLAINTS[profile.protocol](point, profile)
        yield from (f"points.{point.name}.{text}" for text in texts)
    yield from _block_complaints(profile)
    if not 1 <= profile.max_registers_per_read <= READ_MAX_REGISTERS:
        yield f"max_registers_per_read: {profile.max_registers_per_read}; use 1 to {READ_MAX_REGISTERS}"
    if not 0 <= profile.min_gap_s <= 1:
        yield f"min_gap_s: {profile.min_gap_s}; use 0 to 1 s"
    if not 0.01 <= profile.reply_wait_max_s <= 5:
        yield f"reply_wait_max_s: {profile.reply_wait_max_s}; use 0.01 to 5 s"
    if not profile.examples:
        yield "examples: none; add at least one point's registers and value from the vendor or an instrument"
    for i, example in enumerate(profile.examples):
        if example.point in profile.points:
            yield from (f"examples[{i}]: {text}" for text in _example_complaints(example, profile))
        else:
            yield f"examples[{i}].point: no point {example.point!r}; use one of {', '.join(profile.points)}"


def _point_complaints(point: Point) -> Iterator[str]:
    if point.unit not in UNITS:
        yield f"unit: {point.unit!r} is not known; {UNIT_REMEDIES.get(point.unit, 'use ' + ', '.join(UNITS))}"
    elif unit_suffix(point.name) != UNITS[point.unit]:
        wanted = UNITS[point.unit]
        remedy = f"end the name in {wanted!r}" if wanted else f"drop the ending {unit_suffix(point.name)!r}"
        yield f"unit: the name does not say {point.unit}; {remedy}"
    if not math.isfinite(point.scale) or point.scale == 0:
        yield f"scale: {point.scale} would lose the value; use a finite number that is not 0"
    if not math.isfinite(point.offset):
        yield f"offset: {point.offset} would lose the value; use a finite number"
    if not point.lowest <= point.highest:
        yield f"lowest: {point.lowest} is above highest {point.highest}; nothing could be plausible"


def _modbus_complaints(point: Point, profile: Profile) -> Iterator[str]:
    if point.node:
        yield "node: belongs to OPC UA; remove it or set protocol: opcua"
    if point.type == "number":
        yield f"type: missing; use one of {', '.join(codec.TYPES)}, or bool for coils and discrete inputs"
        return
    if (point.type == "bool") != (point.table in BIT_TABLES):
        yield f"type: a {point.table} cannot be a {point.type}; bool is for {' and '.join(BIT_TABLES)} alone"
    if point.access == "rw" and point.table not in WRITABLE_TABLES:
        yield f"access: a {point.table} cannot be written; use 'r'"
    if codec.width(point) > profile.max_registers_per_read:
        yield f"type: {point.type} needs more registers than max_registers_per_read allows"
    if not 0 <= point.address <= point.last_address <= ADDRESS_MAX:
        yield f"address: {point.address} is missing or beyond {ADDRESS_MAX}; give the wire address (from 0)"
    elif not any(block.holds(point) for block in profile.blocks):
        yield (
            f"address: {point.table} {point.address}..{point.last_address} lies in no block; "
            f"add it to blocks if the device can read it in one request"
        )


def _opcua_complaints(point: Point, _profile: Profile) -> Iterator[str]:
    if point.address != -1 or point.type != "number":
        yield "address: address and type belong to Modbus; remove them or set protocol: modbus"
    if not (point.node.startswith("nsu=") and point.namespace_uri) and not point.node.startswith("i="):
        yield f"node: {point.node!r} names no namespace by URI; write nsu=<URI>;s=<name> (or i=<n> of OPC UA)"
    elif point.identifier[:2] not in ("s=", "i=", "g=", "b="):
        yield f"node: {point.identifier!r} is no identifier; write s=<name> or i=<number>"


_PROTOCOL_COMPLAINTS: Final = {"modbus": _modbus_complaints, "opcua": _opcua_complaints}


def _block_complaints(profile: Profile) -> Iterator[str]:
    if profile.blocks and profile.protocol == "opcua":
        yield "blocks: belong to Modbus; remove them or set protocol: modbus"
    for i, block in enumerate(profile.blocks):
        if not 0 <= block.first <= block.last <= ADDRESS_MAX:
            yield f"blocks[{i}]: {block.first}..{block.last} is not a range within 0..{ADDRESS_MAX}"
        for earlier in profile.blocks[:i]:
            if earlier.table == block.table and earlier.first <= block.last and block.first <= earlier.last:
                yield f"blocks[{i}]: overlaps {earlier.first}..{earlier.last}; join them or part them"


def _example_complaints(example: Example, profile: Profile) -> Iterator[str]:
    point = profile.points[example.point]
    try:
        if profile.protocol == "modbus":
            value = codec.decode(point, example.registers)
        else:
            value = codec.from_raw(point, example.raw)
    except (codec.CodecError, KeyError) as error:
        yield f"{error}; correct the registers or the point's type"
        return
    if value is None or not math.isclose(value, example.value, rel_tol=EXAMPLE_TOLERANCE, abs_tol=1e-9):
        yield (
            f"{example.point} comes out as {value} {point.unit}, the example says {example.value}; "
            f"correct type, order, scale, offset or range of the point"
        )


def unit_suffix(name: str) -> str:
    """The unit ending of a name ('_w_per_s', '_w', ...), the longest that fits; '' if it has none."""
    return max((s for s in UNITS.values() if s and name.endswith(s)), key=len, default="")
