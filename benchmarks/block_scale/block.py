"""A block of any size: the real controller, agents and broker as processes, and this process as all the rest.

    controller   `powerblock run`, its beat at 20 Hz, store and journal on the local disk
    agents       `powerblock agent` for four nodes, `powerblock agent-farm` for the others, in two processes;
                 unmodified nvidia-ml-py on the simulated driver
    broker       mosquitto with mutual TLS and an access list, a certificate for every node
    this one     boards, meter, PDUs, the PLC with the emergency contact, and the site's operator, who speaks
                 over a TLS connection of his own

Ramps are agreed as steps, so that an order is carried out as soon as it is understood and the next one can
follow. Everything lives in a temporary folder and on loopback, and ends with the context.
"""

import asyncio
import gc
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
import yaml

from benchmarks.block_scale.boards import Boards
from benchmarks.live import POWERBLOCK, process
from benchmarks.speaker import greet, packet
from controller.image.feed import heard
from controller.image.wire import SOCKET_NAME
from controller.views.command import parsed
from firmware_sim import bench_config
from firmware_sim.bench_config import Outside, Written
from firmware_sim.contact_plc import ContactPlc
from firmware_sim.gpu_firmware import build_library, environment
from firmware_sim.grid_operator import GridEvent, notification
from firmware_sim.grid_side import EVENT_TOPIC, HEARTBEAT_TOPIC, GridSide
from firmware_sim.lifetime import end_tasks
from firmware_sim.modbus_device import ModbusDevice
from firmware_sim.scenario import Scenario, parse_scenario
from firmware_sim.usage import Used, used_by
from protocols.profile import load_profile

NODES_PER_RACK, GPUS_PER_NODE = 9, 8
GPUS_PER_RACK: Final = NODES_PER_RACK * GPUS_PER_NODE
BASE_KW, BASE_MIN_KW, BASE_MAX_KW = 7.0, 5.6, 10.0  # of a rack, beside its GPUs
RATING_KW, FAILSAFE_KW = 60.0, 31.0  # of a rack
SHED_KW, CURTAILED_KW = 30.0, 40.0  # of a rack: 300 and 400 W per GPU, which otherwise have 550 to 680 W
FARMS, APART = 2, 4
REPORT_S: Final = 0.1  # as a host has it
SELDOM_S: Final = 1.0
REPORT_AGE_MAX_S: Final = 0.5  # as a block has it
RACKS_AT_FULL_RATE: Final = 16
LEVEL, CONTACT, OPERATOR = "deep", "trip", "operator"
STEP_KW_PER_S: Final = 1e5  # a ramp that is over within a beat
HEARTBEAT_S: Final = 1.0
STEP_S: Final = 0.05
UP_MAX_S: Final = 300.0  # 640 TLS sessions, and every table sent and confirmed, on two cores
SETTLE_S: Final = 3.0  # base load and shares are found
ANSWER_MAX_S: Final = 10.0  # hundreds of times what is promised
HELD_S: Final = 0.5  # before it is taken back: the meter has shown it, its record is written
WORDS_MAX: Final = 3000  # of a log, when its process has failed
LOOK_S: Final = 0.002  # a limit that is written twice within it counts at its second time
LOWERED_RATIO: Final = 0.8  # of what it was: beyond what shares wander, short of what is asked for
SHED_RESTED_W, CURTAILED_RESTED_W = (
    440.0,
    550.0,
)  # every limit, before the signal: 0.8 of it is more than it leaves
REST_MAX_S: Final = 30.0


@dataclass(frozen=True)
class Reaction:
    """What came of one signal, seconds after it was sent: first and last limit written.

    `own_s`: the last one of the nodes whose agent has a process of its own, as it has on a host.
    """

    first_s: float
    last_s: float
    own_s: float


class Child(NamedTuple):
    """A process under test."""

    kind: str
    process: Popen[bytes]
    log_path: Path


class Voice:
    """The site's operator: a socket and nothing else, so that the time of sending is that of the `send`."""

    def __init__(self, grid: GridSide) -> None:
        plain = socket.create_connection((grid.broker.host, grid.broker.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = grid.broker.calling(OPERATOR)
        self._wire = plain if tls is None else tls.wrap_socket(plain, server_hostname=grid.broker.host)
        greet(self._wire, OPERATOR)
        self._standing: dict[str, GridEvent] = {}
        self._seq = 0

    def close(self) -> None:
        self._wire.close()

    def begin(self, event: GridEvent) -> float:
        """Announce it; returns when."""
        self._standing[event.id] = event
        return self._say(EVENT_TOPIC, notification(event, "CREATE"))

    def end(self, event: GridEvent) -> None:
        """Withdraw it."""
        del self._standing[event.id]
        self._say(EVENT_TOPIC, notification(event, "DELETE"))

    async def beat(self) -> None:
        """For ever."""
        while True:
            self._seq += 1
            sent_at = datetime.now(UTC).isoformat()
            said = {"sent_at": sent_at, "seq": self._seq, "event_ids": list(self._standing)}
            self._say(HEARTBEAT_TOPIC, said)
            await asyncio.sleep(HEARTBEAT_S)

    def _say(self, topic: str, said: Mapping[str, Any]) -> float:
        ready = packet(topic, json.dumps(said).encode())
        now_s = time.monotonic()
        self._wire.sendall(ready)
        return now_s


class Way(NamedTuple):
    """Of asking for less: what every limit must exceed, to be seen to fall, and how it is said."""

    rested_w: float
    ask: Callable[[], AbstractAsyncContextManager[float]]


class Block:
    """A block at work. Each way of asking is a context: yields when it was said, takes it back at the end."""

    def __init__(self, boards: Boards, voice: Voice, plc: ContactPlc, folder: Path) -> None:
        self.boards = boards
        self.pids: dict[str, list[int]] = {}  # of the processes, by what they are
        self._voice, self._plc, self._folder = voice, plc, folder
        self._said = 0
        self._sheds_read = 0
        curtailed_kw = CURTAILED_KW * self._racks
        self.ways: Mapping[str, Way] = {
            "alert": Way(SHED_RESTED_W, partial(self._event, "ALERT_GRID_EMERGENCY", None)),
            "panel": Way(SHED_RESTED_W, self._command),
            "contact": Way(SHED_RESTED_W, self._closed),
            "setpoint": Way(CURTAILED_RESTED_W, partial(self._event, "IMPORT_CAPACITY_LIMIT", curtailed_kw)),
        }

    async def react(self, way: str) -> Reaction:
        """Ask in that way, once every limit has room to fall; until every GPU is lowered.

        A limit that is never lowered counts as ANSWER_MAX_S. Raises RuntimeError: one finds no room.
        """
        await self._rested(way)
        before_w, written_s = self.boards.limits_w, np.full(len(self.boards), np.inf)
        async with self.ways[way].ask() as sent_s:
            async for _ in _looks(LOOK_S, ANSWER_MAX_S):
                new = (self.boards.limits_w < LOWERED_RATIO * before_w) & np.isinf(written_s)
                written_s[new] = self.boards.written_s[new]
                if np.isfinite(written_s).all():
                    break
            await asyncio.sleep(HELD_S)
        took_s = np.minimum(written_s - sent_s, ANSWER_MAX_S)
        own_s = took_s[: APART * GPUS_PER_NODE]
        return Reaction(float(took_s.min()), float(took_s.max()), float(own_s.max()))

    async def _rested(self, way: str) -> None:
        rested_w = self.ways[way].rested_w
        async for _ in _looks(STEP_S, REST_MAX_S):
            if (self.boards.limits_w > rested_w).all():
                return
        lowest_w = float(self.boards.limits_w.min())
        raise RuntimeError(
            f"{way}: a limit stays at {lowest_w:.0f} W for {REST_MAX_S:g} s, {rested_w:.0f} W are needed: "
            f"{self.status()['why']}"
        )

    def sheds(self) -> list[dict[str, Any]]:
        """What the controller has recorded about calls since this was asked last."""
        path = bench_config.sheds_path(self._folder)
        lines = path.read_text().splitlines()[self._sheds_read :] if path.exists() else []
        self._sheds_read += len(lines)
        return [json.loads(line) for line in lines]

    def used(self) -> dict[str, Used]:
        """By the processes so far, by what they are."""
        found = {name: [used_by(pid) for pid in pids] for name, pids in self.pids.items()}
        return {
            name: Used(sum(one.cpu_s for one in many if one), sum(one.memory_bytes for one in many if one))
            for name, many in found.items()
        }

    def status(self) -> dict[str, Any]:
        """What the controller says of itself; nothing before its first word."""
        path = bench_config.status_path(self._folder)
        told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return told

    @property
    def _racks(self) -> int:
        return len(self.boards) // GPUS_PER_RACK

    @property
    def is_up(self) -> bool:
        """Every node is leased and has its shed table, and the site is heard."""
        told = self.status()
        return bool(told) and told["mode"] == "controlled" and told["shed"]["armed"] == told["shed"]["nodes"]

    @asynccontextmanager
    async def _event(self, kind: str, limit_kw: float | None) -> AsyncIterator[float]:
        self._said += 1
        event = GridEvent(
            id=f"event-{self._said}", type=kind, limit_kw=limit_kw, starts_utc_s=time.time(), duration_s=None
        )
        try:
            yield self._voice.begin(event)
        finally:
            self._voice.end(event)

    @asynccontextmanager
    async def _closed(self) -> AsyncIterator[float]:
        self._plc.set(CONTACT, closed=True)
        try:
            yield time.monotonic()
        finally:
            self._plc.set(CONTACT, closed=False)

    @asynccontextmanager
    async def _command(self) -> AsyncIterator[float]:
        """As `powerblock shed LEVEL`, once its Python has started and the socket has told what there is."""
        async with heard(self._folder / "run" / SOCKET_NAME) as feed:
            await asyncio.sleep(STEP_S)
            sent_s = time.monotonic()
            asked = asyncio.create_task(feed.command(parsed("shed", [f"level={LEVEL}"])))
            try:
                yield sent_s
            finally:
                await asked
                await feed.command(parsed("end_shed", []))


@asynccontextmanager
async def block_of(racks: int) -> AsyncIterator[Block]:
    """A block of so many racks, up and settled. Raises RuntimeError with the last words of whoever failed."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="powerblock-bench-")))
        scenario = _scenario(racks)
        spec = scenario.block
        drivers = {**{node.name: (node,) for node in spec.apart}, **spec.farms}
        boards = Boards(drivers, folder, BASE_KW * 1e3)
        plc = ContactPlc((CONTACT,), folder)
        urls = await _served(stack, boards, plc, scenario)
        grid = await stack.enter_async_context(GridSide(scenario, folder))
        outside = Outside(urls, plc_profile=plc.profile_path)
        written = bench_config.write_configs(scenario, folder, grid, outside)
        _without_cooling(written.block)
        _reporting_every(report_period_s(racks), written)
        voice = stack.enter_context(closing(Voice(grid)))
        block = Block(boards, voice, plc, folder)
        children = list(_processes(stack, boards, written, scenario, folder))
        broker = grid.broker.child
        assert broker is not None
        assert broker.pid is not None
        block.pids = {"broker": [broker.pid]}
        for child in children:
            block.pids.setdefault(child.kind, []).append(child.process.pid)
        world = [asyncio.create_task(voice.beat()), asyncio.create_task(_let_time_pass(boards))]
        stack.push_async_callback(end_tasks, world)
        gc.collect()
        gc.freeze()  # a full collection here would look like a slow block
        stack.callback(gc.unfreeze)
        await _up(block, children)
        await asyncio.sleep(SETTLE_S)
        yield block


def _processes(
    stack: AsyncExitStack, boards: Boards, written: Written, scenario: Scenario, folder: Path
) -> Iterator[Child]:
    """The agents, then the controller; they end with the stack."""
    library = build_library(folder)
    apart = [node.name for node in scenario.block.apart]
    for name, (verb, path) in written.agents(apart).items():
        env, log_path = environment(library, boards.memories[name].path), folder / f"{name}.log"
        child = stack.enter_context(process([*POWERBLOCK, verb, str(path)], log_path, env))
        yield Child("agents", child, log_path)
    log_path = folder / "controller.log"
    child = stack.enter_context(process([*POWERBLOCK, "run", str(written.block)], log_path))
    yield Child("controller", child, log_path)


def _scenario(racks: int) -> Scenario:
    content = {
        "name": "bench",
        "duration_s": 1,
        "site": {"signals": "bare", "broker": "mosquitto", "tls": "mutual"},
        "block": {
            "name": "hall-a",
            "gpu": "H100",
            "feed_rating_kw": RATING_KW * racks,
            "base_load_min_kw": BASE_MIN_KW * racks,
            "base_load_max_kw": BASE_MAX_KW * racks,
            "failsafe_kw": FAILSAFE_KW * racks,
            "ramp_down_kw_per_s": STEP_KW_PER_S,
            "ramp_up_kw_per_s": STEP_KW_PER_S,
            "racks": {"count": racks},
            "nodes": {"per_rack": NODES_PER_RACK, "gpus": GPUS_PER_NODE},
            "farm": {"processes": FARMS, "apart": APART},
            "shed": {
                "levels": [{"name": LEVEL, "kw": SHED_KW * racks}],
                "contacts": {CONTACT: LEVEL},
                "alerts": {"ALERT_GRID_EMERGENCY": LEVEL},
            },
        },
    }
    return parse_scenario(content, "bench")


async def _served(
    stack: AsyncExitStack, boards: Boards, plc: ContactPlc, scenario: Scenario
) -> dict[str, str]:
    """Meter, PDUs and PLC, serving: device -> url."""
    pdu = load_profile("xerus_pdu")
    devices = {
        "meter": ModbusDevice(load_profile("pm5000_meter"), boards.meter),
        ContactPlc.NAME: plc.device,
        **{
            f"{rack.name}-{feed}": ModbusDevice(pdu, boards.inlet(rack.name))
            for rack in scenario.block.racks
            for feed in "ab"
        },
    }
    for device in devices.values():
        await stack.enter_async_context(device)
    return {"cdu": "", **{name: device.url for name, device in devices.items()}}


def _without_cooling(path: Path) -> None:
    """A plant that nobody simulates here is not configured either."""
    config = yaml.safe_load(path.read_text())
    del config["cooling"]
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def report_period_s(racks: int) -> float:
    """Two cores carry the agents of 1,152 GPUs and what is measured; more of them report seldom here."""
    return REPORT_S if racks <= RACKS_AT_FULL_RATE else SELDOM_S


def _reporting_every(period_s: float, written: Written) -> None:
    for path in written.nodes.values():
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**config, "report_period_s": period_s}, sort_keys=False))
    config = yaml.safe_load(written.block.read_text())
    config.setdefault("agents", {})["report_age_max_s"] = max(REPORT_AGE_MAX_S, 2.0 * period_s)
    written.block.write_text(yaml.safe_dump(config, sort_keys=False))


async def _let_time_pass(boards: Boards) -> None:
    while True:
        boards.step(STEP_S)
        await asyncio.sleep(STEP_S)


async def _up(block: Block, children: Sequence[Child]) -> None:
    deadline_s = time.monotonic() + UP_MAX_S
    while not block.is_up:
        late = time.monotonic() > deadline_s
        for _, child, log_path in children[::-1]:  # the controller knows best what is missing
            if late or child.poll() is not None:
                why = "not up in time" if late else f"ended with {child.returncode}"
                raise RuntimeError(f"{why}; {log_path.name} ends so:\n{log_path.read_text()[-WORDS_MAX:]}")
        await asyncio.sleep(STEP_S)


async def _looks(every_s: float, within_s: float) -> AsyncIterator[None]:
    """Turns of a loop that leaves when it has seen what it waits for, or when the time is over."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        yield
        await asyncio.sleep(every_s)
