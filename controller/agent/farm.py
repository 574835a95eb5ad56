"""`powerblock agent-farm FILE`: the agents of many nodes in one process, for benches and rehearsals.

    first_gpu: 0              # of the driver; the nodes get its GPUs from there, one after the other
    nodes: [n001.yaml, n002.yaml]

Each node is what it is on a host of its own: its node.yaml (with `gpus.count`), its lease, its record, its
connection to the broker. They share a process, one driver (`NodeSlice`) and its two lanes; so a GPU that
hangs costs its neighbours a deadline, as it does on one host. Many hosts behave alike but for that.
"""

import sys
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from controller.agent.config import ConfigError, NodeConfig, load_node
from controller.agent.service import run
from controller.endless import run_and_leave
from controller.yaml_config import load
from protocols.nvml import NodeSlice, Nvml

NODES_MAX: Final = 1024


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class FarmConfig(BaseModel):
    """Which nodes, and where their GPUs begin. Paths are as seen from the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_gpu: Annotated[int, Field(ge=0)] = 0
    nodes: Annotated[tuple[Path, ...], BeforeValidator(_tuple), Field(min_length=1, max_length=NODES_MAX)]


def load_farm(path: Path) -> tuple[FarmConfig, list[NodeConfig]]:
    """Read the farm and all its nodes. Raises ConfigError listing everything that is wrong with any."""
    farm = load(path, FarmConfig)
    nodes: list[NodeConfig] = []
    errors: list[str] = []
    for name in farm.nodes:
        try:
            node = load_node(path.parent / name)
        except ConfigError as error:
            errors.append(str(error))
            continue
        nodes.append(node)
        if node.gpus is None:
            errors.append(
                f"{name}: gpus: a node of a farm must say how many it has; add `gpus: {{count: 8}}`"
            )
    names = [node.node for node in nodes]
    errors += [f"{path.name}: nodes: {name!r} twice" for name in sorted(set(names)) if names.count(name) > 1]
    if len({node.report_period_s for node in nodes}) > 1:
        errors.append(f"{path.name}: nodes: report_period_s differs; a farm has one beat")
    if errors:
        raise ConfigError("\n".join(errors))
    return farm, nodes


def slices(first_gpu: int, nodes: list[NodeConfig], driver: Nvml) -> list[Nvml]:
    """A part of the driver per node. Raises ConfigError when it has too few GPUs."""
    counts = [0 if node.gpus is None else node.gpus.count for node in nodes]
    if first_gpu + sum(counts) > driver.gpu_count:
        raise ConfigError(
            f"nodes have {sum(counts)} GPUs from {first_gpu} on, the driver shows {driver.gpu_count}"
        )
    firsts = [first_gpu + sum(counts[:place]) for place in range(len(counts))]
    return [NodeSlice(driver, first, count) for first, count in zip(firsts, counts, strict=True)]


def main(path: Path) -> int:
    """Command `powerblock agent-farm`. Returns 2 for a bad configuration; else the process ends."""
    try:
        farm, nodes = load_farm(path)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return run_and_leave(run(nodes, lambda driver: slices(farm.first_gpu, nodes, driver), observe=False))
