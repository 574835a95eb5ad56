"""One connection, from connecting to its loss: a question out, its answer in, and every wait bounded.

The library brings the transports (sockets, TLS, serial lines); its transaction layer is left out, because
that is where it goes wrong: it retries inside its lock, lets a request wait out its time-out though the peer
is long gone, and accepts answers to other questions. Here one future stands for the one question that may be
open; it ends by the answer, by a timer or by the loss of the connection, whichever comes first. No task, no
lock: only the link's own task asks.

Whoever may not write cannot: a wire made without `writable` sends read requests and nothing else.
"""

import asyncio
import contextlib
import errno
import socket
import struct
import termios
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any, Final, cast

from pymodbus.transport import CommParams, ModbusProtocol

from protocols.modbus.frames import BrokenError, Framing
from protocols.modbus.questions import LostError, Question, SilentError
from protocols.reading import DeviceError

QUIET_S: Final = 0.005  # a line that said nothing for this long has ended its frame, gateway and USB included
DRAIN_MAX_S: Final = (
    0.25  # no frame takes longer, down to 9600 baud; a line that babbles on is not waited for
)
HELD: Final = (errno.EAGAIN, errno.EBUSY)  # a serial line that somebody has for himself
DISCARD: Final = struct.pack("ii", 1, 0)  # linger for no time: reset instead of delivering the rest


class Wire(ModbusProtocol):
    """A client of one transport. `gap_s`: rest between frames; `character_s`: time of a byte on the line."""

    def __init__(
        self,
        params: CommParams,
        framing: Framing,
        where: str,
        *,
        writable: bool,
        gap_s: float = 0.0,
        character_s: float = 0.0,
        server_name: str | None = None,
    ) -> None:
        super().__init__(params, is_server=False)
        if server_name is not None:
            create = cast("Callable[..., Coroutine[Any, Any, Any]]", self.call_create)
            self.call_create = partial(create, server_hostname=server_name)
        self.gap_s = gap_s
        self.lost: LostError | None = None
        self.gone = self.loop.create_future()  # done once the connection is lost
        self._framing, self._where, self._writable, self._character_s = framing, where, writable, character_s
        self._open: asyncio.Future[bytes] | None = None
        self._rest = b""  # the beginning of a frame
        self._heard_s = 0.0

    async def connect(self) -> bool:
        """Connect once; raises OSError, what the system says. The caller bounds the wait."""
        try:
            self.transport, _ = await self.call_create()
        except termios.error as error:  # pyserial lets it through; it is no OSError
            raise OSError(f"the line refuses these settings: {error.args[-1]}") from error
        except UnicodeError as error:  # of a host that was never a URL
            raise OSError(f"that is no host name: {error}") from error
        except OSError as error:
            if error.errno in HELD:
                raise OSError("another program holds it, end that one first") from error
            raise
        return True

    def drop(self) -> None:
        """Close for good, without waiting for a peer that may be gone.

        What was sent and not acknowledged is discarded: the system would go on delivering it, and a command
        that was given up must not arrive after a newer one.
        """
        self._lose(LostError(f"{self._where}: the connection was given up"))
        transport = cast("asyncio.Transport | None", self.transport)
        self.is_closing = True
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError, ValueError):  # closed already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DISCARD)
            transport.abort()

    def take_unasked(self) -> str:
        """What came since the last call that nobody asked for; '' for nothing."""
        unasked = self._framing.unasked
        if unasked:
            self._framing.unasked = ""
        return unasked

    async def ask(
        self, unit_id: int, question: Question, wait_max_s: float, owed: Collection[bytes] = ()
    ) -> bytes:
        """The PDU of the right answer.

        Raises:
            SilentError: none within `wait_max_s` (and the time that the bytes take on a serial line).
            RefusedError: another answer.
            LostError: the connection is gone.
        """
        if self.lost is not None:
            raise self.lost
        if not (self._writable or question.reads):
            raise DeviceError(f"{question.what}: this link may not write; nothing was sent")
        if self._character_s:
            wait_max_s += self._character_s * (len(question.pdu) + question.longest + 6)
        self._open = self.loop.create_future()
        timer = self.loop.call_later(wait_max_s, self._time_out, question, wait_max_s)
        try:
            cast("asyncio.Transport", self.transport).write(self._framing.ask(unit_id, question, owed))
            return await self._open
        finally:
            timer.cancel()
            self._open = None

    async def quiet(self) -> None:
        """Wait until nothing comes any more."""
        quiet_s = max(self.gap_s, QUIET_S)
        give_up_s = self.loop.time() + DRAIN_MAX_S
        self._heard_s = self.loop.time()
        while (now_s := self.loop.time()) < min(self._heard_s + quiet_s, give_up_s):  # noqa: ASYNC110
            await asyncio.sleep(self._heard_s + quiet_s - now_s)  # silence is no event to wait for

    def forget(self) -> None:
        """Drop what came and was not an answer: it was late, or the rest of something broken."""
        self._rest = b""
        self.take_unasked()

    # ---- called by the event loop ----

    def data_received(self, data: bytes) -> None:
        self._heard_s = self.loop.time()
        if self._rest:
            data = self._rest + data
        try:
            used, answer = self._framing.feed(data)
        except BrokenError as broken:
            self._lose(LostError(f"{self._where}: {broken}"))
            return
        except DeviceError as error:
            self._rest = b""
            self._end(error)
            return
        self._rest = data[used:]
        if answer is not None and self._open is not None and not self._open.done():
            self._open.set_result(answer)

    def callback_connected(self) -> None:
        """Nothing to do: `connect` returns."""

    def callback_data(self, data: bytes, addr: tuple[Any, ...] | None = None) -> int:
        """Never called: `data_received` comes first."""
        raise NotImplementedError

    def callback_new_connection(self) -> ModbusProtocol:
        """Never called: this is a client."""
        raise NotImplementedError

    def callback_disconnected(self, exc: Exception | None) -> None:
        why = f" ({exc})" if exc is not None and str(exc) else ""
        self._lose(
            LostError(
                f"{self._where} closed the connection{why}: device restarted, or another master holds it?"
            )
        )

    def _lose(self, why: LostError) -> None:
        if self.lost is None:
            self.lost = why
            self.gone.set_result(None)
        self._end(why)

    def _time_out(self, question: Question, wait_max_s: float) -> None:
        self._framing.give_up()
        came = f" ({self._framing.came} came)" if self._framing.came else ""
        none = f"no answer within {wait_max_s:.3g} s{came}"
        self._end(SilentError(f"{question.what}: {none}: is the unit on, and its id right?"))

    def _end(self, error: DeviceError) -> None:
        if self._open is not None and not self._open.done():
            self._open.set_exception(error)
