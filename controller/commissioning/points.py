"""What a profile knows: its points with address, type, range and evidence, or the list of all profiles."""

from collections.abc import Iterator
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.commissioning.shown import expected, said, wanted
from controller.commissioning.shown import unit as unit_of
from protocols import codec
from protocols.profile import Point, Profile, builtin_profiles, load_profile

BY_IMAGE: Final = "told by the controller"  # of a device that says itself where its points are


def address(point: Point) -> str:
    """`holding 12296..12297`; of an OPC UA point its node; of what the image tells nothing of the kind."""
    if point.node:
        return point.node
    if point.address < 0:
        return BY_IMAGE
    last = point.address + codec.width(point) - 1
    return f"{point.table} {point.address}" + (f"..{last}" if last > point.address else "")


def form(point: Point) -> str:
    """`u16 x 0.1`, with what is odd about it: the order of its words, a mask, a scale factor."""
    if point.node:
        return "method" if point.method else "variable"
    if point.address < 0:
        return ""
    parts = [f"{point.type}[{point.registers}]" if point.type == "string" else point.type]
    if point.scale != 1.0:
        parts.append(f"x {point.scale:g}")
    if point.scale_factor:
        parts.append(f"x 10^{point.scale_factor}")
    if point.offset:
        parts.append(f"{point.offset:+g}")
    if point.mask:
        parts.append(f"& {point.mask:#06x}")
    if point.word_order == "little":
        parts.append("low word first")
    if point.byte_order == "little":
        parts.append("low byte first")
    return " ".join(parts)


# --- one profile --------------------------------------------------------------------------------------------


def as_json(profile: Profile) -> dict[str, Any]:
    return {
        "profile": profile.name,
        "title": profile.title,
        "protocol": profile.protocol,
        "document": profile.provenance.document,
        "page": profile.provenance.page,
        "evidence": profile.provenance.evidence,
        "note": profile.provenance.note,
        "identity": [{"point": one.point, "wanted": one.wanted} for one in profile.identity],
        "points": [_row(point) for point in profile.points.values()],
    }


def _row(point: Point) -> dict[str, Any]:
    return {
        "point": point.name,
        "address": address(point),
        "type": form(point),
        "unit": point.unit,
        "expected": expected(point),
        "access": point.access,
        "poll": point.poll,
        "title": point.title,
    }


def render(profile: Profile) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("point", "address", "type", "unit", "expected", "access", "poll", "title"):
        table.add_column(column, overflow="fold", no_wrap=column == "point")
    for point in profile.points.values():
        cells = (
            address(point),
            form(point),
            unit_of(point) or point.unit,
            expected(point),
            point.access,
            point.poll,
            point.title,
        )
        table.add_row(
            Text(point.name, style="bold yellow" if point.writable else "bold"),
            *map(Text, cells),
        )
    return Group(*_head(profile), table, *_control(profile))


def _head(profile: Profile) -> Iterator[Text]:
    yield Text.assemble((profile.name, "bold"), f"  {profile.title}")
    source = profile.provenance
    yield Text(f"evidence: {source.evidence}; {source.document}; {source.page}", style="dim")
    if source.note:
        yield Text(source.note, style="dim")
    for one in profile.identity:
        yield Text(f"checked before use: {one.point} must be {wanted(profile, one)}", style="dim")
    yield Text("")


def _control(profile: Profile) -> Iterator[Text]:
    """How a command is kept, and what ends it."""
    control = profile.control
    if control is None:
        return
    yield Text("")
    for one in control.requires:
        yield Text(f"a command needs {one.point} to be {wanted(profile, one)}")
    for setting in control.arm:
        value = said(profile.points[setting.point], setting.value)
        yield Text(f"written before the first command: {setting.point} = {value}")
    if control.heartbeat is not None:
        yield Text(f"kept alive by {control.heartbeat.point}, every {control.heartbeat.period_s:g} s")
    if control.reversion is not None:
        yield Text(
            f"falls back by itself {control.reversion.seconds:g} s after {control.reversion.timer_point}"
            " was written last"
        )


# --- all of them --------------------------------------------------------------------------------------------


def all_as_json() -> dict[str, Any]:
    return {
        "profiles": [
            {
                "profile": profile.name,
                "title": profile.title,
                "protocol": profile.protocol,
                "points": len(profile.points),
                "evidence": profile.provenance.evidence,
            }
            for profile in map(load_profile, builtin_profiles())
        ]
    }


def render_all() -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("profile", "device", "protocol", "points", "evidence"):
        table.add_column(column, justify="right" if column == "points" else "left")
    for row in all_as_json()["profiles"]:
        table.add_row(
            Text(row["profile"], style="bold"),
            *(Text(str(row[column])) for column in ("title", "protocol", "points", "evidence")),
        )
    return Group(table, Text("\nsunspec: the device says itself what it has", style="dim"))
