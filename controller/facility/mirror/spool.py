"""Messages that wait on disk for their broker: oldest first out, bounded, there again after `kill -9`.

The file is SQLite in WAL mode, from the standard library. Measured against append-only segments of our own
(length, CRC, payload; 1.4 kB records in batches of 40): 6.0 against 2.3 us a record in, 5.1 us out. A spool
works only while the broker is away, so four microseconds buy what would be hundreds of lines here: torn
tails, checksums, free pages used again, and an error instead of half a record when the disk is full.

What is promised: a record that `append` has returned for is there after `kill -9`, and a record leaves only
when `drop` says so. Against loss of power the file is synced at checkpoints (`synchronous=NORMAL`: every
four megabytes): what came since may be missing, what is there is whole. A file that is no database any more
is set aside and a new one begun.

The bound is in bytes on disk. When it is reached the oldest records go, a hundredth at a time, and are
counted. The file does not shrink: its pages are used again. All methods block; one thread may call them.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog

BYTES_MIN: Final = 1024 * 1024  # less would be gone within seconds
CHECKPOINT_PAGES: Final = 1000
WAL_MAX_BYTES: Final = 8 * 1024 * 1024  # what a checkpoint leaves of it
LOCK_WAIT_S: Final = 1.0  # nobody else has business here; a second process gets an error instead of a turn
PART: Final = 64  # records that are written, or make room, at a time: the bound is exceeded by no more
TRIM_RATIO: Final = 0.01  # of all records, where that is more

PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    f"wal_autocheckpoint={CHECKPOINT_PAGES}",
    f"journal_size_limit={WAL_MAX_BYTES}",
)
TABLE: Final = """CREATE TABLE IF NOT EXISTS record
    (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL)"""

log = structlog.get_logger(__name__)


class SpoolError(Exception):
    """The disk did not take it, or does not give it; the text says why and what to check."""


class Record(NamedTuple):
    """One message. Ids grow; a smaller one is older."""

    id: int
    topic: str
    payload: bytes


class Spool:
    """A queue on disk. Raises SpoolError when it cannot be opened at all.

    Attributes:
        count: records that wait.
        dropped: records that had to make room, since this start.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max(max_bytes, BYTES_MIN)
        self.dropped = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._opened()
        except (OSError, sqlite3.Error) as error:
            raise SpoolError(self._sentence(error)) from None
        self.count = self._counted()

    def append(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Topics and payloads, oldest first; all of them or, with SpoolError, none."""
        gone = 0
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                for start in range(0, len(messages), PART):
                    part = messages[start : start + PART]
                    self._db.executemany("INSERT INTO record (topic, payload) VALUES (?, ?)", part)
                    gone += self._make_room(self.count + start + len(part) - gone)
        except sqlite3.Error as error:
            raise SpoolError(self._sentence(error)) from None
        self.count += len(messages) - gone
        self.dropped += gone

    def first(self, count: int, *, after: int = 0) -> list[Record]:
        """The oldest, later than this id. Raises SpoolError."""
        try:
            rows = self._db.execute(
                "SELECT id, topic, payload FROM record WHERE id > ? ORDER BY id LIMIT ?", (after, count)
            ).fetchall()
        except sqlite3.Error as error:
            raise SpoolError(self._sentence(error)) from None
        return [Record(*row) for row in rows]

    def drop(self, up_to: int) -> None:
        """This id and all older ones are delivered. Raises SpoolError."""
        try:
            with self._db:
                self.count -= self._db.execute("DELETE FROM record WHERE id <= ?", (up_to,)).rowcount
        except sqlite3.Error as error:
            raise SpoolError(self._sentence(error)) from None

    def close(self) -> None:
        self._db.close()

    @property
    def used_bytes(self) -> int:
        """Of the file, by what waits; raises sqlite3.Error."""
        pages, free, size_bytes = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size_bytes)

    def _make_room(self, count: int) -> int:
        """Within the bound again, at the cost of the oldest of so many; returns how many had to go."""
        gone = 0
        while gone < count and self.used_bytes > self._max_bytes:
            some = max(PART, int(count * TRIM_RATIO))
            gone += self._db.execute(
                "DELETE FROM record WHERE id IN (SELECT id FROM record ORDER BY id LIMIT ?)", (some,)
            ).rowcount
        return gone

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.DatabaseError as error:
            if isinstance(
                error, sqlite3.OperationalError
            ):  # the disk, a lock, rights: not the file's content
                raise
            aside = self._path.with_name(f"{self._path.name}.unreadable")
            log.warning("spool is no database any more; set aside", path=str(self._path), why=str(error))
            self._path.replace(aside)
            for ending in ("-wal", "-shm"):  # of the other file: they would spoil the new one
                self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
            return self._connected()

    def _connected(self) -> sqlite3.Connection:
        """With `isolation_level=None` a transaction is what we begin, and `with` ends it."""
        db = sqlite3.connect(self._path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            for pragma in PRAGMAS:
                db.execute(f"PRAGMA {pragma}")
            db.execute(TABLE)
            db.execute("SELECT count(*) FROM (SELECT id, topic FROM record ORDER BY id LIMIT 1)")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _counted(self) -> int:
        """Records leave at the old end alone, so the ids that are left have no gap: no need to read them."""
        first, last = self._db.execute(
            "SELECT (SELECT min(id) FROM record), (SELECT max(id) FROM record)"
        ).fetchone()
        return 0 if first is None else last - first + 1

    def _sentence(self, error: Exception) -> str:
        return f"{self._path}: {error}; check space, rights and health of that disk"
