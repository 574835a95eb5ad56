"""The client without a socket: requests go to a function, and its bytes are what the wire brings.

For fixtures recorded from a device, and for fuzzers: every byte takes the way it takes in operation, through
framing, checks and codec into a `Reading`. Nothing waits: an answer that is not there at once is silence.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

from pymodbus.transport import CommParams, CommType

from protocols.modbus.frames import Mbap, Rtu
from protocols.modbus.questions import Question
from protocols.modbus.wire import Wire
from protocols.profile import Line

Peer = Callable[[bytes], bytes]  # a request frame -> whatever comes back, b"" for silence


@dataclass(frozen=True)
class Replay:
    """A transport that is a function. Use with `ModbusLink(Replay(peer), [unit], clock=...).look(rounds)`."""

    peer: Peer
    rtu: bool = False
    connect_wait_max_s: ClassVar[float] = 1.0
    where: ClassVar[str] = "replay"
    address: ClassVar[str] = "replay"

    def wire(self, line: Line, *, writable: bool) -> Wire:  # noqa: ARG002
        return _Paper(self.peer, rtu=self.rtu, writable=writable)


class _Paper(Wire):
    def __init__(self, peer: Peer, *, rtu: bool, writable: bool) -> None:
        params = CommParams(comm_type=CommType.TCP, host="replay", port=0)
        super().__init__(params, Rtu() if rtu else Mbap(), "replay", writable=writable)
        self._peer = peer

    async def connect(self) -> bool:
        self.transport = _Loop(self, self._peer)
        return True

    async def ask(
        self,
        unit_id: int,
        question: Question,
        wait_max_s: float,  # noqa: ARG002
        owed: Collection[bytes] = (),
    ) -> bytes:
        return await super().ask(unit_id, question, 0.0, owed)

    async def quiet(self) -> None:
        """It always is."""


class _Loop(asyncio.Transport):
    """What is written comes back as the peer's answer before `write` returns."""

    def __init__(self, wire: Wire, peer: Peer) -> None:
        super().__init__()
        self._wire, self._peer = wire, peer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        answer = self._peer(bytes(data))
        if answer:
            self._wire.data_received(answer)

    def close(self) -> None:
        """Nothing is open."""

    abort = close
