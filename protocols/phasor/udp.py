"""Frequency over UDP: C37.118 frames that a phasor unit sends by itself or when asked, or lines of JSON.

A unit that sends by itself repeats its configuration about once a minute; until it comes, its data say
nothing. One that wants to be asked gets commands, again and again while it is silent. A datagram of anybody
but the one host that is listened to is counted and dropped.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from protocols.phasor.c37_118 import DATA_OFF, DATA_ON, SEND_CONFIG_2, Frames, command
from protocols.phasor.reading import JsonReadings, Sample
from protocols.reading import retry_delay_s

SILENT_S: Final = 2.0  # forty samples of the slowest useful unit
LOOK_S: Final = 0.5


class FrequencyUdp:
    """One port. `run` ends only by cancellation; a port that cannot be opened is data (`fault`).

    Args:
        listen: address and port; port 0: any, see `port`.
        reader: what the datagrams are.
        only_from: the one address that is listened to.
        on_sample: called with every sample as it comes; must be cheap.
        clock: our own monotonic one, s.
        clock_utc: s since 1970, for commands.
        ask: the unit's own port, for one that wants to be asked; `reader` must be Frames of a known stream.

    Attributes:
        fault: why nothing comes, in a sentence; "" while it does.
    """

    def __init__(
        self,
        listen: tuple[str, int],
        reader: Frames | JsonReadings,
        *,
        only_from: str,
        on_sample: Callable[[Sample], None],
        clock: Callable[[], float],
        clock_utc: Callable[[], float],
        ask: int | None = None,
        id_code: int = 0,
    ) -> None:
        self._listen, self._reader, self._only_from = listen, reader, only_from
        self._on_sample, self._clock, self._clock_utc = on_sample, clock, clock_utc
        self._ask, self._id_code = ask, id_code
        self._heard_at_s = float("-inf")
        self.port = listen[1]
        self.fault = f"nothing came from {only_from} yet"

    @property
    def refused(self) -> dict[str, int]:
        return self._reader.refusals.counts

    async def run(self) -> None:
        failures = 0
        while True:
            wire = _Wire(self._take)
            try:
                transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda wire=wire: wire,  # type: ignore[misc]
                    local_addr=self._listen,
                )
            except OSError as error:
                why = error.strerror or getattr(error.__cause__, "strerror", None) or error  # uvloop's cause
                self.fault = f"{self._listen[0]}:{self._listen[1]} cannot be opened: {why}"
                failures += 1
                await asyncio.sleep(retry_delay_s(failures))
                continue
            failures = 0
            self.port = transport.get_extra_info("sockname")[1]
            try:
                await self._watch(transport, wire)
            finally:
                if self._ask is not None:
                    self._tell(transport, DATA_OFF)
                transport.close()

    async def _watch(self, transport: asyncio.DatagramTransport, wire: "_Wire") -> None:
        """Notice silence, and ask; ends when the socket does."""
        while not wire.lost.is_set():
            silent_s = self._clock() - self._heard_at_s
            if silent_s > SILENT_S:
                self.fault = self._silence(silent_s)
                if self._ask is not None:
                    self._tell(transport, SEND_CONFIG_2)
                    self._tell(transport, DATA_ON)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await wire.lost.wait()

    def _silence(self, silent_s: float) -> str:
        since = "yet" if silent_s == float("inf") else f"for {silent_s:.0f} s"
        refused = self._reader.refusals
        why = f"; {refused.total} datagrams refused, the newest: {refused.newest}" if refused.total else ""
        return f"no frequency from {self._only_from} on UDP port {self.port} {since}{why}"

    def _tell(self, transport: asyncio.DatagramTransport, what: int) -> None:
        assert self._ask is not None
        transport.sendto(command(self._id_code, what, self._clock_utc()), (self._only_from, self._ask))

    def _take(self, datagram: bytes, sender: str) -> None:
        if sender != self._only_from:
            self._reader.refusals.add(f"of somebody other than {self._only_from}")
            return
        now_s = self._clock()
        sample = self._reader.take(datagram, now_s)
        if sample is not None:
            self._heard_at_s, self.fault = now_s, ""
            self._on_sample(sample)


class _Wire(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: Callable[[bytes, str], None]) -> None:
        self._on_datagram = on_datagram
        self.lost = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._on_datagram(data, str(addr[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost.set()
