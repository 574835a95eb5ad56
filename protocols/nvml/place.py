"""Where the board sits: chassis, slot, tray, host, module. GB200 and GB300 know; others say NOT_SUPPORTED.

nvidia-ml-py has the numbers of this structure as characters and decodes them as text: slot 5 becomes a
control character and 200 an error. So the bytes are read here, as nvml.h has them.

Source: nvmlPlatformInfo_v2_t, https://docs.nvidia.com/deploy/nvml-api/structnvmlPlatformInfo__v2__t.html.
"""

import ctypes
from typing import Final

from protocols.nvml.facts import Platform
from protocols.nvml.faults import if_known, native


class _PlatformV2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32),
        ("ib_guid", ctypes.c_ubyte * 16),
        ("chassis_serial", ctypes.c_ubyte * 16),
        ("slot", ctypes.c_ubyte),
        ("tray", ctypes.c_ubyte),
        ("host_id", ctypes.c_ubyte),
        ("peer_type", ctypes.c_ubyte),
        ("module_id", ctypes.c_ubyte),
    )


VERSION: Final = 2 << 24 | ctypes.sizeof(_PlatformV2)


def place_of(handle: object) -> Platform | None:
    """Where the board sits; None where it does not know. Raises NVMLError for anything else."""
    found = _PlatformV2(version=VERSION)

    def ask() -> bool:
        native("nvmlDeviceGetPlatformInfo", handle, ctypes.byref(found))
        return True

    if if_known(ask) is None:
        return None
    serial = bytes(found.chassis_serial).partition(b"\0")[0].decode("ascii", errors="replace").strip()
    return Platform(serial, found.slot, found.tray, found.host_id, found.module_id)
