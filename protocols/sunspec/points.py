"""From places of the standard to points of a profile."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from protocols.profile import TEXT_MAX_REGISTERS, Point
from protocols.sunspec import names
from protocols.sunspec.control import COMMANDS
from protocols.sunspec.definitions import HEADER, Place

EXPONENT_MAX: Final = 10  # SunSpec Device Information Model Specification V1.1: sunssf is -10..10
RATINGS: Final = (120, 121, 702)  # nameplate and settings: nothing in them moves by itself
TITLE_MAX: Final = 120  # characters of the standard's label that a screen has room for
_POLL_RANK: Final = ("fast", "slow", "once")


def points_of(model_id: int, prefix: str, address: int, places: Sequence[Place]) -> dict[str, Point]:
    """Points by the standard's key (groups and name), addresses on the wire. `prefix` starts their names."""
    points: dict[str, Point] = {}
    taken: set[str] = set()
    for place in places:
        if place.offset < HEADER or place.definition["type"] not in names.TYPES:
            continue  # id and length are the chain's; ip and MAC addresses are no values
        point = _point(model_id, prefix, address, place)
        if point.name in taken:
            point = replace(point, name=names.plain_name(prefix, place.path, _own_name(place), point.unit))
        taken.add(point.name)
        points[place.key] = point
    return _with_factors(points, places)


def _point(model_id: int, prefix: str, address: int, place: Place) -> Point:
    definition = place.definition
    kind, sentinels = names.TYPES[definition["type"]]
    unit, scale = names.unit_of(definition)
    sf = definition.get("sf")
    factor = definition["type"] == "sunssf"
    return Point(
        name=names.point_name(prefix, place.path, _own_name(place), unit),
        unit=unit,
        title=_title(definition, unit),
        access="rw" if definition.get("access") == "RW" else "r",
        table="holding",
        address=address + place.offset,
        type=kind,
        registers=min(definition["size"], TEXT_MAX_REGISTERS) if kind == "string" else 0,
        scale=scale * 10.0**sf if isinstance(sf, int) else scale,
        sentinels=sentinels,
        lowest=-EXPONENT_MAX if factor else -float("inf"),
        highest=EXPONENT_MAX if factor else float("inf"),
        enum=names.states_of(definition) if unit == "enum" else {},
        bits=names.bits_of(definition) if unit == "bits" else {},
        poll=_poll(model_id, definition),
        read_back=_own_name(place) not in COMMANDS,
    )


def _own_name(place: Place) -> str:
    name: str = place.definition["name"]
    return name


def _title(definition: Mapping[str, Any], unit: str) -> str:
    title = str(definition.get("label") or definition["name"])
    units = definition.get("units")
    if units and unit == "count":  # a unit that the house does not know must not get lost
        title = f"{title} [{units}]"
    return title[:TITLE_MAX]


def _poll(model_id: int, definition: Mapping[str, Any]) -> Any:
    if definition.get("static") == "S" or definition["type"] == "string":
        return "once"
    return "slow" if definition.get("access") == "RW" or model_id in RATINGS else "fast"


def _with_factors(points: dict[str, Point], places: Sequence[Place]) -> dict[str, Point]:
    """Link values to their scale factors; a factor is read as often as the fastest value that rests on it.

    Factors are read with their values, not once: inverters change them while they run.
    """
    ranks: dict[str, int] = {}
    for place in places:
        if place.key in points and place.factor in points:
            rank = _POLL_RANK.index(points[place.key].poll)
            ranks[place.factor] = min(rank, ranks.get(place.factor, len(_POLL_RANK) - 1))
            factor = points[place.factor].name
            points[place.key] = replace(points[place.key], scale_factor=factor)
    for key, rank in ranks.items():
        poll: Any = _POLL_RANK[rank]
        points[key] = replace(points[key], poll=poll)
    return points
