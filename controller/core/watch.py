"""Does the physics obey, and is everyone there? Alarms, each with a name, a delay and a sentence.

An alarm is a condition that has held for its delay, beat by beat. Delays are short enough for a person
to trust the panel and long enough for one lost message to pass unseen. Nothing here changes a limit, with
one exception: power that a GPU draws above the limit it holds is handed back to the law as an excess, is
counted from then on like everything else, and once it lasts the others give way to it.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from controller.core import base_load, frequency
from controller.core.frequency_model import FrequencyState
from controller.core.model import (
    FOREVER_S,
    Alarm,
    BaseLoad,
    Bools,
    Decision,
    Floats,
    Ints,
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
EXCESS_LASTS_S: Final = 2.0  # then the others give way; after a cut at once its smoothed tail takes 1.2 s
OVER_BUDGET_RATIO: Final = 0.01
SHORTFALL_RATIO: Final = 0.005  # of the feed rating
RACK_TOLERANCE_W: Final = 20.0  # rounding of a rack's limits
INLET_OVER_RATIO: Final = 1.02  # meters repeat to a percent
RACK_FULL_RATIO: Final = 0.98
RACKS_NAMED_MAX: Final = 4
NAMED_MAX: Final = 8  # alarms of one kind that are spelt out
SHED_PLAN_DELAY_S: Final = 5.0  # tables are renewed a level at a time
COMMITMENT_DELAY_S: Final = 5.0  # what a block draws swings with its work
THE_BLOCK: Final = np.ones(1, dtype=np.bool_)
SITE_MISSING: Final = {
    Mode.FAILSAFE: ("site lost", "no heartbeat from {}: its failsafe limit holds"),
    Mode.INIT: ("site not heard", "{} has not spoken since start: its failsafe limit holds"),
}


class Seen(NamedTuple):
    """What the law found out in this tick, for the watch."""

    base: BaseLoad
    shares: Shares
    links: tuple[Link, ...]
    fresh: Bools  # (n)
    readable: Bools  # (n)
    counted_w: Floats  # (n) limits that GPUs may hold
    budget_w: float
    shortfall_w: float
    plan_short_w: Floats  # (levels) by which every level of shedding would miss its power
    least_w: float  # that the block could be brought to: minima, floors, and who is out of reach
    response: FrequencyState | None  # None: nothing was committed to the grid


class Condition(NamedTuple):
    """What must not last: one of the block, or one for each rack, inlet, node or GPU."""

    kind: str
    holds: Bools  # (1) of the block, else over racks, inlets, nodes or GPUs
    text: Callable[[int], str]
    name: Callable[[int], str] = lambda _: ""
    delay_s: float = 1.0


def smoothed_excess_w(excess_w: Floats, power_w: Floats, held_w: Floats, elapsed_s: float) -> Floats:
    """Draw above the limit, smoothed over a second; unreadable draws (NaN) keep what was known."""
    now_w = np.where(np.isnan(power_w), excess_w, np.maximum(0.0, power_w - held_w))
    return excess_w + (now_w - excess_w) * min(1.0, elapsed_s / EXCESS_SMOOTHING_S)


def disobedience_w(excess_w: Floats, held_w: Floats) -> Floats:
    """What must be counted on top of the limits, (n) W."""
    return np.where(excess_w > EXCESS_RATIO * held_w, excess_w, 0.0)


def start() -> Watch:
    return Watch({}, ())


def look(settings: Settings, before: Watch, snapshot: Snapshot, seen: Seen) -> Watch:
    """Conditions that hold, with the moment they began, and those that have outlasted their delay."""
    now_s = snapshot.now_s
    since_s: dict[str, Floats] = {}
    alarms: list[Alarm] = []
    for condition in (
        *_block(settings, snapshot, seen),
        *_sources(settings, seen),
        *_plans(settings, seen),
        *_commitment(settings, seen),
        *_instruments(settings, snapshot, seen),
        *_gpus(settings, snapshot, seen),
    ):
        if not np.count_nonzero(condition.holds):
            continue
        began_s = np.minimum(before.since_s.get(condition.kind, FOREVER_S), now_s)
        since_s[condition.kind] = np.where(condition.holds, began_s, FOREVER_S)
        alarms += _due(condition, np.flatnonzero(now_s - since_s[condition.kind] >= condition.delay_s))
    return Watch(since_s, tuple(alarms))


def _due(condition: Condition, indices: Ints) -> Iterator[Alarm]:
    """The first of one kind by name, the others by number: a dead rack must not flood the panel."""
    for index in indices[:NAMED_MAX].tolist():
        yield Alarm(f"{condition.kind} {condition.name(index)}".rstrip(), condition.text(index))
    others = len(indices) - NAMED_MAX
    if others > 0:
        yield Alarm(f"{condition.kind} others", f"{others} more like those named")


def why(settings: Settings, decision: Decision) -> str:
    """The decision in one sentence, for a panel."""
    pace, binding = decision.state.pace, decision.binding
    way = "at" if pace.aim_w >= binding.power_w else "below, ramping up to"
    way = "above, ramping down to" if pace.aim_w > binding.power_w else way
    short_kw = round(decision.shortfall_w / 1e3, 2)
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
    now_s, budget_w, shortfall_w = snapshot.now_s, seen.budget_w, seen.shortfall_w
    if shortfall_w > SHORTFALL_RATIO * settings.feed_rating_w:
        yield Condition(
            "shortfall",
            THE_BLOCK,
            lambda _: f"{shortfall_w / 1e3:.2f} kW above the promised line cannot be shed",
        )
    metered_w = snapshot.meter.value
    if not snapshot.meter.is_usable(now_s, settings.meter_age_max_s):
        text = "block meter not usable: base load is assumed, not measured"
        yield Condition("meter", THE_BLOCK, lambda _: text)
    elif metered_w > budget_w * (1.0 + OVER_BUDGET_RATIO):
        yield Condition(
            "over budget",
            THE_BLOCK,
            lambda _: f"meter reads {metered_w / 1e3:.2f} kW, promised {budget_w / 1e3:.2f} kW",
        )
    if now_s - seen.base.disbelieved_at_s <= settings.meter_age_max_s:
        yield Condition(
            "meter implausible",
            THE_BLOCK,
            lambda _: "block meter reads less than the GPUs and hosts draw",
        )


def _sources(settings: Settings, seen: Seen) -> Iterator[Condition]:
    names = [failsafe.source for failsafe in settings.failsafes]
    for mode, (kind, text) in SITE_MISSING.items():
        yield Condition(
            kind,
            np.array([link.mode is mode for link in seen.links], dtype=np.bool_),
            lambda source, text=text: text.format(names[source]),  # type: ignore[misc]
            names.__getitem__,
            delay_s=0.0,
        )


def _plans(settings: Settings, seen: Seen) -> Iterator[Condition]:
    levels, short_w = settings.shed_levels, seen.plan_short_w
    if levels:
        yield Condition(
            "shed plan",
            short_w > SHORTFALL_RATIO * settings.feed_rating_w,
            lambda level: (
                f"shed level {levels[level].name} would end {short_w[level] / 1e3:.2f} kW above its"
                f" {levels[level].limit_w / 1e3:.2f} kW if it were called now"
            ),
            lambda level: levels[level].name,
            delay_s=SHED_PLAN_DELAY_S,
        )


def _commitment(settings: Settings, seen: Seen) -> Iterator[Condition]:
    """What was committed to the grid against what could be shed, reckoned like the level of a shed plan."""
    product = settings.frequency
    leaves_w = None if seen.response is None else frequency.leaves_w(seen.response)
    if product is None or leaves_w is None:
        return
    could_w = max(0.0, leaves_w - seen.least_w)
    if could_w < product.committed_w:
        yield Condition(
            "frequency commitment",
            THE_BLOCK,
            lambda _: (
                f"{product.product}: {product.committed_w / 1e3:.2f} kW are committed and"
                f" {could_w / 1e3:.2f} kW of the {leaves_w / 1e3:.2f} kW that the block draws could be shed"
            ),
            delay_s=COMMITMENT_DELAY_S,
        )


def _instruments(settings: Settings, snapshot: Snapshot, seen: Seen) -> Iterator[Condition]:
    topology, inlets = settings.topology, snapshot.inlets
    over_w = settings.block_w_per_gpu_w * (topology.rack_sums(seen.counted_w) - seen.shares.rack_budget_w)
    yield Condition(
        "rack",
        over_w > RACK_TOLERANCE_W,
        lambda rack: (
            f"GPUs of {topology.rack_names[rack]} may draw {over_w[rack] / 1e3:.2f} kW more than its"
            " inlets carry"
        ),
        topology.rack_names.__getitem__,
    )
    usable = base_load.inlets_usable(settings, snapshot)
    yield Condition(
        "inlet",
        usable & (inlets.power_w > INLET_OVER_RATIO * topology.inlet_continuous_w),
        lambda inlet: (
            f"inlet {topology.inlet_names[inlet]} carries {inlets.power_w[inlet] / 1e3:.2f} of"
            f" {topology.inlet_continuous_w[inlet] / 1e3:.2f} kW that it may carry for long"
        ),
        topology.inlet_names.__getitem__,
    )
    yield Condition(
        "pdu",
        ~usable,
        lambda inlet: f"PDU {topology.inlet_names[inlet]} not usable: its rack counts as on one inlet",
        topology.inlet_names.__getitem__,
    )
    cooled = snapshot.cooling.is_usable(snapshot.now_s, settings.cooling_age_max_s)
    if settings.cooling_blind_w is not None and not cooled:
        yield Condition("cooling", THE_BLOCK, lambda _: "cooling capacity unknown: its blind limit holds")


def _gpus(settings: Settings, snapshot: Snapshot, seen: Seen) -> Iterator[Condition]:
    topology, gpus = settings.topology, snapshot.gpus
    node_name, gpu_name = topology.node_names.__getitem__, topology.gpu_name
    silent = snapshot.now_s - gpus.node_at_s > settings.report_age_max_s

    def counted_kw(node: int) -> float:
        return float(seen.counted_w[topology.gpu_node == node].sum()) / 1e3

    yield Condition(
        "agent",
        silent,
        lambda node: (
            f"agent on {node_name(node)} silent: its GPUs count at what they may hold,"
            f" {counted_kw(node):.1f} kW"
        ),
        node_name,
    )
    yield Condition(
        "lease",
        ~(gpus.node_leased | silent),
        lambda node: (
            f"{node_name(node)} does not act on our orders: its GPUs count at what they may hold,"
            f" {counted_kw(node):.1f} kW"
        ),
        node_name,
    )
    obeying = seen.readable & seen.shares.controllable
    yield Condition(
        "gpu",
        seen.fresh & ~obeying & gpus.node_leased[topology.gpu_node],
        lambda gpu: f"GPU {gpu_name(gpu)} unreadable or not taking its limit",
        gpu_name,
    )
    excess_w = seen.shares.excess_w
    yield Condition(
        "excess",
        excess_w > EXCESS_RATIO * gpus.limit_w,
        lambda gpu: (
            f"GPU {gpu_name(gpu)} draws {excess_w[gpu]:.0f} W above its limit: it counts at that, others give"
            " way"
        ),
        gpu_name,
    )
