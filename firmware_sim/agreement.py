"""Did every way show the plant as it was? Pure functions on what was seen and what was true.

A way shows the newest value that it told. It agrees at a moment if the plant was there, within the point's
tolerance, at some time in the lag that the way is allowed: what a device holds, what a poll waits, what a
publisher gathers. How late it really was is the shortest delay that explains what it showed.

Moments when nothing can be expected are excused and judged by figures of their own: while the server is dead
and until each way is back, while a device is broken and until it is back. What a broken device must never do
is to look alive: `dead_good_s` counts that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from firmware_sim.scenario_facility import Way
from firmware_sim.watched import TOLERANCE_RATIO, WatchedPoint

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LAGS_S: Final[Mapping[Way, float]] = {  # a PDU's mean and refresh 1.5 s, poll 1 s, image 0.25 s, and its own
    "opcua": 3.0,
    "modbus": 3.5,
    "bms": 4.0,
    "prometheus": 4.0,
    "mirror": 3.0,
}
LAG_SEARCH_MAX_S: Final = 15.0
DEAD_GRACE_S: Final = 6.0  # two polls, their time-outs and the way's own period until silence is known
EDGE_S: Final = 0.5  # what is seen in the last moments of a run may still be on its way


@dataclass(frozen=True)
class Outage:
    """Something was broken on purpose.

    Attributes:
        begins_s, ends_s: inf: to the end.
        device: that was; "": what serves all of them.
        ways: that it concerns; none: all.
        is_dead: it says nothing at all, and so must not look alive.
    """

    begins_s: float
    ends_s: float
    device: str = ""
    ways: tuple[Way, ...] = ()
    is_dead: bool = True

    def concerns(self, way: Way, point: WatchedPoint) -> bool:
        return self.device in {"", point.device} and way in (self.ways or (way,))


@dataclass(frozen=True)
class Shown:
    """What one way showed of one point: moments and values (k); NaN: nothing good."""

    at_s: Floats
    values: Floats

    @classmethod
    def of(cls, at_s: Sequence[float], values: Sequence[float | None]) -> "Shown":
        order = np.argsort(np.array(at_s), kind="stable")
        numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        return cls(np.array(at_s, dtype=np.float64)[order], numbers[order])

    def at(self, t_s: Floats) -> Floats:
        """The newest value at these moments; NaN before the first and where nothing was good."""
        if not len(self.at_s):
            return np.full(len(t_s), np.nan)
        rows = np.searchsorted(self.at_s, t_s, side="right") - 1
        return np.where(rows >= 0, self.values[np.maximum(rows, 0)], np.nan)

    def first_good_s(self, after_s: float) -> float | None:
        good = (self.at_s >= after_s) & ~np.isnan(self.values)
        return float(self.at_s[good][0]) if good.any() else None


def agreement(
    t_s: Floats,
    truth: Mapping[WatchedPoint, Floats],
    shown: Mapping[tuple[Way, str], Shown],
    outages: Sequence[Outage],
) -> dict[str, float | None]:
    """Figures of every way, the worst over all points.

    Args:
        t_s: moments in equal steps, from well before time 0 on (n).
        truth: of every point (n).
        shown: by way and address.
        outages: in plant seconds on the same clock.
    """
    figures: dict[str, float | None] = {}
    ways = dict.fromkeys(way for way, _ in shown)
    for way in ways:
        parts = [
            _of_point(t_s, true, shown[way, point.address], way, point, outages)
            for point, true in truth.items()
            if (way, point.address) in shown
        ]
        for key, worst in (("agreement_ratio", min), ("lag_s", max), ("bad_s", max)):
            values = [part[key] for part in parts]
            known = [value for value in values if value is not None]
            figures[f"{way}_{key}"] = worst(known) if known and len(known) == len(values) else None
    figures |= _returns(truth, shown, outages, float(t_s[-1]))
    return figures


def _of_point(
    t_s: Floats, true: Floats, shown: Shown, way: Way, point: WatchedPoint, outages: Sequence[Outage]
) -> dict[str, float | None]:
    step_s = float(np.median(np.diff(t_s)))
    judged = (t_s >= 0) & (t_s <= t_s[-1] - EDGE_S) & ~_excused(t_s, shown, way, point, outages)
    if not judged.any():
        return {"agreement_ratio": None, "lag_s": None, "bad_s": None}
    seen = shown.at(t_s)
    good = judged & ~np.isnan(seen)
    tolerance = point.tolerance + TOLERANCE_RATIO * np.abs(true)
    lag = explained_lag_s(seen, true, tolerance, step_s)
    agrees = good & (lag <= LAGS_S[way])
    return {
        "agreement_ratio": float(agrees.sum() / good.sum()) if good.any() else None,
        "lag_s": float(lag[good].max()) if good.any() else None,
        "bad_s": float((judged & np.isnan(seen)).sum()) * step_s,
    }


def explained_lag_s(seen: Floats, true: Floats, tolerance: Floats, step_s: float) -> Floats:
    """Shortest delay after which the truth explains what is seen (n); LAG_SEARCH_MAX_S: none does.

    Between two samples the truth went from one to the other, so anything between them is explained, too.
    """
    low = np.minimum(true, np.concatenate([true[:1], true[:-1]])) - tolerance
    high = np.maximum(true, np.concatenate([true[:1], true[:-1]])) + tolerance
    lag = np.full(len(seen), LAG_SEARCH_MAX_S)
    for delay in range(min(round(LAG_SEARCH_MAX_S / step_s), len(seen) - 1), -1, -1):
        part = slice(delay, None)
        fits = (low[: len(low) - delay] <= seen[part]) & (seen[part] <= high[: len(high) - delay])
        lag[part] = np.where(fits, delay * step_s, lag[part])
    return lag


def _excused(t_s: Floats, shown: Shown, way: Way, point: WatchedPoint, outages: Sequence[Outage]) -> Bools:
    excused = np.zeros(len(t_s), dtype=bool)
    for outage in (one for one in outages if one.concerns(way, point)):
        back_s = shown.first_good_s(outage.ends_s)
        excused |= (t_s >= outage.begins_s) & (t_s <= (np.inf if back_s is None else back_s))
    return excused


def _returns(
    truth: Mapping[WatchedPoint, Floats],
    shown: Mapping[tuple[Way, str], Shown],
    outages: Sequence[Outage],
    end_s: float,
) -> dict[str, float | None]:
    """How long ways and devices took to come back, and how long the dead looked alive."""
    figures: dict[str, float | None] = {}
    cases = [
        (outage, shown[way, point.address])
        for outage in outages
        for way, address in shown
        for point in truth
        if point.address == address and outage.concerns(way, point)
    ]
    for key, of_device in (("ways_back_s", False), ("devices_back_s", True)):
        ended = [(o, seen) for o, seen in cases if bool(o.device) is of_device and o.ends_s < end_s]
        backs_s = [(seen.first_good_s(outage.ends_s), outage.ends_s) for outage, seen in ended]
        known = [back_s - ends_s for back_s, ends_s in backs_s if back_s is not None]
        if ended:
            figures[key] = max(known) if len(known) == len(ended) else None
    dead = [(outage, seen) for outage, seen in cases if outage.device and outage.is_dead]
    if dead:
        figures["dead_good_s"] = max(_good_s(seen, outage, end_s) for outage, seen in dead)
    return figures


def _good_s(seen: Shown, outage: Outage, end_s: float, step_s: float = 0.05) -> float:
    """How long something good was shown of what cannot say anything."""
    t_s = np.arange(outage.begins_s + DEAD_GRACE_S, min(outage.ends_s, end_s), step_s)
    return float((~np.isnan(seen.at(t_s))).sum()) * step_s
