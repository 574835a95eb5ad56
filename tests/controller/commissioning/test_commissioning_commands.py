"""The commands as a whole: their help, and what they cost those who do not use them."""

import subprocess
import sys

import pytest

from tests.controller.commissioning.devices_on_site import PROGRAM, powerblock

COMMANDS = ("scan", "probe", "points", "read", "watch", "write", "capture", "playback", "checkout")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    assert powerblock(command, "--help").exit_code == 0


def test_help_loads_no_driver_library():
    check = "import sys; heavy = {'pymodbus', 'asyncua', 'numpy', 'aiomqtt', 'pydantic'} & sys.modules.keys(); assert not heavy, heavy"
    program = PROGRAM.replace("; a()", f"; {check}")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
