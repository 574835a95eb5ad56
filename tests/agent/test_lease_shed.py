"""Calls of shed levels as truth tables: they lower at once, whoever holds the right, and raise nothing ever."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agent.lease import Lease, LeaseSettings, Mode, Refusal, beat, begin, offer, shed
from protocols.agent_link import Order

SETTINGS = LeaseSettings(
    fallback_w=(300.0, 250.0), fallback_ramp_w_per_s=50.0, lease_max_s=10.0, waiting_max_s=30.0
)
START_S = 100.0
DEEP_W = (280.0, 220.0)


@dataclass(frozen=True)
class Call:
    epoch: int = 2
    seq: int = 6
    boot: str = ""


def order(**changes) -> Order:
    said = {
        "epoch": 2,
        "seq": 5,
        "sent_at_s": 1.0,
        "echo_at_s": START_S,
        "known_at_s": START_S,
        "lease_s": 2.0,
        "limits_w": (600.0, 500.0),
    }
    return Order(**(said | changes))


def leased(**changes) -> Lease:
    lease, refusal = offer(SETTINGS, begin(SETTINGS, START_S, observe=False), order(**changes), START_S)
    assert refusal is None
    return lease


def in_mode(mode: Mode) -> Lease:
    if mode is Mode.LEASED:
        return leased()
    if mode is Mode.FALLBACK:
        return beat(SETTINGS, leased(), (600.0, 500.0), START_S + 2.0)
    return begin(SETTINGS, START_S, observe=mode is Mode.OBSERVE)


@pytest.mark.parametrize(
    ("mode", "call", "limits_w", "refusal"),
    [
        (Mode.LEASED, Call(), DEEP_W, None),
        (Mode.LEASED, Call(epoch=3, seq=1), DEEP_W, None),  # a new controller may lower before it may grant
        (Mode.LEASED, Call(seq=5), DEEP_W, Refusal.OVERTAKEN),  # the order in force has answered it
        (Mode.LEASED, Call(seq=4), DEEP_W, Refusal.OVERTAKEN),
        (Mode.LEASED, Call(epoch=1, seq=99), DEEP_W, Refusal.OVERTAKEN),  # an old controller
        (Mode.LEASED, Call(), (280.0,), Refusal.OTHER_GPU_COUNT),
        (Mode.LEASED, Call(), (), Refusal.OTHER_GPU_COUNT),
        (Mode.WAITING, Call(), DEEP_W, None),
        (Mode.FALLBACK, Call(), DEEP_W, None),
        (Mode.OBSERVE, Call(), DEEP_W, Refusal.OBSERVING),
    ],
)
def test_a_call_is_obeyed_or_refused_for_a_stated_reason(mode, call, limits_w, refusal):
    before = in_mode(mode)
    after, why = shed(before, call, limits_w)
    assert why is refusal
    assert after.mode is mode, "a call grants nothing and takes nothing away"
    if refusal is None:
        assert after.held_w == DEEP_W
        assert after.refused == before.refused
    else:
        assert after.held_w == before.held_w
        assert after.refused == {refusal: 1}


@pytest.mark.parametrize(
    ("held_w", "limits_w", "then_w"),
    [
        ((600.0, 500.0), (280.0, 220.0), (280.0, 220.0)),
        ((600.0, 200.0), (280.0, 220.0), (280.0, 200.0)),  # what is lower stays
        ((250.0, 200.0), (700.0, 700.0), (250.0, 200.0)),  # an old table raises nothing
        ((600.0, 500.0), (0.0, 700.0), (0.0, 500.0)),
    ],
)
def test_every_gpu_goes_to_what_it_holds_or_to_its_entry_whichever_is_less(held_w, limits_w, then_w):
    assert shed(leased(limits_w=held_w), Call(), limits_w)[0].held_w == then_w


def test_who_never_had_a_limit_of_ours_takes_the_tables_and_may_raise_nothing():
    lease, _ = shed(in_mode(Mode.WAITING), Call(), DEEP_W)
    assert (lease.held_w, lease.lowers_only) == (DEEP_W, True)


def test_a_call_is_confirmed_by_its_number_and_the_order_behind_it_counts():
    lease, _ = shed(leased(), Call(seq=6), DEEP_W)
    assert lease.newest == (2, 6)
    assert offer(SETTINGS, lease, order(seq=5), START_S)[1] is Refusal.OVERTAKEN, (
        "a late order raises nothing"
    )
    lease, refusal = offer(SETTINGS, lease, order(seq=7), START_S)
    assert (refusal, lease.held_w) == (None, (600.0, 500.0))


def test_a_call_prolongs_no_right():
    lease, _ = shed(leased(), Call(), DEEP_W)
    assert lease.until_s == START_S + 2.0
    assert beat(SETTINGS, lease, DEEP_W, START_S + 2.0).mode is Mode.FALLBACK


def test_a_fallback_goes_on_below_what_was_called():
    lease, _ = shed(in_mode(Mode.FALLBACK), Call(), (500.0, 400.0))
    later = beat(SETTINGS, lease, (500.0, 400.0), START_S + 60.0)
    assert later.held_w == SETTINGS.fallback_w


def test_after_a_call_that_came_without_a_right_the_same_order_raises_nothing():
    lease, _ = shed(in_mode(Mode.FALLBACK), Call(), DEEP_W)
    again, refusal = offer(SETTINGS, lease, order(echo_at_s=START_S + 2.5), START_S + 2.5)
    assert refusal is None
    assert all(now_w <= then_w for now_w, then_w in zip(again.held_w, DEEP_W, strict=True))


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.lists(st.floats(0, 700), min_size=2, max_size=2)),
        max_size=30,
    ),
    st.sampled_from([Mode.LEASED, Mode.FALLBACK, Mode.WAITING]),
)
def test_no_row_of_calls_raises_anything(calls, mode):
    lease = in_mode(mode)
    seen = [lease.held_w]
    for epoch, seq, limits_w in calls:
        lease, _ = shed(lease, replace(Call(), epoch=epoch, seq=seq), tuple(limits_w))
        seen.append(lease.held_w)
    for before, after in pairwise(seen):
        assert all(w is None or now_w <= w for w, now_w in zip(before, after, strict=True))
