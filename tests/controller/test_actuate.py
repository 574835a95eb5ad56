"""Which node gets an order now."""

from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest

from controller.actuate import RENEWALS_PER_LEASE, REPEAT_S, TABLE_REPEAT_S, Actuate, Heard
from controller.core.model import ShedCall, ShedTable

LEASE_S = 3.0


@dataclass
class Decided:
    """As much of a decision as orders are made from."""

    node_seq: np.ndarray
    gpu_limits_w: np.ndarray
    clocks_mhz: np.ndarray = field(default_factory=lambda: np.zeros(16, dtype=np.int64))


def decided(seq_a=1, seq_b=1, limit_w=300.0) -> Decided:
    return Decided(np.array([seq_a, seq_b]), np.full(16, limit_w))


@pytest.fixture
def actuate(settings) -> Actuate:
    return Actuate(settings, epoch=7, lease_s=LEASE_S)


def sent(actuate, now_s, *, confirmed=(1, 1), **what):
    return [node for node, _ in actuate.orders(decided(**what), heard(confirmed), now_s)]


def heard(confirmed=(1, 1), known_at_s=(4.0, -1.0), table=(0, 0)) -> Heard:
    return Heard(confirmed, [4.0, 5.0], known_at_s, table)


def test_the_first_orders_go_to_everybody_heard_or_not(actuate):
    assert sent(actuate, 100.0, confirmed=(0, 0)) == [0, 1]


def test_an_order_is_complete_and_answers_the_newest_report(actuate):
    _, order = actuate.orders(decided(seq_b=4), heard(known_at_s=[4.0, 4.5]), 100.0)[1]
    assert (order.epoch, order.seq, order.sent_at_s, order.echo_at_s, order.lease_s) == (
        7,
        4,
        100.0,
        5.0,
        3.0,
    )
    assert order.limits_w == (300.0,) * 8
    assert order.known_at_s == 4.5


def test_a_change_goes_out_at_once_and_to_its_node_alone(actuate):
    sent(actuate, 100.0)
    assert sent(actuate, 100.01, seq_b=2) == [1]


def test_what_is_confirmed_is_renewed_well_before_its_lease_ends(actuate):
    sent(actuate, 100.0)
    pause_s = LEASE_S / RENEWALS_PER_LEASE
    assert sent(actuate, 100.0 + 0.9 * pause_s) == []
    assert sent(actuate, 100.0 + 1.01 * pause_s) == [0, 1]


def test_what_is_not_confirmed_is_repeated_soon(actuate):
    sent(actuate, 100.0, confirmed=(0, 1))
    assert sent(actuate, 100.0 + 0.5 * REPEAT_S, confirmed=(0, 1)) == []
    assert sent(actuate, 100.0 + 1.01 * REPEAT_S, confirmed=(0, 1)) == [0]


@dataclass
class Shed:
    """As much of the law's shedding as calls and tables are made from."""

    call: ShedCall | None


@dataclass
class Quiet(Decided):
    """A decision that calls nothing."""

    @property
    def state(self):
        return type("State", (), {"shedding": Shed(None)})


@dataclass
class Called(Decided):
    """A decision that calls the second level for the first node."""

    @property
    def state(self):
        call = ShedCall(seq=int(self.node_seq[0]), level=1, version=5, nodes=np.array([True, False]))
        return type("State", (), {"shedding": Shed(call)})


def test_a_call_stands_for_the_orders_of_nodes_with_a_table_and_the_others_get_theirs(actuate):
    sent(actuate, 100.0)
    decision = Called(np.array([2, 2]), np.full(16, 250.0))
    call = actuate.call(decision, 100.05)
    assert (call.epoch, call.seq, call.level, call.version, call.sent_at_s) == (7, 2, 1, 5, 100.05)
    assert [node for node, _ in actuate.orders(decision, heard(), 100.05)] == [1]


def test_whoever_does_not_confirm_a_call_gets_its_limits_spelt_out(actuate):
    sent(actuate, 100.0)
    decision = Called(np.array([2, 2]), np.full(16, 250.0))
    actuate.call(decision, 100.05)
    actuate.orders(decision, heard(), 100.05)
    late_s = 100.06 + REPEAT_S
    again = actuate.orders(decision, heard(confirmed=(1, 2)), late_s)
    assert [(node, order.seq, order.limits_w[0]) for node, order in again] == [(0, 2, 250.0)]


def test_a_node_is_told_once_in_a_beat_whatever_is_due(actuate):
    """Changed, unconfirmed, due for renewal and called at once is one message, and the newest."""
    rng, now_s, seq, met = Random(3), 100.0, np.array([0, 0]), set()
    for beat in range(1000):
        now_s += rng.choice((0.005, 0.05, 1.1 * REPEAT_S, LEASE_S))  # woken early, in time, late
        changed = np.array([rng.random() < 0.5, rng.random() < 0.5]) | (beat == 0)
        confirmed = [int(one) if rng.random() < 0.5 else 0 for one in seq]
        seq = seq + changed
        is_called = bool(changed[0]) and rng.random() < 0.3
        decision = (Called if is_called else Quiet)(seq, np.full(16, 250.0))
        call = actuate.call(decision, now_s)
        by_order = actuate.orders(decision, heard(confirmed), now_s)
        told = [0] * (call is not None) + [node for node, _ in by_order]
        assert len(told) == len(set(told)), "two messages to one node"
        assert set(np.flatnonzero(changed).tolist()) <= set(told), "a change waits for nobody"
        assert all(order.seq == seq[node] for node, order in by_order)
        met.add((is_called, len(told)))
    assert met == {(False, 0), (False, 1), (False, 2), (True, 1), (True, 2)}


def shed_table(deep_mhz=0) -> ShedTable:
    limits_w = np.array([np.full(16, 400.0), np.full(16, 220.0)])
    clocks_mhz = np.array([np.zeros(16), np.full(16, deep_mhz)]).astype(np.int64)
    return ShedTable(3, limits_w, clocks_mhz, (1.0, 0.6), np.array([3, 2]))


def test_orders_and_tables_bring_clock_ceilings_where_there_are_any(actuate):
    ceilings = np.repeat([0, 1185], 8)
    decision = Decided(np.array([1, 1]), np.full(16, 300.0), ceilings)
    orders = dict(actuate.orders(decision, heard(), 100.0))
    assert (orders[0].clocks_mhz, orders[1].clocks_mhz) == ((), (1185,) * 8)
    ((_, table),) = actuate.tables(shed_table(deep_mhz=990), heard(table=(0, 2)), 100.0)
    assert [level.clocks_mhz for level in table.levels] == [(), (990,) * 8]


def test_a_table_goes_out_once_and_again_while_its_node_does_not_have_it(actuate):
    table = shed_table()
    due = actuate.tables(table, heard(table=(0, 2)), 100.0)
    assert [(node, one.version, [level.limits_w[0] for level in one.levels]) for node, one in due] == [
        (0, 3, [400.0, 220.0])
    ]
    assert actuate.tables(table, heard(table=(0, 2)), 100.0 + 0.5 * TABLE_REPEAT_S) == []
    assert [node for node, _ in actuate.tables(table, heard(table=(0, 2)), 100.1 + TABLE_REPEAT_S)] == [0]
    assert actuate.tables(table, heard(table=(3, 2)), 200.0) == []
