"""`powerblock map`: the catalogue that the Modbus map is made of, as whole as it can be had now.

The configuration says all groups and, by their profiles, nearly all points. What a SunSpec device has, only
the device says, so its points come from the controller that runs; while none runs they are missing, and the
map names the devices that it lacks. Places of all others are the same either way.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from controller.config import BlockConfig, GatewayConfig
from controller.gateway import catalogue
from controller.image.feed import heard
from controller.image.model import Group
from controller.image.wire import SOCKET_NAME


def groups_of(config: GatewayConfig | BlockConfig) -> list[Group]:
    """As configured; those without points as the running controller has found them, if one runs."""
    groups, socket = catalogue(config), config.run_dir / SOCKET_NAME
    if not unknown(groups) or not socket.exists():
        return groups
    found = asyncio.run(_found(socket))
    return [group if group.points else found.get(group.path, group) for group in groups]


def unknown(groups: Sequence[Group]) -> list[str]:
    """Groups of which nobody has said yet what they have."""
    return [group.path for group in groups if not group.points]


async def _found(socket: Path) -> dict[str, Group]:
    """Nothing while no controller answers there."""
    try:
        async with heard(socket) as feed:
            return {cells.group.path: cells.group for cells in feed.image.groups}
    except TimeoutError:
        return {}
