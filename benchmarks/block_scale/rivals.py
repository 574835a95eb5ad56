"""The same limits written as others write them: no network, no decision, no read-back, nothing else to do.

    children_c       a child process per GPU, one after the other, as controllers do that call
                     `nvidia-smi -pl`; the child is 20 lines of C. A real nvidia-smi opens a real driver:
                     32 ms has been published for one call of it
    children_python  the same with a child in Python that imports nvidia-ml-py, as scripts do
    calls            one process that holds all GPUs, one NVML call for each of them in a loop

All on the simulated driver, by its own time stamps: from the start of the first to the last limit written.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from firmware_sim.gpu_firmware import SONAME, GpuMemory, build_library, environment

SOURCE: Final = Path(__file__).with_name("set_limit.c")
LIMITS_MW: Final = (500_000, 400_000)  # in turn: every round changes every GPU
COMPILE_MAX_S: Final = 60.0
CHILD_MAX_S: Final = 60.0
SET_ONE: Final = """\
import sys, pynvml
pynvml.nvmlInit()
gpu = pynvml.nvmlDeviceGetHandleByIndex(int(sys.argv[1]))
pynvml.nvmlDeviceSetPowerManagementLimit(gpu, int(sys.argv[2]))
"""
SET_ALL: Final = """\
import sys, pynvml
pynvml.nvmlInit()
gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(int(sys.argv[1]))]
for limit_mw in sys.stdin:
    for gpu in gpus:
        pynvml.nvmlDeviceSetPowerManagementLimit(gpu, int(limit_mw))
    print(flush=True)
"""


def measure(gpus: int, rounds: int, children: Mapping[str, int]) -> dict[str, list[float]]:
    """Seconds until all GPUs have their limit, one number per round.

    Args:
        gpus: of the block.
        rounds: of `calls`; of the children there is one.
        children: how many are really started; the time is scaled to all GPUs.
    """
    with TemporaryDirectory(prefix="powerblock-bench-") as name:
        folder = Path(name)
        library, memory = build_library(folder), GpuMemory.create(folder / "gpus", gpus, node="rival")
        env = {**os.environ, **environment(library, memory.path)}
        commands = {
            "children_c": [str(_compiled(folder, library))],
            "children_python": [sys.executable, "-c", SET_ONE],
        }
        times = {
            kind: [_with_children(commands[kind], env, memory, count) * gpus / count]
            for kind, count in children.items()
        }
        return {**times, "calls": _in_one_process(env, memory, rounds)}


def _with_children(command: Sequence[str], env: Mapping[str, str], memory: GpuMemory, count: int) -> float:
    def write(limit_mw: int) -> None:
        for index in range(count):
            subprocess.run([*command, str(index), str(limit_mw)], env=env, check=True, timeout=CHILD_MAX_S)

    return _timed(write, memory, LIMITS_MW[0])


def _in_one_process(env: Mapping[str, str], memory: GpuMemory, rounds: int) -> list[float]:
    argv = [sys.executable, "-c", SET_ALL, str(len(memory.gpus))]
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        told, heard = child.stdin, child.stdout

        def write(limit_mw: int) -> None:
            print(limit_mw, file=told, flush=True)
            heard.readline()

        try:
            write(LIMITS_MW[1])  # it has started
            return [_timed(write, memory, LIMITS_MW[number % 2]) for number in range(rounds)]
        finally:
            told.close()  # and so it ends


def _timed(write: Callable[[int], None], memory: GpuMemory, limit_mw: int) -> float:
    began_s = time.monotonic()
    write(limit_mw)
    return 1e-9 * int(memory.gpus["last_write_ns"].max()) - began_s


def _compiled(folder: Path, library: Path) -> Path:
    program = folder / "set_limit"
    command = ["cc", "-O2", "-o", str(program), str(SOURCE), str(library / SONAME)]
    subprocess.run(command, check=True, timeout=COMPILE_MAX_S)
    return program
