"""The right to hold a limit: who granted it, until when, and what happens when nobody does. Pure.

A node's GPUs hold what the controller's newest order says for as long as its lease runs. The lease counts
from the agent's own report that the order answers (`echo_at_s`), on the agent's own clock: an order that
lay in a broker for ten seconds is ten seconds old, whatever anybody else's clock says.

    waiting  --granted-->  leased  --granted-->  leased        observe: never writes, never leaves
       |                     |  ^
     lapsed               lapsed |granted
       v                     v  |
       +----------------> fallback

waiting   since start; limits stay as they were found: a restart raises nothing
leased    limits are those of the newest order
fallback  every GPU ramps down to its fallback limit; one that is lower already stays there. A GPU whose
          limit was never seen has no ramp to begin with: its fallback limit holds at once

A call of a shed level lowers at once, whoever holds the right: what a table says is an upper bound. Only a
leased agent confirms it, as it would an order of that number.

One rule guards every road up: a limit rises only by an order that is strictly newer than all before it.
The same order repeated, as a controller does that knows nothing new, may lower a limit and never raise one.
Nor may an order that was decided on readings from before this agent was first leased, or before it fell
back (`known_at_s`): whoever decided it could not know what these GPUs have come to hold.

Ceilings of the SM clock are held by the same rule: lowered at once, raised or taken away only by such an
order. No fallback exists for them: when a right lapses, the limits ramp and the ceilings stay as they are.

Two controllers cannot both be obeyed. The newer epoch wins, since it answers our own reports; the older one
gives itself away by answering a report from after that, and one of the same epoch by another name
(`boot`). Both are refused as a second controller, counted, and told to whoever listens to our reports.

A second controller that lives is heir to the first all the same: once the right has lapsed, and nothing of
the one in force was obeyed for SUCCESSION_LEASES of the heir's leases, the heir is obeyed. That silence
counts only while the heir is heard: who was cut off has heard neither, and knows nothing of who is gone. The
heir could not know what these GPUs hold, so what it orders first may only lower, as after a fallback.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from controller.agent.shares import ANY, Modules, Range, wanted_w

# One lease may run out by bad luck; for two of them twelve renewals must be lost in a row.
SUCCESSION_LEASES: Final = 2.0


class Mode(StrEnum):
    OBSERVE = "observe"
    WAITING = "waiting"
    LEASED = "leased"
    FALLBACK = "fallback"


class Event(StrEnum):
    GRANTED = "granted"
    LAPSED = "lapsed"


TRANSITIONS: Final = {
    (Mode.WAITING, Event.GRANTED): Mode.LEASED,
    (Mode.LEASED, Event.GRANTED): Mode.LEASED,
    (Mode.FALLBACK, Event.GRANTED): Mode.LEASED,
    (Mode.WAITING, Event.LAPSED): Mode.FALLBACK,
    (Mode.LEASED, Event.LAPSED): Mode.FALLBACK,
}


class Refusal(StrEnum):
    """Why an order is not obeyed."""

    OBSERVING = "this agent only observes"
    OTHER_GPU_COUNT = "it is for another number of GPUs"
    SECOND_CONTROLLER = "another controller is in force here: two are running, stop one of them"
    OVERTAKEN = "a newer order is in force: this message came late"
    NO_REPORT_HEARD = "it answers no report: the controller must hear this agent first"
    EARLIER_AGENT = "it answers a report of an agent before this one"
    FUTURE_REPORT = "it answers a report this agent has not sent yet"
    LEASE_TOO_LONG = "its lease is longer than this agent allows"
    EXPIRED = "its lease has run out already"


class Order(Protocol):
    """What an order must tell; `protocols.agent_link.Order` does."""

    @property
    def epoch(self) -> int: ...
    @property
    def seq(self) -> int: ...
    @property
    def echo_at_s(self) -> float: ...
    @property
    def known_at_s(self) -> float: ...
    @property
    def lease_s(self) -> float: ...
    @property
    def limits_w(self) -> tuple[float, ...]: ...
    @property
    def clocks_mhz(self) -> tuple[int, ...]: ...
    @property
    def boot(self) -> str: ...


class Call(Protocol):
    """What a call must tell; `protocols.agent_link.Call` does."""

    @property
    def epoch(self) -> int: ...
    @property
    def seq(self) -> int: ...
    @property
    def boot(self) -> str: ...


class Found(NamedTuple):
    """What the driver says about one GPU's limit."""

    limit_w: float
    min_w: float
    max_w: float


class Write(NamedTuple):
    gpu: int
    limit_w: float
    lower_only: bool = False  # to be written only where the driver, asked once more, holds more


class Ceiling(NamedTuple):
    """What is known of one GPU's ceiling; no driver tells it. `sure`: set since the GPU last began anew."""

    asked_mhz: int | None  # None: never ours; 0: none of ours any more
    sure: bool = True


class ClockWrite(NamedTuple):
    gpu: int
    ceiling_mhz: int  # 0: none


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Constant for the life of an agent. `fallback_w` has one limit per GPU."""

    fallback_w: tuple[float, ...]
    fallback_ramp_w_per_s: float
    lease_max_s: float
    waiting_max_s: float | None  # None: wait for ever


class Heir(NamedTuple):
    """A controller that is refused only because another one is in force."""

    epoch: int
    boot: str
    since_s: float  # heard ever since, and nothing of the one in force
    at_s: float  # when it was heard last


class Lease(NamedTuple):
    """All memory of the lease logic; made anew with every order."""

    mode: Mode
    started_at_s: float
    until_s: float  # end of the present right: of the lease, or of waiting
    ramped_at_s: float  # up to when the fallback ramp has come
    held_w: tuple[float | None, ...]  # None: this GPU is left as it is
    held_mhz: tuple[int | None, ...]  # None: its clocks are left as they are; 0: no ceiling
    newest: tuple[int, int] = (0, 0)  # (epoch, seq) of the newest order obeyed
    lowers_only: bool = False  # it was decided without knowing what this agent has come to hold
    answers_from_s: float = 0.0  # only orders decided on readings taken since may raise
    refused: Mapping[Refusal, int] = MappingProxyType({})
    boot: str = ""  # of the controller in force
    epoch_from_s: float = 0.0  # since when it is in force
    rival_at_s: float = -1.0  # when a second controller was heard last; below 0: never
    epoch_max: int = 0  # the highest that was ever in force
    heir: Heir | None = None


def begin(
    settings: LeaseSettings, now_s: float, *, observe: bool, waits_from_s: float | None = None
) -> Lease:
    """The lease of an agent that has just started; this host has waited since then, or begins now."""
    waits_for_ever = observe or settings.waiting_max_s is None
    from_s = now_s if waits_from_s is None else waits_from_s
    return Lease(
        mode=Mode.OBSERVE if observe else Mode.WAITING,
        started_at_s=now_s,
        # The fallback ramp begins now at the soonest: before, nobody was here to ramp.
        until_s=inf if waits_for_ever else max(now_s, from_s + (settings.waiting_max_s or 0.0)),
        ramped_at_s=now_s,
        held_w=(None,) * len(settings.fallback_w),
        held_mhz=(None,) * len(settings.fallback_w),
    )


def offer(settings: LeaseSettings, lease: Lease, order: Order, now_s: float) -> tuple[Lease, Refusal | None]:
    """Obey or refuse an order. Returns the new lease, and why the order was refused, if it was."""
    before = lease
    if _succeeds(settings, lease, order, now_s):
        # As if nobody had been in force here; but what was read before cannot be what it decided on.
        lease = lease._replace(newest=(0, 0), boot="", answers_from_s=now_s)
    for refusal, applies in REFUSALS.items():
        if applies(settings, lease, order, now_s):
            return _refused(_inherited(settings, before, order, now_s), refusal, now_s), refusal
    key, until_s = (order.epoch, order.seq), order.echo_at_s + order.lease_s
    held_w: tuple[float | None, ...] = order.limits_w
    ordered_mhz = order.clocks_mhz or (0,) * len(held_w)
    held_mhz: tuple[int | None, ...] = ordered_mhz
    answers_from_s = now_s if lease.mode is Mode.WAITING else lease.answers_from_s
    lowers_only = order.known_at_s < answers_from_s
    if key == lease.newest:
        lowers_only = lowers_only or lease.lowers_only
        held_w = tuple(
            None if held is None else min(held, ordered)
            for held, ordered in zip(lease.held_w, order.limits_w, strict=True)
        )
        held_mhz = tuple(
            None if held is None else lower_mhz(held, ordered)
            for held, ordered in zip(lease.held_mhz, ordered_mhz, strict=True)
        )
        until_s = max(until_s, lease.until_s) if lease.mode is Mode.LEASED else until_s
    mode = _after(lease.mode, Event.GRANTED)
    granted = lease._replace(
        mode=mode,
        newest=key,
        until_s=until_s,
        held_w=held_w,
        held_mhz=held_mhz,
        lowers_only=lowers_only,
        answers_from_s=answers_from_s,
    )
    return _in_force(granted, lease, order, now_s), None


def shed(
    lease: Lease,
    call: Call,
    limits_w: tuple[float, ...],
    clocks_mhz: tuple[int, ...] = (),
    now_s: float = 0.0,
) -> tuple[Lease, Refusal | None]:
    """Lower to what the table says of the level that is called, never raise. Returns as `offer` does.

    A call of the present controller that orders have overtaken was answered by them.
    """
    for refusal, applies in (
        (Refusal.OBSERVING, lease.mode is Mode.OBSERVE),
        (Refusal.OTHER_GPU_COUNT, len(limits_w) != len(lease.held_w)),
        (Refusal.SECOND_CONTROLLER, call.epoch == lease.newest[0] and _other_boot(lease, call)),
        (Refusal.OVERTAKEN, not leads(lease, call.epoch) or (call.epoch, call.seq) <= lease.newest),
    ):
        if applies:
            return _refused(lease, refusal, now_s), refusal
    held_w = tuple(
        limit_w if held is None else min(held, limit_w)
        for held, limit_w in zip(lease.held_w, limits_w, strict=True)
    )
    held_mhz = lease.held_mhz
    if clocks_mhz:
        held_mhz = tuple(
            lower_mhz(held or 0, ceiling_mhz) or held
            for held, ceiling_mhz in zip(lease.held_mhz, clocks_mhz, strict=True)
        )
    if lease.mode is not Mode.LEASED:
        return lease._replace(held_w=held_w, held_mhz=held_mhz, lowers_only=True), None
    called = lease._replace(held_w=held_w, held_mhz=held_mhz, newest=(call.epoch, call.seq))
    return _in_force(called, lease, call, now_s), None


def beat(settings: LeaseSettings, lease: Lease, found_w: Sequence[float | None], now_s: float) -> Lease:
    """Let time pass: leases lapse, the fallback ramp goes down.

    `found_w` is the requested limit of each GPU as last read, of a module its share; None where it could not
    be read.
    """
    if now_s >= lease.until_s:
        mode = _after(lease.mode, Event.LAPSED)
        # The ramp begins when the right ended, not when this beat noticed.
        lease = lease._replace(
            mode=mode, ramped_at_s=lease.until_s, answers_from_s=lease.until_s, until_s=inf
        )
    if lease.mode is not Mode.FALLBACK:
        return lease
    drop_w = settings.fallback_ramp_w_per_s * max(0.0, now_s - lease.ramped_at_s)
    held_w = tuple(
        _ramped_w(_lowest_w(held, found, fallback_w), fallback_w, drop_w)
        for held, found, fallback_w in zip(lease.held_w, found_w, settings.fallback_w, strict=True)
    )
    return lease._replace(held_w=held_w, ramped_at_s=max(now_s, lease.ramped_at_s))


def due(lease: Lease, found: Sequence[Found | None], modules: Modules = ()) -> tuple[Write, ...]:
    """What must be written so that the GPUs hold what they should; decreases first.

    A GPU that cannot be read is written while leased, where the order says its limit. Where nothing may be
    raised it gets a write that can only lower: a broken power sensor must not keep a limit up.

    `modules`: GPUs that share one limit, see `shares`; `found` is of the module then, and so is the write. It
    is due for each of its GPUs that can be read, and one of them will do.
    """
    may_raise = _may_raise(lease)
    writes: list[tuple[float, Write]] = []
    for gpu, (held_w, seen) in enumerate(zip(*_of_modules(lease.held_w, found, modules), strict=True)):
        if held_w is None:
            continue
        if seen is None:
            writes.append((0.0, Write(gpu, held_w, lower_only=not may_raise)))
            continue
        want_w = min(max(held_w, seen.min_w), seen.max_w)
        rise_w = want_w - seen.limit_w
        if same_limit(want_w, seen.limit_w) or (rise_w > 0 and not may_raise):
            continue
        writes.append((rise_w, Write(gpu, want_w)))
    return tuple(write for _, write in sorted(writes))


def due_clocks(lease: Lease, ceilings: Sequence[Ceiling]) -> tuple[ClockWrite, ...]:
    """What must be written so that no clock passes its ceiling. What is not ours is not taken away."""
    may_raise = _may_raise(lease)
    writes: list[ClockWrite] = []
    for gpu, (held_mhz, (asked_mhz, sure)) in enumerate(zip(lease.held_mhz, ceilings, strict=True)):
        if held_mhz is None or not (held_mhz or asked_mhz):
            continue
        want_mhz = held_mhz
        if asked_mhz and not may_raise:
            want_mhz = lower_mhz(held_mhz, asked_mhz)
        if want_mhz != asked_mhz or not sure:
            writes.append(ClockWrite(gpu, want_mhz))
    return tuple(writes)


def same_limit(a_w: float, b_w: float) -> bool:
    """Equal to the milliwatt, which is all a driver can hold."""
    return round(a_w * 1000) == round(b_w * 1000)


def lower_mhz(one_mhz: int, other_mhz: int) -> int:
    """The lower of two ceilings, where 0 is none."""
    return min(one_mhz, other_mhz) or max(one_mhz, other_mhz)


def _is_rival(settings: LeaseSettings, lease: Lease, order: Order, now_s: float) -> bool:
    """It is of a controller that is not in force and alive: it knows a report from since then."""
    if order.epoch == lease.newest[0]:
        return _other_boot(lease, order)
    alive = order.echo_at_s > lease.epoch_from_s and _is_of_now(settings, lease, order, now_s)
    return order.epoch < lease.newest[0] and alive


def _is_of_now(settings: LeaseSettings, lease: Lease, order: Order, now_s: float) -> bool:
    return not any(REFUSALS[refusal](settings, lease, order, now_s) for refusal in OF_NO_USE)


def _other_boot(lease: Lease, message: Order | Call) -> bool:
    return bool(message.boot and lease.boot) and message.boot != lease.boot


# Checked in this order; the first that applies is the reason given. `not (a <= b)` refuses NaN as well.
REFUSALS: Final[dict[Refusal, Callable[[LeaseSettings, Lease, Order, float], bool]]] = {
    Refusal.OBSERVING: lambda _s, lease, _o, _t: lease.mode is Mode.OBSERVE,
    Refusal.OTHER_GPU_COUNT: lambda _s, lease, order, _t: len(order.limits_w) != len(lease.held_w),
    Refusal.SECOND_CONTROLLER: _is_rival,
    Refusal.OVERTAKEN: lambda _s, lease, order, _t: (order.epoch, order.seq) < lease.newest,
    Refusal.NO_REPORT_HEARD: lambda _s, _l, order, _t: order.echo_at_s < 0,
    Refusal.EARLIER_AGENT: lambda _s, lease, order, _t: not order.echo_at_s >= lease.started_at_s,
    Refusal.FUTURE_REPORT: lambda _s, _l, order, now_s: not order.echo_at_s <= now_s,
    Refusal.LEASE_TOO_LONG: lambda settings, _l, order, _t: not order.lease_s <= settings.lease_max_s,
    Refusal.EXPIRED: lambda _s, _l, order, now_s: not order.echo_at_s + order.lease_s > now_s,
}

# What is wrong with an order whoever it is from: it answers nothing that we have said just now.
OF_NO_USE: Final = (
    Refusal.NO_REPORT_HEARD,
    Refusal.EARLIER_AGENT,
    Refusal.FUTURE_REPORT,
    Refusal.LEASE_TOO_LONG,
    Refusal.EXPIRED,
)


def leads(lease: Lease, epoch: int) -> bool:
    """Whether it is the epoch in force, or newer than all that ever were: others have had their time."""
    return epoch == lease.newest[0] or epoch > lease.epoch_max


def _in_force(lease: Lease, before: Lease, message: Order | Call, now_s: float) -> Lease:
    """The lease with the sender of `message` in force, and no heir: it is heard."""
    return lease._replace(
        boot=message.boot,
        epoch_from_s=now_s if message.epoch != before.newest[0] else before.epoch_from_s,
        epoch_max=max(before.epoch_max, message.epoch),
        heir=None,
    )


def _inherited(settings: LeaseSettings, lease: Lease, order: Order, now_s: float) -> Lease:
    """Whether who is refused may lead one day. Of two the newer; who falls silent begins anew."""
    if not (_is_rival(settings, lease, order, now_s) and _is_of_now(settings, lease, order, now_s)):
        return lease
    heir = lease.heir
    if heir is not None and now_s - heir.at_s <= order.lease_s:
        if (heir.epoch, heir.boot) == (order.epoch, order.boot):
            return lease._replace(heir=heir._replace(at_s=now_s))
        if heir.epoch >= order.epoch:
            return lease
    return lease._replace(heir=Heir(order.epoch, order.boot, now_s, now_s))


def _succeeds(settings: LeaseSettings, lease: Lease, order: Order, now_s: float) -> bool:
    """Whether it is of the heir, and the one in force is gone."""
    heir = lease.heir
    if (
        lease.mode is not Mode.FALLBACK
        or heir is None
        or (heir.epoch, heir.boot) != (order.epoch, order.boot)
    ):
        return False
    waited = now_s - heir.since_s >= SUCCESSION_LEASES * order.lease_s and now_s - heir.at_s <= order.lease_s
    return waited and _is_of_now(settings, lease, order, now_s)


def _refused(lease: Lease, refusal: Refusal, now_s: float) -> Lease:
    counts = {**lease.refused, refusal: lease.refused.get(refusal, 0) + 1}
    if refusal is Refusal.SECOND_CONTROLLER:
        return lease._replace(refused=counts, rival_at_s=now_s)
    return lease._replace(refused=counts)


def _may_raise(lease: Lease) -> bool:
    return lease.mode is not Mode.FALLBACK and not lease.lowers_only


def _of_modules(
    held_w: Sequence[float | None], found: Sequence[Found | None], modules: Modules
) -> tuple[Sequence[float | None], Sequence[Found | None]]:
    """What the limit of every GPU should be, and is: its module's; none of its own where another shows it."""
    if not modules:
        return held_w, found
    sums_w, seen = list(held_w), list(found)
    for members in modules:
        shown = [one for one in (found[gpu] for gpu in members) if one is not None]
        allowed = Range(shown[0].min_w, shown[0].max_w) if shown else ANY
        wanted = wanted_w(held_w, members, allowed)
        for gpu in members:
            left_alone = wanted is None or (shown and found[gpu] is None)
            sums_w[gpu] = None if left_alone else sum(wanted or ())
            seen[gpu] = shown[0] if shown else None
    return sums_w, seen


def _after(mode: Mode, event: Event) -> Mode:
    try:
        return TRANSITIONS[mode, event]
    except KeyError:
        raise AssertionError(f"the lease logic let '{event}' happen in mode '{mode}'") from None


def _lowest_w(held_w: float | None, found_w: float | None, unknown_w: float) -> float:
    return min((w for w in (held_w, found_w) if w is not None), default=unknown_w)


def _ramped_w(present_w: float, fallback_w: float, drop_w: float) -> float:
    return min(present_w, max(fallback_w, present_w - drop_w))
