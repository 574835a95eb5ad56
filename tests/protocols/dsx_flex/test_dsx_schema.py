"""Every message that we send is valid by the AsyncAPI contract, and so is every one that we are told of."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from dsx_parts import ALERT, HINTS, PARENT, T0_UTC_S, an_id, envelope, private_pem, public_pem, said

from protocols.dsx_flex import breach, enforcement, load_target, power_state, topics
from protocols.dsx_flex.envelope import Envelope, Trace, read, write
from protocols.dsx_flex.load_target import LoadTargetBook, Target
from protocols.dsx_flex.power_state import FeedRating, FeedState, Happening
from protocols.dsx_flex.signing import KeySet, Signer, open_data, read_public_pem

jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema to check against the contract")
SHARED = Path(os.environ.get("POWERBLOCK_SHARED", Path(__file__).parents[3].parent / "shared"))
CONTRACT = SHARED / "schemas" / "dsx-flex-1.7.0.yaml"
pytestmark = pytest.mark.skipif(not CONTRACT.exists(), reason=f"the contract is not at {CONTRACT}")
SCHEMAS = {
    topics.LOAD_TARGET_SET: "LoadTargetSetEvent",
    topics.POWER_STATE_STATUS: "PowerStateStatusEvent",
    topics.POWER_BREACH_ALERT: "PowerBreachAlertEvent",
    topics.POWER_BREACH_ENFORCEMENT: "PowerBreachEnforcementEvent",
}
SIGNER = Signer("k", private_pem("EC"))
KEYS = KeySet([read_public_pem("k", public_pem("EC"))])


@cache
def contract():
    return yaml.safe_load(CONTRACT.read_text())


@cache
def validator(message_type):
    schema = {"$ref": f"#/components/schemas/{SCHEMAS[message_type]}", "components": contract()["components"]}
    checker = jsonschema.FormatChecker(["uuid", "date-time"])
    return jsonschema.Draft7Validator(schema, format_checker=checker)


def sent(message_type, data, role="agent"):
    """The same message signed and plain, both held against the contract; returns the plain one, read."""
    messages = []
    for body in (SIGNER.sign(data), data):
        out = Envelope(
            an_id(3), topics.source(role, "me"), message_type, T0_UTC_S, Trace(PARENT, "a=1"), body, an_id(9)
        )
        raw = write(out)
        validator(message_type).validate(json.loads(raw))
        messages.append(open_data(read(raw).data, KEYS, T0_UTC_S, accept_unsigned=True))
    assert messages[0] == messages[1]
    return messages[1]


def invalid(message_type, data, role="agent"):
    with pytest.raises(jsonschema.ValidationError):
        sent(message_type, data, role)


def test_the_yardstick_measures():
    """A message with one fault each fails: else the tests below would prove nothing."""
    data = breach.alert_data(ALERT)
    sent(topics.POWER_BREACH_ALERT, data)
    invalid(topics.POWER_BREACH_ALERT, data | {"status": "raised"})
    invalid(
        topics.POWER_BREACH_ALERT,
        data | {"breach": {"breach_id": "x", "detected_at": "2026-11-21T18:00:00Z"}},
    )
    invalid(topics.POWER_BREACH_ALERT, data | {"breach": {"breach_id": an_id(), "detected_at": "today"}})
    invalid(topics.POWER_BREACH_ALERT, data | {"measured_load": {"value": -1, "unit": "watt"}})


def test_the_channels_are_those_of_the_contract():
    of_contract = {
        channel["address"]: channel["bindings"]["mqtt"]["qos"] for channel in contract()["channels"].values()
    }
    ours = {
        topics.topic(message_type, "NAME").replace("NAME", f"{{{name}}}"): channel.qos
        for message_type, channel in topics.CHANNELS.items()
        for name in [("infraAgentId" if channel.role == "infra" else "identifier")]
    }
    assert ours == of_contract


@pytest.mark.parametrize("event", power_state.Event.__args__)
@pytest.mark.parametrize("start_utc_s", [None, T0_UTC_S - 60])
def test_every_status_is_valid(event, start_utc_s):
    book = LoadTargetBook(("main-a", "main-b"))
    targets = (Target(5e6), Target(0.0, T0_UTC_S + 60, T0_UTC_S + 120, ("main-a",), best_effort=True))
    assert book.apply(envelope(1, correlation_id=None), targets, T0_UTC_S).accepted
    feeds = {
        feed: FeedState(
            rating=FeedRating(1e6, 8e6, 7e6),
            windows=tuple(window for window in book.windows(T0_UTC_S) if window.feed == feed),
            calculated_load_w=-3.0,  # an exporting feed
            happening=Happening(event, "start" in event, start_utc_s, compliant=False),
        )
        for feed in book.feeds
    }
    data = sent(topics.POWER_STATE_STATUS, power_state.data(feeds, T0_UTC_S + 1))
    state = data["feeds"]["main-a"]
    assert (state["event"], state["in_flight"], state["compliant"]) == (event, "start" in event, False)
    assert [(one["active"], one["load_constraint"]["value"]) for one in state["targets"]] == [
        (True, 5e6),
        (False, 0),
        (False, 5e6),
    ]
    assert ("power_event_start_time" in state) == (start_utc_s is not None)
    assert state["calculated_load"] == {"value": 0, "unit": "watt"}
    assert "end_time" not in state["targets"][-1]["interval"]


def test_a_status_about_no_feed_is_valid():
    sent(topics.POWER_STATE_STATUS, power_state.data({}, T0_UTC_S))


@pytest.mark.parametrize("status", breach.STATUSES)
@pytest.mark.parametrize("severity", breach.SEVERITIES)
def test_every_alert_is_valid(status, severity):
    alert = replace(ALERT, status=status, severity=severity, resolved_utc_s=T0_UTC_S + 9)
    assert breach.read_alert(sent(topics.POWER_BREACH_ALERT, breach.alert_data(alert))).status == status
    sent(topics.POWER_BREACH_ALERT, breach.alert_data(replace(alert, hints=(), infrastructure_actions=())))


@pytest.mark.parametrize("phase", ["applied", "reverted"])
@pytest.mark.parametrize("code", ["applied", "failed", "skipped"])
def test_every_enforcement_is_valid(phase, code):
    results = [enforcement.Result.of(hint, code, "because", 4000.0) for hint in HINTS]
    for told in (results, [enforcement.Result.of(HINTS[0], code)], []):
        answer = enforcement.Enforcement.of(ALERT, phase, told, done_utc_s=T0_UTC_S, message="done")
        data = sent(topics.POWER_BREACH_ENFORCEMENT, enforcement.enforcement_data(answer), role="infra")
        assert enforcement.read_enforcement(data) == answer


TARGETS = (
    Target(None),
    Target(4.5e6, T0_UTC_S, T0_UTC_S + 3600, ("main-a", "main-b"), best_effort=True),
    Target(0.0, None, T0_UTC_S + 60),
    Target(1e3, T0_UTC_S + 60, feed_tags=("main-b",)),
)


def test_every_load_target_is_valid():
    assert load_target.read(sent(topics.LOAD_TARGET_SET, load_target.data(TARGETS), role="isv")) == TARGETS


def test_what_the_contract_allows_is_read():
    """Ours to read, not to send: valid by the contract, and understood."""
    for target in (
        {"interval": {}, "load_constraint": None},
        {"interval": {}, "load_constraint": {"value": 0, "unit": "watt"}, "feed_tags": [], "strategy": {}},
    ):
        message = said(data={"targets": [target]})
        validator(topics.LOAD_TARGET_SET).validate(message)
        assert load_target.read(read(json.dumps(message).encode()).data)
