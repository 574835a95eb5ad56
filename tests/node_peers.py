"""Peers from the Node.js world: installed once, run as child processes, spoken to in lines of JSON.

The packages and their versions are fixed by `tests/node/package-lock.json`; they land in
`tests/node/node_modules`, which git ignores, and stay there. Where there is no npm, or no registry behind
it, the tests that need them are skipped and say so.

A peer is a script of `tests/node`. It reads one JSON object per line from its standard input, answers each
with one line that carries the same `id`, and may say things of its own accord (lines without an `id`). It
ends when its input ends, so none outlives its test.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

FOLDER = Path(__file__).parent / "node"
MODULES = FOLDER / "node_modules"
NPM, NODE = shutil.which("npm"), shutil.which("node")
NODE_LEAST = 20  # what the packages ask for
INSTALL_WAIT_MAX_S = 100.0  # 15 s with a near registry; below the time a test may take
ANSWER_WAIT_MAX_S = 40.0  # a server makes its certificates when it first starts
LINE_MAX_BYTES = 1 << 22  # an address space of some thousand variables in one line


class PeerFault(AssertionError):
    """What a peer says when it cannot do as told."""


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Folder of the installed packages; skips where they cannot be had."""
    if NPM is None or NODE is None:
        pytest.skip("no node or npm here: install the packages nodejs and npm")
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < NODE_LEAST:
        pytest.skip(f"node {version.strip()} is too old: install nodejs {NODE_LEAST} or newer")
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = MODULES / ".installed-for"
    with _alone():
        if not (stamp.exists() and stamp.read_text() == wanted):
            _install()
            stamp.write_text(wanted)
    return MODULES


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One test process at a time: others wait here until the packages are there."""
    with (FOLDER / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install() -> None:
    assert NPM is not None
    command = [NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    command += ["--fetch-retries=1", "--fetch-timeout=20000"]
    try:
        done = subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_WAIT_MAX_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the npm registry did not deliver within {INSTALL_WAIT_MAX_S:g} s")
    if done.returncode:
        pytest.skip(f"npm cannot install tests/node: {done.stderr.strip()[-300:]}")


class NodePeer:
    """A script of `tests/node` at work. Used as an async context it is started, and gone afterwards.

    `heard` are the lines it said of its own accord, oldest first.
    """

    def __init__(self, script: str, **environment: str) -> None:
        self._script, self._environment = script, environment
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._more = asyncio.Event()
        self.heard: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        assert NODE is not None
        self._process = await asyncio.create_subprocess_exec(
            NODE,
            str(FOLDER / self._script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=FOLDER,
            env=os.environ | self._environment,
            limit=LINE_MAX_BYTES,
        )
        self._complaints = asyncio.create_task(self._process.stderr.read())
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(self._listening, self._complaints, return_exceptions=True)
        self._process._transport.close()  # the pipes too, or the interpreter complains of them later

    async def ask(self, verb: str, **arguments: Any) -> Any:
        """What the peer answers; PeerFault with its own words where it could not."""
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        line = json.dumps({"id": number, "verb": verb, **arguments})
        self._process.stdin.write(line.encode() + b"\n")
        async with asyncio.timeout(ANSWER_WAIT_MAX_S):
            answer = await future
        if "fault" in answer:
            raise PeerFault(f"{self._script} {verb}: {answer['fault']}")
        return answer.get("answer")

    async def until(self, wanted: Any, within_s: float = 15.0) -> dict[str, Any]:
        """The first line of its own accord, heard so far or from now on, that `wanted` accepts."""
        seen = 0
        async with asyncio.timeout(within_s):
            while True:
                for line in self.heard[seen:]:
                    if wanted(line):
                        return line
                seen = len(self.heard)
                if self._listening.done():
                    raise PeerFault(f"{self._script} ended: {await self._last_words()}")
                self._more.clear()
                await self._more.wait()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def _listen(self) -> None:
        while line := await self._process.stdout.readline():
            try:
                said = json.loads(line)
            except ValueError:
                continue  # a library that prints
            if not isinstance(said, dict):
                continue
            if (future := self._waiting.pop(said.get("id"), None)) is not None:
                if not future.done():
                    future.set_result(said)
            else:
                self.heard.append(said)
                self._more.set()
        last_words = await self._last_words()
        for future in self._waiting.values():
            if not future.done():
                future.set_result({"fault": f"it ended: {last_words}"})
        asyncio.get_running_loop().call_soon(self._more.set)  # once this task is done

    async def _last_words(self) -> str:
        return (await self._complaints).decode(errors="replace")[-2000:]
