"""The nouns of a device profile: what a file may say. How parts fit together is judged in `complaints`.

Every class is a frozen dataclass and every field carries its own sentence: editors show them, because the
published JSON Schema is made from these classes and from nothing else.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import ConfigDict

from protocols import codec

READ_MAX_REGISTERS: Final = 125  # Modbus Application Protocol V1.1b3, 6.3
READ_MAX_BITS: Final = 2000  # the same, 6.1
TEXT_MAX_REGISTERS: Final = 64  # 128 characters: twice the longest name plate seen

# unit -> how a name says it. '' = the name carries no unit and must not look as if it did.
UNITS: Final = {
    "W": "_w", "VA": "_va", "var": "_var", "Wh": "_wh", "VAh": "_vah", "varh": "_varh", "V": "_v", "A": "_a",
    "Ah": "_ah", "Hz": "_hz", "Ohm": "_ohm", "degC": "_c", "kPa": "_kpa", "L/min": "_l_per_min",
    "rpm": "_rpm", "s": "_s", "W/s": "_w_per_s", "Hz/s": "_hz_per_s", "ratio": "_ratio",
    "bool": "", "count": "", "enum": "", "bits": "", "text": "",
}  # fmt: skip
UNIT_REMEDIES: Final = {
    "kW": "use W with scale: 1000", "MW": "use W with scale: 1000000", "mW": "use W with scale: 0.001",
    "kWh": "use Wh with scale: 1000", "kVA": "use VA with scale: 1000", "kvar": "use var with scale: 1000",
    "mA": "use A with scale: 0.001", "mV": "use V with scale: 0.001", "kV": "use V with scale: 1000",
    "%": "use ratio with scale: 0.01", "C": "use degC", "LPM": "use L/min", "bar": "use kPa with scale: 100",
    "Pa": "use kPa with scale: 0.001", "min": "use s with scale: 60", "ms": "use s with scale: 0.001",
    "h": "use s with scale: 3600", "mOhm": "use Ohm with scale: 0.001", "mAh": "use Ah with scale: 0.001",
    "degF": "use degC with scale: 0.5555555555555556 and offset: -17.77777777777778",
    "string": "use text", "state": "use enum", "flags": "use bits",
}  # fmt: skip

STRICT: Final = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Table = Literal["holding", "input", "coil", "discrete"]
Order = Literal["big", "little"]
Severity = Literal["info", "warning", "alarm", "critical"]
BIT_TABLES: Final = ("coil", "discrete")
WRITABLE_TABLES: Final = ("holding", "coil")


class ProfileError(ValueError):
    """A profile that must not be used, or a use that its profile does not allow; one line per error."""


@dataclass(frozen=True, kw_only=True)
class Bit:
    """One bit of a point of unit `bits`."""

    __pydantic_config__ = STRICT

    name: str
    """what it says when it is active, such as `pump_1_failed`"""
    active: Literal[0, 1] = 1
    """the state of the bit that means it; 0 for a contact that opens"""
    severity: Severity = "alarm"
    """what it deserves; info: a state, no alarm at all"""
    latched: bool = False
    """the device keeps it until it is reset"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One named value of a device. Modbus points live at `table` and `address`, OPC UA points at `node`.

    value in `unit` = raw number * scale * 10**scale factor + offset; None outside lowest..highest (see
    `protocols.codec`).
    """

    __pydantic_config__ = STRICT

    name: str
    """what the house calls it; ends in its unit"""
    unit: str
    """unit of the value, said by the ending of the name; `enum`, `bits`, `text`, `bool`, `count` have none"""
    access: Literal["r", "rw", "w"] = "r"
    """rw: may be written where the site allows it; w: a command that cannot be read"""
    title: str = ""
    """what the name does not say"""
    scale: float = 1.0
    """factor from raw number to unit; a Q-format with n fraction bits has 2**-n"""
    offset: float = 0.0
    """added after scaling"""
    scale_factor: str = ""
    """name of an i16 point whose raw value is a power of ten on top of `scale` (SunSpec sunssf)"""
    lowest: float = -math.inf
    """least plausible value, in `unit`; below it the quality is bad, and a write is refused"""
    highest: float = math.inf
    """greatest plausible value, in `unit`; above it the quality is bad, and a write is refused"""
    enum: Mapping[int, str] = field(default_factory=dict, hash=False)
    """number -> name of the state; any other number is bad quality"""
    bits: Mapping[int, Bit] = field(default_factory=dict, hash=False)
    """bit of the value (0 = least) -> what it says"""
    poll: Literal["fast", "slow", "once"] = "fast"
    """how often; once: name plates, read after connecting"""
    deadband: float = 0.0
    """change in `unit` below which publishers stay quiet"""
    write: Literal["auto", "single", "multiple"] = "auto"
    """function codes 5/6 or 15/16; auto: single where the point is one register or coil"""
    read_back: bool = True
    """compare after a write; false for commands that reset themselves"""
    table: Table = "holding"
    """Modbus table"""
    address: int = -1
    """on the wire, starting at 0; documents often start at 1"""
    type: Literal["u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "bool", "string", "number"] = (
        "number"
    )
    """how a number lies in Modbus registers; `string` takes `registers`; OPC UA servers say it themselves"""
    registers: int = 0
    """length of a string"""
    word_order: Order = "big"
    """big: the high register comes first"""
    byte_order: Order = "big"
    """big: as the Modbus standard has it"""
    mask: int = 0
    """bits of the raw pattern that are this point, shifted down to bit 0; 0: all of it"""
    sentinels: tuple[int, ...] = ()
    """bit patterns (unsigned, after ordering, before the mask) that mean "not present" """
    node: str = ""
    """OPC UA: nsu=<namespace URI>;s=<name>, because a namespace's index may change with every server start"""
    method: str = ""
    """OPC UA: node of a method of the object at `node`; a write calls it with the value (bool: without)"""

    @property
    def last_address(self) -> int:
        return self.address + codec.width(self) - 1

    @property
    def readable(self) -> bool:
        return self.access != "w"

    @property
    def writable(self) -> bool:
        return self.access != "r"

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

    __pydantic_config__ = STRICT

    table: Table
    first: int
    """first address, on the wire"""
    last: int
    """last address, itself included"""

    def holds(self, point: Point) -> bool:
        return point.table == self.table and self.first <= point.address and point.last_address <= self.last


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a point must say: `equals` or `matches`; with neither, any plausible value or named state."""

    __pydantic_config__ = STRICT

    point: str
    equals: float | str | None = None
    """the value itself, in the point's unit"""
    matches: str = ""
    """regular expression that a text must match from its beginning to its end"""

    def accepts(self, value: "codec.Value") -> bool:
        """Whether the device is the one meant; a missing value never is."""
        if value is None:
            return False
        if self.matches:
            return isinstance(value, str) and re.fullmatch(self.matches, value) is not None
        return self.equals is None or value == self.equals

    @property
    def wanted(self) -> str:
        """What it must say, for the message that it does not."""
        if self.matches:
            return f"a text like {self.matches}"
        return "one of its values" if self.equals is None else f"{self.equals!r}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A serial line as the device leaves the factory; the URL of a site overrides it."""

    __pydantic_config__ = STRICT

    baud: int = 19200
    parity: Literal["N", "E", "O"] = "E"
    stop_bits: Literal[1, 2] = 1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value that we write into a point."""

    __pydantic_config__ = STRICT

    point: str
    value: float
    """in the point's unit"""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A counter that we count up while we live and a command stands; the device falls back when it rests."""

    __pydantic_config__ = STRICT

    point: str
    period_s: float
    wraps_at: int = 0xFFFF
    """the highest count; 0 follows it"""


@dataclass(frozen=True, kw_only=True)
class Reversion:
    """A timer in the device: unless we write it again in time, the device withdraws our command by itself."""

    __pydantic_config__ = STRICT

    timer_point: str
    seconds: float
    """what we write into the timer, again and again well before it runs out"""
    value_point: str = ""
    """what the device shall go back to; '' = the device knows"""
    value: float | None = None
    """written into `value_point`; without it the device keeps what it was set up with"""
    enable_point: str = ""
    enable_value: float = 1


@dataclass(frozen=True, kw_only=True)
class Control:
    """How a device is commanded so that it falls back by itself when we are gone."""

    __pydantic_config__ = STRICT

    requires: tuple[Identity, ...] = ()
    """what must hold before a command has any effect, such as the plant's own switch on remote"""
    arm: tuple[Setting, ...] = ()
    """written in this order before the first command, and again after a reconnect while one stands"""
    release: tuple[Setting, ...] = ()
    """written when the last command is withdrawn"""
    heartbeat: Heartbeat | None = None
    reversion: Reversion | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers come from, and how far they have been proven."""

    __pydantic_config__ = STRICT

    document: str
    page: str
    evidence: Literal["document", "interop", "hardware"]
    """document: read; interop: another implementation agrees on the wire; hardware: the device itself did"""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Example:
    """What the device says (Modbus registers, or one OPC UA number) and what it means in the point's unit."""

    __pydantic_config__ = STRICT

    point: str
    value: float | str
    source: str
    """who says so: document and page, or the instrument"""
    registers: tuple[int, ...] = ()
    raw: float = math.nan
    exponent: int = 0
    """what the point's scale factor says at that moment"""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A device type. `points` keeps the order of the file."""

    __pydantic_config__ = STRICT

    name: str
    title: str
    protocol: Literal["modbus", "opcua"]
    provenance: Provenance
    points: Mapping[str, Point]
    """the house's name of the value -> where and how the device says it"""
    examples: tuple[Example, ...]
    """worked examples, verified whenever the profile is loaded"""
    identity: tuple[Identity, ...] = ()
    """checked after connecting, before any other use: the wrong device behind an address is not used"""
    control: Control | None = None
    blocks: tuple[Block, ...] = ()
    """what one request may read across"""
    max_registers_per_read: int = READ_MAX_REGISTERS
    max_bits_per_read: int = READ_MAX_BITS
    min_gap_s: float = 0.0
    """rest the device needs between a reply and the next request"""
    reply_wait_max_s: float = 0.5
    write_gap_s: float = 0.0
    """least time between two writes of one point; for registers kept in EEPROM"""
    pause_after_connect_s: float = 0.0
    """rest the device needs before the first request of a connection"""
    single_connection: bool = False
    """the device answers one connection only; a second one would push ours out"""
    one_request_per_point: bool = False
    """the device does not answer reads across several of its registers"""
    line: Line = Line()

    def select(self, names: tuple[str, ...]) -> tuple[Point, ...]:
        """The named points as ordered, all points for (); ProfileError for one it does not have."""
        unknown = [name for name in names if name not in self.points]
        if unknown:
            raise ProfileError(
                f"profile {self.name}: no point {', '.join(map(repr, unknown))}; use {', '.join(self.points)}"
            )
        return tuple(self.points[name] for name in names or self.points)

    def with_scale_factors(self, points: tuple[Point, ...]) -> tuple[Point, ...]:
        """`points`, and after them the scale factors that they rest on: these must be read, too."""
        wanted = {point.scale_factor: None for point in points if point.scale_factor}
        there = {point.name for point in points}
        return (*points, *(self.points[name] for name in wanted if name not in there))


def unit_suffix(name: str) -> str:
    """The unit ending of a name ('_w_per_s', '_w', ...), the longest that fits; '' if it has none."""
    return max((s for s in UNITS.values() if s and name.endswith(s)), key=len, default="")
