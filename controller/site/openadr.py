"""OpenADR 3 as a source of setpoints: over bare topics, or as the VEN of a VTN.

Both end in the same book of events: parsed, resolved, versions told apart, accepted or refused as a whole.
They differ in how they know that the other side lives. Over bare topics a heartbeat says so. A VTN has none:
a complete round of GETs, which is also a statement of its whole plan, stands in for it; what its notifier
sends between rounds only makes it faster.
"""

import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any, Final

import msgspec
import structlog

from controller.core.model import NEVER_S, NO_LIMIT_W, Contact, Decision, Settings, ShedRequest, Snapshot
from controller.metering import Metering
from controller.site.config import OpenAdrMqttConfig, OpenAdrVtnConfig
from controller.site.outlook import Outlook
from controller.site.policy import Policy, acted_on, block_w
from controller.site.source import Arrival, Refusals, Signal
from controller.site.wire import MqttWire
from controller.yaml_config import ConfigError
from protocols import openadr
from protocols.mqtt import Subscription
from protocols.ven import Ven, VenConfigError, VenSettings

HEARTBEAT: Final = "the heartbeat"  # with a blank, which no event's id has
ROUND_DONE: Final = "the end of a round"  # takes its turn behind the events that the round has told
NO_LONGER_ASKED: Final = ("older than known", "lapsed")  # of an event whose time, or version, is over
PROGRAMS_MAX: Final = 1000  # whose units are remembered; a site takes part in a handful
SECRET_MAX_CHARS: Final = 1024  # a file larger than this is not a secret

log = structlog.get_logger(__name__)


class OpenAdrSource:
    """The book of one source, whatever wire feeds it."""

    def __init__(
        self, policy: Policy, kept: Any, *, randomize_reductions: bool, names: Collection[str] = ()
    ) -> None:
        self.name = policy.source
        self.outlook = Outlook(policy.of_openadr, policy.ways.spread_max_s, policy.horizon_s)
        self.contact = Contact()
        self.cap_w = None
        self.sheds: tuple[ShedRequest, ...] = ()
        self.has_room: Callable[[], bool] = lambda: True
        self.pending: list[Signal] = []
        self.revision = 0
        self._types = policy.acts_on
        self._programs: dict[str, openadr.Units] = {}
        self._refusals = Refusals()
        self._is_news = True  # the newest signal, unless it was refused for the same reason before
        rules = openadr.Rules(
            acts_on=self._types,
            units_of=lambda program_id: self._programs.get(program_id, {}),
            draw=lambda: random.uniform(-1.0, 1.0),  # noqa: S311  spreads load, guards nothing
            randomize_reductions=randomize_reductions,
            names=names,
        )
        self.book = (
            openadr.EventBook(rules) if kept is None else openadr.EventBook.from_dict(_book(kept), rules)
        )
        self._learn()

    def kept(self) -> Any:
        return {"book": self.book.to_dict()}

    @property
    def event_ids(self) -> frozenset[str]:
        return self._event_ids

    def tell(self, snapshot: Snapshot, decision: Decision) -> None:
        """Nobody asked."""

    def _asked_in_vain(self, _event_id: str) -> str:
        return ""

    def hold(self, setpoint_ids: frozenset[str]) -> None:
        self.book.hold({setpoint_id.rpartition("/")[0] for setpoint_id in setpoint_ids})

    def _learn(self) -> None:
        """Once per change of the book: it may hold thousands of windows, and heartbeats are many."""
        self._learnt = self.book.revision
        self.outlook.learn(acted_on(self.book.windows(NEVER_S), self._types))
        self._event_ids = self.book.event_ids(NEVER_S)
        self.revision += 1

    def _event(self, arrival: Arrival, sender: str) -> Signal:
        """A notification; an accepted one is a statement of the plan."""
        try:
            notification = openadr.parse(arrival.payload)
        except openadr.OpenAdrError as error:
            return self._signal(arrival, sender, "", "", accepted=False, reason=str(error))
        verdict = self.book.apply(notification, arrival.now_utc_s, retained=arrival.retained)
        if self.book.revision != self._learnt:
            self._learn()
        event_id = notification.event.id
        about = f"{notification.operation.lower()} {event_id}"
        reason = verdict.reason
        if verdict.ignored and "asks for no power" not in reason:
            reason += f"; not acted on: {', '.join(verdict.ignored)}"
        if verdict.unserved:
            reason += f"; {verdict.unserved}"
        if verdict.accepted:
            reason += self._asked_in_vain(event_id)
        return self._signal(arrival, sender, event_id, about, accepted=verdict.accepted, reason=reason)

    def _signal(
        self, arrival: Arrival, sender: str, event_id: str, about: str, *, accepted: bool, reason: str
    ) -> Signal:
        signal = Signal(arrival.now_utc_s, self.name, sender, about, accepted, reason)
        self._is_news = self._refusals.note(event_id, signal, arrival.now_s)
        return signal


class OpenAdrMqtt(OpenAdrSource):
    """Notifications over topics that site and block agreed on."""

    def __init__(
        self,
        config: OpenAdrMqttConfig,
        policy: Policy,
        _settings: Settings,
        kept: Any,
        on_message: Callable[[str, bytes, bool], None],
        on_oversized: Callable[[str, int], None],
    ) -> None:
        super().__init__(policy, kept, randomize_reductions=config.randomize_reductions)
        topics = tuple(Subscription(topic, 1) for topic in config.topics)
        self.wire = MqttWire(config, policy.block, topics, on_message, on_oversized)

    def take(self, arrival: Arrival) -> Signal | None:
        if self.wire.is_canary(arrival.topic):
            self.wire.hear_canary(arrival)
            return None
        if self.wire.is_heartbeat(arrival.topic):
            standing = frozenset(
                one.event_id for one in self.book.windows(NEVER_S) if one.ends_utc_s > arrival.now_utc_s
            )
            self.contact, refusal = self.wire.heartbeat(arrival, self.event_ids, self.contact, standing)
            signal = self._signal(
                arrival, arrival.topic, HEARTBEAT, HEARTBEAT, accepted=not refusal, reason=refusal
            )
            return signal if refusal and self._is_news else None
        before = self._event_ids
        signal = self._event(arrival, arrival.topic)
        # A plan is stated by what is about an event of ours, and not while another is known to be missing.
        ours = self._event_ids | before
        states = signal.accepted and not arrival.retained and signal.about.rpartition(" ")[2] in ours
        if states and not self.wire.unknown_events:
            self.contact = self.contact._replace(plan_at_s=arrival.now_s)
        return signal

    def _asked_in_vain(self, event_id: str) -> str:
        """Bare topics have no way back for reports."""
        asks = event_id in self.book.requests
        return "; the reports it asks for have no way back over bare topics" if asks else ""

    def overrun(self) -> None:
        """What was dropped stays unknown until the heartbeat lists it, and then it is an alarm."""

    def beat(self, at_s: float) -> None:
        self.wire.beat(at_s)

    def alarms(self, at_s: float) -> Iterator[tuple[str, str]]:
        yield from self._refusals.alarm(self.name, at_s)
        yield from self.wire.alarms(at_s)

    def links(self, _at_s: float) -> Iterator[Mapping[str, Any]]:
        yield from self.wire.links()

    def runs(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return self.wire.runs()


class OpenAdrVtn(OpenAdrSource):
    """The VEN of a VTN."""

    def __init__(
        self,
        config: OpenAdrVtnConfig,
        policy: Policy,
        settings: Settings,
        kept: Any,
        on_message: Callable[[str, bytes, bool], None],
        _on_oversized: Callable[[str, int], None],
    ) -> None:
        super().__init__(
            policy,
            kept,
            randomize_reductions=config.randomize_reductions,
            names=(config.ven_name, *config.resources),
        )
        self.wire = None
        self._vtn = config.url
        self._unsure = False  # something since the last round's end was not taken in
        least_w = block_w(settings, settings.topology.gpu_min_w)
        most_w = min(settings.feed_rating_w, block_w(settings, settings.topology.gpu_max_w))
        self._meter_age_max_s = settings.meter_age_max_s
        self._metering = Metering(least_w, most_w, self.outlook.lowest_w)
        name = config.resources[0] if config.resources else policy.block
        told = None if kept is None else kept.get("reports")
        self._reports = (
            openadr.Reports(self.book, resource_name=name)
            if told is None
            else openadr.Reports.from_dict(told, self.book, resource_name=name)
        )
        self.ven = Ven(
            ven_settings(config),
            on_message=lambda payload, retained: on_message(config.url, payload, retained),
            on_program=self._program,
            on_round=lambda whole: on_message(ROUND_DONE, b"", False) if whole else None,
            has_room=lambda: self.has_room(),  # noqa: PLW0108  the desk sets it later
            known_event_ids=self.event_ids,
        )

    def take(self, arrival: Arrival) -> Signal | None:
        """Every round tells every event again: what is known, or was refused for it before, is no news."""
        if arrival.topic == ROUND_DONE:
            self._round_done(arrival)
            return None
        signal = self._event(arrival, arrival.topic)
        if not signal.accepted and not signal.reason.endswith(NO_LONGER_ASKED):
            self._unsure = True
        return signal if self._is_news and signal.reason != "duplicate" else None

    def _round_done(self, arrival: Arrival) -> None:
        """A whole round is a sign of life; and a statement of the plan, if all of it was understood."""
        plan_at_s = self.contact.plan_at_s if self._unsure else arrival.now_s
        self.contact = Contact(arrival.now_s, plan_at_s)
        self._unsure = False

    def overrun(self) -> None:
        self._unsure = True
        self.ven.refresh(self.event_ids)

    def beat(self, _at_s: float) -> None:
        """Nothing of its own to send between rounds."""

    def alarms(self, at_s: float) -> Iterator[tuple[str, str]]:
        yield from self._refusals.alarm(self.name, at_s)
        if self.ven.status.fault:
            yield f"vtn {self.name}", self.ven.status.fault

    def links(self, at_s: float) -> Iterator[Mapping[str, Any]]:
        status, heard_at_s = self.ven.status, self.contact.heartbeat_at_s
        age_s = at_s - heard_at_s if heard_at_s > NEVER_S else None
        up = status.state in ("following", "polling")
        yield {"name": self.name, "up": up, "fault": status.fault, "age_s": age_s}

    def runs(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return {f"ven {self.name}": self.ven.run}

    def kept(self) -> Any:
        return {"book": self.book.to_dict(), "reports": self._reports.to_dict()}

    def tell(self, snapshot: Snapshot, decision: Decision) -> None:
        """Reports that events have asked for. What is handed out is on disk with the next beat."""
        meter, now_utc_s = snapshot.meter, snapshot.now_utc_s
        held = [one.setpoint.limit_w for one in decision.state.running if one.setpoint.limit_w < NO_LIMIT_W]
        self._metering.feed(
            now_utc_s,
            meter.value if meter.is_usable(snapshot.now_s, self._meter_age_max_s) else None,
            min(held, default=None),
            decision.budget_w,
        )
        due = self._reports.due(now_utc_s, self._metering)
        for report in due:
            self.ven.report(report)
        self.revision += len(due)

    def _program(self, said: dict[str, Any]) -> None:
        try:
            program = openadr.parse_program(msgspec.json.encode(said))
        except openadr.OpenAdrError as error:
            log.warning("programme not understood", vtn=self._vtn, why=str(error))
            return
        self._programs.pop(program.id, None)
        self._programs[program.id] = program.units
        if len(self._programs) > PROGRAMS_MAX:
            del self._programs[next(iter(self._programs))]


def _book(kept: Any) -> Any:
    if not isinstance(kept, dict) or "book" not in kept:
        raise openadr.OpenAdrError("kept events: not as this program keeps them; let the site send anew")
    return kept["book"]


def ven_settings(config: OpenAdrVtnConfig) -> VenSettings:
    """Raises ConfigError: the secret or the TLS files cannot be used."""
    try:
        secret = config.client_secret_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"site.sources: {config.name}: client_secret_file: {config.client_secret_file}: {error};"
            " make it readable"
        ) from None
    if not 0 < len(secret) <= SECRET_MAX_CHARS:
        raise ConfigError(
            f"site.sources: {config.name}: client_secret_file: {config.client_secret_file} holds no secret;"
            " write it there"
        )
    try:
        return VenSettings(
            url=config.url,
            client_id=config.client_id,
            client_secret=secret,
            ven_name=config.ven_name,
            resources=config.resources,
            token_url=config.token_url,
            scope=config.scope,
            ca_file=config.ca,
            cert_file=config.cert,
            key_file=config.key,
            plain=config.plain,
            poll_s=config.poll_s,
        )
    except VenConfigError as error:
        raise ConfigError(f"site.sources: {config.name}: {error}") from None
