"""What the processes of a run cost, from /proc: processor time and memory; nothing where there is none."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
KIB: Final = 1024


@dataclass(frozen=True)
class Used:
    """By one process so far."""

    cpu_s: float
    memory_bytes: int


def used_by(pid: int) -> Used | None:
    """None: it is gone, or this system does not tell."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        status = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    ticks = int(fields[11]) + int(fields[12])  # utime and stime, counted from the field after the name
    resident_kib = next((int(line.split()[1]) for line in status if line.startswith("VmRSS:")), 0)
    return Used(ticks / os.sysconf("SC_CLK_TCK"), resident_kib * KIB)
