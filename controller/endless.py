"""Tasks that live as long as their process.

A task group notices an error of its tasks, but neither a return nor a cancellation that nobody asked for:
both have been seen of network libraries after a lost broker. A link that ended so would be missed by
nobody, while all the rest goes on. Here such an end is an error: it ends the process, and the service
manager starts a new one, which holds what is safe until it knows better.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Final

CANCEL_AGAIN_S: Final = 0.2


async def endless(name: str, run: Callable[[], Awaitable[None]], stopping: asyncio.Event) -> None:
    """Await `run()`, which ends only once `stopping` is set. Raises RuntimeError when it ends otherwise.

    The first end sets `stopping`: that the others are cancelled then is as it should be.
    """
    try:
        await run()
    except asyncio.CancelledError:
        if stopping.is_set():
            raise
    finally:
        stopping.set()
    raise RuntimeError(f"task {name!r} ended; the process ends with it, to be started anew")


def end_on_signals(stopping: asyncio.Event) -> None:
    """SIGTERM and SIGINT set `stopping` and cancel the calling task with all others."""
    life = asyncio.current_task()
    assert life is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _end, life, stopping)


def _end(life: "asyncio.Task[object]", stopping: asyncio.Event) -> None:
    """Cancel all tasks, and again until `life` has ended.

    Once is not always enough: libraries have been seen to swallow a cancellation (`asyncio.wait_for` does, up
    to Python 3.11), and a task group passes it on to its tasks only once.
    """
    stopping.set()
    if not life.done():
        for task in asyncio.all_tasks():
            task.cancel()
        asyncio.get_running_loop().call_later(CANCEL_AGAIN_S, _end, life, stopping)
