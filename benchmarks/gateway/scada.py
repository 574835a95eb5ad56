"""What the SCADA side costs, and what it costs the beat.

opcua   a gateway without GPUs reads 2,000 values ten times a second; its OPC UA server has ten subscribers
        that share them. Its CPU is that of `powerblock serve`, nothing else being served
beat    the demo block beside its facility and agents, and in the same `block.yaml` the same field devices,
        the OPC UA server with its subscribers and the mirror. How late the beat is says `status.json`, as
        in the bench of that name; `unit`: with the real-time priority of systemd/powerblock.service, where
        we may. The ten subscribers, who live elsewhere in a plant, compete for the same two cores here
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from benchmarks.beat import REAL_TIME, can_be_real_time
from benchmarks.gateway import farm, ours
from benchmarks.gateway.opcua_load import Load, Subscribers, measure, subscribers
from benchmarks.live import POWERBLOCK, demo, process
from benchmarks.result import Figure, Mode
from firmware_sim.facility import free_port

DEVICES: Final = {Mode.TINY: 1, Mode.NORMAL: 34, Mode.FULL: 34}  # of 60 registers: 2,040 variables
POLL_S: Final = 0.1
WINDOW_S: Final = {Mode.TINY: 1.0, Mode.NORMAL: 60.0, Mode.FULL: 60.0}  # the status looks back a minute
SETTLE_S: Final = {Mode.TINY: 0.0, Mode.NORMAL: 10.0, Mode.FULL: 10.0}
VARIABLES: Final = r"r\d+_w"  # of the farm; the block's own do not change ten times a second
LISTEN_MAX_S: Final = 30.0
# A subscriber hears of changes alone, and one register of a device changes less often than it is read.
CHANGED_RATIO: Final = (farm.REGISTERS - 1 + 1 / farm.CHANGE_POLLS) / farm.REGISTERS
CPU_MAX_RATIO: Final = 0.50
RATE_MIN_RATIO: Final = 0.99  # values of the first and last moment fall out of the window
LATE_MAX_MS: Final = 2.0
SITUATIONS: Final[Mapping[str, Sequence[str]]] = {"plain": (), "unit": REAL_TIME}


class OpcUa(NamedTuple):
    url: str
    config: Mapping[str, Any]  # `facility.opcua` of block.yaml


def opcua_server() -> OpcUa:
    port = free_port()
    config = {"host": "127.0.0.1", "port": port, "unsecured": True, "anonymous": "observe"}
    return OpcUa(f"opc.tcp://127.0.0.1:{port}", config)


def run(mode: Mode) -> list[Figure]:
    load = asyncio.run(_opcua(mode))
    situations = {name: before for name, before in SITUATIONS.items() if _may(mode, before)}
    beats = {name: asyncio.run(_beat(mode, before)) for name, before in situations.items()}
    rate_hz = load.values_per_s / load.variables
    return [
        Figure("opcua_cpu_ratio", (load.cpu_ratio,), at_most=CPU_MAX_RATIO),
        Figure("opcua_resident_mib", (load.resident_mib,)),
        Figure("opcua_variables", (float(load.variables),)),
        Figure("opcua_rate_hz", (rate_hz,), at_least=RATE_MIN_RATIO * CHANGED_RATIO / POLL_S),
        *(
            Figure(f"beat_{name}_{key}", (value,), at_most=LATE_MAX_MS if key == "late_p99_ms" else None)
            for name, beat in beats.items()
            for key, value in beat.items()
        ),
    ]


async def _opcua(mode: Mode) -> Load:
    with tempfile.TemporaryDirectory(prefix="powerblock-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        server = opcua_server()
        source = stack.enter_context(farm.running(DEVICES[mode], POLL_S, folder))
        block_path = ours.write_block(source.ports, POLL_S, folder, {"opcua": server.config})
        stack.enter_context(process([*POWERBLOCK, "run", str(block_path)], folder / "run.log"))
        serving = stack.enter_context(process([*POWERBLOCK, "serve", str(block_path)], folder / "serve.log"))
        async with _subscribed(server, DEVICES[mode] * farm.REGISTERS) as clients:
            await asyncio.sleep(SETTLE_S[mode])
            return await measure(clients, [serving.pid], WINDOW_S[mode])


def _may(mode: Mode, before: Sequence[str]) -> bool:
    """Whether it runs is seen by one of them."""
    return not before or (mode is not Mode.TINY and can_be_real_time())


async def _beat(mode: Mode, before: Sequence[str]) -> dict[str, float]:
    """What the daemon, its command put `before`, says of its beat after the window."""
    async with demo(served=True) as block:
        folder, server = block.work_dir, opcua_server()
        with ExitStack() as stack:
            source = stack.enter_context(farm.running(DEVICES[mode], POLL_S, folder))
            content = yaml.safe_load(block.block_path.read_text())
            content["devices"] = ours.farm_devices(source.ports, POLL_S, folder)
            content["facility"] = {"opcua": server.config, "mirror": ours.mirror(content["mqtt"]["url"])}
            block.block_path.write_text(yaml.safe_dump(content))
            argv = [*before, *POWERBLOCK, "run", str(block.block_path)]
            daemon = stack.enter_context(process(argv, block.daemon_log))
            argv = [*POWERBLOCK, "serve", str(block.block_path)]
            stack.enter_context(process(argv, folder / "serve.log"))
            await block.started(daemon)
            async with _subscribed(server, DEVICES[mode] * farm.REGISTERS):
                await asyncio.sleep(SETTLE_S[mode] + WINDOW_S[mode])
                beat: dict[str, float] = block.status()["beat"]
                return {key: value for key, value in beat.items() if key != "count"}


@asynccontextmanager
async def _subscribed(server: OpcUa, variables: int) -> AsyncIterator[Subscribers]:
    """Once the server listens and has all variables; TimeoutError when that takes too long."""
    async with asyncio.timeout(LISTEN_MAX_S):
        while not await _listens(server):  # noqa: ASYNC110  another process listens, and rings no bell
            await asyncio.sleep(0.1)
    async with subscribers(server.url, VARIABLES, variables) as clients:
        yield clients


async def _listens(server: OpcUa) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", server.config["port"])
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
