"""What a field adapter tells the rest: one `Reading` per poll, good news and bad alike.

An adapter never raises for what a device does, and never goes quiet: a dead link, a refused register and a
NaN all arrive as data, the affected values None and the fault a sentence that names the remedy. Nothing is
queued: a reading is complete for the points it names, and the newest one wins.

Two things a caller must judge by, because no library says them:
* `taken_at_s`, the moment *before* the request left: the values cannot be older than that;
* `unchanged_since_s`: a frozen instrument answers for ever, punctually and with the same bits. Live power
  and flow have noise in the last digit, so minutes without one changed bit mean a stuck device.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

RETRY_MIN_S: Final = 0.1  # a device that restarts its server is back within a beat or two
RETRY_MAX_S: Final = 2.0  # a device switched on again must not be missed for longer


class DeviceError(Exception):
    """A command that a device did not carry out, or may not have; the text says why and what to check."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Outcome of one poll of one device.

    `values` holds the points read this time, in their profile's units; None = bad (see `fault`).
    `link` is "up" if the device answered at all. Times are on the clock the adapter was given.
    """

    device: str
    values: Mapping[str, float | None]
    taken_at_s: float
    unchanged_since_s: float
    link: Literal["up", "down"]
    fault: str = ""


def retry_delay_s(failures: int) -> float:
    """Pause before the next try after so many failures in a row: doubling, bounded, and with jitter.

    Without jitter, forty adapters that lost one switch would knock in step when it returns.
    """
    longest_s = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(failures, 10))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, not a secret)
