"""The rig's end of the SCADA side: what was seen of every watched point, by every way, and when.

The readers live in a process of their own (`scada_client`). What they tell comes with the moment it was seen
by the host's monotonic clock, which all processes share, so a busy rig does not make a way look late.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

from firmware_sim.child import Child
from firmware_sim.lifetime import RigError
from firmware_sim.scada_plan import LOOPBACK, Plan, ServedAt
from firmware_sim.scenario import Scenario
from firmware_sim.scenario_facility import Way
from firmware_sim.watched import WatchedPoint

ANSWER_MAX_S: Final = 10.0
MAP_MAX_S: Final = 60.0  # a loaded machine takes its time to load the libraries
SERVED_MAX_S: Final = 60.0  # until every way has shown every point for the first time
LOOK_AGAIN_S: Final = 0.1
LINE_MAX_BYTES: Final = 64 * 1024


@dataclass
class Seen:
    """One point, as one way showed it: moments (plant time, s) and values; None: nothing good."""

    at_s: list[float] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    @property
    def newest(self) -> float | None:
        return self.values[-1] if self.values else None


class ScadaSide:
    """Use as an async context manager around the run of its process.

    Args:
        scenario: what is served.
        work_dir: for its files.
        served: where.
        points: that are looked at.
        mqtt: of the bus.
        now_s: plant time.

    Attributes:
        seen: by way and address.
        bus: messages, invalid ones, and what was wrong with the first of those.
    """

    def __init__(
        self,
        scenario: Scenario,
        work_dir: Path,
        served: ServedAt,
        points: tuple[WatchedPoint, ...],
        mqtt: Mapping[str, str],
        now_s: Callable[[], float],
    ) -> None:
        self.points = points
        self.ways: tuple[Way, ...] = scenario.facility.serve
        self.seen: dict[tuple[Way, str], Seen] = {
            (way, point.address): Seen() for way in self.ways for point in points
        }
        self.bus: tuple[int, int, str] = (0, 0, "")
        self.refused: list[str] = []
        self._scenario, self._work_dir, self._served, self._mqtt = scenario, work_dir, served, mqtt
        self._now_s = now_s
        self._map_path = work_dir / "map.csv"
        self._plan_path = work_dir / "scada.json"
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[str]] = {}
        self.child = Child(
            "scada",
            [sys.executable, "-m", "firmware_sim.scada_client", str(self._plan_path)],
            work_dir / "scada.log",
        )

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._listen, LOOPBACK, 0, limit=LINE_MAX_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        Plan(
            report_port=port, site=self._scenario.block.name, ways=self.ways, points=self.points,
            mqtt=self._mqtt, register_map=self._map_path, bms_schema=self._scenario.facility.bms_schema,
            opcua_port=self._served.opcua_port, modbus_port=self._served.modbus_port,
            prometheus_port=self._served.prometheus_port, password=self._served.password,
            certificate=self._served.certificate, key=self._served.key,
        ).write(self._plan_path)  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.child.stop()
        if self._writer is not None:
            self._writer.close()
        if self._server is not None:
            self._server.close()

    async def begin(self, powerblock: str, block_path: Path) -> None:
        """Ask the device under test for its register map, as an integrator would, and start reading."""
        if "modbus" in self.ways:
            await self._export_map(powerblock, block_path)
        self.child.start()

    async def _export_map(self, powerblock: str, block_path: Path) -> None:
        argv = (powerblock, "map", str(block_path), "--out", str(self._map_path))
        process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(MAP_MAX_S):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            raise RigError(f"{' '.join(argv)}: no answer within {MAP_MAX_S:.0f} s") from None
        if process.returncode:
            raise RigError(f"{' '.join(argv)}: status {process.returncode}:\n{said.decode(errors='replace')}")

    # ---- what it tells --------------------------------------------------------------------------------

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        with suppress(ConnectionError, asyncio.CancelledError):
            while line := await reader.readline():
                self._take(json.loads(line))
        writer.close()

    def _take(self, said: Any) -> None:
        if isinstance(said, list):
            way, address, value, at_s = said
            seen = self.seen[way, address]
            seen.at_s.append(self._now_s() - (time.monotonic() - at_s))
            seen.values.append(value)
        elif "bus" in said:
            self.bus = tuple(said["bus"])
        elif (waiting := self._answers.pop(said["answer"], None)) is not None:
            waiting.set_result(said["refused"])

    @property
    def missing(self) -> list[str]:
        """Ways and points that have never shown a good value."""
        return [
            f"{way} {address}"
            for (way, address), seen in self.seen.items()
            if not any(value is not None for value in seen.values)
        ]

    # ---- what it is told ------------------------------------------------------------------------------

    async def limit(self, via: Way, limit_w: float, for_s: float) -> None:
        """Have the block's power limited; a refusal is kept for the verdict."""
        await self._order({"via": via, "limit_w": limit_w, "for_s": for_s})

    async def write(self, via: Way, address: str, value: float) -> None:
        """Have a point of a device written; a refusal is kept for the verdict."""
        await self._order({"via": via, "address": address, "value": value})

    async def _order(self, order: Mapping[str, Any]) -> None:
        if self._writer is None:
            raise RigError(f"the SCADA side is not there; its log: {self.child.log_path}")
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"order": number, **order}).encode() + b"\n")
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                refused = await answer
        except TimeoutError:
            refused = f"no answer within {ANSWER_MAX_S:.0f} s"
        if refused:
            self.refused.append(refused)
