"""Power limits, of the GPU or of the module that it sits on.

A limit of the GPU alone is what is wanted, and what almost every board has. On some Grace boards the driver
knows, or lets us set, only the limit of the whole module: GPU and CPU together. The GPU's own limit is tried
first; a board that answers NOT_SUPPORTED to it, when read or when written, is asked for its module's.

The module's numbers are read as fields of scope 1, and written by `nvmlDeviceSetPowerManagementLimit_v2`:
the function of that name in nvidia-ml-py returns success whatever the driver said, so the C symbol is called
here. GPUs of one module share its limit, and each of them tells the power of all: who counts by GPU must know
how many share, which no call tells (the agent's `shares`).
"""

import ctypes
from dataclasses import dataclass
from typing import Final

import pynvml

from protocols.nvml import fields
from protocols.nvml.faults import NOT_SUPPORTED, if_known, native
from protocols.nvml.fields import SCOPE_GPU, SCOPE_MODULE, Stamped

LIMIT_FIELDS: Final = (fields.MIN, fields.MAX, fields.DEFAULT, fields.REQUESTED)
_LIMITS_OF_MODULE: Final = fields.in_scope(LIMIT_FIELDS, SCOPE_MODULE)
_READ: Final = (fields.INSTANT, fields.AVERAGE, fields.REQUESTED, fields.ENFORCED, fields.ENERGY)
_READ_OF: Final = {scope: fields.in_scope(_READ, scope) for scope in (SCOPE_GPU, SCOPE_MODULE)}
SENSORS: Final = (fields.AVERAGE, fields.INSTANT, fields.ENERGY)
_SENSORS_OF: Final = {scope: fields.in_scope(SENSORS, scope) for scope in (SCOPE_GPU, SCOPE_MODULE)}
POWER_VALUE_V2: Final = 2 << 24 | 12  # structure version 2, of 12 bytes


class _PowerValue(ctypes.Structure):
    """nvmlPowerValue_v2_t; the scope is one byte in nvml.h, with three of padding behind it."""

    _fields_ = (("version", ctypes.c_uint32), ("scope", ctypes.c_uint32), ("power_mw", ctypes.c_uint32))


@dataclass(frozen=True, slots=True)
class Range:
    """What limit a board allows, and whose it is."""

    min_w: float
    max_w: float
    default_w: float
    module: bool

    def clamped_w(self, limit_w: float) -> float:
        return min(max(limit_w, self.min_w), self.max_w)


@dataclass(frozen=True, slots=True)
class Power:
    """One moment. `energy_j` is None where it is not counted."""

    power_w: float
    averaged: bool
    limit_w: float
    enforced_w: float
    energy_j: float | None


def allowed(handle: object, *, try_gpu: bool = True) -> Range:
    """The limits that this board allows, of the GPU if it has them, else of the module. Raises NVMLError."""
    of_gpu = if_known(lambda: _range_of_gpu(handle)) if try_gpu else None
    return of_gpu or _range_of_module(handle)


def read(handle: object, scope: int) -> Power:
    """Powers and limits of one moment; older calls where a driver knows fewer fields. Raises NVMLError."""
    known = if_known(lambda: _READ_OF[scope].read(handle))
    values = {} if known is None else known[0]
    instant_mw, average_mw = values.get(fields.INSTANT), values.get(fields.AVERAGE)
    if instant_mw is None and average_mw is None:
        average_mw = pynvml.nvmlDeviceGetPowerUsage(handle)
    power_mw = average_mw if instant_mw is None else instant_mw
    assert power_mw is not None
    limit_mw, enforced_mw = values.get(fields.REQUESTED), values.get(fields.ENFORCED)
    energy_mj = values.get(fields.ENERGY)
    if energy_mj is None:
        energy_mj = if_known(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    limit_w = requested_w(handle, scope) if limit_mw is None else limit_mw / 1000
    return Power(
        power_w=power_mw / 1000,
        averaged=instant_mw is None,
        limit_w=limit_w,
        enforced_w=_enforced_w(handle, scope, limit_w) if enforced_mw is None else enforced_mw / 1000,
        energy_j=None if energy_mj is None else energy_mj / 1000,
    )


def sensors(handle: object, scope: int) -> dict[int, Stamped]:
    """Averaged and instant power, mW, and energy, mJ, by field; those that there are. Raises NVMLError."""
    return _SENSORS_OF[scope].stamped(handle)


def requested_w(handle: object, scope: int) -> float:
    """The limit that was asked for last, by whomever. Raises NVMLError."""
    if scope == SCOPE_MODULE:
        return _of_module(handle)[fields.REQUESTED] / 1000
    milliwatts: int = pynvml.nvmlDeviceGetPowerManagementLimit(handle)
    return milliwatts / 1000


def request(handle: object, scope: int, limit_w: float) -> None:
    """Ask for a limit. Raises NVMLError, in either scope."""
    limit_mw = round(limit_w * 1000)
    if scope == SCOPE_GPU:
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, limit_mw)
    else:
        value = _PowerValue(POWER_VALUE_V2, scope, limit_mw)
        native("nvmlDeviceSetPowerManagementLimit_v2", handle, ctypes.byref(value))


def _range_of_gpu(handle: object) -> Range:
    min_mw, max_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    default_mw = pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle)
    return Range(min_mw / 1000, max_mw / 1000, default_mw / 1000, module=False)


def _range_of_module(handle: object) -> Range:
    values = _of_module(handle)
    return Range(
        values[fields.MIN] / 1000, values[fields.MAX] / 1000, values[fields.DEFAULT] / 1000, module=True
    )


def _of_module(handle: object) -> dict[int, float]:
    values, failed = _LIMITS_OF_MODULE.read(handle)
    if values.keys() != set(LIMIT_FIELDS):
        raise pynvml.NVMLError(next(iter(failed.values()), NOT_SUPPORTED))
    return values


def _enforced_w(handle: object, scope: int, limit_w: float) -> float:
    if scope == SCOPE_MODULE:  # no older call tells of a module
        return limit_w
    milliwatts: int = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)
    return milliwatts / 1000
