"""The site's wishes and signs of life: from MQTT messages to `Site` on the board.

A heartbeat says that the site's application lives; it may list the events in force, which makes it a
statement of the plan as well. An accepted event or cancellation is such a statement too. Everything is
accepted or refused as a whole, with a reason that is counted, logged and shown; what is accepted is on disk
before it is acted upon.

Windows are handed to the law unfiltered by the wall clock: whether one has ended is the law's business,
on a clock that cannot be stepped. What the law says is over is dropped here.

Old heartbeats (a frozen broker delivers them in one gush when it thaws) are told from fresh ones without
trusting two wall clocks to agree: the delay may not grow by more than the heartbeat time-out above the
shortest of the last few that were in time. A clock that was stepped looks late too, but goes on doing so.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from controller.core.model import NEVER_S, Setpoint, Site
from controller.store import Store
from protocols import openadr

log = structlog.get_logger(__name__)

SOURCE: Final = "openadr"
HORIZON_S: Final = 3600.0  # windows further ahead wait in the book: the law goes through its list every beat
DELAYS_KEPT: Final = 16  # heartbeats; follows two clocks that drift apart, and forgets one lucky packet
NEW_NORMAL_TIMEOUTS: Final = 4.0  # late for so long without a pause is a stepped clock; a gush is over sooner
VERDICTS_KEPT: Final = 20  # shown in the status


@dataclass(frozen=True)
class Signal:
    """One message from the site and what became of it."""

    at_utc_s: float
    topic: str
    accepted: bool
    reason: str


def setpoint_of(window: openadr.Window, *, arrive_at_start: bool) -> Setpoint:
    """An OpenADR window in the law's words."""
    return Setpoint(
        source=SOURCE,
        id=f"{window.event_id}/{window.interval_id}",
        kind=window.kind,
        limit_w=window.limit_w,
        starts_utc_s=window.starts_utc_s,
        ends_utc_s=window.ends_utc_s,
        priority=window.priority,
        arrive_at_start=arrive_at_start,
    )


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
        self._delays_s: deque[float] = deque(maxlen=DELAYS_KEPT)
        self._late_since_s = NEVER_S
        self._arrived_at_s = NEVER_S
        self._sent_at_utc_s = NEVER_S
        self._over: frozenset[Setpoint] = frozenset()
        self._book = self._reopened()

    def on_message(self, topic: str, payload: bytes, retained: bool, now_s: float, now_utc_s: float) -> None:
        """Take in a message of the heartbeat topic or of an event topic."""
        if topic == self._heartbeat_topic:
            verdict = self._heartbeat(payload, retained, now_s)
        else:
            verdict = self._event(payload, retained, now_s, now_utc_s)
        self.counts["accepted" if verdict.accepted else "refused"] += 1
        if verdict.accepted and topic == self._heartbeat_topic:
            return  # one a second: not worth a line
        self.signals.append(Signal(now_utc_s, topic, verdict.accepted, verdict.reason))
        write = log.info if verdict.accepted else log.warning
        write("signal", topic=topic, accepted=verdict.accepted, reason=verdict.reason)

    def refresh(self, ended: frozenset[Setpoint], now_utc_s: float) -> None:
        """Bring coming windows within reach of the law, and drop those that it has seen end."""
        windows = self._book.windows(NEVER_S)
        known = [setpoint_of(window, arrive_at_start=self._arrive_at_start) for window in windows]
        self._over = (self._over | ended).intersection(known)
        reach_utc_s = now_utc_s + HORIZON_S
        setpoints = tuple(s for s in known if s.starts_utc_s < reach_utc_s and s not in self._over)
        if setpoints != self.site.setpoints:
            self._publish(replace(self.site, setpoints=setpoints))

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
            self.unknown_events = heartbeat.event_ids - self._book.event_ids(NEVER_S)
            if not self.unknown_events:
                plan_at_s = now_s
        self._publish(replace(self.site, heartbeat_at_s=now_s, plan_at_s=plan_at_s))
        return openadr.Verdict(True, "heartbeat")

    def _late_s(self, delay_s: float, now_s: float) -> float:
        """How much later than usual this heartbeat is."""
        late_s = delay_s - min(self._delays_s, default=delay_s)
        paused = now_s - self._arrived_at_s > self._timeout_s
        self._arrived_at_s = now_s
        if late_s <= self._timeout_s:
            self._late_since_s = NEVER_S
        elif paused or self._late_since_s == NEVER_S:
            self._late_since_s = now_s
        elif now_s - self._late_since_s >= NEW_NORMAL_TIMEOUTS * self._timeout_s:
            self._delays_s.clear()
            self._late_since_s, late_s = NEVER_S, 0.0
        if late_s <= self._timeout_s:
            self._delays_s.append(delay_s)
        return late_s

    def _event(self, payload: bytes, retained: bool, now_s: float, now_utc_s: float) -> openadr.Verdict:
        try:
            notification = openadr.parse(payload)
        except openadr.OpenAdrError as error:
            return openadr.Verdict(False, str(error))
        verdict = self._book.apply(notification, now_utc_s, retained=retained)
        if verdict.accepted:
            self._store.keep_book(self._book.to_dict())
            self.refresh(frozenset(), now_utc_s)
            if not retained:
                self._publish(replace(self.site, plan_at_s=now_s))
        return verdict

    def _publish(self, site: Site) -> None:
        self.site = site
        self._on_change(site)

    def _reopened(self) -> openadr.EventBook:
        said = self._store.kept.book
        if said is None:
            return openadr.EventBook()
        try:
            return openadr.EventBook.from_dict(said)
        except openadr.OpenAdrError as error:
            log.error("kept events unreadable: only limits that were in force are kept", why=str(error))
            return openadr.EventBook()
