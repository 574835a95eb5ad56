"""One host and its BMC: arm while all is well, hold while its agent is silent, release when it obeys.

Arming finds the levers before they are needed: it takes seconds, and a BMC that will not have our password
should be an alarm on a quiet day. Holding is the same round again and again: read all levers, keep on disk
what is above the limit, write those, read them back. So a host that restarts and forgets its limits, or
somebody who raises them, is met within a round, and the proof is gone before that.

What counts as proof: the lever shows a set point that binds, and the power that the BMC measures there, where
it measures any, is not above it but for the little by which a limit of averages is exceeded: then that power
counts. A policy of Node Manager is no proof by itself, see `levers`. A bound is raised before the write that
raises it, lowered after the reading that shows it.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from controller.backstop.config import BackstopConfig
from controller.backstop.found import NAME, Found, FoundLever
from controller.backstop.phase import Guard, Heard, Phase, Proven, step
from controller.clock import now_s, now_utc_s
from protocols.redfish import OFF, Bmc, Lever, RedfishFault, Unreachable, discover, read, set_limit

LOOK_S: Final = 0.5  # a quarter of the shortest `after_s`; 144 hosts cost the loop half a percent
REARM_S: Final = 6 * 3600.0  # a password that was changed is noticed within a shift
RETRY_MAX_S: Final = 30.0  # for a BMC that does not answer: a booting one takes minutes
DOUBLINGS_MAX: Final = 10  # of the shortest pause; a BMC that is dead for a night fails a thousand times
FAULT_MAX_CHARS: Final = 160  # of an exception: it may quote what a BMC said
OVER_RATIO: Final = 1.1  # a limit bounds an average: 616 W were seen under 600 W
READ_BACK_MAX_S: Final = 5.0  # a BMC that answers in 2 s is asked at least twice
SAME_W: Final = 0.5  # limits are whole watts
TOLD_S: Final = 0.5  # until whoever counts on a proof has heard of it: twice what `apart` takes
GONE: Final = frozenset({404, 410})

log = structlog.get_logger(__name__)


class NodeBackstop:
    """The backstop of one host.

    Args:
        node: its name.
        gpus: how many it has.
        bmc: its BMC, opened by nobody else.
        config: of the backstop.
        found: what limits were, of all hosts.

    Attributes:
        guard: its phase.
        fault: why the last round did not do all it should, or an empty string.
        proof: what the BMC has shown, of whatever age; None: nothing that binds.
    """

    def __init__(self, node: str, gpus: int, bmc: Bmc, config: BackstopConfig, found: Found) -> None:
        self.node = node
        self.guard = Guard(Phase.HOLDING if found.nodes.get(node) else Phase.WATCHING)
        self.fault = ""
        self.proof: Proven | None = None
        self._gpus = gpus
        self._bmc = bmc
        self._config = config
        self._found = found
        self._levers: tuple[Lever, ...] = ()
        self._written_w: dict[str, float] = {}  # by URI, what we left there
        self._next_at_s = -math.inf
        self._failures = 0
        self._limit_w = config.limit_w
        self._is_silent = False
        self._misfit = ""
        self._held = ""

    async def run(
        self, hear: Callable[[], Heard], arming: asyncio.Semaphore, acting: asyncio.Semaphore
    ) -> None:
        """Look and act until cancelled, then log out of the BMC. Limits stay as they are.

        Args:
            hear: what is known of the agent now.
            arming: how many hosts are looked at on a quiet day, at a time.
            acting: how many are held or released at a time.
        """
        try:
            await asyncio.sleep(random.uniform(0.0, LOOK_S))  # noqa: S311  not all handshakes in one beat
            while True:
                if self._look(hear(), now_s()):
                    await self._in_turn(hear, arming, acting)
                await asyncio.sleep(LOOK_S)
        finally:
            await self._bmc.close()

    async def _in_turn(
        self, hear: Callable[[], Heard], arming: asyncio.Semaphore, acting: asyncio.Semaphore
    ) -> None:
        """A quiet host does not queue: it would not notice the silence of its agent meanwhile."""
        if self.guard.phase is not Phase.WATCHING:
            async with acting:
                if self._look(hear(), now_s()):
                    await self._act()
        elif not arming.locked():
            async with arming:
                await self._act()

    def condition(self) -> str:
        """What an operator should know; empty: nothing. Constant while nothing changes."""
        if self.guard.phase is Phase.HOLDING:
            agent = "is silent" if self._is_silent else "is heard again, but not obeying for long enough"
            unheld = "it counts at its maximum until its BMC shows a limit"
            told = f"{self.node} {agent}; {self._held or unheld}"
        elif self.guard.phase is Phase.RELEASING:
            told = f"{self.node} obeys again; the limits of its BMC go back up"
        elif self.fault:
            told = f"not armed, {self.node} would count at its maximum if its agent fell silent"
        else:
            return ""
        return f"{told}: {self.fault}" if self.fault else told

    # -- when ------------------------------------------------------------------------------------------------

    def _look(self, heard: Heard, now: float) -> bool:
        """Whether there is something to do."""
        was, config = self.guard.phase, self._config
        self.guard = step(
            self.guard,
            heard,
            now,
            after_s=config.after_s,
            release_after_s=config.release_after_s,
            restored=not self._found.nodes.get(self.node),
        )
        self._is_silent = heard.silent_s >= config.after_s
        self._limit_w = config.limit_w if heard.limit_w is None else min(heard.limit_w, config.limit_w)
        if self.guard.phase is not was:
            log.warning("backstop", node=self.node, was=was, now=self.guard.phase)
            self._next_at_s, self._failures = now, 0
            if self.guard.phase is Phase.WATCHING:
                self.proof, self.fault, self._held = None, "", ""
                self._written_w.clear()
        return now >= self._next_at_s

    async def _act(self) -> None:
        work = {Phase.WATCHING: self._arm, Phase.HOLDING: self._hold, Phase.RELEASING: self._release}
        phase, before, failures = self.guard.phase, self.fault, self._failures
        self._failures = 0
        try:
            self.fault = await work[phase]()
        except RedfishFault as fault:
            self.fault, self._failures = str(fault), failures + 1
        except Exception as error:  # what one BMC says must not cost another host its proof
            told = f"{error!r:.{FAULT_MAX_CHARS}}"
            self.fault = f"{self._bmc.name}: a fault of this program, see its log: {told}"
            self._failures = failures + 1
            if self.fault != before:
                log.exception("a BMC broke the program", node=self.node)
        if self.fault and self.fault != before:
            log.warning("backstop fault", node=self.node, why=self.fault)
        is_quiet = phase is Phase.WATCHING and not self._failures
        usual_s = REARM_S if is_quiet else self._config.reread_s
        wait_s = min(usual_s * 2.0 ** min(self._failures, DOUBLINGS_MAX), max(RETRY_MAX_S, usual_s))
        self._next_at_s = now_s() + wait_s * random.uniform(0.9, 1.0)  # noqa: S311  BMCs in step with each other

    # -- what ------------------------------------------------------------------------------------------------

    async def _arm(self) -> str:
        """Find the levers."""
        self._levers = await discover(self._bmc, self._config.lever)
        own = sum(lever.gpu is not None for lever in self._levers)
        self._misfit = ""
        if own and own != self._gpus:
            self._misfit = f"{self._bmc.name} shows {own} GPUs, configured are {self._gpus}: correct one"
        return self._misfit

    async def _hold(self) -> str:
        """One round: no lever above the limit, and all of them shown."""
        if not self._levers:
            await self._arm()
        seen = await self._each(partial(read, self._bmc), self._levers)
        self._prove(seen)
        above = [lever for lever in _good(seen) if lever.bound_w > self._target_w(lever) + SAME_W]
        if above:
            await self._remember(above)
            written = await self._each(self._lower, above)
            seen = [*(one for one in seen if one not in above), *written]
            self._prove(seen)
        self._forget_gone(seen)
        told = [*_faults(seen), *map(self._shortfall, _good(seen)), self._misfit, self._found.unwritten]
        return _first(told)

    def _forget_gone(self, seen: Sequence[Lever | RedfishFault]) -> None:
        if any(isinstance(one, RedfishFault) and one.status in GONE for one in seen):
            self._levers = ()  # firmware may have changed: look again

    async def _lower(self, lever: Lever) -> Lever:
        seen = await set_limit(self._bmc, lever, self._target_w(lever), within_s=READ_BACK_MAX_S)
        self._written_w[lever.uri] = self._target_w(lever)
        log.info("backstop limit set", node=self.node, lever=lever.uri, limit_w=seen.setpoint_w)
        return seen

    async def _release(self) -> str:
        """One round: every lever that we changed a step nearer to what was found there."""
        owed = self._found.nodes.get(self.node, {})
        if not {lever.uri for lever in self._levers} >= owed.keys():
            await self._arm()
        lost = owed.keys() - {lever.uri for lever in self._levers}
        if lost == owed.keys():
            raise RedfishFault(self._lost(lost, owed))  # nothing else to do: asked ever more seldom
        seen = await self._each(partial(read, self._bmc), self._levers)
        self._forget_gone(seen)
        ours = [lever for lever in _good(seen) if lever.uri in owed and self._is_ours(lever, owed[lever.uri])]
        nearer = {lever.uri: self._nearer(lever, owed[lever.uri]) for lever in ours}
        # The most that any of these may show from now on, before it is written.
        self._prove([nearer.get(one.uri, one) if isinstance(one, Lever) else one for one in seen])
        await asyncio.sleep(TOLD_S)
        written = await self._each(lambda one: self._raise(one, nearer[one.uri], owed[one.uri]), ours)
        unfinished = {
            lever.uri
            for lever, result in zip(ours, written, strict=True)
            if isinstance(result, RedfishFault) or nearer[lever.uri] != _as_found(lever, owed[lever.uri])
        }
        unread = owed.keys() - {lever.uri for lever in _good(seen)}
        await self._found.keep(self.node, {uri: owed[uri] for uri in owed if uri in unfinished | unread})
        return _first([*_faults(seen), *_faults(written), self._lost(lost, owed), self._found.unwritten])

    def _lost(self, lost: AbstractSet[str], owed: Mapping[str, FoundLever]) -> str:
        """What a BMC that shows fewer levers than it did keeps us from, or an empty string."""
        remedy = f"restore it by hand; if it is gone for good, stop the controller and take it out of {NAME}"
        bmc = self._bmc.name
        return _first([f"{bmc} no longer has {uri}, which was {owed[uri]}: {remedy}" for uri in sorted(lost)])

    async def _raise(self, lever: Lever, nearer: Lever, found: FoundLever) -> Lever:
        assert nearer.setpoint_w is not None
        if found.limit_w is None and found.mode != OFF:
            raise RedfishFault(
                f"{self._bmc.name} {lever.uri}: it had no limit, and its BMC does not tell how far it goes: "
                "raise it by hand"
            )
        self._written_w.pop(lever.uri, None)  # until read back, either value is ours
        seen = await set_limit(
            self._bmc, lever, nearer.setpoint_w, mode=nearer.mode, within_s=READ_BACK_MAX_S
        )
        if nearer == _as_found(lever, found):
            log.info("backstop limit restored", node=self.node, lever=lever.uri, limit_w=nearer.setpoint_w)
        else:
            self._written_w[lever.uri] = lever.clamped_w(nearer.setpoint_w)
        return seen

    def _is_ours(self, lever: Lever, found: FoundLever) -> bool:
        """False: somebody else has set it since, and knows better."""
        shown_w = lever.setpoint_w
        if shown_w is not None:
            is_as_left = abs(shown_w - self._written_w.get(lever.uri, shown_w)) <= SAME_W
            if is_as_left and shown_w <= self._top_w(lever, found) + SAME_W:
                return True
        log.warning("backstop limit left", node=self.node, lever=lever.uri, shows_w=shown_w)
        return False

    def _top_w(self, lever: Lever, found: FoundLever) -> float:
        """How far up it goes before it is as found, W: what was off let everything through."""
        if found.mode == OFF:
            return lever.max_w or math.inf
        return self._target_w(lever) if found.limit_w is None else found.limit_w

    def _nearer(self, lever: Lever, found: FoundLever) -> Lever:
        """The lever one step of the release later; as found, where the next step is the last."""
        top_w = self._top_w(lever, found)
        if lever.setpoint_w is None or math.inf in (top_w, lever.bound_w):
            return _as_found(lever, found)
        step_w = self._config.release_w_per_s * self._config.reread_s * self._covers(lever)
        next_w = lever.setpoint_w + max(step_w, 1.0)
        return replace(lever, setpoint_w=next_w) if next_w < top_w else _as_found(lever, found)

    async def _remember(self, levers: Sequence[Lever]) -> None:
        """What these were, on disk, unless it is there already."""
        owed = self._found.nodes.get(self.node, {})
        fresh = {
            lever.uri: FoundLever(lever.limit_w or lever.max_w or None, lever.mode, now_utc_s())
            for lever in levers
            if lever.uri not in owed
        }
        if fresh or self._found.unwritten:
            await self._found.keep(self.node, {**fresh, **owed})

    # -- arithmetic ------------------------------------------------------------------------------------------

    def _covers(self, lever: Lever) -> int:
        return 1 if lever.gpu is not None else self._gpus

    def _target_w(self, lever: Lever) -> float:
        return lever.clamped_w(self._limit_w * self._covers(lever))

    def _shortfall(self, lever: Lever) -> str:
        """Why a lever that was read does not do what it should, or an empty string."""
        wish_w = self._limit_w * self._covers(lever)
        if lever.setpoint_w is not None and not _obeys(lever):
            return (
                f"{lever.uri}: limited to {lever.setpoint_w:g} W, draws more: its GPU does not obey the BMC"
            )
        if _is_unseen(lever) and lever.bound_w < math.inf:
            return (
                f"{lever.uri}: limited to {lever.bound_w:g} W, and a policy shows no power that says whether "
                "it acts: the host counts at its maximum"
            )
        if lever.bound_w > wish_w + SAME_W and lever.min_w is not None and wish_w < lever.min_w:
            return f"{lever.uri} goes no lower than {lever.min_w:g} W, {wish_w:g} W are wished for"
        return ""

    def _prove(self, seen: Sequence[Lever | RedfishFault]) -> None:
        """Replace the proof by what these show."""
        limits_w = bounds_w(_good(seen), self._gpus, unread=len(_faults(seen)))
        shown = [lever.asked_at_s for lever in _good(seen) if math.isfinite(_bound_w(lever))]
        is_proof = any(math.isfinite(limit_w) for limit_w in limits_w)
        self.proof = Proven(self.node, limits_w, min(shown)) if is_proof else None
        self._held = self._told_of(_good(seen), limits_w) if is_proof else ""

    def _told_of(self, levers: Sequence[Lever], limits_w: tuple[float, ...]) -> str:
        """What these hold, as they are set: it changes less often than what they let through."""
        most_w = max(lever.bound_w / self._covers(lever) for lever in levers if _bound_w(lever) < math.inf)
        held = sum(limit_w < math.inf for limit_w in limits_w)
        return f"its BMC holds {held} of {len(limits_w)} GPUs at {most_w:g} W"

    async def _each(
        self, work: Callable[[Lever], Awaitable[Lever]], levers: Sequence[Lever]
    ) -> list[Lever | RedfishFault]:
        """Do that with each, as many at a time as the BMC may be asked. Raises Unreachable, for all."""

        async def one(lever: Lever) -> Lever | RedfishFault:
            try:
                return await work(lever)
            except Unreachable:
                raise
            except RedfishFault as fault:
                return fault

        tasks = [asyncio.create_task(one(lever)) for lever in levers]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


def bounds_w(levers: Sequence[Lever], gpus: int, unread: int = 0) -> tuple[float, ...]:
    """Upper bounds of a host's GPUs, (gpus) W, that hold for the sum of all of them; inf: unknown.

    Of more levers than GPUs all count: a host that is larger than configured draws what they all let through.
    """
    shared_w = min((_bound_w(lever) for lever in levers if lever.gpu is None), default=math.inf)
    own_w = sorted((_bound_w(lever) for lever in levers if lever.gpu is not None), reverse=True)
    if not own_w:
        return (shared_w / gpus,) * gpus
    own_w = [math.inf] * unread + own_w
    if len(own_w) > gpus:
        return (sum(own_w) / gpus,) * gpus
    return (math.inf,) * (gpus - len(own_w)) + tuple(own_w)


def _bound_w(lever: Lever) -> float:
    if _is_unseen(lever) or not _obeys(lever):
        return math.inf
    return max(lever.bound_w, lever.reading_w or 0.0)


def _is_unseen(lever: Lever) -> bool:
    """Only a reading says whether a policy acts."""
    return lever.kind == "domain" and lever.reading_w is None


def _obeys(lever: Lever) -> bool:
    return lever.reading_w is None or lever.reading_w <= OVER_RATIO * lever.bound_w


def _as_found(lever: Lever, found: FoundLever) -> Lever:
    """The lever as it is to be left. The state of a policy is not ours."""
    limit_w = lever.setpoint_w if found.limit_w is None else found.limit_w
    mode = lever.mode if lever.kind == "domain" else found.mode or lever.mode
    return replace(lever, setpoint_w=limit_w, mode=mode)


def _good(seen: Sequence[Lever | RedfishFault]) -> list[Lever]:
    return [one for one in seen if isinstance(one, Lever)]


def _faults(seen: Sequence[Lever | RedfishFault]) -> list[str]:
    return [str(one) for one in seen if isinstance(one, RedfishFault)]


def _first(faults: Sequence[str]) -> str:
    """The first of these sentences, and how many more there are."""
    said = [fault for fault in faults if fault]
    if len(said) <= 1:
        return "".join(said)
    return f"{said[0]} (and {len(said) - 1} more)"
