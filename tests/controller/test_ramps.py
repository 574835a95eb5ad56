"""The way worked out ahead is the way the law goes."""

from dataclasses import replace

import pytest

from controller.core.model import Ramp, Setpoint
from controller.views.ramps import ramps, walk
from tests.core.blocks import SETTINGS

FULL_W, DOWN, UP, LEAD_S = 14_000.0, 600.0, 400.0, 0.4
UTC_0 = 1_790_000_000.0
BLOCK = replace(SETTINGS, feed_rating_w=FULL_W, ramp=Ramp(DOWN, UP), lead_s=LEAD_S)
BEAT_S = BLOCK.tick_s + 1e-6


def wish(starts_s, ends_s, limit_w, name="dr", **fields):
    return Setpoint("site", name, "limit", limit_w, UTC_0 + starts_s, UTC_0 + ends_s, **fields)


def way(*wishes):
    """(begins, done, from, to, towards) of every ramp."""
    return [
        (r.begins_utc_s - UTC_0, r.done_utc_s - UTC_0, r.from_w, r.to_w, r.towards.removeprefix("site "))
        for r in ramps(wishes, BLOCK, UTC_0, FULL_W)
    ]


def test_without_a_change_there_is_no_ramp():
    assert way() == []
    assert way(wish(10.0, 20.0, FULL_W)) == []


def test_a_block_that_is_already_under_a_limit_comes_down_at_once():
    (down,) = way(wish(-5.0, 1e13, 8000.0))
    assert down[:2] == pytest.approx((0.0, 10.4), abs=BEAT_S)
    assert down[2:] == (FULL_W, pytest.approx(8000.0), "dr")


def test_a_window_shorter_than_its_ramps_never_reaches_its_limit():
    down, up = way(wish(10.0, 12.0, 8000.0))
    assert down[:2] == pytest.approx((10.0, 12.4), abs=BEAT_S)
    assert up[:2] == pytest.approx((12.0, 15.0), abs=2 * BEAT_S)
    assert (down[3], up[3]) == pytest.approx((12_800.0, FULL_W), abs=DOWN * BEAT_S)
    assert (down[4], up[4]) == ("dr", "full power")


def test_a_descent_to_be_done_in_time_begins_early_enough_through_several_windows():
    """10 kW are 16.7 s down: the way to 4 kW begins before the window in between."""
    wishes = (wish(30.0, 32.0, 12_000.0, "a"), wish(32.0, 1e13, 4000.0, "b"))
    found = way(*(replace(one, arrive_at_start=True) for one in wishes))
    assert {towards for *_, towards in found} <= {"b, to be met at its start", "b"}
    assert found[0][0] == pytest.approx(32.0 - LEAD_S - 10_000.0 / DOWN, abs=2 * BEAT_S)
    assert found[-1][1] == pytest.approx(32.0, abs=2 * BEAT_S)
    assert (found[0][2], found[-1][3]) == (FULL_W, pytest.approx(4000.0))


def test_a_setpoint_that_brings_its_own_ramp_goes_down_and_comes_back_by_it():
    down, up = way(wish(10.0, 60.0, 8000.0, ramp=Ramp(2000.0, 100.0)))
    assert down[1] - down[0] == pytest.approx(3.0 + LEAD_S, abs=BEAT_S)
    assert up[1] - up[0] == pytest.approx(60.0, abs=BEAT_S)


def test_a_rest_of_a_year_takes_no_longer_than_one_of_a_second():
    corners = list(walk((wish(3e7, 3e7 + 10.0, 13_000.0),), BLOCK, UTC_0, FULL_W))
    assert len(corners) < 500
