"""`powerblock serve`: the life of the facility server.

It starts whatever the configuration names and feeds it from one mirror of the controller's image. A fault of
one server ends the process, and the service manager starts a new one; the controller does not notice.

Servers are imported only where they are configured: each brings a library of its own.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

import structlog

from controller.clock import now_s
from controller.config import BlockConfig, ConfigError, GatewayConfig, is_sound, load_config
from controller.endless import RELOAD, Life, ending, run_and_leave
from controller.image.feed import ImageFeed
from controller.image.wire import SOCKET_NAME
from controller.notify import notify
from protocols.mqtt import MqttConfigError

WATCHDOG_S: Final = 1.0

Run = Callable[[], Awaitable[None]]

log = structlog.get_logger(__name__)


def main(path: Path) -> int:
    """Command `powerblock serve`. Returns 2 for a bad configuration; else the process ends."""
    from controller.logs import configure

    configure("INFO", json=not sys.stderr.isatty())
    try:
        config = load_config(path)
    except ConfigError as error:
        return _refused(error)
    return run_and_leave(run(config, path))


async def run(config: GatewayConfig | BlockConfig, path: Path) -> int:
    """Serve until SIGTERM or SIGINT; SIGHUP has the file read anew. Returns the exit status."""
    life = Life()
    life.end_on_signals()
    life.reload_on_signal(partial(is_sound, path))
    feed = ImageFeed(config.run_dir / SOCKET_NAME)
    try:
        servers = {name: made for name, make in SERVERS.items() if (made := make(config, feed)) is not None}
    except (ConfigError, MqttConfigError) as error:
        return _refused(error)
    if not servers:
        return _refused("facility: nothing to serve; name opcua, modbus, bms, prometheus or mirror")
    log.info("start", block=config.block, serves=", ".join(servers))
    try:
        await life.live({"image": feed.run, "watchdog": _watch, **servers})
    except asyncio.CancelledError:
        log.info("stopped; the controller goes on")
    finally:
        notify(ending(life))
    return RELOAD if life.reloads else 0


def _opcua(config: GatewayConfig, feed: ImageFeed) -> Run | None:
    if config.facility.opcua is None:
        return None
    from controller.facility.opcua import OpcUaFacility

    return OpcUaFacility(config.facility.opcua, feed, block=config.block, state_dir=_state_dir(config)).run


def _modbus(config: GatewayConfig, feed: ImageFeed) -> Run | None:
    if config.facility.modbus is None:
        return None
    from controller.facility.modbus import ModbusFacility

    version = metadata.version("powerblock")
    return ModbusFacility(config.facility.modbus, feed, version=version, now_s=now_s).run


def _bms(config: GatewayConfig, feed: ImageFeed) -> Run | None:
    if config.facility.bms is None:
        return None
    from controller.facility.bms import BmsPublisher

    return BmsPublisher(config.facility.bms, feed, block=config.block).run


def _prometheus(config: GatewayConfig, feed: ImageFeed) -> Run | None:
    if config.facility.prometheus is None:
        return None
    from controller.facility.prometheus import Prometheus

    return Prometheus(config.facility.prometheus, feed).run


def _mirror(config: GatewayConfig, feed: ImageFeed) -> Run | None:
    if config.facility.mirror is None:
        return None
    from controller.facility.mirror import Mirror

    return Mirror(config.facility.mirror, feed, block=config.block, state_dir=_state_dir(config)).run


def _state_dir(config: GatewayConfig) -> Path:
    """Of this process: the controller's own is none of its business. systemd gives it one."""
    given = os.environ.get("STATE_DIRECTORY")
    return Path(given) if given else config.state_dir / "facility"


SERVERS: Final[Mapping[str, Callable[[GatewayConfig, ImageFeed], Run | None]]] = {
    "opcua": _opcua,
    "modbus": _modbus,
    "bms": _bms,
    "prometheus": _prometheus,
    "mirror": _mirror,
}


async def _watch() -> None:
    """Life towards the service manager: this loop turns."""
    notify("READY=1")
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(WATCHDOG_S)


def _refused(error: Exception | str) -> int:
    for line in str(error).splitlines():
        log.error("cannot start", why=line)
    return 2
