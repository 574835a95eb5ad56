"""What the facility's side may say: Modbus requests, frames on the image socket, commands, the BMS bus.

Whoever has no right moves nothing, whatever the bytes; whoever has one moves no more than is allowed.
"""

import asyncio
import atexit
import math
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from controller.commands import CommandDesk
from controller.core.model import ShedLevel
from controller.facility.config import BmsRequestConfig
from controller.facility.dsx_bms.requests import STEP_S, Ask, Present
from controller.facility.modbus import sunspec as modbus_sunspec
from controller.facility.modbus.registers import REQUEST_AT
from controller.facility.modbus.server import ModbusFacility
from controller.image import wire
from controller.image.image import Image, MisfitError
from controller.image.model import Command, Outcome, Quality, Result, Role
from controller.site.facility import SLOTS_MAX, Facility
from controller.verbs import VERBS
from protocols.bms import BmsError, read_value
from protocols.modbus.answer import Peer, answer
from protocols.modbus.server import Access
from protocols.reading import DeviceError, Written
from tests.controller.facility.modbus_site import GROUPS, Site
from tests.controller.facility.modbus_site import config as modbus_config
from tests.core.blocks import settings
from tests.fuzz.field import check_words, drive
from tests.fuzz.tape import Tape

# -- Modbus server ------------------------------------------------------------------------------------------------

ADDRESSES: Final = ("127.0.0.1", "10.0.0.9", "192.168.1.5", "::1")  # the first alone is on the write list
ROLES: Final = (None, "", "observe", "operate", "engineer", "Engineer", "stranger")
FUNCTIONS: Final = (1, 2, 3, 4, 5, 6, 15, 16, 22, 23, 43)
WORDS: Final = (b"\0\0", b"\0\1", b"\0\2", b"\0\5", b"\x13\x88", b"\xff\xff", b"\x80\0", b"\x7f\xc0")
PLACES: Final = (
    40_000, 0, 100, 112, 0xFFFF, REQUEST_AT,
    *(field.at for field in modbus_sunspec.layout() if (field.model, field.name) in modbus_sunspec.WRITABLE),
)  # fmt: skip
REPLY_MAX_BYTES: Final = 253


@lru_cache(maxsize=1)
def _served() -> tuple[Site, ModbusFacility, Access]:
    site = Site()
    facility = ModbusFacility(
        modbus_config(write_allow=("127.0.0.1/32",)), site, version="1", now_s=lambda: 1.0
    )
    return site, facility, facility.servers[0]._access


def modbus_server(payload: bytes) -> int:
    """Every request is answered in form; commands come of those alone who may write. Returns how many came."""
    site, facility, access = _served()
    tape, count = Tape(payload), 0
    site.commands.clear()
    address, role = tape.pick(ADDRESSES), tape.pick(ROLES)
    may_write = access.may_write(address, role)
    assert not may_write or (address == "127.0.0.1" and role in (None, "operate", "engineer"))
    peer = Peer(address=address, name=address, role=role or "", may_write=may_write)
    while not tape.is_over:
        count += 1
        pdu, unit = _request(tape), tape.pick((1, 1, 2, 2, 6, 110, tape.byte()))
        reply = drive(answer(pdu, unit, facility, peer))
        assert 2 <= len(reply) <= REPLY_MAX_BYTES, f"{pdu.hex(' ')} is answered with {len(reply)} bytes"
        assert reply[0] & 0x7F == pdu[0] & 0x7F, f"{pdu.hex(' ')} is answered with {reply.hex(' ')}"
    assert may_write or not site.commands, f"{peer} commanded {site.asked}"
    most = Role.ENGINEER if role == "engineer" else Role.OPERATE
    assert all(command.role <= most for command in site.commands), f"{peer} commanded {site.commands}"
    for master in facility._masters.values():
        master.is_busy = False  # nobody is here who decides
    return count


def _request(tape: Tape) -> bytes:
    if tape.byte() % 4 == 0:
        return bytes((tape.byte(),)) + tape.bytes(tape.byte() % 32)
    function = tape.pick(FUNCTIONS)
    first = (tape.pick(PLACES) + (0, 0, 1, tape.byte())[tape.byte() % 4] & 0xFFFF).to_bytes(2, "big")
    count = tape.pick((1, 2, 3, 13, 125, tape.byte()))
    match function:
        case 5 | 6:
            return bytes((function,)) + first + tape.pick(WORDS)
        case 22:
            return bytes((function,)) + first + tape.bytes(4)
        case 15:
            size = (count + 7) // 8
            return bytes((function,)) + first + count.to_bytes(2, "big") + bytes((size,)) + tape.bytes(size)
        case 16:
            return bytes((function,)) + first + count.to_bytes(2, "big") + _counted(tape, count)
        case 23:
            return (
                bytes((function,))
                + first
                + b"\0\2"
                + first
                + count.to_bytes(2, "big")
                + _counted(tape, count)
            )
        case 43:
            return bytes((function, 14, tape.byte() % 6, tape.byte()))
    return bytes((function,)) + first + count.to_bytes(2, "big")


def _counted(tape: Tape, count: int) -> bytes:
    return bytes((2 * count & 0xFF,)) + b"".join(tape.pick(WORDS) for _ in range(count))


# -- image socket -------------------------------------------------------------------------------------------------


def image(payload: bytes) -> None:
    """Bytes of a stranger on the socket: frames, or a refusal; and what a frame says is carried out or refused."""
    _desk().begin_anew()
    reader = _Reader(payload)
    try:
        drive(_heard(reader))
    except wire.WireError as error:
        check_words(error)
    reader = _Reader(payload)
    mirror = Image(GROUPS)
    try:
        drive(_mirrored(reader, mirror))
    except (wire.WireError, MisfitError) as error:
        check_words(error)
    for cells in mirror.groups:
        for _, cell in cells.cells(1e9):
            assert cell.quality is not Quality.GOOD or cell.value is not None


class _Reader(asyncio.StreamReader):
    """All that will ever come."""

    def __init__(self, payload: bytes) -> None:
        self._payload, self._at = payload, 0

    async def readexactly(self, n: int) -> bytes:
        piece = self._payload[self._at : self._at + n]
        self._at += n
        if len(piece) < n:
            raise asyncio.IncompleteReadError(piece, n)
        return piece


async def _heard(reader: asyncio.StreamReader) -> None:
    async for body in wire.bodies(reader, wire.COMMAND_MAX_BYTES):
        said = wire.command(body)
        await _carried_out(said)


async def _mirrored(reader: asyncio.StreamReader, mirror: Image) -> None:
    async for body in wire.bodies(reader, wire.FRAME_MAX_BYTES):
        frame = wire.frame(body)
        match frame:
            case wire.Update():
                mirror.take(frame)
            case wire.Regroup():
                mirror.regroup(frame.group, frame.content)
            case wire.Catalogue():
                mirror.learn(frame.groups)


# -- commands -----------------------------------------------------------------------------------------------------


class _Desk:
    """A command desk over a facility, a device that refuses what it does not have, and alarms that take orders."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="powerblock-fuzz-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.facility = Facility(4000.0)
        self.settings = settings(shed_levels=(ShedLevel("gentle", 4500.0), ShedLevel("deep", 4200.0)))
        self.moved = self.written = self.ordered = 0
        self.desk = CommandDesk(
            Path(folder),
            write=self._write,
            withdraw=self._withdraw,
            alarms=self,
            facility=self.facility,
            settings=self.settings,
            on_moved=self._move,
            clock=(lambda: 10.0, lambda: 1000.0),
        )

    def begin_anew(self) -> None:
        """An input must do the same each time."""
        self.facility._reopen({"mode": "remote", "since_utc_s": 0.0, "slots": ()})

    @property
    def state(self) -> object:
        return self.moved, self.written, self.ordered, msgspec.json.encode(self.facility.kept())

    async def _withdraw(self, _device: str, _wait_max_s: float) -> None:
        self.written += 1

    def _move(self) -> None:
        self.moved += 1

    async def _write(self, device: str, point: str, value: float, _wait_max_s: float) -> Written:
        assert math.isfinite(value)
        if (device, point) != ("cdu", "flow"):
            raise DeviceError(f"no point {point!r}")
        self.written += 1
        return Written(value, 20.0, True)

    def command(self, verb: str, by: str, **arguments: Any) -> Outcome:
        assert verb in VERBS
        self.ordered += 1
        return Outcome(result=Result.ACCEPTED)


@lru_cache(maxsize=1)
def _desk() -> _Desk:
    return _Desk()


async def _carried_out(said: Command) -> None:
    """What must be true of any command and its outcome."""
    desk = _desk()
    before, mode = desk.state, desk.facility.mode
    outcome = await desk.desk.carry_out(said)
    msgspec.msgpack.encode(outcome)
    if outcome.result is Result.REJECTED:
        assert outcome.reason, "refused without a reason"
        assert desk.state == before, f"refused, and yet it moved something: {said}"
        return
    verb = VERBS[said.verb]
    assert said.role >= verb.role, f"{said.role} did {said.verb}"
    assert mode == "remote" or said.local or not verb.moves, f"{said.verb} in {mode}"
    most_w = desk.settings.feed_rating_w
    assert len(desk.facility.slots) <= SLOTS_MAX
    for slot in desk.facility.slots:
        for limit_w in (slot.limit_w, slot.limit_w if slot.then_w is None else slot.then_w):
            assert desk.facility.least_w <= limit_w <= most_w, f"a limit that the block cannot keep: {slot}"
        assert slot.ends_utc_s > 1000.0, f"a limit that was over before it began: {slot}"
    Facility(4000.0, msgspec.json.decode(msgspec.json.encode(desk.facility.kept())))


def command(payload: bytes) -> int:
    """Commands with any arguments, in JSON, one after the other."""
    _desk().begin_anew()
    try:
        said = msgspec.json.decode(payload, type=Command | tuple[Command, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1
    commands = said if isinstance(said, tuple) else (said,)
    for one in commands:
        drive(_carried_out(one))
    return len(commands)


# -- BMS bus ------------------------------------------------------------------------------------------------------

REQUESTS: Final = {
    "temperature": BmsRequestConfig(
        point="LiquidTemperatureSpRequest",
        at="devices/cdu-1",
        writes="devices/cdu-1/supply_target_c",
        lowest=20.0,
        highest=40.0,
        rate_per_s=0.5,
    ),
    "isolation": BmsRequestConfig(
        point="RackLiquidIsolationRequest", at="racks/r1", writes="devices/v/closed", lowest=0.0, highest=1.0
    ),
}
PRESENT: Final = (None, 18.0, 20.0, 30.0, 45.0)


def bms(payload: bytes) -> None:
    """A reading of an integration: refused, or held within its limits and its rate, and given back."""
    try:
        said = read_value(payload)
    except BmsError as error:
        check_words(error)
        return
    for config in REQUESTS.values():
        for present in PRESENT:
            _follow(Ask(config, 0.0), said, present)


def _follow(ask: Ask, said: Any, present: float | None) -> None:
    config, at_s, shown = ask.config, 0.0, present
    ask.hear(said)
    for step in range(80):
        at_s += STEP_S
        if step == 40:
            ask.silence()
        value = ask.next_value(Present(shown, at_s), at_s)
        if value is None:
            continue
        assert present is not None, "written without a way back"
        assert config.lowest is not None
        assert config.highest is not None
        lowest, highest = min(config.lowest, present), max(config.highest, present)
        assert lowest <= value <= highest, (
            f"{value} was written, {config.lowest} to {config.highest} is allowed"
        )
        if config.rate_per_s is not None and shown is not None:
            assert abs(value - shown) <= config.rate_per_s * STEP_S + 1e-9, (
                f"from {shown} to {value} in a second"
            )
        ask.writes(value, Present(shown, at_s))
        ask.wrote(value, at_s)
        shown = value
    if present is not None and config.lowest <= present <= config.highest:
        assert shown is not None
        assert math.isclose(shown, present), f"from {present} and, taken back, to {shown}"
