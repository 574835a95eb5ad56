"""How a field device can be wrong while the network is fine.

| fault    | what a master sees                                       | in the field                       |
|----------|----------------------------------------------------------|------------------------------------|
| frozen   | prompt answers, the values of one moment for ever        | gateway with a dead bus behind it  |
| silent   | connection accepted, requests never answered             | hung firmware                      |
| refusing | connections dropped and refused                          | restart, pulled network card       |
| lying    | plausible values, wrong by a factor                      | wrong transformer ratio            |
| nan      | prompt answers that are not a number                     | sensor gone, device alive          |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

FaultMode = Literal["frozen", "silent", "refusing", "lying", "nan"]

POWER_SUFFIXES: Final = ("_w", "_va", "_a", ".W", ".VA", ".A")  # what a wrong transformer ratio scales


@dataclass(frozen=True)
class DeviceFault:
    mode: FaultMode
    scale_ratio: float = 1.0  # lying: reading over truth


_V = TypeVar("_V", float, float | str)


def distort(values: Mapping[str, _V], fault: DeviceFault | None) -> dict[str, _V]:
    """What a device with this fault says instead of `values` (point name -> value in its unit)."""
    if fault is None or fault.mode != "lying":
        return dict(values)
    return {
        name: value * fault.scale_ratio
        if not isinstance(value, str) and name.endswith(POWER_SUFFIXES)
        else value
        for name, value in values.items()
    }
