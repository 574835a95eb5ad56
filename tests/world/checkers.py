"""The promises, checked from outside: truth on one side, what the law said on the other.

Nothing here uses the law's own arithmetic beyond what it published in a decision. Every checker raises
`Broken` with its promise and a sentence. Tolerances stand here, with their reasons.
"""

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np

from controller.core.model import Decision, Mode, Setpoint, Settings

ROUNDING_W = 1.5  # per GPU: drivers round to whole watts, an acknowledgement allows one more
POWER_TOLERANCE_RATIO = 0.02  # a 1 s mean against the line: settling of GPUs, 0.1 % meter noise
FOLLOWED_S = 1.0  # how far orders that are confirmed and settled may be behind what moves: ramp or base load
IN_USE_RATIO = 0.95  # of the free power: a share-out may be half a second old
RISING_RATIO = 0.7  # of the agreed rate
BASE_TRACK_S = 4.0  # how long the base load may move before the estimate must have followed
ALARM_AFTER_S = 3.0
# alarms that say why power may be above the line; any other is no excuse
EXPLAINS = ("over budget", "shortfall", "agent", "lease", "gpu", "excess", "meter")
WINDOW_EVERY = 4  # windows of a second and more need no look at every step


class Broken(AssertionError):
    """A promise was not kept. `number` is the one in the design page."""

    def __init__(self, number: int, at_s: float, text: str) -> None:
        super().__init__(f"promise {number} broken at {at_s:.2f} s: {text}")
        self.number = number


@dataclass(frozen=True)
class Moment:
    """Everything the checkers may look at: truth and words of one step."""

    now_s: float
    limits_w: np.ndarray  # (n) what the drivers really hold
    block_w: float
    base_w: float
    rack_w: tuple[float, float]  # true power at the inlets of each rack
    clock_true: bool  # the wall clock was never stepped
    decision: Decision | None  # of a living controller
    decided_now: bool
    started_at_s: float  # of the controller process
    site_spoke: bool  # to this controller process
    heard_at_s: float  # last heartbeat that reached it
    plan_since_s: float  # when it came to know the plan of now
    inherited_w: float  # lower of failsafe and what the last process held, until its window ends
    budget_max_w: float  # the same for the budget: a ramp that was under way goes on, but never up
    wanted: tuple[tuple[Setpoint, float, float], ...]  # (setpoint, opened, ends), by true time
    agents: list  # with members, up, deaf_to_writes, right_until_s, truth.lost
    meter_honest: bool  # no lie, no freeze lately
    measurable_at_s: float  # last time meter and all GPUs could be read
    metered_at_s: float  # last time the meter was read at all
    disturbed_at_s: float  # last time somebody else than us raised a limit


@dataclass
class Checkers:
    settings: Settings
    sums: deque = field(default_factory=deque)  # (t, sum of true limits)
    budgets: deque = field(default_factory=deque)  # (t, budget + shortfall)
    powers: deque = field(default_factory=deque)  # (t, block_w)
    bases: deque = field(default_factory=deque)  # (t, base_w)
    rooms: deque = field(default_factory=partial(deque, maxlen=20))  # (t, power to hand out)
    aims: deque = field(default_factory=deque)
    shortfalls: deque = field(default_factory=deque)
    steps: int = 0
    over_since_s: float | None = None
    protected_at_s: float = 0.0  # last time protection bound, or a restart held the failsafe limit
    free_since_s: dict = field(default_factory=dict)
    down_since_s: dict = field(default_factory=dict)
    rack_over_since_s: dict = field(default_factory=dict)

    def see(self, moment: Moment) -> None:
        self._remember(moment)
        decision = moment.decision
        if decision is None:
            return
        self.never_above(moment, decision)
        self.lowest_binds(moment, decision)
        self.wall_clock_releases_nothing(moment, decision)
        self.failsafe_from_the_start(moment, decision)
        self.steps += 1
        if self.steps % WINDOW_EVERY == 0:
            self.rooms.append((moment.now_s, self._room_w(decision)))
            self.base_is_an_upper_estimate(moment, decision)
            self.ramps_are_contracts(moment, decision)
            self.what_cannot_be_done_is_said(moment, decision)
            self.racks_stay_within_their_inlets(moment, decision)
            self.arrivals_are_kept(moment, decision)
            self.dead_man(moment)

    def _remember(self, moment: Moment) -> None:
        now = moment.now_s
        self.bases.append((now, moment.base_w))
        while self.bases[0][0] < moment.measurable_at_s - BASE_TRACK_S:
            self.bases.popleft()
        for trail, value in ((self.sums, float(moment.limits_w.sum())), (self.powers, moment.block_w)):
            trail.append((now, value))
            while trail[0][0] < now - 6.0:
                trail.popleft()
        if moment.decided_now and moment.decision is not None:
            fresh = moment.now_s - moment.started_at_s < 0.5
            if moment.decision.binding.protection or not moment.site_spoke or fresh:
                self.protected_at_s = now
            self.budgets.append((now, moment.decision.budget_w + moment.decision.shortfall_w))
            self.aims.append((now, moment.decision.budget_w))
            self.shortfalls.append((now, moment.decision.shortfall_w))
        for trail in (self.budgets, self.aims, self.shortfalls):
            while trail and trail[0][0] < now - 6.0:
                trail.popleft()

    def never_above(self, moment: Moment, decision: Decision) -> None:
        """1: limits that GPUs really hold, plus the estimate of the rest, stay under the promised line."""
        held_w = self.settings.block_w_per_gpu_w * float(moment.limits_w.sum()) + decision.base_w
        allowed_w = decision.budget_w + decision.shortfall_w + ROUNDING_W * len(moment.limits_w)
        if (
            held_w > allowed_w
            and moment.now_s - moment.disturbed_at_s > self.settings.silent_max_after_s + 1.5
        ):
            raise Broken(1, moment.now_s, f"GPUs may draw {held_w:.0f} W, promised {allowed_w:.0f} W")

    def racks_stay_within_their_inlets(self, moment: Moment, decision: Decision) -> None:
        """1, per rack: what a rack draws fits through its inlets, or an alarm says why not."""
        excused = any(alarm.key.startswith((*EXPLAINS, "rack", "inlet", "pdu")) for alarm in decision.alarms)
        for rack, power_w in enumerate(moment.rack_w):
            carried_w = 2.0 * float(
                self.settings.topology.inlet_continuous_w[2 * rack]
            )  # both inlets share evenly
            if excused or power_w < 1.05 * carried_w or moment.now_s - moment.started_at_s < 5.0:
                self.rack_over_since_s.pop(rack, None)
            elif moment.now_s - self.rack_over_since_s.setdefault(rack, moment.now_s) > ALARM_AFTER_S:
                raise Broken(
                    1, moment.now_s, f"rack {rack} draws {power_w:.0f} W, its inlets carry {carried_w:.0f} W"
                )

    def arrivals_are_kept(self, moment: Moment, decision: Decision) -> None:
        """5: a limit to be met at its start is met, if it was known early enough."""
        if not moment.clock_true:
            return
        for setpoint, opened_s, ends_s in moment.wanted:
            ramp_s = (self.settings.feed_rating_w - setpoint.limit_w) / self.settings.ramp_down_w_per_s
            known = moment.started_at_s < opened_s - ramp_s - 6.0 and moment.heard_at_s > opened_s - 6.0
            alone = len(moment.wanted) == 1  # others may have priority until then
            if not (
                setpoint.arrive_at_start and known and alone and moment.plan_since_s < opened_s - ramp_s - 6.0
            ):
                continue
            late_s = moment.now_s - opened_s
            if 0.2 < late_s < min(1.0, ends_s - opened_s) and decision.budget_w > 1.01 * setpoint.limit_w:
                text = f"{setpoint.id} asks {setpoint.limit_w:.0f} W at its start, budget {decision.budget_w:.0f} W"
                raise Broken(5, moment.now_s, text)

    def lowest_binds(self, moment: Moment, decision: Decision) -> None:
        """2: the lowest limit binds and has a name; nothing in force at the site is left out of the list."""
        lowest_w = min(limit.power_w for limit in decision.limits)
        if decision.binding.power_w != lowest_w or not decision.binding.source:
            raise Broken(2, moment.now_s, f"binding is {decision.binding}, the lowest is {lowest_w:.0f} W")
        if decision.binding.power_w > self.settings.feed_rating_w:
            raise Broken(2, moment.now_s, f"above the feed rating: {decision.binding}")

    def base_is_an_upper_estimate(self, moment: Moment, decision: Decision) -> None:
        """3 and 4: with an honest meter, lost or late readings never make the base load look small."""
        settled_w = min(value for _, value in self.bases)
        tolerance_w = (
            0.015 * self.settings.feed_rating_w
        )  # supply losses differ a little from the assumed ratio
        blind_s = moment.now_s - moment.metered_at_s
        if blind_s > self.settings.base_age_max_s + 1.0 and decision.base_w < self.settings.base_max_w:
            raise Broken(
                3, moment.now_s, f"meter silent for {blind_s:.0f} s, base load {decision.base_w:.0f} W"
            )
        if moment.meter_honest and decision.base_w < min(settled_w, moment.base_w) - tolerance_w:
            raise Broken(
                4, moment.now_s, f"base load {moment.base_w:.0f} W, estimated {decision.base_w:.0f} W"
            )

    def ramps_are_contracts(self, moment: Moment, decision: Decision) -> None:
        """5: the line, and the limits that GPUs hold, move no faster than agreed, whatever comes back."""
        now, up, down = moment.now_s, self.settings.ramp_up_w_per_s, self.settings.ramp_down_w_per_s
        before = [(at, value) for at, value in self.aims if now - 2.0 <= at <= now - 1.0]
        if before and moment.decided_now:
            at, was_w = before[-1]
            if decision.budget_w > was_w + up * (now - at) + 1.0:
                raise Broken(5, now, f"budget rose from {was_w:.0f} to {decision.budget_w:.0f} W in 1 s")
            # empty headroom may go at once, and so may everything before protection
            drawn_w = min(power_w for seen, power_w in self.powers if now - 4.0 <= seen <= at)
            least_w = min(was_w, drawn_w) - down * (now - at) - 0.02 * self.settings.feed_rating_w
            if now - self.protected_at_s > 4.0 and decision.budget_w < least_w:
                raise Broken(5, now, f"budget fell from {was_w:.0f} to {decision.budget_w:.0f} W in 1 s")
        old = [value for at, value in self.sums if now - 3.5 <= at <= now - 1.5]
        if len(old) > 5 and now - moment.disturbed_at_s > 6.0:
            rise_w = self.settings.block_w_per_gpu_w * (self.sums[-1][1] - max(old))
            if rise_w > up * 3.0 + ROUNDING_W * len(moment.limits_w):
                raise Broken(5, now, f"limits held by GPUs rose by {rise_w:.0f} W within 2 s at {up:.0f} W/s")

    def what_cannot_be_done_is_said(self, moment: Moment, decision: Decision) -> None:
        """6, and 1 at the meter: what lasts for seconds has an alarm."""
        self.silence_is_named(moment, decision)
        recent = [value for at, value in self.powers if at >= moment.now_s - 1.0]
        lines = [value for at, value in self.budgets if at >= moment.now_s - 1.5]
        if not lines:
            self.over_since_s = None
            return
        # against a lying meter the PDUs vouch, for what is in the racks (here nine tenths) and within a tolerance
        lie_w = 0.0 if moment.meter_honest else 1.1 * self.settings.witness_tolerance_w + 0.1 * moment.base_w
        over = np.mean(recent) > max(lines) * (1.0 + POWER_TOLERANCE_RATIO) + 0.02 * moment.base_w + lie_w
        if not over or any(alarm.key.startswith(EXPLAINS) for alarm in decision.alarms):
            self.over_since_s = None
        elif self.over_since_s is None:
            self.over_since_s = moment.now_s
        elif moment.now_s - self.over_since_s > ALARM_AFTER_S:
            raise Broken(
                6, moment.now_s, f"{np.mean(recent):.0f} W drawn, {max(lines):.0f} W promised, no alarm"
            )

    def silence_is_named(self, moment: Moment, decision: Decision) -> None:
        told = " ".join(alarm.key for alarm in decision.alarms)
        short = [short_w for at, short_w in self.shortfalls if at >= moment.now_s - 2.5]
        lasting = len(short) > 2.2 / self.settings.tick_s and moment.now_s - moment.started_at_s > 2.5
        if lasting and min(short) > 0.01 * self.settings.feed_rating_w and "shortfall" not in told:
            raise Broken(6, moment.now_s, f"{min(short):.0f} W short for seconds, alarms: {told or 'none'}")
        for agent in moment.agents:
            if agent.up:
                self.down_since_s.pop(agent.name, None)
                continue
            since_s = max(self.down_since_s.setdefault(agent.name, moment.now_s), moment.started_at_s)
            if moment.now_s - since_s > ALARM_AFTER_S and agent.name not in told:
                raise Broken(6, moment.now_s, f"{agent.name} is dead, alarms: {told or 'none'}")

    def wall_clock_releases_nothing(self, moment: Moment, decision: Decision) -> None:
        """7: a window that has opened binds until its length has passed, whatever the wall clock does."""
        best: dict[str, tuple[int, float]] = {}
        if any(abs(moment.now_s - edge) < 0.15 for _, *edges in moment.wanted for edge in edges):
            return  # at the edge of a window either answer is right
        for setpoint, opened_s, ends_s in moment.wanted:
            if opened_s <= moment.now_s < ends_s - 0.01:
                rank = (setpoint.priority, setpoint.limit_w)
                best[setpoint.kind] = min(best.get(setpoint.kind, rank), rank)
        for kind, (_, limit_w) in best.items():
            if decision.binding.power_w > limit_w + 0.01:
                raise Broken(7, moment.now_s, f"{kind} asks {limit_w:.0f} W, binding is {decision.binding}")

    def failsafe_from_the_start(self, moment: Moment, decision: Decision) -> None:
        """8: until the site has spoken to this process, the lower of failsafe and inherited limit holds."""
        if not moment.site_spoke and (
            decision.binding.power_w > moment.inherited_w + 0.01 or decision.mode is not Mode.INIT
        ):
            raise Broken(
                8,
                moment.now_s,
                f"site silent, {moment.inherited_w:.0f} W allowed, binding {decision.binding}",
            )
        if not moment.site_spoke and decision.budget_w > moment.budget_max_w + 0.01:
            raise Broken(
                8,
                moment.now_s,
                f"site silent, {moment.budget_max_w:.0f} W allowed, budget {decision.budget_w:.0f} W",
            )

    def dead_man(self, moment: Moment) -> None:
        """9: an agent that lives without a right has its GPUs at or under its own fallback, in time."""
        for agent in moment.agents:
            ramp_s = 700.0 / agent.settings.fallback_ramp_w_per_s + 0.5
            if not agent.up or agent.deaf_to_writes or moment.now_s < agent.right_until_s + ramp_s:
                self.free_since_s.pop(agent.name, None)
                continue
            since_s = self.free_since_s.setdefault(agent.name, moment.now_s)
            over = moment.limits_w[agent.members] > agent.settings.fallback_w[0] + 1.0
            if (
                moment.now_s - max(since_s, moment.disturbed_at_s) > ramp_s
                and (over & ~agent.truth.lost[agent.members]).any()
            ):
                raise Broken(
                    9, moment.now_s, f"{agent.name} has no lease, limits {moment.limits_w[agent.members]}"
                )

    def healed(self, now_s: float, decision: Decision, truth: object, settings: Settings) -> None:
        """10 and the second phase: after the faults the block is in control, in plan, and at work."""
        shares, up = decision.state.shares, settings.ramp_up_w_per_s
        if decision.mode not in (Mode.CONTROLLED, Mode.LIMITED):
            raise Broken(10, now_s, f"still in {decision.mode} after healing")
        if not shares.controllable.all():
            raise Broken(10, now_s, f"GPUs still out of reach after healing: {shares.controllable}")
        count, gain = len(truth.limit_w), settings.block_w_per_gpu_w
        if gain * float(settings.topology.gpu_min_w.sum()) + decision.base_w >= decision.budget_w:
            return  # no room but for the minima: a shortfall that is said
        # a base load that climbs is followed with the delay of one order
        rises_w = [after[1] - before[1] for before, after in pairwise(self._seconds(self.bases, now_s, 4))]
        lasting_w = min(short_w for at, short_w in self.shortfalls if at >= now_s - 3.0)
        if lasting_w > FOLLOWED_S * max(0.0, *rises_w) + ROUNDING_W * count:
            raise Broken(10, now_s, f"shortfall of {lasting_w:.0f} W after healing")
        room_w = min(room_w for at, room_w in self.rooms if at >= now_s - 2.0)
        used_w = max(value for at, value in self.sums if at >= now_s - 1.0)
        earlier_w = max(value for at, value in self.sums if now_s - 4.0 <= at <= now_s - 3.0)
        if used_w - earlier_w > RISING_RATIO * 3.0 * up / gain:
            return  # on its way, at the agreed rate
        if used_w < IN_USE_RATIO * room_w - FOLLOWED_S * up / gain - ROUNDING_W * count:
            raise Broken(
                10, now_s, f"limits sum up to {used_w:.0f} W, {room_w:.0f} W are free: not back at work"
            )

    def _room_w(self, decision: Decision) -> float:
        """What the law itself says it may hand out: budget and inlets."""
        racks_w = np.minimum(
            decision.state.shares.rack_budget_w, np.bincount(self.settings.topology.gpu_rack) * 700.0
        )
        budget_w = (decision.state.pace.aim_w - decision.base_w) / self.settings.block_w_per_gpu_w
        return min(budget_w, float(racks_w.sum()))

    def _seconds(self, trail: deque, now_s: float, count: int) -> list:
        """One entry of the trail for each of the last seconds, oldest first."""
        return [
            next(entry for entry in reversed(trail) if entry[0] <= now_s - back + 0.001)
            for back in range(count - 1, -1, -1)
        ]
