"""Base load: block power that no GPU limit can move (hosts, fans, losses), as an upper estimate.

It is a difference, meter minus GPUs, and a difference of two measurements counts only if both are of one
moment. So every meter reading is held against the GPU power of its own moment, the meter's lag taken off,
and what remains is averaged over two seconds: the workload's own swings never line up exactly, and an
estimate that jumps makes a ramp that jumps. The last second alone counts where it says more than noise can
explain. A moment at which some GPU was unknown does not count: samples of the GPUs come in unbroken runs, and
what is read is read inside of one. Without such a reading the last good value stands, and after
`base_age_max_s` the assumed maximum does. (Meter minus the *known* GPUs bounds the base load from above at
any moment, so it may lower that assumption.) How well the moments are known against each other is part of
the estimate. It rises at once and falls slowly, no faster than the block may ramp up, and less than
`base_min_w` is not believed.

The PDUs are the second witness. They lag too much to lead while the block ramps, so they only bound the
meter's word from below, less a tolerance: a meter that lies low is caught here. Per rack they lead.
"""

from typing import Final

import numpy as np

from controller.core.model import NEVER_S, BaseLoad, Bools, Carried, Floats, Settings, Snapshot

WINDOW_S: Final = 2.0
SHORT_WINDOW_S: Final = 1.0
BOUND_LEAST_S: Final = 0.7  # readings of less time say nothing: a cut of much power may lie among them
NOISE_RATIO: Final = 0.004  # of the feed rating: what swings that do not line up do to a mean over a second
STEP_RATIO: Final = 0.02  # of the feed rating, in one beat: a ramp moves by a tenth of that
NEAR_S: Final = 1.0  # GPU samples no further apart vouch for a meter reading between them
INLET_MEAN_S: Final = 1.0  # what a PDU averages over
RACK_SMOOTHING_S: Final = 4.0  # inlets are rated for hours: a swing that a PDU saw late is not chased
FALL_PER_S: Final = 2.0  # share of the gap that the upper estimate falls in a second
KEPT_MAX: Final = 130  # samples; METER_KEPT_S and NEAR_S at 20 Hz and some reserve
METER_KEPT_S: Final = 5.0  # few readings of one run count with older ones
NO_RUN: Final = -1  # of a GPU sample: some GPU was unknown, or a cut of much power settles


def start(settings: Settings, now_s: float, carried: Carried | None = None) -> BaseLoad:
    """Nothing is measured yet; what the process before measured stands for as long as it may."""
    topology = settings.topology
    racks, inlets = len(topology.rack_names), len(topology.inlet_names)
    return BaseLoad(
        upper_w=settings.base_max_w if carried is None else max(carried.base_w, settings.base_min_w),
        measured_at_s=NEVER_S if carried is None else carried.base_at_s,
        rack_upper_w=settings.rack_base_max_w.copy(),
        rack_measured_at_s=np.full(racks, NEVER_S),
        gpu_at_s=np.full(1, NEVER_S),
        gpu_rack_w=np.zeros((1, racks)),
        gpu_run=np.full(1, NO_RUN),
        run=0,
        settled_at_s=now_s,
        meter_at_s=np.zeros(0),
        meter_w=np.zeros(0),
        inlet_at_s=np.full(inlets, NEVER_S),
        disbelieved_at_s=NEVER_S,
        bound_w=settings.base_max_w,
        bounded_at_s=NEVER_S,
    )


def update(
    settings: Settings, base: BaseLoad, snapshot: Snapshot, power_w: Floats, *, reported: bool
) -> BaseLoad:
    """Take in what is new. `power_w` (n): GPU draws, NaN where unknown; `reported`: some agent spoke."""
    if np.count_nonzero(np.isnan(power_w)):
        base = base._replace(run=base.run + 1)
    if reported:
        base = _with_gpus(settings, base, snapshot, power_w)
    meter = snapshot.meter
    newer = len(base.meter_at_s) == 0 or meter.taken_at_s > base.meter_at_s[-1]
    if newer and meter.is_usable(snapshot.now_s, settings.meter_age_max_s):
        base = _with_meter(settings, base, meter.taken_at_s, meter.value)
    if np.count_nonzero(snapshot.inlets.taken_at_s > base.inlet_at_s):
        base = _with_inlets(settings, base, snapshot)
    return base


def after_order(
    settings: Settings, base: BaseLoad, limits_w: Floats, before_w: Floats, now_s: float
) -> BaseLoad:
    """A cut of much power at once makes its moments useless: nobody dates them to a tenth of a second.

    Readings of the GPUs after it, held against readings of the meter from before it, would look like base
    load; so a run of samples ends here, and the next begins when the cut has settled.
    """
    if settings.block_w_per_gpu_w * float((before_w - limits_w).sum()) < STEP_RATIO * settings.feed_rating_w:
        return base
    return base._replace(run=base.run + 1, settled_at_s=now_s + settings.settle_s)


def is_unbroken(base: BaseLoad, since_s: float) -> bool:
    """Whether all GPUs were heard and known since then, and no cut of much power fell into it."""
    runs = base.gpu_run[base.gpu_at_s > since_s]
    return len(runs) > 0 and bool((runs == base.run).all())


def upper_w(settings: Settings, base: BaseLoad, now_s: float) -> float:
    """Upper estimate of the base load now, W."""
    if now_s - base.measured_at_s <= settings.base_age_max_s:
        return base.upper_w + settings.base_margin_w
    worst_w = max(settings.base_max_w, base.upper_w)  # what was measured is possible, whatever was assumed
    if now_s - base.bounded_at_s <= settings.meter_age_max_s:
        worst_w = min(worst_w, base.bound_w)
    return worst_w + settings.base_margin_w


def rack_upper_w(settings: Settings, base: BaseLoad, now_s: float) -> Floats:
    """The same per rack, (r) W."""
    known = now_s - base.rack_measured_at_s <= settings.base_age_max_s
    worst_w = np.maximum(base.rack_upper_w, settings.rack_base_max_w)
    upper_w: Floats = np.where(known, base.rack_upper_w, worst_w)
    return upper_w


def _with_gpus(settings: Settings, base: BaseLoad, snapshot: Snapshot, power_w: Floats) -> BaseLoad:
    topology, node_at_s = settings.topology, snapshot.gpus.node_at_s
    heard_at_s = node_at_s[node_at_s > snapshot.now_s - settings.report_age_max_s]
    moment_s = float(heard_at_s.sum()) / max(1, len(heard_at_s))
    if len(heard_at_s) == 0 or moment_s <= base.gpu_at_s[-1]:
        return base
    unknown = np.isnan(power_w)
    known_w = np.where(unknown, 0.0, power_w)
    run = NO_RUN if unknown.any() or moment_s <= base.settled_at_s else base.run
    keep = slice(-KEPT_MAX + 1, None)
    return base._replace(
        gpu_at_s=np.concatenate((base.gpu_at_s[keep], (moment_s,))),
        gpu_rack_w=np.concatenate((base.gpu_rack_w[keep], topology.rack_sums(known_w)[np.newaxis])),
        gpu_run=np.concatenate((base.gpu_run[keep], (run,))),
    )


def _with_meter(settings: Settings, base: BaseLoad, at_s: float, power_w: float) -> BaseLoad:
    kept = base.meter_at_s > at_s - METER_KEPT_S
    base = base._replace(
        meter_at_s=np.concatenate((base.meter_at_s[kept], (at_s,))),
        meter_w=np.concatenate((base.meter_w[kept], (power_w,))),
    )
    covered, complete = _covered(settings, base)
    if not complete.any():
        covered_at_s = base.meter_at_s[covered]
        if not covered.any() or covered_at_s[-1] - covered_at_s[0] < BOUND_LEAST_S:
            return base
        # some GPU was unknown: what is left beside the known ones is too much, never too little
        bound_w = _rest_w(settings, base, covered)
        bounded_at_s = float(base.meter_at_s[covered][-1])
        return base._replace(bound_w=max(bound_w, settings.base_min_w), bounded_at_s=bounded_at_s)
    newest_s = float(base.meter_at_s[complete][-1])
    elapsed_s = newest_s - base.measured_at_s
    if elapsed_s <= 0.0:  # no reading of a complete moment is new
        return base
    enough = np.count_nonzero(base.meter_at_s > at_s - SHORT_WINDOW_S)
    sample_w = _rest_w(settings, base, complete)
    newest = complete & (base.meter_at_s > newest_s - SHORT_WINDOW_S)
    if np.count_nonzero(newest) >= enough:  # what climbs more than noise counts
        sample_w = max(sample_w, _rest_w(settings, base, newest) - NOISE_RATIO * settings.feed_rating_w)
    witnessed = (base.rack_measured_at_s > at_s - settings.inlet_age_max_s).all()
    racks_w = float(base.rack_upper_w.sum())
    if sample_w < settings.base_min_w:  # no tolerance for a meter that cannot be right
        base = base._replace(disbelieved_at_s=at_s)
        if not witnessed:
            return base
        sample_w = max(racks_w, settings.base_min_w)
    elif witnessed:
        sample_w = max(sample_w, racks_w - settings.witness_tolerance_w)
    if base.measured_at_s > NEVER_S:
        # Less than the readings of a second is few: they may raise the estimate, not lower it.
        stood_w = upper_w(settings, base, at_s) - settings.base_margin_w
        few = np.count_nonzero(complete) < enough and elapsed_s <= settings.base_age_max_s
        sample_w = max(stood_w, sample_w) if few else _slow_fall(settings, stood_w, sample_w, elapsed_s)
    return base._replace(upper_w=sample_w, measured_at_s=newest_s)


def _covered(settings: Settings, base: BaseLoad) -> tuple[Bools, Bools]:
    """(k) which meter readings have GPU samples shortly before and after their moment; and of one run.

    Those of the last two seconds; of one run as many as the meter takes in a second, if they are older.
    """
    moment_s = base.meter_at_s - settings.meter_lag_s
    before = np.searchsorted(base.gpu_at_s, moment_s - settings.skew_s, side="right") - 1
    after = np.searchsorted(base.gpu_at_s, moment_s + settings.skew_s)
    inside = (before >= 0) & (after < len(base.gpu_at_s))
    before, after = np.maximum(before, 0), np.minimum(after, len(base.gpu_at_s) - 1)
    covered: Bools = inside & (base.gpu_at_s[after] - base.gpu_at_s[before] < NEAR_S)
    runs = base.gpu_run[before]
    complete: Bools = covered & (runs != NO_RUN) & (runs == base.gpu_run[after])
    if not covered.any():
        return covered, complete
    recent = base.meter_at_s > base.meter_at_s[covered][-1] - WINDOW_S
    enough = np.count_nonzero(base.meter_at_s > base.meter_at_s[-1] - SHORT_WINDOW_S)
    if np.count_nonzero(complete & recent) >= enough:
        return covered & recent, complete & recent
    return covered & recent, complete & (np.cumsum(complete[::-1])[::-1] <= enough)


def _rest_w(settings: Settings, base: BaseLoad, chosen: Bools) -> float:
    """Mean of meter minus GPUs over the chosen readings, and what a skew of the moments may hide in it."""
    moment_s = base.meter_at_s[chosen] - settings.meter_lag_s
    skews_s = np.array(((-settings.skew_s,), (0.0,), (settings.skew_s,)))
    sums_w = np.interp(moment_s + skews_s, base.gpu_at_s, base.gpu_rack_w.sum(axis=1)).sum(axis=1)
    earlier_w, gpu_w, later_w = (sums_w / len(moment_s)).tolist()
    hidden_w = max(abs(later_w - gpu_w), abs(gpu_w - earlier_w))
    metered_w = float(base.meter_w[chosen].sum()) / len(moment_s)
    rest_w: float = metered_w - settings.block_w_per_gpu_w * (gpu_w - hidden_w)
    return rest_w


def _with_inlets(settings: Settings, base: BaseLoad, snapshot: Snapshot) -> BaseLoad:
    topology, inlets = settings.topology, snapshot.inlets
    usable = inlets_usable(settings, snapshot)
    complete = topology.inlet_sums(~usable) == 0
    moved = topology.inlet_sums(inlets.taken_at_s > base.inlet_at_s) > 0
    rack_w = topology.inlet_sums(np.where(usable, inlets.power_w, 0.0))
    upper_w, measured_at_s = base.rack_upper_w.copy(), base.rack_measured_at_s.copy()
    for rack in np.flatnonzero(complete & moved):
        at_s = float(inlets.taken_at_s[topology.inlet_rack == rack].mean())
        gpu_rack_w = _gpus_until(base, at_s - settings.inlet_lag_s)
        if gpu_rack_w is None:
            continue
        sample_w = max(0.0, rack_w[rack] - settings.block_w_per_gpu_w * gpu_rack_w[rack])
        elapsed_s = at_s - measured_at_s[rack]
        if elapsed_s <= settings.base_age_max_s:
            sample_w = upper_w[rack] + (sample_w - upper_w[rack]) * min(1.0, elapsed_s / RACK_SMOOTHING_S)
        upper_w[rack] = sample_w
        measured_at_s[rack] = at_s
    return base._replace(rack_upper_w=upper_w, rack_measured_at_s=measured_at_s, inlet_at_s=inlets.taken_at_s)


def inlets_usable(settings: Settings, snapshot: Snapshot) -> Bools:
    """(m): good and young enough."""
    age_s = snapshot.now_s - snapshot.inlets.taken_at_s
    return snapshot.inlets.good & (age_s >= -0.001) & (age_s <= settings.inlet_age_max_s)


def _gpus_until(base: BaseLoad, at_s: float) -> Floats | None:
    """Mean GPU power per rack while the PDU averaged until `at_s`; None where some of it is unknown."""
    since_s = at_s - INLET_MEAN_S
    inside = (base.gpu_at_s > since_s) & (base.gpu_at_s <= at_s)
    if not inside.any() or base.gpu_at_s[0] > since_s:
        return None
    runs = base.gpu_run[inside]
    if runs[0] == NO_RUN or runs[0] != runs[-1]:
        return None
    mean_w: Floats = base.gpu_rack_w[inside].mean(axis=0)
    return mean_w


def _slow_fall(settings: Settings, stood_w: float, sample_w: float, elapsed_s: float) -> float:
    """What the estimate loses, limits of GPUs gain: no faster than the block may ramp up."""
    if sample_w >= stood_w:
        return sample_w
    fallen_w = (stood_w - sample_w) * min(1.0, FALL_PER_S * elapsed_s)
    return stood_w - min(fallen_w, settings.ramp.up_w_per_s * min(elapsed_s, SHORT_WINDOW_S))
