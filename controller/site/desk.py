"""The site's desk: all sources together, and what the law hears of them.

What arrives is taken in at once, as long as that costs no more than a share of the time; beyond it waits,
each source's newest in a room of their own, and is taken in after the beat, when the next one is far. So a
flood costs its sender the overview and the block not one beat: what found no place is refused unread, counted
and said.

What was accepted is on disk before it is acted upon: `before_beat` writes it, once for however many signals,
and only then does the beat take its snapshot. The law gets the windows that it runs already, whatever the
wall clock says by now: whether one has ended is its own business, on a clock that cannot be stepped.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice, zip_longest
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import structlog

from controller.config import BlockConfig, settings_of
from controller.core import schedule
from controller.core.model import NEVER_S, Decision, Floats, Running, Setpoint, ShedRequest, Site, Snapshot
from controller.site import config as sites
from controller.site.config import FACILITY, DsxFlexConfig, OpenAdrMqttConfig, OpenAdrVtnConfig
from controller.site.dsx import DsxFlex
from controller.site.facility import Facility
from controller.site.history import History
from controller.site.openadr import OpenAdrMqtt, OpenAdrVtn
from controller.site.outlook import Key, key
from controller.site.policy import block_w, policy_of
from controller.site.source import Arrival, Signal, Source
from controller.site.waiting import Waiting
from controller.site.wire import MqttWire
from controller.store import Store
from protocols.dsx_flex.wire import DsxFlexError
from protocols.mqtt import PAYLOAD_MAX_BYTES, MqttLink, Subscription
from protocols.openadr import OpenAdrError

BUSY_MAX_RATIO: Final = 0.2  # of the time may go into signals
SETPOINTS_SHOWN_MAX: Final = 50  # open, and as many coming: the status is written four times a second
BURST_MAX_S: Final = 0.01  # at a stretch, after a beat: the next one is 50 ms away
AT_ONCE_MAX_S: Final = 0.001  # of it on arrival: the next beat may be due at any moment
LINES_PER_S_MAX: Final = 20  # in the log, as in the history
SIGNALS_KEPT: Final = 20  # shown in the status
POISON_SHOWN: Final = 200  # bytes of a message that broke the program
FLOOD_SHOWN_S: Final = 10.0
FLOOD: Final = "more signals than may be looked at; the newest are, the others are refused unread"
KINDS: Final[Mapping[type, Any]] = {
    OpenAdrMqttConfig: OpenAdrMqtt,
    OpenAdrVtnConfig: OpenAdrVtn,
    DsxFlexConfig: DsxFlex,
}

log = structlog.get_logger(__name__)

_order = attrgetter("starts_utc_s", "source", "id", "kind", "ends_utc_s")


class SiteDesk:
    """Owner of all sources.

    Args:
        config: of the block.
        store: where accepted signals are kept.
        clock: monotonic and wall clock, s.
        on_change: called with what the law should hear, as soon as it is other than before.
        on_caps: called with caps of single GPUs, (n) W, when they have changed.
        on_called: called when a source calls another level of shedding than before, or none any more.
    """

    def __init__(
        self,
        config: BlockConfig,
        store: Store,
        *,
        clock: tuple[Callable[[], float], Callable[[], float]],
        on_change: Callable[[Site], None],
        on_caps: Callable[[Floats], None],
        on_called: Callable[[], None] = lambda: None,
    ) -> None:
        self.site = Site()
        self.signals: deque[Signal] = deque(maxlen=SIGNALS_KEPT)
        self.counts: Counter[str] = Counter()
        self.history = History(config.state_dir)
        self._store, self._on_change, self._on_caps, self._on_called = store, on_change, on_caps, on_called
        self._caps: tuple[Floats, ...] = ()
        self._now_s, self._now_utc_s = clock
        kept = store.book or {}
        for name in sorted(kept.keys() - {FACILITY, *(one.name for one in config.site.sources)}):
            log.warning("signals were kept for a source that is not configured; dropped", source=name)
        self.facility = self._opened_facility(config, kept.get(FACILITY))
        self.sources: dict[str, Source] = {
            one.name: self._opened(config, one, kept.get(one.name)) for one in config.site.sources
        }
        self.sources[FACILITY] = self.facility
        self._watched = [self.sources[one.name] for one in config.site.watched]
        self.sheds = self._called()
        self._waiting = {name: Waiting() for name in self.sources}
        for name, source in self.sources.items():
            source.has_room = partial(Waiting.has_room, self._waiting[name])
        self._credit_s, self._credit_at_s = BURST_MAX_S, NEVER_S
        self._lines_at_s: deque[float] = deque((NEVER_S,) * LINES_PER_S_MAX, maxlen=LINES_PER_S_MAX)
        self._written: dict[str, int] = {}  # so the first beat writes what is known, in today's form
        self._running: frozenset[Key] = frozenset()
        self._over: frozenset[Setpoint] = frozenset()
        self._decided: tuple[Any, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the site's sources, in the order that they are told in."""
        return tuple(name for name in self.sources if name != FACILITY)

    # --- what comes in ----------------------------------------------------------------------------------

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """Topics of sources that share the block's own connection."""
        return tuple(topic for wire in self._shared() for topic in wire.subscriptions)

    def attach(self, link: MqttLink) -> None:
        """The block's own connection, for sources that share it."""
        for wire in self._shared():
            wire.link = link

    def on_connect(self) -> None:
        """The block's own connection stands anew."""
        for wire in self._shared():
            wire.connected()

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        """A message from the block's own connection."""
        for source in self._sharing(topic):
            self._arrived(source, topic, payload, retained)

    def on_oversized(self, topic: str, size_bytes: int) -> None:
        """One from there that was too large to be read."""
        for source in self._sharing(topic):
            self._oversized(source, topic, size_bytes)

    def _sharing(self, topic: str) -> Iterator[Source]:
        """Whoever on the block's own connection wants to hear that topic."""
        for source in self.sources.values():
            wire = source.wire
            if wire is not None and not wire.is_own and wire.takes(topic):
                yield source

    def _oversized(self, source: Source, topic: str, size_bytes: int) -> None:
        reason = f"{size_bytes} bytes, {PAYLOAD_MAX_BYTES} at most; not read"
        self._note(
            Signal(self._now_utc_s(), source.name, topic, "", accepted=False, reason=reason), self._now_s()
        )

    def _arrived(self, source: Source, topic: str, payload: bytes, retained: bool) -> None:
        arrival = Arrival(topic, payload, retained, self._now_s(), self._now_utc_s())
        waiting = self._waiting[source.name]
        at_once = self._credit(arrival.now_s) > BURST_MAX_S - AT_ONCE_MAX_S
        wire = source.wire
        if wire is not None and (wire.is_heartbeat(topic) or wire.is_canary(topic)):
            waiting.put_vital(arrival)
            if at_once:
                self._take_vital(source)
        elif at_once and not waiting:
            self._take(source, arrival)
        else:
            for pushed_out in waiting.put(arrival):
                self._drop(source, pushed_out)

    def _take_vital(self, source: Source) -> None:
        for arrival in self._waiting[source.name].vital():
            self._take(source, arrival)

    def _take(self, source: Source, arrival: Arrival, *, alone: bool = True) -> None:
        began_s, revision = self._now_s(), source.revision
        try:
            signal = source.take(arrival)
        except Exception as error:  # a poison message, perhaps retained, must not become a crash loop
            log.exception(
                "a signal broke the program", topic=arrival.topic, payload=arrival.payload[:POISON_SHOWN]
            )
            reason = f"a fault of this program, see its log: {error!r:.{POISON_SHOWN}}"
            signal = Signal(arrival.now_utc_s, source.name, arrival.topic, "", accepted=False, reason=reason)
        if signal is not None:
            self._note(signal, arrival.now_s)
        if alone and source.revision != revision:
            self._choose(arrival.now_utc_s)
        self._credit_s -= self._now_s() - began_s

    def _note(self, said: Signal, now_s: float) -> None:
        signal = said.shortened()
        self.counts["accepted" if signal.accepted else "refused"] += 1
        self.signals.append(signal)
        self.history.signal(signal, now_s)
        if now_s - self._lines_at_s[0] < 1.0:
            return
        self._lines_at_s.append(now_s)
        write = log.info if signal.accepted else log.warning
        write(
            "signal", source=signal.source, about=signal.about, accepted=signal.accepted, reason=signal.reason
        )

    def _credit(self, now_s: float) -> float:
        """Seconds that may go into signals now; below 0: the last one took more than there was."""
        elapsed_s = max(0.0, now_s - self._credit_at_s)
        self._credit_s = min(BURST_MAX_S, self._credit_s + BUSY_MAX_RATIO * min(elapsed_s, 1.0))
        self._credit_at_s = now_s
        return self._credit_s

    def _drop(self, source: Source, arrival: Arrival) -> None:
        """Refused unread: more came than may be looked at."""
        waiting, now_s = self._waiting[source.name], self._credit_at_s
        if now_s - waiting.flooded_at_s > FLOOD_SHOWN_S:
            said = Signal(
                arrival.now_utc_s, source.name, arrival.topic, "", accepted=False, reason=f"flood: {FLOOD}"
            )
            self._note(said, now_s)
        else:
            self.counts["refused"] += 1
        source.overrun()
        waiting.flooded_at_s = now_s

    def _take_waiting(self) -> None:
        """One of each source in turn, until nothing waits or the time for it is over.

        Not for crumbs of time: whatever changes here wakes a beat.
        """
        for source in self.sources.values():
            self._take_vital(source)
        if self._credit(self._now_s()) < BURST_MAX_S / 2 or not any(self._waiting.values()):
            return
        before, now_utc_s = self._revisions(), self._now_utc_s()
        while self._credit_s > 0.0 and (rooms := [name for name, one in self._waiting.items() if one]):
            for name in rooms:
                self._take(self.sources[name], self._waiting[name].next(), alone=False)
        if self._revisions() != before:
            self._choose(now_utc_s)

    # --- what the law hears -----------------------------------------------------------------------------

    def moved(self, now_utc_s: float) -> str:
        """A command has changed what the facility asks. Returns why that is not on disk, or nothing."""
        self._keep_book()
        self._choose(now_utc_s)
        return self._store.fault

    def before_beat(self, now_s: float) -> None:
        """What is due, signs of life, and what was accepted onto the disk."""
        for source in self.sources.values():
            source.beat(now_s)
            while source.pending:
                self._note(source.pending.pop(0), now_s)
        contacts = tuple(source.contact for source in self._watched)
        if contacts != self.site.contacts:
            self._publish(replace(self.site, contacts=contacts))
        caps = tuple(source.cap_w for source in self.sources.values() if source.cap_w is not None)
        if any(one is not other for one, other in zip_longest(caps, self._caps)):
            self._caps = caps
            self._on_caps(np.minimum.reduce(caps))
        self._keep_book()

    def _keep_book(self) -> None:
        revisions = self._revisions()
        if revisions != self._written:
            self._store.keep_book({name: source.kept() for name, source in self.sources.items()})
            self._written = revisions

    def refresh(self, running: tuple[Running, ...], ended: frozenset[Setpoint], now_utc_s: float) -> None:
        """Bring coming windows within reach of the law, and drop those that it has seen end.

        Args:
            running: the windows that the law holds open; called again whenever they change.
            ended: those that it has seen end.
            now_utc_s: decides on coming windows only.
        """
        self._running = frozenset(key(entry.setpoint) for entry in running)
        for name, source in self.sources.items():
            source.hold(frozenset(entry.setpoint.id for entry in running if entry.setpoint.source == name))
        over = self._over | ended
        known = [
            source.outlook.still_known(one for one in over if one.source == name)
            for name, source in self.sources.items()
        ]
        self._over = frozenset().union(*known)
        self._choose(now_utc_s)

    def after_beat(self, snapshot: Snapshot, decision: Decision) -> None:
        """What came of the signals: into the history, and to those who asked to be told. Then what waits."""
        decided = (decision.state.running, decision.binding.source)
        if decided != self._decided:
            self._decided = decided
            self.history.decided(decision, snapshot.now_utc_s)
        for source in self.sources.values():
            source.tell(snapshot, decision)
        self._take_waiting()

    def _choose(self, now_utc_s: float) -> None:
        """Few windows of thousands are near: only those become setpoints."""
        chosen = {
            setpoint
            for source in self.sources.values()
            for setpoint in source.outlook.near(now_utc_s, self._running, self._over)
        }
        setpoints = tuple(sorted(chosen, key=_order))
        if setpoints != self.site.setpoints:
            self._publish(replace(self.site, setpoints=setpoints))
        sheds = self._called()
        if sheds != self.sheds:
            self.sheds = sheds
            self._on_called()

    def _called(self) -> tuple[ShedRequest, ...]:
        """Levels of shedding that are called otherwise than by a window."""
        return tuple(request for source in self.sources.values() for request in source.sheds)

    def _publish(self, site: Site) -> None:
        self.site = site
        self._on_change(site)

    # --- what is told -----------------------------------------------------------------------------------

    def alarms(self, now_s: float) -> Iterator[tuple[str, str]]:
        """Key and text of everything about signals that a person should know."""
        for source in self.sources.values():
            yield from source.alarms(now_s)
        flooding = [n for n, one in self._waiting.items() if now_s - one.flooded_at_s < FLOOD_SHOWN_S]
        if flooding:
            yield "flood", f"{', '.join(flooding)}: {FLOOD}; {self.counts['refused']} refused so far"
        for name, source in self.sources.items():
            if source.outlook.left_out:
                yield (
                    f"plan {name}",
                    f"{source.outlook.left_out} windows of {name} found no place: too many at once",
                )
        if self.history.fault:
            yield "history", self.history.fault

    def links(self, now_s: float) -> Iterator[Mapping[str, Any]]:
        for source in self.sources.values():
            yield from source.links(now_s)

    def told(self, now_s: float, decision: Decision) -> dict[str, Any]:
        """For the status."""
        modes = {
            source.name: link.mode.value
            for source, link in zip(self._watched, decision.state.links, strict=True)
        }
        return {
            "sources": [
                {
                    "name": name,
                    "mode": modes.get(name),
                    "heartbeat_age_s": _age_s(now_s, source.contact.heartbeat_at_s),
                    "plan_age_s": _age_s(now_s, source.contact.plan_at_s),
                }
                for name, source in self.sources.items()
                if name != FACILITY
            ],
            "setpoints": list(_standing(self.site.setpoints, decision)),
            "accepted": self.counts["accepted"],
            "refused": self.counts["refused"],
            "signals": list(self.signals),
        }

    def runs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Tasks of the sources' own connections."""
        return {name: run for source in self.sources.values() for name, run in source.runs().items()}

    def close(self) -> None:
        self.history.close()

    # --- sources ----------------------------------------------------------------------------------------

    def _opened(self, config: BlockConfig, one: sites.Source, kept: Any) -> Source:
        """A source with what it kept; without, if that makes no sense to it any more."""
        make, policy = KINDS[type(one)], policy_of(config, one)
        settings = settings_of(config)

        def on_message(topic: str, payload: bytes, retained: bool) -> None:
            self._arrived(self.sources[one.name], topic, payload, retained)

        def on_oversized(topic: str, size_bytes: int) -> None:
            self._oversized(self.sources[one.name], topic, size_bytes)

        try:
            source: Source = make(one, policy, settings, kept, on_message, on_oversized)
        except (OpenAdrError, DsxFlexError) as error:
            if kept is None:
                raise
            self._store.set_book_aside(str(error))
            source = make(one, policy, settings, None, on_message, on_oversized)
        return source

    def _opened_facility(self, config: BlockConfig, kept: Any) -> Facility:
        settings = settings_of(config)
        least_w = block_w(settings, settings.topology.gpu_min_w)
        levels_w = [level.limit_w for level in settings.shed_levels]
        try:
            return Facility(least_w, kept, levels_w)
        except msgspec.ValidationError as error:
            self._store.set_book_aside(str(error))
            return Facility(least_w)

    def _shared(self) -> Iterator[MqttWire]:
        for source in self.sources.values():
            if source.wire is not None and not source.wire.is_own:
                yield source.wire

    def _revisions(self) -> dict[str, int]:
        return {name: source.revision for name, source in self.sources.items()}


def _standing(setpoints: Sequence[Setpoint], decision: Decision) -> Iterator[dict[str, Any]]:
    """Setpoints with what open ones stand at: who binds, and what the others yield to. Open ones first."""
    opened = [entry.setpoint for entry in decision.state.running]
    winners = {(winner.source, winner.kind): winner for winner in schedule.winners(opened)}
    binding = decision.binding.source
    for setpoint in opened[:SETPOINTS_SHOWN_MAX]:
        winner = winners[setpoint.source, setpoint.kind]
        if winner != setpoint:
            stands = f"yields to {winner.id}, which has priority"
        else:
            own = schedule.name(setpoint)
            binds = own == binding or (setpoint.shed_level >= 0 and f"({own})" in binding)
            stands = "binds" if binds else f"above {binding}"
        yield {**asdict(setpoint), "stands": stands}
    coming = islice((one for one in setpoints if one not in opened), SETPOINTS_SHOWN_MAX)
    yield from ({**asdict(setpoint), "stands": ""} for setpoint in coming)


def _age_s(now_s: float, at_s: float) -> float | None:
    return now_s - at_s if at_s > NEVER_S else None
