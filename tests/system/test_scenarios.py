"""The real controller and agents, as child processes, on the simulated facility: one short run in real time.

The scenarios in examples/ take a minute and a half each; this one ramps five times as fast to fit a test.
"""

import asyncio
import stat
import sys
from pathlib import Path

import pytest

from firmware_sim.bench_config import journal_path
from firmware_sim.recorder import read_journal
from firmware_sim.rig import Rig
from firmware_sim.scenario import parse_scenario

ROOT = Path(__file__).parents[2]

SCENARIO = {
    "name": "short",
    "about": "a quarter less for 6 s, and an agent dies in the middle",
    "seed": 3,
    "warm_up_s": 9,
    "duration_s": 11,
    "block": {
        "ramp_down_kw_per_s": 3,
        "ramp_up_kw_per_s": 3,
        "racks": [{"name": "r1"}, {"name": "r2"}],
        "nodes": [{"name": "node-a", "rack": "r1", "gpus": 8}, {"name": "node-b", "rack": "r2", "gpus": 8}],
    },
    "workloads": [
        {"node": "node-a", "kind": "training", "exchange_demand_ratio": 0.9},
        {"node": "node-b", "kind": "inference", "swing_ratio": 0.1},
    ],
    "timeline": [
        {"at_s": 1, "event": {"id": "dr-1", "reduce_ratio": 0.25, "duration_s": 6}},
        {"at_s": 4, "fault": {"target": "agent", "name": "node-a", "mode": "kill", "for_s": 1}},
    ],
    "expect": {
        "reaction_s": {"max": 0.5},
        "overshoot_ratio": {"max": 0.01},
        "above_line_ratio": {"max": 0.03},
        "over_rating_s": {"max": 0},
        "tokens_kept_ratio": {"min": 0.5},
    },
}


@pytest.fixture
def powerblock(tmp_path):
    command = tmp_path / "powerblock"
    code = "from controller.cli import app; app()"
    command.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c '{code}' \"$@\"\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return command


def test_a_signal_becomes_less_power_at_the_meter_and_stays_so_while_an_agent_dies(tmp_path, powerblock):
    rig = Rig(parse_scenario(SCENARIO, "short.yaml"), tmp_path / "report", powerblock)
    outcome = asyncio.run(rig.run(lambda _view: None))
    broken = [expectation for expectation in outcome.verdict.expectations if not expectation.met]
    assert not broken, outcome.verdict.figures
    beats = read_journal(journal_path(rig.work_dir))
    assert {beat.mode for beat in beats} >= {"init", "controlled", "limited"}
