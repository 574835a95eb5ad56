"""`powerblock replay`: recorded beats through today's law.

A journal holds every input of every beat, so the law can be asked again. Each answer is held against the
recorded one; a difference is a change of the law since then, or a law that is not the pure function it
claims to be. The memory runs on from the recorded start, as it did then: after a first difference others
follow from it, so the first one is the one to read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.core import law
from controller.core.model import Decision, Settings
from controller.journal import Beat, JournalError, read
from controller.views.figures import kw, moment, span

SAME_W: Final = 0.01  # sums come out in another order on another CPU; no driver takes less than a watt
POWERS: Final = ("budget_w", "base_w", "shortfall_w")


@dataclass(frozen=True)
class Difference:
    beat: int
    now_utc_s: float
    field: str
    recorded: str
    now: str


@dataclass
class Outcome:
    """What a replay found. `differences` are the first `listed_max`; the counts are of all."""

    beats: int = 0
    beats_differing: int = 0
    first_utc_s: float = 0.0
    last_utc_s: float = 0.0
    by_field: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    fault: str = ""  # why the file could not be read to its end


def replay(path: Path, listed_max: int) -> Outcome:
    """Run a journal file through the law. Raises JournalError if it has no readable head."""
    outcome = Outcome()
    settings, state, beats = read(path)
    try:
        for number, beat in enumerate(beats, start=1):
            decision = law.tick(settings, state, beat.snapshot)
            state = decision.state
            _take(outcome, number, beat, list(_differences(settings, beat.decided, decision)), listed_max)
    except JournalError as error:
        outcome.fault = str(error)
    return outcome


def _take(
    outcome: Outcome, number: int, beat: Beat, found: list[tuple[str, str, str]], listed_max: int
) -> None:
    at_utc_s = beat.snapshot.now_utc_s
    outcome.first_utc_s = outcome.first_utc_s or at_utc_s
    outcome.last_utc_s = at_utc_s
    outcome.beats = number
    outcome.beats_differing += bool(found)
    outcome.by_field.update(name for name, _, _ in found)
    room = max(0, listed_max - len(outcome.differences))
    outcome.differences += [Difference(number, at_utc_s, *difference) for difference in found[:room]]


def _differences(
    settings: Settings, recorded: dict[str, Any], decision: Decision
) -> Iterator[tuple[str, str, str]]:
    """(field, recorded, now) where they are not the same."""
    if recorded["mode"] != decision.mode.value:
        yield "mode", recorded["mode"], decision.mode.value
    binding, then = decision.binding, recorded["binding"]
    if (then["source"], then["protection"]) != (binding.source, binding.protection) or not _same(
        then["power_w"], binding.power_w
    ):
        yield (
            "binding",
            f"{kw(then['power_w'])} {then['source']}",
            f"{kw(binding.power_w)} {binding.source}",
        )
    for name in POWERS:
        now_w = getattr(decision, name)
        if not _same(recorded[name], now_w):
            yield name, f"{recorded[name]:.2f}", f"{now_w:.2f}"
    yield from _gpu_differences(settings, recorded["gpu_limits_w"], decision)
    keys_then, keys_now = [a["key"] for a in recorded["alarms"]], [a.key for a in decision.alarms]
    if keys_then != keys_now:
        yield "alarms", ", ".join(keys_then) or "none", ", ".join(keys_now) or "none"


def _gpu_differences(
    settings: Settings, recorded_w: Sequence[float], decision: Decision
) -> Iterator[tuple[str, str, str]]:
    """One line for all GPUs: how many differ, and the one that differs most."""
    then_w, now_w = np.array(recorded_w, dtype=np.float64), decision.gpu_limits_w
    apart_w = np.abs(now_w - then_w)
    count = int((apart_w > SAME_W).sum())
    if count:
        worst = int(apart_w.argmax())
        name = settings.topology.gpu_name(worst)
        others = f" and {count - 1} more" if count > 1 else ""
        yield "gpu_limits_w", f"{name} {then_w[worst]:.0f}{others}", f"{name} {now_w[worst]:.0f}"


def _same(one_w: float, other_w: float) -> bool:
    return abs(one_w - other_w) <= SAME_W


def as_json(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {"by_field": dict(outcome.by_field)}


def render(outcome: Outcome) -> RenderableType:
    length_s = outcome.last_utc_s - outcome.first_utc_s
    beats = f"{outcome.beats} beats over {span(length_s)}"
    if not outcome.beats_differing:
        return Text(f"{beats}: every decision the same", style="green")
    table = Table("beat", "UTC", "field", "recorded", "now", box=None, padding=(0, 2, 0, 0))
    for difference in outcome.differences:
        table.add_row(
            str(difference.beat),
            moment(difference.now_utc_s, outcome.first_utc_s),
            difference.field,
            difference.recorded,
            difference.now,
        )
    hidden = outcome.by_field.total() - len(outcome.differences)
    counts = ", ".join(f"{name} {count}" for name, count in outcome.by_field.most_common())
    return Group(
        table,
        Text(f"… and {hidden} more\n" if hidden else "", style="dim"),
        Text(f"{beats}: {outcome.beats_differing} decided differently ({counts})", style="bold red"),
    )
