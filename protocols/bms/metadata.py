"""What a point is, as the bus wants to be told: checked when it is made, so that no wrong one is ever sent.

An object is named in one of three ways: a rack by its location, a power meter and a system by name and id,
other equipment by name and id, or as a part of another object (`associate_id`), which keeps a second sensor
from becoming a second path of power or water. `serves` gives the topology: which objects this one feeds,
step by step towards the rack.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from protocols.bms.catalogue import GENERIC, OBJECTS, POINTS, BmsError, Kind

PHASES: Final = ("A", "B", "C", "1", "2", "3")
SETPOINTS: Final = frozenset({GENERIC, "RackLiquidDifferentialPressureSp"}) | {
    name for name in POINTS if name.startswith(("Liquid", "Air")) and not name.endswith("Request")
}


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of one point. Raises BmsError for what the contract does not allow.

    Attributes:
        object_type, point_type: keys of the catalogue.
        name, id: of the object; of a rack: its location.
        unit: engineering unit; "" for none.
        states: number -> text, of a point without unit.
        serves: ids of the objects that this one feeds.
        associate_id: id of the object that this one is a part of; then it has no name and id of its own.
        area: where in the object, or what for.
        phase: of a current or of a generic point.
        integration: who publishes the value; "" for the BMS.
        is_setpoint: a target, not a reading.
        scope: of a heartbeat: the topics that it stands for.
    """

    object_type: str
    point_type: str
    name: str = ""
    id: str = ""
    unit: str = ""
    states: Mapping[int, str] = field(default_factory=dict)
    serves: tuple[str, ...] = ()
    associate_id: str = ""
    area: tuple[str, ...] = ()
    phase: str = ""
    integration: str = ""
    is_setpoint: bool = False
    scope: str = ""

    def __post_init__(self) -> None:
        complaints = "; ".join(_complaints(self))
        if complaints:
            raise BmsError(
                f"{self.object_type}/{self.point_type} of {self.id or self.associate_id}: {complaints}"
            )

    def payload(self) -> bytes:
        return json.dumps(dict(_fields(self)), separators=(",", ":")).encode()


def _fields(meta: Metadata) -> Iterator[tuple[str, Any]]:
    yield "objectType", meta.object_type
    yield "pointType", meta.point_type
    yield from _identity(meta)
    if meta.unit:
        yield "engUnit", meta.unit
    if meta.states:
        yield "stateText", [{"value": value, "text": text} for value, text in meta.states.items()]
    if meta.area:
        yield "processArea", list(meta.area)
    if meta.phase:
        yield "phase", meta.phase
    if meta.integration:
        yield "integration", meta.integration
    if meta.is_setpoint:
        yield "isSetpoint", True
    if meta.scope:
        yield "scope", meta.scope


def _identity(meta: Metadata) -> Iterator[tuple[str, Any]]:
    if meta.object_type == "Rack":
        yield "rackLocationName", meta.name
        yield "rackLocationId", meta.id
        return
    if meta.associate_id:
        yield "associateId", meta.associate_id
        return
    yield "objectName", meta.name
    yield "objectId", meta.id
    if meta.serves or meta.object_type == "PowerMeter":
        yield "servesId", list(meta.serves)


def _complaints(meta: Metadata) -> Iterator[str]:
    if meta.object_type not in OBJECTS:
        yield f"no object type {meta.object_type!r}; one of {', '.join(OBJECTS)}"
        return
    if meta.point_type not in OBJECTS[meta.object_type]:
        yield f"a {meta.object_type} has no {meta.point_type}; it has {', '.join(OBJECTS[meta.object_type])}"
        return
    yield from _of_identity(meta)
    yield from _of_measure(meta)
    yield from _of_place(meta)


def _of_identity(meta: Metadata) -> Iterator[str]:
    special = meta.object_type in {"Rack", "PowerMeter", "System"}
    if meta.associate_id:
        if special:
            yield f"a {meta.object_type} is an object of its own: leave associate_id out"
        if meta.name or meta.id or meta.serves:
            yield "it is a part of another object: give no name, id or serves"
    elif not (meta.name and meta.id):
        yield "give the object a name and an id"
    if meta.object_type in {"Rack", "System"} and meta.serves:
        yield f"a {meta.object_type} serves nobody: leave serves out"


def _of_measure(meta: Metadata) -> Iterator[str]:
    point = POINTS[meta.point_type]
    if meta.unit and meta.states:
        yield "a unit and states: give one of them"
    match point.kind:
        case Kind.FIXED if meta.unit != point.unit:
            yield f"its unit is {point.unit}, not {meta.unit or 'none'}"
        case Kind.FREE if not meta.unit:
            yield f"give a unit; usual is {point.unit}"
        case Kind.STATES if not meta.states:
            yield "give the text of each state"
        case Kind.NONE if meta.unit or meta.states:
            yield "it has neither unit nor states"


def _of_place(meta: Metadata) -> Iterator[str]:
    generic = meta.point_type == GENERIC
    if generic and not meta.area:
        yield "say in area what it is"
    of_the_whole = meta.object_type in {"Rack", "PowerMeter"} or meta.point_type.startswith("Heartbeat")
    if meta.area and of_the_whole and not generic:
        yield f"a {meta.point_type} of a {meta.object_type} has no area"
    if meta.phase and meta.phase not in PHASES:
        yield f"phase {meta.phase!r}; one of {', '.join(PHASES)}"
    if (meta.point_type == "PhaseCurrent") > bool(meta.phase):
        yield "say which phase"
    if meta.phase and not generic and meta.point_type != "PhaseCurrent":
        yield f"a {meta.point_type} has no phase"
    if meta.is_setpoint and meta.point_type not in SETPOINTS:
        yield f"a {meta.point_type} is never a setpoint"
    yield from _of_publisher(meta)


def _of_publisher(meta: Metadata) -> Iterator[str]:
    by_integration = POINTS[meta.point_type].by_integration
    if by_integration and not meta.integration:
        yield "name the integration that publishes it"
    if meta.integration and not by_integration and meta.point_type not in {GENERIC, "Status", "Available"}:
        yield "its value comes from the BMS: name no integration"
    if meta.scope and meta.point_type not in {"HeartbeatTimestampBms", "HeartbeatEchoBms"}:
        yield "only a heartbeat of the BMS has a scope"
