"""The life of a process: its endless tasks, and how they end.

A task group notices an error of its tasks, but neither a return nor a cancellation that nobody asked for:
both have been seen of network libraries after a lost broker. A link that ended so would be missed by
nobody, while all the rest goes on. Here such an end is an error: it ends the process, and the service
manager starts a new one, which holds what is safe until it knows better.

SIGHUP means: begin anew with the configuration as it stands, if it holds. The process replaces itself, so its
number stays; whoever is connected to another process stays connected.

Nothing may keep a process from ending. Libraries have been seen to swallow a cancellation
(`asyncio.wait_for` does, up to Python 3.11), and a task group passes it on to its tasks only once: so all
tasks are cancelled again and again. A thread that waits for a dead disk or a silent name server cannot be
cancelled at all: `run_and_leave` does not wait for it.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, NoReturn

import structlog

CANCEL_AGAIN_S: Final = 0.2
RELOAD: Final = -1  # exit status of a life that ends to begin anew

log = structlog.get_logger(__name__)


class Life:
    """The tasks of a process that live until one of them fails or a signal comes."""

    def __init__(self) -> None:
        self.reloads = False  # it ends only to begin anew
        self._stopping = False
        self._tasks: list[asyncio.Task[Any]] = []  # the first is the one that waits for the others

    def end_on_signals(self) -> None:
        """SIGTERM and SIGINT end the calling task and all that it will live by."""
        self._begin()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)

    def reload_on_signal(self, holds: Callable[[], bool]) -> None:
        """SIGHUP ends the process to begin anew, if `holds` says that it can."""

        def reload() -> None:
            if holds():
                self.reloads = True
                self.end()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)

    async def live(self, parts: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        """Run all parts until `end` is called. Raises an exception group when one fails, or just ends."""
        self._begin()
        async with asyncio.TaskGroup() as tasks:
            self._tasks += [
                tasks.create_task(self._endless(name, run), name=name) for name, run in parts.items()
            ]

    def _stop(self) -> None:
        """For good, whatever was under way."""
        self.reloads = False
        self.end()

    def end(self) -> None:
        """Cancel all tasks, and again until the first of them has ended."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._tasks and not self._tasks[0].done():
            asyncio.get_running_loop().call_later(CANCEL_AGAIN_S, self.end)

    def _begin(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks = [task]

    async def _endless(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except asyncio.CancelledError:
            if self._stopping:
                raise
        except BaseException:
            self._first_to_end()
            raise
        if not self._stopping:
            self._first_to_end()
            raise RuntimeError(f"task {name!r} ended; the process ends with it, to be started anew")

    def _first_to_end(self) -> None:
        """The group cancels the others, as it should be; whoever does not hear is told again."""
        if not self._stopping:
            self._stopping = True
            asyncio.get_running_loop().call_later(CANCEL_AGAIN_S, self.end)


def ending(life: Life) -> str:
    """What the service manager is told at the end."""
    if not life.reloads:
        return "STOPPING=1"
    return f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"


def run_and_leave(life: Coroutine[Any, Any, int]) -> NoReturn:
    """Run the coroutine, and end the process with the status it returns, without waiting for threads."""
    runner = asyncio.Runner(loop_factory=_loop_factory())  # not closed: that would wait for threads
    try:
        code = runner.run(life)
    except Exception:
        log.exception("ended by a fault")
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == RELOAD:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited: a second one must not end the new program
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  the same program anew
    os._exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed: it wakes within 0.3 ms, asyncio's own loop rounds to 1 ms."""
    try:
        import uvloop
    except ImportError:
        log.info("uvloop missing: beats may be 1 ms later")
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
