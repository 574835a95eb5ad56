"""NVIDIA DSX Flex as a source of setpoints: load targets, signed by the operators that the site named.

A command is refused unless it came over the topic of its own publisher, is signed by one of that publisher's
keys, and is fresh by our wall clock. The contract has no heartbeat. What stands in for it is the bus's own
habit of repeating a standing wish: every genuine load target is a sign of life and a statement of the plan;
a repeat that says nothing new changes nothing. One for the feeds of others is a sign of life and no plan. A
site whose operator does not repeat itself names a heartbeat topic.

The signature covers the body alone: a body that was sent before, in a fresh envelope, may be a recording. It
counts where it loosens nothing.

The answers (status, breach, enforcement) are `told`'s.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from controller.core.model import NEVER_S, Contact, Decision, Floats, Settings, ShedRequest, Snapshot
from controller.site.config import DsxFlexConfig
from controller.site.heartbeat import Pulse
from controller.site.keys import KeyFile, key_files, signer_file
from controller.site.outlook import Outlook
from controller.site.policy import Policy
from controller.site.shedding import BREACHES_MAX, Shed, Shedding
from controller.site.source import Arrival, Refusals, Signal
from controller.site.told import Told
from controller.site.wire import UNWATCHED_TIMEOUT_S, MqttWire
from protocols.dsx_flex import breach, enforcement, envelope, load_target, signing, topics, wire
from protocols.dsx_flex.envelope import AHEAD_MAX_S, BODIES_MAX, Bodies, Envelope, Seen
from protocols.dsx_flex.wire import DsxFlexError
from protocols.mqtt import Subscription
from protocols.openadr import Heartbeat

SILENT: Final = "nothing was heard of it any more"
CALLED: Final = "a level of shedding is called"
CALLED_NO_MORE: Final = "calls no level of shedding any more"


class DsxFlex:
    """The agent's ear; `told` is its mouth.

    Attributes:
        pending: signals that no message has brought, for the desk to take out.
    """

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
        self.pending: list[Signal] = []
        self.has_room: Callable[[], bool] = lambda: True
        # One each: what is late is judged by the sender's own clock, and no two of them need to agree.
        timeout_s = config.heartbeat_timeout_s or UNWATCHED_TIMEOUT_S
        self._pulses = {name: Pulse(timeout_s) for name in config.publishers}
        self._bodies, self._alerts = Bodies(), Seen()
        feeds = policy.feeds
        self.book = load_target.LoadTargetBook(feeds)
        self.sheds: tuple[ShedRequest, ...] = ()
        self._shedding = Shedding(settings, self.name, policy.feeds, policy.breach_level)
        if kept is not None:
            said = wire.an_object(kept, "kept load targets")
            self.book = load_target.LoadTargetBook.from_dict(feeds, said.get("book"))
            digests = wire.a_list(said.get("bodies", []), "kept bodies", BODIES_MAX)
            self._bodies = Bodies(tuple(wire.a_text(one, "kept bodies") for one in digests))
            self._shedding.reopen(said.get("alerts"))
            self.cap_w, self.sheds = self._shedding.cap_w, self._shedding.requests
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
            standing = frozenset(one.correlation_id for one in self.book.windows(arrival.now_utc_s))
            self.contact, refusal = self.wire.heartbeat(arrival, known, self.contact, standing)
            about = "the heartbeat"
            signal = Signal(arrival.now_utc_s, self.name, arrival.topic, about, not refusal, refusal)
            return signal if self._refusals.note(about, signal, arrival.now_s) and refusal else None
        said: Envelope | None = None
        try:
            address = topics.read_topic(arrival.topic)
            said = envelope.read(arrival.payload)
            topics.check_source(address, message_type=said.type, source=said.source)
            steers = said.type == topics.LOAD_TARGET_SET
            data, is_new = self._genuine(
                said, self._keys if steers else self._adviser_keys, address.identifier, arrival
            )
            if not steers:
                return self._shed(arrival, said, data)
            verdict = self._apply(said, data, arrival, is_new=is_new)
        except DsxFlexError as error:
            verdict = load_target.Verdict(False, str(error))
        return self._judged(arrival, said, verdict)

    def _genuine(
        self,
        said: Envelope,
        keys: Mapping[str, KeyFile[signing.KeySet] | None],
        sender: str,
        arrival: Arrival,
    ) -> tuple[Mapping[str, Any], bool]:
        """What it says, if it is from one who may, signed by them, and of now; whether it is new as well."""
        if sender not in keys:
            raise DsxFlexError(
                f"source: {sender} may not tell this block; those who may: {', '.join(keys) or 'nobody'}"
            )
        file = keys[sender]
        known = signing.KeySet(()) if file is None else file.current()
        data = signing.open_data(
            said.data, known, arrival.now_utc_s, accept_unsigned=self._config.accept_unsigned
        )
        # What is too old to count is remembered all the same: it may come again, dated anew.
        is_new = self._bodies.enter(said)
        envelope.check_age(said, arrival.now_utc_s, age_max_s=self._config.age_max_s, ahead_max_s=AHEAD_MAX_S)
        return data, is_new

    def _apply(
        self, said: Envelope, data: Mapping[str, Any], arrival: Arrival, *, is_new: bool
    ) -> load_target.Verdict:
        before = self.book.revision
        targets = load_target.read(data)
        verdict = self.book.apply(said, targets, arrival.now_utc_s, may_loosen=is_new)
        if self.book.revision != before:
            self._learn()
            self.told.caused_by(said)
        return verdict

    def _shed(self, arrival: Arrival, said: Envelope, data: Mapping[str, Any]) -> Signal | None:
        """An alert whose hints may be for us; the same message twice is none."""
        if said in self._alerts:
            return None
        alert = breach.read_alert(data)
        is_own = said.source.rpartition("/")[2] == self._config.agent_id or self.told.raised(alert.breach_id)
        before, now_utc_s = self.sheds, arrival.now_utc_s
        results = self._shedding.take(alert, arrival.now_s, now_utc_s, may_call=not is_own)
        self._alerts.enter(said)
        if results or before or self._shedding.requests:
            self._carried_out()
        came = []
        if results:
            phase: enforcement.Phase = "reverted" if alert.status == "resolved" else "applied"
            self.told.enforced(alert, phase, results, said.trace, now_utc_s)
            came.append(f"{phase}: {enforcement.overall_code(results)} of {len(results)} hints")
        if self.sheds != before:
            came.append(CALLED if len(self.sheds) > len(before) else CALLED_NO_MORE)
        about = f"breach {alert.breach_id}"
        return Signal(now_utc_s, self.name, said.source, about, True, "; ".join(came)) if came else None

    def _judged(self, arrival: Arrival, said: Envelope | None, verdict: load_target.Verdict) -> Signal | None:
        """A repeat is a sign of life and not worth a line; the same message twice is not even that."""
        if not verdict.is_ours and said is not None:
            if self._is_sign_of_life(said, arrival):
                self.contact = self.contact._replace(heartbeat_at_s=arrival.now_s)
            return None
        if verdict.accepted and said is not None and verdict.reason != "duplicate":
            self._refusals.clear()  # the latest target is the one that counts
            if self._is_sign_of_life(said, arrival):
                self.contact = Contact(arrival.now_s, arrival.now_s)
        if verdict.accepted and verdict.reason in ("duplicate", "repeated"):
            return None
        sender = arrival.topic if said is None else said.source
        about = "" if said is None else f"load target {said.thread_id}"
        ignored = f"; not our feeds: {', '.join(verdict.ignored)}" if verdict.ignored else ""
        reason = verdict.reason + ignored
        signal = Signal(arrival.now_utc_s, self.name, sender, about, verdict.accepted, reason)
        return signal if self._refusals.note(about, signal, arrival.now_s) else None

    def _is_sign_of_life(self, said: Envelope, arrival: Arrival) -> bool:
        """What a broker had kept, or a bridge delayed, is a wish all the same, but says nothing of now."""
        pulse = self._pulses[said.source.rpartition("/")[2]]
        sent = Heartbeat(said.time_utc_s, None, None)
        return not pulse.refusal(sent, arrival.now_s, retained=arrival.retained)

    def _carried_out(self) -> None:
        self.cap_w, self.sheds = self._shedding.cap_w, self._shedding.requests
        self.revision += 1

    def _learn(self) -> None:
        self.outlook.learn(sorted(self.book.windows(NEVER_S), key=lambda one: one.starts_utc_s))
        self.revision += 1

    def _publish(self, topic: str, payload: bytes, qos: int) -> None:
        if self.wire.link is not None:
            self.wire.link.publish(topic, payload, qos, keep=True)

    # --- as every source --------------------------------------------------------------------------------

    def hold(self, setpoint_ids: frozenset[str]) -> None:
        self.book.hold(setpoint_ids)

    def overrun(self) -> None:
        """The newest message of a flood was kept, and the newest target counts."""

    def beat(self, at_s: float) -> None:
        self.wire.beat(at_s)

    def tell(self, snapshot: Snapshot, decision: Decision) -> None:
        forgotten = self._shedding.forgotten(snapshot.now_s, snapshot.now_utc_s)
        if forgotten:
            self._carried_out()
        for shed in forgotten:
            self._reverted(shed, snapshot.now_utc_s)
        self.told.beat(snapshot, decision)

    def _reverted(self, shed: Shed, at_utc_s: float) -> None:
        """Caps and calls of a breach that fell silent are gone, and nobody asked for that."""
        if shed.results:
            self.told.enforced(shed.alert, "reverted", shed.results, None, at_utc_s)
        about = f"breach {shed.alert.breach_id}"
        self.pending.append(Signal(at_utc_s, self.name, self.name, about, True, f"reverted: {SILENT}"))
        del self.pending[:-BREACHES_MAX]

    def kept(self) -> Any:
        return {
            "book": self.book.to_dict(),
            "bodies": list(self._bodies.digests),
            "alerts": self._shedding.kept(),
        }

    def alarms(self, at_s: float) -> Iterator[tuple[str, str]]:
        yield from self._refusals.alarm(self.name, at_s)
        if self.told.fault:
            yield f"status {self.name}", self.told.fault
        yield from self.wire.alarms(at_s)

    def links(self, _at_s: float) -> Iterator[Mapping[str, Any]]:
        yield from self.wire.links()

    def runs(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return self.wire.runs()
