"""A recorded device on a socket: what it said then, it says again, at the same pace from the beginning.

For tests, and for a desk far from the plant. Only what was recorded is there; every other address is refused,
like on the device. After the last moment of the recording its last values stay, or with `again` it starts
over. Nobody may write.
"""

import asyncio
import bisect
import ipaddress
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from controller.commissioning.nameplate import NAMES
from controller.commissioning.recording import Recording
from protocols.modbus.answer import ExceptionCode, Peer, Refusal, Table
from protocols.modbus.server import Access, ModbusServer

LOOPBACK: Final = "127.0.0.1"
NUMBERS: Final = {name: number for number, name in NAMES.items()}


class RecordedBank:
    """Registers as they were: a bank for `protocols.modbus.server`.

    Args:
        recording: of one unit.
        now_s: since the playback began.
        again: start over at the end.
    """

    def __init__(self, recording: Recording, now_s: Callable[[], float], *, again: bool = False) -> None:
        self._unit, self._now_s = recording.unit, now_s
        self._nameplate = {
            NUMBERS[name]: text for name, text in recording.nameplate.items() if name in NUMBERS
        }
        moments: defaultdict[tuple[Table, int], list[tuple[float, int]]] = defaultdict(list)
        refused: dict[tuple[Table, int], int] = {}
        for taken in recording.reads:
            for at, word in enumerate(taken.words, taken.first):
                moments[taken.table, at].append((taken.at_s, word))
            if taken.refused is not None:
                refused |= {(taken.table, at): taken.refused for at in taken.addresses}
        self._moments, self._refused = dict(moments), refused
        self._length_s = max((taken.at_s for taken in recording.reads), default=0.0) if again else 0.0

    def read(self, table: Table, unit: int, first: int, count: int, peer: Peer) -> Sequence[int]:  # noqa: ARG002
        self._demand_unit(unit)
        now_s = self._now_s()
        if self._length_s > 0.0:
            now_s %= self._length_s
        return [self._word(table, at, now_s) for at in range(first, first + count)]

    async def write(self, table: Table, unit: int, first: int, values: Sequence[int], peer: Peer) -> None:  # noqa: ARG002
        raise Refusal(ExceptionCode.ILLEGAL_FUNCTION, "a recording cannot be written")

    def identity(self, unit: int) -> Mapping[int, str]:
        self._demand_unit(unit)
        if not self._nameplate:
            raise Refusal(ExceptionCode.ILLEGAL_FUNCTION)
        return self._nameplate

    def _demand_unit(self, unit: int) -> None:
        if unit != self._unit:
            raise Refusal(ExceptionCode.GATEWAY_TARGET_SILENT)

    def _word(self, table: Table, at: int, now_s: float) -> int:
        moments = self._moments.get((table, at))
        if moments is None:
            code = self._refused.get((table, at), ExceptionCode.ILLEGAL_DATA_ADDRESS)
            known = code in ExceptionCode.__members__.values()
            raise Refusal(ExceptionCode(code) if known else ExceptionCode.SERVER_DEVICE_FAILURE)
        place = bisect.bisect_right(moments, (now_s, 0x10000)) - 1
        return moments[max(0, place)][1]


async def served(server: ModbusServer, on_listening: Callable[[], None]) -> None:
    """Serve for ever, and say when it has begun. Raises OSError where the address cannot be had."""
    running = asyncio.create_task(server.run())
    listening = asyncio.create_task(server.listening.wait())
    try:
        await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            on_listening()
        await running
    finally:
        for task in (running, listening):
            task.cancel()
        await asyncio.gather(running, listening, return_exceptions=True)


def server_of(
    recording: Recording,
    now_s: Callable[[], float],
    *,
    host: str = LOOPBACK,
    port: int = 0,
    again: bool = False,
) -> ModbusServer:
    """A server of it. Whoever reaches `host` may read; by default that is this machine alone."""
    networks = (
        (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
        if host == LOOPBACK
        else (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    )
    return ModbusServer(
        RecordedBank(recording, now_s, again=again), Access(read_from=networks), host=host, port=port
    )
