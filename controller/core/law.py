"""The control law, on one page: everything known of this moment in, every limit of the block out.

    limits      every source yields a bound on block power; the lowest binds and has a name
    ramp        the aim walks towards it at the agreed rates; protection does not walk
    base load   what the block draws besides GPUs is taken off; unknown counts as the worst case
    share out   the rest is divided over the GPUs: floors, then needs, then what is left
    shed        a called level goes out as one message, by tables that the agents have already
    hand over   cuts go out at once; a rise waits until the cuts it lives on are read back and settled,
                and never lifts the sum of limits faster than the ramp
    watch       what is commanded is compared with what is measured, and what cannot be done is said

Pure: time is an argument, the memory comes in as `state` and goes out in the decision. Whoever is silent,
stale or disobedient is simply counted at what it may hold, on the same path as everyone else.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from controller.core import base_load, failsafe, frequency, ledger, ramp, schedule, sharing, shed, watch
from controller.core.frequency_model import FrequencyState
from controller.core.model import (
    NEVER_S,
    NO_LIMIT_W,
    BaseLoad,
    Carried,
    Decision,
    Limit,
    Link,
    Mode,
    Running,
    Setpoint,
    Settings,
    Shares,
    ShedRequest,
    Snapshot,
    State,
)

INHERITED: Final = "before restart: "
DRAW_WINDOW_S: Final = 1.0  # a fall starts at the highest draw of this time


def start(
    settings: Settings, now_s: float, carried: Carried | None = None, running: tuple[Running, ...] = ()
) -> State:
    """Memory of a law that knows nothing but what a restart inherits: it holds the failsafe limit."""
    topology = settings.topology
    count, failsafe_w = len(topology.gpu_node), settings.failsafe_w
    budget_w = failsafe_w if carried is None else min(failsafe_w, carried.budget_w)
    return State(
        at_s=now_s,
        links=(Link(Mode.INIT, entered_at_s=now_s),) * len(settings.failsafes),
        carried=carried,
        running=running,
        ended=frozenset(),
        pace=ramp.start(budget_w, now_s, _way_up_w_per_s(settings, carried)),
        base=base_load.start(settings, carried),
        ledger=ledger.start(settings, now_s),
        shares=Shares(
            desired_w=topology.gpu_max_w.copy(),
            peak_w=topology.gpu_max_w.copy(),
            excess_w=np.zeros(count),
            observed_at_s=now_s,
            shared_at_s=NEVER_S,
            gpu_budget_w=0.0,
            rack_budget_w=np.zeros(len(topology.rack_names)),
            controllable=np.zeros(count, dtype=np.bool_),
            lift_w=0.0,
            sums=(),
        ),
        shedding=shed.start(settings),
        frequency=None if settings.frequency is None else frequency.start(settings.frequency, now_s),
        seen_at_s=np.full(count, now_s),
        gpus_revision=-1,
        cooling_w=NO_LIMIT_W,
        watch=watch.start(),
    )


def tick(settings: Settings, state: State, snapshot: Snapshot) -> Decision:
    """Decide this moment. Called with growing `snapshot.now_s`, twenty times a second or whenever it pays."""
    now_s, gpus, gain = snapshot.now_s, snapshot.gpus, settings.block_w_per_gpu_w
    elapsed_s = max(0.0, now_s - state.at_s)
    topology, gpu_node = settings.topology, settings.topology.gpu_node

    # what the site wants, and whether it is there
    setpoints = snapshot.site.setpoints
    running, ended = schedule.open_windows(state.running, state.ended, setpoints, now_s, snapshot.now_utc_s)
    links = _links(settings, state.links, snapshot, running)
    carried = _still_carried(state.carried, links, now_s)

    # who is heard, what each GPU may hold, and what the block draws besides GPUs
    fresh = (now_s - gpus.node_at_s <= settings.report_age_max_s)[gpu_node]
    readable = fresh & ~np.isnan(gpus.limit_w)
    seen_at_s = np.where(readable, gpus.node_at_s[gpu_node], state.seen_at_s)
    power_w = np.where(fresh, gpus.power_w, np.nan)
    reported = gpus.revision != state.gpus_revision
    base = base_load.update(settings, state.base, snapshot, power_w, reported=reported)
    base_w = base_load.upper_w(settings, base, now_s)
    orders, standing = ledger.take_in(settings, state.ledger, gpus, seen_at_s, readable, now_s)
    shares = sharing.observe(state.shares, power_w, standing.held_w, now_s) if reported else state.shares
    held_w = standing.held_w + watch.disobedience_w(shares.excess_w, standing.held_w)

    # the limits, and the ramp towards the lowest
    cooled = snapshot.cooling.is_usable(now_s, settings.cooling_age_max_s)
    cooling_w = snapshot.cooling.value if cooled else state.cooling_w
    response = _response(settings, state, snapshot, base)
    sheds = (*snapshot.sheds, *schedule.called(running))
    limits = tuple(
        _limits(settings, snapshot, sheds, response, running, ended, links, carried, cooling_w, cooled=cooled)
    )
    binding = min(limits, key=ramp.power_w)
    falls_now = binding.power_w < state.pace.aim_w and not state.pace.falling
    pace = ramp.step(
        state.pace,
        limits,
        now_s=now_s,
        elapsed_s=elapsed_s,
        tick_s=settings.tick_s,
        draw_w=_recent_draw_w(settings, snapshot, base, base_w) if falls_now else None,
        ramp=settings.ramp,
        lead_s=settings.lead_s,
    )

    # share out what is left for GPUs, and hand over without ever exceeding it
    controllable = readable & (standing.waited_s <= settings.ack_wait_s)
    present_w = standing.present_w
    gpu_budget_w = (pace.aim_w - base_w) / gain
    heard = sharing.Heard(fresh, readable, controllable, seen_at_s)
    shares = sharing.share(settings, snapshot, shares, base, held_w, present_w, heard, gpu_budget_w)
    lift_max_w = pace.up_w_per_s * min(elapsed_s, ramp.RISE_TICKS_MAX * settings.tick_s) / gain
    shares, next_w = sharing.hand_over(
        snapshot, shares, topology, held_w, present_w, gpu_budget_w, lift_max_w
    )
    level = max((request.level for request in sheds), default=shed.NO_LEVEL)
    shedding, orders, next_w = shed.call(settings, state.shedding, snapshot, level, orders, next_w, present_w)
    if shedding.call is not None:
        shares = shares._replace(desired_w=next_w)  # a new share-out may wait; the call may not
    now = shed.Now(shares, base, base_w, standing, held_w, heard)
    shedding = shed.plan(settings, shedding, snapshot, now)

    # say what cannot be done, and what is not as it should be
    counted_w = np.maximum(held_w, np.minimum(next_w, present_w))
    shortfall_w = max(0.0, gain * float(counted_w.sum()) + base_w - pace.budget_w)
    seen = watch.Seen(base, shares, links, fresh, readable, counted_w, pace.budget_w, shortfall_w)
    watched = watch.look(settings, state.watch, snapshot, seen)
    after = State(
        at_s=now_s,
        links=links,
        carried=carried,
        running=running,
        ended=ended,
        pace=pace,
        base=base,
        ledger=orders,
        shares=shares,
        shedding=shedding,
        frequency=response,
        seen_at_s=seen_at_s,
        gpus_revision=gpus.revision,
        cooling_w=cooling_w,
        watch=watched,
    )
    return Decision(
        state=after,
        mode=failsafe.worst(links),
        binding=binding,
        limits=limits,
        budget_w=pace.budget_w,
        base_w=base_w,
        gpu_limits_w=next_w,
        node_seq=orders.node_seq[-1],
        shortfall_w=shortfall_w,
        alarms=watched.alarms,
    )


def _limits(
    settings: Settings,
    snapshot: Snapshot,
    sheds: tuple[ShedRequest, ...],
    response: FrequencyState | None,
    running: tuple[Running, ...],
    ended: frozenset[Setpoint],
    links: tuple[Link, ...],
    carried: Carried | None,
    cooling_w: float,
    *,
    cooled: bool,
) -> Iterator[Limit]:
    """Everything that bounds block power now. A new kind of limit is one more `yield`."""
    yield Limit(settings.feed_rating_w, "feed rating", protection=True)
    if settings.cooling_blind_w is not None:
        if cooled:
            yield Limit(cooling_w, "cooling capacity", protection=True)
        elif cooling_w < settings.cooling_blind_w:  # it was failing when it fell silent
            yield Limit(cooling_w, "cooling capacity when last heard", protection=True)
        else:
            yield Limit(settings.cooling_blind_w, "cooling not heard")
    if settings.frequency is not None and response is not None:
        answer = frequency.limit(settings.frequency, response)
        if answer is not None:
            yield answer
    for request in sheds:
        level = settings.shed_levels[request.level]
        yield Limit(level.limit_w, f"shed {level.name} ({request.source})", protection=True)
    for one, link in zip(settings.failsafes, links, strict=True):
        blind = failsafe.limit(one, link)
        if blind is not None:
            yield blind
    if carried is not None:
        way = settings.ramp._replace(up_w_per_s=_way_up_w_per_s(settings, carried))
        yield Limit(carried.limit_w, f"{INHERITED}{carried.source.removeprefix(INHERITED)}", ramp=way)
    yield from schedule.limits(
        running,
        ended,
        snapshot.site.setpoints,
        now_utc_s=snapshot.now_utc_s,
        lead_s=settings.lead_s,
        ramp=settings.ramp,
        ceiling_w=settings.feed_rating_w,
    )


def _response(settings: Settings, state: State, snapshot: Snapshot, base: BaseLoad) -> FrequencyState | None:
    """The frequency response; its baseline is what the meter showed in the mean of the last second."""
    if settings.frequency is None or state.frequency is None:
        return None
    draw_w = None
    if snapshot.meter.is_usable(snapshot.now_s, settings.meter_age_max_s):
        recent_w = base.meter_w[base.meter_at_s > snapshot.now_s - DRAW_WINDOW_S]
        draw_w = float(recent_w.mean()) if len(recent_w) else snapshot.meter.value
    return frequency.step(settings.frequency, state.frequency, snapshot.frequency, draw_w, snapshot.now_s)


def _way_up_w_per_s(settings: Settings, carried: Carried | None) -> float:
    """What was agreed about recovery holds across a restart."""
    if carried is None or carried.up_w_per_s is None:
        return settings.ramp.up_w_per_s
    return carried.up_w_per_s


def _links(
    settings: Settings, before: tuple[Link, ...], snapshot: Snapshot, running: tuple[Running, ...]
) -> tuple[Link, ...]:
    """Where the block stands with every watched source."""
    limiting = {entry.setpoint.source for entry in running if entry.setpoint.limit_w < NO_LIMIT_W}
    return tuple(
        failsafe.step(one, link, snapshot.site.contact(index), snapshot.now_s, limited=one.source in limiting)
        for index, (one, link) in enumerate(zip(settings.failsafes, before, strict=True))
    )


def _still_carried(carried: Carried | None, links: tuple[Link, ...], now_s: float) -> Carried | None:
    """An inherited limit stands until all of the site has spoken or its own window has run out."""
    blind = any(link.mode in failsafe.BLIND for link in links)
    if carried is None or not blind or now_s >= carried.ends_at_s:
        return None
    return carried


def _recent_draw_w(settings: Settings, snapshot: Snapshot, base: BaseLoad, base_w: float) -> float | None:
    """Highest block power of the last second: in the law's own terms, or by the meter, or None if unknown."""
    since_s = snapshot.now_s - DRAW_WINDOW_S
    recent = base.gpu_at_s > since_s
    if base.gap_at_s <= since_s and recent.any():
        return settings.block_w_per_gpu_w * float(base.gpu_rack_w[recent].sum(axis=1).max()) + base_w
    if snapshot.meter.is_usable(snapshot.now_s, settings.meter_age_max_s):
        metered_w = base.meter_w[base.meter_at_s > since_s]
        return float(metered_w.max(initial=snapshot.meter.value)) + settings.base_margin_w
    return None
