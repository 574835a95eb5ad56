"""History of the main values: the last day in memory, for clients that were away.

Three arrays per value, filled round and round: 20 bytes per sample, 1.7 MB for a day at one per second. It is
gone after a restart; the journal on disk is for good.

A sample carries the time of its source. Two samples of one time are one, and times only grow, whatever the
wall clock does, because a client pages through them.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

import structlog
from asyncua import ua

from protocols.opcua.server_session import Past
from protocols.opcua.server_values import BAD, Variable

LEAST_STEP_S: Final = 0.001
SAMPLES_MAX: Final = 5_000_000  # of all values together: 100 MB; 500 racks at one per second fill it in 3 h

log = structlog.get_logger(__name__)


class Series:
    """Samples of one value, oldest first, at most `most`."""

    def __init__(self, variable: Variable, most: int) -> None:
        self.variable, self._most = variable, most
        self._times_s, self._values, self._status = array("d"), array("d"), array("I")
        self._oldest = 0

    def __len__(self) -> int:
        return len(self._times_s)

    def sample(self) -> None:
        """As it is now."""
        now = self.variable.batch.read(self.variable)
        value, status = now.Value.Value, int(now.StatusCode.value)
        moment = now.ServerTimestamp if status & BAD else now.SourceTimestamp
        if moment is None:
            return
        utc_s = moment.timestamp()
        if len(self):
            newest = self._place(len(self) - 1)
            same_status = status == self._status[newest]
            if same_status and (status & BAD or utc_s == self._times_s[newest]):
                return
            utc_s = max(utc_s, self._times_s[newest] + LEAST_STEP_S)
        self._put(utc_s, float(value or 0.0), status)

    def between(self, first_utc_s: float, last_utc_s: float) -> range:
        """Numbers of the samples from `first` to `last`, both included."""
        start = bisect_left(range(len(self)), first_utc_s, key=self.utc_s)
        return range(start, bisect_right(range(len(self)), last_utc_s, lo=start, key=self.utc_s))

    def utc_s(self, number: int) -> float:
        return self._times_s[self._place(number)]

    def told(self, number: int) -> ua.DataValue:
        place = self._place(number)
        utc_s = self._times_s[place]
        return self.variable.data_value(self._values[place], self._status[place], utc_s, utc_s)

    def _place(self, number: int) -> int:
        return (self._oldest + number) % len(self._times_s)

    def _put(self, utc_s: float, value: float, status: int) -> None:
        if len(self) < self._most:
            self._times_s.append(utc_s)
            self._values.append(value)
            self._status.append(status)
            return
        place = self._oldest
        self._times_s[place], self._values[place], self._status[place] = utc_s, value, status
        self._oldest = (place + 1) % self._most


class History:
    """All series.

    Args:
        most: samples of each, if there is room for all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._series: dict[str, Series] = {}

    def keep(self, variables: Iterable[Variable]) -> None:
        """From now on these; what was kept of those that were kept already stays."""
        wanted, kept = list(variables), dict[str, Series]()
        most = min(self._most, SAMPLES_MAX // max(len(wanted), 1))
        if most < self._most:
            log.warning("opc ua: history is shorter than asked", values=len(wanted), samples_of_each=most)
        for variable in wanted:
            series = kept[variable.id] = self._series.get(variable.id) or Series(variable, most)
            series.variable = variable
        self._series = kept

    def sample(self) -> None:
        for series in self._series.values():
            series.sample()

    def read(self, variable: Variable, start_utc_s: float | None, end_utc_s: float | None, most: int) -> Past:
        """As OPC 10000-11, 6.5.3: newest first if there is no start, or if it is later than the end."""
        series = self._series.get(variable.id)
        if series is None:
            return Past([])
        start = float("-inf") if start_utc_s is None else start_utc_s
        end = float("inf") if end_utc_s is None else end_utc_s
        numbers = series.between(min(start, end), max(start, end))
        if start_utc_s is None or start > end:
            numbers = numbers[::-1]
        more = series.utc_s(numbers[most]) if len(numbers) > most else None
        return Past([series.told(number) for number in numbers[:most]], more)
