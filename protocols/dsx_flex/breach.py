"""`grid.powerbreach.alert.v1`: measured power is over the target, and what could be shed.

A breach has one id and one life: active, perhaps escalated, resolved. `breach_watch` says when to send one.

Shed hints are advice, first things first. Whoever carries them out answers with an `enforcement`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from protocols.dsx_flex.wire import (
    a_list,
    a_text,
    a_uuid,
    a_whole,
    a_word,
    an_object,
    moment,
    power,
    power_w,
    time_utc_s,
)

HINTS_MAX: Final = 2048  # every GPU of the largest block, and its nodes
PRIORITY_MAX: Final = 2**31 - 1

Status = Literal["active", "escalated", "resolved"]
Severity = Literal["warning", "critical"]
ResourceType = Literal["node", "gpu", "chassis"]
Action = Literal["power_cap", "throttle", "suspend"]
InfrastructureAction = Literal["SHUTDOWN_NODES", "SHUTDOWN_RACKS", "CUT_DATA_FEEDS", "TRIP_BREAKERS"]

STATUSES: Final = get_args(Status)
SEVERITIES: Final = get_args(Severity)
RESOURCE_TYPES: Final = get_args(ResourceType)
ACTIONS: Final = get_args(Action)
INFRASTRUCTURE_ACTIONS: Final = get_args(InfrastructureAction)


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
    target = said.get("target_power")
    return ShedHint(
        resource_id=a_text(said.get("resource_id"), f"{path}.resource_id"),
        resource_type=cast(
            "ResourceType", a_word(said.get("resource_type"), f"{path}.resource_type", RESOURCE_TYPES)
        ),
        action=cast("Action", a_word(said.get("action"), f"{path}.action", ACTIONS)),
        priority=a_whole(
            said.get("priority"),
            f"{path}.priority",
            low=1,
            high=PRIORITY_MAX,
            remedy="a whole number from 1 (first) on",
        ),
        target_w=None if target is None else power_w(target, f"{path}.target_power"),
    )
