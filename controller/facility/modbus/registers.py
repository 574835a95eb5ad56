"""Where everything is in the Modbus server, as data: the one source of the server and of the published map.

Unit 1 is a SunSpec device (sunspec.py). Everything else is the native map, and its addresses follow
from the configuration alone, by a formula that no other entry takes part in:

    unit 2      who we are and how we are (0), the request (100) and its answer (200)
    REGIONS     one page of fixed length per group of the process image, in the order of its kind

So a device added at the end of the file, or one that turns out to have other points than was thought, moves
nobody else; a point added at the end of a group moves nothing in it. A page begins with four registers about
the group and goes on with one record per point: value, quality, age. Numbers are float32; states and bits,
uint32; texts, 32 characters. All is big-endian, high word first, addresses count from 0.

A value that is not there is a NaN, or all ones, and its quality says so, too. `fingerprint` changes whenever
an address or a meaning does; the server shows it, and every published map carries it.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from controller.image.model import Group, Point
from controller.verbs import SHED_LEVELS_MAX

MAP_VERSION: Final = 1  # of the rules on this page
ADDRESSES: Final = 0x10000

Type = Literal["u16", "u32", "f32", "text"]
WORDS: Final = {"u16": 1, "u32": 2, "f32": 2}
CODES: Final = {"u16": "H", "u32": "I", "f32": "f"}  # for struct
NONE_U16: Final = 0xFFFF
NONE_U32: Final = 0xFFFFFFFF
TEXT_WORDS: Final = 16
REASON_WORDS: Final = 60

SUNSPEC_UNIT: Final = 1
NATIVE_UNIT: Final = 2
STATUS_AT: Final = 0
REQUEST_AT: Final = 100
ANSWER_AT: Final = 200

READS: Final = "3, 4"


def functions(access: str, words: int, reads: str = READS) -> str:
    """Function codes that work on a value: one register can be written alone, more only together."""
    if access == "r":
        return reads
    return f"{reads}, 6, 16, 22, 23" if words == 1 else f"{reads}, 16, 23"


@dataclass(frozen=True, kw_only=True)
class Register:
    """One entry of the map: `words` registers that are one value."""

    unit_id: int
    address: int
    words: int
    type: str
    name: str
    unit: str = ""
    access: Literal["r", "rw"] = "r"
    functions: str = READS
    lowest: float | None = None
    highest: float | None = None
    scale: str = "1"
    states: str = ""
    description: str = ""


# --- fixed blocks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One value at a fixed place; the place follows from those before it."""

    name: str
    type: Type
    description: str
    unit: str = ""
    lowest: float | None = None
    highest: float | None = None
    states: str = ""
    length: int = TEXT_WORDS  # of a text

    @property
    def words(self) -> int:
        return self.length if self.type == "text" else WORDS[self.type]

    @property
    def code(self) -> str:
        return f"{2 * self.length}s" if self.type == "text" else CODES[self.type]


_QUALITIES: Final = "0 bad, 1 uncertain, 2 good"

STATUS: Final = (
    Field("map_version", "u16", "rules by which addresses are assigned"),
    Field("map_fingerprint", "u32", "changes with any address or meaning; the published map carries it"),
    Field("heartbeat", "u16", "counts up while this server lives", unit="s"),
    Field("controller_heard", "u16", "0: all values grow stale", states="0 no, 1 yes"),
    Field("switch", "u16", "65535 not known", states="0 remote, 1 local, 2 off"),
    Field("alarms_active", "u16", "number of active alarms"),
    Field("alarms_unacknowledged", "u16", "number of alarms that nobody has acknowledged"),
    Field("power_w", "f32", "block power at its meter; as the following: NaN unless good", unit="W"),
    Field("limit_w", "f32", "the limit that binds", unit="W"),
    Field("budget_w", "f32", "what the block promises to stay under now", unit="W"),
    Field("shortfall_w", "f32", "what should be shed and cannot be", unit="W"),
    Field("rating_w", "f32", "feed rating: 100 % of the SunSpec limit", unit="W"),
    Field("least_w", "f32", "the least that the block can be brought to", unit="W"),
    Field("power_quality", "u16", "of power_w", states=_QUALITIES),
    Field("power_age", "u16", "of power_w; 65535 none", unit="0.1 s"),
    Field("limit_source", "text", "whose limit binds"),
)

SHED_AT: Final = 6  # SP_Request of the first level, less one; there are SHED_LEVELS_MAX of them
ACTIONS: Final = {
    1: "set_power_limit",
    2: "release",
    3: "set_mode",
    4: "acknowledge",
    5: "reset",
    SHED_AT: "end_shed",
    **dict.fromkeys(range(SHED_AT + 1, SHED_AT + 1 + SHED_LEVELS_MAX), "shed"),
}
MODES: Final = {0: "remote", 1: "local", 2: "off"}

REQUEST: Final = (
    Field(
        "SP_Request",
        "u16",
        "what to do when SP_Seq changes",
        highest=max(ACTIONS),
        states="0 nothing, 1 set limit, 2 release, 3 set switch, 4 acknowledge alarms, 5 reset alarms,"
        f" {SHED_AT} end our call of a shed level, {SHED_AT + 1} to {max(ACTIONS)} call level 1 to"
        f" {SHED_LEVELS_MAX}, the gentlest first",
    ),
    Field("SP_Limit_W", "f32", "limit of the block", unit="W", highest=1e9),
    Field("SP_Ramp_W_per_s", "f32", "rate of change; 0: the block's own", unit="W/s", highest=1e9),
    Field(
        "SP_ValidFor_s",
        "u32",
        "how long it holds; 0: until released, and if SP_Heartbeat is not 0 then, until that stands still",
        unit="s",
        highest=31_536_000,
    ),
    Field("SP_Then_W", "f32", "limit that holds after that; NaN (at first) or below 0: none", unit="W"),
    Field(
        "SP_Priority",
        "u16",
        "of the limit to set or release; 0 as 8; 1 and 5 take the role engineer",
        highest=16,
        states="1 life safety, 5 critical equipment, 8 operator, 10 site, 16 default",
    ),
    Field("SP_Mode", "u16", "for SP_Request 3; takes the role engineer", states="0 remote, 1 local, 2 off"),
    Field(
        "SP_Heartbeat",
        "u16",
        "change it every second, not to 0; leave it at 0 if you have none; exception 4: no limit lives by it",
    ),
    Field("SP_Seq", "u16", "a change has the request carried out; write it last, or all in one request"),
)

REFUSALS: Final = {0: "none", 1: "the request makes no sense", 2: "refused by the block; see SP_Reason"}

ANSWER: Final = (
    Field("SP_Ack", "u16", "SP_Seq of the request that SP_Result is about"),
    Field("SP_Result", "u16", "what became of it", states="0 none yet, 1 accepted, 2 clamped, 3 rejected"),
    Field("SP_ReasonCode", "u16", "why", states=", ".join(f"{code} {why}" for code, why in REFUSALS.items())),
    Field("SP_Busy", "u16", "a request is being carried out", states="0 no, 1 yes"),
    Field("SP_Set_W", "f32", "limit as last accepted from you; NaN none", unit="W"),
    Field("SP_Active_W", "f32", "the limit that counts of all that people and SCADA set; NaN none", unit="W"),
    Field("SP_Remaining_s", "u32", "of that one; all ones: none, or without end", unit="s"),
    Field("SP_ActivePriority", "u16", "of that one; 65535 none"),
    Field("SP_Heartbeat_Out", "u16", "our heartbeat, as in the status block", unit="s"),
    Field("SP_Source", "text", "way and name of the writer of SP_Active_W"),
    Field("SP_Reason", "text", "SP_Result in words", length=REASON_WORDS),
)

BLOCKS: Final = ((STATUS_AT, STATUS, "r"), (REQUEST_AT, REQUEST, "rw"), (ANSWER_AT, ANSWER, "r"))


def size(fields: Sequence[Field]) -> int:
    """In registers."""
    return sum(field.words for field in fields)


# --- pages of the image -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """Where the pages of one kind of group are: so many to a unit, unit after unit."""

    first_unit: int
    last_unit: int
    stride: int
    base: int = 0

    def place(self, number: int) -> tuple[int, int] | None:
        """Unit and address of a page; None: there is no more room."""
        per_unit = (ADDRESSES - self.base) // self.stride
        unit_id = self.first_unit + number // per_unit
        return (unit_id, self.base + number % per_unit * self.stride) if unit_id <= self.last_unit else None


REGIONS: Final = {
    "block": Region(2, 2, 2000, base=1000),
    "facility": Region(3, 3, 1000),
    "feed": Region(4, 4, 1000),
    "source": Region(5, 5, 1000),
    "rack": Region(6, 9, 500),  # 131 to a unit
    "node": Region(10, 109, 4000),  # 16 to a unit; room for 128 GPUs of 7 points
    "device": Region(110, 247, 2000),  # 32 to a unit; room for 499 numbers
}
HEADER: Final = (
    Field("quality", "u16", "the worst of its points", states=_QUALITIES),
    Field("age", "u16", "of the oldest value; 65535 none", unit="0.1 s"),
    Field("updates", "u16", "counts up with every update"),
    Field("points", "u16", "number of points on this page"),
)
HEADER_WORDS: Final = 4
TAIL_WORDS: Final = 2  # quality and age after each value


@dataclass(frozen=True)
class Record:
    """One point on a page; `at` is its offset."""

    place: int  # in the group
    at: int
    point: Point
    type: Type

    @property
    def words(self) -> int:
        return TEXT_WORDS if self.type == "text" else WORDS[self.type]


@dataclass(frozen=True)
class Page:
    """One group. `left_out`: how many of its points have no room."""

    group: Group
    unit_id: int
    first: int
    length: int
    records: tuple[Record, ...]
    left_out: int


def type_of(point: Point) -> Type:
    if point.text:
        return "text"
    return "u32" if point.states or point.bits else "f32"


def pages(groups: Sequence[Group]) -> Iterator[Page]:
    """A page for each group that has room, in the order of the catalogue."""
    numbers = dict.fromkeys(REGIONS, 0)
    for group in groups:
        region = REGIONS[group.kind]
        place = region.place(numbers[group.kind])
        numbers[group.kind] += 1
        if place is not None:
            records = tuple(_records(group.points, region.stride))
            yield Page(group, *place, region.stride, records, len(group.points) - len(records))


def _records(points: Sequence[Point], room: int) -> Iterator[Record]:
    at = HEADER_WORDS
    for place, point in enumerate(points):
        record = Record(place, at, point, type_of(point))
        at += record.words + TAIL_WORDS
        if at > room:
            return
        yield record


# --- the map, as it is published --------------------------------------------------------------------------


def native_registers(groups: Sequence[Group]) -> Iterator[Register]:
    """All of the native map, for these groups."""
    for first, fields, access in BLOCKS:
        yield from _listed(NATIVE_UNIT, first, fields, "rw" if access == "rw" else "r")
    for page in pages(groups):
        yield from _listed(page.unit_id, page.first, HEADER, "r", f"{page.group.path}: ")
        for record in page.records:
            yield from _of_record(page, record)


def _listed(
    unit_id: int, first: int, fields: Sequence[Field], access: Literal["r", "rw"], prefix: str = ""
) -> Iterator[Register]:
    at = first
    for field in fields:
        yield Register(
            unit_id=unit_id,
            address=at,
            words=field.words,
            type=field.type,
            name=prefix + field.name,
            unit=field.unit,
            access=access,
            functions=functions(access, field.words),
            lowest=field.lowest,
            highest=field.highest,
            states=field.states,
            description=field.description,
        )
        at += field.words


def _of_record(page: Page, record: Record) -> Iterator[Register]:
    point, path = record.point, f"{page.group.path}/{record.point.name}"
    at = page.first + record.at
    access: Literal["r", "rw"] = "rw" if is_writable(page, record) else "r"
    named = {**point.states, **{bit: f"bit {bit}: {text}" for bit, text in point.bits.items()}}
    yield Register(
        unit_id=page.unit_id,
        address=at,
        words=record.words,
        type=record.type,
        name=path,
        unit=point.unit,
        access=access,
        functions=functions(access, record.words),
        lowest=point.lowest,
        highest=point.highest,
        states=", ".join(text if point.bits else f"{number} {text}" for number, text in named.items()),
        description=point.title,
    )
    at += record.words
    yield _tail(page, at, f"{path} quality", states=_QUALITIES)
    yield _tail(page, at + 1, f"{path} age", unit="0.1 s", description="65535: none")


def _tail(
    page: Page, at: int, name: str, *, states: str = "", unit: str = "", description: str = ""
) -> Register:
    return Register(
        unit_id=page.unit_id,
        address=at,
        words=1,
        type="u16",
        name=name,
        states=states,
        unit=unit,
        description=description,
    )


def is_writable(page: Page, record: Record) -> bool:
    return page.group.kind == "device" and record.point.writable and record.type != "text"


def fingerprint(registers: Sequence[Register]) -> int:
    """32 bits that change with any address or meaning, and with nothing else."""
    told = json.dumps([asdict(register) for register in registers], sort_keys=True, separators=(",", ":"))
    return zlib.crc32(told.encode())
