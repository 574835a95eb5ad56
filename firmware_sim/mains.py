"""The grid's frequency, the same all over the block, and the instrument that tells it 50 times a second.

It wanders by some millihertz, and when a power station is lost it falls: `move` lets it go to another value
in a given time, which is what a scenario has of such an event. Nothing here gives it back: what one block
sheds is nothing to a grid.

`FrequencyStream` is the instrument. It sends what it measured the moment it did, as UDP datagrams: either
lines of JSON or IEEE C37.118 data frames, with the configuration frame before them and again every second
(units in the field repeat it once a minute, which nobody wants to wait for on a bench).
"""

import asyncio
import json
import struct
import time
from typing import Final, Literal, Self

import numpy as np

NOMINAL_HZ: Final = 50.0
WANDER_HZ: Final = 0.004  # standard deviation within some seconds on a large grid
WANDER_TAU_S: Final = 3.0
PERIOD_S: Final = 0.020
CONFIG_PERIOD_S: Final = 1.0
LOOPBACK: Final = "127.0.0.1"

StreamFormat = Literal["json", "c37_118"]

SYNC_DATA, SYNC_CONFIG_2 = 0xAA01, 0xAA31
STREAM_ID: Final = 7
TIME_BASE: Final = 1_000_000
FLOAT_FREQUENCY: Final = 0x0008  # FORMAT: frequency and its rate as floats in Hz
NOMINAL_IS_50: Final = 0x0001


class Mains:
    """Frequency of the grid."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.frequency_hz = NOMINAL_HZ
        self._rng = rng
        self._wander_hz = 0.0
        self._base_hz = NOMINAL_HZ
        self._target_hz = NOMINAL_HZ
        self._rate_hz_per_s = 0.0

    def move(self, to_hz: float, within_s: float) -> None:
        """Go there at an even rate, from where it is."""
        self._target_hz = to_hz
        self._rate_hz_per_s = abs(to_hz - self._base_hz) / max(within_s, 1e-3)

    def step(self, dt_s: float) -> None:
        gap_hz, most_hz = self._target_hz - self._base_hz, self._rate_hz_per_s * dt_s
        self._base_hz += min(max(gap_hz, -most_hz), most_hz)
        keep = 1 - dt_s / WANDER_TAU_S
        fresh_hz = WANDER_HZ * (1 - keep * keep) ** 0.5 * float(self._rng.standard_normal())
        self._wander_hz = keep * self._wander_hz + fresh_hz
        self.frequency_hz = self._base_hz + self._wander_hz


class FrequencyStream:
    """Tells the frequency of `mains` to one UDP port on loopback. Use as an async context manager."""

    def __init__(self, mains: Mains, port: int, form: StreamFormat) -> None:
        self.silent = False
        self._mains, self._port, self._form = mains, port, form
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=(LOOPBACK, self._port)
        )
        self._task = asyncio.create_task(self._run(self._transport), name="phasor unit")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._transport is not None:
            self._transport.close()

    async def _run(self, transport: asyncio.DatagramTransport) -> None:
        at_s, config_due_s = time.monotonic(), 0.0
        while True:
            at_s = max(at_s + PERIOD_S, time.monotonic() - PERIOD_S)
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            if self.silent:
                continue
            now_utc_s = time.time()
            if self._form == "json":
                said = {"hz": round(self._mains.frequency_hz, 4), "at": round(now_utc_s, 4)}
                transport.sendto(json.dumps(said).encode())
                continue
            if at_s >= config_due_s:
                config_due_s = at_s + CONFIG_PERIOD_S
                transport.sendto(config_frame(now_utc_s))
            transport.sendto(data_frame(now_utc_s, self._mains.frequency_hz))


def config_frame(now_utc_s: float) -> bytes:
    """CFG-2 of one PMU without phasors: frequency alone."""
    body = struct.pack(">IH", TIME_BASE, 1) + b"RIG MAINS".ljust(16)
    body += struct.pack(">HHHHH", STREAM_ID, FLOAT_FREQUENCY, 0, 0, 0)
    body += struct.pack(">HHh", NOMINAL_IS_50, 1, round(1 / PERIOD_S))
    return _frame(SYNC_CONFIG_2, now_utc_s, body)


def data_frame(now_utc_s: float, frequency_hz: float) -> bytes:
    """STAT without a fault, frequency in Hz, rate of change 0."""
    return _frame(SYNC_DATA, now_utc_s, struct.pack(">Hff", 0, frequency_hz, 0.0))


def _frame(sync: int, now_utc_s: float, body: bytes) -> bytes:
    whole_s, part_s = divmod(now_utc_s, 1.0)
    size = 2 + 2 + 2 + 4 + 4 + len(body) + 2
    head = struct.pack(">HHHII", sync, size, STREAM_ID, int(whole_s), int(part_s * TIME_BASE))
    return head + body + struct.pack(">H", _crc(head + body))


def _crc(content: bytes) -> int:
    """CRC-CCITT, 0xFFFF to begin with."""
    crc = 0xFFFF
    for byte in content:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc
