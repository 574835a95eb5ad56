"""`grid.powerstate.status.v1`: where every feed is, told on each transition and on a beat.

`data` makes the message from plain values. `PowerEvents` says when to send one, and why: the state of one
feed's story, passed in and returned. The order within a story is fixed: a target is set, then a running ramp
ends, then the next one starts; each start has its end, and no two ramps run at once. A ramp that turns round
ends and starts in the same step. Tightening a target in the middle of a ramp down is still that ramp.

Truth before form. The contract calls a feed compliant when its *calculated* load is within the target; here
it is the meter that decides, and a feed that is not metered is not compliant while a target is active.
A ramp down ends when the meter has converged, or after `settle_max_s` without moving, and then the message
that says so also says that the feed is not compliant.

`power_event_start_time` is null in the contract's prose and a text in its schema: without an event it is
left out, which satisfies both. An event lasts from the moment a target holds until the ramp up after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from protocols.dsx_flex.load_target import Window
from protocols.dsx_flex.measured import TOLERANCE_RATIO, is_over, lasted, since
from protocols.dsx_flex.wire import FOREVER_UTC_S, a_text, moment, power

Event = Literal["target_set", "start_ramp_down", "end_ramp_down", "start_ramp_up", "end_ramp_up", "periodic"]
Direction = Literal["down", "steady", "up"]

TARGETS_TOLD_MAX: Final = 21  # per feed, the one in force and the next 20: 8 feeds of it are 40 kB

STARTS: Final[Mapping[Direction, Event]] = {"down": "start_ramp_down", "up": "start_ramp_up"}
ENDS: Final[Mapping[Direction, Event]] = {"down": "end_ramp_down", "up": "end_ramp_up"}


# -- the message --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeedRating:
    """What a feed is; constant during an event."""

    power_min_w: float
    power_max_w: float
    default_w: float  # limit while no target is active


@dataclass(frozen=True)
class FeedState:
    """What is said about one feed.

    Attributes:
        rating: of the feed.
        windows: its targets, in force and to come, from `LoadTargetBook.windows`; the first ones are told.
        calculated_load_w: what the feed draws once our limits act; the meter's value will do.
        happening: why this is said now, from `PowerEvents`.
    """

    rating: FeedRating
    windows: tuple[Window, ...]
    calculated_load_w: float
    happening: "Happening"


def data(feeds: Mapping[str, FeedState], snapshot_utc_s: float) -> dict[str, Any]:
    """The data of a status message about all feeds, by feed tag."""
    return {
        "snapshot_time": moment(snapshot_utc_s),
        "feeds": {a_text(tag, "feed tag"): _feed(feed, snapshot_utc_s) for tag, feed in feeds.items()},
    }


def _feed(feed: FeedState, now_utc_s: float) -> dict[str, Any]:
    happening = feed.happening
    coming = [one for one in feed.windows if one.ends_utc_s > now_utc_s]
    said: dict[str, Any] = {
        "metadata": {
            "power_minimum": power(feed.rating.power_min_w),
            "power_maximum": power(feed.rating.power_max_w),
            "default_constraint": power(feed.rating.default_w),
        },
        "targets": [_target(one, now_utc_s) for one in coming[:TARGETS_TOLD_MAX]],
        "calculated_load": power(feed.calculated_load_w),
        "in_flight": happening.in_flight,
        "event": happening.event,
        "compliant": happening.compliant,
    }
    if happening.event_start_utc_s is not None:
        said["power_event_start_time"] = moment(happening.event_start_utc_s)
    return said


def _target(window: Window, now_utc_s: float) -> dict[str, Any]:
    interval = {"start_time": moment(window.starts_utc_s)}
    if window.ends_utc_s < FOREVER_UTC_S:
        interval["end_time"] = moment(window.ends_utc_s)
    return {
        "active": window.covers(now_utc_s),
        "load_constraint": power(window.limit_w),
        "interval": interval,
        "strategy": {"best_effort": window.best_effort},
        "correlation_id": window.correlation_id,
    }


# -- when to send it, and why -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Happening:
    """One reason to send a status, with what is true right after it."""

    event: Event
    in_flight: bool
    event_start_utc_s: float | None
    compliant: bool


@dataclass(frozen=True)
class PowerEvents:
    """The story of one feed so far. `step` returns the next chapter.

    Attributes:
        period_s: a status at least that often.
        tolerance_ratio: that much over the target is within it.
        calm_s: so long without moving, a ramp has ended.
        settle_max_s: so long without moving and without convergence, it has ended all the same.
    """

    period_s: float = 10.0
    tolerance_ratio: float = TOLERANCE_RATIO
    calm_s: float = 1.0
    settle_max_s: float = 30.0
    ramp: Direction = "steady"  # as told
    revision: int | None = None  # of the schedule, as told
    still_since_s: float | None = None
    event_start_utc_s: float | None = None
    told_at_s: float | None = None

    def step(
        self,
        *,
        now_s: float,
        now_utc_s: float,
        metered_w: float | None,
        target_w: float | None,
        direction: Direction,
        revision: int,
    ) -> tuple["PowerEvents", tuple[Happening, ...]]:
        """What happens now, in order; to be told one by one.

        Args:
            now_s: monotonic clock, for all waiting.
            now_utc_s: wall clock, for what is told.
            metered_w: measured power of the feed; None: unknown.
            target_w: the target in force; None: none.
            direction: where our limits for the feed are moving.
            revision: of the schedule; grows with every target set (`LoadTargetBook.revision`).
        """
        compliant = is_compliant(metered_w, target_w, self.tolerance_ratio)
        still_since_s = since(self.still_since_s, now_s, holds=direction == "steady")
        state = replace(self, revision=revision, still_since_s=still_since_s)
        happenings: list[Happening] = []
        is_new = self.revision not in (None, revision)
        for event, ramp in _due(state, now_s, direction, compliant=compliant, is_new=is_new):
            is_on = target_w is not None or ramp != "steady"
            start_utc_s = since(state.event_start_utc_s, now_utc_s, holds=is_on)
            state = replace(state, ramp=ramp, event_start_utc_s=start_utc_s, told_at_s=now_s)
            happenings.append(Happening(event, ramp != "steady", start_utc_s, compliant))
        is_on = target_w is not None or state.ramp != "steady"
        start_utc_s = since(state.event_start_utc_s, now_utc_s, holds=is_on)
        return replace(state, event_start_utc_s=start_utc_s), tuple(happenings)


def _due(
    state: PowerEvents, now_s: float, direction: Direction, *, compliant: bool, is_new: bool
) -> list[tuple[Event, Direction]]:
    """What is to be told, in order, each with the ramp that is told from then on."""
    due: list[tuple[Event, Direction]] = [("target_set", state.ramp)] if is_new else []
    ramp = state.ramp
    if ramp != "steady" and _has_ended(state, now_s, direction, compliant=compliant):
        due.append((ENDS[ramp], "steady"))
        ramp = "steady"
    if ramp == "steady" and direction != "steady":
        due.append((STARTS[direction], direction))
    if not due and (state.told_at_s is None or now_s - state.told_at_s >= state.period_s):
        due.append(("periodic", ramp))
    return due


def _has_ended(state: PowerEvents, now_s: float, direction: Direction, *, compliant: bool) -> bool:
    """The told ramp: turned round, or come to rest."""
    if state.still_since_s is None:
        return direction != state.ramp
    wait_s = state.calm_s if compliant or state.ramp == "up" else state.settle_max_s
    return lasted(state.still_since_s, now_s, wait_s)


def is_compliant(metered_w: float | None, target_w: float | None, tolerance_ratio: float) -> bool:
    """By the meter. What is not known is not compliant, unless nothing is asked."""
    if target_w is None:
        return True
    return metered_w is not None and not is_over(metered_w, target_w, tolerance_ratio)
