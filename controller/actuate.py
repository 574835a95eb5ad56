"""From a decision to messages: who gets what now.

An order carries all limits of its node and the lease to hold them. It goes out when the limits changed,
again while the node has not confirmed it, and as a renewal well before the lease runs out. It carries the
send time, which the node echoes, and echoes the node's own report time, from which the lease counts: see
protocols/agent_link.py. A node that was never heard gets its orders all the same; it cannot be leased by
them, but its echo starts the conversation.

A call of a shed level stands for the orders of all nodes that have their table; those who do not confirm it
get theirs spelt out. Tables go out when they changed, and again while a node has not confirmed having it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from controller.core.model import Decision, Ints, Settings, ShedTable
from protocols.agent_link import Call, Level, Order, Table

REPEAT_S: Final = 0.1  # an unconfirmed order is repeated: a lost one costs two beats
RENEWALS_PER_LEASE: Final = 6.0  # so many in a row may be lost before a lease runs out
TABLE_REPEAT_S: Final = 1.0  # nobody waits for a table yet
NEVER_S: Final = -1e12


class Heard(NamedTuple):
    """What the nodes have said of themselves, by node."""

    confirmed_seq: Sequence[int]
    report_at_s: Sequence[float]
    known_at_s: Sequence[float]
    table: Sequence[int]


class Actuate:
    """Remembers what was sent when; decides nothing about power."""

    def __init__(self, settings: Settings, epoch: int, lease_s: float, boot: str = "") -> None:
        nodes = len(settings.topology.node_names)
        self._members = [np.flatnonzero(settings.topology.gpu_node == node) for node in range(nodes)]
        self._epoch, self._boot = epoch, boot
        self._lease_s = lease_s
        self._sent_seq = [0] * nodes
        self._sent_at_s = [NEVER_S] * nodes
        self._table_sent = [(0, NEVER_S)] * nodes  # version, and when

    def call(self, decision: Decision, now_s: float) -> Call | None:
        """The one message for all, where the decision calls a level. To be asked before `orders`."""
        made = decision.state.shedding.call
        if made is None:
            return None
        for node in np.flatnonzero(made.nodes).tolist():
            self._sent_seq[node], self._sent_at_s[node] = made.seq, now_s
        return Call(
            epoch=self._epoch,
            seq=made.seq,
            version=made.version,
            level=made.level,
            sent_at_s=now_s,
            boot=self._boot,
        )

    def orders(self, decision: Decision, heard: Heard, now_s: float) -> list[tuple[int, Order]]:
        """Orders to send now, as (node index, order)."""
        wanted_seq = decision.node_seq.tolist()
        due: list[tuple[int, Order]] = []
        for node, seq in enumerate(wanted_seq):
            pause_s = REPEAT_S if heard.confirmed_seq[node] < seq else self._lease_s / RENEWALS_PER_LEASE
            if seq == self._sent_seq[node] and now_s - self._sent_at_s[node] < pause_s:
                continue
            self._sent_seq[node] = seq
            self._sent_at_s[node] = now_s
            order = Order(
                epoch=self._epoch,
                seq=seq,
                sent_at_s=now_s,
                echo_at_s=heard.report_at_s[node],
                known_at_s=heard.known_at_s[node],
                lease_s=self._lease_s,
                limits_w=tuple(decision.gpu_limits_w[self._members[node]].tolist()),
                clocks_mhz=_told(decision.clocks_mhz[self._members[node]]),
                boot=self._boot,
            )
            due.append((node, order))
        return due

    def tables(self, table: ShedTable, heard: Heard, now_s: float) -> list[tuple[int, Table]]:
        """Shed tables to send now, as (node index, table)."""
        due: list[tuple[int, Table]] = []
        for node, version in enumerate(table.node_version.tolist()):
            sent, sent_at_s = self._table_sent[node]
            if heard.table[node] >= version or (sent == version and now_s - sent_at_s < TABLE_REPEAT_S):
                continue
            self._table_sent[node] = (version, now_s)
            members = self._members[node]
            levels = tuple(
                Level(limits_w=tuple(limits_w), clocks_mhz=_told(clocks_mhz))
                for limits_w, clocks_mhz in zip(
                    table.limits_w[:, members].tolist(), table.clocks_mhz[:, members], strict=True
                )
            )
            due.append((node, Table(epoch=self._epoch, version=version, levels=levels)))
        return due


def _told(clocks_mhz: Ints) -> tuple[int, ...]:
    """Ceilings of one node, nothing where there is none."""
    return tuple(clocks_mhz.tolist()) if clocks_mhz.any() else ()
