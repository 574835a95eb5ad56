"""What a field adapter tells the rest: one `Reading` per poll, good news and bad alike.

An adapter never raises for what a device does, and never goes quiet: a dead link, a refused register and a
NaN all arrive as data, the affected values None and the fault a sentence that names the remedy. Nothing is
queued: a reading is complete for the points it names, and the newest one wins.

Three things a caller must judge by, because no library says them:
* `taken_at_s`, the moment *before* the request left: the values cannot be older than that;
* `unchanged_since_s`: a frozen instrument answers for ever, punctually and with the same bits. Live power
  and flow have noise in the last digit, so minutes without one changed bit mean a stuck device;
* `doubt`: the values came, and whoever brought them lost its way lately. Good for a display, not for the law.

The other way, every command passes a `WriteRule` before it reaches a wire, and comes back as a `Written`.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

RETRY_MIN_S: Final = 0.1  # a device that restarts its server is back within a beat or two
RETRY_MAX_S: Final = 2.0  # a device switched on again must not be missed for longer
RATE_WINDOW_S: Final = 1.0  # a rate of change is judged over this long: a longer silence earns no larger step

# Booleans come as 0.0 and 1.0, states and bit fields as their number, texts as text; None is bad.
Value = float | str | None


NOTHING_SENT: Final = "nothing was sent"  # how a refusal ends that the device never heard of


class DeviceError(Exception):
    """A command that a device did not carry out, or may not have; the text says why and what to check."""

    @property
    def may_be_in_force(self) -> bool:
        return not str(self).endswith(NOTHING_SENT)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Outcome of one poll of one device.

    `values` holds the points read this time, in their profile's units; None = bad (see `fault`).
    `link` is "up" if the device answered at all. Times are on the clock the adapter was given;
    `source_at_utc_s` holds the device's own time stamps where its protocol has them (OPC UA).
    `absent`: points that the device says it does not have (SunSpec: not implemented); None, and no fault.
    """

    device: str
    values: Mapping[str, Value]
    taken_at_s: float
    unchanged_since_s: float
    link: Literal["up", "down"]
    fault: str = ""
    doubt: str = ""
    source_at_utc_s: Mapping[str, float] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WriteRule:
    """Permission to write one point: the range, and how far its value may move per second (None: any step).

    All in the point's unit. A point without a rule is not written, whatever its profile allows.
    """

    lowest: float
    highest: float
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lowest) and math.isfinite(self.highest) and self.lowest <= self.highest):
            raise ValueError(f"write from {self.lowest} to {self.highest}: give two finite numbers in order")
        if self.rate_per_s is not None and not self.rate_per_s > 0:
            raise ValueError(
                f"rate_per_s {self.rate_per_s}: use a number above 0, or leave it out for any step"
            )

    def complaint(self, value: float, was: Value, since_last_s: float = math.inf) -> str:
        """Why `value` must not follow `was`, written `since_last_s` ago; '' where it may."""
        if not self.lowest <= value <= self.highest:  # also catches NaN
            return f"{value:g} is outside {self.lowest:g} to {self.highest:g}, all that its rule allows"
        if self.rate_per_s is None:
            return ""
        if not isinstance(was, (int, float)):
            return f"its rate is limited to {self.rate_per_s:g} per s and its present value is not known"
        step = self.rate_per_s * min(since_last_s, RATE_WINDOW_S)
        if abs(value - was) > step * (1 + 1e-9):
            return (
                f"from {was:g} to {value:g} is more than its rule allows: "
                f"{self.rate_per_s:g} per s, so {step:g} now; ramp it"
            )
        return ""

    def towards(self, value: float, was: Value, since_last_s: float = math.inf) -> float:
        """The nearest to `value` that may follow `was` now."""
        if self.rate_per_s is None or not isinstance(was, (int, float)):
            return value
        step = self.rate_per_s * min(since_last_s, RATE_WINDOW_S)
        return min(max(value, was - step), was + step)


@dataclass(frozen=True)
class Written:
    """A command that the device took: the value it shows now, the one before (None: not known).

    `confirmed` is False only for points that cannot be read back; then the device acknowledged, no more.
    """

    value: float
    was: Value
    confirmed: bool


def retry_delay_s(failures: int) -> float:
    """Pause before the next try after so many failures in a row: doubling, bounded, and with jitter.

    Without jitter, forty adapters that lost one switch would knock in step when it returns.
    """
    longest_s = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(failures, 10))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, not a secret)
