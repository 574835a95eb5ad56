"""The meter's word against a target: how far it may be off, and how long something has held.

Moments are on the monotonic clock. A state that holds carries the moment since when; one that does not, None.
"""

from typing import Final

TOLERANCE_RATIO: Final = 0.01  # accuracy of the meter; that much over the target is within it


def is_over(metered_w: float, target_w: float, tolerance_ratio: float) -> bool:
    """Beyond what the meter's error explains."""
    return metered_w - target_w > tolerance_ratio * target_w


def since(since_s: float | None, now_s: float, *, holds: bool) -> float | None:
    """Since when something holds, one look on."""
    if not holds:
        return None
    return now_s if since_s is None else since_s


def lasted(since_s: float | None, now_s: float, wait_s: float) -> bool:
    """It holds, and has for so long."""
    return since_s is not None and now_s - since_s >= wait_s
