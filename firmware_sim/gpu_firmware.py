"""GPUs without silicon: the memory behind a simulated `libnvidia-ml.so.1`, and the library itself.

The agent under test is the real one: it imports the unmodified `pynvml`, which loads whatever
`libnvidia-ml.so.1` stands first on LD_LIBRARY_PATH. Ours (nvml/libnvidia-ml.c, compiled on first use) keeps
every value in a file that is mapped into all who need it. The plant maps the same file and sees it as one
NumPy structured array, a row per GPU: it writes powers, clocks and temperatures, reads the requested limits,
and a scenario writes the fault columns. All fields are aligned 32 or 64 bit words, so neither side can see
half a value and nobody needs a lock.

    library = build_library(cache_dir)
    memory = GpuMemory.create(path, 8, node="n01")
    subprocess.Popen([...agent...], env={**os.environ, **environment(library, memory.path)})
    memory.gpus["instant_mw"][:] = plant_power_w * 1000
    limits_mw = memory.enforced_mw()
"""

import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

SOURCE_DIR: Final = Path(__file__).parent / "nvml"
SOURCES: Final = ("libnvidia-ml.c", "rig_gpus.h")
SONAME: Final = "libnvidia-ml.so.1"
FLAGS: Final = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-pthread")
COMPILE_MAX_S: Final = 120.0  # 0.3 s on a laptop; a loaded CI machine may take its time

MAGIC: Final = 0x31555047474952  # "RIGGPU1"
VERSION: Final = 2
GPUS_MAX: Final = 8192  # same bound as the library
NONE: Final = 0xFFFF_FFFF  # no out-of-band limit, no clock lock, no foreign writer, no override
BLOCK_READS: Final = 1
BLOCK_WRITES: Final = 2
GPU_SCOPE_READS: Final = 1  # bits of `power_scopes`; a GH200-like board has MODULE_SCOPE alone
GPU_SCOPE_WRITES: Final = 2
MODULE_SCOPE: Final = 4
NO_CLOCK_INFO: Final = 1  # bits of `unsupported_calls`
NO_REASONS: Final = 2
NO_CLOCK_LOCK: Final = 4
NO_CLOCK_LIST: Final = 8
GPU_IS_LOST: Final = 15  # nvmlReturn for `forced_error`
NO_PERMISSION: Final = 4  # nvmlReturn for `write_error`
DRIVER_NOT_LOADED: Final = 9  # nvmlReturn for `driver_error`

PRESETS: Final = 5  # of power smoothing; the row after them in `presets` is the administrator's override
# As found on a GB300: floor 89.99 % of TMP, 20 W/s up and down, 10 s of hysteresis, switched off.
PRESET_FOUND: Final = (8999, 20_000, 20_000, 10_000)  # 1/100 %, mW/s, mW/s, ms
CLOCK_MIN_MHZ: Final = 345  # Hopper's lowest and its step
CLOCK_STEP_MHZ: Final = 15

HEADER: Final = np.dtype(
    [
        ("magic", "<u8"),
        ("version", "<u4"),
        ("header_bytes", "<u4"),
        ("record_bytes", "<u4"),
        ("gpu_count", "<u4"),
        ("driver_error", "<u4"),
        ("serialised", "<u4"),
        ("driver_version", "S32"),
        ("reserved", "S64"),
    ]
)
# Meaning of every column: nvml/rig_gpus.h. Powers in mW, energy in mJ, clocks in MHz, as NVML counts.
RECORD: Final = np.dtype(
    [
        ("energy_mj", "<u8"),
        ("clock_reasons", "<u8"),
        ("instant_mw", "<u4"),
        ("average_mw", "<u4"),
        ("clock_mhz", "<u4"),
        ("memory_clock_mhz", "<u4"),
        ("temperature_c", "<u4"),
        ("requested_mw", "<u4"),
        ("oob_limit_mw", "<u4"),
        ("min_mw", "<u4"),
        ("max_mw", "<u4"),
        ("default_mw", "<u4"),
        ("locked_clock_min_mhz", "<u4"),
        ("locked_clock_max_mhz", "<u4"),
        ("persistence_mode", "<u4"),
        ("mig_mode", "<u4"),
        ("forced_error", "<u4"),
        ("write_error", "<u4"),
        ("ignores_writes", "<u4"),
        ("blocked", "<u4"),
        ("call_delay_us", "<u4"),
        ("unsupported_fields", "<u4"),
        ("unsupported_calls", "<u4"),
        ("inert", "<u4"),
        ("foreign_mw", "<u4"),
        ("power_scopes", "<u4"),
        ("write_count", "<u8"),
        ("last_write_ns", "<u8"),
        ("refused_count", "<u8"),
        ("clock_write_count", "<u8"),
        ("last_clock_write_ns", "<u8"),
        ("energy_base_mj", "<u8"),
        ("profiles_supported", "<u8"),
        ("profiles_requested", "<u8"),
        ("clock_min_mhz", "<u4"),
        ("clock_max_mhz", "<u4"),
        ("clock_step_mhz", "<u4"),
        ("mig_instances", "<u4"),
        ("smoothing_supported", "<u4"),
        ("smoothing_enabled", "<u4"),
        ("smoothing_privilege", "<u4"),
        ("smoothing_immediate", "<u4"),
        ("smoothing_ceiling_w", "<u4"),
        ("smoothing_lifetime_percent", "<u4"),
        ("smoothing_preset", "<u4"),
        ("smoothing_reserved", "<u4"),
        ("presets", "<u4", (PRESETS + 1, 4)),
        ("slot", "<u4"),
        ("tray", "<u4"),
        ("host_id", "<u4"),
        ("module_id", "<u4"),
        ("chassis_serial", "S16"),
        ("uuid", "S48"),
        ("name", "S88"),
        ("module_gpus", "<u4"),
        ("refresh_us", "<u4", (3,)),
        ("reserved", "S8"),
    ]
)


class FirmwareError(RuntimeError):
    """The simulated driver cannot be built or its memory cannot be used; the text says why and what to do."""


def build_library(cache_dir: Path) -> Path:
    """Compile the simulated driver once per source version; return the folder for LD_LIBRARY_PATH.

    Safe to call from many processes at once: each compiles beside the target and renames into place.
    Raises FirmwareError when there is no C compiler or it refuses the source.
    """
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name in SOURCES:
        digest.update((SOURCE_DIR / name).read_bytes())
    folder = cache_dir / f"nvml-{digest.hexdigest()[:16]}"
    if (folder / SONAME).exists():
        return folder
    compiler = shutil.which("cc")
    if compiler is None:
        raise FirmwareError("no C compiler `cc` on PATH for the simulated GPU driver; install gcc or clang")
    folder.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=folder, prefix=".building-")
    os.close(handle)
    command = [compiler, *FLAGS, f"-Wl,-soname,{SONAME}", "-o", beside, str(SOURCE_DIR / SOURCES[0])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_MAX_S, check=False)  # noqa: S603
        if done.returncode != 0:
            raise FirmwareError(f"{compiler} refuses the simulated GPU driver: {done.stderr.strip()}")
        Path(beside).chmod(0o755)
        Path(beside).replace(folder / SONAME)
    finally:
        Path(beside).unlink(missing_ok=True)
    return folder


def environment(library_dir: Path, memory_path: Path) -> dict[str, str]:
    """Environment of a child process that shall find these GPUs and this driver."""
    return {"LD_LIBRARY_PATH": str(library_dir), "POWERBLOCK_RIG_GPUS": str(memory_path)}


def gpu_uuid(node: str, index: int) -> str:
    """UUID of GPU `index` of `node`: the same in every run, different on every node."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{index}.{node}.powerblock.invalid')}"


class GpuMemory:
    """All GPUs of one node: `gpus` is a structured array of dtype RECORD, shape (gpu_count,), live.

    Write whole columns (`memory.gpus["instant_mw"][:] = ...`) or cells; never keep copies of rows.
    """

    def __init__(self, path: Path) -> None:
        """Map an existing file. Raises FirmwareError if it is not one of this version."""
        self.path = path
        with path.open("r+b") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < HEADER.itemsize:
                raise FirmwareError(f"{path}: {size_bytes} bytes are no GPU memory; use GpuMemory.create")
            self._map = mmap.mmap(file.fileno(), size_bytes)
        self.header = np.frombuffer(self._map, HEADER, count=1)
        found = tuple(
            int(self.header[key][0]) for key in ("magic", "version", "header_bytes", "record_bytes")
        )
        if found != (MAGIC, VERSION, HEADER.itemsize, RECORD.itemsize):
            raise FirmwareError(
                f"{path}: not the GPU memory of this version ({found}); delete it and create it anew"
            )
        count = int(self.header["gpu_count"][0])
        self.gpus: NDArray[np.void] = np.frombuffer(self._map, RECORD, count=count, offset=HEADER.itemsize)

    @classmethod
    def create(
        cls,
        path: Path,
        gpu_count: int,
        *,
        node: str,
        min_w: float = 200.0,
        max_w: float = 700.0,
        default_w: float = 700.0,
        idle_w: float = 70.0,
        clock_max_mhz: int = 1980,
        name: str = "Simulated H200",
    ) -> Self:
        """Make the memory of a node's GPUs, idle, at their default limit. Defaults: H200 SXM envelope.

        The file appears complete or not at all; an older one of that name is replaced.
        """
        if not 0 < gpu_count <= GPUS_MAX:
            raise FirmwareError(f"{gpu_count} GPUs on {node}: 1 to {GPUS_MAX} fit one driver")
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        columns_mw = {
            key: round(power_w * 1000)
            for key, power_w in (
                ("min_mw", min_w),
                ("max_mw", max_w),
                ("default_mw", default_w),
                ("requested_mw", default_w),
                ("instant_mw", idle_w),
                ("average_mw", idle_w),
            )
        }
        columns = {**columns_mw, "clock_mhz": clock_max_mhz, "clock_max_mhz": clock_max_mhz}
        beside.write_bytes(_fresh_header(gpu_count) + _fresh_gpus(gpu_count, node, name, columns))
        beside.replace(path)
        return cls(path)

    def enforced_mw(self) -> NDArray[np.uint32]:
        """What the boards really enforce, shape (gpu_count,): the lower of requested and out-of-band limit.

        An inert GPU enforces the highest limit there is, whatever its driver shows. GPUs that share the limit
        of their module have equal parts of it here.
        """
        lower: NDArray[np.uint32] = np.minimum(self.gpus["requested_mw"], self.gpus["oob_limit_mw"])
        enforced: NDArray[np.uint32] = np.where(self.gpus["inert"], self.gpus["max_mw"], lower)
        sharing = np.maximum(1, self.gpus["module_gpus"])
        first = np.arange(len(self.gpus)) // sharing * sharing
        shared: NDArray[np.uint32] = enforced[first] // sharing
        return shared

    def clock_limit_hz(self) -> NDArray[np.float64]:
        """The SM clock that no board passes, shape (gpu_count,): lock or highest clock."""
        locked_mhz = np.where(self.gpus["inert"], NONE, self.gpus["locked_clock_max_mhz"])
        clock_hz: NDArray[np.float64] = np.minimum(locked_mhz, self.gpus["clock_max_mhz"]) * 1e6
        return clock_hz

    def floor_w(self) -> NDArray[np.float64]:
        """The power that smoothing keeps up, shape (gpu_count,); 0 where it is off or absent."""
        active = np.minimum(self.gpus["smoothing_preset"], PRESETS - 1)
        preset = self.gpus["presets"][np.arange(len(self.gpus)), active, 0]
        override = self.gpus["presets"][:, PRESETS, 0]
        floor_ratio = np.where(override == NONE, preset, override) / 10_000
        on = (self.gpus["smoothing_supported"] != 0) & (self.gpus["smoothing_enabled"] != 0)
        return np.where(on, floor_ratio * self.gpus["smoothing_ceiling_w"], 0.0)

    def share_limits(self, module_gpus: int) -> None:
        """Let GPUs in a row have one limit, that of their module: the sum of what was theirs."""
        self.gpus["power_scopes"], self.gpus["module_gpus"] = MODULE_SCOPE, module_gpus
        for column in ("min_mw", "max_mw", "default_mw", "requested_mw"):
            self.gpus[column] *= module_gpus

    def add_smoothing(self, ceiling_w: float, *, privilege: int = 1) -> None:
        """Give all GPUs the power smoothing of a GB300, switched off. `ceiling_w`: total module power."""
        self.gpus["smoothing_supported"], self.gpus["smoothing_privilege"] = 1, privilege
        self.gpus["smoothing_ceiling_w"] = round(ceiling_w)
        self.gpus["smoothing_lifetime_percent"] = 100
        self.gpus["presets"][:, :PRESETS] = PRESET_FOUND

    def place(self, chassis_serial: str, *, slot: int, tray: int, host_id: int = 0) -> None:
        """Put the node into a chassis, as GB200 and GB300 know theirs (the serial has 13 characters)."""
        self.gpus["chassis_serial"] = chassis_serial.encode()
        self.gpus["slot"], self.gpus["tray"], self.gpus["host_id"] = slot, tray, host_id
        self.gpus["module_id"] = np.arange(len(self.gpus)) + 1

    def reset_limits(self, index: int | None = None) -> None:
        """What a driver reload does, or the reset of one GPU: all that was set is gone, energy is 0."""
        reset = self.gpus if index is None else self.gpus[index : index + 1]
        reset["requested_mw"] = reset["default_mw"]
        reset["locked_clock_min_mhz"] = 0
        reset["locked_clock_max_mhz"] = NONE
        reset["profiles_requested"] = 0
        reset["smoothing_enabled"], reset["smoothing_preset"] = 0, 0
        reset["energy_base_mj"] = reset["energy_mj"]


def mig_uuid(uuid_of_gpu: str, instance: int) -> str:
    """UUID of a MIG instance, as the library makes it from that of its GPU."""
    return f"MIG-{instance:02x}{uuid_of_gpu[6:]}"


def _fresh_header(gpu_count: int) -> bytes:
    header = np.zeros(1, HEADER)
    header["magic"], header["version"] = MAGIC, VERSION
    header["header_bytes"], header["record_bytes"] = HEADER.itemsize, RECORD.itemsize
    header["gpu_count"] = gpu_count
    header["driver_version"] = b"595.71.05"
    return header.tobytes()


def _fresh_gpus(gpu_count: int, node: str, name: str, columns: Mapping[str, int]) -> bytes:
    gpus = np.zeros(gpu_count, RECORD)
    for column, value in columns.items():
        gpus[column] = value
    for column in ("oob_limit_mw", "locked_clock_max_mhz", "foreign_mw"):
        gpus[column] = NONE
    gpus["power_scopes"] = GPU_SCOPE_READS | GPU_SCOPE_WRITES
    gpus["clock_min_mhz"], gpus["clock_step_mhz"] = CLOCK_MIN_MHZ, CLOCK_STEP_MHZ
    gpus["memory_clock_mhz"] = 3201
    gpus["temperature_c"] = 35
    gpus["persistence_mode"] = 1
    gpus["presets"][:, PRESETS] = NONE
    gpus["name"] = name.encode()
    gpus["uuid"] = [gpu_uuid(node, index).encode() for index in range(gpu_count)]
    return gpus.tobytes()
