"""A task that ends unasked ends the process, and nothing keeps a process from ending."""

import asyncio
import subprocess
import sys
import time

import pytest

from controller.endless import Life


async def returns():
    return


async def is_cancelled_from_within():
    raise asyncio.CancelledError


async def fails():
    raise OSError("no route")


async def waits():
    await asyncio.sleep(60)


async def swallows_a_cancellation():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(60)


@pytest.mark.parametrize("run", [returns, is_cancelled_from_within])
@pytest.mark.parametrize("other", [waits, swallows_a_cancellation])
async def test_an_end_in_silence_is_an_error_and_ends_the_others_too(run, other):
    life = asyncio.create_task(Life().live({"link": run, "beat": other}))
    await asyncio.wait({life}, timeout=5.0)
    assert life.done()
    assert [str(error) for error in life.exception().exceptions] == [
        "task 'link' ended; the process ends with it, to be started anew"
    ]


async def test_errors_pass_as_they_are():
    with pytest.raises(ExceptionGroup) as ended:
        await Life().live({"link": fails, "beat": waits})
    assert [repr(error) for error in ended.value.exceptions] == ["OSError('no route')"]


@pytest.mark.parametrize("run", [waits, swallows_a_cancellation])
async def test_a_stop_is_no_error(run):
    life = Life()
    task = asyncio.create_task(life.live({"link": run, "beat": waits}))
    await asyncio.sleep(0)
    life.end()
    await asyncio.wait({task}, timeout=5.0)
    assert task.cancelled()


async def test_a_part_that_just_returns_when_it_is_stopped_is_no_error():
    async def polite():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    life = Life()
    task = asyncio.create_task(life.live({"link": polite}))
    await asyncio.sleep(0.01)
    life.end()
    await asyncio.wait({task}, timeout=5.0)
    assert task.cancelled()


PROCESS = """
import asyncio, os, signal, time
from controller.endless import Life, run_and_leave

async def waits_for_a_dead_disk():
    await asyncio.to_thread(time.sleep, 60)

async def main():
    life = Life()
    life.end_on_signals()
    asyncio.get_running_loop().call_later(0.3, os.kill, os.getpid(), signal.SIGTERM)
    try:
        await life.live({"disk": waits_for_a_dead_disk})
    except asyncio.CancelledError:
        print("ended")
    return 3

run_and_leave(main())
"""


def test_a_signal_ends_the_process_whatever_its_threads_wait_for():
    began_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS], check=False, capture_output=True, text=True, timeout=50
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "ended\n", "")
    assert time.monotonic() - began_s < 30.0, "it waited for the thread"


FAULT = """
from controller.endless import run_and_leave

async def main():
    raise OSError("no route")

run_and_leave(main())
"""


def test_a_fault_ends_the_process_with_its_trace_and_status_1():
    ended = subprocess.run(
        [sys.executable, "-c", FAULT], check=False, capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 1
    assert "no route" in ended.stdout + ended.stderr
