"""What can go wrong in the driver, told with a remedy, and the two ways to call it.

`pynvml` has a Python function for almost everything; `native` is for the few calls that it does badly or
slowly. Both end in the same `NVMLError`, which `checked` turns into the one exception that leaves here.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import pynvml

T = TypeVar("T")

INVALID_ARGUMENT: Final = 2
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
LIBRARY_MISSING: Final = 12
NO_SUCH_CALL: Final = 13
# Older drivers know fewer fields, or none: these codes send us to the call that came before them.
UNKNOWN_HERE: Final = frozenset(
    {INVALID_ARGUMENT, NOT_SUPPORTED, NO_SUCH_CALL, 25, 26}
)  # version, deprecated
# The driver itself is gone or was exchanged under us: only a new process gets a new one.
DRIVER_GONE: Final = frozenset({1, 9, 18})  # uninitialized, not loaded, version mismatch

REMEDIES: Final = {
    1: "NVML was shut down; start the agent again",
    NOT_SUPPORTED: "this GPU, or its driver, does not have it",
    NO_PERMISSION: "grant CAP_SYS_ADMIN: run as root or set AmbientCapabilities=CAP_SYS_ADMIN in the unit",
    9: "the driver is not loaded: check `nvidia-smi` and the kernel log",
    10: "the driver gave up waiting for the GPU",
    LIBRARY_MISSING: "no libnvidia-ml.so.1: install the NVIDIA driver, or add its folder to LD_LIBRARY_PATH",
    NO_SUCH_CALL: "the driver is older than this call: update it, or do without",
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


def checked(what: str, call: Callable[[], T]) -> T:
    """Make a call. Raises NvmlFault, which begins with "cannot {what}"."""
    try:
        return call()
    except pynvml.NVMLError as error:
        code = int(error.value)
        remedy = REMEDIES.get(code, "see the NVML return codes")
        raise NvmlFault(code, f"cannot {what}: {error} (nvmlReturn {code}); {remedy}") from None


def native(name: str, *arguments: Any) -> None:
    """Call a C function of the open library and check its return code. Raises NVMLError."""
    function = getattr(pynvml.nvmlLib, name, None)
    code = NO_SUCH_CALL if function is None else function(*arguments)
    if code != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(code)


def if_known(call: Callable[[], T]) -> T | None:
    """What a call returns; None where GPU or driver do not have it. Raises NVMLError for all else."""
    try:
        return call()
    except pynvml.NVMLError as error:
        if error.value in UNKNOWN_HERE:
            return None
        raise
