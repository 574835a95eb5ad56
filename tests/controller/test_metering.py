"""What the block has drawn: means with their quality, and forecasts that claim no more than is known."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import metering as metering_module
from controller.metering import BIN_S, KEPT_S, PERSISTS_S, Metering
from protocols.openadr import MISSING, EventBook, Metered, Reading, Reports, parse, parse_time
from protocols.openadr.reports import time_text

T0_UTC_S = 1_795_284_000.0  # 18:00
LOWEST_W, HIGHEST_W = 2_000.0, 10_000.0


def fed(pattern, *, since_utc_s=T0_UTC_S, planned_w=None, step_s=1.0, limit_w=None, budget_w=HIGHEST_W):
    """A metering that was told (seconds, power) one after the other."""
    metering = Metering(LOWEST_W, HIGHEST_W, **({} if planned_w is None else {"planned_w": planned_w}))
    now_utc_s = since_utc_s
    for length_s, power_w in pattern:
        for _ in range(round(length_s / step_s)):
            metering.feed(now_utc_s, power_w, limit_w, budget_w)
            now_utc_s += step_s
    metering.feed(now_utc_s, None, limit_w, budget_w)
    return metering


def test_metering_is_what_reports_ask():
    metered: Metered = Metering(LOWEST_W, HIGHEST_W)
    assert metered.mean(T0_UTC_S, T0_UTC_S + 900) == MISSING


@pytest.mark.parametrize(
    ("case", "pattern", "span_s", "mean_w", "quality"),
    [
        ("constant", [(900, 5000.0)], (0, 900), 5000.0, "OK"),
        ("two halves", [(450, 4000.0), (450, 6000.0)], (0, 900), 5000.0, "OK"),
        ("a part of it", [(450, 4000.0), (450, 6000.0)], (300, 600), 5000.0, "OK"),
        ("from within a bin", [(900, 5000.0)], (3, 897), 5000.0, "OK"),
        ("up to within the open bin", [(905, 5000.0)], (0, 905), 5000.0, "OK"),
        ("mostly the open bin", [(13, 5000.0)], (0, 13), 5000.0, "OK"),
        ("a few lost readings", [(400, 5000.0), (20, None), (480, 5000.0)], (0, 900), 5000.0, "OK"),
        ("a gap", [(300, 5000.0), (300, None), (300, 6000.0)], (0, 900), 5500.0, "ESTIMATED"),
        ("half of it", [(450, 5000.0), (450, None)], (0, 900), 5000.0, "ESTIMATED"),
        ("less than half", [(440, 5000.0), (460, None)], (0, 900), None, "MISSING"),
        ("nothing", [(900, None)], (0, 900), None, "MISSING"),
        ("before the first", [(900, 5000.0)], (-900, 0), None, "MISSING"),
        ("running still", [(900, 5000.0)], (0, 1200), 5000.0, "ESTIMATED"),
        ("no span", [(900, 5000.0)], (300, 300), None, "MISSING"),
        ("no power at all is a power", [(900, 0.0)], (0, 900), 0.0, "OK"),
        ("below nothing is none", [(900, -1.0)], (0, 900), None, "MISSING"),
        ("no number is none", [(900, float("nan"))], (0, 900), None, "MISSING"),
        ("endless is none", [(900, float("inf"))], (0, 900), None, "MISSING"),
    ],
)
def test_a_mean_says_how_much_of_its_span_was_measured(case, pattern, span_s, mean_w, quality):
    reading = fed(pattern).mean(T0_UTC_S + span_s[0], T0_UTC_S + span_s[1])
    assert reading.quality == quality, case
    assert reading.value == (None if mean_w is None else pytest.approx(mean_w)), case


def test_energy_is_the_mean_for_as_long_as_the_span():
    metering = fed([(300, 5000.0), (300, None), (300, 6000.0)])
    assert metering.energy(T0_UTC_S, T0_UTC_S + 900) == Reading(pytest.approx(5500.0 / 4), "ESTIMATED")
    assert metering.energy(T0_UTC_S - 900, T0_UTC_S) == MISSING


def test_a_peak_is_the_highest_ten_seconds():
    metering = fed([(100, 5000.0), (5, 9000.0), (795, 5000.0)])
    assert metering.peak(T0_UTC_S, T0_UTC_S + 900) == Reading(pytest.approx(7000.0), "OK")
    assert metering.peak(T0_UTC_S - 900, T0_UTC_S) == MISSING
    gap = fed([(300, 5000.0), (200, None), (400, 6000.0)])
    assert gap.peak(T0_UTC_S, T0_UTC_S + 900) == Reading(pytest.approx(6000.0), "ESTIMATED")


def test_a_beat_across_the_edge_of_a_bin_is_shared_by_both():
    metering = fed([(1.5, 2000.0), (30, 4000.0)], since_utc_s=T0_UTC_S + 8.0, step_s=1.5)
    # 2000 W until 9.5 s, 4000 W from there on, in steps of 1.5 s of which one crosses 20 s
    assert metering.mean(T0_UTC_S + 10, T0_UTC_S + 20) == Reading(pytest.approx(4000.0), "OK")
    assert metering._sums[metering_module.COVERED].max() == pytest.approx(BIN_S)


def test_what_is_two_days_old_is_not_taken_for_what_is_new():
    metering = fed([(900, 4000.0)])
    for second in range(901):
        metering.feed(T0_UTC_S + KEPT_S + second, None, None, HIGHEST_W)
    assert metering.mean(T0_UTC_S + KEPT_S, T0_UTC_S + KEPT_S + 900) == MISSING


def test_a_silent_beat_leaves_a_gap_and_does_not_stretch_the_last_power():
    metering = fed([(300, 5000.0)])
    metering.feed(T0_UTC_S + 600, 5000.0, None, HIGHEST_W)
    metering.feed(T0_UTC_S + 900, 5000.0, None, HIGHEST_W)
    assert metering.mean(T0_UTC_S, T0_UTC_S + 900) == MISSING


def test_beats_of_twenty_a_second_add_up():
    metering = fed([(60, 5000.0), (60, 7000.0)], step_s=0.05)
    assert metering.mean(T0_UTC_S, T0_UTC_S + 120) == Reading(pytest.approx(6000.0), "OK")


# -- against the plain definition -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    powers_w=st.lists(st.none() | st.floats(0, 1e6), min_size=1, max_size=60),
    start=st.integers(-5, 70),
    length=st.integers(1, 70),
)
def test_means_over_whole_bins_are_those_of_the_plain_definition(powers_w, start, length):
    metering = fed([(BIN_S, power_w) for power_w in powers_w], step_s=2.0)
    reading = metering.mean(T0_UTC_S + start * BIN_S, T0_UTC_S + (start + length) * BIN_S)
    if start >= len(powers_w):
        return
    known = [w for n, w in enumerate(powers_w) if start <= n < start + length and w is not None]
    if len(known) < length / 2:
        assert reading == MISSING
    else:
        assert reading.value == pytest.approx(sum(known) / len(known), abs=1e-6)
        assert reading.quality == ("OK" if len(known) >= 0.95 * length else "ESTIMATED")


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.05, 1.0, 1.9, 7.0, 400.0, -3.0, -25.0]), st.none() | st.floats(0, 1e6)),
        min_size=1,
        max_size=120,
    ),
    ago_s=st.floats(0.1, 120),
    length_s=st.floats(0.5, 120),
)
def test_running_totals_answer_as_a_walk_over_the_bins_does_whatever_the_clock_does(steps, ago_s, length_s):
    metering, at_utc_s = Metering(LOWEST_W, HIGHEST_W), T0_UTC_S
    for step_s, power_w in steps:
        at_utc_s += step_s
        metering.feed(at_utc_s, power_w, None, HIGHEST_W)
        asked = metering.mean(at_utc_s - ago_s, at_utc_s - ago_s + length_s)
    known = dict(
        zip(
            metering._numbers.tolist(),
            metering._sums[[metering_module.POWER, metering_module.COVERED]].T,
            strict=True,
        )
    )
    known[metering._open] = np.array(metering._open_sums)[[metering_module.POWER, metering_module.COVERED]]
    starts_utc_s, ends_utc_s = at_utc_s - ago_s, at_utc_s - ago_s + length_s
    total = np.zeros(2)
    for number, sums in known.items():
        begins_utc_s = number * BIN_S
        finishes_utc_s = min(begins_utc_s + BIN_S, at_utc_s)
        within_s = min(finishes_utc_s, ends_utc_s) - max(begins_utc_s, starts_utc_s)
        if number >= 0 and within_s > 0.0:
            total += sums * min(within_s / (finishes_utc_s - begins_utc_s), 1.0)
    over_ratio = total[1] / length_s - metering_module.MISSING_RATIO
    if abs(over_ratio) > 1e-9:  # a rounding decides there
        assert (asked != MISSING) == (over_ratio > 0.0)
    if asked != MISSING:
        assert asked.value == pytest.approx(total[0] / total[1], abs=1e-3)


# -- two days and no more ---------------------------------------------------------------------------------------------


def test_after_three_days_the_last_two_are_known_and_no_memory_was_added(monkeypatch):
    monkeypatch.setattr(metering_module, "HOLD_S", 3600.0)
    metering = Metering(LOWEST_W, HIGHEST_W)
    size = metering._sums.nbytes + metering._numbers.nbytes
    for bin_number in range(int(3 * 86_400 / BIN_S) + 1):
        metering.feed(T0_UTC_S + bin_number * BIN_S, 1000.0 * (1 + bin_number // 8640), None, HIGHEST_W)
    end_utc_s = T0_UTC_S + 3 * 86_400
    assert metering.mean(end_utc_s - KEPT_S, end_utc_s) == Reading(pytest.approx(2500.0), "OK")
    assert metering.mean(end_utc_s - 3 * 86_400, end_utc_s).quality == "ESTIMATED"
    assert metering.mean(T0_UTC_S, T0_UTC_S + 86_400) == MISSING
    assert metering._sums.nbytes + metering._numbers.nbytes == size < 1_000_000


def test_a_clock_that_is_set_back_neither_breaks_nor_doubles_anything():
    metering = fed([(900, 4000.0)])
    for second in range(600):
        metering.feed(T0_UTC_S + 300 + second, 6000.0, None, HIGHEST_W)
    assert metering.mean(T0_UTC_S, T0_UTC_S + 300) == Reading(pytest.approx(4000.0), "OK")
    assert metering.mean(T0_UTC_S + 400, T0_UTC_S + 800) == Reading(pytest.approx(5000.0), "OK")


def test_what_was_measured_again_since_the_last_question_is_in_the_answer():
    metering = fed([(900, 4000.0)])
    span = (T0_UTC_S + 610, T0_UTC_S + 890)
    assert metering.mean(*span) == Reading(pytest.approx(4000.0), "OK")
    for second in range(301):
        metering.feed(T0_UTC_S + 600 + second, 6000.0, None, HIGHEST_W)
    assert metering.mean(*span) == Reading(pytest.approx(5000.0), "OK")


def test_a_clock_that_jumps_a_year_ahead_forgets_and_goes_on():
    metering = fed([(900, 4000.0)])
    year_s = 365 * 86_400.0
    for second in range(901):
        metering.feed(T0_UTC_S + year_s + second, 6000.0, None, HIGHEST_W)
    assert metering.mean(T0_UTC_S + year_s, T0_UTC_S + year_s + 900) == Reading(pytest.approx(6000.0), "OK")
    assert metering.mean(T0_UTC_S, T0_UTC_S + 900) == MISSING


def test_a_beat_costs_microseconds_and_a_question_less_than_a_beat():
    """Bounds are fifty times what this takes."""
    metering = Metering(LOWEST_W, HIGHEST_W)
    began_s = time.process_time()
    for beat in range(20_000):
        metering.feed(T0_UTC_S + 0.05 * beat, 5000.0, None, HIGHEST_W)
    assert time.process_time() - began_s < 2.5
    began_s = time.process_time()
    for _ in range(10):
        metering.mean(T0_UTC_S + 1000 - KEPT_S, T0_UTC_S + 1000)
    assert time.process_time() - began_s < 1.0


def test_three_events_that_ask_for_days_of_reports_at_once_cost_no_call_more_than_a_beat_has():
    """Bounds are several times what this takes on a slow machine: walking over the bins took seconds."""
    book, metering, starts_utc_s = EventBook(), Metering(LOWEST_W, HIGHEST_W), T0_UTC_S - KEPT_S
    for second in range(0, int(KEPT_S), 2):
        metering.feed(starts_utc_s + second, 5000.0, None, HIGHEST_W)
    types = ["USAGE", "BASELINE", "OPERATING_STATE", "UP_REGULATION_AVAILABLE", "DATA_QUALITY"]
    asks = {"frequency": 1, "numIntervals": 300, "repeat": -1}
    said = {
        "modificationDateTime": time_text(starts_utc_s),
        "intervals": [
            {
                "id": n,
                "intervalPeriod": {"start": time_text(starts_utc_s + n), "duration": "PT47H"},
                "payloads": [],
            }
            for n in range(999)
        ],
        "reportDescriptors": [{"payloadType": "DEMAND", "readingType": "PEAK"} | asks]
        + [{"payloadType": name} | asks for name in types],
    }
    for name in ("a", "b", "c"):
        text = json.dumps({"objectType": "EVENT", "operation": "CREATE", "object": said | {"id": name}})
        assert book.apply(parse(text), starts_utc_s).unserved == ""
    reports, costs_s, count = Reports(book), [], 0
    for _ in range(20):
        began_s = time.process_time()
        due = reports.due(T0_UTC_S, metering)
        costs_s.append(time.process_time() - began_s)
        count += len(due)
        assert all(len(one["resources"][0]["intervals"]) == 300 for one in due)
    assert count == 18
    assert sorted(costs_s)[-2] < 0.5


# -- what could be done ----------------------------------------------------------------------------------------------


def test_a_baseline_is_the_mean_of_as_long_a_span_before_the_event_began():
    metering = fed([(900, 3000.0), (900, 5000.0), (900, 2000.0)])
    began_utc_s = T0_UTC_S + 1800
    assert metering.baseline(began_utc_s, began_utc_s, began_utc_s + 900) == Reading(
        pytest.approx(5000.0), "OK"
    )
    assert metering.baseline(began_utc_s, began_utc_s, began_utc_s + 1800) == Reading(
        pytest.approx(4000.0), "OK"
    )
    assert metering.baseline(began_utc_s, began_utc_s, began_utc_s + 7200) == MISSING


def test_the_baseline_of_an_event_to_come_is_an_estimate():
    metering = fed([(900, 5000.0)])
    begins_utc_s = T0_UTC_S + 7200
    assert metering.baseline(begins_utc_s, begins_utc_s, begins_utc_s + 900) == Reading(
        pytest.approx(5000.0), "ESTIMATED"
    )


def test_what_could_be_shed_is_what_was_drawn_above_the_least_that_can_be():
    assert fed([(900, 5000.0)]).shed_available(T0_UTC_S, T0_UTC_S + 900) == Reading(
        pytest.approx(3000.0), "OK"
    )
    assert fed([(900, 1500.0)]).shed_available(T0_UTC_S, T0_UTC_S + 900) == Reading(0.0, "OK")
    assert fed([(900, None)]).shed_available(T0_UTC_S, T0_UTC_S + 900) == MISSING


@pytest.mark.parametrize(
    ("limit_w", "budget_w", "rise_w"),
    [(None, 20_000.0, 5000.0), (7000.0, 9000.0, 2000.0), (9000.0, 6000.0, 1000.0), (4000.0, 4000.0, 0.0)],
)
def test_what_could_be_drawn_more_ends_at_limit_budget_and_rating(limit_w, budget_w, rise_w):
    metering = fed([(900, 5000.0)], limit_w=limit_w, budget_w=budget_w)
    assert metering.rise_available(T0_UTC_S, T0_UTC_S + 900) == Reading(pytest.approx(rise_w), "OK")


@pytest.mark.parametrize(
    ("power_w", "limit_w", "state"),
    [
        (5000.0, None, "RUNNING_NORMAL"),
        (5000.0, 6000.0, "RUNNING_CURTAILED"),
        (100.0, None, "IDLE_NORMAL"),
        (100.0, 6000.0, "IDLE_CURTAILED"),
    ],
)
def test_the_operating_state_is_told_by_power_and_limit(power_w, limit_w, state):
    metering = fed([(900, power_w)], limit_w=limit_w)
    assert metering.operating_state(T0_UTC_S, T0_UTC_S + 900) == Reading(state, "OK")
    assert metering.operating_state(T0_UTC_S + 900, T0_UTC_S + 1800) == MISSING


# -- what is to come -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "planned_w", "ahead_s", "expected_w"),
    [
        ("a limit below what we draw", 3000.0, 7200, 3000.0),
        ("a limit above what we draw", 8000.0, 7200, 5000.0),
        ("nothing announced, soon", None, 0, 5000.0),
        ("nothing announced, later", None, PERSISTS_S, None),
    ],
)
def test_a_forecast_is_an_estimate_or_nothing(case, planned_w, ahead_s, expected_w):
    asked = []

    def plan(starts_utc_s, ends_utc_s):
        asked.append((starts_utc_s, ends_utc_s))
        return planned_w

    metering = fed([(900, 5000.0)], planned_w=plan)
    span = (T0_UTC_S + 900 + ahead_s, T0_UTC_S + 1800 + ahead_s)
    wanted = MISSING if expected_w is None else Reading(pytest.approx(expected_w), "ESTIMATED")
    assert metering.mean(*span) == wanted, case
    assert metering.peak(*span) == wanted, case
    assert asked[0] == span
    if expected_w is not None:
        assert metering.energy(*span) == Reading(pytest.approx(expected_w / 4), "ESTIMATED")
        assert metering.shed_available(*span) == Reading(pytest.approx(expected_w - LOWEST_W), "ESTIMATED")
        ceiling_w = HIGHEST_W if planned_w is None else planned_w
        assert metering.rise_available(*span) == Reading(pytest.approx(ceiling_w - expected_w), "ESTIMATED")


def test_a_planned_limit_is_expected_of_a_block_that_nobody_measures():
    metering = fed([(900, None)], planned_w=lambda *_: 3000.0)
    assert metering.mean(T0_UTC_S + 900, T0_UTC_S + 1800) == Reading(3000.0, "ESTIMATED")


def test_a_limit_beyond_the_rating_promises_no_more_than_the_rating():
    metering = fed([(900, None)], planned_w=lambda *_: 1e9)
    assert metering.mean(T0_UTC_S + 900, T0_UTC_S + 1800) == Reading(HIGHEST_W, "ESTIMATED")


def test_values_are_plain_numbers_that_json_can_write():
    metering = fed([(900, 5000.0)])
    for ask in (
        metering.mean,
        metering.peak,
        metering.energy,
        metering.shed_available,
        metering.rise_available,
    ):
        value = ask(T0_UTC_S, T0_UTC_S + 900).value
        assert type(value) is float
        assert not isinstance(value, np.generic)


def test_what_the_block_has_drawn_reaches_the_report_that_was_asked_for():
    book = EventBook()
    said = {
        "id": "dr-1",
        "programID": "flex",
        "modificationDateTime": "2026-11-21T17:00:00Z",
        "intervalPeriod": {"start": "2026-11-21T18:00:00Z", "duration": "PT15M"},
        "payloadDescriptors": [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KW"}],
        "reportDescriptors": [{"payloadType": name} for name in ("USAGE", "BASELINE", "OPERATING_STATE")],
        "intervals": [
            {"id": n, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [3.0]}]} for n in range(2)
        ],
    }
    starts_utc_s = parse_time("2026-11-21T18:00:00Z", "start")
    book.apply(
        parse(json.dumps({"objectType": "EVENT", "operation": "CREATE", "object": said})), starts_utc_s - 900
    )
    metering = fed([(900, 5000.0)], since_utc_s=starts_utc_s - 900)
    for second in range(1801):
        metering.feed(starts_utc_s + second, 2800.0 if second < 900 else None, 3000.0, 3000.0)
    reports = Reports(book, resource_name="block-01").due(starts_utc_s + 1800, metering)
    told = [
        [payload["values"][0] for payload in one["payloads"]]
        for report in reports
        for one in report["resources"][0]["intervals"]
    ]
    assert told == [
        [0.7, "OK"],
        ["MISSING"],
        [5.0, "OK"],
        [5.0, "OK"],
        ["RUNNING_CURTAILED", "OK"],
        ["MISSING"],
    ]
