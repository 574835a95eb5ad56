"""Whatever comes over the agent link, at either end: refused with a sentence, or understood soundly."""

from contextlib import suppress
from typing import Final

import numpy as np

from controller.agent import lease as leases
from controller.board import Board
from protocols import agent_link
from protocols.agent_link import Call, LinkError, Order, Report, Table
from tests.core.blocks import settings

EPOCH: Final = 3
NOW_S: Final = 101.0
SETTINGS: Final = leases.LeaseSettings(
    fallback_w=(300.0, 250.0), fallback_ramp_w_per_s=50.0, lease_max_s=10.0, waiting_max_s=30.0
)
HELD: Final = Order(
    epoch=EPOCH,
    seq=6,
    sent_at_s=100.0,
    echo_at_s=100.0,
    known_at_s=100.0,
    lease_s=5.0,
    limits_w=(600.0, 500.0),
)


def link(payload: bytes) -> None:
    """The same bytes to every reader: what one of them takes must be sound."""
    with suppress(LinkError):
        order(agent_link.decode_order(payload))
    with suppress(LinkError):
        table(agent_link.decode_table(payload))
    with suppress(LinkError):
        call(agent_link.decode_call(payload))
    with suppress(LinkError):
        report(agent_link.decode_report(payload))


def held() -> leases.Lease:
    lease, refusal = leases.offer(SETTINGS, leases.begin(SETTINGS, 100.0, observe=False), HELD, NOW_S)
    assert refusal is None
    return lease


def order(said: Order) -> None:
    assert agent_link.decode_order(agent_link.encode(said)) == said
    before = held()
    after, refusal = leases.offer(SETTINGS, before, said, NOW_S)
    assert after.until_s <= NOW_S + SETTINGS.lease_max_s, "a right for longer than allowed"
    if refusal is not None or (said.epoch, said.seq) <= before.newest:
        assert not rises(before, after), "an old or refused order raised a limit"
    if refusal is None:
        assert all(is_power(limit_w) for limit_w in after.held_w)


def table(said: Table) -> None:
    assert agent_link.decode_table(agent_link.encode(said)) == said
    for level in said.levels:
        before = held()
        after, _ = leases.shed(
            before, Call(epoch=EPOCH, seq=7, version=1, level=0, sent_at_s=0.0), level.limits_w
        )
        assert not rises(before, after), "a table raised a limit"
        assert all(is_power(limit_w) for limit_w in (*after.held_w, *level.limits_w))


def call(said: Call) -> None:
    assert agent_link.decode_call(agent_link.encode(said)) == said
    before = held()
    after, refusal = leases.shed(before, said, (200.0, 200.0))
    assert not rises(before, after), "a call raised a limit"
    assert (refusal is None) == ((said.epoch, said.seq) > before.newest)
    assert (after.until_s, after.mode) == (before.until_s, before.mode), "a call changed a right"


def is_power(limit_w: float | None) -> bool:
    return limit_w is not None and 0.0 <= limit_w < agent_link.LIMIT_MAX_W


def rises(before: leases.Lease, after: leases.Lease) -> bool:
    return any(
        now_w is None or now_w > then_w
        for then_w, now_w in zip(before.held_w, after.held_w, strict=True)
        if then_w is not None
    )


def report(said: Report) -> None:
    assert agent_link.decode_report(agent_link.encode(said)) == said
    board = Board(settings(), EPOCH)
    why = board.put_report(said, NOW_S)
    gpus = board.snapshot(NOW_S, 0.0).gpus
    if why:
        assert np.isnan(gpus.power_w).all(), "a refused report was believed"
        assert not gpus.node_table.any()
        return
    topology = settings().topology
    given_w = np.minimum(gpus.max_w, gpus.cap_w)
    assert (given_w <= topology.gpu_max_w).all(), "a device is given more than its configuration"
    assert (gpus.min_w <= gpus.max_w).all()
    assert not (gpus.power_w < 0.0).any()
    assert not (gpus.limit_w < 0.0).any()
    assert (gpus.node_at_s <= NOW_S).all(), "readings from the future"
    if said.table_epoch != EPOCH:
        assert not gpus.node_table.any(), "a table of another controller counts"
