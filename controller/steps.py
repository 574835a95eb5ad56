"""How long every step of a shed took, from the signal to the watt: one line per call, and histograms.

    asked       something asked for the level (a contact, a signal, a command)
    decided     the law had made its decision
    sent        the call was written to the broker's connection
    received    the last of the agents that were called had it
    confirmed   the last GPU was read at what the call leaves it, or below
    moved       the meter showed the block within 2 % of the level's power

All by this host's monotonic clock, since `asked`. What a node did in between it says itself, by its own clock
and as a length of time: from the arrival of the call to its last limit read back. The longest of them is
`obeyed`, where every node's is known. An answer also says how long the call had been there when it was sent;
so the node had the call at the latest so long before the answer came. That moment is too late by the way back
of the answer, never too early, and the last of them is `received`. Nobody's wall clock is believed.

A step that has not been seen when `GIVE_UP_S` has passed is not in the histograms; its line says null, and
names whoever was not seen to do as called.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from controller.core.ledger import READ_BACK_TOLERANCE_W
from controller.core.model import Bools, Decision, Floats, Settings, ShedCall, Snapshot
from controller.lines import Lines
from protocols.agent_link import Report

STEPS: Final = ("decided", "sent", "received", "confirmed", "obeyed", "moved")
BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
GIVE_UP_S: Final = 10.0
NOT_SEEN_S: Final = -1.0  # as agents say it
MOVED_RATIO: Final = 0.02  # of the level's power
FILE_NAME: Final = "sheds.jsonl"
FILE_MAX_LINES: Final = 10_000
FILES_MAX: Final = 4


class Histogram:
    """Lengths of time, counted by bucket; the last one is for all that is longer."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, length_s: float) -> None:
        self._counts[bisect_left(BUCKETS_S, length_s)] += 1
        self._sum_s += length_s

    def told(self) -> dict[str, Any]:
        return {"buckets_s": BUCKETS_S, "counts": self._counts, "sum_s": self._sum_s}


@dataclass
class _Open:
    """A call that is not over. Times by the monotonic clock."""

    call: ShedCall
    level: str
    limit_w: float
    source: str
    asked_s: float
    decided_s: float
    at_utc_s: float
    before_w: float | None
    most_w: Floats  # (n) what the call leaves a GPU
    waiting: Bools  # (n) is to go there by the call, and was not read there yet
    read_w: Floats  # (n) its limit in the newest answer; NaN: not known
    received_s: dict[int, float] = field(default_factory=dict)  # by node that has answered
    obeyed_in_s: dict[int, float] = field(default_factory=dict)  # by node that has answered
    since_asked_s: dict[str, float] = field(default_factory=dict)


class Steps:
    """Follows the calls of one controller.

    Args:
        settings: names of levels and nodes.
        state_dir: where the lines go.
    """

    def __init__(self, settings: Settings, state_dir: Path) -> None:
        self._settings = settings
        topology = settings.topology
        firsts = np.searchsorted(topology.gpu_node, np.arange(len(topology.node_names) + 1)).tolist()
        self._members = [slice(first, end) for first, end in pairwise(firsts)]
        self._asked_s: float | None = None
        self._open: _Open | None = None
        self._last: dict[str, Any] | None = None
        self._histograms = {step: Histogram() for step in STEPS}
        self._lines = Lines(state_dir / FILE_NAME, files_max=FILES_MAX)
        self._written = FILE_MAX_LINES  # the first line begins a file
        self._encoder = msgspec.json.Encoder()

    @property
    def fault(self) -> str:
        return self._lines.fault

    def asked(self, now_s: float) -> None:
        """Something has come that may call a level. The first since the last beat counts."""
        if self._asked_s is None:
            self._asked_s = now_s

    def sent(self, snapshot: Snapshot, decision: Decision, decided_s: float, written_s: float | None) -> None:
        """A call has been made, or no node has its table and all is done by orders.

        `written_s`: when the connection had the call; None: it has to wait for one, or there is none.
        """
        call = decision.state.shedding.call
        if call is None:
            nobody = np.zeros(len(self._members), dtype=np.bool_)
            call = ShedCall(seq=0, level=decision.state.shedding.level, version=0, nodes=nobody)
        self._close()  # a deeper level has overtaken it
        level = self._settings.shed_levels[call.level]
        asked_s = decided_s if self._asked_s is None else self._asked_s
        metered = snapshot.meter.is_usable(snapshot.now_s, self._settings.meter_age_max_s)
        named = f"shed {level.name} ("  # as the law names what somebody has asked for
        callers = ", ".join(one.source for one in decision.limits if one.source.startswith(named))
        self._open = _Open(
            call,
            level.name,
            level.limit_w,
            callers,
            asked_s,
            decided_s,
            snapshot.now_utc_s,
            snapshot.meter.value if metered else None,
            most_w=decision.gpu_limits_w + READ_BACK_TOLERANCE_W,
            waiting=call.nodes[self._settings.topology.gpu_node],
            read_w=np.full(len(decision.gpu_limits_w), np.nan),
        )
        self._took("decided", decided_s)
        if written_s is not None:
            self._took("sent", written_s)

    def heard(self, node: int, report: Report, now_s: float) -> None:
        """A node's report, of as many GPUs as it has."""
        one = self._open
        if one is None or not one.call.nodes[node] or report.seq < one.call.seq or not one.waiting.any():
            return
        gpus = self._members[node]
        read_w = np.array([gpu.limit_w for gpu in report.gpus], dtype=np.float64)  # None has become NaN
        one.read_w[gpus] = read_w
        one.waiting[gpus] &= ~((read_w > 0.0) & (read_w <= one.most_w[gpus]))
        if node not in one.obeyed_in_s:
            at_once = report.seq == one.call.seq and not one.waiting[gpus].any()
            believed = at_once and report.obeyed_in_s <= GIVE_UP_S
            one.obeyed_in_s[node] = report.obeyed_in_s if believed else NOT_SEEN_S
            self._received(one, node, report, now_s)
        if not one.waiting.any():
            self._took("confirmed", now_s)
            if min(one.obeyed_in_s.values()) >= 0.0:
                one.since_asked_s["obeyed"] = max(one.obeyed_in_s.values())

    def _received(self, one: _Open, node: int, report: Report, now_s: float) -> None:
        """A node has answered; whoever answers a later order only does not say when the call was there."""
        of_the_call = report.seq == one.call.seq and 0.0 <= report.came_ago_s <= now_s - one.decided_s
        one.received_s[node] = now_s - report.came_ago_s if of_the_call else NOT_SEEN_S
        if len(one.received_s) == one.call.nodes.sum() and min(one.received_s.values()) >= 0.0:
            self._took("received", max(one.received_s.values()))

    def beat(self, snapshot: Snapshot) -> None:
        """After every beat: has the power moved, is it time to give up?"""
        self._asked_s = None
        one, meter = self._open, snapshot.meter
        if one is None:
            return
        usable = meter.is_usable(snapshot.now_s, self._settings.meter_age_max_s)
        since_asked = usable and meter.taken_at_s > one.asked_s
        if (
            "moved" not in one.since_asked_s
            and since_asked
            and meter.value <= one.limit_w * (1.0 + MOVED_RATIO)
        ):
            self._took("moved", snapshot.now_s)
        if len(one.since_asked_s) == len(STEPS) or snapshot.now_s - one.asked_s > GIVE_UP_S:
            self._close()

    def told(self) -> Mapping[str, Any]:
        """For the status."""
        return {
            "last": self._last,
            "steps": {step: histogram.told() for step, histogram in self._histograms.items()},
        }

    def close(self) -> None:
        self._close()
        self._lines.close()

    def _took(self, step: str, at_s: float) -> None:
        assert self._open is not None
        self._open.since_asked_s[step] = at_s - self._open.asked_s

    def _close(self) -> None:
        one, self._open = self._open, None
        if one is None:
            return
        for step, length_s in one.since_asked_s.items():
            self._histograms[step].add(length_s)
        names: Sequence[str] = self._settings.topology.node_names
        self._last = {
            "at_utc_s": one.at_utc_s,
            "level": one.level,
            "limit_w": one.limit_w,
            "source": one.source,
            "before_w": one.before_w,
            "nodes": int(one.call.nodes.sum()),
            "without_table": [names[node] for node in (~one.call.nodes).nonzero()[0].tolist()],
            "unconfirmed": list(self._unconfirmed(one)),
            **{f"{step}_s": one.since_asked_s.get(step) for step in STEPS},
        }
        self._write(self._last, one.asked_s)

    def _unconfirmed(self, one: _Open) -> Iterator[dict[str, Any]]:
        """Nodes with GPUs that were not seen to do as called, and the highest limit of those.

        No GPUs: the node has not answered. No limit: it could not be read.
        """
        for node, name in enumerate(self._settings.topology.node_names):
            members = self._members[node]
            gpus = np.flatnonzero(one.waiting[members])
            if len(gpus):
                limit_w = float(one.read_w[members][gpus].max())
                answered = node in one.obeyed_in_s
                yield {
                    "node": name,
                    "gpus": gpus.tolist() if answered else [],
                    "limit_w": None if np.isnan(limit_w) else limit_w,
                }

    def _write(self, content: dict[str, Any], now_s: float) -> None:
        if not self._lines.takes(1, now_s):
            return
        first = self._lines.needs_head or self._written >= FILE_MAX_LINES
        self._written = 1 if first else self._written + 1
        self._lines.put(self._encoder.encode(content) + b"\n", first=first)
