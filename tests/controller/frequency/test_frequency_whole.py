"""The controller as a whole: a stream on a real socket, a decision bound by the frequency, a record on disk."""

import asyncio
import contextlib
import csv
import json
import socket
import struct
import time
from binascii import crc_hqx
from itertools import pairwise

import pytest

from controller.clock import now_s, now_utc_s
from controller.config import load_block
from controller.core.model import Measurement
from controller.frequency import record
from controller.service import Controller
from protocols.agent_link import Gpu, Report
from tests.protocols.modbus.modbus_peers import Device

HOST = "127.0.0.1"
PERIOD_S = 0.02
GPUS, MIN_W, MAX_W, DRAW_W = 8, 200.0, 700.0, 500.0
COMMITTED_W = 2_000.0
BASE_W = 1_500.0
WAIT_MAX_S = 30.0


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def json_frames(hz: float):
    yield json.dumps({"hz": hz, "at": now_utc_s()}).encode()


def phasor_frames(hz: float):
    """C37.118: configuration of one PMU with a float frequency, then its data."""
    whole_s, part_s = divmod(now_utc_s(), 1.0)

    def frame(sync: int, body: bytes) -> bytes:
        said = struct.pack(">HHHII", sync, 16 + len(body), 7, int(whole_s), int(part_s * 1e6)) + body
        return said + struct.pack(">H", crc_hqx(said, 0xFFFF))

    pmu = b"TEST".ljust(16) + struct.pack(">HHHHH", 7, 0x0008, 0, 0, 0) + struct.pack(">HH", 1, 1)
    yield frame(0xAA31, struct.pack(">IH", 1_000_000, 1) + pmu + struct.pack(">h", 50))
    yield frame(0xAA01, struct.pack(">Hff", 0, hz, 0.0))


class Plant:
    """Hosts that do as they are told, a meter, and a grid with an instrument."""

    def __init__(self, controller: Controller, port: int, frames) -> None:
        self.controller, self.port, self.frames = controller, port, frames
        self.hz = 50.0
        self.seqs: list[tuple[float, str]] = []

    @property
    def block_w(self) -> float:
        return BASE_W + 1.06 * sum(min(DRAW_W, w) for w in self.limits_w())

    def limits_w(self) -> list[float]:
        decided = self.controller._state.ledger.limits_w[-1]
        return [float(w) for w in decided]

    async def run(self) -> None:
        """What the sockets of hosts and meter would bring is put where they would put it; the grid's is real."""
        wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        n = 0
        with contextlib.closing(wire):
            while True:
                n += 1
                for datagram in self.frames(self.hz + n % 2 / 1e4):
                    wire.sendto(datagram, (HOST, self.port))
                self.report()
                await asyncio.sleep(PERIOD_S)

    def report(self) -> None:
        board, orders = self.controller._board, self.controller._state.ledger
        board.meter = Measurement(self.block_w, good=True, taken_at_s=now_s())
        for node, name in enumerate(("node-a", "node-b")):
            limits_w = self.limits_w()[node * GPUS : (node + 1) * GPUS]
            at_s = time.monotonic()
            gpus = tuple(
                Gpu(power_w=min(DRAW_W, w), limit_w=w, enforced_w=w, min_w=MIN_W, max_w=MAX_W)
                for w in limits_w
            )
            board.put_report(
                Report(
                    node=name,
                    boot="b",
                    at_s=at_s,
                    echo_sent_at_s=now_s(),
                    echo_age_s=0.0,
                    epoch=self.controller._epoch,
                    seq=int(orders.node_seq[-1][node]),
                    mode="leased",
                    gpus=gpus,
                ),
                now_s(),
            )


METER = """title: bench
protocol: modbus
provenance: {document: bench, page: "1", evidence: document}
blocks: [{table: holding, first: 0, last: 9}]
points:
  power_w: {unit: W, address: 4, type: f32}
  frequency_hz: {unit: Hz, address: 0, type: f32}
examples: [{point: frequency_hz, registers: [0x4248, 0x0000], value: 50.0, source: IEEE 754 single of 50.0}]
"""


@contextlib.asynccontextmanager
async def running(block_with, one: dict, frames):
    port = free_port()
    if "udp" in one["way"]:
        one = one | {"listen": f"{HOST}:{port}", "from": HOST}
    frequency = {"preset": "nordic_ffr_c_short", "committed_kw": COMMITTED_W / 1e3, "input": one}
    path = block_with({"frequency": frequency, "site.failsafe_kw": 14, "mqtt.url": f"mqtt://{HOST}:9"})
    controller = Controller(load_block(path))
    plant = Plant(controller, port, frames)
    wires = {name: run for name, run in controller._gateway.field.runs.items() if HOST in name}
    runs = [plant.run, controller._beat_for_ever, *controller._grid.runs().values(), *wires.values()]
    tasks = [asyncio.create_task(run()) for run in runs]
    try:
        yield controller, plant, path.parent / "state"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        controller.close()


async def until(holds) -> None:
    async with asyncio.timeout(WAIT_MAX_S):
        while not holds():  # noqa: ASYNC110  the beat is on its own clock
            await asyncio.sleep(0.005)


def told(controller) -> dict:
    path = controller._status.path
    return json.loads(path.read_text()) if path.exists() else {"alarms": []}


def phase(controller) -> str:
    return str(controller._state.frequency.phase)


@pytest.mark.parametrize(
    ("way", "frames"), [("json_udp", json_frames), ("phasor_udp", phasor_frames)], ids=["json", "c37.118"]
)
async def test_a_dip_on_the_wire_binds_the_block_sheds_it_and_leaves_a_record(
    block_with, monkeypatch, way, frames
):
    monkeypatch.setattr(record, "AFTER_S", 1.5)
    monkeypatch.setattr(record, "BEFORE_S", 1.0)
    async with running(block_with, {"way": way}, frames) as (controller, plant, state_dir):
        full_w = BASE_W + 1.06 * 2 * GPUS * DRAW_W
        await until(lambda: phase(controller) == "ready" and plant.block_w > 0.999 * full_w)
        await asyncio.sleep(2.0)  # the second before, at rest
        baseline_w = plant.block_w
        fell_at_s = time.monotonic()
        while plant.hz > 49.4:  # a real grid falls by less than 10 Hz a second
            plant.hz -= 0.1
            await asyncio.sleep(PERIOD_S)
        await until(lambda: plant.block_w <= baseline_w - 0.95 * COMMITTED_W)
        reaction_s = time.monotonic() - fell_at_s
        assert reaction_s < 0.7 * 4, "a machine may be slow; the product has 0.7 s"
        state = controller._state.frequency
        assert abs(state.baseline_w - baseline_w) < 0.02 * baseline_w
        await until(lambda: told(controller)["binding"]["source"].startswith("frequency: Nordic FFR"))
        plant.hz = 50.0
        await until(lambda: list((state_dir / "records").glob("frequency-*.csv")))
    (path,) = (state_dir / "records").glob("frequency-*.csv")
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    rows = list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))
    at_s = [float(row["t_s"]) for row in rows]
    assert at_s[0] < -0.5, "what was before is in it"
    assert at_s[-1] >= 1.4
    steps_s = sorted(after - before for before, after in pairwise(at_s))
    assert 0.04 < steps_s[len(steps_s) // 2] < 0.06, "twenty rows a second"
    assert {"ready", "active"} <= {row["phase"] for row in rows}
    held = [row for row in rows if row["phase"] == "active"]
    assert float(held[-1]["limit_w"]) == pytest.approx(baseline_w - COMMITTED_W, rel=0.02)
    assert min(float(row["hz"]) for row in rows) < 49.5
    assert head[0] == "# product: Nordic FFR 49.5 Hz, 0.7 s, short support"
    assert any(line.startswith("# score: 95 % after") for line in head)


async def test_a_dip_in_the_register_of_a_meter_is_seen_by_the_law_and_sheds(block_with, tmp_path):
    (tmp_path / "meter.yaml").write_text(METER)
    async with Device() as device:

        def register(hz: float):
            device.registers[1][:2] = struct.unpack(">HH", struct.pack(">f", hz))
            return iter(())

        one = {"way": "meter", "profile": "meter.yaml", "url": f"modbus+tcp://{HOST}:{device.port}"}
        async with running(block_with, one, register) as (controller, plant, _):
            await until(lambda: phase(controller) == "ready" and plant.block_w > BASE_W + 8_000.0)
            assert controller._state.frequency.heard.samples[-1].hz == pytest.approx(50.0, abs=0.01)
            baseline_w = plant.block_w
            while plant.hz > 49.4:
                plant.hz -= 0.1
                await asyncio.sleep(PERIOD_S)
            await until(lambda: plant.block_w <= baseline_w - 0.95 * COMMITTED_W)
            await until(lambda: told(controller)["binding"]["source"].startswith("frequency: Nordic FFR"))
    asked = {(address, count) for _, _, address, count in device.requests}
    assert asked == {(0, 2)}, "nothing else of the meter is read at that pace"


async def test_a_silent_stream_is_an_alarm_of_the_controller_and_sheds_nothing(block_with):
    def nothing(_hz):
        return iter(())

    async with running(block_with, {"way": "json_udp"}, nothing) as (controller, plant, _):
        await until(lambda: plant.block_w > BASE_W + 5_000.0)

        await until(lambda: "frequency" in [one["key"] for one in told(controller)["alarms"]])
        assert phase(controller) == "waiting"
        assert controller._state.frequency.activations == 0
