"""What the BMCs' limits were before the backstop touched them: on disk before the first write.

One small file, replaced as a whole and synced, so that a controller that was killed in between finds what it
owes: every host in it is still held, and is released by the next controller as by this one. A file that
cannot be read is set aside, never overwritten.
"""

import asyncio
import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

NAME: Final = "backstop.json"
SET_ASIDE: Final = "backstop.unreadable.json"
VERSION: Final = 1
DISK_WAIT_MAX_S: Final = 1.0

log = structlog.get_logger(__name__)


class FoundLever(msgspec.Struct, frozen=True):
    """One limit as it was: its set point in W (None: there was none) and its mode, and when that was seen."""

    limit_w: float | None
    mode: str
    at_utc_s: float


class _File(msgspec.Struct, frozen=True):
    v: int = VERSION
    nodes: dict[str, dict[str, FoundLever]] = {}  # node -> uri -> as found


class Found:
    """The file, in memory and on disk.

    Attributes:
        nodes: by name, what was found by URI; empty for a host that is as it was.
        fault: why it is not on disk, or an empty string.
    """

    def __init__(self, state_dir: Path) -> None:
        self.fault = ""
        self._path = state_dir / NAME
        self._wanted = self._written = 0  # versions
        self._writing: asyncio.Task[None] | None = None
        self.nodes: dict[str, dict[str, FoundLever]] = {}
        try:
            self.nodes = dict(msgspec.json.decode(self._path.read_bytes(), type=_File).nodes)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._set_aside(str(error))

    async def keep(self, node: str, levers: dict[str, FoundLever]) -> None:
        """Replace what was found of one host; nothing: it is as it was.

        Returns when that is on disk, or when it cannot be, with `fault` set: a dead disk does not keep a
        silent host at full power.
        """
        self.nodes = {name: said for name, said in {**self.nodes, node: levers}.items() if said}
        self._wanted += 1
        mine = self._wanted
        try:
            async with asyncio.timeout(DISK_WAIT_MAX_S):
                while self._written < mine:
                    if self._writing is None or self._writing.done():
                        self._writing = asyncio.create_task(self._write(), name="backstop file")
                    await asyncio.wait({self._writing})
        except TimeoutError:
            self._fail(f"the disk does not answer within {DISK_WAIT_MAX_S:g} s")

    async def _write(self) -> None:
        """One write at a time: a thread that hangs on a disk must not later overwrite newer content."""
        number, content = self._wanted, _File(nodes=self.nodes)
        fault = await asyncio.to_thread(_replaced, self._path, content)
        self._written = number
        if fault:
            self._fail(fault)
        else:
            self.fault = ""

    def _fail(self, why: str) -> None:
        fault = f"{self._path}: {why}: a restart now would not know which limits to restore"
        if fault != self.fault:
            log.error("backstop file not written", why=fault)
        self.fault = fault

    def _set_aside(self, why: str) -> None:
        aside = self._path.with_name(SET_ASIDE)
        self.fault = f"{self._path}: {why}: limits it knew of are not restored; see {aside.name}"
        log.error("backstop file unreadable", why=self.fault)
        try:
            self._path.replace(aside)
        except OSError as error:
            log.error("backstop file not set aside", why=error.strerror)


def _replaced(path: Path, content: _File) -> str:
    """Write the file anew, wait for the disk, and return why that failed, or an empty string."""
    beside = path.with_suffix(".json.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(content), indent=1))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        return error.strerror or str(error)
    return ""
