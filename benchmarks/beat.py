"""How late the daemon's beat is: its own account, for a minute at a time, in four situations.

    alone   the daemon with a broker, but no facility and no agent: every call it makes is refused
    demo    beside the demo's facility, two agents and a broker, which share its two cores
    idle    nothing else is running; busy: two processes that want a whole core each

Lateness is beginning of a beat minus its deadline, as the daemon counts it for `status.json`, on the event
loop it chooses (uvloop where there is one). A beat of more than a period is skipped and counted. The worst
pause of the garbage collector, after the daemon has frozen its start-up objects, is taken in the same runs.
"""

import asyncio
import json
import os
import sys
from contextlib import nullcontext
from typing import Any, Final

from benchmarks.live import busy_cores, demo, process
from benchmarks.result import Figure, Mode

SETTLE_S: Final = {Mode.TINY: 0.0, Mode.NORMAL: 5.0, Mode.FULL: 5.0}
WINDOW_S: Final = {Mode.TINY: 0.3, Mode.NORMAL: 60.0, Mode.FULL: 60.0}  # the status looks back a minute
WINDOWS: Final = {Mode.TINY: 1, Mode.NORMAL: 1, Mode.FULL: 3}
SITUATIONS: Final = {
    # name: (facility and agents, busy, p99 at most in ms)
    "alone_idle": (False, False, 2.0),
    "alone_busy": (False, True, 6.0),
    "demo_idle": (True, False, 2.0),
    "demo_busy": (True, True, 6.0),
}
TINY_SITUATION: Final = "alone_busy"


async def _watch(served: bool, busy: bool, mode: Mode) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The beat's account at the end of each window, and the collector's of the whole run."""
    async with demo(served=served) as block:
        pauses_path = block.work_dir / "pauses.json"
        argv = [sys.executable, "-m", "benchmarks.metered_daemon", str(block.block_path), str(pauses_path)]
        with (
            busy_cores(os.cpu_count() or 1) if busy else nullcontext(),
            process(argv, block.daemon_log) as daemon,
        ):
            await block.started(daemon)
            await asyncio.sleep(SETTLE_S[mode])
            told = []
            for _ in range(WINDOWS[mode]):
                await asyncio.sleep(WINDOW_S[mode])
                told.append(block.status()["beat"])
        if daemon.returncode != 0:
            raise RuntimeError(f"the daemon ended so ({daemon.returncode}):\n{block.daemon_log.read_text()}")
        return told, json.loads(pauses_path.read_text())


def run(mode: Mode) -> list[Figure]:
    figures = []
    chosen = [TINY_SITUATION] if mode is Mode.TINY else list(SITUATIONS)
    for name in chosen:
        served, busy, late_p99_max_ms = SITUATIONS[name]
        told, pauses = asyncio.run(_watch(served, busy, mode))
        for key in sorted(told[0].keys() - {"count"}):
            at_most = late_p99_max_ms if key == "late_p99_ms" else None
            figures.append(Figure(f"{name}_{key}", tuple(beat[key] for beat in told), at_most=at_most))
        figures.append(Figure(f"{name}_collector_worst_ms", (max(pauses["worst_ms"]),)))
        figures.append(Figure(f"{name}_collections", (float(sum(pauses["counts"])),)))
    return figures
