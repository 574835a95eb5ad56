"""The site as a process of its own: says what it is told to say, at the moment it is told to.

Nothing but a socket and ready-made MQTT packets, so that five thousand messages a second cost it a tenth of
a core and the time of sending is the time of the `send`.
"""

import asyncio
import multiprocessing
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

CONNACK_BYTES: Final = 4
PROTOCOL: Final = b"\x00\x04MQTT\x04\x02\x00\x00"  # MQTT 3.1.1, a clean session, no keepalive
STEP_S: Final = 0.001  # what is due within it goes out with one `send`


class Saying(NamedTuple):
    """A message, and when it is due: seconds after the first one."""

    at_s: float
    topic: str
    payload: bytes


class Speaker:
    """A process that has all it is to say, and waits for `say`. Use as an async context manager."""

    def __init__(self, url: str, sayings: Sequence[Saying]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._there = context.Pipe()
        self._sayings = sayings
        self._process = context.Process(target=_speak, args=(url, self._there), daemon=True)

    async def __aenter__(self) -> Self:
        self._process.start()
        self._there.close()
        await asyncio.to_thread(self._pipe.send, self._sayings)
        await asyncio.to_thread(self._pipe.recv)  # connected
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    async def say(self) -> list[float]:
        """Say it all; returns when each message went out, by the monotonic clock."""
        self._pipe.send(None)
        sent_at_s: list[float] = await asyncio.to_thread(self._pipe.recv)
        return sent_at_s


def _speak(url: str, pipe: Connection) -> None:
    sayings: Sequence[Saying] = pipe.recv()
    packets = [(at_s, packet(topic, payload)) for at_s, topic, payload in sayings]
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 1883)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greet(wire, f"site-{os.getpid()}")
        pipe.send(None)
        pipe.recv()
        pipe.send(_say(wire, packets))


def _say(wire: socket.socket, packets: Iterable[tuple[float, bytes]]) -> list[float]:
    began_s, sent_at_s, batch, batch_at_s = time.monotonic(), [], [], 0.0
    for at_s, said in packets:
        if batch and at_s - batch_at_s >= STEP_S:
            sent_at_s += [_sent(wire, batch, began_s + batch_at_s)] * len(batch)
            batch = []
        batch_at_s = batch_at_s if batch else at_s
        batch.append(said)
    return sent_at_s + [_sent(wire, batch, began_s + batch_at_s)] * len(batch)


def _sent(wire: socket.socket, batch: list[bytes], due_s: float) -> float:
    time.sleep(max(0.0, due_s - time.monotonic()))
    now_s = time.monotonic()
    wire.sendall(b"".join(batch))
    return now_s


def greet(wire: socket.socket, client_id: str) -> None:
    """Begin a session."""
    wire.sendall(_framed(0x10, PROTOCOL + _text(client_id)))
    wire.recv(CONNACK_BYTES)


def packet(topic: str, payload: bytes) -> bytes:
    """A message of QoS 0, ready to be sent."""
    return _framed(0x30, _text(topic) + payload)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack(">H", len(content)) + content


def _framed(kind: int, body: bytes) -> bytes:
    """An MQTT packet: kind, length in groups of seven bits, body."""
    length, groups = len(body), []
    while not groups or length:
        length, group = divmod(length, 128)
        groups.append(group | (0x80 if length else 0))
    return bytes((kind, *groups)) + body
