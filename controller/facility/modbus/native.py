"""The native map at work: image to registers, and the handshake of the request block.

A master fills the request block and counts up `SP_Seq`; the write is acknowledged at once, and when the
block has decided, `SP_Ack` carries that number beside the result and its reason. So an unchanged setpoint, a
lost reply and a dead link are three different things, and a repeated write does nothing twice.

Every master (certificate, or address) has a request and an answer of its own behind the same registers. Two
SCADA servers cannot mix their requests up or take each other's acknowledgement for theirs. What a request
asks is read at the moment its number moves: what the master writes next does not change it.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from controller.facility.modbus.registers import (
    ACTIONS,
    ANSWER,
    CODES,
    MODES,
    NONE_U16,
    NONE_U32,
    REQUEST,
    REQUEST_AT,
    SHED_AT,
    TAIL_WORDS,
    TEXT_WORDS,
    Field,
    Page,
    Type,
    size,
)
from controller.image.image import GroupCells
from controller.image.model import Cell, Outcome, Quality, Result, Value
from protocols.modbus.answer import ExceptionCode, Refusal

F32_MAX: Final = 3.4e38
AGE_STEPS_PER_S: Final = 10
OPERATOR: Final = 8

NO_REASON, SENSELESS, REFUSED = 0, 1, 2  # keys of registers.REFUSALS

Arguments = Mapping[str, float | bool | str | None]
Said = Mapping[str, Any]


class SenselessError(ValueError):
    """A request that cannot be meant; the text says what to correct."""


# --- fixed blocks -----------------------------------------------------------------------------------------


def encode(fields: Sequence[Field], values: Mapping[str, Value]) -> list[int]:
    """Registers of a fixed block; what is missing or None is marked as such."""
    raw = [raw_of(one.type, values.get(one.name)) for one in fields]
    return _words(struct.pack(">" + "".join(one.code for one in fields), *raw))


def decode(fields: Sequence[Field], words: Sequence[int]) -> dict[str, Any]:
    packed = struct.pack(f">{len(words)}H", *words)
    values = struct.unpack(">" + "".join(one.code for one in fields), packed)
    return {one.name: value for one, value in zip(fields, values, strict=True)}


def raw_of(kind: Type, value: Value) -> Any:
    """What struct packs for a value: a mark where there is none, or where it does not fit."""
    if kind == "text":
        return str(value or "").encode("ascii", "replace")
    number = math.nan if value is None or isinstance(value, str) else float(value)
    if kind == "f32":
        return number if abs(number) <= F32_MAX else math.nan
    none = NONE_U16 if kind == "u16" else NONE_U32
    return round(number) if 0 <= number < none else none


def number(kind: Type, words: Sequence[int]) -> float:
    """The number that these registers say."""
    return float(struct.unpack(f">{CODES[kind]}", struct.pack(f">{len(words)}H", *words))[0])


def _words(packed: bytes) -> list[int]:
    return list(struct.unpack(f">{len(packed) // 2}H", packed))


# --- pages ------------------------------------------------------------------------------------------------


def page_words(page: Page, cells: GroupCells, now_s: float, *, is_heard: bool) -> list[int]:
    """A whole page as of now, without the room behind its last point."""
    layout, raw = [">4H"], []
    worst, oldest_s = Quality.GOOD, 0.0
    for record in page.records:
        cell = as_heard(cells.cell(record.place, now_s), is_heard=is_heard)
        worst, oldest_s = min(worst, cell.quality), max(oldest_s, cell.age_s)
        layout.append(f"{2 * TEXT_WORDS}s" if record.type == "text" else CODES[record.type])
        layout.append(f"{TAIL_WORDS}H")
        raw += [raw_of(record.type, cell.value), int(cell.quality), age_of(cell)]
    oldest = NONE_U16 if cells.revision == 0 else _steps(oldest_s)
    header = [int(worst if page.records else Quality.BAD), oldest, cells.revision & 0xFFFF, len(page.records)]
    return _words(struct.pack("".join(layout), *header, *raw))


def as_heard(cell: Cell, *, is_heard: bool) -> Cell:
    """While the controller is not heard there are no values, however young the last ones are."""
    return cell if is_heard else msgspec.structs.replace(cell, value=None, quality=Quality.BAD)


def age_of(cell: Cell) -> int:
    """In tenths of a second; `NONE_U16`: there never was a value."""
    return _steps(cell.age_s) if cell.received_at_utc_s > 0.0 else NONE_U16


def _steps(age_s: float) -> int:
    return min(NONE_U16 - 1, round(age_s * AGE_STEPS_PER_S))


# --- the handshake ----------------------------------------------------------------------------------------

REQUEST_WORDS: Final = size(REQUEST)
BEAT_AT: Final = size(REQUEST[: [one.name for one in REQUEST].index("SP_Heartbeat")])
AT_START: Final = encode(REQUEST, dict.fromkeys((one.name for one in REQUEST if one.type != "f32"), 0.0))


@dataclass
class Handshake:
    """Request and answer of one master; `beat` is the heartbeat that the controller has taken."""

    request: Annotated[list[int], msgspec.Meta(min_length=REQUEST_WORDS, max_length=REQUEST_WORDS)] = field(
        default_factory=lambda: list(AT_START)
    )
    ack: int = 0
    result: Result = Result.NONE
    code: int = NO_REASON
    reason: str = ""
    set_w: float | None = None
    beat: int = 0
    is_busy: bool = False

    @property
    def said(self) -> Said:
        return decode(REQUEST, self.request)

    @property
    def meant(self) -> Sequence[int]:
        """The request without its heartbeat."""
        return self.request[:BEAT_AT] + self.request[BEAT_AT + 1 :]

    def write(self, first: int, words: Sequence[int]) -> tuple[Said | None, bool]:
        """Returns what is to be carried out, None: nothing; and whether the heartbeat is to be passed on.

        Raises Refusal: only whole fields are written, and nothing new while the last request is in hand.
        """
        at = REQUEST_AT
        edges = {at} | {at := at + one.words for one in REQUEST}
        if first not in edges or first + len(words) not in edges:
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        offset = first - REQUEST_AT
        request = [*self.request[:offset], *words, *self.request[offset + len(words) :]]
        said = decode(REQUEST, request)
        is_new = said["SP_Seq"] != self.said["SP_Seq"]
        if is_new and self.is_busy:
            raise Refusal(ExceptionCode.SERVER_DEVICE_BUSY)
        self.request = request
        return said if is_new else None, said["SP_Heartbeat"] not in (0, self.beat)

    def decided(self, seq: int, outcome: Outcome, code: int = NO_REASON) -> None:
        self.is_busy = False
        self.ack, self.result, self.reason = seq, outcome.result, outcome.reason
        self.code = code or (REFUSED if outcome.result is Result.REJECTED else NO_REASON)

    def answer(self, shared: Mapping[str, Value]) -> list[int]:
        """`shared`: what all masters see alike."""
        own: dict[str, Value] = {
            "SP_Ack": float(self.ack),
            "SP_Result": float(self.result),
            "SP_ReasonCode": float(self.code),
            "SP_Busy": float(self.is_busy),
            "SP_Set_W": self.set_w,
            "SP_Reason": self.reason,
        }
        return encode(ANSWER, {**shared, **own})


def asked(said: Said, heartbeat_timeout_s: float) -> tuple[str, Arguments] | None:
    """Verb and arguments of a request; None: it asks for nothing. Raises SenselessError."""
    if said["SP_Request"] == 0:
        return None
    if said["SP_Request"] not in ACTIONS:
        raise SenselessError(f"SP_Request {said['SP_Request']} is none of 0 to {max(ACTIONS)}")
    verb = ACTIONS[said["SP_Request"]]
    return verb, ARGUMENTS[verb](said, heartbeat_timeout_s)


def _limit(said: Said, heartbeat_timeout_s: float) -> Arguments:
    arguments = dict(_priority(said, heartbeat_timeout_s))
    arguments["limit_w"] = _number(said, "SP_Limit_W")
    if said["SP_Ramp_W_per_s"] > 0.0:
        arguments["ramp_w_per_s"] = _number(said, "SP_Ramp_W_per_s")
    if said["SP_ValidFor_s"]:
        arguments["valid_for_s"] = float(said["SP_ValidFor_s"])
    elif said["SP_Heartbeat"]:
        arguments["heartbeat_timeout_s"] = heartbeat_timeout_s
    if said["SP_Then_W"] >= 0.0:
        arguments["then_w"] = _number(said, "SP_Then_W")
    return arguments


def _number(said: Said, name: str) -> float:
    value = float(said[name])
    if not 0.0 <= value <= F32_MAX:
        raise SenselessError(f"{name} is {value:g}; write a float32, high word first, of 0 or more")
    return value


def _priority(said: Said, _heartbeat_timeout_s: float) -> Arguments:
    return {"priority": said["SP_Priority"] or OPERATOR}


def _mode(said: Said, _heartbeat_timeout_s: float) -> Arguments:
    if said["SP_Mode"] not in MODES:
        raise SenselessError(f"SP_Mode {said['SP_Mode']} is none of 0 to {max(MODES)}")
    return {"mode": MODES[said["SP_Mode"]]}


def _shed(said: Said, _heartbeat_timeout_s: float) -> Arguments:
    held: Arguments = {"valid_for_s": float(said["SP_ValidFor_s"])} if said["SP_ValidFor_s"] else {}
    return {"number": said["SP_Request"] - SHED_AT, **held}


def _nothing(_said: Said, _heartbeat_timeout_s: float) -> Arguments:
    return {}


ARGUMENTS: Final = {
    "set_power_limit": _limit,
    "release": _priority,
    "set_mode": _mode,
    "acknowledge": _nothing,
    "reset": _nothing,
    "shed": _shed,
    "end_shed": _nothing,
}
