"""From a decision to messages: which node gets an order now.

An order carries all limits of its node and the lease to hold them. It goes out when the limits changed,
again while the node has not confirmed it, and as a renewal well before the lease runs out. It carries the
send time, which the node echoes, and echoes the node's own report time, from which the lease counts: see
protocols/agent_link.py. A node that was never heard gets its orders all the same; it cannot be leased by
them, but its echo starts the conversation.
"""

from typing import Final

import numpy as np

from controller.core.model import Decision, Settings
from protocols.agent_link import Order

REPEAT_S: Final = 0.1  # an unconfirmed order is repeated: a lost one costs two beats
RENEWALS_PER_LEASE: Final = 6.0  # so many in a row may be lost before a lease runs out


class Actuate:
    """Remembers what was sent when; decides nothing about power."""

    def __init__(self, settings: Settings, epoch: int, lease_s: float) -> None:
        nodes = len(settings.topology.node_names)
        self._members = [np.flatnonzero(settings.topology.gpu_node == node) for node in range(nodes)]
        self._epoch = epoch
        self._lease_s = lease_s
        self._sent_seq = [0] * nodes
        self._sent_at_s = [-1e12] * nodes

    def orders(
        self,
        decision: Decision,
        confirmed_seq: list[int],
        report_at_s: list[float],
        known_at_s: list[float],
        now_s: float,
    ) -> list[tuple[int, Order]]:
        """Orders to send now, as (node index, order)."""
        wanted_seq = decision.node_seq.tolist()
        due: list[tuple[int, Order]] = []
        for node, seq in enumerate(wanted_seq):
            pause_s = REPEAT_S if confirmed_seq[node] < seq else self._lease_s / RENEWALS_PER_LEASE
            if seq == self._sent_seq[node] and now_s - self._sent_at_s[node] < pause_s:
                continue
            self._sent_seq[node] = seq
            self._sent_at_s[node] = now_s
            limits_w = tuple(decision.gpu_limits_w[self._members[node]].tolist())
            order = Order(
                epoch=self._epoch,
                seq=seq,
                sent_at_s=now_s,
                echo_at_s=report_at_s[node],
                known_at_s=known_at_s[node],
                lease_s=self._lease_s,
                limits_w=limits_w,
            )
            due.append((node, order))
        return due
