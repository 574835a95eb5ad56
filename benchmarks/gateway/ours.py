"""powerblock as a gateway without GPUs: `powerblock run` and `powerblock serve`, both measured.

The one polls, the other publishes; between them is the process image. Each device of the farm is an entry of
`block.yaml` with one profile of 60 registers, each scaled; what is published carries quality and time.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.gateway.contender import Command, Contender, Values
from benchmarks.gateway.farm import PER_UNIT, REGISTERS, Farm
from benchmarks.live import POWERBLOCK

BLOCK: Final = "bench"
PREFIX: Final = "powerblock"
DEVICES: Final = f"{PREFIX}/{BLOCK}/devices/d"  # followed by the number of the device


def gateway(source: Farm, broker_port: int, poll_s: float, folder: Path) -> Contender:
    facility = {"mirror": mirror(f"mqtt://127.0.0.1:{broker_port}")}
    block_path = write_block(source.ports, poll_s, folder, facility)
    commands = tuple(Command((*POWERBLOCK, verb, str(block_path))) for verb in ("run", "serve"))
    versions = {name: version(name) for name in ("powerblock", "pymodbus", "aiomqtt", "uvloop", "msgspec")}
    return Contender(versions, commands, decode)


def mirror(broker_url: str) -> dict[str, Any]:
    """`facility.mirror`: every update as it comes, QoS 1 and the store on disk ready, as shipped."""
    return {"mqtt": {"url": broker_url}, "prefix": PREFIX}


def write_block(ports: tuple[int, ...], poll_s: float, folder: Path, facility: Mapping[str, Any]) -> Path:
    """The path of a `block.yaml` that polls these devices of the farm."""
    block_path = folder / "block.yaml"
    content = {
        "block": BLOCK,
        "state_dir": str(folder / "state"),
        "run_dir": str(folder / "run"),
        "devices": farm_devices(ports, poll_s, folder),
        "facility": facility,
    }
    for name in ("state", "run"):
        (folder / name).mkdir()
    block_path.write_text(yaml.safe_dump(content))
    return block_path


def farm_devices(ports: tuple[int, ...], poll_s: float, folder: Path) -> list[dict[str, Any]]:
    """Entries under `devices`; their profile is written into the folder."""
    profile_path = folder / "farm.yaml"
    profile_path.write_text(yaml.safe_dump(_profile()))
    return [
        {
            "name": f"d{number}",
            "profile": str(profile_path),
            "url": f"modbus+tcp://127.0.0.1:{port}",
            "poll_s": poll_s,
        }
        for number, port in enumerate(ports)
    ]


def decode(topic: str, payload: bytes) -> Values:
    """Of a device's message: {"values": {"r0_w": 0.1, ...}, ...}."""
    if topic.startswith(DEVICES):
        values = json.loads(payload)["values"]
        yield (
            int(topic[len(DEVICES) :]),
            {int(name[1:-2]): value for name, value in values.items() if value is not None},
        )


def _profile() -> dict[str, Any]:
    return {
        "title": "device of the bench's farm",
        "protocol": "modbus",
        "provenance": {"document": "benchmarks/gateway/farm.c", "page": "top", "evidence": "document"},
        "blocks": [{"table": "holding", "first": 0, "last": REGISTERS - 1}],
        "points": {
            f"r{at}_w": {"unit": "W", "table": "holding", "address": at, "type": "u16", "scale": 1 / PER_UNIT}
            for at in range(REGISTERS)
        },
        "examples": [{"point": "r0_w", "registers": [1234], "value": 123.4, "source": "a register by ten"}],
    }
