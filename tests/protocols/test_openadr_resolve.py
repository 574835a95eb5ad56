"""OpenADR's values as truth tables: what is said, and what it means in W."""

import json

import pytest

from protocols import openadr
from protocols.openadr import PRIORITY_LOWEST, OpenAdrError, ignored_types, parse, resolve, timing, winners
from tests.protocols.openadr_said import (
    DESCRIPTOR,
    HOUR_S,
    START,
    T0_UTC_S,
    event,
    hours,
    interval,
    notification,
    told,
    windows_of,
)


def test_the_example_of_the_standard_becomes_one_window():
    said = notification(event(priority=0)).event
    (window,) = resolve(said, T0_UTC_S)
    assert window == openadr.Window(
        event_id="ev-1",
        type="IMPORT_CAPACITY_LIMIT",
        value=4_200_000.0,
        starts_utc_s=T0_UTC_S,
        ends_utc_s=T0_UTC_S + HOUR_S,
        priority=0,
        interval_id=0,
        modified_utc_s=T0_UTC_S - HOUR_S,
    )


@pytest.mark.parametrize(
    "payload_type",
    [
        "IMPORT_CAPACITY_LIMIT",
        "IMPORT_CAPACITY_SUBSCRIPTION",
        "IMPORT_CAPACITY_RESERVATION",
        "DISPATCH_SETPOINT",
        "DISPATCH_SETPOINT_RELATIVE",
    ],
)
@pytest.mark.parametrize(("value", "power_w"), [(0, 0.0), (1, 1000.0), (0.5, 500.0), (4200.0, 4.2e6)])
def test_kw_become_w(payload_type, value, power_w):
    said = event(
        interval(value, payload_type=payload_type),
        payloadDescriptors=[{"payloadType": payload_type, "units": "KW"}],
    )
    (window,) = resolve(parse(json.dumps(said)).event, T0_UTC_S)
    assert (window.type, window.value) == (payload_type, power_w)


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
    with pytest.raises(OpenAdrError, match=says) as caught:
        resolve(parse(json.dumps(event(interval(), bad))).event, T0_UTC_S)
    assert "event ev-1: intervals[1].payloads[0].values" in str(caught.value)


def test_a_number_beyond_all_numbers_is_no_power():
    text = json.dumps(event(interval(1e300))).replace("1e+300", "1e999")
    with pytest.raises(OpenAdrError, match=r"1e999 is beyond all numbers|not a power"):
        resolve(parse(text).event, T0_UTC_S)


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
    assert ignored_types(parse(json.dumps(said)).event, {"IMPORT_CAPACITY_LIMIT"}) == (
        "CAPACITY_SUBSCRIPTION",
        "PRICE",
    )


@pytest.mark.parametrize(
    ("said", "priority"), [(0, 0), (7, 7), (None, PRIORITY_LOWEST), (..., PRIORITY_LOWEST)]
)
def test_no_priority_is_the_lowest(said, priority):
    (window,) = resolve(parse(json.dumps(event(priority=said))).event, T0_UTC_S)
    assert window.priority == priority


# -- all that is understood -----------------------------------------------------------------------------------------


def one(payload_type, *values, units=...):
    """The windows of one hour with these values of one type."""
    payload = {"type": payload_type, "values": list(values)}
    descriptors = [{"payloadType": payload_type} | ({} if units is ... else {"units": units})]
    return told(event({"id": 0, "payloads": [payload]}, payloadDescriptors=descriptors))


@pytest.mark.parametrize(
    ("payload_type", "units", "sent", "value"),
    [
        ("DISPATCH_SETPOINT_RELATIVE", "KW", -2.5, -2500.0),
        ("CONTROL_LEVEL_OFFSET", ..., -10, -10.0),
        ("CONTROL_LEVEL_OFFSET", None, 10, 10.0),
        ("CONTROL_LEVEL_OFFSET_PERCENT", "PERCENT", -1, -1.0),
        ("CONTROL_LEVEL_OFFSET_PERCENT", ..., 0.25, 0.25),
        ("SIMPLE", ..., 0, 0.0),
        ("SIMPLE", ..., 3.0, 3.0),
        ("ALERT_GRID_EMERGENCY", ..., "shed", 1.0),
        ("ALERT_BLACK_START", ..., "wait", 1.0),
        ("ALERT_POSSIBLE_OUTAGE", ..., "fire", 1.0),
        ("PRICE", "KWH", -0.05, -0.05),
        ("PRICE", ..., 0.17, 0.17),
        ("EXPORT_PRICE", "KWH", 0.1, 0.1),
        ("GHG", "GHG", 430, 430.0),
        ("GHG", ..., 0.03, 0.03),
    ],
)
def test_every_type_carries_its_number(payload_type, units, sent, value):
    (window,) = one(payload_type, sent, units=units)
    assert (window.type, window.value) == (payload_type, value)
    assert window.text == (sent if isinstance(sent, str) else "")


@pytest.mark.parametrize(
    ("payload_type", "units", "values", "says"),
    [
        ("SIMPLE", ..., [4], "4 is not a level; send 0, 1, 2 or 3"),
        ("SIMPLE", ..., [-1], "-1 is not a level"),
        ("SIMPLE", ..., [1.5], "1.5 is not a level"),
        ("SIMPLE", ..., [1, 2], "2 values for one SIMPLE; send one"),
        ("SIMPLE", "KW", [1], "units 'KW' for SIMPLE; send none"),
        ("CONTROL_LEVEL_OFFSET", ..., [11], "11 is not a level; send a whole number from -10 to 10"),
        ("CONTROL_LEVEL_OFFSET_PERCENT", "PERCENT", [50], "50 is not a change; send -1 to 1"),
        ("DISPATCH_SETPOINT_RELATIVE", ..., [-1], "no units for DISPATCH_SETPOINT_RELATIVE; send units KW"),
        ("IMPORT_CAPACITY_SUBSCRIPTION", "KW", [-1], "-1 is not a power"),
        ("IMPORT_CAPACITY_RESERVATION", "MW", [1], "units 'MW'"),
        ("IMPORT_CAPACITY_LIMIT", "KW", [1e13], "not a power"),
        ("PRICE", "THERMS", [1], "units 'THERMS' for PRICE; send none or KWH"),
        ("PRICE", ..., [], "0 values for one PRICE"),
        ("PRICE", ..., [0.1, "?"], r"values\[1\]: '\?' is not a number"),
        ("GHG", ..., [-1], "-1 is not an emission"),
        ("ALERT_BLACK_START", ..., [7], "7 is not a text"),
        ("ALERT_BLACK_START", ..., ["a", "b"], "2 values for one ALERT_BLACK_START"),
    ],
)
def test_what_a_type_cannot_mean_rejects_the_event(payload_type, units, values, says):
    with pytest.raises(OpenAdrError, match=says):
        one(payload_type, *values, units=units)


def test_an_alert_counts_without_its_text_and_a_long_one_is_cut():
    (silent,) = one("ALERT_GRID_EMERGENCY")
    assert (silent.value, silent.text) == (1.0, "")
    (long,) = one("ALERT_GRID_EMERGENCY", "x" * 5000)
    assert long.text == "x" * 128


# -- several values in one interval ------------------------------------------------------------------------------------


def packed(values, now_s=0.0, payload_type="PRICE", **fields):
    payload = {"type": payload_type, "values": values}
    found = told(event({"id": 0, "payloads": [payload]}, payloadDescriptors=[], **fields), now_s)
    return [(*hours(window), window.value) for window in found]


@pytest.mark.parametrize("payload_type", ["PRICE", "EXPORT_PRICE", "GHG"])
def test_several_values_share_their_interval_equally(payload_type):
    three = {"intervalPeriod": {"start": START, "duration": "PT3H"}}
    assert packed([1, 2, 3], payload_type=payload_type, **three) == [(0, 1, 1), (1, 2, 2), (2, 3, 3)]
    assert packed([1, 2, 3], 1.5 * HOUR_S, payload_type, **three) == [(1, 2, 2), (2, 3, 3)]


def test_parts_are_cut_and_looped_with_their_event():
    three = {"intervalPeriod": {"start": START, "duration": "PT3H"}}
    assert packed([1, 2, 3], duration="PT1H30M", **three) == [(0, 1, 1), (1, 1.5, 2)]
    assert packed([1, 2, 3], duration="PT5H", **three)[3:] == [(3, 4, 1), (4, 5, 2)]


def test_parts_of_an_interval_without_end_are_refused():
    with pytest.raises(OpenAdrError, match="2 values of PRICE share an interval without end"):
        packed([1, 2], intervalPeriod={"start": START, "duration": "P9999Y"})


def test_a_limit_keeps_its_interval_beside_parts_of_a_price():
    both = interval(4.0)
    both["payloads"].append({"type": "PRICE", "values": [1, 2]})
    assert [(w.type, *hours(w)) for w in told(event(both))] == [
        ("IMPORT_CAPACITY_LIMIT", 0, 1),
        ("PRICE", 0, 0.5),
        ("PRICE", 0.5, 1),
    ]


def test_a_tariff_that_repeats_for_ever_is_laid_out_for_a_while_and_not_refused():
    day = [interval(n / 100, n, payload_type="PRICE") for n in range(24)]
    found = told(event(*day, duration="P9999Y"), 30 * 24 * HOUR_S)
    assert hours(found[0]) == (30 * 24, 30 * 24 + 1)
    assert len(found) == 1000
    with pytest.raises(OpenAdrError, match="over 1000 windows ahead"):
        told(event(*day, interval(1.0, 24), duration="P9999Y"))


def test_a_loop_of_instants_ends():
    tiny = [interval(n, n, payload_type="PRICE", duration="PT0.0001S") for n in range(2)]
    assert len(told(event(*tiny, duration="P9999Y"), HOUR_S)) <= 1000


# -- units of the programme ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "programs", "power_w"),
    [
        ([DESCRIPTOR], {}, 4.2e6),
        ([], {"IMPORT_CAPACITY_LIMIT": "KW"}, 4.2e6),
        ([{"payloadType": "IMPORT_CAPACITY_LIMIT"}], {"IMPORT_CAPACITY_LIMIT": "KW"}, 4.2e6),
        ([DESCRIPTOR], {"IMPORT_CAPACITY_LIMIT": "MW"}, 4.2e6),
        ([], {"IMPORT_CAPACITY_LIMIT": "MW"}, None),
        ([DESCRIPTOR | {"units": "MW"}], {"IMPORT_CAPACITY_LIMIT": "KW"}, None),
        ([], {"IMPORT_CAPACITY_LIMIT": None}, None),
    ],
)
def test_a_unit_is_the_events_own_or_else_the_programmes(own, programs, power_w):
    said = event(payloadDescriptors=own)
    if power_w is None:
        with pytest.raises(OpenAdrError, match="KW"):
            told(said, program_units=programs)
    else:
        assert told(said, program_units=programs)[0].value == power_w


# -- who wins --------------------------------------------------------------------------------------------------------------


def window(payload_type="IMPORT_CAPACITY_LIMIT", value=1.0, priority=None, modified_s=0.0, event_id="a"):
    priority = PRIORITY_LOWEST if priority is None else priority
    return openadr.Window(event_id, payload_type, value, 0.0, 1.0, priority, 0, modified_s)


@pytest.mark.parametrize(
    ("case", "winner", "loser"),
    [
        ("0 is the highest priority", window(priority=0, value=9.0), window(priority=1)),
        ("any priority beats none", window(priority=9, value=9.0), window()),
        ("among equals the lower power", window(value=1.0), window(value=2.0, modified_s=9.0)),
        ("a deeper change too", window("DISPATCH_SETPOINT_RELATIVE", -2.0), window("DISPATCH_SETPOINT_RELATIVE", -1.0)),
        ("what is no power: the newer version", window("SIMPLE", 0.0, modified_s=2.0), window("SIMPLE", 3.0, modified_s=1.0)),
        ("a price too", window("PRICE", 9.0, modified_s=2.0), window("PRICE", 1.0, modified_s=1.0)),
        ("equal powers: the newer version", window(modified_s=2.0), window(modified_s=1.0)),
    ],
)  # fmt: skip
def test_one_window_of_each_type_counts(case, winner, loser):
    assert winners([winner, loser]) == winners([loser, winner]) == {winner.type: winner}, case


def test_types_do_not_compete():
    both = [window(priority=0), window("PRICE", 0.2)]
    assert list(winners(both).values()) == both


# -- chance ------------------------------------------------------------------------------------------------------------------

PRICES = [interval(n, n, payload_type="PRICE") for n in range(3)]
RANDOM = {"start": START, "duration": "PT1H", "randomizeStart": "PT30M"}


@pytest.mark.parametrize(
    ("case", "said", "draws", "starts_h"),
    [
        ("all that follow move along", event(*PRICES, intervalPeriod=RANDOM), [1.0], [0.5, 1.5, 2.5]),
        ("earlier as well as later", event(*PRICES, intervalPeriod=RANDOM), [-0.5], [-0.25, 0.75, 1.75]),
        ("a negative bound is the same bound", event(*PRICES, intervalPeriod=RANDOM | {"randomizeStart": "-PT30M"}), [1.0], [0.5, 1.5, 2.5]),
        ("an absolute start moves too", event(PRICES[0], interval(1, 1, "PRICE", start="2026-11-21T20:00:00Z"), intervalPeriod=RANDOM), [1.0], [0.5, 2.5]),
        (
            "until one says its own",
            event(PRICES[0], interval(1, 1, "PRICE", start="2026-11-21T20:00:00Z", randomizeStart="PT6M"), PRICES[2], intervalPeriod=RANDOM),
            [1.0, -1.0],
            [0.5, 1.9, 2.9],
        ),
        ("one that follows at once has none of its own", event(PRICES[0], interval(1, 1, "PRICE", randomizeStart="PT6M"), intervalPeriod=RANDOM), [1.0], [0.5, 1.5]),
        ("the first interval's own", event(interval(0, 0, "PRICE", randomizeStart="PT6M"), PRICES[1]), [1.0], [0.1, 1.1]),
        ("a first interval that says nothing later ones do", event(PRICES[0], interval(1, 1, "PRICE", start="2026-11-21T20:00:00Z", randomizeStart="PT6M")), [1.0], [0, 2.1]),
        ("no further than a day", event(PRICES[0], intervalPeriod=RANDOM | {"randomizeStart": "P9999Y"}), [1.0], [24]),
        ("not at all", event(*PRICES), [], [0, 1, 2]),
        ("a loop moves as a whole", event(*PRICES[:2], intervalPeriod=RANDOM, duration="PT4H"), [1.0], [0.5, 1.5, 2.5, 3.5]),
    ],
)  # fmt: skip
def test_one_draw_moves_an_event(case, said, draws, starts_h):
    found = parse(json.dumps(said)).event
    assert timing.draws_needed(found) == len(draws), case
    windows = resolve(found, T0_UTC_S - 24 * HOUR_S, draws=draws)
    assert [hours(window)[0] for window in windows] == pytest.approx(starts_h), case
    ends_h = [hours(window)[1] for window in windows]
    assert ends_h == pytest.approx([start + 1 for start in starts_h]), case


def test_a_draw_moves_every_type_of_its_interval_and_without_one_none_moves():
    both = interval(4.0)
    both["payloads"] += [{"type": "PRICE", "values": [1]}, {"type": "ALERT_BLACK_START", "values": ["!"]}]
    said = event(both, intervalPeriod=RANDOM)
    assert [hours(w)[0] for w in told(said)] == [0, 0, 0]
    assert [hours(w)[0] for w in told(said, draws=[1.0])] == [0.5, 0.5, 0.5]


def test_what_the_caller_does_not_act_on_is_neither_judged_nor_resolved():
    both = interval(4.0)
    both["payloads"] += [{"type": "PRICE", "values": ["?", None]}]
    assert [w.type for w in told(event(both), acts_on={"IMPORT_CAPACITY_LIMIT"})] == ["IMPORT_CAPACITY_LIMIT"]
    with pytest.raises(OpenAdrError, match="not a number"):
        told(event(both))


def test_more_packed_values_than_there_may_be_windows_are_refused_before_they_are_read():
    said = event(interval(payload_type="PRICE") | {"payloads": [{"type": "PRICE", "values": ["?"] * 1001}]})
    with pytest.raises(OpenAdrError, match="1001 values; send 1000 at most"):
        told(said)
    many = [interval(payload_type="PRICE") | {"payloads": [{"type": "PRICE", "values": ["?"] * 1000}]}] * 11
    with pytest.raises(OpenAdrError, match="11000 values; send 10000 at most"):
        told(event(*many))


def test_a_window_that_chance_moved_past_now_is_still_to_come():
    said = event(PRICES[0], intervalPeriod=RANDOM)
    assert [hours(w) for w in told(said, 1.25 * HOUR_S, draws=[1.0])] == [(0.5, 1.5)]
    looped = event(*PRICES[:2], intervalPeriod=RANDOM, duration="PT4H")
    assert hours(told(looped, 2.25 * HOUR_S, draws=[1.0])[0]) == (1.5, 2.5)
    assert told(said, 1.25 * HOUR_S) == ()


def test_what_never_ends_does_not_end_earlier_for_being_moved():
    said = event(PRICES[0], intervalPeriod=RANDOM | {"duration": "P9999Y"})
    assert told(said, draws=[-1.0])[0].ends_utc_s == openadr.FOREVER_UTC_S
