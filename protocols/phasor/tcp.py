"""C37.118 over TCP: we call the unit, ask for its configuration, and turn its data on.

TCP hands over a stream, so the frames are cut by their own length. Bytes that do not begin a frame mean that
the place is lost: the connection is made anew, for nothing else finds it again with certainty.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from protocols.phasor.c37_118 import DATA_OFF, DATA_ON, HEAD, SEND_CONFIG_2, SYNC_BYTE, Frames, command
from protocols.phasor.reading import Sample
from protocols.reading import retry_delay_s

CONNECT_WAIT_MAX_S: Final = 2.0
SILENT_MAX_S: Final = 2.0  # forty samples of the slowest useful unit
BEGIN_BYTES: Final = 4  # SYNC and FRAMESIZE


class PhasorTcp:
    """One unit. `run` ends only by cancellation; an outage is data (`fault`).

    Args:
        host, port: of the unit.
        id_code: of its stream; commands carry it.
        frames: what turns its frames into samples.
        on_sample: called with every sample as it comes; must be cheap.
        clock: our own monotonic one, s.
        clock_utc: s since 1970, for commands.

    Attributes:
        fault: why nothing comes, in a sentence; "" while it does.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        id_code: int,
        frames: Frames,
        on_sample: Callable[[Sample], None],
        clock: Callable[[], float],
        clock_utc: Callable[[], float],
    ) -> None:
        self._host, self._port, self._id_code = host, port, id_code
        self._frames, self._on_sample = frames, on_sample
        self._clock, self._clock_utc = clock, clock_utc
        self.fault = f"{self.address} was not called yet"

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def refused(self) -> dict[str, int]:
        return self._frames.refusals.counts

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(CONNECT_WAIT_MAX_S):
                    reader, writer = await asyncio.open_connection(self._host, self._port)
            except OSError as error:  # a TimeoutError is one
                self.fault = f"{self.address} does not answer: {error.strerror or 'no reply in time'}"
            else:
                failures = 0 if await self._converse(reader, writer) else failures
            failures += 1
            await asyncio.sleep(retry_delay_s(failures))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Until the connection is no good any more; True: there was at least one sample."""
        self._frames.forget()
        wire = writer.get_extra_info("socket")
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        heard = False
        try:
            await self._tell(writer, SEND_CONFIG_2)
            while True:
                async with asyncio.timeout(SILENT_MAX_S):
                    frame = await self._frame(reader)
                had_none = self._frames.config is None
                sample = self._frames.take(frame, self._clock())
                if had_none and self._frames.config is not None:
                    await self._tell(writer, DATA_ON)
                elif not had_none and self._frames.config is None:
                    await self._tell(writer, SEND_CONFIG_2)
                if sample is not None:
                    heard, self.fault = True, ""
                    self._on_sample(sample)
        except TimeoutError:
            self.fault = f"{self.address} is connected and says nothing for {SILENT_MAX_S:g} s"
        except (OSError, asyncio.IncompleteReadError, _LostPlaceError) as error:
            self.fault = f"{self.address}: connection lost ({type(error).__name__})"
        finally:
            with suppress(OSError, RuntimeError):
                writer.write(command(self._id_code, DATA_OFF, self._clock_utc()))
                writer.close()
        return heard

    async def _frame(self, reader: asyncio.StreamReader) -> bytes:
        begin = await reader.readexactly(BEGIN_BYTES)
        size = int.from_bytes(begin[2:], "big")
        if begin[0] != SYNC_BYTE or size < HEAD.size:
            self._frames.refusals.add("does not begin like a frame")
            raise _LostPlaceError
        return begin + await reader.readexactly(size - BEGIN_BYTES)

    async def _tell(self, writer: asyncio.StreamWriter, what: int) -> None:
        writer.write(command(self._id_code, what, self._clock_utc()))
        await writer.drain()


class _LostPlaceError(Exception):
    """What came does not begin a frame."""
