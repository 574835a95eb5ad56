"""From a GPU budget to orders: who gets what, and when it is safe to let it go out.

`observe` keeps what the GPUs have lately needed. `share` divides the budget anew where something calls for
it. `hand_over` decides what of it may be ordered now: every cut at once, and rises only out of power that
is really free. Free means: not held by a GPU whose cut is still unconfirmed, within the rack, and no
faster than the ramp. So the sum of what GPUs *may* hold never passes the budget while watts change hands,
and power that a fault took away comes back at the agreed rate.

A budget that walks is followed in strides, not at every beat: twenty times a second each GPU would get one
watt less, and a driver call takes 1 to 30 ms. What falls further than that is cut at once, and watts that
only change hands do not wait.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from controller.core import allocation, base_load, clocks, ramp, watch
from controller.core.model import BaseLoad, Bools, Floats, Gpus, Settings, Shares, Snapshot, Topology

HAND_OVER_S: Final = 1.0  # power cut here may reappear there within this time without counting as a rise
AIM_STEP_RATIO: Final = 1e-4  # of the feed rating: smaller moves of the budget call for no new share-out
AIM_LEAP_RATIO: Final = 5e-3  # of the feed rating: such a move does not wait for the next stride
STRIDE_S: Final = 0.2  # between two share-outs, and two rises, while the budget walks
EARLY_S: Final = 0.025  # half a beat: a stride is a number of beats
LATE_S: Final = 2 * STRIDE_S  # at slow or late beats; who waits for longer had nothing to rise to
HELD_RATIO: Final = 0.985  # of a limit that binds is drawn (one V100, github.com/denisa-c/gridpilot)
KNEE_RATIO: Final = 0.002  # of the draw: so much taken away is where a fall begins
HELD_TIME_S: Final = 0.5  # a limit that was lifted takes as long to show in power, peak and report
HELD_LEAST_RATIO: Final = 0.3  # two readings in a row: one is jitter
RECENT_STEP_S: Final = 0.095  # between the kept moments: reports come ten times a second
RECENT_KEPT: Final = 10
KNEE_STEPS: Final = 8  # halvings of what lies between draw and limits
DEADBAND_W: Final = 1.0  # smaller rises are not worth a driver call


class Up(NamedTuple):
    """The way up that is left to the sum of limits."""

    w_per_s: float
    elapsed_s: float  # since the last beat; a late one earns little more


class Heard(NamedTuple):
    """Which GPUs are within reach, arrays (n)."""

    fresh: Bools  # its agent reports
    readable: Bools  # and its limit could be read
    controllable: Bools  # and it takes its orders
    bound: Bools  # and it keeps to them
    seen_at_s: Floats  # when its limit was last read


def observe(
    shares: Shares, gpus: Gpus, power_w: Floats, held_w: Floats, slowed: Bools, now_s: float
) -> Shares:
    elapsed_s = now_s - shares.observed_at_s
    kept_up = power_w <= gpus.floor_w / allocation.CAPPED_RATIO  # by smoothing, whatever its limit
    at_limit = gpus.capped | (power_w >= allocation.CAPPED_RATIO * gpus.limit_w) & ~kept_up
    if now_s - shares.recent_at_s >= RECENT_STEP_S:
        seen_w = np.where(np.isnan(power_w), shares.recent_w[-1], power_w)
        shares = shares._replace(
            recent_w=np.vstack((shares.recent_w[-RECENT_KEPT + 1 :], seen_w)), recent_at_s=now_s
        )
    return shares._replace(
        held_ratio=shares.held_ratio + (at_limit - shares.held_ratio) * min(1.0, elapsed_s / HELD_TIME_S),
        peak_w=allocation.decayed_peak_w(shares.peak_w, power_w, slowed, elapsed_s),
        excess_w=watch.smoothed_excess_w(shares.excess_w, power_w, held_w, elapsed_s),
        observed_at_s=now_s,
    )


def share(
    settings: Settings,
    snapshot: Snapshot,
    shares: Shares,
    base: BaseLoad,
    held_w: Floats,
    present_w: Floats,
    heard: Heard,
    gpu_budget_w: float,
    promised_w: float,
) -> Shares:
    """Divide the budget anew where something calls for it.

    On an agreed way down GPUs are ahead of what is promised, and a stride does not change that. Where it
    would, as before protection or under a base load that climbs, the cut goes out at this beat.
    """
    now_s, since_s = snapshot.now_s, snapshot.now_s - shares.shared_at_s
    moved_ratio = abs(gpu_budget_w - shares.gpu_budget_w) / settings.feed_rating_w
    due = (
        moved_ratio > AIM_LEAP_RATIO
        or (shares.gpu_budget_w - promised_w) / settings.feed_rating_w > AIM_STEP_RATIO
        or (moved_ratio > AIM_STEP_RATIO and since_s >= STRIDE_S - EARLY_S)
        or since_s >= settings.reshare_s
        or (heard.controllable != shares.controllable).any()
        or (heard.bound != shares.bound).any()
    )
    if not due:
        return shares
    budget_of_racks_w = rack_budget_w(settings, snapshot, base)
    desired_w = divided_w(
        settings, snapshot, shares, budget_of_racks_w, held_w, present_w, heard, gpu_budget_w
    )
    return shares._replace(
        desired_w=desired_w,
        shared_at_s=now_s,
        gpu_budget_w=gpu_budget_w,
        rack_budget_w=budget_of_racks_w,
        controllable=heard.controllable,
        bound=heard.bound,
    )


def divided_w(
    settings: Settings,
    snapshot: Snapshot,
    shares: Shares,
    racks_w: Floats,
    held_w: Floats,
    present_w: Floats,
    heard: Heard,
    gpu_budget_w: float,
) -> Floats:
    """A GPU budget over all GPUs, (n) W. Whoever does not obey is left what he may hold; others give way.

    `racks_w` is what each rack has room for, (r).
    """
    gpus, topology, bound = snapshot.gpus, settings.topology, heard.bound
    wants = wanted(settings, snapshot, shares)
    desired_w = allocation.share_out(gpu_budget_w, wants, topology.gpu_rack, racks_w)
    if not bound.all():
        lost_w = np.where(bound, 0.0, held_w)
        lost_rack_w = topology.rack_sums(lost_w)
        inside = allocation.share_out(
            gpu_budget_w - float(lost_w.sum()),
            wants.only(bound),
            topology.gpu_rack[bound],
            racks_w - lost_rack_w,
        )
        # Out of reach: ask for less, never for more; nor for more than its BMC holds it at meanwhile.
        most_w = np.minimum(present_w, np.maximum(held_w, gpus.min_w))
        desired_w = np.where(heard.controllable, desired_w, np.minimum(desired_w, most_w))
        desired_w[bound] = inside
        # Heard of, but not readable: whatever it turns out to hold when it comes back, the waiting order must
        # not lift it.
        hidden = (
            heard.fresh & ~heard.readable & (snapshot.now_s - heard.seen_at_s > settings.report_age_max_s)
        )
        desired_w[hidden] = gpus.min_w[hidden]
    return desired_w


def wanted(settings: Settings, snapshot: Snapshot, shares: Shares) -> allocation.Wants:
    """The steps that every GPU climbs."""
    gpus, topology = snapshot.gpus, settings.topology
    min_w = np.maximum(gpus.min_w, np.minimum(gpus.floor_w, gpus.max_w))
    max_w = np.minimum(gpus.max_w, np.maximum(gpus.cap_w, min_w))
    held = shares.held_ratio > HELD_LEAST_RATIO
    need_w = allocation.need_w(shares.peak_w, held, gpus.by_clock, max_w)
    return allocation.Wants(
        min_w=min_w,
        floor_w=np.minimum(topology.gpu_floor_w, need_w),  # a floor is a right to what is needed, not to room
        need_w=need_w,
        max_w=max_w,
        weight=topology.gpu_weight,
    )


def clock_ratio(
    settings: Settings,
    snapshot: Snapshot,
    shares: Shares,
    before_ratio: float,
    limits_w: Floats,
) -> float:
    """What GPUs that can be slowed get of their clock, when limits are shared out like this; see `clocks`."""
    wants = wanted(settings, snapshot, shares)
    seen = shares.controllable & (shares.held_ratio > HELD_LEAST_RATIO)
    held = seen & (wants.need_w >= wants.max_w)
    return clocks.wanted(settings, before_ratio, limits_w, held, snapshot.gpus.by_clock, wants.max_w)


def knee_w(recent_w: Floats, most_w: float, divided_w: Callable[[float], Floats]) -> float:
    """The GPU budget at which limits begin to take power away, W. More is room that nobody uses.

    It lies above what is drawn: a limit holds a peak, and power is a mean.

    Args:
        recent_w: draws, (moments, n).
        most_w: a budget that takes nothing away.
        divided_w: limits that a budget gives, (n).
    """
    low_w, high_w = float(recent_w.sum(axis=1).mean()), most_w
    enough_w = (1.0 - KNEE_RATIO) * low_w
    for _ in range(KNEE_STEPS):
        middle_w = 0.5 * (low_w + high_w)
        left_w = float(np.minimum(recent_w, HELD_RATIO * divided_w(middle_w)).sum(axis=1).mean())
        low_w, high_w = (middle_w, high_w) if left_w < enough_w else (low_w, middle_w)
    return high_w


def rack_budget_w(settings: Settings, snapshot: Snapshot, base: BaseLoad) -> Floats:
    """GPU power that every rack's inlets have room for, (r) W.

    The fullest inlet decides. While an inlet is unknown, one inlet may be carrying the whole rack.
    """
    topology = settings.topology
    racks = len(topology.rack_names)
    usable = base_load.inlets_usable(settings, snapshot)
    power_w = np.where(usable, snapshot.inlets.power_w, 0.0)
    rack_w = topology.inlet_sums(power_w)
    known = (topology.inlet_sums(~usable) == 0) & (rack_w > 0.0)
    share = np.where(known[topology.inlet_rack], power_w / np.maximum(rack_w, 1.0)[topology.inlet_rack], 1.0)
    carried_w = topology.inlet_continuous_w / np.maximum(share, 1e-3)
    rack_cap_w = np.full(racks, np.finfo(np.float64).max)
    np.minimum.at(rack_cap_w, topology.inlet_rack, carried_w)
    rack_base_w = base_load.rack_upper_w(settings, base, snapshot.now_s)
    return np.maximum(0.0, rack_cap_w - rack_base_w) / settings.block_w_per_gpu_w


def strides(shares: Shares, now_s: float) -> bool:
    """Whether limits may rise beyond what they added up to lately."""
    return now_s - shares.strode_at_s >= STRIDE_S - EARLY_S


def hand_over(
    snapshot: Snapshot,
    shares: Shares,
    topology: Topology,
    held_w: Floats,
    present_w: Floats,
    gpu_budget_w: float,
    up: Up,
) -> tuple[Shares, Floats]:
    """Limits to order now: all cuts, and as much rise as is really free and no faster than the ramp."""
    cut_w = np.floor(np.minimum(shares.desired_w, present_w))
    rise_w = np.where(shares.controllable, shares.desired_w - cut_w, 0.0)
    rise_w[(rise_w < DEADBAND_W) & (shares.desired_w < snapshot.gpus.max_w)] = 0.0
    stride_s = snapshot.now_s - shares.strode_at_s
    lift_w, sums = _lift(shares, float(present_w.sum()), up, stride_s if stride_s < LATE_S else 0.0)
    unheard_w = float((present_w - cut_w)[~shares.controllable].sum())  # cuts that free nothing yet
    lift_w, sums = lift_w - unheard_w, _shifted(sums, -unheard_w)
    is_due = strides(shares, snapshot.now_s)
    standing_w = lift_w if is_due or not sums else min(lift_w, ramp.highest(sums))
    counted_w = np.maximum(held_w, cut_w)
    free_w = min(gpu_budget_w - float(counted_w.sum()), standing_w - float(cut_w.sum()))
    next_w, strode_at_s = cut_w, shares.strode_at_s
    # within a stride only watts that change hands, and no crumbs of them
    if rise_w.any() and (is_due or free_w >= DEADBAND_W * len(rise_w)):
        rack_free_w = shares.rack_budget_w - topology.rack_sums(counted_w)
        next_w = np.floor(cut_w + rise_w * _part(rise_w, free_w, rack_free_w, topology))
        strode_at_s = snapshot.now_s if is_due else strode_at_s
    sums = ramp.window(sums, snapshot.now_s, float(next_w.sum()), HAND_OVER_S)
    return shares._replace(lift_w=lift_w, sums=sums, strode_at_s=strode_at_s), next_w


def _part(rise_w: Floats, free_w: float, rack_free_w: Floats, topology: Topology) -> Floats:
    """Which part of its rise every GPU gets, (n). What has no room in a full rack takes nothing from any."""
    rack_rise_w = topology.rack_sums(rise_w)
    room = np.clip(rack_free_w / np.maximum(rack_rise_w, 1e-9), 0.0, 1.0)
    parts: Floats = room[topology.gpu_rack]
    return parts * min(1.0, max(0.0, free_w) / max(float((room * rack_rise_w).sum()), 1e-9))


def _lift(
    shares: Shares, present_w: float, up: Up, stride_s: float
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """How high the sum of limits may stand now, and the sums of the last second that it is measured from.

    What GPUs turn out to hold less than was ordered (an agent that fell back) is gone from the trail too:
    it comes back at the agreed rate, not at once. Whole watts per GPU need a little credit to move at all,
    and what was earned within a stride waits for its end.
    """
    if not shares.sums:
        return present_w, ()
    found_w = present_w - shares.sums[-1][1]
    sums = _shifted(shares.sums, found_w)
    highest_w = ramp.highest(sums)
    credit_w = DEADBAND_W * len(shares.desired_w) + up.w_per_s * stride_s
    return min(
        max(shares.lift_w + found_w, highest_w), highest_w + credit_w
    ) + up.w_per_s * up.elapsed_s, sums


def _shifted(sums: tuple[tuple[float, float], ...], by_w: float) -> tuple[tuple[float, float], ...]:
    return tuple((at_s, sum_w + by_w) for at_s, sum_w in sums) if by_w else sums
