"""What a GPU may hold: never less than the truth, whatever becomes of orders and answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core import ledger
from controller.core.model import NO_LIMIT_W
from tests.core.blocks import MAX_W, SETTINGS, gpus

SETTLED_S = SETTINGS.settle_s
SEEN = np.full(4, 1e9)  # heard all the time


def ordered(book, limits_w, now_s):
    return ledger.order(SETTINGS, book, np.broadcast_to(limits_w, 4).astype(float), now_s)


def heard(book, now_s, limit_w, seq, **told):
    return taken_in(book, gpus(limit_w=limit_w, seq=seq, **told), now_s)[0]


def held(book, now_s, limit_w, **told):
    """Nothing is told of orders here."""
    return taken_in(book, gpus(limit_w=limit_w, seq=0, **told), now_s)[1].held_w.tolist()


def waited(book, now_s):
    return taken_in(book, gpus(limit_w=np.nan, seq=0), now_s)[1].waited_s.tolist()


def taken_in(book, told, now_s, seen_at_s=SEEN):
    readable = ~np.isnan(told.limit_w)
    seen_w = np.where(readable, told.limit_w, 0.0)
    return ledger.take_in(SETTINGS, book, told, seen_at_s, seen_w, readable, now_s, strides=True)


def quiet_at(limit_w, now_s=0.0):
    """One order in force everywhere, seq 2."""
    book = ordered(ledger.start(SETTINGS, now_s - 10.0), limit_w, now_s - 10.0)
    book = heard(book, now_s - 9.0, limit_w, 2)
    book = heard(book, now_s - 1.0, limit_w, 2)
    assert len(book.at_s) == 1
    assert waited(book, now_s) == [0.0] * 4
    return book


def test_what_was_ordered_at_a_moment_is_the_newest_order_until_then():
    book = ordered(ordered(quiet_at(600.0), 500.0, 1.0), 400.0, 1.02)
    found = [ledger.ordered_w(book, at_s)[0] for at_s in (-100.0, 0.99, 1.0, 1.01, 1.02, 9.0)]
    assert found == [600.0, 600.0, 500.0, 500.0, 400.0, 400.0]


def test_at_the_start_every_gpu_may_hold_its_most():
    assert held(ledger.start(SETTINGS, 0.0), 0.0, np.nan) == [MAX_W] * 4


def test_a_cut_counts_only_once_it_is_read_back_and_has_settled():
    book = ordered(quiet_at(600.0), 300.0, 0.0)
    assert held(book, 0.0, 600.0) == [600.0] * 4
    book = heard(book, 0.1, 300.0, 3)
    assert held(book, 0.1 + 0.9 * SETTLED_S, 300.0) == [600.0] * 4
    assert held(book, 0.1 + SETTLED_S, 300.0) == [300.0] * 4


def test_a_rise_counts_from_the_moment_it_is_ordered():
    assert held(ordered(quiet_at(300.0), 600.0, 0.0), 0.0, 300.0) == [600.0] * 4


def test_a_lost_order_leaves_the_old_limit_counted_for_ever():
    book = ordered(quiet_at(600.0), 300.0, 0.0)
    book = heard(book, 100.0, 600.0, 2)
    assert held(book, 100.0, 600.0) == [600.0] * 4


def test_told_is_not_obeyed_until_the_limit_is_read_back():
    book = heard(ordered(quiet_at(600.0), 300.0, 0.0), 0.1, 600.0, 3)
    assert held(book, 100.0, 600.0) == [600.0] * 4


def test_an_unreadable_gpu_acknowledges_nothing():
    book = heard(ordered(quiet_at(600.0), 300.0, 0.0), 0.1, [np.nan, 300.0, 300.0, 300.0], 3)
    assert held(book, 100.0, 300.0) == [600.0, 300.0, 300.0, 300.0]


def test_only_the_nodes_that_answered_are_taken_at_their_word():
    book = heard(ordered(quiet_at(600.0), 300.0, 0.0), 0.1, [300.0, 300.0, 600.0, 600.0], [3, 2])
    assert held(book, 100.0, [300.0, 300.0, 600.0, 600.0]) == [300.0, 300.0, 600.0, 600.0]


def test_a_late_answer_to_an_old_order_does_not_confirm_the_new_one():
    """The old, higher order was obeyed after the new, lower one went out: the new one is still open."""
    book = ordered(ordered(quiet_at(600.0), 500.0, 0.0), 300.0, 0.05)
    book = heard(book, 0.1, 500.0, 3)
    assert held(book, 100.0, 500.0) == [500.0] * 4
    book = heard(book, 100.0, 300.0, 4)
    assert held(book, 100.0 + SETTLED_S, 300.0) == [300.0] * 4


def test_answers_out_of_order_change_nothing_that_is_settled():
    book = ordered(ordered(quiet_at(600.0), 500.0, 0.0), 300.0, 0.05)
    book = heard(book, 0.1, 300.0, 4)
    book = heard(
        book, 1.0, 500.0, 3
    )  # an older report arrives late: the board drops it, the ledger survives it
    assert max(held(book, 1.0 + SETTLED_S, 300.0)) == 300.0


def test_a_report_above_every_order_is_believed():
    assert held(quiet_at(300.0), 0.0, [300.0, 650.0, 300.0, 300.0]) == [300.0, 650.0, 300.0, 300.0]


def test_who_is_silent_for_longer_than_a_reboot_may_hold_everything():
    book, silent_s = quiet_at(300.0), SETTINGS.silent_max_after_s
    seen_at_s = np.array([0.0, 0.0, 5.0, 5.0])
    told = gpus(limit_w=300.0)
    assert taken_in(book, told, silent_s + 0.1, seen_at_s)[1].held_w.tolist() == [
        700.0,
        700.0,
        300.0,
        300.0,
    ]


def test_a_silent_gpu_counts_at_what_its_bmc_was_read_to_hold_and_never_less_than_nothing_proven():
    book, silent_s = quiet_at(300.0), SETTINGS.silent_max_after_s
    seen_at_s = np.array([0.0, 0.0, 5.0, 5.0])
    told = gpus(limit_w=300.0, proven_w=[250.0, NO_LIMIT_W, 250.0, 250.0])
    held_w = taken_in(book, told, silent_s + 0.1, seen_at_s)[1].held_w
    assert held_w.tolist() == [250.0, MAX_W, 300.0, 300.0]  # the last two are heard: their own word counts


def test_what_a_bmc_shows_counts_only_while_all_gpus_of_the_node_are_silent():
    """It says of no bound which GPU it is of: beside one that is heard it may be of that one."""
    book, silent_s = quiet_at(300.0), SETTINGS.silent_max_after_s
    seen_at_s = np.array([5.0, 0.0, 0.0, 0.0])
    told = gpus(limit_w=300.0, proven_w=[NO_LIMIT_W, 300.0, 250.0, 250.0])
    held_w = taken_in(book, told, silent_s + 0.1, seen_at_s)[1].held_w
    assert held_w.tolist() == [300.0, MAX_W, 250.0, 250.0]


def test_an_order_is_owed_until_it_is_answered():
    book = ordered(quiet_at(600.0), [300.0, 300.0, 600.0, 600.0], 0.0)
    assert waited(book, 0.5) == [0.5, 0.5, 0.0, 0.0]
    assert waited(heard(book, 0.1, 300.0, 3), 0.5) == [0.0] * 4


def test_only_nodes_whose_limits_change_get_a_new_number():
    book = ordered(quiet_at(600.0), [300.0, 600.0, 600.0, 600.0], 0.0)
    assert book.node_seq[-1].tolist() == [3, 2]
    assert ordered(book, [300.0, 600.0, 600.0, 600.0], 1.0) is book


@pytest.mark.parametrize(
    ("what", "told", "present_w"),
    [
        ("obeys", {"limit_w": 500.0, "seq": 2}, 500.0),
        ("fell back", {"limit_w": 300.0, "seq": 0, "leased": False}, 300.0),
        ("holds more than ordered, free", {"limit_w": 650.0, "seq": 0, "leased": False}, 500.0),
        ("was limited out of band", {"limit_w": 300.0, "seq": 2}, 300.0),
        ("has not answered yet", {"limit_w": 600.0, "seq": 1}, 500.0),
        ("unreadable", {"limit_w": np.nan, "seq": 2}, 500.0),
    ],
)
def test_rises_start_from_what_is_really_there(what, told, present_w):
    _, standing = taken_in(quiet_at(500.0), gpus(**told), 0.0)
    assert standing.present_w.tolist() == [present_w] * 4, what


def test_a_hundred_orders_without_an_answer_stay_bounded_and_count_at_their_highest():
    book = quiet_at(300.0)
    for number in range(100):
        book = ordered(book, 300.0 + 4.0 * (49 - number % 50), 0.05 * number)
    assert len(book.at_s) <= ledger.ROWS_MAX
    assert held(book, 5.0, 300.0) == [300.0 + 4.0 * 49] * 4


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["order", "deliver", "report", "drop"]),
            st.integers(0, 3),
            st.sampled_from([200.0, 300.0, 450.0, 600.0]),
        ),
        max_size=60,
    )
)
def test_no_gpu_ever_holds_more_than_the_ledger_says(history):
    """Orders are lost, late and reordered, agents refuse what is older; reports are lost or come late."""
    book, now_s = quiet_at(300.0), 0.0
    truth_w, truth_seq = np.full(4, 300.0), np.array([2, 2])
    orders, reports = [], []
    for what, number, power_w in history:
        now_s += 0.05
        if what == "order":
            wish_w = book.limits_w[-1].copy()
            wish_w[number] = power_w
            book = ordered(book, wish_w, now_s)
            orders += [(node, int(book.node_seq[-1][node]), wish_w.copy()) for node in (0, 1)]
        if what == "deliver" and orders:
            node, seq, limits_w = orders.pop(number % len(orders))
            if seq >= truth_seq[node]:
                truth_seq[node] = seq
                truth_w[2 * node : 2 * node + 2] = limits_w[2 * node : 2 * node + 2]
            reports.append((truth_w.copy(), truth_seq.copy()))
        if what == "report" and reports:
            limit_w, seq = reports.pop()  # the board lets only newer ones through
            reports.clear()
            book = heard(book, now_s, limit_w, seq)
        if what == "drop" and orders:
            orders.pop(number % len(orders))
        assert (np.array(held(book, now_s, np.nan)) >= truth_w - 1e-9).all()
