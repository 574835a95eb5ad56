"""The devices that every contender reads: `farm.c`, built and started here, and what its registers mean.

A value on the wire is a register divided by ten. Register 0 tells the version of the device, from which the
moment of its last change follows; register 1 numbers the reads it has answered; the others are made of that
number, so that a value which is not the device's own is seen to be wrong.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REGISTERS: Final = 60
PER_UNIT: Final = 10  # every value is a register divided by this
CHANGE_POLLS: Final = 3.7  # no whole number of polls, so changes fall anywhere between two of them
TOLERANCE: Final = 1e-6  # of a register: 3 * 0.1 is right, too
VERSION, SERIAL = 0, 1
WORD: Final = 1 << 16
FLAGS: Final = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O2")
STOP_MAX_S: Final = 2.0


@dataclass(frozen=True)
class Farm:
    ports: tuple[int, ...]
    epoch_s: float
    change_s: float
    pid: int

    def changed_at_s(self, device: int, version: int) -> float:
        """When the device got this version, on the monotonic clock."""
        return self.epoch_s + self.change_s * (version - device / len(self.ports))


def wrong(device: int, values: Mapping[int, float]) -> int:
    """How many of these values (register to value) the device never had together with this serial."""
    serial = register(values[SERIAL])
    return sum(
        abs(value * PER_UNIT - (serial * 31 + at * 7 + device) % WORD) > TOLERANCE
        for at, value in values.items()
        if at not in (VERSION, SERIAL)
    )


def register(value: float) -> int:
    return round(value * PER_UNIT)


def build(folder: Path) -> Path:
    """Raises RuntimeError without a C compiler, CalledProcessError when it refuses the source."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler `cc` on PATH for the device farm; install gcc or clang")
    program = folder / "farm"
    source = Path(__file__).with_name("farm.c")
    subprocess.run([compiler, *FLAGS, "-o", str(program), str(source)], check=True)
    return program


@contextmanager
def running(devices: int, poll_s: float, folder: Path) -> Iterator[Farm]:
    """A farm for contenders that poll it so often."""
    change_s = CHANGE_POLLS * poll_s
    command = [str(build(folder)), str(devices), str(round(1e3 * change_s))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            epoch_ns, *ports = map(int, child.stdout.readline().split())
            yield Farm(tuple(ports), 1e-9 * epoch_ns, change_s, child.pid)
        finally:
            child.terminate()
            child.wait(STOP_MAX_S)
