"""The MQTT side of a source: its topics, the heartbeat of the site's application, and a canary.

The connection is the block's own, or one to the site's broker where the configuration names one: loss of the
north must not touch the loop in the south. A connection that stands proves little: a broker grants a
subscription even where its access list denies reading, and a frozen one takes several keepalives to notice.
So life is judged by the application's heartbeat alone, and the canary says whether what is sent also arrives.

A heartbeat may list the events that the site stands by. If all of them are known, that is a statement of the
plan as well, and an empty list means "no limit from me". One that is not known never arrived. One that stands
here and is listed no more may have been deleted while nobody heard it; that is said, and releases nothing.
"""

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any, Final

from paho.mqtt.client import topic_matches_sub

from controller.core.model import Contact
from controller.site.config import MqttSourceConfig
from controller.site.heartbeat import Pulse
from controller.site.source import Arrival
from protocols import openadr
from protocols.canary import Canary
from protocols.mqtt import MqttLink, Subscription

UNWATCHED_TIMEOUT_S: Final = 5.0  # of a heartbeat that nobody waits for: what counts as old

UNLISTED_MAX: Final = 5  # heartbeats in a row without it: an end that two clocks see apart, or one on its way
NAMES_SHOWN_MAX: Final = 8  # in an alarm


class MqttWire:
    """Heartbeat, canary and connection of one source.

    Args:
        config: of the source.
        block: names us at a broker of its own.
        subscriptions: of the source's own topics.
        on_message: called as (topic, payload, retained), in the event loop.
        on_oversized: called as (topic, size_bytes) for what was too large to be read.

    Attributes:
        subscriptions: for whoever owns the connection.
        is_own: the connection is the source's own.
        link: the connection; the block's own is put here by its owner.
        unknown_events: what the heartbeat lists and never arrived.
        unlisted_events: what stands here, and how many heartbeats in a row have not listed it.
    """

    def __init__(
        self,
        config: MqttSourceConfig,
        block: str,
        subscriptions: tuple[Subscription, ...],
        on_message: Callable[[str, bytes, bool], None],
        on_oversized: Callable[[str, int], None],
    ) -> None:
        topics = [Subscription(topic, 1) for topic in (config.heartbeat_topic,) if topic is not None]
        canary_topics = [Subscription(topic) for topic in (config.canary_topic,) if topic is not None]
        self.subscriptions = (*subscriptions, *topics, *canary_topics)
        self.link: MqttLink | None = None
        self.unknown_events: frozenset[str] = frozenset()
        self.unlisted_events: Mapping[str, int] = {}
        self._name = config.name
        self._heartbeat_topic, self._canary_topic = config.heartbeat_topic, config.canary_topic
        self._pulse = Pulse(config.heartbeat_timeout_s or UNWATCHED_TIMEOUT_S)
        self._canary = (
            None
            if config.canary_topic is None
            else Canary(config.canary_topic, nonce=lambda: secrets.token_hex(8))
        )
        self.is_own = config.mqtt is not None
        if config.mqtt is not None:
            self.link = MqttLink(
                config.mqtt.url,
                client_id=f"powerblock-{block}-{config.name}",
                on_message=on_message,
                on_oversized=on_oversized,
                on_connect=self.connected,
                subscriptions=self.subscriptions,
                username=config.mqtt.username,
                password=config.mqtt.password(),
                tls=config.mqtt.tls(),
            )

    def takes(self, topic: str) -> bool:
        """Whether a message of that topic is for this source."""
        return any(topic_matches_sub(subscription.topic, topic) for subscription in self.subscriptions)

    def is_heartbeat(self, topic: str) -> bool:
        return topic == self._heartbeat_topic

    def is_canary(self, topic: str) -> bool:
        return topic == self._canary_topic

    def hear_canary(self, arrival: Arrival) -> None:
        if self._canary is not None:
            self._canary.heard(arrival.payload, arrival.now_s)

    def heartbeat(
        self,
        arrival: Arrival,
        known: frozenset[str],
        contact: Contact,
        standing: frozenset[str] = frozenset(),
    ) -> tuple[Contact, str]:
        """The contact after a heartbeat, and why it was refused; empty: it was not.

        Args:
            arrival: the message.
            known: events that it may list.
            contact: before it.
            standing: events in force or to come, which it should list.
        """
        try:
            heartbeat = openadr.parse_heartbeat(arrival.payload)
        except openadr.OpenAdrError as error:
            return contact, f"heartbeat: {error}"
        refusal = self._pulse.refusal(heartbeat, arrival.now_s, retained=arrival.retained)
        if refusal:
            return contact, refusal
        plan_at_s = contact.plan_at_s
        if heartbeat.event_ids is not None:
            self.unknown_events = heartbeat.event_ids - known
            self.unlisted_events = {
                one: self.unlisted_events.get(one, 0) + 1 for one in standing - heartbeat.event_ids
            }
            if not self.unknown_events:
                plan_at_s = arrival.now_s
        return Contact(arrival.now_s, plan_at_s), ""

    def connected(self) -> None:
        """A new connection: what the last one carried says nothing about this one."""
        if self._canary is not None:
            self._canary.forget()

    def beat(self, now_s: float) -> None:
        """Send the canary when it is time."""
        if self._canary is None or self.link is None or not self.link.connected:
            return
        probe = self._canary.due(now_s)
        if probe is not None:
            assert self._canary_topic is not None
            self.link.publish(self._canary_topic, probe)

    def alarms(self, now_s: float) -> Iterator[tuple[str, str]]:
        link = self.link
        if link is not None and link.connected:
            yield from self._unheard(link, now_s)
        elif link is not None and self.is_own and link.called:
            yield f"broker {self._name}", link.fault
        if doubts := "; ".join(self._doubts()):
            yield f"plan {self._name}", f"{self._name} {doubts}"

    def runs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {f"broker {self._name}": self.link.run} if self.is_own and self.link is not None else {}

    def _doubts(self) -> Iterator[str]:
        """Where the site's plan and what stands here part."""
        if self.unknown_events:
            yield f"names events that never arrived: {_names(self.unknown_events)}; ask it to send them again"
        gone = [one for one, count in self.unlisted_events.items() if count >= UNLISTED_MAX]
        if gone:
            yield f"no longer lists {_names(gone)}, which stands here; if it is over, let the site delete it"

    def _unheard(self, link: MqttLink, now_s: float) -> Iterator[tuple[str, str]]:
        """What a connection that stands does not let through."""
        if any(topic in link.denied for topic, _ in self.subscriptions):
            yield f"broker {self._name}", f"broker {link.address} {link.denial}"
        if self._canary is not None and (fault := self._canary.fault(now_s)):
            yield f"canary {self._name}", fault

    def links(self) -> Iterator[Mapping[str, Any]]:
        if self.is_own and self.link is not None:
            yield {"name": self._name, "up": self.link.connected, "fault": self.link.fault, "age_s": None}


def _names(events: Collection[str]) -> str:
    first, more = sorted(events)[:NAMES_SHOWN_MAX], len(events) - NAMES_SHOWN_MAX
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")
