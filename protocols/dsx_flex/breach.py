"""`grid.powerbreach.alert.v1` and `grid.powerbreach.enforcement.v1`: over the target, and what was done.

A breach has one id and one life: active, perhaps escalated, resolved. It is a warning up to 20 % over the
target and critical beyond. `BreachWatch` lives it from the meter's readings, one feed at a time, its state
passed in and returned:

    calm --over for raise_s--> active --critical, or so for escalate_s--> escalated
    active, escalated --at or below the target for clear_s, or no target any more--> resolved --> calm

The contract names the states and leaves the moments to us. A breach that escalated by age and then turns
critical is told once more.

Raised above target plus tolerance, cleared at the target: a load that dances on the line raises one alert.
A meter that is silent proves nothing: it neither raises a breach nor lets one be resolved. While a ramp is
agreed, the target to judge by is the line of that ramp, not its end; the caller knows it.

Shed hints are advice, first things first. Whoever carries them out answers with an enforcement: what was
asked, what came of it, resource by resource. `read_alert` and `enforcement_data` are that side of it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

from protocols.dsx_flex.wire import (
    DsxFlexError,
    a_list,
    a_text,
    a_uuid,
    a_word,
    an_object,
    moment,
    power,
    power_w,
    shown,
    time_utc_s,
)

CRITICAL_RATIO: Final = 0.2  # over the target by more than that, says the contract
HINTS_MAX: Final = 2048  # every GPU of the largest block, and its nodes
RESULTS_MAX: Final = HINTS_MAX
PRIORITY_MAX: Final = 2**31 - 1

Status = Literal["active", "escalated", "resolved"]
Severity = Literal["warning", "critical"]
ResourceType = Literal["node", "gpu", "chassis"]
Action = Literal["power_cap", "throttle", "suspend"]
InfrastructureAction = Literal["SHUTDOWN_NODES", "SHUTDOWN_RACKS", "CUT_DATA_FEEDS", "TRIP_BREAKERS"]
Phase = Literal["applied", "reverted"]
Outcome = Literal["applied", "failed", "skipped"]

STATUSES: Final = ("active", "escalated", "resolved")
SEVERITIES: Final = ("warning", "critical")
RESOURCE_TYPES: Final = ("node", "gpu", "chassis")
ACTIONS: Final = ("power_cap", "throttle", "suspend")
INFRASTRUCTURE_ACTIONS: Final = ("SHUTDOWN_NODES", "SHUTDOWN_RACKS", "CUT_DATA_FEEDS", "TRIP_BREAKERS")


# -- the alert ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShedHint:
    """Advice to shed at one resource."""

    resource_id: str
    resource_type: ResourceType
    action: Action
    priority: int  # 1 sheds first
    target_w: float | None = None  # of a power cap


@dataclass(frozen=True)
class Alert:
    """A breach at one moment of its life.

    Attributes:
        breach_id: UUIDv4, the same for all its life.
        detected_utc_s: when the meter was first seen over the target.
        resolved_utc_s: None unless resolved.
        correlation_id: UUIDv4 of the target that is breached.
        target_w: the target that is breached, or was.
        measured_w: by the meter.
        hints: none when resolved.
        infrastructure_actions: from the least to the most disruptive; none when resolved.
    """

    feed: str
    status: Status
    severity: Severity
    breach_id: str
    detected_utc_s: float
    correlation_id: str
    target_w: float
    measured_w: float
    resolved_utc_s: float | None = None
    hints: tuple[ShedHint, ...] = ()
    infrastructure_actions: tuple[InfrastructureAction, ...] = ()


def alert_data(alert: Alert) -> dict[str, Any]:
    """The data of an alert. A resolved one carries no advice, whatever stands in it."""
    is_resolved = alert.status == "resolved"
    breach = {"breach_id": alert.breach_id, "detected_at": moment(alert.detected_utc_s)}
    if is_resolved and alert.resolved_utc_s is not None:
        breach["resolved_at"] = moment(alert.resolved_utc_s)
    said: dict[str, Any] = {
        "feed_tag": alert.feed,
        "status": alert.status,
        "severity": alert.severity,
        "breach": breach,
        "target": {"correlation_id": alert.correlation_id, "load_constraint": power(alert.target_w)},
        "measured_load": power(alert.measured_w),
        "infrastructure_actions": [] if is_resolved else list(alert.infrastructure_actions),
    }
    if not is_resolved:
        said["shed_hints"] = [_hint_data(hint) for hint in sorted(alert.hints, key=lambda one: one.priority)]
    return said


def _hint_data(hint: ShedHint) -> dict[str, Any]:
    said: dict[str, Any] = {
        "resource_id": hint.resource_id,
        "resource_type": hint.resource_type,
        "action": hint.action,
        "priority": hint.priority,
    }
    if hint.target_w is not None:
        said["target_power"] = power(hint.target_w)
    return said


def read_alert(data: Mapping[str, Any]) -> Alert:
    """Somebody's alert, hints in the order of their priority.

    Args:
        data: the envelope's, opened.

    Raises:
        DsxFlexError: any of it cannot be meant; then none counts.
    """
    breach = an_object(data.get("breach"), "breach")
    target = an_object(data.get("target"), "target")
    hints = a_list(data.get("shed_hints", []), "shed_hints", HINTS_MAX)
    actions = a_list(
        data.get("infrastructure_actions"), "infrastructure_actions", len(INFRASTRUCTURE_ACTIONS)
    )
    resolved = breach.get("resolved_at")
    read = (_hint(hint, f"shed_hints[{number}]") for number, hint in enumerate(hints))
    return Alert(
        feed=a_text(data.get("feed_tag"), "feed_tag"),
        status=cast("Status", a_word(data.get("status"), "status", STATUSES)),
        severity=cast("Severity", a_word(data.get("severity"), "severity", SEVERITIES)),
        breach_id=a_uuid(breach.get("breach_id"), "breach.breach_id"),
        detected_utc_s=time_utc_s(breach.get("detected_at"), "breach.detected_at"),
        resolved_utc_s=None if resolved is None else time_utc_s(resolved, "breach.resolved_at"),
        correlation_id=a_uuid(target.get("correlation_id"), "target.correlation_id"),
        target_w=power_w(target.get("load_constraint"), "target.load_constraint"),
        measured_w=power_w(data.get("measured_load"), "measured_load"),
        hints=tuple(sorted(read, key=lambda hint: hint.priority)),
        infrastructure_actions=tuple(
            cast(
                "InfrastructureAction",
                a_word(one, f"infrastructure_actions[{number}]", INFRASTRUCTURE_ACTIONS),
            )
            for number, one in enumerate(actions)
        ),
    )


def _hint(value: object, path: str) -> ShedHint:
    said = an_object(value, path)
    priority = said.get("priority")
    if isinstance(priority, bool) or not isinstance(priority, int) or not 1 <= priority <= PRIORITY_MAX:
        raise DsxFlexError(f"{path}.priority: {shown(priority)}; send a whole number from 1 (first) on")
    target = said.get("target_power")
    return ShedHint(
        resource_id=a_text(said.get("resource_id"), f"{path}.resource_id"),
        resource_type=cast(
            "ResourceType", a_word(said.get("resource_type"), f"{path}.resource_type", RESOURCE_TYPES)
        ),
        action=cast("Action", a_word(said.get("action"), f"{path}.action", ACTIONS)),
        priority=priority,
        target_w=None if target is None else power_w(target, f"{path}.target_power"),
    )


# -- when to send one ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BreachWatch:
    """The breach of one feed so far, if any. `step` returns what is next.

    Attributes:
        feed: its tag.
        tolerance_ratio: accuracy of the meter; that much over the target is not a breach.
        raise_s: over for so long without a break is a breach; longer than a meter's hiccup.
        clear_s: at or below the target for so long resolves it.
        escalate_s: a breach of that age is escalated, however small.
        open: the breach as told, with the newest power and target; None: none.
    """

    feed: str
    tolerance_ratio: float = 0.01
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
            if watch.over_since_s is None or now_s - watch.over_since_s < self.raise_s or metered_w is None:
                return watch, None
            assert target_w is not None
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
        excess_w = metered_w - target_w
        is_over = excess_w > self.tolerance_ratio * target_w
        return replace(
            self,
            over_since_s=_since(self.over_since_s, now_s, holds=is_over),
            over_since_utc_s=self.over_since_utc_s if self.over_since_s is not None else now_utc_s,
            critical_since_s=_since(self.critical_since_s, now_s, holds=excess_w > CRITICAL_RATIO * target_w),
            within_since_s=_since(self.within_since_s, now_s, holds=excess_w <= 0),
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
    if target_w is None or _lasted(watch.within_since_s, now_s, watch.clear_s):
        alert = replace(alert, status="resolved", resolved_utc_s=now_utc_s)
        return replace(watch, open=None), alert
    alert = replace(alert, target_w=target_w, correlation_id=correlation_id)
    is_worse = told.severity == "warning" and _lasted(watch.critical_since_s, now_s, watch.raise_s)
    is_old = told.status == "active" and now_s - watch.raised_at_s >= watch.escalate_s
    if not is_worse and not is_old:
        return replace(watch, open=alert), None
    severity: Severity = "critical" if is_worse else told.severity
    alert = replace(alert, status="escalated", severity=severity)
    return replace(watch, open=alert), alert


def _since(since_s: float | None, now_s: float, *, holds: bool) -> float | None:
    if not holds:
        return None
    return now_s if since_s is None else since_s


def _lasted(since_s: float | None, now_s: float, wait_s: float) -> bool:
    return since_s is not None and now_s - since_s >= wait_s


# -- the enforcement ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of one hint."""

    resource_id: str
    resource_type: ResourceType
    requested_action: Action
    code: Outcome
    message: str = ""
    applied_w: float | None = None  # where it is not what was asked

    @classmethod
    def of(cls, hint: ShedHint, code: Outcome, message: str = "", applied_w: float | None = None) -> "Result":
        return cls(hint.resource_id, hint.resource_type, hint.action, code, message, applied_w)


def enforcement_data(
    alert: Alert, phase: Phase, results: Iterable[Result], *, done_utc_s: float, message: str = ""
) -> dict[str, Any]:
    """The data of an enforcement in answer to an alert. Its overall code follows from the results.

    Args:
        alert: whose hints were carried out, or taken back.
        phase: which of the two.
        results: one per hint.
        done_utc_s: when that was finished.
        message: for people.
    """
    told = tuple(results)
    said: dict[str, Any] = {
        "breach_id": alert.breach_id,
        "feed_tag": alert.feed,
        "action": phase,
        "code": overall_code(told),
        "results": [_result_data(result) for result in told],
        "timestamp": moment(done_utc_s),
    }
    return said | ({"diag_msg": message} if message else {})


def overall_code(results: tuple[Result, ...]) -> Literal["success", "partial", "error"]:
    """All done, some done, nothing done. Where nothing was asked, nothing failed."""
    done = sum(result.code == "applied" for result in results)
    if done == len(results):
        return "success"
    return "partial" if done else "error"


def _result_data(result: Result) -> dict[str, Any]:
    said: dict[str, Any] = {
        "resource_id": result.resource_id,
        "resource_type": result.resource_type,
        "requested_action": result.requested_action,
        "code": result.code,
    }
    if result.message:
        said["message"] = result.message
    if result.applied_w is not None:
        said["applied_power"] = power(result.applied_w)
    return said
