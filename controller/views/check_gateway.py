"""`powerblock check`, the part that a gateway has, too: what is read, what may be written, what is served.

The list is for whoever signs for the installation: every address, every point that may be written and how
far, and every door that is open to others.
"""

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from controller.config import BlockConfig, GatewayConfig, devices
from controller.gateway_config import SUNSPEC, Device, profile_of
from controller.views import check_bms

DEVICES_SHOWN_MAX: Final = 100
CREDENTIALS: Final = Path("/run/credentials")


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
    return Group(tree)


def as_json(config: GatewayConfig) -> dict[str, Any]:
    return {"block": config.block, "config": config.model_dump(mode="json"), **facility_json(config)}


def facility_json(config: GatewayConfig | BlockConfig) -> dict[str, Any]:
    """What the bus is told, for programs; nothing where there is no bus."""
    return {} if config.facility.bms is None else {"bms": check_bms.as_json(config)}


def unfit(config: GatewayConfig | BlockConfig) -> Iterator[str]:
    """Files that are named and cannot be read by this user, on this machine."""
    for device in devices(config):
        yield from _unreadable(device.where, device.config)
    for name, server in config.facility:
        if server is not None:
            yield from _unreadable(f"facility.{name}", server)


def _unreadable(where: str, settings: BaseModel) -> Iterator[str]:
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield from _unreadable(f"{where}.{name}", value)
        elif isinstance(value, Path) and not value.is_relative_to(CREDENTIALS):
            try:
                if not value.is_dir():
                    value.open("rb").close()
            except OSError as error:
                yield f"{where}.{name}: {value}: {error.strerror}; check the path and its permissions"


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
        if not ipaddress.ip_address(host).is_loopback:
            said.append("  open to other hosts", style="yellow")
    if mqtt is not None:
        said.append(f"  {mqtt.url}")
    return said
