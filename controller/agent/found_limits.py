"""What the GPUs' limits were before this agent touched them, on disk before the first write.

NVML cannot say which limit a site had set before us; who wants it back must remember it. One JSON line per
GPU and agent start, forced to disk, appended and never changed. A file that has grown too long steps aside:
the first one ever is kept for good, of the later ones the last full one.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from protocols.nvml import Reading

FILE_MAX_BYTES: Final = 1024 * 1024  # some 5,000 lines: 600 starts of an eight-GPU host
NAME: Final = "found-limits.jsonl"
FIRST: Final = "found-limits.first.jsonl"
PREVIOUS: Final = "found-limits.previous.jsonl"


def record(state_dir: Path, readings: Iterable[Reading], *, boot: str, now_utc_s: float) -> None:
    """Append one line per GPU and wait for the disk. Raises OSError."""
    path = state_dir / NAME
    state_dir.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > FILE_MAX_BYTES:
        path.replace(state_dir / (PREVIOUS if (state_dir / FIRST).exists() else FIRST))
    lines = "".join(json.dumps(_line(reading, boot, now_utc_s)) + "\n" for reading in readings)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _line(reading: Reading, boot: str, now_utc_s: float) -> dict[str, Any]:
    device = reading.device
    return {
        "at_utc_s": round(now_utc_s, 3),
        "boot": boot,
        "gpu": device.index,
        "uuid": device.uuid,
        "limit_w": reading.limit_w,
        "default_w": device.default_w,
        "min_w": device.min_w,
        "max_w": device.max_w,
    }
