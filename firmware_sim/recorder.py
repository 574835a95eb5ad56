"""The record of a run: the plant's truth and what the device under test said at the time, side by side.

The controller's journal (one JSON object per line) and its status file carry wall-clock times, so does every
sample; they are joined by UTC. The last line of a journal may be torn, since scenarios kill processes.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from firmware_sim.facility import Sample
from firmware_sim.verdict import Floats, Trace

LINE_MAX_BYTES: Final = 1 << 20  # 1,152 limits take 10 kB
STATUS_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Beat:
    """What the controller had decided at one moment."""

    utc_s: float
    budget_w: float
    binding: str
    mode: str
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """Something happened: an event of the grid or a fault."""

    t_s: float
    text: str
    kind: str  # "event" or "fault"


def beat_of(entry: dict[str, Any]) -> Beat | None:
    """The beat in a journal line (`decided` at `now_utc_s`) or a status (flat, `at_utc_s`); None if none."""
    try:
        decided = entry.get("decided", entry)
        return Beat(
            utc_s=float(entry["now_utc_s"] if "decided" in entry else entry["at_utc_s"]),
            budget_w=float(decided["budget_w"]),
            binding=str(decided["binding"]["source"]),
            mode=str(decided["mode"]),
            alarms=tuple(str(alarm["key"]) for alarm in decided["alarms"] if alarm.get("active", True)),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def read_journal(path: Path) -> list[Beat]:
    """All decisions in it and its older files (`.1`, `.2` ...), oldest first; [] without a journal."""
    older = sorted(path.parent.glob(f"{path.name}.[0-9]*"), key=lambda p: int(p.suffix[1:]), reverse=True)
    return [beat for file in (*older, path) if file.exists() for beat in _read_file(file)]


def _read_file(path: Path) -> list[Beat]:
    beats = []
    with path.open("rb") as file:
        for line in file:
            if len(line) > LINE_MAX_BYTES:
                continue
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and (beat := beat_of(entry)) is not None:
                beats.append(beat)
    return beats


def read_status(path: Path) -> dict[str, Any]:
    """The controller's status; {} while there is none."""
    try:
        if path.stat().st_size > STATUS_MAX_BYTES:
            return {}
        status = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def trace_of(samples: Sequence[Sample], zero_s: float) -> Trace:
    """The samples as arrays, time 0 at the start of the time line."""
    return Trace(
        t_s=np.array([s.t_s for s in samples]) - zero_s,
        block_w=np.array([s.block_w for s in samples]),
        tokens_per_s=np.array([s.tokens_per_s for s in samples]),
        capacity_w=np.array([s.capacity_w for s in samples]),
    )


def align(samples: Sequence[Sample], beats: Sequence[Beat]) -> list[Beat | None]:
    """For each sample the newest beat that is not younger than it."""
    ordered = sorted(beats, key=lambda beat: beat.utc_s)
    utc_s = np.array([beat.utc_s for beat in ordered])
    rows = np.searchsorted(utc_s, [s.utc_s for s in samples], side="right") - 1
    return [ordered[row] if row >= 0 else None for row in rows]


def budget_w(aligned: Sequence[Beat | None]) -> Floats:
    """Budget per sample, NaN where the controller had not spoken."""
    return np.array([np.nan if beat is None else beat.budget_w for beat in aligned])


def write_csv(path: Path, samples: Sequence[Sample], zero_s: float, aligned: Sequence[Beat | None]) -> None:
    """One row per sample; powers in W."""
    racks = len(samples[0].rack_w) if samples else 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "t_s", "utc_s", "block_w", "metered_w", "gpu_w", "gpu_limit_w", "budget_w", "binding", "mode",
                "capacity_w", "facility_c", "tokens_per_s", *(f"rack_{i + 1}_w" for i in range(racks)),
            ]
        )  # fmt: skip
        for s, beat in zip(samples, aligned, strict=True):
            said = ["", "", ""] if beat is None else [f"{beat.budget_w:.1f}", beat.binding, beat.mode]
            powers = [f"{w:.1f}" for w in (s.block_w, s.metered_w, s.gpu_w, s.gpu_limit_w)]
            rest = [f"{v:.1f}" for v in (s.capacity_w, s.facility_c, s.tokens_per_s, *s.rack_w)]
            writer.writerow([f"{s.t_s - zero_s:.3f}", f"{s.utc_s:.3f}", *powers, *said, *rest])
