"""Good messages of every kind to start from, and the words they are made of."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from protocols.dsx_flex import load_target
from protocols.dsx_flex.breach import alert_data
from protocols.dsx_flex.enforcement import Enforcement, Result, enforcement_data
from protocols.dsx_flex.load_target import Target
from protocols.dsx_flex.signing import Signer
from protocols.dsx_flex.topics import POWER_BREACH_ALERT, POWER_BREACH_ENFORCEMENT
from protocols.openadr import TYPES
from tests.protocols.dsx_flex import dsx_parts
from tests.protocols.dsx_flex.dsx_parts import ALERT, HINTS
from tests.protocols.openadr_said import START, T0_UTC_S, event, interval


def told(said: Mapping[str, Any], operation: str = "CREATE") -> dict[str, Any]:
    return {"objectType": "EVENT", "operation": operation, "object": said}


DESCRIPTORS = [
    {"payloadType": name, "units": next((unit for unit in meaning.units if unit), None)}
    for name, meaning in TYPES.items()
]
EVERY_TYPE = [
    interval("text" if meaning.text else 1, number, name, duration="PT15M")
    for number, (name, meaning) in enumerate(TYPES.items())
]
PERIOD = {"start": START, "duration": "PT1H", "randomizeStart": "PT5M"}
OPENADR = [
    event(),
    told(event()),
    told(event(), "DELETE"),
    told(event(event_id="standing", modified="2026-11-21T17:30:00Z", priority=0), "UPDATE"),
    told(
        event(*EVERY_TYPE, payloadDescriptors=DESCRIPTORS, targets=["a", {"type": "GROUP", "values": ["b"]}])
    ),
    told(event(interval(1.5, 0, start="2026-11-21T19:00:00+01:00", duration="P1DT2H"), intervalPeriod=...)),
    told(event(intervalPeriod=PERIOD, duration="P9999Y", reportDescriptors=[{"payloadType": "USAGE"}])),
    told(event(interval([0.1, 0.2], 0, "PRICE"), payloadDescriptors=[{"payloadType": "PRICE"}])),
    {"id": "p1", "objectType": "PROGRAM", "programName": "capacity", "payloadDescriptors": DESCRIPTORS},
]
HEARTBEATS = [{"sent_at": START}, {"sent_at": START, "seq": 7, "event_ids": ["dr-1", "dr-2"]}]

TARGETS = (
    Target(None),
    Target(4.5e6, T0_UTC_S, T0_UTC_S + 3600, ("main-a", "main-b"), best_effort=True),
    Target(0.0, None, T0_UTC_S + 60),
    Target(1e3, T0_UTC_S + 60, feed_tags=("main-b",)),
)
ANSWER = Enforcement.of(ALERT, "applied", [Result.of(HINTS[0], "failed", "why", 1.0)], done_utc_s=T0_UTC_S)
SIGNED = [load_target.data(TARGETS), alert_data(ALERT), enforcement_data(ANSWER), {"exp": T0_UTC_S + 1}]
SIGNER = Signer("k", dsx_parts.private_pem("EC"))
AGENT = {"type": POWER_BREACH_ALERT, "source": "//grid/v1/dsx-flex-agent/me"}
INFRA = {"type": POWER_BREACH_ENFORCEMENT, "source": "//grid/v1/infra/me"}
DSX = [
    dsx_parts.said(),
    dsx_parts.said(data=SIGNED[0], tracestate="a=1"),
    dsx_parts.said(data=SIGNER.sign(SIGNED[0])),
    dsx_parts.said(data=SIGNED[1], **AGENT),
    dsx_parts.said(data=SIGNED[2], **INFRA),
]

BROKER = {"URIS": ["mqtts://b:8883", "mqtt://b"], "serialization": "JSON"}
VEN = [
    [event(), event(event_id="two", targets=["block-1"])],
    told(event(event_id="ev-known"), "DELETE"),
    told(event(event_id="ev-known", programID="p2"), "UPDATE"),
    {"objectType": "PROGRAM", "operation": "CREATE", "object": {"id": "p1", "programName": "x"}},
    {"MQTT": BROKER | {"authentication": {"method": "OAUTH2_BEARER_TOKEN", "username": "{clientID}"}}},
    {"MQTT": BROKER | {"authentication": {"method": "CERTIFICATE", "caCert": "c", "clientCert": "d"}}},
    {"topics": {"CREATE": "a/create", "UPDATE": "a/update", "DELETE": "a/delete", "ALL": "a/+"}},
    {"access_token": "abc", "token_type": "Bearer", "expires_in": 3600},
    {"type": "about:blank", "title": "No", "status": 403, "detail": "Not for you"},
]

SEEDS: Final[Mapping[str, list[bytes]]] = {
    name: [json.dumps(said).encode() for said in messages]
    for name, messages in {
        "openadr": OPENADR,
        "heartbeat": HEARTBEATS,
        "dsx": DSX,
        "dsx-signed": SIGNED,
        "ven": VEN,
    }.items()
}

SCALAR: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
# What readers stumble over: the ends of every number, half a character, times and durations without end.
ODDITIES: Final = (
    b'0 -1 -0.0 1e308 1e999 -1e999 5e-324 9007199254740993 4294967296 NaN Infinity null true [] {} "" [[]] '
    b'"\\ud800" "\\u0000" "\xc3\xa4" "a\\nb" "PT0S" "-PT1H" "P9999Y" "P1M" "PT0.0000001S" "0001-01-01" '
    b'"9999-12-31T23:59:59Z" "0001-01-01T00:00:00+23:59" "2026-11-21T18:00:00Z" "watt" "KW" "DELETE" '
    b'-170141183460469231731687303715884105728 , : { } [ ] "'
).split()


def words(name: str) -> list[bytes]:
    """Scalars of the seeds, and the oddities."""
    found = {scalar for seed in SEEDS[name] for scalar in SCALAR.findall(seed) if len(scalar) <= 64}
    return sorted(found | set(ODDITIES))
