"""Driver calls that may never return, made so that nobody has to wait for them.

A call into the GPU driver takes milliseconds, until one day it takes 45 seconds or for ever. A thread in it
cannot be stopped, so it is left behind: its GPU counts as stuck and is not called again, by anyone, until
the call has returned; a new thread takes the other GPUs on. One lane reads and one writes. More threads
would not help: the driver makes callers queue behind a lock of its own.

Since nobody calls a stuck GPU, it keeps one thread per lane at most, however long it hangs and whatever the
others do: no number of hung GPUs takes a lane from one that is well. Threads left behind are daemons: they
never keep the process from ending, and systemd's restart finds the GPU's limit as it is.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from controller.clock import now_s
from protocols.nvml import NvmlFault

T = TypeVar("T")

TIMEOUT: Final = 10  # nvmlReturn for "the driver did not answer in time"
STUCK_PER_RUN_MAX: Final = 2  # deadlines one sweep may lose before the rest waits for the next sweep


@dataclass(eq=False)
class _Batch(Generic[T]):
    """Calls handed to a thread. `lock` guards what thread and event loop both touch."""

    calls: list[tuple[int, Callable[[], T]]]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Event = field(default_factory=asyncio.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    results: dict[int, T | BaseException] = field(default_factory=dict)
    calling: int | None = None
    since_s: float = 0.0
    abandoned: bool = False


class Stuck:
    """The calls that have not returned, of all lanes."""

    def __init__(self) -> None:
        self._calls: dict[_Batch[Any], tuple[int, float]] = {}

    def add(self, batch: _Batch[Any], gpu: int, since_s: float) -> None:
        self._calls[batch] = (gpu, since_s)

    def returned(self, batch: _Batch[Any]) -> None:
        self._calls.pop(batch, None)

    def fault(self, gpu: int) -> NvmlFault | None:
        """Why this GPU must not be called now; None: it may be."""
        since = [since_s for stuck_gpu, since_s in list(self._calls.values()) if stuck_gpu == gpu]
        if not since:
            return None
        return NvmlFault(
            TIMEOUT,
            f"a driver call has not returned for {now_s() - min(since):.1f} s; the GPU is left alone "
            "until it does: see the kernel log, it may need a reset",
        )


class Lane:
    """One thread at a time, one call at a time, a deadline for each call."""

    def __init__(self, name: str, *, deadline_s: float, stuck: Stuck) -> None:
        self._name = name
        self._deadline_s = deadline_s
        self._stuck = stuck
        self._inbox: SimpleQueue[_Batch[Any]] | None = None

    async def run(self, calls: Mapping[int, Callable[[], T]]) -> dict[int, T | NvmlFault]:
        """Make one call per GPU, in the order given; returns the result or the fault of each.

        Takes at most STUCK_PER_RUN_MAX deadlines beyond the time of the calls that return in time.
        Raises whatever a call raises that is not an NvmlFault: a fault of the program.
        """
        results: dict[int, T | NvmlFault] = {}
        waiting: list[tuple[int, Callable[[], T]]] = []
        for gpu, call in calls.items():
            fault = self._stuck.fault(gpu)
            if fault is None:
                waiting.append((gpu, call))
            else:
                results[gpu] = fault
        newly_stuck = 0
        while waiting and newly_stuck < STUCK_PER_RUN_MAX:
            batch = _Batch(waiting, asyncio.get_running_loop())
            stuck_gpu = await self._attempt(batch)
            results.update(_expected(batch.results))
            if stuck_gpu is not None:
                newly_stuck += 1
                fault = self._stuck.fault(stuck_gpu)
                results[stuck_gpu] = fault or NvmlFault(TIMEOUT, "a driver call returned too late to be used")
            waiting = [(gpu, call) for gpu, call in waiting if gpu not in results]
        for gpu, _ in waiting:
            results[gpu] = NvmlFault(TIMEOUT, "not called this time: the driver blocks calls to other GPUs")
        return results

    async def _attempt(self, batch: _Batch[T]) -> int | None:
        """Wait until the batch is done or one call is late; returns the GPU of the late call."""
        if self._inbox is None:
            self._inbox = SimpleQueue()
            thread = threading.Thread(target=self._work, args=(self._inbox,), name=self._name, daemon=True)
            thread.start()
        self._inbox.put(batch)
        wait_s = self._deadline_s
        try:
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        await batch.done.wait()
                except TimeoutError:
                    wait_s = self._left_s(batch)
                    if wait_s <= 0:
                        return self._abandon(batch)
                else:
                    return None
        except asyncio.CancelledError:
            self._abandon(batch)
            raise

    def _left_s(self, batch: _Batch[T]) -> float:
        with batch.lock:
            return self._deadline_s if batch.calling is None else batch.since_s + self._deadline_s - now_s()

    def _abandon(self, batch: _Batch[T]) -> int | None:
        """Leave the thread to its call; returns the GPU it is in, None if it has just come back."""
        with batch.lock:
            batch.abandoned = True
            self._inbox = None
            if batch.calling is not None:
                self._stuck.add(batch, batch.calling, batch.since_s)
            return batch.calling

    def _work(self, inbox: SimpleQueue[_Batch[T]]) -> None:
        while _complete(inbox.get(), self._stuck):
            pass


def _complete(batch: _Batch[T], stuck: Stuck) -> bool:
    """Make the calls of a batch, in a thread; False: the lane has gone on without this thread."""
    for gpu, call in batch.calls:
        with batch.lock:
            if batch.abandoned:
                return False
            batch.calling, batch.since_s = gpu, now_s()
        result = _outcome(call)
        with batch.lock:
            batch.calling = None
            if batch.abandoned:
                stuck.returned(batch)
                return False
            batch.results[gpu] = result
    with batch.lock:
        if not batch.abandoned:
            batch.loop.call_soon_threadsafe(batch.done.set)
        return not batch.abandoned


def _outcome(call: Callable[[], T]) -> T | BaseException:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001  raised again in the event loop, see `_expected`
        return error


def _expected(results: Mapping[int, T | BaseException]) -> dict[int, T | NvmlFault]:
    expected: dict[int, T | NvmlFault] = {}
    for gpu, result in results.items():
        if isinstance(result, BaseException) and not isinstance(result, NvmlFault):
            raise result
        expected[gpu] = result
    return expected
