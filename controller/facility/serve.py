"""`powerblock serve`: the life of the facility server.

It starts whatever the configuration names and feeds it from one mirror of the controller's image. A port that
cannot be had costs its own server alone, which tries again. Any other fault of one server ends the process,
and the service manager starts a new one; the controller does not notice.

Servers are imported only where they are configured: each brings a library of its own.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from controller.clock import now_s
from controller.commands import SAY
from controller.config import BlockConfig, ConfigError, GatewayConfig, load_config
from controller.endless import RELOAD, Life, ending, run_and_leave
from controller.facility.files import READ, unusable
from controller.image.feed import ImageFeed
from controller.image.model import WORDS_MAX, Command, Role
from controller.image.wire import COMMAND_MAX_BYTES, SOCKET_NAME
from controller.notify import notify
from controller.reload import is_sound

WATCHDOG_S: Final = 1.0

SAY_S: Final = 2.0
SAY_MAX_BYTES: Final = COMMAND_MAX_BYTES // 2  # with room for what msgpack and the command put around it
FACILITY: Final = Command(verb=SAY, by="serve", role=Role.OBSERVE, via="serve")


class Server(Protocol):
    """One way out."""

    async def run(self) -> None:
        """Serve for ever."""
        ...


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
    if wrong := list(unusable(config.facility, config.block)):
        return _refused("\n".join(f"{path.name}: {sentence}" for sentence in wrong))
    feed = ImageFeed(config.run_dir / SOCKET_NAME)
    try:
        servers = {name: made for name, make in SERVERS.items() if (made := make(config, feed)) is not None}
    except ValueError as error:  # of configuration, keys, brokers: each says which
        return _refused(error)
    except OSError as error:  # of folders that are made
        return _refused(f"{error.filename}: {error.strerror}; {READ}")
    if not servers:
        return _refused("facility: nothing to serve; name opcua, modbus, bms, prometheus or mirror")
    log.info("start", block=config.block, serves=", ".join(servers))
    try:
        runs = {name: server.run for name, server in servers.items()}
        await life.live({"image": feed.run, "watchdog": _watch, "say": partial(_say, feed, servers), **runs})
    except asyncio.CancelledError:
        log.info("stopped; the controller goes on")
    finally:
        notify(ending(life))
    return RELOAD if life.reloads else 0


def _opcua(config: GatewayConfig, feed: ImageFeed) -> Server | None:
    if config.facility.opcua is None:
        return None
    from controller.facility.opcua.server import OpcUaFacility

    return OpcUaFacility(config.facility.opcua, feed, block=config.block, state_dir=_state_dir(config))


def _modbus(config: GatewayConfig, feed: ImageFeed) -> Server | None:
    if config.facility.modbus is None:
        return None
    from controller.facility.modbus.server import ModbusFacility

    return ModbusFacility(
        config.facility.modbus,
        feed,
        version=metadata.version("powerblock"),
        now_s=now_s,
        state_dir=_state_dir(config),
    )


def _bms(config: GatewayConfig, feed: ImageFeed) -> Server | None:
    if config.facility.bms is None:
        return None
    from controller.facility.dsx_bms.publisher import BmsPublisher

    return BmsPublisher(config.facility.bms, feed, block=config.block, state_dir=_state_dir(config))


def _prometheus(config: GatewayConfig, feed: ImageFeed) -> Server | None:
    if config.facility.prometheus is None:
        return None
    from controller.facility.prometheus import Prometheus

    return Prometheus(config.facility.prometheus, feed)


def _mirror(config: GatewayConfig, feed: ImageFeed) -> Server | None:
    if config.facility.mirror is None:
        return None
    from controller.facility.mirror.publisher import Mirror

    return Mirror(config.facility.mirror, feed, block=config.block, state_dir=_state_dir(config))


def _state_dir(config: GatewayConfig) -> Path:
    """Of this process: the controller's own is none of its business. systemd gives it one."""
    given = os.environ.get("STATE_DIRECTORY")
    return Path(given) if given else config.state_dir / "facility"


SERVERS: Final[Mapping[str, Callable[[GatewayConfig, ImageFeed], Server | None]]] = {
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


async def _say(feed: ImageFeed, servers: Mapping[str, Server]) -> None:
    """What is wrong here belongs among the block's alarms."""
    while True:
        await asyncio.sleep(SAY_S)
        if feed.alive:
            await feed.command(msgspec.structs.replace(FACILITY, arguments=said(servers)))


def said(servers: Mapping[str, Server]) -> dict[str, float | bool | str | None]:
    """What is wrong, by key: a fault of each server, then their flags; what finds no room is counted."""
    found = [(key[:WORDS_MAX], text[:WORDS_MAX]) for key, text in (*_faults(servers), *_flags(servers))]
    sizes_bytes = accumulate(len(key.encode()) + len(text.encode()) for key, text in found)
    fitting = sum(size_bytes <= SAY_MAX_BYTES for size_bytes in sizes_bytes)
    more = len(found) - fitting
    return {
        **dict(found[:fitting]),
        **({"more": f"{more} more; `served` alarms show the first"} if more else {}),
    }


def _faults(servers: Mapping[str, Server]) -> Iterator[tuple[str, str]]:
    for name, server in servers.items():
        fault = getattr(server, "fault", "")
        if fault:
            yield name, fault


def _flags(servers: Mapping[str, Server]) -> Iterator[tuple[str, str]]:
    for server in servers.values():
        flags: Callable[[], Iterable[tuple[str, str]]] = getattr(server, "flags", tuple)
        yield from flags()


def _refused(error: Exception | str) -> int:
    for line in str(error).splitlines():
        log.error("cannot start", why=line)
    return 2
