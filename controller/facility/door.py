"""A port that may not be to be had: somebody has it, the address is another host's, or a right is missing.

One shut door must not close the others: whoever serves something waits here before it listens, for as long as
that takes, and what is wrong is its `fault`, one line in the log and an alarm. It is tried by listening for a
moment. Who takes the port between that and the real thing ends the process, and the next one waits here.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Mapping
from typing import Final

import structlog

from protocols.reading import retry_delay_s

ANY_OTHER: Final = "choose another host or port"
REMEDIES: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: "choose another port, or stop who has it (ss -ltnp)",
    errno.EADDRNOTAVAIL: "this host has no such address: write one that it has (ip address), or 0.0.0.0",
    errno.EACCES: "ports below 1024 need a right: see systemd/drop-ins/serve-ports.conf",
}

log = structlog.get_logger(__name__)


class Door:
    """Where something listens.

    Args:
        place: in the configuration, such as facility.prometheus.
        host, port: where.

    Attributes:
        fault: why it cannot be had; "": it can, or was not tried yet.
    """

    def __init__(self, place: str, host: str, port: int) -> None:
        self._place, self._host, self._port = place, host, port
        self.fault = ""

    async def is_free(self) -> None:
        """Return once it can be had."""
        failures = 0
        while fault := await self._tried():
            if fault != self.fault:
                log.error("cannot listen, tries again", why=f"{self._place}: {fault}")
            self.fault = fault
            failures += 1
            await asyncio.sleep(retry_delay_s(failures))
        if self.fault:
            log.info("can listen now", at=f"{self._host}:{self._port}")
        self.fault = ""

    async def _tried(self) -> str:
        """What was wrong."""
        loop = asyncio.get_running_loop()
        try:
            for family, *_, address in await loop.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM
            ):
                socket.create_server(address, family=family).close()
        except OSError as error:
            return f"{self._host}:{self._port}: {_words(error)}; {REMEDIES.get(error.errno or 0, ANY_OTHER)}"
        return ""


def _words(error: OSError) -> str:
    """The system's own, without what libraries add. A name that nobody knows has no number of the system."""
    number = error.errno or 0
    return (os.strerror(number) if number in errno.errorcode else error.strerror or str(error)).lower()
