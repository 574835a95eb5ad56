"""Ways to write an event down, as a site does, and to read windows back in hours and kW."""

import json
from datetime import UTC, datetime

from protocols.openadr import FOREVER_UTC_S, Notification, parse, resolve

T0_UTC_S = datetime(2026, 11, 21, 18, tzinfo=UTC).timestamp()
START = "2026-11-21T18:00:00Z"
HOUR_S = 3600.0
DESCRIPTOR = {"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KW"}


def interval(value_kw=4200.0, number=0, payload_type="IMPORT_CAPACITY_LIMIT", **period):
    said = {"id": number, "payloads": [{"type": payload_type, "values": [value_kw]}]}
    return said | ({"intervalPeriod": period} if period else {})


def event(*intervals, event_id="ev-1", modified="2026-11-21T17:00:00Z", **fields):
    said = {
        "id": event_id,
        "objectType": "EVENT",
        "programID": "44",
        "modificationDateTime": modified,
        "intervalPeriod": {"start": "2026-11-21T18:00:00Z", "duration": "PT1H"},
        "payloadDescriptors": [DESCRIPTOR],
        "intervals": list(intervals) or [interval()],
    } | fields
    return {key: value for key, value in said.items() if value is not ...}  # ...: not sent


def notification(said=None, operation="CREATE", **fields) -> Notification:
    body = event(**fields) if said is None else said
    return parse(json.dumps({"objectType": "EVENT", "operation": operation, "object": body}))


def at(minute: int) -> str:
    return f"2026-11-21T17:{minute:02d}:00Z"


def step(operation="CREATE", minute=0, kw=1.0, event_id="ev-1", **fields):
    """A message about an event of one interval from 18:00 to 19:00, unless `fields` say otherwise."""
    return notification(event(interval(kw), event_id=event_id, modified=at(minute), **fields), operation)


def told(said, now_s=0.0, **settings):
    """The windows of an event object, heard `now_s` after T0."""
    return resolve(parse(json.dumps(said)).event, T0_UTC_S + now_s, **settings)


def hours(window):
    """(start, end) in hours after T0; end None: for ever."""
    ends_h = (window.ends_utc_s - T0_UTC_S) / HOUR_S
    return (window.starts_utc_s - T0_UTC_S) / HOUR_S, None if window.ends_utc_s == FOREVER_UTC_S else ends_h


def windows_of(said, now_s=0.0):
    """(start, end, kW) of the limits and set points, in hours after T0; end None: for ever."""
    moving = ("IMPORT_CAPACITY_LIMIT", "DISPATCH_SETPOINT")
    return [(*hours(w), w.value / 1000) for w in told(said, now_s) if w.type in moving]
