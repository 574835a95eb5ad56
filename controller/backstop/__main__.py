"""`python -m controller.backstop`: the process that talks to BMCs. The controller begins it; see apart."""

import asyncio
import signal
import sys

import structlog

from controller.backstop.apart import LINE_MAX_BYTES, serve, step_back
from controller.logs import configure
from controller.yaml_config import ConfigError


async def live() -> int:
    """Until end of file. Signals to end are for the controller, which then ends us."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)
    reader = asyncio.StreamReader(limit=LINE_MAX_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    flow, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    writer = asyncio.StreamWriter(flow, protocol, None, loop)

    async def write(line: bytes) -> None:
        writer.write(line)
        await writer.drain()

    try:
        await serve(reader, write)
    except ConfigError as error:
        structlog.get_logger(__name__).error("backstop cannot start", why=str(error))
        return 2
    return 0


if __name__ == "__main__":
    step_back()
    configure("INFO", json=not sys.stderr.isatty())
    sys.exit(asyncio.run(live()))
