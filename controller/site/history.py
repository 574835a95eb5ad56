"""Every signal that arrived, what was said to it and what came of it: a JSON line each.

Two kinds of lines. A signal: who sent it, what it is about, accepted or refused, why. And what came of what
was accepted: a setpoint opens, binds, yields to a lower one, ends. Both carry the source and the setpoint's
or event's id, so that one leads to the other.

Bounded in every direction: so many lines a second, then one line that counts the rest; so many bytes a file,
so many files. Writing is a thread's business (`controller.lines`).
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec

from controller.core import schedule
from controller.core.model import NEVER_S, NO_LIMIT_W, Decision, Setpoint
from controller.lines import Lines
from controller.site.source import Signal

FILE_NAME: Final = "signals.jsonl"
FILE_MAX_BYTES: Final = 4 * 1024 * 1024  # some 20,000 lines
FILES_MAX: Final = 4
LINES_PER_S_MAX: Final = 20.0  # a site sends some a minute; more is a flood, and is counted
BURST_MAX: Final = 100.0


class Room:
    """So many lines a second, some more at once. What is accepted has its own: refusals must not hide it."""

    def __init__(self) -> None:
        self._free, self._at_s = BURST_MAX, NEVER_S

    def takes(self, now_s: float) -> bool:
        elapsed_s = max(0.0, now_s - self._at_s)
        self._free = min(BURST_MAX, self._free + LINES_PER_S_MAX * min(elapsed_s, BURST_MAX))
        self._at_s = now_s
        if self._free < 1.0:
            return False
        self._free -= 1.0
        return True


class History:
    """Writer of `signals.jsonl` in the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._lines = Lines(state_dir / FILE_NAME, files_max=FILES_MAX)
        self._encoder = msgspec.json.Encoder()
        self._written_bytes = FILE_MAX_BYTES  # the first line begins a file
        self._rooms = {accepted: Room() for accepted in (True, False)}
        self._untold = 0
        self._open: dict[str, Setpoint] = {}
        self._binding = ""

    @property
    def fault(self) -> str:
        return self._lines.fault

    def signal(self, signal: Signal, now_s: float) -> None:
        """A signal and its verdict."""
        if not self._rooms[signal.accepted].takes(now_s):
            self._untold += 1
            return
        self._put(asdict(signal), now_s)

    def decided(self, decision: Decision, now_utc_s: float) -> None:
        """What the law made of it; to be called when its running windows or its binding limit change."""
        now_s = decision.state.at_s
        running = {_key(entry.setpoint): entry.setpoint for entry in decision.state.running}
        for key, setpoint in running.items():
            if key not in self._open:
                self._came(setpoint, "opens", now_s, now_utc_s)
        for key, setpoint in self._open.items():
            if key not in running:
                ended = setpoint in decision.state.ended
                self._came(setpoint, "ends" if ended else "is withdrawn or replaced", now_s, now_utc_s)
        self._open = running
        source = decision.binding.source
        if source != self._binding:
            for setpoint in running.values():
                name = schedule.name(setpoint)
                if name == source:
                    self._came(setpoint, "binds", now_s, now_utc_s)
                elif name == self._binding:
                    self._came(setpoint, f"yields to {source}", now_s, now_utc_s)
            self._binding = source

    def close(self) -> None:
        self._lines.close()

    def _came(self, setpoint: Setpoint, what: str, now_s: float, now_utc_s: float) -> None:
        if not self._rooms[True].takes(now_s):
            self._untold += 1
            return
        told = {"at_utc_s": now_utc_s, "source": setpoint.source, "about": setpoint.id, "came": what}
        limit_w = None if setpoint.limit_w >= NO_LIMIT_W else setpoint.limit_w
        self._put(told | {"kind": setpoint.kind, "limit_w": limit_w}, now_s)

    def _put(self, told: Mapping[str, Any], now_s: float) -> None:
        if not self._lines.takes(1, now_s):
            self._untold += 1
            return
        if self._untold:
            told = {**told, "untold_before": self._untold}
            self._untold = 0
        line = self._encoder.encode(told) + b"\n"
        first = self._written_bytes + len(line) > FILE_MAX_BYTES or self._lines.needs_head
        self._written_bytes = len(line) if first else self._written_bytes + len(line)
        self._lines.put(line, first=first)


def read(state_dir: Path) -> Iterator[dict[str, Any]]:
    """All lines kept, oldest first; those that a crash cut off are left out. Raises OSError."""
    path = state_dir / FILE_NAME
    numbered = [path.with_name(f"{FILE_NAME}.{number}") for number in range(FILES_MAX - 1, 0, -1)]
    if not path.exists():
        path.stat()  # says who is missing
    for one in (*numbered, path):
        if one.exists():
            for line in one.read_bytes().splitlines():
                with suppress(msgspec.DecodeError):
                    yield msgspec.json.decode(line, type=dict[str, Any])


def _key(setpoint: Setpoint) -> str:
    return f"{setpoint.kind} {schedule.name(setpoint)} {setpoint.starts_utc_s}"
