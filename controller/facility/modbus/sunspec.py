"""The block as a SunSpec device: any SunSpec client can meter and limit it.

Models 1 (who we are), 213 (meter, floats: no scale factor to get wrong, and a NaN for what is not known),
702 (the rating, for what is 100 %), 704 (the limit) and 715 (heartbeats, LOCAL/REMOTE, alarm reset), chained
from address 40000. Layouts are the SunSpec Alliance's own JSON files, as pysunspec2 carries them.

The limit follows 704: enable, percent of the feed rating, and a timer after which the reversion values take
the place of both. Each change becomes a command with its expiry and its fallback, so the controller lets go
in time even if this server is dead. A timer of 0 does not end; but once `ControllerHb` has been counted up, a
limit without a timer ends when it stands still. What we cannot do is "not implemented" and cannot be written:
`WSet` asks for a power, and nobody can make a block of computers draw more than its work does.

Pure: registers in, a command out. Time is an argument.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any, Final, Literal

import msgspec

from controller.facility.modbus.registers import SUNSPEC_UNIT, Register, functions
from protocols.modbus.answer import ExceptionCode, Refusal
from protocols.sunspec import definition, lay_out, points_of

BASE: Final = 40_000
MARK: Final = (0x5375, 0x6E53)  # "SunS"
END: Final = (0xFFFF, 0)
METER: Final = 213
MODELS: Final = (1, METER, 702, 704, 715)

PERCENT_SF: Final = -2
PERCENT_MAX: Final = 10_000  # 100.00 %, as registers say it
MISSING_SENSOR: Final = 1 << 7  # of the meter's events
U16_MAX: Final = 0xFFFE  # 0xFFFF is "not implemented"
U32_NONE: Final = 0xFFFFFFFF
TIMER_MAX_S: Final = 31_536_000

# type -> struct code of one value, and what stands for "not implemented"
CODES: Final[Mapping[str, tuple[str, Any]]] = {
    "int16": ("h", -0x8000), "uint16": ("H", 0xFFFF), "enum16": ("H", 0xFFFF), "bitfield16": ("H", 0xFFFF),
    "sunssf": ("h", -0x8000), "pad": ("H", 0x8000), "int32": ("i", -0x80000000), "uint32": ("I", U32_NONE),
    "bitfield32": ("I", U32_NONE), "acc32": ("I", 0), "float32": ("f", math.nan),
}  # fmt: skip

METER_MODELS: Final = (201, 202, 203, 204, 211, 212, 213, 214, 701)  # a meter that is SunSpec itself
METER_ALIASES: Final = {
    "energy_imported_wh": ("energy_import_wh", "energy_wh"),
    "energy_exported_wh": ("energy_export_wh",),
    "voltage_line_to_line_v": ("voltage_ll_v",),
}

Name = tuple[int, str]  # model and point
Values = Mapping[Name, float | str | None]

# what may be written, from what to what
WRITABLE: Final[Mapping[Name, tuple[int, int]]] = {
    (704, "WMaxLimPctEna"): (0, 1),
    (704, "WMaxLimPct"): (0, PERCENT_MAX),
    (704, "WMaxLimPctRvrt"): (0, PERCENT_MAX),
    (704, "WMaxLimPctEnaRvrt"): (0, 1),
    (704, "WMaxLimPctRvrtTms"): (0, TIMER_MAX_S),
    (704, "WRmp"): (0, 100),
    (715, "ControllerHb"): (0, U32_NONE),
    (715, "AlarmReset"): (0, 1),
}
LIMITING: Final = frozenset(name for model, name in WRITABLE if model == 704)

NOTES: Final = {
    "WMaxLimPct": "100 % is the feed rating, as in model 702",
    "WMaxLimPctRvrtTms": "0: does not end; writing any point of the limit starts it anew",
    "WRmp": "0: the block's own ramp; used for changes in both directions",
    "WRmpRef": "always W_MAX",
    "W": "drawn power is positive",
    "WMax": "the feed rating",
    "DERHb": "stands still while the controller is not heard",
    "ControllerHb": "once counted up, a limit without a timer ends when this stands still",
    "LocRemCtl": "LOCAL (also when switched off): writes are refused with exception 4",
    "OpCtl": "not implemented: a block is started and stopped by those who run it",
}


@dataclass(frozen=True)
class Field:
    """One point of a model; `at` is its address."""

    model: int
    name: str
    at: int
    words: int
    type: str
    definition: Mapping[str, Any]

    @property
    def code(self) -> str:
        return f"{2 * self.words}s" if self.type == "string" else CODES[self.type][0]


@cache
def layout() -> tuple[Field, ...]:
    """All points of all models, in their order."""
    fields, at = [], BASE + len(MARK)
    for model in MODELS:
        group = definition(model)
        if group is None:
            raise LookupError(f"pysunspec2 has no model {model}: update it")
        for name, point in _points(group):
            words = int(point["size"])
            fields.append(Field(model, name, at, words, point["type"], point))
            at += words
    return tuple(fields)


def _points(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Points of a group, then those of its groups: as they lie on the wire. None of ours repeats."""
    for point in group["points"]:
        yield prefix + point["name"], point
    for inner in group.get("groups", ()):
        yield from _points(inner, f"{inner['name']}.")


@cache
def lengths() -> Mapping[int, int]:
    """Registers of each model behind its header."""
    return {model: sum(f.words for f in layout() if f.model == model) - 2 for model in MODELS}


@cache
def _packer() -> struct.Struct:
    return struct.Struct(">" + "".join(field.code for field in layout()))


@cache
def meter_names() -> Mapping[str, tuple[str, ...]]:
    """For each measurement of the meter's model, what profiles call it: the first that is there is shown."""
    places, _ = lay_out(definition(METER) or {}, lengths()[METER])
    plain = {key: point.name.lstrip("_") for key, point in points_of(METER, "", 0, places).items()}
    return {
        key: (name, *METER_ALIASES.get(name, ()), *(f"m{model}_{name}" for model in METER_MODELS))
        for key, name in plain.items()
        if key != "Evt"
    }


def encode(values: Values) -> tuple[int, ...]:
    """All registers from `BASE`. What is not in `values`, or None there, is not implemented."""
    raw = [_raw(field, values.get((field.model, field.name))) for field in layout()]
    body = _packer().pack(*raw)
    return (*MARK, *struct.unpack(f">{len(body) // 2}H", body), *END)


def _raw(field: Field, value: float | str | None) -> Any:
    if field.name in ("ID", "L"):
        return field.model if field.name == "ID" else lengths()[field.model]
    if field.type == "string":
        return str(value or "").encode("ascii", "replace")
    code, missing = CODES[field.type]
    if value is None:
        return missing
    return value if code == "f" else round(float(value))


# --- the limit --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a write asks of the block."""

    verb: Literal["set_power_limit", "release", "reset", "heartbeat"]
    arguments: Mapping[str, float | bool | str | None]


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as the controller tells it in the image; `over`: only `then_w` is left of it."""

    writer: str
    limit_w: float
    then_w: float | None = None
    remaining_s: float | None = None
    heartbeat_timeout_s: float | None = None
    ramp_w_per_s: float | None = None
    over: bool = False


@dataclass(frozen=True, kw_only=True)
class Controls:
    """The registers that can be written, as they stand, and when the limit ends."""

    enabled: int = 0
    percent: int = PERCENT_MAX  # in hundredths, as the next one
    revert_percent: int = PERCENT_MAX
    revert_enabled: int = 0
    timer_s: int = 0
    ramp_percent_per_s: int = 0
    beat: int = 0
    beat_at_s: float | None = None  # when it changed last; None: never
    ends_at_s: float | None = None

    def values(self, now_s: float) -> Values:
        left_s = 0.0 if self.ends_at_s is None else max(0.0, self.ends_at_s - now_s)
        return {
            (704, "WMaxLimPctEna"): self.enabled,
            (704, "WMaxLimPct"): self.percent,
            (704, "WMaxLimPctRvrt"): self.revert_percent,
            (704, "WMaxLimPctEnaRvrt"): self.revert_enabled,
            (704, "WMaxLimPctRvrtTms"): self.timer_s,
            (704, "WMaxLimPctRvrtRem"): math.ceil(left_s),
            (704, "WRmp"): self.ramp_percent_per_s,
            (704, "WRmpRef"): 1,
            (704, "WMaxLimPct_SF"): PERCENT_SF,
            (715, "ControllerHb"): self.beat,
            (715, "AlarmReset"): 0,
        }

    def limit_w(self, rating_w: float) -> float:
        return rating_w * self.percent / PERCENT_MAX

    def after(self, now_s: float, beat_timeout_s: float) -> "Controls":
        """As they stand once time has passed: reverted, if the limit has ended."""
        timed = self.ends_at_s is not None and now_s >= self.ends_at_s
        silent = self.is_watched and now_s - (self.beat_at_s or 0.0) > beat_timeout_s
        if not self.enabled or not (timed or silent):
            return self
        percent = self.revert_percent if self.revert_enabled else self.percent
        beat_at_s = None if silent else self.beat_at_s  # watched anew once it moves again
        return replace(
            self, enabled=self.revert_enabled, percent=percent, ends_at_s=None, beat_at_s=beat_at_s
        )

    def taken_up(self, slot: Slot | None, rating_w: float, now_s: float) -> "Controls":
        """These settings, as last known, with what the controller says still holds; None: nothing does."""
        if slot is None:
            return replace(self, enabled=0, beat_at_s=None, ends_at_s=None)
        is_watched = slot.heartbeat_timeout_s is not None
        left_s = slot.remaining_s
        timer_s = 0 if is_watched else max(self.timer_s, math.ceil(left_s or 0.0))
        runs = timer_s > 0 and not slot.over
        ramp_percent = 0 if slot.ramp_w_per_s is None else max(1, round(100.0 * slot.ramp_w_per_s / rating_w))
        limit = _percent(slot.limit_w, rating_w)
        revert = self.revert_percent if slot.then_w is None else _percent(slot.then_w, rating_w)
        return replace(
            self,
            enabled=1,
            percent=revert if slot.over else limit,
            revert_percent=revert,
            revert_enabled=int(slot.then_w is not None),
            timer_s=timer_s,
            ramp_percent_per_s=ramp_percent,
            beat_at_s=now_s if is_watched and not slot.over else None,
            ends_at_s=now_s + (timer_s if left_s is None else left_s) if runs else None,
        )

    @property
    def is_watched(self) -> bool:
        """Whether the limit lives on the client's heartbeat."""
        return self.beat_at_s is not None and self.timer_s == 0

    def written(self, changes: Mapping[str, int], now_s: float) -> "Controls":
        """With these points written. The timer starts anew with any point of the limit."""
        beats = "ControllerHb" in changes and changes["ControllerHb"] != self.beat
        to = replace(
            self,
            enabled=changes.get("WMaxLimPctEna", self.enabled),
            percent=changes.get("WMaxLimPct", self.percent),
            revert_percent=changes.get("WMaxLimPctRvrt", self.revert_percent),
            revert_enabled=changes.get("WMaxLimPctEnaRvrt", self.revert_enabled),
            timer_s=changes.get("WMaxLimPctRvrtTms", self.timer_s),
            ramp_percent_per_s=changes.get("WRmp", self.ramp_percent_per_s),
            beat=changes.get("ControllerHb", self.beat),
            beat_at_s=now_s if beats else self.beat_at_s,
        )
        if changes.keys() & LIMITING:
            runs = to.enabled and to.timer_s
            to = replace(to, ends_at_s=now_s + to.timer_s if runs else None)
        return to

    def asks(
        self, before: "Controls", changes: Mapping[str, int], rating_w: float, beat_timeout_s: float
    ) -> Iterator[Asked]:
        """What to have done for a write that led here from `before`."""
        if changes.get("AlarmReset"):
            yield Asked(verb="reset", arguments={})
        if changes.keys() & LIMITING:
            if self.enabled:
                yield self._limit(rating_w, beat_timeout_s)
            elif "WMaxLimPctEna" in changes:
                yield Asked(verb="release", arguments={})
        elif self.enabled and self.is_watched and self.beat_at_s != before.beat_at_s:
            first = before.beat_at_s is None  # from here on the limit lives on it, and has to say so
            yield self._limit(rating_w, beat_timeout_s) if first else Asked(verb="heartbeat", arguments={})

    def _limit(self, rating_w: float, beat_timeout_s: float) -> Asked:
        arguments: dict[str, float | bool | str | None] = {"limit_w": self.limit_w(rating_w)}
        if self.ramp_percent_per_s:
            arguments["ramp_w_per_s"] = rating_w * self.ramp_percent_per_s / 100.0
        if self.timer_s:
            arguments["valid_for_s"] = float(self.timer_s)
        if self.is_watched:
            arguments["heartbeat_timeout_s"] = beat_timeout_s
        if self.revert_enabled:
            arguments["then_w"] = rating_w * self.revert_percent / PERCENT_MAX
        return Asked(verb="set_power_limit", arguments=arguments)


def _percent(power_w: float, rating_w: float) -> int:
    return round(PERCENT_MAX * power_w / rating_w)


def changes_of(first: int, words: Sequence[int]) -> dict[str, int]:
    """Points that a write of these registers sets. Raises Refusal: only whole, writable points in range."""
    starts = {field.at: field for field in layout()}
    changes: dict[str, int] = {}
    at, end = first, first + len(words)
    while at < end:
        field = starts.get(at)
        limits = None if field is None else WRITABLE.get((field.model, field.name))
        if field is None or limits is None or at + field.words > end:
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        value = 0
        for word in words[at - first : at - first + field.words]:
            value = value << 16 | word
        if not limits[0] <= value <= limits[1]:
            raise Refusal(ExceptionCode.ILLEGAL_DATA_VALUE)
        changes[field.name] = value
        at += field.words
    return changes


# --- what it reads ----------------------------------------------------------------------------------------


def nameplate(*, block: str, version: str) -> Values:
    return {
        (1, "Mn"): "powerblock",
        (1, "Md"): "power block",
        (1, "Vr"): version,
        (1, "SN"): block,
        (1, "DA"): SUNSPEC_UNIT,
    }


def capacity(rating_w: float) -> Values:
    """The rating, with the scale that its size needs."""
    power_sf = next(sf for sf in count() if rating_w / 10**sf <= U16_MAX)
    rating = math.floor(rating_w / 10**power_sf)
    return {
        (702, "WMaxRtg"): rating,
        (702, "WMax"): rating,
        (702, "W_SF"): power_sf,
    }


def registers() -> Iterator[Register]:
    """This device in the published map."""
    yield _edge(BASE, "SunS", "the mark that a SunSpec client looks for")
    for field in layout():
        yield _register(field)
    yield _edge(BASE + len(MARK) + sum(field.words for field in layout()), "end", "end of the chain")


def _edge(address: int, name: str, description: str) -> Register:
    return Register(
        unit_id=SUNSPEC_UNIT,
        address=address,
        words=2,
        type="uint16",
        name=name,
        functions="3",
        description=description,
    )


def _register(field: Field) -> Register:
    said, limits = field.definition, WRITABLE.get((field.model, field.name))
    lowest, highest = limits or (None, None)
    access: Literal["r", "rw"] = "r" if limits is None else "rw"
    return Register(
        unit_id=SUNSPEC_UNIT,
        address=field.at,
        words=field.words,
        type=field.type,
        name=f"{field.model}.{field.name}",
        unit=said.get("units", ""),
        access=access,
        functions=functions(access, field.words, reads="3"),
        lowest=lowest,
        highest=highest,
        scale=f"10^{said['sf']}" if "sf" in said else "1",
        states=", ".join(f"{one['value']} {one['name']}" for one in said.get("symbols", ())),
        description="; ".join(filter(None, (said.get("label"), NOTES.get(field.name)))),
    )
