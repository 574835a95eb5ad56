"""Configuration files for the device under test, written from the scenario and the facility's ports."""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from firmware_sim.grid_side import GridSide, agent_identity
from firmware_sim.scada_plan import BUS_REPEAT_S, MIRROR_PREFIX, ServedAt
from firmware_sim.scenario import Scenario
from firmware_sim.scenario_facility import DEVICE_KINDS

LOOPBACK: Final = "127.0.0.1"
PASSWORD_COST, PASSWORD_BLOCK, PASSWORD_LANES, PASSWORD_BYTES = 2**14, 8, 1, 32  # scrypt
PASSWORD_MEMORY_MAX_BYTES: Final = 64 * 1024 * 1024

TIERS: Final = {"standard": {"weight": 1, "floor_w": 250}, "critical": {"weight": 4, "floor_w": 500}}
FALLBACK_MARGIN_RATIO: Final = 0.95


def write_configs(
    scenario: Scenario,
    work_dir: Path,
    grid: GridSide,
    device_urls: Mapping[str, str],
    served: ServedAt | None = None,
) -> tuple[Path, dict[str, Path]]:
    """Write block.yaml and one file per node; returns the path of the first and node name -> path."""
    block_path = work_dir / "block.yaml"
    config: dict[str, Any] = {
        "block": scenario.block.name,
        "state_dir": str(work_dir / "state"),
        "run_dir": str(work_dir / "run"),
    }
    if not scenario.facility.alone:
        config = block_config(scenario, work_dir, grid, device_urls)
    if scenario.facility.devices:
        config["devices"] = devices_config(scenario, device_urls)
    if served is not None:
        config["facility"] = facility_config(scenario, grid, served)
    block_path.write_text(yaml.safe_dump(config, sort_keys=False))
    node_paths: dict[str, Path] = {}
    if scenario.facility.alone:
        return block_path, node_paths
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


def devices_config(scenario: Scenario, device_urls: Mapping[str, str]) -> list[dict[str, Any]]:
    """The `devices` of a gateway: those beside the block's own."""
    return [
        {
            "name": device.name,
            "profile": DEVICE_KINDS[device.type].profile,
            "kind": DEVICE_KINDS[device.type].kind,
            "url": device_urls[device.name],
            "unit": device.unit,
            "poll_s": device.poll_s,
            "frozen_after_s": DEVICE_KINDS[device.type].frozen_after_s,
            "writes": {
                point: {"lowest": float(lowest), "highest": float(highest)}
                for point, (lowest, highest) in DEVICE_KINDS[device.type].writes.items()
            },
        }
        for device in scenario.facility.devices
    ]


def facility_config(scenario: Scenario, grid: GridSide, served: ServedAt) -> dict[str, Any]:
    """What `powerblock serve` offers, and to whom: nobody without a password or beyond this host."""
    mqtt = grid.broker.mqtt_config("facility")
    everything = {
        "opcua": {
            "host": LOOPBACK,
            "port": served.opcua_port,
            "folder": str(served.opcua_folder),
            "policies": ["Basic256Sha256"],
            "modes": ["SignAndEncrypt"],
            "users": str(served.users),
        },
        "modbus": {
            "host": LOOPBACK,
            "port": served.modbus_port,
            "allow": [LOOPBACK],
            "write_allow": [LOOPBACK],
        },
        "bms": {"mqtt": mqtt, "repeat_s": BUS_REPEAT_S},
        "prometheus": {"host": LOOPBACK, "port": served.prometheus_port},
        "mirror": {"mqtt": mqtt, "prefix": MIRROR_PREFIX},
    }
    return {way: everything[way] for way in scenario.facility.serve}


def users_file(name: str, password: str) -> str:
    """One user, with the right to move plant."""
    salt = secrets.token_bytes(16)
    made = hashlib.scrypt(
        password.encode(), salt=salt, n=PASSWORD_COST, r=PASSWORD_BLOCK, p=PASSWORD_LANES,
        dklen=PASSWORD_BYTES, maxmem=PASSWORD_MEMORY_MAX_BYTES,
    )  # fmt: skip
    parts = (
        PASSWORD_COST,
        PASSWORD_BLOCK,
        PASSWORD_LANES,
        *(base64.b64encode(one).decode() for one in (salt, made)),
    )
    user = {"name": name, "role": "operate", "password": "$".join(("scrypt", *map(str, parts)))}
    return yaml.safe_dump({"users": [user]})


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
