"""The simulated driver, seen through the unmodified pynvml in a process of its own."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from firmware_sim import gpu_firmware
from firmware_sim.gpu_firmware import HEADER, RECORD, FirmwareError, GpuMemory, build_library, environment

PRELUDE = """
import json, pynvml as n
def show(*values): print(json.dumps(values), flush=True)
def code(call, *arguments):
    try:
        call(*arguments)
    except n.NVMLError as error:
        return error.value
    return 0
"""


def in_child(library: Path, memory: GpuMemory, source: str) -> list:
    """Run pynvml code against these GPUs; returns what it shows, one list per line."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + source],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, **environment(library, memory.path)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def memory(tmp_path) -> GpuMemory:
    return GpuMemory.create(tmp_path / "gpus", 72, node="n01")


def test_pynvml_finds_72_gpus_with_stable_names(library, memory):
    shown = in_child(
        library,
        memory,
        "n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(71); uuid = n.nvmlDeviceGetUUID(h)\n"
        "again = n.nvmlDeviceGetHandleByUUID(uuid)\n"
        "show(n.nvmlDeviceGetCount(), uuid, n.nvmlDeviceGetIndex(again), n.nvmlDeviceGetName(h))\n"
        "show(n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetNVMLVersion(), n.nvmlDeviceGetPersistenceMode(h))\n"
        "show(code(n.nvmlDeviceGetHandleByIndex, 72), code(n.nvmlDeviceGetHandleByUUID, 'GPU-none'))\n",
    )
    assert shown[0] == [72, gpu_firmware.gpu_uuid("n01", 71), 71, "Simulated H200"]
    assert shown[1] == ["595.71.05", "13.0", 1]
    assert shown[2] == [2, 6]
    assert len(set(memory.gpus["uuid"])) == 72


def test_every_value_the_plant_writes_is_the_value_pynvml_reads(library, memory):
    row = memory.gpus[3:4]
    row["instant_mw"], row["average_mw"], row["energy_mj"] = 512_345, 500_001, 2**40 + 5
    row["clock_mhz"], row["memory_clock_mhz"], row["temperature_c"] = 1755, 2619, 61
    row["clock_reasons"], row["oob_limit_mw"], row["mig_mode"] = 0x4, 450_000, 1
    shown = in_child(
        library,
        memory,
        "n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(3)\n"
        "show(n.nvmlDeviceGetPowerUsage(h), n.nvmlDeviceGetTotalEnergyConsumption(h), n.nvmlDeviceGetTemperature(h, 0))\n"
        "show(n.nvmlDeviceGetClockInfo(h, 1), n.nvmlDeviceGetClockInfo(h, 2), n.nvmlDeviceGetCurrentClocksEventReasons(h))\n"
        "show(n.nvmlDeviceGetPowerManagementLimit(h), n.nvmlDeviceGetEnforcedPowerLimit(h), n.nvmlDeviceGetMigMode(h))\n"
        "show(n.nvmlDeviceGetPowerManagementLimitConstraints(h), n.nvmlDeviceGetPowerManagementDefaultLimit(h))\n"
        "fields = n.nvmlDeviceGetFieldValues(h, list(range(185, 193)))\n"
        "show(*[f.value.ullVal if f.valueType == 3 else f.value.uiVal for f in fields])\n"
        "show(*[f.nvmlReturn for f in n.nvmlDeviceGetFieldValues(h, [186, 9, (185, 1)])])\n",
    )
    assert shown[0] == [500_001, 2**40 + 5, 61]
    assert shown[1] == [1755, 2619, 4]
    assert shown[2] == [700_000, 450_000, [1, 1]]
    assert shown[3] == [[200_000, 700_000], 700_000]
    assert shown[4] == [500_001, 512_345, 200_000, 700_000, 700_000, 450_000, 2**40 + 5, 700_000]
    assert shown[5] == [0, 3, 3]
    assert memory.enforced_mw()[3] == 450_000


def test_a_write_is_counted_and_stamped_and_a_bad_one_refused(library, memory):
    before_ns = time.monotonic_ns()
    shown = in_child(
        library,
        memory,
        "n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0); put = n.nvmlDeviceSetPowerManagementLimit\n"
        "show(code(put, h, 300000), code(put, h, 199999), code(put, h, 700001))\n"
        "n.nvmlDeviceSetGpuLockedClocks(h, 300, 1200)\n",
    )
    row = memory.gpus[0]
    assert shown == [[0, 2, 2]]
    assert (row["requested_mw"], row["write_count"], row["refused_count"]) == (300_000, 1, 2)
    assert before_ns < row["last_write_ns"] < time.monotonic_ns()
    assert row["locked_clock_max_mhz"] == 1200
    memory.reset_limits()
    assert memory.gpus["requested_mw"][0] == 700_000
    assert memory.gpus["locked_clock_max_mhz"][0] == gpu_firmware.NONE


def test_each_fault_shows_the_code_a_real_driver_gives(library, memory):
    memory.gpus["forced_error"][0] = gpu_firmware.GPU_IS_LOST
    memory.gpus["write_error"][1] = gpu_firmware.NO_PERMISSION
    memory.gpus["ignores_writes"][2] = 1
    memory.gpus["unsupported_fields"][3] = 0b10
    shown = in_child(
        library,
        memory,
        "n.nvmlInit(); get = n.nvmlDeviceGetHandleByIndex; put = n.nvmlDeviceSetPowerManagementLimit\n"
        "show(code(get, 0), code(put, get(1), 300000), code(n.nvmlDeviceGetPowerUsage, get(1)))\n"
        "show(code(put, get(2), 300000), n.nvmlDeviceGetPowerManagementLimit(get(2)))\n"
        "show(*[f.nvmlReturn for f in n.nvmlDeviceGetFieldValues(get(3), [185, 186])])\n",
    )
    assert shown == [[15, 4, 0], [0, 700_000], [0, 3]]


def test_a_blocked_call_blocks_its_own_gpu_until_released(library, memory):
    memory.gpus["blocked"][0] = gpu_firmware.BLOCK_READS
    release = threading.Timer(0.3, lambda: memory.gpus["blocked"].__setitem__(0, 0))
    release.start()
    shown = in_child(
        library,
        memory,
        "import time\nn.nvmlInit()\nn.nvmlDeviceGetHandleByIndex(1)\n"
        "show(1)\nn.nvmlDeviceGetHandleByIndex(0)\nshow(2)\n",
    )
    release.join()
    assert shown == [[1], [2]]


def test_a_delayed_call_takes_that_long(library, memory):
    memory.gpus["call_delay_us"][0] = 30_000
    shown = in_child(
        library,
        memory,
        "import time\nn.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0); t = time.monotonic()\n"
        "n.nvmlDeviceGetPowerUsage(h); show(time.monotonic() - t)\n",
    )
    assert 0.03 <= shown[0][0] < 0.3


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [("version", 2, 18), ("record_bytes", 64, 18), ("driver_error", 9, 9), ("magic", 1, 18)],
)
def test_a_driver_that_does_not_fit_its_memory_says_so_at_init(library, memory, column, value, code):
    memory.header[column][0] = value
    assert in_child(library, memory, "show(code(n.nvmlInit))") == [[code]]


def test_a_memory_cut_short_is_refused_not_read(library, memory):
    with memory.path.open("r+b") as file:
        file.truncate(HEADER.itemsize + RECORD.itemsize)
    assert in_child(library, memory, "show(code(n.nvmlInit))") == [[18]]
    memory.path.write_bytes(b"short")
    with pytest.raises(FirmwareError, match="no GPU memory"):
        GpuMemory(memory.path)


def test_many_builders_at_once_get_one_library(tmp_path):
    folders = []
    builders = [threading.Thread(target=lambda: folders.append(build_library(tmp_path))) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(set(folders)) == 1
    assert [entry.name for entry in folders[0].iterdir()] == ["libnvidia-ml.so.1"]


def test_a_missing_compiler_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FirmwareError, match=r"no C compiler `cc` on PATH.*install gcc"):
        build_library(tmp_path)


def test_every_counter_and_limit_is_aligned_so_that_no_value_tears():
    names = RECORD.names or ()
    words = [(name, RECORD.fields[name]) for name in names if RECORD.fields[name][0].kind == "u"]
    assert all(offset % dtype.itemsize == 0 for _, (dtype, offset) in words)
    assert HEADER.itemsize % 64 == 0
    assert np.dtype(RECORD).itemsize % 64 == 0
