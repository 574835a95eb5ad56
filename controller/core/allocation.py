"""Sharing a GPU budget out: floors first, then what is needed, then what is left.

Every GPU climbs the same four steps: the least its device allows, the floor of its tier, what it has
lately needed, the most its device allows. A step is filled for all before anyone starts on the next; when
the budget ends within a step, that step is filled like connected vessels whose width is the weight of the
tier. Racks are bounded by what their inlets carry: a rack that runs full keeps its share, and the rest
flows to the others.

`share_out` is the seam for other policies: anything that turns (budget, wants, racks) into limits with
`min <= limit <= max`, sum and rack sums within bounds, can stand here, such as an optimiser over
throughput curves.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.model import Bools, Floats, Ints

CAPPED_RATIO = 0.965  # a GPU drawing this much of its limit would take more: its need is unknown
NEED_RATIO = 1.045  # room above the lately seen peak, so that a limit does not shave what it should not
GROWTH_RATIO = 1.2
NEED_EXTRA_W = 5.0  # the same for GPUs that draw next to nothing
PEAK_DECAY_S = 3.0
SLOWED_DECAY_S = 0.3
PEAK_RISE_S = 0.15


@dataclass(frozen=True, slots=True, eq=False)
class Wants:
    """The steps of every GPU and the width it climbs them with; arrays (n), W."""

    min_w: Floats
    floor_w: Floats
    need_w: Floats
    max_w: Floats
    weight: Floats

    def only(self, mask: Bools) -> "Wants":
        return Wants(
            self.min_w[mask], self.floor_w[mask], self.need_w[mask], self.max_w[mask], self.weight[mask]
        )


def need_w(peak_w: Floats, held: Bools, by_clock: Bools, max_w: Floats) -> Floats:
    """What a GPU needs: its recent peak with some room, or all it can take while its limit holds it.

    One whose clock is its lever runs into its limit when that clock is lifted, and wants a little more only.
    """
    room_w = np.minimum(max_w, peak_w * NEED_RATIO + NEED_EXTRA_W)
    grown_w = np.where(by_clock, np.minimum(max_w, peak_w * GROWTH_RATIO), max_w)
    return np.where(held, np.maximum(grown_w, room_w), room_w)


def decayed_peak_w(peak_w: Floats, power_w: Floats, slowed: Bools, elapsed_s: float) -> Floats:
    """Recent peak of the draw: up quickly, down slowly. An unreadable draw (NaN) keeps the peak.

    Not up at once: what shows in one reading of fifty is jitter, and room for it is power that nobody draws.
    `slowed` are GPUs whose clock has just been lowered: what that has taken they need no longer.
    """
    above_w = np.where(np.isnan(power_w), 0.0, power_w - peak_w)
    time_s = np.where(above_w > 0.0, PEAK_RISE_S, np.where(slowed, SLOWED_DECAY_S, PEAK_DECAY_S))
    peak: Floats = peak_w + above_w * np.minimum(1.0, elapsed_s / time_s)
    return peak


def share_out(budget_w: float, wants: Wants, rack: Ints, rack_budget_w: Floats) -> Floats:
    """Limits (n) W. Below the sum of minima the minima stand: the caller names the shortfall."""
    share = wants.min_w
    for step_w in (wants.floor_w, wants.need_w, wants.max_w):
        top = np.maximum(share, np.minimum(step_w, wants.max_w))
        left_w = budget_w - float(share.sum())
        if left_w <= 0.0:
            break
        share = _fill(share, top, wants.weight, left_w, rack, rack_budget_w)
    return share


def _fill(
    share: Floats, top: Floats, weight: Floats, left_w: float, rack: Ints, rack_budget_w: Floats
) -> Floats:
    """Raise `share` towards `top` by at most `left_w` in all, racks within their budgets."""
    racks = len(rack_budget_w)
    room_w = np.maximum(0.0, rack_budget_w - np.bincount(rack, share, racks))
    need = top - share
    full = np.zeros_like(share)  # gains in racks that ran full
    for _ in range(racks + 1):
        gain = need if float(need.sum()) <= left_w else _level(need, weight, left_w)
        over = np.flatnonzero(np.bincount(rack, gain, racks) > room_w + 1e-9)
        if len(over) == 0:
            return share + full + gain
        need = need.copy()
        for index in over:
            members = rack == index
            full[members] = _level(need[members], weight[members], float(room_w[index]))
            left_w -= float(room_w[index])
            need[members] = 0.0
    return share + full


def _level(need: Floats, weight: Floats, amount_w: float) -> Floats:
    """Connected vessels: min(need, level * weight) with the level that spends `amount_w` (< sum of need)."""
    full_at = need / weight
    order = full_at.argsort()
    need_sorted = need[order]
    filled_before = need_sorted.cumsum() - need_sorted
    width_left = weight[order][::-1].cumsum()[::-1]
    spent_at = filled_before + full_at[order] * width_left  # spent when this one has just run full
    first = min(int(spent_at.searchsorted(amount_w)), len(need) - 1)
    level = (amount_w - filled_before[first]) / width_left[first]
    gain: Floats = np.minimum(need, level * weight)
    return gain
