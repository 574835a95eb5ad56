"""What a signal means here: windows of either standard become setpoints in the law's words. Pure.

The standards say "level 2", "a tenth less", "price 0.4", "best effort"; the law knows one thing, a limit in W
with its window. What lies between was agreed with the site and stands in its configuration: `Meanings` for
payloads that carry no power, `Ways` for the ramps there and back.

A type without an agreed meaning is not acted on, and its sender is told so. A level or a price that asks for
nothing is a setpoint without limit, not nothing: at a higher priority it lifts what a lower one asks.

Capacity that was subscribed to (and reserved on top) is the limit that holds where no import limit does: the
same kind of setpoint with a priority below all others (OpenADR 3.1 User Guide 8.10.1).
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import pairwise
from typing import Final
from zlib import crc32

import numpy as np

from controller.config import KW, BlockConfig, ramp_of, settings_of
from controller.core.model import NO_LIMIT_W, Floats, Ramp, Setpoint, Settings
from controller.core.shed import NO_LEVEL
from controller.site.config import RampConfig, Source, StepConfig
from controller.site.outlook import HORIZON_S
from protocols import openadr
from protocols.dsx_flex import load_target

LIMIT_TYPE: Final = "IMPORT_CAPACITY_LIMIT"
SUBSCRIBED, RESERVED = "IMPORT_CAPACITY_SUBSCRIPTION", "IMPORT_CAPACITY_RESERVATION"
FALLBACK_PRIORITY: Final = 2 * openadr.PRIORITY_LOWEST  # behind every priority that can be sent
MOST_URGENT_LEVEL: Final = 3.0  # of SIMPLE


@dataclass(frozen=True)
class Meanings:
    """What payloads without a power mean, W. None or empty: nothing was agreed."""

    nominal_w: float | None = None
    offset_step_w: float | None = None
    levels_w: tuple[float, ...] | None = None  # of levels 1, 2, 3
    alerts_w: Mapping[str, float] = field(default_factory=dict)
    price_w: tuple[tuple[float, float], ...] = ()  # (above, W), rising prices
    carbon_w: tuple[tuple[float, float], ...] = ()
    sheds: Mapping[str, int] = field(default_factory=dict)  # alerts that call a level of shedding


@dataclass(frozen=True)
class Way:
    """How to get there and back."""

    ramp: Ramp | None
    arrive_at_start: bool
    recovery_spread_s: float


@dataclass(frozen=True)
class Ways:
    normal: Way
    urgent: Way

    @property
    def spread_max_s(self) -> float:
        return max(self.normal.recovery_spread_s, self.urgent.recovery_spread_s)


@dataclass(frozen=True)
class Act:
    """How one payload type is acted on: setpoints of one `kind` replace each other by priority."""

    kind: str
    limit_w: Callable[[Meanings, float], float]
    is_agreed: Callable[[Meanings], bool] = lambda _: True
    is_urgent: Callable[[float], bool] = lambda _: False


def _on_curve(curve: tuple[tuple[float, float], ...], value: float) -> float:
    return min((limit_w for above, limit_w in curve if value > above), default=NO_LIMIT_W)


def _nominal_w(meanings: Meanings) -> float:
    assert meanings.nominal_w is not None  # `is_agreed` was asked before
    return meanings.nominal_w


def _alert(name: str) -> Act:
    return Act(
        name.removeprefix("ALERT_").replace("_", " ").lower(),
        lambda meanings, _: meanings.alerts_w[name],
        lambda meanings: name in meanings.alerts_w,
        lambda _: True,
    )


ACTS: Final[Mapping[str, Act]] = {
    LIMIT_TYPE: Act("limit", lambda _, value_w: value_w),
    SUBSCRIBED: Act("limit", lambda _, value_w: value_w),
    RESERVED: Act("limit", lambda _, value_w: value_w),
    "DISPATCH_SETPOINT": Act("target", lambda _, value_w: value_w),
    "DISPATCH_SETPOINT_RELATIVE": Act(
        "relative target",
        lambda meanings, value_w: _nominal_w(meanings) + value_w,
        lambda meanings: meanings.nominal_w is not None,
    ),
    "CONTROL_LEVEL_OFFSET": Act(
        "offset",
        lambda meanings, value: _nominal_w(meanings) + value * (meanings.offset_step_w or 0.0),
        lambda meanings: meanings.nominal_w is not None and meanings.offset_step_w is not None,
    ),
    "CONTROL_LEVEL_OFFSET_PERCENT": Act(
        "relative offset",
        lambda meanings, value: _nominal_w(meanings) * (1.0 + value),
        lambda meanings: meanings.nominal_w is not None,
    ),
    "SIMPLE": Act(
        "level",
        lambda meanings, value: (NO_LIMIT_W, *(meanings.levels_w or ()))[int(value)],
        lambda meanings: meanings.levels_w is not None,
        lambda value: value >= MOST_URGENT_LEVEL,
    ),
    "ALERT_GRID_EMERGENCY": _alert("ALERT_GRID_EMERGENCY"),
    "ALERT_BLACK_START": _alert("ALERT_BLACK_START"),
    "ALERT_POSSIBLE_OUTAGE": _alert("ALERT_POSSIBLE_OUTAGE"),
    "PRICE": Act(
        "price",
        lambda meanings, value: _on_curve(meanings.price_w, value),
        lambda meanings: bool(meanings.price_w),
    ),
    "GHG": Act(
        "carbon",
        lambda meanings, value: _on_curve(meanings.carbon_w, value),
        lambda meanings: bool(meanings.carbon_w),
    ),
}


@dataclass(frozen=True)
class Policy:
    """What the signals of one source mean."""

    source: str
    block: str
    meanings: Meanings
    ways: Ways
    feeds: Mapping[str, float]  # DSX: share of the block's power, by feed tag
    floors_w: float  # DSX: what best effort leaves, the block with every tier at its floor
    breach_level: int = NO_LEVEL  # DSX: of shedding, that a critical breach of one of these feeds calls
    horizon_s: float = HORIZON_S  # how far ahead a window may begin to bind

    @property
    def acts_on(self) -> frozenset[str]:
        """OpenADR payload types that move power here."""
        return frozenset(name for name, act in ACTS.items() if act.is_agreed(self.meanings))

    def of_openadr(self, window: openadr.Window) -> Setpoint:
        act = ACTS[window.type]
        way = self.ways.urgent if act.is_urgent(window.value) else self.ways.normal
        fallback = FALLBACK_PRIORITY if window.type == SUBSCRIBED else 0
        return Setpoint(
            source=self.source,
            id=f"{window.event_id}/{window.interval_id}",
            kind=act.kind,
            limit_w=max(0.0, act.limit_w(self.meanings, window.value)),
            starts_utc_s=window.starts_utc_s,
            ends_utc_s=self._end(window.event_id, window.ends_utc_s, way),
            priority=fallback + window.priority,
            arrive_at_start=way.arrive_at_start,
            ramp=way.ramp,
            shed_level=self.meanings.sheds.get(window.type, NO_LEVEL),
        )

    def of_dsx(self, window: load_target.Window) -> Setpoint:
        """A target on one feed bounds the block through the share that this feed carries."""
        way = self.ways.normal if window.best_effort else self.ways.urgent
        limit_w = window.limit_w / self.feeds[window.feed]
        return Setpoint(
            source=self.source,
            id=window.correlation_id,
            kind=f"feed {window.feed}",
            limit_w=max(limit_w, self.floors_w) if window.best_effort else limit_w,
            starts_utc_s=window.starts_utc_s,
            ends_utc_s=self._end(window.correlation_id, window.ends_utc_s, way),
            priority=window.priority,
            arrive_at_start=way.arrive_at_start,
            ramp=way.ramp,
        )

    def _end(self, event_id: str, ends_utc_s: float, way: Way) -> float:
        """Blocks that were cut together do not all come back at once: each event's end is moved by a draw.

        The draw is a hash, so a restart draws the same.
        """
        if way.recovery_spread_s == 0.0 or ends_utc_s >= openadr.FOREVER_UTC_S:
            return ends_utc_s
        draw = crc32(f"{self.block} {self.source} {event_id}".encode()) / 2**32
        return ends_utc_s + draw * way.recovery_spread_s


PLAIN: Final = Policy(
    source="",
    block="",
    meanings=Meanings(),
    ways=Ways(Way(None, arrive_at_start=False, recovery_spread_s=0.0), Way(None, False, 0.0)),
    feeds={},
    floors_w=0.0,
)
"""Where nothing was agreed: only what carries a power of its own means anything."""


def acted_on(windows: Sequence[openadr.Window], types: frozenset[str]) -> tuple[openadr.Window, ...]:
    """Those that move power, by start; subscribed and reserved capacity added up into one."""
    acted = [one for one in windows if one.type in types]
    capacity = [one for one in acted if one.type in (SUBSCRIBED, RESERVED)]
    if not capacity:
        return tuple(acted)
    acted = [one for one in acted if one.type not in (SUBSCRIBED, RESERVED)]
    return tuple(sorted([*acted, *_fallbacks(capacity)], key=lambda one: one.starts_utc_s))


def _fallbacks(windows: Sequence[openadr.Window]) -> Iterable[openadr.Window]:
    """What is subscribed to plus what is reserved, over every span in which neither changes.

    Capacity reserved on top of no known subscription bounds nothing.
    """
    edges = sorted({edge for one in windows for edge in (one.starts_utc_s, one.ends_utc_s)})
    coming = deque(sorted(windows, key=lambda one: one.starts_utc_s))
    opened: dict[str, list[tuple[int, float, int, openadr.Window]]] = {SUBSCRIBED: [], RESERVED: []}
    last: openadr.Window | None = None
    for number, (starts_utc_s, ends_utc_s) in enumerate(pairwise(edges)):
        while coming and coming[0].starts_utc_s <= starts_utc_s:
            one = coming.popleft()
            heappush(opened[one.type], (one.priority, one.value, number * len(windows) + len(coming), one))
        subscribed, reserved = (_winner(opened[name], starts_utc_s) for name in (SUBSCRIBED, RESERVED))
        if subscribed is None:
            continue
        value_w = subscribed.value + (reserved.value if reserved is not None else 0.0)
        span = replace(subscribed, value=value_w, starts_utc_s=starts_utc_s, ends_utc_s=ends_utc_s)
        if last is not None and last == replace(
            span, starts_utc_s=last.starts_utc_s, ends_utc_s=starts_utc_s
        ):
            last = replace(last, ends_utc_s=ends_utc_s)  # nothing changed at this edge
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last


def _winner(opened: list[tuple[int, float, int, openadr.Window]], at_utc_s: float) -> openadr.Window | None:
    """Of a heap, the first that is not over: the highest priority, then the lowest power."""
    while opened and opened[0][3].ends_utc_s <= at_utc_s:
        heappop(opened)
    return opened[0][3] if opened else None


def policy_of(config: BlockConfig, source: Source) -> Policy:
    """As configured. A ramp that is not urgent's own is the source's, else the site's."""
    site = config.site
    meant = site.meanings
    shed = config.shed
    calls = {str(alert): shed.level(level) for alert, level in shed.alerts.items()} if shed else {}
    called_w = {alert: shed.levels[level].kw * KW for alert, level in calls.items()} if shed else {}
    meanings = Meanings(
        nominal_w=None if meant.nominal_kw is None else meant.nominal_kw * KW,
        offset_step_w=None if meant.offset_step_kw is None else meant.offset_step_kw * KW,
        levels_w=None if meant.levels_kw is None else tuple(level_kw * KW for level_kw in meant.levels_kw),
        alerts_w={str(name): limit_kw * KW for name, limit_kw in meant.alerts_kw.items()} | called_w,
        price_w=_curve(meant.price_kw),
        carbon_w=_curve(meant.carbon_kw),
        sheds=calls,
    )
    normal = source.ramp or site.ramp
    settings = settings_of(config)
    topology = settings.topology
    ramps = [normal, source.urgent_ramp or normal]
    slowest_w_per_s = min(ramp_of(ramp, site.ramp_margin_ratio).down_w_per_s for ramp in ramps)
    return Policy(
        source=source.name,
        block=config.block,
        meanings=meanings,
        ways=Ways(_way(config, normal), _way(config, source.urgent_ramp or normal)),
        feeds=getattr(source, "feeds", {}),
        horizon_s=max(HORIZON_S, settings.feed_rating_w / slowest_w_per_s + settings.lead_s),
        floors_w=block_w(settings, np.clip(topology.gpu_floor_w, topology.gpu_min_w, topology.gpu_max_w)),
        breach_level=shed.level(shed.critical_breach) if shed and shed.critical_breach else NO_LEVEL,
    )


def block_w(settings: Settings, gpu_w: Floats) -> float:
    """Block power with GPUs at these limits (n) and the base load at its most."""
    return settings.base_max_w + settings.block_w_per_gpu_w * float(gpu_w.sum())


def _curve(steps: Sequence[StepConfig]) -> tuple[tuple[float, float], ...]:
    return tuple((step.above, step.kw * KW) for step in steps)


def _way(config: BlockConfig, ramp: RampConfig) -> Way:
    own = None if ramp == config.site.ramp else ramp_of(ramp, config.site.ramp_margin_ratio)
    return Way(own, ramp.arrive_at_start, ramp.recovery_spread_s)
