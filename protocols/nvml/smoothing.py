"""Power smoothing of Blackwell: firmware that keeps power up, so that a load that stops spares the grid.

While it is on, the GPU burns what the work does not draw, down to a floor: a share of the total module power
(TMP). A limit below that floor may be accepted and not kept, so the floor is read before a shed is promised.

Presets are the administrator's: which of them is active can be chosen here, what they say is only read. Ramp
rates come in mW/s, hysteresis in ms, floors in percent of TMP. The numbers of the fields are 251 to 268; in
drivers of the R575 branch they stood five higher (nvidia-ml-py 12.575.51). A GPU whose BMC keeps smoothing to
itself says NO_PERMISSION.

Seen on no hardware of ours: units of the fields follow the comments in pynvml.py and DCGM's dcgm_fields.h
(applied floor and ceiling in W), a preset's number is the scope of its fields.
"""

import ctypes
from typing import Final

import pynvml

from protocols.nvml.facts import Preset, Smoothing
from protocols.nvml.faults import NO_PERMISSION, if_known
from protocols.nvml.fields import Fields

FIRST: Final = 251
FIRST_OF_BRANCH: Final = {575: 256}
NOT_SET: Final = 0xFFFF_FFFF  # by the administrator
PRESETS_MAX: Final = 5

# relative to the first field
ENABLED, PRIVILEGE, IMMEDIATE, CEILING_W, FLOOR_W = range(5)
LIFETIME_PERCENT, PRESET, OVERRIDE_OF = 7, 13, 14
PRESET_PARAMETERS: Final = range(9, 13)  # floor, ramp up, ramp down, hysteresis
READ_PER_UNIT: Final = (100.0, 1000.0, 1000.0, 1000.0)  # %, mW/s, mW/s, ms


def first_field(driver_version: str) -> int:
    """Number of the first smoothing field in this driver, by its branch ("575.51.03": 575)."""
    branch = driver_version.partition(".")[0]
    return FIRST_OF_BRANCH.get(int(branch), FIRST) if branch.isdigit() else FIRST


def smoothing_of(handle: object, first: int) -> Smoothing | None:
    """State of power smoothing; None where the GPU has none. Raises NVMLError."""
    wanted = (ENABLED, IMMEDIATE, CEILING_W, FLOOR_W, LIFETIME_PERCENT, PRESET)
    overrides = range(OVERRIDE_OF, OVERRIDE_OF + len(PRESET_PARAMETERS))
    asked = if_known(lambda: Fields((first + number, 0) for number in (*wanted, *overrides)).read(handle))
    if asked is None:
        return None
    values, failed = asked
    if first + ENABLED not in values:
        return Smoothing() if failed.get(first + ENABLED) == NO_PERMISSION else None
    preset = values.get(first + PRESET)
    lifetime_percent = values.get(first + LIFETIME_PERCENT)
    in_force = _in_force(handle, first, preset, tuple(values.get(first + number) for number in overrides))
    enabled = bool(values[first + ENABLED])
    ceiling_w = values.get(first + CEILING_W)
    return Smoothing(
        enabled=enabled,
        floor_w=_floor_w(values.get(first + FLOOR_W), in_force, ceiling_w) if enabled else 0.0,
        ceiling_w=ceiling_w,
        preset=None if preset is None else int(preset),
        in_force=in_force,
        immediate=bool(values.get(first + IMMEDIATE, 0)),
        lifetime_ratio=None if lifetime_percent is None else lifetime_percent / 100,
    )


def activate(handle: object, preset: int) -> None:
    """Make a preset the active one. Raises NVMLError."""
    asked = pynvml.c_nvmlPowerSmoothingProfile_v1_t()
    asked.profileId = preset
    pynvml.nvmlDevicePowerSmoothingActivatePresetProfile(handle, ctypes.byref(asked))


def _in_force(
    handle: object, first: int, preset: float | None, overrides: tuple[float | None, ...]
) -> Preset | None:
    if preset is None:
        return None
    numbers = [first + number for number in PRESET_PARAMETERS]
    asked = if_known(lambda: Fields((number, int(preset)) for number in numbers).read(handle))
    values = {} if asked is None else asked[0]
    raw = [
        values.get(number) if override is None or override == NOT_SET else override
        for number, override in zip(numbers, overrides, strict=True)
    ]
    known = [value / per for value, per in zip(raw, READ_PER_UNIT, strict=True) if value is not None]
    return Preset(*known) if len(known) == len(raw) else None


def _floor_w(applied_w: float | None, in_force: Preset | None, ceiling_w: float | None) -> float | None:
    """The floor in force; where the driver does not tell, the share of TMP that it comes from."""
    if applied_w is not None or in_force is None or ceiling_w is None:
        return applied_w
    return in_force.floor_ratio * ceiling_w
