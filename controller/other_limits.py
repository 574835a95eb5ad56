"""Limits that GPUs hold and this block has not ordered: how many there are, and how much power that is.

An administrator, a scheduler's node agent, a DCGM policy, a BMC, heat: who it is, agents cannot see either.
They name each GPU and write its limit again (`agent.contest`); here stands what it costs the block.

    less   the limit, or what is enforced under it, is below all orders of the last seconds. The law lets its
           orders come down to a limit that others hold and tries again from there, so the loss is counted
           from the share that the GPU was given
    more   its limit is above all orders of the last seconds. It is counted at that, and others give way

All orders of the last seconds: neither a cut under way nor a ramp is somebody else. Only nodes count that are
heard and obey us; what the others cost, `agent …` and `lease …` tell.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from controller.core.model import Bools, Floats, Settings, Snapshot

SPAN_S: Final = 2.0  # orders of so long at least, and of twice as long at most
BELOW_ORDER_W: Final = 0.5  # orders are whole watts; the law's next step from a limit of others may be one
ROUNDED_W: Final = 1.0  # boards round what they hold
LEAST_W: Final = 5.0  # of one GPU: less is not worth a word
NAMED_MAX: Final = 3


class OtherLimits:
    """Of one block. Arrays run over GPUs (n)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topology = settings.topology
        count = len(settings.topology.gpu_node)
        self._lowest_w = np.zeros((2, count))  # of the orders since the newest turn, and before it
        self._highest_w = np.full((2, count), np.inf)
        self._turned_at_s = -np.inf

    def ordered(self, limits_w: Floats, now_s: float) -> None:
        """What is ordered in this beat."""
        if now_s - self._turned_at_s >= SPAN_S:
            self._turned_at_s = now_s
            for rows in (self._lowest_w, self._highest_w):
                rows[1], rows[0] = rows[0], limits_w
            return
        np.minimum(self._lowest_w[0], limits_w, out=self._lowest_w[0])
        np.maximum(self._highest_w[0], limits_w, out=self._highest_w[0])

    def conditions(
        self, snapshot: Snapshot, share_w: Floats, enforced_w: Floats
    ) -> Iterator[tuple[str, str]]:
        """What is told of it, by key and text, in one alarm for the whole block.

        Args:
            snapshot: of this beat.
            share_w: what the law has given to every GPU.
            enforced_w: the lowest of all limiters there; NaN: not known, taken for the limit.
        """
        gpus, gpu_node = snapshot.gpus, self._topology.gpu_node
        age_s = snapshot.now_s - gpus.node_at_s
        ours = (gpus.node_leased & (age_s <= self._settings.report_age_max_s))[gpu_node]
        held_down = enforced_w < gpus.limit_w - ROUNDED_W
        held_w = np.where(held_down, enforced_w, gpus.limit_w)  # NaN: not readable
        lowest_w = self._lowest_w.min(axis=0)
        highest_w = np.clip(self._highest_w.max(axis=0), gpus.min_w, gpus.max_w)
        below, above = held_w < lowest_w - BELOW_ORDER_W, held_w > highest_w
        lost_w, over_w = np.minimum(share_w, gpus.max_w) - held_w, held_w - highest_w
        said = (
            self._said(ours & below, lost_w, "less than their share: work is lost"),
            self._said(ours & above, over_w, "more than ordered: counted, others give way"),
        )
        if any(said):
            yield "other limits", "; ".join(filter(None, said))

    def _said(self, others: Bools, by_w: Floats, effect: str) -> str:
        gpus = np.flatnonzero(others & (by_w > LEAST_W))
        if not len(gpus):
            return ""
        by_kw = self._settings.block_w_per_gpu_w * float(by_w[gpus].sum()) / 1e3
        names = _some([self._topology.gpu_name(gpu) for gpu in gpus[:NAMED_MAX].tolist()], len(gpus))
        return f"{len(gpus)} of {len(others)} GPUs ({names}) hold {by_kw:.1f} kW {effect}"


def _some(names: Sequence[str], count: int) -> str:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return ", ".join(names) + more
