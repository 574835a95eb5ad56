"""The record: twenty rows a second from 5 s before an event to 60 s after its crossing, one CSV file each.

The last 5 s are always at hand in a ring. A record in the making is held in memory, some thousand rows, and
written in one piece by a thread: a slow disk costs records, counted and said, never a beat. The oldest files
make room. 20 Hz is what Great Britain monitors by, -5 s to +60 s at 50 ms what Australia records.

A fall that goes on for `APART_S` is one event; one that comes later has a record of its own, whose seconds
the one before may have as well.
"""

import csv
import io
import os
import queue
import re
import threading
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from controller.core.frequency_model import FrequencySettings
from controller.frequency.score import Row, score

RATE_HZ: Final = 20
BEFORE_S: Final = 5.0
AFTER_S: Final = 60.0
SEEN_S: Final = 0.5  # an event is seen so long after its crossing was certain at most
APART_S: Final = 10.0  # a grid's fall is over by then; so no more than six records are open at once
FILES_MAX: Final = 200  # of 100 kB each
WAITING_MAX: Final = 6  # records: all that can be open at a stop; a disk silent for longer is a dead one
ROWS_MAX: Final = 2 * int((BEFORE_S + AFTER_S) * RATE_HZ)  # twice what there should be
COLUMNS: Final = ("utc", "t_s", "hz", "block_w", "budget_w", "limit_w", "share", "phase")
NAMES: Final = "frequency-*.csv"

log = structlog.get_logger(__name__)


class _Open(NamedTuple):
    """A record in the making."""

    began_at_s: float
    began_utc_s: float
    baseline_w: float
    rows: list[Row]

    @property
    def is_over(self) -> bool:
        return self.rows[-1].at_s - self.began_at_s >= AFTER_S or len(self.rows) >= ROWS_MAX


class Recorder:
    """Records of one block, in `folder`.

    Attributes:
        fault: why a record is not on disk, in a sentence; "" for none.
        written: records on disk since start.
        lost: records that are not.
        newest: summary of the newest one, for people.
    """

    def __init__(self, folder: Path, settings: FrequencySettings) -> None:
        self.fault, self.newest = "", ""
        self.written = self.lost = 0
        self._folder, self._settings = folder, settings
        certain_s = settings.hold_s + settings.delay_s
        self._ring: deque[Row] = deque(maxlen=int((BEFORE_S + certain_s + SEEN_S) * RATE_HZ))
        self._open: list[_Open] = []
        self._waiting: queue.Queue[tuple[str, str] | None] = queue.Queue(WAITING_MAX)
        self._thread = threading.Thread(target=self._write_for_ever, name="frequency records", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        return bool(self._open)

    def begin(self, began_at_s: float, began_utc_s: float, baseline_w: float) -> None:
        """An event; right after the one before it is part of that."""
        if not self._open or began_at_s - self._open[-1].began_at_s >= APART_S:
            self._open.append(_Open(began_at_s, began_utc_s, baseline_w, list(self._ring)))

    def add(self, row: Row) -> None:
        """Twenty times a second. Cheap."""
        self._ring.append(row)
        for record in self._open:
            record.rows.append(row)
        while self._open and self._open[0].is_over:
            self._finish(self._open.pop(0))

    def close(self) -> None:
        """What is under way is written as far as it is; waits a second at most."""
        while self._open:
            self._finish(self._open.pop(0))
        with suppress(queue.Full):
            self._waiting.put(None, timeout=1.0)
            self._thread.join(timeout=1.0)

    def _finish(self, record: _Open) -> None:
        settings = self._settings
        said = score(
            record.rows,
            began_at_s=record.began_at_s,
            baseline_w=record.baseline_w,
            committed_w=settings.committed_w,
            full_s=settings.full_s,
            over_max_ratio=settings.over_max_ratio,
        )
        self.newest = f"{_stamp(record.began_utc_s)}: {said}"
        log.info(
            "frequency response", product=settings.product, began=_stamp(record.began_utc_s), score=str(said)
        )
        name = re.sub(r"[^0-9TZ.]", "", _stamp(record.began_utc_s))
        try:
            self._waiting.put_nowait((f"frequency-{name}.csv", _csv(settings, record, str(said))))
        except queue.Full:
            self._lose(f"{self._folder}: the disk does not answer")

    def _lose(self, why: str) -> None:
        self.lost += 1
        if not self.fault:
            log.error("frequency record not written", why=why)
        self.fault = f"{why}: {self.lost} records of activations are lost"

    def _write_for_ever(self) -> None:
        while (job := self._waiting.get()) is not None:
            name, text = job
            try:
                self._write(self._folder / name, text)
            except OSError as error:
                self._lose(f"{self._folder}: {error.strerror or error}")
            else:
                self.written += 1
                self.fault = ""

    def _write(self, path: Path, text: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(self._folder.glob(NAMES))[: 1 - FILES_MAX or None]:
            old.unlink(missing_ok=True)
        unfinished = path.with_suffix(".new")
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


def _stamp(at_utc_s: float) -> str:
    """UTC to the millisecond."""
    moment = datetime.fromtimestamp(at_utc_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _csv(settings: FrequencySettings, record: _Open, said: str) -> str:
    text = io.StringIO()
    text.write(f"# product: {settings.product}\n")
    text.write(f"# committed_w: {settings.committed_w:.0f}\n# baseline_w: {record.baseline_w:.0f}\n")
    text.write(f"# began: {_stamp(record.began_utc_s)}\n# score: {said}\n")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in record.rows:
        table.writerow(
            (
                _stamp(row.at_utc_s),
                f"{row.at_s - record.began_at_s:.3f}",
                "" if row.hz is None else f"{row.hz:.4f}",
                "" if row.block_w is None else f"{row.block_w:.0f}",
                f"{row.budget_w:.0f}",
                "" if row.limit_w is None else f"{row.limit_w:.0f}",
                f"{row.share:.4f}",
                row.phase,
            )
        )
    return text.getvalue()
