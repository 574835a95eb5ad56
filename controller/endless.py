"""Tasks that live as long as their process.

A task group notices an error of its tasks, but neither a return nor a cancellation that nobody asked for:
both have been seen of network libraries after a lost broker. A link that ended so would be missed by
nobody, while all the rest goes on. Here such an end is an error: it ends the process, and the service
manager starts a new one, which holds what is safe until it knows better.
"""

import asyncio
from collections.abc import Awaitable, Callable


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
