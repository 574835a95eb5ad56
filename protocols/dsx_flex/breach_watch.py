"""When to send a breach alert: the life of one feed's breach, by its meter.

A breach is a warning up to 20 % over the target and critical beyond. `BreachWatch` lives it from the meter's
readings, one feed at a time, its state passed in and returned:

    calm --over for raise_s--> active --critical, or so for escalate_s--> escalated
    active, escalated --at or below the target for clear_s, or no target any more--> resolved --> calm

The contract names the states and leaves the moments to us. A breach that escalated by age and then turns
critical is told once more.

Raised above target plus tolerance, cleared at the target: a load that dances on the line raises one alert.
A meter that is silent proves nothing: it neither raises a breach nor lets one be resolved. While a ramp is
agreed, the target to judge by is the line of that ramp, not its end; the caller knows it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from protocols.dsx_flex.breach import Alert, Severity
from protocols.dsx_flex.measured import TOLERANCE_RATIO, is_over, lasted, since

CRITICAL_RATIO: Final = 0.2  # over the target by more than that, says the contract


@dataclass(frozen=True)
class BreachWatch:
    """The breach of one feed so far, if any. `step` returns what is next.

    Attributes:
        feed: its tag.
        tolerance_ratio: that much over the target is not a breach.
        raise_s: over for so long without a break is a breach; longer than a meter's hiccup.
        clear_s: at or below the target for so long resolves it.
        escalate_s: a breach of that age is escalated, however small.
        open: the breach as told, with the newest power and target; None: none.
    """

    feed: str
    tolerance_ratio: float = TOLERANCE_RATIO
    raise_s: float = 3.0
    clear_s: float = 5.0
    escalate_s: float = 60.0
    open: Alert | None = None
    raised_at_s: float = 0.0
    over_since_s: float | None = None
    over_since_utc_s: float = 0.0
    critical_since_s: float | None = None
    within_since_s: float | None = None

    def step(
        self,
        *,
        now_s: float,
        now_utc_s: float,
        metered_w: float | None,
        target_w: float | None,
        correlation_id: str,
        make_breach_id: Callable[[], str],
    ) -> tuple["BreachWatch", Alert | None]:
        """The breach after one more reading, and an alert when there is news. Hints are the caller's to add.

        Args:
            now_s: monotonic clock, for all waiting.
            now_utc_s: wall clock, for what is told.
            metered_w: measured power of the feed; None: unknown.
            target_w: what it may draw now; None: no target.
            correlation_id: of that target.
            make_breach_id: a fresh UUIDv4; called when a breach begins.
        """
        watch = self._timed(now_s, now_utc_s, metered_w, target_w)
        if self.open is None:
            is_sure = lasted(watch.over_since_s, now_s, self.raise_s)
            if not is_sure or metered_w is None or target_w is None:
                return watch, None
            alert = Alert(
                feed=self.feed,
                status="active",
                severity="warning" if watch.critical_since_s is None else "critical",
                breach_id=make_breach_id(),
                detected_utc_s=watch.over_since_utc_s,
                correlation_id=correlation_id,
                target_w=target_w,
                measured_w=metered_w,
            )
            return replace(watch, open=alert, raised_at_s=now_s), alert
        return _lived(
            watch,
            self.open,
            now_s=now_s,
            now_utc_s=now_utc_s,
            metered_w=metered_w,
            target_w=target_w,
            correlation_id=correlation_id,
        )

    def _timed(
        self, now_s: float, now_utc_s: float, metered_w: float | None, target_w: float | None
    ) -> "BreachWatch":
        """How long the meter has been over, critical, within. Silence breaks the calm, never the excess."""
        if target_w is None:
            return replace(self, over_since_s=None, critical_since_s=None, within_since_s=None)
        if metered_w is None:
            return replace(self, within_since_s=None)
        return replace(
            self,
            over_since_s=since(
                self.over_since_s, now_s, holds=is_over(metered_w, target_w, self.tolerance_ratio)
            ),
            over_since_utc_s=self.over_since_utc_s if self.over_since_s is not None else now_utc_s,
            critical_since_s=since(
                self.critical_since_s, now_s, holds=is_over(metered_w, target_w, CRITICAL_RATIO)
            ),
            within_since_s=since(self.within_since_s, now_s, holds=metered_w <= target_w),
        )


def _lived(
    watch: BreachWatch,
    told: Alert,
    *,
    now_s: float,
    now_utc_s: float,
    metered_w: float | None,
    target_w: float | None,
    correlation_id: str,
) -> tuple[BreachWatch, Alert | None]:
    """An open breach, one reading on."""
    alert = replace(told, measured_w=told.measured_w if metered_w is None else metered_w)
    if target_w is None or lasted(watch.within_since_s, now_s, watch.clear_s):
        alert = replace(alert, status="resolved", resolved_utc_s=now_utc_s)
        return replace(watch, open=None), alert
    alert = replace(alert, target_w=target_w, correlation_id=correlation_id)
    is_worse = told.severity == "warning" and lasted(watch.critical_since_s, now_s, watch.raise_s)
    is_old = told.status == "active" and now_s - watch.raised_at_s >= watch.escalate_s
    if not is_worse and not is_old:
        return replace(watch, open=alert), None
    severity: Severity = "critical" if is_worse else told.severity
    alert = replace(alert, status="escalated", severity=severity)
    return replace(watch, open=alert), alert
