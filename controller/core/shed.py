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

from controller.core import clocks, sharing
from controller.core import ledger as ledgers
from controller.core.model import (
    NEVER_S,
    BaseLoad,
    Bools,
    Clocks,
    Floats,
    Ints,
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


class Want(NamedTuple):
    """What is to be ordered."""

    limits_w: Floats  # (n)
    clocks: Clocks


def start(settings: Settings) -> Shedding:
    """Nobody has a table yet; until it is divided a level lets every GPU keep what it holds."""
    topology = settings.topology
    tables = np.tile(topology.gpu_max_w, (len(settings.shed_levels), 1))
    table = ShedTable(
        version=0,
        limits_w=tables,
        clocks_mhz=np.zeros(tables.shape, dtype=np.int64),
        clock_ratios=(clocks.FREE_RATIO,) * len(settings.shed_levels),
        node_version=np.zeros(len(topology.node_names), dtype=np.int64),
    )
    return Shedding(level=NO_LEVEL, table=table, turn=0, turned_at_s=NEVER_S, call=None)


def armed(shedding: Shedding, snapshot: Snapshot) -> Bools:
    """(nodes) that have the newest table of theirs and obey us; none before every level was divided once."""
    gpus, table = snapshot.gpus, shedding.table
    has_table = gpus.node_table >= table.node_version
    return has_table & (table.node_version > 0) & gpus.node_leased & (shedding.turn >= len(table.limits_w))


def short_w(settings: Settings, shedding: Shedding, now: Now) -> Floats:
    """How much above its power every level would end, (levels) W: minima, floors, and who is out of reach."""
    wanted_w = np.array([level.limit_w for level in settings.shed_levels])
    short: Floats = np.maximum(0.0, reached_w(settings, shedding.table.limits_w, now) - wanted_w)
    return short


def reached_w(settings: Settings, limits_w: Floats, now: Now) -> Floats:
    """What the block may draw under limits of (..., n), (...) W: who does not obey keeps what he holds."""
    most_w = np.where(now.heard.bound, limits_w, now.held_w)
    reached: Floats = settings.block_w_per_gpu_w * most_w.sum(axis=-1) + now.base_w
    return reached


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
    table = shedding.table
    clock_ratio = sharing.clock_ratio(settings, snapshot, now.shares, table.clock_ratios[level], fresh_w)
    fresh_mhz = clocks.ceilings_mhz(settings, snapshot.gpus, clock_ratio)
    ratios = (*table.clock_ratios[:level], clock_ratio, *table.clock_ratios[level + 1 :])
    table = table._replace(clock_ratios=ratios)
    return shedding._replace(
        table=_renewed(settings, table, level, fresh_w, fresh_mhz, gpu_budget_w),
        turn=shedding.turn + 1,
        turned_at_s=snapshot.now_s,
    )


def _renewed(
    settings: Settings, table: ShedTable, level: int, fresh_w: Floats, fresh_mhz: Ints, gpu_budget_w: float
) -> ShedTable:
    """The table with the level's new division, where that differs by so much that a message pays."""
    topology = settings.topology
    old_w = table.limits_w[level]
    moved = np.abs(fresh_w - old_w) > MOVED_RATIO * topology.gpu_max_w
    # a ceiling too low hurts only in an emergency, so it is no reason for a message
    known_mhz = table.clocks_mhz[level]
    moved |= (fresh_mhz > clocks.NONE_MHZ) & ((known_mhz == clocks.NONE_MHZ) | (fresh_mhz < known_mhz))
    nodes = np.zeros(len(topology.node_names), dtype=np.bool_)
    nodes[topology.gpu_node[moved]] = True
    nodes |= table.node_version == 0
    mixed_w = np.where(nodes[topology.gpu_node], fresh_w, old_w)
    if mixed_w.sum() > max(fresh_w.sum(), gpu_budget_w) * (1.0 + OVER_RATIO):
        nodes[:], mixed_w = True, fresh_w
    if not nodes.any():
        return table
    limits_w, clocks_mhz = table.limits_w.copy(), table.clocks_mhz.copy()
    limits_w[level] = mixed_w
    clocks_mhz[level] = np.where(nodes[topology.gpu_node], fresh_mhz, clocks_mhz[level])
    version = table.version + 1
    return ShedTable(
        version, limits_w, clocks_mhz, table.clock_ratios, np.where(nodes, version, table.node_version)
    )


def call(
    settings: Settings,
    shedding: Shedding,
    snapshot: Snapshot,
    level: int,
    orders: Ledger,
    now: Now,
    before_mhz: Ints,
    want: Want,
) -> tuple[Shedding, Ledger, Want]:
    """Order what is wanted, by a call where a deeper level than the one in force has just been asked for.

    Returns the shedding with its call, the ledger with the new row, and what the row holds.
    """
    now_s, ready = snapshot.now_s, armed(shedding, snapshot)
    gpu_node, nodes = settings.topology.gpu_node, len(ready)
    if level <= shedding.level or not ready.any():
        others = np.zeros(nodes, dtype=np.bool_)  # have other ceilings than before, whatever their limits
        others[gpu_node[want.clocks.ceilings_mhz != before_mhz]] = True
        others[_with_stuck_ceilings(settings, snapshot, orders, want.clocks.ceilings_mhz)] = True
        orders = ledgers.order(settings, orders, want.limits_w, now_s, also=others)
        return shedding._replace(level=level, call=None), orders, want
    by_call, table = ready[gpu_node], shedding.table
    planned_w = np.minimum(now.standing.present_w, table.limits_w[level])
    planned_mhz = clocks.lower_mhz(want.clocks.ceilings_mhz, table.clocks_mhz[level])
    called_mhz = np.where(by_call, planned_mhz, want.clocks.ceilings_mhz)
    called = Want(
        limits_w=np.where(by_call, planned_w, want.limits_w),
        clocks=Clocks(
            ratio=min(want.clocks.ratio, table.clock_ratios[level]),
            moved_at_s=now_s,
            ceilings_mhz=called_mhz,
            changed_at_s=np.where(called_mhz == before_mhz, want.clocks.changed_at_s, now_s),
        ),
    )
    orders = ledgers.order(settings, orders, called.limits_w, now_s, also=np.ones(nodes, dtype=np.bool_))
    made = ShedCall(seq=orders.seq, level=level, version=table.version, nodes=ready)
    return shedding._replace(level=level, call=made), orders, called


def _with_stuck_ceilings(settings: Settings, snapshot: Snapshot, orders: Ledger, want_mhz: Ints) -> Bools:
    """(nodes) that confirm all we have ordered and hold a lower ceiling than that.

    So does an agent after its restart: its first order may only lower, and only a newer one lifts.
    """
    gpus, gpu_node = snapshot.gpus, settings.topology.gpu_node
    lower = (gpus.ceiling_mhz > clocks.NONE_MHZ) & (
        (want_mhz == clocks.NONE_MHZ) | (gpus.ceiling_mhz < want_mhz)
    )
    stuck = np.zeros(len(gpus.node_seq), dtype=np.bool_)
    stuck[gpu_node[lower]] = True
    stuck &= gpus.node_leased & (gpus.node_seq >= orders.node_seq[-1])
    return stuck
