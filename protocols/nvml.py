"""The GPUs of this host through NVIDIA's driver library: powers and limits in W.

A thin, synchronous wrapper of `pynvml` (the distribution is called nvidia-ml-py). Calls block, normally for
1 to 30 ms, seldom for a minute when a GPU is sick: whoever calls owns the thread and the deadline. NVML is
thread-safe, and ctypes releases the interpreter lock.

Known traps, fenced here:
* `nvmlDeviceGetPowerUsage` is a 1 s average on most GPUs; the instant value is field 186, and every field
  has a return code of its own;
* a limit below the minimum is an error, so a limit is clamped to what the device itself allows;
* `nvmlDeviceSetPowerManagementLimit_v2` of nvidia-ml-py 13.615.71 swallows every error; it is not used;
* `NVMLError` cannot be hashed or compared: it never leaves this file, `NvmlFault` does.

Source: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import pynvml

T = TypeVar("T")

FIELD_AVERAGE: Final = 185  # over 1 s
FIELD_INSTANT: Final = 186
FIELD_ENFORCED: Final = 190  # lowest of all limiters: requested, out-of-band, thermal
FIELD_REQUESTED: Final = 192
FIELDS: Final = (FIELD_INSTANT, FIELD_AVERAGE, FIELD_REQUESTED, FIELD_ENFORCED)

NO_PERMISSION: Final = 4
LIBRARY_MISSING: Final = 12
# Older drivers know fewer fields, or none: these codes send us to the call that came before them.
UNKNOWN_HERE: Final = frozenset({2, 3, 13, 25})  # invalid argument, not supported, no such function, version
# The driver itself is gone or was exchanged under us: only a new process gets a new one.
DRIVER_GONE: Final = frozenset({1, 9, 18})  # uninitialized, not loaded, version mismatch

REMEDIES: Final = {
    1: "NVML was shut down; start the agent again",
    NO_PERMISSION: "grant CAP_SYS_ADMIN: run as root or set AmbientCapabilities=CAP_SYS_ADMIN in the unit",
    9: "the driver is not loaded: check `nvidia-smi` and the kernel log",
    10: "the driver gave up waiting for the GPU",
    LIBRARY_MISSING: "no libnvidia-ml.so.1: install the NVIDIA driver, or add its folder to LD_LIBRARY_PATH",
    15: "the GPU has fallen off the bus: see Xid in the kernel log; it needs a reset or a reboot",
    16: "the GPU asks for a reset: drain it, then `nvidia-smi --gpu-reset`",
    18: "driver and library are of different versions: reboot after a driver update",
}


class NvmlFault(Exception):  # noqa: N818  the agent treats it as data, not as its own error
    """One call failed. `code` is the nvmlReturn, `sentence` says what failed and what to do."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Device:
    """What does not change while a GPU lives."""

    index: int
    uuid: str
    name: str
    min_w: float
    max_w: float
    default_w: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU at one moment, W. `averaged`: no instant power here, `power_w` lags by up to 1 s."""

    device: Device
    power_w: float
    averaged: bool
    limit_w: float  # requested
    enforced_w: float


class Nvml:
    """An open driver. GPUs are named by NVML index; a faulty one is looked up anew on its next call."""

    def __init__(self) -> None:
        """Opens the driver. Raises NvmlFault: no library, no driver, wrong versions."""
        _checked("open the driver", pynvml.nvmlInit)
        self.driver_version: str = _checked("read the driver version", pynvml.nvmlSystemGetDriverVersion)
        self.gpu_count: int = _checked("count the GPUs", pynvml.nvmlDeviceGetCount)
        self._opened: dict[int, tuple[object, Device]] = {}

    def close(self) -> None:
        """Lets go of the driver. Limits stay as they are."""
        _checked("close the driver", pynvml.nvmlShutdown)

    def read(self, index: int) -> Reading:
        """Power and limits of one GPU. Raises NvmlFault."""
        return self._with(index, "read", _read)

    def read_limit_w(self, index: int) -> float:
        """Requested limit of one GPU, W. Raises NvmlFault."""
        return self._with(index, "read the limit of", lambda handle, _: _requested_w(handle))

    def set_limit_w(self, index: int, limit_w: float) -> float:
        """Request a limit, clamped to what the GPU allows; returns the limit written, W. Raises NvmlFault."""

        def write(handle: object, device: Device) -> float:
            clamped_w = min(max(limit_w, device.min_w), device.max_w)
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(clamped_w * 1000))
            return clamped_w

        return self._with(index, f"set {limit_w:.0f} W on", write)

    def lower_limit_w(self, index: int, limit_w: float) -> float:
        """Request a limit, clamped as above, only if that lowers it; returns the limit then requested, W.

        For a GPU whose limit the caller has not seen: it never raises. Raises NvmlFault.
        """

        def lower(handle: object, device: Device) -> float:
            found_w = _requested_w(handle)
            clamped_w = min(max(limit_w, device.min_w), device.max_w)
            if clamped_w >= found_w:
                return found_w
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(clamped_w * 1000))
            return clamped_w

        return self._with(index, f"lower to {limit_w:.0f} W", lower)

    def probe_permission(self, index: int) -> None:
        """Write back the limit just read: changes nothing, and raises NvmlFault where a real write would."""
        self._with(
            index,
            "write back the limit of",
            lambda handle, _: pynvml.nvmlDeviceSetPowerManagementLimit(
                handle, pynvml.nvmlDeviceGetPowerManagementLimit(handle)
            ),
        )

    def _with(self, index: int, verb: str, call: Callable[[object, Device], T]) -> T:
        try:
            handle, device = self._opened.get(index) or self._open(index)
            return _checked(f"{verb} GPU {index}", lambda: call(handle, device))
        except NvmlFault:
            self._opened.pop(index, None)  # back again, it may have another handle and other constraints
            raise

    def _open(self, index: int) -> tuple[object, Device]:
        opened = _checked(f"open GPU {index}", lambda: _open_device(index))
        self._opened[index] = opened
        return opened


def _checked(what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except pynvml.NVMLError as error:
        code = int(error.value)
        remedy = REMEDIES.get(code, "see the NVML return codes")
        raise NvmlFault(code, f"cannot {what}: {error} (nvmlReturn {code}); {remedy}") from None


def _open_device(index: int) -> tuple[object, Device]:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    min_mw, max_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    return handle, Device(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        min_w=min_mw / 1000,
        max_w=max_mw / 1000,
        default_w=pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1000,
    )


def _read(handle: object, device: Device) -> Reading:
    fields_w = _fields_w(handle)
    instant_w = fields_w.get(FIELD_INSTANT)
    average_w = fields_w.get(FIELD_AVERAGE)
    if instant_w is None and average_w is None:
        average_w = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    power_w = average_w if instant_w is None else instant_w
    assert power_w is not None
    limit_w = fields_w.get(FIELD_REQUESTED)
    enforced_w = fields_w.get(FIELD_ENFORCED)
    return Reading(
        device=device,
        power_w=power_w,
        averaged=instant_w is None,
        limit_w=_requested_w(handle) if limit_w is None else limit_w,
        enforced_w=pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
        if enforced_w is None
        else enforced_w,
    )


def _fields_w(handle: object) -> dict[int, float]:
    """The fields this driver and GPU know, W: one call for all of them."""
    try:
        values = pynvml.nvmlDeviceGetFieldValues(handle, FIELDS)
    except pynvml.NVMLError as error:
        if error.value in UNKNOWN_HERE:
            return {}
        raise
    return {
        value.fieldId: value.value.uiVal / 1000 for value in values if value.nvmlReturn == pynvml.NVML_SUCCESS
    }


def _requested_w(handle: object) -> float:
    milliwatts: int = pynvml.nvmlDeviceGetPowerManagementLimit(handle)
    return milliwatts / 1000
