"""The CloudEvents envelope: what is opened, what is refused, and what goes out."""

import contextlib
import json

import pytest
from dsx_parts import FUZZ, ISV, PARENT, T0_UTC_S, an_id, envelope, payload, said
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.dsx_flex.envelope import (
    BODIES_MAX,
    SEEN_MAX,
    Bodies,
    Envelope,
    Seen,
    Trace,
    check_age,
    read,
    start_trace,
    write,
)
from protocols.dsx_flex.wire import PAYLOAD_MAX_BYTES, DsxFlexError


def test_a_message_is_opened_whole():
    assert read(payload(tracestate="a=1")) == Envelope(
        id=an_id(),
        source=ISV,
        type="grid.loadtarget.set.v1",
        time_utc_s=T0_UTC_S,
        trace=Trace(PARENT, "a=1"),
        data=said()["data"],
        correlation_id=an_id(9),
    )


@pytest.mark.parametrize("version", ["1.0", "1.0.2"])
def test_both_specversions_are_read_and_the_contracts_own_is_written(version):
    assert json.loads(write(read(payload(specversion=version))))["specversion"] == "1.0.2"


REFUSED = {
    "specversion": [..., "0.3", "1.1", 1.0, None],
    "id": [..., "", "1", "550e8400-e29b-11d4-a716-446655440000", 7, None],
    "source": [
        ...,
        "acme",
        "//grid/v1/isv/",
        "//grid/v1/isv/a/b",
        "//grid/v1/infra/ima",
        "/grid/v1/isv/a",
        [],
    ],
    "type": [..., "grid.loadtarget.set.v2", "", 5],
    "time": [..., "2026-11-21T18:00:00", "2026-02-31T00:00:00Z", "yesterday", 1700000000, "9" * 99],
    "datacontenttype": [..., "text/plain", None],
    "subject": [..., "", 3],
    "correlationid": ["", "abc", 5, {}],
    "data": [..., None, 7, [], True],
}


@pytest.mark.parametrize(("member", "value"), [(m, v) for m, values in REFUSED.items() for v in values])
def test_a_member_that_is_missing_or_wrong_is_named(member, value):
    with pytest.raises(DsxFlexError, match=member):
        read(payload(**{member: value}))


@pytest.mark.parametrize(
    "parent",
    [
        ...,
        "",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-more",
        "ff" + PARENT[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        17,
    ],
)
def test_a_message_without_a_sound_traceparent_is_refused(parent):
    with pytest.raises(DsxFlexError, match="traceparent"):
        read(payload(traceparent=parent))


@pytest.mark.parametrize("state", [7, "x" * 513, "", "a=\n", []])
def test_a_bad_tracestate_is_dropped_alone(state):
    assert read(payload(tracestate=state)).trace == Trace(PARENT)


def test_a_trace_is_passed_on_and_an_uncaused_message_starts_one():
    cause = read(payload(tracestate="vendor=1"))
    answer = json.loads(write(Envelope(an_id(2), ISV, cause.type, T0_UTC_S, cause.trace, "a.b.c")))
    assert (answer["traceparent"], answer["tracestate"]) == (PARENT, "vendor=1")
    assert start_trace(bytes(range(1, 25))).parent.startswith("00-0102")
    with pytest.raises(ValueError, match="24 random bytes"):
        start_trace(b"")


def test_time_is_utc_seconds_whatever_its_offset():
    assert read(payload(time="2026-11-21T19:30:00.250+01:30")).time_utc_s == T0_UTC_S + 0.25


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "send an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"id": NaN}', "NaN is not JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"id": "a", "id": "b"}', "given twice"),
        (b"x" * (PAYLOAD_MAX_BYTES + 1), "send 262144 at most"),
    ],
)
def test_bytes_that_are_no_message_are_refused_with_a_reason(raw, reason):
    with pytest.raises(DsxFlexError, match=reason):
        read(raw)


def test_nothing_is_sent_that_we_would_not_read():
    with pytest.raises(DsxFlexError, match="source"):
        envelope(source="//grid/v1/isv/")
    with pytest.raises(DsxFlexError, match="bytes to send"):
        write(envelope(data="x" * PAYLOAD_MAX_BYTES))
    with pytest.raises(DsxFlexError, match="calendar"):
        write(envelope(time_utc_s=1e12))
    with pytest.raises(DsxFlexError, match="traceparent"):
        Trace("00-zz")


def test_a_message_of_long_ago_and_one_of_the_future_are_told_apart():
    def check(now_utc_s):
        check_age(envelope(), now_utc_s, age_max_s=60, ahead_max_s=5)

    check(T0_UTC_S + 60)
    check(T0_UTC_S - 5)
    with pytest.raises(DsxFlexError, match="61 s ago"):
        check(T0_UTC_S + 61)
    with pytest.raises(DsxFlexError, match="6 s ahead"):
        check(T0_UTC_S - 6)


def test_a_duplicate_is_told_by_source_and_id_and_memory_is_bounded():
    seen = Seen()
    assert envelope(1) not in seen
    seen.enter(envelope(1))
    assert envelope(1) in seen
    assert envelope(1, source="//grid/v1/isv/other") not in seen
    for number in range(2, SEEN_MAX + 2):
        seen.enter(envelope(number))
    assert envelope(1) not in seen
    assert envelope(2) in seen
    assert Seen(seen.keys).keys == seen.keys
    assert len(seen.keys) == SEEN_MAX


def test_without_a_correlation_id_the_messages_own_id_serves():
    assert envelope(3, correlation_id=None).thread_id == an_id(3)
    assert envelope(3).thread_id == an_id(9)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(PARENT) | st.just(an_id()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@FUZZ
@given(st.binary(max_size=300))
@example(b'{"id":"\\ud800"}')
def test_no_bytes_raise_anything_but_the_packages_error(raw):
    with contextlib.suppress(DsxFlexError):
        read(raw)


@FUZZ
@given(member=st.sampled_from([*said(), "tracestate"]), value=JSONISH)
def test_no_member_raises_anything_but_the_packages_error(member, value):
    with contextlib.suppress(DsxFlexError):
        write(read(json.dumps(said() | {member: value}).encode()))


# -- bodies -------------------------------------------------------------------------------------------------


def test_a_signed_body_is_known_again_in_any_envelope_and_after_a_restart():
    bodies = Bodies()
    assert bodies.enter(envelope(1))
    for known in (bodies, Bodies(bodies.digests)):
        assert not known.enter(envelope(2, time_utc_s=T0_UTC_S + 99.0, correlation_id=an_id(3)))
        assert known.enter(envelope(3, data="a.b.d"))


def test_bodies_are_bounded_and_forget_the_idle_first():
    bodies = Bodies()
    for number in range(BODIES_MAX + 5):
        bodies.enter(envelope(1, data=f"a.b.{number}"))
        bodies.enter(envelope(1, data="a.b.often"))
    assert len(bodies.digests) == BODIES_MAX
    assert bodies.enter(envelope(1, data="a.b.0"))
    assert not bodies.enter(envelope(1, data="a.b.often"))


def test_what_is_not_signed_is_always_new():
    bodies = Bodies()
    assert bodies.enter(envelope(1, data={}))
    assert bodies.enter(envelope(2, data={}))
