"""Who is where, by real agents: their driver tells UUIDs and chassis, a real controller holds them against its file."""

import asyncio
import json

import pytest
import yaml

from controller.config import load_block
from controller.endless import Life
from controller.service import Controller
from firmware_sim.gpu_firmware import gpu_uuid
from tests.controller.conftest import BLOCK

A, B = "1821324190001", "1821324190002"
MIN_W = 200.0


@pytest.fixture
async def block(broker, tmp_path):
    """`block(node, other)`: a running controller with one of them in either rack, chassis A and B."""
    life, tasks = Life(), []

    def started(*nodes) -> Controller:
        content = yaml.safe_load(BLOCK.format(folder=tmp_path))
        content |= {"block": "b", "mqtt": {"url": broker}, "feed": {"rating_kw": 40}}
        content["site"] |= {"failsafe_kw": 20, "ramp": {"down_kw_per_s": 20, "up_kw_per_s": 20}}
        for rack, node, serial in zip(content["racks"], nodes, (A, B), strict=True):
            name = node.folder.name
            rack["chassis_serials"] = [serial]
            rack["nodes"][0] |= {
                "name": name,
                "gpus": 4,
                "gpu_uuids": [gpu_uuid(name, gpu) for gpu in range(4)],
            }
        path = tmp_path / "block.yaml"
        path.write_text(yaml.safe_dump(content))
        controller = Controller(load_block(path))
        tasks.append(asyncio.create_task(controller.serve(life)))
        return controller

    yield started
    life.end()
    await asyncio.wait(tasks)


def wrong(controller) -> dict[str, str]:
    return dict(controller._grouping.conditions())


async def test_a_host_in_another_rack_is_found_held_at_its_least_and_free_again_when_it_is_back(node, block):
    async with node() as here, node() as there:
        for host in (here, there):
            host.memory.place(A, slot=3, tray=1)
            host.start()
        controller = block(here, there)
        name = there.folder.name
        await there.until(lambda: bool(wrong(controller)), within_s=20.0)
        assert wrong(controller).keys() == {f"grouping {name}"}
        assert f"found chassis {A}, of rack r1, configured rack r2" in wrong(controller)[f"grouping {name}"]
        await there.until(lambda: set(there.limits_w()) == {MIN_W}, within_s=20.0)
        assert min(here.limits_w()) > MIN_W
        there.stop()
        there.memory.place(B, slot=3, tray=1)
        there.start()
        await there.until(lambda: not wrong(controller), within_s=20.0)
        await there.until(lambda: min(there.limits_w()) > MIN_W, within_s=20.0)


async def test_a_gpu_that_is_replaced_is_found_and_its_neighbours_go_on(node, block):
    async with node() as one, node() as other:
        for host, serial in ((one, A), (other, B)):
            host.memory.place(serial, slot=3, tray=1)
            host.start()
        controller = block(one, other)
        found = controller._grouping
        await one.until(lambda: sum(len(node["gpus"]) for node in found.told()["nodes"]) == 8, within_s=20.0)
        await one.until(lambda: found.revision > 0, within_s=20.0)
        assert wrong(controller) == {}
        one.stop()
        one.memory.gpus["uuid"][2] = b"GPU-11111111-2222-3333-4444-555555555555"
        one.start()
        await one.until(lambda: bool(wrong(controller)), within_s=20.0)
        assert (
            "GPU-11111111-2222-3333-4444-555555555555, not known"
            in wrong(controller)[f"grouping {one.folder.name}"]
        )
        await one.until(lambda: one.limits_w()[2] == MIN_W, within_s=20.0)
        assert min(one.limits_w()[:2]) > MIN_W
        path = controller._grouping_file.path
        await one.until(lambda: bool(json.loads(path.read_bytes())["mismatches"]), within_s=20.0)
        assert json.loads(path.read_bytes())["mismatches"][0]["gpus"] == [2]
