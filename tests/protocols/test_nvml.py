"""The NVML adapter over the unmodified pynvml and the simulated driver, each time in a fresh process."""

import json
import os
import subprocess
import sys

import pytest

from firmware_sim import gpu_firmware
from firmware_sim.gpu_firmware import GpuMemory, build_library, environment

PRELUDE = """
import json, dataclasses
from protocols.nvml import Nvml, NvmlFault
def show(value): print(json.dumps(value, default=dataclasses.asdict), flush=True)
def fault(call, *arguments):
    try:
        call(*arguments)
    except NvmlFault as fault:
        return [fault.code, fault.sentence]
    return [0, ""]
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
    (reading,) = child("show(Nvml().read(1))")
    assert reading == {
        "device": {
            "index": 1,
            "uuid": gpu_firmware.gpu_uuid("n01", 1),
            "name": "Simulated H200",
            "min_w": 200.0,
            "max_w": 700.0,
            "default_w": 700.0,
        },
        "power_w": 512.345,
        "averaged": False,
        "limit_w": 700.0,
        "enforced_w": 450.0,
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
        "from pathlib import Path\nimport os\nfrom firmware_sim.gpu_firmware import GpuMemory\n"
        "memory = GpuMemory(Path(os.environ['POWERBLOCK_RIG_GPUS']))\n"
        "n = Nvml()\nn.read(1)\nmemory.gpus['forced_error'][1] = 15\nshow(fault(n.read, 1))\nshow(fault(n.read, 0))\n"
        "memory.gpus['forced_error'][1] = 0\nmemory.gpus['max_mw'][1] = 600_000\nshow(n.read(1))\n"
    )
    assert shown[0][0] == 15
    assert "cannot read GPU 1: GPU is lost" in shown[0][1]
    assert "reset or a reboot" in shown[0][1]
    assert shown[1] == [0, ""]
    assert shown[2]["device"]["max_w"] == 600.0  # looked up anew, not remembered


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
