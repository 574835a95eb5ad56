"""`powerblock explain`: what signals would do to a block, before anyone sends them.

Files of either standard, mixed: OpenADR events and DSX Flex load targets. They go through the same doors as
on the wire: parsed, then applied to a book one after the other, each accepted or refused as a whole, then
put into the law's words by the site's policy. What that makes is resolved as the law resolves it: within one
kind the highest priority wins, among equals the lowest limit, and across kinds and sources the lowest binds.
Nothing changes between two moments at which some window opens or closes, so the time line is one stretch
from each such moment to the next.

With the block's configuration there is more to say: levels, alerts and prices have a meaning, the feed
rating caps every stretch, the failsafe limit is what holds if the site falls silent in it, signatures are
checked against the publishers' keys, and the ramps show how the block gets from one stretch to the next.
Without it a signature cannot be checked, and that is said.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.config import BlockConfig, settings_of
from controller.core import schedule
from controller.core.model import NO_LIMIT_W, Setpoint
from controller.site.config import DsxFlexConfig, OpenAdrMqttConfig, OpenAdrVtnConfig
from controller.site.keys import key_files
from controller.site.policy import PLAIN, Policy, acted_on, policy_of
from controller.views import check
from controller.views.figures import FOREVER_UTC_S, kw, moment, relative, span
from controller.views.ramps import Ramp, ramps
from protocols import openadr
from protocols.dsx_flex import envelope, load_target, signing, topics
from protocols.dsx_flex.wire import DsxFlexError

KW: Final = 1000.0
NO_LIMIT: Final = "no limit"
ROWS_MAX: Final = 200  # stretches on a terminal; more is asked for as JSON


@dataclass(frozen=True)
class Heard:
    """One signal and what became of it."""

    file: str
    event_id: str
    operation: str
    accepted: bool
    reason: str
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Overridden:
    """A setpoint whose window is open and that does not bind, and why not."""

    source: str
    kind: str
    limit_w: float
    why: str


@dataclass(frozen=True)
class Stretch:
    """A span of time in which one limit binds. `limit_w` None: none does."""

    starts_utc_s: float
    ends_utc_s: float
    limit_w: float | None
    source: str
    kind: str  # of the setpoint that binds; empty: none does
    overridden: tuple[Overridden, ...]
    arrive_w: float | None  # lowest limit that is to be met when this stretch begins
    site_lost_w: float | None  # what holds here if the site falls silent; None: no block was named


@dataclass(frozen=True)
class Explanation:
    now_utc_s: float
    heard: tuple[Heard, ...]
    stretches: tuple[Stretch, ...]
    ramps: tuple[Ramp, ...]

    @property
    def refused(self) -> bool:
        return not all(heard.accepted for heard in self.heard)


def explain(
    signals: Iterable[tuple[str, bytes]], now_utc_s: float, config: BlockConfig | None
) -> Explanation:
    """`signals` as (name of the file, its content), in the order of their arrival."""
    openadr_ear, dsx_ear = OpenAdrEar(config), DsxEar(config)
    heard = tuple(
        (dsx_ear if b'"specversion"' in payload else openadr_ear).hear(file, payload, now_utc_s)
        for file, payload in signals
    )
    setpoints = [*openadr_ear.setpoints(now_utc_s), *dsx_ear.setpoints(now_utc_s)]
    stretches = _stretches(setpoints, now_utc_s, config)
    found = () if config is None else _ramps(setpoints, now_utc_s, config)
    return Explanation(now_utc_s, heard, _joined(stretches), found)


class OpenAdrEar:
    """OpenADR files, as the block's first OpenADR source would hear them."""

    def __init__(self, config: BlockConfig | None) -> None:
        self._policy = _policy(config, OpenAdrMqttConfig, OpenAdrVtnConfig, name="openadr")
        self._nobody = _nobody(config, OpenAdrMqttConfig, OpenAdrVtnConfig, what="OpenADR")
        self._types = self._policy.acts_on
        self._book = openadr.EventBook(openadr.Rules(acts_on=self._types))

    def hear(self, file: str, payload: bytes, now_utc_s: float) -> Heard:
        if self._nobody:
            return Heard(file, "", "", accepted=False, reason=self._nobody, ignored=())
        try:
            notification = openadr.parse(payload)
        except openadr.OpenAdrError as error:
            return Heard(file, "", "", accepted=False, reason=str(error), ignored=())
        verdict = self._book.apply(notification, now_utc_s)
        event_id, operation = notification.event.id, notification.operation
        return Heard(file, event_id, operation, verdict.accepted, verdict.reason, verdict.ignored)

    def setpoints(self, now_utc_s: float) -> Iterator[Setpoint]:
        windows = acted_on(self._book.windows(now_utc_s), self._types)
        yield from map(self._policy.of_openadr, windows)


class DsxEar:
    """DSX Flex files, as the block's first DSX Flex source would hear them. They may be of any age."""

    def __init__(self, config: BlockConfig | None) -> None:
        self._policy = _policy(config, DsxFlexConfig, name="dsx")
        self._config = None if config is None else _first(config, DsxFlexConfig)
        self._keys = None if self._config is None else key_files("publishers", self._config.publishers)
        self._nobody = _nobody(config, DsxFlexConfig, what="DSX Flex")
        self._book = load_target.LoadTargetBook(self._policy.feeds)

    def hear(self, file: str, payload: bytes, now_utc_s: float) -> Heard:
        if self._nobody:
            return Heard(file, "", "load target", accepted=False, reason=self._nobody, ignored=())
        try:
            said = envelope.read(payload)
            if said.type != topics.LOAD_TARGET_SET:
                reason = f"type: {said.type}; only {topics.LOAD_TARGET_SET} asks for power"
                return Heard(file, said.thread_id, said.type, accepted=False, reason=reason, ignored=())
            data, remark = self._opened(said, now_utc_s)
            targets = load_target.read(data)
        except DsxFlexError as error:
            return Heard(file, "", "load target", accepted=False, reason=str(error), ignored=())
        self._learn_feeds(targets)
        verdict = self._book.apply(said, targets, now_utc_s)
        reason = "; ".join(filter(None, (verdict.reason, remark)))
        return Heard(file, said.thread_id, "load target", verdict.accepted, reason, verdict.ignored)

    def setpoints(self, now_utc_s: float) -> Iterator[Setpoint]:
        yield from map(self._policy.of_dsx, self._book.windows(now_utc_s))

    def _opened(self, said: envelope.Envelope, now_utc_s: float) -> tuple[Any, str]:
        """Its data, and a remark about its signature."""
        if self._config is None or self._keys is None:
            return signing.unverified(said.data), "signature not checked: name the block with --block"
        publisher = said.source.rpartition("/")[2]
        if publisher not in self._keys:
            raise DsxFlexError(f"source: {publisher} may not steer this block; see its publishers")
        file = self._keys[publisher]
        keys = signing.KeySet(()) if file is None else file.current()
        return signing.open_data(said.data, keys, now_utc_s, accept_unsigned=self._config.accept_unsigned), ""

    def _learn_feeds(self, targets: Sequence[load_target.Target]) -> None:
        """Without a block every feed that is named is taken for one that carries all of it."""
        if self._config is not None:
            return
        named = {tag: 1.0 for target in targets for tag in target.feed_tags} or {"all": 1.0}
        unknown = named.keys() - self._policy.feeds.keys()
        if unknown:
            self._policy = replace(self._policy, feeds={**self._policy.feeds, **named})
            self._book = load_target.LoadTargetBook.from_dict(self._policy.feeds, self._book.to_dict())


def _first(config: BlockConfig, *kinds: type) -> Any:
    return next((source for source in config.site.sources if isinstance(source, kinds)), None)


def _nobody(config: BlockConfig | None, *kinds: type, what: str) -> str:
    """Why nobody of the block would hear it; empty: somebody would."""
    if config is None or _first(config, *kinds) is not None:
        return ""
    have = ", ".join(f"{source.name} ({source.kind})" for source in config.site.sources)
    return f"no source of the block hears {what}; site.sources has {have}"


def _policy(config: BlockConfig | None, *kinds: type, name: str) -> Policy:
    source = None if config is None else _first(config, *kinds)
    return replace(PLAIN, source=name) if config is None or source is None else policy_of(config, source)


# --- the time line -----------------------------------------------------------------------------------


def _stretches(setpoints: Sequence[Setpoint], now_utc_s: float, config: BlockConfig | None) -> list[Stretch]:
    """From now on, one stretch between any two moments at which a window opens or closes."""
    edges = {edge for s in setpoints for edge in (s.starts_utc_s, s.ends_utc_s)}
    moments = [now_utc_s, *sorted(edge for edge in edges if now_utc_s < edge < FOREVER_UTC_S)]
    ends = [*moments[1:], openadr.FOREVER_UTC_S]
    return [_stretch(setpoints, start, end, config) for start, end in zip(moments, ends, strict=True)]


def _stretch(
    setpoints: Sequence[Setpoint], starts_utc_s: float, ends_utc_s: float, config: BlockConfig | None
) -> Stretch:
    opened = [s for s in setpoints if s.starts_utc_s <= starts_utc_s < s.ends_utc_s]
    winners = schedule.winners(opened)
    lowest = min(winners, key=lambda setpoint: setpoint.limit_w, default=None)
    rating_w = NO_LIMIT_W if config is None else config.feed.rating_kw * KW
    limit_w, source, kind = rating_w, "feed rating", ""
    if lowest is not None and lowest.limit_w < min(rating_w, NO_LIMIT_W):
        limit_w, source, kind = lowest.limit_w, schedule.name(lowest), lowest.kind
    to_be_met_w = [s.limit_w for s in winners if s.arrive_at_start and s.starts_utc_s == starts_utc_s]
    bounded = limit_w < NO_LIMIT_W
    return Stretch(
        starts_utc_s=starts_utc_s,
        ends_utc_s=ends_utc_s,
        limit_w=limit_w if bounded else None,
        source=source if bounded else NO_LIMIT,
        kind=kind,
        overridden=tuple(_overridden(opened, winners, lowest if kind else None)),
        arrive_w=min(to_be_met_w, default=None),
        site_lost_w=None if config is None else min(limit_w, config.site.failsafe_kw * KW),
    )


def _overridden(
    opened: Sequence[Setpoint], winners: Sequence[Setpoint], binding: Setpoint | None
) -> Iterator[Overridden]:
    """Whatever is open and does not bind: beaten within its kind, or above a lower limit."""
    winner_of = {(s.source, s.kind): s for s in winners}
    for setpoint in opened:
        winner = winner_of[setpoint.source, setpoint.kind]
        if setpoint is binding:
            continue
        if setpoint.priority > winner.priority:
            why = f"priority {_priority(setpoint)} yields to {_priority(winner)}"
        else:
            why = "not the lowest"
        yield Overridden(schedule.name(setpoint), setpoint.kind, setpoint.limit_w, why)


def _priority(setpoint: Setpoint) -> str:
    return "none" if setpoint.priority >= openadr.PRIORITY_LOWEST else str(setpoint.priority)


def _joined(stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """Neighbours that say the same become one."""
    joined: list[Stretch] = []
    for stretch in stretches:
        last = joined[-1] if joined else None
        if last and _said(last) == _said(stretch):
            joined[-1] = replace(last, ends_utc_s=stretch.ends_utc_s)
        else:
            joined.append(stretch)
    return tuple(joined)


def _said(stretch: Stretch) -> tuple[object, ...]:
    return stretch.limit_w, stretch.source, stretch.kind, stretch.overridden


def _ramps(setpoints: Sequence[Setpoint], now_utc_s: float, config: BlockConfig) -> tuple[Ramp, ...]:
    """How a block that is at full power now gets from stretch to stretch."""
    return ramps(setpoints, settings_of(config), now_utc_s, check.facts(config).full_w)


# --- on paper ----------------------------------------------------------------------------------------


def as_json(found: Explanation) -> dict[str, Any]:
    """Times are UTC seconds; an end at or beyond the year 10000 means: until withdrawn."""
    return asdict(found)


def render(found: Explanation) -> RenderableType:
    parts: list[RenderableType] = [_heard_table(found.heard), Text(), _time_line(found)]
    if len(found.stretches) > ROWS_MAX:
        parts.append(Text(f"… and {len(found.stretches) - ROWS_MAX} more stretches: see --json", style="dim"))
    if found.ramps:
        parts += [Text(), _ramp_table(found)]
    return Group(*parts)


def _heard_table(heard: Sequence[Heard]) -> Table:
    table = Table("signal", "event", "", "", box=None, padding=(0, 2, 0, 0))
    for one in heard:
        verdict = Text("accepted", style="green") if one.accepted else Text("refused", style="bold red")
        said_already = all(name in one.reason for name in one.ignored)
        reason = list(filter(None, [one.reason.removeprefix("accepted").removeprefix("; ")]))
        ignored = [] if said_already else [f"ignored: {', '.join(one.ignored)}"]
        said = f"{one.operation.lower()} {one.event_id}".strip()
        table.add_row(one.file, said, verdict, "; ".join(reason + ignored))
    return table


def _time_line(found: Explanation) -> Table:
    now_utc_s = found.now_utc_s
    lost = any(stretch.site_lost_w is not None for stretch in found.stretches)
    table = Table("from (UTC)", "to", "", box=None, padding=(0, 2, 0, 0))
    table.add_column("limit", justify="right", no_wrap=True)
    if lost:
        table.add_column("site lost", justify="right", no_wrap=True)
    table.add_column("binds", overflow="fold")
    for stretch in found.stretches[:ROWS_MAX]:
        cells: list[str | Text] = [
            moment(stretch.starts_utc_s, now_utc_s),
            moment(stretch.ends_utc_s, now_utc_s),
            relative(stretch.starts_utc_s, now_utc_s),
            "" if stretch.limit_w is None else kw(stretch.limit_w),
            *([kw(stretch.site_lost_w)] if lost else []),
        ]
        table.add_row(*cells, _binds(stretch))
    return table


def _binds(stretch: Stretch) -> Text:
    text = Text(_short(stretch.kind, stretch.source), style="bold" if stretch.kind else "dim")
    for other in stretch.overridden:
        loser = f"\nover {_short(other.kind, other.source)} {kw(other.limit_w)}: {other.why}"
        text.append(loser, style="not bold dim")
    return text


def _short(kind: str, source: str) -> str:
    """`target openadr dr-7/0`: its kind, who asks, and the rest of its name."""
    return f"{kind} {source}".strip()


def _ramp_table(found: Explanation) -> Table:
    table = Table("ramp begins", "done", "takes", box=None, padding=(0, 2, 0, 0))
    table.add_column("from", justify="right")
    table.add_column("to", justify="right")
    table.add_column("towards")
    for ramp in found.ramps[:ROWS_MAX]:
        table.add_row(
            moment(ramp.begins_utc_s, found.now_utc_s),
            moment(ramp.done_utc_s, found.now_utc_s),
            span(ramp.done_utc_s - ramp.begins_utc_s),
            kw(ramp.from_w),
            kw(ramp.to_w),
            _short("", ramp.towards),
        )
    return table
