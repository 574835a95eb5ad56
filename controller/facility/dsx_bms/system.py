"""Heartbeats on the BMS bus: ours, the integrations', and the echoes of both.

Every system tells its own clock, in ms, every ten seconds, and may tell the newest stamp of the other side
back: so each knows that the other lives, and that the way leads there and back. A stamp that does not change
is no sign of life, however often it comes.
"""

from typing import Final

from controller.facility.config import BmsConfig, BmsIntegrationConfig
from protocols.bms import GOOD, Metadata, Value, metadata_topic, request_topic, value_topic
from protocols.mqtt import Outgoing

SYSTEM: Final = "System"


class Integration:
    """A program of the IT side, as far as we hear it.

    Attributes:
        alive: its heartbeat moves.
        round_trip_s: how long our heartbeat took to it and back; None: it does not echo.
    """

    def __init__(self, name: str, config: BmsIntegrationConfig, at_s: float) -> None:
        self.name, self.config = name, config
        self.alive = True  # until it has had the time to speak
        self.round_trip_s: float | None = None
        self._heard_at_s, self._stamp = at_s, -1.0

    def beats(self, stamp: float, at_s: float) -> bool:
        """A heartbeat came; False: the same as before."""
        if stamp == self._stamp:
            return False
        self._stamp, self._heard_at_s, self.alive = stamp, at_s, True
        return True

    def falls_silent(self, at_s: float) -> bool:
        """True once, when it does."""
        if not self.alive or at_s - self._heard_at_s <= self.config.silent_after_s:
            return False
        self.alive = False
        return True


class System:
    """What there is of systems on the bus.

    Attributes:
        metadata: of all these points, as messages.
        heard: topic -> integration, and whether it is an echo of ours.
    """

    def __init__(self, config: BmsConfig, site: str) -> None:
        self._place = f"{site}/system"
        self._echo_topics: dict[str, str] = {}
        self.heard: dict[str, tuple[str, bool]] = {}
        self.metadata: list[Outgoing] = []
        own = Metadata(
            object_type=SYSTEM,
            point_type="HeartbeatTimestampBms",
            name=config.name,
            id=config.id,
            scope=f"BMS/v1/PUB/+/+/+/{site}/#",
        )
        self._own_topic = self._add(own, f"{config.id}/heartbeat")
        for name, integration in config.integrations.items():
            self._add_integration(name, integration, config)

    def beat(self, at_utc_s: float) -> Outgoing:
        """Our heartbeat."""
        stamp_ms = int(at_utc_s * 1000)
        return Outgoing(self._own_topic, Value(stamp_ms, stamp_ms, GOOD).payload())

    def echo(self, name: str, stamp: float, at_utc_s: float) -> Outgoing:
        """What an integration's heartbeat said."""
        return Outgoing(self._echo_topics[name], Value(stamp, int(at_utc_s * 1000), GOOD).payload())

    def _add_integration(self, name: str, integration: BmsIntegrationConfig, config: BmsConfig) -> None:
        title = integration.name or name
        echo = Metadata(object_type=SYSTEM, point_type="HeartbeatEchoBms", name=title, id=name)
        beat = Metadata(
            object_type=SYSTEM,
            point_type="HeartbeatTimestampIntegration",
            name=title,
            id=name,
            integration=name,
        )
        back = Metadata(
            object_type=SYSTEM,
            point_type="HeartbeatEchoIntegration",
            name=config.name,
            id=config.id,
            integration=name,
        )
        self._echo_topics[name] = self._add(echo, f"{config.id}/echo/{name}")
        self.heard[self._add(beat, f"{name}/heartbeat")] = (name, False)
        self.heard[self._add(back, f"{name}/echo/{config.id}")] = (name, True)

    def _add(self, meta: Metadata, tail: str) -> str:
        """Its metadata, for later; returns the topic of its value."""
        of = (meta.object_type, meta.point_type, f"{self._place}/{tail}")
        self.metadata.append(Outgoing(metadata_topic(*of), meta.payload(), 0, retain=True))
        return request_topic(meta.integration, *of) if meta.integration else value_topic(*of)
