"""From points of the image to points of the BMS bus: the mapping that DSX Exchange leaves to integrators.

Most of it follows from what is known already. A group's kind (`pdu`, `cdu`, `chiller` ...) says what object
it is; a point's unit and name say its point type, its unit on the bus and where in the object it sits (see
rules); a rack's power is the sum of its PDUs where nobody measures it; a meter in front of others serves
them, and a PDU its rack. What is wrong or missing is said in the configuration, by address, with wildcards:

    bms:
      objects:
        devices/cdu-1: {id: CDU-07, area: [Secondary]}
        devices/meter: {serves: [MSB-1]}
      points:
        devices/pdu-*/outlet_*: {publish: false}
        devices/cdu-1/t7_c: {type: LiquidTemperature, area: [Primary, Return]}

Nothing is left out in silence: `BusMap.left_out` names every point that is not told, and why.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final, TypeVar

from controller.facility.config import BmsConfig, BmsObjectConfig, BmsPointConfig, BmsRequestConfig
from controller.facility.dsx_bms.bus_map import BusMap, BusPoint, BusRequest, Source
from controller.facility.dsx_bms.rules import (
    KINDS,
    LEAKS,
    area_of,
    has_area,
    is_asked,
    is_setpoint,
    kind_of_profile,
    phase_of,
    sort_of,
    states_of,
    type_of,
    unit_of,
)
from controller.image.model import Group, Point
from protocols.bms import (
    OBJECTS,
    POINTS,
    BmsError,
    Metadata,
    metadata_topic,
    request_topic,
)
from protocols.bms.catalogue import GENERIC

T = TypeVar("T")

LAW_KINDS: Final = frozenset({"block", "facility", "node", "source", "feed"})
LAW_WHY: Final = "what the law decides is no equipment; give it an object's type if it shall be told"

ONE_PER_OBJECT: Final = (  # a second one would be another reading of the same thing: it is generic
    frozenset(OBJECTS["PowerMeter"] + OBJECTS["Rack"]) - {GENERIC, "PhaseCurrent"} | {"Status", "Available"}
)
RACK_POWER: Final = "RackPower"
REQUEST_TYPES: Final = {"LiquidTemperatureSpRequest": ("CDU", "GenericObject")}  # others are of racks

_AS_IS: Final = BmsPointConfig()
_AS_FOUND: Final = BmsObjectConfig()


def bus_map(config: BmsConfig, groups: Sequence[Group], site: str) -> BusMap:
    """The mapping; complaints instead of exceptions, so that one wrong entry costs itself alone.

    Args:
        config: corrections.
        groups: of the image.
        site: first part of every tag path.
    """
    return _Mapping(config, groups, config.site or site).made()


@dataclass(frozen=True)
class _Object:
    """What a group is on the bus."""

    group: Group
    type: str
    id: str
    name: str
    rack: str
    config: BmsObjectConfig


class _Mapping:
    """One making of the map."""

    def __init__(self, config: BmsConfig, groups: Sequence[Group], site: str) -> None:
        self._config, self._groups, self._site = config, groups, site
        self._points: list[BusPoint] = []
        self._left_out: dict[str, str] = {}
        self._complaints: list[str] = []
        self._absent: dict[str, str] = {}
        self._of_racks: dict[str, set[str]] = {}  # point types that are told already
        self._used: set[str] = set()  # patterns of the configuration that fitted something
        self._objects = [one for group in groups if (one := self._object(group)) is not None]

    def made(self) -> BusMap:
        for one in self._objects:
            self._map_object(one)
        self._add_racks()
        requests = tuple(self._requests())
        self._complain_of_objects()
        self._complain_of_patterns()
        left_out = {
            address: why for address, why in self._left_out.items() if address not in self._told_addresses()
        }
        return BusMap(tuple(self._points), requests, left_out, tuple(self._complaints), self._absent)

    # --- objects ----------------------------------------------------------------------------------------

    def _object(self, group: Group) -> _Object | None:
        config = self._found(self._config.objects, group.path, _AS_FOUND)
        kind = group.about.get("kind", "") or (
            group.kind if group.kind != "device" else kind_of_profile(group.about.get("profile", ""))
        )
        why = ""
        if not config.publish:
            why = "publish: false"
        elif config.type is None and kind in LAW_KINDS:
            why = LAW_WHY
        elif config.type is None and kind not in KINDS:
            said = f"kind {kind!r} is none that the bus has" if kind else "no kind is given"
            why = f"{said}; give the device one of {', '.join(KINDS)}, or an object's type"
        if config.type is not None and config.type not in OBJECTS:
            why = f"no object type {config.type!r}{_close(config.type, OBJECTS)}"
            self._complaints.append(f"objects: {group.path}: {why}")
        if why:
            self._left_out |= {f"{group.path}/{point.name}": why for point in group.points}
            return None
        tail = group.path.rpartition("/")[2]
        return _Object(
            group,
            config.type or KINDS[kind],
            config.id or tail,
            config.name or group.title or tail,
            config.rack or group.about.get("rack", ""),
            config,
        )

    def _serves(self, one: _Object) -> tuple[str, ...]:
        """One step towards the racks."""
        if one.config.serves is not None:
            return one.config.serves
        if one.type == "Rack":
            return ()
        if one.rack:
            return (self._rack_id(one.rack),)
        if one.type != "PowerMeter":
            return ()
        feed = one.group.about.get("feed", "")
        meters = [other for other in self._objects if other.type == "PowerMeter" and other.rack]
        below = [other.id for other in meters if feed in {"", other.group.about.get("feed", "")}]
        return tuple(below) if below and one.group.kind in {"device", "feed"} else ()

    def _rack_config(self, rack: str) -> BmsObjectConfig:
        return self._found(self._config.objects, f"racks/{rack}", _AS_FOUND)

    def _rack_id(self, rack: str) -> str:
        return self._rack_config(rack).id or rack

    def _rack_name(self, rack: str) -> str:
        return self._rack_config(rack).name or rack

    # --- points -----------------------------------------------------------------------------------------

    def _map_object(self, one: _Object) -> None:
        taken: set[str] = set()
        for point in one.group.points:
            address = f"{one.group.path}/{point.name}"
            config = self._found(self._config.points, address, _AS_IS)
            if not config.publish:
                self._left_out[address] = "publish: false"
            elif point.text:
                self._left_out[address] = "a text; the bus carries numbers"
            else:
                self._map_point(one, point, config, taken)
        if one.rack and one.type not in {"Rack", "PowerMeter"}:
            self._map_into_rack(one)

    def _map_point(self, one: _Object, point: Point, config: BmsPointConfig, taken: set[str]) -> None:
        address = f"{one.group.path}/{point.name}"
        allowed = [name for name in OBJECTS.get(one.type, ()) if not is_asked(name)]
        point_type = config.type or type_of(point, [name for name in allowed if name not in taken])
        if point_type == GENERIC and config.type is None and not self._config.generic:
            self._left_out[address] = "generic: false"
            return
        if not point_type:
            self._left_out[address] = f"a {one.type} has no point type for it"
            return
        if point_type in ONE_PER_OBJECT:
            taken.add(point_type)
        self._add(one, point, config, point_type)

    def _map_into_rack(self, one: _Object) -> None:
        """What a unit in a rack measures is the rack's, too; of several units the first counts."""
        taken = self._of_racks.setdefault(
            one.rack, {RACK_POWER}
        )  # that is not the power of what stands in it
        rack = _Object(
            one.group, "Rack", self._rack_id(one.rack), self._rack_name(one.rack), one.rack, _AS_FOUND
        )
        for point in one.group.points:
            config = self._found(self._config.points, f"{one.group.path}/{point.name}", _AS_IS)
            allowed = [name for name in OBJECTS["Rack"] if name not in taken and not is_asked(name)]
            point_type = type_of(point, allowed)
            if config.publish and not point.text and point_type:
                taken.add(point_type)
                plain = BmsPointConfig(scale=config.scale, nonzero=config.nonzero, deadband=config.deadband)
                self._add(rack, point, plain, point_type)

    def _add_racks(self) -> None:
        """The power of racks that nobody measures: the sum of their PDUs."""
        measured = {point.meta.id for point in self._points if point.meta.point_type == RACK_POWER}
        powers: dict[str, list[BusPoint]] = {}
        racks = {one.group.path: one.rack for one in self._objects if one.type == "PowerMeter" and one.rack}
        for point in self._points:
            rack = racks.get(point.sources[0].path)
            if rack is not None and point.meta.point_type == "ActivePower":
                powers.setdefault(rack, []).append(point)
        for rack, parts in powers.items():
            if self._rack_id(rack) in measured or not self._rack_config(rack).publish:
                continue
            try:
                self._points.append(self._rack_power(rack, parts))
            except BmsError as error:
                self._complaints.append(f"rack {rack}: {error}")

    def _rack_power(self, rack: str, parts: Sequence[BusPoint]) -> BusPoint:
        """Raises BmsError."""
        return BusPoint(
            meta=Metadata(
                object_type="Rack",
                point_type=RACK_POWER,
                id=self._rack_id(rack),
                name=self._rack_name(rack),
                unit=POINTS[RACK_POWER].unit,
            ),
            tag=f"{self._site}/racks/{rack}/power_w",
            sources=tuple(part.sources[0] for part in parts),
            scale=parts[0].scale,
            deadband=max(part.deadband for part in parts),
        )

    def _bus_point(self, one: _Object, point: Point, config: BmsPointConfig, point_type: str) -> BusPoint:
        """Raises BmsError."""
        if point_type not in POINTS:
            raise BmsError(f"no point type {point_type!r}{_close(point_type, POINTS)}")
        unit, factor = unit_of(point, point_type)
        states = states_of(point, point_type)
        area = config.area if config.area is not None else area_of(point, point_type, one.type)
        part_of = one.config.part_of or ""
        meta = Metadata(
            object_type=one.type,
            point_type=point_type,
            name="" if part_of else one.name,
            id="" if part_of else one.id,
            unit="" if states else unit,
            states=states,
            serves=() if part_of else self._serves(one),
            associate_id=part_of,
            area=(*one.config.area, *area) if point_type == GENERIC or has_area(one.type) else (),
            phase=config.phase or phase_of(point, point_type),
            is_setpoint=is_setpoint(point, point_type) if config.setpoint is None else config.setpoint,
        )
        deadband = point.deadband if config.deadband is None else config.deadband
        scale = (1.0 if states else factor) * config.scale
        return BusPoint(
            meta=meta,
            tag=f"{self._site}/{self._place(one)}/{point.name}",
            sources=(Source(one.group.path, point.name),),
            scale=scale,
            nonzero=config.nonzero or (sort_of(point) == "bits" and meta.point_type in LEAKS),
            deadband=deadband * abs(scale),
        )

    def _place(self, one: _Object) -> str:
        """A tag path is one point's alone: what is told of the device and of its rack has two."""
        path = one.group.path
        return f"racks/{one.rack}/{path.rpartition('/')[2]}" if one.type == "Rack" and one.rack else path

    def _add(self, one: _Object, point: Point, config: BmsPointConfig, point_type: str) -> None:
        address = f"{one.group.path}/{point.name}"
        try:
            self._points.append(self._bus_point(one, point, config, point_type))
        except BmsError as error:
            self._left_out[address] = str(error)
            self._complaints.append(f"points: {address}: {error}")

    def _told_addresses(self) -> set[str]:
        return {str(source) for point in self._points for source in point.sources}

    # --- requests ---------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[BusRequest]:
        for integration, asked in self._config.integrations.items():
            for config in asked.requests:
                try:
                    yield self._request(integration, config)
                except BmsError as error:
                    text = f"integrations.{integration}: {config.point} at {config.at}: {error}"
                    self._complaints.append(text)
                    if config.writes is not None and config.writes not in self._addresses():
                        self._absent[text] = config.writes

    def _request(self, integration: str, config: BmsRequestConfig) -> BusRequest:
        """Raises BmsError."""
        if config.writes is not None and config.writes not in self._addresses():
            raise BmsError(f"writes: no point {config.writes}{_close(config.writes, self._addresses())}")
        one = next((one for one in self._objects if one.group.path == config.at), None)
        if config.point.startswith("Rack"):
            rack = config.at.removeprefix("racks/")
            if rack == config.at or rack not in self._rack_names():
                raise BmsError(f"at: no rack {config.at}; write racks/NAME")
            object_type, name, id_ = "Rack", self._rack_name(rack), self._rack_id(rack)
        elif one is None or one.type not in REQUEST_TYPES[config.point]:
            kinds = " or ".join(REQUEST_TYPES[config.point])
            raise BmsError(f"at: {config.at} is no {kinds}{_close(config.at, self._groups_known())}")
        else:
            object_type, name, id_ = one.type, one.name, one.id
        point = POINTS[config.point]
        meta = Metadata(
            object_type=object_type,
            point_type=config.point,
            name=name,
            id=id_,
            unit=point.unit,
            states=point.states,
            integration=integration,
        )
        of = (object_type, config.point, f"{self._site}/{config.at}/{config.point}")
        return BusRequest(
            meta=meta,
            tag=of[2],
            config=config,
            topic=request_topic(integration, *of),
            metadata_topic=metadata_topic(*of),
        )

    def _rack_names(self) -> set[str]:
        racks = {one.rack for one in self._objects if one.rack}
        return racks | {group.path.removeprefix("racks/") for group in self._groups if group.kind == "rack"}

    # --- complaints -------------------------------------------------------------------------------------

    def _found(self, configs: Mapping[str, T], address: str, otherwise: T) -> T:
        for pattern, config in configs.items():
            if fnmatchcase(address, pattern):
                self._used.add(pattern)
                return config
        return otherwise

    def _addresses(self) -> set[str]:
        return {f"{group.path}/{point.name}" for group in self._groups for point in group.points}

    def _groups_known(self) -> list[str]:
        return [group.path for group in self._groups]

    def _complain_of_patterns(self) -> None:
        """Whatever fits nothing is a mistake, or a device that has not been seen yet."""
        for section, patterns, known in (
            ("objects", self._config.objects, self._groups_known()),
            ("points", self._config.points, self._addresses()),
        ):
            for pattern in patterns:
                if pattern not in self._used:
                    text = f"{section}: {pattern}: nothing fits{_close(pattern, known)}"
                    self._complaints.append(text)
                    if section == "points":
                        self._absent[text] = pattern

    def _complain_of_objects(self) -> None:
        """Two objects of one id would be one on the bus."""
        named = {(one.id, one.group.path) for one in self._objects if not one.config.part_of}
        for id_, count in Counter(id_ for id_, _ in named).items():
            if count > 1:
                paths = ", ".join(sorted(path for one, path in named if one == id_))
                self._complaints.append(
                    f"objects: {paths} share the id {id_!r}; give each an `id` of its own"
                )


def _close(name: str, known: Iterable[str]) -> str:
    """A suggestion, for the end of a sentence."""
    close = get_close_matches(name, list(known), 1)
    return f"; {close[0]}?" if close else ""
