"""What the block answers in the words of DSX Flex: where every feed is, and when it is over its target.

Told in the beat, from what the law decided and the meter measured: a status on every transition and on a
slower beat of its own, an alert when a feed stays above its line. While a ramp is agreed that line is the
ramp, not its end. A feed's power is its share of the block's, by the block's meter; unmetered is unknown,
and unknown is never called compliant.

A status that a command caused carries the trace of that command; any other begins a trace of its own.
"""

import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import structlog

from controller.core.model import NO_LIMIT_W, Decision, Settings, Snapshot
from controller.site.config import DsxFlexConfig
from controller.site.keys import KeyFile
from controller.site.policy import Policy, block_w
from protocols.dsx_flex import breach, enforcement, envelope, power_state, signing, topics
from protocols.dsx_flex.breach_watch import BreachWatch
from protocols.dsx_flex.envelope import Envelope, Trace
from protocols.dsx_flex.load_target import LoadTargetBook, Window
from protocols.dsx_flex.wire import DsxFlexError

TRACES_MAX: Final = 64  # commands whose trace is remembered
OWN_MAX: Final = 64  # breaches that we raised, and know again when somebody repeats them
HINTS_MAX: Final = 64  # nodes named in an alert, those that can give most first
METER_AGE_MAX_S: Final = 2.0
STILL_RATIO: Final = 2e-4  # of the feed rating: a cooling capacity that is measured moves the aim a little

log = structlog.get_logger(__name__)


class Told:
    """The agent's mouth.

    Args:
        config: of the source.
        settings: of the block.
        policy: feeds and their shares.
        book: what is asked of them.
        signer: None: nobody here signs.
        publish: takes topic, payload, QoS.
    """

    def __init__(
        self,
        config: DsxFlexConfig,
        settings: Settings,
        policy: Policy,
        book: LoadTargetBook,
        signer: KeyFile[signing.Signer] | None,
        publish: Callable[[str, bytes, int], None],
    ) -> None:
        self._config, self._feeds, self._book = config, policy.feeds, book
        self._signer, self._publish = signer, publish
        self._settings = settings
        most_w = min(settings.feed_rating_w, block_w(settings, settings.topology.gpu_max_w))
        least_w = block_w(settings, settings.topology.gpu_min_w)
        self._rating = power_state.FeedRating(least_w, most_w, most_w)
        self._events = {feed: power_state.PowerEvents(period_s=config.period_s) for feed in self._feeds}
        self._breaches = {feed: BreachWatch(feed) for feed in self._feeds}
        self._own: dict[str, None] = {}  # breach ids, the oldest first
        self._said: dict[str, power_state.Happening] = {}
        self._traces: dict[str, Trace] = {}
        self._newest = ""  # correlation id of the newest command
        self._aim_w = NO_LIMIT_W
        self._untold: dict[str, str] = {}  # why, by message type, until the next one of it is told

    def caused_by(self, said: Envelope) -> None:
        """A command that changed what is asked: what follows from it carries its trace."""
        self._newest = said.thread_id
        self._traces[said.thread_id] = said.trace
        while len(self._traces) > TRACES_MAX:
            del self._traces[next(iter(self._traces))]

    def raised(self, breach_id: str) -> bool:
        """Whether that breach is one of those that we have raised."""
        return breach_id.lower() in self._own

    @property
    def fault(self) -> str:
        """What could not be told; empty: nothing."""
        return "; ".join(self._untold.values())

    def beat(self, snapshot: Snapshot, decision: Decision) -> None:
        """Where every feed is; silent where another source tells in this agent's name."""
        if not self._config.tells:
            return
        meter = snapshot.meter
        metered_w = meter.value if meter.is_usable(snapshot.now_s, METER_AGE_MAX_S) else None
        direction = self._direction(decision)
        for feed, share in self._feeds.items():
            feed_w = None if metered_w is None else metered_w * share
            target = self._book.effective(feed, snapshot.now_utc_s)
            self._events[feed], happenings = self._events[feed].step(
                now_s=snapshot.now_s,
                now_utc_s=snapshot.now_utc_s,
                metered_w=feed_w,
                target_w=None if target is None else target.limit_w,
                direction=direction,
                revision=self._book.revision,
            )
            for happening in happenings:
                self._said[feed] = happening
                self._tell_state(snapshot, decision.budget_w if metered_w is None else metered_w, target)
            self._watch(feed, snapshot, decision, feed_w, target)

    def _direction(self, decision: Decision) -> power_state.Direction:
        """Where our limits move the block. A budget that rises over GPUs at their most moves nothing."""
        moved_w = decision.state.pace.aim_w - self._aim_w
        if abs(moved_w) < STILL_RATIO * self._settings.feed_rating_w:
            return "steady"
        known, self._aim_w = self._aim_w < NO_LIMIT_W, decision.state.pace.aim_w
        if not known:
            return "steady"
        if moved_w < 0.0:
            return "down"
        held = np.any(decision.gpu_limits_w < self._settings.topology.gpu_max_w)
        return "up" if held else "steady"

    # --- where every feed is ------------------------------------------------------------------------------

    def _tell_state(self, snapshot: Snapshot, load_w: float, target: Window | None) -> None:
        windows = self._book.windows(snapshot.now_utc_s)
        feeds = {
            feed: power_state.FeedState(
                rating=replace(
                    self._rating,
                    power_min_w=self._rating.power_min_w * share,
                    power_max_w=self._rating.power_max_w * share,
                    default_w=self._rating.default_w * share,
                ),
                windows=tuple(one for one in windows if one.feed == feed),
                calculated_load_w=load_w * share,
                happening=self._said.get(feed, power_state.Happening("periodic", False, None, True)),
            )
            for feed, share in self._feeds.items()
        }
        thread = target.correlation_id if target is not None else self._newest
        make = partial(power_state.data, feeds, snapshot.now_utc_s)
        self._send(topics.POWER_STATE_STATUS, make, snapshot.now_utc_s, thread)

    # --- over the target ----------------------------------------------------------------------------------

    def _watch(
        self,
        feed: str,
        snapshot: Snapshot,
        decision: Decision,
        feed_w: float | None,
        target: Window | None,
    ) -> None:
        line_w = None if target is None else max(target.limit_w, decision.budget_w * self._feeds[feed])
        thread = self._newest if target is None else target.correlation_id
        self._breaches[feed], alert = self._breaches[feed].step(
            now_s=snapshot.now_s,
            now_utc_s=snapshot.now_utc_s,
            metered_w=feed_w,
            target_w=line_w,
            correlation_id=thread,
            make_breach_id=self._breach_id,
        )
        if alert is not None:
            # What GPUs cannot give, only a host that goes off can; feeds and breakers are for people to cut.
            stuck = alert.severity == "critical" and decision.shortfall_w > 0.0
            advised = replace(
                alert,
                hints=self._hints(snapshot),
                infrastructure_actions=("SHUTDOWN_NODES",) if stuck else (),
            )
            make = partial(breach.alert_data, advised)
            self._send(topics.POWER_BREACH_ALERT, make, snapshot.now_utc_s, thread)

    def _breach_id(self) -> str:
        breach_id = str(uuid.uuid4())
        self._own[breach_id] = None
        if len(self._own) > OWN_MAX:
            del self._own[next(iter(self._own))]
        return breach_id

    def _hints(self, snapshot: Snapshot) -> tuple[breach.ShedHint, ...]:
        """Nodes that could still give, the light tiers and the hungry first."""
        topology, gain = self._settings.topology, self._settings.block_w_per_gpu_w
        nodes = len(topology.node_names)
        least_w = gain * np.bincount(topology.gpu_node, topology.gpu_min_w, nodes)
        drawn_w = gain * np.bincount(topology.gpu_node, np.nan_to_num(snapshot.gpus.power_w), nodes)
        weight = np.bincount(topology.gpu_node, topology.gpu_weight, nodes)
        first = [node for node in np.lexsort((least_w - drawn_w, weight)) if drawn_w[node] > least_w[node]]
        return tuple(
            breach.ShedHint(
                resource_id=topology.node_names[node],
                resource_type="node",
                action="power_cap",
                priority=number,
                target_w=float(least_w[node]),
            )
            for number, node in enumerate(first[:HINTS_MAX], start=1)
        )

    def enforced(
        self,
        alert: breach.Alert,
        phase: enforcement.Phase,
        results: tuple[enforcement.Result, ...],
        trace: Trace | None,
        now_utc_s: float,
    ) -> None:
        """What came of somebody's shed hints, in the name of the infrastructure. trace: None: of its own."""
        done = enforcement.Enforcement.of(alert, phase, results, done_utc_s=now_utc_s)
        make = partial(enforcement.enforcement_data, done)
        self._send(topics.POWER_BREACH_ENFORCEMENT, make, now_utc_s, alert.correlation_id, trace)

    # --- on the wire --------------------------------------------------------------------------------------

    def _send(
        self,
        message_type: str,
        make: Callable[[], Mapping[str, Any]],
        now_utc_s: float,
        thread: str,
        trace: Trace | None = None,
    ) -> None:
        """Sign and publish. What cannot be said must not stop the beat; it is our fault, and an alarm."""
        config, channel = self._config, topics.CHANNELS[message_type]
        name = config.infra_id if channel.role == "infra" else config.agent_id
        assert name is not None  # nobody carries hints out without a name
        cause = trace or self._traces.get(thread)
        try:
            data = make()
            message = Envelope(
                id=str(uuid.uuid4()),
                source=topics.source(channel.role, name, agent_spelling=config.role),
                type=message_type,
                time_utc_s=now_utc_s,
                trace=cause or envelope.start_trace(secrets.token_bytes(envelope.ENTROPY_BYTES)),
                data=data if self._signer is None else self._signer.current().sign(data),
                correlation_id=thread or None,
            )
            payload = envelope.write(message)
        except DsxFlexError as error:
            log.error("not told", type=message_type, why=str(error))
            self._untold[message_type] = f"{message_type} could not be told: {error}"
            return
        self._untold.pop(message_type, None)
        topic = topics.topic(message_type, name, agent_spelling=config.role)
        self._publish(topic, payload, min(channel.qos, self._config.alert_qos))
