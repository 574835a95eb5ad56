"""The whole law on a block of four GPUs that obeys at once: what one decision must say."""

from dataclasses import replace

import numpy as np
import pytest

from controller.core import frequency, law, watch
from controller.core.frequency_model import FrequencySettings, Point
from controller.core.model import (
    FOREVER_S,
    NEVER_S,
    NO_LIMIT_W,
    Carried,
    Contact,
    FailsafeSettings,
    Inlets,
    Mode,
    Running,
    Setpoint,
    Site,
)
from tests.core.blocks import MAX_W, MIN_W, SETTINGS, SILENT, UTC_0, good, settings, snapshot

BASE_W = 600.0
TICK_S = SETTINGS.tick_s


class Block:
    """GPUs that take every limit at once and draw it in full; instruments without noise."""

    def __init__(self, block=SETTINGS, state=None, limit_w=300.0, at_s=100.0) -> None:
        self.settings, self.now_s = block, at_s
        self.state = law.start(block, at_s) if state is None else state
        self.limit_w = np.full(4, limit_w)
        self.seq = np.ones(2, dtype=np.int64)
        self.revision = 0
        self.history = [(at_s, limit_w * 4)]

    def tick(self, *, site=SILENT, meter=True, **told):
        """One beat, with the agents' newest report."""
        self.now_s += TICK_S
        self.revision += 1
        draw_w = float(self.limit_w.sum())
        seen = snapshot(
            self.now_s,
            site=site,
            **{
                "meter": good(self.metered_w(), self.now_s) if meter else good(0.0, NEVER_S),
                "inlets": Inlets(np.full(4, self.metered_w() / 4), np.full(4, True), np.full(4, self.now_s)),
                "limit_w": self.limit_w,
                "power_w": self.limit_w,
                "seq": self.seq,
                "revision": self.revision,
            }
            | told,
        )
        self.decision = law.tick(self.settings, self.state, seen)
        self.state = self.decision.state
        self.limit_w, self.seq = self.decision.gpu_limits_w, self.decision.node_seq
        self.history.append((self.now_s, draw_w))
        return self.decision

    def metered_w(self) -> float:
        past = [w for at_s, w in self.history if at_s <= self.now_s - self.settings.meter_lag_s]
        return BASE_W + (past[-1] if past else self.history[0][1])

    def run(self, seconds_s, **told):
        for _ in range(round(seconds_s / TICK_S)):
            self.tick(**told)
        return self.decision

    def block_w(self) -> float:
        return float(self.limit_w.sum()) + BASE_W

    def site(self, limit_w=None, **fields) -> Site:
        """A site that lives now and wants this."""
        wishes = () if limit_w is None else (setpoint(limit_w, **fields),)
        return Site(contacts=(Contact(self.now_s, self.now_s),), setpoints=wishes)

    def under_control(self, seconds_s, limit_w=None, **fields):
        for _ in range(round(seconds_s / TICK_S)):
            self.tick(site=self.site(limit_w, **fields))
        return self.decision


def setpoint(limit_w, starts_s=0.0, ends_s=1e6, source="openadr", kind="limit", **fields) -> Setpoint:
    return Setpoint(source, "e/0", kind, limit_w, UTC_0 + starts_s, UTC_0 + ends_s, **fields)


def test_the_first_decision_holds_the_failsafe_limit_before_anything_is_known():
    first = Block().tick(meter=False, leased=False, at_s=NEVER_S)
    assert (first.mode, first.binding.power_w) == (Mode.INIT, 2400.0)
    assert first.binding.source == "failsafe: openadr not heard yet"
    assert first.gpu_limits_w.tolist() == [MIN_W + 150.0] * 4  # (2,400 W - 1,000 W assumed base load) / 4
    assert first.shortfall_w > 0.0, "GPUs that were not heard may hold their most"


def test_a_restart_never_raises_what_bound_before():
    carried = Carried(limit_w=1800.0, budget_w=1800.0, source="openadr e/0")
    block = Block(state=law.start(SETTINGS, 100.0, carried))
    last = block.run(5.0)
    assert last.binding.source == "before restart: openadr e/0"
    assert last.budget_w <= 1800.0


@pytest.mark.parametrize(("ends_at_s", "binding_w"), [(FOREVER_S, 1800.0), (101.0, 2400.0)])
def test_an_inherited_limit_ends_with_its_own_window(ends_at_s, binding_w):
    carried = Carried(1800.0, 1800.0, "openadr e/0", ends_at_s)
    assert Block(state=law.start(SETTINGS, 100.0, carried)).run(2.0).binding.power_w == binding_w


def test_an_inherited_window_is_in_force_from_the_first_beat():
    wish = setpoint(1800.0)
    block = Block(state=law.start(SETTINGS, 100.0, None, (Running(wish, 500.0),)))
    assert block.tick(site=Site(setpoints=(wish,))).binding.power_w == 1800.0


def test_a_site_that_speaks_takes_over_and_the_inherited_limit_goes():
    block = Block(state=law.start(SETTINGS, 100.0, Carried(1800.0, 1800.0, "openadr e/0")))
    last = block.under_control(2.0, 3000.0)
    assert (last.mode, last.binding.source) == (Mode.LIMITED, "openadr e/0")


@pytest.mark.parametrize(
    ("told", "source", "power_w"),
    [
        ({}, "feed rating", 5000.0),
        ({"cooling": 3000.0}, "cooling capacity", 3000.0),
        ({"cooling": None}, "cooling not heard", 4000.0),
        ({"limit_w": 2000.0}, "openadr e/0", 2000.0),
        ({"limit_w": 2000.0, "cooling": 1900.0}, "cooling capacity", 1900.0),
    ],
)
def test_the_lowest_limit_binds_and_has_a_name(told, source, power_w):
    block = Block(settings(cooling_blind_w=4000.0))
    capacity_w = told.get("cooling", 9000.0)
    for _ in range(40):
        cooling = good(0.0, NEVER_S) if capacity_w is None else good(capacity_w, block.now_s + TICK_S)
        last = block.tick(site=block.site(told.get("limit_w")), cooling=cooling)
    assert (last.binding.source, last.binding.power_w) == (source, power_w)
    assert last.binding in last.limits
    assert source in watch.why(block.settings, last)


def test_a_block_under_a_limit_ends_close_to_it_and_never_above():
    block = Block()
    last = block.under_control(30.0, 2000.0)
    assert last.budget_w == 2000.0
    assert 1950.0 < block.block_w() <= 2000.0
    assert (last.shortfall_w, last.alarms) == (0.0, ())


def test_curtailment_and_recovery_keep_their_rates_in_every_second():
    block = Block()
    block.under_control(30.0, 3000.0)
    power_w = []
    for limit_w in (1600.0, 3000.0):
        for _ in range(200):
            block.tick(site=block.site(limit_w))
            power_w.append(block.block_w())
    second = round(1.0 / TICK_S)
    moves_w = np.array(power_w[second:]) - np.array(power_w[:-second])
    unsure_ratio = SETTINGS.skew_s / 1.0  # while it ramps, the base load is known no better than this
    whole_watts_w = 2.0 * len(block.limit_w)
    assert moves_w.min() >= -(1.0 + unsure_ratio) * SETTINGS.ramp.down_w_per_s - whole_watts_w
    assert moves_w.max() <= (1.0 + unsure_ratio) * SETTINGS.ramp.up_w_per_s + whole_watts_w
    assert min(power_w) <= 1600.0
    assert power_w[-1] > 2900.0


def test_protection_cuts_within_one_beat():
    block = Block(settings(cooling_blind_w=4000.0))
    for _ in range(600):
        block.tick(site=block.site(), cooling=good(6000.0, block.now_s + TICK_S))
    assert block.block_w() > 3000.0
    block.tick(site=block.site(), cooling=good(2000.0, block.now_s + TICK_S))
    assert block.block_w() <= 2000.0


def test_a_limit_below_what_can_be_shed_is_held_at_the_minima_and_said():
    block = Block()
    last = block.under_control(30.0, 1000.0)
    assert last.gpu_limits_w.tolist() == [MIN_W] * 4
    assert last.shortfall_w == pytest.approx(4 * MIN_W + BASE_W - 1000.0, abs=20.0)
    assert "shortfall" in {alarm.key for alarm in last.alarms}
    assert "cannot be shed" in watch.why(block.settings, last)


def test_a_silent_agent_costs_the_others_and_not_the_promise():
    """Its GPUs count at what they were last ordered, and later at the most they can do."""
    block = Block()
    block.under_control(30.0, 2200.0)
    for _ in range(round(15.0 / TICK_S)):
        held = block.limit_w.copy()
        block.tick(site=block.site(2200.0), at_s=[100.0, block.now_s + TICK_S])
        block.limit_w[:2] = held[:2]  # nobody is there to take the new ones
        block.seq = np.array([1, block.decision.node_seq[1]])
    assert block.decision.gpu_limits_w[2:].tolist() == [MIN_W] * 2
    assert "agent n0" in {alarm.key for alarm in block.decision.alarms}


def test_loss_of_the_site_leads_to_failsafe_with_the_open_window_still_in_force():
    block = Block()
    block.under_control(20.0, 2000.0)
    heard = block.site(2000.0)
    last = block.run(6.0, site=heard)
    assert (last.mode, last.binding.power_w) == (Mode.FAILSAFE, 2000.0)
    assert "failsafe: openadr heartbeat lost" in {limit.source for limit in last.limits}


def test_a_node_that_fell_back_comes_back_no_faster_than_the_ramp():
    """The budget stood all the while; the power that a fault took away returns at the agreed rate."""
    block = Block()
    block.under_control(30.0, 3000.0)
    for _ in range(40):
        block.limit_w[:2] = MIN_W
        block.tick(site=block.site(3000.0), leased=[False, True])
    block.limit_w[:2] = MIN_W
    power_w = []
    for _ in range(200):
        block.tick(site=block.site(3000.0))
        power_w.append(block.block_w())
    second = round(1.0 / TICK_S)
    moves_w = np.array(power_w[second:]) - np.array(power_w[:-second])
    assert moves_w.max() <= 1.1 * SETTINGS.ramp.up_w_per_s
    assert power_w[-1] > 2900.0


def test_an_idle_block_gives_headroom_for_a_start_at_once():
    """What nobody draws is shared out all the same: a job that starts is not throttled for it."""
    block = Block()
    last = block.under_control(40.0)
    assert last.gpu_limits_w.tolist() == [MAX_W] * 4


def test_an_agent_that_observes_only_gets_no_more_than_it_holds():
    block = Block(limit_w=500.0)
    for _ in range(200):
        held = block.limit_w.copy()
        block.tick(site=block.site(1500.0), leased=[False, True])
        block.limit_w[:2] = held[:2]
        block.seq[0] = 1
    assert "lease n0" in {alarm.key for alarm in block.decision.alarms}
    assert block.decision.gpu_limits_w[2:].tolist() == [MIN_W] * 2


def test_the_law_is_a_function_of_its_arguments():
    """Asked twice, it says the same twice: nothing is kept but what it hands back."""
    block = Block()
    block.under_control(5.0, 2500.0)
    state = block.state
    seen = snapshot(block.now_s + TICK_S, meter=good(2000.0, block.now_s), site=block.site(1800.0))
    one, two = (law.tick(SETTINGS, state, seen) for _ in range(2))
    assert one.gpu_limits_w.tolist() == two.gpu_limits_w.tolist()
    assert one.node_seq.tolist() == two.node_seq.tolist()
    for name in ("mode", "binding", "limits", "budget_w", "base_w", "shortfall_w", "alarms"):
        assert getattr(one, name) == getattr(two, name)


def test_a_cooling_plant_that_falls_silent_while_failing_lifts_nothing():
    block = Block(settings(cooling_blind_w=3500.0))
    for _ in range(60):
        block.tick(site=Site((Contact(block.now_s, block.now_s),)), cooling=good(1800.0, block.now_s))
    assert block.decision.binding.power_w == 1800.0
    heard_s = block.now_s
    for _ in range(200):
        block.tick(site=Site((Contact(block.now_s, block.now_s),)), cooling=good(1800.0, heard_s))
    assert block.decision.binding.source == "cooling capacity when last heard"
    assert block.decision.budget_w <= 1800.0


def restarted(block: Block, **forgotten) -> Block:
    """The next process on the same block, with what the last one has left on disk."""
    last, frequency_w = block.decision, block.settings.frequency
    carried = Carried(
        last.binding.power_w,
        last.budget_w,
        last.binding.source,
        up_w_per_s=last.state.pace.up_w_per_s,
        cooling_w=last.state.cooling_w,
        response=frequency.to_inherit(frequency_w, last.state.frequency),
    )
    state = law.start(block.settings, block.now_s, replace(carried, **forgotten))
    again = Block(block.settings, state, at_s=block.now_s)
    again.limit_w, again.seq, again.history = block.limit_w, np.ones(2, dtype=np.int64), block.history
    return again


def test_a_plant_that_failed_before_a_restart_and_is_not_heard_yet_lifts_nothing():
    """The site has spoken long before the plant is read, and knows nothing of it."""
    block = Block(settings(cooling_blind_w=3500.0))
    for _ in range(60):
        block.tick(site=block.site(), cooling=good(1800.0, block.now_s))
    for _ in range(2):
        block = restarted(block)
        for _ in range(200):
            assert block.tick(site=block.site()).budget_w <= 1800.0
        assert block.decision.binding.source == "cooling capacity when last heard"
    for _ in range(200):
        block.tick(site=block.site(), cooling=good(3000.0, block.now_s))
    assert block.decision.binding.power_w == 3000.0


def test_one_unreadable_gpu_does_not_delay_a_curtailment():
    """The fall starts at what the meter shows when the GPUs cannot be summed up."""
    for unreadable in (False, True):
        block = Block(limit_w=300.0)
        power_w = np.array([300.0, 300.0, 300.0, np.nan if unreadable else 300.0])
        for _ in range(200):
            block.tick(
                site=Site((Contact(block.now_s, block.now_s),)), power_w=np.minimum(power_w, block.limit_w)
            )
        headroom_w = block.decision.budget_w
        assert headroom_w > 4000.0
        event = Setpoint("openadr", "e/0", "limit", 1500.0, UTC_0, UTC_0 + 1e6)
        for _ in range(20):
            site = Site((Contact(block.now_s, block.now_s),), (event,))
            block.tick(site=site, power_w=np.minimum(power_w, block.limit_w))
        assert block.decision.budget_w < 0.8 * headroom_w, f"unreadable: {unreadable}"


def test_a_base_load_measured_above_the_assumed_maximum_is_not_forgotten():
    block = Block(settings(base_max_w=300.0))
    for _ in range(100):
        block.tick(site=Site((Contact(block.now_s, block.now_s),)))
    assert block.decision.base_w >= BASE_W
    for _ in range(round((SETTINGS.base_age_max_s + 5.0) / TICK_S)):
        block.tick(site=Site((Contact(block.now_s, block.now_s),)), meter=False)
    assert block.decision.base_w >= BASE_W


def test_a_rack_that_its_inlets_hold_is_named():
    block = Block(settings_with_inlets(500.0))
    for _ in range(200):
        block.tick(site=Site((Contact(block.now_s, block.now_s),)))
    assert "held by their inlets: r0, r1" in watch.why(block.settings, block.decision)
    assert (block.limit_w < MAX_W).all()


def settings_with_inlets(continuous_w):
    topology = replace(SETTINGS.topology, inlet_continuous_w=np.full(4, continuous_w))
    return settings(topology=topology)


def test_the_way_up_that_was_agreed_holds_across_a_restart():
    """A gentle recovery does not become a steep one because the controller was killed in it."""
    carried = Carried(1800.0, 1500.0, "openadr e/0", up_w_per_s=20.0)
    block = Block(state=law.start(SETTINGS, 100.0, carried))
    block.run(1.0)
    first_w = block.decision.budget_w
    block.run(5.0)
    assert block.decision.budget_w - first_w == pytest.approx(5.0 * 20.0, abs=2.0)


def test_restarts_in_a_row_name_what_bound_before_only_once():
    carried = Carried(1500.0, 1500.0, "before restart: openadr e/0")
    block = Block(state=law.start(SETTINGS, 100.0, carried))
    assert block.tick().binding.source == "before restart: openadr e/0"


def test_a_restart_trusts_the_base_load_measured_just_before_and_no_older_one():
    for age_s, assumed_w in ((2.0, BASE_W), (99.0, SETTINGS.base_max_w)):
        carried = Carried(2400.0, 2400.0, "feed rating", base_w=BASE_W, base_at_s=100.0 - age_s)
        block = Block(state=law.start(SETTINGS, 100.0, carried))
        assert block.tick(meter=False).base_w == assumed_w


# --- several sources ---------------------------------------------------------------------------------------

TWO = replace(
    SETTINGS,
    failsafes=(
        FailsafeSettings(2400.0, heartbeat_timeout_s=5.0, source="utility"),
        FailsafeSettings(2100.0, heartbeat_timeout_s=20.0, source="dsx"),
    ),
)


def heard(*at_s, wishes=()):
    return Site(tuple(Contact(one, one) for one in at_s), wishes)


def run_two(contacts_s, wishes=(), until_s=30.0):
    """The decisions of a block whose two sources are heard until these moments, then no more."""
    state, said = law.start(TWO, 0.0), []
    for beat in range(round(until_s / TWO.tick_s)):
        now_s = beat * TWO.tick_s
        site = heard(*(min(now_s, last_s) for last_s in contacts_s), wishes=wishes)
        decision = law.tick(TWO, state, snapshot(now_s, meter=good(1500.0, now_s), site=site))
        state = decision.state
        said.append((now_s, decision))
    return said


def test_one_silent_source_is_failsafe_whatever_the_other_says():
    said = run_two((100.0, 2.0))
    last = said[-1][1]
    assert [link.mode for link in last.state.links] == [Mode.CONTROLLED, Mode.FAILSAFE]
    assert (last.mode, last.binding.source) == (Mode.FAILSAFE, "failsafe: dsx heartbeat lost")
    lost_s = next(now_s for now_s, one in said if one.mode is Mode.FAILSAFE)
    assert lost_s == pytest.approx(22.0, abs=0.11), "each by its own time-out"
    assert {alarm.key for alarm in last.alarms if "site" in alarm.key} == {"site lost dsx"}


def test_the_lower_failsafe_limit_binds_while_both_are_silent():
    first = run_two((NEVER_S, NEVER_S), until_s=0.1)[-1][1]
    assert (first.mode, first.binding.power_w) == (Mode.INIT, 2100.0)


def test_across_sources_the_lowest_wish_binds_and_priority_does_not_count():
    wishes = (
        setpoint(2200.0, source="utility", priority=0),
        setpoint(1900.0, source="dsx", kind="feed a", priority=9),
    )
    last = run_two((100.0, 100.0), wishes, until_s=5.0)[-1][1]
    assert (last.binding.source, last.binding.power_w) == ("dsx e/0", 1900.0)
    assert {link.mode for link in last.state.links} == {Mode.LIMITED}


def test_a_setpoint_without_limit_is_not_being_limited():
    wishes = (setpoint(NO_LIMIT_W, source="utility"),)
    last = run_two((100.0, 100.0), wishes, until_s=2.0)[-1][1]
    assert last.mode is Mode.CONTROLLED
    assert last.binding.source == "feed rating"


def test_a_cap_on_single_gpus_leaves_the_rest_to_the_others():
    block = Block()
    block.under_control(2.0, 2900.0)
    cap_w = np.array([300.0, 300.0, NO_LIMIT_W, NO_LIMIT_W])
    for _ in range(100):
        last = block.tick(site=block.site(2900.0), cap_w=cap_w)
    assert last.gpu_limits_w[:2].tolist() == [300.0, 300.0]
    assert last.gpu_limits_w[2:].min() > 400.0


def test_a_cap_below_what_a_gpu_can_hold_is_its_least():
    block = Block()
    block.under_control(2.0, 2900.0)
    for _ in range(100):
        last = block.tick(site=block.site(2900.0), cap_w=np.full(4, 1.0))
    assert last.gpu_limits_w.tolist() == [MIN_W] * 4


# --- the grid's frequency ----------------------------------------------------------------------------

RESPONSE = FrequencySettings(
    product="test", nominal_hz=50.0, committed_w=600.0, full_s=1.0, sustain_s=2.0, release_w_per_s=100.0,
    steps=(Point(49.7, 1.0),),
)  # fmt: skip


def responding() -> Block:
    """Under control, and seen at rest for long enough to be armed."""
    block = Block(settings(frequency=RESPONSE))
    block.under_control(30.0)
    hear(block, 50.0, 1.0)
    return block


def hear(block: Block, hz: float, seconds_s: float) -> None:
    for beat in range(round(seconds_s / TICK_S)):
        noise_hz = 0.001 * (beat % 2)  # a live grid is never still
        block.tick(site=block.site(), frequency=good(hz + noise_hz, block.now_s + TICK_S))


def test_a_fall_of_the_frequency_takes_what_was_committed_off_what_the_block_drew():
    block = responding()
    drew_w = block.metered_w()
    hear(block, 49.6, 3 * TICK_S)
    assert block.decision.binding.source == "frequency: test"
    assert block.decision.binding.protection
    assert block.decision.binding.power_w == pytest.approx(drew_w - RESPONSE.committed_w, abs=5.0)
    assert block.block_w() <= block.decision.binding.power_w


def test_what_the_frequency_took_comes_back_at_the_rate_of_the_product():
    block = responding()
    hear(block, 49.6, 0.5)
    hear(block, 50.0, RESPONSE.sustain_s)
    before_w = block.decision.budget_w
    hear(block, 50.0, 1.0)
    assert 0.0 < block.decision.budget_w - before_w <= RESPONSE.release_w_per_s * (1.0 + 2 * TICK_S)


@pytest.mark.parametrize("forgotten", [{}, {"response": None}], ids=["as kept", "only its limit was kept"])
def test_a_restart_in_the_middle_of_a_response_raises_nothing_before_the_response_is_over(forgotten):
    """The site speaks all the while: it is not the site's to say."""
    block = responding()
    hear(block, 49.6, 0.5)
    limit_w = block.decision.binding.power_w
    block = restarted(block, **forgotten)
    for _ in range(round((RESPONSE.sustain_s - 0.6) / TICK_S)):
        hear(block, 49.6, TICK_S)
        assert block.decision.budget_w <= limit_w
    assert block.decision.binding.source == "frequency: test"
    hear(block, 49.6, 1.0)
    before_w = block.decision.budget_w
    hear(block, 49.6, 2.0)
    risen_w = block.decision.budget_w - before_w
    assert 0.0 < risen_w <= 2.0 * RESPONSE.release_w_per_s * (1.0 + 2 * TICK_S)


def test_what_responded_is_not_shed_for_again_by_a_restart():
    block = responding()
    hear(block, 49.6, 0.5)
    limit_w = block.decision.binding.power_w
    block = restarted(block)
    hear(block, 49.6, 10.0)
    assert block.decision.budget_w > limit_w
    assert block.state.frequency.activations == 0


def test_silence_of_the_frequency_takes_nothing():
    block = responding()
    block.run(5.0, site=block.site())
    assert block.decision.binding.source != "frequency: test"
