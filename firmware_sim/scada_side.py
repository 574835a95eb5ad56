"""The rig's end of the SCADA side: what was seen of every watched point, by every way, and when.

The readers live in a process of their own (`scada_client`). What they tell comes with the moment it was seen
by the host's monotonic clock, which all processes share, so a busy rig does not make a way look late.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from firmware_sim.agreement import Outage, Shown, agreement
from firmware_sim.child import Child
from firmware_sim.facility import Facility, Sample
from firmware_sim.lifetime import RigError
from firmware_sim.plot import SeenPoint
from firmware_sim.scada_plan import (
    BUS_TOPICS,
    LOOPBACK,
    MIRROR_PREFIX,
    USER,
    Plan,
    ServedAt,
    published_map,
)
from firmware_sim.scenario import Scenario
from firmware_sim.scenario_facility import Way, Write
from firmware_sim.watched import COARSE_W, WatchedPoint

ANSWER_MAX_S: Final = 10.0
MAP_MAX_S: Final = 60.0  # a loaded machine takes its time to load the libraries
MAP_WHOLE_MAX_S: Final = 60.0  # until the controller has found out what its devices have
MAP_AGAIN_S: Final = 1.0
SERVED_MAX_S: Final = 60.0  # until every way has shown every point for the first time
LOOK_AGAIN_S: Final = 0.1
WRITE_DONE_RATIO: Final = 0.01  # of the value: a register's step
WRITE_MAX_S: Final = 10.0
LINE_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Sight:
    """What one way shows of a point now. `value`: None: nothing good. `age_s`: since it was told."""

    value: float | None
    age_s: float


@dataclass(frozen=True)
class Line:
    """A watched point: the plant's own value and what each way shows of it; None: not told yet."""

    label: str
    unit: str
    true: float
    shown: Mapping[Way, Sight | None]


@dataclass
class Seen:
    """One point, as one way showed it: moments (plant time, s) and values; None: nothing good."""

    at_s: list[float] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    def now(self, now_s: float) -> Sight | None:
        return Sight(self.values[-1], max(0.0, now_s - self.at_s[-1])) if self.values else None

    def shown(self, zero_s: float) -> Shown:
        """On the time line's clock."""
        return Shown.of([at_s - zero_s for at_s in self.at_s], self.values)


class ScadaSide:
    """Use as an async context manager around the run of its process.

    Args:
        scenario: what is served.
        work_dir: for its files.
        served: where.
        mqtt: of the bus.
        facility: whose points are looked at.

    Attributes:
        seen: by way and address.
        bus: messages, invalid ones, and what was wrong with the first of those.
        refused: why, for each order that was.
        writes_s: until the plant had obeyed; None: it never did.
    """

    def __init__(
        self,
        scenario: Scenario,
        work_dir: Path,
        served: ServedAt,
        mqtt: Mapping[str, str],
        facility: Facility,
    ) -> None:
        self.points = tuple(facility.watched)
        self.ways: tuple[Way, ...] = scenario.facility.serve
        self.seen: dict[tuple[Way, str], Seen] = {
            (way, point.address): Seen() for way in self.ways for point in self.points
        }
        self.bus: tuple[int, int, str] = (0, 0, "")
        self.refused: list[str] = []
        self.writes_s: list[float | None] = []
        self._scenario, self._work_dir, self._served, self._mqtt = scenario, work_dir, served, mqtt
        self._facility = facility
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
            await self._export_map([powerblock, "map", str(block_path), "--out", str(self._map_path)])
        self.child.start()

    async def _export_map(self, argv: Sequence[str]) -> None:
        """Until it is whole: what a SunSpec device has is known when the controller has read it."""
        deadline_s = time.monotonic() + MAP_WHOLE_MAX_S
        while unmapped := await self._unmapped(argv):
            if time.monotonic() > deadline_s:
                break
            await asyncio.sleep(MAP_AGAIN_S)
        for point in unmapped:
            del self.seen["modbus", point.address]

    async def _unmapped(self, argv: Sequence[str]) -> list[WatchedPoint]:
        """Points that the map, made now, does not have."""
        process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(MAP_MAX_S):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            raise RigError(f"{' '.join(argv)}: no answer within {MAP_MAX_S:.0f} s") from None
        if process.returncode:
            raise RigError(f"{' '.join(argv)}: status {process.returncode}:\n{said.decode(errors='replace')}")
        published = published_map(self._map_path)
        return [point for point in self.points if point.address not in published]

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
            seen = self.seen.get((way, address))
            if seen is None:
                return
            seen.at_s.append(self._facility.now_s() - (time.monotonic() - at_s))
            seen.values.append(value)
        elif "bus" in said:
            self.bus = tuple(said["bus"])
        elif (waiting := self._answers.pop(said["answer"], None)) is not None:
            waiting.set_result(said["refused"])

    async def sees_everything(self) -> None:
        """Wait until every way has shown every point; for so long, then the verdict says what is missing."""
        deadline_s = time.monotonic() + SERVED_MAX_S
        while self._missing():
            if time.monotonic() > deadline_s:
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    def _missing(self) -> list[str]:
        """Ways and points that show nothing good now."""
        return [
            f"{way} {address}"
            for (way, address), seen in self.seen.items()
            if not seen.values or seen.values[-1] is None
        ]

    def lines(self, sample: Sample) -> Iterator[Line]:
        """For people."""
        now_s = self._facility.now_s()
        for point, true in zip(self.points, sample.truth, strict=True):
            found = {way: self.seen.get((way, point.address)) for way in self.ways}
            shown = {way: None if seen is None else seen.now(now_s) for way, seen in found.items()}
            yield Line(point.label, point.unit, true, shown)

    # ---- what it is told ------------------------------------------------------------------------------

    async def limit(self, via: Way, limit_w: float, for_s: float) -> None:
        """Have the block's power limited; a refusal is kept for the verdict."""
        await self._order({"via": via, "limit_w": limit_w, "for_s": for_s})

    async def shed(self, via: Way, level: str, for_s: float) -> None:
        """Have a level of shedding called; a refusal is kept for the verdict."""
        await self._order({"via": via, "shed": level, "for_s": for_s})

    async def write(self, write: Write) -> None:
        """Have a point of a device written, and look at the plant itself until it has obeyed."""
        began_s, tied = self._facility.now_s(), self._facility.tied[write.device]
        row = len(self.writes_s)
        self.writes_s.append(None)
        address = f"devices/{write.device}/{write.point}"
        await self._order({"via": write.via, "address": address, "value": write.value})
        while self._facility.now_s() - began_s < WRITE_MAX_S:
            if abs(tied.true_value(write.point) - write.value) <= WRITE_DONE_RATIO * abs(write.value):
                self.writes_s[row] = self._facility.now_s() - began_s
                return
            await asyncio.sleep(LOOK_AGAIN_S)

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

    # ---- what came of it ------------------------------------------------------------------------------

    def figures(
        self, samples: Sequence[Sample], zero_s: float, outages: Sequence[Outage]
    ) -> dict[str, float | None]:
        """For the verdict."""
        t_s = np.array([sample.t_s for sample in samples]) - zero_s
        values = np.array([sample.truth for sample in samples])
        truth = {point: values[:, column] for column, point in enumerate(self.points)}
        shown = {place: seen.shown(zero_s) for place, seen in self.seen.items()}
        figures = agreement(t_s, truth, shown, outages)
        if "bms" in self.ways:
            figures |= {"bms_messages": float(self.bus[0]), "bms_invalid": float(self.bus[1])}
        if self.writes_s:
            done = [one for one in self.writes_s if one is not None]
            figures["write_s"] = max(done) if len(done) == len(self.writes_s) else None
        return figures | {"orders_refused": float(len(self.refused))}

    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """What is always expected: no order refused, nothing on the bus that is not as agreed."""
        keys = ["orders_refused", *(["bms_invalid"] if "bms" in self.ways else [])]
        return dict.fromkeys(keys, (None, 0.0))

    def powers(self, samples: Sequence[Sample], zero_s: float) -> list[SeenPoint]:
        """Every power as each way showed it, the block's first; for the picture."""
        t_s = np.array([sample.t_s for sample in samples]) - zero_s
        return [
            SeenPoint(
                point.label,
                t_s,
                np.array([sample.truth[column] for sample in samples]),
                {way: one.shown(zero_s) for (way, place), one in self.seen.items() if place == point.address},
            )
            for column, point in enumerate(self.points)
            if point.unit == "W" and point.tolerance < COARSE_W  # whole kilowatts tell nothing here
        ]

    def endpoints(self) -> dict[str, str]:
        """Where the device under test is told to serve, and who may come in; for who looks on by hand."""
        served = self._served
        told = {
            "opcua": f"opc.tcp://{LOOPBACK}:{served.opcua_port}/  user {USER}, password {served.password}",
            "modbus": f"{LOOPBACK}:{served.modbus_port}",
            "prometheus": f"http://{LOOPBACK}:{served.prometheus_port}/metrics",
            "bms": f"{self._mqtt['url']}  {BUS_TOPICS}",
            "mirror": f"{self._mqtt['url']}  {MIRROR_PREFIX}/{self._scenario.block.name}/#",
        }
        return {way: told[way] for way in self.ways}

    def record(self) -> dict[str, Any]:
        """For the report."""
        told = {f"{way} {address}": len(seen.values) for (way, address), seen in self.seen.items()}
        return {
            "told": told,
            "missing": self._missing(),
            "refused": self.refused,
            "first_invalid": self.bus[2],
        }
