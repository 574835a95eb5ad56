"""Frames between the controller and the facility server, over a Unix socket.

Each frame is its length (4 bytes, big endian) and a MessagePack array whose first element names its kind.
The controller begins with `Catalogue`, then tells `Update`s; `Regroup` replaces one group whose device has
turned out to be something else. `Pulse` comes at least once a second: a controller that hangs with an open
socket is as silent as one that is gone. Back come `Command`s, each answered by an `Outcome`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, TypeVar

import msgspec

from controller.image.model import AlarmView, Command, Group, Outcome, Value

VERSION: Final = 1
SOCKET_NAME: Final = "image.sock"  # in the run directory
FRAME_MAX_BYTES: Final = 64 * 1024 * 1024  # a catalogue of 100,000 points needs a third of it
COMMAND_MAX_BYTES: Final = 16 * 1024
HEAD_BYTES: Final = 4


class WireError(Exception):
    """What came is no frame: another program, or another version of this one."""


class Catalogue(msgspec.Struct, frozen=True, array_like=True, tag="catalogue"):
    version: int
    block: str
    epoch: int
    groups: tuple[Group, ...]


class Regroup(msgspec.Struct, frozen=True, array_like=True, tag="regroup"):
    group: int
    content: Group


class Update(msgspec.Struct, frozen=True, array_like=True, tag="update"):
    """Newest values of one group.

    Attributes:
        group: its index in the catalogue.
        values: of all its points, or of those in `points`.
        taken_at_s: on the host's clock that does not step; the values are not older.
        received_at_utc_s: when they came.
        points: indices; None: all.
        sources_utc_s: times by the device's own clock, where it has one, by index of the point.
        faults: why a value is missing, by index; -1: why they all are.
        doubt: why none of them is certain.
    """

    group: int
    values: list[Value]
    taken_at_s: float
    received_at_utc_s: float
    points: list[int] | None = None
    sources_utc_s: dict[int, float] | None = None
    faults: dict[int, str] | None = None
    doubt: str = ""


class Alarms(msgspec.Struct, frozen=True, array_like=True, tag="alarms"):
    alarms: tuple[AlarmView, ...]


class Pulse(msgspec.Struct, frozen=True, array_like=True, tag="pulse"):
    at_s: float


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    outcome: Outcome


T = TypeVar("T")
Frame = Catalogue | Regroup | Update | Alarms | Pulse | Done

_encoder = msgspec.msgpack.Encoder()
_frames: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)
_commands = msgspec.msgpack.Decoder(Command)


def packed(frame: Frame | Command) -> bytes:
    body = _encoder.encode(frame)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def sendable(command: Command) -> bytes:
    """Its frame. Raises WireError for one over which the controller would end the whole connection."""
    made = packed(command)
    if len(made) - HEAD_BYTES > COMMAND_MAX_BYTES:
        raise WireError(f"too long: {len(made) - HEAD_BYTES} bytes, {COMMAND_MAX_BYTES} at most")
    _decoded(_commands, made[HEAD_BYTES:])
    return made


def frame(body: bytes) -> Frame:
    """Raises WireError."""
    return _decoded(_frames, body)


def command(body: bytes) -> Command:
    """Raises WireError."""
    return _decoded(_commands, body)


def _decoded(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"no frame of this program: {error}") from None


async def bodies(reader: asyncio.StreamReader, max_bytes: int) -> AsyncIterator[bytes]:
    """Frames as they come, without their lengths, until the other side closes.

    Raises WireError for one that is larger than `max_bytes`, OSError when the connection breaks.
    """
    while True:
        try:
            length = int.from_bytes(await reader.readexactly(HEAD_BYTES), "big")
            if length > max_bytes:
                raise WireError(f"a frame of {length} bytes, {max_bytes} at most; is it the same version?")
            yield await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            return
