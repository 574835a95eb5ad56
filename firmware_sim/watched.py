"""Points that are compared with the plant wherever they come out, and what each should be at every moment.

A point has one address in the gateway (`devices/r1-a/power_w`) and one truth: what the plant is at that
instant for the block's own instruments, what the device's registers hold for the others. No line and no
server has had a chance to delay it or to get it wrong.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from firmware_sim.field_devices import Tied
from firmware_sim.plant import Plant
from firmware_sim.scenario import Scenario
from firmware_sim.scenario_facility import DEVICE_KINDS

# ending of a point's name -> unit, and what its registers and deadbands may be off by
RESOLUTION: Final[Mapping[str, tuple[str, float]]] = {
    "_w": ("W", 30.0),
    "_c": ("degC", 0.15),
    "_a": ("A", 1.0),
    "_l_per_min": ("L/min", 0.2),
    "_ratio": ("ratio", 0.011),
}
TOLERANCE_RATIO: Final = 0.01  # of the value: what a reading may be off by besides
SUNSPEC_MODEL: Final = re.compile(r"^m\d+_")
COARSE_W: Final = 600.0  # a card that says whole kilowatts
COARSE_PROFILES: Final = frozenset({"liebert_branch"})

CDU: Final = "cdu"  # as scenarios call it
COOLING: Final = "cooling"  # as the gateway does


@dataclass(frozen=True)
class WatchedPoint:
    """One point.

    Attributes:
        device: as the scenario calls it; "" for the block.
        group: of the process image, such as devices/r1-a.
        name: within its group.
        unit: W, degC ...
        tolerance: in `unit`, beside `TOLERANCE_RATIO`.
        bus_group: where the DSX bus has it, if that is another group.
    """

    device: str
    group: str
    name: str
    unit: str
    tolerance: float
    bus_group: str = ""

    @property
    def address(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def bus_address(self) -> str:
        return f"{self.bus_group or self.group}/{self.name}"

    @property
    def label(self) -> str:
        """For people: without the unit, which stands beside the value, and the number of a SunSpec model."""
        ending = next((ending for ending in RESOLUTION if self.name.endswith(ending)), "")
        words = SUNSPEC_MODEL.sub("", self.name.removesuffix(ending)).replace("_", " ")
        return f"{self.device or 'block'} {words}"


Truth = Callable[[], float]


def watched_points(
    scenario: Scenario, plant: Plant, tied: Mapping[str, Tied]
) -> Iterator[tuple[WatchedPoint, Truth]]:
    """With what each should be now."""
    if not scenario.facility.alone:
        yield _point("", "block", "power_w", bus_group="devices/meter"), lambda: plant.block_w
        yield _point(CDU, f"devices/{COOLING}", "coolant_supply_c"), lambda: plant.cdu.supply_c
        rack = scenario.block.racks[0].name
        yield (
            _point(f"{rack}-a", f"devices/{rack}-a", "power_w"),
            (lambda: float(plant.electrical.inlet_w[0, 0])),
        )
    for device in scenario.facility.devices:
        kind = DEVICE_KINDS[device.type]
        for name in kind.watched:
            point = _point(
                device.name, f"devices/{device.name}", name, coarse=kind.profile in COARSE_PROFILES
            )
            yield point, _truth(tied[device.name], name)


def _truth(tied: Tied, name: str) -> Truth:
    return lambda: tied.true_value(name)


def _point(device: str, group: str, name: str, *, bus_group: str = "", coarse: bool = False) -> WatchedPoint:
    ending = next(ending for ending in RESOLUTION if name.endswith(ending))
    unit, tolerance = RESOLUTION[ending]
    return WatchedPoint(
        device, group, name, unit, COARSE_W if coarse and unit == "W" else tolerance, bus_group
    )
