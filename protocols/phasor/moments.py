"""When a sample was measured, on our clock, though its stamp is of another clock.

A stream that lay in a buffer for ten seconds looks fresh when it arrives. Its stamps tell, and two clocks
need not agree for that: the least difference between arrival and stamp that was seen lately belongs to a
sample that came straight through, and whatever has more on top was under way for so much longer.

One stamp may be wrong, and one from the future would make all that follow look late: so a difference counts
once two samples in a row had it, or less.

Clocks drift, so the least of the last one to two minutes counts. A sender whose clock steps back looks late
for as long, which is the safe side: late samples activate nothing.
"""

from typing import Final

KEPT_S: Final = 60.0  # two clocks drift apart by 6 ms in that time, at a bad 100 ppm


class Moments:
    """Of one sender."""

    def __init__(self) -> None:
        self._begun_at_s = float("-inf")
        self._least_s = self._least_before_s = self._newest_s = float("inf")

    def moment_s(self, stamp_s: float, arrived_at_s: float) -> float:
        """When it was measured: never after it arrived.

        Args:
            stamp_s: as the sender has it, on any clock that runs in seconds.
            arrived_at_s: on ours.
        """
        if arrived_at_s - self._begun_at_s > KEPT_S:
            self._least_before_s, self._least_s = self._least_s, float("inf")
            self._begun_at_s = arrived_at_s
        before_s, self._newest_s = self._newest_s, arrived_at_s - stamp_s
        self._least_s = min(self._least_s, max(before_s, self._newest_s))
        return min(arrived_at_s, stamp_s + min(self._least_s, self._least_before_s))
