"""From a GPU budget to orders: who gets what, and when it is safe to let it go out.

`observe` keeps what the GPUs have lately needed. `share` divides the budget anew where something calls for
it. `hand_over` decides what of it may be ordered now: every cut at once, and rises only out of power that
is really free. Free means: not held by a GPU whose cut is still unconfirmed, within the rack, and no
faster than the ramp. So the sum of what GPUs *may* hold never passes the budget while watts change hands,
and power that a fault took away comes back at the agreed rate.
"""

from typing import Final, NamedTuple

import numpy as np

from controller.core import allocation, base_load, ramp, watch
from controller.core.model import BaseLoad, Bools, Floats, Settings, Shares, Snapshot, Topology

HAND_OVER_S: Final = 1.0  # power cut here may reappear there within this time without counting as a rise
AIM_STEP_RATIO: Final = 1e-4  # of the feed rating: smaller moves of the budget call for no new share-out
DEADBAND_W: Final = 1.0  # smaller rises are not worth a driver call


class Heard(NamedTuple):
    """Which GPUs are within reach, arrays (n)."""

    fresh: Bools  # its agent reports
    readable: Bools  # and its limit could be read
    controllable: Bools  # and it takes its orders
    seen_at_s: Floats  # when its limit was last read


def observe(shares: Shares, power_w: Floats, held_w: Floats, now_s: float) -> Shares:
    elapsed_s = now_s - shares.observed_at_s
    return shares._replace(
        peak_w=allocation.decayed_peak_w(shares.peak_w, power_w, elapsed_s),
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
) -> Shares:
    """Divide the budget anew where something calls for it; GPUs out of reach keep what they may hold."""
    now_s, controllable = snapshot.now_s, heard.controllable
    step_w = AIM_STEP_RATIO * settings.feed_rating_w
    due = (
        abs(gpu_budget_w - shares.gpu_budget_w) > step_w
        or now_s - shares.shared_at_s >= settings.reshare_s
        or (controllable != shares.controllable).any()
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
        controllable=controllable,
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
    """A GPU budget over all GPUs, (n) W; those out of reach keep what they may hold.

    `racks_w` is what each rack has room for, (r).
    """
    gpus, topology, controllable = snapshot.gpus, settings.topology, heard.controllable
    max_w = np.minimum(gpus.max_w, np.maximum(gpus.cap_w, gpus.min_w))
    wants = allocation.Wants(
        min_w=gpus.min_w,
        floor_w=np.minimum(topology.gpu_floor_w, max_w),
        need_w=allocation.need_w(shares.peak_w, gpus.power_w, present_w, max_w),
        max_w=max_w,
        weight=topology.gpu_weight,
    )
    desired_w = allocation.share_out(gpu_budget_w, wants, topology.gpu_rack, racks_w)
    if not controllable.all():
        lost_w = np.where(controllable, 0.0, held_w)
        lost_rack_w = topology.rack_sums(lost_w)
        inside = allocation.share_out(
            gpu_budget_w - float(lost_w.sum()),
            wants.only(controllable),
            topology.gpu_rack[controllable],
            racks_w - lost_rack_w,
        )
        desired_w = np.minimum(desired_w, present_w)  # out of reach: ask for less, never for more
        desired_w[controllable] = inside
        # Heard of, but not readable: whatever it turns out to hold when it comes back, the waiting order must
        # not lift it.
        hidden = (
            heard.fresh & ~heard.readable & (snapshot.now_s - heard.seen_at_s > settings.report_age_max_s)
        )
        desired_w[hidden] = gpus.min_w[hidden]
    return desired_w


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


def hand_over(
    snapshot: Snapshot,
    shares: Shares,
    topology: Topology,
    held_w: Floats,
    present_w: Floats,
    gpu_budget_w: float,
    lift_max_w: float,
) -> tuple[Shares, Floats]:
    """Limits to order now: all cuts, and as much rise as is really free and no faster than the ramp."""
    cut_w = np.floor(np.minimum(shares.desired_w, present_w))
    rise_w = np.where(shares.controllable, shares.desired_w - cut_w, 0.0)
    rise_w[(rise_w < DEADBAND_W) & (shares.desired_w < snapshot.gpus.max_w)] = 0.0
    lift_w, sums = _lift(shares, float(present_w.sum()), lift_max_w)
    unheard_w = float((present_w - cut_w)[~shares.controllable].sum())  # cuts that free nothing yet
    lift_w, sums = lift_w - unheard_w, _shifted(sums, -unheard_w)
    next_w = cut_w
    if rise_w.any():
        counted_w = np.maximum(held_w, cut_w)
        free_w = min(gpu_budget_w - float(counted_w.sum()), lift_w - float(cut_w.sum()))
        part = min(1.0, max(0.0, free_w) / float(rise_w.sum()))
        rack_free_w = shares.rack_budget_w - topology.rack_sums(counted_w)
        rack_rise_w = topology.rack_sums(rise_w)
        rack_part = np.clip(rack_free_w / np.maximum(rack_rise_w, 1e-9), 0.0, part)
        next_w = np.floor(cut_w + rise_w * rack_part[topology.gpu_rack])
    sums = ramp.window(sums, snapshot.now_s, float(next_w.sum()), HAND_OVER_S)
    return shares._replace(lift_w=lift_w, sums=sums), next_w


def _lift(
    shares: Shares, present_w: float, lift_max_w: float
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """How high the sum of limits may stand now, and the sums of the last second that it is measured from.

    What GPUs turn out to hold less than was ordered (an agent that fell back) is gone from the trail too:
    it comes back at the agreed rate, not at once. Whole watts per GPU need a little credit to move at all.
    """
    if not shares.sums:
        return present_w, ()
    found_w = present_w - shares.sums[-1][1]
    sums = _shifted(shares.sums, found_w)
    highest_w = ramp.highest(sums)
    credit_w = DEADBAND_W * len(shares.desired_w)
    return min(max(shares.lift_w + found_w, highest_w), highest_w + credit_w) + lift_max_w, sums


def _shifted(sums: tuple[tuple[float, float], ...], by_w: float) -> tuple[tuple[float, float], ...]:
    return tuple((at_s, sum_w + by_w) for at_s, sum_w in sums) if by_w else sums
