"""Files for people: whole or not there, and never in the place of another one.

A night's recording must not be lost to a folder that nobody can write to, so `demand_new` tries that before
the work begins.
"""

import tempfile
from pathlib import Path
from typing import Final

from controller.commissioning.target import ToolError

EXISTS: Final = "exists, and is never overwritten; choose another name, or remove it"


def demand_new(path: Path) -> None:
    """Raises ToolError for a file that could not be made after the work."""
    if path.exists() or path.is_symlink():
        raise ToolError(f"{path} {EXISTS}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ToolError(
            f"{path}: cannot be written: {error.strerror}; check the folder {path.parent}"
        ) from None


def written(path: Path, text: str) -> None:
    """Raises ToolError, and leaves nothing then."""
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise ToolError(
            f"{path} exists, and is never overwritten; choose another name, or remove it"
        ) from None
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ToolError(f"{path}: cannot be written: {error.strerror}; make room, and run it again") from None
