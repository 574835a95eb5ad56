"""The board: the newest value of everything, and nothing else.

Pollers, subscriptions and the agent link put values here as they come; the beat takes one frozen
`Snapshot`. No queue, no call back into control: a value that was replaced before anyone looked is gone,
and that is right, because only the newest can be true.

The board also answers when a node's readings were taken, on our own clock and without trusting the
node's: every report echoes the send time of the newest order it has heard and how long ago that was. The
readings cannot be older than that sum, if that order was sent by our clock: that of a controller on another
host says nothing here. A node that has heard nothing from us yet has readings of unknown age, which the law
treats as it treats all that is unknown.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

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
from controller.gpu_levers import Levers
from controller.grouping import (
    BELIEVED_MAX_RATIO,
    BOARD_MAX_W,
    TEXT_MAX_CHARS,
    Doubts,
    believed_max_w,
    no_doubts,
)
from controller.rivals import SHOWN_S, Rivals
from controller.silence import Silence
from protocols.agent_link import Facts, Report

OLD_BOOTS_MAX: Final = 16  # agent processes remembered per node, to drop what a dead one still has on the way
# Of power and limits. A limit of nothing, which no GPU can hold, would look like the best of all answers.
LEAST_W: Final = np.array(((0.0,), (1e-3,), (1e-3,)))
REFUSALS_KEPT_MAX: Final = 256  # reasons counted apart; some carry names that come from the wire
SENTENCES_MAX: Final = 8  # about the GPUs of one node: an operator reads no more, its agent's log has all
REFUSAL_MAX_CHARS: Final = 300  # some quote what comes from the wire
CLOCK_SLACK_S: Final = 0.005  # an echo may seem to come from the future by this much rounding
CLOCK_STEP_MAX_S: Final = 2.0  # a node's clock that leaps further has to stay there for as long: a fifth of
# the time until a silent node counts at its most


class _Newest(NamedTuple):
    """A node's newest report."""

    key: tuple[float, int, int] = (0.0, 0, 0)  # an acknowledgement repeats the readings of the sweep before
    ahead_s: float = NEVER_S  # the node's clock less ours, in the report that was the least time under way
    taken_at_s: float = NEVER_S

    def is_followed_by(self, key: tuple[float, int, int], ahead_s: float) -> bool:
        """One wrong stamp must not make all true ones look late."""
        return key > self.key and ahead_s <= self.ahead_s + CLOCK_STEP_MAX_S


class Board:
    """Newest values.

    Args:
        settings: of the block.
        epoch: number of this controller start, which orders and their echoes carry.
        same_clock: starts before this one that ran by the clock of this host.
    """

    def __init__(self, settings: Settings, epoch: int, same_clock: frozenset[int] = frozenset()) -> None:
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
        self._our_clock = same_clock | {epoch, 0}  # 0: an agent of before, that does not say whose it echoes
        firsts = np.searchsorted(topology.gpu_node, np.arange(nodes + 1)).tolist()
        self._slices = [slice(first, end) for first, end in pairwise(firsts)]
        self._index = {name: node for node, name in enumerate(topology.node_names)}
        self._boots: list[list[str]] = [[] for _ in range(nodes)]
        self._newest = [_Newest()] * nodes
        self._false_name = ("", NEVER_S)  # the newest that came, in a sentence, and when
        self._power_w, self._limit_w, self.enforced_w = np.full((3, count), np.nan)
        self._topology = topology
        self._min_w = topology.gpu_min_w.copy()
        self._max_w = topology.gpu_max_w.copy()
        self._constraints_w: list[list[tuple[float, float]]] = [[] for _ in range(nodes)]  # as last told
        self._misfits: list[list[str]] = [[] for _ in range(nodes)]
        self._cap_w = np.full(count, NO_LIMIT_W)
        self._proven_w = np.full(count, NO_LIMIT_W)
        self._doubts = no_doubts(count)
        self._rivals = Rivals(topology.node_names, epoch)
        self._silence = Silence(nodes, epoch)
        # A node that has not told counts at its most, as it would if it had no fallback.
        self._fallback_w = np.bincount(topology.gpu_node, topology.gpu_max_w, nodes)
        self._gain = settings.block_w_per_gpu_w
        self._base_max_w = settings.base_max_w
        self._left_alone_max_w, self._left_alone_why = min(
            (settings.failsafe_w, "its failsafe limit is"), (settings.feed_rating_w, "its feed carries")
        )
        self._node_at_s = np.full(nodes, NEVER_S)
        self._node_seq = np.zeros(nodes, dtype=np.int64)
        self._node_leased = np.zeros(nodes, dtype=np.bool_)
        self._node_table = np.zeros(nodes, dtype=np.int64)
        self._levers = Levers(self._slices, count)
        self.gpu_faults: dict[str, list[str]] = {}  # the agents' own sentences, by node
        self.gpu_notices: dict[str, list[str]] = {}  # of what is no fault: somebody else's doing
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
        self._fallback_w[node] = self._fallen_back_w(facts, members)
        self._levers.put_facts(facts, node)
        self._gpus = None
        return ""

    def _fallen_back_w(self, facts: Facts, members: slice) -> float:
        """What a node draws at most when its agent was left alone, W.

        No device goes below its least, nor below what power smoothing keeps up. Of a module, agents tell the
        share of each GPU. An agent that would wait for ever after a restart falls back to nothing.
        """
        if facts.waiting_max_s is None:
            return float(self._topology.gpu_max_w[members].sum())
        fallen_back_w = 0.0
        configured_w = zip(
            self._topology.gpu_min_w[members].tolist(),
            self._topology.gpu_max_w[members].tolist(),
            strict=True,
        )
        for gpu, (min_w, max_w) in zip(facts.gpus, configured_w, strict=True):
            most_w = believed_max_w(gpu.max_w, max_w)
            least_w = gpu.min_w if 0.0 < gpu.min_w <= most_w else min_w
            floor_w = 0.0 if gpu.smoothing is None else gpu.smoothing.floor_w or 0.0
            fallen_back_w += max(gpu.fallback_w, least_w, min(floor_w, most_w))
        return fallen_back_w

    def conditions(self, now_s: float) -> Iterator[tuple[str, str]]:
        """What is wrong with the agents as a whole, by key and text."""
        yield from self._rivals.conditions(now_s)
        yield from self._levers.conditions()
        block_w = self._gain * float(self._fallback_w.sum()) + self._base_max_w
        if block_w > self._left_alone_max_w:
            text = (
                "with all agents at their fallback limits, as far as their GPUs go down, the block could"
                f" draw {block_w / 1e3:.1f} kW, {self._left_alone_why} {self._left_alone_max_w / 1e3:.1f} kW:"
                " lower `fallback_w` in the node.yaml files, or the floors of power smoothing"
            )
            yield "fallback", text
        why, at_s = self._false_name
        if now_s - at_s <= SHOWN_S:
            yield "false name", why

    def put_proven(self, limits_w: Mapping[str, Sequence[float]]) -> None:
        """What BMCs were read to enforce, by node, W per GPU; nodes that are not named: nothing."""
        proven_w = np.full(len(self._proven_w), NO_LIMIT_W)
        for name, node_w in limits_w.items():
            proven_w[self._slices[self._index[name]]] = np.minimum(node_w, NO_LIMIT_W)
        if not np.array_equal(proven_w, self._proven_w):
            self._proven_w, self._gpus = proven_w, None

    def put_doubts(self, doubts: Doubts) -> None:
        """GPUs that are not who or where they should be: what is in doubt of them is unknown."""
        self._doubts, self._gpus = doubts, None

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
        bound_s = report.echo_sent_at_s + report.echo_age_s
        of_our_clock = report.echo_sent_at_s >= 0.0 and report.echo_epoch in self._our_clock
        heard = of_our_clock and bound_s <= now_s + CLOCK_SLACK_S
        young = heard and now_s - bound_s <= self._age_max_s
        key, ahead_s = (report.at_s, report.epoch, report.seq), report.at_s - now_s
        boots, newest = self._boots[node], self._newest[node]
        stands_still = now_s - newest.taken_at_s >= CLOCK_STEP_MAX_S
        if not boots or boots[-1] != report.boot:
            if report.boot in boots and not (young and stands_still):
                return self.refuse(
                    f"{report.node}: report of an agent process that another has replaced: end one of them",
                    report.node,
                )
            others = [boot for boot in boots if boot != report.boot]
            self._boots[node] = [*others[-OLD_BOOTS_MAX:], report.boot]
            self.known_at_s[node] = -1.0
        elif newest.is_followed_by(key, ahead_s):
            ahead_s = max(ahead_s, newest.ahead_s)
        elif not (young and stands_still):  # an echo of just now is no repetition
            return self.refuse(f"{report.node}: late or repeated report, or its clock has leapt")
        self._newest[node] = _Newest(key, ahead_s, now_s)
        self.report_at_s[node] = report.at_s
        if young:
            self.known_at_s[node] = report.at_s
        ours = report.epoch == self._epoch
        self._node_at_s[node] = min(bound_s, now_s) if heard else NEVER_S
        self._node_seq[node] = report.seq if ours else 0
        self._node_leased[node] = ours and report.mode == "leased"
        self._rivals.put(report, now_s)
        self._silence.put(node, report, min(bound_s, now_s) if heard else None, now_s)
        self._node_table[node] = report.table if report.table_epoch == self._epoch else 0
        misfits = self._take(report, node)
        self._levers.put_report(report, node)
        self.last_refusal.pop(report.node, None)
        self.gpu_faults[report.node] = [*misfits, *_by_gpu(gpu.fault for gpu in report.gpus)]
        self.gpu_notices[report.node] = _by_gpu(gpu.notice for gpu in report.gpus)
        self._revision += 1
        self._gpus = None
        return ""

    def _take(self, report: Report, node: int) -> list[str]:
        """Values of the GPUs; what no GPU can have is not readable.

        Returns a sentence per GPU whose constraints were not believed.
        """
        members = self._slices[node]
        constraints_w = [(gpu.min_w, gpu.max_w) for gpu in report.gpus]
        if constraints_w != self._constraints_w[node]:
            self._constraints_w[node] = constraints_w
            self._misfits[node] = self._constrain(report, members)
        for sentence in self._misfits[node]:
            self.refuse(sentence)
        gpus = report.gpus
        told_w = np.array(
            ([gpu.power_w for gpu in gpus], [gpu.limit_w for gpu in gpus], [gpu.enforced_w for gpu in gpus]),
            dtype=np.float64,
        )  # None, not readable, has become NaN
        most_w = np.maximum(self._max_w[members], self._topology.gpu_max_w[members])
        cannot_be = (told_w > BELIEVED_MAX_RATIO * most_w) | (told_w < LEAST_W)
        if np.count_nonzero(cannot_be):
            told_w[cannot_be] = np.nan
        self._power_w[members], self._limit_w[members], self.enforced_w[members] = told_w
        return self._misfits[node]

    def _constrain(self, report: Report, members: slice) -> list[str]:
        """Constraints as the devices have them, or as configured where those cannot be."""
        configured_max_w = self._topology.gpu_max_w[members]
        min_w, max_w = np.array([(gpu.min_w, gpu.max_w) for gpu in report.gpus], dtype=np.float64).T
        sound = (min_w > 0) & (min_w <= max_w) & (max_w <= BOARD_MAX_W)
        # One that claims to need more than its configuration would take the others' share of the budget.
        self._min_w[members] = np.where(
            sound & (min_w <= configured_max_w), min_w, self._topology.gpu_min_w[members]
        )
        self._max_w[members] = np.where(sound, max_w, configured_max_w)
        counted_w = np.maximum(self._max_w[members], configured_max_w)
        return [
            f"{report.node} GPU {gpu}: its power limits, {min_w[gpu]:.6g} to {max_w[gpu]:.6g} W, do not fit"
            f" block.yaml: ordered {configured_max_w[gpu]:g} W at most, counted at {counted_w[gpu]:g} W when"
            " silent"
            for gpu in np.flatnonzero(~(sound & (max_w <= configured_max_w)))
        ]

    def heard(self, name: str) -> tuple[float, int, bool]:
        """Of a node: when it was heard last, its newest order of ours, whether leased by us."""
        node = self._index[name]
        return self._silence.heard_s(node), int(self._node_seq[node]), bool(self._node_leased[node])

    def is_led_by_another(self, name: str, now_s: float) -> bool:
        """Whether a node obeys another controller that lives."""
        return self._silence.is_led_by_another(self._index[name], now_s)

    def snapshot(self, now_s: float, now_utc_s: float) -> Snapshot:
        if self._gpus is None:
            doubts, configured_max_w = self._doubts, self._topology.gpu_max_w
            max_w = np.maximum(self._max_w, doubts.most_w)
            self._gpus = Gpus(
                revision=self._revision,
                power_w=np.where(doubts.power, np.nan, self._power_w),
                limit_w=np.where(doubts.limit, np.nan, self._limit_w),
                min_w=self._min_w.copy(),
                max_w=max_w,
                # What a device can do beyond its configuration is counted, and never given.
                cap_w=np.where(
                    max_w > configured_max_w, np.minimum(self._cap_w, configured_max_w), self._cap_w
                ),
                proven_w=self._proven_w,
                floor_w=np.clip(self._levers.floor_w, 0.0, max_w),
                capped=self._levers.capped.copy(),
                by_clock=self._levers.by_clock.copy(),
                clock_max_mhz=self._levers.clock_max_mhz.copy(),
                ceiling_mhz=self._levers.ceiling_mhz.copy(),
                node_at_s=self._node_at_s.copy(),
                node_seq=self._node_seq.copy(),
                node_leased=self._node_leased.copy(),
                node_table=self._node_table.copy(),
                stray_w=doubts.stray_w,
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
        why = why[:REFUSAL_MAX_CHARS]
        if node in self._index:
            self.last_refusal[node] = why
        if why in self.refused or len(self.refused) < REFUSALS_KEPT_MAX:
            self.refused[why] = self.refused.get(why, 0) + 1
        return why

    def refuse_false_name(self, speaker: str, told: str, now_s: float) -> str:
        """A message on the topic of one node that names another. Returns why it is refused."""
        why = (
            f"on the topic of {speaker[:TEXT_MAX_CHARS]!r} somebody speaks as {told[:TEXT_MAX_CHARS]!r}:"
            " refused; find who publishes there"
        )
        self._false_name = (why, now_s)
        return self.refuse(why, speaker)


def _by_gpu(said: Iterable[str]) -> list[str]:
    """Each sentence once, with the GPUs that it is about."""
    about: dict[str, list[int]] = {}
    for gpu, sentence in enumerate(said):
        if sentence:
            about.setdefault(sentence, []).append(gpu)
    told = [f"GPU {', '.join(map(str, gpus))}: {sentence}" for sentence, gpus in about.items()]
    left_out = sum(len(gpus) for gpus in list(about.values())[SENTENCES_MAX:])
    return told if not left_out else [*told[:SENTENCES_MAX], f"{left_out} more GPUs"]
