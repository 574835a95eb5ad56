"""Boards whose limit is that of a module: GPUs that share it get one write."""

from controller.agent.config import NodeConfig
from controller.agent.node import Agent
from controller.clock import now_s
from protocols import agent_link
from protocols.nvml import Device, Reading


class Driver:
    """Four GPUs on two modules, each with one limit for both of its GPUs."""

    gpu_count, first, driver_version = 4, 0, "1"

    def __init__(self) -> None:
        self.limits_w = [2900.0, 2900.0]
        self.writes: list[tuple[int, float]] = []
        self.devices = [
            Device(
                index=gpu,
                uuid=f"GPU-{gpu}",
                name="g",
                min_w=500.0,
                max_w=2900.0,
                default_w=2900.0,
                module=True,
            )
            for gpu in range(4)
        ]

    def read(self, gpu: int) -> Reading:
        limit_w = self.limits_w[gpu // 2]
        device = self.devices[gpu]
        return Reading(device=device, power_w=900.0, averaged=False, limit_w=limit_w, enforced_w=limit_w)

    def read_limit_w(self, gpu: int) -> float:
        return self.limits_w[gpu // 2]

    def set_limit_w(self, gpu: int, limit_w: float) -> float:
        self.writes.append((gpu, limit_w))
        self.limits_w[gpu // 2] = limit_w
        return limit_w

    lower_limit_w = set_limit_w


def swept(agent: Agent) -> None:
    agent.swept({key: read() for key, read in agent.reads().items()}, now_s())


def test_a_module_gets_one_write_of_the_lowest_limit_and_all_its_gpus_hold_it(tmp_path):
    driver = Driver()
    config = NodeConfig(
        block="b",
        node="n",
        mqtt={"url": "mqtt://127.0.0.1"},
        gpus={"count": 4, "per_module": 2},
        fallback_w=500,
        state_dir=tmp_path,
    )
    agent = Agent(config, driver, observe=False)
    swept(agent)
    now = now_s()
    order = agent_link.Order(
        epoch=1,
        seq=1,
        sent_at_s=1.0,
        echo_at_s=now,
        known_at_s=now,
        lease_s=5.0,
        limits_w=(1800.0, 1500.0, 2000.0, 2000.0),
    )
    agent.on_message("powerblock/b/agent/n/order", agent_link.encode(order), False)
    writes = agent.limit_writes(now_s())
    written = {key: write() for key, write in writes.items()}
    agent.limits_wrote(written, {key: read() for key, read in agent.read_backs().items()}, now_s())
    assert [limit_w for _, limit_w in driver.writes] == [1500.0, 2000.0]
    assert [view.limit_w for view in agent.views] == [1500.0, 1500.0, 2000.0, 2000.0]
    swept(agent)
    assert agent.limit_writes(now_s()) == {}
    told = agent_link.decode_facts(agent.facts(now_s()))
    assert [gpu.module for gpu in told.gpus] == [0, 0, 1, 1]
