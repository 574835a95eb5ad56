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
    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Impatient(self))

    def time(self) -> float:
        return self._now_s

    def skip(self, wait_s: float) -> None:
        self._now_s += wait_s


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
