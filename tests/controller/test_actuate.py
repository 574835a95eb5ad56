"""Which node gets an order now."""

from dataclasses import dataclass

import numpy as np
import pytest

from controller.actuate import RENEWALS_PER_LEASE, REPEAT_S, Actuate

LEASE_S = 3.0


@dataclass
class Decided:
    """As much of a decision as orders are made from."""

    node_seq: np.ndarray
    gpu_limits_w: np.ndarray


def decided(seq_a=1, seq_b=1, limit_w=300.0) -> Decided:
    return Decided(np.array([seq_a, seq_b]), np.full(16, limit_w))


@pytest.fixture
def actuate(settings) -> Actuate:
    return Actuate(settings, epoch=7, lease_s=LEASE_S)


def sent(actuate, now_s, *, confirmed=(1, 1), **what):
    return [
        node for node, _ in actuate.orders(decided(**what), list(confirmed), [4.0, 5.0], [4.0, -1.0], now_s)
    ]


def test_the_first_orders_go_to_everybody_heard_or_not(actuate):
    assert sent(actuate, 100.0, confirmed=(0, 0)) == [0, 1]


def test_an_order_is_complete_and_answers_the_newest_report(actuate):
    _, order = actuate.orders(decided(seq_b=4), [1, 1], [4.0, 5.0], [4.0, 4.5], 100.0)[1]
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
