"""Did a way show the plant as it was? On made-up sightings whose right answers are known."""

import numpy as np
import pytest

from firmware_sim.agreement import (
    DEAD_GRACE_S,
    LAG_SEARCH_MAX_S,
    LAGS_S,
    Outage,
    Shown,
    agreement,
    explained_lag_s,
)
from firmware_sim.watched import WatchedPoint

POWER = WatchedPoint("pdu", "devices/pdu", "power_w", "W", 10.0)
WATER = WatchedPoint("cdu", "devices/cdu", "supply_c", "degC", 0.1)
T_S = np.arange(-10, 60, 0.05)
RAMP_W = 5000 + 100 * np.clip(T_S, 0, 40)


def looking(true, *, late_s=1.0, every_s=1.0, until_s=60.0, wrong=1.0):
    """A way that looks every second and sees what was, `late_s` ago."""
    at_s = np.arange(-9, until_s, every_s)
    return Shown.of(list(at_s), list(np.interp(at_s - late_s, T_S, true) * wrong))


def figures(shown, *outages, true=RAMP_W, way="opcua", point=POWER):
    return agreement(T_S, {point: true}, {(way, point.address): shown}, outages)


def test_a_way_that_is_late_as_allowed_agrees():
    found = figures(looking(RAMP_W, late_s=1.5))
    assert found["opcua_agreement_ratio"] == 1
    assert 1.5 <= found["opcua_lag_s"] + 1.0 <= LAGS_S["opcua"] + 1, "less what the tolerance explains"
    assert found["opcua_bad_s"] == 0


def test_a_way_that_is_later_than_allowed_does_not():
    found = figures(looking(RAMP_W, late_s=6))
    assert found["opcua_agreement_ratio"] < 0.5
    assert found["opcua_lag_s"] == pytest.approx(6 + 1 - 0.6, abs=0.6)


def test_a_wrong_scale_is_no_lag():
    found = figures(looking(np.full(len(T_S), 5000.0), wrong=0.9), true=np.full(len(T_S), 5000.0))
    assert found["opcua_agreement_ratio"] == 0
    assert found["opcua_lag_s"] == pytest.approx(LAG_SEARCH_MAX_S)


def test_a_value_that_stands_still_while_the_plant_moves_is_found_out():
    true = np.where(T_S < 20, 5000.0, 7000.0)
    found = figures(looking(true, until_s=15.0), true=true)
    assert found["opcua_agreement_ratio"] < 0.65
    assert found["opcua_lag_s"] == pytest.approx(LAG_SEARCH_MAX_S)


def test_seconds_without_a_good_value_are_counted_and_do_not_agree_by_accident():
    at_s = np.arange(-9, 60, 0.5)
    values = [None if 10 <= t < 15 else 5000.0 for t in at_s]
    found = figures(Shown.of(list(at_s), values), true=np.full(len(T_S), 5000.0))
    assert found["opcua_bad_s"] == pytest.approx(5, abs=0.1)
    assert found["opcua_agreement_ratio"] == 1


def test_a_way_that_never_showed_anything_has_no_figure_and_so_fails_its_bound():
    found = figures(Shown.of([], []))
    assert found["opcua_agreement_ratio"] is None
    assert found["opcua_bad_s"] == pytest.approx(59.5, abs=0.2)


def test_the_worst_point_counts_for_its_way():
    shown = {("opcua", POWER.address): looking(RAMP_W), ("opcua", WATER.address): Shown.of([], [])}
    found = agreement(T_S, {POWER: RAMP_W, WATER: np.full(len(T_S), 30.0)}, shown, ())
    assert found["opcua_agreement_ratio"] is None


def outage_of_server(back_s):
    at_s = np.arange(-9, 60, 0.5)
    values = [None if 20 <= t < back_s else np.interp(t - 1, T_S, RAMP_W) for t in at_s]
    return Shown.of(list(at_s), values)


def test_while_the_server_is_dead_nothing_is_expected_and_its_return_is_measured():
    found = figures(outage_of_server(29), Outage(20, 25))
    assert found["opcua_bad_s"] == 0
    assert found["opcua_agreement_ratio"] == 1
    assert found["ways_back_s"] == pytest.approx(4, abs=0.6)


def test_a_way_that_does_not_come_back_has_no_time_for_it():
    assert figures(outage_of_server(99), Outage(20, 25))["ways_back_s"] is None


def test_a_broken_device_excuses_itself_alone():
    at_s = np.arange(-9, 60, 0.5)
    gone = Shown.of(list(at_s), [None if 10 <= t < 32 else 30.0 for t in at_s])
    truth = {POWER: RAMP_W, WATER: np.full(len(T_S), 30.0)}
    shown = {("bms", POWER.address): looking(RAMP_W), ("bms", WATER.address): gone}
    found = agreement(T_S, truth, shown, [Outage(9, 30, device="cdu")])
    assert (found["bms_bad_s"], found["bms_agreement_ratio"]) == (0, 1)
    assert found["devices_back_s"] == pytest.approx(2, abs=0.6)
    assert found["dead_good_s"] == 0
    found = agreement(T_S, truth, shown, [Outage(9, 30, device="pdu")])
    assert found["bms_bad_s"] == pytest.approx(22, abs=0.2)


def test_what_looks_alive_while_its_device_is_dead_is_counted():
    found = figures(looking(RAMP_W), Outage(10, 30, device="pdu"))
    assert found["dead_good_s"] == pytest.approx(20 - DEAD_GRACE_S, abs=0.1)
    assert "dead_good_s" not in figures(looking(RAMP_W), Outage(10, 30, device="pdu", is_dead=False))


def test_an_outage_of_one_way_excuses_that_way_alone():
    at_s = np.arange(-9, 60, 0.5)
    gone = Shown.of(list(at_s), [None if 10 <= t < 20 else 5000.0 for t in at_s])
    truth = {POWER: np.full(len(T_S), 5000.0)}
    shown = {("bms", POWER.address): gone, ("opcua", POWER.address): gone}
    found = agreement(T_S, truth, shown, [Outage(10, 19, ways=("bms",))])
    assert found["bms_bad_s"] == 0
    assert found["opcua_bad_s"] == pytest.approx(10, abs=0.2)


def test_between_two_samples_the_truth_was_everything_in_between():
    true = np.array([0.0, 10.0, 10.0])
    lag = explained_lag_s(np.array([0.0, 5.0, 10.0]), true, np.full(3, 0.1), 0.05)
    assert list(lag) == [0, 0, 0]


def test_sightings_are_put_in_their_order():
    shown = Shown.of([2.0, 1.0], [20.0, 10.0])
    assert list(shown.at(np.array([0.5, 1.5, 2.5]))) == pytest.approx([np.nan, 10, 20], nan_ok=True)
