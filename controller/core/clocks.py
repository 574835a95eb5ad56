"""Clock ceilings: the second lever, for GPUs whose limit takes nothing from them.

A GPU that decodes draws far below any limit that one would set, so in a curtailment it gives nothing while
others, held by their limits, give twice. Yet a lower clock costs it little work: its memory is what it waits
for. So while budget is short, such GPUs get a ceiling on their SM clock; they draw less, need less, and the
next share-out gives what they left to those who are held.

Limits stay the guarantee: their sum is within the budget with or without ceilings, and nothing here is
counted as shed. Agents learn which lever moves which GPU; whoever does not tell has none. Tiers above the
lowest keep their clocks.

How low: as far as those are held whose limit binds, in steps, and never below `clock_least_ratio`. If nobody
is held, or only those who could be slowed, there is nothing to trade and no ceiling.
"""

from typing import Final

import numpy as np

from controller.core.model import NEVER_S, Bools, Clocks, Floats, Gpus, Ints, Settings

FREE_RATIO: Final = 1.0  # no ceiling
STEP_RATIO: Final = 0.1  # of the highest clock: every step is a driver call per GPU
NONE_MHZ: Final = 0
FELT_S: Final = 1.0  # from the order of a ceiling until power shows it: some 10 ms, on Hopper seldom hundreds
RAISE_AFTER_S: Final = 5.0  # between two steps up
GRAIN_MHZ: Final = 15  # clocks come in such steps


def start(count: int) -> Clocks:
    return Clocks(FREE_RATIO, NEVER_S, np.zeros(count, dtype=np.int64), np.full(count, NEVER_S))


def step(settings: Settings, before: Clocks, gpus: Gpus, wanted_ratio: float, now_s: float) -> Clocks:
    """Ceilings as they are to be ordered.

    Down at once, as far as is wanted; up a step at a time, since what is given back must show first in what
    the others get: or both would swing.
    """
    now_ratio = before.ratio
    if wanted_ratio < before.ratio or now_s - before.moved_at_s >= RAISE_AFTER_S:
        now_ratio = min(wanted_ratio, round(before.ratio + STEP_RATIO, 6))  # four steps from 0.6 are 1
    moved_at_s = before.moved_at_s if now_ratio == before.ratio else now_s
    # whose highest clock is not known yet keeps the ceiling it reports: a restart lifts nothing
    known = gpus.clock_max_mhz > 0
    ceilings = np.where(known, ceilings_mhz(settings, gpus, now_ratio), gpus.ceiling_mhz)
    changed_at_s = np.where(ceilings == before.ceilings_mhz, before.changed_at_s, now_s)
    return Clocks(now_ratio, moved_at_s, ceilings, changed_at_s)


def slowed(ordered: Clocks, now_s: float) -> Bools:
    """(n) whose clock has just been lowered, so that what they drew before says nothing of what they need."""
    just: Bools = (ordered.ceilings_mhz > NONE_MHZ) & (now_s - ordered.changed_at_s < FELT_S)
    return just


def wanted(
    settings: Settings, before_ratio: float, limits_w: Floats, held: Bools, by_clock: Bools, max_w: Floats
) -> float:
    """Which part of their clock those should get who can be slowed, when limits are shared out like this.

    Args:
        settings: the lowest ratio.
        before_ratio: what they have now; small moves change nothing.
        limits_w: as shared out, (n).
        held: whose limit binds, or would, (n).
        by_clock: whose clock is their lever, (n).
        max_w: the most a GPU may get, (n).
    """
    bound = held & ~by_clock
    most_w = float(max_w[bound].sum())
    if most_w <= 0.0 or not np.count_nonzero(by_clock):
        return FREE_RATIO
    fair_ratio = float(limits_w[bound].sum()) / most_w
    if abs(fair_ratio - before_ratio) < STEP_RATIO and fair_ratio < FREE_RATIO - STEP_RATIO / 2:
        return before_ratio
    stepped_ratio = STEP_RATIO * round(fair_ratio / STEP_RATIO)
    return min(FREE_RATIO, max(settings.clock_least_ratio, stepped_ratio))


def ceilings_mhz(settings: Settings, gpus: Gpus, clock_ratio: float) -> Ints:
    """The ceiling of every GPU at that ratio, (n) MHz; 0: none, as where the highest clock is not known."""
    weight = settings.topology.gpu_weight
    slowed = gpus.by_clock & (weight <= weight.min(initial=np.inf)) & (clock_ratio < FREE_RATIO)
    grains = np.rint(clock_ratio * gpus.clock_max_mhz / GRAIN_MHZ)
    ceilings: Ints = np.where(slowed, GRAIN_MHZ * grains, NONE_MHZ).astype(np.int64)
    return ceilings


def lower_mhz(one_mhz: Ints, other_mhz: Ints) -> Ints:
    """The lower of two ceilings, where 0 is none, (n)."""
    either = np.where(one_mhz == NONE_MHZ, other_mhz, one_mhz)
    lower: Ints = np.where(
        (one_mhz > NONE_MHZ) & (other_mhz > NONE_MHZ), np.minimum(one_mhz, other_mhz), either
    )
    return lower
