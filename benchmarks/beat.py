"""How punctual the daemon's beat is, in five situations, for a minute each.

    alone   the daemon and a broker; no facility and no agent: every call it makes is refused
    demo    beside the demo's facility and two agents, which share its two cores
    unit    the same with the real-time priority that systemd/powerblock.service gives it, where we may

    idle    nothing else runs; busy: two more processes want a whole core each

Two witnesses. `late` is what the daemon says of itself in `status.json`: beginning of a beat minus its
deadline, a beat before it counted as punctual. The journal has the moment of every beat: `jitter` is how far
a beat lies behind the earliest one on the grid of the period, and `beats_per_s` shows beats too many or too
few. So early beats, which nobody calls late, show as jitter.
`collector` is the worst pause of the garbage collector after the start-up objects were frozen.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks.live import Demo, busy_cores, demo, process
from benchmarks.result import Figure, Mode
from controller import journal

SETTLE_S: Final = {Mode.TINY: 0.0, Mode.NORMAL: 5.0, Mode.FULL: 5.0}
WINDOW_S: Final = {Mode.TINY: 0.5, Mode.NORMAL: 60.0, Mode.FULL: 60.0}  # the status looks back a minute
WINDOWS: Final = {Mode.TINY: 1, Mode.NORMAL: 1, Mode.FULL: 3}
REAL_TIME: Final = ("chrt", "--fifo", "10")  # as systemd/powerblock.service


class Situation(NamedTuple):
    served: bool  # facility and agents beside the daemon
    real_time: bool
    busy: bool
    late_p99_max_ms: float


SITUATIONS: Final = {
    "alone_idle": Situation(served=False, real_time=False, busy=False, late_p99_max_ms=2.0),
    "alone_busy": Situation(served=False, real_time=False, busy=True, late_p99_max_ms=6.0),
    "demo_idle": Situation(served=True, real_time=False, busy=False, late_p99_max_ms=2.0),
    "unit_idle": Situation(served=True, real_time=True, busy=False, late_p99_max_ms=2.0),
    "unit_busy": Situation(served=True, real_time=True, busy=True, late_p99_max_ms=6.0),
}
TINY_SITUATIONS: Final = ("alone_busy",)


async def _watch(situation: Situation, mode: Mode) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The beat's figures for each window, and the collector's account of the whole run."""
    async with demo(served=situation.served) as block:
        pauses_path = block.work_dir / "pauses.json"
        argv = [sys.executable, "-m", "benchmarks.metered_daemon", str(block.block_path), str(pauses_path)]
        with (
            busy_cores(os.cpu_count() or 1) if situation.busy else nullcontext(),
            process([*(REAL_TIME if situation.real_time else ()), *argv], block.daemon_log) as daemon,
        ):
            await block.started(daemon)
            await asyncio.sleep(SETTLE_S[mode])
            windows = []
            for _ in range(WINDOWS[mode]):
                await asyncio.sleep(WINDOW_S[mode])
                windows.append(_told(block) | _recorded(block, WINDOW_S[mode]))
        if daemon.returncode != 0:
            raise RuntimeError(f"the daemon ended so ({daemon.returncode}):\n{block.daemon_log.read_text()}")
        return windows, json.loads(pauses_path.read_text())


def _told(block: Demo) -> dict[str, float]:
    beat = block.status()["beat"]
    return {key: value for key, value in beat.items() if key != "count"}


def _recorded(block: Demo, window_s: float) -> dict[str, float]:
    """From the journal's last `window_s`: rate, and distance behind the earliest beat."""
    settings, _, beats = journal.read(block.journal_path)
    at_s = np.array([beat.snapshot.now_s for beat in beats])
    at_s = at_s[at_s > at_s[-1] - window_s]
    # half a period of slack, so that a beat slightly early is not taken for one a whole period late
    phase_s = (at_s - np.median(at_s % settings.tick_s) + 0.5 * settings.tick_s) % settings.tick_s
    p50_ms, p99_ms, max_ms = 1e3 * np.percentile(phase_s - phase_s.min(), (50, 99, 100))
    return {
        "beats_per_s": (len(at_s) - 1) / float(at_s[-1] - at_s[0]),
        "jitter_p50_ms": float(p50_ms),
        "jitter_p99_ms": float(p99_ms),
        "jitter_max_ms": float(max_ms),
    }


def can_be_real_time() -> bool:
    """Whether this user may run a process with the unit's priority."""
    return subprocess.run([*REAL_TIME, "true"], check=False, capture_output=True).returncode == 0


def _possible(mode: Mode) -> Iterator[str]:
    allowed = can_be_real_time()
    for name in TINY_SITUATIONS if mode is Mode.TINY else SITUATIONS:
        if allowed or not SITUATIONS[name].real_time:
            yield name
        else:
            print(f"{name} left out: real-time priority needs CAP_SYS_NICE, and chrt")


def run(mode: Mode) -> list[Figure]:
    figures = []
    for name in _possible(mode):
        situation = SITUATIONS[name]
        windows, pauses = asyncio.run(_watch(situation, mode))
        for key in windows[0]:
            at_most = situation.late_p99_max_ms if key == "late_p99_ms" else None
            figures.append(Figure(f"{name}_{key}", tuple(one[key] for one in windows), at_most=at_most))
        figures.append(Figure(f"{name}_collector_worst_ms", (max(pauses["worst_ms"]),)))
        figures.append(Figure(f"{name}_collections", (float(sum(pauses["counts"])),)))
    return figures
