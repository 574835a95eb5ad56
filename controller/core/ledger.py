"""Which limit may a GPU hold at this moment? Never less than the truth.

An order is a wish until its GPU has been read back at or under it, and its power follows a little later.
So the ledger keeps one row per order that might still be in force somewhere. A row is void for a GPU once
a *later* row was acknowledged there and `settle_s` has passed. What a GPU may hold is the highest of its
rows that are not void, or what it reported last if that is more, or, once it has been silent for longer
than a host needs to reboot, the most that the device can do, as far as its BMC does not hold it below that.
A bound that a BMC shows may be of any GPU of its host: it counts while all of them are silent.

A lost order, a late one, an agent that died between writing and answering: all are the same case here.
"""

from typing import Final

import numpy as np

from controller.core.model import FOREVER_S, NO_LIMIT_W, Bools, Floats, Gpus, Ledger, Settings, Standing

ROWS_MAX: Final = 128  # more than a second of orders at the fastest beat; older ones are merged, upwards
READ_BACK_TOLERANCE_W: Final = 1.0  # drivers round to whole watts


def start(settings: Settings, now_s: float) -> Ledger:
    """Nothing is known: every GPU may hold the most it can do."""
    topology = settings.topology
    count, nodes = len(topology.gpu_node), len(topology.node_names)
    return Ledger(
        seq=1,
        limits_w=topology.gpu_max_w.reshape(1, count).copy(),
        acked_at_s=np.full((1, count), FOREVER_S),
        node_seq=np.ones((1, nodes), dtype=np.int64),
        at_s=np.array([now_s]),
    )


def take_in(
    settings: Settings,
    ledger: Ledger,
    gpus: Gpus,
    seen_at_s: Floats,
    seen_w: Floats,
    readable: Bools,
    now_s: float,
    *,
    strides: bool,
) -> tuple[Ledger, Standing]:
    """Mark what the agents confirmed, drop the rows that are void for every GPU, and say where all stand.

    `strides`: limits may rise now, see `sharing`.
    """
    if _is_quiet(ledger):
        held_w, waited_s = ledger.limits_w[0], np.zeros(len(seen_at_s))
    else:
        ledger = _acknowledged(settings, ledger, gpus, now_s)
        ledger, held_w = _without_void(ledger, ledger.acked_at_s + settings.settle_s <= now_s)
        waited_s = _waited_s(ledger, now_s)
    ordered_w, held_w = held_w, np.maximum(np.fmax(held_w, gpus.limit_w), seen_w)
    silent = now_s - seen_at_s > settings.silent_max_after_s
    if np.count_nonzero(silent):
        most_w = np.maximum(gpus.max_w, settings.topology.gpu_max_w)  # whatever the device says of itself
        heard = np.zeros(len(settings.topology.node_names), dtype=np.bool_)
        heard[settings.topology.gpu_node[~silent]] = True
        proven_w = np.where(heard[settings.topology.gpu_node], NO_LIMIT_W, gpus.proven_w)
        held_w = np.where(silent, np.minimum(np.maximum(held_w, most_w), proven_w), held_w)
    present_w = _present_w(settings, ledger, gpus, readable, strides)
    return ledger, Standing(held_w, ordered_w, present_w, waited_s)


def _is_quiet(ledger: Ledger) -> bool:
    """One order in force everywhere and nothing under way."""
    return len(ledger.at_s) == 1 and bool((ledger.acked_at_s < FOREVER_S).all())


def _acknowledged(settings: Settings, ledger: Ledger, gpus: Gpus, now_s: float) -> Ledger:
    told = (gpus.node_seq >= ledger.node_seq)[:, settings.topology.gpu_node]
    obeyed = told & (gpus.limit_w <= ledger.limits_w + READ_BACK_TOLERANCE_W)
    return ledger._replace(
        acked_at_s=np.where(obeyed & (ledger.acked_at_s >= FOREVER_S), now_s, ledger.acked_at_s)
    )


def _without_void(ledger: Ledger, done: Bools) -> tuple[Ledger, Floats]:
    """The ledger without rows that are void everywhere, and the highest of each GPU's rows that are not.

    A row is void where a later one is done: it can no longer be in force there.
    """
    void = np.zeros_like(done)
    void[:-1] = _or_later(done[1:])
    held_w: Floats = np.where(void, 0.0, ledger.limits_w).max(axis=0)
    keep = ~void.all(axis=1)
    if keep.all():
        return ledger, held_w
    kept = Ledger(
        ledger.seq, ledger.limits_w[keep], ledger.acked_at_s[keep], ledger.node_seq[keep], ledger.at_s[keep]
    )
    return kept, held_w


def _waited_s(ledger: Ledger, now_s: float) -> Floats:
    """How long every GPU has owed the answer to an order, (n) s; the answer to a later one will do."""
    answered = _or_later(ledger.acked_at_s < FOREVER_S)
    since_s = np.where(answered, FOREVER_S, ledger.at_s[:, np.newaxis]).min(axis=0)
    owed: Floats = np.maximum(0.0, now_s - since_s)
    return owed


def _or_later(rows: Bools) -> Bools:
    """(k, n): true in this row or in a later one."""
    later: Bools = np.logical_or.accumulate(rows[::-1])[::-1]
    return later


def _present_w(settings: Settings, ledger: Ledger, gpus: Gpus, readable: Bools, strides: bool) -> Floats:
    """The limits that rises and cuts start from, (n) W: the newest order, or less where less is in force.

    A node that fell back, or has just started, holds less than the order it confirms, and says so. What a
    board rounds away, or others hold down, counts when limits may rise: from there the next order is the same
    one again, and until then it stands.
    """
    gpu_node = settings.topology.gpu_node
    ordered_w = ledger.limits_w[-1]
    confirmed = (gpus.node_seq >= ledger.node_seq).sum(axis=0)[gpu_node]  # rows, oldest first
    row_w = ledger.limits_w[confirmed - 1, np.arange(len(ordered_w))]
    lower = (confirmed > 0) & (gpus.limit_w < row_w - READ_BACK_TOLERANCE_W) & strides
    free = ~gpus.node_leased[gpu_node]
    present: Floats = np.where(readable & (free | lower), np.minimum(gpus.limit_w, ordered_w), ordered_w)
    return present


def ordered_w(ledger: Ledger, at_s: float) -> Floats:
    """The newest order of that moment or before, (n) W, as far back as rows go."""
    limits_w: Floats = ledger.limits_w[max(0, int(ledger.at_s.searchsorted(at_s, side="right")) - 1)]
    return limits_w


def order(
    settings: Settings, ledger: Ledger, limits_w: Floats, now_s: float, also: Bools | None = None
) -> Ledger:
    """Add a row; only nodes whose limits change get a new number, and those that must hear of it `also`."""
    changed = limits_w != ledger.limits_w[-1]
    nodes = np.zeros(ledger.node_seq.shape[1], dtype=np.bool_) if also is None else also.copy()
    nodes[settings.topology.gpu_node[changed]] = True
    if not nodes.any():
        return ledger
    seq = ledger.seq + 1
    grown = Ledger(
        seq=seq,
        limits_w=np.vstack((ledger.limits_w, limits_w)),
        acked_at_s=np.vstack((ledger.acked_at_s, np.where(changed, FOREVER_S, ledger.acked_at_s[-1]))),
        node_seq=np.vstack((ledger.node_seq, np.where(nodes, seq, ledger.node_seq[-1]))),
        at_s=np.append(ledger.at_s, now_s),
    )
    while len(grown.at_s) > 2 and (
        now_s - grown.at_s[1] > 2.0 * settings.ack_wait_s or len(grown.at_s) > ROWS_MAX
    ):
        grown = _merge_oldest(grown)  # old enough to be overdue all the same
    return grown


def _merge_oldest(ledger: Ledger) -> Ledger:
    """Two oldest rows become one that may hold the higher limit and is answered by the later number."""
    limits_w = ledger.limits_w[1:].copy()
    limits_w[0] = np.maximum(ledger.limits_w[0], ledger.limits_w[1])
    acked_at_s = ledger.acked_at_s[1:].copy()
    acked_at_s[0] = np.maximum(ledger.acked_at_s[0], ledger.acked_at_s[1])
    return Ledger(ledger.seq, limits_w, acked_at_s, ledger.node_seq[1:], ledger.at_s[1:])
