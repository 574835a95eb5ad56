"""`powerblock serve`: the life of the facility server.

It starts whatever the configuration names and feeds it from one mirror of the controller's image. A fault of
one server ends the process, and the service manager starts a new one; the controller does not notice.
"""

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog

from controller.config import BlockConfig, ConfigError, GatewayConfig, load_config
from controller.endless import Life, run_and_leave
from controller.image.feed import ImageFeed
from controller.image.wire import SOCKET_NAME
from controller.notify import notify

WATCHDOG_S: Final = 1.0
FREEZE_AFTER_S: Final = 5.0  # by then the servers have built what they keep

log = structlog.get_logger(__name__)


def main(path: Path) -> int:
    """Command `powerblock serve`. Returns 2 for a configuration that cannot be served."""
    from controller.logs import configure

    configure("INFO", json=not sys.stderr.isatty())
    try:
        config = load_config(path)
    except ConfigError as error:
        for line in str(error).splitlines():
            log.error("cannot start", why=line)
        return 2
    return run_and_leave(run(config))


async def run(config: GatewayConfig | BlockConfig) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    life = Life()
    life.end_on_signals()
    feed = ImageFeed(config.run_dir / SOCKET_NAME)
    try:
        servers = dict(_servers(config, feed))
    except ConfigError as error:
        log.error("cannot start", why=str(error))
        return 2
    if not servers:
        log.error(
            "cannot start",
            why="`facility` names nothing to serve; add opcua, modbus, bms, prometheus or mirror",
        )
        return 2
    log.info("start", block=config.block, serves=sorted(servers))
    try:
        await life.live({"image": feed.run, "watchdog": _watch, **servers})
    except asyncio.CancelledError:
        log.info("stopped")
    finally:
        notify("STOPPING=1")
    return 0
