"""The lease as truth tables, and its promises under random lives."""

from dataclasses import dataclass, replace
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.agent.lease import Found, Lease, LeaseSettings, Mode, Refusal, Write, beat, begin, due, offer

SETTINGS = LeaseSettings(
    fallback_w=(300.0, 250.0), fallback_ramp_w_per_s=50.0, lease_max_s=10.0, waiting_max_s=30.0
)
START_S = 100.0


@dataclass(frozen=True)
class Order:
    epoch: int = 1
    seq: int = 1
    echo_at_s: float = START_S
    known_at_s: float = START_S
    lease_s: float = 2.0
    limits_w: tuple[float, ...] = (600.0, 500.0)


def waiting(**changes) -> Lease:
    return begin(replace(SETTINGS, **changes), START_S, observe=False)


def leased(order: Order = Order(), now_s: float = START_S) -> Lease:
    lease, refusal = offer(SETTINGS, waiting(), order, now_s)
    assert refusal is None
    return lease


def fallen(order: Order = Order(), now_s: float = START_S + 2.0) -> Lease:
    return beat(SETTINGS, leased(order), order.limits_w, now_s)


@pytest.mark.parametrize(
    ("order", "now_s", "refusal"),
    [
        (Order(), START_S + 1.9, None),
        (Order(), START_S + 2.0, Refusal.EXPIRED),  # at its end a lease is over
        (Order(lease_s=-1.0), START_S, Refusal.EXPIRED),
        (Order(lease_s=nan), START_S, Refusal.LEASE_TOO_LONG),
        (Order(lease_s=10.1), START_S, Refusal.LEASE_TOO_LONG),
        (Order(lease_s=inf), START_S, Refusal.LEASE_TOO_LONG),
        (Order(lease_s=10.0), START_S, None),
        (Order(echo_at_s=-1.0), START_S, Refusal.NO_REPORT_HEARD),
        (Order(echo_at_s=99.9), START_S, Refusal.EARLIER_AGENT),
        (Order(echo_at_s=nan), START_S, Refusal.EARLIER_AGENT),
        (Order(echo_at_s=100.1), START_S, Refusal.FUTURE_REPORT),  # a controller that outlived our reboot
        (Order(limits_w=(600.0,)), START_S, Refusal.OTHER_GPU_COUNT),
        (Order(limits_w=()), START_S, Refusal.OTHER_GPU_COUNT),
    ],
)
def test_an_order_is_obeyed_or_refused_for_a_stated_reason(order, now_s, refusal):
    lease, why = offer(SETTINGS, waiting(), order, now_s)
    assert why is refusal
    assert lease.mode is (Mode.LEASED if refusal is None else Mode.WAITING)
    assert lease.refused == ({} if refusal is None else {refusal: 1})


@pytest.mark.parametrize(
    ("epoch", "seq", "refusal"),
    [(2, 4, Refusal.OVERTAKEN), (1, 99, Refusal.OVERTAKEN), (2, 5, None), (2, 6, None), (3, 1, None)],
)
def test_an_old_controller_and_a_late_message_are_refused(epoch, seq, refusal):
    lease = leased(Order(epoch=2, seq=5))
    assert offer(SETTINGS, lease, Order(epoch=epoch, seq=seq), START_S)[1] is refusal


def test_an_observer_obeys_nobody_and_never_falls_back():
    lease = begin(SETTINGS, START_S, observe=True)
    lease, refusal = offer(SETTINGS, lease, Order(), START_S)
    assert refusal is Refusal.OBSERVING
    lease = beat(SETTINGS, lease, (700.0, 700.0), START_S + 1e6)
    assert lease.mode is Mode.OBSERVE
    assert due(lease, [Found(700.0, 200.0, 700.0)] * 2) == ()


def test_an_order_that_lay_in_a_broker_is_as_old_as_the_report_it_answers():
    lease = leased(Order(echo_at_s=START_S, lease_s=5.0), now_s=START_S + 4.5)
    assert beat(SETTINGS, lease, (600.0, 500.0), START_S + 4.9).mode is Mode.LEASED
    assert beat(SETTINGS, lease, (600.0, 500.0), START_S + 5.0).mode is Mode.FALLBACK


def test_a_repeated_order_prolongs_the_lease_and_an_older_echo_does_not_shorten_it():
    lease = leased()
    lease, _ = offer(SETTINGS, lease, Order(echo_at_s=START_S + 1), START_S + 1)
    assert lease.until_s == START_S + 3
    lease, refusal = offer(SETTINGS, lease, Order(echo_at_s=START_S + 0.5), START_S + 1)
    assert refusal is None
    assert lease.until_s == START_S + 3


def test_fallback_ramps_each_gpu_down_from_the_moment_its_lease_ended():
    lease = fallen(now_s=START_S + 3.0)  # noticed one second late
    assert lease.mode is Mode.FALLBACK
    assert lease.held_w == (550.0, 450.0)
    lease = beat(SETTINGS, lease, (550.0, 450.0), START_S + 6.5)
    assert lease.held_w == (375.0, 275.0)
    lease = beat(SETTINGS, lease, (375.0, 275.0), START_S + 60)
    assert lease.held_w == SETTINGS.fallback_w


def test_fallback_leaves_a_lower_limit_where_it_is():
    lease = fallen(Order(limits_w=(220.0, 500.0)), now_s=START_S + 60)
    assert lease.held_w == (220.0, 250.0)
    assert beat(SETTINGS, lease, (210.0, 230.0), START_S + 61).held_w == (210.0, 230.0)
    assert due(lease, [Found(210.0, 200.0, 700.0), Found(230.0, 200.0, 700.0)]) == ()


def test_a_restart_raises_nothing_and_waits_with_the_limits_it_found():
    lease = beat(SETTINGS, waiting(), (400.0, None), START_S + 29.9)
    assert lease.mode is Mode.WAITING
    assert due(lease, [Found(400.0, 200.0, 700.0), None]) == ()


def test_who_waits_too_long_ramps_down_from_what_it_found():
    lease = beat(SETTINGS, waiting(), (400.0, None), START_S + 31)
    assert lease.mode is Mode.FALLBACK
    assert lease.held_w == (350.0, 250.0)  # what was never seen has no ramp to begin with
    assert beat(SETTINGS, lease, (350.0, 700.0), START_S + 32).held_w == (300.0, 250.0)


def test_waiting_may_be_configured_to_last_for_ever():
    forever = replace(SETTINGS, waiting_max_s=None)
    assert beat(forever, waiting(waiting_max_s=None), (700.0, 700.0), START_S + 1e9).mode is Mode.WAITING


def test_after_a_fallback_the_same_order_lowers_but_never_raises():
    lease = beat(SETTINGS, fallen(), (600.0, 500.0), START_S + 4)
    assert lease.held_w == (500.0, 400.0)
    again = Order(echo_at_s=START_S + 4, limits_w=(600.0, 350.0))
    lease, refusal = offer(SETTINGS, lease, again, START_S + 4)
    assert refusal is None
    assert (lease.mode, lease.held_w) == (Mode.LEASED, (500.0, 350.0))
    lease, _ = offer(SETTINGS, lease, again, START_S + 4.1)
    assert lease.held_w == (500.0, 350.0)
    newer = Order(seq=2, echo_at_s=START_S + 4)
    assert offer(SETTINGS, lease, newer, START_S + 4.2)[0].held_w == (600.0, 500.0)


@pytest.mark.parametrize(
    ("mode", "found", "writes"),
    [
        (Mode.LEASED, (Found(600.0, 200, 700), Found(500.0, 200, 700)), ()),
        (Mode.LEASED, (Found(700.0, 200, 700), Found(500.0, 200, 700)), (Write(0, 600.0),)),
        (Mode.LEASED, (Found(300.0, 200, 700), Found(700.0, 200, 700)), (Write(1, 500.0), Write(0, 600.0))),
        (Mode.LEASED, (Found(600.0, 200, 700), None), (Write(1, 500.0),)),
        (Mode.LEASED, (Found(600.0004, 200, 700), Found(500.0, 200, 700)), ()),  # a driver knows milliwatts
        (Mode.LEASED, (Found(550.0, 200, 550), Found(510.0, 510, 700)), ()),  # nearest the device allows
        (Mode.FALLBACK, (Found(700.0, 200, 700), None), (Write(0, 600.0), Write(1, 500.0, lower_only=True))),
        (Mode.FALLBACK, (Found(400.0, 200, 700), Found(400.0, 200, 700)), ()),
    ],
)
def test_only_what_differs_is_written_and_decreases_go_first(mode, found, writes):
    lease = leased()._replace(mode=mode, lowers_only=False)  # not the first order of its life
    assert due(lease, found) == writes


def test_a_gpu_whose_readings_fail_is_lowered_by_the_dead_man_and_never_raised():
    lease = leased()
    for now_s in (START_S + 3.0, START_S + 60.0):
        lease = beat(SETTINGS, lease, (None, None), now_s)
        wanted = tuple(Write(gpu, held_w, lower_only=True) for gpu, held_w in enumerate(lease.held_w))
        assert due(lease, [None, None]) == wanted
    assert lease.held_w == SETTINGS.fallback_w


# ---- promises under random lives ----

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 8)),
        st.tuples(
            st.just("order"),
            st.builds(
                Order,
                epoch=st.integers(1, 3),
                seq=st.integers(1, 4),
                echo_at_s=st.floats(-1, 9),  # seconds before now, see below
                lease_s=st.floats(0, 12),
                limits_w=st.tuples(st.floats(200, 700), st.floats(200, 700)),
            ),
        ),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS, st.floats(200, 700), st.floats(200, 700))
def test_no_limit_rises_without_a_newer_order_and_without_orders_all_go_down(events, first_w, second_w):
    """The driver obeys every write. Its limits may rise only when an order newer than all before came in."""
    now_s, limits_w = START_S, [first_w, second_w]
    lease, newest_seen = waiting(), (0, 0)
    for kind, what in events:
        before_w, newer = list(limits_w), False
        if kind == "wait":
            now_s += what
        else:
            order = replace(what, echo_at_s=now_s - what.echo_at_s)
            lease, refusal = offer(SETTINGS, lease, order, now_s)
            newer = refusal is None and (order.epoch, order.seq) > newest_seen
            newest_seen = max(newest_seen, lease.newest)
            assert refusal is not None or order.echo_at_s + order.lease_s > now_s
        lease = beat(SETTINGS, lease, limits_w, now_s)
        for gpu, limit_w, _ in due(lease, [Found(limit, 200.0, 700.0) for limit in limits_w]):
            limits_w[gpu] = limit_w
        assert newer or all(after <= before + 1e-3 for after, before in zip(limits_w, before_w, strict=True))
        assert lease.mode is not Mode.LEASED or lease.until_s > now_s

    for _ in range(60):  # silence: down, step by step, to the fallback or below, and never up
        now_s += 1.0
        before_w = list(limits_w)
        lease = beat(SETTINGS, lease, limits_w, now_s)
        for gpu, limit_w, _ in due(lease, [Found(limit, 200.0, 700.0) for limit in limits_w]):
            limits_w[gpu] = limit_w
        assert all(after <= before + 1e-3 for after, before in zip(limits_w, before_w, strict=True))
    assert lease.mode is Mode.FALLBACK
    assert all(limit <= held + 1e-3 for limit, held in zip(limits_w, SETTINGS.fallback_w, strict=True))


def test_the_first_order_after_a_start_lowers_limits_and_raises_none():
    """A restart of anything never raises power: that order was decided without knowing what was found."""
    found = (Found(250.0, 200.0, 700.0), Found(700.0, 200.0, 700.0))
    order = Order(limits_w=(600.0, 500.0))
    lease, refusal = offer(SETTINGS, waiting(), order, START_S + 0.05)
    assert refusal is None
    assert due(lease, found) == (Write(1, 500.0),)
    again, _ = offer(SETTINGS, lease, order, START_S + 0.1)
    assert due(again, found) == (Write(1, 500.0),)
    unseen = (None, found[1])  # what cannot be read might be lower
    assert set(due(again, unseen)) == {Write(0, 600.0, lower_only=True), Write(1, 500.0)}
    blind, _ = offer(SETTINGS, again, replace(order, seq=2), START_S + 0.2)
    assert due(blind, found) == (Write(1, 500.0),)  # newer, but it answers a report from before the first
    knowing, _ = offer(SETTINGS, blind, replace(order, seq=3, known_at_s=START_S + 0.1), START_S + 0.3)
    assert set(due(knowing, found)) == {Write(0, 600.0), Write(1, 500.0)}


def test_after_a_fallback_only_an_order_that_knows_of_it_raises():
    lease = leased()
    found_w = (600.0, 500.0)
    lease = beat(SETTINGS, lease, found_w, lease.until_s + 1.0)  # a second of ramping down
    found = tuple(Found(w, 200.0, 700.0) for w in lease.held_w)
    since_s = lease.answers_from_s
    old = Order(seq=9, echo_at_s=since_s + 0.9, known_at_s=since_s - 0.1)
    blind, refusal = offer(SETTINGS, lease, old, lease.answers_from_s + 1.0)
    assert refusal is None
    assert due(blind, found) == ()
    fresh = Order(seq=10, echo_at_s=since_s + 0.9, known_at_s=since_s + 0.9)
    knowing, _ = offer(SETTINGS, blind, fresh, lease.answers_from_s + 1.0)
    assert set(due(knowing, found)) == {Write(0, 600.0), Write(1, 500.0)}
