"""What a frequency response promises, second by second and under any sequence of samples."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core import frequency, frequency_model, ramp
from controller.core.frequency_model import FrequencySettings, Phase, Point, Underway
from controller.core.frequency_presets import PRESETS
from controller.core.model import NEVER_S, Limit, Measurement, Ramp

SAMPLE_S = 0.02
T0_S = 1000.0

STEP = FrequencySettings(
    product="step",
    nominal_hz=50.0,
    committed_w=100e3,
    full_s=0.7,
    sustain_s=5.0,
    release_w_per_s=20e3,
    rearm_s=20.0,
    dead_band_hz=0.1,
    steps=(Point(49.7, 0.5), Point(49.5, 1.0)),
    hold_s=0.05,
)
DROOP = FrequencySettings(
    product="droop",
    nominal_hz=50.0,
    committed_w=100e3,
    full_s=1.0,
    sustain_s=10.0,
    release_w_per_s=50e3,
    dead_band_hz=0.015,
    droop=PRESETS["gb_dynamic_containment_low"].droop,
    hold_s=0.04,
)


class Grid:
    """Feeds a response with samples 20 ms apart, and remembers what it did."""

    def __init__(self, product, draw_w=400e3):
        self.product, self.draw_w = product, draw_w
        self.now_s = T0_S
        self.state = frequency.start(product, T0_S)
        self.states = []
        self._flip = 1e-4

    def run(self, length_s, hz=None, *, good=True, sample_s=SAMPLE_S):
        """`hz`: a number, a function of the time into this run, or None: no more samples."""
        begins_s = self.now_s
        measurement = Measurement(0.0, False, NEVER_S)
        while self.now_s < begins_s + length_s - 1e-9:
            self.now_s += sample_s
            if hz is not None:
                self._flip = -self._flip  # live frequency never stands still
                value = hz(self.now_s - begins_s) if callable(hz) else hz
                measurement = Measurement(value + self._flip, good, self.now_s)
            self.tick(measurement)
        return self

    def tick(self, measurement):
        self.state = frequency.step(self.product, self.state, measurement, self.draw_w, self.now_s)
        self.states.append((self.now_s, self.state))
        return self.state

    def armed(self):
        return self.run(1.0, self.product.nominal_hz)

    @property
    def limit_w(self):
        found = frequency.limit(self.product, self.state)
        return None if found is None else found.power_w

    @property
    def keys(self):
        return [alarm.key for alarm in frequency.alarms(self.product, self.state)]


def test_a_step_sheds_its_share_of_the_commitment_below_what_was_drawn():
    grid = Grid(STEP).armed().run(0.2, 49.65)
    assert grid.state.phase is Phase.ACTIVE
    assert grid.limit_w == 350e3
    assert frequency.limit(STEP, grid.state).protection
    assert grid.run(0.2, 49.4).limit_w == 300e3


def test_the_baseline_is_the_draw_of_the_moment_of_activation():
    grid = Grid(STEP).armed().run(0.2, 49.4)
    grid.draw_w = 300e3  # it obeys
    assert grid.run(1.0, 49.4).limit_w == 300e3


def test_detection_takes_two_samples_at_the_rate_of_a_phasor_unit():
    """0.25 s is all that ERCOT gives; two samples at 50/s take 20 ms of it."""
    quick = FrequencySettings("q", 60.0, 100e3, 0.25, 900.0, 1e4, steps=(Point(59.85, 1.0),))
    grid = Grid(quick).armed()
    crossed_s = grid.now_s + SAMPLE_S
    grid.run(0.06, 59.9).run(0.06, 59.8)
    reacted_s = next(at_s for at_s, state in grid.states if state.phase is Phase.ACTIVE)
    assert reacted_s - (crossed_s + 0.06) == pytest.approx(SAMPLE_S, abs=1e-6)
    assert grid.state.began_at_s == pytest.approx(crossed_s + 0.06)


def test_one_sample_moves_nothing():
    grid = Grid(STEP).armed()
    for _ in range(20):
        grid.run(SAMPLE_S, 49.96).run(SAMPLE_S, 49.9).run(SAMPLE_S, 49.69).run(2 * SAMPLE_S, 49.9)
    assert grid.state.activations == 0
    assert grid.state.heard.wild == 0  # a fast dip, and believed: it was only too short


@pytest.mark.parametrize("wild_hz", [0.0, 44.0, 48.0, 49.0, 55.0, -50.0, 6553.5, float("nan"), float("inf")])
def test_a_wild_sample_is_none(wild_hz):
    """A phase jump or a broken register shows more than a grid can do from one sample to the next."""
    grid = Grid(STEP).armed()
    for _ in range(10):
        grid.run(2 * SAMPLE_S, wild_hz).run(0.1, 50.0)
    assert grid.state.activations == 0
    assert grid.state.heard.wild == 20
    assert grid.keys == ["frequency wild"]


def test_a_step_of_a_test_set_is_believed_as_soon_as_it_could_be_real():
    grid = Grid(STEP).armed()
    grid.run(0.2, 49.45)
    assert grid.state.phase is Phase.ACTIVE
    assert grid.state.activated_at_s - (grid.now_s - 0.2) < 0.15


def test_it_holds_for_its_sustain_time_whatever_the_frequency_does():
    grid = Grid(STEP).armed().run(0.2, 49.4).run(4.8, 50.0)
    assert grid.state.share == 1.0
    assert grid.run(0.5, 50.0).state.phase is Phase.RECOVERING


def test_with_a_release_frequency_it_holds_until_that_is_reached():
    held = FrequencySettings(
        "held", 50.0, 100e3, 1.0, 2.0, 1e6, steps=(Point(49.7, 1.0),), release_hz=49.9, hold_s=0.05
    )
    grid = Grid(held).armed().run(10.0, 49.75)
    assert grid.state.activations == 0
    grid.run(10.0, 49.6).run(10.0, 49.85)
    assert grid.state.share == 1.0
    assert grid.run(1.0, 49.95).state.share == 0.0


def test_recovery_is_no_faster_than_its_rate_and_then_the_limit_is_gone():
    grid = Grid(STEP).armed().run(0.2, 49.4).run(5.0, 50.0)
    at_s, before_w = grid.now_s, grid.limit_w
    grid.run(2.0, 50.0)
    assert grid.limit_w == pytest.approx(before_w + 20e3 * (grid.now_s - at_s))
    assert frequency.limit(STEP, grid.state).ramp.up_w_per_s == 20e3
    grid.run(3.5, 50.0)
    assert grid.limit_w is None


def test_through_the_ramp_it_falls_at_once_and_rises_at_its_own_rate_to_the_top():
    """The law's ramp takes the limit as it is: protection down, an agreement up, also after it is gone."""
    rating = Limit(500e3, "feed rating", protection=True)
    site = Ramp(1e3, 60e3)
    grid = Grid(STEP).armed()
    pace = ramp.start(500e3, grid.now_s, site.up_w_per_s)
    aims_w = []
    for n in range(400):
        grid.run(0.06, 49.4 if n < 10 else 50.0)
        own = frequency.limit(STEP, grid.state)
        limits = [rating] if own is None else [rating, own]
        beat = {"now_s": grid.now_s, "elapsed_s": 0.06, "tick_s": 0.06, "brink": None, "lead_s": 0.4}
        pace = ramp.step(pace, limits, ramp=site, **beat)
        aims_w.append(pace.aim_w)
    assert min(aims_w[:5]) == 300e3
    assert max(after - before for before, after in pairwise(aims_w)) <= 20e3 * 0.06 + 1e-6
    assert aims_w[-1] == 500e3


def test_no_second_activation_before_its_rearm_time_is_over():
    grid = Grid(STEP).armed().run(0.2, 49.4)
    grid.run(10.5, 50.0)
    assert grid.state.phase is Phase.WAITING
    assert "armed again in" in frequency.why(STEP, grid.state)
    grid.run(5.0, 49.4)
    assert grid.state.activations == 1
    grid.run(5.0, 50.0).run(0.2, 49.4)
    assert grid.state.activations == 2


def test_a_grid_that_stays_low_is_not_shed_for_again():
    """Re-arming asks for a grid at rest: after its sustain time the product is over."""
    assert Grid(STEP).armed().run(60.0, 49.4).state.activations == 1


def test_a_droop_follows_the_frequency_down_at_once_and_up_at_its_rate():
    grid = Grid(DROOP).armed().run(0.3, 49.9)
    assert grid.limit_w == pytest.approx(400e3 - 100e3 * 0.05 * 85 / 185, rel=1e-3)
    assert grid.run(0.3, 49.65).limit_w == pytest.approx(347.5e3, rel=1e-3)
    assert grid.run(0.3, 49.3).limit_w == 300e3
    grid.run(1.0, 49.8)
    assert grid.limit_w == pytest.approx(400e3 - 100e3 + 50e3, rel=0.02)
    assert grid.run(2.0, 50.0).limit_w is None


def test_a_delay_on_purpose_counts_from_the_crossing_and_is_called_off_by_a_return():
    late = FrequencySettings(
        "late", 50.0, 1e5, 2.0, 5.0, 1e5, steps=(Point(49.7, 1.0),), hold_s=0.05, delay_s=1.0
    )
    grid = Grid(late).armed().run(0.9, 49.6).run(0.5, 49.8)
    assert grid.state.activations == 0
    grid.run(0.98, 49.6)
    assert grid.state.activations == 0
    assert grid.run(0.1, 49.6).state.activations == 1


def test_high_frequency_is_nothing_to_a_load():
    assert Grid(DROOP).armed().run(2.0, 50.4).limit_w is None


# --- blindness --------------------------------------------------------------------------------------


def test_blind_it_never_activates():
    grid = Grid(STEP).armed().run(SAMPLE_S, 49.6).run(30.0)
    assert grid.state.activations == 0
    assert grid.keys == ["frequency"]
    assert "cannot respond" in next(frequency.alarms(STEP, grid.state)).text


def test_bad_samples_never_activate():
    grid = Grid(STEP).armed().run(30.0, 49.4, good=False)
    assert grid.state.activations == 0
    assert grid.keys == ["frequency"]


def test_samples_from_the_future_or_long_ago_never_activate():
    grid = Grid(STEP).armed()
    for n in range(100):
        grid.now_s += SAMPLE_S
        grid.tick(Measurement(49.4 + n / 1e4, True, grid.now_s + 5.0))
        grid.tick(Measurement(49.4 + n / 1e4, True, grid.now_s - 5.0))
    assert grid.state.activations == 0


@pytest.mark.parametrize("product", [STEP, DROOP])
def test_blind_while_active_it_holds_until_its_sustain_time_is_over(product):
    grid = Grid(product).armed().run(0.1, 49.8).run(0.3, 49.4)
    held_w = grid.limit_w
    assert grid.run(product.sustain_s - 0.5).limit_w == held_w
    assert grid.keys[0] == "frequency"
    assert "holds until" in next(frequency.alarms(product, grid.state)).text
    assert grid.run(10.0).limit_w is None


def test_a_droop_that_sees_again_follows_again():
    grid = Grid(DROOP).armed().run(0.3, 49.3).run(10.5)
    assert grid.state.phase is Phase.RECOVERING
    grid.run(0.5, 49.3)
    assert (grid.state.phase, grid.limit_w) == (Phase.ACTIVE, 300e3)


def test_the_same_bits_for_ever_are_no_measurement():
    grid = Grid(STEP).armed()
    grid._flip = 0.0
    grid.run(12.0, 49.9)
    assert grid.keys == ["frequency frozen"]
    grid.run(5.0, 49.9)
    assert not frequency.wakes(STEP, grid.state, 49.9)
    grid._flip = 1e-4
    assert grid.run(0.2, 49.9).keys == []


def test_frozen_while_active_it_recovers_when_its_sustain_time_is_over():
    grid = Grid(DROOP).armed().run(0.3, 49.3)
    grid._flip = 0.0
    assert grid.run(9.0, 49.3).limit_w == 300e3
    assert grid.run(10.0, 49.3).limit_w is None


def test_after_a_restart_in_mid_event_it_waits_for_a_grid_at_rest():
    """Its own shed is in the draw by now: it would shed the same power twice."""
    grid = Grid(STEP).run(30.0, 49.4)
    assert grid.state.activations == 0
    assert "not seen at rest" in frequency.why(STEP, grid.state)
    grid.run(1.0, 50.0).run(0.2, 49.4)
    assert grid.state.activations == 1


def restarted(grid, down_s=2.0, **changes):
    """The same grid, watched by the next process; `changes` of the product were made meanwhile."""
    kept = frequency.to_inherit(grid.product, grid.state)
    grid.now_s += down_s
    grid.product = replace(grid.product, **changes)
    grid.state = frequency.start(grid.product, grid.now_s, kept)
    return grid


def test_a_restart_goes_on_with_a_step_for_the_rest_of_its_time():
    """The grid is still low, and in half of the time nothing is heard of it."""
    grid = restarted(Grid(STEP).armed().run(1.0, 49.6))
    assert grid.limit_w == 350e3
    assert grid.run(1.0).run(0.9, 49.6).limit_w == 350e3, "4.8 s: nearly one before, two down, and these"
    grid.run(0.3, 49.6)
    for _ in range(9):
        before_w = grid.limit_w
        assert 0.0 < grid.run(0.1, 49.6).limit_w - before_w <= 1.001 * STEP.release_w_per_s * 0.1


def test_a_response_that_is_over_by_the_time_of_a_restart_comes_back_at_its_rate():
    """And is armed again when it would have been."""
    grid = restarted(Grid(STEP).armed().run(1.0, 49.6), down_s=10.0)
    grid.run(1.0, 49.6)
    assert grid.state.phase is Phase.RECOVERING
    assert grid.limit_w == pytest.approx(
        350e3 + STEP.release_w_per_s, abs=1.1 * STEP.release_w_per_s * SAMPLE_S
    )
    grid.run(7.8, 50.0)
    assert grid.limit_w is None
    assert "armed again in" in frequency.why(STEP, restarted(grid, down_s=0.0).state)
    assert grid.run(0.1, 50.0).state.phase is Phase.WAITING
    assert grid.run(0.5, 50.0).state.phase is Phase.READY


@pytest.mark.parametrize("release_hz", [None, 49.9])
def test_a_recovery_goes_on_where_it_stood(release_hz):
    grid = Grid(replace(STEP, release_hz=release_hz)).armed().run(5.0, 49.6).run(1.0, 50.0)
    before_w = grid.limit_w
    assert before_w > 350e3
    grid = restarted(grid, down_s=100.0)
    assert grid.limit_w == pytest.approx(before_w), "nobody let it rise meanwhile"
    grid.run(1.0, 49.4)
    assert 0.0 < grid.limit_w - before_w <= 1.001 * STEP.release_w_per_s, "nor is it shed for again"


WATCHED = [DROOP, replace(STEP, release_hz=49.9)]


@pytest.mark.parametrize("product", WATCHED, ids=["droop", "step with a release frequency"])
def test_an_instrument_that_a_restart_still_looks_for_is_not_blind(product):
    """Their time is over long since; what holds them is the frequency, and nothing is known of that yet."""
    grid = Grid(product).armed().run(30.0, 49.4)
    held_w = grid.limit_w
    assert held_w == 300e3
    restarted(grid).run(frequency.FOUND_S - 1.0)
    assert grid.limit_w == held_w
    assert grid.run(10.0, 49.4).limit_w == held_w, "found, and still low"
    assert grid.run(1.0, 50.0).limit_w > held_w


@pytest.mark.parametrize("product", WATCHED, ids=["droop", "step with a release frequency"])
def test_an_instrument_that_is_not_found_after_a_restart_is_blind(product):
    grid = restarted(Grid(product).armed().run(30.0, 49.4))
    assert grid.run(frequency.FOUND_S + 1.0).limit_w > 300e3


def test_a_droop_that_recovered_blind_looks_first_when_it_is_started_again():
    grid = Grid(DROOP).armed().run(1.0, 49.4).run(10.5)
    assert grid.state.phase is Phase.RECOVERING
    before_w = grid.limit_w
    restarted(grid).run(1.0)
    assert grid.limit_w == pytest.approx(before_w)


@pytest.mark.parametrize("committed_w", [25e3, 200e3])
def test_another_commitment_lifts_nothing_of_what_is_held_over_a_restart(committed_w):
    grid = restarted(Grid(STEP).armed().run(1.0, 49.6), committed_w=committed_w)
    assert grid.limit_w == pytest.approx(350e3)
    assert grid.run(1.5, 49.6).limit_w <= 350e3 + 0.1
    assert grid.run(15.0, 49.6).limit_w is None


def test_a_clock_that_was_wrong_makes_no_response_longer():
    kept = Underway(Phase.ACTIVE, 400e3, 50e3, raised_at_s=T0_S + 1e6, ready_from_s=T0_S + 1e6)
    grid = Grid(STEP)
    grid.state = frequency.start(STEP, T0_S, kept)
    assert grid.run(STEP.sustain_s - 0.1, 50.0).limit_w == 350e3
    assert grid.run(0.2, 50.0).state.phase is Phase.RECOVERING
    assert grid.run(STEP.rearm_s, 50.0).state.phase is Phase.READY


@pytest.mark.parametrize("product", [STEP, DROOP], ids=["step", "droop"])
def test_a_response_of_which_only_its_limit_was_kept_raises_nothing_while_the_grid_is_low(product):
    grid = Grid(product).armed().run(1.0, 49.65)
    held_w = grid.limit_w
    grid.state = frequency.start(product, grid.now_s, frequency.just_begun(product, held_w, grid.now_s))
    for _ in range(40):
        assert grid.run(0.1, 49.65).limit_w <= held_w + 0.001
    assert grid.run(30.0, 50.0).limit_w is None, "and ends as any other"


def test_what_is_at_rest_leaves_nothing_to_a_restart():
    assert frequency.to_inherit(STEP, Grid(STEP).armed().state) is None
    assert frequency.to_inherit(None, None) is None


def test_it_is_not_armed_before_block_power_was_measured():
    grid = Grid(STEP, draw_w=None).armed().run(1.0, 49.4)
    assert grid.state.activations == 0
    assert "never measured" in frequency.why(STEP, grid.state)


def test_with_the_power_meter_lost_the_last_known_draw_is_the_baseline():
    grid = Grid(STEP).armed()
    grid.draw_w = None
    grid.run(12.0, 50.0)
    assert grid.keys == ["frequency baseline"]
    assert grid.run(0.2, 49.4).limit_w == 300e3


def test_more_than_the_block_draws_cannot_be_asked_of_it():
    assert Grid(STEP, draw_w=60e3).armed().run(0.2, 49.4).limit_w == 0.0


@pytest.mark.parametrize("depth_hz", [0.31, 0.4, 0.6, 1.5])
def test_what_comes_between_two_spikes_is_seen_as_well(depth_hz):
    """The beat sees the newest sample alone: woken by spikes only, it would see nothing but spikes."""
    grid, before_hz = Grid(STEP).armed(), 50.0
    for n in range(60):
        hz = 50.0 - depth_hz if n % 3 == 0 else 50.0
        grid.now_s += SAMPLE_S
        if any(frequency.wakes(STEP, grid.state, one) for one in (before_hz, hz)):
            grid.tick(Measurement(hz + n / 1e5, True, grid.now_s))
        before_hz = hz
    assert grid.state.activations == 0


def test_only_a_sample_that_asks_for_clearly_more_wakes_the_beat():
    grid = Grid(DROOP)
    assert not frequency.wakes(DROOP, grid.state, 49.5)  # not armed
    grid.armed()
    assert not frequency.wakes(DROOP, grid.state, 49.9)
    assert frequency.wakes(DROOP, grid.state, 49.7)
    grid.run(0.3, 49.7)
    assert not frequency.wakes(DROOP, grid.state, 49.7)


def test_after_a_gap_a_crossing_has_to_hold_anew():
    grid = Grid(STEP).armed().run(1.0).run(2 * SAMPLE_S, 49.6)
    assert grid.state.activations == 0
    assert grid.run(2 * SAMPLE_S, 49.6).state.activations == 1


def test_two_low_samples_with_a_gap_between_them_prove_nothing_of_the_gap():
    grid = Grid(STEP).armed().run(SAMPLE_S, 49.85).run(SAMPLE_S, 49.69)
    for _ in range(10):
        grid.run(1.0).run(SAMPLE_S, 49.69)
    assert grid.state.activations == 0


def test_a_meter_that_comes_back_with_nonsense_is_not_believed():
    grid = Grid(STEP).armed().run(1.0).run(5.0, 44.0)
    assert grid.state.activations == 0


def test_a_late_beat_earns_no_more_than_a_tenth_of_a_second_of_recovery():
    grid = Grid(STEP).armed().run(0.2, 49.4).run(5.2, 50.0)
    assert grid.state.phase is Phase.RECOVERING
    before_w = grid.limit_w
    grid.now_s += 60.0
    grid.tick(Measurement(50.0, True, grid.now_s))
    assert grid.limit_w == pytest.approx(before_w + 2e3)


def test_a_droop_goes_back_only_as_far_as_all_samples_agree():
    grid = Grid(DROOP).armed().run(0.1, 49.8).run(0.3, 49.6)
    held_w = grid.limit_w
    for _ in range(20):
        grid.run(SAMPLE_S, 49.68).run(SAMPLE_S, 49.6)
    assert grid.limit_w == pytest.approx(held_w, rel=1e-3)


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": ()}, "one of the two"),
        ({"droop": DROOP.droop}, "one of the two"),
        ({"steps": (Point(49.5, 1.0), Point(49.7, 0.5))}, "falling frequency"),
        ({"steps": (Point(49.7, 1.5),)}, "from 0 to 1"),
        ({"steps": (Point(49.95, 1.0),)}, "inside the dead band"),
        ({"steps": (Point(44.0, 1.0),)}, "further from nominal"),
        ({"committed_w": 0.0}, "above 0"),
        ({"sustain_s": -1.0}, "not below 0"),
        ({"hold_s": 0.6}, "hold_s is from 0"),
        ({"delay_s": 0.7}, "leaves nothing"),
        ({"committed_w": float("nan")}, "above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_sentence(changes, words):
    plain = {name: getattr(STEP, name) for name in FrequencySettings.__slots__}
    with pytest.raises(ValueError, match=words):
        FrequencySettings(**{**plain, **changes})


# --- under anything ---------------------------------------------------------------------------------

ANY_HZ = st.one_of(
    st.floats(49.0, 50.5),
    st.sampled_from([49.4, 49.6, 49.69, 49.71, 49.985, 50.0]),
    st.floats(allow_nan=True, allow_infinity=True),
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([0.005, 0.02, 0.05, 0.1, 1.0]),  # time to the next tick
        ANY_HZ,
        st.sampled_from([0.0, 0.0, 0.0, 0.02, 0.5, -1.0]),  # age of the sample
        st.booleans(),  # good
        st.one_of(st.none(), st.floats(0.0, 1e6)),  # draw
        st.integers(1, 40),  # how often
    ),
    max_size=40,
)


def histories(product, events):
    """(now, state before, state after) of every tick, beginning armed."""
    grid = Grid(product).armed()
    for wait_s, hz, age_s, good, draw_w, count in events:
        for _ in range(count):
            grid.now_s += wait_s
            grid.draw_w = draw_w
            before = grid.state
            sample = Measurement(hz, good, grid.now_s - age_s)
            yield grid.now_s, before, grid.tick(sample)


@pytest.mark.parametrize("product", [STEP, DROOP])
@given(events=EVENTS)
@settings(max_examples=150, deadline=None)
def test_under_anything_it_keeps_its_promises(product, events):
    rate_per_s = product.release_w_per_s / product.committed_w
    last_activation_s = last_raise_s = NEVER_S
    edge_hz = product.nominal_hz - product.dead_band_hz
    for now_s, before, after in histories(product, events):
        assert 0.0 <= after.share <= 1.0
        assert len(after.heard.samples) <= 2 * frequency_model.HOLD_MAX_S / frequency.CLOSEST_S + 2
        fallen = before.share - after.share
        assert fallen <= rate_per_s * (now_s - before.at_s) + 1e-9  # never up faster than allowed
        if after.share > before.share:  # only a fresh, good, low sample raises it
            newest = after.heard.samples[-1]
            assert newest.hz < edge_hz
            assert now_s - newest.at_s <= product.age_max_s + 1e-9
            assert len(after.heard.samples) >= frequency.SAMPLES_MIN
            last_raise_s = now_s
        if after.activations > before.activations:
            assert before.phase is Phase.READY
            assert now_s - last_activation_s >= product.rearm_s
            last_activation_s = now_s
        if fallen > 0.0 and product.steps:
            assert now_s - last_raise_s >= product.sustain_s
        if after.share > 0.0:
            limit = frequency.limit(product, after)
            assert 0.0 <= limit.power_w <= after.baseline_w
        else:
            assert frequency.limit(product, after) is None


@given(st.lists(ANY_HZ, min_size=1, max_size=60), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_duplicates_and_old_samples_change_nothing(values, seed):
    """Whatever comes again, or late, is as if it had not come."""
    plain, noisy = Grid(STEP).armed(), Grid(STEP).armed()
    old = Measurement(49.3, True, T0_S + 0.5)
    for n, hz in enumerate(values):
        for grid in (plain, noisy):
            grid.now_s = T0_S + 1.0 + (n + 1) * SAMPLE_S
        sample = Measurement(hz, True, plain.now_s)
        plain.tick(sample)
        noisy.tick(sample)
        if seed >> (n % 16) & 1:
            noisy.tick(sample)
            noisy.tick(old)
    assert plain.state == noisy.state


@given(st.floats(45.0, 55.0), st.floats(45.0, 55.0))
def test_less_frequency_never_asks_for_less(one_hz, other_hz):
    for product in (STEP, DROOP):
        low_hz, high_hz = sorted((one_hz, other_hz))
        assert frequency.share(product, low_hz) >= frequency.share(product, high_hz)


@given(st.floats(-1.0, 0.0999))
def test_inside_the_dead_band_nothing_is_asked(below_hz):
    assert frequency.share(STEP, 50.0 - below_hz) == 0.0


def test_the_droop_of_great_britain_runs_through_its_published_points():
    shares = {hz: frequency.share(DROOP, hz) for hz in (49.985, 49.8, 49.65, 49.5, 49.0)}
    assert shares == pytest.approx({49.985: 0.0, 49.8: 0.05, 49.65: 0.525, 49.5: 1.0, 49.0: 1.0})
    assert all(a <= b for a, b in pairwise(shares.values()))
