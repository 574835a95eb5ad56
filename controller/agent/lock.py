"""One agent per node: a lock on `agent.lock` in its state directory; the kernel lets go of it in any case.

An agent that finds it taken waits a moment, then goes on without: a process that hangs in a dead driver
keeps its lock, and the GPUs that still work must not be left without their dead-man. Whoever puts limits back
by hand (`--restore`) does not go on: a running agent would undo it.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

NAME: Final = "agent.lock"
PID_MAX_CHARS: Final = 20


class LockedError(RuntimeError):
    """Somebody else has it; the text says who."""


def take(state_dir: Path) -> int:
    """Take the lock; returns the open file, which must be kept. Raises LockedError, OSError."""
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / NAME
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:  # made by root, who has put limits back: to be read is enough
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, PID_MAX_CHARS).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise LockedError(f"{path}: an agent of this node is running (process {holder})") from None
    except BaseException:
        os.close(file)
        raise
    with contextlib.suppress(OSError):  # only there to be shown
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
    return file


def release(file: int) -> None:
    """Let go of it."""
    os.close(file)
