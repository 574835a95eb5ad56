"""What the bus is told, as data: points of ours, requests of others, and what is left out.

Whoever publishes, whoever shows it and whoever tests it read the same `BusMap`. `left_out` names every point
that is not told, with its reason; `rows` is all of it, for people.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from controller.facility.config import BmsRequestConfig
from protocols.bms import Metadata, metadata_topic, value_topic

GROUPS_NAMED_MAX: Final = 5  # of those that have a reason in common


class Source(NamedTuple):
    """A point of the image."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class BusPoint:
    """A point that we tell.

    Attributes:
        meta: what it is.
        tag: its tag path.
        sources: what is added up.
        scale: from their unit to the bus's.
        nonzero: 1 is told for any number but 0.
        deadband: in the bus's unit.
    """

    meta: Metadata
    tag: str
    sources: tuple[Source, ...]
    scale: float = 1.0
    nonzero: bool = False
    deadband: float = 0.0
    value_topic: str = field(init=False)
    metadata_topic: str = field(init=False)

    def __post_init__(self) -> None:
        of = (self.meta.object_type, self.meta.point_type, self.tag)
        object.__setattr__(self, "value_topic", value_topic(*of))
        object.__setattr__(self, "metadata_topic", metadata_topic(*of))


@dataclass(frozen=True, kw_only=True)
class BusRequest:
    """A point that an integration tells us."""

    meta: Metadata
    tag: str
    config: BmsRequestConfig
    topic: str
    metadata_topic: str


class BusMap(NamedTuple):
    """All of the bus.

    Attributes:
        points, requests: by their configuration or by rule.
        left_out: address -> why it is not told.
        complaints: what is wrong with the configuration, one sentence each.
        absent: complaint -> point, or pattern of points, that it misses; a device may turn out to have it.
    """

    points: tuple[BusPoint, ...] = ()
    requests: tuple[BusRequest, ...] = ()
    left_out: Mapping[str, str] = {}
    complaints: tuple[str, ...] = ()
    absent: Mapping[str, str] = {}


class Row(NamedTuple):
    """One line of the listing."""

    address: str
    topic: str  # without `BMS/v1/PUB/Value/`; "" = not told
    unit: str
    note: str


def rows(told: BusMap) -> Iterator[Row]:
    """Every point, for people."""
    for point in told.points:
        meta = point.meta
        note = ", ".join((*meta.area, *meta.serves)) or meta.associate_id
        unit = meta.unit or "/".join(meta.states.values())
        yield Row(" + ".join(map(str, point.sources)), _short(point.value_topic), unit, note)
    for request in told.requests:
        writes = request.config.writes or "shown and said"
        yield Row(
            writes, request.topic.partition("/v1/")[2], request.meta.unit, f"from {request.meta.integration}"
        )
    for address, why in told.left_out.items():
        yield Row(address, "", "", f"not told: {why}")


def reasons(left_out: Mapping[str, str], paths: Collection[str]) -> list[tuple[str, str]]:
    """Why points are not told, the most frequent reason first, and how many of which groups, in words.

    Args:
        left_out: as in `BusMap`.
        paths: of all groups.
    """
    groups_by_why: dict[str, Counter[str]] = {}
    for address, why in left_out.items():
        first, second, *_ = address.split("/")
        path = f"{first}/{second}"
        groups_by_why.setdefault(why, Counter())[path if path in paths else first] += 1
    most_first = sorted(groups_by_why.items(), key=lambda one: -one[1].total())
    return [(why, _counted(groups)) for why, groups in most_first]


def _counted(groups: Counter[str]) -> str:
    named = [f"{count} of {group}" for group, count in groups.most_common(GROUPS_NAMED_MAX)]
    others = groups.total() - sum(count for _, count in groups.most_common(GROUPS_NAMED_MAX))
    return ", ".join([*named, f"{others} of others"] if others else named)


def _short(topic: str) -> str:
    return topic.partition("/PUB/Value/")[2]
