"""The ramp: how fast the budget may walk, and where it starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core import ramp
from controller.core.model import Limit, Ramp
from tests.core.blocks import SETTINGS

TICK_S = 0.05
AGREED = Ramp(down_w_per_s=500.0, up_w_per_s=250.0)


def start(budget_w):
    return ramp.start(budget_w, 0.0, AGREED.up_w_per_s)


def walk(
    pace,
    target_w,
    seconds_s,
    *,
    now_s=0.0,
    draw_w=None,
    aim_w=None,
    protection_w=1e9,
    lead_s=0.4,
    others=(),
    own=None,
):
    """Paces at every tick."""
    out = []
    limits = (Limit(target_w, "site", ramp=own), Limit(protection_w, "feed", protection=True), *others)
    for number in range(1, round(seconds_s / TICK_S) + 1):
        knows = draw_w is not None and ramp.leaves(pace, limits, SETTINGS)
        pace = ramp.step(
            pace,
            limits,
            now_s=now_s + number * TICK_S,
            elapsed_s=TICK_S,
            tick_s=TICK_S,
            brink=ramp.Brink(draw_w, aim_w or draw_w) if knows else None,
            ramp=AGREED,
            lead_s=lead_s,
        )
        out.append(pace)
    return out


def test_a_fall_takes_what_the_rate_allows():
    paces = walk(start(2000.0), 1000.0, 3.0)
    assert [p.aim_w for p in paces[19::20]] == pytest.approx([1500.0, 1000.0, 1000.0])


def test_a_fall_starts_at_the_draw_and_not_in_empty_headroom():
    first = walk(start(2000.0), 1000.0, TICK_S, draw_w=1400.0)[0]
    assert first.aim_w == pytest.approx(1400.0 - 25.0)


def test_a_fall_starts_where_limits_begin_to_bind_and_takes_most_of_the_room_along():
    """2,000 W allowed, 1,400 W drawn, and the limits bind from 1,500 W on: 100 W of room, of which a third stays.

    So 500 W of the aim take 433 W of power away, at 500 W/s.
    """
    paces = walk(start(2000.0), 1000.0, 1.0, draw_w=1400.0, aim_w=1500.0)
    assert paces[0].aim_w == pytest.approx(1500.0 - 500.0 / (400.0 + 100.0 / 3) * 25.0)
    assert paces[16].aim_w > 1000.0
    assert paces[17].aim_w == pytest.approx(1000.0)


def test_on_a_way_too_short_to_give_up_the_slack_in_step_the_rest_goes_at_once():
    paces = walk(start(2000.0), 1000.0, 0.3, draw_w=1100.0, aim_w=1500.0)
    assert paces[0].aim_w == pytest.approx(1200.0 - 1.5 * 25.0)
    assert paces[5].aim_w == pytest.approx(1000.0)


def test_what_nobody_draws_is_taken_at_once():
    assert walk(start(2000.0), 1000.0, TICK_S, draw_w=900.0, aim_w=1050.0)[0].aim_w == pytest.approx(1000.0)


def test_the_draw_counts_once_at_the_start_of_a_fall():
    """A draw that falls on its own in mid-ramp does not steepen the ramp."""
    pace = walk(start(2000.0), 1000.0, 0.5, draw_w=1900.0)[-1]
    after = walk(pace, 1000.0, TICK_S, now_s=0.5, draw_w=1001.0)[0]
    assert after.aim_w == pytest.approx(pace.aim_w - 25.0)


def test_a_fall_that_began_blind_begins_again_where_the_draw_is_known():
    """As after a restart in a ramp: for half a second nobody was heard."""
    pace = walk(start(2000.0), 1000.0, 0.5, draw_w=None)[-1]
    after = walk(pace, 1000.0, TICK_S, now_s=0.5, draw_w=1400.0)[0]
    assert after.aim_w == pytest.approx(1400.0 - 25.0)


def followed(seconds_s):
    """A line to be met at its end, followed beat by beat, with what floats add to it; 2,000 W are drawn."""
    pace = start(5000.0)
    for number in range(1, round(seconds_s / TICK_S) + 1):
        line_w = 2500.0 + AGREED.down_w_per_s * (5.0 - number * TICK_S * (1 + 1e-4))
        pace = walk(pace, line_w, TICK_S, now_s=number * TICK_S, draw_w=2000.0, aim_w=2200.0)[0]
    return pace


def test_a_new_setpoint_while_a_line_is_followed_begins_where_limits_bind():
    """Not in the headroom that the line still leaves: 2,000 W drawn, 1,500 W asked, that is a good second."""
    paces = walk(followed(2.0), 1500.0, 1.2, now_s=2.0, draw_w=2000.0, aim_w=2200.0)
    assert paces[0].aim_w < 2200.0
    assert paces[-1].aim_w == pytest.approx(1500.0)


def test_a_new_target_in_mid_fall_changes_no_rate_of_power():
    """A short way to 1,000 W, then 0 W: what the slack was for the short way is little for the long one."""
    pace = walk(start(2000.0), 1000.0, 0.1, draw_w=1100.0, aim_w=1500.0)[-1]
    paces = walk(pace, 0.0, 2.2, now_s=0.1, draw_w=1050.0)
    assert paces[20].line_w == pytest.approx(pace.line_w - 21 * 25.0)
    assert paces[20].aim_w > 500.0
    assert paces[-1].aim_w == 0.0


def test_a_gentle_limit_below_an_urgent_one_is_approached_at_its_own_rate():
    gentle = Limit(900.0, "gentle", ramp=Ramp(50.0, 50.0))
    paces = walk(start(2000.0), 1000.0, 4.0, draw_w=1100.0, aim_w=1500.0, others=(gentle,))
    reached = [pace.aim_w for pace in paces if pace.aim_w <= 1000.0]
    assert reached[0] == pytest.approx(1000.0, abs=5.0)
    assert reached[0] - reached[20] == pytest.approx(50.0, abs=3.0)


def test_after_protection_a_gentle_limit_is_approached_at_its_own_rate():
    gentle = Limit(900.0, "gentle", ramp=Ramp(50.0, 50.0))
    pace = walk(start(2000.0), 1800.0, 0.2, draw_w=1900.0, aim_w=1990.0, others=(gentle,))[-1]
    paces = walk(pace, 1800.0, 1.0, now_s=0.2, draw_w=1900.0, protection_w=1000.0, others=(gentle,))
    assert paces[0].aim_w == pytest.approx(1000.0, abs=5.0)
    assert paces[0].aim_w - paces[-1].aim_w <= 50.0


def test_a_draw_above_the_aim_raises_nothing():
    assert walk(start(2000.0), 1000.0, TICK_S, draw_w=9000.0)[0].aim_w == pytest.approx(1975.0)


def test_the_promised_line_follows_the_aim_by_the_lead():
    paces = walk(start(2000.0), 1000.0, 1.0)
    assert paces[-1 - 8].aim_w <= paces[-1].budget_w <= paces[-1 - 9].aim_w  # 8 beats are 0.4 s


def test_a_rise_is_commanded_and_promised_together():
    last = walk(start(1000.0), 2000.0, 2.0)[-1]
    assert last.aim_w == last.budget_w == pytest.approx(1500.0)


GENTLE, URGENT = Ramp(100.0, 50.0), Ramp(2000.0, 250.0)


def test_an_urgent_limit_is_not_slowed_by_a_gentle_one_below_it():
    paces = walk(start(2000.0), 1000.0, 1.0, own=GENTLE, others=(Limit(1500.0, "urgent", ramp=URGENT),))
    assert paces[4].aim_w == pytest.approx(1500.0), "the urgent one is met in a quarter of a second"
    assert paces[-1].aim_w == pytest.approx(1500.0 - 0.75 * 100.0), "from there on the gentle one"


def test_the_way_up_is_at_the_rate_of_whoever_held_the_aim_down_last():
    held = walk(start(1000.0), 1000.0, 0.5, own=GENTLE)[-1]
    free = walk(held, 2000.0, 2.0, now_s=0.5)
    assert free[-1].aim_w == pytest.approx(1000.0 + 2.0 * GENTLE.up_w_per_s)


def test_a_failsafe_in_between_does_not_steepen_what_was_agreed():
    held = walk(start(1000.0), 1000.0, 0.5, own=GENTLE)[-1]
    blind = walk(held, 2000.0, 0.5, now_s=0.5, others=(Limit(900.0, "failsafe"),))[-1]
    free = walk(blind, 2000.0, 2.0, now_s=1.0)
    assert free[-1].aim_w == pytest.approx(900.0 + 2.0 * GENTLE.up_w_per_s)


def test_of_two_that_end_together_the_gentler_way_up_counts():
    urgent = Limit(1000.0, "urgent", ramp=URGENT)
    held = walk(start(1000.0), 1500.0, 0.5, own=GENTLE, others=(urgent,))[-1]
    free = walk(held, 2000.0, 2.0, now_s=0.5)
    assert free[-1].aim_w == pytest.approx(1000.0 + 2.0 * GENTLE.up_w_per_s)


def test_at_the_top_an_agreement_ends():
    held = walk(start(1000.0), 1000.0, 0.5, own=GENTLE)[-1]
    top = walk(held, 1010.0, 1.0, now_s=0.5, protection_w=1010.0)[-1]
    assert top.up_w_per_s == GENTLE.up_w_per_s, "the site still holds it there"
    free = ramp.step(
        top,
        (Limit(1010.0, "feed", protection=True),),
        now_s=2.0,
        elapsed_s=TICK_S,
        tick_s=TICK_S,
        brink=None,
        ramp=AGREED,
        lead_s=0.4,
    )
    assert free.up_w_per_s == AGREED.up_w_per_s


def test_a_limit_above_the_aim_leaves_the_way_up_as_it_was_agreed():
    held = walk(start(1000.0), 1000.0, 0.5, own=GENTLE)[-1]
    free = walk(held, 2000.0, 2.0, now_s=0.5, own=URGENT)
    assert free[-1].aim_w == pytest.approx(1100.0)


def test_protection_does_not_ramp():
    first = walk(start(2000.0), 1000.0, TICK_S, protection_w=1200.0)[0]
    assert first.aim_w == 1200.0


@pytest.mark.parametrize(
    ("target_w", "elapsed_s", "aim_w"),
    [
        (1000.0, 1.0, 1500.0),  # down: the line is caught up at once
        (3000.0, 1.0, 2000.0 + 250.0 * 2 * TICK_S),  # up: lateness earns two beats and no more
        (3000.0, 0.0, 2000.0),
        (2000.0, 1.0, 2000.0),
    ],
)
def test_a_late_beat_catches_up_downwards_only(target_w, elapsed_s, aim_w):
    pace = ramp.step(
        start(2000.0),
        (Limit(target_w, "site"),),
        now_s=elapsed_s,
        elapsed_s=elapsed_s,
        tick_s=TICK_S,
        brink=None,
        ramp=AGREED,
        lead_s=0.4,
    )
    assert pace.aim_w == pytest.approx(aim_w)


@given(st.lists(st.tuples(st.floats(0.0, 5000.0), st.floats(0.0, 2.0)), max_size=30))
def test_no_wish_outruns_either_rate(wishes):
    pace, now_s = start(2000.0), 0.0
    for target_w, elapsed_s in wishes:
        now_s += elapsed_s
        before = pace
        pace = ramp.step(
            pace,
            (Limit(target_w, "site"),),
            now_s=now_s,
            elapsed_s=elapsed_s,
            tick_s=TICK_S,
            brink=None,
            ramp=AGREED,
            lead_s=0.4,
        )
        assert -500.0 * elapsed_s - 1e-6 <= pace.aim_w - before.aim_w
        assert pace.aim_w - before.aim_w <= 250.0 * min(elapsed_s, 2 * TICK_S) + 1e-6
        assert pace.budget_w >= pace.aim_w
        assert min(before.aim_w, target_w) - 1e-6 <= pace.aim_w <= max(before.aim_w, target_w) + 1e-6


@given(
    st.lists(st.tuples(st.floats(0.0, 0.3), st.sampled_from([1.0, 2.0, 3.0])), min_size=1, max_size=60),
)
def test_the_window_forgets_nothing_younger_than_its_length(steps):
    """Stored once or twice, the highest value of the window is the same."""
    trail, said, now_s = ((0.0, 2.0),), [(0.0, 2.0)], 0.0
    for elapsed_s, value_w in steps:
        now_s += elapsed_s
        trail = ramp.window(trail, now_s, value_w, 0.4)
        said.append((now_s, value_w))
        young = [w for at_s, w in said if at_s > now_s - 0.4]
        assert ramp.highest(trail) >= max(young)
        assert ramp.highest(trail) in {w for _, w in said}


@pytest.mark.parametrize(("left_s", "line_w"), [(2.0, 2000.0), (0.0, 1000.0), (-5.0, 1000.0)])
def test_the_arrival_line_ends_at_its_target(left_s, line_w):
    assert ramp.arrival_line_w(1000.0, left_s, 500.0) == line_w
