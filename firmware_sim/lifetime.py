"""How a run ends: with a sentence, or by its tasks being told to."""

import asyncio
from collections.abc import Sequence
from typing import Final

CANCEL_AGAIN_S: Final = 0.2


class RigError(RuntimeError):
    """The run cannot start or go on; the text says whose fault it is and what to do."""


async def end_tasks(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended; one that failed on its own raises here.

    Once is not enough: `asyncio.wait_for` of Python 3.11 loses a cancellation that comes in the same moment
    as the result it waits for, and a failed farewell of the MQTT client turns one into an MqttError.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.result()
