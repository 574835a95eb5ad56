"""What field devices and the people who describe them may say: SunSpec chains, OPC UA values, YAML files."""

import contextlib
import math
import tempfile
import uuid
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from asyncua import ua

from controller.config import ConfigError, load_config
from protocols.modbus.questions import RefusedError, SilentError
from protocols.modbus.reads import Read, plan_reads
from protocols.opcua.values import judge, source_stamp_s
from protocols.profile import Point, Profile, ProfileError, complaints, load_profile
from protocols.reading import DeviceError
from protocols.sunspec import discover
from protocols.sunspec.chain import BASES, MARKER
from tests.fuzz.tape import Tape

FAULT_MAX_CHARS: Final = 200_000  # a line for each of the errors that a file of this size has room for
READS_MAX: Final = 1000  # a chain of 100 models, two reads each, and their long heads in pieces


def drive(life: Coroutine[Any, Any, Any]) -> Any:
    """The outcome of a coroutine that waits for nothing."""
    try:
        life.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def check_words(refusal: Exception) -> None:
    text = str(refusal)
    assert 0 < len(text) <= FAULT_MAX_CHARS, f"a refusal of {len(text)} characters"


# -- SunSpec --------------------------------------------------------------------------------------------------

LENGTHS: Final = {
    1: 66, 103: 50, 120: 26, 122: 44, 123: 24, 124: 24, 203: 105, 213: 124, 701: 153, 702: 50, 703: 17, 704: 65,
    705: 64, 712: 24, 713: 7, 714: 43, 715: 7, 802: 62, 803: 90, 64_999: 5,
}  # fmt: skip


class Chain:
    """A device that says of itself whatever the tape says."""

    def __init__(self, tape: Tape) -> None:
        self._tape, self._reads = tape, 0
        self._memory: dict[int, int] = {}
        address = self._base = tape.pick(BASES)
        self._put(address, MARKER if tape.byte() else (tape.word(), tape.word()))
        address += len(MARKER)
        for _ in range(tape.byte() % 24):
            model_id = tape.pick(tuple(LENGTHS)) if tape.byte() else tape.word()
            length = LENGTHS.get(model_id, 9) if tape.byte() % 4 else tape.word()
            self._put(address, (model_id, length))
            address += 2 + length
        self._put(address, (0xFFFF if tape.byte() % 8 else tape.word(), 0))

    def _put(self, address: int, words: tuple[int, ...]) -> None:
        self._memory.update(enumerate(words, start=address))

    async def read(self, address: int, count: int) -> list[int]:
        self._reads += 1
        assert self._reads <= READS_MAX, "a device kept us reading"
        assert 1 <= count <= 125, f"a read of {count} registers"
        assert 0 <= address <= address + count <= 0x10000, f"a read of {count} from {address}"
        move = self._tape.byte()
        if move == 1:
            raise RefusedError("illegal data address", 2)
        if move == 2:
            raise SilentError("no answer")
        if move == 3:
            return [0] * (self._tape.byte() % 130)
        return [self._memory.get(place, self._word()) for place in range(address, address + count)]

    def _word(self) -> int:
        return self._tape.word() if self._tape.byte() % 3 else 0x8000


def sunspec(payload: bytes) -> None:
    """A profile that would pass as a file, or a sentence; and what it reads is finite."""
    tape = Tape(payload)
    try:
        profile = drive(discover(Chain(tape).read, name="stranger"))
    except (ProfileError, DeviceError) as error:
        check_words(error)
        return
    check_profile(profile)
    read_all(profile, tape)


def check_profile(profile: Profile) -> None:
    wrong = [text for point in profile.points.values() for text in complaints.of_point(point)]
    wrong += complaints.of_profile(profile)
    assert not wrong, wrong


def read_all(profile: Profile, tape: Tape) -> None:
    """Whatever the registers hold, values are plausible or missing."""
    if profile.protocol != "modbus":
        return
    points = [point for point in profile.points.values() if point.readable]
    known: dict[str, Any] = {}
    for span in plan_reads(points, profile):
        read = Read(span)
        content = tape.bytes(read.question.size - 2)
        values = read.values(read.question.head + content, known)
        known.update(values)
        for name, value in values.items():
            check_value(profile.points[name], value)


def check_value(point: Point, value: float | str | None) -> None:
    if value is None:
        return
    if isinstance(value, str):
        assert value.isprintable(), f"{point.name}: {value!r} would spoil a screen"
        return
    assert math.isfinite(value), f"{point.name}: {value}"
    assert point.lowest <= value <= point.highest, f"{point.name}: {value} is implausible"


# -- OPC UA ---------------------------------------------------------------------------------------------------

POINTS: Final = (
    Point(name="power_w", unit="W", node="i=1", lowest=-1e6, highest=1e6),
    Point(name="supply_c", unit="degC", node="i=2", scale=0.1, offset=-40.0, lowest=-40.0, highest=120.0),
    Point(name="state", unit="enum", node="i=3", enum={0: "off", 1: "on"}),
    Point(name="running", unit="bool", node="i=4"),
    Point(name="serial", unit="text", node="i=5"),
    Point(name="energy_wh", unit="Wh", node="i=6"),
)
FIRST, LAST = (end.replace(tzinfo=None) for end in (datetime.min, datetime.max))  # noqa: DTZ901
RAW: Final = (
    0, 1, -1, 2**63, 10**400, True, 0.0, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf, 0.5, None, "", "on",
    "\0", "\x1b[2J", "x" * 100_000, b"", b"\xff", [1.0], [], [[]], FIRST, LAST, datetime.now(UTC),
    ua.LocalizedText("on"), ua.LocalizedText(None), ua.NodeId(1, 1), ua.QualifiedName("x"), ua.DataValue(),
    uuid.UUID(int=0), object(),
)  # fmt: skip
CODES: Final = (
    None, 0, 0x40000000, 0x40900000, 0x80000000, 0x80340000, 0xC0000000, 0xFFFFFFFF, 0x00001234, 0x00960000,
)  # fmt: skip
STAMPS: Final = (
    None, FIRST, LAST, FIRST.replace(year=1601), datetime(2026, 11, 21, tzinfo=UTC), "now", 0,
)  # fmt: skip


def opcua(payload: bytes) -> int:
    """A DataValue is a plausible value, or none with the reason."""
    tape, count = Tape(payload), 0
    while not tape.is_over:
        count += 1
        point, code, raw = tape.pick(POINTS), tape.pick(CODES), tape.pick(RAW)
        if raw == 0 and isinstance(raw, int):
            raw = tape.word() - 0x8000
        answer = ua.DataValue(
            Value=None if tape.byte() == 1 else _variant(raw),
            StatusCode=None if code is None else ua.StatusCode(code),
            SourceTimestamp=tape.pick(STAMPS),
            ServerTimestamp=tape.pick(STAMPS),
        )
        value, why = judge(point, answer)
        assert (value is None) == bool(why), f"{value!r}, {why!r}"
        assert len(why) < 1000, "a sentence of a stranger's length"
        assert code is None or not code >> 30 or value is None, f"{value!r} came with status {code:#x}"
        check_value(point, value)
        assert isinstance(value, str) == (point.unit == "text" and value is not None)
        stamp_s = source_stamp_s(answer)
        assert stamp_s is None or math.isfinite(stamp_s), f"a time stamp of {stamp_s}"
    return count


def _variant(raw: Any) -> ua.Variant:
    variant = ua.Variant(0.0)
    object.__setattr__(variant, "Value", raw)  # a peer's stack need not have asked whether it fits
    return variant


# -- files ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _written(payload: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(suffix=".yaml", prefix="fuzz-") as file:
        file.write(payload)
        file.flush()
        yield Path(file.name)


def profile(payload: bytes) -> None:
    """A profile file: sound, or refused with its errors."""
    with _written(payload) as path:
        try:
            made = load_profile(path)
        except ProfileError as error:
            check_words(error)
            return
    check_profile(made)
    read_all(made, Tape(payload))


def config(payload: bytes) -> None:
    """The file of a block or a gateway: the same."""
    with _written(payload) as path:
        try:
            load_config(path)
        except ConfigError as error:
            check_words(error)
