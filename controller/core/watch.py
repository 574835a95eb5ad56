"""Does the physics obey, and is everyone there? Alarms, each with a name, a delay and a sentence.

An alarm is a condition that has held, at every look, for its delay. Delays are short enough for a person
to trust the panel and long enough for one lost message to pass unseen. Nothing here changes a limit, with
one exception: power that a GPU draws above the limit it holds is handed back to the law as an excess, and
is counted from then on like everything else.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from controller.core import base_load
from controller.core.model import (
    NEVER_S,
    Alarm,
    BaseLoad,
    Bools,
    Decision,
    Floats,
    Link,
    Mode,
    Settings,
    Shares,
    Snapshot,
    Topology,
    Watch,
)

EXCESS_RATIO: Final = 0.03  # limits bound an average: peaks of some percent are normal
EXCESS_SMOOTHING_S: Final = 1.0
OVER_BUDGET_RATIO: Final = 0.01
SHORTFALL_RATIO: Final = 0.005  # of the feed rating
RACK_TOLERANCE_W: Final = 20.0  # rounding of a rack's limits
INLET_OVER_RATIO: Final = 1.02  # meters repeat to a percent
RACK_FULL_RATIO: Final = 0.98
RACKS_NAMED_MAX: Final = 4
LOOK_EVERY_S: Final = 0.199  # five times a second: shorter than any delay, longer than a beat
NAMED_MAX: Final = 8  # alarms of one kind that are spelt out; a dead rack must not flood the panel


class Seen(NamedTuple):
    """What the law found out in this tick, for the watch."""

    base: BaseLoad
    shares: Shares
    link: Link
    fresh: Bools  # (n)
    readable: Bools  # (n)
    counted_w: Floats  # (n) limits that GPUs may hold
    budget_w: float
    shortfall_w: float


class Condition(NamedTuple):
    key: str
    text: str
    delay_s: float


def smoothed_excess_w(excess_w: Floats, power_w: Floats, held_w: Floats, elapsed_s: float) -> Floats:
    """Draw above the limit, smoothed over a second; unreadable draws (NaN) keep what was known."""
    now_w = np.where(np.isnan(power_w), excess_w, np.maximum(0.0, power_w - held_w))
    return excess_w + (now_w - excess_w) * min(1.0, elapsed_s / EXCESS_SMOOTHING_S)


def disobedience_w(excess_w: Floats, held_w: Floats) -> Floats:
    """What must be counted on top of the limits, (n) W."""
    return np.where(excess_w > EXCESS_RATIO * held_w, excess_w, 0.0)


def start() -> Watch:
    return Watch(NEVER_S, {}, ())


def look(settings: Settings, before: Watch, snapshot: Snapshot, seen: Seen) -> Watch:
    """Conditions that hold, with the moment they began, and those that have outlasted their delay."""
    now_s = snapshot.now_s
    if 0.0 <= now_s - before.looked_at_s < LOOK_EVERY_S:
        return before
    conditions = [
        *_block(settings, snapshot, seen),
        *_instruments(settings, snapshot, seen),
        *_gpus(settings, snapshot, seen),
    ]
    since_s = {condition.key: before.raised_at_s.get(condition.key, now_s) for condition in conditions}
    alarms = tuple(
        Alarm(condition.key, condition.text)
        for condition in conditions
        if now_s - since_s[condition.key] >= condition.delay_s
    )
    return Watch(now_s, since_s, alarms)


def why(settings: Settings, decision: Decision) -> str:
    """The decision in one sentence, for a panel."""
    pace, binding = decision.state.pace, decision.binding
    way = "at" if pace.aim_w >= binding.power_w else "below, ramping up to"
    way = "above, ramping down to" if pace.aim_w > binding.power_w else way
    short_kw = decision.shortfall_w / 1e3
    return (
        f"budget {decision.budget_w / 1e3:.2f} kW, {way} {binding.power_w / 1e3:.2f} kW ({binding.source});"
        f" base load up to {decision.base_w / 1e3:.2f} kW"
        + (f"; {short_kw:.2f} kW more than promised cannot be shed" if short_kw > 0.0 else "")
        + _held_racks(settings.topology, decision)
    )


def _held_racks(topology: Topology, decision: Decision) -> str:
    """Which racks are held by their inlets rather than by the budget, as the end of a sentence."""
    most_w, room_w = topology.rack_sums(topology.gpu_max_w), decision.state.shares.rack_budget_w
    full = topology.rack_sums(decision.gpu_limits_w) > RACK_FULL_RATIO * np.minimum(room_w, most_w)
    held = np.flatnonzero(full & (room_w < most_w))
    names = ", ".join(topology.rack_names[rack] for rack in held[:RACKS_NAMED_MAX])
    return f"; held by their inlets: {names}" if names else ""


def _block(settings: Settings, snapshot: Snapshot, seen: Seen) -> Iterator[Condition]:
    now_s, budget_w, shortfall_w, mode = snapshot.now_s, seen.budget_w, seen.shortfall_w, seen.link.mode
    if shortfall_w > SHORTFALL_RATIO * settings.feed_rating_w:
        yield Condition(
            "shortfall", f"{shortfall_w / 1e3:.2f} kW above the promised line cannot be shed", 1.0
        )
    if snapshot.meter.is_usable(now_s, settings.meter_age_max_s):
        metered_w = snapshot.meter.value
        if metered_w > budget_w * (1.0 + OVER_BUDGET_RATIO):
            yield Condition(
                "over budget", f"meter reads {metered_w / 1e3:.2f} kW, promised {budget_w / 1e3:.2f} kW", 1.0
            )
    else:
        yield Condition("meter", "block meter not usable: base load is assumed, not measured", 1.0)
    if now_s - seen.base.disbelieved_at_s <= settings.meter_age_max_s:
        yield Condition("meter implausible", "block meter reads less than the GPUs and hosts draw", 1.0)
    if mode is Mode.FAILSAFE:
        yield Condition("site lost", "no heartbeat from the site: failsafe limit holds", 0.0)
    if mode is Mode.INIT:
        yield Condition("site not heard", "the site has not spoken since start: failsafe limit holds", 0.0)


def _instruments(settings: Settings, snapshot: Snapshot, seen: Seen) -> Iterator[Condition]:
    topology, inlets = settings.topology, snapshot.inlets
    over_rack_w = topology.rack_sums(seen.counted_w) - seen.shares.rack_budget_w
    for rack in np.flatnonzero(over_rack_w > RACK_TOLERANCE_W)[:NAMED_MAX]:
        over_kw = settings.block_w_per_gpu_w * over_rack_w[rack] / 1e3
        name = topology.rack_names[rack]
        yield Condition(
            f"rack {name}", f"GPUs of {name} may draw {over_kw:.2f} kW more than its inlets carry", 1.0
        )
    usable = base_load.inlets_usable(settings, snapshot)
    full = usable & (inlets.power_w > INLET_OVER_RATIO * topology.inlet_continuous_w)
    for inlet in np.flatnonzero(full)[:NAMED_MAX]:
        carries = f"{inlets.power_w[inlet] / 1e3:.2f} of {topology.inlet_continuous_w[inlet] / 1e3:.2f} kW"
        name = topology.inlet_names[inlet]
        yield Condition(f"inlet {name}", f"inlet {name} carries {carries} that it may carry for long", 2.0)
    for inlet in np.flatnonzero(~usable)[:NAMED_MAX]:
        name = topology.inlet_names[inlet]
        yield Condition(f"pdu {name}", f"PDU {name} not usable: its rack counts as on one inlet", 1.0)
    if settings.cooling_blind_w is not None and not snapshot.cooling.is_usable(
        snapshot.now_s, settings.cooling_age_max_s
    ):
        yield Condition("cooling", "cooling capacity unknown: its blind limit holds", 1.0)


def _gpus(settings: Settings, snapshot: Snapshot, seen: Seen) -> Iterator[Condition]:
    topology, gpus = settings.topology, snapshot.gpus
    silent = snapshot.now_s - gpus.node_at_s > settings.report_age_max_s
    for node in np.flatnonzero(silent)[:NAMED_MAX]:
        name = topology.node_names[node]
        yield Condition(f"agent {name}", f"agent on {name} silent: its GPUs count at what they may hold", 1.0)
    for node in np.flatnonzero(~gpus.node_leased & ~silent)[:NAMED_MAX]:
        name = topology.node_names[node]
        yield Condition(f"lease {name}", f"{name} does not act on our orders", 1.0)
    broken = seen.fresh & ~(seen.readable & seen.shares.controllable)
    broken &= gpus.node_leased[topology.gpu_node]
    for gpu in np.flatnonzero(broken)[:NAMED_MAX]:
        name = topology.gpu_name(int(gpu))
        yield Condition(f"gpu {name}", f"GPU {name} unreadable or not taking its limit", 1.0)
    wild = seen.shares.excess_w > EXCESS_RATIO * gpus.limit_w
    for gpu in np.flatnonzero(wild)[:NAMED_MAX]:
        name = topology.gpu_name(int(gpu))
        text = f"GPU {name} draws {seen.shares.excess_w[gpu]:.0f} W above its limit"
        yield Condition(f"excess {name}", text, 1.0)
