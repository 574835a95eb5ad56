"""SunSpec model definitions: which point lies at which register of a model.

The definitions are the SunSpec Alliance's own files (Apache-2.0), as the package pysunspec2 carries them;
this module reads them and nothing else of it. A model is a list of points, then groups; a group may repeat as
often as one of the points says, or as often as the model's length has room for.

Devices disagree with the definitions, mostly by a few registers of length. What fits is used, and a sentence
says what did not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

from protocols.profile import ProfileError

HEADER: Final = 2  # registers of model id and length, which the length does not count
REPEATS_MAX: Final = 64  # strings of a battery, ports of an inverter; beyond it the length is nonsense
UNUSED: Final = ("pad",)


@dataclass(frozen=True)
class Place:
    """A point of a definition at `offset` registers from the model's first; `path` names its groups."""

    definition: Mapping[str, Any]
    offset: int
    path: tuple[str, ...]
    factor: str  # name of its scale factor as laid out: path and name; '' without one

    @property
    def end(self) -> int:
        size: int = self.definition["size"]
        return self.offset + size

    @property
    def key(self) -> str:
        return "/".join((*self.path, self.definition["name"]))


@dataclass
class _Layout:
    """What the walk over one definition has found so far."""

    end: int  # of the model, in registers from its first
    registers: Sequence[int]  # of the model's head: counts are read here
    places: list[Place] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@lru_cache(maxsize=64)  # a chain has a dozen models; the files are read once per process
def definition(model_id: int) -> Mapping[str, Any] | None:
    """The model's outermost group as the SunSpec Alliance publishes it; None for a model it does not know.

    Raises:
        ProfileError: pysunspec2, which carries the definitions, is not installed.
    """
    try:
        folder = files("sunspec2")
    except ModuleNotFoundError as error:
        raise ProfileError("profile sunspec needs the model definitions: pip install pysunspec2") from error
    file = folder / "models" / "json" / f"model_{model_id}.json"
    if not file.is_file():
        return None
    group: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))["group"]
    return group


def head_length(group: Mapping[str, Any]) -> int:
    """Registers from the model's first up to its first group: all counts lie there."""
    length: int = sum(point["size"] for point in group["points"])
    return length


def needs_head(group: Mapping[str, Any]) -> bool:
    """Whether some group repeats as often as a point says, so that the points must be read first."""
    return any(
        not isinstance(inner.get("count", 1), int) or needs_head(inner) for inner in group.get("groups", ())
    )


def lay_out(
    group: Mapping[str, Any], length: int, registers: Sequence[int] = ()
) -> tuple[list[Place], list[str]]:
    """Every point of a model that is `length` registers long, and what is wrong with that length.

    Args:
        group: the definition.
        length: as the device says it: registers after model id and length.
        registers: the model's head as read, from the model id on, for groups that repeat as a point says.
    """
    layout = _Layout(end=HEADER + length, registers=registers)
    end = _walk(group, 0, (), {}, layout)
    lost = [place for place in layout.places if place.end > layout.end]
    kept = [place for place in layout.places if place.end <= layout.end]
    if any(place.definition["type"] not in UNUSED for place in lost):
        layout.faults.append(f"{length} registers long where {end - HEADER} are defined; took what fits")
    elif end < layout.end:
        layout.faults.append(f"{layout.end - end} registers longer than defined; left the rest alone")
    return [place for place in kept if place.definition["type"] not in UNUSED], layout.faults


def _walk(
    group: Mapping[str, Any],
    offset: int,
    path: tuple[str, ...],
    factors: Mapping[str, str],
    layout: _Layout,
) -> int:
    """Append the places of `group` from `offset` on; returns where it ends. `factors` are those outside."""
    own = {p["name"]: "/".join((*path, p["name"])) for p in group["points"] if p["type"] == "sunssf"}
    factors = {**factors, **own}
    for point in group["points"]:
        layout.places.append(Place(point, offset, path, factors.get(str(point.get("sf", "")), "")))
        offset += point["size"]
    for inner in group.get("groups", ()):
        count = _count(inner, offset, layout)
        for index in range(1, count + 1):
            if offset >= layout.end:
                break
            indexed = (*path, inner["name"]) if "count" not in inner else (*path, inner["name"], str(index))
            offset = _walk(inner, offset, indexed, factors, layout)
    return offset


def _count(group: Mapping[str, Any], offset: int, layout: _Layout) -> int:
    count = group.get("count", 1)
    if isinstance(count, str):
        count = _read_count(count, layout)
    elif count == 0:  # as many as there is room for
        size = _size(group)
        count = (layout.end - offset) // size if size else 0
    if count > REPEATS_MAX:
        layout.faults.append(f"group {group['name']} {count} times; took the first {REPEATS_MAX}")
        return REPEATS_MAX
    return int(count)


def _read_count(name: str, layout: _Layout) -> int:
    for place in layout.places:
        if place.definition["name"] == name and not place.path and place.end <= len(layout.registers):
            count = layout.registers[place.offset]
            return 0 if count == 0xFFFF else count  # 0xFFFF: not implemented
    layout.faults.append(f"count {name} is not there; left its groups out")
    return 0


def _size(group: Mapping[str, Any]) -> int:
    inner: int = sum(_size(g) * g.get("count", 1) for g in group.get("groups", ()) if _fixed(g))
    return head_length(group) + inner


def _fixed(group: Mapping[str, Any]) -> bool:
    return isinstance(group.get("count", 1), int)
