"""What an agent takes in: of whom, and whose clock and tables it believes."""

import pytest
from structlog.testing import capture_logs

from controller.agent.hearing import Ear
from controller.agent.lease import LeaseSettings
from controller.clock import now_s
from protocols.agent_link import Call, Level, Order, Table, encode

SETTINGS = LeaseSettings(
    fallback_w=(300.0, 300.0), fallback_ramp_w_per_s=50.0, lease_max_s=5.0, waiting_max_s=None
)
ORDERS, TABLES = "powerblock/b/agent/n/order", "powerblock/b/agent/n/table"
CALLS = "powerblock/b/agents/call"
OURS, OTHER = 10, 20


@pytest.fixture
def ear() -> Ear:
    """Of an agent that obeys start 10."""
    ear = Ear("n", SETTINGS, lambda: None, observe=False)
    ear.on_message(ORDERS, order(OURS, sent_at_s=1000.0), False)
    assert ear.lease.newest == (OURS, 1)
    return ear


def order(epoch: int, *, sent_at_s: float, answers: bool = True, seq: int = 1) -> bytes:
    at_s = now_s() if answers else -1.0
    return encode(
        Order(
            epoch=epoch, seq=seq, sent_at_s=sent_at_s, echo_at_s=at_s, known_at_s=at_s, lease_s=3.0,
            limits_w=(500.0, 500.0), boot=str(epoch),
        )
    )  # fmt: skip


def table(epoch: int, version: int, limit_w: float) -> bytes:
    return encode(Table(epoch=epoch, version=version, levels=(Level(limits_w=(limit_w, limit_w)),)))


def test_the_clock_of_a_start_that_is_not_obeyed_is_not_echoed(ear):
    """It answers no report: it may write here and not read, or is a recording."""
    ear.on_message(ORDERS, order(OTHER, sent_at_s=9_000.0, answers=False), False)
    assert (ear.lease.newest, ear.heard_sent_at_s, ear.heard_epoch) == ((OURS, 1), 1000.0, OURS)


def test_whose_clock_is_echoed_is_told_from_the_first_order_of_a_start_that_takes_over(ear):
    """At once, not when it has been written; and it may be lower, for it is another clock."""
    ear.on_message(ORDERS, order(OTHER, sent_at_s=9.0), False)
    assert (ear.heard_epoch, ear.heard_sent_at_s) == (OTHER, 9.0)
    ear.on_message(ORDERS, order(OURS, sent_at_s=1001.0), False)
    assert (ear.heard_epoch, ear.heard_sent_at_s) == (OTHER, 9.0), "alive, and refused"


def test_the_first_order_of_all_is_echoed_although_it_answers_nothing():
    """Or a controller would never learn how old our readings are."""
    ear = Ear("n", SETTINGS, lambda: None, observe=False)
    ear.on_message(ORDERS, order(OURS, sent_at_s=7.0, answers=False), False)
    assert (ear.lease.newest, ear.heard_sent_at_s, ear.heard_epoch) == ((0, 0), 7.0, OURS)


def test_the_table_of_a_start_that_is_not_obeyed_does_not_replace_ours(ear):
    ear.on_message(TABLES, table(OURS, 1, 400.0), False)
    ear.on_message(TABLES, table(OTHER, 9, 700.0), False)
    assert ear.table.epoch == OURS
    ear.on_message(TABLES, table(OURS, 2, 350.0), False)
    assert (ear.table.version, ear.table.levels[0].limits_w) == (2, (350.0, 350.0))


def test_a_table_that_came_before_the_first_order_gives_way_to_that_of_whom_is_obeyed():
    ear = Ear("n", SETTINGS, lambda: None, observe=False)
    ear.on_message(TABLES, table(OTHER, 9, 700.0), False)
    ear.on_message(ORDERS, order(OURS, sent_at_s=1.0), False)
    ear.on_message(TABLES, table(OURS, 1, 400.0), False)
    assert (ear.table.epoch, ear.table.version) == (OURS, 1)


@pytest.mark.parametrize("topic", [ORDERS, TABLES, CALLS])
def test_what_a_broker_has_kept_moves_nothing_however_good_it_would_be(topic):
    """A retained order is told to whoever comes, days later: a broker's memory is no controller."""
    changed: list[None] = []
    ear = Ear("n", SETTINGS, lambda: changed.append(None), observe=False)
    ear.on_message(ORDERS, order(OURS, sent_at_s=1000.0), False)
    ear.on_message(TABLES, table(OURS, 1, 400.0), False)
    before, told = (ear.lease, ear.table, ear.heard_sent_at_s), len(changed)
    good = {
        ORDERS: order(OURS, sent_at_s=1001.0, seq=2),
        TABLES: table(OURS, 2, 350.0),
        CALLS: encode(Call(epoch=OURS, seq=2, version=1, level=0, sent_at_s=1001.0, boot=str(OURS))),
    }
    with capture_logs() as logged:
        ear.on_message(topic, good[topic], True)
    assert ((ear.lease, ear.table, ear.heard_sent_at_s), len(changed)) == (before, told)
    (why,) = [one["why"] for one in logged if one["event"] == "order refused"]
    assert "retained" in why
    ear.on_message(topic, good[topic], False)
    assert ((ear.lease, ear.table, ear.heard_sent_at_s), len(changed)) != (before, told), "it was good"


def test_why_an_order_is_refused_is_logged_in_words(ear):
    """Not as the name of a constant with its quotes, which a console shows of an enumeration."""
    with capture_logs() as logged:
        ear.on_message(ORDERS, order(OTHER, sent_at_s=9_000.0, answers=False), False)
    (why,) = [one["why"] for one in logged if one["event"] == "order refused"]
    assert type(why) is str
