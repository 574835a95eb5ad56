"""NVIDIA DSX Flex as a source of setpoints: load targets, signed by the operators that the site named.

A command is refused unless it came over the topic of its own publisher, is signed by one of that publisher's
keys, and is fresh by our wall clock. The contract has no heartbeat. What stands in for it is the bus's own
habit of repeating a standing wish: every genuine load target is a sign of life and a statement of the plan;
a repeat that says nothing new changes nothing. A site whose operator does not repeat itself names a
heartbeat topic.

The answers (status, breach, enforcement) are `told`'s.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from controller.clock import now_s
from controller.core.model import NEVER_S, Contact, Decision, Floats, Settings, Snapshot
from controller.site.config import DsxFlexConfig
from controller.site.keys import KeyFile, key_files, signer_file
from controller.site.outlook import Outlook
from controller.site.policy import Policy
from controller.site.shedding import Shedding
from controller.site.source import Arrival, Refusals, Signal
from controller.site.told import Told
from controller.site.wire import MqttWire
from protocols.dsx_flex import breach, enforcement, envelope, load_target, signing, topics, wire
from protocols.dsx_flex.envelope import Envelope
from protocols.dsx_flex.wire import DsxFlexError
from protocols.mqtt import Subscription
from protocols.openadr import Heartbeat

AHEAD_MAX_S: Final = 5.0  # so far may a publisher's clock be ahead of ours


class DsxFlex:
    """The agent's ear; `told` is its mouth."""

    def __init__(
        self,
        config: DsxFlexConfig,
        policy: Policy,
        settings: Settings,
        kept: Any,
        on_message: Callable[[str, bytes, bool], None],
        on_oversized: Callable[[str, int], None],
    ) -> None:
        self.name = policy.source
        self.contact = Contact()
        self.cap_w: Floats | None = None
        self.revision = 0
        self._config = config
        where = f"site.sources: {config.name}"
        self._keys = key_files(f"{where}: publishers", config.publishers)
        self._adviser_keys = key_files(f"{where}: advisers", config.advisers)
        signer = signer_file(f"{where}: signing_key", config.signing_key, config.signing_kid)
        self._refusals = Refusals()
        feeds = policy.feeds
        self.book = load_target.LoadTargetBook(feeds)
        self._shedding = Shedding(settings)
        if kept is not None:
            said = wire.an_object(kept, "kept load targets")
            self.book = load_target.LoadTargetBook.from_dict(feeds, said.get("book"))
            self._shedding.reopen(said.get("alerts"), now_s())
            self.cap_w = self._shedding.cap_w
        self.outlook = Outlook(policy.of_dsx, policy.ways.spread_max_s)
        self._learn()
        wanted = [
            Subscription(one, 1)
            for message_type, names in (
                (topics.LOAD_TARGET_SET, config.publishers),
                (topics.POWER_BREACH_ALERT, config.advisers),
            )
            for name in names
            for one in topics.filters(message_type, name)
        ]
        self.wire = MqttWire(config, policy.block, tuple(wanted), on_message, on_oversized)
        self.told = Told(config, settings, policy, self.book, signer, self._publish)

    def take(self, arrival: Arrival) -> Signal | None:
        if self.wire.is_canary(arrival.topic):
            self.wire.hear_canary(arrival)
            return None
        if self.wire.is_heartbeat(arrival.topic):
            known = frozenset(one.correlation_id for one in self.book.windows(NEVER_S))
            self.contact, refusal = self.wire.heartbeat(arrival, known, self.contact)
            about = "the heartbeat"
            signal = Signal(arrival.now_utc_s, self.name, arrival.topic, about, not refusal, refusal)
            return signal if self._refusals.note(about, signal, arrival.now_s) and refusal else None
        said: Envelope | None = None
        try:
            address = topics.read_topic(arrival.topic)
            said = envelope.read(arrival.payload)
            topics.check_source(address, message_type=said.type, source=said.source)
            steers = said.type == topics.LOAD_TARGET_SET
            data = self._genuine(
                said, self._keys if steers else self._adviser_keys, address.identifier, arrival
            )
            if not steers:
                return self._shed(arrival, said, data)
            verdict = self._apply(said, data, arrival)
        except DsxFlexError as error:
            verdict = load_target.Verdict(False, str(error))
        return self._judged(arrival, said, verdict)

    def _genuine(
        self,
        said: Envelope,
        keys: Mapping[str, KeyFile[signing.KeySet] | None],
        sender: str,
        arrival: Arrival,
    ) -> Mapping[str, Any]:
        """What it says, if it is from one who may, signed by them, and of now."""
        if sender not in keys:
            raise DsxFlexError(
                f"source: {sender} may not tell this block; those who may: {', '.join(keys) or 'nobody'}"
            )
        envelope.check_age(said, arrival.now_utc_s, age_max_s=self._config.age_max_s, ahead_max_s=AHEAD_MAX_S)
        file = keys[sender]
        known = signing.KeySet(()) if file is None else file.current()
        return signing.open_data(
            said.data, known, arrival.now_utc_s, accept_unsigned=self._config.accept_unsigned
        )

    def _apply(self, said: Envelope, data: Mapping[str, Any], arrival: Arrival) -> load_target.Verdict:
        before = self.book.revision
        verdict = self.book.apply(said, load_target.read(data), arrival.now_utc_s)
        if self.book.revision != before:
            self._learn()
            self.told.caused_by(said)
        return verdict

    def _shed(self, arrival: Arrival, said: Envelope, data: Mapping[str, Any]) -> Signal | None:
        """An alert whose hints may be for us."""
        alert = breach.read_alert(data)
        results = self._shedding.take(alert, arrival.now_s)
        if not results:
            return None
        self.cap_w = self._shedding.cap_w
        self.revision += 1
        phase: enforcement.Phase = "reverted" if alert.status == "resolved" else "applied"
        self.told.enforced(alert, phase, results, said.trace, arrival.now_utc_s)
        reason = f"{phase}: {enforcement.overall_code(results)} of {len(results)} hints"
        return Signal(
            arrival.now_utc_s,
            self.name,
            said.source,
            f"breach {alert.breach_id}",
            accepted=True,
            reason=reason,
        )

    def _judged(self, arrival: Arrival, said: Envelope | None, verdict: load_target.Verdict) -> Signal | None:
        """A repeat is a sign of life and not worth a line; the same message twice is not even that."""
        if verdict.accepted and said is not None and verdict.reason != "duplicate":
            self._refusals.clear()  # the latest target is the one that counts
            # What a broker had kept, or a bridge delayed, is a wish all the same, but no sign of life.
            sent = Heartbeat(said.time_utc_s, None, None)
            if not self.wire.staleness(sent, arrival):
                self.contact = Contact(arrival.now_s, arrival.now_s)
        if verdict.accepted and verdict.reason in ("duplicate", "repeated"):
            return None
        sender = arrival.topic if said is None else said.source
        about = "" if said is None else f"load target {said.thread_id}"
        ignored = f"; not our feeds: {', '.join(verdict.ignored)}" if verdict.ignored else ""
        reason = verdict.reason + ignored
        signal = Signal(arrival.now_utc_s, self.name, sender, about, verdict.accepted, reason)
        return signal if self._refusals.note(about, signal, arrival.now_s) else None

    def _learn(self) -> None:
        self.outlook.learn(sorted(self.book.windows(NEVER_S), key=lambda one: one.starts_utc_s))
        self.revision += 1

    def _publish(self, topic: str, payload: bytes, qos: int) -> None:
        if self.wire.link is not None:
            self.wire.link.publish(topic, payload, qos, keep=True)

    # --- as every source --------------------------------------------------------------------------------

    def overrun(self) -> None:
        """The newest message of a flood was kept, and the newest target counts."""

    def beat(self, at_s: float) -> None:
        self.wire.beat(at_s)
        if self._shedding.forgotten(at_s):
            self.cap_w = self._shedding.cap_w
            self.revision += 1

    def tell(self, snapshot: Snapshot, decision: Decision) -> None:
        self.told.beat(snapshot, decision)

    def kept(self) -> Any:
        return {"book": self.book.to_dict(), "alerts": self._shedding.kept()}

    def alarms(self, at_s: float) -> Iterator[tuple[str, str]]:
        yield from self._refusals.alarm(self.name, at_s)
        yield from self.wire.alarms(at_s)

    def links(self, _at_s: float) -> Iterator[Mapping[str, Any]]:
        yield from self.wire.links()

    def runs(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return self.wire.runs()
