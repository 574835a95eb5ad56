"""The NVML adapter over the unmodified pynvml and the simulated driver, each time in a fresh process."""

import json
import os
import subprocess
import sys

import pytest

from firmware_sim import gpu_firmware
from firmware_sim.gpu_firmware import GpuMemory, build_library, environment

PRELUDE = """
import json, dataclasses, os
from pathlib import Path
from firmware_sim.gpu_firmware import GpuMemory
from protocols.nvml import *
def show(value): print(json.dumps(value, default=dataclasses.asdict), flush=True)
def fault(call, *arguments):
    try:
        call(*arguments)
    except NvmlFault as fault:
        return [fault.code, fault.sentence]
    return [0, ""]
def gpus(): return GpuMemory(Path(os.environ["POWERBLOCK_RIG_GPUS"])).gpus
"""


def in_child(source: str, child_environment: dict[str, str]) -> list:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + source],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, **child_environment},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def memory(tmp_path) -> GpuMemory:
    return GpuMemory.create(tmp_path / "gpus", 4, node="n01")


@pytest.fixture
def child(library, memory):
    return lambda source: in_child(source, environment(library, memory.path))


def test_powers_and_limits_are_read_in_watts(child, memory):
    memory.gpus["instant_mw"][1], memory.gpus["average_mw"][1] = 512_345, 500_000
    memory.gpus["oob_limit_mw"][1] = 450_000
    memory.gpus["clock_mhz"][1], memory.gpus["clock_reasons"][1] = 1740, 4
    memory.gpus["energy_mj"][1] = 12_500
    (reading,) = child("show(Nvml().read(1))")
    assert reading == {
        "device": {
            "index": 1,
            "uuid": gpu_firmware.gpu_uuid("n01", 1),
            "name": "Simulated H200",
            "min_w": 200.0,
            "max_w": 700.0,
            "default_w": 700.0,
            "module": False,
            "clock_min_mhz": 345,
            "clock_max_mhz": 1980,
            "mig": False,
            "persistence": True,
            "platform": None,
            "smoothing": None,
            "profiles": [],
        },
        "power_w": 512.345,
        "averaged": False,
        "limit_w": 700.0,
        "enforced_w": 450.0,
        "clock_mhz": 1740,
        "reasons": 4,
        "energy_j": 12.5,
        "ceiling_mhz": None,
        "generation": 0,
    }


@pytest.mark.parametrize(
    ("unsupported_fields", "power_w", "averaged"),
    [(0b0000_0010, 480.0, True), (0b1111_1111, 480.0, True), (0b1010_0001, 512.0, False)],
    ids=["no instant power", "no fields at all", "power fields only"],
)
def test_an_older_driver_is_read_by_the_older_calls(child, memory, unsupported_fields, power_w, averaged):
    memory.gpus["unsupported_fields"] = unsupported_fields
    memory.gpus["instant_mw"], memory.gpus["average_mw"] = 512_000, 480_000
    memory.gpus["requested_mw"], memory.gpus["oob_limit_mw"] = 600_000, 550_000
    (reading,) = child("show(Nvml().read(0))")
    assert (reading["power_w"], reading["averaged"]) == (power_w, averaged)
    assert (reading["limit_w"], reading["enforced_w"]) == (600.0, 550.0)


def test_a_limit_is_clamped_to_what_the_device_allows(child, memory):
    shown = child("n = Nvml()\nshow([n.set_limit_w(0, 300.5), n.set_limit_w(1, 1), n.set_limit_w(2, 9999)])")
    assert shown == [[300.5, 200.0, 700.0]]
    assert list(memory.gpus["requested_mw"]) == [300_500, 200_000, 700_000, 700_000]
    assert list(memory.gpus["refused_count"]) == [0, 0, 0, 0]


def test_a_limit_asked_to_be_lowered_is_never_raised(child, memory):
    memory.gpus["requested_mw"] = [650_000, 300_000, 150_000, 700_000]  # 150 W: below what the device allows
    shown = child("n = Nvml()\nshow([n.lower_limit_w(gpu, w) for gpu, w in enumerate((400, 400, 100, 100))])")
    assert shown == [[400.0, 300.0, 150.0, 200.0]]
    assert list(memory.gpus["requested_mw"]) == [400_000, 300_000, 150_000, 200_000]
    assert list(memory.gpus["write_count"]) == [1, 0, 0, 1]


def test_the_permission_probe_writes_what_it_found(child, memory):
    memory.gpus["requested_mw"][2] = 432_100
    assert child("show(fault(Nvml().probe_permission, 2))") == [[0, ""]]
    assert (memory.gpus["requested_mw"][2], memory.gpus["write_count"][2]) == (432_100, 1)


def test_a_missing_permission_names_the_capability(child, memory):
    memory.gpus["write_error"] = gpu_firmware.NO_PERMISSION
    probed, written = child(
        "n = Nvml()\nshow(fault(n.probe_permission, 0))\nshow(fault(n.set_limit_w, 0, 300))"
    )
    assert probed[0] == written[0] == 4
    assert (
        "grant CAP_SYS_ADMIN: run as root or set AmbientCapabilities=CAP_SYS_ADMIN in the unit" in probed[1]
    )
    assert written[1].startswith("cannot set 300 W on GPU 0: ")


def test_a_lost_gpu_is_a_fault_of_its_own_and_is_found_again(child):
    shown = child(
        "memory = GpuMemory(Path(os.environ['POWERBLOCK_RIG_GPUS']))\n"
        "n = Nvml()\nn.read(1)\nmemory.gpus['forced_error'][1] = 15\nshow(fault(n.read, 1))\nshow(fault(n.read, 0))\n"
        "memory.gpus['forced_error'][1] = 0\nmemory.gpus['max_mw'][1] = 600_000\nshow(n.read(1))\n"
    )
    assert shown[0][0] == 15
    assert "cannot read GPU 1: GPU is lost" in shown[0][1]
    assert "reset or a reboot" in shown[0][1]
    assert shown[1] == [0, ""]
    assert shown[2]["device"]["max_w"] == 600.0  # looked up anew, not remembered
    assert shown[2]["generation"] == 1


def test_a_missing_library_or_driver_is_a_sentence(tmp_path, library):
    ((code, sentence),) = in_child("show(fault(Nvml))", {"LD_LIBRARY_PATH": str(tmp_path)})
    assert code == 12
    assert "install the NVIDIA driver" in sentence
    ((code, sentence),) = in_child("show(fault(Nvml))", environment(library, tmp_path / "none"))
    assert code == 9
    assert "the driver is not loaded" in sentence


def test_a_closed_driver_says_so(child):
    ((code, sentence),) = child("n = Nvml()\nn.close()\nshow(fault(n.read, 0))")
    assert code == 1
    assert sentence.startswith("cannot open GPU 0: Uninitialized")


# ---- the second lever


def test_a_clock_ceiling_is_rounded_down_and_remembered_for_nobody_else_can_tell_it(child, memory):
    shown = child(
        "n = Nvml()\nshow([n.set_clock_ceiling(0, mhz) for mhz in (1207, 100, 5000, 1980)])\n"
        "n.set_clock_ceiling(1, 1200)\nshow([n.read(gpu).ceiling_mhz for gpu in (0, 1, 2)])\n"
        "show([n.set_clock_ceiling(1, None), n.read(1).ceiling_mhz, n.read(1).generation])\n"
        "n.set_clock_lock(2, 600, 900)\nshow(n.read(2).ceiling_mhz)\n"
    )
    assert shown == [[1200, 345, 1980, 1980], [1980, 1200, None], [1980, None, 0], None]
    assert list(memory.gpus["locked_clock_min_mhz"]) == [345, 0, 600, 0]
    assert list(memory.gpus["locked_clock_max_mhz"]) == [1980, gpu_firmware.NONE, 900, gpu_firmware.NONE]


def test_no_ceiling_is_none_and_never_zero(child, memory):
    shown = child(
        "n = Nvml()\ntry: n.set_clock_ceiling(0, 0)\nexcept ValueError as error: show(str(error))\n"
    )
    assert "use None for no ceiling" in shown[0]
    assert not memory.gpus["clock_write_count"].any()


def test_reading_touches_no_clock_so_that_a_found_lock_lives_on(child, memory):
    memory.gpus["locked_clock_min_mhz"], memory.gpus["locked_clock_max_mhz"] = 900, 1200
    child("n = Nvml()\nn.read(0); n.describe(0); n.set_limit_w(0, 300); n.probe_permission(0); n.close()")
    assert set(memory.gpus["locked_clock_max_mhz"]) == {1200}
    assert not memory.gpus["clock_write_count"].any()


def test_a_found_lock_is_suspected_only_where_a_busy_gpu_runs_low_for_no_reason(child, memory):
    memory.gpus["clock_mhz"] = [1200, 1200, 1965, 1200]
    memory.gpus["clock_reasons"] = [0, 0x4, 0, 0x1]  # capped, and idle: these tell nothing
    shown = child(
        "n = Nvml()\nshow([suspected_ceiling_mhz([n.read(gpu)] * 5) for gpu in range(4)])\n"
        "show(suspected_ceiling_mhz([n.read(0)] * 4))"
    )
    assert shown == [[1200, None, None, None], None]


def test_a_gpu_without_clock_calls_is_still_read_and_limited(child, memory):
    memory.gpus["unsupported_calls"] = 0b1111
    reading, written, fault = child(
        "n = Nvml()\nshow(n.read(0))\nshow(n.set_limit_w(0, 400))\nshow(fault(n.set_clock_ceiling, 0, 1200))\n"
    )
    assert (reading["clock_mhz"], reading["reasons"], reading["device"]["clock_max_mhz"]) == (None, 0, 0)
    assert written == 400.0
    assert fault[0] == 3
    assert fault[1].startswith("cannot set a clock ceiling of 1200 MHz on GPU 0: Not Supported")


def test_a_driver_reload_shows_as_a_new_generation_and_forgets_our_ceiling(child):
    before, after, lone = child(
        "memory = GpuMemory(Path(os.environ['POWERBLOCK_RIG_GPUS']))\nmemory.gpus['energy_mj'] = 70_000\n"
        "n = Nvml()\nn.read(0); n.read(1); n.set_clock_ceiling(0, 1200); n.set_limit_w(0, 300)\nshow(n.read(0))\n"
        "memory.reset_limits(0)\nshow(n.read(0))\nshow(n.read(1))\n"
    )
    assert (before["generation"], before["ceiling_mhz"], before["limit_w"]) == (0, 1200, 300.0)
    assert (after["generation"], after["ceiling_mhz"], after["limit_w"]) == (1, None, 700.0)
    assert lone["generation"] == 0


# ---- scope


def test_a_board_with_a_module_limit_alone_is_controlled_by_it_and_its_errors_are_seen(child, memory):
    memory.gpus["power_scopes"] = gpu_firmware.MODULE_SCOPE
    memory.gpus["oob_limit_mw"] = 550_000
    memory.gpus["write_error"][1] = gpu_firmware.NO_PERMISSION
    shown = child(
        "n = Nvml()\nreading = n.read(0)\nshow([reading.device.module, reading.limit_w, reading.enforced_w])\n"
        "show([n.set_limit_w(0, 9999), n.set_limit_w(0, 300), n.lower_limit_w(0, 400), n.read_limit_w(0)])\n"
        "show(fault(n.set_limit_w, 1, 300))\n"
    )
    assert shown[:2] == [[True, 700.0, 550.0], [700.0, 300.0, 300.0, 300.0]]
    assert shown[2][0] == 4, "the binding would have called it a success"
    assert list(memory.gpus["requested_mw"][:2]) == [300_000, 700_000]


def test_a_board_that_shows_a_gpu_limit_and_refuses_to_set_it_is_tried_as_a_module(child, memory):
    memory.gpus["power_scopes"] = gpu_firmware.GPU_SCOPE_READS | gpu_firmware.MODULE_SCOPE
    memory.gpus["power_scopes"][1] = gpu_firmware.GPU_SCOPE_READS
    shown = child(
        "n = Nvml()\nshow(n.read(0).device.module)\nn.probe_permission(0)\nshow(n.read(0).device.module)\n"
        "show(n.set_limit_w(0, 300))\nshow(fault(n.set_limit_w, 1, 300)[0])\nshow(n.read(1).device.module)\n"
    )
    assert shown == [False, True, 300.0, 3, False]
    assert memory.gpus["requested_mw"][0] == 300_000


def test_gpus_of_one_module_tell_the_same_power_and_hold_one_limit(child, memory):
    memory.share_limits(2)
    memory.gpus["instant_mw"] = [300_000, 200_000, 100_000, 50_000]
    shown = child(
        "n = Nvml()\nshow([n.read(gpu).power_w for gpu in range(4)])\n"
        "show([n.set_limit_w(1, 900), *(n.read_limit_w(gpu) for gpu in range(4))])\n"
        "device = n.read(0).device\nshow([device.min_w, device.max_w])\n"
    )
    assert shown == [[500.0, 500.0, 150.0, 150.0], [900.0, 900.0, 900.0, 1400.0, 1400.0], [400.0, 1400.0]]
    assert list(memory.enforced_mw()) == [450_000, 450_000, 700_000, 700_000]


def test_a_gpu_whose_neighbour_is_limited_by_the_module_can_be_read_so_before_any_write(child, memory):
    memory.gpus["power_scopes"] = gpu_firmware.GPU_SCOPE_READS | gpu_firmware.MODULE_SCOPE
    shown = child(
        "n = Nvml()\nshow(n.read(1).device.module)\nn.limit_by_module(1)\n"
        "show([n.read(1).device.module, n.read(1).generation, n.set_limit_w(1, 300)])\n"
    )
    assert shown == [False, [True, 1, 300.0]]


def test_a_gpu_with_limits_of_its_own_is_never_controlled_as_a_module(child, memory):
    memory.gpus["power_scopes"] = 7
    assert child("show(Nvml().read(0).device.module)") == [False]


# ---- MIG, place, profiles, smoothing


def test_a_mig_instance_leads_to_its_gpu(child, memory):
    memory.gpus["mig_mode"][2], memory.gpus["mig_instances"][2] = 1, 2
    uuid = gpu_firmware.gpu_uuid("n01", 2)
    names = [uuid, gpu_firmware.mig_uuid(uuid, 1)]
    shown = child(
        f"n = Nvml()\nshow([n.index_of(name) for name in {names}])\n"
        "show([n.read(gpu).device.mig for gpu in (1, 2)])\nshow(n.set_limit_w(2, 400))\n"
        "show(fault(n.index_of, 'GPU-none'))\n"
    )
    assert shown[:3] == [[2, 2], [False, True], 400.0]
    assert shown[3][0] == 6


def test_a_place_is_told_in_numbers_also_above_127(child, memory):
    memory.place("1821220000000", slot=5, tray=200)
    (place,) = child("show(Nvml().read(1).device.platform)")
    assert place == {"chassis_serial": "1821220000000", "slot": 5, "tray": 200, "host_id": 0, "module_id": 2}


def test_profiles_are_requested_beside_those_of_others(child, memory):
    memory.gpus["profiles_supported"][:2] = 1 << 2 | 1 << 6 | 1 << 33
    memory.gpus["profiles_requested"][0] = 1 << 2
    shown = child(
        "n = Nvml()\nshow(n.request_profiles(0, [6, 33]))\nshow(n.clear_profiles(0, [6]))\n"
        "show(n.read(0).device.profiles)\nshow([fault(n.request_profiles, 1, [bad])[0] for bad in (7, 255, -1)])\n"
        "show([n.read_profiles(2), fault(n.request_profiles, 2, [6])[0]])\n"
    )
    assert shown[0] == {"supported": [2, 6, 33], "requested": [2, 6, 33], "enforced": [2, 6, 33]}
    assert shown[1]["requested"] == [2, 33]
    assert shown[2:] == [[2, 6, 33], [2, 2, 2], [None, 3]]


FOUND = {
    "floor_ratio": pytest.approx(0.8999),
    "ramp_up_w_per_s": 20.0,
    "ramp_down_w_per_s": 20.0,
    "hysteresis_s": 10.0,
}


def test_smoothing_tells_its_floor_in_watts_and_its_ramps_in_watts_per_second(child, memory):
    memory.add_smoothing(1459.0)
    memory.gpus["smoothing_enabled"][1] = 1
    off, on = child("n = Nvml()\nshow(n.read(0).device.smoothing)\nshow(n.read_smoothing(1))")
    assert off == {
        "enabled": False, "floor_w": 0.0, "ceiling_w": 1459, "preset": 0,
        "in_force": FOUND, "immediate": False, "lifetime_ratio": 1.0,
    }  # fmt: skip
    assert (on["enabled"], on["floor_w"]) == (True, 1312)


@pytest.mark.parametrize("version", ["570.86.10", "575.51.03", "580.65.06"])
def test_a_preset_is_activated_and_read_in_our_units_whatever_the_driver_counts_in(child, memory, version):
    memory.header["driver_version"][0] = version.encode()
    memory.add_smoothing(1459.0)
    memory.gpus["smoothing_enabled"] = 1
    memory.gpus["presets"][0][3] = 5000, 150_000, 75_000, 2_500
    (smoothing,) = child("n = Nvml()\nn.activate_preset(0, 3)\nshow(n.read_smoothing(0))")
    assert (smoothing["preset"], smoothing["floor_w"]) == (3, 729)
    assert list(smoothing["in_force"].values()) == [0.5, 150.0, 75.0, 2.5]
    assert memory.gpus["smoothing_preset"][0] == 3


def test_an_administrators_override_stands_above_the_preset(child, memory):
    memory.add_smoothing(1459.0)
    memory.gpus["smoothing_enabled"] = 1
    memory.gpus["presets"][0, gpu_firmware.PRESETS, :2] = 3000, 5_000
    (smoothing,) = child("show(Nvml().read_smoothing(0))")
    assert smoothing["in_force"] == {**FOUND, "floor_ratio": 0.3, "ramp_up_w_per_s": 5.0}
    assert smoothing["floor_w"] == 437


def test_smoothing_that_the_bmc_hides_is_unknown_and_not_absent(child, memory):
    memory.add_smoothing(1459.0, privilege=0)
    memory.gpus["smoothing_enabled"] = 1
    shown = child("n = Nvml()\nshow(n.read_smoothing(0))\nshow(fault(n.activate_preset, 0, 1)[0])")
    assert set(shown[0].values()) == {None}
    assert shown[1] == 4


def test_what_a_gpu_does_not_have_is_none_and_asking_for_it_is_a_fault(child):
    shown = child(
        "n = Nvml()\nd = n.describe(0)\nshow([d.smoothing, d.platform, d.profiles, n.read_smoothing(0), n.read_profiles(0)])\n"
        "show([fault(n.activate_preset, 0, 0)[0], fault(n.clear_profiles, 0, [2])[0]])\n"
    )
    assert shown == [[None, None, [], None, None], [3, 3]]


def test_describing_sees_what_has_changed(child):
    shown = child(
        "n = Nvml()\nn.read(0)\ng = gpus()\ng['persistence_mode'] = 0\n"
        "show([n.read(0).device.persistence, n.describe(0).persistence, n.read(0).device.persistence])\n"
        "show(n.read(0).generation)\n"
    )
    assert shown == [[True, False, False], 0]


# ---- many nodes from one driver


def test_a_slice_is_a_node_of_its_own(child, memory):
    memory.gpus["instant_mw"] = [100_000, 200_000, 300_000, 400_000]
    uuid = gpu_firmware.gpu_uuid("n01", 3)
    shown = child(
        "n = Nvml()\na, b = NodeSlice(n, 0, 2), NodeSlice(n, 2, 2)\n"
        "reading = b.read(1)\nshow([b.gpu_count, reading.power_w, reading.device.index, reading.device.uuid])\n"
        "b.set_limit_w(0, 250); b.set_clock_ceiling(1, 1200); a.close()\n"
        f"show([b.index_of({uuid!r}), b.read(1).ceiling_mhz, a.read(1).ceiling_mhz, n.read(3).ceiling_mhz])\n"
        f"show([fault(b.read, 2), fault(a.index_of, {uuid!r})[0], NodeSlice(b, 1, 1).read(0).power_w])\n"
        "try: NodeSlice(n, 3, 2)\nexcept ValueError as error: show(str(error))\n"
    )
    assert shown[0] == [2, 400.0, 1, uuid]
    assert shown[1] == [1, 1200, None, None]
    assert shown[2] == [[2, "cannot open GPU 2: there are 2"], 6, 400.0]
    assert shown[3] == "GPUs 3 to 4: the driver has 4"
    assert list(memory.gpus["requested_mw"]) == [700_000, 700_000, 250_000, 700_000]


def test_a_stuck_gpu_of_one_slice_holds_up_no_other(child, memory):
    memory.gpus["blocked"][0] = gpu_firmware.BLOCK_READS
    shown = child(
        "import threading\nn = Nvml()\na, b = NodeSlice(n, 0, 2), NodeSlice(n, 2, 2)\n"
        "stuck = threading.Thread(target=a.read, args=(0,), daemon=True)\nstuck.start()\n"
        "show([a.read(1).limit_w, b.read(0).limit_w, stuck.is_alive()])\n"
        "gpus()['blocked'] = 0\nstuck.join(5)\nshow(stuck.is_alive())\n"
    )
    assert shown == [[700.0, 700.0, True], False]


def test_reader_and_writer_threads_share_a_gpu(child, memory):
    shown = child(
        "import threading\nn = Nvml()\nseen = []\n"
        "def read():\n    for _ in range(2000): seen.append(n.read(0).limit_w)\n"
        "def write():\n    for i in range(2000): n.set_limit_w(0, 300 + i % 2); n.set_clock_ceiling(0, 1200)\n"
        "threads = [threading.Thread(target=target) for target in (read, write)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\nshow(sorted(set(seen)))\n"
    )
    assert set(shown[0]) <= {300.0, 301.0, 700.0}
    assert memory.gpus["write_count"][0] == 2000
