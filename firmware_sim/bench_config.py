"""Configuration files for the device under test, written from the scenario and the facility's ports."""

import base64
import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from firmware_sim.contact_plc import ContactPlc, point_name
from firmware_sim.gpu_power import MODELS
from firmware_sim.grid_side import GridSide
from firmware_sim.scada_plan import BUS_REPEAT_S, MIRROR_PREFIX, ServedAt
from firmware_sim.scenario import Scenario
from firmware_sim.scenario_block import Node, Shed
from firmware_sim.scenario_facility import DEVICE_KINDS

LOOPBACK: Final = "127.0.0.1"
PASSWORD_COST, PASSWORD_BLOCK, PASSWORD_LANES, PASSWORD_BYTES = 2**14, 8, 1, 32  # scrypt
PASSWORD_MEMORY_MAX_BYTES: Final = 64 * 1024 * 1024

TIERS: Final = {"standard": {"weight": 1, "floor_w": 250}, "critical": {"weight": 4, "floor_w": 500}}
FALLBACK_MARGIN_RATIO: Final = 0.94  # supplies lose: `supply.block_w_per_gpu_w` is 1.06 where it is left out
CONTACT_POLL_S: Final = 0.01  # a relay is one bit of one device: ask it as often as the file allows
METER_POLL_S: Final = 0.2


@dataclass(frozen=True)
class Outside:
    """Where the device under test finds the world.

    Attributes:
        urls: device -> url.
        plc_profile: how the PLC with the contacts is read.
        phasor_port: UDP port that the frequency is told to.
        link_ports: rack -> TCP port of the link that its agents reach the broker through, where it breaks.
    """

    urls: Mapping[str, str]
    plc_profile: Path | None = None
    phasor_port: int = 0
    link_ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """Files for the device under test.

    Attributes:
        block: of the controller, and of whoever asks it.
        nodes: node -> its agent's.
        farms: farm process -> its list of nodes.
    """

    block: Path
    nodes: Mapping[str, Path]
    farms: Mapping[str, Path]

    def agents(self, apart: Iterable[str]) -> dict[str, tuple[str, Path]]:
        """Process -> its command and file."""
        own = {node: ("agent", self.nodes[node]) for node in apart if node in self.nodes}
        return {**own, **{farm: ("agent-farm", path) for farm, path in self.farms.items()}}


def write_configs(
    scenario: Scenario,
    work_dir: Path,
    grid: GridSide,
    outside: Outside,
    served: ServedAt | None = None,
) -> Written:
    """Write block.yaml, one file per node, and one for each process of a farm."""
    block_path = work_dir / "block.yaml"
    config: dict[str, Any] = {
        "block": scenario.block.name,
        "state_dir": str(work_dir / "state"),
        "run_dir": str(work_dir / "run"),
    }
    if not scenario.facility.alone:
        config = block_config(scenario, work_dir, grid, outside)
    if scenario.facility.devices:
        config["devices"] = devices_config(scenario, outside.urls)
    if served is not None:
        config["facility"] = facility_config(scenario, grid, served)
    _write(block_path, config)
    if scenario.facility.alone:
        return Written(block_path, {}, {})
    nodes = {node.name: work_dir / f"{node.name}.yaml" for node in scenario.block.nodes}
    for node in scenario.block.nodes:
        port = outside.link_ports.get(node.rack)
        _write(nodes[node.name], node_config(scenario, work_dir, grid, node, port))
    farms = {name: work_dir / f"{name}.yaml" for name in scenario.block.farms}
    for name, members in scenario.block.farms.items():
        _write(farms[name], {"nodes": [nodes[node.name].name for node in members]})
    return Written(block_path, nodes, farms)


def write_rival(written: Written, work_dir: Path) -> Path:
    """The configuration of a second controller of the same block, on another host so to speak."""
    config = yaml.safe_load(written.block.read_text())
    config["state_dir"] = str(work_dir / "state-rival")
    config["run_dir"] = str(rival_status_path(work_dir).parent)
    config["journal"]["path"] = str(work_dir / "journal-rival.jsonl")
    config.pop("facility", None)
    config.pop("frequency", None)  # two cannot listen on one port
    path = work_dir / "block-rival.yaml"
    _write(path, config)
    return path


def _write(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))


def block_config(scenario: Scenario, work_dir: Path, grid: GridSide, outside: Outside) -> dict[str, Any]:
    """What `powerblock run` reads."""
    block, device_urls = scenario.block, outside.urls
    model = MODELS[block.gpu]
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
    emergency: dict[str, Any] = {}
    if block.shed is not None:
        emergency["shed"] = shed_config(block.shed, outside)
    if block.frequency is not None:
        emergency["frequency"] = frequency_config(scenario, outside.phasor_port)
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
            "poll_s": METER_POLL_S, "point": "power_w", "skew_s": 0.05,
        },
        "racks": racks,
        "tiers": TIERS,
        "cooling": {
            "profile": "opcua_cdu", "url": device_urls["cdu"], "security": "none",
            "capacity_point": "capacity_w", "blind_kw": block.cooling.blind_kw,
        },
        **emergency,
    }  # fmt: skip


def shed_config(shed: Shed, outside: Outside) -> dict[str, Any]:
    """Levels, and who calls them: alerts by name, relays behind the PLC."""
    return {
        "levels": [{"name": level.name, "kw": level.kw} for level in shed.levels],
        "alerts": dict(shed.alerts),
        "contacts": [
            {
                "name": name,
                "profile": str(outside.plc_profile),
                "url": outside.urls[ContactPlc.NAME],
                "unit": 1,
                "point": point_name(name),
                "level": level,
                "poll_s": CONTACT_POLL_S,
            }
            for name, level in shed.contacts.items()
        ],
    }


def frequency_config(scenario: Scenario, port: int) -> dict[str, Any]:
    """The product that was sold, and the rig's instrument."""
    product = scenario.block.frequency
    assert product is not None
    way = "json_udp" if product.form == "json" else "phasor_udp"
    made: dict[str, Any] = {
        "preset": product.preset,
        "committed_kw": product.committed_kw,
        "trigger_hz": product.trigger_hz,
        "input": {"way": way, "listen": f"{LOOPBACK}:{port}", "from": LOOPBACK},
    }
    return made if product.rearm_s is None else {**made, "rearm_s": product.rearm_s}


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


def node_config(
    scenario: Scenario, work_dir: Path, grid: GridSide, node: Node, link_port: int | None = None
) -> dict[str, Any]:
    """What `powerblock agent` reads. The fallback fits the failsafe limit with the highest base load."""
    block = scenario.block
    model = MODELS[block.gpu]
    gpus = sum(n.gpus for n in block.nodes)
    share_w = (block.failsafe_kw - block.base_load_max_kw) * 1000 / gpus * FALLBACK_MARGIN_RATIO
    return {
        "block": block.name,
        "node": node.name,
        "mqtt": grid.agent_mqtt(node.name, link_port),
        "gpus": {"count": node.gpus},
        "fallback_w": float(round(max(model.min_w, share_w))),
        "state_dir": str(work_dir / f"state-{node.name}"),
    }


def journal_path(work_dir: Path) -> Path:
    return work_dir / "journal.jsonl"


def status_path(work_dir: Path) -> Path:
    return work_dir / "run" / "status.json"


def rival_status_path(work_dir: Path) -> Path:
    """There once a second controller controls."""
    return work_dir / "run-rival" / "status.json"


def sheds_path(work_dir: Path) -> Path:
    """Where the controller writes a line about every call of a level."""
    return work_dir / "state" / "sheds.jsonl"
