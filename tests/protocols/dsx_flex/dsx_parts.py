"""Messages, keys and ids that the DSX Flex tests share."""

import json
import uuid
from datetime import UTC, datetime
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, settings

from protocols.dsx_flex.breach import Alert, ShedHint
from protocols.dsx_flex.envelope import Envelope, Trace
from protocols.dsx_flex.topics import LOAD_TARGET_SET

T0_UTC_S = datetime(2026, 11, 21, 18, tzinfo=UTC).timestamp()
HOUR_S = 3600.0
ISV = "//grid/v1/isv/acme-energy"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# Two cores are shared by all: an example that waits for its turn is no failure.
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def an_id(number=1):
    return str(uuid.UUID(int=number, version=4))


HINTS = (
    ShedHint("rack-2/node-1", "node", "power_cap", 1, 4000.0),
    ShedHint("rack-2/node-2/gpu-3", "gpu", "throttle", 2),
    ShedHint("rack-3", "chassis", "suspend", 3),
)
ALERT = Alert(
    feed="main-a",
    status="active",
    severity="warning",
    breach_id=an_id(5),
    detected_utc_s=T0_UTC_S,
    correlation_id=an_id(9),
    target_w=60e3,
    measured_w=66e3,
    hints=HINTS,
    infrastructure_actions=("SHUTDOWN_NODES", "TRIP_BREAKERS"),
)


def said(**changes):
    """A message as a dict; `...` leaves a member out."""
    message = {
        "specversion": "1.0.2",
        "id": an_id(),
        "source": ISV,
        "type": LOAD_TARGET_SET,
        "time": "2026-11-21T18:00:00Z",
        "datacontenttype": "application/json",
        "subject": "loadtarget",
        "traceparent": PARENT,
        "correlationid": an_id(9),
        "data": {"targets": [{"interval": {}, "load_constraint": {"value": 4.5, "unit": "megawatt"}}]},
    } | changes
    return {key: value for key, value in message.items() if value is not ...}


def payload(**changes):
    return json.dumps(said(**changes)).encode()


def envelope(number=1, *, source=ISV, message_type=LOAD_TARGET_SET, data="a.b.c", **changes):
    """Correlated as an_id(9) and made at T0, unless told otherwise."""
    members = {"time_utc_s": T0_UTC_S, "trace": Trace(PARENT), "correlation_id": an_id(9)} | changes
    return Envelope(id=an_id(number), source=source, type=message_type, data=data, **members)


def private_key(kind, number=0):
    return _private_key(kind, number)


@cache
def _private_key(kind, number):
    """`EC`, `RSA`, or the odd ones out; one per kind and number for all tests: RSA keys take their time."""
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    if kind == "RSA1024":
        return rsa.generate_private_key(65537, 1024)
    return ec.generate_private_key(ec.SECP384R1() if kind == "P384" else ec.SECP256R1())


def private_pem(kind, number=0):
    return private_key(kind, number).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(kind, number=0):
    public = private_key(kind, number).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
