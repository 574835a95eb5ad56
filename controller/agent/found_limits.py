"""What the GPUs were like before this agent touched them, on disk before the first write.

NVML cannot say which limit a site had set before us; who wants it back must remember it. JSON lines, forced
to disk, appended and never changed; what a line is about shows in its keys:
    limit_w                  found at an agent's start, per GPU
    profiles, preset         found before we requested ours; `asked`: what we request
    ceiling_mhz              a clock ceiling of ours is about to be set (0: it was taken away)

What counts as found is the first line of its kind for a GPU: later ones tell what we had left there
ourselves. A file that has grown too long steps aside: the first one ever is kept for good, of the later ones
the last full one. Once all was put back (`agent --restore`) the files are set aside, and the next start
begins anew.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from protocols.nvml import Device, Profiles, Reading

FILE_MAX_BYTES: Final = 1024 * 1024  # some 5,000 lines: 600 starts of an eight-GPU host
NAME: Final = "found-limits.jsonl"
FIRST: Final = "found-limits.first.jsonl"
PREVIOUS: Final = "found-limits.previous.jsonl"
RESTORED: Final = "found-limits.restored.jsonl"


@dataclass(slots=True)
class Found:
    """What one GPU was like before us. None: nothing was recorded, nothing of the kind was touched."""

    gpu: int
    limit_w: float | None = None
    profiles: tuple[int, ...] | None = None
    asked: tuple[int, ...] = field(default=())
    preset: int | None = None
    ceiling_mhz: int = 0  # a ceiling of ours may be in force


def limit_line(reading: Reading) -> dict[str, Any]:
    device = reading.device
    return {
        **_gpu(device),
        "limit_w": reading.limit_w,
        "default_w": device.default_w,
        "min_w": device.min_w,
        "max_w": device.max_w,
    }


def settings_line(
    device: Device, profiles: Profiles | None, asked: Iterable[int], preset: int | None
) -> dict[str, Any]:
    """Before profiles are requested and a preset is activated."""
    found = None if profiles is None else list(profiles.requested)
    return {**_gpu(device), "profiles": found, "asked": list(asked), "preset": preset}


def ceiling_line(device: Device, ceiling_mhz: int) -> dict[str, Any]:
    return {**_gpu(device), "ceiling_mhz": ceiling_mhz}


def record(state_dir: Path, lines: Iterable[Mapping[str, Any]], *, boot: str, now_utc_s: float) -> None:
    """Append lines and wait for the disk. Raises OSError."""
    path = state_dir / NAME
    state_dir.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > FILE_MAX_BYTES:
        path.replace(state_dir / (PREVIOUS if (state_dir / FIRST).exists() else FIRST))
    stamp = {"at_utc_s": round(now_utc_s, 3), "boot": boot}
    text = "".join(json.dumps({**stamp, **line}) + "\n" for line in lines)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(state_dir: Path) -> dict[str, Found]:
    """What was found, by UUID. A line that a crash has cut off is passed over. Raises OSError."""
    found: dict[str, Found] = {}
    for name in (FIRST, PREVIOUS, NAME):
        path = state_dir / name
        if not path.exists():
            continue
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                _take(found, line)
            except (ValueError, KeyError, TypeError):
                continue
    return found


def set_aside(state_dir: Path) -> None:
    """All was put back: what is found from now on is the site's again. Raises OSError."""
    parts = [path for name in (FIRST, PREVIOUS, NAME) if (path := state_dir / name).exists()]
    beside = state_dir / f"{RESTORED}.new"
    beside.write_bytes(b"".join(path.read_bytes() for path in parts))
    beside.replace(state_dir / RESTORED)
    for path in parts:
        path.unlink()


def _gpu(device: Device) -> dict[str, Any]:
    return {"gpu": device.index, "uuid": device.uuid}


def _take(found: dict[str, Found], line: dict[str, Any]) -> None:
    one = found.setdefault(line["uuid"], Found(int(line["gpu"])))
    if "limit_w" in line and one.limit_w is None:
        one.limit_w = float(line["limit_w"])
    if "asked" in line:
        one.asked = tuple(sorted({*one.asked, *line["asked"]}))
        if one.profiles is None and line["profiles"] is not None:
            one.profiles = tuple(line["profiles"])
        if one.preset is None:
            one.preset = line["preset"]
    if "ceiling_mhz" in line:
        one.ceiling_mhz = int(line["ceiling_mhz"])
