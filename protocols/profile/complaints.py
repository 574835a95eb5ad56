"""What is wrong with a profile whose shape is right: each complaint says "place: what; remedy"."""

import math
import re
from collections.abc import Iterator
from typing import Final

from protocols import codec
from protocols.profile.model import (
    BIT_TABLES,
    READ_MAX_BITS,
    READ_MAX_REGISTERS,
    TEXT_MAX_REGISTERS,
    UNIT_REMEDIES,
    UNITS,
    WRITABLE_TABLES,
    Control,
    Example,
    Heartbeat,
    Identity,
    Point,
    Profile,
    unit_suffix,
)

ADDRESS_MAX: Final = 0xFFFF
EXAMPLE_TOLERANCE: Final = 1e-6  # relative: what a float32 can carry

# profile field -> least, most, unit of the sentence; beyond these it is a slip of the pen, not a device
_RANGES: Final = {
    "max_registers_per_read": (1, READ_MAX_REGISTERS, ""),
    "max_bits_per_read": (1, READ_MAX_BITS, ""),
    "min_gap_s": (0, 1, " s"),
    "reply_wait_max_s": (0.01, 5, " s"),
    "write_gap_s": (0, 3600, " s"),
    "pause_after_connect_s": (0, 10, " s"),
}


def of_profile(profile: Profile) -> Iterator[str]:
    """How the parts fit together."""
    if not profile.points:
        yield "points: none; a profile needs at least one"
    for point in profile.points.values():
        texts = _OF_PROTOCOL[profile.protocol](point, profile)
        yield from (f"points.{point.name}.{text}" for text in texts)
        yield from (f"points.{point.name}.{text}" for text in _of_scale_factor(point, profile))
    yield from _of_blocks(profile)
    yield from _of_ranges(profile)
    for i, identity in enumerate(profile.identity):
        yield from (f"identity[{i}]{text}" for text in _of_identity(identity, profile))
    if profile.control is not None:
        yield from (f"control.{text}" for text in _of_control(profile.control, profile))
    if not profile.examples:
        yield "examples: none; add at least one point's registers and value from the vendor or an instrument"
    for i, example in enumerate(profile.examples):
        if example.point in profile.points:
            yield from (f"examples[{i}]: {text}" for text in _of_example(example, profile))
        else:
            yield f"examples[{i}].point: no point {example.point!r}; use one of {', '.join(profile.points)}"


def _of_ranges(profile: Profile) -> Iterator[str]:
    for name, (least, most, unit) in _RANGES.items():
        if not least <= getattr(profile, name) <= most:
            yield f"{name}: {getattr(profile, name)}; use {least} to {most}{unit}"
    if not 300 <= profile.line.baud <= 4_000_000:
        yield f"line.baud: {profile.line.baud}; use 300 to 4000000"


def of_point(point: Point) -> Iterator[str]:
    """What a point says about itself."""
    yield from _of_unit(point)
    if not math.isfinite(point.scale) or point.scale == 0:
        yield f"scale: {point.scale} would lose the value; use a finite number that is not 0"
    if not math.isfinite(point.offset):
        yield f"offset: {point.offset} would lose the value; use a finite number"
    if not point.lowest <= point.highest:
        yield f"lowest: {point.lowest} is above highest {point.highest}; nothing could be plausible"
    if not 0 <= point.deadband < math.inf:
        yield f"deadband: {point.deadband}; use 0 or a finite change in {point.unit}"
    scaled = point.scale != 1 or point.offset != 0 or point.scale_factor
    if scaled and (point.enum or point.bits or point.unit in ("text", "bits", "enum")):
        yield "scale: a text, a state or bits cannot be scaled; remove scale, offset and scale_factor"
    if point.type != "string" and point.registers:
        yield "registers: belong to a string; the type has a length of its own"
    if point.access == "w" and point.read_back:
        yield "read_back: nothing can be read back from access 'w'; set read_back: false"


def _of_unit(point: Point) -> Iterator[str]:
    if point.unit not in UNITS:
        yield f"unit: {point.unit!r} is not known; {UNIT_REMEDIES.get(point.unit, 'use ' + ', '.join(UNITS))}"
    elif unit_suffix(point.name) != UNITS[point.unit]:
        wanted = UNITS[point.unit]
        remedy = f"end the name in {wanted!r}" if wanted else f"drop the ending {unit_suffix(point.name)!r}"
        yield f"unit: the name does not say {point.unit}; {remedy}"
    if point.bits and point.unit != "bits":
        yield f"bits: {point.unit} has none; use unit: bits"
    if point.enum and point.unit not in ("enum", "bool"):
        yield f"enum: {point.unit} has no states; use unit: enum (or bool)"
    if point.unit == "enum" and not point.enum:
        yield "enum: missing; list number: name of each state (or use unit: count)"
    names = [bit.name for bit in point.bits.values()]
    for doubled in sorted({name for name in names if names.count(name) > 1}):
        yield f"bits: {doubled!r} stands twice; each bit needs a name of its own"


def _of_modbus(point: Point, profile: Profile) -> Iterator[str]:
    if point.node or point.method:
        yield "node: belongs to OPC UA; remove it or set protocol: opcua"
    if point.type == "number":
        yield f"type: missing; use one of {', '.join(codec.TYPES)}, string, or bool for coils and discretes"
        return
    if (point.type == "bool") != (point.table in BIT_TABLES):
        yield f"type: a {point.table} cannot be a {point.type}; bool is for {' and '.join(BIT_TABLES)} alone"
    if (point.type == "string") != (point.unit == "text"):
        yield f"type: a {point.type} is not a {point.unit}; type: string and unit: text go together"
    if point.type == "string" and not 1 <= point.registers <= TEXT_MAX_REGISTERS:
        yield f"registers: {point.registers}; give the length of the string, 1 to {TEXT_MAX_REGISTERS}"
        return
    yield from _of_access(point, profile)
    yield from _of_pattern(point)
    if not 0 <= point.address <= point.last_address <= ADDRESS_MAX:
        yield f"address: {point.address} is missing or beyond {ADDRESS_MAX}; give the wire address (from 0)"
    elif point.readable and not any(block.holds(point) for block in profile.blocks):
        yield (
            f"address: {point.table} {point.address}..{point.last_address} lies in no block; "
            f"add it to blocks if the device can read it in one request"
        )


def _of_access(point: Point, profile: Profile) -> Iterator[str]:
    if point.access != "r" and point.table not in WRITABLE_TABLES:
        yield f"access: a {point.table} cannot be written; use 'r'"
    if codec.width(point) > profile.max_registers_per_read:
        yield f"type: {point.type} needs more registers than max_registers_per_read allows"
    if point.write == "single" and codec.width(point) > 1:
        yield f"write: function code 6 carries one register, not {codec.width(point)}; use multiple"


def _of_pattern(point: Point) -> Iterator[str]:
    """Mask, bits and marks against the bits that the type has."""
    integer = point.type in codec.TYPES and point.type not in codec.FLOATS
    size = 16 * codec.width(point)
    if point.mask and not (integer and 0 < point.mask < 1 << size):
        yield f"mask: {point.mask:#x} is not within a {point.type}; use an integer type that has these bits"
    if point.bits and not (integer and size <= 32):
        yield f"bits: a {point.type} has no bits that a number can carry; use u16 or u32"
    beyond = [bit for bit in point.bits if not 0 <= bit < (point.mask.bit_count() or size)]
    if beyond:
        yield f"bits: {beyond} lie beyond the value; bit 0 is the least one of it"
    if any(not 0 <= mark < 1 << size for mark in point.sentinels):
        yield f"sentinels: {list(point.sentinels)} are no patterns of {size} bits; write them unsigned"


def _of_opcua(point: Point, _profile: Profile) -> Iterator[str]:
    if point.address != -1 or point.type != "number" or point.mask:
        yield "address: address, type and mask belong to Modbus; remove them or set protocol: modbus"
    if not (point.node.startswith("nsu=") and point.namespace_uri) and not point.node.startswith("i="):
        yield f"node: {point.node!r} names no namespace by URI; write nsu=<URI>;s=<name> (or i=<n> of OPC UA)"
    elif point.identifier[:2] not in ("s=", "i=", "g=", "b="):
        yield f"node: {point.identifier!r} is no identifier; write s=<name> or i=<number>"
    if point.method and point.access != "w":
        yield "method: a call cannot be read; set access: w and read_back: false"


_OF_PROTOCOL: Final = {"modbus": _of_modbus, "opcua": _of_opcua}


def _of_scale_factor(point: Point, profile: Profile) -> Iterator[str]:
    if not point.scale_factor:
        return
    factor = profile.points.get(point.scale_factor)
    if factor is None:
        yield f"scale_factor: no point {point.scale_factor!r}; add it as an i16 of unit count"
    elif (factor.type, factor.scale, factor.offset, factor.scale_factor) != ("i16", 1, 0, ""):
        yield f"scale_factor: {factor.name} must be a plain i16: its raw value is the power of ten"


def _of_blocks(profile: Profile) -> Iterator[str]:
    if profile.blocks and profile.protocol == "opcua":
        yield "blocks: belong to Modbus; remove them or set protocol: modbus"
    for i, block in enumerate(profile.blocks):
        if not 0 <= block.first <= block.last <= ADDRESS_MAX:
            yield f"blocks[{i}]: {block.first}..{block.last} is not a range within 0..{ADDRESS_MAX}"
        for earlier in profile.blocks[:i]:
            if earlier.table == block.table and earlier.first <= block.last and block.first <= earlier.last:
                yield f"blocks[{i}]: overlaps {earlier.first}..{earlier.last}; join them or part them"


def _of_identity(identity: Identity, profile: Profile) -> Iterator[str]:
    point = profile.points.get(identity.point)
    if point is None:
        yield f".point: no point {identity.point!r}; use one of {', '.join(profile.points)}"
        return
    if not point.readable:
        yield f".point: {identity.point} cannot be read; take a point of access 'r' or 'rw'"
    if identity.equals is not None and identity.matches:
        yield ": give equals or matches, not both"
    bounded = bool(point.enum) or (math.isfinite(point.lowest) and math.isfinite(point.highest))
    if identity.equals is None and not identity.matches and not bounded:
        yield f": any {identity.point} would do; give equals or matches"
    if point.unit != "text" and (identity.matches or isinstance(identity.equals, str)):
        yield f".point: {identity.point} is no text; compare with equals and a number"
    try:
        re.compile(identity.matches)
    except re.error as error:
        yield f".matches: not a regular expression: {error}"


def _of_control(control: Control, profile: Profile) -> Iterator[str]:
    for i, condition in enumerate(control.requires):
        yield from (f"requires[{i}]{text}" for text in _of_identity(condition, profile))
    for place, name, value in _writes(control):
        point = profile.points.get(name)
        if point is None:
            yield f"{place}: no point {name!r}; use one of {', '.join(profile.points)}"
        elif not point.writable:
            yield f"{place}: {name} is read-only; use a point of access 'rw' or 'w'"
        elif value is not None and not point.lowest <= value <= point.highest:
            yield f"{place}: {value} {point.unit} is out of the range of {name}"
        elif value is not None and profile.protocol == "modbus":
            yield from (f"{place}: {text}" for text in _of_said(point, value))
    if control.heartbeat is not None:
        yield from (f"heartbeat.{text}" for text in _of_heartbeat(control.heartbeat, profile))
    if control.reversion is not None and not 1 <= control.reversion.seconds <= 86_400:
        yield f"reversion.seconds: {control.reversion.seconds}; use 1 to 86400 s"
    if (
        control.reversion is not None
        and control.reversion.value is not None
        and not control.reversion.value_point
    ):
        yield "reversion.value: goes nowhere; add value_point"


def _of_heartbeat(heartbeat: Heartbeat, profile: Profile) -> Iterator[str]:
    if not 0.1 <= heartbeat.period_s <= 3600:
        yield f"period_s: {heartbeat.period_s}; use 0.1 to 3600 s"
    if heartbeat.wraps_at < 1:
        yield f"wraps_at: {heartbeat.wraps_at}; a counter must count, use 1 or more"
    point = profile.points.get(heartbeat.point)
    if point is not None and profile.protocol == "modbus":
        yield from (f"wraps_at: {text}" for text in _of_said(point, heartbeat.wraps_at))


def _of_said(point: Point, value: float) -> Iterator[str]:
    """Whether the point's registers can say the value; on site it would show with the first command."""
    if point.type != "number" and not (point.scale_factor or point.mask):
        try:
            codec.encode(point, value)
        except codec.CodecError as error:
            yield f"{error}; use another value, or correct the point"


def _writes(control: Control) -> Iterator[tuple[str, str, float | None]]:
    """Place in the file, point and value of everything that the control block writes."""
    yield from ((f"arm[{i}]", setting.point, setting.value) for i, setting in enumerate(control.arm))
    yield from ((f"release[{i}]", setting.point, setting.value) for i, setting in enumerate(control.release))
    if control.heartbeat is not None:
        yield "heartbeat.point", control.heartbeat.point, None
    if control.reversion is not None:
        reversion = control.reversion
        yield "reversion.timer_point", reversion.timer_point, reversion.seconds
        if reversion.value_point:
            yield "reversion.value_point", reversion.value_point, reversion.value
        if reversion.enable_point:
            yield "reversion.enable_point", reversion.enable_point, reversion.enable_value


def _of_example(example: Example, profile: Profile) -> Iterator[str]:
    point = profile.points[example.point]
    known = {point.scale_factor: float(example.exponent)}
    try:
        if profile.protocol == "modbus":
            value = codec.decode(point, example.registers, known)
        else:
            value = codec.from_raw(point, example.raw)
    except (codec.CodecError, KeyError) as error:
        yield f"{error}; correct the registers or the point's type"
        return
    if not _alike(value, example.value):
        yield (
            f"{example.point} comes out as {value} {point.unit}, the example says {example.value}; "
            f"correct type, order, scale, offset or range of the point"
        )


def _alike(value: codec.Value, wanted: float | str) -> bool:
    if isinstance(value, str) or isinstance(wanted, str) or value is None:
        return value == wanted
    return math.isclose(value, wanted, rel_tol=EXAMPLE_TOLERANCE, abs_tol=1e-9)
