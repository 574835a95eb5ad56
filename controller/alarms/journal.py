"""`alarms.jsonl`: everything that happened to alarms, a JSON line each.

When, which, what, from which state to which, by whom and why; refused orders too.

Bounded in every direction, as the history of signals is: so many lines a second, of people's orders and of
conditions apart, then a count of the rest; so many bytes a file, so many files. A thread writes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Final

import msgspec

from controller.alarms.model import Happening
from controller.lines import Lines
from controller.site.history import Room

FILE_NAME: Final = "alarms.jsonl"
FILE_MAX_BYTES: Final = 4 * 1024 * 1024  # some 15,000 lines
FILES_MAX: Final = 4


class AlarmJournal:
    """Writer of `alarms.jsonl` in the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._lines = Lines(state_dir / FILE_NAME, files_max=FILES_MAX)
        self._encoder = msgspec.json.Encoder()
        self._written_bytes = FILE_MAX_BYTES  # the first line begins a file
        self._rooms = {by_hand: Room() for by_hand in (True, False)}
        self._untold = 0

    @property
    def fault(self) -> str:
        return self._lines.fault

    def record(self, happening: Happening, now_s: float) -> None:
        room = self._rooms[bool(happening.by)]
        if not (room.takes(now_s) and self._lines.takes(1, now_s)):
            self._untold += 1
            return
        told = {name: value for name, value in asdict(happening).items() if value != ""}
        if self._untold:
            told["untold_before"] = self._untold
            self._untold = 0
        line = self._encoder.encode(told) + b"\n"
        first = self._written_bytes + len(line) > FILE_MAX_BYTES or self._lines.needs_head
        self._written_bytes = len(line) if first else self._written_bytes + len(line)
        self._lines.put(line, first=first)

    def close(self) -> None:
        self._lines.close()
