"""Whatever comes: no crash, no half-taken message, and never more power than was said."""

import contextlib
import json
import math

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.openadr import (
    FOREVER_UTC_S,
    TYPES,
    EventBook,
    OpenAdrError,
    Rules,
    parse,
    parse_heartbeat,
    parse_program,
)
from tests.protocols.openadr_said import START, T0_UTC_S, event, interval, notification

EXTREME_NUMBERS = st.sampled_from([0, -1, 1, 5e-324, 1e308, -1e308, 2**31 - 1, 2**31, 2**63, 10**400, 1.7])
EXTREME_DURATIONS = st.sampled_from(
    ["PT0S", "-PT1S", "PT0.0000001S", "PT500000000000S", f"PT{10**50}S", "P1M", "P1D", f"P{10**30}W", "P8000Y",
     "P9998Y", "P9999Y", "-P8000Y", f"P{10**50}Y"]
)  # fmt: skip
EXTREME_TIMES = st.sampled_from(
    ["0001-01-01", "0001-01-01T00:00:01Z", "0001-01-01T00:00:01+23:59", "1969-12-31T23:59:59.999999Z", START,
     "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59"]
)  # fmt: skip
EXTREME_PERIODS = st.none() | st.fixed_dictionaries(
    {}, optional={"start": EXTREME_TIMES, "duration": EXTREME_DURATIONS}
)


@given(
    intervals=st.lists(st.tuples(EXTREME_NUMBERS, EXTREME_NUMBERS, EXTREME_PERIODS), max_size=4),
    fields=st.fixed_dictionaries(
        {"intervalPeriod": EXTREME_PERIODS},
        optional={"duration": EXTREME_DURATIONS, "priority": EXTREME_NUMBERS},
    ),
    now_utc_s=st.sampled_from([0.0, T0_UTC_S, 1e12, -1e12]),
)
def test_extreme_numbers_and_times_are_understood_or_refused_and_never_crash(intervals, fields, now_utc_s):
    said = [interval(kw, number) | {"intervalPeriod": period} for kw, number, period in intervals]
    book = EventBook()
    try:
        book.apply(notification(event(*said, **fields)), now_utc_s)
    except OpenAdrError:
        return
    assert all(-math.inf < w.starts_utc_s <= w.ends_utc_s <= FOREVER_UTC_S for w in book.windows(-math.inf))
    msgspec.json.encode(book.to_dict())


TYPE_NAMES = st.sampled_from([*TYPES, "CAPACITY_SUBSCRIPTION", "CONTROL_SETPOINT"])
VALUES = st.one_of(
    st.integers(-11, 11),
    st.floats(-20, 1e6, allow_nan=False),
    st.sampled_from(["text", "", None, True, {"x": 1.0, "y": 2.0}, 10**400, 1e13]),
)
PERIODS = st.fixed_dictionaries(
    {},
    optional={
        "start": st.sampled_from([START, "2026-11-21T12:00:00Z", "0001-01-01", "0001-01-01T00:00:00"]),
        "duration": st.sampled_from(["PT1H", "PT15M", "PT0S", "P0S", "P12H", "P9999Y", "-PT1H"]),
        "randomizeStart": st.sampled_from(["PT30M", "-PT5M", "P9999Y"]),
    },
)
PAYLOADS = st.fixed_dictionaries({"type": TYPE_NAMES, "values": st.lists(VALUES, min_size=1, max_size=3)})
INTERVALS = st.lists(
    st.fixed_dictionaries({"payloads": st.lists(PAYLOADS, max_size=2)}, optional={"intervalPeriod": PERIODS}),
    max_size=4,
)
DESCRIPTORS = st.lists(
    st.fixed_dictionaries(
        {"payloadType": TYPE_NAMES, "units": st.sampled_from(["KW", "KW", "KW", "MW", None])}
    ),
    max_size=4,
    unique_by=lambda said: said["payloadType"],
)
KW_FOR_POWER = [{"payloadType": name, "units": "KW"} for name, meaning in TYPES.items() if meaning.power]
MESSAGES = st.tuples(
    st.sampled_from(["CREATE", "UPDATE", "POST", "PUT", "DELETE"]),
    st.fixed_dictionaries(
        {
            "id": st.sampled_from("abc"),
            "modificationDateTime": st.sampled_from([START, "2026-11-21T17:00:00Z", "2026-11-21T17:30:00"]),
            "intervalPeriod": PERIODS,
            "intervals": INTERVALS,
            "payloadDescriptors": st.just(KW_FOR_POWER) | DESCRIPTORS,
        },
        optional={
            "priority": st.none() | st.integers(0, 3),
            "duration": st.sampled_from(["PT0S", "PT30M", "PT5H", "P9999Y"]),
            "targets": st.just(["a"]) | st.just([{"type": "GROUP", "values": ["a"]}]),
        },
    ),
    st.booleans(),
)


def said_powers_w(body, payload_type):
    """Every power that the event names for a type."""
    return {
        value * 1000.0
        for one in body["intervals"]
        for payload in one["payloads"]
        if payload["type"] == payload_type
        for value in payload["values"]
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    }


@settings(max_examples=300)
@given(messages=st.lists(MESSAGES, max_size=6), draw=st.floats(-1, 1), randomize=st.booleans())
def test_no_message_is_half_taken_and_no_window_allows_more_than_was_said(messages, draw, randomize):
    book = EventBook(Rules(draw=lambda: draw, randomize_reductions=randomize))
    accepted: dict[str, dict] = {}
    for operation, body, retained in messages:
        before = msgspec.json.encode(book.to_dict())
        known = book.windows(-math.inf)
        try:
            said = notification(body, operation)
        except OpenAdrError:
            continue
        verdict = book.apply(said, T0_UTC_S, retained=retained)
        if not verdict.accepted or verdict.reason == "duplicate":
            assert msgspec.json.encode(book.to_dict()) == before
            assert book.windows(-math.inf) == known
        else:
            accepted[body["id"]] = body
        for window in book.windows(-math.inf):
            meaning = TYPES[window.type]
            assert window.starts_utc_s < window.ends_utc_s <= FOREVER_UTC_S
            assert window.ends_utc_s > T0_UTC_S
            assert not meaning.power or window.value in said_powers_w(accepted[window.event_id], window.type)
    kept = msgspec.json.encode(book.to_dict())
    again = EventBook.from_dict(msgspec.json.decode(kept))
    assert again.windows(-math.inf) == book.windows(-math.inf)
    assert msgspec.json.encode(again.to_dict()) == kept
    assert again.in_force(T0_UTC_S) == book.in_force(T0_UTC_S)


@given(st.binary(max_size=200))
def test_no_bytes_get_past_the_sentence(payload):
    for read in (parse, parse_program, parse_heartbeat):
        with contextlib.suppress(OpenAdrError):
            read(payload)


WHOLE = json.dumps({"objectType": "EVENT", "operation": "CREATE", "object": event(priority=0)}).encode()


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_message_with_flipped_bytes_is_read_or_refused_and_never_crashes(flips):
    payload = bytearray(WHOLE)
    for place, byte in flips:
        payload[place] = byte
    with contextlib.suppress(OpenAdrError):
        EventBook().apply(parse(bytes(payload)), T0_UTC_S)
