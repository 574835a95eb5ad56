"""OpenADR's time as truth tables: texts to numbers, and intervals to where they stand."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.openadr import (
    AT_ONCE_UTC_S,
    FOREVER_UTC_S,
    Duration,
    OpenAdrError,
    parse_duration,
    parse_time,
    timing,
)
from tests.protocols.openadr_said import HOUR_S, START, T0_UTC_S, event, interval, windows_of

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
    assert abs(duration.months) <= timing.INFINITE_MONTHS


@given(
    months=st.integers(0, 9999 * 12 + 5),
    start=st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1)),  # noqa: DTZ001  given its zone below
)
def test_months_never_run_backwards_and_end_in_for_ever(months, start):
    starts_utc_s = start.replace(tzinfo=UTC).timestamp()
    ends_utc_s = timing.add(starts_utc_s, Duration(months=months), "d")
    assert starts_utc_s + months * 28 * 86400 <= ends_utc_s <= FOREVER_UTC_S
    assert ends_utc_s == FOREVER_UTC_S or ends_utc_s <= starts_utc_s + months * 31 * 86400


def test_31_january_plus_a_month_is_the_end_of_february():
    start_utc_s = datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    assert timing.add(start_utc_s, Duration(months=1), "d") == datetime(2027, 2, 28, tzinfo=UTC).timestamp()


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


def test_a_month_that_begins_beyond_the_calendar_ends_in_for_ever():
    said = event(interval(1.0, duration="PT500000000000S"), interval(2.0, 1, duration="P1M"))
    assert windows_of(said)[1][1:] == (None, 2)
