"""How fast an emergency was answered: from the plant's own record of every step, 5 ms apart.

A shed counts from the moment a relay had closed at the wire, a signal or a command had left the rig. It is
answered when the block is within 2 % of the level's power and stays so for a quarter of a second: a training
job that happens to exchange is no answer. Frequency response counts from the step in which the grid's
frequency passed the trigger, and is answered when 98 % of what was committed has gone from the mean of the
second before.

What the device under test says of its own steps stands beside it (`told`), in its own words.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from firmware_sim.facility import Fine

Floats = npt.NDArray[np.float64]

BAND_RATIO: Final = 0.02
STAYS_S: Final = 0.25
LOOK_S: Final = 10.0  # what has not happened by then is no reaction
BEFORE_S: Final = 1.0
DELIVERED_RATIO: Final = 0.98
FALLEN_RATIO: Final = 0.98  # of the way down: what is left is the law's own fine tuning
TOLD_MAX: Final = 1000
STEPS: Final = ("decided", "sent", "received", "obeyed", "confirmed", "moved")


@dataclass(frozen=True)
class Shed:
    """A level was called. Times on the plant's clock; `ends_s`: inf: it stood to the end."""

    name: str
    level_w: float
    at_s: float
    ends_s: float


def figures(
    fine: Fine, sheds: Sequence[Shed], product: tuple[float, float] | None, told: Sequence[Mapping[str, Any]]
) -> dict[str, float | None]:
    """The worst of all calls; a key is None where one was never answered.

    Args:
        fine: the record.
        sheds: what was called.
        product: of frequency response: trigger in Hz, and W committed; None: none was sold.
        told: the device's own lines about its calls.
    """
    t_s, block_w, limit_w, hz = (
        np.array(values) for values in (fine.t_s, fine.block_w, fine.limit_w, fine.frequency_hz)
    )
    found: dict[str, float | None] = {}
    if sheds:
        found["shed_reaction_s"] = _worst([_reaction_s(t_s, block_w, shed) for shed in sheds])
        found["shed_limits_s"] = _worst([_limits_s(t_s, limit_w, shed) for shed in sheds])
        found["shed_over_ratio"] = _worst([_over_ratio(t_s, block_w, shed) for shed in sheds])
        for step in STEPS:
            key = "shed_written_s" if step == "confirmed" else f"shed_{step}_s"
            found[key] = _worst([line.get(f"{step}_s") for line in told]) if told else None
    if product is not None:
        found["frequency_reaction_s"] = _frequency_s(t_s, block_w, hz, *product)
    return found


def read_told(path: Path) -> list[dict[str, Any]]:
    """What the device wrote about its calls; [] where it wrote nothing."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()[-TOLD_MAX:]
    said = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [one for one in said if "level" in one]


def _reaction_s(t_s: Floats, block_w: Floats, shed: Shed) -> float | None:
    part = (t_s >= shed.at_s) & (t_s <= min(shed.ends_s, shed.at_s + LOOK_S))
    return _stays_from_s(t_s[part], block_w[part] <= shed.level_w * (1 + BAND_RATIO), shed.at_s)


def _limits_s(t_s: Floats, limit_w: Floats, shed: Shed) -> float | None:
    """Until the boards' limits have gone nearly all the way to the lowest sum of the next second."""
    part = (t_s >= shed.at_s) & (t_s <= min(shed.ends_s, shed.at_s + BEFORE_S))
    before = np.flatnonzero(t_s < shed.at_s)
    if not part.any() or not len(before):
        return None
    from_w, lowest_w = float(limit_w[before[-1]]), float(limit_w[part].min())
    reached = limit_w[part] <= from_w - FALLEN_RATIO * (from_w - lowest_w)
    return float(t_s[part][reached][0] - shed.at_s)


def _over_ratio(t_s: Floats, block_w: Floats, shed: Shed) -> float | None:
    """Highest mean of a quarter of a second above the level, from half a second after the call on."""
    part = (t_s >= shed.at_s + 2 * STAYS_S) & (t_s <= shed.ends_s)
    width = round(STAYS_S / float(np.median(np.diff(t_s))))
    if part.sum() < width:
        return None
    sums = np.cumsum(np.insert(block_w[part], 0, 0.0))
    return max(0.0, float((sums[width:] - sums[:-width]).max()) / width / shed.level_w - 1)


def _frequency_s(
    t_s: Floats, block_w: Floats, hz: Floats, trigger_hz: float, committed_w: float
) -> float | None:
    below = np.flatnonzero(hz < trigger_hz)
    if not len(below):
        return None
    crossed_s = float(t_s[below[0]])
    before = (t_s > crossed_s - BEFORE_S) & (t_s <= crossed_s)
    goal_w = float(block_w[before].mean()) - DELIVERED_RATIO * committed_w
    part = (t_s >= crossed_s) & (t_s <= crossed_s + LOOK_S)
    return _stays_from_s(t_s[part], block_w[part] <= goal_w, crossed_s)


def _stays_from_s(t_s: Floats, holds: npt.NDArray[np.bool_], from_s: float) -> float | None:
    """First moment since when it holds for `STAYS_S`."""
    since: float | None = None
    for at_s, one in zip(t_s, holds, strict=True):
        since = None if not one else at_s if since is None else since
        if since is not None and at_s - since >= STAYS_S:
            return float(since - from_s)
    return None


def _worst(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
