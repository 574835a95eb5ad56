"""The one place that reads clocks. Everyone else gets the time as an argument.

`now_s` counts time asleep as well (CLOCK_BOOTTIME): a host that was suspended wakes up with its leases
expired, as it must. It starts at boot, so two hosts, or one host before and after a reboot, never share it.
`now_utc_s` is the wall clock, which may step in either direction: good for records and for the windows of a
plan, never for a lease.
"""

import time


def now_s() -> float:
    """Seconds since boot, time asleep included; never steps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def now_utc_s() -> float:
    """Seconds since 1970 by the wall clock; may step."""
    return time.time()
