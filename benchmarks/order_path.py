"""From an order to the driver: published, limits written, read back, and told to the controller.

A real agent process on the simulated NVML driver of one host (8 and 72 GPUs), a real broker, and this
process in the controller's place. Every order moves all limits. `written` ends with the last write in the
driver (its own time stamp), `confirmed` with the report that the new limits were read back. The simulated
driver answers in microseconds; a real one takes 1 to 30 ms per call, which comes on top.
"""

import asyncio
import gc
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import yaml

from benchmarks.live import POWERBLOCK, broker, process
from benchmarks.result import Figure, Mode, quantiles_ms
from firmware_sim.gpu_firmware import GpuMemory, build_library, environment
from firmware_sim.rig import end_tasks
from protocols import agent_link
from protocols.agent_link import Order, Report
from protocols.mqtt import MqttLink, Subscription

BLOCK, NODE = "bench", "node-a"
GPUS: Final = {Mode.TINY: (8,), Mode.NORMAL: (8, 72), Mode.FULL: (8, 72)}
ORDERS: Final = {Mode.TINY: 3, Mode.NORMAL: 200, Mode.FULL: 1000}
REPEATS: Final = {Mode.TINY: 1, Mode.NORMAL: 3, Mode.FULL: 3}
LIMITS_W: Final = (400.0, 600.0)  # in turn: every order is a change for every GPU
GAP_MAX_S: Final = 0.1  # orders come at any moment of the agent's report period
LEASE_S: Final = 3.0
ANSWER_MAX_S: Final = 5.0


class Controller:
    """Publishes orders, hears reports."""

    def __init__(self, url: str) -> None:
        self.report: Report | None = None
        self._heard = asyncio.Event()
        self._seq = 0
        self.link = MqttLink(
            url,
            client_id="bench",
            on_message=self._hear,
            subscriptions=(Subscription(agent_link.report_topic(BLOCK, NODE)),),
        )

    async def first_report(self) -> Report:
        while self.report is None:
            await self._next_report()
        return self.report

    async def order(self, gpus: int) -> float:
        """Order the other limit on all GPUs; returns when it was published, once it is read back."""
        self._seq += 1
        limit_w = LIMITS_W[self._seq % 2]
        sent_at_s = time.monotonic()
        heard_at_s = (await self.first_report()).at_s
        order = Order(
            epoch=1, seq=self._seq, sent_at_s=sent_at_s, echo_at_s=heard_at_s, known_at_s=heard_at_s,
            lease_s=LEASE_S, limits_w=(limit_w,) * gpus,
        )  # fmt: skip
        self.link.publish(agent_link.order_topic(BLOCK, NODE), agent_link.encode(order))
        while (report := await self._next_report()).seq < self._seq:
            pass
        assert all(gpu.limit_w == limit_w for gpu in report.gpus), report
        return sent_at_s

    async def _next_report(self) -> Report:
        self._heard.clear()
        await asyncio.wait_for(self._heard.wait(), ANSWER_MAX_S)
        assert self.report is not None
        return self.report

    def _hear(self, _topic: str, payload: bytes, _retained: bool) -> None:
        self.report = agent_link.decode_report(payload)
        self._heard.set()


async def _measure(gpus: int, orders: int, seed: int) -> tuple[list[float], list[float], str]:
    """Times to written and to confirmed, s, and the broker's name."""
    rng = Random(seed)
    with tempfile.TemporaryDirectory(prefix="powerblock-bench-") as name:
        folder = Path(name)
        memory = GpuMemory.create(folder / "gpus", gpus, node=NODE)
        async with broker(folder) as (url, program):
            config = {"block": BLOCK, "node": NODE, "mqtt": {"url": url}, "fallback_w": 300.0,
                      "state_dir": str(folder / "state")}  # fmt: skip
            path = folder / "node.yaml"
            path.write_text(yaml.safe_dump(config))
            env = environment(build_library(folder), memory.path)
            controller = Controller(url)
            link = asyncio.create_task(controller.link.run())
            try:
                with process([*POWERBLOCK, "agent", str(path)], folder / "agent.log", env):
                    await asyncio.wait_for(controller.first_report(), 2 * ANSWER_MAX_S)
                    await controller.order(gpus)  # the first one turns the agent from waiting to leased
                    gc.collect()
                    written_s, confirmed_s = [], []
                    for _ in range(orders):
                        await asyncio.sleep(rng.uniform(0.0, GAP_MAX_S))
                        sent_at_s = await controller.order(gpus)
                        confirmed_s.append(time.monotonic() - sent_at_s)
                        written_s.append(1e-9 * int(np.max(memory.gpus["last_write_ns"])) - sent_at_s)
            finally:
                await end_tasks([link])
    return written_s, confirmed_s, program


def run(mode: Mode) -> list[Figure]:
    figures = []
    for gpus in GPUS[mode]:
        runs = [asyncio.run(_measure(gpus, ORDERS[mode], seed)) for seed in range(REPEATS[mode])]
        for what, times in (("written", [run[0] for run in runs]), ("confirmed", [run[1] for run in runs])):
            quantiles = [quantiles_ms(one) for one in times]
            figures.append(Figure(f"order_{gpus}_{what}_p50_ms", tuple(p50 for p50, _ in quantiles)))
            figures.append(Figure(f"order_{gpus}_{what}_p99_ms", tuple(p99 for _, p99 in quantiles)))
    return figures
