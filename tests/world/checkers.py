"""The promises, checked from outside: truth on one side, what the law said on the other.

Nothing here uses the law's own arithmetic beyond what it published in a decision. Every checker raises
`Broken` with its promise and a sentence. Tolerances stand here, with their reasons.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from controller.core.model import Contact, Decision, Mode, Setpoint, Settings
from controller.core.sharing import STRIDE_S
from tests.world.facility import CLOCK_MAX_MHZ, RACK_BASE_RATIO, Truth
from tests.world.grid import Grid
from tests.world.nodes import Agent
from tests.world.response import COMMITMENT, Broken, Response

ROUNDING_W = 1.5  # per GPU: drivers round to whole watts, an acknowledgement allows one more
POWER_TOLERANCE_RATIO = 0.02  # a 1 s mean against the line: settling of GPUs, 0.1 % meter noise
FOLLOWED_S = 1.0  # how far orders that are confirmed and settled may be behind what moves: ramp or base load
RECENTLY_S = 3.0  # what a healed block must show once in this time: PDUs, read every second, make racks hunt
HANDED_OVER_S = 1.0  # a new controller repeats what reports show, which may be as old
IN_USE_RATIO = 0.95  # of the free power: a share-out may be half a second old
CEILINGS_RISE_S = 6.0  # after the last GPU was held: what it drew is forgotten within four
CEILING_STEP_S = 5.6  # a step up every five seconds, at the next share-out
CEILING_STEP_RATIO = 0.1
CEILING_ROUNDING_RATIO = 0.01  # clocks come in steps of 15 MHz
RACK_FULL_RATIO = 0.98  # of what its inlets carry: base loads of racks are known to some percent
PULLED_RATIO = 0.01  # of the feed rating: protection that lies lower than that below the budget takes it down
RISING_RATIO = 0.7  # of the agreed rate
AT_THE_LINE_RATIO = 0.98  # of the binding limit: cooling is measured anew every second, with 0.1 % noise
REAL_LIMIT_RATIO = 0.99  # of what the world asks for: ten times the noise of the cooling plant's meter
OVER_BUDGET_RATIO = 0.01  # of the line: less is no alarm
BASE_EXCESS_RATIO = 0.03  # of the feed rating: margin, and what two seconds of swinging GPUs hide in a mean
BASE_TRACK_S = 4.0  # how long the base load may move before the estimate must have followed
GIVES_WAY_S = 3.5  # an excess is smoothed over a second, and believed after two
SEEN_TO_GIVE_S = 6.0  # the same at the meter, where a mean of a second and the settling of GPUs come on top
GIVEN_RATIO = 0.01  # of the feed rating: what base load and swings do meanwhile
ALARM_AFTER_S = 3.0
# alarms that say why power may be above the line; any other is no excuse
EXPLAINS = ("over budget", "shortfall", "agent", "lease", "gpu", "excess", "meter")
WINDOW_EVERY = 4  # windows of a second and more need no look at every step


@dataclass(frozen=True)
class Moment:
    """Everything the checkers may look at: truth and words of one step."""

    now_s: float
    limits_w: np.ndarray  # (n) what the drivers really hold
    capped_w: np.ndarray  # (n) or less, where our backstop holds them at less
    block_w: float
    base_w: float
    rack_w: tuple[float, float]  # true power at the inlets of each rack
    clock_true: bool  # the wall clock was never stepped
    decision: Decision | None  # of a living controller
    decided_now: bool
    healed: bool  # no fault for so long that everything must be back
    started_at_s: float  # of the controller process
    site_spoke: bool  # every source of it, to this controller process
    heard_at_s: float  # last heartbeat that reached it
    contacts: tuple[Contact, ...]  # the same of every source
    plan_since_s: float  # when it came to know the plan of now
    inherited_w: float  # lower of failsafe and what the last process held, until its window ends
    budget_max_w: float  # the same for the budget: a ramp that was under way goes on, but never up
    wanted: tuple[tuple[Setpoint, float, float], ...]  # (setpoint, opened, ends), by true time
    plan: tuple[Setpoint, ...]  # as far as it has reached the controller
    utc_s: float  # what the wall clock says
    cooling_w: float  # heat that the plant really takes away
    agents: list  # with members, up, deaf_to_writes, right_until_s, truth.lost
    meter_honest: bool  # no lie, no freeze lately
    measurable_at_s: float  # last time meter and all GPUs could be read
    metered_at_s: float  # last time the meter was read at all
    disturbed_at_s: float  # last time somebody else than us raised a limit
    grid: Grid | None  # None: nothing was committed to it
    able_since_s: float  # since when nothing is amiss that keeps GPUs from obeying, or power from being known
    unknowable_w: float  # GPU power beyond what BMCs show, which nothing gives away
    truth: Truth
    epoch: int  # of the controller; 0: none lives
    facts: set  # nodes that have told it what they are
    by_clock: np.ndarray | None  # (n) GPUs whose lever agents say is the clock; None: they say nothing


@dataclass
class Checkers:
    settings: Settings
    sums: deque = field(default_factory=deque)  # (t, sum of true limits, or floors that are higher)
    powers: deque = field(default_factory=deque)  # (t, block_w)
    bases: deque = field(default_factory=deque)  # (t, base_w)
    rooms: deque = field(default_factory=deque)  # (t, what the limits may sum up to), of a healed block
    ceilings: deque = field(default_factory=deque)  # (t, MHz) of the last second, as agents show them
    said: deque = field(default_factory=deque)  # (t, decision)
    steps: int = 0
    roomy: deque = field(
        default_factory=deque
    )  # (t, above what was promised, what those who obey could give)
    over_since_s: float | None = None
    protected_at_s: float = 0.0  # last time protection bound, or a restart held the failsafe limit
    free_since_s: dict = field(default_factory=dict)
    down_since_s: dict = field(default_factory=dict)
    rack_over_since_s: dict = field(default_factory=dict)
    rack_full_at_s: dict = field(default_factory=dict)  # last time it drew what its inlets carry
    ramps: set = field(default_factory=set)  # every one that was agreed in this history
    ceilings_mhz: np.ndarray | None = None  # (n) at the last step,
    generation: np.ndarray | None = None  # (n) and of which life of the driver
    lost_at_s: np.ndarray | None = None  # (n) last time that its ceiling could not be told
    kept_up_at_s: np.ndarray | None = None  # (n) last time that smoothing kept it above its limit
    short_at_s: float = 0.0  # last time that a GPU was held which no ceiling of its own would help
    response: Response = field(init=False)

    def __post_init__(self) -> None:
        self.response = Response(self.settings)

    def see(self, moment: Moment) -> None:
        self._remember(moment)
        if moment.by_clock is not None:
            self.ceilings_are_lifted_by_order(moment)
        decision = moment.decision
        if decision is None:
            return
        self.never_above(moment, decision)
        self.floors_are_said(moment, decision)
        self.lowest_binds(moment, decision)
        self.wall_clock_releases_nothing(moment, decision)
        self.failsafe_from_the_start(moment, decision)
        self.the_silent_are_failsafe(moment, decision)
        if moment.grid is not None:
            self.response.see(moment, decision)
        self.steps += 1
        if self.steps % WINDOW_EVERY == 0:
            self.base_is_an_upper_estimate(moment, decision)
            self.ramps_are_contracts(moment, decision)
            self.what_cannot_be_done_is_said(moment, decision)
            self.who_obeys_gives_way(moment)
            self.racks_stay_within_their_inlets(moment, decision)
            self.arrivals_are_kept(moment, decision)
            self.dead_man(moment)
            if moment.healed:
                self.healed(moment, decision)

    def _remember(self, moment: Moment) -> None:
        now = moment.now_s
        self.ramps |= {self.settings.ramp, *(setpoint.ramp for setpoint in moment.plan if setpoint.ramp)}
        if self.response.acted:
            release_w_per_s = self.settings.frequency.release_w_per_s
            self.ramps.add(self.settings.ramp._replace(up_w_per_s=release_w_per_s))
        self.bases.append((now, moment.base_w))
        while self.bases[0][0] < moment.measurable_at_s - BASE_TRACK_S:
            self.bases.popleft()
        may_w = np.maximum(moment.limits_w, moment.truth.floor_w)
        for trail, value in ((self.sums, float(may_w.sum())), (self.powers, moment.block_w)):
            trail.append((now, value))
            while trail[0][0] < now - 6.0:
                trail.popleft()
        kept_up = moment.truth.floor_w > moment.limits_w + 1.0
        self.kept_up_at_s = np.where(kept_up, now, 0.0 if self.kept_up_at_s is None else self.kept_up_at_s)
        if moment.by_clock is not None:
            truth = moment.truth
            wished_w = np.maximum(truth.wished_w, truth.floor_w)  # who is kept up looks like one who is held
            held = (truth.limit_w < truth.max_w - 1.0) & (wished_w > 0.9 * truth.enforced_w)
            if (held & ~moment.by_clock).any():
                self.short_at_s = now
        if moment.decided_now and moment.decision is not None:
            fresh = moment.now_s - moment.started_at_s < 0.5
            limits, budget_w = moment.decision.limits, moment.decision.budget_w
            protected_w = min(limit.power_w for limit in limits if limit.protection)  # be another one lower
            pulls = protected_w < budget_w - PULLED_RATIO * self.settings.feed_rating_w
            if pulls or not moment.site_spoke or fresh:
                self.protected_at_s = now
            self.said.append((now, moment.decision))
        while self.said and self.said[0][0] < now - 6.0:
            self.said.popleft()

    def never_above(self, moment: Moment, decision: Decision) -> None:
        """1: limits that GPUs really hold, plus the estimate of the rest, stay under the promised line."""
        held_w = self.settings.block_w_per_gpu_w * float(moment.capped_w.sum()) + decision.base_w
        allowed_w = decision.budget_w + decision.shortfall_w + ROUNDING_W * len(moment.limits_w)
        allowed_w += self.settings.block_w_per_gpu_w * moment.unknowable_w
        if (
            held_w > allowed_w
            and moment.now_s - moment.disturbed_at_s > self.settings.silent_max_after_s + 1.5
        ):
            raise Broken(1, moment.now_s, f"GPUs may draw {held_w:.0f} W, promised {allowed_w:.0f} W")

    def floors_are_said(self, moment: Moment, decision: Decision) -> None:
        """6: what power smoothing keeps up is within what is promised, or said to be short."""
        floors_w = moment.truth.floor_w
        if (
            not floors_w.any()
            or moment.now_s - moment.disturbed_at_s <= self.settings.silent_max_after_s + 1.5
        ):
            return
        gain, may_w = self.settings.block_w_per_gpu_w, np.maximum(moment.capped_w, floors_w)
        kept_w = gain * float(may_w.sum()) + decision.base_w
        said_w = decision.budget_w + decision.shortfall_w + ROUNDING_W * len(floors_w)
        if kept_w > said_w + gain * moment.unknowable_w:
            text = f"smoothing keeps the block at {kept_w:.0f} W, said are {said_w:.0f} W"
            raise Broken(6, moment.now_s, text)

    def racks_stay_within_their_inlets(self, moment: Moment, decision: Decision) -> None:
        """1, per rack: what a rack draws fits through its inlets, or an alarm says why not."""
        excused = any(alarm.key.startswith((*EXPLAINS, "rack", "inlet", "pdu")) for alarm in decision.alarms)
        for rack, power_w in enumerate(moment.rack_w):
            carried_w = 2.0 * float(
                self.settings.topology.inlet_continuous_w[2 * rack]
            )  # both inlets share evenly
            if power_w > carried_w:
                self.rack_full_at_s[rack] = moment.now_s
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
            down_w_per_s = (setpoint.ramp or self.settings.ramp).down_w_per_s
            ramp_s = (self.settings.feed_rating_w - setpoint.limit_w) / down_w_per_s
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

    def _is_led(self, decision: Decision, before: tuple[float, Decision], down_w_per_s: float) -> bool:
        """Whether the line of a way down moved as agreed since, and the budget stayed above it.

        Where work itself takes power away, as a host that reboots does, the power shows nothing of the line.
        """
        at, said = before
        line_w, tolerance_w = decision.state.pace.line_w, 0.02 * self.settings.feed_rating_w
        agreed_w = said.state.pace.line_w - down_w_per_s * (self.said[-1][0] - at) - tolerance_w
        return line_w >= agreed_w and decision.budget_w >= line_w - 1.0

    def ramps_are_contracts(self, moment: Moment, decision: Decision) -> None:
        """5: the line, and the limits that GPUs hold, move no faster than agreed, whatever comes back."""
        now, up, down = moment.now_s, self._fastest_up_w_per_s(), max(one.down_w_per_s for one in self.ramps)
        before = [(at, said) for at, said in self.said if now - 2.0 <= at <= now - 1.0]
        if before and moment.decided_now:
            at, was_w = before[-1][0], before[-1][1].budget_w
            if decision.budget_w > was_w + up * (now - at) + 1.0:
                raise Broken(5, now, f"budget rose from {was_w:.0f} to {decision.budget_w:.0f} W in 1 s")
            # empty headroom may go at once, and so may everything before protection
            drawn_w = min(power_w for seen, power_w in self.powers if now - 4.0 <= seen <= at)
            least_w = min(was_w, drawn_w) - down * (now - at) - 0.02 * self.settings.feed_rating_w
            # a budget that limits swinging GPUs falls faster than the power that it leads down along a line
            sunk_w = min(power_w for seen, power_w in self.powers if seen >= at)
            too_fast = max(decision.budget_w, sunk_w) < least_w and not self._is_led(
                decision, before[-1], down
            )
            if now - self.protected_at_s > 4.0 and too_fast:
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
        lines = [said.budget_w + said.shortfall_w for at, said in self.said if at >= moment.now_s - 1.5]
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

    def who_obeys_gives_way(self, moment: Moment) -> None:
        """1 and 6: a shortfall, said or seen at the meter, is what is left when nobody has more to give."""
        self.roomy.append((moment.now_s, self._over_w(moment), self._could_give_w(moment)))
        while self.roomy[0][0] < moment.now_s - SEEN_TO_GIVE_S:
            self.roomy.popleft()
        least_w = GIVEN_RATIO * self.settings.feed_rating_w
        lately = [said for at, said in self.said if at >= moment.now_s - GIVES_WAY_S]
        short_w = min((said.shortfall_w for said in lately), default=0.0)
        could_w = min(
            (could_w for at, _, could_w in self.roomy if at >= moment.now_s - GIVES_WAY_S), default=0.0
        )
        if moment.now_s - moment.started_at_s > SEEN_TO_GIVE_S and min(short_w, could_w) > least_w:
            raise Broken(1, moment.now_s, f"{short_w:.0f} W short, others could give {could_w:.0f} W")
        if moment.now_s - self.roomy[0][0] > SEEN_TO_GIVE_S - 0.5:
            over_w = min(over_w for _, over_w, _ in self.roomy)
            could_w = min(could_w for _, _, could_w in self.roomy)
            if over_w > 0.0 and could_w > least_w:
                raise Broken(
                    1, moment.now_s, f"{over_w:.0f} W above the band, others could give {could_w:.0f} W"
                )

    def _over_w(self, moment: Moment) -> float:
        """By how much the block has drawn more than promised lately, where that could be known; else 0."""
        recent = [value for at, value in self.powers if at >= moment.now_s - 1.0]
        lines = [said.budget_w for at, said in self.said if at >= moment.now_s - 1.5]
        known = moment.meter_honest and moment.now_s - moment.measurable_at_s < 0.5
        if not lines or not known:
            return 0.0
        return float(np.mean(recent)) - max(lines) * (1.0 + POWER_TOLERANCE_RATIO) - 0.02 * moment.base_w

    def _could_give_w(self, moment: Moment) -> float:
        """What the limits of GPUs that obey are above their least."""
        decision = moment.decision
        above_w = np.maximum(0.0, decision.gpu_limits_w - self._least_w(moment))
        return self.settings.block_w_per_gpu_w * float(above_w[decision.state.shares.bound].sum())

    def silence_is_named(self, moment: Moment, decision: Decision) -> None:
        told = " ".join(alarm.key for alarm in decision.alarms)
        short = [said.shortfall_w for at, said in self.said if at >= moment.now_s - 2.5]
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
        if self._at_an_edge(moment):
            return
        for setpoint in self._in_force(moment):
            if decision.binding.power_w > setpoint.limit_w + 0.01:
                text = f"{setpoint.kind} asks {setpoint.limit_w:.0f} W, binding is {decision.binding}"
                raise Broken(7, moment.now_s, text)

    def _at_an_edge(self, moment: Moment) -> bool:
        """At the edge of a window either answer is right."""
        return any(abs(moment.now_s - edge) < 0.15 for _, *edges in moment.wanted for edge in edges)

    def _in_force(self, moment: Moment) -> list[Setpoint]:
        """Of all open windows the winner of each kind: highest priority, then lowest limit."""
        best: dict[str, Setpoint] = {}
        for setpoint, opened_s, ends_s in moment.wanted:
            rival = best.get(setpoint.kind, setpoint)
            if opened_s <= moment.now_s < ends_s - 0.01:
                best[setpoint.kind] = min(rival, setpoint, key=lambda s: (s.priority, s.limit_w))
        return list(best.values())

    def failsafe_from_the_start(self, moment: Moment, decision: Decision) -> None:
        """8: until the site has spoken to this process, the lower of failsafe and inherited limit holds."""
        if not moment.site_spoke and (
            decision.binding.power_w > moment.inherited_w + 0.01
            or decision.mode not in (Mode.INIT, Mode.FAILSAFE)
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

    def the_silent_are_failsafe(self, moment: Moment, decision: Decision) -> None:
        """8, of every source: whoever is silent for its time-out has its failsafe limit held."""
        for failsafe, contact in zip(self.settings.failsafes, moment.contacts, strict=False):
            silent_s = moment.now_s - contact.heartbeat_at_s
            late = silent_s > failsafe.heartbeat_timeout_s + 0.3 and moment.decided_now
            if late and decision.binding.power_w > failsafe.limit_w + 0.01:
                text = f"{failsafe.source} silent for {silent_s:.1f} s, binding {decision.binding}"
                raise Broken(8, moment.now_s, text)

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

    def ceilings_are_lifted_by_order(self, moment: Moment) -> None:
        """9, of clocks: raised or taken away only as the newest order says to an agent that holds a right to it."""
        truth, was_mhz = moment.truth, self.ceilings_mhz
        lost_at_s = np.zeros(len(truth.lost)) if self.lost_at_s is None else self.lost_at_s
        self.lost_at_s = np.where(truth.lost, moment.now_s, lost_at_s)
        same = None if self.generation is None else self.generation == truth.generation
        self.ceilings_mhz, self.generation = truth.ceiling_mhz.copy(), truth.generation.copy()
        if was_mhz is None:
            return
        now_mhz = self.ceilings_mhz
        self.ceilings.append((moment.now_s, _shown_mhz(moment, was_mhz)))
        while self.ceilings[0][0] < moment.now_s - HANDED_OVER_S:
            self.ceilings.popleft()
        lifted = same & (was_mhz > 0) & ((now_mhz == 0) | (now_mhz > was_mhz))
        if not lifted.any():
            return
        for agent in moment.agents:
            own = agent.members[lifted[agent.members]]
            if len(own):
                why = self._not_to_be_lifted(moment, agent, own)
                if why:
                    text = f"{agent.name}: ceilings {was_mhz[own]} became {now_mhz[own]} MHz, {why}"
                    raise Broken(9, moment.now_s, text)

    def _not_to_be_lifted(self, moment: Moment, agent: Agent, own: np.ndarray) -> str:
        order = agent.granted
        if not agent.up or order is None or moment.now_s > agent.right_until_s:
            return "and nobody has a right to that"
        ordered_mhz = np.array(agent.granted_mhz)[own - agent.members[0]]
        if (moment.truth.ceiling_mhz[own] != ordered_mhz).any():
            return f"ordered are {ordered_mhz}"
        if order.known_at_s < agent.began_s:
            return "by an order of somebody who knew nothing of this agent"
        told = (self.lost_at_s[own] < moment.started_at_s).any()
        as_told = any((mhz[own] == moment.truth.ceiling_mhz[own]).all() for _, mhz in self.ceilings)
        if told and order.epoch == moment.epoch and agent.name not in moment.facts and not as_told:
            return "by a controller that knew nothing of their clocks"
        return ""

    def ceilings_end(self, moment: Moment, decision: Decision) -> None:
        """10: where nobody is short clocks come back, in truth and in the order, step by step to none held down."""
        calm_s = moment.now_s - self.short_at_s - CEILINGS_RISE_S
        if moment.by_clock is None or calm_s < 0.0:
            return
        ratio = self.settings.clock_least_ratio + CEILING_STEP_RATIO * (calm_s // CEILING_STEP_S)
        least_mhz = np.inf if ratio > 0.999 else (ratio - CEILING_ROUNDING_RATIO) * CLOCK_MAX_MHZ
        for ceilings_mhz in (moment.truth.ceiling_mhz, decision.clocks_mhz):
            if ((ceilings_mhz > 0) & (ceilings_mhz < least_mhz)).any():
                text = f"ceilings {ceilings_mhz} MHz, nobody short for {calm_s + CEILINGS_RISE_S:.1f} s"
                raise Broken(10, moment.now_s, text)

    def healed(self, moment: Moment, decision: Decision) -> None:
        """10: after the faults the block is in control, in plan, and at work; judged by the truth."""
        now_s = moment.now_s
        if decision.mode not in (Mode.CONTROLLED, Mode.LIMITED):
            raise Broken(10, now_s, f"still in {decision.mode} after healing")
        if not decision.state.shares.controllable.all():
            raise Broken(10, now_s, f"still out of reach after healing: {decision.state.shares.controllable}")
        if (moment.capped_w < moment.limits_w).any():
            raise Broken(10, now_s, f"still held by BMCs after healing: {moment.capped_w}")
        self.limits_are_real(moment, decision)
        self.ceilings_end(moment, decision)
        self.base_is_known_again(moment)
        self.budget_comes_back(moment, decision)
        # the minima fill the line: a shortfall that is said, and no room for more
        least_w = self.settings.block_w_per_gpu_w * float(self._least_w(moment).sum())
        cramped = least_w + decision.base_w >= decision.budget_w
        self.alarms_end(moment, decision, cramped=cramped)
        if not cramped:
            self.nothing_is_short(moment)
            self.back_at_work(moment, decision)

    def limits_are_real(self, moment: Moment, decision: Decision) -> None:
        """Every limit is one that the world has at this moment, and no lower than it."""
        if self._at_an_edge(moment):
            return
        settings = self.settings
        least_w = {"feed rating": settings.feed_rating_w}
        if settings.cooling_blind_w is not None:
            least_w["cooling capacity"] = moment.cooling_w
        for setpoint in self._in_force(moment):
            least_w[f"{setpoint.source} {setpoint.id}"] = setpoint.limit_w
        for setpoint in moment.plan:
            left_s = setpoint.starts_utc_s - moment.utc_s
            if setpoint.arrive_at_start and left_s > 0.0:
                down_w_per_s = (setpoint.ramp or settings.ramp).down_w_per_s
                line_w = setpoint.limit_w + down_w_per_s * max(0.0, left_s - settings.lead_s)
                least_w[f"{setpoint.source} {setpoint.id}, to be met at its start"] = line_w
        for limit in decision.limits:
            if limit.power_w < REAL_LIMIT_RATIO * least_w.get(limit.source, np.inf):
                raise Broken(10, moment.now_s, f"nothing in the world asks for {limit}")

    def base_is_known_again(self, moment: Moment) -> None:
        """Power that nobody draws is not taken off for good; GPUs gain it no faster than at the agreed rate.

        PDUs may raise it while GPUs jump.
        """
        lately_w = [said.base_w for at, said in self.said if at >= moment.now_s - RECENTLY_S]
        said_w, fallen_w = min(lately_w), lately_w[0] - lately_w[-1]
        true_w = max(value for _, value in self.bases)
        falls = fallen_w > RISING_RATIO * RECENTLY_S * self.settings.ramp.up_w_per_s
        if said_w > true_w + BASE_EXCESS_RATIO * self.settings.feed_rating_w and not falls:
            raise Broken(10, moment.now_s, f"base load {true_w:.0f} W, still taken for {said_w:.0f} W")

    def budget_comes_back(self, moment: Moment, decision: Decision) -> None:
        """The budget is at the lowest limit, or on its way there at the agreed rate."""
        lately = [said for at, said in self.said if at >= moment.now_s - RECENTLY_S]
        line_w = min(said.binding.power_w for said in lately)
        risen_w = decision.budget_w - min(said.budget_w for said in lately)
        agreed_w = RECENTLY_S * min(one.up_w_per_s for one in self.ramps)
        if decision.budget_w < AT_THE_LINE_RATIO * line_w and risen_w < RISING_RATIO * agreed_w:
            text = f"budget {decision.budget_w:.0f} W, line {line_w:.0f} W, risen by {risen_w:.0f} W"
            raise Broken(10, moment.now_s, text)

    def alarms_end(self, moment: Moment, decision: Decision, *, cramped: bool) -> None:
        """No alarm stands but one that is true, for a reason that the world has at this moment."""
        line_w, names = decision.budget_w, self.settings.topology.inlet_names
        honest = ["shortfall", "over budget"] if cramped else []
        # a base load is known as a mean of two seconds, so one that climbs lifts the block over its line
        climbed_w = moment.base_w - min(value for _, value in self.bases)
        if climbed_w > max(OVER_BUDGET_RATIO * line_w, moment.block_w - line_w, decision.shortfall_w):
            honest += ["shortfall", "over budget"]
        for rack, full_at_s in self.rack_full_at_s.items():
            if moment.now_s - full_at_s < RECENTLY_S:  # a PDU lags by a second and is read every second
                honest += (f"inlet {name}" for name in names[2 * rack : 2 * rack + 2])
        honest += self._full_racks(moment)
        kept_up = np.flatnonzero(moment.now_s - self.kept_up_at_s < RECENTLY_S)
        honest += [f"excess {self.settings.topology.gpu_name(gpu)}" for gpu in kept_up]
        least_w = self.settings.block_w_per_gpu_w * float(self._least_w(moment).sum())
        honest += [
            f"shed plan {level.name}"
            for level in self.settings.shed_levels
            if level.limit_w < least_w + decision.base_w
        ]
        if moment.grid is not None and self.response.cannot_keep(moment, decision):
            honest.append(COMMITMENT)
        for alarm in decision.alarms:
            if alarm.key not in honest:
                raise Broken(10, moment.now_s, f"nothing is wrong, alarm {alarm.key}: {alarm.text}")

    def _full_racks(self, moment: Moment) -> list[str]:
        """Alarms of racks whose inlets carry no more than what no limit takes from its GPUs.

        The base load of a rack is followed slowly, down as well.
        """
        topology = self.settings.topology
        base_w = max(value for _, value in self.bases)
        least_w = self.settings.block_w_per_gpu_w * topology.rack_sums(self._least_w(moment))
        carried_w = RACK_FULL_RATIO * topology.inlet_sums(topology.inlet_continuous_w)
        full = np.flatnonzero(least_w + RACK_BASE_RATIO * base_w > carried_w)
        return [f"rack {topology.rack_names[rack]}" for rack in full]

    def _least_w(self, moment: Moment) -> np.ndarray:
        """What no limit takes from the GPUs, (n)."""
        return np.maximum(self.settings.topology.gpu_min_w, moment.truth.floor_w)

    def nothing_is_short(self, moment: Moment) -> None:
        # a base load that climbs is followed with the delay of one order
        now_s = moment.now_s
        rises_w = [after[1] - before[1] for before, after in pairwise(self._seconds(self.bases, now_s, 4))]
        lasting_w = min(said.shortfall_w for at, said in self.said if at >= now_s - RECENTLY_S)
        if lasting_w > FOLLOWED_S * max(0.0, *rises_w) + ROUNDING_W * len(moment.limits_w):
            raise Broken(10, now_s, f"shortfall of {lasting_w:.0f} W after healing")

    def back_at_work(self, moment: Moment, decision: Decision) -> None:
        """GPUs may use what budget and inlets leave free. Budget and base load have been judged already."""
        # slow enough not to ask for more than was agreed, fast enough not to excuse what is left unused
        up_w_per_s = min(one.up_w_per_s for one in self.ramps) / self.settings.block_w_per_gpu_w
        since_s = moment.now_s - RECENTLY_S
        self.rooms.append((moment.now_s, self._room_w(moment, decision)))
        room_w = min(room_w for at, room_w in self.rooms if at >= since_s)
        used_w = max(value for at, value in self.sums if at >= since_s)
        earlier_w = max(value for at, value in self.sums if since_s - 1.0 <= at <= since_s)
        # watts that change hands are missing until their cut is confirmed
        lately_w = max(value for at, value in self.sums if at > moment.now_s - STRIDE_S)
        if lately_w - earlier_w > RISING_RATIO * RECENTLY_S * up_w_per_s:
            return  # on its way, at the agreed rate
        followed_w = FOLLOWED_S * self._fastest_up_w_per_s() / self.settings.block_w_per_gpu_w
        if used_w < IN_USE_RATIO * room_w - followed_w - ROUNDING_W * len(moment.limits_w):
            text = f"limits sum up to {used_w:.0f} W, {room_w:.0f} W are free: not back at work"
            raise Broken(10, moment.now_s, text)

    def _room_w(self, moment: Moment, decision: Decision) -> float:
        """What the GPUs' limits may sum up to: under the budget, and within the true room of the racks."""
        settings, topology = self.settings, self.settings.topology
        budget_w = min(decision.budget_w, decision.binding.power_w)  # a budget that falls is used up already
        carried_w = topology.inlet_sums(topology.inlet_continuous_w)  # both inlets share evenly
        racks_w = (carried_w - RACK_BASE_RATIO * moment.base_w) / settings.block_w_per_gpu_w
        racks_w = np.minimum(racks_w, topology.rack_sums(topology.gpu_max_w))
        return min((budget_w - decision.base_w) / settings.block_w_per_gpu_w, float(racks_w.sum()))

    def _fastest_up_w_per_s(self) -> float:
        return max(one.up_w_per_s for one in self.ramps)

    def _seconds(self, trail: deque, now_s: float, count: int) -> list:
        """One entry of the trail for each of the last seconds, oldest first."""
        return [
            next(entry for entry in reversed(trail) if entry[0] <= now_s - back + 0.001)
            for back in range(count - 1, -1, -1)
        ]


def _shown_mhz(moment: Moment, true_mhz: np.ndarray) -> np.ndarray:
    """Ceilings as a controller hears of them: an agent that does not act shows what it was told."""
    shown_mhz = true_mhz.copy()
    for agent in moment.agents:
        if agent.inert and agent.up:
            shown_mhz[agent.members] = [agent.shown_mhz(gpu) for gpu in range(len(agent.members))]
    return shown_mhz
