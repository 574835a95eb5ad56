"""Lines into files that are bounded in size and number, written by a thread.

A slow or full disk costs lines, counted and said, never a beat. After a lost line nothing is written until
its owner begins a new file: no file has a hole in it. Older files are `path` with .1, .2 … appended, .1 the
newest of them.
"""

import errno
import os
import queue
import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

import structlog

WAITING_MAX: Final = 200  # lines; ten seconds of a disk that does not answer
RETRY_S: Final = 1.0  # a disk that failed is tried again this often; each try costs the head of a file

log = structlog.get_logger(__name__)


class Lines:
    """Writer of one series of files. The first line put, and every one after a fault, must begin a file.

    Attributes:
        lost: lines that are in no file.
        fault: why not, in a sentence; empty: all is well.
    """

    def __init__(self, path: Path, *, files_max: int) -> None:
        self.lost = 0
        self.fault = ""
        self.path = path
        self._files_max = files_max
        self._waiting: queue.Queue[tuple[bytes, bool]] = queue.Queue(WAITING_MAX)
        self._failed = False  # set by the thread: what it has been given since is lost too
        self._retry_at_s = 0.0
        self._thread = threading.Thread(target=self._write_for_ever, name=path.name, daemon=True)
        self._thread.start()

    def takes(self, count: int, now_s: float) -> bool:
        """Whether so many more lines can be put now. False: they are lost."""
        if self._waiting.qsize() > WAITING_MAX - count:
            self.fault = f"{self.path}: the disk does not keep up: lines are lost"
            return False
        if self._failed:
            if now_s < self._retry_at_s:
                return False
            self._retry_at_s = now_s + RETRY_S
        return True

    @property
    def needs_head(self) -> bool:
        """Whether a line was lost by the disk, so that the next one must begin a file."""
        return self._failed

    def put(self, line: bytes, *, first: bool) -> None:
        """Cheap. `first`: begin a new file with it. Ask `takes` before."""
        if first:
            self._failed = False
        self._waiting.put_nowait((line, first))

    def close(self) -> None:
        """Let the thread finish what is waiting, for a second at most."""
        with suppress(queue.Full):
            self._waiting.put((b"", False), timeout=1.0)
            self._thread.join(timeout=1.0)

    def _write_for_ever(self) -> None:
        file: FileIO | None = None
        while True:
            line, first = self._waiting.get()
            if not line:
                break
            try:
                if first:
                    file = self._next_file(file)
                if file is None:
                    self.lost += 1
                    continue
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301  a short write is one
                self.fault = ""
            except OSError as error:
                self._give_up(file, error, at_head=first)
                file = None
        if file is not None:
            file.close()

    def _next_file(self, file: FileIO | None) -> FileIO:
        if file is not None:
            file.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            for number in range(self._files_max - 1, 0, -1):
                source = self._numbered(number - 1)
                if source.exists():
                    source.replace(self._numbered(number))
        return self.path.open("ab", buffering=0)

    def _give_up(self, file: FileIO | None, error: OSError, *, at_head: bool) -> None:
        self.lost += 1
        fault = f"{self.path}: {error.strerror}"
        if not self.fault:
            log.error("lines not written", path=str(self.path), why=error.strerror)
        self.fault, self._failed = fault, True
        if file is not None and not file.closed:
            file.close()
            if at_head:  # a file with nothing but its head must not push a full one out
                self.path.unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
