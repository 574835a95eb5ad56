"""status.json: what it says of a block, and that it is whole or not there."""

import json

import numpy as np

from controller.core import law
from controller.core.model import NEVER_S, Inlets
from controller.status import StatusFile, block_status
from tests.core.blocks import SETTINGS, good, snapshot


def told(**seen):
    seen = snapshot(100.0, **seen)
    return block_status(SETTINGS, seen, law.tick(SETTINGS, law.start(SETTINGS, 99.0), seen))


def test_it_names_what_binds_and_why():
    said = told(meter=good(1800.0, 100.0))
    assert said["power_w"] == 1800.0
    assert said["mode"] == "init"
    assert said["binding"] == {
        "power_w": 2400.0,
        "source": "failsafe: openadr not heard yet",
        "protection": False,
    }
    assert said["binding"] in said["limits"]
    assert "failsafe: openadr not heard yet" in said["why"]


def test_racks_and_nodes_add_up():
    said = told(power_w=[100.0, 200.0, 300.0, 400.0])
    assert [(rack["power_w"], rack["gpu_w"]) for rack in said["racks"]] == [(1000.0, 300.0), (1000.0, 700.0)]
    assert [(node["gpus"], node["power_w"]) for node in said["nodes"]] == [(2, 300.0), (2, 700.0)]


def test_what_is_not_known_is_null_and_never_zero():
    inlets = Inlets(np.full(4, 500.0), np.array([True, True, True, False]), np.full(4, 100.0))
    said = told(inlets=inlets, power_w=[np.nan, 200.0, 300.0, 400.0])
    assert said["power_w"] is None
    assert [(rack["power_w"], rack["gpu_w"]) for rack in said["racks"]] == [(1000.0, None), (None, 700.0)]
    assert [(rack["gpu_known_w"], rack["gpus_unknown"]) for rack in said["racks"]] == [(200.0, 1), (700.0, 0)]
    silent = told(at_s=NEVER_S)
    assert [node["power_w"] for node in silent["nodes"]] == [None, None]
    assert not any(node["heard"] for node in silent["nodes"])


def test_it_is_plain_json_and_replaced_as_a_whole(tmp_path):
    file = StatusFile(tmp_path / "run")
    file.write(told(power_w=np.nan))
    first = file.path.stat().st_ino
    file.write(told())
    assert json.loads(file.path.read_text())["v"] == 4
    assert file.path.stat().st_ino != first
    assert [entry.name for entry in file.path.parent.iterdir()] == ["status.json"]


def test_a_run_directory_that_cannot_be_does_not_stop_the_beat(tmp_path):
    (tmp_path / "run").write_text("")
    StatusFile(tmp_path / "run").write(told())
