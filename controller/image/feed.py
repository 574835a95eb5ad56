"""The facility server's end of the image socket: a mirror of the image that notices silence.

The mirror is filled frame by frame and says what changed, so that servers can pass it on. When the
controller is gone or silent for `SILENT_S`, `alive` turns False at once; values stay and grow stale by
themselves. It connects again for ever, with jitter; a new catalogue of the same shape leaves the servers'
address spaces alone, another one makes them build anew.

Commands go the other way and come back as outcomes. Nobody waits for ever: a command whose controller is
lost is answered here, and says so honestly: it may have been carried out or not.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import structlog

from controller.image import wire
from controller.image.image import Image, MisfitError
from controller.image.model import AlarmView, Command, Group, Outcome, Result
from protocols.reading import retry_delay_s

SILENT_S: Final = 2.0  # four pulses
HEARD_WAIT_S: Final = 2.0  # for a controller that runs
OUTCOME_WAIT_S: Final = 6.0  # a write to a slow device, its read-back, and its place in the line
MIRROR_BUFFER_BYTES: Final = 256 * 1024

log = structlog.get_logger(__name__)


class ImageFeed:
    """A mirror of the controller's image.

    Attributes:
        image: the mirror.
        alarms: as last told.
        block: name of the block, as the controller says.
        alive: whether the controller has been heard lately.
        on_shape: called when the catalogue has changed: build anew.
        on_update: called with the index of a group when its values have changed, and the places; None: all.
        on_alarms: called when they have changed.
        on_alive: called when `alive` has changed.
    """

    def __init__(self, path: Path) -> None:
        self.image = Image()
        self.alarms: tuple[AlarmView, ...] = ()
        self.block = ""
        self.alive = False
        self.on_shape: list[Callable[[], None]] = []
        self.on_update: list[Callable[[int, Sequence[int] | None], None]] = []
        self.on_alarms: list[Callable[[], None]] = []
        self.on_alive: list[Callable[[], None]] = []
        self._path = path
        self._ids = count(1)
        self._epoch = 0
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Mirror for ever."""
        try:
            await self._mirror_for_ever()
        finally:
            self._close("the mirror was stopped")

    async def _mirror_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(
                    self._path, limit=MIRROR_BUFFER_BYTES
                )
                await self._mirror(reader)
                why = "closed by the controller"
                failures = 0
            except TimeoutError:
                why = f"silent for {SILENT_S:g} s"
            except (OSError, wire.WireError, MisfitError) as error:
                why = str(error)
            self._lost(why)
            failures += 1
            await asyncio.sleep(retry_delay_s(failures))

    async def command(self, command: Command) -> Outcome:
        """Have it carried out; answered within `OUTCOME_WAIT_S`, whatever happens."""
        writer = self._writer
        if writer is None or not self.alive:
            return Outcome(result=Result.REJECTED, reason="the controller is not heard; nothing was sent")
        number = next(self._ids)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        try:
            frame = wire.sendable(msgspec.structs.replace(command, id=number))
        except wire.WireError as error:
            return Outcome(id=command.id, result=Result.REJECTED, reason=f"{error}; nothing was sent")
        self._waiting[number] = answer
        writer.write(frame)
        try:
            async with asyncio.timeout(OUTCOME_WAIT_S):
                return msgspec.structs.replace(await answer, id=command.id)
        except TimeoutError:
            reason = f"no outcome within {OUTCOME_WAIT_S:g} s: carried out or not, look at what holds"
            return Outcome(id=command.id, result=Result.REJECTED, reason=reason)
        finally:
            del self._waiting[number]

    async def _mirror(self, reader: asyncio.StreamReader) -> None:
        """One connection. Raises TimeoutError when it falls silent."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SILENT_S) as silence:
            async for body in wire.bodies(reader, wire.FRAME_MAX_BYTES):
                silence.reschedule(loop.time() + SILENT_S)
                self._take(wire.frame(body))
                if not self.alive:
                    self._set_alive(alive=True)

    def _take(self, frame: wire.Frame) -> None:
        match frame:
            case wire.Update():
                self.image.take(frame)
                for tell in self.on_update:
                    tell(frame.group, frame.points)
            case wire.Catalogue():
                self._learn(frame)
            case wire.Regroup():
                self.image.regroup(frame.group, frame.content)
                self._reshaped()
            case wire.Alarms():
                self.alarms = frame.alarms
                for alarm in self.on_alarms:
                    alarm()
            case wire.Done():
                answer = self._waiting.get(frame.outcome.id)
                if answer is not None and not answer.done():
                    answer.set_result(frame.outcome)

    def _learn(self, frame: wire.Catalogue) -> None:
        if frame.version != wire.VERSION:
            raise wire.WireError(
                f"the controller speaks version {frame.version}, this program {wire.VERSION}; update both"
            )
        known: tuple[Group, ...] = tuple(cells.group for cells in self.image.groups)
        self.block = frame.block
        if frame.groups != known:
            self.image.learn(frame.groups)
            self._reshaped()
        elif frame.epoch != self._epoch:
            self.image.forget()  # another controller: what the one before knew is no news of this one
            for index in range(len(frame.groups)):
                for tell in self.on_update:
                    tell(index, None)
        self._epoch = frame.epoch

    def _reshaped(self) -> None:
        for tell in self.on_shape:
            tell()

    def _lost(self, why: str) -> None:
        if self.alive:
            log.warning("controller not heard", why=why)
        self._close("the controller was lost")

    def _close(self, why: str) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        for answer in self._waiting.values():
            if not answer.done():
                reason = f"{why}: carried out or not, look at what holds"
                answer.set_result(Outcome(result=Result.REJECTED, reason=reason))
        if self.alive:
            self._set_alive(alive=False)

    def _set_alive(self, *, alive: bool) -> None:
        self.alive = alive
        for tell in self.on_alive:
            tell()


@asynccontextmanager
async def heard(path: Path) -> AsyncIterator[ImageFeed]:
    """A filled mirror, for one look or one command. Raises TimeoutError when no controller is heard."""
    feed, alive = ImageFeed(path), asyncio.Event()
    feed.on_alive.append(alive.set)
    running = asyncio.create_task(feed.run(), name="mirror")
    try:
        async with asyncio.timeout(HEARD_WAIT_S):
            await alive.wait()
        yield feed
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
