"""The site's wishes and signs of life: from MQTT messages to `Site` on the board.

A heartbeat says that the site's application lives; it may list the events in force, which makes it a
statement of the plan as well. An accepted event or cancellation is such a statement too. Everything is
accepted or refused as a whole, with a reason that is counted, logged and shown; what is accepted is on disk
before it is acted upon.

The law gets the windows that it runs already, whatever the wall clock says by now: whether one has ended is
the law's business, on a clock that cannot be stepped. The wall clock only brings coming windows within reach.
What the law says is over is dropped here.

Old heartbeats (a frozen broker delivers them in one gush when it thaws, a slow bridge ever later) are told
from fresh ones without trusting two wall clocks to agree: the delay may not exceed its normal, the shortest
seen, by more than the heartbeat time-out. The normal rises only as fast as two clocks may drift apart. A
clock that was stepped makes every heartbeat late, but evenly so: that is the new normal after a while.
"""

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

import structlog

from controller.core.model import NEVER_S, Running, Setpoint, Site
from controller.store import Store
from protocols import openadr

log = structlog.get_logger(__name__)

SOURCE: Final = "openadr"
# Payload types that move power, and what they mean to the law: stay at or below; go there.
KIND_OF: Final[Mapping[str, str]] = {"IMPORT_CAPACITY_LIMIT": "limit", "DISPATCH_SETPOINT": "target"}
RULES: Final = openadr.Rules(acts_on=KIND_OF.keys())
HORIZON_S: Final = 3600.0  # windows further ahead wait in the book: the law goes through its list every beat
DRIFT_RATIO: Final = 1e-3  # two clocks part by less than 500 ppm each
NEW_NORMAL_TIMEOUTS: Final = 4.0  # evenly late for so long without a pause is a stepped clock
EVEN_S: Final = 0.25  # a queue that grows, or one that empties, changes the delay by more in that time
UNEVEN_S: Final = (-math.inf, math.inf)
VERDICTS_KEPT: Final = 20  # shown in the status
POISON_SHOWN: Final = 200  # bytes of a message that broke the program


@dataclass(frozen=True)
class Signal:
    """One message from the site and what became of it."""

    at_utc_s: float
    topic: str
    accepted: bool
    reason: str


def setpoint_of(window: openadr.Window, *, arrive_at_start: bool) -> Setpoint:
    """An OpenADR window of a type in `KIND_OF`, in the law's words."""
    return Setpoint(
        source=SOURCE,
        id=f"{window.event_id}/{window.interval_id}",
        kind=KIND_OF[window.type],
        limit_w=window.value,
        starts_utc_s=window.starts_utc_s,
        ends_utc_s=window.ends_utc_s,
        priority=window.priority,
        arrive_at_start=arrive_at_start,
    )


def acted_on(windows: tuple[openadr.Window, ...]) -> tuple[openadr.Window, ...]:
    """Those that move power."""
    return tuple(window for window in windows if window.type in KIND_OF)


def _window(setpoint: Setpoint) -> tuple[str, str, float, float]:
    """What stays the same when the site only wishes for another power in it."""
    return setpoint.id, setpoint.kind, setpoint.starts_utc_s, setpoint.ends_utc_s


_span = attrgetter("starts_utc_s", "ends_utc_s")


class SiteDesk:
    """Reads what the site sends; `on_change` wakes the beat when the plan changed."""

    def __init__(
        self,
        store: Store,
        *,
        heartbeat_topic: str,
        heartbeat_timeout_s: float,
        arrive_at_start: bool,
        on_change: Callable[[Site], None],
    ) -> None:
        self.site = Site()
        self.signals: deque[Signal] = deque(maxlen=VERDICTS_KEPT)
        self.counts: Counter[str] = Counter()
        self.unknown_events: frozenset[str] = frozenset()
        self._store = store
        self._heartbeat_topic = heartbeat_topic
        self._timeout_s = heartbeat_timeout_s
        self._arrive_at_start = arrive_at_start
        self._on_change = on_change
        self._normal_s = math.inf
        self._even_since_s = NEVER_S  # late heartbeats, all with delays between these two
        self._even_s = UNEVEN_S
        self._arrived_at_s = NEVER_S
        self._sent_at_utc_s = NEVER_S
        self._running: frozenset[tuple[str, str, float, float]] = frozenset()
        self._over: frozenset[Setpoint] = frozenset()
        self._book = self._reopened()
        self._read_book()

    def on_message(self, topic: str, payload: bytes, retained: bool, now_s: float, now_utc_s: float) -> None:
        """Take in a message of the heartbeat topic or of an event topic."""
        try:
            if topic == self._heartbeat_topic:
                verdict = self._heartbeat(payload, retained, now_s)
            else:
                verdict = self._event(payload, retained, now_s, now_utc_s)
        except Exception as error:  # a poison message, perhaps retained, must not become a crash loop
            log.exception("a signal broke the program", topic=topic, payload=payload[:POISON_SHOWN])
            verdict = openadr.Verdict(
                False, f"a fault of this program, see its log: {error!r:.{POISON_SHOWN}}"
            )
        self.counts["accepted" if verdict.accepted else "refused"] += 1
        if verdict.accepted and topic == self._heartbeat_topic:
            return  # one a second: not worth a line
        self.signals.append(Signal(now_utc_s, topic, verdict.accepted, verdict.reason))
        write = log.info if verdict.accepted else log.warning
        write("signal", topic=topic, accepted=verdict.accepted, reason=verdict.reason)

    def refresh(self, running: tuple[Running, ...], ended: frozenset[Setpoint], now_utc_s: float) -> None:
        """Bring coming windows within reach of the law, and drop those that it has seen end.

        Args:
            running: the windows that the law holds open; called again whenever they change.
            ended: those that it has seen end.
            now_utc_s: decides on coming windows only.
        """
        self._running = frozenset(_window(entry.setpoint) for entry in running)
        over = self._over | ended
        self._over = over.intersection(self._known_at({_span(setpoint) for setpoint in over}))
        self._choose(now_utc_s)

    def _choose(self, now_utc_s: float) -> None:
        """Few windows of thousands are near: only those become setpoints."""
        reached = bisect_left(self._known, now_utc_s + HORIZON_S, key=attrgetter("starts_utc_s"))
        near = (window for window in self._known[:reached] if window.ends_utc_s > now_utc_s)
        chosen = {setpoint for setpoint in map(self._setpoint, near) if setpoint not in self._over}
        held = self._known_at(
            {(starts_utc_s, ends_utc_s) for _, _, starts_utc_s, ends_utc_s in self._running}
        )
        chosen.update(setpoint for setpoint in held if _window(setpoint) in self._running)
        setpoints = tuple(sorted(chosen, key=attrgetter("starts_utc_s", "id", "kind", "ends_utc_s")))
        if setpoints != self.site.setpoints:
            self._publish(replace(self.site, setpoints=setpoints))

    def _known_at(self, spans: set[tuple[float, float]]) -> Iterator[Setpoint]:
        """What the book says of these spans of time, as (start, end) in UTC s."""
        if spans:
            yield from (self._setpoint(window) for window in self._known if _span(window) in spans)

    def _setpoint(self, window: openadr.Window) -> Setpoint:
        return setpoint_of(window, arrive_at_start=self._arrive_at_start)

    def _read_book(self) -> None:
        """Once per change of the book: it may hold thousands of windows, and heartbeats are many."""
        self._known = acted_on(self._book.windows(NEVER_S))
        self._event_ids = self._book.event_ids(NEVER_S)

    def _heartbeat(self, payload: bytes, retained: bool, now_s: float) -> openadr.Verdict:
        try:
            heartbeat = openadr.parse_heartbeat(payload)
        except openadr.OpenAdrError as error:
            return openadr.Verdict(False, f"heartbeat: {error}")
        if retained:
            return openadr.Verdict(False, "heartbeat: retained; a broker's memory is no sign of life")
        if heartbeat.sent_at_utc_s == self._sent_at_utc_s:
            return openadr.Verdict(False, "heartbeat: repeated")
        late_s = self._late_s(now_s - heartbeat.sent_at_utc_s, now_s)
        if late_s > self._timeout_s:
            return openadr.Verdict(False, f"heartbeat: {late_s:.1f} s late; is the broker overloaded?")
        self._sent_at_utc_s = heartbeat.sent_at_utc_s
        plan_at_s = self.site.plan_at_s
        if heartbeat.event_ids is not None:
            self.unknown_events = heartbeat.event_ids - self._event_ids
            if not self.unknown_events:
                plan_at_s = now_s
        self._publish(replace(self.site, heartbeat_at_s=now_s, plan_at_s=plan_at_s))
        return openadr.Verdict(True, "heartbeat")

    def _late_s(self, delay_s: float, now_s: float) -> float:
        """How much later than normal this heartbeat is."""
        elapsed_s = now_s - self._arrived_at_s
        self._arrived_at_s = now_s
        risen_s = self._normal_s + min(DRIFT_RATIO * elapsed_s, self._timeout_s)
        self._normal_s = min(delay_s, risen_s)
        if delay_s - self._normal_s <= self._timeout_s:
            self._even_s = UNEVEN_S
        elif self._is_stepped(delay_s, elapsed_s, now_s):
            self._normal_s = delay_s
        return delay_s - self._normal_s

    def _is_stepped(self, delay_s: float, elapsed_s: float, now_s: float) -> bool:
        """Whether late heartbeats have been late by the same for long enough."""
        lowest_s, highest_s = min(self._even_s[0], delay_s), max(self._even_s[1], delay_s)
        if elapsed_s > self._timeout_s or highest_s - lowest_s > EVEN_S:
            self._even_since_s, lowest_s, highest_s = now_s, delay_s, delay_s
        self._even_s = (lowest_s, highest_s)
        return now_s - self._even_since_s >= NEW_NORMAL_TIMEOUTS * self._timeout_s

    def _event(self, payload: bytes, retained: bool, now_s: float, now_utc_s: float) -> openadr.Verdict:
        try:
            notification = openadr.parse(payload)
        except openadr.OpenAdrError as error:
            return openadr.Verdict(False, str(error))
        verdict = self._book.apply(notification, now_utc_s, retained=retained)
        if verdict.accepted:
            self._store.keep_book(self._book.to_dict())
            self._read_book()
            self._choose(now_utc_s)
            if not retained:
                self._publish(replace(self.site, plan_at_s=now_s))
        return verdict

    def _publish(self, site: Site) -> None:
        self.site = site
        self._on_change(site)

    def _reopened(self) -> openadr.EventBook:
        if self._store.book is None:
            return openadr.EventBook(RULES)
        try:
            return openadr.EventBook.from_dict(self._store.book, RULES)
        except openadr.OpenAdrError as error:
            self._store.set_book_aside(str(error))
            return openadr.EventBook(RULES)
