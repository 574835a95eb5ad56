"""The controller's end of the image socket: tells every change, hears commands.

Whoever may open the socket (its directory says who) gets the catalogue, everything that is known, and from
then on every update as it comes, gathered for `GATHER_S` into one write. A reader that does not keep up is
not waited for and nothing is queued for it: once its buffer has drained it gets the newest of whatever has
changed meanwhile. Nothing here can delay the beat by more than the copying of bytes.

The socket is the one way from outside into the controller besides the site's sources, so commands are
bounded in size, number and rate. Each is answered when it is done: one that waits for a slow device holds up
no other. Whoever has the socket is believed to have authenticated whom he speaks for, with one exception: for
the block's own panel speaks only who runs as this user or as root. The facility server does not, and what
listens on the network must not be able to pretend that it stands at the panel.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import structlog

from controller.image import wire
from controller.image.image import GroupCells, Image
from controller.image.model import AlarmView, Command, Group, Outcome, Result

GATHER_S: Final = 0.002  # devices of one period answer within a few ms of each other
PULSE_S: Final = 0.5
BEHIND_BYTES: Final = 1024 * 1024  # a tenth of a second of the largest block
CONNECTIONS_MAX: Final = 8  # one facility server, a few tools
IN_HAND_MAX: Final = 16  # commands of one connection at a time
COMMAND_GAP_S: Final = 0.002  # between two of one connection: a flood costs no beat
PANEL: Final = "panel"

SOCKET_MODE: Final = 0o660  # the facility server runs as another user of the same group

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Listener:
    """One connection."""

    writer: asyncio.StreamWriter
    is_trusted: bool  # runs as this user, or as root
    seen: int | None = None  # revision up to which it has been told; None: all, it keeps up
    in_hand: set[asyncio.Task[None]] = field(default_factory=set)

    def tell(self, frames: bytes, seen: int) -> None:
        """Frames that follow on revision `seen`, or a note that it is behind from there."""
        if self.seen is None and self.unsent_bytes > BEHIND_BYTES:
            self.seen = seen
        if self.seen is None:
            self.writer.write(frames)

    @property
    def unsent_bytes(self) -> int:
        return self.writer.transport.get_write_buffer_size()


class ImageServer:
    """Serves an image on a Unix socket.

    Args:
        path: of the socket; replaced if it is there.
        image: the controller's own.
        block: its name.
        epoch: number of this start.
        on_command: carries one out.
        now_s: the clock that does not step.
    """

    def __init__(
        self,
        path: Path,
        image: Image,
        *,
        block: str,
        epoch: int,
        on_command: Callable[[Command], Awaitable[Outcome]],
        now_s: Callable[[], float],
    ) -> None:
        self._path, self._image, self._block, self._epoch = path, image, block, epoch
        self._on_command, self._now_s = on_command, now_s
        self._listeners: set[_Listener] = set()
        self._gathered: list[bytes] = []
        self._told = image.revision  # before what is gathered
        self._alarms: tuple[AlarmView, ...] = ()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve for ever. Raises OSError when the socket cannot be made."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, self._path)
        self._path.chmod(SOCKET_MODE)
        try:
            while True:
                await asyncio.sleep(PULSE_S)
                self._tell(wire.Pulse(self._now_s()))
        finally:
            server.close()
            for listener in self._listeners:
                listener.writer.transport.abort()  # what somebody has not read by now is nobody's any more

    # --- what is told -----------------------------------------------------------------------------------

    def update(self, update: wire.Update) -> None:
        """New values: into the image, and to whoever listens."""
        self._image.take(update)
        self._tell(update)

    def regroup(self, index: int, group: Group) -> None:
        self._image.regroup(index, group)
        self._tell(wire.Regroup(index, group))

    def cells(self, index: int) -> GroupCells:
        """The newest of one group."""
        return self._image.groups[index]

    def alarms(self, alarms: tuple[AlarmView, ...]) -> None:
        """All that there are; told when they have changed."""
        if alarms != self._alarms:
            self._alarms = alarms
            self._tell(wire.Alarms(alarms))

    def _tell(self, frame: wire.Frame) -> None:
        if not self._listeners:
            self._told = self._image.revision
            return
        self._gathered.append(wire.packed(frame))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._flush)

    def _flush(self) -> None:
        frames, self._gathered, self._timer = b"".join(self._gathered), [], None
        for listener in self._listeners:
            listener.tell(frames, self._told)
            if listener.seen is not None and listener.unsent_bytes == 0:
                self._bring_up(listener, listener.seen)
        self._told = self._image.revision

    def _bring_up(self, listener: _Listener, seen: int) -> None:
        """Everything that has changed since it had seen this much; all there is, if the catalogue has."""
        listener.seen = None
        if self._image.shaped_at > seen:
            groups = tuple(cells.group for cells in self._image.groups)
            listener.writer.write(wire.packed(wire.Catalogue(wire.VERSION, self._block, self._epoch, groups)))
            seen = 0
        for cells in self._image.changed_since(seen):
            listener.writer.writelines(map(wire.packed, cells.all_updates()))
        listener.writer.write(wire.packed(wire.Alarms(self._alarms)))

    # --- what is heard ----------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._listeners) >= CONNECTIONS_MAX:
            log.warning("image: connection refused", why=f"{CONNECTIONS_MAX} are open; close one")
            writer.close()
            return
        writer.transport.set_write_buffer_limits(high=BEHIND_BYTES)
        listener = _Listener(writer, _peer_uid(writer) in (0, os.getuid()))
        self._bring_up(listener, seen=-1)
        self._listeners.add(listener)
        try:
            async for body in wire.bodies(reader, wire.COMMAND_MAX_BYTES):
                self._take(listener, wire.command(body))
                await asyncio.sleep(COMMAND_GAP_S)
                await writer.drain()  # who does not read his answers is not heard either
        except wire.WireError as error:
            log.warning("image: connection closed", why=str(error))
        except OSError as error:  # a tool that leaves in the middle is no news
            log.debug("image: connection lost", why=str(error))
        except asyncio.CancelledError:
            pass  # the process ends, and this task with it; streams of Python 3.11 would log it as an error
        finally:
            self._listeners.discard(listener)
            writer.close()

    def _take(self, listener: _Listener, command: Command) -> None:
        reason = ""
        if len(listener.in_hand) >= IN_HAND_MAX:
            reason = f"{IN_HAND_MAX} commands are in hand; wait for their outcomes"
        elif (command.local or command.via == PANEL) and not listener.is_trusted:
            reason = "for the block's own panel speaks its own user, or root"
        if reason:
            listener.writer.write(
                wire.packed(wire.Done(Outcome(id=command.id, result=Result.REJECTED, reason=reason)))
            )
            return
        task = asyncio.create_task(self._carry_out(listener, command), name=f"command {command.verb}")
        listener.in_hand.add(task)
        task.add_done_callback(listener.in_hand.discard)

    async def _carry_out(self, listener: _Listener, command: Command) -> None:
        try:
            outcome = await self._on_command(command)
        except Exception:  # one command that breaks the program must not leave its sender without an answer
            log.exception("a command broke the program", verb=command.verb, by=command.by)
            outcome = Outcome(result=Result.REJECTED, reason="a fault of this program, see its log")
        if not listener.writer.is_closing():
            listener.writer.write(wire.packed(wire.Done(msgspec.structs.replace(outcome, id=command.id))))


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    """As the kernel says (SO_PEERCRED: pid, uid, gid)."""
    raw = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    uid: int = struct.unpack("3i", raw)[1]
    return uid
