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
from functools import partial
from typing import Final

import numpy as np

from controller.core import (
    base_load,
    clocks,
    failsafe,
    frequency,
    ledger,
    ramp,
    schedule,
    sharing,
    shed,
    watch,
)
from controller.core.frequency_model import FrequencySettings, FrequencyState
from controller.core.model import (
    NEVER_S,
    NO_LIMIT_W,
    BaseLoad,
    Bools,
    Carried,
    Clocks,
    Decision,
    Floats,
    Gpus,
    Limit,
    Link,
    Mode,
    Obedience,
    Running,
    Setpoint,
    Settings,
    Shares,
    ShedRequest,
    Snapshot,
    Standing,
    State,
)

INHERITED: Final = "before restart: "
DRAW_WINDOW_S: Final = 1.0  # what the block draws is the mean of this time
BEAT_RATIO: Final = 0.9  # of a beat, which may be early: a cut in parts between beats is one cut


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
        base=base_load.start(settings, now_s, carried),
        ledger=ledger.start(settings, now_s),
        obedience=Obedience(np.full(count, now_s), np.full(count, now_s)),
        shares=Shares(
            desired_w=topology.gpu_max_w.copy(),
            peak_w=topology.gpu_max_w.copy(),
            held_ratio=np.zeros(count),
            recent_w=topology.gpu_max_w.reshape(1, count),
            recent_at_s=NEVER_S,
            excess_w=np.zeros(count),
            observed_at_s=now_s,
            shared_at_s=NEVER_S,
            gpu_budget_w=0.0,
            rack_budget_w=np.zeros(len(topology.rack_names)),
            controllable=np.zeros(count, dtype=np.bool_),
            bound=np.zeros(count, dtype=np.bool_),
            strode_at_s=NEVER_S,
            lift_w=0.0,
            sums=(),
        ),
        shedding=shed.start(settings),
        frequency=None if settings.frequency is None else _inherited(settings.frequency, carried, now_s),
        clocks=clocks.start(count),
        seen_at_s=np.full(count, now_s),
        seen_w=np.zeros(count),
        gpus_revision=-1,
        cooling_w=NO_LIMIT_W if carried is None else carried.cooling_w,
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
    seen_w = np.where(readable, gpus.limit_w, state.seen_w)
    power_w = np.where(fresh, gpus.power_w, np.nan)
    reported = gpus.revision != state.gpus_revision
    base = base_load.update(settings, state.base, snapshot, power_w, reported=reported)
    base_w = base_load.upper_w(settings, base, now_s) + gain * gpus.stray_w
    orders, standing = ledger.take_in(
        settings,
        state.ledger,
        gpus,
        seen_at_s,
        seen_w,
        readable,
        now_s,
        strides=sharing.strides(state.shares, now_s),
    )
    shares, held_w = state.shares, np.maximum(standing.held_w, gpus.floor_w)
    if reported:
        slowed = clocks.slowed(state.clocks, now_s)
        shares = sharing.observe(shares, gpus, power_w, held_w, slowed, now_s)
    excess_w = watch.disobedience_w(shares.excess_w, held_w)
    held_w = held_w + excess_w
    obedience = _obedience(state.obedience, gpus, standing, excess_w, now_s)
    heard = _heard(settings, fresh, readable, standing, obedience, seen_at_s, now_s)

    # the limits, and the ramp towards the lowest
    cooling_w = snapshot.cooling.value if _is_cooled(settings, snapshot) else state.cooling_w
    response = _response(settings, state, snapshot, base)
    sheds = (*snapshot.sheds, *schedule.called(running))
    limits = tuple(_limits(settings, snapshot, sheds, response, running, ended, links, carried, cooling_w))
    binding = min(limits, key=ramp.power_w)
    now = shed.Now(shares, base, base_w, standing, held_w, heard)
    pace = ramp.step(
        state.pace,
        limits,
        now_s=now_s,
        elapsed_s=elapsed_s,
        tick_s=settings.tick_s,
        brink=_brink(settings, snapshot, now) if ramp.leaves(state.pace, limits, settings) else None,
        ramp=settings.ramp,
        lead_s=settings.lead_s,
    )

    # share out what is left for GPUs, and hand over without ever exceeding it
    present_w = standing.present_w
    gpu_budget_w = (pace.aim_w - base_w) / gain
    shares = sharing.share(
        settings,
        snapshot,
        shares,
        base,
        held_w,
        present_w,
        heard,
        gpu_budget_w,
        promised_w=((pace.aim_w if binding.protection else pace.budget_w) - base_w) / gain,
    )
    up = sharing.Up(pace.up_w_per_s / gain, min(elapsed_s, ramp.RISE_TICKS_MAX * settings.tick_s))
    shares, next_w = sharing.hand_over(snapshot, shares, topology, held_w, present_w, gpu_budget_w, up)
    want = _want(settings, snapshot, state.clocks, shares, next_w)
    level = max((request.level for request in sheds), default=shed.NO_LEVEL)
    shedding, orders, want = shed.call(
        settings, state.shedding, snapshot, level, orders, now, state.clocks.ceilings_mhz, want
    )
    next_w = want.limits_w
    if shedding.call is not None:  # by tables that knew nothing of other limits, nor of who is silent now
        shares = shares._replace(desired_w=next_w, shared_at_s=NEVER_S)
    shedding = shed.plan(settings, shedding, snapshot, now._replace(shares=shares))

    # say what cannot be done, and what is not as it should be
    counted_w = np.maximum(held_w, np.minimum(next_w, present_w))
    shortfall_w = max(0.0, gain * float(counted_w.sum()) + base_w - pace.budget_w)
    plan_short_w = shed.short_w(settings, shedding, now) if settings.shed_levels else np.zeros(0)
    seen = watch.Seen(
        base=base,
        shares=shares,
        links=links,
        fresh=fresh,
        readable=readable,
        counted_w=counted_w,
        budget_w=pace.budget_w,
        shortfall_w=shortfall_w,
        plan_short_w=plan_short_w,
        least_w=float(shed.reached_w(settings, sharing.wanted(settings, snapshot, shares).min_w, now)),
        response=response,
    )
    watched = watch.look(settings, state.watch, snapshot, seen)
    after = State(
        at_s=now_s,
        links=links,
        carried=carried,
        running=running,
        ended=ended,
        pace=pace,
        base=base_load.after_order(
            settings,
            base,
            next_w,
            ledger.ordered_w(state.ledger, now_s - BEAT_RATIO * settings.tick_s),
            now_s,
        ),
        ledger=orders,
        obedience=obedience,
        shares=shares,
        shedding=shedding,
        frequency=response,
        clocks=want.clocks,
        seen_at_s=seen_at_s,
        seen_w=seen_w,
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
        clocks_mhz=want.clocks.ceilings_mhz,
        node_seq=orders.node_seq[-1],
        shortfall_w=shortfall_w,
        alarms=watched.alarms,
    )


def _obedience(
    before: Obedience, gpus: Gpus, standing: Standing, excess_w: Floats, now_s: float
) -> Obedience:
    """What was confirmed may be undone: by another writer, a driver that reloads, a board that ignores it."""
    taken = gpus.limit_w <= standing.ordered_w + ledger.READ_BACK_TOLERANCE_W
    return Obedience(
        taken_at_s=np.where(taken, now_s, before.taken_at_s),
        kept_at_s=np.where(excess_w == 0.0, now_s, before.kept_at_s),
    )


def _heard(
    settings: Settings,
    fresh: Bools,
    readable: Bools,
    standing: Standing,
    obedience: Obedience,
    seen_at_s: Floats,
    now_s: float,
) -> sharing.Heard:
    """Who is within reach, who takes his orders, and who keeps to them."""
    owes_s = np.maximum(standing.waited_s, now_s - obedience.taken_at_s)
    controllable = readable & (owes_s <= settings.ack_wait_s)
    bound = controllable & (now_s - obedience.kept_at_s <= watch.EXCESS_LASTS_S)
    return sharing.Heard(fresh, readable, controllable, bound, seen_at_s)


def _want(
    settings: Settings,
    snapshot: Snapshot,
    before: Clocks,
    shares: Shares,
    limits_w: Floats,
) -> shed.Want:
    """Limits and ceilings to order; how low the ceilings are is thought over with every share-out."""
    wanted = before.ratio
    if shares.shared_at_s == snapshot.now_s:
        wanted = sharing.clock_ratio(settings, snapshot, shares, wanted, shares.desired_w)
    return shed.Want(limits_w, clocks.step(settings, before, snapshot.gpus, wanted, snapshot.now_s))


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
) -> Iterator[Limit]:
    """Everything that bounds block power now. A new kind of limit is one more `yield`."""
    yield Limit(settings.feed_rating_w, "feed rating", protection=True)
    if settings.cooling_blind_w is not None:
        if _is_cooled(settings, snapshot):
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


def _is_cooled(settings: Settings, snapshot: Snapshot) -> bool:
    """Whether the capacity of the cooling plant is known now."""
    return snapshot.cooling.is_usable(snapshot.now_s, settings.cooling_age_max_s)


def _response(settings: Settings, state: State, snapshot: Snapshot, base: BaseLoad) -> FrequencyState | None:
    """The frequency response; its baseline is what the meter showed in the mean of the last second."""
    if settings.frequency is None or state.frequency is None:
        return None
    draw_w = None
    if snapshot.meter.is_usable(snapshot.now_s, settings.meter_age_max_s):
        recent_w = base.meter_w[base.meter_at_s > snapshot.now_s - DRAW_WINDOW_S]
        draw_w = float(recent_w.mean()) if len(recent_w) else snapshot.meter.value
    return frequency.step(settings.frequency, state.frequency, snapshot.frequency, draw_w, snapshot.now_s)


def _inherited(settings: FrequencySettings, carried: Carried | None, now_s: float) -> FrequencyState:
    """The frequency response as it stood. Where nothing but its limit was kept, its times begin anew."""
    underway = None if carried is None else carried.response
    if carried is not None and underway is None and carried.source.startswith(frequency.SOURCE):
        underway = frequency.just_begun(settings, carried.limit_w, now_s)
    return frequency.start(settings, now_s, underway)


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
    """An inherited limit stands until all of the site has spoken or its own window has run out.

    What is not the site's to say is inherited by itself and goes on beside it: a frequency response, the
    cooling capacity when last heard, contacts that call.
    """
    blind = any(link.mode in failsafe.BLIND for link in links)
    if carried is None or not blind or now_s >= carried.ends_at_s:
        return None
    return carried


def _brink(settings: Settings, snapshot: Snapshot, now: shed.Now) -> ramp.Brink | None:
    """Where a fall begins: what the block draws, and the aim at which its limits begin to bind.

    A GPU that is not heard counts at what it drew last; then the meter knows better what all of them draw.
    None: nobody has been heard yet.
    """
    since_s, base, shares = snapshot.now_s - DRAW_WINDOW_S, now.base, now.shares
    if shares.recent_at_s <= since_s:
        return None
    gain = settings.block_w_per_gpu_w
    racks_w = sharing.rack_budget_w(settings, snapshot, base)
    present_w = now.standing.present_w
    divided_w = partial(
        sharing.divided_w, settings, snapshot, shares, racks_w, now.held_w, present_w, now.heard
    )
    knee_w = sharing.knee_w(shares.recent_w, float(present_w.sum()), divided_w)
    draw_w = gain * float(shares.recent_w.sum(axis=1).mean()) + now.base_w - gain * snapshot.gpus.stray_w
    metered_w = base.meter_w[base.meter_at_s > since_s]
    if len(metered_w) and not base_load.is_unbroken(base, since_s):
        draw_w = float(metered_w.mean()) + settings.base_margin_w
    return ramp.Brink(draw_w, max(draw_w, gain * knee_w + now.base_w))
