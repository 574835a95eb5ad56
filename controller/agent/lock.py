"""Who is at work on this node: a lock on `agent.lock` in its state directory.

Whoever takes it must be the first, and then shares it. An agent that finds somebody there waits a moment,
then joins: a process that hangs in a dead driver keeps its lock, and GPUs that still work must not be left
without their dead-man. Whoever puts limits back by hand (`--restore`) never joins: any running agent, however
it came, would undo it. The kernel lets go of a lock in any case.
"""

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Final

NAME: Final = "agent.lock"
PID_MAX_CHARS: Final = 20
JOIN_AGAIN_S: Final = 5.0  # a directory that cannot be written


class LockedError(RuntimeError):
    """Somebody else has it; the text says who."""


def take(state_dir: Path) -> int:
    """Take the lock where nobody has it; from then on others may join.

    Returns the open file, which must be kept. Raises LockedError, OSError.
    """
    path = state_dir / NAME
    file = _opened(path)
    try:
        _seize(file, path)
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BaseException:
        os.close(file)
        raise
    _sign(file)
    return file


def require_alone(file: int, state_dir: Path) -> None:
    """Raises LockedError where somebody has joined since `take`."""
    _seize(file, state_dir / NAME)
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def require_free(state_dir: Path) -> None:
    """Raises LockedError where somebody has it; leaves nothing behind."""
    path = state_dir / NAME
    with contextlib.suppress(FileNotFoundError, PermissionError), path.open() as file:
        _seize(file.fileno(), path)


def join(state_dir: Path) -> None:
    """Share it as soon as it can be had, until this process ends. In a thread, which may wait for ever."""
    threading.Thread(target=_join, args=(state_dir / NAME,), name="lock", daemon=True).start()


def release(file: int) -> None:
    """Let go of it."""
    os.close(file)


def _join(path: Path) -> None:
    while True:
        with contextlib.suppress(OSError):  # told when it could not be taken
            file = _opened(path)
            try:
                fcntl.flock(file, fcntl.LOCK_SH)
            except BaseException:
                os.close(file)
                raise
            _sign(file)
            return
        time.sleep(JOIN_AGAIN_S)


def _seize(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, PID_MAX_CHARS).decode(errors="replace").strip() or "unknown"
        raise LockedError(f"{path}: an agent of this node is running (process {holder})") from None


def _opened(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:  # made by root, who has put limits back: to be read is enough
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _sign(file: int) -> None:
    with contextlib.suppress(OSError):  # only there to be shown
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
