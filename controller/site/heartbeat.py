"""When a heartbeat is a sign of life: fresh, and not something that a broker had kept.

Old heartbeats (a frozen broker delivers them in one gush when it thaws, a slow bridge ever later) are told
from fresh ones without trusting two wall clocks to agree: the delay may not exceed its normal, the shortest
seen, by more than the heartbeat time-out. The normal rises only as fast as two clocks may drift apart. A
clock that was stepped makes every heartbeat late, but evenly so: that is the new normal after a while.
"""

import math
from typing import Final

from controller.core.model import NEVER_S
from protocols.openadr import Heartbeat

DRIFT_RATIO: Final = 1e-3  # two clocks part by less than 500 ppm each
NEW_NORMAL_TIMEOUTS: Final = 4.0  # evenly late for so long without a pause is a stepped clock
EVEN_S: Final = 0.25  # a queue that grows, or one that empties, changes the delay by more in that time
UNEVEN_S: Final = (-math.inf, math.inf)


class Pulse:
    """The heartbeats of one source. `now_s` is the monotonic clock, which no step of a wall clock moves."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._normal_s = math.inf
        self._even_since_s = NEVER_S  # late heartbeats, all with delays between these two
        self._even_s = UNEVEN_S
        self._arrived_at_s = NEVER_S
        self._sent_at_utc_s = NEVER_S

    def refusal(self, heartbeat: Heartbeat, now_s: float, *, retained: bool) -> str:
        """Why it is no sign of life; empty: it is one."""
        if retained:
            return "heartbeat: retained; a broker's memory is no sign of life"
        if heartbeat.sent_at_utc_s == self._sent_at_utc_s:
            return "heartbeat: repeated"
        late_s = self._late_s(now_s - heartbeat.sent_at_utc_s, now_s)
        if late_s > self._timeout_s:
            return f"heartbeat: {late_s:.1f} s late; is the broker overloaded?"
        self._sent_at_utc_s = heartbeat.sent_at_utc_s
        return ""

    def _late_s(self, delay_s: float, now_s: float) -> float:
        """How much later than normal this heartbeat is."""
        elapsed_s = now_s - self._arrived_at_s
        self._arrived_at_s = now_s
        risen_s = self._normal_s + min(DRIFT_RATIO * elapsed_s, self._timeout_s)
        self._normal_s = min(delay_s, risen_s)
        if delay_s - self._normal_s <= self._timeout_s:
            self._even_s = UNEVEN_S
        elif self._is_stepped(delay_s, elapsed_s, now_s):
            self._normal_s = delay_s
        return delay_s - self._normal_s

    def _is_stepped(self, delay_s: float, elapsed_s: float, now_s: float) -> bool:
        """Whether late heartbeats have been late by the same for long enough."""
        lowest_s, highest_s = min(self._even_s[0], delay_s), max(self._even_s[1], delay_s)
        if elapsed_s > self._timeout_s or highest_s - lowest_s > EVEN_S:
            self._even_since_s, lowest_s, highest_s = now_s, delay_s, delay_s
        self._even_s = (lowest_s, highest_s)
        return now_s - self._even_since_s >= NEW_NORMAL_TIMEOUTS * self._timeout_s
