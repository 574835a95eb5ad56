"""Promise 11: what was committed to the grid is shed when its frequency falls, in time, only then, and no more of it.

Judged by the true frequency and the true power. Of the law's own words only the phase, the baseline and the
share are taken, and each of these is held against the truth first.

Too much has causes that are nobody's fault, and each is taken off before the rest is called over-delivery:

    line      other limits lie lower, or lay: from there the way back is at the gentlest rate agreed. What was
              asked, or that, is the line; it falls at once
    work      GPUs that want less than they may have leave room. All of it counts while what they want is new
              or nobody else is held; else as much as a share-out leaves on top of what they draw
    moments   watts change hands: a cut is confirmed before its watts rise elsewhere, so what was cut within
              HANDS_S counts as given; and GPUs rise slowly, so that the most of a second is held against the
              lowest line of that second
    base load is known as an upper estimate; what it is too high, GPUs go without. A swing of the work, which the
              meter and the GPUs do not show at one moment, may hide in it, at its size and for seconds. Its
              margin, and whole watts, are the tolerance
"""

from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from controller.core.frequency_model import FrequencySettings, Phase
from controller.core.model import Decision, Limit, Settings
from tests.world.facility import DECODE_RATIO

if TYPE_CHECKING:
    from tests.world.checkers import Moment

COMMITMENT = "frequency commitment"
HONEST_S = 1.0  # for so long an instrument has told the truth before anything is expected of it
SHARE_ROUNDING = 1e-9
REST_SHARE = 0.05  # less is rest, and too little to be expected of anybody
WANDER_HZ = 0.01  # five times the standard deviation of what the grid does by itself
SAMPLE_S = 0.06  # two samples, late
LATENESS_S = 0.35  # a sample may be a quarter of a second old and is still believed
BASELINE_RATIO = 0.02  # of the feed rating: a meter lags, and repeats to a tenth of a percent
DELIVERED_RATIO = 0.02
SETTLE_S = 2.0
OVER_RATIO = 0.02  # of the feed rating: margin of the base load, and how well moments are known
OVER_S = 1.0
HANDS_S = 0.8  # a cut settled and told, a beat, an order, and each of them late
STILL_S = 6.0  # a swing of the work is forgotten: by shares in four, by the base load in two and a gap
SHARED_S = 3.0  # who begins to work has a share by then: a held GPU does not tell how much it wants
STILL_W = 2.0  # a smaller move is none
HELD_RATIO = 0.01  # of a limit: who wants less beyond it is not held; rises below 1 W are not ordered
ROOM_RATIO, ROOM_W = 0.06, 8.0  # on top of a recent peak; a reading repeats to 2 W
WHOLE_W = 1.5  # a GPU: limits are whole watts
SAID_S = 7.0  # a commitment that cannot be kept has an alarm after five seconds
METERED_S, BASELINE_S = 0.4, 2.6  # a mean of a second, of readings that are a second old at most, and a lag
KEPT_S = 4.0


class Broken(AssertionError):
    """A promise was not kept. `number` is the one in the design page; 11 stands here."""

    def __init__(self, number: int, at_s: float, text: str) -> None:
        super().__init__(f"promise {number} broken at {at_s:.2f} s: {text}")
        self.number = number


def wanted(product: FrequencySettings, hz: float) -> float:
    """The share that the product wants at this frequency, in the plainest way."""
    if product.steps:
        return max((share for at_hz, share in product.steps if hz <= at_hz), default=0.0)
    found = 0.0
    for (above_hz, above), (below_hz, below) in pairwise(product.droop):
        if hz <= below_hz:
            found = below
        elif hz < above_hz:
            found = above + (below - above) * (above_hz - hz) / (above_hz - below_hz)
    return found


class Response:
    """Watches one history."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.product = settings, settings.frequency
        self.acted = False
        self.delivered = 0  # moments at which delivery was judged
        self.measured = 0  # and at which too much of it would have been seen
        self._hz: deque = deque()  # (at, true)
        self._drawn: deque = deque()  # (at, true)
        self._now_s = 0.0
        self._before = None
        self._activated_at_s = self._raised_at_s = -1e12
        self._begin(-1.0)

    def _begin(self, started_at_s: float) -> None:
        """A controller that has just started goes on with what was held before, and counts activations anew."""
        self._started_at_s = started_at_s
        if self._before is not None:
            at_s, state, *rest = self._before
            self._before = (at_s, state._replace(activations=0), *rest)
        self._line_w, self._gentlest_w_per_s = None, self.settings.ramp.up_w_per_s
        self._given: deque = deque()  # (at, what the block drew and work left, line)
        self._work_w, self._still_since_s = None, -1e12
        self._swings: deque = deque()  # (at, W of all GPUs)
        self._held: deque = deque()  # (at, limits)
        self._demand_w = None
        self._short_since_s = 1e12
        self._ready_since_s = self._waits_since_s = 1e12

    def see(self, moment: "Moment", decision: Decision) -> None:
        now_s, grid = moment.now_s, moment.grid
        self._hz.append((now_s, grid.hz))
        self._drawn.append((now_s, moment.block_w))
        for trail in (self._hz, self._drawn):
            while trail[0][0] < now_s - KEPT_S:
                trail.popleft()
        if moment.started_at_s != self._started_at_s:
            self._begin(moment.started_at_s)
        if not moment.decided_now:
            return
        self._now_s = now_s
        self._judge(moment, decision)
        self._before = (now_s, decision.state.frequency, self._limit(decision), decision.budget_w)

    def _broken(self, text: str) -> Broken:
        return Broken(11, self._now_s, f"{self.product.product}: {text}")

    def _judge(self, moment: "Moment", decision: Decision) -> None:
        state, now_s = decision.state.frequency, moment.now_s
        before = None if self._before is None else self._before[1]
        if state.activations > (0 if before is None else before.activations):
            self._activated(moment, decision)
        if before is None or state.share > before.share + SHARE_ROUNDING:
            self._raised_at_s = now_s
            if before is not None:
                self._is_wanted(moment, state.share)
        self.acted |= state.share > 0.0
        self._is_stated(decision)
        self._is_promised_only_if_possible(moment, decision)
        self._is_sustained(moment, decision)
        self._comes_back_gently(moment, decision)
        self._arms_again(moment, decision)
        self._answers_in_time(moment, decision)
        self._delivers(moment, decision)
        self._gives_no_more(moment, decision)

    def _limit(self, decision: Decision) -> Limit | None:
        found = [one for one in decision.limits if one.source.startswith("frequency: ")]
        return found[0] if found else None

    def _wanted_lately(self, now_s: float, within_s: float) -> list[float]:
        return [wanted(self.product, hz) for at_s, hz in self._hz if at_s >= now_s - within_s]

    def _activated(self, moment: "Moment", decision: Decision) -> None:
        """There was a reason, it was armed, and it starts from what the block drew."""
        now_s, product, state = moment.now_s, self.product, decision.state.frequency
        within_s = product.hold_s + product.delay_s + LATENESS_S + self.settings.tick_s
        lowest_hz = min(hz for at_s, hz in self._hz if at_s >= now_s - within_s)
        if wanted(product, lowest_hz - WANDER_HZ) <= 0.0:
            raise self._broken(f"activated, and the frequency was never below {lowest_hz:.3f} Hz")
        if now_s - self._activated_at_s < product.rearm_s - 0.001:
            raise self._broken(f"activated twice within {now_s - self._activated_at_s:.2f} s")
        self._activated_at_s = now_s
        if moment.meter_honest and now_s - moment.metered_at_s < METERED_S:
            drawn_w = [w for at_s, w in self._drawn if now_s - BASELINE_S <= at_s <= now_s]
            slack_w = BASELINE_RATIO * self.settings.feed_rating_w
            if not min(drawn_w) - slack_w <= state.baseline_w <= max(drawn_w) + slack_w:
                text = f"baseline {state.baseline_w:.0f} W, drawn {min(drawn_w):.0f} to {max(drawn_w):.0f} W"
                raise self._broken(text)
        if self._before is not None and decision.budget_w > self._before[3] + self._up_w(now_s):
            raise self._broken(
                f"activation raised the budget from {self._before[3]:.0f} to {decision.budget_w:.0f} W"
            )

    def _is_wanted(self, moment: "Moment", share: float) -> None:
        """More is never held than the frequency asked for at some moment that may have been seen by now."""
        now_s = moment.now_s
        within_s = self.product.hold_s + self.product.delay_s + LATENESS_S + self.settings.tick_s
        seen_hz = [hz for at_s, hz in self._hz if at_s >= now_s - within_s]
        if moment.grid.mode == "frozen" and now_s - moment.started_at_s <= self.product.frozen_after_s:
            seen_hz.append(moment.grid.shown.value)  # who has just begun cannot know yet that it stands still
        most = max(wanted(self.product, hz - WANDER_HZ) for hz in seen_hz)
        if share > most + 1e-6:
            raise self._broken(f"{share:.3f} of it held, {most:.3f} wanted at most")

    def cannot_keep(self, moment: "Moment", decision: Decision) -> bool:
        """GPUs at their least would leave the block above what the whole commitment asks."""
        state = decision.state.frequency
        if state.phase is Phase.WAITING or state.draw_w is None:
            return False
        leaves_w = state.draw_w if state.phase is Phase.READY else state.baseline_w
        least_w = np.maximum(self.settings.topology.gpu_min_w, moment.truth.floor_w).sum()
        kept_w = self.settings.block_w_per_gpu_w * float(least_w) + decision.base_w
        return leaves_w - kept_w < self.product.committed_w

    def _is_promised_only_if_possible(self, moment: "Moment", decision: Decision) -> None:
        """What cannot be shed has an alarm before it is called."""
        if not self.cannot_keep(moment, decision):
            self._short_since_s = 1e12
            return
        self._short_since_s = min(self._short_since_s, moment.now_s)
        short_s = moment.now_s - self._short_since_s
        if short_s > SAID_S and not any(alarm.key == COMMITMENT for alarm in decision.alarms):
            raise self._broken(
                f"more is committed than GPUs can shed, for {short_s:.1f} s and without an alarm"
            )

    def _up_w(self, now_s: float) -> float:
        return self.settings.ramp.up_w_per_s * (now_s - self._before[0]) * 4.0 + 1.0

    def _is_stated(self, decision: Decision) -> None:
        """What is held is a limit among all others, of protection, and the block's line is not above it."""
        state, limit = decision.state.frequency, self._limit(decision)
        if (limit is None) != (state.share <= 0.0):
            raise self._broken(f"holds {state.share:.3f} and states {limit}")
        if limit is None:
            return
        asked_w = max(0.0, state.baseline_w - state.share * self.product.committed_w)
        if abs(limit.power_w - asked_w) > 1.0 or not limit.protection:
            raise self._broken(f"{asked_w:.0f} W are asked, {limit} is stated")
        lag_s = self.settings.lead_s + 2 * self.settings.tick_s
        lags_s = state.at_s - max(self._raised_at_s, self._started_at_s)
        if lags_s > lag_s and decision.budget_w > limit.power_w + 1.0:
            raise self._broken(f"budget {decision.budget_w:.0f} W, {limit.power_w:.0f} W are asked")

    def _is_sustained(self, moment: "Moment", decision: Decision) -> None:
        """A step is held for its time, whatever is seen meanwhile; a droop that sees nothing is, too."""
        if self._before is None:
            return
        state, was = decision.state.frequency, self._before[1].share
        held_s = moment.now_s - self._raised_at_s
        stays = self.product.steps or moment.grid.blind_s > self.product.age_max_s + LATENESS_S
        if stays and state.share < was - SHARE_ROUNDING and held_s < self.product.sustain_s - 0.001:
            raise self._broken(
                f"fell from {was:.3f} to {state.share:.3f} after {held_s:.2f} s of {self.product.sustain_s:g} s"
            )

    def _comes_back_gently(self, moment: "Moment", decision: Decision) -> None:
        """The limit rises no faster than agreed, and ends where the response began."""
        limit = self._limit(decision)
        if self._before is None or self._before[2] is None:
            return
        at_s, state, was, _ = self._before
        if decision.state.frequency.activations > state.activations:
            return
        elapsed_s = min(
            moment.now_s - at_s, 2 * self.settings.tick_s
        )  # lateness adds nothing, nor does a restart
        most_w = was.power_w + self.product.release_w_per_s * elapsed_s * 1.001 + 0.5
        now_w = state.baseline_w if limit is None else limit.power_w
        if now_w > most_w:
            raise self._broken(f"limit rose from {was.power_w:.0f} to {now_w:.0f} W, {most_w:.0f} W allowed")

    def _arms_again(self, moment: "Moment", decision: Decision) -> None:
        """At rest, in sight, its time over and the block's power known: ready."""
        state, now_s, product = decision.state.frequency, moment.now_s, self.product
        if state.phase is not Phase.WAITING or state.draw_w is None:
            self._waits_since_s = 1e12
            return
        self._waits_since_s = min(self._waits_since_s, now_s)
        owed_s = max(
            self._activated_at_s + product.rearm_s, moment.grid.told_from_s + HONEST_S, self._waits_since_s
        )
        rest = max(self._wanted_lately(now_s, HONEST_S)) <= 0.0
        if rest and now_s - owed_s > HONEST_S:
            raise self._broken(f"not armed for {now_s - owed_s:.1f} s though nothing is in the way")

    def _answers_in_time(self, moment: "Moment", decision: Decision) -> None:
        """Armed and in sight of a fall: the share that all of it wants is held."""
        state, now_s, product = decision.state.frequency, moment.now_s, self.product
        if state.phase not in (Phase.READY, Phase.ACTIVE):
            self._ready_since_s = 1e12
            return
        self._ready_since_s = min(self._ready_since_s, now_s)
        seen_s = max(product.hold_s, self.settings.tick_s) + self.settings.tick_s + SAMPLE_S + product.delay_s
        if now_s - max(moment.grid.told_from_s + HONEST_S, self._ready_since_s) < seen_s:
            return
        least = min(wanted(product, hz + WANDER_HZ) for at_s, hz in self._hz if at_s >= now_s - seen_s)
        if least > state.share + REST_SHARE:
            raise self._broken(f"{least:.2f} of it wanted for {seen_s:.2f} s, {state.share:.2f} held")

    def _delivers(self, moment: "Moment", decision: Decision) -> None:
        """At the limits that GPUs hold and at the meter, by the time of the product, where nothing else is amiss."""
        state, now_s = decision.state.frequency, moment.now_s
        held_s = now_s - self._raised_at_s
        due_s = self.product.full_s - max(self.product.hold_s, self.settings.tick_s) - SAMPLE_S
        if state.share <= 0.0 or held_s < max(due_s, self.settings.tick_s):
            return
        if moment.able_since_s > now_s - SETTLE_S - held_s or decision.shortfall_w > 0.0:
            return
        limit_w = self._limit(decision).power_w
        least_w = np.maximum(self.settings.topology.gpu_min_w, moment.truth.floor_w).sum()
        least_w *= self.settings.block_w_per_gpu_w
        if limit_w < least_w + decision.base_w:
            return  # more was committed than GPUs can shed
        self.delivered += 1
        slack_w = DELIVERED_RATIO * self.settings.feed_rating_w
        if moment.block_w > limit_w + slack_w:
            raise self._broken(
                f"block draws {moment.block_w:.0f} W {held_s:.2f} s after {limit_w:.0f} W were asked"
            )
        may_w = self.settings.block_w_per_gpu_w * float(moment.limits_w.sum()) + moment.base_w
        if may_w > limit_w + slack_w:
            raise self._broken(f"GPUs may draw {may_w:.0f} W {held_s:.2f} s after {limit_w:.0f} W were asked")

    def _gives_no_more(self, moment: "Moment", decision: Decision) -> None:
        """Not clearly more than was asked: what is explained, and how much may be left, stands at the top."""
        state, now_s, settings = decision.state.frequency, moment.now_s, self.settings
        given_w = moment.block_w + moment.truth.gain * float(self._room_w(moment).sum())
        given_w += self._hidden_w(moment, decision) + self._handed_w(moment)
        self._given.append((now_s, given_w, self._explained_w(moment, decision)))
        while self._given[0][0] < now_s - OVER_S:
            self._given.popleft()
        settled = now_s - max(self._activated_at_s, self._started_at_s) >= OVER_S
        able = moment.able_since_s < self._activated_at_s - SETTLE_S and moment.meter_honest
        if state.share <= REST_SHARE or not settled or not able:
            return
        most_w, line_w = max(w for _, w, _ in self._given), min(w for *_, w in self._given)
        slack_w = OVER_RATIO * settings.feed_rating_w + WHOLE_W * len(moment.limits_w)
        self.measured += 1
        if most_w < line_w - slack_w:
            asked_w = state.share * self.product.committed_w
            raise self._broken(
                f"{asked_w:.0f} W are asked below {state.baseline_w:.0f} W, {line_w - most_w:.0f} W more are given"
            )

    def _explained_w(self, moment: "Moment", decision: Decision) -> float:
        """The line that the block has a reason to be at."""
        agreed = [setpoint.ramp.up_w_per_s for setpoint in moment.plan if setpoint.ramp]
        self._gentlest_w_per_s = min(self._gentlest_w_per_s, self.product.release_w_per_s, *agreed)
        lowest_w = min(limit.power_w for limit in decision.limits)
        if self._line_w is None:
            self._line_w = decision.budget_w
        else:
            risen_w = self._gentlest_w_per_s * (moment.now_s - self._before[0])
            self._line_w = min(lowest_w, self._line_w + risen_w)
        return self._line_w

    def _hidden_w(self, moment: "Moment", decision: Decision) -> float:
        """What swings of the work may have put into the base load, as far as that is too high."""
        truth, now_s = moment.truth, moment.now_s
        demand_w = np.where(truth.decodes, DECODE_RATIO, 1.0) * truth.demand_w
        before_w = demand_w if self._demand_w is None else self._demand_w
        self._demand_w = demand_w
        self._swings.append((now_s, float(np.abs(demand_w - before_w).sum())))
        while self._swings[0][0] < now_s - STILL_S:
            self._swings.popleft()
        swung_w = truth.gain * sum(w for _, w in self._swings)
        return min(swung_w, max(0.0, decision.base_w - moment.base_w))

    def _handed_w(self, moment: "Moment") -> float:
        """What limits have lost lately: its confirmation, and the order that gives it to others, are under way."""
        self._held.append((moment.now_s, moment.limits_w.copy()))
        while self._held[0][0] < moment.now_s - HANDS_S:
            self._held.popleft()
        highest_w = np.max([limits_w for _, limits_w in self._held], axis=0)
        return moment.truth.gain * float((highest_w - moment.limits_w).sum())

    def _room_w(self, moment: "Moment") -> np.ndarray:
        """(n) what GPUs may draw and do not, for a reason that is theirs."""
        truth, now_s = moment.truth, moment.now_s
        may_w = np.maximum(truth.enforced_w, truth.floor_w)
        work_w = np.maximum(truth.wished_w, truth.floor_w)
        if self._work_w is None:
            self._work_w = work_w
        moved = np.abs(work_w - self._work_w) > STILL_W
        self._work_w = np.where(moved, work_w, self._work_w)
        self._still_since_s = np.where(moved, now_s, self._still_since_s)
        room_w = np.maximum(0.0, may_w - truth.power_w)
        still = now_s - self._still_since_s > STILL_S
        held = (work_w > may_w * (1.0 + HELD_RATIO)) & (now_s - self._still_since_s > SHARED_S)
        if not held.any():
            return room_w
        left_w = np.maximum(self.settings.topology.gpu_min_w, work_w * (1.0 + ROOM_RATIO) + ROOM_W)
        return np.where(still, np.minimum(room_w, np.maximum(0.0, left_w - truth.power_w)), room_w)
