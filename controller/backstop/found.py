"""What the BMCs' limits were before the backstop touched them: on disk before the first write.

One small file, replaced as a whole and synced, so that a controller that was killed in between finds what it
owes: every host in it is still held, and is released by the next controller as by this one. A file that
cannot be read is set aside, never overwritten, and said until somebody takes it away.
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from protocols.redfish import OFF

NAME: Final = "backstop.json"
SET_ASIDE: Final = "backstop.unreadable.json"
VERSION: Final = 1
DISK_WAIT_MAX_S: Final = 1.0

log = structlog.get_logger(__name__)


class FoundLever(msgspec.Struct, frozen=True):
    """One limit as it was, and when that was seen.

    Attributes:
        limit_w: its set point; where it was set to nothing, the most it takes; None: nor is that known.
        mode: as read; see `Lever`.
        at_utc_s: when.
    """

    limit_w: float | None
    mode: str
    at_utc_s: float

    def __str__(self) -> str:
        if self.mode == OFF:
            return "off"
        return "without a limit" if self.limit_w is None else f"at {self.limit_w:g} W"


class _File(msgspec.Struct, frozen=True):
    v: int = VERSION
    nodes: dict[str, dict[str, FoundLever]] = {}  # node -> uri -> as found


class Found:
    """The file, in memory and on disk.

    Attributes:
        nodes: by name, what was found by URI; empty for a host that is as it was.
        unwritten: why it is not on disk, or an empty string.
        unread: what became of a file that could not be read, or an empty string.
    """

    def __init__(self, state_dir: Path) -> None:
        self.unwritten = ""
        self.unread = ""
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
        aside = self._path.with_name(SET_ASIDE)
        with suppress(OSError):
            aside.stat()
            self.unread = (
                f"{aside}: could not be read: limits it knew of are not restored; restore them by hand, then "
                "delete it and reload"
            )

    @property
    def fault(self) -> str:
        """Both, for the operator."""
        return "; ".join(filter(None, (self.unwritten, self.unread)))

    async def keep(self, node: str, levers: dict[str, FoundLever]) -> None:
        """Replace what was found of one host; nothing: it is as it was.

        Returns when that is on disk, or when it cannot be, with `unwritten` set: a dead disk does not keep a
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
            self.unwritten = ""

    def _fail(self, why: str) -> None:
        fault = f"{self._path}: {why}: a restart now would not know which limits to restore"
        if fault != self.unwritten:
            log.error("backstop file not written", why=fault)
        self.unwritten = fault

    def _set_aside(self, why: str) -> None:
        log.error("backstop file unreadable", file=str(self._path), why=why)
        try:
            self._path.replace(self._path.with_name(SET_ASIDE))
        except OSError as error:
            self._fail(f"{why}, and cannot be set aside ({error.strerror})")


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
