"""The journal: what the law saw and what it decided, one JSON line per beat, enough to replay it.

A file begins with a header: settings and the law's memory at that moment. Lines carry the snapshot's parts
that changed since the line before (instruments, agents and site each keep a pace of their own) and the
decision. So any file can be run through today's law by itself, and a difference is a change of the law.

How lines reach the disk is `lines`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import msgspec
import numpy as np

from controller.core.model import Decision, Settings, Snapshot, State
from controller.lines import Lines

VERSION: Final = 6
PARTS: Final = ("meter", "inlets", "cooling", "gpus", "site", "sheds", "frequency")
DECIDED: Final = ("mode", "binding", "budget_w", "base_w", "gpu_limits_w", "shortfall_w", "alarms")


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
    """Writes the journal at `path`, in files of their own head each."""

    def __init__(self, path: Path, settings: Settings, *, file_max_bytes: int, files_max: int) -> None:
        self._settings = settings
        self._file_max_bytes = file_max_bytes
        self._encoder = msgspec.json.Encoder(enc_hook=_plain)
        self._lines = Lines(path, files_max=files_max)
        self._lost = 0
        self._written_bytes = 0
        self._before: Snapshot | None = None

    @property
    def lost(self) -> int:
        """Beats that are in no file."""
        return self._lost + self._lines.lost

    @property
    def fault(self) -> str:
        return self._lines.fault

    def record(self, state_before: State, snapshot: Snapshot, decision: Decision) -> None:
        """One beat. Cheap: encoding only."""
        if not self._lines.takes(2, snapshot.now_s):  # a head and a line
            self._lost += 1
            self._before = None
            return
        whole = self._written_bytes >= self._file_max_bytes or self._lines.needs_head
        before = None if whole else self._before
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
        self._lines.close()

    def _put(self, content: dict[str, Any], *, first: bool) -> None:
        line = self._encoder.encode(content) + b"\n"
        self._written_bytes = len(line) if first else self._written_bytes + len(line)
        self._lines.put(line, first=first)


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
