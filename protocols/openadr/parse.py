"""From the bytes of a message to what it says: tolerant of how it is written, never of what it means.

Read are both generations of the standard and the slips that its own guide and reference server print:
camelCase and snake_case, verbs of HTTP as operations, targets as objects or texts, descriptors without an
objectType, report-only events, private payload types, dates and durations that its own schema forbids (see
`timing`). What decides nothing here (createdDateTime, targets of any shape) cannot spoil an event.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from protocols.openadr.fields import (
    OpenAdrError,
    list_at,
    object_at,
    optional_text,
    read_json,
    shown,
    text_at,
    whole_at,
)
from protocols.openadr.model import (
    PRIORITY_LOWEST,
    Duration,
    Event,
    Interval,
    Notification,
    Operation,
    Payload,
    Period,
    Program,
    ReportDescriptor,
)
from protocols.openadr.timing import parse_duration, parse_stamp, parse_time

NAME_MAX_CHARS: Final = 128  # as the standard bounds an id; a name stands in for one
ID_MAX: Final = 2**31 - 1  # interval ids are int32 in the standard
OBJECT_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}", re.ASCII)
# 3.0 named the operation after the HTTP verb, and the 3.1 text still prints one.
OPERATIONS: Final[Mapping[str, Operation]] = {
    "CREATE": "CREATE",
    "UPDATE": "UPDATE",
    "DELETE": "DELETE",
    "POST": "CREATE",
    "PUT": "UPDATE",
}


def parse(payload: bytes | str) -> Notification:
    """Reads a notification, or a bare event object as found in files (then as if just created).

    Raises:
        OpenAdrError: not an OpenADR event.
    """
    said = object_at(read_json(payload), "message")
    if "object" not in said and "operation" in said:
        raise OpenAdrError(
            "object: missing; subscribe to the topic that carries whole events, not just their ids"
        )
    if "object" not in said:
        return Notification("CREATE", _event(said, "event", bare=True))
    operation, event = _notified(said, "EVENT")
    if operation == "DELETE":  # who calls an event off need not repeat it without fault
        event_id = object_id(event.get("id"), "object.id")
        return Notification("DELETE", Event(event_id, _modified_utc_s(event, "object")))
    return Notification(operation, _event(event, "object", bare=False))


def parse_program(payload: bytes | str) -> Program:
    """Reads a programme, bare as a server returns it, or within a notification.

    Raises:
        OpenAdrError: not an OpenADR programme.
    """
    said = object_at(read_json(payload), "message")
    path = "program"
    if "object" in said:
        _, said = _notified(said, "PROGRAM")
        path = "object"
    _check_type(said, "PROGRAM", path)
    return Program(
        id=object_id(said.get("id"), f"{path}.id"),
        modified_utc_s=_modified_utc_s(said, path),
        name=optional_text(said, "programname", f"{path}.programName") or "",
        units=_units(said, path),
        targets=tuple(_targets(said.get("targets"))),
    )


def object_id(value: object, path: str) -> str:
    """An id as servers give it. Raises OpenAdrError."""
    if not isinstance(value, str) or not OBJECT_ID.fullmatch(value):
        raise OpenAdrError(f"{path}: {shown(value)}; send 1 to 128 letters, digits, - or _")
    return value


def _notified(said: dict[str, Any], wanted: str) -> tuple[Operation, dict[str, Any]]:
    object_type = said.get("objecttype")
    if object_type != wanted:
        raise OpenAdrError(f"objectType: {shown(object_type)}; subscribe to topics of {wanted} alone")
    operation = OPERATIONS.get(text_at(said.get("operation"), "operation").upper())
    if operation is None:
        raise OpenAdrError(f"operation: {shown(said['operation'])}; send CREATE, UPDATE or DELETE")
    return operation, object_at(said["object"], "object")


def _check_type(said: dict[str, Any], wanted: str, path: str) -> None:
    object_type = said.get("objecttype")
    if object_type not in (None, wanted):
        raise OpenAdrError(f"{path}.objectType: {shown(object_type)}; only {wanted} is understood here")


def _event(said: dict[str, Any], path: str, *, bare: bool) -> Event:
    _check_type(said, "EVENT", path)
    intervals = list_at(said.get("intervals"), f"{path}.intervals")
    reports = list_at(said.get("reportdescriptors"), f"{path}.reportDescriptors")
    return Event(
        id=_event_id(said, path, bare=bare),
        modified_utc_s=_modified_utc_s(said, path),
        program_id=_program_id(said.get("programid")),
        priority=_priority(said.get("priority"), f"{path}.priority"),
        period=_period(said.get("intervalperiod"), f"{path}.intervalPeriod"),
        duration=_duration(said.get("duration"), f"{path}.duration"),
        units=_units(said, path),
        intervals=tuple(_interval(one, n, f"{path}.intervals[{n}]") for n, one in enumerate(intervals)),
        report_descriptors=tuple(
            _report_descriptor(one, f"{path}.reportDescriptors[{n}]") for n, one in enumerate(reports)
        ),
        targets=tuple(_targets(said.get("targets"))),
    )


def _event_id(said: dict[str, Any], path: str, *, bare: bool) -> str:
    """An event in a file, not yet on a server, has no id: its name stands in."""
    if bare and said.get("id") is None:
        return (optional_text(said, "eventname", f"{path}.eventName") or "unnamed")[:NAME_MAX_CHARS]
    return object_id(said.get("id"), f"{path}.id")


def _interval(value: object, index: int, path: str) -> Interval:
    said = object_at(value, path)
    payloads = list_at(said.get("payloads"), f"{path}.payloads")
    label = index if said.get("id") is None else said["id"]
    return Interval(
        id=whole_at(label, f"{path}.id", low=-ID_MAX, high=ID_MAX, remedy="a whole number"),
        period=_period(said.get("intervalperiod"), f"{path}.intervalPeriod"),
        payloads=tuple(_payload(one, f"{path}.payloads[{n}]") for n, one in enumerate(payloads)),
    )


def _payload(value: object, path: str) -> Payload:
    said = object_at(value, path)
    values = list_at(said.get("values"), f"{path}.values")
    kind = text_at(said.get("type"), f"{path}.type")
    if not kind.isprintable() or not 0 < len(kind) <= NAME_MAX_CHARS:
        raise OpenAdrError(
            f"{path}.type: {shown(kind)}; send a name of 1 to {NAME_MAX_CHARS} printable characters"
        )
    return Payload(kind, tuple(values))


def _period(value: object, path: str) -> Period:
    if value is None:
        return Period()
    said = object_at(value, path)
    start = optional_text(said, "start", f"{path}.start")
    return Period(
        starts_utc_s=None if start is None else parse_time(start, f"{path}.start"),
        duration=_duration(said.get("duration"), f"{path}.duration"),
        randomize=_duration(said.get("randomizestart"), f"{path}.randomizeStart"),
    )


def _units(said: dict[str, Any], path: str) -> dict[str, str | None]:
    """Unit per payload type. The guide's examples leave objectType out: only a report's is passed over."""
    units: dict[str, str | None] = {}
    path = f"{path}.payloadDescriptors"
    for number, one in enumerate(list_at(said.get("payloaddescriptors"), path)):
        inner = f"{path}[{number}]"
        descriptor = object_at(one, inner)
        if descriptor.get("objecttype") == "REPORT_PAYLOAD_DESCRIPTOR":
            continue
        payload_type = text_at(descriptor.get("payloadtype"), f"{inner}.payloadType")
        unit = optional_text(descriptor, "units", f"{inner}.units")
        if units.get(payload_type, unit) != unit:
            raise OpenAdrError(
                f"{inner}.units: {shown(unit)}, but {payload_type} has another one above; send one"
            )
        units[payload_type] = unit
    return units


def _report_descriptor(value: object, path: str) -> ReportDescriptor:
    said = object_at(value, path)
    defaults = ReportDescriptor("")
    count = "a count of intervals, or -1"
    return ReportDescriptor(
        payload_type=text_at(said.get("payloadtype"), f"{path}.payloadType"),
        reading_type=optional_text(said, "readingtype", f"{path}.readingType"),
        units=optional_text(said, "units", f"{path}.units"),
        targets=tuple(_targets(said.get("targets"))),
        aggregate=_flag(said.get("aggregate"), f"{path}.aggregate", defaults.aggregate),
        start_interval=_count(said.get("startinterval"), f"{path}.startInterval", -1, count),
        num_intervals=_count(said.get("numintervals"), f"{path}.numIntervals", -1, count),
        historical=_flag(said.get("historical"), f"{path}.historical", defaults.historical),
        frequency=_count(said.get("frequency"), f"{path}.frequency", -1, count),
        repeat=_count(said.get("repeat"), f"{path}.repeat", 1, "a count, or -1 for ever"),
        report_intervals=optional_text(said, "reportintervals", f"{path}.reportIntervals")
        or defaults.report_intervals,
    )


def _count(value: object, path: str, default: int, remedy: str) -> int:
    return default if value is None else whole_at(value, path, low=-1, high=ID_MAX, remedy=remedy)


def _flag(value: object, path: str, default: bool) -> bool:
    if value is not None and not isinstance(value, bool):
        raise OpenAdrError(f"{path}: {shown(value)}; send true or false")
    return default if value is None else value


def _targets(value: object) -> Iterator[str]:
    """Texts (3.1), or `{"type": "GROUP", "values": ["a"]}` (3.0) as GROUP:a. They decide nothing here."""
    for one in value if isinstance(value, list) else ():
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict) and isinstance(one.get("values"), list):
            yield from (f"{one.get('type')}:{inner}" for inner in one["values"] if isinstance(inner, str))


def _program_id(value: object) -> str | None:
    """Needed for the programme's units alone: who has none must say his units himself."""
    return value if isinstance(value, str) else None


def _modified_utc_s(said: dict[str, Any], path: str) -> float | None:
    path = f"{path}.modificationDateTime"
    value = optional_text(said, "modificationdatetime", path)
    return None if value is None else parse_stamp(value, path)


def _priority(value: object, path: str) -> int | None:
    if value is None:
        return None
    return whole_at(
        value, path, low=0, high=PRIORITY_LOWEST, remedy="a whole number from 0 (first) on, or null (last)"
    )


def _duration(value: object, path: str) -> Duration | None:
    return None if value is None else parse_duration(text_at(value, path), path)
