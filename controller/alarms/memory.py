"""The book on disk: one small file, replaced as a whole, so that a restart forgets no alarm.

Written by a thread after every change, never on the beat; while it waits for the disk only the newest book is
kept for it. The content is synced before the rename makes it visible: a process killed at any instant, or a
host without power, leaves the old file or the new one, whole. A disk that fails is a fault to show, and is
tried again. A file that cannot be read is set aside, and the book begins empty.
"""

import os
import threading
from pathlib import Path
from typing import Final

import msgspec
import structlog

from controller.alarms.model import Book, Record

FILE_NAME: Final = "alarms.json"
FILE_MAX_BYTES: Final = 96 * 1024 * 1024  # more than the fullest book, every character of it escaped
VERSION: Final = 1
RETRY_S: Final = 1.0
CLOSE_MAX_S: Final = 1.0  # a stop does not wait for a dead disk
UNREADABLE: Final = (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)

log = structlog.get_logger(__name__)


class Kept(msgspec.Struct, frozen=True):
    """Content of the file."""

    v: int
    alarms: tuple[Record, ...]


def load(state_dir: Path) -> tuple[tuple[Record, ...], str]:
    """What was kept, and why it could not be read; empty: it could, or nothing was ever kept."""
    path = state_dir / FILE_NAME
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            return _set_aside(path, f"larger than {FILE_MAX_BYTES} bytes")
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except (FileNotFoundError, NotADirectoryError):
        return (), ""
    except UNREADABLE as error:
        return _set_aside(path, str(error))
    if kept.v != VERSION:
        return _set_aside(path, f"version {kept.v}, this program keeps {VERSION}")
    return kept.alarms, ""


def _set_aside(path: Path, why: str) -> tuple[tuple[Record, ...], str]:
    aside = path.with_name(f"{path.name}.unreadable")
    try:
        path.replace(aside)
    except OSError as error:
        why = f"{why}; {error.strerror}"
    log.error("kept alarms unreadable, going on without them", path=str(path), why=why, moved_to=str(aside))
    return (), f"{path}: {why}"


class Memory:
    """Writer of the file. Only the newest book is ever written.

    Attributes:
        fault: why it is not on disk; empty: it is, or will be in a moment.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME
        self.fault = ""
        self._temporary = state_dir / f"{FILE_NAME}.new"
        self._encoder = msgspec.json.Encoder()
        self._changed = threading.Condition()
        self._newest: Book | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._write_for_ever, name=FILE_NAME, daemon=True)
        self._thread.start()

    def keep(self, book: Book) -> None:
        """Cheap: encoding, too, is the thread's. The book is frozen, so it may."""
        with self._changed:
            self._newest = book
            self._changed.notify()

    def close(self) -> None:
        """Let the thread write what is newest, for a second at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_MAX_S)

    def _write_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._closing)
                book, self._newest = self._newest, None
            if book is not None and not self._is_written(book):
                self._try_later(book)
            if self._closing and self._newest is None:
                return

    def _is_written(self, book: Book) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._temporary.open("wb") as file:
                file.write(self._encoder.encode(Kept(VERSION, tuple(book.records.values()))))
                file.flush()
                os.fsync(file.fileno())
            self._temporary.replace(self.path)
        except OSError as error:
            if not self.fault:
                log.error("alarms not kept", path=str(self.path), why=error.strerror)
            self.fault = f"{self.path}: {error.strerror}: a restart now would forget what was acknowledged"
            return False
        self.fault = ""
        return True

    def _try_later(self, book: Book) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, RETRY_S)
            if self._newest is None and not self._closing:
                self._newest = book
