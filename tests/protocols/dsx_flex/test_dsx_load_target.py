"""Load targets: strictly read, painted over each other, the latest on top."""

import contextlib
import json
import math
import time
from dataclasses import replace

import pytest
from dsx_parts import FUZZ, HOUR_S, ISV, T0_UTC_S, an_id, envelope
from hypothesis import given
from hypothesis import strategies as st

from protocols.dsx_flex import load_target
from protocols.dsx_flex.load_target import WINDOWS_MAX, LoadTargetBook, Target, Verdict, read
from protocols.dsx_flex.wire import FOREVER_UTC_S, DsxFlexError

FEEDS = ("main-a", "main-b")


def one(**changes):
    target = {
        "interval": {"start_time": "2026-11-21T18:00:00Z", "end_time": "2026-11-21T19:00:00Z"},
        "feed_tags": ["main-a"],
        "load_constraint": {"value": 4.5, "unit": "megawatt"},
        "strategy": {"best_effort": True},
    } | changes
    return {key: value for key, value in target.items() if value is not ...}


def constraint(value, unit="kilowatt"):
    return one(load_constraint={"value": value, "unit": unit})


# -- reading ------------------------------------------------------------------------------------------------


def test_a_target_is_read_in_watts_and_utc_seconds():
    assert read({"targets": [one()]}) == (Target(4.5e6, T0_UTC_S, T0_UTC_S + HOUR_S, ("main-a",), True),)


@pytest.mark.parametrize(("unit", "power_w"), [("watt", 7.0), ("kilowatt", 7e3), ("megawatt", 7e6)])
def test_each_unit_is_worth_its_watts(unit, power_w):
    assert read({"targets": [constraint(7, unit)]})[0].limit_w == power_w


@pytest.mark.parametrize("tags", [..., []])
def test_what_is_not_said_means_all_feeds_from_now_until_replaced(tags):
    said = {"interval": {}, "feed_tags": tags, "load_constraint": None}
    said = {key: value for key, value in said.items() if value is not ...}
    assert read({"targets": [said]}) == (Target(None, None, FOREVER_UTC_S, (), best_effort=False),)


def test_zero_is_the_strictest_limit_and_never_none():
    assert read({"targets": [constraint(0)]})[0].limit_w == 0.0


@pytest.mark.parametrize(
    ("target", "place"),
    [
        (constraint(4.5, "MW"), "load_constraint.unit"),
        (constraint(4.5, "Megawatt"), "load_constraint.unit"),
        (constraint(4.5, None), "load_constraint.unit"),
        (constraint(4.5, ["watt"]), "load_constraint.unit"),
        (constraint(-0.001), "load_constraint.value"),
        (constraint(True), "load_constraint.value"),
        (constraint("4"), "load_constraint.value"),
        (constraint(math.nan), "load_constraint.value"),
        (constraint(1e300), "load_constraint.value"),
        (constraint(10**400), "load_constraint.value"),
        (constraint(None), "load_constraint.value"),
        (one(load_constraint=...), "load_constraint: missing"),
        (one(load_constraint=4500), "load_constraint"),
        (one(interval=...), "interval"),
        (one(interval=None), "interval"),
        (one(interval={"start_time": None}), "start_time"),
        (one(interval={"end_time": "19:00"}), "end_time"),
        (
            one(interval={"start_time": "2026-11-21T18:00:00Z", "end_time": "2026-11-21T17:59:59Z"}),
            "not after",
        ),
        (
            one(interval={"start_time": "2026-11-21T18:00:00Z", "end_time": "2026-11-21T18:00:00Z"}),
            "not after",
        ),
        (one(feed_tags=None), "feed_tags"),
        (one(feed_tags="main-a"), "feed_tags"),
        (one(feed_tags=[""]), r"feed_tags\[0\]"),
        (one(feed_tags=["a\nb"]), r"feed_tags\[0\]"),
        (one(feed_tags=["x"] * 65), "feed_tags"),
        (one(strategy=None), "strategy"),
        (one(strategy={"best_effort": "yes"}), "best_effort"),
        ([], r"targets\[1\]"),
    ],
)
def test_one_target_that_cannot_be_meant_refuses_the_whole_message(target, place):
    with pytest.raises(DsxFlexError, match=place):
        read({"targets": [one(), target]})


@pytest.mark.parametrize(
    "data", [{}, {"targets": None}, {"targets": []}, {"targets": {}}, {"targets": [one()] * 1001}]
)
def test_a_message_without_targets_is_refused(data):
    with pytest.raises(DsxFlexError, match="targets"):
        read(data)


@pytest.mark.parametrize(
    "target",
    [
        Target(None),
        Target(0.0, None, T0_UTC_S + 60),
        Target(1e3, T0_UTC_S + 60, feed_tags=("main-b",)),
        Target(4.5e6, T0_UTC_S, T0_UTC_S + HOUR_S, ("main-a", "main-b"), best_effort=True),
    ],
)
def test_a_target_reads_back_as_it_was_written(target):
    assert read(json.loads(json.dumps(load_target.data([target, target])))) == (target, target)


def test_a_target_that_cannot_be_meant_is_not_written():
    for wrong in (Target(1e12), Target(math.nan), Target(1e3, -1.0)):
        with pytest.raises(DsxFlexError, match="to send"):
            load_target.data([wrong])


# -- the book -----------------------------------------------------------------------------------------------


def book_of(*messages, feeds=FEEDS):
    """Messages are (arrival in hours after T0, targets); ids count up."""
    book = LoadTargetBook(feeds)
    for number, (hour, *targets) in enumerate(messages, 1):
        verdict = book.apply(envelope(number), tuple(targets), T0_UTC_S + hour * HOUR_S)
        assert verdict in (Verdict(True, "accepted"), Verdict(True, "repeated"))
    return book


def at(limit_kw, start=None, end=None, *feeds):
    """Times in hours after T0."""
    return Target(
        limit_w=None if limit_kw is None else limit_kw * 1e3,
        starts_utc_s=None if start is None else T0_UTC_S + start * HOUR_S,
        ends_utc_s=FOREVER_UTC_S if end is None else T0_UTC_S + end * HOUR_S,
        feed_tags=feeds,
    )


def line(book, feed="main-a", hour=0.0):
    """(start, end, kW) in hours after T0."""
    return [
        (
            (window.starts_utc_s - T0_UTC_S) / HOUR_S,
            None if window.ends_utc_s == FOREVER_UTC_S else (window.ends_utc_s - T0_UTC_S) / HOUR_S,
            window.limit_w / 1e3,
        )
        for window in book.windows(T0_UTC_S + hour * HOUR_S)
        if window.feed == feed
    ]


PAINTED = {
    "one for ever": ([(0, at(5))], [(0, None, 5)]),
    "scheduled": ([(0, at(5, 2, 3))], [(2, 3, 5)]),
    "replaced from now on": ([(0, at(5)), (1, at(4))], [(1, None, 4)]),
    "a short one over a long one": ([(0, at(5)), (0, at(4, 2, 3))], [(0, 2, 5), (2, 3, 4), (3, None, 5)]),
    "a long one over a short one": ([(0, at(4, 2, 3)), (0, at(5))], [(0, None, 5)]),
    "the later of two overlapping": ([(0, at(5, 0, 4)), (0, at(6, 2, 6))], [(0, 2, 5), (2, 6, 6)]),
    "the later of two, before": ([(0, at(5, 2, 6)), (0, at(6, 0, 4))], [(0, 4, 6), (4, 6, 5)]),
    "null removes all": ([(0, at(5)), (0, at(4, 2, 3)), (1, at(None))], []),
    "null makes a gap": ([(0, at(5)), (0, at(None, 2, 3))], [(0, 2, 5), (3, None, 5)]),
    "null into nothing": ([(0, at(None, 1, 2))], []),
    "over several": (
        [(0, at(1, 0, 1), at(2, 1, 2), at(3, 2, 3)), (0, at(9, 0.5, 2.5))],
        [(0, 0.5, 1), (0.5, 2.5, 9), (2.5, 3, 3)],
    ),
    "in one message the last": ([(0, at(5), at(4, 1, 2))], [(0, 1, 5), (1, 2, 4), (2, None, 5)]),
    "higher may follow lower": ([(0, at(4)), (1, at(6))], [(1, None, 6)]),
}


@pytest.mark.parametrize("story", PAINTED)
def test_for_every_moment_the_latest_target_that_covers_it_is_effective(story):
    messages, expected = PAINTED[story]
    assert line(book_of(*messages), hour=1 if len(messages) == 2 and messages[1][0] else 0) == expected


def test_targets_reach_the_feeds_they_name_and_all_when_they_name_none():
    book = book_of((0, at(5)), (0, at(4, 0, None, "main-b")), (0, at(3, 2, 3, "main-a", "main-b")))
    assert line(book, "main-a") == [(0, 2, 5), (2, 3, 3), (3, None, 5)]
    assert line(book, "main-b") == [(0, 2, 4), (2, 3, 3), (3, None, 4)]


def test_windows_tell_whom_to_name_in_status_and_who_wins():
    book = LoadTargetBook(("main-a",))
    book.apply(envelope(1, correlation_id=None), (at(5),), T0_UTC_S)
    book.apply(envelope(2), (at(4, 1, 2),), T0_UTC_S)
    first, second, _ = book.windows(T0_UTC_S)
    assert (first.source, first.message_id, first.correlation_id) == (ISV, an_id(1), an_id(1))
    assert (second.message_id, second.correlation_id) == (an_id(2), an_id(9))
    assert second.priority < first.priority  # the lower number wins
    assert book.revision == 2


def test_what_is_effective_can_be_asked_for_any_moment():
    book = book_of((0, at(5, 1, 2)))
    limits = [book.effective("main-a", T0_UTC_S + hour * HOUR_S) for hour in (0.9, 1, 1.9, 2)]
    assert [window and window.limit_w for window in limits] == [None, 5e3, 5e3, None]


def test_a_duplicate_changes_nothing_even_after_a_restart():
    book = book_of((0, at(5)), (0, at(4)))
    again = LoadTargetBook.from_dict(FEEDS, json.loads(json.dumps(book.to_dict())))
    for one_book in (book, again):
        assert one_book.apply(envelope(1), (at(5),), T0_UTC_S) == Verdict(True, "duplicate")
        assert line(one_book) == [(0, None, 4)]
        assert one_book.revision == 2


def test_a_message_for_the_feeds_of_others_leaves_ours_alone():
    book = book_of((0, at(5)))
    verdict = book.apply(envelope(2), (at(1, None, None, "spare"),), T0_UTC_S)
    assert (verdict.accepted, verdict.ignored) == (False, ("spare",))
    assert "ours: main-a, main-b" in verdict.reason
    verdict = book.apply(envelope(2), (at(1, None, None, "spare", "main-b"),), T0_UTC_S)
    assert verdict == Verdict(True, "accepted", ("spare",))
    assert (line(book, "main-a"), line(book, "main-b")) == ([(0, None, 5)], [(0, None, 1)])


def test_a_message_that_is_over_is_refused_and_one_that_is_partly_over_counts():
    book = book_of((0, at(5)))
    verdict = book.apply(envelope(2), (at(4, 1, 2),), T0_UTC_S + 2 * HOUR_S)
    assert not verdict.accepted
    assert "over by our clock" in verdict.reason
    assert book.apply(envelope(2), (at(4, 1, 2), at(3, 2, 3)), T0_UTC_S + 2 * HOUR_S).accepted
    assert line(book, hour=2) == [(2, 3, 3), (3, None, 5)]


def test_a_window_that_is_over_stays_for_a_day_since_the_clock_may_be_wrong():
    book = book_of((0, at(5, 0, 1)), (5, at(4, 30, 31)))
    assert line(book, hour=0.5) == [(0, 1, 5), (30, 31, 4)]
    book.apply(envelope(3), (at(3, 40, 41),), T0_UTC_S + 26 * HOUR_S)
    assert line(book, hour=0.5) == [(30, 31, 4), (40, 41, 3)]


def test_a_site_that_repeats_itself_leaves_no_trail():
    book = book_of(*((minute / 60, at(5)) for minute in range(500)))
    assert len(book.to_dict()["windows"]) == len(FEEDS)
    book = book_of(*((beat / 120, at(5, beat / 120)) for beat in range(WINDOWS_MAX + 100)), feeds=("a",))
    assert len(book.to_dict()["windows"]) <= WINDOWS_MAX


THREAD = an_id(77)


@pytest.mark.parametrize(
    ("again", "repeats"),
    [
        (at(5), True),
        (at(6), False),
        (at(5, None, 3), False),
        (replace(at(5), best_effort=True), False),
        (at(None), False),
    ],
)
def test_a_new_message_that_says_what_stands_already_changes_nothing(again, repeats):
    book = LoadTargetBook(("a",))
    book.apply(replace(envelope(1), correlation_id=THREAD), (at(5),), T0_UTC_S)
    before, revision = book.windows(T0_UTC_S), book.revision
    verdict = book.apply(replace(envelope(2), correlation_id=THREAD), (again,), T0_UTC_S + 60.0)
    assert verdict.accepted
    assert (verdict.reason == "repeated") is repeats
    assert ((book.windows(T0_UTC_S + 60.0), book.revision) == (before, revision)) is repeats


def test_the_rest_of_a_window_said_again_leaves_no_overlap():
    """The first hour is over; what is left of the second is sent again, with a start of its own."""
    book = LoadTargetBook(("a",))
    book.apply(replace(envelope(1), correlation_id=THREAD), (at(5, 0, 2),), T0_UTC_S)
    before = book.windows(T0_UTC_S)
    verdict = book.apply(replace(envelope(2), correlation_id=THREAD), (at(5, 1, 2),), T0_UTC_S + HOUR_S)
    assert verdict.reason == "repeated"
    assert book.windows(T0_UTC_S) == before
    assert LoadTargetBook.from_dict(("a",), book.to_dict()).windows(T0_UTC_S) == before


def test_the_same_wish_in_another_thread_is_a_new_one():
    """Its sender waits for a status that names it."""
    book = LoadTargetBook(("a",))
    book.apply(replace(envelope(1), correlation_id=THREAD), (at(5),), T0_UTC_S)
    verdict = book.apply(replace(envelope(2), correlation_id=an_id(78)), (at(5),), T0_UTC_S + 60.0)
    assert verdict.reason == "accepted"
    assert book.windows(T0_UTC_S + 60.0)[0].correlation_id == an_id(78)


def test_a_full_book_refuses_and_says_so():
    book = LoadTargetBook(("a",))
    for message in range(2):
        targets = tuple(at(1, h, h + 1) for h in range(message * 1000, message * 1000 + 1000))
        assert book.apply(envelope(message + 1), targets, T0_UTC_S).accepted
    before = book.windows(T0_UTC_S)
    verdict = book.apply(envelope(9), (at(1, 2000, 2001),), T0_UTC_S)
    assert (verdict.accepted, "over 2000 windows" in verdict.reason) == (False, True)
    assert book.windows(T0_UTC_S) == before
    assert book.apply(envelope(9), (at(1, 0, 2000),), T0_UTC_S).accepted


def test_the_largest_message_into_a_full_book_takes_milliseconds():
    book = LoadTargetBook(("a",))
    for number in (1, 2):
        targets = tuple(at(number, h, h + 1) for h in range(1000))
        began_s = time.process_time()
        assert book.apply(envelope(number), targets, T0_UTC_S).accepted
        assert time.process_time() - began_s < 1.0  # 5 to 10 ms on a quiet machine


@pytest.mark.parametrize(
    "damage",
    [
        None,
        [],
        {},
        {"v": 3},
        {"newest_utc_s": {"x": "y"}},
        {"revision": "x"},
        {"windows": [{}]},
        {"seen": [["a"]]},
        {"windows": "overlap"},
        {"windows": "negative"},
    ],
)
def test_a_kept_book_that_is_damaged_is_refused_with_a_remedy(damage):
    kept = book_of((0, at(5))).to_dict()
    window = kept["windows"][0]
    odd = {"overlap": [window, window], "negative": [window | {"limit_w": -1.0}]}
    said = (
        kept | {k: odd.get(v, v) if isinstance(v, str) else v for k, v in damage.items()}
        if damage
        else damage
    )
    with pytest.raises(DsxFlexError, match="let the operator send anew"):
        LoadTargetBook.from_dict(FEEDS, said)


def test_a_book_of_the_version_before_is_read():
    kept = book_of((0, at(5))).to_dict() | {"v": 1}
    del kept["newest_utc_s"]
    assert line(LoadTargetBook.from_dict(FEEDS, kept)) == [(0, None, 5)]


def test_a_message_that_was_overtaken_is_refused_even_after_a_restart():
    book = LoadTargetBook(FEEDS)
    book.apply(envelope(1, time_utc_s=T0_UTC_S + 10), (at(5),), T0_UTC_S + 10)
    again = LoadTargetBook.from_dict(FEEDS, json.loads(json.dumps(book.to_dict())))
    late = envelope(2, time_utc_s=T0_UTC_S + 9)
    for one_book in (book, again):
        assert one_book.apply(late, (at(None),), T0_UTC_S + 11) == Verdict(False, "older than known")
        assert len(one_book.windows(T0_UTC_S + 11)) == len(FEEDS)
        assert one_book.apply(envelope(3, time_utc_s=T0_UTC_S + 10), (at(4),), T0_UTC_S + 11).accepted


def test_another_publisher_is_not_overtaken_by_this_one():
    book = LoadTargetBook(FEEDS)
    book.apply(envelope(1, time_utc_s=T0_UTC_S + 10), (at(5),), T0_UTC_S + 10)
    other = envelope(2, source="//grid/v1/isv/other", time_utc_s=T0_UTC_S + 9)
    assert book.apply(other, (at(4),), T0_UTC_S + 10).accepted


def test_a_clock_that_was_wrong_and_is_put_right_does_not_lock_the_operator_out():
    book = LoadTargetBook(FEEDS)
    book.apply(envelope(1, time_utc_s=T0_UTC_S + HOUR_S), (at(5),), T0_UTC_S + HOUR_S)
    assert book.apply(envelope(2), (at(4),), T0_UTC_S).accepted


@pytest.mark.parametrize(
    ("stands", "said", "loosens"),
    [
        (at(5), at(5), False),
        (at(5), at(4), False),
        (at(5), at(None), True),
        (at(5), at(6), True),
        (at(5), at(4, None, 1), False),
        (at(5), at(6, 2, 3), True),
        (at(5), at(None, 2, 3), True),
        (at(5, 2, 3), at(None, 2.5, 4), True),
        (at(5, 2, 3), at(4, 1, 4), False),
        (at(5, 2, 3), at(None, 3, 4), False),
        (at(5), replace(at(5), best_effort=True), True),
        (at(5), at(None, None, None, "main-b"), True),
        (at(5, None, None, "main-a"), at(None, None, None, "main-b"), False),
    ],
)
def test_what_may_not_loosen_is_refused_exactly_where_some_moment_would_be_freer(stands, said, loosens):
    book = book_of((0, stands))
    before = book.to_dict()
    verdict = book.apply(envelope(2), (said,), T0_UTC_S, may_loosen=False)
    assert verdict.accepted is not loosens
    if loosens:
        assert "sent before" in verdict.reason
        assert book.to_dict() == before


@pytest.mark.parametrize("held", [frozenset(), frozenset({an_id(9)})])
def test_what_the_caller_acts_on_is_not_shed_by_a_clock_that_has_jumped(held):
    book = book_of((0, at(5, 0, 1)))
    book.hold(held)
    book.apply(envelope(2, correlation_id=an_id(8)), (at(4, 100, 101),), T0_UTC_S + 90 * HOUR_S)
    assert ((0, 1, 5) in line(book)) is bool(held)


def test_windows_of_a_feed_that_is_no_longer_ours_are_dropped():
    kept = book_of((0, at(5))).to_dict()
    assert [w.feed for w in LoadTargetBook.from_dict(("main-b", "new"), kept).windows(T0_UTC_S)] == ["main-b"]


def test_a_book_takes_no_other_messages():
    other = envelope(1, message_type="grid.powerstate.status.v1", source="//grid/v1/dsx-flex-agent/me")
    with pytest.raises(ValueError, match="does not take"):
        LoadTargetBook(FEEDS).apply(other, (at(5),), T0_UTC_S)


HOURS = st.integers(0, 12)
TARGETS = st.builds(
    lambda kw, start, length, feeds: at(kw, start, None if length is None else (start or 0) + length, *feeds),
    st.none() | st.integers(0, 9),
    st.none() | HOURS,
    st.none() | st.integers(1, 6),
    st.sampled_from([(), ("main-a",), ("main-b",), ("main-a", "main-b")]),
)


@FUZZ
@given(st.lists(st.tuples(HOURS, st.lists(TARGETS, min_size=1, max_size=3)), max_size=8))
def test_painting_agrees_with_the_rule_read_literally(messages):
    """The reference: ask every message ever accepted, the newest first, whether it covers the moment."""
    book, history = LoadTargetBook(FEEDS), []
    messages.sort(key=lambda message: message[0])  # time does not run backwards
    for number, (hour, targets) in enumerate(messages, 1):
        now_utc_s = T0_UTC_S + hour * HOUR_S
        book = LoadTargetBook.from_dict(FEEDS, json.loads(json.dumps(book.to_dict())))
        if book.apply(envelope(number), tuple(targets), now_utc_s).accepted:
            history += [(now_utc_s, target) for target in targets]
    last_utc_s = messages[-1][0] * HOUR_S + T0_UTC_S if messages else T0_UTC_S
    for feed in FEEDS:
        for half in range(48):
            moment_utc_s = last_utc_s + half * HOUR_S / 2
            expected = None
            for came_utc_s, target in history:
                starts_utc_s = came_utc_s if target.starts_utc_s is None else target.starts_utc_s
                if starts_utc_s <= moment_utc_s < target.ends_utc_s and feed in (target.feed_tags or FEEDS):
                    expected = target.limit_w
            found = book.effective(feed, moment_utc_s)
            assert (None if found is None else found.limit_w) == expected


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just("2026-11-21T18:00:00Z"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*one(), "value", "unit", "start_time", "end_time", "best_effort"]), inner
        )
    ),
    max_leaves=10,
)


@FUZZ
@given(st.dictionaries(st.sampled_from(sorted(one())), JSONISH))
def test_no_data_raises_anything_but_the_packages_error(changes):
    with contextlib.suppress(DsxFlexError):
        targets = load_target.read({"targets": [one() | changes]})
        LoadTargetBook(FEEDS).apply(envelope(), targets, T0_UTC_S)
