"""The infrastructure's part in DSX Flex: shed hints for our nodes and GPUs become caps, and an answer.

An agent elsewhere (that of the hall, say) tells of a breach and advises who should shed. Hints that name a
node or a GPU of this block are carried out by the law's own means: a cap on single GPUs, under which the
block's power is shared out as ever. A node's power is taken to be its GPUs', its hosts count as base load.
`throttle` is a cap at the least; `suspend`, chassis and whatever is not ours are skipped, and the answer
says so.

A critical breach of a feed of this block calls a level of shedding beside that, where one was agreed: once
critical, it calls until it is over. A breach that this block has raised itself never does, or the block would
go on shedding because it sheds too late.

Both last until their breach is resolved, across restarts; an alert that comes after that counts no more. The
contract bounds neither, so a breach of which nothing was heard for `SILENT_MAX_S` is taken for over: an
adviser that died must not hold GPUs down for ever.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np

from controller.core.model import NO_LIMIT_W, Floats, Settings, ShedRequest
from controller.core.shed import NO_LEVEL
from protocols.dsx_flex.breach import Alert, ShedHint, alert_data, read_alert
from protocols.dsx_flex.enforcement import Result
from protocols.dsx_flex.load_target import REMEDY_KEPT
from protocols.dsx_flex.wire import FOREVER_UTC_S, DsxFlexError

SILENT_MAX_S: Final = 3600.0
BREACHES_MAX: Final = 64
RESOLVED_MAX: Final = 1024  # breaches that are over and remembered, 40 kB on disk


@dataclass(frozen=True)
class Shed:
    """One breach whose hints are carried out, or that calls a level of shedding."""

    alert: Alert
    cap_w: Floats  # (n)
    results: tuple[Result, ...]
    calls: bool
    heard_at_s: float  # nan: by a program before this one, by a clock that is gone
    heard_utc_s: float  # for the disk: another start has another monotonic clock


class _KeptShed(msgspec.Struct):
    alert: dict[str, Any]
    heard_utc_s: float
    calls: bool = False


class _Kept(msgspec.Struct):
    sheds: list[_KeptShed]
    resolved: list[str]


class Shedding:
    """Caps and calls in force, by breach.

    Args:
        settings: of the law.
        source: whose breaches these are.
        feeds: of this block.
        level: that a critical breach of one of them calls; NO_LEVEL: none.
    """

    def __init__(
        self, settings: Settings, source: str = "", feeds: Iterable[str] = (), level: int = NO_LEVEL
    ) -> None:
        self._settings, self._source, self._feeds, self._level = settings, source, frozenset(feeds), level
        self._sheds: dict[str, Shed] = {}
        self._resolved: dict[str, None] = {}  # breach ids, the oldest first

    @property
    def cap_w(self) -> Floats:
        """The lowest cap of every GPU, (n) W; NO_LIMIT_W: none."""
        none = np.full(len(self._settings.topology.gpu_node), NO_LIMIT_W)
        lowest_w: Floats = np.minimum.reduce([none, *(shed.cap_w for shed in self._sheds.values())])
        return lowest_w

    @property
    def requests(self) -> tuple[ShedRequest, ...]:
        """What is called now: one of every feed."""
        feeds = dict.fromkeys(shed.alert.feed for shed in self._sheds.values() if shed.calls)
        return tuple(ShedRequest(f"{self._source}: critical breach of {feed}", self._level) for feed in feeds)

    def take(
        self, alert: Alert, now_s: float, now_utc_s: float, *, may_call: bool = True
    ) -> tuple[Result, ...]:
        """Carry an alert's hints out, or take them back when it is resolved. What came of each of ours.

        Returns nothing where no hint is for this block. `may_call`: the breach is somebody else's.

        Raises:
            DsxFlexError: its breach was resolved before.
        """
        breach_id = alert.breach_id.lower()
        if alert.status == "resolved":
            self._resolve(breach_id)
            shed = self._sheds.pop(breach_id, None)
            return () if shed is None else shed.results
        cap_w = np.full(len(self._settings.topology.gpu_node), NO_LIMIT_W)
        results = tuple(self._carried_out(alert, cap_w))
        calls = may_call and self._is_ours_and_critical(alert)
        if (results or calls) and breach_id in self._resolved:
            raise DsxFlexError(f"breach_id: {breach_id} was resolved before; give a new breach a new id")
        caps = any(result.code == "applied" for result in results)
        if caps or calls:
            made = Shed(alert, cap_w, results, calls, now_s, now_utc_s)
            before = self._sheds.pop(breach_id, None)
            self._sheds[breach_id] = made if before is None else _went_on(before, made, caps=caps)
            while len(self._sheds) > BREACHES_MAX:
                del self._sheds[next(iter(self._sheds))]
        return results

    def _is_ours_and_critical(self, alert: Alert) -> bool:
        return self._level != NO_LEVEL and alert.severity == "critical" and alert.feed in self._feeds

    def kept(self) -> dict[str, Any]:
        """The alerts whose hints are in force and the breaches that are over, for JSON."""
        sheds = [_KeptShed(alert_data(one.alert), one.heard_utc_s, one.calls) for one in self._sheds.values()]
        said: dict[str, Any] = msgspec.to_builtins(_Kept(sheds, list(self._resolved)))
        return said

    def reopen(self, kept: Any) -> None:
        """Carry out again what was in force: a restart neither lifts a cap nor lengthens it.

        Raises:
            DsxFlexError: anything else than `kept` made.
        """
        if isinstance(kept, list):  # the alerts alone, without when they were heard, as it was kept before
            kept = {"sheds": [{"alert": one, "heard_utc_s": FOREVER_UTC_S} for one in kept], "resolved": []}
        try:
            said = msgspec.convert(kept, _Kept)
        except msgspec.ValidationError as error:
            raise DsxFlexError(f"kept alerts: {error}; {REMEDY_KEPT}") from error
        for one in said.sheds[-BREACHES_MAX:]:
            self.take(read_alert(one.alert), math.nan, one.heard_utc_s, may_call=one.calls)
        self._resolved = dict.fromkeys(said.resolved[-RESOLVED_MAX:])

    def forgotten(self, now_s: float, now_utc_s: float) -> tuple[Shed, ...]:
        """Breaches of which nothing was heard for too long; their caps are gone."""
        self._sheds = {name: _timed(shed, now_s, now_utc_s) for name, shed in self._sheds.items()}
        old = [name for name, shed in self._sheds.items() if now_s - shed.heard_at_s > SILENT_MAX_S]
        return tuple(self._sheds.pop(name) for name in old)

    def _resolve(self, breach_id: str) -> None:
        self._resolved.pop(breach_id, None)
        self._resolved[breach_id] = None
        if len(self._resolved) > RESOLVED_MAX:
            del self._resolved[next(iter(self._resolved))]

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


def _went_on(before: Shed, made: Shed, *, caps: bool) -> Shed:
    """A breach of which more was heard: new hints replace old ones, none leave them, and a call stays."""
    calls = before.calls or made.calls
    alert = replace(made.alert, severity="critical") if calls else made.alert
    if caps:
        return replace(made, alert=alert, calls=calls)
    hints = before.alert.hints
    return replace(
        made, alert=replace(alert, hints=hints), cap_w=before.cap_w, results=before.results, calls=calls
    )


def _timed(shed: Shed, now_s: float, now_utc_s: float) -> Shed:
    """With the moment it was heard on this program's own clock, which no step of the wall clock moves."""
    if not math.isnan(shed.heard_at_s):
        return shed
    silent_s = max(0.0, now_utc_s - shed.heard_utc_s)
    return replace(shed, heard_at_s=now_s - silent_s, heard_utc_s=now_utc_s - silent_s)
