"""Real processes for the benches that need them: a broker, the demo facility, agents, daemon, busy cores.

Only what is measured is the project's own: daemon and agents run by their command line, the facility is the
rig's (Modbus TCP, OPC UA, MQTT, simulated GPU driver), the broker is mosquitto where there is one, as in
production, and else the rig's amqtt. All of it lives in a temporary folder and on loopback, and every
process started here is ended here, by its own handle.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from firmware_sim import bench_config
from firmware_sim.facility import free_port
from firmware_sim.gpu_firmware import build_library, environment
from firmware_sim.grid_side import GridSide
from firmware_sim.rig import Rig
from firmware_sim.scenario import load_scenario

SCENARIO: Final = Path(__file__).parents[1] / "examples" / "curtailment.yaml"
POWERBLOCK: Final = (sys.executable, "-m", "controller.cli")
SEARCH_PATH: Final = "/usr/sbin:/usr/local/sbin"  # where Debian and source builds put mosquitto
START_MAX_S: Final = 10.0
STOP_MAX_S: Final = 5.0  # a daemon persists its limit and says good-bye; that takes milliseconds
MOSQUITTO_CONF: Final = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
set_tcp_nodelay true
log_dest none
"""


@dataclass(frozen=True)
class Demo:
    """The demo block, served but not controlled."""

    block_path: Path
    work_dir: Path

    @property
    def daemon_log(self) -> Path:
        return self.work_dir / "daemon.log"

    @property
    def journal_path(self) -> Path:
        return bench_config.journal_path(self.work_dir)

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself; raises FileNotFoundError before its first word."""
        content: dict[str, Any] = json.loads(bench_config.status_path(self.work_dir).read_text())
        return content

    async def started(self, daemon: subprocess.Popen[bytes]) -> None:
        """Wait for the daemon's first status."""
        path = bench_config.status_path(self.work_dir)
        if not await _until(path.exists, daemon):
            raise RuntimeError(f"no status from the daemon; its last words:\n{_text(self.daemon_log)}")


@contextmanager
def process(
    argv: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that is asked to end, waited for, and then made to."""
    with log_path.open("ab") as log:
        child = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **(env or {})}, cwd=cwd)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """A broker of its own on loopback: (url, program)."""
    port = free_port()
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=SEARCH_PATH)
    if program is None:
        argv, name = [sys.executable, "-m", "firmware_sim.broker", "--port", str(port)], "amqtt"
    else:
        conf = folder / "mosquitto.conf"
        conf.write_text(MOSQUITTO_CONF.format(port=port))
        argv, name = [program, "-c", str(conf)], "mosquitto"
    log_path = folder / "broker.log"
    with process(argv, log_path) as child:
        if not await _until(partial(_is_open, port), child):
            raise RuntimeError(f"no broker on port {port}; its last words:\n{_text(log_path)}")
        yield f"mqtt://127.0.0.1:{port}", name


@asynccontextmanager
async def demo(*, served: bool) -> AsyncIterator[Demo]:
    """The demo block: facility and agents running, or (`served` False) only its configuration.

    Without them the daemon finds a closed port wherever it calls, and its process has the machine for itself.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="powerblock-bench-")))
        url, _ = await stack.enter_async_context(broker(folder))
        scenario = load_scenario(SCENARIO).model_copy(update={"broker_url": url})
        if not served:
            urls = {
                name: f"{'opc.tcp' if name == 'cdu' else 'modbus+tcp'}://127.0.0.1:{free_port()}"
                for name in scenario.devices
            }
            outside = bench_config.Outside(urls)
            written = bench_config.write_configs(scenario, folder, GridSide(scenario, folder), outside)
            yield Demo(written.block, folder)
            return
        rig = Rig(scenario, folder, None)
        facility = await stack.enter_async_context(rig.facility())
        library = build_library(rig.work_dir)
        for node, path in rig.node_paths.items():
            env = environment(library, facility.memories[node].path)
            argv = [*POWERBLOCK, "agent", str(path)]
            stack.enter_context(process(argv, rig.work_dir / f"{node}.log", env))
        yield Demo(rig.block_path, rig.work_dir)


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Processes that want a whole core each, at normal priority."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(process([sys.executable, "-c", "while True: pass"], Path(os.devnull)))
        yield


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def _until(true: Callable[[], bool], child: subprocess.Popen[bytes]) -> bool:
    """Wait until it is so; False if the child ended before, or it takes too long."""
    deadline_s = time.monotonic() + START_MAX_S
    while time.monotonic() < deadline_s and child.poll() is None:
        if true():
            return True
        await asyncio.sleep(0.02)
    return False


def _text(path: Path) -> str:
    return path.read_text(errors="replace")
