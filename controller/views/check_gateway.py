"""`powerblock check`, the part that a gateway has, too: what is read, what may be written, what is served.

The list is for whoever signs for the installation: every address, every point that may be written and how
far, and every door that is open to others.
"""

import getpass
import ipaddress
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from controller.config import BlockConfig, GatewayConfig, devices
from controller.facility.files import unreadable, unusable
from controller.gateway_config import SUNSPEC, Device, profile_of
from controller.store import refusal
from controller.views import check_bms

DEVICES_SHOWN_MAX: Final = 100


def branches(config: GatewayConfig | BlockConfig) -> Iterator[Tree]:
    """What is read and what is served, as branches of a tree."""
    found = devices(config)
    read = Tree(Text(f"field devices: {len(found)}"), guide_style="dim")
    for device in found[:DEVICES_SHOWN_MAX]:
        _device(read, device)
    if len(found) > DEVICES_SHOWN_MAX:
        read.add(Text(f"… {len(found) - DEVICES_SHOWN_MAX} more", style="dim"))
    yield read
    served = Tree(Text("served by `powerblock serve`"), guide_style="dim")
    for name, server in config.facility:
        if server is not None:
            branch = served.add(_server(name, server))
            for part in check_bms.branches(config) if name == "bms" else ():
                branch.add(part)
    if not served.children:
        served.add(Text("nothing", style="dim"))
    yield served


def render(config: GatewayConfig) -> RenderableType:
    """A gateway without GPUs."""
    tree = Tree(Text.assemble((config.block, "bold"), "  a gateway without GPUs"), guide_style="dim")
    for branch in branches(config):
        tree.add(branch)
    return Group(tree, *map(warning, warnings(config)))


def warning(sentence: str) -> Table:
    """One line, or more with an indent."""
    line = Table.grid(padding=(0, 1))
    line.add_row(Text("!", style="bold yellow"), sentence)
    return line


def as_json(config: GatewayConfig) -> dict[str, Any]:
    return {
        "block": config.block,
        "config": config.model_dump(mode="json"),
        "warnings": list(warnings(config)),
        **facility_json(config),
    }


def facility_json(config: GatewayConfig | BlockConfig) -> dict[str, Any]:
    """What the bus is told, for programs; nothing where there is no bus."""
    return {} if config.facility.bms is None else {"bms": check_bms.as_json(config)}


def unfit(config: GatewayConfig | BlockConfig) -> Iterator[str]:
    """What controller and facility server would refuse or complain of, for this user on this machine."""
    for name, folder in _folders(config):
        error = _tried(folder)
        if error is not None and not isinstance(error, PermissionError):
            yield refusal(name, folder, error)
    for device in devices(config):
        yield from unreadable(device.where, device.config)
    yield from unusable(config.facility, config.block)
    if config.facility.bms is not None:
        yield from check_bms.mistakes(config)


def warnings(config: GatewayConfig | BlockConfig) -> Iterator[str]:
    """Folders that this user could not write; the service's user may be another one."""
    for name, folder in _folders(config):
        if isinstance(_tried(folder), PermissionError):
            yield f"{name}: {folder} cannot be written by {getpass.getuser()}; whoever runs the service must"


def _folders(config: GatewayConfig | BlockConfig) -> Iterator[tuple[str, Path]]:
    yield "state_dir", config.state_dir
    yield "run_dir", config.run_dir


def _tried(folder: Path) -> OSError | None:
    """Whether a file could be made there, or where the folder itself would be. Nothing stays behind."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return error
    return None


def _device(tree: Tree, device: Device) -> None:
    config, profile = device.config, profile_of(device.config)
    if profile is None:
        what = f"{SUNSPEC}: what it says of itself"
    else:
        what = f"{config.profile}, {len(profile.select(config.points))} points"
    branch = tree.add(
        Text.assemble(
            (device.name, "bold"),
            f"  {what}, every {config.poll_s:g} s",
            (f"  {config.url} unit {config.unit}" if not config.is_opcua else f"  {config.url}", "dim"),
        )
    )
    for name, rule in config.writes.items():
        rate = "" if rule.rate_per_s is None else f", {rule.rate_per_s:g} per s"
        branch.add(Text(f"may write {name}: {rule.lowest:g} to {rule.highest:g}{rate}", style="yellow"))
    for name, limits in config.alarms.items():
        said = ", ".join(f"{level.value} {limit:g}" for level, limit in limits.levels().items())
        branch.add(Text(f"alarms of {name}: {said}"))


def _server(name: str, server: BaseModel) -> Text:
    host, port = getattr(server, "host", None), getattr(server, "port", None)
    mqtt = getattr(server, "mqtt", None)
    said = Text.assemble((name, "bold"))
    if host is not None:
        said.append(f"  {host}:{port}")
        if not _is_loopback(host):
            said.append("  open to other hosts", style="yellow")
    if mqtt is not None:
        said.append(f"  {mqtt.url}")
    return said


def _is_loopback(host: str) -> bool:
    """A name is judged by itself: what it leads to may change."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
