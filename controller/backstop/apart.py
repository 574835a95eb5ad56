"""The backstop in a process apart from the beat, and what passes between the two.

TLS handshakes, JSON and what Python has to collect after them come in bunches. On the beat's own loop a
bunch makes it late by its whole length; a thread is no better, because both need the interpreter: the beat
was seen to wait 50 ms and more for it. So BMCs are talked to by a child process, at ordinary priority.

    here -> there    what was heard of every agent, twice a second; nothing more: end
    there -> here    what `said` has, whenever it changed

Both are lines of JSON on pipes. A child that ends is begun anew; one that hangs is an alarm. Until either is
back nothing is proven any longer than a proof may be old, and the law counts silent hosts at their most.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from controller.backstop.config import BackstopConfig
from controller.backstop.phase import Heard, Proven
from controller.backstop.said import Said, decode, encode
from controller.backstop.service import Hosts
from controller.clock import now_s
from controller.yaml_config import ConfigError
from protocols.redfish import RedfishConfigError

HEAR_S: Final = 0.5  # a quarter of the shortest `after_s`
TELL_S: Final = 0.2  # raised bounds are told twice before they are written: see `NodeBackstop`
TOLD_AGAIN_S: Final = 1.0  # though nothing has changed: a sign of life
SILENT_MAX_S: Final = 5.0  # of one of the two, for the other
LINE_MAX_BYTES: Final = 1024 * 1024  # 144 hosts in trouble take 100 kB
BEHIND_MAX_BYTES: Final = 64 * 1024  # of what was heard: a child that does not read gets no more
BEGIN_AGAIN_S: Final = (1.0, 30.0)
END_MAX_S: Final = 3.0  # a log-out takes two

log = structlog.get_logger(__name__)


class Begin(msgspec.Struct, frozen=True):
    """The first line to the child."""

    config: msgspec.Raw
    gpus: dict[str, int]
    state_dir: str


class Backstop:
    """The backstop of a block, as the controller has it.

    Args:
        config: of the backstop.
        gpus: how many every node has, by name.
        hear: what is known of a node's agent at this moment; called twice a second per node.
        state_dir: for what the limits were; of this controller alone.

    Raises:
        ConfigError: no password, or a BMC that cannot be used as configured.
    """

    def __init__(
        self,
        config: BackstopConfig,
        gpus: Mapping[str, int],
        hear: Callable[[str], Heard],
        state_dir: Path,
    ) -> None:
        password = config.password()
        try:
            for node in gpus:
                config.settings(node, password)
        except RedfishConfigError as error:
            raise ConfigError(f"backstop: {error}") from None
        self._config, self._gpus, self._hear = config, dict(gpus), hear
        self._state_dir = state_dir
        self._said = Said()
        self._said_at_s = now_s()
        self._fault = ""

    async def run(self) -> None:
        """Keep the child alive until cancelled; no limit is changed by that. It logs out of every BMC."""
        wait_s, most_s = BEGIN_AGAIN_S
        while True:
            began_s = now_s()
            try:
                status: object = await self._live()
            except (OSError, ValueError, msgspec.DecodeError) as error:  # no process to be had; a broken line
                status = repr(error)
            if now_s() - began_s > most_s:
                wait_s = BEGIN_AGAIN_S[0]
            self._fault = f"the process that talks to BMCs ended ({status}): begun anew"
            log.error("backstop", why=self._fault)
            await asyncio.sleep(wait_s)
            wait_s = min(2.0 * wait_s, most_s)

    async def _live(self) -> int | None:
        """One child, from its beginning to its end."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controller.backstop", stdin=PIPE, stdout=PIPE, limit=LINE_MAX_BYTES
        )
        assert child.stdin is not None
        begin = Begin(msgspec.Raw(self._config.model_dump_json().encode()), self._gpus, str(self._state_dir))
        child.stdin.write(msgspec.json.encode(begin) + b"\n")
        tasks = [asyncio.create_task(self._tell(child)), asyncio.create_task(self._listen(child))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await _end(child)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()  # a fault of ours ends us
        return child.returncode

    async def _tell(self, child: Process) -> None:
        assert child.stdin is not None
        while not child.stdin.is_closing():
            if child.stdin.transport.get_write_buffer_size() < BEHIND_MAX_BYTES:
                heard = {node: self._hear(node) for node in self._gpus}
                child.stdin.write(msgspec.json.encode(heard) + b"\n")
            await asyncio.sleep(HEAR_S)

    async def _listen(self, child: Process) -> None:
        assert child.stdout is not None
        while (line := await child.stdout.readline()).endswith(b"\n"):  # its last one may be torn
            self._said, self._said_at_s, self._fault = decode(line), now_s(), ""

    def proven(self, now_s: float) -> tuple[Proven, ...]:
        """Upper bounds that BMCs have shown: see `Said`."""
        return self._said.proven(now_s, self._config.proof_age_max_s)

    def conditions(self) -> Iterator[tuple[str, str]]:
        """Alarms: key and text."""
        silent_s = now_s() - self._said_at_s
        if self._fault or silent_s > SILENT_MAX_S:
            hangs = f"the process that talks to BMCs has said nothing for {SILENT_MAX_S:g} s: end it"
            yield "backstop process", self._fault or hangs
        yield from self._said.conditions()

    def told(self, now_s: float) -> list[dict[str, Any]]:
        """For the status: every node that is not simply watched."""
        return self._said.told(now_s)


async def _end(child: Process) -> None:
    """End of file means: log out and end. Whoever does not is killed."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        async with asyncio.timeout(END_MAX_S):
            await child.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()


# --- there ------------------------------------------------------------------------------------------------


class Ear:
    """What the controller has heard of the agents, as it last told."""

    def __init__(self) -> None:
        self._heard: Mapping[str, Heard] = {}
        self._at_s = now_s()

    def take(self, line: bytes) -> None:
        self._heard, self._at_s = msgspec.json.decode(line, type=dict[str, Heard]), now_s()

    def hear(self, node: str) -> Heard:
        """While the controller hangs nobody falls silent, and nobody obeys: who is released is held again."""
        heard = self._heard.get(node, Heard(0.0, obeys=False))
        if now_s() - self._at_s <= SILENT_MAX_S:
            return heard
        return Heard(heard.silent_s, obeys=False, limit_w=heard.limit_w)


async def serve(reader: asyncio.StreamReader, write: Callable[[bytes], Awaitable[None]]) -> None:
    """The child: until end of file. Raises ConfigError."""
    begin = msgspec.json.decode(await reader.readline(), type=Begin)
    config = BackstopConfig.model_validate_json(bytes(begin.config), strict=True)
    ear = Ear()
    hosts = Hosts(config, begin.gpus, ear.hear, Path(begin.state_dir))

    async def listen() -> None:
        while line := await reader.readline():
            ear.take(line)

    async def tell() -> None:
        before, at_s = b"", 0.0
        while True:
            line = encode(hosts.said())
            if line != before or now_s() - at_s >= TOLD_AGAIN_S:
                await write(line)
                before, at_s = line, now_s()
            await asyncio.sleep(TELL_S)

    tasks = [asyncio.create_task(one) for one in (listen(), tell(), hosts.run())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


def step_back() -> None:
    """The beat's real-time class is inherited; BMCs are nothing to hurry for."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(5)
