"""Since when this host waits for a controller: a note on disk, so that a restart does not begin it anew.

A fresh agent leaves limits as it finds them for `waiting_max_s`. One that ends and is started again every few
seconds, while no controller is there, would leave them for ever. So the first of them notes when its waiting
began, those after it go on from there, and the first order that is obeyed takes the note away.

Times count from the host's boot (`clock.now_s`): a note from before a boot is void. A disk that fails costs
this memory and nothing else.
"""

from pathlib import Path
from typing import Final

import msgspec
import structlog

from controller.agent.found_limits import host_boot

NAME: Final = "waiting.json"

log = structlog.get_logger(__name__)


class _Note(msgspec.Struct):
    host_boot: str
    since_s: float


def since_s(state_dir: Path, now_s: float) -> float:
    """When it began: as noted, or now."""
    path = state_dir / NAME
    try:
        if (noted_s := _noted_s(path, now_s)) is not None:
            return noted_s
        state_dir.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(_Note(host_boot(), now_s)))
    except OSError as error:
        log.warning("begin of waiting not on disk: a restart waits anew", why=str(error))
    return now_s


def _noted_s(path: Path, now_s: float) -> float | None:
    try:
        note = msgspec.json.decode(path.read_bytes(), type=_Note)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):  # none, or spoilt by a crash
        return None
    return note.since_s if note.host_boot == host_boot() and note.since_s <= now_s else None


def end(state_dir: Path) -> None:
    """An order was obeyed."""
    try:
        (state_dir / NAME).unlink(missing_ok=True)
    except OSError as error:
        log.warning("end of waiting not on disk: a restart will wait less", why=str(error))
