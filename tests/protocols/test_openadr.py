"""OpenADR events as truth tables: what is said, and what it means in W and UTC seconds."""

import contextlib
import json
import math
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import openadr
from protocols.openadr import (
    AT_ONCE_UTC_S,
    FOREVER_UTC_S,
    PRIORITY_LOWEST,
    Duration,
    EventBook,
    Notification,
    OpenAdrError,
    Verdict,
    ignored_types,
    parse,
    parse_duration,
    parse_heartbeat,
    parse_time,
    resolve,
)

T0_UTC_S = datetime(2026, 11, 21, 18, tzinfo=UTC).timestamp()
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


def windows_of(said, now_s=0.0):
    """(start, end, kW) in hours after T0; end None: for ever."""
    found = resolve(parse(json.dumps(said)).event, T0_UTC_S + now_s)
    return [
        (
            (w.starts_utc_s - T0_UTC_S) / HOUR_S,
            None if w.ends_utc_s == FOREVER_UTC_S else (w.ends_utc_s - T0_UTC_S) / HOUR_S,
            w.limit_w / 1000,
        )
        for w in found
    ]


# -- one event, read and resolved -----------------------------------------------------------------------------


def test_the_example_of_the_standard_becomes_one_window():
    said = notification(event(priority=0)).event
    (window,) = resolve(said, T0_UTC_S)
    assert window == openadr.Window(
        event_id="ev-1",
        kind="limit",
        limit_w=4_200_000.0,
        starts_utc_s=T0_UTC_S,
        ends_utc_s=T0_UTC_S + HOUR_S,
        priority=0,
        interval_id=0,
    )


def test_snake_case_means_the_same():
    """The reference VTN sends it."""
    snake = {
        "object_type": "EVENT",
        "operation": "CREATE",
        "object": {
            "id": "ev-1",
            "object_type": "EVENT",
            "program_id": "44",
            "modification_date_time": "2026-11-21T17:00:00Z",
            "interval_period": {"start": "2026-11-21T18:00:00Z", "duration": "PT1H"},
            "payload_descriptors": [{"payload_type": "IMPORT_CAPACITY_LIMIT", "units": "KW"}],
            "intervals": [{"id": 0, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [4200.0]}]}],
        },
    }
    assert parse(json.dumps(snake)) == notification()


def test_a_bare_event_object_is_read_as_just_created():
    assert parse(json.dumps(event())) == notification()


@pytest.mark.parametrize(
    ("name", "event_id"), [("evening peak", "evening peak"), (..., "unnamed"), ("", "unnamed")]
)
def test_a_bare_event_without_an_id_is_called_by_its_name(name, event_id):
    said = {key: value for key, value in event(eventName=name).items() if key != "id"}
    assert parse(json.dumps(said)).event.id == event_id


def test_bytes_with_a_byte_order_mark_are_read():
    assert parse(b"\xef\xbb\xbf" + json.dumps(event()).encode()).event.id == "ev-1"


@pytest.mark.parametrize(
    ("operation", "means"),
    [
        ("CREATE", "CREATE"),
        ("UPDATE", "UPDATE"),
        ("DELETE", "DELETE"),
        ("POST", "CREATE"),
        ("update", "UPDATE"),
    ],
)
def test_operations_of_3_0_and_of_3_1_are_understood(operation, means):
    assert notification(operation=operation).operation == means


# -- time -------------------------------------------------------------------------------------------------------

START = "2026-11-21T18:00:00Z"
NOW_S = 0.5 * HOUR_S
A, B, C = (interval(kw, number) for number, kw in enumerate((1.0, 2.0, 3.0)))


@pytest.mark.parametrize(
    ("case", "said", "windows"),
    [
        ("default period of the event", event(A), [(0, 1, 1)]),
        ("intervals follow each other", event(A, B, C), [(0, 1, 1), (1, 2, 2), (2, 3, 3)]),
        (
            "an interval that says its duration alone inherits its start",
            event(A, interval(2.0, 1, duration="PT2H"), C),
            [(0, 1, 1), (1, 3, 2), (3, 4, 3)],
        ),
        (
            "an interval that says its start alone inherits its duration",
            event(A, interval(2.0, 1, start="2026-11-21T20:00:00Z")),
            [(0, 1, 1), (2, 3, 2)],
        ),
        (
            "a gap moves what follows",
            event(A, interval(2.0, 1, start="2026-11-21T22:00:00Z"), C),
            [(0, 1, 1), (4, 5, 2), (5, 6, 3)],
        ),
        (
            "an overlap stays one: the lowest is for the law to find",
            event(A, interval(2.0, 1, start="2026-11-21T18:30:00Z")),
            [(0, 1, 1), (0.5, 1.5, 2)],
        ),
        (
            "an event without a period, all intervals with one",
            event(
                interval(1.0, start=START, duration="PT2H"),
                interval(2.0, 1, start="2026-11-21T21:00:00Z", duration="PT1H"),
                intervalPeriod=...,
            ),
            [(0, 2, 1), (3, 4, 2)],
        ),
        (
            "do it now: the first interval began before we heard of it",
            event(*(interval(n, n) for n in range(1, 25)), intervalPeriod={"start": "2026-11-21T12:00:00Z", "duration": "PT1H"})
            | {"duration": "PT7H"},
            [(0, 1, 7)],
        ),
        (
            "0001-01-01 at the event: now",
            event(A, B, intervalPeriod={"start": "0001-01-01T00:00:00Z", "duration": "PT1H"}),
            [(0.5, 1.5, 1), (1.5, 2.5, 2)],
        ),
        (
            "0001-01-01 at the first interval: the event's start",
            event(interval(1.0, start="0001-01-01")),
            [(0, 1, 1)],
        ),
        (
            "0001-01-01 at the first interval of an event without start: now",
            event(interval(1.0, start="0001-01-01"), intervalPeriod={"duration": "PT1H"}),
            [(0.5, 1.5, 1)],
        ),
        (
            "0001-01-01 at a later interval: right after the one before",
            event(A, interval(2.0, 1, start="0001-01-01T00:00:00")),
            [(0, 1, 1), (1, 2, 2)],
        ),
        (
            "for ever, from 18:00",
            event(A, intervalPeriod={"start": START, "duration": "P9999Y"}),
            [(0, None, 1)],
        ),
        (
            "for ever, from now",
            event(A, intervalPeriod={"start": "0001-01-01", "duration": "P9999Y"}),
            [(0.5, None, 1)],
        ),
        (
            "what follows for ever never comes",
            event(interval(1.0, duration="P9999Y"), B),
            [(0, None, 1)],
        ),
        ("a zero-length interval is no window", event(interval(1.0, duration="PT0H"), B), [(0, 1, 2)]),
        ("cancelled", event(A, intervalPeriod={"start": "0001-01-01", "duration": "PT0S"}), []),
        ("cancelled as the guide spells it", event(A, intervalPeriod={"start": "0001-01-01", "duration": "P0S"}), []),
        ("cancelled, nothing left in it", event(intervals=[], intervalPeriod={"start": "0001-01-01", "duration": "PT0S"}), []),
        ("cancelled, with rubbish in it", event(interval("x"), intervalPeriod={"start": "0001-01-01", "duration": "PT0S"}), []),
        ("lapsed", event(A, intervalPeriod={"start": "2026-11-21T12:00:00Z", "duration": "PT1H"}), []),
        ("lapsed at this very moment", event(A, intervalPeriod={"start": START, "duration": "PT30M"}), []),
        ("report-only", event(intervals=...), []),
        ("report-only, null", event(intervals=None), []),
        ("cut by the event's duration", event(A, B, C, duration="PT1H30M"), [(0, 1, 1), (1, 1.5, 2)]),
        ("cut to nothing", event(A, B, duration="PT0S"), []),
        ("exact duration changes nothing", event(A, B, duration="PT2H"), [(0, 1, 1), (1, 2, 2)]),
        (
            "looped by the event's duration",
            event(A, B, duration="PT5H"),
            [(0, 1, 1), (1, 2, 2), (2, 3, 1), (3, 4, 2), (4, 5, 1)],
        ),
        (
            "looped with its gap",
            event(A, interval(2.0, 1, start="2026-11-21T20:00:00Z"), duration="PT4H"),
            [(0, 1, 1), (2, 3, 2), (3, 4, 1)],
        ),
        ("one value looped is one window", event(A, duration="P9999Y"), [(0, None, 1)]),
        ("one for-ever value cut", event(interval(1.0, duration="P9999Y"), duration="PT3H"), [(0, 3, 1)]),
        (
            "a loop that began years ago is entered where it stands",
            event(A, B, intervalPeriod={"start": "2020-01-01T00:00:00Z", "duration": "PT12H"}, duration="P7Y"),
            None,
        ),
        ("a month is as long as it is", event(A, intervalPeriod={"start": START, "duration": "P1M"}), [(0, 30 * 24, 1)]),
        ("randomizeStart never moves a reduction", event(A, intervalPeriod={"start": START, "duration": "PT1H", "randomizeStart": "PT5M"}), [(0, 1, 1)]),
    ],
)  # fmt: skip
def test_intervals_stand_where_the_guide_puts_them(case, said, windows):
    found = windows_of(said, NOW_S)
    if windows is None:  # the long loop: too many to write down
        assert found[0] == (-6, 6, 2)
        assert found[1] == (6, 18, 1)
        assert len(found) > 70
    else:
        assert found == windows, case


@pytest.mark.parametrize(
    ("text", "utc_s"),
    [
        ("2026-11-21T18:00:00Z", T0_UTC_S),
        ("2026-11-21t18:00:00z", T0_UTC_S),
        ("2026-11-21 18:00:00.000Z", T0_UTC_S),
        ("2026-11-21T18:00:00.25Z", T0_UTC_S + 0.25),
        ("2026-11-21T19:00:00+01:00", T0_UTC_S),
        ("2026-11-21T13:30:00-04:30", T0_UTC_S),
        ("0001-01-01", AT_ONCE_UTC_S),
        ("0001-01-01T00:00:00", AT_ONCE_UTC_S),
        ("0001-01-01T00:00:00Z", AT_ONCE_UTC_S),
        ("0001-01-01T00:00:00.000Z", AT_ONCE_UTC_S),
        ("0001-01-01 00:00:00+00:00", AT_ONCE_UTC_S),
        ("0001-01-01T00:00:00+05:00", AT_ONCE_UTC_S),
        ("0000-00-00", AT_ONCE_UTC_S),
        ("0000-00-00T00:00:00Z", AT_ONCE_UTC_S),
    ],
)
def test_times_in_all_spellings(text, utc_s):
    assert parse_time(text, "start") == utc_s


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2026-11-21T18:00:00", "no offset; append Z"),
        ("2026-11-21", "not a time"),
        ("17:15:16", "not a time"),
        ("2026-11-21T18:00Z", "not a time"),
        ("2026-02-31T18:00:00Z", "not a time"),
        ("2026-11-21T25:00:00Z", "not a time"),
        ("20261121T180000Z", "not a time"),
        ("2026-11-21T18:00:00Z\n", "not a time"),
        ("\u0662026-11-21T18:00:00Z", "not a time"),
        ("2026-11-21T18:00:00." + "0" * 5000 + "Z", "not a time"),
        ("", "not a time"),
    ],
)
def test_a_time_that_could_be_another_one_is_refused(text, says):
    with pytest.raises(OpenAdrError, match=says) as caught:
        parse_time(text, "intervals[0].start")
    assert str(caught.value).startswith("intervals[0].start: ")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "months", "seconds_s"),
    [
        ("PT1H", 0, 3600),
        ("PT0H", 0, 0),
        ("PT0S", 0, 0),
        ("P9999Y", 9999 * 12, 0),
        ("P1W", 0, 7 * 86400),
        ("P1DT2H", 0, 86400 + 7200),
        ("-PT5M", 0, -300),
        ("PT1.5S", 0, 1.5),
        ("P1Y2M3DT4H5M6S", 14, 3 * 86400 + 4 * 3600 + 5 * 60 + 6),
        ("P0S", 0, 0),  # prose of the guide, against its own regex
        ("P12H", 0, 12 * 3600),
        ("P99999Y", 9999 * 12, 0),
        ("P" + "9" * 40 + "D", 0, FOREVER_UTC_S),
    ],
)
def test_durations_in_all_spellings(text, months, seconds_s):
    assert parse_duration(text, "duration") == Duration(months=months, seconds_s=seconds_s)


@pytest.mark.parametrize(
    "text",
    ["", "P", "PT", "1H", "PT1", "P1", "PT1H1D", "P1.5D", "PT-1H", "pt1h", "PT1H\n", "P1D1W", "P5", "PT\u0665M", "--PT1H",
     "P" + "9" * 5000 + "D"],
)  # fmt: skip
def test_what_is_not_a_duration_is_refused(text):
    with pytest.raises(OpenAdrError, match="not a duration; send one like PT15M"):
        parse_duration(text, "duration")


@given(
    days=st.integers(0, 4000),
    hours=st.integers(0, 99),
    minutes=st.integers(0, 99),
    seconds=st.integers(0, 10**6).map(lambda n: n / 1000),
)
def test_a_duration_is_the_sum_of_its_parts(days, hours, minutes, seconds):
    said = f"P{days}DT{hours}H{minutes}M{seconds:.3f}S"
    wanted_s = days * 86400 + hours * 3600 + minutes * 60 + seconds
    assert math.isclose(parse_duration(said, "d").seconds_s, wanted_s, abs_tol=1e-6)


@given(st.text(alphabet="-P0123456789YMWDTHS.", max_size=20))
def test_every_text_is_a_duration_or_a_sentence(text):
    try:
        duration = parse_duration(text, "duration")
    except OpenAdrError:
        return
    assert math.isfinite(duration.seconds_s)
    assert abs(duration.months) <= openadr.INFINITE_MONTHS


@given(
    months=st.integers(0, 9999 * 12 + 5),
    start=st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1)),  # noqa: DTZ001  given its zone below
)
def test_months_never_run_backwards_and_end_in_for_ever(months, start):
    starts_utc_s = start.replace(tzinfo=UTC).timestamp()
    ends_utc_s = openadr._add(starts_utc_s, Duration(months=months), "d")
    assert starts_utc_s + months * 28 * 86400 <= ends_utc_s <= FOREVER_UTC_S
    assert ends_utc_s == FOREVER_UTC_S or ends_utc_s <= starts_utc_s + months * 31 * 86400


def test_31_january_plus_a_month_is_the_end_of_february():
    start_utc_s = datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    assert openadr._add(start_utc_s, Duration(months=1), "d") == datetime(2027, 2, 28, tzinfo=UTC).timestamp()


@given(
    hours=st.lists(st.integers(0, 48), min_size=1, max_size=8),
    whole_h=st.integers(0, 400),
    now_h=st.integers(-10, 400),
)
def test_a_looped_or_cut_event_fills_its_duration_and_nothing_else(hours, whole_h, now_h):
    """Checked hour by hour against the plain definition of a loop."""
    said = event(*(interval(n, n, duration=f"PT{h}H") for n, h in enumerate(hours)), duration=f"PT{whole_h}H")
    found = windows_of(said, now_h * HOUR_S)
    pattern = [n for n, h in enumerate(hours) for _ in range(h)]
    for hour in range(max(now_h, 0), 410):
        here = [kw for start, end, kw in found if start <= hour < end]
        assert here == ([pattern[hour % len(pattern)]] if pattern and hour < whole_h else [])
    assert all(end > now_h for _, end, _ in found)


# -- power ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload_type", "kind"), [("IMPORT_CAPACITY_LIMIT", "limit"), ("DISPATCH_SETPOINT", "target")]
)
@pytest.mark.parametrize(("value", "power_w"), [(0, 0.0), (1, 1000.0), (0.5, 500.0), (4200.0, 4.2e6)])
def test_kw_become_w(payload_type, kind, value, power_w):
    said = event(
        interval(value, payload_type=payload_type),
        payloadDescriptors=[{"payloadType": payload_type, "units": "KW"}],
    )
    (window,) = resolve(parse(json.dumps(said)).event, T0_UTC_S)
    assert (window.kind, window.limit_w) == (kind, power_w)


@pytest.mark.parametrize(
    ("descriptors", "says"),
    [
        (
            [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "MW"}],
            "units 'MW' for IMPORT_CAPACITY_LIMIT; send KW",
        ),
        ([{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "W"}], "units 'W'"),
        ([{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "kW"}], "units 'kW'"),
        ([{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KWH"}], "units 'KWH'"),
        ([{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "PERCENT"}], "units 'PERCENT'"),
        ([{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "VOLTAGE"}], "units 'VOLTAGE'"),
        ([{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": None}], "no units for IMPORT_CAPACITY_LIMIT"),
        ([{"payloadType": "IMPORT_CAPACITY_LIMIT"}], "no units for IMPORT_CAPACITY_LIMIT"),
        ([{"payloadType": "DISPATCH_SETPOINT", "units": "KW"}], "no units for IMPORT_CAPACITY_LIMIT"),
        ([DESCRIPTOR | {"objectType": "REPORT_PAYLOAD_DESCRIPTOR"}], "no units for IMPORT_CAPACITY_LIMIT"),
        ([], "no units"),
        (None, "no units"),
        (..., "no units"),
    ],
)
def test_a_power_without_the_unit_kw_is_refused_and_never_guessed(descriptors, says):
    said = parse(json.dumps(event(payloadDescriptors=descriptors)))
    with pytest.raises(OpenAdrError, match=says) as caught:
        resolve(said.event, T0_UTC_S)
    assert "KW" in str(caught.value)


def test_a_descriptor_with_its_object_type_and_a_report_beside_it_is_read():
    report = {
        "objectType": "REPORT_PAYLOAD_DESCRIPTOR",
        "payloadType": "IMPORT_CAPACITY_LIMIT",
        "units": "KWH",
    }
    said = event(payloadDescriptors=[report, DESCRIPTOR | {"objectType": "EVENT_PAYLOAD_DESCRIPTOR"}])
    assert windows_of(said) == [(0, 1, 4200)]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([-1], r"values\[0\]: -1 is not a power; send kW, 0 or more"),
        ([-0.15], "not a power"),
        ([1e999], "not a power"),
        ([10**400], "not a power"),
        ([True], "True is not a number"),
        (["4200"], "'4200' is not a number"),
        ([None], "missing is not a number"),
        ([{"x": 1, "y": 2}], "not a number"),
        ([1, 2], "2 values for one IMPORT_CAPACITY_LIMIT; send one"),
        ([], "0 values"),
        (None, "0 values"),
    ],
)
def test_a_value_that_is_not_one_power_rejects_the_event(values, says):
    bad = {"id": 1, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": values}]}
    text = json.dumps(event(interval(), bad)).replace("Infinity", "1e999")
    with pytest.raises(OpenAdrError, match=says) as caught:
        resolve(parse(text).event, T0_UTC_S)
    assert "event ev-1: intervals[1].payloads[0].values" in str(caught.value)


def test_a_bad_value_in_an_interval_that_is_over_still_rejects_the_event():
    said = event(interval(-1.0), interval(2.0, 1))
    with pytest.raises(OpenAdrError, match="not a power"):
        windows_of(said, 1.5 * HOUR_S)


def test_one_type_twice_in_an_interval_is_refused():
    twice = {"id": 0, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [n]} for n in (1, 2)]}
    with pytest.raises(OpenAdrError, match="a second IMPORT_CAPACITY_LIMIT in one interval"):
        windows_of(event(twice))


def test_other_payload_types_are_named_and_ignored_beside_a_limit():
    mixed = interval()
    mixed["payloads"] += [
        {"type": "PRICE", "values": [0.1, 0.2]},
        {"type": "CAPACITY_SUBSCRIPTION", "values": ["?"]},  # the guide's own slip: a legal private type
    ]
    said = event(mixed)
    assert windows_of(said) == [(0, 1, 4200)]
    assert ignored_types(parse(json.dumps(said)).event) == ("CAPACITY_SUBSCRIPTION", "PRICE")


@pytest.mark.parametrize(
    ("said", "priority"), [(0, 0), (7, 7), (None, PRIORITY_LOWEST), (..., PRIORITY_LOWEST)]
)
def test_no_priority_is_the_lowest(said, priority):
    (window,) = resolve(parse(json.dumps(event(priority=said))).event, T0_UTC_S)
    assert window.priority == priority


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id": "a b"}, r"id: 'a b'; send 1 to 128 letters"),
        ({"id": 5}, "id: 5"),
        ({"id": "x" * 129}, "id: 'x"),
        ({"priority": -1}, "priority: -1"),
        ({"priority": "1"}, "priority: '1'"),
        ({"priority": True}, "priority: True"),
        ({"priority": 1.5}, "priority: 1.5"),
        ({"objectType": "PROGRAM"}, "objectType: 'PROGRAM'"),
        ({"intervals": {}}, "intervals: {}; send a list"),
        ({"intervals": [1]}, r"intervals\[0\]: 1; send an object"),
        ({"intervals": [{"id": "a"}]}, r"intervals\[0\].id: 'a'"),
        ({"intervals": [{"id": 0, "payloads": [{"values": [1]}]}]}, r"payloads\[0\].type: missing"),
        ({"intervalPeriod": []}, r"intervalPeriod: \[\]"),
        ({"intervalPeriod": {"start": 5}}, "intervalPeriod.start: 5"),
        ({"intervalPeriod": {"start": "2026-11-21T18:00:00"}}, "intervalPeriod.start: .* no offset"),
        ({"intervalPeriod": {"duration": "5 min"}}, "intervalPeriod.duration: '5 min'"),
        ({"duration": "1h"}, "duration: '1h'"),
        ({"modificationDateTime": "17:15:16"}, "modificationDateTime: '17:15:16'"),
        (
            {"payloadDescriptors": [DESCRIPTOR, DESCRIPTOR | {"units": "KWH"}]},
            r"payloadDescriptors\[1\].units",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(fields, says):
    with pytest.raises(OpenAdrError, match=says):
        notification(event() | fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"intervalPeriod": ...}, "intervalPeriod.start: missing; send a time, or 0001-01-01 for now"),
        ({"intervalPeriod": {"duration": "PT1H"}}, "intervalPeriod.start: missing"),
        ({"intervalPeriod": {"start": START}}, r"intervals\[0\]: no duration"),
        ({"intervalPeriod": {"start": START, "duration": "-PT5M"}}, r"intervals\[0\].duration: negative"),
        ({"duration": "-PT5M"}, "event ev-1: duration: negative"),
    ],
)
def test_what_has_no_place_in_time_is_refused_with_the_remedy(fields, says):
    with pytest.raises(OpenAdrError, match=says):
        windows_of(event(**fields))


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "send an object"),
        (b"null", "send an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b" " * (openadr.PAYLOAD_MAX_BYTES + 1), "262144 at most"),
        (
            b'{"objectType":"EVENT","operation":"CREATE","ID":"1"}',
            "subscribe to the topic that carries whole",
        ),
        (b'{"objectType":"EVENT","operation":"READ","object":{}}', "operation: 'READ'"),
        (b'{"objectType":"EVENT","object":{}}', "operation: missing"),
        (b'{"objectType":"VEN","operation":"CREATE","object":{}}', "objectType: 'VEN'"),
        (b'{"operation":"CREATE","object":{}}', "objectType: missing"),
        (b'{"objectType":"EVENT","operation":"CREATE","object":{}}', "object.id: missing"),
        (b'{"objectType":"EVENT","object_type":"VEN"}', "object_type: given twice"),
    ],
)
def test_what_is_no_event_is_refused_with_a_sentence(payload, says):
    with pytest.raises(OpenAdrError, match=says):
        parse(payload)


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just("PT1H") | st.just("0001-01-01"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "intervals", "payloads", "type", "values", "intervalPeriod", "start", "duration"]),
        inner, max_size=5,
    ),
    max_leaves=15,
))  # fmt: skip
def test_whatever_comes_is_read_or_refused_and_never_crashes(said):
    with contextlib.suppress(OpenAdrError):
        resolve(parse(json.dumps(said)).event, T0_UTC_S)


@pytest.mark.parametrize("depth", range(700, 1000, 9))
def test_no_depth_of_nesting_gets_past_the_sentence(depth):
    with pytest.raises(OpenAdrError):
        parse('{"id":' + "[" * depth + "]" * depth + "}")


def test_too_many_windows_are_refused_and_a_loop_for_ever_does_not_hang():
    with pytest.raises(OpenAdrError, match="over 1000 windows ahead"):
        windows_of(event(*(interval(1.0, n) for n in range(1001))))
    with pytest.raises(OpenAdrError, match="over 1000 windows ahead"):
        windows_of(event(A, B, duration="P9999Y"))
    with pytest.raises(OpenAdrError, match="over 1000 windows ahead"):
        windows_of(
            event(
                A, B, intervalPeriod={"start": "1900-01-01T00:00:00Z", "duration": "PT1S"}, duration="P9999Y"
            )
        )
    with pytest.raises(OpenAdrError, match="over 1000 windows ahead"):
        windows_of(
            event(
                interval(1.0, duration="PT0.001S"), interval(2.0, 1, duration="PT0.001S"), duration="P9999Y"
            )
        )


def test_a_loop_for_ever_that_asks_for_no_power_does_not_hang():
    prices = [interval(0.1, n, payload_type="PRICE") for n in range(2)]
    assert windows_of(event(*prices, duration="P9999Y")) == []
    assert windows_of(event(prices[0], interval(1.0, 1, duration="PT0S"), duration="P9999Y")) == []


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


def test_a_month_that_begins_beyond_the_calendar_ends_in_for_ever():
    said = event(interval(1.0, duration="PT500000000000S"), interval(2.0, 1, duration="P1M"))
    assert windows_of(said)[1][1:] == (None, 2)


# -- the book -------------------------------------------------------------------------------------------------------


def at(minute: int) -> str:
    return f"2026-11-21T17:{minute:02d}:00Z"


def step(operation="CREATE", minute=0, kw=1.0, event_id="ev-1", **fields):
    return notification(event(interval(kw), event_id=event_id, modified=at(minute), **fields), operation)


def limits_kw(book: EventBook, now_utc_s=T0_UTC_S) -> list[float]:
    return [window.limit_w / 1000 for window in book.windows(now_utc_s)]


BAD = {"payloadDescriptors": []}
PAST = {"intervalPeriod": {"start": "2026-11-21T12:00:00Z", "duration": "PT1H"}}
CALLED_OFF = {"intervalPeriod": {"start": "0001-01-01", "duration": "PT0S"}}
NO_DATE = {"modificationDateTime": ...}


@pytest.mark.parametrize(
    ("case", "messages", "reasons", "kw"),
    [
        ("created", [step()], ["accepted"], [1]),
        ("updated", [step(), step("UPDATE", 1, 2)], ["accepted", "accepted"], [2]),
        ("an update of an unknown event creates it", [step("UPDATE")], ["accepted"], [1]),
        ("deleted", [step(), step("DELETE")], ["accepted", "deleted"], []),
        ("deleted with a newer date", [step(), step("DELETE", 1)], ["accepted", "deleted"], []),
        ("duplicate", [step(), step(kw=9)], ["accepted", "duplicate"], [1]),
        ("reordered updates", [step(minute=2, kw=2), step("UPDATE", 1)], ["accepted", "older than known"], [2]),
        ("delete overtook create", [step("DELETE", 1), step(minute=0)], ["deleted", "older than known"], []),
        ("delete overtook create, same date", [step("DELETE", 1), step(minute=1)], ["deleted", "duplicate"], []),
        ("an old delete", [step(minute=2), step("DELETE", 1)], ["accepted", "older than known"], [1]),
        ("created anew after delete", [step(), step("DELETE"), step(minute=1, kw=3)], ["accepted", "deleted", "accepted"], [3]),
        ("a bad update leaves the old version", [step(), step("UPDATE", 1, 2, **BAD)], ["accepted", "send units KW"], [1]),
        ("and does not stand in the way", [step(), step("UPDATE", 1, 2, **BAD), step("UPDATE", 1, 3)], ["accepted", "send units KW", "accepted"], [3]),
        ("lapsed", [step(**PAST)], ["lapsed"], []),
        ("an update into the past by our clock, which may be wrong, releases nothing", [step(), step("UPDATE", 1, **PAST)], ["accepted", "event ev-1: lapsed by our clock; the known version stays in force, DELETE it to end it"], [1]),
        ("called off by PT0S", [step(), step("UPDATE", 1, **CALLED_OFF)], ["accepted", "cancelled"], []),
        ("without its date", [step(modificationDateTime=...)], ["modificationDateTime: missing"], []),
        ("two events", [step(), step(event_id="ev-2", kw=2)], ["accepted", "accepted"], [1, 2]),
        ("only a price", [step(intervals=[interval(0.1, payload_type="PRICE")])], ["asks for no power: PRICE"], []),
        ("an update to only a price", [step(), step("UPDATE", 1, intervals=[interval(0.1, payload_type="PRICE")])], ["accepted", "asks for no power: PRICE"], []),
        ("report-only", [step(intervals=None)], ["asks for no power: no payload"], []),
    ],
)  # fmt: skip
def test_the_book_holds_what_the_site_wants_last(case, messages, reasons, kw):
    book = EventBook()
    verdicts = [book.apply(message, T0_UTC_S) for message in messages]
    for verdict, reason in zip(verdicts, reasons, strict=True):
        assert verdict.reason == reason or reason in verdict.reason, case
    assert limits_kw(book) == kw


@pytest.mark.parametrize(
    ("reason", "accepted"),
    [
        ("accepted", True),
        ("duplicate", True),
        ("older than known", False),
        ("lapsed", False),
        ("units", False),
    ],
)
def test_what_changed_nothing_against_the_sites_will_is_not_accepted(reason, accepted):
    messages = {
        "accepted": [step()],
        "duplicate": [step(), step()],
        "older than known": [step(minute=1), step()],
        "lapsed": [step(**PAST)],
        "units": [step(**BAD)],
    }[reason]
    book = EventBook()
    verdicts = [book.apply(message, T0_UTC_S) for message in messages]
    assert reason in verdicts[-1].reason
    assert verdicts[-1].accepted is accepted
    assert book.duplicates == (reason == "duplicate")


def test_a_delete_may_be_as_short_as_its_id():
    book = EventBook()
    book.apply(step(), T0_UTC_S)
    short = parse('{"objectType":"EVENT","operation":"DELETE","object":{"id":"ev-1"}}')
    assert book.apply(short, T0_UTC_S) == Verdict(True, "deleted")
    assert book.apply(short, T0_UTC_S) == Verdict(True, "deleted")
    assert book.apply(step(), T0_UTC_S).reason == "duplicate"
    assert book.windows(T0_UTC_S) == ()
    assert EventBook().apply(short, T0_UTC_S) == Verdict(True, "deleted")


def test_a_retained_delete_without_its_date_deletes_nothing():
    book = EventBook()
    book.apply(step(), T0_UTC_S)
    verdict = book.apply(step("DELETE", modificationDateTime=...), T0_UTC_S, retained=True)
    assert verdict == Verdict(False, "event ev-1: retained, without a date: it could be of any age")
    assert limits_kw(book) == [1]
    assert book.apply(step("DELETE", 1), T0_UTC_S, retained=True).reason == "deleted"
    assert limits_kw(book) == []


def test_a_delete_with_rubbish_in_its_body_still_deletes():
    book = EventBook()
    book.apply(step(), T0_UTC_S)
    book.apply(step("DELETE", intervals="?", priority="?"), T0_UTC_S)
    assert book.windows(T0_UTC_S) == ()


AGE_S = openadr.RETAINED_AGE_MAX_S
FOR_EVER = {"intervalPeriod": {"start": START, "duration": "P9999Y"}}
AT_ONCE = {"intervalPeriod": {"start": "0001-01-01", "duration": "PT1H"}}


@pytest.mark.parametrize(
    ("case", "fields", "age_s", "retained", "kw"),
    [
        ("live, for ever, old", FOR_EVER, AGE_S * 2, False, [1]),
        ("retained, for ever, young", FOR_EVER, AGE_S / 2, True, [1]),
        ("retained, for ever, old", FOR_EVER, AGE_S * 2, True, []),
        ("retained, at once, old", AT_ONCE, AGE_S * 2, True, []),
        ("live, at once, old", AT_ONCE, AGE_S * 2, False, [1]),
        ("retained, with times of its own, old", {"intervalPeriod": {"start": START, "duration": "P9D"}}, AGE_S * 2, True, [1]),
        ("retained, lapsed", {}, HOUR_S * 2, True, []),
    ],
)  # fmt: skip
def test_a_retained_wish_is_judged_by_its_times_or_else_by_its_age(case, fields, age_s, retained, kw):
    book = EventBook()
    now_utc_s = T0_UTC_S - HOUR_S + age_s  # step() was modified at 17:00
    verdict = book.apply(step(**fields), now_utc_s, retained=retained)
    assert verdict.accepted is bool(kw), case
    assert limits_kw(book, now_utc_s) == kw, case


def test_now_does_not_move_after_the_event_came():
    book = EventBook()
    book.apply(step(**AT_ONCE), T0_UTC_S)
    book.apply(step(**AT_ONCE), T0_UTC_S + 1800)
    (window,) = book.windows(T0_UTC_S + 1800)
    assert (window.starts_utc_s, window.ends_utc_s) == (T0_UTC_S, T0_UTC_S + HOUR_S)
    assert book.windows(T0_UTC_S + HOUR_S) == ()


def test_windows_come_by_start_and_leave_when_they_are_over():
    book = EventBook()
    book.apply(
        step(event_id="late", kw=2, intervalPeriod={"start": "2026-11-21T20:00:00Z", "duration": "PT1H"}),
        T0_UTC_S,
    )
    book.apply(step(event_id="early", kw=1), T0_UTC_S)
    assert limits_kw(book) == [1, 2]
    assert book.event_ids(T0_UTC_S) == {"early", "late"}
    assert limits_kw(book, T0_UTC_S + 1.5 * HOUR_S) == [2]
    assert book.event_ids(T0_UTC_S + 1.5 * HOUR_S) == {"late"}


def test_the_book_survives_a_restart_through_json():
    book = EventBook()
    book.apply(step(event_id="kept", priority=3, **FOR_EVER), T0_UTC_S)
    book.apply(step(event_id="gone"), T0_UTC_S)
    book.apply(step("DELETE", 1, event_id="gone"), T0_UTC_S)
    again = EventBook.from_dict(json.loads(json.dumps(book.to_dict(), allow_nan=False)))
    assert again.windows(T0_UTC_S) == book.windows(T0_UTC_S)
    assert again.to_dict() == book.to_dict()
    assert again.apply(step(event_id="gone"), T0_UTC_S).reason == "event gone: older than known"
    assert again.apply(step(event_id="kept", **FOR_EVER), T0_UTC_S).reason == "duplicate"


@pytest.mark.parametrize(
    "said",
    [None, [], {}, {"v": 2, "events": {}}, {"v": 1}, {"v": 1, "events": {"a": {"modified_utc_s": "x", "windows": []}}},
     {"v": 1, "events": {"a": {"modified_utc_s": 1.0, "windows": [{"event_id": "a"}]}}}],
)  # fmt: skip
def test_a_book_that_was_not_kept_by_us_is_refused_with_the_remedy(said):
    with pytest.raises(OpenAdrError, match=r"kept events: .* let the site send anew"):
        EventBook.from_dict(said)


def test_of_an_event_long_over_only_id_and_date_stay():
    book = EventBook()
    book.apply(step(event_id="past"), T0_UTC_S)
    book.apply(step(event_id="to-come", **FOR_EVER), T0_UTC_S)
    book.apply(step("UPDATE", 1, event_id="to-come", **FOR_EVER), T0_UTC_S + 24 * HOUR_S)
    assert [w.event_id for w in book.windows(-math.inf)] == [
        "past",
        "to-come",
    ]  # a clock may be wrong by hours
    book.apply(step("UPDATE", 2, event_id="to-come", **FOR_EVER), T0_UTC_S + 26 * HOUR_S)
    assert [w.event_id for w in book.windows(-math.inf)] == ["to-come"]
    assert book.event_ids(-math.inf) == {"to-come"}
    assert book.apply(step(event_id="past"), T0_UTC_S).reason == "duplicate"


def test_windows_are_sorted_once_per_change_of_the_book():
    book = EventBook()
    book.apply(step(event_id="b"), T0_UTC_S)
    first = book.windows(T0_UTC_S)
    assert book.windows(T0_UTC_S) is first
    book.apply(step(event_id="a"), T0_UTC_S)
    assert [w.event_id for w in book.windows(T0_UTC_S)] == ["a", "b"]
    book.apply(step("DELETE", 1, event_id="a"), T0_UTC_S)
    assert book.windows(T0_UTC_S) == first


def test_a_full_book_forgets_what_is_over_but_never_what_is_in_force(monkeypatch):
    monkeypatch.setattr(openadr, "EVENTS_MAX", 3)
    book = EventBook()
    for name in ("a", "b", "c"):
        assert book.apply(step(event_id=name), T0_UTC_S).accepted
    refused = book.apply(step(event_id="d"), T0_UTC_S)
    assert not refused.accepted
    assert "3 events are in force; delete some" in refused.reason
    book.apply(step("DELETE", 1, event_id="b"), T0_UTC_S)
    assert book.apply(step(event_id="d"), T0_UTC_S).accepted
    assert book.event_ids(T0_UTC_S) == {"a", "c", "d"}
    assert book.apply(step("UPDATE", 5, event_id="a"), T0_UTC_S).accepted


def test_deletes_of_unknown_events_cannot_fill_the_book_with_more_than_its_bound(monkeypatch):
    monkeypatch.setattr(openadr, "EVENTS_MAX", 3)
    book = EventBook()
    for number in range(10):
        book.apply(step("DELETE", event_id=f"x{number}"), T0_UTC_S)
    assert len(book.to_dict()["events"]) <= 3


# -- the heartbeat ----------------------------------------------------------------------------------------------------


def test_a_heartbeat_says_when_and_perhaps_which_and_what():
    assert parse_heartbeat(f'{{"sent_at": "{START}"}}') == openadr.Heartbeat(T0_UTC_S, None, None)
    full = parse_heartbeat(f'{{"sent_at": "{START}", "seq": 7, "event_ids": ["a", "b"], "from": "site"}}')
    assert full == openadr.Heartbeat(T0_UTC_S, 7, frozenset({"a", "b"}))
    assert parse_heartbeat(f'{{"sent_at": "{START}", "event_ids": []}}').event_ids == frozenset()


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ("{}", "sent_at: missing"),
        ('{"sent_at": 5}', "sent_at: 5"),
        ('{"sent_at": "2026-11-21T18:00:00"}', "no offset"),
        ('{"sent_at": "0001-01-01"}', "the time of sending"),
        (f'{{"sent_at": "{START}", "seq": -1}}', "seq: -1"),
        (f'{{"sent_at": "{START}", "seq": true}}', "seq: True"),
        (f'{{"sent_at": "{START}", "seq": 1.5}}', "seq: 1.5"),
        (f'{{"sent_at": "{START}", "event_ids": "a"}}', "event_ids: 'a'"),
        (f'{{"sent_at": "{START}", "event_ids": [1]}}', r"event_ids\[0\].*: 1"),
        ("7", "heartbeat: 7; send an object"),
        ("online", "not JSON"),
    ],
)
def test_a_heartbeat_that_is_not_one_is_refused(payload, says):
    with pytest.raises(OpenAdrError, match=says):
        parse_heartbeat(payload)
