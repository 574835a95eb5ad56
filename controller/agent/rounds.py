"""The rounds of an agent process: sweep, beat, apply; for its one node, or for all nodes of a farm.

Tasks, none of which waits for anything that may not come:
    sweep   reads the GPUs, group by group, each group once per report period, spread over it; then beats
            their nodes: time passes for the lease, a report goes out. A stuck GPU costs one deadline, once
    watch   beats the nodes that no sweep has beaten in time, because a driver call hangs
    apply   writes what is due as soon as it is: an order, a ramp, a limit that somebody else changed. What
            comes in while it writes is written next, all nodes together
    links   one per node: orders come in by callback, the newest report waits for the wire
    observe where nothing is written: how long calls take, and how often sensors renew

All nodes share one lane of reads and one of writes: the driver lets callers queue anyway.
"""

import asyncio
import gc
import itertools
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import structlog

from controller.agent.lanes import Lane, Stuck
from controller.agent.lease import Mode
from controller.agent.node import Agent, Calls, DriverGoneError
from controller.agent.observing import Observer
from controller.clock import now_s
from controller.endless import Life
from controller.notify import notify
from protocols import agent_link
from protocols.nvml import NO_PERMISSION, NvmlFault

GROUP_GPUS_MAX: Final = 128  # the largest host is one group; a farm is swept in parts, not in one burst
BEAT_LATE_RATIO: Final = 1.5  # of the report period: longer than it, or each sweep would bring two beats
WATCH_RATIO: Final = 0.5  # how often that is looked at
READ_PART_GPUS: Final = 16  # a write waits for as many reads at most
GIVE_WAY_S: Final = 0.005  # per part: a write that hangs must not stop the reports
SWITCH_S: Final = 0.0005  # every driver call lends the interpreter out, and would get it back after 5 ms
RECORD_WAIT_MAX_S: Final = 1.0  # for the disk
WATCHDOG_PERIOD_S: Final = 1.0
HEALTHY_AGE_MAX_S: Final = 5.0  # no sweep or no end of writing for longer: let systemd start a new process

log = structlog.get_logger(__name__)


class Link(Protocol):
    """What an agent needs of a broker connection; `protocols.mqtt.MqttLink` is one."""

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None: ...
    async def run(self) -> None: ...


class NotPermittedError(RuntimeError):
    """The driver refuses our writes; the text says what to grant."""


class Rounds:
    """All nodes of this process, each with its own link; they have the same report period."""

    def __init__(self, nodes: Sequence[tuple[Agent, Link]]) -> None:
        self._nodes = nodes
        config = nodes[0][0].config
        self._period_s = config.report_period_s
        self._groups = _grouped(nodes)
        stuck = Stuck()
        self._reads = Lane("nvml read", deadline_s=config.call_deadline_s, stuck=stuck)
        self._writes = Lane("nvml write", deadline_s=config.call_deadline_s, stuck=stuck)
        self._observer: Observer | None = None
        agents = [agent for agent, _ in nodes]
        if agents[0].lease.mode is Mode.OBSERVE:
            lane = Lane("nvml observe", deadline_s=config.call_deadline_s, stuck=stuck)
            self._observer = Observer(agents, lane)
        self._changed: dict[Agent, Link] = {}
        self._wake = asyncio.Event()
        self._applying_since_s: float | None = None
        self._watchdog_at_s = 0.0
        for agent, link in nodes:
            agent.on_change = _waker(self._changed, self._wake, agent, link)

    async def serve(self, life: Life) -> None:
        """Run until `life` ends. Raises NotPermittedError, DriverGoneError."""
        for group in self._groups:
            await self._sweep(group)
        await self._check_permission()
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # what lives now lives for good: collections need not walk it again
        notify("READY=1")
        for agent, _ in self._nodes:
            log.info("agent ready", node=agent.config.node, gpus=len(agent.views), mode=agent.lease.mode)
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            f"link {agent.config.node}": link.run for agent, link in self._nodes
        }
        parts |= {
            "sweep": self._sweep_for_ever,
            "watch": self._watch_for_ever,
            "apply": self._apply_for_ever,
        }
        if self._observer is not None:
            parts["observe"] = self._observer.run
        try:
            await life.live(parts)
        except BaseExceptionGroup as ended:
            expected, unexpected = ended.split(DriverGoneError)
            if expected is None or unexpected is not None:
                raise
            raise expected.exceptions[0] from None

    # ---- reading and time ----

    async def _sweep_for_ever(self) -> None:
        step_s = self._period_s / len(self._groups)
        next_at_s = now_s()
        for group in itertools.cycle(self._groups):
            next_at_s = max(next_at_s + step_s, now_s())
            await self._sweep(group)
            for agent, link in group:
                self._beat(agent, link)
                await asyncio.sleep(0)  # a message that has come goes first
            await self._read_slowly(group)
            self._tell_systemd()
            await asyncio.sleep(max(0.0, next_at_s - now_s()))

    async def _sweep(self, group: Sequence[tuple[Agent, Link]]) -> None:
        began_at_s = now_s()
        calls = _joined(agent.reads() for agent, _ in group)
        if self._observer is not None:
            calls = self._observer.timed(calls)
        results: dict[int, Any] = {}
        for keys in _parts(list(calls)):
            if self._applying_since_s is not None:
                await asyncio.sleep(GIVE_WAY_S)  # the driver has one door, and writes go first
            results |= await self._reads.run({key: calls[key] for key in keys})
        for agent, _ in group:
            agent.swept(results, began_at_s)

    async def _read_slowly(self, group: Sequence[tuple[Agent, Link]]) -> None:
        for agent, _ in group:
            if calls := agent.slow_reads(now_s()):
                await self._reads.run(calls)  # the next sweep brings what is new

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(WATCH_RATIO * self._period_s)
            for agent, link in self._nodes:
                if now_s() - agent.beaten_at_s > BEAT_LATE_RATIO * self._period_s:
                    self._beat(agent, link)
            self._tell_systemd()

    def _beat(self, agent: Agent, link: Link) -> None:
        agent.beat(now_s())
        self._publish(agent, link)
        if facts := agent.facts(now_s()):
            link.publish(agent_link.facts_topic(agent.config.block, agent.config.node), facts)
        agent.log_faults()

    def _publish(self, agent: Agent, link: Link) -> None:
        if report := agent.report(now_s()):
            link.publish(agent_link.report_topic(agent.config.block, agent.config.node), report)

    def _tell_systemd(self) -> None:
        now = now_s()
        if now < self._watchdog_at_s:
            return
        oldest_s = min(agent.swept_at_s for agent, _ in self._nodes)
        healthy = now - oldest_s < HEALTHY_AGE_MAX_S and (
            self._applying_since_s is None or now - self._applying_since_s < HEALTHY_AGE_MAX_S
        )
        if not healthy:
            return
        self._watchdog_at_s = now + WATCHDOG_PERIOD_S
        modes = ", ".join(sorted({agent.lease.mode for agent, _ in self._nodes}))
        gpus = sum(len(agent.views) for agent, _ in self._nodes)
        faulty = sum(agent.log_faults() for agent, _ in self._nodes)
        notify(f"WATCHDOG=1\nSTATUS={modes}, {gpus} GPUs, {faulty} with a fault")

    # ---- writing ----

    async def _apply_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(0)  # what has come for other nodes as well is written together
            self._wake.clear()
            changed = dict(self._changed)
            self._changed.clear()
            self._applying_since_s = now_s()
            await self._apply(list(changed))
            self._applying_since_s = None
            for agent, link in changed.items():
                if agent.obeyed(now_s()):
                    self._publish(agent, link)  # the acknowledgement does not wait for the next beat
                agent.end_waiting()

    async def _apply(self, agents: Sequence[Agent]) -> None:
        """Write what is due and read it back. After that every GPU holds its limit or has a fault."""
        await _all_on_disk(agents, Agent.record)
        now = now_s()
        written = await self._writes.run(_joined(agent.limit_writes(now) for agent in agents))
        found = await self._writes.run(_joined(agent.read_backs() for agent in agents))
        now = now_s()
        for agent in agents:
            agent.limits_wrote(written, found, now)
        ceilings = _joined(agent.clock_writes(now) for agent in agents)
        await _all_on_disk(agents, Agent.record_ceilings)
        clocked = await self._writes.run(ceilings)
        now = now_s()
        for agent in agents:
            agent.clocks_wrote(clocked, now)
        for agent in agents:
            await self._set_up(agent)

    async def _set_up(self, agent: Agent) -> None:
        """Profiles and presets of node.yaml: after all limits, and after what was found is on disk."""
        if surveys := agent.surveys(now_s()):
            found = await self._writes.run(surveys)
            await _on_disk(agent, agent.surveyed(found, now_s()))
            agent.set_up(await self._writes.run(agent.set_ups(now_s())), now_s())

    async def _check_permission(self) -> None:
        """Raises NotPermittedError."""
        for agent, _ in self._nodes:
            if not (probe := agent.permission_probe()):
                continue
            if record := agent.record():
                await _on_disk(agent, record)
            for result in (await self._writes.run(probe)).values():
                if isinstance(result, NvmlFault) and result.code == NO_PERMISSION:
                    raise NotPermittedError(result.sentence)


async def _all_on_disk(
    agents: Sequence[Agent], to_record: Callable[[Agent], Callable[[], None] | None]
) -> None:
    """What is about to be changed, of every agent that may change it: each has a file of its own."""
    leading = [agent for agent in agents if agent.lease.mode is not Mode.OBSERVE]
    records = [(agent, record) for agent in leading if (record := to_record(agent))]
    if records:
        await asyncio.gather(*(_on_disk(agent, record) for agent, record in records))


async def _on_disk(agent: Agent, record: Callable[[], None]) -> None:
    try:
        async with asyncio.timeout(RECORD_WAIT_MAX_S):
            await asyncio.to_thread(record)
    except OSError as error:  # TimeoutError is one
        # A full or dead disk must not keep a limit from being lowered: the log remembers instead.
        found_w = [view.first_w for view in agent.views]
        log.warning("found limits not on disk", node=agent.config.node, why=repr(error), found_w=found_w)


def _parts(keys: list[int]) -> Iterator[list[int]]:
    for first in range(0, len(keys), READ_PART_GPUS):
        yield keys[first : first + READ_PART_GPUS]


def _joined(calls_of: Iterable[Calls]) -> Calls:
    joined: Calls = {}
    for calls in calls_of:
        joined |= calls
    return joined


def _grouped(nodes: Sequence[tuple[Agent, Link]]) -> list[list[tuple[Agent, Link]]]:
    groups: list[list[tuple[Agent, Link]]] = []
    gpus = GROUP_GPUS_MAX
    for agent, link in nodes:
        if gpus + len(agent.views) > GROUP_GPUS_MAX:
            groups.append([])
            gpus = 0
        groups[-1].append((agent, link))
        gpus += len(agent.views)
    return groups


def _waker(changed: dict[Agent, Link], wake: asyncio.Event, agent: Agent, link: Link) -> Callable[[], None]:
    def on_change() -> None:
        changed[agent] = link
        wake.set()

    return on_change
