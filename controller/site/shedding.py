"""The infrastructure's part in DSX Flex: shed hints for our nodes and GPUs become caps, and an answer.

An agent elsewhere (that of the hall, say) tells of a breach and advises who should shed. Hints that name a
node or a GPU of this block are carried out by the law's own means: a cap on single GPUs, under which the
block's power is shared out as ever. A node's power is taken to be its GPUs', its hosts count as base load.
`throttle` is a cap at the least; `suspend`, chassis and whatever is not ours are skipped, and the answer
says so.

A cap lasts until its breach is resolved, across restarts. The contract bounds neither, so a breach of which
nothing was heard for `SILENT_MAX_S` is taken for over: an adviser that died must not hold GPUs down for
ever.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from controller.core.model import NO_LIMIT_W, Floats, Settings
from protocols.dsx_flex.breach import Alert, ShedHint, alert_data, read_alert
from protocols.dsx_flex.enforcement import Result
from protocols.dsx_flex.wire import a_list

SILENT_MAX_S: Final = 3600.0
BREACHES_MAX: Final = 64


@dataclass(frozen=True)
class Shed:
    """One breach whose hints are carried out."""

    alert: Alert
    cap_w: Floats  # (n)
    results: tuple[Result, ...]
    heard_at_s: float


class Shedding:
    """Caps in force, by breach."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sheds: dict[str, Shed] = {}

    @property
    def cap_w(self) -> Floats:
        """The lowest cap of every GPU, (n) W; NO_LIMIT_W: none."""
        none = np.full(len(self._settings.topology.gpu_node), NO_LIMIT_W)
        lowest_w: Floats = np.minimum.reduce([none, *(shed.cap_w for shed in self._sheds.values())])
        return lowest_w

    def take(self, alert: Alert, now_s: float) -> tuple[Result, ...]:
        """Carry an alert's hints out, or take them back when it is resolved. What came of each of ours.

        Returns nothing where no hint is for this block.
        """
        if alert.status == "resolved":
            shed = self._sheds.pop(alert.breach_id, None)
            return () if shed is None else shed.results
        cap_w = np.full(len(self._settings.topology.gpu_node), NO_LIMIT_W)
        results = tuple(self._carried_out(alert, cap_w))
        if any(result.code == "applied" for result in results):
            self._sheds.pop(alert.breach_id, None)
            self._sheds[alert.breach_id] = Shed(alert, cap_w, results, now_s)
            while len(self._sheds) > BREACHES_MAX:
                del self._sheds[next(iter(self._sheds))]
        return results

    def kept(self) -> list[dict[str, Any]]:
        """The alerts whose hints are in force, for JSON."""
        return [alert_data(shed.alert) for shed in self._sheds.values()]

    def reopen(self, kept: Any, now_s: float) -> None:
        """Carry out again what was in force: a restart lifts no cap. Raises DsxFlexError."""
        for said in a_list(kept, "kept alerts", BREACHES_MAX):
            self.take(read_alert(said), now_s)

    def forgotten(self, now_s: float) -> tuple[Shed, ...]:
        """Breaches of which nothing was heard for too long; their caps are gone."""
        old = tuple(shed for shed in self._sheds.values() if now_s - shed.heard_at_s > SILENT_MAX_S)
        for shed in old:
            del self._sheds[shed.alert.breach_id]
        return old

    def _carried_out(self, alert: Alert, cap_w: Floats) -> Iterator[Result]:
        """Lowers `cap_w` hint by hint; says what came of each that names this block."""
        topology = self._settings.topology
        for hint in alert.hints:
            members = self._members(hint)
            if members is None:
                continue
            least_w = topology.gpu_min_w[members]
            if hint.resource_type == "chassis" or hint.action == "suspend":
                yield Result.of(hint, "skipped", "this controller caps nodes and GPUs; it suspends nothing")
                continue
            wanted_w = float(least_w.sum()) if hint.action == "throttle" else hint.target_w
            if wanted_w is None:
                yield Result.of(hint, "failed", "a power cap without target_power")
                continue
            share_w = wanted_w / len(least_w)
            cap_w[members] = np.minimum(cap_w[members], np.maximum(share_w, least_w))
            yield Result.of(hint, "applied", applied_w=float(cap_w[members].sum()))

    def _members(self, hint: ShedHint) -> "np.typing.NDArray[np.int64] | None":
        """GPUs that a hint names: a node, or `node/index`; None: not ours."""
        topology = self._settings.topology
        node, _, index = hint.resource_id.partition("/")
        if node not in topology.node_names:
            return None
        members = np.flatnonzero(topology.gpu_node == topology.node_names.index(node))
        if not index:
            return members
        return (
            members[int(index) : int(index) + 1] if index.isdecimal() and int(index) < len(members) else None
        )
