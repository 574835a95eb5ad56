"""Which of the windows that a source has announced are near enough for the law to look at.

A book may hold ten thousand windows, and the law goes through its list every beat. So only windows within
reach become setpoints, and no more than `NEAR_MAX` of a source: those that run, then open ones, the lowest
first, then the nearest. The wall clock decides on reach alone. What the law runs already stays in its list
whatever the wall clock says by now, and what the law has seen end does not come back while it is known.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, Protocol

from controller.core.model import NO_LIMIT_W, Setpoint

HORIZON_S: Final = 3600.0  # windows further ahead wait, unless the ramp to them takes longer
NEAR_MAX: Final = 256  # of one source: days of hours, or the overlapping wishes of a hundred programmes

Key = tuple[str, str, str, float, float]
_starts = attrgetter("starts_utc_s")


def _rank(setpoint: Setpoint, now_utc_s: float, *, runs: bool) -> tuple[bool, bool, float]:
    """Who goes first where not all find a place."""
    coming = setpoint.starts_utc_s > now_utc_s
    return not runs, coming, setpoint.starts_utc_s if coming else setpoint.limit_w


class Window(Protocol):
    @property
    def starts_utc_s(self) -> float: ...
    @property
    def ends_utc_s(self) -> float: ...


def key(setpoint: Setpoint) -> Key:
    """What stays the same when the site only wishes for another power in a window."""
    return setpoint.source, setpoint.id, setpoint.kind, setpoint.starts_utc_s, setpoint.ends_utc_s


class Outlook:
    """The windows of one source, and the setpoints that they are.

    Args:
        setpoint_of: a window in the law's words.
        spread_max_s: by how much a setpoint may end later than its window.
        horizon_s: how far ahead the law must see.

    Attributes:
        left_out: windows within reach that found no place when asked last.
    """

    def __init__(
        self, setpoint_of: Callable[[Any], Setpoint], spread_max_s: float, horizon_s: float = HORIZON_S
    ) -> None:
        self.left_out = 0
        self._setpoint_of = setpoint_of
        self._spread_max_s = spread_max_s
        self._horizon_s = horizon_s
        self._known: Sequence[Window] = ()

    def learn(self, windows: Sequence[Window]) -> None:
        """All windows of the source, by start; those just over included."""
        self._known = windows

    def near(
        self, now_utc_s: float, running: frozenset[Key], over: frozenset[Setpoint]
    ) -> Iterator[Setpoint]:
        """Setpoints that the law should look at: within reach, or running."""
        found = list(self._within(now_utc_s, running, over))
        self.left_out = max(0, len(found) - NEAR_MAX)
        if self.left_out:
            found.sort(key=lambda one: _rank(one, now_utc_s, runs=key(one) in running))
        yield from found[:NEAR_MAX]

    def _within(
        self, now_utc_s: float, running: frozenset[Key], over: frozenset[Setpoint]
    ) -> Iterator[Setpoint]:
        reach_utc_s = now_utc_s + self._horizon_s
        since_utc_s = now_utc_s - self._spread_max_s
        opened_utc_s = {starts_utc_s for _, _, _, starts_utc_s, _ in running}
        for window in self._known[: bisect_left(self._known, reach_utc_s, key=_starts)]:
            within = window.ends_utc_s > since_utc_s
            if within or window.starts_utc_s in opened_utc_s:
                setpoint = self._setpoint_of(window)
                coming = within and setpoint.ends_utc_s > now_utc_s and setpoint not in over
                if coming or key(setpoint) in running:
                    yield setpoint
        behind_us = (moment_utc_s for moment_utc_s in opened_utc_s if moment_utc_s >= reach_utc_s)
        yield from (one for one in self._starting(behind_us) if key(one) in running)

    def lowest_w(self, starts_utc_s: float, ends_utc_s: float) -> float | None:
        """The lowest limit announced for a span; None: none is. Of many windows, only the last to begin."""
        reached = bisect_left(self._known, ends_utc_s, key=_starts)
        limits_w = [
            limit_w
            for window in self._known[max(0, reached - NEAR_MAX) : reached]
            if window.ends_utc_s > starts_utc_s
            and (limit_w := self._setpoint_of(window).limit_w) < NO_LIMIT_W
        ]
        return min(limits_w, default=None)

    def still_known(self, setpoints: Iterable[Setpoint]) -> set[Setpoint]:
        """Those of them that a window of the source still says."""
        wanted = set(setpoints)
        return wanted.intersection(self._starting({one.starts_utc_s for one in wanted}))

    def _starting(self, moments_utc_s: Iterable[float]) -> Iterator[Setpoint]:
        for moment_utc_s in moments_utc_s:
            first = bisect_left(self._known, moment_utc_s, key=_starts)
            after = bisect_right(self._known, moment_utc_s, key=_starts)
            yield from map(self._setpoint_of, self._known[first:after])
