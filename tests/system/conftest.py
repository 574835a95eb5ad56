"""What every whole run is started with."""

import stat
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def powerblock(tmp_path):
    """The command line of the device under test, from this working tree."""
    command = tmp_path / "powerblock"
    code = "from controller.cli import app; app()"
    command.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c '{code}' \"$@\"\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return command
