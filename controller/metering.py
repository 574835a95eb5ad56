"""What the block has drawn in the last two days, for those who ask later: reports to the site.

Fed once per beat, kept as sums over bins of 10 s in rings of fixed size, so that a beat costs the same after
a year as after a minute. Asked through running totals of the bins, made anew once per bin, so that two days
cost no more than a minute. A power that was told holds until the next one is, but not for longer than HOLD_S:
a silent meter leaves a gap, and a gap is never filled with 0. How much of a span is covered is its quality:
nearly all of it OK, half of it ESTIMATED, less MISSING, and then there is no value at all.

Of what is to come a controller knows two things: the limits that are announced, and what the block draws
now. A forecast is the lower of them, ESTIMATED; where nothing is announced, the present stands for the next
hour and for no longer.

The baseline, what would have been drawn without the event, is "meter before": the mean of as long a span as
is asked for, right before the event began. Simple, open to check, and wrong by as much as the load moves by
itself; where a ramp arrives at the start of an event, it lies in the span before.

Wall clock throughout: that is what reports are about. A clock that is set back measures the same bins
again; their mean is then that of both times. Source: words of the states, OpenADR 3.1 enumerations.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.openadr import MISSING, Quality, Reading

BIN_S: Final = 10.0  # a meter's own averaging; 90 of them in the quarter of an hour that is settled by
KEPT_S: Final = 48 * 3600.0  # a day-ahead event, and the day before it as its baseline
BINS: Final = int(KEPT_S / BIN_S)
HOLD_S: Final = 2.0  # 40 beats: a power nobody repeated for longer is not known
OK_RATIO: Final = 0.95  # of a span that is covered: a lost reading now and then spoils no mean
MISSING_RATIO: Final = 0.5  # below this a mean says more about luck than about the load
PRESENT_S: Final = 60.0  # "now" for a forecast: longer than a step of the load, shorter than a job
PERSISTS_S: Final = 3600.0  # how far ahead the present may stand for what nobody announced
IDLE_RATIO: Final = 0.05  # of the most the block may draw: its fans and pumps
STATES: Final = {  # (idle, curtailed)
    (False, False): "RUNNING_NORMAL",
    (False, True): "RUNNING_CURTAILED",
    (True, False): "IDLE_NORMAL",
    (True, True): "IDLE_CURTAILED",
}
POWER, CEILING, LIMITED, COVERED = range(4)  # rows: Ws, Ws, s, s

Floats = npt.NDArray[np.float64]
Planned = Callable[[float, float], float | None]


def nothing_planned(_starts_utc_s: float, _ends_utc_s: float) -> float | None:
    """For a block whose site announces nothing."""
    return None


class Totals(NamedTuple):
    """The ring unrolled, without the bin that is still being filled: n bins from number `first` on."""

    first: int
    values: Floats  # (n, 4)
    before: Floats  # (n + 1, 4): of all bins before each
    means_w: Floats  # (n), 0 where nothing is known


class Metering:
    """The block's power over time.

    Attributes:
        lowest_w: the least that the block can be brought to; may be set anew at any time.
        highest_w: the most that it may draw.

    Args:
        lowest_w: see above.
        highest_w: see above.
        planned_w: the lowest limit announced for a span, given as start and end in UTC s; None: none is.
    """

    def __init__(self, lowest_w: float, highest_w: float, planned_w: Planned = nothing_planned) -> None:
        self.lowest_w = lowest_w
        self.highest_w = highest_w
        self._planned_w = planned_w
        self._sums = np.zeros((4, BINS))
        self._numbers = np.full(BINS, -1, dtype=np.int64)  # which bin is kept in a place
        self._at_utc_s = 0.0  # nothing yet
        self._power_w: float | None = None
        self._ceiling_w = 0.0
        self._limited = False
        self._open = -1  # the bin that is still being filled, here in plain numbers: ten times as fast
        self._open_sums = [0.0] * 4
        self._totals: Totals | None = None  # until another bin is opened, or begins

    def feed(self, now_utc_s: float, power_w: float | None, limit_w: float | None, budget_w: float) -> None:
        """Once per beat.

        Args:
            now_utc_s: by the wall clock.
            power_w: measured; None: not known. Below 0 it is no load's power, and not known either.
            limit_w: that the site holds the block to; None: none.
            budget_w: what the block allows itself.
        """
        elapsed_s = now_utc_s - self._at_utc_s
        if 0.0 < elapsed_s <= HOLD_S and self._power_w is not None:
            edge_utc_s = min((self._at_utc_s // BIN_S + 1) * BIN_S, now_utc_s)
            self._add(self._at_utc_s, edge_utc_s)
            self._add(edge_utc_s, now_utc_s)
        self._at_utc_s = now_utc_s
        self._power_w = power_w if power_w is not None and 0.0 <= power_w < math.inf else None
        self._ceiling_w = min(self.highest_w, budget_w, math.inf if limit_w is None else limit_w)
        self._limited = limit_w is not None

    def _add(self, starts_utc_s: float, ends_utc_s: float) -> None:
        """A stretch within one bin."""
        length_s = ends_utc_s - starts_utc_s
        if length_s <= 0.0:
            return
        number = int(starts_utc_s // BIN_S)
        if number != self._open:
            self._close()
            self._open = number
            place = number % BINS
            known = self._numbers[place] == number
            self._open_sums = self._sums[:, place].tolist() if known else [0.0] * 4
        assert self._power_w is not None
        sums = self._open_sums
        sums[POWER] += self._power_w * length_s
        sums[CEILING] += self._ceiling_w * length_s
        sums[LIMITED] += self._limited * length_s
        sums[COVERED] += length_s

    def _close(self) -> None:
        self._totals = None
        if self._open >= 0:
            place = self._open % BINS
            self._numbers[place] = self._open
            self._sums[:, place] = self._open_sums

    # -- what is asked --------------------------------------------------------------------------------------

    def mean(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W; of a span to come, what is expected."""
        if starts_utc_s >= self._at_utc_s:
            expected_w = self._expected_w(starts_utc_s, ends_utc_s)
            return MISSING if expected_w is None else Reading(expected_w, "ESTIMATED")
        sums, quality = self._over(starts_utc_s, ends_utc_s)
        return MISSING if quality == "MISSING" else Reading(float(sums[POWER] / sums[COVERED]), quality)

    def peak(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W, the highest bin; of a span to come, what is expected."""
        mean = self.mean(starts_utc_s, ends_utc_s)
        if mean.quality == "MISSING" or starts_utc_s >= self._at_utc_s:
            return mean
        totals = self._unrolled()
        starts_utc_s, ends_utc_s = self._within_reach(starts_utc_s, ends_utc_s)
        low, high = int(starts_utc_s // BIN_S), math.ceil(ends_utc_s / BIN_S)
        peak_w = totals.means_w[low - totals.first : high - totals.first].max()
        if low <= self._open < high and self._open_sums[COVERED] > 0.0:
            peak_w = max(peak_w, self._open_sums[POWER] / self._open_sums[COVERED])
        return Reading(float(peak_w), mean.quality)

    def energy(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """Wh; gaps count at the mean of the rest, which is what ESTIMATED says."""
        mean = self.mean(starts_utc_s, ends_utc_s)
        if not isinstance(mean.value, float):
            return mean
        return Reading(mean.value * (ends_utc_s - starts_utc_s) / 3600.0, mean.quality)

    def baseline(self, event_starts_utc_s: float, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W; of an event to come, as if it began now."""
        begins_utc_s = min(event_starts_utc_s, self._at_utc_s)
        before = self.mean(begins_utc_s - min(ends_utc_s - starts_utc_s, KEPT_S), begins_utc_s)
        if before.quality == "OK" and event_starts_utc_s > begins_utc_s:
            return Reading(before.value, "ESTIMATED")
        return before

    def shed_available(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W above the least that the block can be brought to."""
        mean = self.mean(starts_utc_s, ends_utc_s)
        if not isinstance(mean.value, float):
            return mean
        return Reading(max(mean.value - self.lowest_w, 0.0), mean.quality)

    def rise_available(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """W below the lowest of limit, budget and the most that it may draw."""
        mean = self.mean(starts_utc_s, ends_utc_s)
        if not isinstance(mean.value, float):
            return mean
        if starts_utc_s >= self._at_utc_s:
            planned_w = self._planned_w(starts_utc_s, ends_utc_s)
            ceiling_w = self.highest_w if planned_w is None else min(planned_w, self.highest_w)
        else:
            sums, _ = self._over(starts_utc_s, ends_utc_s)
            ceiling_w = float(sums[CEILING] / sums[COVERED])
        return Reading(max(ceiling_w - mean.value, 0.0), mean.quality)

    def operating_state(self, starts_utc_s: float, ends_utc_s: float) -> Reading:
        """Curtailed: a limit of the site held for most of the span."""
        sums, quality = self._over(starts_utc_s, ends_utc_s)
        if quality == "MISSING":
            return MISSING
        idle = sums[POWER] / sums[COVERED] < IDLE_RATIO * self.highest_w
        return Reading(STATES[bool(idle), bool(sums[LIMITED] > sums[COVERED] / 2)], quality)

    # -- how it is found ------------------------------------------------------------------------------------

    def _expected_w(self, starts_utc_s: float, ends_utc_s: float) -> float | None:
        """An upper estimate of the mean to come; None: nothing is known of that time."""
        present_w = self.mean(self._at_utc_s - PRESENT_S, self._at_utc_s).value  # not of a span to come
        planned_w = self._planned_w(starts_utc_s, ends_utc_s)
        if planned_w is None:
            near = ends_utc_s <= self._at_utc_s + PERSISTS_S
            return present_w if near and isinstance(present_w, float) else None
        return min(planned_w, self.highest_w, present_w if isinstance(present_w, float) else math.inf)

    def _over(self, starts_utc_s: float, ends_utc_s: float) -> tuple[Floats, Quality]:
        """(4) sums over the span, and how much of it they cover."""
        length_s = ends_utc_s - starts_utc_s
        starts_utc_s, ends_utc_s = self._within_reach(starts_utc_s, ends_utc_s)
        if not starts_utc_s < ends_utc_s:
            return np.zeros(4), "MISSING"
        total = self._until(ends_utc_s) - self._until(starts_utc_s)
        covered_ratio = total[COVERED] / length_s
        if covered_ratio < MISSING_RATIO:
            return total, "MISSING"
        return total, "OK" if covered_ratio >= OK_RATIO else "ESTIMATED"

    def _within_reach(self, starts_utc_s: float, ends_utc_s: float) -> tuple[float, float]:
        """What of a span can be known; empty or less than that: nothing."""
        return max(starts_utc_s, self._at_utc_s - KEPT_S), min(ends_utc_s, self._at_utc_s)

    def _until(self, at_utc_s: float) -> Floats:
        """(4) sums of all that lies before a moment within reach, each bin as if it were spread evenly."""
        totals = self._unrolled()
        number = int(at_utc_s // BIN_S)
        begins_utc_s = number * BIN_S
        # The bin of now is as long as it has lasted.
        lasts_s = min(BIN_S, self._at_utc_s - begins_utc_s)
        share = (at_utc_s - begins_utc_s) / lasts_s if lasts_s > 0.0 else 0.0
        place = number - totals.first
        sums: Floats = totals.before[place] + share * totals.values[place]
        if totals.first <= self._open <= number:
            sums += (share if number == self._open else 1.0) * np.array(self._open_sums)
        return sums

    def _unrolled(self) -> Totals:
        """All bins within reach of now; made anew when another bin begins, and not with every question."""
        first = int(self._at_utc_s // BIN_S) - BINS
        if self._totals is None or self._totals.first != first:
            numbers = np.arange(first, first + BINS + 1)
            places = numbers % BINS
            known = (self._numbers[places] == numbers) & (numbers != self._open)
            values = np.where(known[:, None], self._sums[:, places].T, 0.0)
            before = np.zeros((len(numbers) + 1, 4))
            np.cumsum(values, axis=0, out=before[1:])
            power, covered = values[:, POWER], values[:, COVERED]
            means_w = np.divide(power, covered, out=np.zeros(len(numbers)), where=covered > 0.0)
            self._totals = Totals(first, values, before, means_w)
        return self._totals
