"""Workload power profiles: what kind of work a GPU should spend its power on. Blackwell and newer.

Several may be requested at once, by several users; the driver enforces those that do not conflict. So a
profile is added to what is requested and taken away again, and never is the whole set replaced.
"""

import ctypes
from collections.abc import Callable, Iterable
from typing import Any, Final

import pynvml

from protocols.nvml.facts import Profiles
from protocols.nvml.faults import if_known

WORD_BITS: Final = 32
PROFILES_MAX: Final = 255  # bits of an nvmlMask255_t


def profiles_of(handle: object) -> Profiles | None:
    """Supported, requested and enforced; None where the GPU has no profiles. Raises NVMLError."""
    found: Profiles | None = if_known(lambda: _current(handle))
    return found


def request(handle: object, profiles: Iterable[int]) -> None:
    """Add to what is requested. Raises NVMLError."""
    _change(pynvml.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles, handle, profiles)


def clear(handle: object, profiles: Iterable[int]) -> None:
    """Take from what is requested. Raises NVMLError."""
    _change(pynvml.nvmlDeviceWorkloadPowerProfileClearRequestedProfiles, handle, profiles)


def _current(handle: object) -> Profiles:
    current = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
    pynvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(handle, ctypes.byref(current))
    return Profiles(
        supported=_numbers(current.perfProfilesMask.mask),
        requested=_numbers(current.requestedProfilesMask.mask),
        enforced=_numbers(current.enforcedProfilesMask.mask),
    )


def _change(call: Callable[[object, Any], object], handle: object, profiles: Iterable[int]) -> None:
    asked = pynvml.c_nvmlWorkloadPowerProfileRequestedProfiles_v1_t()
    for number in profiles:
        if not 0 <= number < PROFILES_MAX:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        asked.requestedProfilesMask.mask[number // WORD_BITS] |= 1 << number % WORD_BITS
    call(handle, ctypes.byref(asked))


def _numbers(mask: Any) -> tuple[int, ...]:
    bits = int.from_bytes(bytes(mask), "little")
    return tuple(i for i in range(bits.bit_length()) if bits >> i & 1)
