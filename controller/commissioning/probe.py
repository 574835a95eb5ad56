"""Who is there? Everything a Modbus device can be asked about itself, and which profiles fit it.

Four questions, all of them reads: the name plate (function 43 / 14), the SunSpec chain, the identities of the
built-in profiles, and for profiles without an identity their first registers. A profile that names an
identity and finds it *matches*. One that names none can only *fit*: its registers are there and say plausible
things, which other devices' registers may do, too. What fits alike cannot be told apart from here; the name
plate on the door decides. A device that answers nothing but zeros fits everything, and is said to prove
nothing.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.commissioning import belief
from controller.commissioning.shown import Shown, wanted
from controller.commissioning.sources import introduced, short, taken_from
from controller.commissioning.talk import Talk
from controller.commissioning.target import Target, in_block, quoted
from controller.gateway_config import SUNSPEC
from controller.image.model import Quality
from protocols.modbus.questions import LostError, Question, RefusedError, SilentError
from protocols.profile import Point, Profile, ProfileError, builtin_profiles, load_profile
from protocols.reading import DeviceError
from protocols.sunspec import discover

POINTS_TRIED: Final = 24  # of a profile without identity: enough to see, few enough not to hurry a device
MATCHES_RATIO: Final = 0.5  # of them, beside a right identity: the rest may be options not fitted
POINTS_FIRST: Final = 4  # if none of these is there, the rest is not asked for
FITS_RATIO: Final = 0.9  # of the points tried are plausible: one unused input does not rule a profile out
WORTH_RATIO: Final = 0.25  # of them say something else than 0, or they prove nothing
KINDS: Final = ("pdu", "meter", "cdu", "chiller", "ups", "bess", "breaker")
NAME_MAX: Final = 48  # characters of it, with room for a unit id

MATCHES, FITS, FITS_NOT, PROVES_NOTHING = "matches", "fits", "does not fit", "proves nothing"
STYLES: Final = {MATCHES: "bold green", FITS: "yellow", PROVES_NOTHING: "", FITS_NOT: "dim"}  # best first


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a profile and a device go together. `written`: the profile as block.yaml names it."""

    profile: str
    written: str
    title: str
    verdict: str
    why: str


@dataclass
class Found:
    """What a probe has learned so far; complete or not.

    Attributes:
        nameplate: by name; {} where the device tells none, `nameplate_fault` says why.
        sunspec: the models found, in words; "" where there are none, `sunspec_fault` says why.
        verdicts: in the order of the built-in profiles.
        questions: asked.
    """

    where: str
    url: str
    unit: int
    nameplate: dict[str, str] = field(default_factory=dict)
    nameplate_fault: str = ""
    sunspec: str = ""
    sunspec_title: str = ""
    sunspec_fault: str = ""
    verdicts: list[Verdict] = field(default_factory=list)
    questions: int = 0

    def of(self, verdict: str) -> list[Verdict]:
        return [one for one in self.verdicts if one.verdict == verdict]

    @property
    def chosen(self) -> list[str]:
        """Profiles to try, the likeliest first."""
        proven = [one.written for one in self.of(MATCHES)]
        unproven = self.of(FITS) or self.of(PROVES_NOTHING)
        return proven or ([SUNSPEC] if self.sunspec else []) or [one.written for one in unproven]

    @property
    def well(self) -> bool:
        """Whether something speaks for one of them."""
        return bool(self.sunspec or self.of(MATCHES) or self.of(FITS))


async def probe(
    target: Target, found: Found, only: str | None = None, on_step: Callable[[str], None] = lambda _: None
) -> None:
    """Fill `found`. Raises DeviceError where there is no connection, or nobody answers.

    Args:
        target: of Modbus.
        found: filled as we go, so that an interrupted probe still tells what it knows.
        only: the one profile to try, `sunspec` for what the device says alone; None: all that are built in.
        on_step: called with what is tried next.
    """
    unit_id = target.config.unit
    async with _Listening(target.config.transport()) as talk:
        try:
            on_step("device identification (function 43)")
            found.nameplate, fault = await talk.introduction(unit_id)
            found.nameplate_fault = short(fault)
            on_step("SunSpec")
            await _sunspec(talk, unit_id, found)
            talk.demand_modbus()
            for name in builtin_profiles() if only is None else [only] if only != SUNSPEC else []:
                profile = load_profile(name)
                if profile.protocol == "modbus":
                    on_step(profile.name)
                    found.verdicts.append(await _try(talk, unit_id, profile, in_block(name)))
            talk.demand_modbus()
        finally:
            found.questions = talk.asked
    if not talk.answered:
        raise SilentError(f"{target.where}: {_silence(target)}")


class _Listening(Talk):
    """Remembers whether anybody has answered, and what else came of asking.

    Attributes:
        answered: as Modbus does, be it by a refusal.
        strange: why not, from the first question that something else came of; "" = silence at most.
    """

    answered = False
    strange = ""

    async def ask(self, unit_id: int, question: Question) -> bytes:
        try:
            answer = await super().ask(unit_id, question)
        except LostError as lost:
            self.strange = self.strange or str(lost)
            raise
        except RefusedError as refused:
            self.answered |= bool(refused.code)
            if not refused.code:
                self.strange = self.strange or f"{self.transport.where} answers, and not as Modbus does"
            raise
        self.answered = True
        return answer

    def demand_modbus(self) -> None:
        """Raises LostError for another service than Modbus, or for one that shuts us out."""
        if self.strange and not self.answered:
            raise LostError(f"{self.strange}; is it Modbus that listens there, and may this host ask it?")


def _silence(target: Target) -> str:
    hint = "is the unit on, and its id right? `powerblock scan` looks for ids"
    if target.config.transport().rtu:
        hint += "; baud rate, parity and stop bits as on the device?"
    return f"connected, and nobody answers: {hint}"


async def _sunspec(talk: Talk, unit_id: int, found: Found) -> None:
    async def read(first: int, count: int) -> Sequence[int]:
        return await talk.holding(unit_id, first, count)

    try:
        profile = await discover(read, name="device")
    except (ProfileError, DeviceError) as error:
        found.sunspec_fault = short(error).removeprefix("device: ")
        if not talk.connected:
            await talk.connect()
        return
    found.sunspec, found.sunspec_title = profile.provenance.document, profile.title


async def _try(talk: Talk, unit_id: int, profile: Profile, written: str) -> Verdict:
    if not talk.connected:
        await talk.connect()
    try:
        verdict, why = await (_by_identity if profile.identity else _by_values)(talk, unit_id, profile)
    except LostError as lost:
        verdict, why = FITS_NOT, str(lost)
    except DeviceError as error:
        verdict, why = FITS_NOT, str(error).partition(": ")[2] or str(error)
    return Verdict(profile=profile.name, written=written, title=profile.title, verdict=verdict, why=why)


async def _by_identity(talk: Talk, unit_id: int, profile: Profile) -> tuple[str, str]:
    stranger = await introduced(talk, unit_id, profile)
    if stranger:
        return FITS_NOT, stranger.removeprefix("another device? ")
    said = await _some(talk, unit_id, profile)
    plausible = sum(_is_plausible(one) for one in said)
    proof = ", ".join(f"{one.point} is {wanted(profile, one)}" for one in profile.identity)
    if plausible < MATCHES_RATIO * len(said):
        return FITS_NOT, f"{proof}, but only {plausible} of {len(said)} points are plausible"
    return MATCHES, f"{proof}; {plausible} of {len(said)} points plausible"


async def _by_values(talk: Talk, unit_id: int, profile: Profile) -> tuple[str, str]:
    said = await _some(talk, unit_id, profile)
    plausible = [one for one in said if _is_plausible(one)]
    if len(plausible) < FITS_RATIO * len(said):
        first = max((one for one in said if not _is_plausible(one)), key=lambda one: belief.HINT in one.why)
        missing = len(said) - len(plausible)
        return FITS_NOT, f"{missing} of {len(said)} points not, {first.point.name}: {first.why}"
    telling = [one for one in plausible if one.value != 0.0 and not _is_free(one.point)]
    if len(telling) < WORTH_RATIO * len(said):
        return PROVES_NOTHING, f"{len(plausible)} of {len(said)} points can be read, and nearly all say 0"
    return FITS, f"{len(plausible)} of {len(said)} points plausible; it has no identity to check"


async def _some(talk: Talk, unit_id: int, profile: Profile) -> list[Shown]:
    """The first points of a profile."""
    points = tuple(islice((point for point in profile.points.values() if point.readable), POINTS_TRIED))
    taken: dict[str, Shown] = {}
    for some in (points[:POINTS_FIRST], points[POINTS_FIRST:]):
        if some:
            taken |= await taken_from(talk, unit_id, profile, some, {})
        if all(one.quality is Quality.BAD for one in taken.values()):
            break  # another device: do not try them one by one
    return [taken[point.name] for point in points if point.name in taken]


def _is_plausible(one: Shown) -> bool:
    return one.quality is Quality.GOOD and not one.why


def _is_free(point: Point) -> bool:
    """Whether any pattern would be plausible."""
    return point.lowest == float("-inf") and point.highest == float("inf") and not point.enum


# --- what to paste ------------------------------------------------------------------------------------------


def block_lines(found: Found) -> str:
    """The device as block.yaml wants it; what else fits stands beside it."""
    chosen = found.chosen
    profile = chosen[0] if chosen else "path/to/your-profile.yaml"
    kind = next((kind for kind in KINDS if Path(profile).stem.endswith(kind)), "")
    lines = ["devices:", f"  - name: {_name(profile, found)}  # its name for good"]
    also = f"  # or {', '.join(chosen[1:])}: not to be told apart from here" if len(chosen) > 1 else ""
    unproven = "" if found.of(MATCHES) or found.sunspec or not chosen else "  # plausible, not proven"
    lines.append(f"    profile: {quoted(profile)}{also or unproven}")
    lines.append(f'    url: "{found.url}"')
    if found.unit != 1:
        lines.append(f"    unit: {found.unit}")
    lines.append(f"    kind: {kind}" if kind else f"    # kind: {KINDS[0]}  # or {', '.join(KINDS[1:])}")
    return "\n".join(lines)


def _name(profile: str, found: Found) -> str:
    stem = re.sub("[^A-Za-z0-9.]+", "-", Path(profile).stem)[:NAME_MAX].strip("-.")
    return f"{stem or 'device'}-{found.unit}"


# --- on paper -----------------------------------------------------------------------------------------------


def as_json(found: Found) -> dict[str, Any]:
    return {
        "url": found.url,
        "unit": found.unit,
        "nameplate": found.nameplate,
        "nameplate_fault": found.nameplate_fault,
        "sunspec": found.sunspec,
        "sunspec_fault": found.sunspec_fault,
        "profiles": [
            {"profile": one.profile, "title": one.title, "verdict": one.verdict, "why": one.why}
            for one in found.verdicts
        ],
        "well": found.well,
        "chosen": found.chosen,
        "block_yaml": block_lines(found),
    }


def render(found: Found) -> RenderableType:
    head = Table.grid(padding=(0, 2))
    head.add_row(Text("device"), Text(found.where, style="bold"))
    plate = [Text(f"{name} {text}") for name, text in found.nameplate.items()]
    fault = Text(found.nameplate_fault or "none", style="dim")
    head.add_row(Text("name plate"), Group(*plate) if plate else fault)
    sunspec = Text(f"{found.sunspec_title}; {found.sunspec}") if found.sunspec else None
    head.add_row(Text("SunSpec"), sunspec or Text(found.sunspec_fault, style="dim"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("profile", "device", "", "why"):
        table.add_column(column, overflow="fold", no_wrap=column == "profile")
    others = found.of(FITS_NOT)
    if len(others) > 1:
        head.add_row(Text("not these"), Text(", ".join(one.profile for one in others), style="dim"))
    shown = [one for one in found.verdicts if one.verdict != FITS_NOT or len(others) == 1]
    for one in sorted(shown, key=lambda one: list(STYLES).index(one.verdict)):
        style = STYLES[one.verdict]
        table.add_row(
            Text(one.profile, style=style), Text(one.title), Text(one.verdict, style=style), Text(one.why)
        )
    return Group(
        head,
        Text(""),
        *((table, Text("")) if shown else ()),
        Text(_advice(found)),
        Text(""),
        Text(block_lines(found), style="cyan", no_wrap=True, overflow="ignore"),
    )


def _advice(found: Found) -> str:
    matches, fits, silent = found.of(MATCHES), found.of(FITS), found.of(PROVES_NOTHING)
    if found.sunspec and not matches:
        said = "A SunSpec device: it needs no profile of its own"
    elif len(matches) == 1:
        said = f"This is a {matches[0].title}"
    elif len(matches or fits) > 1:
        names = ", ".join(one.profile for one in matches or fits)
        said = f"{names} cannot be told apart from here: the name plate on the door decides"
    elif fits:
        said = f"{fits[0].profile} fits, and nothing proves it: compare a value with the device's display"
    elif silent:
        said = f"{silent[0].profile} can be read and says next to nothing: give it load, and probe again"
    elif len(found.verdicts) == 1:
        said = f"{found.verdicts[0].profile} does not fit as it is: mend it, or look for another one"
    else:
        said = (
            "No built-in profile fits. `powerblock capture --range` records its registers; write a profile"
            " from its document (docs/devices.md)"
        )
    return f"{said}. For block.yaml:"
