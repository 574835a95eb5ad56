"""The point-to-point check of a block: every device and every point of it, read once and judged.

A point passes when its device is the one that its profile names, answers, and says something plausible. What
came and is doubted, because the controller takes it for frozen or because it is hardly true, has neither
passed nor failed: somebody must look. What a SunSpec device says that it does not have is not fitted, and no
fault. What no program can know is left to the person with the instrument: the sheet has columns for the
reading, initials and date, and fields to sign. One device after the other, one connection at a time; a device
that does not answer fails with the reason, and costs the others nothing. Of a running block the values come
from its controller.

The sheet names the file that it was made of by its digest, so that a signed sheet can be held against the
configuration that runs years later.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.commissioning.points import address, form
from controller.commissioning.shown import NOT_FITTED, Shown, bad, expected
from controller.commissioning.shown import unit as unit_of
from controller.commissioning.sources import source_of
from controller.commissioning.target import Target, ToolError, loaded, of_block
from controller.config import devices
from controller.gateway_config import Device, DeviceConfig
from controller.image.model import Quality
from protocols.profile import Point, Profile
from protocols.reading import DeviceError

DIGEST_CHARS: Final = 16
PASS, FAIL, DOUBT, BY_HAND = "pass", "fail", "doubt", "by hand"
VERDICTS: Final = (PASS, FAIL, DOUBT, NOT_FITTED, BY_HAND)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One point on the sheet."""

    number: int
    device: str
    point: str
    title: str
    address: str
    form: str
    expected: str
    access: str
    read: str
    unit: str
    raw: str
    quality: str
    verdict: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """One device on the sheet. `fault`: why none of its points can pass; "" = none."""

    name: str
    title: str
    place: str
    namespaces: str
    where: str
    profile: str
    evidence: str
    fault: str
    lines: tuple[Line, ...]

    def count(self, verdict: str) -> int:
        return sum(line.verdict == verdict for line in self.lines)


@dataclass
class Sheet:
    """What has been checked so far; complete or not."""

    block: str
    file: str
    digest: str
    program: str
    began_utc: str
    parts: list[Part] = field(default_factory=list)
    complete: bool = False

    def count(self, verdict: str) -> int:
        return sum(part.count(verdict) for part in self.parts)

    @property
    def well(self) -> bool:
        """A doubt is to be cleared before anybody signs."""
        return self.complete and not self.count(FAIL) and not self.count(DOUBT)


def begun(path: Path, names: Sequence[str]) -> tuple[Sheet, list[Target], list[Device]]:
    """The empty sheet of a block, and what is to be checked. Raises ToolError."""
    config = loaded(path)
    configured = devices(config)
    known = [device.name for device in configured]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ToolError(f"{path.name}: no device {', '.join(unknown)}; it has {', '.join(known)}")
    wanted = [device for device in configured if not names or device.name in names]
    if not wanted:
        raise ToolError(f"{path.name}: no devices; there is nothing to check")
    sheet = Sheet(
        block=config.block,
        file=path.name,
        digest=hashlib.sha256(path.read_bytes()).hexdigest()[:DIGEST_CHARS],
        program=f"powerblock {_version()}",
        began_utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return sheet, [of_block(config, device) for device in wanted], wanted


def _version() -> str:
    try:
        return version("powerblock")
    except PackageNotFoundError:
        return "(not installed)"


async def checkout(
    sheet: Sheet,
    targets: Iterable[Target],
    configured: Iterable[Device],
    on_step: Callable[[str], None] = lambda _: None,
) -> None:
    """Fill the sheet, so that an interrupted check still shows what it has. Raises ToolError."""
    for target, device in zip(targets, configured, strict=True):
        on_step(target.name)
        sheet.parts.append(await _part(target, device, sum(len(part.lines) for part in sheet.parts)))
    sheet.complete = True


async def _part(target: Target, device: Device, number: int) -> Part:
    source = source_of(target)
    fault, shown = "", {}
    profile = target.profile()
    points = _configured(target.config, profile)
    try:
        await source.open()
        profile = getattr(source, "profile", profile)
        told = source.points(target.config.points)
        points = points or told
        shown = await source.take(told)
        fault = source.stranger
    except (DeviceError, ToolError) as error:
        fault = str(error)
    finally:
        await source.close()
    return Part(
        name=device.name,
        title=target.config.title or ("" if profile is None else profile.title),
        place=", ".join(filter(None, (device.where, device.kind, device.rack and f"rack {device.rack}"))),
        namespaces=", ".join(dict.fromkeys(point.namespace_uri for point in points if point.namespace_uri)),
        where=f"{target.where}; {source.where}" if source.by_controller else target.where,
        profile=target.config.profile,
        evidence="told by the device" if profile is None else profile.provenance.evidence,
        fault=fault,
        lines=tuple(
            _line(number + index, target, point, shown, fault) for index, point in enumerate(points, start=1)
        ),
    )


def _configured(config: DeviceConfig, profile: Profile | None) -> tuple[Point, ...]:
    """What must be on the sheet, whatever the device says: commands that cannot be read as well."""
    return () if profile is None else profile.select(config.points)


def _line(number: int, target: Target, point: Point, shown: dict[str, Shown], fault: str) -> Line:
    one = shown.get(point.name) or bad(point, fault)
    rule = target.config.writes.get(point.name)
    by_hand = not point.readable
    why = "a command: cannot be read, try it with `powerblock write`" if by_hand else fault or one.why
    return Line(
        number=number,
        device=target.name,
        point=point.name,
        title=point.title,
        address=address(point),
        form=form(point),
        expected=expected(point),
        access="r" if rule is None else f"write {rule.lowest:g} to {rule.highest:g}",
        read=one.came,
        unit=unit_of(point),
        raw=one.raw,
        quality="" if by_hand else one.standing,
        verdict=BY_HAND if by_hand else FAIL if fault else _verdict(one),
        why=why,
    )


def _verdict(one: Shown) -> str:
    if one.absent:
        return NOT_FITTED
    if one.quality is Quality.BAD:
        return FAIL
    return DOUBT if one.why or one.quality is not Quality.GOOD else PASS


# --- on a terminal ------------------------------------------------------------------------------------------


def as_json(sheet: Sheet) -> dict[str, Any]:
    return {
        "block": sheet.block,
        "file": sheet.file,
        "digest": sheet.digest,
        "began_utc": sheet.began_utc,
        "complete": sheet.complete,
        "passed": sheet.count(PASS),
        "failed": sheet.count(FAIL),
        "doubted": sheet.count(DOUBT),
        "not_fitted": sheet.count(NOT_FITTED),
        "by_hand": sheet.count(BY_HAND),
        "devices": [
            {
                "device": part.name,
                "where": part.where,
                "fault": part.fault,
                "points": [
                    {
                        "point": line.point,
                        "value": line.read,
                        "unit": line.unit,
                        "raw": line.raw,
                        "quality": line.quality,
                        "verdict": line.verdict,
                        "why": line.why,
                    }
                    for line in part.lines
                ],
            }
            for part in sheet.parts
        ],
    }


STYLES: Final = {FAIL: "red", DOUBT: "yellow"}


def _first_why(part: Part) -> str:
    """Of the worst that there is."""
    for verdict in (FAIL, DOUBT):
        for line in part.lines:
            if line.verdict == verdict:
                return part.fault or f"{line.point}: {line.why}"
    return part.fault


def render(sheet: Sheet) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("device", *VERDICTS, "why"):
        table.add_column(column, justify="right" if column in VERDICTS else "left")
    for part in sheet.parts:
        counts = [(verdict, part.count(verdict)) for verdict in VERDICTS]
        failed = part.fault or part.count(FAIL)
        table.add_row(
            Text(part.name, style="bold red" if failed else "bold"),
            *(Text(str(count), style=STYLES.get(verdict, "") if count else "") for verdict, count in counts),
            Text(_first_why(part)),
        )
    total = (
        ", ".join(f"{sheet.count(verdict)} {verdict}" for verdict in VERDICTS)
        + f" on {len(sheet.parts)} devices"
        + ("" if sheet.complete else "; interrupted")
    )
    return Group(table, Text(total, style="bold"))
