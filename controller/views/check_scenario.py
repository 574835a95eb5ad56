"""A scenario of the rig, given to `powerblock check`: it looks like a `block.yaml` and is none."""

from pathlib import Path
from typing import Any, Final

from controller.yaml_config import ConfigError, parse

MARKS: Final = frozenset({"warm_up_s", "duration_s", "workloads", "timeline", "expect"})  # in no block.yaml


def is_scenario(path: Path) -> bool:
    """Whether the file describes its block, where a `block.yaml` has the name of one."""
    try:
        content: dict[str, Any] = parse(path)
    except ConfigError:
        return False
    return isinstance(content.get("block"), dict) and not MARKS.isdisjoint(content)


def sentence(path: Path) -> str:
    return (
        f"{path.name}: a scenario for the rig, no configuration: play it with `powerblock-rig run {path}`."
        " check takes a block.yaml or a node.yaml; `powerblock-rig serve` with the same file writes those of"
        " its simulated block"
    )
