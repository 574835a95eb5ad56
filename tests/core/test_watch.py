"""Alarms: each condition by name, after its delay, gone when it is over."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from controller.core import law, watch
from controller.core.model import Contact, Inlets, Link, Mode, Site
from tests.core.blocks import SETTINGS, good, settings, snapshot

COOLED = settings(cooling_blind_w=4000.0)
HEALTHY = {"meter": good(1800.0, 0.0), "cooling": good(6000.0, 0.0)}
STATE = law.start(SETTINGS, -60.0)
LINK = Link(Mode.LIMITED, -60.0, -60.0)


def raised(
    *,
    at_s=0.0,
    lasting_s=0.0,
    block=COOLED,
    link=LINK,
    state=STATE,
    budget_w=5000.0,
    shortfall_w=0.0,
    plan_short_w=(),
    counted_w=0.0,
    **seen,
):
    """Keys of the conditions and of the alarms, for a block that is healthy but for what is said."""
    seen = snapshot(at_s, **({"meter": good(1800.0, at_s), "cooling": good(6000.0, at_s)} | seen))
    fresh = (at_s - seen.gpus.node_at_s <= block.report_age_max_s)[block.topology.gpu_node]
    readable = fresh & ~np.isnan(seen.gpus.limit_w)
    shares = state.shares._replace(controllable=readable, rack_budget_w=np.full(2, 1000.0))
    counted_w, short_w = np.broadcast_to(counted_w, 4).astype(float), np.array(plan_short_w)
    found = watch.Seen(
        state.base, shares, (link,), fresh, readable, counted_w, budget_w, shortfall_w, short_w, 0.0, None
    )
    return told(block, seen, found, lasting_s)


def told(block, seen, found, lasting_s):
    """Kinds of the conditions, keys of the alarms, their sentences, when all have held for `lasting_s`."""
    first = watch.look(block, watch.start(), seen, found)
    since_s = {kind: at_s - lasting_s for kind, at_s in first.since_s.items()}
    look = watch.look(block, first._replace(since_s=since_s), seen, found)
    texts = {alarm.key: alarm.text for alarm in look.alarms}
    return set(look.since_s), set(texts), texts


def with_excess(excess_w):
    return STATE._replace(shares=STATE.shares._replace(excess_w=np.array(excess_w)))


def inlets(good_ones=4, at_s=0.0):
    return Inlets(np.full(4, 500.0), np.arange(4) < good_ones, np.full(4, at_s))


CASES = [
    ("shortfall", {"shortfall_w": 100.0}),
    ("over budget", {"budget_w": 1700.0}),
    ("meter", {"meter": good(1800.0, -5.0)}),
    ("meter implausible", {"state": STATE._replace(base=STATE.base._replace(disbelieved_at_s=-0.1))}),
    ("pdu r1-b", {"inlets": inlets(3)}),
    ("cooling", {"cooling": good(6000.0, -60.0)}),
    ("agent n1", {"node_at_s": [0.0, -5.0]}),
    ("lease n0", {"leased": [False, True]}),
    ("gpu n1/1", {"limit_w": [500.0, 500.0, 500.0, np.nan]}),
    ("rack r1", {"counted_w": (0.0, 0.0, 600.0, 700.0)}),
    ("inlet r0-a", {"inlets": Inlets(np.array([9e4, 500.0, 500.0, 500.0]), np.ones(4, bool), np.zeros(4))}),
    ("excess n0/1", {"state": with_excess([0.0, 60.0, 0.0, 0.0])}),
]


@pytest.mark.parametrize(("key", "situation"), CASES, ids=[key for key, _ in CASES])
def test_every_condition_has_its_name_and_waits_its_delay(key, situation):
    ask = partial(raised_with_nodes, snapshot(0.0)) if "node_at_s" in situation else raised
    conditions, alarms, _ = ask(**situation)
    assert (len(conditions), alarms) == (1, set()), "one lost message must pass unseen"
    _, alarms, _ = ask(**situation, lasting_s=2.0)
    assert alarms == {key}


def raised_with_nodes(seen, node_at_s, lasting_s=0.0):
    seen = seen._replace(
        meter=good(1800.0, seen.now_s), cooling=good(6000.0, seen.now_s),
        gpus=replace(seen.gpus, node_at_s=np.array(node_at_s)),
    )  # fmt: skip
    fresh = (seen.now_s - seen.gpus.node_at_s <= 0.5)[COOLED.topology.gpu_node]
    shares = STATE.shares._replace(controllable=fresh)
    found = watch.Seen(
        STATE.base, shares, (LINK,), fresh, fresh, np.zeros(4), 5000.0, 0.0, np.zeros(0), 0.0, None
    )
    return told(COOLED, seen, found, lasting_s)


def test_a_condition_that_lasts_becomes_an_alarm_with_a_sentence():
    _, alarms, texts = raised(shortfall_w=100.0, lasting_s=1.0)
    assert alarms == {"shortfall"}
    assert texts["shortfall"] == "0.10 kW above the promised line cannot be shed"


def in_turn(*masks):
    """Looks at nodes that are silent (True) or not, half a second apart; keys of the alarms at the end."""
    look = watch.start()
    for number, silent in enumerate(masks):
        now_s = 0.5 * number
        node_at_s = np.where(silent, -60.0, now_s)
        seen = snapshot(now_s, meter=good(1800.0, now_s), cooling=good(6000.0, now_s))
        seen = seen._replace(gpus=replace(seen.gpus, node_at_s=node_at_s))
        fresh = (node_at_s == now_s)[COOLED.topology.gpu_node]
        shares = STATE.shares._replace(controllable=fresh)
        found = watch.Seen(
            STATE.base, shares, (LINK,), fresh, fresh, np.zeros(4), 5000.0, 0.0, np.zeros(0), 0.0, None
        )
        look = watch.look(COOLED, look, seen, found)
    return {alarm.key for alarm in look.alarms}


def test_an_interrupted_condition_starts_its_delay_anew():
    assert in_turn([1, 0], [1, 0], [1, 0]) == {"agent n0"}
    assert in_turn([1, 0], [0, 0], [1, 0]) == set()


def test_a_flickering_node_does_not_hide_a_dead_one():
    assert in_turn([1, 1], [0, 1], [1, 1]) == {"agent n1"}


def test_of_many_alike_the_first_are_named_and_the_others_counted():
    mask = np.ones(12, dtype=bool)
    condition = watch.Condition("agent", mask, lambda n: f"n{n} silent", lambda n: f"n{n}")
    alarms = list(watch._due(condition, np.flatnonzero(mask)))
    assert [a.key for a in alarms] == [*(f"agent n{n}" for n in range(8)), "agent others"]
    assert alarms[-1].text == "4 more like those named"


def test_a_healthy_block_is_quiet():
    assert raised() == (set(), set(), {})


def test_a_block_without_cooling_metered_misses_none():
    assert raised(block=SETTINGS, cooling=good(0.0, -1e6)) == (set(), set(), {})


@pytest.mark.parametrize(("mode", "key"), [(Mode.FAILSAFE, "site lost"), (Mode.INIT, "site not heard")])
def test_a_lost_site_is_said_at_once(mode, key):
    assert raised(link=Link(mode, 0.0))[1] == {f"{key} openadr"}


def test_a_dead_rack_does_not_flood_the_panel():
    """One sentence per silent agent, none for each of its GPUs."""
    conditions, _, _ = raised_with_nodes(snapshot(0.0), [-5.0, -5.0])
    assert conditions == {"agent"}


def test_a_node_without_lease_is_one_condition_not_one_per_gpu():
    conditions, _, _ = raised(leased=[False, False], limit_w=[np.nan] * 4)
    assert conditions == {"lease"}


def test_excess_is_smoothed_and_counts_only_above_what_noise_can_do():
    excess_w, held_w = np.zeros(3), np.full(3, 400.0)
    power_w = np.array([500.0, 405.0, np.nan])
    for _ in range(100):
        excess_w = watch.smoothed_excess_w(excess_w, power_w, held_w, 0.1)
    assert excess_w.tolist() == pytest.approx([100.0, 5.0, 0.0], abs=0.1)
    assert watch.disobedience_w(excess_w, held_w).tolist() == pytest.approx([100.0, 0.0, 0.0], abs=0.1)


def test_one_peak_of_a_beat_is_not_disobedience():
    excess_w = watch.smoothed_excess_w(np.zeros(1), np.array([500.0]), np.array([400.0]), 0.05)
    assert watch.disobedience_w(excess_w, np.array([400.0])).tolist() == [0.0]


def test_an_unreadable_gpu_keeps_its_excess():
    kept = watch.smoothed_excess_w(np.array([80.0]), np.array([np.nan]), np.array([400.0]), 1.0)
    assert kept.tolist() == [80.0]


def test_the_site_is_free_to_say_nothing_about_limits():
    """Controlled, without a limit: no alarm."""
    assert raised(link=Link(Mode.CONTROLLED, 0.0), site=Site(contacts=(Contact(0.0),)))[1] == set()
