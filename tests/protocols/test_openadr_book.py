"""The book of events: what the site said last, in whatever order it came, and after a restart too."""

import json
import math
import time

import pytest

from protocols.openadr import EventBook, OpenAdrError, Rules, Verdict, parse
from protocols.openadr import book as book_module
from tests.protocols.openadr_said import HOUR_S, START, T0_UTC_S, interval, step

SITE = Rules(acts_on={"IMPORT_CAPACITY_LIMIT", "DISPATCH_SETPOINT"})


def limits_kw(book: EventBook, now_utc_s=T0_UTC_S) -> list[float]:
    return [w.value / 1000 for w in book.windows(now_utc_s) if w.type == "IMPORT_CAPACITY_LIMIT"]


PRICE = [interval(0.1, payload_type="PRICE")]
BAD = {"payloadDescriptors": []}
PAST = {"intervalPeriod": {"start": "2026-11-21T12:00:00Z", "duration": "PT1H"}}
FOR_EVER = {"intervalPeriod": {"start": START, "duration": "P9999Y"}}
AT_ONCE = {"intervalPeriod": {"start": "0001-01-01", "duration": "PT1H"}}
CALLED_OFF = {"intervalPeriod": {"start": "0001-01-01", "duration": "PT0S"}}


@pytest.mark.parametrize(
    ("case", "messages", "reasons", "kw"),
    [
        ("created", [step()], ["accepted"], [1]),
        ("updated", [step(), step("UPDATE", 1, 2)], ["accepted", "accepted"], [2]),
        ("an update of an unknown event creates it", [step("UPDATE")], ["accepted"], [1]),
        ("deleted", [step(), step("DELETE")], ["accepted", "deleted"], []),
        ("deleted with a newer date", [step(), step("DELETE", 1)], ["accepted", "deleted"], []),
        ("duplicate", [step(), step()], ["accepted", "duplicate"], [1]),
        ("changed twice in one second", [step(), step("UPDATE", kw=9), step(kw=9.0)], ["accepted", "accepted", "duplicate"], [9]),
        ("of one date, and nothing in it to be meant", [step(), step("UPDATE", kw=9, **BAD)], ["accepted", "send units KW"], [1]),
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
        ("called off, with a question left in it", [step(), step("UPDATE", 1, **CALLED_OFF, reportDescriptors=[{"payloadType": "DEMAND", "frequency": 0}])], ["accepted", "cancelled"], []),
        ("without its date", [step(modificationDateTime=...)], ["modificationDateTime: missing"], []),
        ("two events", [step(), step(event_id="ev-2", kw=2)], ["accepted", "accepted"], [1, 2]),
        ("only a price", [step(intervals=[interval(0.1, payload_type="PRICE")])], ["asks for no power: PRICE"], []),
        ("an update to only a price", [step(), step("UPDATE", 1, intervals=[interval(0.1, payload_type="PRICE")])], ["accepted", "asks for no power: PRICE"], []),
        ("report-only", [step(intervals=None)], ["asks for no power: no payload"], []),
    ],
)  # fmt: skip
def test_the_book_holds_what_the_site_wants_last(case, messages, reasons, kw):
    book = EventBook(SITE)
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
    assert book.windows(T0_UTC_S) == ()
    assert book.event_ids(T0_UTC_S) == frozenset()
    assert EventBook().apply(short, T0_UTC_S) == Verdict(True, "deleted")


# -- what is said twice, and what is dated wrongly ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "fields", "is_news"),
    [
        ("a number is a number", {"intervals": [interval(1)]}, False),
        ("targets decide nothing", {"targets": ["a"]}, False),
        ("nor does a price", {"intervals": [interval(1.0) | {"payloads": [
            {"type": "IMPORT_CAPACITY_LIMIT", "values": [1.0]}, {"type": "PRICE", "values": [2.0]}]}]}, False),
        ("another start", {"intervalPeriod": {"start": "2026-11-21T18:30:00Z", "duration": "PT1H"}}, True),
        ("another priority", {"priority": 1}, True),
        ("another value", {"intervals": [interval(2.0)]}, True),
        ("a question more", {"reportDescriptors": [{"payloadType": "DEMAND"}]}, True),
        ("a length of its own", {"duration": "PT3H"}, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("restarted", [False, True])
def test_of_one_date_what_says_the_same_is_a_duplicate_and_anything_else_is_news(
    case, fields, is_news, restarted
):
    both = {"intervals": [interval(1.0)]}
    if case == "nor does a price":
        both["intervals"][0]["payloads"].append({"type": "PRICE", "values": [1.0]})
    book = EventBook(SITE)
    book.apply(step(**both), T0_UTC_S)
    if restarted:
        book = EventBook.from_dict(json.loads(json.dumps(book.to_dict())), SITE)
    assert book.apply(step("UPDATE", **both | fields), T0_UTC_S).reason == (
        "accepted" if is_news else "duplicate"
    ), case


def test_a_brokers_memory_is_no_news_of_the_same_date():
    book = EventBook(SITE)
    book.apply(step(), T0_UTC_S)
    verdict = book.apply(step(kw=9), T0_UTC_S, retained=True)
    assert not verdict.accepted
    assert "retained, and other than the known version of the same date" in verdict.reason
    assert limits_kw(book) == [1]
    assert book.apply(step(), T0_UTC_S, retained=True).reason == "duplicate"


def test_what_the_caller_has_come_to_act_on_is_read_when_it_is_listed_again():
    priced = {"intervals": PRICE}
    book = EventBook(SITE)
    book.apply(step(**priced), T0_UTC_S)
    book = EventBook.from_dict(json.loads(json.dumps(book.to_dict())), Rules(acts_on={"PRICE"}))
    assert book.apply(step(**priced), T0_UTC_S).reason == "accepted"
    assert [w.type for w in book.windows(T0_UTC_S)] == ["PRICE"]


def test_a_duplicate_changes_nothing():
    book = EventBook()
    book.apply(step(), T0_UTC_S)
    windows, event_ids, revision = book.windows(-1e9), book.event_ids(-1e9), book.revision
    assert book.apply(step(), T0_UTC_S + 60).reason == "duplicate"
    assert book.windows(-1e9) is windows
    assert book.event_ids(-1e9) is event_ids
    assert book.revision == revision
    book.apply(step("UPDATE", 1), T0_UTC_S + 60)
    assert book.revision != revision


DAY_S = 24 * HOUR_S


@pytest.mark.parametrize("operation", ["CREATE", "UPDATE", "DELETE"])
def test_a_date_of_more_than_a_day_ahead_is_refused_for_nothing_could_follow_it(operation):
    book = EventBook()
    book.apply(step(), T0_UTC_S)
    before = book.to_dict()
    ahead = step(operation, modificationDateTime="2226-11-21T18:00:00Z", kw=2)
    verdict = book.apply(ahead, T0_UTC_S)
    assert not verdict.accepted
    assert "over a day ahead of our clock" in verdict.reason
    assert book.to_dict() == before
    assert book.apply(step("UPDATE", 1, 3), T0_UTC_S - DAY_S + HOUR_S).accepted, "clocks may differ by hours"


def test_a_delete_ends_what_bears_a_date_to_come():
    book = EventBook()
    book.apply(step(minute=30, **FOR_EVER), T0_UTC_S - 2 * HOUR_S)
    now_utc_s = T0_UTC_S - HOUR_S
    assert not book.apply(step("DELETE", 0), now_utc_s, retained=True).accepted
    assert book.apply(step("DELETE", 0), now_utc_s).reason == "deleted"
    assert limits_kw(book) == []
    assert book.apply(step("UPDATE", 1, 4), now_utc_s).accepted, "and what follows is newer"


# -- what the caller still acts on -------------------------------------------------------------------------------------


def test_a_clock_that_steps_by_days_erases_nothing_that_is_held():
    book = EventBook(SITE)
    book.apply(step(event_id="cut"), T0_UTC_S)
    book.apply(step(event_id="loose"), T0_UTC_S)
    book.hold({"cut"})
    later = {"intervalPeriod": {"start": "2026-11-24T18:00:00Z", "duration": "PT1H"}}
    assert book.apply(step(event_id="other", **later), T0_UTC_S + 2 * DAY_S).accepted
    assert [w.event_id for w in book.windows(T0_UTC_S)] == ["cut", "other"]
    book.hold(())
    book.apply(step("UPDATE", 1, event_id="other", **later), T0_UTC_S + 2 * DAY_S)
    assert [w.event_id for w in book.windows(T0_UTC_S)] == ["other"]


def test_a_full_book_does_not_forget_what_is_held(monkeypatch):
    monkeypatch.setattr(book_module, "EVENTS_MAX", 2)
    book = EventBook(SITE)
    book.apply(step(event_id="cut"), T0_UTC_S)
    book.apply(step(event_id="loose"), T0_UTC_S)
    book.hold({"cut"})
    later = {"intervalPeriod": {"start": "2026-11-21T20:30:00Z", "duration": "PT1H"}}
    assert book.apply(step(event_id="other", **later), T0_UTC_S + 2 * HOUR_S).accepted
    assert [w.event_id for w in book.windows(T0_UTC_S)] == ["cut", "other"]


def test_the_windows_of_all_events_are_bounded_and_what_is_over_makes_room(monkeypatch):
    monkeypatch.setattr(book_module, "WINDOWS_KEPT_MAX", 4)
    book = EventBook(SITE)
    two = {"intervals": [interval(1.0), interval(2.0, 1)]}
    for name in ("held", "over"):
        assert book.apply(step(event_id=name, **two), T0_UTC_S).accepted
    book.hold({"held"})
    before = book.to_dict()
    refused = book.apply(step(event_id="more"), T0_UTC_S)
    assert not refused.accepted
    assert "windows in all events; delete some, or send fewer" in refused.reason
    assert book.to_dict() == before
    assert book.apply(step("UPDATE", 1, event_id="over", **two), T0_UTC_S).accepted, "in its own place"
    later = two | {"intervalPeriod": {"start": "2026-11-21T21:00:00Z", "duration": "PT1H"}}
    assert book.apply(step(event_id="more", **later), T0_UTC_S + 2.5 * HOUR_S).accepted
    assert {w.event_id for w in book.windows(-math.inf)} == {"held", "more"}


@pytest.mark.parametrize(
    ("payload_type", "unit", "values"),
    [
        ("PRICE", "MWH", [40.0]),
        ("EXPORT_PRICE", "KWH", ["n/a"]),
        ("GHG", "G_KWH", [300]),
        ("ALERT_POSSIBLE_OUTAGE", None, [3]),
        ("SIMPLE", None, [1, 2]),
        ("PRICE", None, [1] * 2000),
    ],
)
def test_what_nobody_acts_on_spoils_no_limit_whatever_is_in_it(payload_type, unit, values):
    both = interval(4.0)
    both["payloads"].append({"type": payload_type, "values": values})
    units = [
        {"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KW"},
        {"payloadType": payload_type, "units": unit},
    ]
    said = step(intervals=[both], payloadDescriptors=units)
    book = EventBook(SITE)
    assert book.apply(said, T0_UTC_S) == Verdict(True, "accepted", (payload_type,))
    assert limits_kw(book) == [4]
    assert not EventBook().apply(said, T0_UTC_S).accepted, "whoever acts on it must understand it"


UNDATED = step("DELETE", modificationDateTime=...)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_event_that_vanished_from_the_list_counts_again_when_the_same_version_is_listed_again(restarted):
    """Pages of a list shift while they are read: such a delete may be a mistake."""
    book = EventBook()
    book.apply(step(**AT_ONCE), T0_UTC_S)
    before = book.windows(T0_UTC_S)
    book.apply(UNDATED, T0_UTC_S + 60)
    assert (book.windows(T0_UTC_S), book.in_force(T0_UTC_S), book.event_ids(T0_UTC_S)) == ((), {}, set())
    if restarted:
        book = EventBook.from_dict(json.loads(json.dumps(book.to_dict())))
        assert book.windows(T0_UTC_S) == ()
    verdict = book.apply(step("UPDATE", **AT_ONCE), T0_UTC_S + 120)
    assert (verdict.accepted, verdict.reason) == (True, "accepted; it is listed again")
    assert book.windows(T0_UTC_S) == before, "and what 'now' meant has not moved"
    assert book.event_ids(T0_UTC_S) == {"ev-1"}
    assert book.apply(step(**AT_ONCE), T0_UTC_S + 180).reason == "duplicate"


@pytest.mark.parametrize(
    ("case", "messages", "reason", "kw"),
    [
        ("a dated delete, then the old create again", [step(), step("DELETE", 1)], "older than known", []),
        ("a dated delete of the same stamp", [step(), step("DELETE")], "duplicate", []),
        ("both kinds of delete", [step(), step("DELETE"), UNDATED], "duplicate", []),
        ("both, the other way round", [step(), UNDATED, step("DELETE")], "duplicate", []),
        ("vanished, then an older version", [step(minute=1), UNDATED], "older than known", []),
        ("vanished, and the same one again", [step(), UNDATED], "it is listed again", [1]),
    ],
)
def test_a_delete_with_a_date_is_the_sites_word_and_stays(case, messages, reason, kw):
    book = EventBook()
    for message in messages:
        book.apply(message, T0_UTC_S)
    assert reason in book.apply(step(), T0_UTC_S).reason, case
    assert limits_kw(book) == kw, case


def test_a_broker_that_remembers_a_vanished_event_does_not_bring_it_back():
    book = EventBook()
    book.apply(step(), T0_UTC_S)
    book.apply(UNDATED, T0_UTC_S)
    assert book.apply(step(), T0_UTC_S, retained=True).reason == "duplicate"
    assert limits_kw(book) == []


def test_a_newer_version_of_a_vanished_event_is_an_event_like_any_other():
    book = EventBook()
    for message in (step(), UNDATED, step("UPDATE", 1, 2)):
        book.apply(message, T0_UTC_S)
    assert limits_kw(book) == [2]


def test_a_lapsed_update_of_a_vanished_event_does_not_claim_that_it_is_in_force():
    book = EventBook()
    book.apply(step(), T0_UTC_S)
    book.apply(UNDATED, T0_UTC_S)
    assert book.apply(step("UPDATE", 1, **PAST), T0_UTC_S).reason == "event ev-1: lapsed"


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


AGE_S = book_module.RETAINED_AGE_MAX_S


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
    assert again.apply(step(event_id="kept", priority=3, **FOR_EVER), T0_UTC_S).reason == "duplicate"
    assert again.apply(step(event_id="kept", priority=2, **FOR_EVER), T0_UTC_S).reason == "accepted"


@pytest.mark.parametrize(
    "said",
    [None, [], {}, {"v": 5, "events": {}}, {"v": 1}, {"v": 1, "events": {"a": {"modified_utc_s": "x", "windows": []}}},
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
    assert book.apply(step(event_id="past", kw=2), T0_UTC_S).reason == "accepted"


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
    monkeypatch.setattr(book_module, "EVENTS_MAX", 3)
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
    monkeypatch.setattr(book_module, "EVENTS_MAX", 3)
    book = EventBook()
    for number in range(10):
        book.apply(step("DELETE", event_id=f"x{number}"), T0_UTC_S)
    assert len(book.to_dict()["events"]) <= 3


# -- what the caller decides ------------------------------------------------------------------------------------------


def test_without_rules_all_that_is_understood_counts():
    book = EventBook()
    alert = {"id": 0, "payloads": [{"type": "ALERT_BLACK_START", "values": ["wait"]}]}
    assert book.apply(step(intervals=[alert]), T0_UTC_S) == Verdict(True, "accepted")
    assert book.in_force(T0_UTC_S)["ALERT_BLACK_START"].text == "wait"


def test_what_the_caller_does_not_act_on_is_passed_over_and_named():
    book = EventBook(SITE)
    both = interval(4.0)
    both["payloads"] += [{"type": "SIMPLE", "values": [2]}, {"type": "X-PRIVATE", "values": ["?"]}]
    verdict = book.apply(step(intervals=[both]), T0_UTC_S)
    assert verdict == Verdict(True, "accepted", ("SIMPLE", "X-PRIVATE"))
    assert {kind: w.value for kind, w in book.in_force(T0_UTC_S).items()} == {"IMPORT_CAPACITY_LIMIT": 4000.0}
    assert book.event_ids(T0_UTC_S) == {"ev-1"}


def test_a_limit_that_is_over_is_not_released_by_a_price_beside_it():
    book = EventBook(SITE)
    book.apply(step(), T0_UTC_S)
    over = interval(1.0, start="2026-11-21T12:00:00Z")
    lapsed = step("UPDATE", 1, intervals=[over, interval(0.1, 1, "PRICE", start=START)])
    assert "the known version stays in force" in book.apply(lapsed, T0_UTC_S).reason
    assert limits_kw(book) == [1]


def test_units_come_from_the_programme_that_the_event_names():
    asked = []

    def units_of(program_id):
        asked.append(program_id)
        return {"IMPORT_CAPACITY_LIMIT": "KW"} if program_id == "44" else {}

    book = EventBook(Rules(units_of=units_of))
    assert book.apply(step(payloadDescriptors=[]), T0_UTC_S).accepted
    assert not book.apply(step(event_id="ev-2", payloadDescriptors=[], programID="45"), T0_UTC_S).accepted
    assert not book.apply(step(event_id="ev-3", payloadDescriptors=[], programID=...), T0_UTC_S).accepted
    assert asked == ["44", "45"]


RANDOM = {
    "intervals": PRICE,
    "intervalPeriod": {"start": START, "duration": "PT1H", "randomizeStart": "PT30M"},
}


class Dice:
    def __init__(self, *draws):
        self.left = list(draws)

    def __call__(self):
        return self.left.pop(0)


def starts_h(book):
    return [(w.starts_utc_s - T0_UTC_S) / HOUR_S for w in book.windows(-math.inf)]


def test_an_event_is_left_to_chance_once_whatever_comes_after():
    book = EventBook(Rules(draw=Dice(1.0), randomize_reductions=True))
    book.apply(step(**RANDOM), T0_UTC_S)
    assert starts_h(book) == [0.5]
    book.apply(step(**RANDOM), T0_UTC_S)
    book.apply(step("UPDATE", 1, **RANDOM), T0_UTC_S)
    assert starts_h(book) == [0.5]
    again = EventBook.from_dict(
        json.loads(json.dumps(book.to_dict())), Rules(draw=Dice(), randomize_reductions=True)
    )
    assert starts_h(again) == [0.5]
    again.apply(step("UPDATE", 2, **RANDOM), T0_UTC_S)
    assert starts_h(again) == [0.5]


def test_a_draw_that_is_known_moves_nothing_once_the_caller_takes_his_word_back():
    book = EventBook(Rules(draw=Dice(1.0), randomize_reductions=True))
    book.apply(step(**RANDOM), T0_UTC_S)
    again = EventBook.from_dict(json.loads(json.dumps(book.to_dict())), Rules(draw=Dice()))
    again.apply(step("UPDATE", 1, **RANDOM), T0_UTC_S)
    assert starts_h(again) == [0]


def test_an_event_that_was_deleted_and_comes_anew_draws_anew():
    book = EventBook(Rules(draw=Dice(1.0, -1.0), randomize_reductions=True))
    book.apply(step(**RANDOM), T0_UTC_S)
    book.apply(step("DELETE", 1), T0_UTC_S)
    book.apply(step(minute=2, **RANDOM), T0_UTC_S)
    assert starts_h(book) == [-0.5]


@pytest.mark.parametrize("intervals", [PRICE, [interval(1.0)]])
def test_without_dice_or_the_callers_word_nothing_moves_that_may_become_a_limit(intervals):
    """A price as well: whoever acts on it turns it into one."""
    for rules in (Rules(randomize_reductions=True), Rules(draw=Dice())):
        book = EventBook(rules)
        book.apply(step(**RANDOM | {"intervals": intervals}), T0_UTC_S)
        assert starts_h(book) == [0]
    moved = EventBook(Rules(draw=lambda: 1.0, randomize_reductions=True))
    moved.apply(step(**RANDOM | {"intervals": [interval(1.0)]}), T0_UTC_S)
    assert starts_h(moved) == [0.5]


# -- every beat -------------------------------------------------------------------------------------------------------


def test_what_is_in_force_changes_at_the_edges_and_between_them_costs_nothing():
    book = EventBook()
    book.apply(step(event_id="base", kw=5), T0_UTC_S)
    late = {"start": "2026-11-21T18:30:00Z", "duration": "PT10M"}
    book.apply(step(event_id="strong", kw=9, priority=0, intervalPeriod=late), T0_UTC_S)

    def in_force_kw(minute):
        found = book.in_force(T0_UTC_S + 60 * minute)
        return found["IMPORT_CAPACITY_LIMIT"].value / 1000 if found else None

    assert [in_force_kw(m) for m in (-1, 0, 29, 30, 39, 40, 59, 60)] == [None, 5, 5, 9, 9, 5, 5, None]
    assert [in_force_kw(m) for m in (59, 30, 0, -1)] == [5, 9, 5, None], "and backwards, as a clock may go"
    assert book.in_force(T0_UTC_S + 60) is book.in_force(T0_UTC_S + 1700)
    book.apply(step("DELETE", 1, event_id="base"), T0_UTC_S)
    assert in_force_kw(1) is None


def test_windows_answers_from_the_last_answer_until_a_window_ends():
    book = EventBook()
    book.apply(step(intervals=[interval(1.0), interval(2.0, 1)]), T0_UTC_S)
    both = book.windows(T0_UTC_S)
    assert book.windows(T0_UTC_S + HOUR_S - 1) is both
    one = book.windows(T0_UTC_S + HOUR_S)
    assert len(one) == 1
    assert book.windows(T0_UTC_S + 2 * HOUR_S - 1) is one
    assert book.windows(T0_UTC_S) == both, "a clock that was set back"


def test_ten_thousand_intervals_are_asked_every_beat_and_changed_in_milliseconds():
    """Bounds are ten times what this takes on a slow machine: they catch a scan in every beat, no more."""
    book = EventBook()
    for number in range(10):
        many = [interval(1.0, n) for n in range(1000)]
        book.apply(
            step(event_id=f"e{number}", intervals=many, intervalPeriod={"start": START, "duration": "PT5M"}),
            T0_UTC_S,
        )
    book.in_force(T0_UTC_S)
    book.windows(T0_UTC_S)
    began_s = time.process_time()
    for beat in range(2000):
        book.in_force(T0_UTC_S + 0.05 * beat)
        book.windows(T0_UTC_S + 0.05 * beat)
    assert time.process_time() - began_s < 1.0
    began_s = time.process_time()
    book.apply(step(event_id="new"), T0_UTC_S)
    assert len(book.windows(T0_UTC_S)) == 10_001
    book.in_force(T0_UTC_S)
    book.to_dict()
    assert time.process_time() - began_s < 1.5


# -- a book that an earlier program kept ------------------------------------------------------------------------------

VERSION_1 = {
    "v": 1,
    "events": {
        "kept": {
            "modified_utc_s": T0_UTC_S - HOUR_S,
            "windows": [
                {"event_id": "kept", "kind": kind, "limit_w": 4000.0, "starts_utc_s": T0_UTC_S,
                 "ends_utc_s": T0_UTC_S + HOUR_S, "priority": 3, "interval_id": 7}
                for kind in ("limit", "target")
            ],
        },
        "gone": {"modified_utc_s": T0_UTC_S, "windows": []},
    },
}  # fmt: skip


def test_a_book_of_version_1_is_read_and_kept_as_version_4():
    book = EventBook.from_dict(VERSION_1)
    limit, target = book.windows(T0_UTC_S)
    assert (limit.type, target.type) == ("IMPORT_CAPACITY_LIMIT", "DISPATCH_SETPOINT")
    assert (limit.value, limit.priority, limit.interval_id) == (4000.0, 3, 7)
    assert limit.modified_utc_s == T0_UTC_S - HOUR_S
    assert book.apply(step(event_id="gone", minute=59), T0_UTC_S).reason == "event gone: older than known"
    assert book.to_dict()["v"] == 4
    other = book.apply(step(event_id="kept", minute=0, kw=9), T0_UTC_S)
    assert other.reason == "duplicate", "what an older program kept cannot be compared"
    assert EventBook.from_dict(json.loads(json.dumps(book.to_dict()))).windows(T0_UTC_S) == (limit, target)


VERSION_2 = {
    "v": 2,
    "events": {
        "kept": {"modified_utc_s": T0_UTC_S - HOUR_S, "draws": [], "priority": 3,
                 "windows": [["IMPORT_CAPACITY_LIMIT", 4000.0, T0_UTC_S, T0_UTC_S + HOUR_S, 7, ""]]},
        "gone": {"modified_utc_s": T0_UTC_S, "draws": [], "windows": []},
    },
}  # fmt: skip


def test_a_book_of_version_2_is_read_and_kept_as_version_4():
    book = EventBook.from_dict(VERSION_2)
    assert book.windows(T0_UTC_S) == EventBook.from_dict(VERSION_1).windows(T0_UTC_S)[:1]
    assert book.event_ids(T0_UTC_S) == {"kept"}
    assert json.loads(json.dumps(book.to_dict())) == VERSION_2 | {"v": 4}
    assert EventBook.from_dict(json.loads(json.dumps(book.to_dict()))).windows(T0_UTC_S) == book.windows(
        T0_UTC_S
    )


@pytest.mark.parametrize("change", [{"kind": "?"}, {"limit_w": "x"}, {"ends_utc_s": None}])
def test_a_book_of_version_1_with_rubbish_in_it_is_refused(change):
    (window, _) = VERSION_1["events"]["kept"]["windows"]
    bad = {"v": 1, "events": {"kept": {"modified_utc_s": 1.0, "windows": [window | change]}}}
    with pytest.raises(OpenAdrError, match=r"kept events: .* let the site send anew"):
        EventBook.from_dict(bad)


def test_a_book_keeps_the_text_of_an_alert_and_of_an_event_without_windows_its_date():
    book = EventBook()
    alert = {"id": 0, "payloads": [{"type": "ALERT_BLACK_START", "values": ["wait"]}]}
    book.apply(step(intervals=[alert]), T0_UTC_S)
    book.apply(step(event_id="report", intervals=None), T0_UTC_S)
    again = EventBook.from_dict(json.loads(json.dumps(book.to_dict())))
    assert again.windows(T0_UTC_S)[0].text == "wait"
    assert again.apply(step(event_id="report", intervals=None), T0_UTC_S).reason == "duplicate"


def test_a_refused_event_makes_no_room_for_itself(monkeypatch):
    monkeypatch.setattr(book_module, "EVENTS_MAX", 1)
    book = EventBook()
    book.apply(step("DELETE", event_id="gone"), T0_UTC_S)
    before = book.to_dict()
    assert not book.apply(step(**PAST), T0_UTC_S).accepted
    assert book.to_dict() == before


# -- events that ask for no power -------------------------------------------------------------------------------------

ASKS = {"reportDescriptors": [{"payloadType": "DEMAND", "repeat": -1}]}


@pytest.mark.parametrize(
    ("case", "fields", "ends_h"),
    [
        ("an hour of a word of somebody's own", {"intervals": [interval(1.0, payload_type="X-OWN")]}, 1),
        ("looped for five hours", {"intervals": [interval(1.0, payload_type="X-OWN")], "duration": "PT5H"}, 5),
        ("one report on one hour", {"intervals": None, "reportDescriptors": [{"payloadType": "DEMAND"}]}, 1),
        ("three of them", {"intervals": None, "reportDescriptors": [{"payloadType": "DEMAND", "repeat": 3}]}, 3),
        ("reports for five hours", {"intervals": None, "duration": "PT5H"} | ASKS, 5),
        ("reports for ever", {"intervals": None} | ASKS, None),
        ("no period at all: until deleted", {"intervals": None, "intervalPeriod": None} | ASKS, None),
        ("nothing at all: until deleted", {"intervals": None}, None),
    ],
)  # fmt: skip
def test_an_event_without_power_is_known_to_the_heartbeat_for_as_long_as_it_lasts(case, fields, ends_h):
    book = EventBook()
    assert book.apply(step(**fields), T0_UTC_S).accepted, case
    for again in (book, EventBook.from_dict(json.loads(json.dumps(book.to_dict())))):
        last_h = 1e6 if ends_h is None else ends_h
        assert again.event_ids(T0_UTC_S + last_h * HOUR_S - 1) == {"ev-1"}, case
        assert (again.event_ids(T0_UTC_S + last_h * HOUR_S) == {"ev-1"}) is (ends_h is None), case
    book.apply(step("DELETE", 1), T0_UTC_S)
    assert book.event_ids(T0_UTC_S) == frozenset()


def test_events_of_reports_alone_make_room_for_a_limit(monkeypatch):
    """Nobody may be refused a limit because of three questions."""
    monkeypatch.setattr(book_module, "EVENTS_MAX", 3)
    book = EventBook()
    for name in "abc":
        book.apply(step(event_id=name, intervals=None, **ASKS), T0_UTC_S)
    book.apply(step("DELETE", event_id="unknown"), T0_UTC_S)
    assert book.event_ids(T0_UTC_S) == {"a", "b", "c"}, "not for the end of an event that we do not know"
    assert book.apply(step(event_id="limit"), T0_UTC_S).accepted
    assert book.event_ids(T0_UTC_S) == {"b", "c", "limit"}


def test_a_book_with_rubbish_among_its_requests_is_refused():
    book = EventBook()
    book.apply(step(**ASKS), T0_UTC_S)
    said = json.loads(json.dumps(book.to_dict()))
    said["events"]["ev-1"]["request"]["axis"]["turn"] = []
    with pytest.raises(OpenAdrError, match=r"kept events: .* let the site send anew"):
        EventBook.from_dict(said)
