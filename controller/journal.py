"""The journal: what the law saw and what it decided, one JSON line per beat, enough to replay it.

A file begins with a header: settings and the law's memory at that moment. Lines carry the snapshot's parts
that changed since the line before (instruments, agents and site each keep a pace of their own) and the
decision. So any file can be run through today's law by itself, and a difference is a change of the law.

Files are rotated by size and bounded in number. A thread writes: a slow disk costs lines, counted and said,
never a beat.
"""

import errno
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import msgspec
import numpy as np
import structlog

from controller.core.model import NEVER_S, Decision, Settings, Snapshot, State

VERSION: Final = 2
WAITING_MAX: Final = 200  # lines; ten seconds of a disk that does not answer
RETRY_S: Final = 1.0  # a disk that failed is tried again this often; each try costs a head
PARTS: Final = ("meter", "inlets", "cooling", "gpus", "site")
DECIDED: Final = ("mode", "binding", "budget_w", "base_w", "gpu_limits_w", "shortfall_w", "alarms")

log = structlog.get_logger(__name__)


class JournalError(ValueError):
    """A journal that cannot be read; the text names file, line and remedy."""


def _plain(value: Any) -> Any:
    """NumPy into what JSON knows; NaN (not readable) becomes null."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} in the journal")


def _array(kind: Any, value: Any) -> Any:
    """The inverse of `_plain` for array fields."""
    if get_origin(kind) is not np.ndarray:
        raise NotImplementedError(f"{kind} in the journal")
    dtype = get_args(get_args(kind)[1])[0]
    if dtype is np.float64:
        return np.array(_with_nan(value), dtype=dtype)
    return np.array(value, dtype=dtype)


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return np.nan if value is None else value


class Journal:
    """Writes the journal at `path`; older files are `path` with .1, .2 … appended, .1 the newest of them.

    After a lost line nothing is written until a new file begins: no file has a hole in it.
    """

    def __init__(self, path: Path, settings: Settings, *, file_max_bytes: int, files_max: int) -> None:
        self.lost = 0
        self.fault = ""
        self._path, self._settings = path, settings
        self._file_max_bytes, self._files_max = file_max_bytes, files_max
        self._encoder = msgspec.json.Encoder(enc_hook=_plain)
        self._lines: queue.Queue[tuple[bytes, bool]] = queue.Queue(WAITING_MAX)
        self._written_bytes = 0
        self._before: Snapshot | None = None
        self._failed = False  # set by the thread: what it has been given since is lost too
        self._retry_at_s = NEVER_S
        self._thread = threading.Thread(target=self._write_for_ever, name="journal", daemon=True)
        self._thread.start()

    def record(self, state_before: State, snapshot: Snapshot, decision: Decision) -> None:
        """One beat. Cheap: encoding only."""
        if not self._takes_lines(snapshot.now_s):
            self.lost += 1
            self._before = None
            return
        before = None if self._written_bytes >= self._file_max_bytes else self._before
        if before is None:
            self._put({"v": VERSION, "settings": self._settings, "state": state_before}, first=True)
        line: dict[str, Any] = {"now_s": snapshot.now_s, "now_utc_s": snapshot.now_utc_s}
        for part in PARTS:
            value = getattr(snapshot, part)
            if before is None or value is not getattr(before, part):
                line[part] = value
        line["decided"] = {name: getattr(decision, name) for name in DECIDED}
        self._put(line, first=False)
        self._before = snapshot

    def close(self) -> None:
        """Let the thread finish what is waiting, for a second at most."""
        with suppress(queue.Full):
            self._lines.put((b"", False), timeout=1.0)
            self._thread.join(timeout=1.0)

    def _takes_lines(self, now_s: float) -> bool:
        if self._lines.qsize() > WAITING_MAX - 2:  # a head and a line
            self.fault = f"{self._path}: the disk does not keep up: beats go unrecorded"
            return False
        if self._failed:
            if now_s < self._retry_at_s:
                return False
            self._retry_at_s = now_s + RETRY_S
            self._failed, self._before = False, None
        return True

    def _put(self, content: dict[str, Any], *, first: bool) -> None:
        line = self._encoder.encode(content) + b"\n"
        self._written_bytes = len(line) if first else self._written_bytes + len(line)
        self._lines.put_nowait((line, first))

    def _write_for_ever(self) -> None:
        file: FileIO | None = None
        while True:
            line, first = self._lines.get()
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
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            for number in range(self._files_max - 1, 0, -1):
                source = self._numbered(number - 1)
                if source.exists():
                    source.replace(self._numbered(number))
        return self._path.open("ab", buffering=0)

    def _give_up(self, file: FileIO | None, error: OSError, *, at_head: bool) -> None:
        self.lost += 1
        fault = f"{self._path}: {error.strerror}"
        if not self.fault:
            log.error("journal not written", path=str(self._path), why=error.strerror)
        self.fault, self._failed = fault, True
        if file is not None and not file.closed:
            file.close()
            if at_head:  # a file without beats must not push one with beats out
                self._path.unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


@dataclass(frozen=True, eq=False)
class Beat:
    """One recorded beat: what the law saw, and what it said then (builtin types, by name)."""

    snapshot: Snapshot
    decided: dict[str, Any]


def read(path: Path) -> tuple[Settings, State, Iterator[Beat]]:
    """Header and beats of one journal file. Raises JournalError, also while the beats are read."""
    lines = _lines(path)
    try:
        number, header = next(lines)
    except StopIteration:
        raise JournalError(f"{path}: empty; name a file with at least one beat") from None
    if header.get("v") != VERSION or "settings" not in header:
        raise JournalError(f"{path}:{number}: not the head of a journal of version {VERSION}")
    settings = _convert(header["settings"], Settings, path, number)
    state = _convert(header["state"], State, path, number)
    return settings, state, _beats(path, lines)


def _beats(path: Path, lines: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Beat]:
    parts: dict[str, Any] = {}
    kinds = Snapshot.__annotations__
    for number, line in lines:
        for part in PARTS:
            if part in line:
                parts[part] = _convert(line[part], kinds[part], path, number)
        try:
            snapshot = Snapshot(now_s=line["now_s"], now_utc_s=line["now_utc_s"], **parts)
            yield Beat(snapshot, line["decided"])
        except (KeyError, TypeError) as error:
            raise JournalError(f"{path}:{number}: incomplete beat ({error}); replay a whole file") from None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # the last line of a process that was killed while writing
                try:
                    yield number, msgspec.json.decode(line, type=dict[str, Any])
                except msgspec.DecodeError as error:
                    raise JournalError(f"{path}:{number}: {error}; the file is damaged here") from None
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}; name a journal file") from None


def _convert(value: Any, kind: Any, path: Path, number: int) -> Any:
    try:
        return msgspec.convert(value, kind, dec_hook=_array)
    except msgspec.ValidationError as error:
        raise JournalError(f"{path}:{number}: {error}; written by another version?") from None
