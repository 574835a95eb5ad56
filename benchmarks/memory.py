"""What the controller keeps in memory while it runs the demo block: VmRSS of its process, after a minute.

The daemon as `powerblock run` starts it, with its field connections, broker, journal and two reporting
agents. Beside it the figure of ten seconds, so that growth would show, and the highest it ever was.
"""

import asyncio
import re
from pathlib import Path
from typing import Final

from benchmarks.live import POWERBLOCK, demo, process
from benchmarks.result import Figure, Mode

TARGET_MIB: Final = 120.0
EARLY_S: Final = {Mode.TINY: 0.0, Mode.NORMAL: 10.0, Mode.FULL: 10.0}
LATE_S: Final = {Mode.TINY: 0.3, Mode.NORMAL: 60.0, Mode.FULL: 600.0}
KIB_PER_MIB: Final = 1024.0


def _mib(pid: int, key: str) -> float:
    match = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / KIB_PER_MIB


async def _measure(mode: Mode) -> tuple[float, float, float, float]:
    """Resident early, late, and at its highest, MiB; share of its links that were up."""
    async with demo(served=True) as block:
        argv = [*POWERBLOCK, "run", str(block.block_path)]
        with process(argv, block.daemon_log) as daemon:
            await block.started(daemon)
            await asyncio.sleep(EARLY_S[mode])
            early_mib = _mib(daemon.pid, "VmRSS")
            await asyncio.sleep(LATE_S[mode] - EARLY_S[mode])
            links = block.status()["links"]
            up_ratio = sum(link["up"] for link in links) / len(links)
            return early_mib, _mib(daemon.pid, "VmRSS"), _mib(daemon.pid, "VmHWM"), up_ratio


def run(mode: Mode) -> list[Figure]:
    early_mib, late_mib, highest_mib, up_ratio = asyncio.run(_measure(mode))
    return [
        Figure("controller_resident_early_mib", (early_mib,)),
        Figure("controller_resident_mib", (late_mib,), at_most=TARGET_MIB),
        Figure("controller_resident_highest_mib", (highest_mib,)),
        Figure("controller_links_up_ratio", (up_ratio,), at_least=1.0),
    ]
