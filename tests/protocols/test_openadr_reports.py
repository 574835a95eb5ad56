"""Reports: when they are due, what they are about, and that nothing is made up."""

import json
import math
import re
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.openadr import MISSING, EventBook, OpenAdrError, Reading, Reports, Rules
from protocols.openadr import reports as reports_module
from protocols.openadr import request as request_module
from protocols.openadr.reports import duration_text, time_text
from tests.protocols.openadr_said import HOUR_S, START, T0_UTC_S, interval, step


class Meter:
    """Draws 2 kW in the first hour, 3 kW in the second and so on; knows nothing of what it is told to forget."""

    def __init__(self, forgets=(), quality="OK"):
        self.forgets, self.quality, self.asked = forgets, quality, []

    def _value(self, starts_utc_s, ends_utc_s, factor=1.0):
        self.asked.append((starts_utc_s, ends_utc_s))
        hour = (starts_utc_s - T0_UTC_S) / HOUR_S
        return MISSING if hour in self.forgets else Reading((2.0 + hour) * 1000.0 * factor, self.quality)

    def mean(self, starts_utc_s, ends_utc_s):
        return self._value(starts_utc_s, ends_utc_s)

    def peak(self, starts_utc_s, ends_utc_s):
        return self._value(starts_utc_s, ends_utc_s, 10.0)

    def energy(self, starts_utc_s, ends_utc_s):
        return self._value(starts_utc_s, ends_utc_s, (ends_utc_s - starts_utc_s) / HOUR_S)

    def baseline(self, event_starts_utc_s, starts_utc_s, ends_utc_s):
        return Reading((event_starts_utc_s - T0_UTC_S) / HOUR_S * 1000.0 + 500.0, "OK")

    def shed_available(self, starts_utc_s, ends_utc_s):
        return Reading(700.0, "OK")

    def rise_available(self, starts_utc_s, ends_utc_s):
        return Reading(300.0, "OK")

    def operating_state(self, starts_utc_s, ends_utc_s):
        return Reading("RUNNING_CURTAILED", "OK")


def hours(count, **fields):
    return [interval(1.0 + n, 10 + n, "PRICE") | fields for n in range(count)]


def asked_of(book, descriptor, *, now_utc_s=T0_UTC_S - 60, minute=0, **fields):
    """Four hours of prices from 18:00 on, heard a minute before, unless `fields` say otherwise."""
    said = descriptor if isinstance(descriptor, list) else [{"payloadType": "DEMAND"} | descriptor]
    return book.apply(
        step(minute=minute, **{"intervals": hours(4), "reportDescriptors": said} | fields), now_utc_s
    )


def parsed(report):
    (resource,) = report["resources"]
    return [
        (
            one["id"],
            one["intervalPeriod"]["start"][11:16],
            one["intervalPeriod"]["duration"],
            {payload["type"]: payload["values"][0] for payload in one["payloads"]},
        )
        for one in resource["intervals"]
    ]


def diary(descriptor, *, until_h=12.0, step_h=0.25, **fields):
    """(hour of sending, ids) of all reports, asked every quarter of an hour from one minute before 18:00."""
    book = EventBook()
    asked_of(book, descriptor, **fields)
    reports = Reports(book)
    said = [(-1 / 60, one) for one in reports.due(T0_UTC_S - 60, Meter())]
    for number in range(int(until_h / step_h) + 1):
        said += [(number * step_h, one) for one in reports.due(T0_UTC_S + number * step_h * HOUR_S, Meter())]
    return [(hour if hour >= 0 else "at once", [line[0] for line in parsed(one)]) for hour, one in said]


LOOP = {"duration": "P9999Y", "intervals": hours(3)}
IMPLIED = {"intervals": None}
FORECAST = {"historical": False}


@pytest.mark.parametrize(
    ("case", "descriptor", "fields", "wanted"),
    [
        ("all of them, at the end", {}, {}, [(4, [10, 11, 12, 13])]),
        ("all of them, in advance", FORECAST, {}, [("at once", [10, 11, 12, 13])]),
        ("guide: a subset", {"startInterval": 1, "numIntervals": 3}, {"intervals": hours(5)}, [(4, [11, 12, 13])]),
        ("guide: the last ones", {"startInterval": 3}, {"intervals": hours(5)}, [(5, [13, 14])]),
        ("the last two, counted from the end", {"numIntervals": 2}, {}, [(4, [12, 13])]),
        ("a subset in advance", FORECAST | {"startInterval": 2, "numIntervals": 2}, {}, [(2, [12, 13])]),
        ("guide: periodic", {"startInterval": 1, "numIntervals": 2, "frequency": 2, "repeat": 3}, {"intervals": hours(6)},
         [(2, [10, 11]), (4, [12, 13]), (6, [14, 15])]),
        ("guide: one for each set of 2", {"frequency": 2, "repeat": 2}, {}, [(2, [10, 11]), (4, [12, 13])]),
        ("one of them only", {"frequency": 2}, {}, [(2, [10, 11])]),
        ("what is left at the end", {"frequency": 3, "repeat": -1}, {}, [(3, [10, 11, 12]), (4, [13])]),
        ("guide: rolling", FORECAST | {"startInterval": 0, "numIntervals": 3, "frequency": 1, "repeat": 3}, {"intervals": hours(5)},
         [(0, [10, 11, 12]), (1, [11, 12, 13]), (2, [12, 13, 14])]),
        ("rolling, until there is no more", FORECAST | {"numIntervals": 3, "frequency": 1, "repeat": -1}, {},
         [("at once", [10, 11, 12]), (1, [11, 12, 13]), (2, [12, 13]), (3, [13])]),
        ("looking back two hours, every hour", {"startInterval": 0, "numIntervals": 2, "frequency": 1, "repeat": -1}, {"intervals": hours(3)},
         [(1, [10]), (2, [10, 11]), (3, [11, 12])]),
        ("guide: a loop", {"repeat": 3}, LOOP, [(3, [10, 11, 12]), (6, [10, 11, 12]), (9, [10, 11, 12])]),
        ("a loop that is cut", {"repeat": -1}, LOOP | {"duration": "PT4H"}, [(3, [10, 11, 12]), (4, [10])]),
        ("an event that is cut", {}, {"duration": "PT2H"}, [(2, [10, 11])]),
        ("in advance of each turn", FORECAST | {"repeat": -1}, LOOP | {"duration": "PT6H"},
         [("at once", [10, 11, 12]), (3, [10, 11, 12])]),
        ("whenever we see fit", {"frequency": 0, "repeat": -1}, {"intervals": hours(2)}, [(1, [10]), (2, [11])]),
        ("one of our choice", {"frequency": 0}, {"intervals": hours(2)}, [(1, [10])]),
        ("intervals of our choice", {"frequency": 0, "repeat": -1, "reportIntervals": "OPEN_INTERVALS"}, {"intervals": hours(1)},
         [(0.25, [0]), (0.5, [1]), (0.75, [2]), (1, [3])]),
        ("an interval for ever", {"frequency": 0, "repeat": 2}, {"intervals": hours(1, intervalPeriod={"duration": "P9999Y"})},
         [(0.25, [0]), (0.5, [1])]),
        ("guide 8.7: implied intervals, rolling", FORECAST | {"startInterval": 0, "numIntervals": 3, "frequency": 1, "repeat": -1}, IMPLIED | {"duration": "PT3H"},
         [(0, [0, 1, 2]), (1, [1, 2]), (2, [2])]),
        ("implied intervals", {"repeat": 2}, IMPLIED, [(1, [0]), (2, [1])]),
        ("implied intervals, by twos", {"numIntervals": 2, "repeat": 2}, IMPLIED, [(2, [0, 1]), (4, [2, 3])]),
        ("guide 8.6: none at all, answered at our leisure", {"frequency": 0, "reportIntervals": "OPEN_INTERVALS"},
         IMPLIED | {"intervalPeriod": {"start": "0001-01-01", "duration": "PT0H"}}, [(0.25, [0])]),
        ("no period", {"repeat": 2}, IMPLIED | {"intervalPeriod": None}, [(0.25, [0]), (0.5, [1])]),
        ("sub-intervals carry the id of theirs", {"reportIntervals": "SUB_INTERVALS"}, {"intervals": hours(2)},
         [(2, [10, 10, 10, 10, 11, 11, 11, 11])]),
        ("open ones are ours", {"reportIntervals": "OPEN_INTERVALS"}, {"intervals": hours(2)}, [(2, list(range(8)))]),
        ("empty payloads", {}, {"intervals": hours(2, payloads=[])}, [(2, [10, 11])]),
        ("more than there are", {"numIntervals": 9}, LOOP, [(3, [10, 11, 12])]),
        ("cut within an interval", {}, {"duration": "PT1H30M"}, [(1.5, [10, 11])]),
        ("what begins behind the calendar", FORECAST, {"intervalPeriod": {"start": "9999-12-31T23:00:00Z", "duration": "PT1H"}},
         [("at once", [10])]),
        ("what ends behind the calendar", FORECAST | {"reportIntervals": "SUB_INTERVALS"}, {"intervalPeriod": {"start": START, "duration": "PT500000000000S"}},
         [("at once", [10])]),
        ("sent in no order", {"frequency": 1, "repeat": -1}, {"intervals": [interval(1.0, 1, "PRICE", start="2026-11-21T19:00:00Z"), interval(1.0, 0, "PRICE", start=START)]},
         [(1, [0]), (2, [1])]),
        ("one within the other, as a whole", {"reportIntervals": "OPEN_INTERVALS"},
         {"intervals": [interval(1.0, 0, "PRICE"), interval(1.0, 1, "PRICE", start="2026-11-21T18:15:00Z", duration="PT15M")]},
         [(1, [0, 1, 2, 3])]),
        ("called off, with a question", {"frequency": 0}, {"intervalPeriod": {"start": "0001-01-01", "duration": "PT0S"}}, []),
        ("called off", {}, {"intervalPeriod": {"start": "0001-01-01", "duration": "PT0S"}}, []),
        ("nothing asked", [], {}, []),
    ],
)  # fmt: skip
def test_reports_come_when_the_guide_says_and_are_about_what_it_says(case, descriptor, fields, wanted):
    assert diary(descriptor, **fields) == wanted, case


def one_report(descriptor, meter=None, *, at_h=4.0, resource_name="block-01", **fields):
    book = EventBook()
    asked_of(book, descriptor, **fields)
    (report,) = Reports(book, resource_name=resource_name).due(T0_UTC_S + at_h * HOUR_S, meter or Meter())
    return report


def test_a_report_says_all_that_the_standard_wants_but_its_senders_name():
    report = one_report({"readingType": "MEAN", "units": "KW"}, intervals=hours(2), at_h=2)
    assert report == {
        "eventID": "ev-1",
        "programID": "44",
        "payloadDescriptors": [
            {"objectType": "REPORT_PAYLOAD_DESCRIPTOR", "payloadType": "DEMAND", "readingType": "MEAN", "units": "KW"}
        ],
        "resources": [
            {
                "resourceName": "block-01",
                "intervals": [
                    {
                        "id": 10 + n,
                        "intervalPeriod": {"start": f"2026-11-21T{18 + n}:00:00.000Z", "duration": "PT3600S"},
                        "payloads": [
                            {"type": "DEMAND", "values": [2.0 + n]},
                            {"type": "DATA_QUALITY", "values": ["OK"]},
                        ],
                    }
                    for n in range(2)
                ],
            }
        ],
    }  # fmt: skip


def test_an_aggregate_is_called_so():
    assert one_report({"aggregate": True})["resources"][0]["resourceName"] == "AGGREGATED_REPORT"


@pytest.mark.parametrize(
    ("fields", "value", "unit"),
    [
        ({"payloadType": "DEMAND"}, 2.0, "KW"),
        ({"payloadType": "DEMAND", "readingType": "PEAK"}, 20.0, "KW"),
        ({"payloadType": "DEMAND", "readingType": "DIRECT_READ", "units": "KW"}, 2.0, "KW"),
        ({"payloadType": "USAGE"}, 4.0, "KWH"),
        ({"payloadType": "USAGE", "units": "KWH", "readingType": "DIRECT_READ"}, 4.0, "KWH"),
        ({"payloadType": "BASELINE"}, 0.5, "KW"),
        ({"payloadType": "BASELINE", "units": "KWH"}, 1.0, "KWH"),
        ({"payloadType": "LOAD_SHED_DELTA_AVAILABLE"}, 0.7, "KW"),
        ({"payloadType": "LOAD_SHED_DELTA_AVAILABLE", "units": "KWH"}, 1.4, "KWH"),
        ({"payloadType": "UP_REGULATION_AVAILABLE"}, 0.7, "KW"),
        ({"payloadType": "DOWN_REGULATION_AVAILABLE", "units": "KW"}, 0.3, "KW"),
        ({"payloadType": "OPERATING_STATE"}, "RUNNING_CURTAILED", None),
        ({"payloadType": "DATA_QUALITY"}, "OK", None),
    ],
)
def test_every_type_is_told_in_its_unit(fields, value, unit):
    period = {"start": START, "duration": "PT2H"}
    report = one_report(fields, intervals=hours(1), intervalPeriod=period, at_h=2)
    ((_, _, duration, payloads),) = parsed(report)
    assert duration == "PT7200S"
    assert payloads == {fields["payloadType"]: value, "DATA_QUALITY": "OK"}
    assert report["payloadDescriptors"][0].get("units") == unit


def test_what_nobody_measured_is_missing_and_never_zero():
    lines = parsed(one_report({}, Meter(forgets=(1.0,))))
    assert [payloads for *_, payloads in lines] == [
        {"DEMAND": 2.0, "DATA_QUALITY": "OK"},
        {"DATA_QUALITY": "MISSING"},
        {"DEMAND": 4.0, "DATA_QUALITY": "OK"},
        {"DEMAND": 5.0, "DATA_QUALITY": "OK"},
    ]
    only_quality = parsed(one_report({"payloadType": "DATA_QUALITY"}, Meter(forgets=(1.0,))))
    assert [payloads["DATA_QUALITY"] for *_, payloads in only_quality] == ["OK", "MISSING", "OK", "OK"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_bad_and_left_out(value):
    class Broken(Meter):
        def mean(self, starts_utc_s, ends_utc_s):
            return Reading(value, "OK")

    ((*_, payloads), *_) = parsed(one_report({}, Broken()))
    assert payloads == {"DATA_QUALITY": "BAD"}


def test_an_estimate_says_so():
    ((*_, payloads), *_) = parsed(one_report({}, Meter(quality="ESTIMATED")))
    assert payloads == {"DEMAND": 2.0, "DATA_QUALITY": "ESTIMATED"}


def test_sub_intervals_are_measured_each_on_its_own():
    meter = Meter()
    one_report({"reportIntervals": "SUB_INTERVALS"}, meter, intervals=hours(1), at_h=1)
    assert meter.asked == [(T0_UTC_S + n * 900, T0_UTC_S + (n + 1) * 900) for n in range(4)]


# -- what is not served -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"payloadType": "STORAGE_CHARGE_LEVEL"}, "'STORAGE_CHARGE_LEVEL': not one of DEMAND, USAGE"),
        ({"units": "MW"}, "'DEMAND': units 'MW'"),
        ({"units": "KWH"}, "'DEMAND': units 'KWH'"),
        ({"payloadType": "USAGE", "units": "KW"}, "'USAGE': units 'KW'"),
        ({"readingType": "ESTIMATED"}, "readingType 'ESTIMATED'"),
        ({"payloadType": "USAGE", "readingType": "PEAK"}, "readingType 'PEAK'"),
        ({"payloadType": "OPERATING_STATE", "historical": False}, "not known in advance"),
        ({"readingType": "FORECAST"}, "historical True and FORECAST contradict"),
        ({"readingType": "DIRECT_READ", "historical": False}, "historical False and DIRECT_READ contradict"),
        ({"reportIntervals": "SOME"}, "reportIntervals 'SOME'"),
        ({"targets": ["block-02"]}, "its targets name others"),
        ({"repeat": 0}, "asks for nothing"),
        ({"numIntervals": 0}, "asks for nothing"),
        ({"numIntervals": 301}, "more than 300 intervals in one report; ask for fewer"),
        ({"frequency": 301, "repeat": -1}, "more than 300 intervals in one report"),
        ({"startInterval": 7}, "it never falls due"),
        ({"startInterval": 7, "historical": False}, "it never falls due"),
    ],
)
def test_what_cannot_be_told_is_said_in_one_sentence_and_the_limit_counts_all_the_same(fields, says):
    book = EventBook(Rules(names={"block-01"}))
    verdict = asked_of(book, [{"payloadType": "DEMAND"} | fields, {"payloadType": "USAGE"}])
    assert (verdict.accepted, verdict.reason) == (True, "accepted")
    assert verdict.unserved.startswith("reports not served: ")
    assert says in verdict.unserved
    assert len(verdict.unserved) < 300
    assert len(book.windows(T0_UTC_S)) == 4
    (report,) = Reports(book).due(T0_UTC_S + 4 * HOUR_S, Meter())
    assert report["payloadDescriptors"][0]["payloadType"] == "USAGE"


def test_an_interval_without_end_never_comes_to_its_report():
    verdict = asked_of(
        EventBook(), {}, intervals=hours(1), intervalPeriod={"start": START, "duration": "P9999Y"}
    )
    assert "its interval has no end" in verdict.unserved


@pytest.mark.parametrize("target", ["block-01", "RESOURCE_NAME:block-01"])
def test_a_target_that_names_us_in_either_generation_is_served(target):
    book = EventBook(Rules(names={"block-01"}))
    assert asked_of(book, {"targets": ["other", target]}).unserved == ""


def test_without_names_every_target_means_us():
    assert asked_of(EventBook(), {"targets": ["other"]}).unserved == ""


def test_ever_so_many_descriptors_are_served_up_to_a_bound_and_the_sentence_stays_short():
    many = [{"payloadType": "X" * 1000}] * 50 + [{"payloadType": "DEMAND"}] * 50
    book = EventBook()
    verdict = asked_of(book, many)
    assert len(book.requests["ev-1"].descriptors) == request_module.DESCRIPTORS_MAX
    assert len(verdict.unserved) < 700
    assert verdict.unserved.endswith("and 89 more")


def test_of_thousands_of_descriptors_the_first_are_looked_at_and_all_are_counted():
    book = EventBook()
    verdict = asked_of(book, [{"payloadType": "DEMAND"}] * 3000)
    assert len(book.requests["ev-1"].descriptors) == request_module.DESCRIPTORS_MAX
    assert verdict.unserved.endswith(f"and {3000 - request_module.DESCRIPTORS_MAX - 3} more")


def test_a_report_on_more_intervals_than_a_beat_can_write_is_asked_for_in_parts():
    prices = [interval(0.1, n, "PRICE") for n in range(301)]
    assert "more than 300 intervals in one report" in asked_of(EventBook(), {}, intervals=prices).unserved
    assert asked_of(EventBook(), {"frequency": 300, "repeat": -1}, intervals=prices).unserved == ""


def test_an_event_of_more_intervals_than_a_report_may_hold_is_not_reported_on():
    prices = [interval(0.1, n, "PRICE") for n in range(1001)]
    verdict = asked_of(EventBook(), {}, intervals=prices)
    assert verdict.accepted
    assert "no reports on more than 1000 intervals" in verdict.unserved


def test_an_event_that_is_over_when_it_is_heard_is_not_reported_on():
    book = EventBook(Rules(acts_on=()))
    assert asked_of(book, {}, now_utc_s=T0_UTC_S + 4 * HOUR_S).accepted
    assert Reports(book).due(T0_UTC_S + 9 * HOUR_S, Meter()) == ()


# -- once and no more -------------------------------------------------------------------------------------------------

HOURLY = {"frequency": 1, "repeat": -1}


def ids_due(reports, hour, meter=None):
    return [
        [line[0] for line in parsed(one)] for one in reports.due(T0_UTC_S + hour * HOUR_S, meter or Meter())
    ]


def restarted(book, reports):
    book = EventBook.from_dict(json.loads(json.dumps(book.to_dict(), allow_nan=False)))
    return book, Reports.from_dict(json.loads(json.dumps(reports.to_dict(), allow_nan=False)), book)


def test_what_was_sent_is_not_sent_again_after_a_restart():
    book = EventBook()
    asked_of(book, HOURLY | {"repeat": 3})
    reports = Reports(book)
    assert ids_due(reports, 1) == [[10]]
    assert ids_due(reports, 1) == []
    book, reports = restarted(book, reports)
    assert ids_due(reports, 1) == []
    assert ids_due(reports, 2) == [[11]]
    book, reports = restarted(book, reports)
    assert ids_due(reports, 3) == [[12]]
    assert ids_due(reports, 4) == [], "three were asked for"


def test_of_late_reports_the_newest_alone_is_sent():
    book = EventBook()
    asked_of(book, HOURLY)
    book, reports = restarted(book, Reports(book))
    assert ids_due(reports, 3.5) == [[12]]
    assert ids_due(reports, 4) == [[13]]


def test_an_event_heard_in_its_middle_is_reported_from_there():
    book = EventBook()
    asked_of(book, HOURLY, now_utc_s=T0_UTC_S + 2.5 * HOUR_S)
    assert ids_due(Reports(book), 2.5) == [[11]]


def test_a_newer_version_does_not_ask_again_for_what_was_told():
    book = EventBook()
    asked_of(book, HOURLY)
    reports = Reports(book)
    assert ids_due(reports, 2) == [[11]]
    asked_of(book, HOURLY, minute=1, now_utc_s=T0_UTC_S + 2 * HOUR_S)
    assert ids_due(reports, 2) == []
    book, reports = restarted(book, reports)
    assert ids_due(reports, 3) == [[12]]


def test_a_newer_version_of_a_forecast_is_told_at_once():
    book = EventBook()
    asked_of(book, FORECAST)
    reports = Reports(book)
    assert ids_due(reports, -1 / 60) == [[10, 11, 12, 13]]
    asked_of(book, FORECAST, minute=1, intervals=hours(2), now_utc_s=T0_UTC_S - 30)
    assert ids_due(reports, -1 / 240) == [[10, 11]]


@pytest.mark.parametrize("delete", [step("DELETE", 5), step("DELETE", modificationDateTime=...)])
def test_a_deleted_event_is_not_reported_on(delete):
    book = EventBook()
    asked_of(book, HOURLY)
    reports = Reports(book)
    assert ids_due(reports, 1) == [[10]]
    book.apply(delete, T0_UTC_S + HOUR_S)
    assert ids_due(reports, 2) == []
    assert reports.to_dict()["events"] == {}


def test_a_clock_that_was_ahead_for_a_while_costs_no_report_but_those_of_that_while():
    book = EventBook()
    asked_of(book, HOURLY | {"repeat": -1}, **LOOP)
    reports = Reports(book)
    assert ids_due(reports, 1) == [[10]]
    assert len(ids_due(reports, 1 + 3 * 365 * 24)) == 1
    book, reports = restarted(book, reports)
    assert ids_due(reports, 1.5) == []
    assert ids_due(reports, 2) == [[11]]


def test_a_clock_that_slips_back_by_seconds_repeats_nothing():
    book = EventBook()
    asked_of(book, HOURLY)
    reports = Reports(book)
    assert ids_due(reports, 1) == [[10]]
    assert ids_due(reports, 1 - 5 / 3600) == []
    assert ids_due(reports, 1 + 5 / 3600) == []


def test_reports_that_are_due_together_come_a_few_at_a_time_and_all_of_them():
    book = EventBook()
    for number in range(30):
        fields = {"reportDescriptors": [{"payloadType": "DEMAND"}, {"payloadType": "USAGE"}]}
        book.apply(step(event_id=f"e{number}", **fields), T0_UTC_S)
    reports = Reports(book)
    said = []
    counts = []
    for _ in range(5):
        due = reports.due(T0_UTC_S + HOUR_S, Meter())
        counts.append(len(due))
        said += [(one["eventID"], one["payloadDescriptors"][0]["payloadType"]) for one in due]
    assert counts == [16, 16, 16, 12, 0]
    assert len(set(said)) == 60


def test_long_reports_that_are_due_together_come_one_at_a_time(monkeypatch):
    """A beat has no time to write hundreds of intervals."""
    monkeypatch.setattr(reports_module, "INTERVALS_AT_ONCE_MAX", 3)
    book = EventBook()
    asked_of(book, [{"payloadType": "DEMAND"}, {"payloadType": "USAGE"}])
    reports = Reports(book)
    assert [len(ids_due(reports, 4)) for _ in range(3)] == [1, 1, 0]


@pytest.mark.parametrize("layout", ["SUB_INTERVALS", "OPEN_INTERVALS"])
def test_a_report_has_no_more_intervals_than_its_bound_whatever_it_is_cut_into(layout):
    period = {"start": START, "duration": "P20D"}
    report = one_report(FORECAST | {"reportIntervals": layout}, at_h=0, intervalPeriod=period)
    assert len(parsed(report)) == request_module.INTERVALS_MAX


@pytest.mark.parametrize(
    "said",
    [None, [], {}, {"v": 2, "events": {}}, {"v": 1, "events": {"a": 1}},
     {"v": 1, "events": {"a": {"modified_utc_s": 0.0, "told": [{"next": -1, "due_utc_s": 0.0}]}}}],
)  # fmt: skip
def test_progress_that_was_not_kept_by_us_is_refused_with_the_remedy(said):
    with pytest.raises(OpenAdrError, match=r"kept reports: .* move the file away"):
        Reports.from_dict(said, EventBook())


def test_progress_of_an_event_that_asks_otherwise_now_starts_anew():
    book = EventBook()
    asked_of(book, HOURLY)
    reports = Reports.from_dict({"v": 1, "events": {"ev-1": {"modified_utc_s": 1.0, "told": []}}}, book)
    assert ids_due(reports, 1) == [[10]]


# -- every beat -------------------------------------------------------------------------------------------------------


def test_asking_costs_nothing_until_a_report_is_due_and_little_in_a_loop_that_began_years_ago():
    """Bounds are a hundred times what this takes: walking over the years takes minutes."""
    book = EventBook()
    asked = [{"payloadType": "DEMAND", "repeat": -1}]
    period = {"start": "2006-11-21T18:00:00Z", "duration": "PT1S"}
    for number in range(100):
        fields = {"intervals": hours(1), "intervalPeriod": period, "duration": "P9999Y"}
        book.apply(step(event_id=f"e{number}", reportDescriptors=asked, **fields), T0_UTC_S)
    reports = Reports(book)
    began_s = time.process_time()
    for _ in range(10):
        reports.due(T0_UTC_S, Meter())
    assert time.process_time() - began_s < 5.0
    began_s = time.process_time()
    for _ in range(2000):
        reports.due(T0_UTC_S + 0.5, Meter())
    assert time.process_time() - began_s < 1.0


# -- whatever comes ---------------------------------------------------------------------------------------------------

COUNTS = st.sampled_from([-1, 0, 1, 2, 3, 1000, 2**31 - 1])
DESCRIPTORS = st.lists(
    st.fixed_dictionaries(
        {"payloadType": st.sampled_from(["DEMAND", "USAGE", "DATA_QUALITY", "BASELINE", "X-OWN"])},
        optional={
            "startInterval": COUNTS, "numIntervals": COUNTS, "frequency": COUNTS, "repeat": COUNTS,
            "historical": st.booleans(), "aggregate": st.booleans(),
            "reportIntervals": st.sampled_from(["INTERVALS", "SUB_INTERVALS", "OPEN_INTERVALS"]),
        },
    ),
    min_size=1, max_size=3,
)  # fmt: skip
DURATIONS = st.sampled_from([None, "PT0S", "PT1S", "PT1H", "P1M", "P8000Y", "P9999Y"])
STARTS = st.sampled_from(
    ["0001-01-01", "0001-01-01T00:00:01Z", START, "2026-11-22T00:00:00Z", "9999-12-31T23:00:00Z"]
)
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ISO_8601 = re.compile(
    r"^(-?)P(?=\d|T\d)(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)([DW]))?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?$"
)


@given(
    descriptors=DESCRIPTORS,
    intervals=st.lists(st.tuples(STARTS, DURATIONS), max_size=4),
    start=STARTS,
    duration=DURATIONS,
    whole=DURATIONS,
    moments_h=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 2.5, 24.0, 1e5, 1e8]), min_size=1, max_size=4),
)
def test_whatever_is_asked_the_reports_are_well_formed_bounded_and_never_twice_the_same(
    descriptors, intervals, start, duration, whole, moments_h
):
    book = EventBook()
    said = [
        {"id": n, "payloads": [], "intervalPeriod": {"start": s, "duration": d}}
        for n, (s, d) in enumerate(intervals)
    ]
    fields = {
        "intervals": said or None,
        "intervalPeriod": {"start": start, "duration": duration},
        "duration": whole,
    }
    verdict = book.apply(step(**fields, reportDescriptors=descriptors), T0_UTC_S)
    if not verdict.accepted:
        return
    book, reports = restarted(book, Reports(book))
    said = []
    for moment_h in sorted(moments_h):
        for _ in range(3):
            due = reports.due(T0_UTC_S + moment_h * HOUR_S, Meter())
            said += [json.dumps(one) for one in due]
            for one in due:
                check(one)
        book, reports = restarted(book, reports)
    if len({d["payloadType"] for d in descriptors}) == len(descriptors):
        assert len(set(said)) == len(said)


def check(report):
    assert set(report) == {"eventID", "programID", "resources", "payloadDescriptors"}
    (resource,) = report["resources"]
    assert 1 <= len(resource["intervals"]) <= request_module.INTERVALS_MAX
    for one in resource["intervals"]:
        assert 0 <= one["id"] < 2**31
        assert RFC_3339.fullmatch(one["intervalPeriod"]["start"])
        assert ISO_8601.fullmatch(one["intervalPeriod"]["duration"])
        assert one["payloads"]
        for payload in one["payloads"]:
            assert len(payload["values"]) == 1
    msgspec.json.encode(report)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("starts_utc_s", "length_s", "said"),
    [
        (T0_UTC_S, 900.0, ("2026-11-21T18:00:00.000Z", "PT900S")),
        (T0_UTC_S + 0.25, 0.5, ("2026-11-21T18:00:00.250Z", "PT0.5S")),
        (T0_UTC_S, 0.0, ("2026-11-21T18:00:00.000Z", "PT0S")),
        (T0_UTC_S, 1e12, ("2026-11-21T18:00:00.000Z", "P9999Y")),
        (T0_UTC_S, 1e10, ("2026-11-21T18:00:00.000Z", "PT10000000000S")),
    ],
)
def test_times_are_written_as_the_standard_wants_them(starts_utc_s, length_s, said):
    assert (time_text(starts_utc_s), duration_text(starts_utc_s, starts_utc_s + length_s)) == said
