"""A link that breaks on command: between the agents of some racks and the broker stands the rig.

    partition  nothing passes in either direction; connections stay open, and what was sent meanwhile arrives
               late and at once, as TCP does it when a switch comes back
    lossy      some PUBLISH packets never arrive, each with the same chance, in both directions; all others
               do, so the session lives
    flood      orders that went to an agent long ago, of all times since it connected, arrive again, so many a
               second at every agent

Only plain MQTT can be looked into: a scenario with TLS may ask for neither of the last two.

Only racks that a scenario breaks are led through here, so that a healthy block costs the rig nothing.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self

LOOPBACK: Final = "127.0.0.1"
CHUNK_BYTES: Final = 64 * 1024
PUBLISH: Final = 3  # packet type, upper half of the first byte
ORDER_TOPIC_END: Final = b"/order"
TAPE_MAX: Final = 256  # orders kept of each connection, evenly out of all that passed
LONG_AGO_S: Final = 5.0  # longer than any lease of a scenario
FLOOD_TURN_S: Final = 0.02
LENGTH_BYTES_MAX: Final = 4  # of the remaining length, MQTT 3.1.1, 2.2.3


class BrokenLink:
    """Leads connections on to `host`:`port`. Use as an async context manager.

    Attributes:
        port: where agents knock.
        partitioned: nothing passes while it is set.
        lost_ratio: of messages that never arrive.
        flood_per_s: old orders told again to every agent.
        dropped, told_again: messages so far.
    """

    def __init__(self, host: str, port: int, *, sees_packets: bool, seed: int = 1) -> None:
        self.port = 0
        self.lost_ratio = 0.0
        self.flood_per_s = 0.0
        self.dropped = self.told_again = 0
        self._to = (host, port)
        self._sees_packets = sees_packets
        self._chance = random.Random(seed)  # noqa: S311  not cryptography
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def partitioned(self) -> bool:
        return not self._passing.is_set()

    @partitioned.setter
    def partitioned(self, broken: bool) -> None:
        (self._passing.clear if broken else self._passing.set)()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._lead, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(asyncio.CancelledError, OSError):
            await self._passing.wait()  # a knock that nobody hears
            onward, outward = await asyncio.open_connection(*self._to)
            try:
                tape = Tape(self._chance)
                passing = {
                    asyncio.create_task(self._pass_on(reader, outward)),
                    asyncio.create_task(self._pass_on(onward, writer, tape)),
                    asyncio.create_task(self._flood(writer, tape)),
                }
                try:
                    await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in passing:
                        task.cancel()
                    await asyncio.wait(passing)
            finally:
                outward.close()
        writer.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tape: "Tape | None" = None
    ) -> None:
        packets = Packets(partial(self._is_kept, tape)) if self._sees_packets else None
        with suppress(asyncio.CancelledError, OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._passing.wait()
                writer.write(chunk if packets is None else packets.kept(chunk))
                await writer.drain()

    def _is_kept(self, tape: "Tape | None", packet: bytes) -> bool:
        if packet[0] >> 4 != PUBLISH:
            return True
        lost = self._chance.random() < self.lost_ratio
        self.dropped += lost
        if tape is not None and _topic(packet).endswith(ORDER_TOPIC_END):
            tape.note(packet, time.monotonic())
        return not lost

    async def _flood(self, writer: asyncio.StreamWriter, tape: "Tape") -> None:
        with suppress(asyncio.CancelledError, OSError):
            while True:
                await asyncio.sleep(FLOOD_TURN_S)
                if not self.flood_per_s:
                    continue
                again = tape.old(max(1, round(self.flood_per_s * FLOOD_TURN_S)), time.monotonic())
                self.told_again += len(again)
                writer.write(b"".join(again))
                await writer.drain()


class Tape:
    """Orders that passed, each kept with the same chance, however many there were."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._passed = 0
        self._kept: list[tuple[float, bytes]] = []

    def note(self, packet: bytes, now_s: float) -> None:
        self._passed += 1
        if len(self._kept) < TAPE_MAX:
            self._kept.append((now_s, packet))
        elif (place := self._chance.randrange(self._passed)) < TAPE_MAX:
            self._kept[place] = (now_s, packet)

    def old(self, count: int, now_s: float) -> list[bytes]:
        """So many of those of long ago, in any order; none while there are none."""
        old = [packet for passed_s, packet in self._kept if now_s - passed_s >= LONG_AGO_S]
        return self._chance.choices(old, k=count) if old else []


class Packets:
    """MQTT packets out of a stream of bytes. `is_kept`: asked with each that is complete."""

    def __init__(self, is_kept: Callable[[bytes], bool]) -> None:
        self._is_kept = is_kept
        self._rest = b""

    def kept(self, chunk: bytes) -> bytes:
        """Those of the packets that `chunk` completes that may pass."""
        content, at, kept = self._rest + chunk, 0, bytearray()
        while (end := _end(content, at)) is not None:
            packet = content[at:end]
            if self._is_kept(packet):
                kept += packet
            at = end
        self._rest = content[at:]
        return bytes(kept)


def _topic(packet: bytes) -> bytes:
    """Of a whole PUBLISH."""
    at = next(place for place in range(1, len(packet)) if packet[place] < 0x80) + 1
    return packet[at + 2 : at + 2 + int.from_bytes(packet[at : at + 2], "big")]


def _end(content: bytes, at: int) -> int | None:
    """Where the packet that begins at `at` ends; None: it is not complete."""
    length = 0
    for place in range(LENGTH_BYTES_MAX):
        if at + 1 + place >= len(content):
            return None
        byte = content[at + 1 + place]
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            end = at + 2 + place + length
            return end if end <= len(content) else None
    raise ConnectionError("no MQTT: a length of more than four bytes")
