"""Good messages of every kind to start from, and the words they are made of."""

import json
import re
from collections.abc import Mapping
from random import Random
from typing import Any, Final

import msgspec

from controller.image import model, wire
from protocols.agent_link import VERSION
from protocols.dsx_flex import load_target
from protocols.dsx_flex.breach import alert_data
from protocols.dsx_flex.enforcement import Enforcement, Result, enforcement_data
from protocols.dsx_flex.load_target import Target
from protocols.dsx_flex.signing import Signer
from protocols.dsx_flex.topics import POWER_BREACH_ALERT, POWER_BREACH_ENFORCEMENT
from protocols.openadr import TYPES
from protocols.profile.file import BUILTIN
from tests.controller.facility.modbus_site import GROUPS
from tests.fuzz import link
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

COMMAND: Final[Any] = {"by": "alice", "role": 3, "via": "opcua"}
LIMIT = {"limit_w": 9000.0, "ramp_w_per_s": 10.0, "valid_for_s": 60.0, "then_w": 5000.0, "priority": 8}
COMMANDS = [
    COMMAND | {"verb": verb, "arguments": arguments}
    for verb, arguments in {
        "set_power_limit": LIMIT | {"heartbeat_timeout_s": 40.0},
        "release": {"priority": None},
        "set_mode": {"mode": "remote"},
        "write": {"device": "cdu", "point": "flow", "value": 1.0},
        "heartbeat": {},
        "acknowledge": {"key": ""},
        "shelve": {"key": "meter", "for_s": 60.0, "reason": "repair"},
        "out_of_service": {"key": "meter", "reason": "gone"},
        "shed": {"level": "deep", "valid_for_s": 60.0},
        "end_shed": {"writer": "opcua alice"},
    }.items()
]
COMMANDS.append(
    {"verb": "set_mode", "arguments": {"mode": "local"}, "by": "p", "role": 2, "via": "panel", "local": True}
)
COMMANDS += [COMMANDS[0:3], [COMMANDS[-1], *COMMANDS[:4]], [COMMANDS[0] | {"by": str(n)} for n in range(40)]]
COMMANDS.append(COMMAND | {"verb": "shed", "arguments": {"number": 2}})
READINGS = [
    {"value": value, "timestamp": 1_795_200_000_000, "quality": quality}
    for value, quality in ((30.0, 1), (None, 0), (-1, 1), (1, 1), (0.0, 2))
]

NODE_GPU = {"power_w": 250.5, "limit_w": 300.0, "enforced_w": 300.0, "min_w": 200.0, "max_w": 700.0}
LINK = [
    msgspec.to_builtins(link.HELD),
    msgspec.to_builtins(link.HELD) | {"seq": 7, "clocks_mhz": [1200, 0], "boot": "a"},
    {"v": VERSION, "epoch": 3, "version": 9, "levels": [{"limits_w": [300, 250]}, {"limits_w": [200.0, 0]}]},
    {"v": VERSION, "epoch": 3, "seq": 7, "version": 9, "level": 1, "sent_at_s": 100.5},
    {
        "v": VERSION, "node": "n0", "boot": "b", "at_s": 42.0, "echo_sent_at_s": 100.5, "echo_age_s": 0.1, "epoch": 3,
        "seq": 7, "mode": "leased", "gpus": [NODE_GPU, NODE_GPU | {"fault": "gone", "power_w": None}],
        "table_epoch": 3, "table": 9, "came_ago_s": 0.005, "obeyed_in_s": 0.004, "echo_epoch": 3,
    },
]  # fmt: skip

SAID: Final = {
    "link": LINK,
    "openadr": OPENADR,
    "heartbeat": HEARTBEATS,
    "dsx": DSX,
    "dsx-signed": SIGNED,
    "ven": VEN,
    "command": COMMANDS,
    "bms": READINGS,
}

FRAMES = [
    wire.packed(wire.Catalogue(wire.VERSION, "hall-a", 1, GROUPS)),
    wire.packed(
        wire.Update(3, [9001.5, 50.0, 230.0, 1.0, 1.0, "SN", None], 1.0, 2.0, None, {0: 3.0}, {6: "x"}, "d")
    ),
    wire.packed(wire.Update(2, [4500.0], 1.0, 2.0, [0])),
    wire.packed(wire.Regroup(2, GROUPS[2])),
    wire.packed(wire.Pulse(1.0)),
    wire.packed(wire.Done(model.Outcome(result=model.Result.CLAMPED, reason="why", value=1.0))),
    *(wire.packed(msgspec.convert(said, model.Command)) for said in COMMANDS if isinstance(said, dict)),
]
FRAMES += [b"".join(FRAMES[-9:]), b"".join(FRAMES[:6])]

METER = b"""title: A meter
protocol: modbus
provenance: {document: none, page: "1", evidence: document}
line: {baud: 19200, parity: E, stop_bits: 1}
max_registers_per_read: 60
min_gap_s: 0.01
blocks:
  - {table: holding, first: 0, last: 99}
  - {table: coil, first: 0, last: 9}
identity:
  - {point: model, matches: "PM.*"}
points:
  model: {unit: text, address: 0, type: string, registers: 8}
  factor: {unit: count, address: 8, type: i16}
  power_w: &power {unit: W, address: 10, type: i32, scale: 0.1, word_order: little, lowest: -1e6, highest: 1e6}
  other_power_w: {unit: W, address: 12, type: i32, scale: 0.1}
  flow_l_per_min: {unit: L/min, address: 20, type: u16, scale_factor: factor, access: rw, deadband: 1}
  state: {unit: enum, address: 21, type: u16, enum: {0: "off", 1: "on"}, poll: slow}
  flags: {unit: bits, address: 22, type: u16, bits: {0: {name: leak, severity: critical, latched: true}}}
  running: {unit: bool, table: coil, address: 3, type: bool, access: rw}
  beat: {unit: count, address: 30, type: u16, access: rw}
  timer_s: {unit: s, address: 31, type: u16, access: rw}
control:
  arm: [{point: running, value: 1}]
  release: [{point: running, value: 0}]
  heartbeat: {point: beat, period_s: 1}
  reversion: {timer_point: timer_s, seconds: 60}
examples:
  - {point: power_w, registers: [10, 0], value: 1.0, source: counted}
"""
GATEWAY = b"""block: hall-a
state_dir: /var/lib/powerblock
run_dir: /run/powerblock
devices:
  - {name: pdu-1, profile: xerus_pdu, url: "modbus+tcp://10.0.0.11", poll_s: 1, rack: r1, kind: pdu}
  - {name: cdu-1, profile: orv3_rpu, url: "modbus+rtu:///dev/ttyUSB0", unit: 3}
  - {name: sun, profile: sunspec, url: "modbus+tcp://10.0.0.13", unit: 126}
facility:
  modbus: {port: 502, allow: [10.0.0.0/8], write_allow: [10.1.0.5]}
  prometheus: {port: 9464}
"""
# Tapes mean nothing by themselves: any bytes will do, and these are always the same.
TAPES = [random.randbytes(size) for random in [Random(11)] for size in (16, 40, 80, 200, 400)]

SEEDS: Final[Mapping[str, list[bytes]]] = {
    name: [json.dumps(said).encode() for said in messages] for name, messages in SAID.items()
} | {
    "image": FRAMES,
    "profile": [
        METER,
        *(path.read_bytes() for path in sorted(BUILTIN.glob("*.yaml")) if path.stat().st_size < 3000),
    ],
    "config": [GATEWAY, METER],
    **dict.fromkeys(("modbus-tcp", "modbus-rtu", "modbus-server", "sunspec", "opcua"), TAPES),
}

SCALAR: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
# What readers stumble over: the ends of every number, half a character, times and durations without end.
ODDITIES: Final = (
    b'0 -1 -0.0 1e308 1e999 -1e999 5e-324 9007199254740993 4294967296 NaN Infinity null true [] {} "" [[]] '
    b'"\\ud800" "\\u0000" "\xc3\xa4" "a\\nb" "PT0S" "-PT1H" "P9999Y" "P1M" "PT0.0000001S" "0001-01-01" '
    b'"9999-12-31T23:59:59Z" "0001-01-01T00:00:00+23:59" "2026-11-21T18:00:00Z" "watt" "KW" "DELETE" '
    b'-170141183460469231731687303715884105728 , : { } [ ] "'
).split()

YAML_ODDITIES: Final = (
    b"0 -1 1e308 1e999 .nan .inf 0x1F 0o17 0b1 1:30 2001-13-45 2026-11-21 ~ null yes off [] {} !!int !!bool !!str "
    b"!!set !!omap !!binary !!timestamp !!python/tuple !x &a *a <<: ? - : | > # %YAML --- ... "
    b"[*a,*a] (a+)+$ \xef\xbb\xbf \t '' \xc3\xa4 \xff \x00"
).split(b" ")


def words(name: str) -> list[bytes]:
    """Scalars of the seeds, and the oddities."""
    found = {scalar for seed in SEEDS[name] for scalar in SCALAR.findall(seed) if len(scalar) <= 64}
    return sorted(found | set(YAML_ODDITIES if name in ("profile", "config") else ODDITIES))
