"""The second lever: a ceiling on the SM clock, and what can be known of a lock that somebody else has set.

A lock is a range. Ours reaches from the lowest supported clock to the ceiling, so that an idle GPU still
slows down. A ceiling is rounded down to a clock that the GPU has, since a ceiling never lets more through.

What cannot be known: NVML has calls to set and to reset a lock, and none to read one. Those that look like it
tell other things: `nvmlDeviceGetClock` knows application clocks (deprecated, another setting),
`...GetMaxCustomerBoostClock` and `...GetMinMaxClockOfPState` what the board could do, and no clocks event
reason is documented for locks. Hence
* a lock of ours is remembered (`Reading.ceiling_mhz`) and forgotten with the generation it was set in;
* a lock found at start can only be suspected: a busy GPU that runs below its highest clock while nothing says
  that it holds it down (`suspected_ceiling_mhz`). The suspicion is for the log and the operator. Whoever
  needs a found lock back after our reset must name it: `Nvml.set_clock_lock` puts any range back;
* whoever never sets a ceiling never destroys a found one: nothing here touches clocks unasked.

Source: nvmlDeviceSetGpuLockedClocks, NvmlClocksEventReasons, https://docs.nvidia.com/deploy/nvml-api/.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from protocols.nvml.facts import GPU_IDLE, LIMITERS, Reading
from protocols.nvml.faults import if_known

SUSPECT_READINGS_MIN: Final = 5  # one alone may have caught a change of clocks
SUSPECT_GAP_MHZ: Final = 45  # three steps of 15 MHz: boost clocks waver by one or two


@dataclass(frozen=True, slots=True)
class Clocks:
    """The SM clocks a GPU has, rising; empty where the driver does not list them."""

    supported_mhz: tuple[int, ...]
    max_mhz: int  # 0: unknown

    @property
    def min_mhz(self) -> int:
        return self.supported_mhz[0] if self.supported_mhz else 0

    def step_below(self, ceiling_mhz: int) -> int:
        """The highest clock the GPU has that is not above the ceiling; its lowest where there is none."""
        if not self.supported_mhz:
            return ceiling_mhz
        return self.supported_mhz[max(bisect_right(self.supported_mhz, ceiling_mhz) - 1, 0)]


def clocks_of(handle: object) -> Clocks:
    """What the driver lists. Raises NVMLError, not for what it does not know."""
    supported = if_known(lambda: _supported_mhz(handle)) or ()
    highest = (
        if_known(lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        if_known(lambda: pynvml.nvmlDeviceGetMaxCustomerBoostClock(handle, pynvml.NVML_CLOCK_GRAPHICS)),
    )
    return Clocks(supported, min((int(mhz) for mhz in highest if mhz), default=0))


def sm_mhz(handle: object) -> int | None:
    """The SM clock now; None where the driver does not tell. Raises NVMLError."""
    mhz: int | None = if_known(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
    return mhz


def event_reasons(handle: object) -> int:
    """Why clocks are what they are, bits; 0 where the driver does not tell. Raises NVMLError."""
    reasons: int | None = if_known(lambda: _event_reasons(handle))
    return reasons or 0


def lock(handle: object, min_mhz: int, max_mhz: int) -> None:
    """Keep the SM clock in this range. Raises NVMLError."""
    pynvml.nvmlDeviceSetGpuLockedClocks(handle, min_mhz, max_mhz)


def unlock(handle: object) -> None:
    """Take any lock away, whoever set it. Raises NVMLError."""
    pynvml.nvmlDeviceResetGpuLockedClocks(handle)


def suspected_ceiling_mhz(readings: Iterable[Reading]) -> int | None:
    """The ceiling that readings of one GPU give away, taken before anything of ours was set; or None.

    None is no proof that there is no lock: an idle GPU, or one held down by its power limit, tells nothing.
    """
    free = [
        reading
        for reading in readings
        if reading.clock_mhz is not None and not reading.reasons & (GPU_IDLE | LIMITERS)
    ]
    if len(free) < SUSPECT_READINGS_MIN:
        return None
    seen_mhz = max(reading.clock_mhz or 0 for reading in free)
    return seen_mhz if seen_mhz < free[0].device.clock_max_mhz - SUSPECT_GAP_MHZ else None


def _supported_mhz(handle: object) -> tuple[int, ...]:
    memory_mhz = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle), default=0)
    return tuple(sorted(pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory_mhz)))


def _event_reasons(handle: object) -> Any:
    try:
        return pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)  # its name before R535
