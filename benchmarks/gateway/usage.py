"""What processes cost: CPU time and resident memory of some processes and all their children, from /proc."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_MIB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20
FIRST_AFTER_NAME: Final = 3  # `man proc`: fields are numbered from one, the name in brackets is the second
UTIME, CSTIME, RSS = 14, 17, 24


class Usage(NamedTuple):
    cpu_s: float
    resident_mib: float


def usage(pids: Iterable[int]) -> Usage:
    """Of these processes and their children; what ended children had used counts for whoever waited for them.

    Raises FileNotFoundError when one of the processes has ended.
    """
    cpu_s = resident_mib = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = sum(map(int, fields[UTIME - FIRST_AFTER_NAME : CSTIME + 1 - FIRST_AFTER_NAME]))
        below = usage(_children(pid))
        cpu_s += ticks / TICKS_PER_S + below.cpu_s
        resident_mib += int(fields[RSS - FIRST_AFTER_NAME]) * PAGE_MIB + below.resident_mib
    return Usage(cpu_s, resident_mib)


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for listing in Path(f"/proc/{pid}/task").glob("*/children")
        for child in listing.read_text().split()
    ]
