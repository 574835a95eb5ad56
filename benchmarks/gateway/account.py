"""From what arrived to what it is worth: rate, latency of a change, losses, wrong values.

rate      reads of a device that arrived, per second; the mean over the devices, and the worst of them
change    from the moment in which the device changed until a message with that version arrived. The poll
          period is part of it: half of it on average, all of it for a change just after a poll
lost      values that a device had given out and that never arrived, as gaps in its serial show. What was
          never read is no loss; it lacks in the rate
wrong     values that arrived and are not what the device gave out under that serial
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.gateway import farm
from benchmarks.gateway.farm import REGISTERS, SERIAL, VERSION, WORD, Farm


class Sample(NamedTuple):
    """What one read of a device brought; values that had not changed may be left out, the serial never."""

    arrived_s: float
    device: int
    values: Mapping[int, float]


@dataclass(frozen=True)
class Account:
    rate_hz: float
    rate_worst_hz: float
    reads: int
    change_s: list[float]
    changes_missed: int
    lost_values: int
    wrong_values: int

    @property
    def values(self) -> int:
        return self.reads * REGISTERS


@dataclass
class _Device:
    reads: int = 0
    lost: int = 0
    serial: int | None = None
    version: int | None = None


def account(samples: Iterable[Sample], source: Farm, window_s: float) -> Account:
    """Of samples in the order of their arrival within `window_s`."""
    devices = [_Device() for _ in source.ports]
    change_s: list[float] = []
    changes_missed = wrong_values = 0
    for sample in samples:
        device = devices[sample.device]
        if not _count(device, farm.register(sample.values[SERIAL])):
            continue
        wrong_values += farm.wrong(sample.device, sample.values)
        if VERSION in sample.values:
            version = farm.register(sample.values[VERSION])
            if device.version is not None and version > device.version:
                changes_missed += version - device.version - 1
                change_s.append(sample.arrived_s - source.changed_at_s(sample.device, version))
            device.version = version
    rates_hz = [device.reads / window_s for device in devices]
    return Account(
        rate_hz=sum(rates_hz) / len(rates_hz),
        rate_worst_hz=min(rates_hz),
        reads=sum(device.reads for device in devices),
        change_s=change_s,
        changes_missed=changes_missed,
        lost_values=REGISTERS * sum(device.lost for device in devices),
        wrong_values=wrong_values,
    )


def _count(device: _Device, serial: int) -> bool:
    """Take one read into account; False for one that came before."""
    ahead = 1 if device.serial is None else (serial - device.serial) % WORD
    if ahead == 0:
        return False
    device.reads += 1
    if ahead > WORD // 2:  # late, and counted as lost when its successor came
        device.lost = max(0, device.lost - 1)
        return True
    device.lost += ahead - 1
    device.serial = serial
    return True
