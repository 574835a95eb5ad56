"""A grid operator that speaks DSX Flex, a block that hears it, and what the block answers."""

import json
import os
import uuid
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.config import load_block, settings_of
from controller.site.dsx import DsxFlex
from controller.site.policy import policy_of
from controller.site.source import Arrival
from protocols.dsx_flex import envelope, signing, topics
from protocols.dsx_flex.envelope import Envelope

NOW_S, UTC_S = 5_000.0, 1_790_000_000.0
ISV, HALL = "isv-1", "hall"


def key_pair():
    """(private PEM, public PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


KEYS = {name: key_pair() for name in (ISV, HALL, "block-1", "stranger")}


def source_config(folder, **changes):
    """The source as an operator would write it, its key files in `folder`."""
    for name, (private, public) in KEYS.items():
        (folder / f"{name}.pub.pem").write_bytes(public)
        (folder / f"{name}.key.pem").write_bytes(private)
    return {
        "kind": "dsx_flex",
        "name": "dsx",
        "agent_id": "block-1",
        "feeds": {"main-a": 1.0},
        "publishers": {ISV: str(folder / f"{ISV}.pub.pem")},
        "signing_key": str(folder / "block-1.key.pem"),
        "signing_kid": "block-1",
    } | changes


def target(limit_kw, starts=None, ends=None, **fields):
    interval = {
        name: time_text(at_s)
        for name, at_s in (("start_time", starts), ("end_time", ends))
        if at_s is not None
    }
    power = None if limit_kw is None else {"value": limit_kw, "unit": "kilowatt"}
    return {"interval": interval, "load_constraint": power} | fields


def time_text(at_s) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(UTC_S + at_s, UTC).isoformat()


SHARED = Path(os.environ.get("POWERBLOCK_SHARED", Path(__file__).parents[3].parent / "shared"))
CONTRACT = (
    SHARED / "schemas" / "dsx-flex-1.7.0.yaml"
)  # where it is at hand, all that is sent is held against it
SCHEMAS = {
    topics.POWER_STATE_STATUS: "PowerStateStatusEvent",
    topics.POWER_BREACH_ALERT: "PowerBreachAlertEvent",
    topics.POWER_BREACH_ENFORCEMENT: "PowerBreachEnforcementEvent",
}


@cache
def validator(message_type):
    import jsonschema
    import yaml

    components = yaml.safe_load(CONTRACT.read_text())["components"]
    schema = {"$ref": f"#/components/schemas/{SCHEMAS[message_type]}", "components": components}
    return jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker(["uuid", "date-time"]))


@dataclass
class Wire:
    """What the block published, opened and verified."""

    sent: list = field(default_factory=list)
    connected: bool = True
    denied: tuple = ()

    def publish(self, topic, payload, qos=0, *, keep=False, retain=False):
        said = json.loads(payload)
        if CONTRACT.exists() and "poweragent" not in said["source"]:  # the older spelling is not in it
            validator(said["type"]).validate(said)
        self.sent.append((topic, said, qos))

    def data(self, tail):
        keys = signing.KeySet((signing.read_public_pem("block-1", KEYS["block-1"][1]),))
        return [keys.verify(said["data"], UTC_S) for topic, said, _ in self.sent if topic.endswith(tail)]


class Site:
    """The source under test, and short ways to speak to it."""

    def __init__(self, block_with, folder, kept=None, **changes) -> None:
        self.config = load_block(block_with({"site.sources": [source_config(folder, **changes)]}))
        (source,) = self.config.site.sources
        self.settings = settings_of(self.config)
        self.source = DsxFlex(
            source, policy_of(self.config, source), self.settings, kept, lambda *_: None, lambda *_: None
        )
        self.wire = Wire()
        self.source.wire.link = self.wire

    def message(
        self, data, *, sender=ISV, signer=None, at_s=0.0, kind=topics.LOAD_TARGET_SET, role="isv", **fields
    ):
        """Bytes as the operator sends them. `signer` None: the sender's own key; "": not signed."""
        signer = sender if signer is None else signer
        body = data
        if signer:
            body = signing.Signer(f"{signer}.pub", KEYS[signer][0]).sign(data)
        said = Envelope(
            **{
                "id": str(uuid.uuid4()),
                "source": topics.source(role, sender),
                "type": kind,
                "time_utc_s": UTC_S + at_s,
                "trace": envelope.start_trace(bytes(range(1, 25))),
                "data": body,
                "correlation_id": str(uuid.uuid4()),
            }
            | fields
        )
        return envelope.write(said)

    def deliver(self, payload, *, at_s=0.0, topic=f"grid/v1/isv/{ISV}/loadtarget/set", retained=False):
        return self.source.take(Arrival(topic, payload, retained, NOW_S + at_s, UTC_S + at_s))

    def send(self, *targets, at_s=0.0, retained=False, **fields):
        payload = self.message({"targets": list(targets)}, at_s=at_s, **fields)
        return self.deliver(payload, at_s=at_s, retained=retained)

    def setpoints(self, at_s=0.0):
        return sorted(
            self.source.outlook.near(UTC_S + at_s, frozenset(), frozenset()), key=lambda one: one.starts_utc_s
        )
