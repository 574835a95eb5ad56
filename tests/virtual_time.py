"""An event loop whose clock jumps to the next timer instead of waiting for it: an hour passes in a moment.

For what waits and does no IO of its own, on a transport that is a function or always fails: with real sockets
the clock would run away from them.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`early_s`: how much too early its timers come; loops that count milliseconds round some of them down."""

    def __init__(self, early_s: float = 0.0) -> None:
        self._now_s, self._early_s = 0.0, early_s
        super().__init__(_Impatient(self))
        self._clock_resolution = max(self._clock_resolution, early_s)

    def time(self) -> float:
        return self._now_s

    def begin_anew(self) -> None:
        """At 0; nothing may be under way."""
        self._now_s = 0.0

    def skip(self, wait_s: float) -> None:
        self._now_s += max(wait_s - 0.99 * self._early_s, 0.0)


class _Impatient(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits for something that no time will bring")
        if not ready and timeout:
            self._loop.skip(timeout)
        return ready


def in_no_time(life: Coroutine[object, object, T]) -> T:
    """Run it to its end on a clock of its own, which begins at 0."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(life)
