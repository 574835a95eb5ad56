"""A task that ends unasked ends the process."""

import asyncio
import subprocess
import sys

import pytest

from controller.endless import endless


async def returns():
    return


async def is_cancelled_from_within():
    raise asyncio.CancelledError


async def fails():
    raise OSError("no route")


@pytest.mark.parametrize("run", [returns, is_cancelled_from_within])
async def test_an_end_in_silence_is_an_error_and_ends_the_others_too(run):
    others = asyncio.create_task(asyncio.sleep(60))

    async def serve():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(endless("link", run, asyncio.Event()))
            await others

    with pytest.raises(ExceptionGroup) as ended:
        await asyncio.wait_for(serve(), 5.0)
    assert [str(error) for error in ended.value.exceptions] == [
        "task 'link' ended; the process ends with it, to be started anew"
    ]
    assert others.cancelled()


async def test_errors_pass_as_they_are():
    with pytest.raises(OSError, match="no route"):
        await endless("link", fails, asyncio.Event())


async def test_a_stop_is_no_error():
    stopping = asyncio.Event()
    stopping.set()
    task = asyncio.create_task(endless("link", asyncio.Event().wait, stopping))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


STUBBORN = """
import asyncio, os, signal
from controller.endless import end_on_signals, endless

async def swallows_a_cancellation():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(60)

async def main():
    stopping = asyncio.Event()
    end_on_signals(stopping)
    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(endless("link", swallows_a_cancellation, stopping))
    except asyncio.CancelledError:
        print("ended")

asyncio.run(main())
"""


def test_a_signal_ends_even_what_swallows_a_cancellation():
    ended = subprocess.run(
        [sys.executable, "-c", STUBBORN], check=False, capture_output=True, text=True, timeout=20
    )
    assert (ended.stdout, ended.stderr) == ("ended\n", "")
