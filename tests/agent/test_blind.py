"""The dead man's hand on GPUs that cannot be read: their limits go down all the same, and never up."""

import asyncio
import threading
from dataclasses import dataclass, field

from controller.agent.config import NodeConfig
from controller.agent.node import Agent
from controller.agent.rounds import Rounds
from controller.clock import now_s
from controller.endless import Life
from protocols.agent_link import Order, encode
from protocols.nvml import NvmlFault


@dataclass
class BlindDriver:
    """Limits can be read and written, powers cannot."""

    limits_w: list[float]
    gpu_count: int = 2
    first: int = 0
    driver_version: str = "1"
    written: list[tuple[int, float]] = field(default_factory=list)
    lowered: threading.Event = field(default_factory=threading.Event)

    def read(self, gpu: int) -> None:
        raise NvmlFault(3, f"cannot read GPU {gpu}: Not Supported")

    def read_limit_w(self, gpu: int) -> float:
        return self.limits_w[gpu]

    def set_limit_w(self, gpu: int, limit_w: float) -> float:
        self.written.append((gpu, limit_w))
        self.limits_w[gpu] = limit_w
        if self.limits_w == [300.0, 250.0]:
            self.lowered.set()
        return limit_w

    def lower_limit_w(self, gpu: int, limit_w: float) -> float:
        return self.set_limit_w(gpu, limit_w) if limit_w < self.limits_w[gpu] else self.limits_w[gpu]


class NoLink:
    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        pass

    async def run(self) -> None:
        await asyncio.Event().wait()


async def test_a_lapsed_lease_lowers_a_gpu_whose_power_cannot_be_read(tmp_path):
    config = NodeConfig(
        block="b",
        node="n",
        mqtt={"url": "mqtt://127.0.0.1"},
        fallback_w=300,
        fallback_ramp_w_per_s=300,
        report_period_s=0.02,
        state_dir=tmp_path,
    )
    driver = BlindDriver([700.0, 250.0])
    agent = Agent(config, driver, observe=False)
    life = Life()
    serving = asyncio.create_task(Rounds([(agent, NoLink())]).serve(life))
    await asyncio.sleep(0.05)
    now = now_s()
    order = Order(
        epoch=1, seq=1, sent_at_s=1.0, echo_at_s=now, known_at_s=now, lease_s=0.1, limits_w=(600.0, 650.0)
    )
    agent.on_message("", encode(order), False)
    try:
        assert await asyncio.to_thread(driver.lowered.wait, 3.0)
    finally:
        life.end()
        await asyncio.wait({serving})
    assert len(driver.written) > 3  # a ramp, not a step
    assert {gpu for gpu, _ in driver.written} == {0}
