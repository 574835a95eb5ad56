"""One rig per report folder: a second one would wipe the state of the controller that the first is testing.

The lock is the kernel's (`flock`), so a rig that dies leaves none behind. The file stays: one that is removed
while another rig waits at it locks nothing.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from firmware_sim.lifetime import RigError

FILE_NAME: Final = ".rig.lock"  # hidden: it is no part of the report
PID_MAX_CHARS: Final = 20


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder, made if there is none. Raises RigError if another rig has it, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / FILE_NAME).open("a+")  # not "w": whose it is must not be wiped
    except OSError as error:
        raise RigError(
            f"{folder}: cannot be written: {error.strerror}; name another with --report"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RigError(_taken(folder, file.read(PID_MAX_CHARS).strip())) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _taken(folder: Path, pid: str) -> str:
    return (
        f"{folder}: another rig runs there (process {pid or 'unknown'}), and its state would be wiped; "
        "wait until it has ended, or name another folder with --report"
    )
