"""The ISV's messages are DSX Flex for strangers, and its ears believe nobody who has not signed."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from joserfc.jwk import ECKey
from joserfc.jwk import KeySet as JwkSet

from firmware_sim.grid_operator import GridEvent
from firmware_sim.isv import Isv, agent_topics, missing_events
from protocols.dsx_flex import envelope, load_target, power_state, topics
from protocols.dsx_flex.breach import Alert, alert_data
from protocols.dsx_flex.load_target import LoadTargetBook
from protocols.dsx_flex.power_state import FeedRating, FeedState, Happening
from protocols.dsx_flex.signing import KeySet, Signer, read_jwks

SHARED = Path(os.environ.get("POWERBLOCK_SHARED", Path(__file__).parents[2].parent / "shared"))
CONTRACT = SHARED / "schemas" / "dsx-flex-1.7.0.yaml"
T0_UTC_S = 1_795_284_000.0
ISV_KEY, AGENT_KEY, OTHER_KEY = (ECKey.generate_key("P-256", {"kid": kid}) for kid in ("i", "a", "o"))
STATUS_TOPIC, BREACH_TOPIC = agent_topics("block-1")


@pytest.fixture
def isv():
    return Isv(
        host="127.0.0.1",
        port=1,
        isv_id="isv-1",
        kid="i",
        key=ISV_KEY,
        agent_id="block-1",
        agent_keys={"a": AGENT_KEY},
        feed_tags=("main-a",),
    )


def an_event(name="dr-1", limit_kw=9.9, after_s=0.0, duration_s=30.0):
    return GridEvent(
        id=name, type="IMPORT_CAPACITY_LIMIT", limit_kw=limit_kw, starts_utc_s=T0_UTC_S + after_s, duration_s=duration_s
    )  # fmt: skip


def opened(message, now_utc_s=T0_UTC_S):
    """As a stranger opens it: envelope, topic against source, signature, targets."""
    said = envelope.read(json.dumps(message).encode())
    topics.check_source(
        topics.read_topic("grid/v1/isv/isv-1/loadtarget/set"), message_type=said.type, source=said.source
    )
    keys = KeySet(read_jwks(json.dumps(JwkSet([ISV_KEY]).as_dict(private=False)).encode()))
    return said, load_target.read(keys.verify(said.data, now_utc_s))


class Reader:
    """Takes in messages like a site does, and says what holds."""

    def __init__(self):
        self.book = LoadTargetBook(["main-a"])

    def take(self, isv, now_utc_s):
        said, targets = opened(isv.message(now_utc_s), now_utc_s)
        assert self.book.apply(said, targets, now_utc_s).accepted

    def limit_w(self, utc_s):
        window = self.book.effective("main-a", utc_s)
        return None if window is None else window.limit_w


async def test_a_target_is_read_by_a_stranger_and_holds_for_its_span(isv):
    reader = Reader()
    await isv.publish(an_event(after_s=5))
    reader.take(isv, T0_UTC_S)
    held = [reader.limit_w(T0_UTC_S + after_s) for after_s in (0, 4.9, 5.1, 34.9, 35.1)]
    assert held == [None, None, 9900, 9900, None]


async def test_each_repetition_is_a_message_of_its_own_about_the_same_wish(isv):
    await isv.publish(an_event())
    first, second = (opened(isv.message(T0_UTC_S + age_s)) for age_s in (0, 1))
    assert first[0].id != second[0].id
    assert first[0].trace != second[0].trace
    assert first[0].correlation_id == second[0].correlation_id
    assert first[1] == second[1], "start and end do not move"
    await isv.publish(an_event(limit_kw=8))
    assert opened(isv.message(T0_UTC_S))[0].correlation_id != first[0].correlation_id


async def test_repetitions_change_nothing_and_the_latest_target_counts(isv):
    reader = Reader()
    await isv.publish(an_event("first", 9, duration_s=60))
    await isv.publish(an_event("second", 8, after_s=10, duration_s=10))
    for age_s in (0, 1, 12, 25):
        reader.take(isv, T0_UTC_S + age_s)
        now = [reader.limit_w(T0_UTC_S + after_s) for after_s in (26, 59, 61)]
        assert now == [9000, 9000, None]
        if age_s < 20:
            assert reader.limit_w(T0_UTC_S + 15) == 8000


async def test_a_target_that_is_changed_becomes_the_latest(isv):
    reader = Reader()
    await isv.publish(an_event("first", 9))
    await isv.publish(an_event("second", 8))
    await isv.publish(an_event("first", 10))
    reader.take(isv, T0_UTC_S)
    assert reader.limit_w(T0_UTC_S + 1) == 10_000


async def test_a_withdrawn_target_is_a_null_over_its_span_for_as_long_as_it_would_run(isv):
    reader = Reader()
    await isv.publish(an_event("first", 9, duration_s=60))
    await isv.publish(an_event("second", 8, after_s=10, duration_s=10))
    reader.take(isv, T0_UTC_S)
    await isv.cancel("second")
    gone, kept = isv.targets(T0_UTC_S)
    assert kept["load_constraint"] == {"value": 9, "unit": "kilowatt"}
    assert gone["load_constraint"] is None
    reader.take(isv, T0_UTC_S + 12)
    assert reader.limit_w(T0_UTC_S + 15) == 9000, "what it covered shows again"
    assert len(isv.targets(T0_UTC_S + 21)) == 1, "nobody could still hold it"
    await isv.cancel("first")
    reader.take(isv, T0_UTC_S + 22)
    assert reader.limit_w(T0_UTC_S + 23) is None


async def test_with_nothing_to_wish_it_says_so_without_end(isv):
    assert [(one.limit_w, one.starts_utc_s) for one in opened(isv.message(T0_UTC_S))[1]] == [(None, None)]
    await isv.publish(an_event(duration_s=30))
    assert opened(isv.message(T0_UTC_S + 31))[1][0].limit_w is None


async def test_an_endless_target_has_no_end_and_can_be_withdrawn(isv):
    reader = Reader()
    await isv.publish(an_event(duration_s=None))
    reader.take(isv, T0_UTC_S)
    assert reader.limit_w(T0_UTC_S + 1e6) == 9900
    await isv.cancel("dr-1")
    reader.take(isv, T0_UTC_S + 1)
    assert reader.limit_w(T0_UTC_S + 1e6) is None


async def test_its_messages_are_valid_by_the_contract(isv):
    jsonschema = pytest.importorskip("jsonschema")
    if not CONTRACT.exists():
        pytest.skip(f"the contract is not at {CONTRACT}")
    components = yaml.safe_load(CONTRACT.read_text())["components"]
    schema = {"$ref": "#/components/schemas/LoadTargetSetEvent", "components": components}
    validator = jsonschema.Draft7Validator(
        schema, format_checker=jsonschema.FormatChecker(["uuid", "date-time"])
    )
    await isv.publish(an_event("first"))
    await isv.publish(an_event("second", duration_s=None))
    await isv.cancel("first")
    message = isv.message(T0_UTC_S)
    validator.validate(message)
    validator.validate(message | {"data": {"targets": isv.targets(T0_UTC_S)}})
    validator.validate(message | {"data": {"targets": isv.targets(T0_UTC_S + 1e9)}})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(message | {"specversion": "1.0"})


# ---- ears -----------------------------------------------------------------------------------------------


def a_status(event="start_ramp_down", compliant=False):
    rating = FeedRating(3000.0, 20_000.0, 16_000.0)
    window = load_target.Window("main-a", 9900.0, T0_UTC_S, T0_UTC_S + 30, False, 1, "s", "m", envelope_id(9))
    feed = FeedState(rating, (window,), 12_000.0, Happening(event, True, T0_UTC_S, compliant))
    return power_state.data({"main-a": feed}, T0_UTC_S + 1)


def envelope_id(number):
    return f"00000000-0000-4000-8000-{number:012d}"


def said_by_agent(message_type, data, key=AGENT_KEY, kid="a", agent="block-1", sign=True):
    body = Signer(kid, key.as_pem(private=True)).sign(data) if sign else data
    out = envelope.Envelope(
        envelope_id(1),
        topics.source("agent", agent),
        message_type,
        T0_UTC_S,
        envelope.start_trace(bytes(range(1, 25))),
        body,
    )
    return envelope.write(out)


def test_a_signed_status_is_believed_and_kept(isv):
    isv.hear(STATUS_TOPIC, said_by_agent(topics.POWER_STATE_STATUS, a_status()), 7.0)
    (status,) = isv.statuses
    assert (status.feed, status.event, status.in_flight, status.compliant) == (
        "main-a",
        "start_ramp_down",
        True,
        False,
    )
    assert (status.calculated_load_w, status.active_w, status.heard_utc_s) == (12_000.0, 9900.0, 7.0)
    assert status.correlation_id == envelope_id(9)
    assert not isv.refused


def test_a_breach_is_believed_and_kept(isv):
    alert = Alert("main-a", "active", "warning", envelope_id(5), T0_UTC_S, envelope_id(9), 9900.0, 10_500.0)
    isv.hear(BREACH_TOPIC, said_by_agent(topics.POWER_BREACH_ALERT, alert_data(alert)), 7.0)
    (breach,) = isv.breaches
    assert (breach.status, breach.severity, breach.measured_w) == ("active", "warning", 10_500.0)


STATUS = topics.POWER_STATE_STATUS


@pytest.mark.parametrize(
    ("topic", "payload", "why"),
    [
        (STATUS_TOPIC, said_by_agent(STATUS, a_status(), key=OTHER_KEY), "signature"),
        (STATUS_TOPIC, said_by_agent(STATUS, a_status(), kid="z"), "unknown"),
        (STATUS_TOPIC, said_by_agent(STATUS, a_status(), agent="block-2"), "source"),
        (STATUS_TOPIC, said_by_agent(STATUS, a_status(), sign=False), "data"),
        (BREACH_TOPIC, said_by_agent(STATUS, a_status()), "type"),
        (STATUS_TOPIC, said_by_agent(STATUS, {"feeds": {}}), "snapshot_time"),
        (STATUS_TOPIC, b"not json \xff", "JSON"),
        (STATUS_TOPIC, b"[" * 100_000, "JSON"),
    ],
    ids=[
        "forged",
        "unknown key",
        "another agent",
        "unsigned",
        "wrong topic",
        "no status",
        "garbage",
        "nested",
    ],
)
def test_what_cannot_be_believed_is_kept_with_its_reason(isv, topic, payload, why):
    isv.hear(topic, payload, 7.0)
    assert not isv.statuses
    assert why.lower() in isv.refused[0].reason.lower()


def test_an_algorithm_without_a_signature_is_refused(isv):
    """The classic: `alg: none` with the right kid."""
    payload = json.loads(said_by_agent(STATUS, a_status()))
    _, data, _ = payload["data"].split(".")
    payload["data"] = f"eyJhbGciOiJub25lIiwia2lkIjoiYSJ9.{data}.AA"
    isv.hear(STATUS_TOPIC, json.dumps(payload).encode(), 7.0)
    assert not isv.statuses
    assert isv.refused


@pytest.mark.parametrize(
    ("heard", "missing"),
    [
        (["a", "x", "b", "c"], ()),
        (["b", "a", "c"], ("b", "c")),
        ([], ("a", "b", "c")),
        (["a", "a", "b"], ("c",)),
    ],
)
def test_events_count_in_their_order_alone(heard, missing):
    assert missing_events(heard, ("a", "b", "c")) == missing


async def test_nobody_there_is_no_reason_to_forget(isv):
    assert not await isv.publish(an_event(after_s=time.time() - T0_UTC_S))
    assert isv.targets(time.time())[0]["load_constraint"]["value"] == 9.9
