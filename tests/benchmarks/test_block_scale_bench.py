"""The instruments of the benches at block scale: boards, what counts as written, rivals, and a clean end."""

import asyncio
import contextlib
import os
import time

import numpy as np
import pytest

from benchmarks.block_scale import block as blocks
from benchmarks.block_scale import fast_path, rivals, scenario
from benchmarks.block_scale.block import Block, Reaction, Way, block_of
from benchmarks.block_scale.boards import FANS_W, MAX_W, SUPPLY_W_PER_W, Boards
from benchmarks.result import Mode
from firmware_sim.scenario_block import Node
from tests.brokers import needs_mosquitto

BASE_W = 5000.0


@pytest.fixture
def boards(tmp_path):
    nodes = [Node(name=f"n{number}", rack=f"r{number % 2}", gpus=4) for number in range(4)]
    return Boards({"n0": (nodes[0],), "farm": tuple(nodes[1:])}, tmp_path, BASE_W)


def request(boards, limit_w, rows=slice(None), at_s=None):
    """As the driver does."""
    for memory in boards.memories.values():
        memory.gpus["requested_mw"][rows] = round(limit_w * 1000)
        memory.gpus["last_write_ns"][rows] = round(1e9 * (time.monotonic() if at_s is None else at_s))
        memory.gpus["write_count"][rows] += 1


def test_boards_draw_no_more_than_their_limit_and_the_meters_show_it(boards):
    request(boards, 300.0)
    for _ in range(10):
        boards.step(0.05)
    drawn_w = np.concatenate([memory.gpus["instant_mw"] for memory in boards.memories.values()]) / 1000
    assert drawn_w.max() <= 300.0
    fans_w = 6 * FANS_W
    assert boards.meter()["power_w"] == pytest.approx(2 * BASE_W + SUPPLY_W_PER_W * drawn_w.sum(), abs=fans_w)
    assert sum(boards.inlet(rack)()["power_w"] for rack in ("r0", "r1")) == boards.meter()["power_w"] / 2


def test_boards_wander_below_their_limit(boards):
    request(boards, MAX_W)
    boards.step(0.05)
    first_w = boards.rack_w
    for _ in range(20):
        boards.step(0.05)
    assert not np.array_equal(first_w, boards.rack_w)


def answering(boards, reply):
    """A block whose signal is answered by `reply`, and taken back by limits at their highest."""

    @contextlib.asynccontextmanager
    async def way():
        sent_s = time.monotonic()
        reply(sent_s)
        yield sent_s
        request(boards, MAX_W)

    block = object.__new__(Block)
    block.boards, block.ways = boards, {"here": Way(500.0, way)}
    return block


async def test_a_reaction_lasts_from_the_signal_to_the_last_write(boards, monkeypatch):
    monkeypatch.setattr(blocks, "HELD_S", 0.0)

    def reply(sent_s):
        request(boards, 300.0, at_s=sent_s + 0.003)
        request(boards, 300.0, rows=slice(0, 1), at_s=sent_s + 0.007)

    reaction = await answering(boards, reply).react("here")
    assert (reaction.first_s, reaction.last_s) == (pytest.approx(0.003), pytest.approx(0.007))


async def test_a_limit_that_is_never_lowered_counts_as_long_as_was_waited(boards, monkeypatch):
    monkeypatch.setattr(blocks, "HELD_S", 0.0)
    monkeypatch.setattr(blocks, "ANSWER_MAX_S", 0.1)
    block = answering(boards, lambda _: request(boards, 300.0, rows=slice(1, None)))
    assert (await block.react("here")).last_s == 0.1


async def test_a_signal_waits_until_every_limit_has_room_to_fall(boards, monkeypatch):
    monkeypatch.setattr(blocks, "REST_MAX_S", 0.1)
    request(boards, 450.0, rows=slice(0, 1))
    block = answering(boards, lambda _: None)
    block.status = lambda: {"why": "base load is high"}
    with pytest.raises(RuntimeError, match=r"stays at 450 W .* 500 W are needed: base load is high"):
        await block.react("here")


def test_rivals_change_every_gpu_and_are_scaled_to_all():
    told = rivals.measure(8, rounds=2, children={"children_c": 2, "children_python": 1})
    assert told.keys() == {"children_c", "children_python", "calls"}
    assert len(told["calls"]) == 2
    assert 0 < np.median(told["calls"]) < told["children_c"][0] < told["children_python"][0]


def test_targets_stand_at_the_size_of_a_block_alone():
    told = fast_path.Told(
        {"alert": [Reaction(0.01, 0.03, 0.012)]}, {"alert": []}, {"controller_core_ratio": 0.1}
    )
    with_targets = {one.name: one for one in fast_path._figures(1152, told, has_targets=True)}
    assert not with_targets["alert_1152_written_p99_ms"].met
    assert with_targets["steady_1152_controller_core_ratio"].met
    assert not any(one.target for one in fast_path._figures(72, told, has_targets=False))


def test_the_scenario_that_is_played_is_the_example():
    assert scenario._content(Mode.NORMAL)["name"] == "block_1152"
    assert scenario._content(Mode.TINY)["block"]["racks"]["count"] == 1


@needs_mosquitto
async def test_a_bench_that_fails_leaves_no_process_and_no_folder(monkeypatch):
    pids, folders = [], []

    class Fault(Exception):
        pass

    async def fail(block, _children):
        pids.extend(pid for many in block.pids.values() for pid in many)
        folders.append(block._folder)
        raise Fault

    monkeypatch.setattr(blocks, "_up", fail)
    with pytest.raises(Fault):
        async with asyncio.timeout(60), block_of(1):
            pass
    assert len(pids) == 1 + blocks.APART + blocks.FARMS + 1, "broker, agents apart, farms, controller"
    assert not folders[0].exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
