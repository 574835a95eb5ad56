"""What goes wrong in a block, in real processes and real time, several things in one run.

Each run judges by the plant's own truth that the ramped budget was kept, and reads what the operator was
told: which host or GPU, why, and what it costs. examples/rough_block.yaml plays the same on more racks.
"""

import asyncio
import stat
import sys
from functools import partial
from pathlib import Path

import pytest

from firmware_sim.rig import Rig
from firmware_sim.scenario import parse_scenario
from tests.brokers import needs_mosquitto

pytestmark = [
    needs_mosquitto,
    # paho leaves sockets to the collector where a broker hangs up in a handshake
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).parents[2]

BLOCK = {
    "name": "faults",
    "seed": 5,
    "warm_up_s": 8,
    "site": {"broker": "mosquitto"},
    "block": {
        "feed_rating_kw": 14,
        "base_load_max_kw": 3,
        "failsafe_kw": 7,  # below every event here: who starts without memory asks for no more
        "ramp_down_kw_per_s": 1.5,
        "ramp_up_kw_per_s": 2.5,
        "racks": {"count": 3, "rating_a": 32},
        "nodes": {"per_rack": 1, "gpus": 4},
    },
    "workloads": [{"racks": "1-3", "kind": "training", "exchange_demand_ratio": 0.9}],
}
KEPT = {
    "over_budget_ratio": {"max": 0.02},
    "over_rating_s": {"max": 0},
    "gpus_unleased": {"max": 0},
    "second_controllers": {"max": 0},
}


@pytest.fixture
def powerblock(tmp_path):
    command = tmp_path / "powerblock"
    code = "from controller.cli import app; app()"
    command.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c '{code}' \"$@\"\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return command


def played(tmp_path, powerblock, duration_s, *timeline, expect=None):
    """The rig after a run that kept every bound, and all that the operator was told, key -> texts."""
    scenario = BLOCK | {"duration_s": duration_s, "timeline": list(timeline), "expect": KEPT | (expect or {})}
    for _ in range(2):
        told: dict[str, list[str]] = {}
        rig = Rig(parse_scenario(scenario, "faults.yaml"), tmp_path / "report", powerblock)
        outcome = asyncio.run(rig.run(partial(note, told)))
        broken = {one.key for one in outcome.verdict.expectations if not one.met}
        if "rig_lost_s" not in broken:  # else the machine was too busy to judge anybody
            break
    assert not broken, (broken, outcome.verdict.figures, told)
    return rig, told


def note(told, view) -> None:
    for alarm in view.status.get("alarms", ()):
        texts = told.setdefault(alarm["key"], [])
        if alarm["text"] not in texts:
            texts.append(alarm["text"])


def event(at_s, reduce_ratio, duration_s):
    return {"at_s": at_s, "event": {"id": "dr-1", "reduce_ratio": reduce_ratio, "duration_s": duration_s}}


def fault(at_s, target, mode, name="", **more):
    return {"at_s": at_s, "fault": {"target": target, "mode": mode, "name": name, **more}}


def test_a_bad_network_other_hands_and_an_inert_gpu_in_the_middle_of_a_ramp(tmp_path, powerblock):
    rig, told = played(
        tmp_path,
        powerblock,
        14,
        fault(0.5, "gpu", "inert", "r01-n1/3", for_s=9),
        event(1, 0.3, 9),
        fault(1.6, "link", "partition", "r02", for_s=2),
        fault(1.6, "link", "lossy", "r03", lost_ratio=0.3, for_s=8),
        fault(5, "gpu", "foreign", "r03-n1/*", limit_w=220, for_s=3),
        expect={"gpus_in_excess": {"min": 1, "max": 1}},
    )
    assert rig._links["r03"].dropped > 20
    assert any("W" in text for text in told["excess r01-n1/3"]), told
    assert "agent r02-n1" in told
    others = told.get("faults r03-n1", []) + told.get("notice r03-n1", [])
    assert any("GPU 0" in text and "W below ours" in text and "writer" in text for text in others), told


def test_a_host_that_reboots_a_new_broker_and_processes_whose_time_stood_still(tmp_path, powerblock):
    """The host is away for as long as one needs to boot, and draws its most before its agent is back."""
    rig, told = played(
        tmp_path,
        powerblock,
        23,
        event(1, 0.3, 21),
        fault(1.5, "host", "reboot", "r01-n1", dark_s=11, for_s=13),
        fault(3, "broker", "replaced"),
        fault(6, "agent", "freeze", "r02-n1", for_s=4),
        fault(16.5, "controller", "freeze", for_s=4),
    )
    most_kw = 4 * 0.7
    assert any(f"{most_kw:.1f} kW" in text for text in told["agent r01-n1"]), told
    assert any("kW" in text for text in told["agent r02-n1"]), told
    lapses = {
        name: (rig.work_dir / f"{name}.log").read_text().count("no order with a valid lease")
        for name in ("r02-n1", "r03-n1")
    }
    assert lapses == {"r02-n1": 2, "r03-n1": 1}, "time that stood still counts against a lease"


def test_a_second_controller_and_a_flood_of_stale_orders(tmp_path, powerblock):
    """The second one is turned away; when somebody insists, and ends it, ours leads again by itself."""
    rig, told = played(
        tmp_path,
        powerblock,
        25,
        event(0.5, 0.3, 22),
        fault(1, "controller", "kill", for_s=0.5),  # orders of an earlier start, for the flood
        fault(3, "controller", "twice", for_s=6),
        fault(9, "controller", "usurped", for_s=6),
        fault(12, "link", "stale_flood", "r01 r02", per_s=200, for_s=8),
    )
    said = (rig.work_dir / "rival.log").read_text()
    assert "obeys another controller of block demo" in said
    assert any("of 3 nodes obey start" in text and "at the most" in text for text in told["two controllers"])
    assert min(link.told_again for link in rig._links.values()) > 500
    assert any("r01-n1" in text for text in told["stale orders"]), told
