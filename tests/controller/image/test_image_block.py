"""The law's own groups: what the image shows of every GPU of every node."""

from itertools import islice

import numpy as np
import pytest

from controller.core import law
from controller.image.block import BlockPoints
from controller.status import block_status, shed_status
from tests.core.blocks import SETTINGS, TOPOLOGY, snapshot

POWER_W = np.array([301.0, 302.0, 303.0, 304.0])


def shown(*, silent: frozenset[int] = frozenset(), power_w=POWER_W) -> list[list[float | None]]:
    """Power and limit of the GPUs of each node, in turn."""
    at_s = [0.0 if node in silent else 100.0 for node in range(len(TOPOLOGY.node_names))]
    seen = snapshot(100.1, at_s=np.array(at_s), power_w=power_w)
    decision = law.tick(SETTINGS, law.start(SETTINGS, 100.0), seen)
    told = {
        **block_status(SETTINGS, seen, decision),
        "shed": {**shed_status(SETTINGS, seen, decision), "steps": {}},
        "site": {"sources": [], "setpoints": []},
    }
    points = BlockPoints(SETTINGS, 1000.0, (), {}, first=0)
    paths = [group.path for group in points.groups]
    rows: dict[str, list[float | None]] = {}
    while len(rows) < len(TOPOLOGY.node_names):
        for update in islice(points.updates(told, seen, decision, 0.0), len(paths)):
            if paths[update.group].startswith("nodes/"):
                rows[paths[update.group]] = list(update.values)[4:]
    return [rows[path] for path in paths if path in rows]


def test_every_gpu_of_a_node_that_is_heard_has_power_and_limit():
    first, second = shown()
    assert [first[0], first[2], second[0], second[2]] == POWER_W.tolist()
    assert None not in (*first, *second)


def test_a_silent_node_has_neither_and_no_other_node_minds():
    first, second = shown(silent=frozenset({0}))
    assert first == [None] * 4
    assert None not in second


@pytest.mark.parametrize("gpu", range(4))
def test_a_gpu_that_cannot_be_read_is_missing_alone(gpu: int):
    power_w = POWER_W.copy()
    power_w[gpu] = np.nan
    pairs = np.array(shown(power_w=power_w), dtype=float).reshape(4, 2)
    assert np.isnan(pairs[:, 0]).tolist() == [index == gpu for index in range(4)]
    assert not np.isnan(pairs[:, 1]).any()
