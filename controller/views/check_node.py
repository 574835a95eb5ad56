"""A `node.yaml` in one sentence, for `powerblock check`: the agent itself would tell only on its host."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from controller.agent.config import NodeConfig
from controller.views import check_files
from controller.yaml_config import ConfigError, parse


def is_of_node(path: Path) -> bool:
    """Whether the file has what a node has and no `block.yaml`. What cannot be read is not for us to tell."""
    try:
        content: dict[str, Any] = parse(path)
    except ConfigError:
        return False
    return not content.keys().isdisjoint(("node", "fallback_w")) and "racks" not in content


def sentence(config: NodeConfig) -> str:
    """What the file means."""
    count = None if config.gpus is None else config.gpus.count
    each = " / ".join(f"{watts:g}" for watts in sorted(set(config.fallback_w)))
    some = "as many GPUs as its driver shows" if count is None else f"{count} GPUs"
    total_w = None if count is None else sum(config.fallback_limits_w(count))
    in_all = "" if total_w is None else f", {total_w / 1e3:.2f} kW in all"
    return (
        f"node {config.node} of block {config.block}: {some}; without a lease down to {each} W each{in_all},"
        f" by {config.fallback_ramp_w_per_s:g} W/s. `powerblock check block.yaml` derives what it should be"
    )


def unfit(config: NodeConfig) -> Iterator[str]:
    """Files with which the agent would not start, for this user on this machine."""
    trial = ("mqtt", partial(check_files.linked, "mqtt", config.mqtt))
    yield from check_files.unfit(check_files.of_broker("mqtt", config.mqtt), [trial], "the agent")
