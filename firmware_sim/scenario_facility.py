"""The `facility` part of a scenario: what stands beside the block, who is told of it, and what SCADA does.

facility:
  serve: [opcua, modbus, bms, prometheus]
  alone: true                  # the device under test has no GPUs: a gateway and nothing else
  devices:
    - {name: rpu-1, type: rpu, line: hall, unit: 3}
    - {name: aux, type: em24, line: hall, unit: 4}
    - {name: chiller, type: chiller}
timeline:
  - {at_s: 5, command: {id: op-1, via: opcua, reduce_ratio: 0.2, duration_s: 20}}
  - {at_s: 9, write: {device: chiller, point: demand_limit_ratio, value: 0.35}}
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Way = Literal["opcua", "modbus", "bms", "prometheus", "mirror"]
DeviceType = Literal["rpu", "em24", "branch", "chiller", "battery"]


@dataclass(frozen=True)
class DeviceKind:
    """What a gateway is told of a type of device.

    Attributes:
        profile: by which it is read.
        kind: what facility systems call it.
        frozen_after_s: registers that stand still for this long are not live any more; None: they may.
        writes: what may be written, and between which values.
        watched: points that are compared with the plant, wherever they come out.
        on_line: it speaks RTU on a line that it shares.
    """

    profile: str
    kind: str
    watched: tuple[str, ...]
    writes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    frozen_after_s: float | None = None
    on_line: bool = False


DEVICE_KINDS: Final[Mapping[DeviceType, DeviceKind]] = {
    "rpu": DeviceKind(
        "orv3_rpu", "rpu", ("coolant_supply_c", "flow_l_per_min"),
        {"flow_target_l_per_min": (10, 60), "coolant_supply_target_c": (25, 42)},
        frozen_after_s=10.0, on_line=True,
    ),
    "em24": DeviceKind("em24_meter", "meter", ("power_w",), frozen_after_s=10.0, on_line=True),
    "branch": DeviceKind("liebert_branch", "meter", ("power_w", "current_l1_a")),
    "chiller": DeviceKind(
        "carrier_30xv", "chiller", ("capacity_ratio", "demand_limit_ratio"),
        {"demand_limit_ratio": (0.3, 1.0)},
    ),
    "battery": DeviceKind("sunspec", "bess", ("m701_power_w", "m713_state_of_charge_ratio")),
}  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldDevice(_Strict):
    """A device in the field. `line`: name of the RTU line that it shares; "": a TCP port of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")
    type: DeviceType
    line: str = ""
    unit: int = Field(1, ge=1, le=247)
    of: str = ""  # rack that it measures; "": the whole block, or what the device is there for
    rating_a: float = Field(63, gt=0)
    poll_s: float = Field(1.0, ge=0.05, le=60)


class FacilitySpec(_Strict):
    """What is served, and what stands around.

    Attributes:
        serve: ways that `powerblock serve` offers; none: it is not started.
        devices: beside the block's own.
        alone: the device under test is a gateway without GPUs: the plant works for somebody else, and no
            agent, no law and no signal of the grid is there.
        bms_schema: AsyncAPI file of the bus that every message is checked against; without it its shape is.
    """

    serve: tuple[Way, ...] = ()
    devices: tuple[FieldDevice, ...] = ()
    alone: bool = False
    bms_schema: Path | None = None


class Command(_Strict):
    """SCADA limits the block's power: over `opcua` by a method, over `modbus` as a SunSpec client does.

    Or it calls a level of shedding; that can be done at the block's own `panel`, too: `powerblock shed`.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")
    via: Literal["opcua", "modbus", "panel"]
    shed: str | None = None  # a level
    reduce_ratio: float | None = Field(None, gt=0, lt=1)
    limit_kw: float | None = Field(None, gt=0)
    duration_s: int = Field(gt=0, le=3600)  # then it runs out by itself: nobody takes it back

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if sum(one is not None for one in (self.reduce_ratio, self.limit_kw, self.shed)) != 1:
            raise ValueError("give either reduce_ratio or limit_kw, or shed")
        return self


class Write(_Strict):
    """SCADA writes a point of a device."""

    device: str
    point: str
    value: float
    via: Literal["opcua"] = "opcua"

    def __str__(self) -> str:
        return f"{self.device} {self.point} = {self.value:g}"


def facility_complaints(facility: FacilitySpec, racks: Sequence[str], own: Sequence[str]) -> Iterator[str]:
    """What only shows between the parts. `own`: names of the block's own devices."""
    for name, times in Counter((*own, *(device.name for device in facility.devices))).items():
        if times > 1:
            yield f"facility.devices: {name!r} stands there twice; names must differ"
    for i, device in enumerate(facility.devices):
        if device.of and device.of not in racks:
            yield f"facility.devices.{i}.of: no rack {device.of!r}; use one of {', '.join(racks)}"
        if device.line and not DEVICE_KINDS[device.type].on_line:
            yield f"facility.devices.{i}.line: a {device.type} has a port of its own; leave line out"
    places = Counter((device.line, device.unit) for device in facility.devices if device.line)
    for (line, unit), times in places.items():
        if times > 1:
            yield f"facility.devices: unit {unit} is twice on line {line!r}; units of a line must differ"
    if facility.alone and not facility.devices:
        yield "facility.alone: a gateway needs devices; add some"


def command_complaints(command: Command, facility: FacilitySpec, levels: Sequence[str]) -> Iterator[str]:
    if command.shed is not None and command.shed not in levels:
        yield f"command.shed: no level {command.shed!r}; use one of {', '.join(levels) or 'none'}"
    if command.via == "panel" and command.shed is None:
        yield "command.via: the rig's operator calls levels of shedding alone; use opcua or modbus"
    if command.via == "modbus" and command.shed is not None:
        yield "command.via: a SunSpec client cannot call a level of shedding; use opcua or panel"
    if command.via != "panel" and command.via not in facility.serve:
        yield f"command.via: {command.via} is not served; add it to facility.serve"
    if facility.alone:
        yield "command: there is no power to limit; remove it, or facility.alone"


def write_complaints(write: Write, facility: FacilitySpec) -> Iterator[str]:
    if write.via not in facility.serve:
        yield f"write.via: {write.via} is not served; add it to facility.serve"
    found = [device for device in facility.devices if device.name == write.device]
    if not found:
        known = ", ".join(device.name for device in facility.devices) or "none"
        yield f"write.device: no {write.device!r}; use one of {known}"
        return
    writes = DEVICE_KINDS[found[0].type].writes
    if write.point not in writes:
        yield f"write.point: {write.point!r} cannot be written; use {', '.join(writes) or 'another device'}"
    elif not writes[write.point][0] <= write.value <= writes[write.point][1]:
        lowest, highest = writes[write.point]
        yield f"write.value: {write.value:g} is outside {lowest:g} to {highest:g}"
