"""Bytes as decisions: an input of the fuzzer that tells a peer, move by move, what to do.

Whoever speaks in turns cannot be fuzzed with a message: what it answers depends on what it was asked. So the
input is a tape, read a byte at a time; at its end everybody behaves well, and what was broken has to heal.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

MOVES_MAX: Final = 2000  # what comes behind them would be more of the same


class Tape:
    def __init__(self, payload: bytes) -> None:
        self._payload, self._at = payload[:MOVES_MAX], 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._payload)

    def byte(self) -> int:
        """The next one; 0 behind the end."""
        self._at += 1
        return 0 if self._at > len(self._payload) else self._payload[self._at - 1]

    def word(self) -> int:
        return self.byte() << 8 | self.byte()

    def bytes(self, count: int) -> bytes:
        return bytes(self.byte() for _ in range(count))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.byte() % len(choices)]
