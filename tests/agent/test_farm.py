"""Many nodes in one process: each is what it would be on a host of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from controller.agent.config import ConfigError
from controller.agent.farm import load_farm
from firmware_sim import gpu_firmware
from firmware_sim.gpu_firmware import GpuMemory, environment
from protocols import agent_link
from protocols.mqtt import MqttLink, Subscription

NODES, GPUS = 20, 8  # 160 GPUs: swept in two groups


def written(folder, url: str, nodes: int = NODES, **settings):
    names = [f"n{number:02}" for number in range(nodes)]
    for name in names:
        config = {
            "block": "b",
            "node": name,
            "mqtt": {"url": url},
            "gpus": {"count": GPUS},
            "fallback_w": 300,
            "fallback_ramp_w_per_s": 1000,
            "state_dir": str(folder / "state" / name),
            **settings,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    file = folder / "farm.yaml"
    file.write_text(yaml.safe_dump({"nodes": [f"{name}.yaml" for name in names]}))
    return file, names


class Controller:
    """Hears all nodes of the farm, orders each."""

    def __init__(self, url: str, names: list[str]) -> None:
        self.names = names
        self.newest: dict[str, agent_link.Report] = {}
        self.facts: dict[str, agent_link.Facts] = {}
        self.seq = 0
        self.link = MqttLink(
            url,
            client_id="farm-controller",
            on_message=self.hear,
            subscriptions=(
                Subscription(agent_link.report_topic("b", "+")),
                Subscription(agent_link.facts_topic("b", "+")),
            ),
        )

    def hear(self, topic: str, payload: bytes, _retained: bool) -> None:
        if topic.endswith(agent_link.FACTS):
            facts = agent_link.decode_facts(payload)
            self.facts[facts.node] = facts
        else:
            report = agent_link.decode_report(payload)
            self.newest[report.node] = report

    def order(self, limit_w: float, lease_s: float = 5.0) -> None:
        self.seq += 1
        for name in self.names:
            at_s = self.newest[name].at_s
            order = agent_link.Order(
                epoch=1,
                seq=self.seq,
                sent_at_s=time.monotonic(),
                echo_at_s=at_s,
                known_at_s=at_s,
                lease_s=lease_s,
                limits_w=(limit_w,) * GPUS,
            )
            self.link.publish(agent_link.order_topic("b", name), agent_link.encode(order))

    async def until(self, holds, within_s: float = 20.0) -> None:
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110  it looks into memory, which has no event
                await asyncio.sleep(0.01)


async def test_a_farm_of_twenty_nodes_reports_obeys_sheds_and_falls_back_node_by_node(
    library, broker, tmp_path
):
    file, names = written(tmp_path, broker)
    memory = GpuMemory.create(tmp_path / "gpus", NODES * GPUS, node="farm")
    limits_mw = memory.gpus["requested_mw"]
    controller = Controller(broker, names)
    talking = asyncio.create_task(controller.link.run())
    process = subprocess.Popen(  # noqa: ASYNC220  nothing else runs yet
        [sys.executable, "-m", "controller.cli", "agent-farm", str(file)],
        env={**os.environ, **environment(library, memory.path)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        await controller.until(lambda: len(controller.newest) == len(controller.facts) == NODES)
        uuids = [gpu.uuid for name in names for gpu in controller.facts[name].gpus]
        assert uuids == [uuid.decode() for uuid in memory.gpus["uuid"]]
        controller.order(600.0)
        await controller.until(lambda: bool((limits_mw == 600_000).all()))

        table = agent_link.Table(epoch=1, version=1, levels=(agent_link.Level(limits_w=(400.0,) * GPUS),))
        for name in names[:-1]:  # one has none: its orders would come
            controller.link.publish(agent_link.table_topic("b", name), agent_link.encode(table))
        await controller.until(lambda: all(controller.newest[name].table == 1 for name in names[:-1]))
        controller.seq += 1
        call = agent_link.Call(epoch=1, seq=controller.seq, version=1, level=0, sent_at_s=time.monotonic())
        controller.link.publish(agent_link.call_topic("b"), agent_link.encode(call))
        await controller.until(lambda: bool((limits_mw[:-GPUS] == 400_000).all()))
        assert (limits_mw[-GPUS:] == 600_000).all()
        await controller.until(
            lambda: all(controller.newest[name].seq == controller.seq for name in names[:-1])
        )

        memory.gpus["forced_error"][3] = gpu_firmware.GPU_IS_LOST
        await controller.until(lambda: controller.newest[names[0]].gpus[3].fault != "")
        assert not any(gpu.fault for name in names[1:] for gpu in controller.newest[name].gpus)
        memory.gpus["forced_error"][3] = 0
        await controller.until(lambda: {controller.newest[name].mode for name in names} == {"fallback"})
        await controller.until(lambda: bool((limits_mw == 300_000).all()))
        assert all((tmp_path / "state" / name / "found-limits.jsonl").exists() for name in names)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0
    finally:
        process.kill()
        process.wait(5)
        talking.cancel()
        await asyncio.wait({talking})


def test_a_farm_lists_all_that_is_wrong_with_it_and_with_its_nodes(tmp_path):
    file, _ = written(tmp_path, "mqtt://127.0.0.1", nodes=4)
    (tmp_path / "n01.yaml").write_text("node: n01\n")
    text = (tmp_path / "n02.yaml").read_text()
    (tmp_path / "n02.yaml").write_text(text.replace("gpus:\n  count: 8\n", "").replace("n02", "n03", 1))
    with pytest.raises(ConfigError) as caught:
        load_farm(file)
    errors = str(caught.value)
    for sentence in ("n01.yaml: block: missing", "a node of a farm must say how many it has", "'n03' twice"):
        assert sentence in errors


def test_a_farm_with_too_few_gpus_ends_with_a_sentence(library, tmp_path):
    file, _ = written(tmp_path, "mqtt://127.0.0.1", nodes=2)
    memory = GpuMemory.create(tmp_path / "gpus", GPUS, node="farm")
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli", "agent-farm", str(file)],
        env={**os.environ, **environment(library, memory.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "nodes have 16 GPUs from 0 on, the driver shows 8" in done.stdout + done.stderr
