"""Alarms in the words of OPC UA: fields of an AlarmConditionType, shown as an object and told as an event.

One table makes both, so that what a client reads is what it was told. An event is told when the state of an
alarm has changed, not when a measured value in its text has.

What this is not: there are no branches, no Confirm, no comments, no dialogs and no history of events. States,
shelving and latching are those of the controller, which keeps them over a restart; this is their picture.
ConditionRefresh and Acknowledge work as the standard says; the other orders are methods of Control.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from asyncua import ua

from controller.clock import now_utc_s
from controller.image.model import AlarmView
from protocols.opcua.server_events import CONDITION_ID, Event
from protocols.opcua.server_values import moment

FOLDER: Final = "alarms"
EVENT_ID_BYTES: Final = 16
LOCALE: Final = "en"

BASE: Final = ua.ObjectIds.BaseEventType
ALARM_KINDS: Final = frozenset(
    {
        BASE,
        ua.ObjectIds.ConditionType,
        ua.ObjectIds.AcknowledgeableConditionType,
        ua.ObjectIds.AlarmConditionType,
    }
)
SEVERITIES: Final = {"critical": 900, "high": 700, "medium": 500, "low": 300}  # OPC 10000-5, 6.4.2: 1 to 1000
SEVERITY: Final = 500


@dataclass(frozen=True, slots=True)
class Shown:
    """An alarm as it is shown now: its fields by path, and the transition that they tell of."""

    alarm: AlarmView
    fields: Mapping[str, ua.Variant]
    event_id: bytes

    @property
    def is_retained(self) -> bool:
        """Somebody should still see it."""
        return bool(self.fields["Retain"].Value)


def id_of(alarm: AlarmView) -> str:
    """Identifier of its node; `#` leads to properties, so it cannot be part of one."""
    return f"{FOLDER}/{alarm.key.replace('#', '%23')}"


def shown(
    alarm: AlarmView, node: Callable[[str], ua.NodeId], source: str, event_id: bytes | None = None
) -> Shown:
    """Fields of an alarm.

    Args:
        alarm: as the controller tells it.
        node: node of an identifier.
        source: identifier of what it is of.
        event_id: of the transition that brought it here; None: this is a new one.
    """
    event_id = event_id or secrets.token_bytes(EVENT_ID_BYTES)
    is_hidden = alarm.shelved_until_utc_s is not None or alarm.out_of_service
    is_retained = alarm.active or not alarm.acknowledged or alarm.latched or is_hidden
    fields = base_fields(
        ua.ObjectIds.AlarmConditionType,
        alarm.text,
        SEVERITIES.get(alarm.priority, SEVERITY),
        node(source),
        source,
        event_id=event_id,
        at=moment(alarm.since_utc_s),
    )
    fields |= {
        CONDITION_ID: _id(node(id_of(alarm))),
        "ConditionClassId": _id(ua.NodeId(ua.ObjectIds.ProcessConditionClassType)),
        "ConditionClassName": _words("ProcessConditionClassType"),
        "ConditionName": _text(alarm.key),
        "BranchId": _id(ua.NodeId()),
        "Retain": _yes(is_retained),
        "Quality": ua.Variant(ua.StatusCode(), ua.VariantType.StatusCode),
        "LastSeverity": fields["Severity"],
        "Comment": _words(alarm.response),
        "ClientUserId": _text(alarm.by),
        "InputNode": _id(node(source)),
        "SuppressedOrShelved": _yes(is_hidden),
        "ShelvingState": _words(""),
        "ShelvingState/CurrentState": _words(
            "Unshelved" if alarm.shelved_until_utc_s is None else "TimedShelved"
        ),
    }
    return Shown(alarm, {**fields, **dict(_states(alarm)), **_own(alarm)}, event_id)


def _states(alarm: AlarmView) -> Iterator[tuple[str, ua.Variant]]:
    """Two-state variables: in words, and as what they mean."""
    for name, is_so, words in (
        ("EnabledState", True, ("Enabled", "Disabled")),
        ("AckedState", alarm.acknowledged, ("Acknowledged", "Unacknowledged")),
        ("ActiveState", alarm.active, ("Active", "Inactive")),
        ("LatchedState", alarm.latched, ("Latched", "Unlatched")),
        ("OutOfServiceState", alarm.out_of_service, ("Out of Service", "In Service")),
    ):
        yield name, _words(words[0] if is_so else words[1])
        yield f"{name}/Id", _yes(is_so)


def _own(alarm: AlarmView) -> dict[str, ua.Variant]:
    """What OPC UA has no field for."""
    return {
        "State": _text(alarm.state),
        "Priority": _text(alarm.priority),
        "FirstOut": _text(alarm.first_out),
        "Response": _words(alarm.response),
        "Count": ua.Variant(alarm.count, ua.VariantType.UInt32),
        "ShelvedUntil": ua.Variant(moment(alarm.shelved_until_utc_s or 0.0), ua.VariantType.DateTime),
    }


def properties(one: Shown) -> dict[str, ua.Variant]:
    """What its object shows: its fields, but for its own identity."""
    return {path: variant for path, variant in one.fields.items() if path != CONDITION_ID}


def news(
    before: Mapping[str, Shown],
    alarms: Iterable[AlarmView],
    node: Callable[[str], ua.NodeId],
    source_of: Callable[[AlarmView], str],
) -> Iterator[tuple[Shown, bool]]:
    """All alarms as shown now, and of each whether that is a transition; those that are gone, too."""
    keys = set()
    for alarm in alarms:
        keys.add(alarm.key)
        old = before.get(alarm.key)
        if old is not None and old.alarm == alarm:
            yield old, False
            continue
        same = old is not None and _state(old.alarm) == _state(alarm)
        event_id = old.event_id if old is not None and same else None
        yield shown(alarm, node, source_of(alarm), event_id), not same
    for key, old in before.items():
        if key not in keys:
            yield shown(_gone(old.alarm), node, source_of(old.alarm)), True


def alarm_event(one: Shown, notifiers: frozenset[ua.NodeId]) -> Event:
    return Event(one.fields, ALARM_KINDS, notifiers)


def plain_event(
    kinds: tuple[int, ...],
    text: str,
    notifiers: frozenset[ua.NodeId],
    *,
    severity: int,
    needs: int = 0,
    fields: Mapping[str, ua.Variant] | None = None,
) -> Event:
    """An event that is no alarm, of the first of these types, derived from the others."""
    server = ua.NodeId(ua.ObjectIds.Server)
    told = base_fields(kinds[0], text, severity, server, "Server")
    return Event(told | dict(fields or {}), frozenset({*kinds, BASE}), notifiers, needs)


def base_fields(
    kind: int,
    text: str,
    severity: int,
    source: ua.NodeId,
    source_name: str,
    *,
    event_id: bytes | None = None,
    at: datetime | None = None,
) -> dict[str, ua.Variant]:
    """What every event has: OPC 10000-5, 6.4.2."""
    now = moment(now_utc_s())
    return {
        "EventId": ua.Variant(event_id or secrets.token_bytes(EVENT_ID_BYTES), ua.VariantType.ByteString),
        "EventType": _id(ua.NodeId(kind)),
        "SourceNode": _id(source),
        "SourceName": _text(source_name),
        "Time": ua.Variant(at or now, ua.VariantType.DateTime),
        "ReceiveTime": ua.Variant(now, ua.VariantType.DateTime),
        "Message": _words(text),
        "Severity": ua.Variant(severity, ua.VariantType.UInt16),
    }


def _state(alarm: AlarmView) -> tuple[Any, ...]:
    """What makes it another alarm than it was: not its words."""
    return (
        alarm.state,
        alarm.active,
        alarm.acknowledged,
        alarm.latched,
        alarm.priority,
        alarm.shelved_until_utc_s,
        alarm.out_of_service,
        alarm.count,
    )


def _gone(alarm: AlarmView) -> AlarmView:
    return AlarmView(
        key=alarm.key,
        text=alarm.text,
        priority=alarm.priority,
        state="normal",
        active=False,
        acknowledged=True,
        since_utc_s=now_utc_s(),
        response=alarm.response,
        count=alarm.count,
        by=alarm.by,
    )


def _text(value: str) -> ua.Variant:
    return ua.Variant(value, ua.VariantType.String)


def _words(value: str) -> ua.Variant:
    return ua.Variant(ua.LocalizedText(value, LOCALE), ua.VariantType.LocalizedText)


def _yes(value: bool) -> ua.Variant:
    return ua.Variant(value, ua.VariantType.Boolean)


def _id(value: ua.NodeId) -> ua.Variant:
    return ua.Variant(value, ua.VariantType.NodeId)
