"""Configuration files for the device under test, written from the scenario and the facility's ports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from firmware_sim.grid_side import GridSide, agent_identity
from firmware_sim.scenario import Scenario

TIERS: Final = {"standard": {"weight": 1, "floor_w": 250}, "critical": {"weight": 4, "floor_w": 500}}
FALLBACK_MARGIN_RATIO: Final = 0.95


def write_configs(
    scenario: Scenario, work_dir: Path, grid: GridSide, device_urls: Mapping[str, str]
) -> tuple[Path, dict[str, Path]]:
    """Write block.yaml and one file per node; returns the path of the first and node name -> path."""
    block_path = work_dir / "block.yaml"
    block_path.write_text(
        yaml.safe_dump(block_config(scenario, work_dir, grid, device_urls), sort_keys=False)
    )
    node_paths = {}
    for node in scenario.block.nodes:
        path = work_dir / f"{node.name}.yaml"
        config = node_config(scenario, work_dir, grid, node.name)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        node_paths[node.name] = path
    return block_path, node_paths


def block_config(
    scenario: Scenario, work_dir: Path, grid: GridSide, device_urls: Mapping[str, str]
) -> dict[str, Any]:
    """What `powerblock run` reads."""
    block = scenario.block
    model = scenario.plant_type().gpu
    racks = [
        {
            "name": rack.name,
            "inlets": [
                {
                    "name": f"{rack.name}-{feed}", "feed": feed, "rating_a": rack.rating_a,
                    "voltage_v": rack.voltage_v, "phases": rack.phases, "profile": "xerus_pdu",
                    "url": device_urls[f"{rack.name}-{feed}"], "unit": 1, "poll_s": 1.0, "point": "power_w",
                }
                for feed in "ab"
            ],
            "nodes": [
                {"name": n.name, "gpus": n.gpus, "min_w": model.min_w, "max_w": model.max_w, "tier": n.tier}
                for n in block.nodes
                if n.rack == rack.name
            ],
        }
        for rack in block.racks
    ]  # fmt: skip
    return {
        "block": block.name,
        "state_dir": str(work_dir / "state"),
        "run_dir": str(work_dir / "run"),
        "journal": {"path": str(journal_path(work_dir))},
        "mqtt": grid.block_broker.mqtt_config("controller"),
        "site": {
            "failsafe_kw": block.failsafe_kw,
            "ramp": {
                "down_kw_per_s": block.ramp_down_kw_per_s,
                "up_kw_per_s": block.ramp_up_kw_per_s,
            },
            "sources": grid.sources(),
        },
        "feed": {"rating_kw": block.feed_rating_kw},
        "base_load": {"min_kw": block.base_load_min_kw, "max_kw": block.base_load_max_kw},
        "meter": {
            "profile": "pm5000_meter", "url": device_urls["meter"], "unit": 1,
            "poll_s": 0.2, "point": "power_w", "skew_s": 0.05,
        },
        "racks": racks,
        "tiers": TIERS,
        "cooling": {
            "profile": "opcua_cdu", "url": device_urls["cdu"], "security": "none",
            "capacity_point": "capacity_w", "blind_kw": block.cooling.blind_kw,
        },
    }  # fmt: skip


def node_config(scenario: Scenario, work_dir: Path, grid: GridSide, node: str) -> dict[str, Any]:
    """What `powerblock agent` reads. The fallback fits the failsafe limit with the highest base load."""
    block = scenario.block
    model = scenario.plant_type().gpu
    gpus = sum(n.gpus for n in block.nodes)
    share_w = (block.failsafe_kw - block.base_load_max_kw) * 1000 / gpus * FALLBACK_MARGIN_RATIO
    return {
        "block": block.name,
        "node": node,
        "mqtt": grid.block_broker.mqtt_config(agent_identity(node)),
        "fallback_w": float(round(max(model.min_w, share_w))),
        "state_dir": str(work_dir / f"state-{node}"),
    }


def journal_path(work_dir: Path) -> Path:
    return work_dir / "journal.jsonl"


def status_path(work_dir: Path) -> Path:
    return work_dir / "run" / "status.json"
