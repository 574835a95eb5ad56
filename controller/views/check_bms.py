"""`powerblock check`, the part of the DSX BMS bus: what each device is there, what of it is told or not.

Devices of which the same is told share a branch, and points that differ by a number alone share a word
(`outlet_*_power_w (24)`), so that a hall fits a screen. As JSON every point has its own row, with its topic.
What only the running controller knows, the points of SunSpec devices, is said to be missing here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from rich.text import Text
from rich.tree import Tree

from controller.config import BlockConfig, GatewayConfig
from controller.facility.config import BmsRequestConfig
from controller.facility.dsx_bms.bus_map import BusMap, BusPoint, rows
from controller.facility.dsx_bms.mapping import bus_map
from controller.gateway import catalogue
from controller.image.model import Group
from protocols.bms.catalogue import GENERIC

GROUPS_SHOWN_MAX: Final = 100
NAMES_SHOWN_MAX: Final = 20  # of devices alike
UNLESS: Final = "; unless it turns out at run time"
NOT_TOLD: Final = "not told"
AT_RUN_TIME: Final = "its points are known when the controller has read it: `powerblock map` shows them then"


def branches(config: GatewayConfig | BlockConfig) -> Iterator[Tree | Text]:
    """Complaints, what integrations may ask, sums of racks, then every group of the image."""
    groups, told = _mapped(config)
    for sentence in told.complaints:
        is_open = _may_turn_out(told.absent.get(sentence, ""), groups)
        yield Text.assemble(("! ", "bold yellow"), sentence, UNLESS if is_open else "")
    yield from _integrations(config, told)
    for point in told.points:
        if len(point.sources) > 1:
            parts = " + ".join(map(str, point.sources))
            yield Text.assemble(
                (point.meta.id, "bold"), f"  {point.meta.object_type}: {parts} as {_as(point)}"
            )
    alike: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        alike.setdefault(tuple(_sentences(group, told)), []).append(_named(group, told))
    for sentences, names in list(alike.items())[:GROUPS_SHOWN_MAX]:
        more = [f"… {len(names) - NAMES_SHOWN_MAX} more"] if len(names) > NAMES_SHOWN_MAX else []
        branch = Tree(Text(", ".join(names[:NAMES_SHOWN_MAX] + more), style="bold"), guide_style="dim")
        for sentence in sentences:
            branch.add(Text(sentence, style="yellow" if sentence.startswith(NOT_TOLD) else ""))
        yield branch
    if len(alike) > GROUPS_SHOWN_MAX:
        yield Text(f"… {len(alike) - GROUPS_SHOWN_MAX} more; --json lists all", style="dim")


def as_json(config: GatewayConfig | BlockConfig) -> dict[str, Any]:
    groups, told = _mapped(config)
    return {
        "points": [row._asdict() for row in rows(told)],
        "complaints": told.complaints,
        "known_at_run_time": [group.path for group in groups if not group.points],
    }


def mistakes(config: GatewayConfig | BlockConfig) -> Iterator[str]:
    """Complaints that no device can turn out to clear; `powerblock serve` logs them and goes on without."""
    groups, told = _mapped(config)
    for sentence in told.complaints:
        if not _may_turn_out(told.absent.get(sentence, ""), groups):
            yield f"facility.bms: {sentence}"


def _may_turn_out(absent: str, groups: Iterable[Group]) -> bool:
    """Whether a point, or a pattern of points, may be of a device that has not said yet what it has."""
    levels = absent.split("/")
    path = "/".join(levels[:2]) if len(levels) > 2 else absent
    return any(
        fnmatchcase(group.path, path) or ("*" in path and path == absent)
        for group in groups
        if not group.points
    )


def _mapped(config: GatewayConfig | BlockConfig) -> tuple[Sequence[Group], BusMap]:
    groups = catalogue(config)
    assert config.facility.bms is not None
    return groups, bus_map(config.facility.bms, groups, config.block)


def _integrations(config: GatewayConfig | BlockConfig, told: BusMap) -> Iterator[Text]:
    """What others may ask."""
    assert config.facility.bms is not None
    for name, integration in config.facility.bms.integrations.items():
        if not integration.requests:
            yield Text.assemble((name, "bold"), "  may ask nothing; its heartbeat is listened to")
    for request in told.requests:
        yield Text.assemble((request.meta.integration, "bold"), f"  may ask {_asked(request.config)}")


def _sentences(group: Group, told: BusMap) -> Iterator[str]:
    """What becomes of its points."""
    if not group.points:
        yield AT_RUN_TIME
    yield from _told(group, told.points)
    yield from _left_out(group, told.left_out)


def _told(group: Group, points: Iterable[BusPoint]) -> Iterator[str]:
    """As what."""
    objects: dict[str, list[str]] = {}
    for point in points:
        source, *others = point.sources
        if others or source.path != group.path:
            continue
        if point.meta.point_type == GENERIC:
            objects.setdefault(f"{point.meta.object_type}, as {GENERIC}", []).append(source.name)
        else:
            objects.setdefault(point.meta.object_type, []).append(f"{source.name} as {_as(point)}")
    for words, names in objects.items():
        yield f"{words}: {', '.join(_folded(names))}"


def _left_out(group: Group, left_out: Mapping[str, str]) -> Iterator[str]:
    """Why not."""
    names_by_why: dict[str, list[str]] = {}
    for point in group.points:
        if why := left_out.get(f"{group.path}/{point.name}"):
            names_by_why.setdefault(why, []).append(point.name)
    for why, names in names_by_why.items():
        is_all = len(names) == len(group.points)
        yield f"{NOT_TOLD}: {'all of it' if is_all else ', '.join(_folded(names))} ({why})"


def _asked(request: BmsRequestConfig) -> str:
    """For what, and how far."""
    what = f"{request.point} at {request.at}"
    if request.writes is None:
        return f"{what}: only shown and said"
    rate = "" if request.rate_per_s is None else f", {request.rate_per_s:g} per s"
    return f"{what}: writes {request.writes}, {request.lowest:g} to {request.highest:g}{rate}"


def _as(point: BusPoint) -> str:
    return f"{point.meta.point_type} {point.meta.unit}".rstrip()


def _named(group: Group, told: BusMap) -> str:
    """Its name, and its id on the bus where that is another."""
    name = group.path.removeprefix("devices/")
    own = (point.meta for point in told.points if point.sources[0].path == group.path)
    id_ = next((meta.id for meta in own if meta.object_type != "Rack"), "")
    return f"{name} ({id_})" if id_ and id_ != group.path.rpartition("/")[2] else name


def _folded(names: Sequence[str]) -> Iterator[str]:
    """Those that differ by their numbers alone, as one."""
    patterns = [re.sub(r"\d+", "*", name) for name in names]
    counts = Counter(patterns)
    seen = dict(zip(patterns, names, strict=True))
    for pattern, name in seen.items():
        yield name if counts[pattern] == 1 else f"{pattern} ({counts[pattern]})"
