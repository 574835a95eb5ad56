"""The GPUs of this host through NVIDIA's driver library: powers and limits in W, clocks in MHz.

A thin, synchronous wrapper of `pynvml` (the distribution is called nvidia-ml-py). Calls block, normally for
1 to 30 ms, seldom for a minute when a GPU is sick: whoever calls owns the thread and the deadline.

Two levers move a GPU's power. The power limit is the guarantee; where the work draws less than its limit
anyway (decoding of a language model), only a lower ceiling of the SM clock has an effect.

What is here: `driver` the calls, `facts` what they return, `power` limits of GPU or module, `clocks` the
second lever and what can be known of a lock, `smoothing` and `profiles` what Blackwell adds, `place` where
the board sits, `fields` and `faults` the floor they stand on, `node_slice` many nodes from one driver.

Known traps, fenced here:
* `nvmlDeviceGetPowerUsage` is a 1 s average on most GPUs; the instant value is field 186, and every field
  has a return code of its own;
* a limit below the minimum is an error, so a limit is clamped to what the device itself allows;
* `nvmlDeviceSetPowerManagementLimit_v2` of nvidia-ml-py drops the return code: the C call is made here;
* `c_nvmlPlatformInfo_v2_t` of nvidia-ml-py reads numbers as text and fails above 127: read here as bytes;
* smoothing ramps are read in mW/s, and their fields had other numbers in the R575 drivers;
* no call reads a clock lock back: see `clocks`;
* a driver reload forgets limits and locks without a word: see `Reading.generation`;
* `NVMLError` cannot be hashed or compared: it never leaves this package, `NvmlFault` does.

Source: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from protocols.nvml.clocks import suspected_ceiling_mhz
from protocols.nvml.driver import Nvml
from protocols.nvml.facts import (
    GPU_IDLE,
    SW_POWER_CAP,
    Device,
    Platform,
    Preset,
    Profiles,
    Reading,
    Smoothing,
)
from protocols.nvml.faults import DRIVER_GONE, LIBRARY_MISSING, NO_PERMISSION, NOT_SUPPORTED, NvmlFault
from protocols.nvml.fields import AVERAGE, ENERGY, INSTANT, Stamped
from protocols.nvml.node_slice import NodeSlice

__all__ = [
    "AVERAGE",
    "DRIVER_GONE",
    "ENERGY",
    "GPU_IDLE",
    "INSTANT",
    "LIBRARY_MISSING",
    "NOT_SUPPORTED",
    "NO_PERMISSION",
    "SW_POWER_CAP",
    "Device",
    "NodeSlice",
    "Nvml",
    "NvmlFault",
    "Platform",
    "Preset",
    "Profiles",
    "Reading",
    "Smoothing",
    "Stamped",
    "suspected_ceiling_mhz",
]
