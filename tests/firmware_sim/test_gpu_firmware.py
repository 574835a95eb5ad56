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
    [("version", 1, 18), ("record_bytes", 64, 18), ("driver_error", 9, 9), ("magic", 1, 18)],
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


# ---- the second lever, and what newer boards add: all through the unmodified binding


def test_a_clock_lock_is_kept_for_the_plant_and_can_be_read_by_nobody(library, memory):
    shown = in_child(
        library,
        memory,
        "n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0)\n"
        "n.nvmlDeviceSetGpuLockedClocks(h, 345, 1200); n.nvmlDeviceSetGpuLockedClocks(n.nvmlDeviceGetHandleByIndex(1), 345, 900)\n"
        "n.nvmlDeviceSetGpuLockedClocks(n.nvmlDeviceGetHandleByIndex(1), 0xffffff02, 0xffffff02)\n"
        "show(code(n.nvmlDeviceSetGpuLockedClocks, h, 0xffffff01, 1200), code(n.nvmlDeviceSetGpuLockedClocks, h, 1300, 1200))\n"
        "show(n.nvmlDeviceGetMaxClockInfo(h, 1), n.nvmlDeviceGetMaxCustomerBoostClock(h, 0))\n"
        "clocks = n.nvmlDeviceGetSupportedGraphicsClocks(h, n.nvmlDeviceGetSupportedMemoryClocks(h)[0])\n"
        "show(clocks[0], clocks[-1], len(clocks))\n"
        "show(code(n.nvmlDeviceGetClock, h, 1, 0))\n",
    )
    assert shown == [[2, 2], [1980, 1980], [1980, 345, 110], [13]]
    assert list(memory.clock_limit_hz()[:3]) == [1200e6, 1980e6, 1980e6]
    assert list(memory.gpus["clock_write_count"][:2]) == [1, 2]
    memory.gpus["inert"][0] = 1
    assert memory.clock_limit_hz()[0] == 1980e6


def test_a_module_limit_is_refused_where_there_is_no_module_and_the_binding_hides_it(library, memory):
    memory.gpus["power_scopes"][1] = gpu_firmware.MODULE_SCOPE
    shown = in_child(
        library,
        memory,
        "n.nvmlInit(); a, b = map(n.nvmlDeviceGetHandleByIndex, (0, 1)); put = n.nvmlDeviceSetPowerManagementLimit_v2\n"
        "show(put(a, 1, 400000), put(b, 1, 300000), put(b, 0, 400000))\n"
        "show(code(n.nvmlDeviceGetPowerManagementLimit, b), code(n.nvmlDeviceSetPowerManagementLimit, b, 300000))\n"
        "show(*[f.nvmlReturn for f in n.nvmlDeviceGetFieldValues(b, [192, (192, 1), (186, 1), 186])])\n",
    )
    assert shown == [[0, 0, 0], [3, 3], [3, 0, 0, 0]], "success, whatever the driver answered"
    assert list(memory.gpus["requested_mw"][:2]) == [700_000, 300_000]
    assert list(memory.gpus["refused_count"][:2]) == [1, 2]


def test_a_mig_instance_has_a_parent_and_no_power(library, memory):
    memory.gpus["mig_mode"][2], memory.gpus["mig_instances"][2] = 1, 3
    name = gpu_firmware.mig_uuid(gpu_firmware.gpu_uuid("n01", 2), 1)
    shown = in_child(
        library,
        memory,
        f"n.nvmlInit(); m = n.nvmlDeviceGetHandleByUUID({name!r})\n"
        "parent = n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(m)\n"
        "show(n.nvmlDeviceIsMigDeviceHandle(m).value, n.nvmlDeviceIsMigDeviceHandle(parent).value)\n"
        "show(n.nvmlDeviceGetIndex(parent), n.nvmlDeviceGetUUID(m), code(n.nvmlDeviceGetPowerUsage, m))\n"
        "show(n.nvmlDeviceGetUUID(n.nvmlDeviceGetMigDeviceHandleByIndex(parent, 1)))\n",
    )
    assert shown == [[1, 0], [2, name, 2], [name]]


def test_profiles_are_added_and_taken_away(library, memory):
    memory.gpus["profiles_supported"][0] = 1 << 2 | 1 << 6 | 1 << 33
    shown = in_child(
        library,
        memory,
        "from ctypes import byref\nn.nvmlInit(); h, none = map(n.nvmlDeviceGetHandleByIndex, (0, 1))\n"
        "asked = n.c_nvmlWorkloadPowerProfileRequestedProfiles_v1_t(); asked.requestedProfilesMask.mask[0] = 1 << 6\n"
        "asked.requestedProfilesMask.mask[1] = 2\n"
        "n.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(h, byref(asked))\n"
        "asked.requestedProfilesMask.mask[1] = 0; n.nvmlDeviceWorkloadPowerProfileClearRequestedProfiles(h, byref(asked))\n"
        "now = n.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t(); n.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(h, byref(now))\n"
        "show(list(now.perfProfilesMask.mask)[:2], list(now.requestedProfilesMask.mask)[:2], list(now.enforcedProfilesMask.mask)[:2])\n"
        "info = n.c_nvmlWorkloadPowerProfileProfilesInfo_v1_t(); n.nvmlDeviceWorkloadPowerProfileGetProfilesInfo(h, byref(info))\n"
        "asked.requestedProfilesMask.mask[0] = 1\n"
        "show(list(info.perfProfilesMask.mask)[0], code(n.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles, h, byref(asked)))\n"
        "now.version = 1; show(code(n.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles, h, byref(now)))\n"
        "show(code(n.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles, none, byref(asked)))\n",
    )
    assert shown == [[[0x44, 2], [0, 2], [0, 2]], [0x44, 2], [25], [3]]


def test_smoothing_is_set_in_watts_and_read_in_milliwatts_per_second(library, memory):
    memory.add_smoothing(1459.0)
    shown = in_child(
        library,
        memory,
        "from ctypes import byref\nn.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0)\n"
        "def fields(*asked): return [f.value.dVal if f.valueType == 0 else f.value.uiVal for f in n.nvmlDeviceGetFieldValues(h, asked)]\n"
        "show(*fields(251, 252, 254, 255, 258, 259, 264, (260, 0), (261, 0), (262, 0), (263, 0), 265))\n"
        "state = n.c_nvmlPowerSmoothingState_v1_t(); state.state = 1; n.nvmlDevicePowerSmoothingSetState(h, byref(state))\n"
        "preset = n.c_nvmlPowerSmoothingProfile_v1_t(); preset.profileId = 3; preset.paramId = 0; preset.value = 50.0\n"
        "n.nvmlDevicePowerSmoothingUpdatePresetProfileParam(h, byref(preset))\n"
        "preset.paramId = 1; preset.value = 150.0; n.nvmlDevicePowerSmoothingUpdatePresetProfileParam(h, byref(preset))\n"
        "n.nvmlDevicePowerSmoothingActivatePresetProfile(h, byref(preset))\n"
        "show(*fields(251, 255, 264, (260, 3), (261, 3)))\n"
        "preset.profileId = 5; show(code(n.nvmlDevicePowerSmoothingActivatePresetProfile, h, byref(preset)))\n",
    )
    assert shown == [
        [0, 1, 1459, 0, 100, 5, 0, 89.99, 20_000, 20_000, 10_000, gpu_firmware.NONE],
        [1, 729, 3, 50.0, 150_000],
        [2],
    ]
    assert memory.floor_w()[0] == pytest.approx(729.5)
    assert (memory.floor_w()[1:] == 0).all()


def test_a_board_knows_its_place_in_the_structure_of_nvml_h(library, memory):
    memory.place("1821220000000", slot=5, tray=3)
    shown = in_child(
        library,
        memory,
        "from ctypes import byref\nn.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(1); p = n.c_nvmlPlatformInfo_v2_t()\n"
        "n.nvmlDeviceGetPlatformInfo(h, byref(p)); show(p.chassisSerialNumber, ord(p.slotNumber), ord(p.trayIndex), ord(p.moduleId))\n"
        "old = n.c_nvmlPlatformInfo_v1_t(); show(code(n.nvmlDeviceGetPlatformInfo, h, byref(old)))\n",
    )
    assert shown == [["1821220000000", 5, 3, 2], [25]]


def test_a_foreign_writer_wins_and_an_inert_gpu_shows_what_it_does_not_do(library, memory):
    memory.gpus["foreign_mw"][0] = 650_000
    memory.gpus["inert"][1] = 1
    shown = in_child(
        library,
        memory,
        "n.nvmlInit()\nfor h in map(n.nvmlDeviceGetHandleByIndex, (0, 1)):\n"
        "    n.nvmlDeviceSetPowerManagementLimit(h, 300000)\n"
        "    show(n.nvmlDeviceGetPowerManagementLimit(h), n.nvmlDeviceGetEnforcedPowerLimit(h))\n",
    )
    assert shown == [[650_000, 650_000], [300_000, 300_000]]
    assert list(memory.enforced_mw()[:2]) == [650_000, 700_000]


def test_a_reload_forgets_everything_and_counts_energy_from_zero(library, memory):
    memory.gpus["energy_mj"], memory.gpus["profiles_requested"] = 9_000, 4
    memory.gpus["requested_mw"], memory.gpus["locked_clock_max_mhz"] = 300_000, 900
    memory.reset_limits(1)
    assert list(memory.gpus["requested_mw"][:2]) == [300_000, 700_000]
    shown = in_child(
        library,
        memory,
        "n.nvmlInit(); show(*[n.nvmlDeviceGetTotalEnergyConsumption(n.nvmlDeviceGetHandleByIndex(i)) for i in (0, 1)])\n",
    )
    assert shown == [[9_000, 0]]
    memory.reset_limits()
    assert set(memory.gpus["locked_clock_max_mhz"]) == {gpu_firmware.NONE}
    assert not memory.gpus["profiles_requested"].any()


def test_a_farm_of_8192_gpus_fits_one_driver_and_no_more(library, tmp_path):
    memory = GpuMemory.create(tmp_path / "farm", gpu_firmware.GPUS_MAX, node="farm")
    shown = in_child(
        library,
        memory,
        "n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(8191); n.nvmlDeviceSetPowerManagementLimit(h, 250000)\n"
        "show(n.nvmlDeviceGetCount(), n.nvmlDeviceGetPowerManagementLimit(h))\n",
    )
    assert shown == [[8192, 250_000]]
    with pytest.raises(FirmwareError, match="1 to 8192"):
        GpuMemory.create(tmp_path / "more", 8193, node="farm")
