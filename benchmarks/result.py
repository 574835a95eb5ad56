"""What a bench says: figures with their spread and their target, and the machine they were taken on.

A figure is the median of its runs; its spread is (highest - lowest) / median, so that a reader sees at once
what a difference of ten percent is worth here. `noise_ratio` says the same of the machine itself: a loop of
fixed work is timed a few hundred times, and its slow runs are held against its usual one. On a machine that
nobody else uses it stays near 1; a figure taken far above that deserves another run.

Targets never fail a run: a bench measures, people judge.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

NOISE_RUNS: Final = 300
NOISE_LOOPS: Final = 20_000  # about a millisecond of plain Python


class Mode(StrEnum):
    """How long a bench takes its time."""

    TINY = "tiny"  # seconds in all: does it run? Its figures mean nothing
    NORMAL = "normal"
    FULL = "full"  # whole days and several windows


@dataclass(frozen=True)
class Figure:
    """One measured number, named with its unit at the end; `runs` holds one value per repeat."""

    name: str
    runs: tuple[float, ...]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.runs)

    @property
    def spread_ratio(self) -> float | None:
        """None for a single run, or where the median is nothing."""
        if len(self.runs) == 1 or self.value == 0.0:
            return None
        return (max(self.runs) - min(self.runs)) / self.value

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    @property
    def met(self) -> bool:
        """True where no target is set."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )


@dataclass(frozen=True)
class Report:
    """Figures with what must be known beside them."""

    figures: list[Figure]
    about: Mapping[str, Any]  # what else the JSON file says, such as versions of the programs compared
    text: str  # for people, above the table


def quantiles_ms(times_s: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile, ms."""
    p50_s, p99_s = np.percentile(np.array(times_s), (50, 99))
    return 1e3 * float(p50_s), 1e3 * float(p99_s)


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("uvloop", "numpy")},
    }


def conditions() -> dict[str, Any]:
    """How quiet the machine is at this moment."""
    return {"load_average": [round(load, 2) for load in os.getloadavg()], "noise_ratio": _noise_ratio()}


def document(name: str, mode: Mode, report: Report, before: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """What goes into the bench's JSON file."""
    figures = report.figures
    return {
        "name": name,
        "mode": mode.value,
        **report.about,
        "figures": {figure.name: round(figure.value, 4) for figure in figures},
        "spread_ratio": {
            figure.name: round(figure.spread_ratio, 3)
            for figure in figures
            if figure.spread_ratio is not None
        },
        "targets": {
            figure.name: {"at_most": figure.at_most, "at_least": figure.at_least, "met": figure.met}
            for figure in figures
            if figure.target
        },
        "met": all(figure.met for figure in figures),
        "machine": machine(),
        "conditions_before": before,
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        "wall_s": round(wall_s, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write(out_dir: Path, content: dict[str, Any]) -> Path:
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{content['name']}.json"
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return path


def table(figures: Iterable[Figure]) -> str:
    """For people, and for pasting into docs/benchmarks.md as it is."""
    rows = [("figure", "median", "spread", "target", "met"), ("---", "---:", "---:", "---:", "---")]
    for figure in figures:
        spread = "" if figure.spread_ratio is None else f"± {50 * figure.spread_ratio:.0f} %"
        met = {True: "yes", False: "**NO**"}[figure.met] if figure.target else ""
        rows.append((figure.name, f"{figure.value:.4g}", spread, figure.target, met))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def _noise_ratio() -> float:
    """99th percentile over median of the time that fixed work takes."""
    times_s = []
    for _ in range(NOISE_RUNS):
        began_s = time.perf_counter()
        for _ in range(NOISE_LOOPS):
            pass
        times_s.append(time.perf_counter() - began_s)
    p50_ms, p99_ms = quantiles_ms(times_s)
    return round(p99_ms / p50_ms, 2)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
