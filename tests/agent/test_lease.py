"""The lease as truth tables, and its promises under random lives."""

from dataclasses import dataclass, replace
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.agent.lease import (
    Ceiling,
    ClockWrite,
    Found,
    Lease,
    LeaseSettings,
    Mode,
    Refusal,
    Write,
    beat,
    begin,
    due,
    due_clocks,
    offer,
    shed,
)

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
    clocks_mhz: tuple[int, ...] = ()
    boot: str = ""


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


def test_who_starts_when_waiting_was_over_long_ago_falls_back_by_the_ramp_all_the_same():
    lease = begin(SETTINGS, START_S, observe=False, waits_from_s=START_S - 1000.0)
    assert lease.mode is Mode.WAITING
    lease = beat(SETTINGS, lease, (700.0, 700.0), START_S)
    assert (lease.mode, lease.answers_from_s) == (Mode.FALLBACK, START_S)
    lease = beat(SETTINGS, lease, (700.0, 700.0), START_S + 2.0)
    assert lease.held_w == (600.0, 600.0)


def test_who_starts_within_the_waiting_of_others_goes_on_with_theirs():
    lease = begin(SETTINGS, START_S, observe=False, waits_from_s=START_S - 20.0)
    assert beat(SETTINGS, lease, (700.0, 700.0), START_S + 9.9).mode is Mode.WAITING
    assert beat(SETTINGS, lease, (700.0, 700.0), START_S + 10.1).mode is Mode.FALLBACK


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


# ---- the second lever ----


def clocks_of(lease: Lease, *asked_mhz: int | None, sure: bool = True) -> tuple[ClockWrite, ...]:
    return due_clocks(lease, [Ceiling(mhz, sure) for mhz in asked_mhz])


def knowing(**changes) -> Order:
    """An order decided on readings from after the agent was leased."""
    return Order(**{"seq": 2, "known_at_s": START_S + 1.0, "echo_at_s": START_S + 1.0, **changes})


def test_a_ceiling_is_lowered_at_once_and_raised_only_by_an_order_that_knows():
    lease = leased(Order(clocks_mhz=(1200, 0)), now_s=START_S + 0.05)
    assert clocks_of(lease, None, None) == (ClockWrite(0, 1200),)  # what is not ours is not taken away
    assert clocks_of(lease, 1500, 900) == (ClockWrite(0, 1200),)  # and the first order raises nothing
    assert clocks_of(lease, 900, 0) == ()
    lease, _ = offer(SETTINGS, lease, knowing(clocks_mhz=(1200, 0)), START_S + 1.1)
    assert clocks_of(lease, 900, 900) == (ClockWrite(0, 1200), ClockWrite(1, 0))


def test_a_repeated_order_lowers_a_ceiling_and_never_raises_one():
    lease = leased(Order(clocks_mhz=(1200, 1500)))
    for clocks_mhz in ((), (1400, 1400), (0, 0)):
        lease, refusal = offer(SETTINGS, lease, Order(clocks_mhz=clocks_mhz), START_S)
        assert refusal is None
    assert lease.held_mhz == (1200, 1400)


def test_a_lapse_keeps_every_ceiling_and_sets_it_again_after_a_reload():
    lease, _ = offer(SETTINGS, leased(), knowing(clocks_mhz=(1200, 0)), START_S + 1.1)
    lease = beat(SETTINGS, lease, (600.0, 500.0), START_S + 60.0)
    assert lease.mode is Mode.FALLBACK
    assert clocks_of(lease, 1200, 0) == ()
    assert clocks_of(lease, 1200, 900) == ()  # not yet taken away when the right ended: it stays
    assert clocks_of(lease, 1200, 900, sure=False) == (ClockWrite(0, 1200), ClockWrite(1, 900))


def test_a_call_lowers_clocks_as_its_table_says():
    lease = leased(Order(clocks_mhz=(1500, 0)))
    lease, refusal = shed(lease, Order(seq=2), (600.0, 400.0), (1200, 1100))
    assert refusal is None
    assert (lease.held_w, lease.held_mhz) == ((600.0, 400.0), (1200, 1100))
    lease, _ = shed(lease, Order(seq=3), (700.0, 700.0), (1980, 0))
    assert (lease.held_w, lease.held_mhz) == ((600.0, 400.0), (1200, 1100))


def test_without_any_order_clocks_are_left_as_they_are():
    lease = beat(SETTINGS, waiting(), (600.0, 500.0), START_S + 60.0)
    assert clocks_of(lease, 1, None, sure=False) == ()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["order", "again", "call", "wait"]),
            st.tuples(st.sampled_from([0, 900, 1200, 1500]), st.sampled_from([0, 900, 1200, 1500])),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_no_clock_rises_without_an_order_that_is_newer_and_knows(events):
    """Ceilings in a driver that obeys; 0 is none, the highest of all."""
    now_s, seq, lease = START_S, 0, waiting()
    asked: list[int | None] = [None, None]
    for kind, clocks_mhz, knows in events:
        now_s += 0.5
        before = list(asked)
        may_raise = False
        if kind == "wait":
            now_s += 5.0
        elif kind == "call":
            seq += 1
            lease, _ = shed(lease, Order(seq=seq), (700.0, 700.0), clocks_mhz)
        else:
            seq += kind == "order"
            known_at_s = now_s if knows else -1.0
            order = Order(seq=max(seq, 1), echo_at_s=now_s, known_at_s=known_at_s, clocks_mhz=clocks_mhz)
            newest = lease.newest
            lease, refusal = offer(SETTINGS, lease, order, now_s)
            may_raise = (1, order.seq) > newest and knows and refusal is None
        lease = beat(SETTINGS, lease, (600.0, 500.0), now_s)
        for gpu, ceiling_mhz in due_clocks(lease, [Ceiling(mhz) for mhz in asked]):
            asked[gpu] = ceiling_mhz
        for was, now in zip(before, asked, strict=True):
            assert may_raise or (now or inf) <= (was or inf)


SHARED = Found(1400.0, 400.0, 2900.0)


def test_a_module_holds_the_sum_of_what_its_gpus_should_hold():
    lease = leased()._replace(lowers_only=False)
    assert due(lease, (SHARED, SHARED), ((0, 1),)) == (Write(0, 1100.0), Write(1, 1100.0))
    own = (Found(700.0, 200.0, 2900.0),) * 2
    assert due(lease, own, ((0,), (1,))) == (Write(1, 500.0), Write(0, 600.0))
    assert due(waiting(), own, ((0, 1),)) == ()


def test_each_gpu_of_a_module_counts_with_what_its_part_of_the_board_allows():
    lease = leased(Order(limits_w=(100.0, 2000.0)))._replace(lowers_only=False)
    assert due(lease, (SHARED, SHARED), ((0, 1),)) == (Write(0, 1650.0), Write(1, 1650.0))


def test_a_module_that_one_of_its_gpus_shows_is_written_by_that_one():
    lease = leased()
    assert due(lease, (None, SHARED), ((0, 1),)) == (Write(1, 1100.0),)
    lower_only = due(lease._replace(lowers_only=True), (None, None), ((0, 1),))
    assert lower_only == (Write(0, 1100.0, lower_only=True), Write(1, 1100.0, lower_only=True))


# ---- two controllers ----


def test_an_old_controller_that_is_alive_gives_itself_away():
    lease, _ = offer(SETTINGS, leased(Order(epoch=1)), Order(epoch=2, echo_at_s=START_S + 1), START_S + 1.0)
    late = Order(epoch=1, seq=9, echo_at_s=START_S + 0.9)
    lease, refusal = offer(SETTINGS, lease, late, START_S + 1.2)
    assert refusal is Refusal.OVERTAKEN
    assert lease.rival_at_s < 0
    alive = Order(epoch=1, seq=9, echo_at_s=START_S + 1.1)
    lease, refusal = offer(SETTINGS, lease, alive, START_S + 1.3)
    assert refusal is Refusal.SECOND_CONTROLLER
    assert (lease.rival_at_s, lease.newest, lease.refused[refusal]) == (START_S + 1.3, (2, 1), 1)


@pytest.mark.parametrize(("boot", "refusal"), [("a", None), ("", None), ("b", Refusal.SECOND_CONTROLLER)])
def test_of_two_controllers_with_one_epoch_the_first_is_obeyed(boot, refusal):
    lease = leased(Order(boot="a"))
    lease, why = offer(SETTINGS, lease, Order(seq=2, boot=boot, limits_w=(700.0, 700.0)), START_S)
    assert why is refusal
    assert (lease.held_w == (700.0, 700.0)) is (refusal is None)
    assert shed(lease, Order(seq=3, boot=boot), (300.0, 300.0))[1] is refusal


def usurped(**older) -> Lease:
    """Epoch 1 led, epoch 2 took over at START + 1, and its lease ended two seconds later."""
    lease, _ = offer(
        SETTINGS, leased(Order(epoch=1, **older)), Order(epoch=2, echo_at_s=START_S + 1), START_S + 1
    )
    return lease


def spoken(lease: Lease, order: Order, from_s: float, to_s: float) -> tuple[Lease, Refusal | None]:
    """The order again and again, each time of now, its readings too; the last answer."""
    refusal, now_s = None, from_s
    while now_s <= to_s:
        lease = beat(SETTINGS, lease, (600.0, 500.0), now_s)
        lease, refusal = offer(
            SETTINGS, lease, replace(order, echo_at_s=now_s, known_at_s=now_s - 0.1), now_s
        )
        now_s += 0.5
    return lease, refusal


OLDER = Order(epoch=1, seq=9, limits_w=(650.0, 450.0))


def test_when_the_newer_controller_is_gone_the_older_one_leads_again_and_raises_nothing_by_it():
    lease, refusal = spoken(usurped(), OLDER, START_S + 1.5, START_S + 5.0)
    assert (refusal, lease.mode) == (Refusal.SECOND_CONTROLLER, Mode.FALLBACK), "not two leases yet"
    before_w = lease.held_w
    lease, refusal = spoken(lease, OLDER, START_S + 5.5, START_S + 5.5)
    assert (refusal, lease.mode, lease.newest) == (None, Mode.LEASED, (1, 9))
    found = [Found(w, 200.0, 700.0) for w in before_w]
    assert due(lease, found) == ()
    knows = replace(OLDER, seq=10, echo_at_s=START_S + 5.7, known_at_s=START_S + 5.6)
    lease, refusal = offer(SETTINGS, lease, knows, START_S + 5.8)
    assert refusal is None
    assert due(lease, found)[-1] == Write(0, 650.0)


def test_the_older_one_waits_while_anything_of_the_newer_one_is_obeyed():
    lease, _ = spoken(usurped(), OLDER, START_S + 1.5, START_S + 4.5)
    lease, refusal = offer(SETTINGS, lease, Order(epoch=2, seq=2, echo_at_s=START_S + 4.6), START_S + 4.6)
    assert refusal is None  # it was slow, or its messages were lost
    lease, refusal = spoken(lease, OLDER, START_S + 5.0, START_S + 8.0)
    assert refusal is Refusal.SECOND_CONTROLLER


def test_who_was_cut_off_does_not_take_the_silence_of_both_for_the_end_of_one():
    """Both are back at the same time; the older one happens to be heard first."""
    lease = beat(SETTINGS, usurped(), (600.0, 500.0), START_S + 100.0)
    lease, refusal = spoken(lease, OLDER, START_S + 100.0, START_S + 103.5)
    assert refusal is Refusal.SECOND_CONTROLLER
    lease, refusal = offer(SETTINGS, lease, Order(epoch=2, seq=9, echo_at_s=START_S + 104), START_S + 104)
    assert refusal is None


def test_an_older_one_that_falls_silent_begins_its_waiting_anew():
    lease, _ = spoken(usurped(), OLDER, START_S + 1.5, START_S + 4.0)
    lease, refusal = spoken(lease, OLDER, START_S + 6.5, START_S + 10.0)  # suspended for a lease and more
    assert refusal is Refusal.SECOND_CONTROLLER
    assert spoken(lease, OLDER, START_S + 10.5, START_S + 10.5)[1] is None


def test_old_orders_told_again_make_nobody_an_heir_and_are_no_second_controller():
    """Recorded while the newer one led: they answer reports from then, and were refused then."""
    lease, now_s = usurped(), START_S + 4.0
    while now_s < START_S + 20.0:
        lease, refusal = offer(SETTINGS, lease, replace(OLDER, echo_at_s=START_S + 1.5), now_s)
        assert refusal is Refusal.OVERTAKEN
        lease = beat(SETTINGS, lease, (600.0, 500.0), now_s)
        now_s += 0.1
    assert (lease.mode, lease.heir, lease.rival_at_s) == (Mode.FALLBACK, None, -1.0)


def test_of_two_heirs_the_newer_start_leads():
    lease, _ = offer(SETTINGS, leased(Order(epoch=3)), Order(epoch=4, echo_at_s=START_S + 1), START_S + 1)
    for tenth in range(15, 60):
        now_s = START_S + tenth / 10
        lease = beat(SETTINGS, lease, (600.0, 500.0), now_s)
        for epoch in (1, 3):
            order = Order(epoch=epoch, seq=5, echo_at_s=now_s, known_at_s=now_s)
            lease, _ = offer(SETTINGS, lease, order, now_s)
    assert lease.newest == (3, 5)


def test_of_one_epoch_the_other_leads_when_the_first_is_gone():
    lease, refusal = spoken(leased(Order(boot="a")), Order(boot="b"), START_S + 0.5, START_S + 4.0)
    assert refusal is Refusal.SECOND_CONTROLLER
    lease, refusal = spoken(lease, Order(boot="b"), START_S + 4.5, START_S + 4.5)
    assert (refusal, lease.boot) == (None, "b")


def test_nothing_recorded_of_a_controller_that_was_succeeded_counts_and_alive_it_takes_over():
    lease, _ = spoken(usurped(), OLDER, START_S + 1.5, START_S + 5.5)
    assert shed(lease, Order(epoch=2, seq=7), (300.0, 300.0))[1] is Refusal.OVERTAKEN
    recorded = Order(epoch=2, seq=7, echo_at_s=START_S + 1.0)
    assert offer(SETTINGS, lease, recorded, START_S + 5.6)[1] is Refusal.EXPIRED
    alive = Order(epoch=2, seq=7, echo_at_s=START_S + 5.5, known_at_s=START_S + 5.4)
    lease, refusal = offer(SETTINGS, lease, alive, START_S + 5.6)
    assert (refusal, lease.newest, lease.lowers_only) == (None, (2, 7), True)
    assert shed(lease, Order(epoch=3, seq=1, boot="c"), (300.0, 300.0))[0].boot == "c"


@given(
    st.lists(
        st.tuples(
            st.integers(1, 2),  # epoch
            st.sampled_from((1, 3, 12)),  # so many orders in a row
            st.integers(0, 15),  # that answer a report of so many tenths ago
            st.integers(0, 8),  # and know readings so much older
            st.floats(200.0, 700.0),
        ),
        max_size=12,
    )
)
@settings(deadline=None)
def test_no_quarrel_of_controllers_raises_a_limit_but_by_one_that_knows_it(spells):
    """A driver that obeys. A rise needs an order decided on readings since its controller leads again."""
    lease, now_s, limits_w, led_from_s = waiting(), START_S, [700.0, 700.0], START_S
    orders = (order for epoch, count, *rest in spells for order in [(epoch, *rest)] * count)
    for seq, (epoch, echo_age, more_age, limit_w) in enumerate(orders, start=1):
        now_s += 0.4
        before, before_w = lease, list(limits_w)
        lease = beat(SETTINGS, lease, limits_w, now_s)
        echo_at_s = now_s - echo_age / 10
        order = Order(epoch, seq, echo_at_s, echo_at_s - more_age / 10 - 0.01, 2.0, (limit_w, limit_w))
        lease, refusal = offer(SETTINGS, lease, order, now_s)
        if 0 < lease.newest[0] < before.newest[0]:
            led_from_s = now_s
        for write in due(lease, [Found(w, 200.0, 700.0) for w in limits_w]):
            limits_w[write.gpu] = write.limit_w
        rose = any(now > was for now, was in zip(limits_w, before_w, strict=True))
        assert not rose or (refusal is None and order.known_at_s >= led_from_s)
