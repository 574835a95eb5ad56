"""`powerblock grouping`: who is where, as agents tell it, and what of it is not as `block.yaml` says.

Taken from the controller's `grouping.json`. First what does not agree, each with what it costs and what to
do; then what could not be checked, and why. `propose` writes the racks as they were found, for `block.yaml`:
nodes in the rack of their chassis, UUIDs and serials written down, everything else as it was configured.
Inlets are what no agent knows: a chassis of no known rack stands in a rack without any, which
`powerblock check` refuses.

Who has not told anything yet agrees with nobody: such nodes are counted, and named.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.grouping import FILE
from controller.status import VERSION

ROWS_MAX: Final = 100  # more than anybody reads; JSON has them all
NODES_NAMED_MAX: Final = 6
HEADER: Final = """\
# Racks as agents tell them. Inlets, tiers and limits are as configured; check the rest before you use it.
"""

Told = Mapping[str, Any]


class GroupingError(ValueError):
    """There is nothing to show; the text says why."""


def look(run_dir: Path) -> Told:
    """The file in the run directory. Raises GroupingError."""
    path = run_dir / FILE
    try:
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise GroupingError(f"{path}: {error.strerror}; the controller writes it within seconds") from None
    except msgspec.DecodeError as error:
        raise GroupingError(f"{path}: {error}") from None
    if told.get("v") != VERSION:
        raise GroupingError(
            f"{path}: version {told.get('v')}, this program reads {VERSION}: update the older"
        )
    return told


def untold(told: Told, configured: Iterable[str]) -> list[str]:
    """Those of the configured nodes whose agents have not told their GPUs."""
    heard = {node["name"] for node in told["nodes"] if node["gpus"]}
    return [name for name in configured if name not in heard]


def as_json(told: Told) -> dict[str, Any]:
    return dict(told)


def render(told: Told, missing: Sequence[str]) -> RenderableType:
    """`missing`: see `untold`."""
    mismatches = told["mismatches"]
    nodes, gpus = len(told["nodes"]), sum(len(node["gpus"]) for node in told["nodes"])
    parts: list[RenderableType] = [
        Text.assemble(
            (told["block"], "bold"),
            f"  nodes that have told their GPUs: {nodes}, with {gpus}; ",
            _verdict(told, missing),
        )
    ]
    if mismatches:
        parts += [Text(), _table(mismatches)]
    if len(mismatches) > ROWS_MAX:
        parts.append(Text(f"… {len(mismatches) - ROWS_MAX} more: see --json", style="dim"))
    by_why = defaultdict(list)
    for one in told["unchecked"]:
        by_why[one["why"]].append(one["node"])
    for why, names in by_why.items():
        more = f" and {len(names) - NODES_NAMED_MAX} more" if len(names) > NODES_NAMED_MAX else ""
        parts.append(Text(f"not checked, {why}: {', '.join(names[:NODES_NAMED_MAX])}{more}", style="dim"))
    return Group(*parts, *_persistence(told["nodes"]))


def _persistence(nodes: Sequence[Told]) -> Iterator[Text]:
    """One line, where the driver forgets limits. Nothing disagrees by that, and it is never switched on."""
    off = {node["name"]: sum(gpu.get("persistence") is False for gpu in node["gpus"]) for node in nodes}
    named = [f"{name} ({count} GPUs)" for name, count in off.items() if count]
    if named:
        more = f" and {len(named) - NODES_NAMED_MAX} more nodes" if len(named) > NODES_NAMED_MAX else ""
        yield Text(
            "persistence mode is off, limits are lost whenever the last program closes the driver; enable"
            f" nvidia-persistenced: {', '.join(named[:NODES_NAMED_MAX])}{more}",
            style="yellow",
        )


def _verdict(told: Told, missing: Sequence[str]) -> tuple[str, str]:
    """In words, and their style."""
    if told["mismatches"]:
        return f"{len(told['mismatches'])} do not agree with block.yaml", "bold red"
    if not told["nodes"]:
        return "nothing is known yet", "yellow"
    if missing:
        return f"they agree with block.yaml, {len(missing)} of its nodes are missing", "yellow"
    return "all agree with block.yaml", "green"


def _table(mismatches: Sequence[Told]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for one in mismatches[:ROWS_MAX]:
        table.add_row(
            Text(f"{one['node']}  {one['kind']}", style="bold"),
            Text.assemble(
                f"found {one['found']}, configured {one['configured']}\n",
                (f"{one['cost']}\n", "yellow"),
                (f"→ {one['remedy']}", "green"),
            ),
        )
    return table


def propose(told: Told, racks: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> str:
    """`racks` of block.yaml, as found, YAML.

    Args:
        told: by the controller.
        racks: the same as configured, as the file has them.
        missing: see `untold`.
    """
    found = {node["name"]: node["gpus"] for node in told["nodes"]}
    configured = {node["name"]: (node, rack["name"]) for rack in racks for node in rack["nodes"]}
    homes = _homes(found, racks)
    placed: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in (*configured, *(name for name in found if name not in configured)):
        node, rack = configured.get(name, ({"name": name}, "to-be-named"))
        gpus = found.get(name, ())
        serials = [gpu["chassis"] for gpu in gpus if gpu["chassis"]]
        placed[homes[serials[0]] if serials else rack].append(_node(node, gpus))
    proposed = [
        {**rack, **_chassis(homes, rack["name"]), "nodes": placed.pop(rack["name"], [])} for rack in racks
    ]
    proposed += [
        {"name": rack, "inlets": [], **_chassis(homes, rack), "nodes": nodes}
        for rack, nodes in placed.items()
    ]
    note = f"# As configured, for their agents have not told their GPUs: {', '.join(missing)}\n"
    return (
        HEADER
        + (note if missing else "")
        + yaml.safe_dump({"racks": proposed}, sort_keys=False, allow_unicode=True, width=100)
    )


def _homes(
    found: Mapping[str, Sequence[Mapping[str, Any]]], racks: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Rack by serial of the chassis: as configured, else where most of its nodes are configured."""
    rack_of = {node["name"]: rack["name"] for rack in racks for node in rack["nodes"]}
    nodes_of = defaultdict(list)
    for name, gpus in found.items():
        for serial in {gpu["chassis"] for gpu in gpus} - {""}:
            nodes_of[serial].append(rack_of.get(name, ""))
    homes = {
        serial: max(filter(None, nodes), key=nodes.count, default=f"rack-{serial}")
        for serial, nodes in nodes_of.items()
    }
    return homes | {serial: rack["name"] for rack in racks for serial in rack.get("chassis_serials", ())}


def _chassis(homes: Mapping[str, str], rack: str) -> dict[str, list[str]]:
    serials = sorted(serial for serial, home in homes.items() if home == rack)
    return {"chassis_serials": serials} if serials else {}


def _node(node: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One node with its GPUs written down. What could not be read stays as it was configured."""
    read = [gpu for gpu in gpus if gpu["uuid"]]
    if not read or len(read) != len(gpus):
        return dict(node)
    max_w, min_w = max(gpu["max_w"] for gpu in read), max(gpu["min_w"] for gpu in read)
    return {
        **node,
        "gpus": len(gpus),
        "min_w": node.get("min_w", min_w),
        "max_w": max(node.get("max_w", 0.0), max_w),
        "gpu_uuids": [gpu["uuid"] for gpu in read],
    }
