"""Calls that do not return, in threads that nobody waits for."""

import asyncio
import threading
import time

import pytest

from controller.agent.lanes import Lane, Stuck
from protocols.nvml import NvmlFault

DEADLINE_S = 0.8


@pytest.fixture
def gate():
    """Blocked calls wait for it; opened at the end so that no thread stays behind."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_results_and_faults_come_back_by_gpu():
    def refuse():
        raise NvmlFault(15, "lost")

    lane = Lane("test", deadline_s=DEADLINE_S, stuck=Stuck())
    for _ in range(3):  # the same thread serves again
        results = await lane.run({0: lambda: "a", 1: refuse, 2: lambda: "c"})
        assert (results[0], results[1].code, results[2]) == ("a", 15, "c")


async def test_a_fault_of_the_program_is_not_swallowed():
    lane = Lane("test", deadline_s=DEADLINE_S, stuck=Stuck())
    with pytest.raises(ZeroDivisionError):
        await lane.run({0: lambda: 1 / 0})


async def test_two_stuck_gpus_cost_two_deadlines_once_and_the_third_is_served(gate):
    lane = Lane("test", deadline_s=DEADLINE_S, stuck=Stuck())
    calls = {0: gate.wait, 1: gate.wait, 2: lambda: "c"}
    began_s = time.monotonic()
    results = await lane.run({0: gate.wait, 2: lambda: "c"})
    assert results[2] == "c"
    results = await lane.run(calls)
    assert 2 * DEADLINE_S <= time.monotonic() - began_s < 4 * DEADLINE_S
    assert results[2] == "c"
    began_s = time.monotonic()
    results = await lane.run(calls)
    assert time.monotonic() - began_s < DEADLINE_S / 2
    assert "has not returned" in results[0].sentence
    gate.set()
    while isinstance(results[0], NvmlFault) or isinstance(results[1], NvmlFault):
        await asyncio.sleep(0.005)
        results = await lane.run(calls)
    assert results == {0: True, 1: True, 2: "c"}


async def test_one_run_loses_at_most_two_deadlines(gate):
    lane = Lane("test", deadline_s=DEADLINE_S, stuck=Stuck())
    began_s = time.monotonic()
    results = await lane.run(dict.fromkeys(range(8), gate.wait))
    assert time.monotonic() - began_s < 3 * DEADLINE_S
    assert "not called this time" in results[7].sentence


async def test_what_is_stuck_in_one_lane_is_left_alone_by_the_other(gate):
    stuck = Stuck()
    reads, writes = (Lane(name, deadline_s=DEADLINE_S, stuck=stuck) for name in ("reads", "writes"))
    await reads.run({0: gate.wait})
    called = []
    results = await writes.run({0: lambda: called.append(0), 1: lambda: "written"})
    assert (called, results[1]) == ([], "written")
    assert "has not returned" in results[0].sentence


async def test_a_gpu_that_hangs_leaves_one_thread_per_lane_behind_however_long_it_hangs(gate):
    stuck = Stuck()
    reads, writes = (Lane(name, deadline_s=0.02, stuck=stuck) for name in ("left reads", "left writes"))
    for _ in range(5):
        await asyncio.gather(*(lane.run(dict.fromkeys(range(3), gate.wait)) for lane in (reads, writes)))
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("left ")]
    assert len(left) <= 2 * (3 + 1)  # and the one that serves each lane now


async def test_however_many_hang_those_that_are_well_are_served(gate):
    lane = Lane("test", deadline_s=0.01, stuck=Stuck())
    calls = dict.fromkeys(range(40), gate.wait) | {40: lambda: "well"}
    for _ in range(40):
        results = await lane.run(calls)
    assert results[40] == "well"
    assert all("has not returned" in results[gpu].sentence for gpu in range(40))


async def test_a_cancelled_run_leaves_a_lane_that_works(gate):
    lane = Lane("test", deadline_s=5.0, stuck=Stuck())
    running = asyncio.create_task(lane.run({0: gate.wait}))
    await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait({running})
    assert await lane.run({1: lambda: "b"}) == {1: "b"}
