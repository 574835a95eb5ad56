"""The board: the newest value of everything, and nothing else.

Pollers, subscriptions and the agent link put values here as they come; the beat takes one frozen
`Snapshot`. No queue, no call back into control: a value that was replaced before anyone looked is gone,
and that is right, because only the newest can be true.

The board also answers when a node's readings were taken, on our own clock and without trusting the
node's: every report echoes the send time of the newest order it has heard and how long ago that was. The
readings cannot be older than that sum. A node that has heard nothing from us yet has readings of unknown
age, which the law treats as it treats all that is unknown.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from controller.core.model import (
    NEVER_S,
    NO_LIMIT_W,
    UNKNOWN,
    Floats,
    Gpus,
    Inlets,
    Measurement,
    Settings,
    ShedRequest,
    Site,
    Snapshot,
)
from protocols.agent_link import Facts, Report

OLD_BOOTS_MAX: Final = 16  # agent processes remembered per node, to drop what a dead one still has on the way
BELIEVED_MAX_RATIO: Final = 3.0  # of a GPU's maximum: spikes reach twice it, more is a broken register
# Of power and limit. A limit of nothing, which no GPU can hold, would look like the best of all answers.
LEAST_W: Final = np.array(((0.0,), (1e-3,)))
REFUSALS_KEPT_MAX: Final = 256  # reasons counted apart; some carry names that come from the wire
RIVAL_SHOWN_S: Final = 10.0  # after a second controller was heard last
CLOCK_SLACK_S: Final = 0.005  # an echo may seem to come from the future by this much rounding


class Board:
    """Newest values; `epoch` is the number of this controller start, which orders and their echoes carry."""

    def __init__(self, settings: Settings, epoch: int) -> None:
        topology = settings.topology
        count, nodes, inlets = len(topology.gpu_node), len(topology.node_names), len(topology.inlet_names)
        self.meter: Measurement = UNKNOWN
        self.cooling: Measurement = UNKNOWN
        self.site: Site = Site()
        self.sheds: tuple[ShedRequest, ...] = ()
        self.frequency: Measurement = UNKNOWN
        self.refused: dict[str, int] = {}  # reason -> how often
        self.last_refusal: dict[str, str] = {}  # node -> why its newest message was refused, if it was
        self.report_at_s = np.full(nodes, -1.0)  # the node's own clock: orders echo it,
        self.known_at_s = np.full(nodes, -1.0)  # and this one, of the newest readings whose age is known
        self._age_max_s = settings.report_age_max_s
        self._epoch = epoch
        firsts = np.searchsorted(topology.gpu_node, np.arange(nodes + 1)).tolist()
        self._slices = [slice(first, end) for first, end in pairwise(firsts)]
        self._index = {name: node for node, name in enumerate(topology.node_names)}
        self._boots: list[list[str]] = [[] for _ in range(nodes)]
        self._newest = [(0.0, 0, 0)] * nodes  # an acknowledgement repeats the readings of the sweep before
        self._power_w = np.full(count, np.nan)
        self._limit_w = np.full(count, np.nan)
        self._topology = topology
        self._min_w = topology.gpu_min_w.copy()
        self._max_w = topology.gpu_max_w.copy()
        self._constraints_w: list[list[tuple[float, float]]] = [[] for _ in range(nodes)]  # as last told
        self._misfits: list[list[str]] = [[] for _ in range(nodes)]
        self._cap_w = np.full(count, NO_LIMIT_W)
        self._proven_w = np.full(count, NO_LIMIT_W)
        self._rival_at_s = np.full(nodes, NEVER_S)
        # A node that has not told counts at its most, as it would if it had no fallback.
        self._fallback_w = np.bincount(topology.gpu_node, topology.gpu_max_w, nodes)
        self._gain, self._base_max_w = settings.block_w_per_gpu_w, settings.base_max_w
        self._rating_w = settings.feed_rating_w
        self._node_at_s = np.full(nodes, NEVER_S)
        self._node_seq = np.zeros(nodes, dtype=np.int64)
        self._node_leased = np.zeros(nodes, dtype=np.bool_)
        self._node_table = np.zeros(nodes, dtype=np.int64)
        self.gpu_faults: dict[str, list[str]] = {}  # the agents' own sentences, by node
        self._revision = 0
        self._gpus: Gpus | None = None
        self._inlet_w = np.zeros(inlets)
        self._inlet_good = np.zeros(inlets, dtype=np.bool_)
        self._inlet_at_s = np.full(inlets, NEVER_S)
        self._inlets: Inlets | None = None

    def put_inlet(self, inlet: int, measurement: Measurement) -> None:
        self._inlet_w[inlet] = measurement.value
        self._inlet_good[inlet] = measurement.good
        self._inlet_at_s[inlet] = measurement.taken_at_s
        self._inlets = None

    def put_caps(self, cap_w: Floats) -> None:
        """What single GPUs are asked to stay under, (n) W; NO_LIMIT_W: nothing."""
        self._cap_w = cap_w.copy()
        self._gpus = None

    def put_facts(self, facts: Facts) -> str:
        """What a node is. Returns why that is refused, or an empty string."""
        node = self._index.get(facts.node)
        if node is None:
            return self.refuse(f"facts of {facts.node!r}: no such node in this block's configuration")
        members = self._slices[node]
        if len(facts.gpus) != members.stop - members.start:
            return self.refuse(f"facts of {facts.node}: {len(facts.gpus)} GPUs are not what is configured")
        if not all(0.0 < gpu.fallback_w < NO_LIMIT_W for gpu in facts.gpus):
            return self.refuse(f"facts of {facts.node}: a fallback limit is no power in W")
        shared = {gpu.module: gpu.fallback_w for gpu in facts.gpus if gpu.module >= 0}  # one limit a module
        alone_w = sum(gpu.fallback_w for gpu in facts.gpus if gpu.module < 0)
        self._fallback_w[node] = alone_w + sum(shared.values())
        return ""

    def conditions(self, now_s: float) -> Iterator[tuple[str, str]]:
        """What is wrong with the agents as a whole, by key and text."""
        rivals = [
            name for name, node in self._index.items() if now_s - self._rival_at_s[node] <= RIVAL_SHOWN_S
        ]
        if rivals:
            more = f" and {len(rivals) - 1} more" if len(rivals) > 1 else ""
            text = (
                f"another controller gives orders to {rivals[0]}{more}: the newer start is obeyed;"
                " end one, then restart the one that stays"
            )
            yield "two controllers", text
        block_w = self._gain * float(self._fallback_w.sum()) + self._base_max_w
        if block_w > self._rating_w:
            text = (
                f"with all agents at their fallback limits the block could draw {block_w / 1e3:.1f} kW, its"
                f" feed carries {self._rating_w / 1e3:.1f} kW: lower `fallback_w` in the node.yaml files"
            )
            yield "fallback", text

    def put_proven(self, limits_w: Mapping[str, Sequence[float]]) -> None:
        """What BMCs were read to enforce, by node, W per GPU; nodes that are not named: nothing."""
        proven_w = np.full(len(self._proven_w), NO_LIMIT_W)
        for name, node_w in limits_w.items():
            proven_w[self._slices[self._index[name]]] = np.minimum(node_w, NO_LIMIT_W)
        if not np.array_equal(proven_w, self._proven_w):
            self._proven_w, self._gpus = proven_w, None

    def put_report(self, report: Report, now_s: float) -> str:
        """Take a report in. Returns why it was refused, or an empty string."""
        node = self._index.get(report.node)
        if node is None:
            return self.refuse(f"report of {report.node!r}: no such node in this block's configuration")
        members = self._slices[node]
        configured = members.stop - members.start
        if len(report.gpus) != configured:
            return self.refuse(
                f"{report.node} reports {len(report.gpus)} GPUs, configured are {configured}: correct one",
                report.node,
            )
        boots = self._boots[node]
        if not boots or boots[-1] != report.boot:
            if report.boot in boots:
                return self.refuse(
                    f"{report.node}: report of an agent process that has been replaced", report.node
                )
            self._boots[node] = [*boots[-OLD_BOOTS_MAX:], report.boot]
            self.known_at_s[node] = -1.0
        elif (report.at_s, report.epoch, report.seq) <= self._newest[node]:
            return self.refuse(f"{report.node}: late or repeated report")  # the newer one was taken
        self.report_at_s[node] = report.at_s
        self._newest[node] = (report.at_s, report.epoch, report.seq)
        bound_s = report.echo_sent_at_s + report.echo_age_s
        heard = report.echo_sent_at_s >= 0.0 and bound_s <= now_s + CLOCK_SLACK_S
        if heard and now_s - bound_s <= self._age_max_s:
            self.known_at_s[node] = report.at_s
        ours = report.epoch == self._epoch
        self._node_at_s[node] = min(bound_s, now_s) if heard else NEVER_S
        self._node_seq[node] = report.seq if ours else 0
        self._node_leased[node] = ours and report.mode == "leased"
        if report.rivals_s >= 0.0:
            self._rival_at_s[node] = now_s - report.rivals_s
        self._node_table[node] = report.table if report.table_epoch == self._epoch else 0
        misfits = self._take(report, node)
        self.last_refusal.pop(report.node, None)
        self.gpu_faults[report.node] = [*misfits, *(gpu.fault for gpu in report.gpus if gpu.fault)]
        self._revision += 1
        self._gpus = None
        return ""

    def _take(self, report: Report, node: int) -> list[str]:
        """Values of the GPUs; what no GPU can have is unknown, and a limit beyond all reason its most.

        Returns a sentence per GPU whose constraints were not believed.
        """
        members = self._slices[node]
        constraints_w = [(gpu.min_w, gpu.max_w) for gpu in report.gpus]
        if constraints_w != self._constraints_w[node]:
            self._constraints_w[node] = constraints_w
            self._misfits[node] = self._constrain(report, members)
        for sentence in self._misfits[node]:
            self.refuse(sentence)
        told_w = np.array(
            ([gpu.power_w for gpu in report.gpus], [gpu.limit_w for gpu in report.gpus]), dtype=np.float64
        )  # None, not readable, has become NaN
        configured_max_w = self._topology.gpu_max_w[members]
        too_high = told_w > BELIEVED_MAX_RATIO * configured_max_w
        if np.count_nonzero(too_high | (told_w < LEAST_W)):
            told_w[too_high | (told_w < LEAST_W)] = np.nan
            told_w[1] = np.where(too_high[1], configured_max_w, told_w[1])
        self._power_w[members], self._limit_w[members] = told_w
        return self._misfits[node]

    def _constrain(self, report: Report, members: slice) -> list[str]:
        """Constraints as the devices have them, or as configured where those cannot be."""
        configured_max_w = self._topology.gpu_max_w[members]
        min_w, max_w = np.array([(gpu.min_w, gpu.max_w) for gpu in report.gpus], dtype=np.float64).T
        # A device that claims more than its configuration would take the others' share of the budget.
        sound = (min_w > 0) & (min_w <= max_w) & (max_w <= configured_max_w)
        self._min_w[members] = np.where(sound, min_w, self._topology.gpu_min_w[members])
        self._max_w[members] = np.where(sound, max_w, configured_max_w)
        return [
            f"{report.node} GPU {gpu}: its power limits do not fit block.yaml, which is taken instead"
            for gpu in np.flatnonzero(~sound)
        ]

    def heard(self, name: str) -> tuple[float, int, bool]:
        """Of a node: a moment its readings are not older than, its newest order of ours, whether leased."""
        node = self._index[name]
        return float(self._node_at_s[node]), int(self._node_seq[node]), bool(self._node_leased[node])

    def snapshot(self, now_s: float, now_utc_s: float) -> Snapshot:
        if self._gpus is None:
            self._gpus = Gpus(
                revision=self._revision,
                power_w=self._power_w.copy(),
                limit_w=self._limit_w.copy(),
                min_w=self._min_w.copy(),
                max_w=self._max_w.copy(),
                cap_w=self._cap_w.copy(),
                proven_w=self._proven_w,
                node_at_s=self._node_at_s.copy(),
                node_seq=self._node_seq.copy(),
                node_leased=self._node_leased.copy(),
                node_table=self._node_table.copy(),
            )
        if self._inlets is None:
            self._inlets = Inlets(self._inlet_w.copy(), self._inlet_good.copy(), self._inlet_at_s.copy())
        return Snapshot(
            now_s,
            now_utc_s,
            self.meter,
            self._inlets,
            self.cooling,
            self._gpus,
            self.site,
            self.sheds,
            self.frequency,
        )

    def refuse(self, why: str, node: str = "") -> str:
        """Count a message that was not acted on; returns `why`. `node`: whose it was, where that is known."""
        if node in self._index:
            self.last_refusal[node] = why
        if why in self.refused or len(self.refused) < REFUSALS_KEPT_MAX:
            self.refused[why] = self.refused.get(why, 0) + 1
        return why
