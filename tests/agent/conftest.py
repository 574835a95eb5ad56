"""A node to test on: real agent process, real broker, real driver calls; the GPUs alone are simulated."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from firmware_sim.gpu_firmware import NONE, GpuMemory, build_library, environment
from protocols import agent_link
from protocols.agent_link import Call, Facts, Level, Order, Report, Table
from protocols.mqtt import MqttLink, Subscription

AGENT = "import sys, pathlib; from controller.agent.service import main; sys.exit(main(pathlib.Path(sys.argv[1]), '--observe' in sys.argv))"
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """Url of a mosquitto of our own."""
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here")
    port = free_port()
    config = tmp_path_factory.mktemp("broker") / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
    )
    process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            break
        except OSError:
            assert time.monotonic() < deadline_s, "mosquitto does not start"
            time.sleep(0.02)
    yield f"mqtt://127.0.0.1:{port}"
    process.terminate()
    process.wait(5)


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


class Node:
    """A host with four GPUs, its agent, and a controller that speaks to it."""

    def __init__(self, folder: Path, library: Path, url: str, *, gpu_count: int = 4, **settings) -> None:
        self.folder = folder
        self.library = library
        self.memory = GpuMemory.create(folder / "gpus", gpu_count, node=folder.name)
        self.reports: list[Report] = []
        self.facts: list[Facts] = []
        self.seq = 0
        self.file = folder / "node.yaml"
        self.file.write_text(
            yaml.safe_dump(
                {
                    "block": "b",
                    "node": folder.name,
                    "mqtt": {"url": url},
                    "fallback_w": 300,
                    "fallback_ramp_w_per_s": 1000,
                    "report_period_s": 0.05,
                    "call_deadline_s": 0.2,
                    "state_dir": str(folder / "state"),
                    **settings,
                }
            )
        )
        self.link = MqttLink(
            url,
            client_id=f"controller-{folder.name}",
            on_message=self._on_report,
            subscriptions=(
                Subscription(agent_link.report_topic("b", folder.name)),
                Subscription(agent_link.facts_topic("b", folder.name)),
            ),
        )

    def _on_report(self, topic: str, payload: bytes, _retained: bool) -> None:
        if topic.endswith(agent_link.FACTS):
            self.facts.append(agent_link.decode_facts(payload))
        else:
            self.reports.append(agent_link.decode_report(payload))

    @property
    def newest(self) -> Report:
        return self.reports[-1]

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen:
        self.log = (self.folder / "agent.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(self.file), *arguments],
            env={**os.environ, **environment(self.library, self.memory.path), **variables},
            stdout=self.log,
            stderr=self.log,
        )
        return self.process

    def stop(self, kind: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(kind)
        self.log.close()
        return self.process.wait(10)

    def logged(self) -> str:
        return (self.folder / "agent.log").read_text()

    def order(
        self,
        limits_w: tuple[float, ...],
        *,
        lease_s: float = 5.0,
        epoch: int = 1,
        newer: bool = True,
        clocks_mhz: tuple[int, ...] = (),
        boot: str = "",
    ) -> Order:
        self.seq += newer
        order = Order(
            epoch=epoch,
            seq=self.seq,
            sent_at_s=time.monotonic(),
            echo_at_s=self.newest.at_s if self.reports else -1.0,
            known_at_s=self.newest.at_s if self.reports else -1.0,
            lease_s=lease_s,
            limits_w=limits_w,
            clocks_mhz=clocks_mhz,
            boot=boot,
        )
        self.link.publish(agent_link.order_topic("b", self.folder.name), agent_link.encode(order))
        return order

    async def lead(self, limits_w: tuple[float, ...], clocks_mhz: tuple[int, ...] = (), **more) -> None:
        """Order, and again as one that knows what the node holds, which may raise; wait until it is done."""
        for _ in range(2):
            seq = self.order(limits_w, clocks_mhz=clocks_mhz, **more).seq
            done = await self.report(lambda report, seq=seq: report.seq == seq)
            await self.report(lambda report, done=done: report.at_s > done.at_s)

    async def table(self, *levels: Level, epoch: int = 1, version: int = 1) -> None:
        """Give it a shed table and wait until it says that it has it."""
        table = Table(epoch=epoch, version=version, levels=levels)
        self.link.publish(agent_link.table_topic("b", self.folder.name), agent_link.encode(table))
        await self.report(lambda report: (report.table_epoch, report.table) == (epoch, version))

    def call(self, level: int, *, epoch: int = 1) -> Call:
        self.seq += 1
        call = Call(epoch=epoch, seq=self.seq, version=1, level=level, sent_at_s=time.monotonic())
        self.link.publish(agent_link.call_topic("b"), agent_link.encode(call))
        return call

    def ceilings_mhz(self) -> list[int | None]:
        """What locks let the SM clocks reach; None: no lock."""
        locked_mhz = [int(mhz) for mhz in self.memory.gpus["locked_clock_max_mhz"]]
        return [None if mhz == NONE else mhz for mhz in locked_mhz]

    def limits_w(self) -> list[float]:
        return [float(limit_mw) / 1000 for limit_mw in self.memory.gpus["requested_mw"]]

    async def until(self, holds: Callable[[], bool], within_s: float = 5.0) -> None:
        deadline_s = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline_s, f"{self.logged()}\n{self.reports[-1:]}\n{self.limits_w()}"
            await asyncio.sleep(0.005)

    async def report(self, holds: Callable[[Report], bool] = lambda _: True, within_s: float = 5.0) -> Report:
        """The next report, from now on, that this holds for."""
        seen = len(self.reports)
        found: list[Report] = []

        def arrived() -> bool:
            found.extend(report for report in self.reports[seen:] if holds(report))
            return bool(found)

        await self.until(arrived, within_s)
        return found[0]


@pytest.fixture
def node(tmp_path_factory, library, broker, request):
    """`async with node(**settings) as n`: broker connected, agent not started yet."""

    @asynccontextmanager
    async def made(**settings) -> AsyncIterator[Node]:
        folder = tmp_path_factory.mktemp("node")
        node = Node(folder, library, settings.pop("url", broker), **settings)
        talking = asyncio.create_task(node.link.run())
        try:
            await node.until(lambda: node.link.connected)
            yield node
        finally:
            if hasattr(node, "process"):
                node.stop(signal.SIGKILL)
            talking.cancel()
            await asyncio.wait({talking})

    return made
