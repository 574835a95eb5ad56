"""The gateway whole: field devices, controller, facility server and independent SCADA clients, in real time.

The scenarios in examples/ take their time; these ramp five times as fast to fit a test.
"""

import pytest

from firmware_sim.bench_config import journal_path
from firmware_sim.recorder import read_journal
from tests.protocols.bms.bms_contract import CONTRACT
from tests.system.runs import played

# Connections are broken here on purpose: what the SCADA side's libraries leave to the collector is its warning.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DEVICES = [
    {"name": "rpu-1", "type": "rpu", "line": "hall", "unit": 3},
    {"name": "pumps", "type": "em24", "line": "hall", "unit": 4},
    {"name": "chiller", "type": "chiller"},
    {"name": "branch-r1", "type": "branch", "of": "r1"},
    {"name": "battery", "type": "battery"},
]
BLOCK = {
    "ramp_down_kw_per_s": 3,
    "ramp_up_kw_per_s": 3,
    "racks": [{"name": "r1"}, {"name": "r2"}],
    "nodes": [{"name": "node-a", "rack": "r1", "gpus": 8}, {"name": "node-b", "rack": "r2", "gpus": 8}],
}
WORKLOADS = [
    {"node": "node-a", "kind": "training", "exchange_demand_ratio": 0.9},
    {"node": "node-b", "kind": "inference", "swing_ratio": 0.1},
]


def agreed(*ways):
    """Every way shows the plant as it is."""
    figures = {f"{way}_agreement_ratio": {"min": 0.95} for way in ways}
    return figures | {f"{way}_bad_s": {"max": 1.0} for way in ways}


def facility(*ways, **changes):
    schema = {"bms_schema": CONTRACT} if CONTRACT.exists() else {}
    return {"serve": ways, "devices": DEVICES, **schema, **changes}


def test_scada_and_the_grid_limit_a_block_while_its_server_and_then_an_agent_die(tmp_path, powerblock):
    """The server is missed by SCADA alone; what the agent held is made up for by the others."""
    ways = ("opcua", "modbus", "bms", "prometheus")
    back_s = 26.0  # everybody reads the new server: 3 s after the kill, on a busy machine 15
    document = {
        "name": "short",
        "seed": 3,
        "warm_up_s": 8,
        "duration_s": back_s + 7,
        "block": BLOCK,
        "workloads": WORKLOADS,
        "facility": facility(*ways),
        "timeline": [
            {"at_s": 2, "command": {"id": "op-1", "via": "opcua", "reduce_ratio": 0.2, "duration_s": 3}},
            {"at_s": 3.5, "fault": {"target": "server", "mode": "kill", "for_s": 1}},
            {"at_s": 12, "event": {"id": "dr-1", "reduce_ratio": 0.25, "duration_s": 6}},
            {"at_s": 15, "fault": {"target": "agent", "name": "node-a", "mode": "kill", "for_s": 1}},
            {
                "at_s": back_s,
                "command": {"id": "op-2", "via": "modbus", "reduce_ratio": 0.2, "duration_s": 3},
            },
            {
                "at_s": back_s + 0.5,
                "write": {"device": "chiller", "point": "demand_limit_ratio", "value": 0.45},
            },
        ],
        "expect": {
            "overshoot_ratio": {"max": 0.01},
            "above_line_ratio": {"max": 0.03},
            "over_rating_s": {"max": 0},
            "tokens_kept_ratio": {"min": 0.5},
            "ways_back_s": {"max": back_s - 5},
            "write_s": {"max": 5},
            **agreed(*ways),
        },
    }
    rig, _, report = played(document, tmp_path, powerblock)
    beats = read_journal(journal_path(rig.work_dir))
    assert {beat.mode for beat in beats} >= {"init", "controlled", "limited"}
    assert {
        "facility opcua scada-1 (operator)",
        "facility sunspec registers (operator)",
        "utility dr-1/0",
    } <= {beat.binding for beat in beats}
    assert report["bms_messages"] > 300
    assert report["scada"]["missing"] == []


def test_a_gateway_without_gpus_loses_one_device_and_nothing_else(tmp_path, powerblock):
    ways = ("opcua", "modbus", "bms", "prometheus", "mirror")
    document = {
        "name": "short",
        "seed": 5,
        "warm_up_s": 3,
        "duration_s": 10,
        "block": BLOCK,
        "workloads": WORKLOADS,
        "facility": facility(*ways, alone=True),
        "timeline": [
            {"at_s": 1, "fault": {"target": "device", "name": "pumps", "mode": "silent"}},
            {"at_s": 2, "write": {"device": "rpu-1", "point": "flow_target_l_per_min", "value": 40}},
        ],
        "expect": {
            "dead_good_s": {"max": 0},
            "write_s": {"max": 5},
            **agreed(*ways),
        },
    }
    rig, _, report = played(document, tmp_path, powerblock)
    assert not rig.node_paths
    assert report["journal_beats"] == 0
    assert set(report["scada"]["missing"]) == {f"{way} devices/pumps/power_w" for way in ways}
