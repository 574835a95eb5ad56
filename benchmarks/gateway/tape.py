"""A subscriber that does nothing but note when which bytes came: `Tape`.

It asks the broker for everything, with QoS 0, and keeps each piece that the socket gives with its moment on
the monotonic clock, the one that the device farm keeps. MQTT is read from the tape when the measurement is
over, so neither the one nor the other disturbs it. A message has arrived when its last byte has.
"""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

CONNECT: Final = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04tape"  # clean session, no keep-alive
SUBSCRIBE: Final = b"\x82\x06\x00\x01\x00\x01#\x00"
PUBLISH: Final = 3
RECEIVE_BYTES: Final = 1 << 20
ANSWER_MAX_S: Final = 5.0


class Message(NamedTuple):
    arrived_s: float
    topic: str
    payload: bytes


class Tape:
    """`with Tape(port) as tape:` runs; `messages()` reads what is on it so far."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_MAX_S)
        self._pieces: list[tuple[float, bytes]] = []
        self._thread = threading.Thread(target=self._run, name="tape")

    def __enter__(self) -> Self:
        self._socket.sendall(CONNECT + SUBSCRIBE)
        self._socket.settimeout(None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while piece := self._socket.recv(RECEIVE_BYTES):
            self._pieces.append((time.monotonic(), piece))

    def messages(self) -> Iterator[Message]:
        """What was published, in the order of its arrival."""
        rest = b""
        for arrived_s, piece in self._pieces[:]:
            rest += piece
            at = 0
            while (packet := _packet(rest, at)) is not None:
                kind, begin, at = packet
                if kind >> 4 == PUBLISH:
                    topic_end = begin + 2 + int.from_bytes(rest[begin : begin + 2], "big")
                    topic = rest[begin + 2 : topic_end].decode()
                    yield Message(arrived_s, topic, rest[topic_end:at])  # granted QoS 0: no packet number
            rest = rest[at:]


def _packet(stream: bytes, at: int) -> tuple[int, int, int] | None:
    """First byte, begin of its body and its end; None when it is not all there yet."""
    length = 0
    for place in range(4):
        if at + 1 + place >= len(stream):
            return None
        digit = stream[at + 1 + place]
        length |= (digit & 0x7F) << (7 * place)
        if digit < 0x80:
            begin = at + 2 + place
            return None if begin + length > len(stream) else (stream[at], begin, begin + length)
    raise ValueError("not MQTT: a length of more than four bytes")
