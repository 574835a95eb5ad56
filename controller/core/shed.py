"""Shed plans: what every GPU does in an emergency is decided, sent and confirmed before there is one.

Every level of shedding names a block power. While all is well the law divides each of them over the GPUs, a
level per turn, as it would if it were asked now, and the agents keep that table in memory. When a level is
called, one small message to all of them is enough: every GPU goes to what it holds or to its entry in the
table, whichever is less. The block need not be divided first, nor 144 messages written.

The call is an order like any other: it has a number, a row in the ledger and waits for its confirmation. So a
lost call, an old table and a node that never had one cost a repetition and nothing else: whoever does not
confirm gets its limits spelt out, and counts at what it held until then.

A table is renewed where it would differ by so much that it matters, or add up to more than its level allows.
"""

from typing import Final, NamedTuple

import numpy as np

from controller.core import ledger as ledgers
from controller.core import sharing
from controller.core.model import (
    NEVER_S,
    BaseLoad,
    Bools,
    Floats,
    Ledger,
    Settings,
    Shares,
    ShedCall,
    Shedding,
    ShedTable,
    Snapshot,
    Standing,
)

NO_LEVEL: Final = -1
PLAN_S: Final = 1.0  # in which every level has its turn
MOVED_RATIO: Final = 0.05  # of a GPU's maximum: smaller differences are not worth a message
OVER_RATIO: Final = 0.002  # of its power that a level may pass by rounding and drift until it is divided anew


class Now(NamedTuple):
    """What this tick has found out so far."""

    shares: Shares
    base: BaseLoad
    base_w: float
    standing: Standing
    held_w: Floats  # (n) with what disobedient GPUs draw beyond
    heard: sharing.Heard


def start(settings: Settings) -> Shedding:
    """Nobody has a table yet; until it is divided a level lets every GPU keep what it holds."""
    topology = settings.topology
    tables = np.tile(topology.gpu_max_w, (len(settings.shed_levels), 1))
    table = ShedTable(0, tables, np.zeros(len(topology.node_names), dtype=np.int64))
    return Shedding(level=NO_LEVEL, table=table, turn=0, turned_at_s=NEVER_S, call=None)


def armed(shedding: Shedding, snapshot: Snapshot) -> Bools:
    """(nodes) that have the newest table of theirs and obey us; none before every level was divided once."""
    gpus, table = snapshot.gpus, shedding.table
    has_table = gpus.node_table >= table.node_version
    return has_table & (table.node_version > 0) & gpus.node_leased & (shedding.turn >= len(table.limits_w))


def plan(settings: Settings, shedding: Shedding, snapshot: Snapshot, now: Now) -> Shedding:
    """Divide the level anew whose turn it is."""
    levels = settings.shed_levels
    if not levels or snapshot.now_s - shedding.turned_at_s < PLAN_S / len(levels):
        return shedding
    level = shedding.turn % len(levels)
    gpu_budget_w = (levels[level].limit_w - now.base_w) / settings.block_w_per_gpu_w
    fresh_w = np.floor(
        sharing.divided_w(
            settings,
            snapshot,
            now.shares,
            sharing.rack_budget_w(settings, snapshot, now.base),
            now.held_w,
            now.standing.present_w,
            now.heard,
            gpu_budget_w,
        )
    )
    return shedding._replace(
        table=_renewed(settings, shedding.table, level, fresh_w, gpu_budget_w),
        turn=shedding.turn + 1,
        turned_at_s=snapshot.now_s,
    )


def _renewed(
    settings: Settings, table: ShedTable, level: int, fresh_w: Floats, gpu_budget_w: float
) -> ShedTable:
    """The table with the level's new division, where that differs by so much that a message pays."""
    topology = settings.topology
    old_w = table.limits_w[level]
    moved = np.abs(fresh_w - old_w) > MOVED_RATIO * topology.gpu_max_w
    nodes = np.zeros(len(topology.node_names), dtype=np.bool_)
    nodes[topology.gpu_node[moved]] = True
    nodes |= table.node_version == 0
    mixed_w = np.where(nodes[topology.gpu_node], fresh_w, old_w)
    if mixed_w.sum() > max(fresh_w.sum(), gpu_budget_w) * (1.0 + OVER_RATIO):
        nodes[:], mixed_w = True, fresh_w
    if not nodes.any():
        return table
    limits_w = table.limits_w.copy()
    limits_w[level] = mixed_w
    version = table.version + 1
    return ShedTable(version, limits_w, np.where(nodes, version, table.node_version))


def call(
    settings: Settings,
    shedding: Shedding,
    snapshot: Snapshot,
    level: int,
    orders: Ledger,
    next_w: Floats,
    present_w: Floats,
) -> tuple[Shedding, Ledger, Floats]:
    """Order `next_w`, by a call where `level` has just been asked for and is deeper than the one in force.

    Returns the shedding with its call, the ledger with the new row, and the limits that the row holds.
    """
    now_s, ready = snapshot.now_s, armed(shedding, snapshot)
    if level <= shedding.level or not ready.any():
        return (
            shedding._replace(level=level, call=None),
            ledgers.order(settings, orders, next_w, now_s),
            next_w,
        )
    by_call = ready[settings.topology.gpu_node]
    next_w = np.where(by_call, np.minimum(present_w, shedding.table.limits_w[level]), next_w)
    orders = ledgers.order(settings, orders, next_w, now_s, to_all=True)
    made = ShedCall(seq=orders.seq, level=level, version=shedding.table.version, nodes=ready)
    return shedding._replace(level=level, call=made), orders, next_w
