"""The grid operator: OpenADR 3.1 notifications over MQTT, and a heartbeat that says what is in force.

An event is published as the notification object of OpenADR 3.1 (objectType EVENT, operation CREATE, UPDATE
or DELETE) on the topic the site configured. OpenADR has no heartbeat, so the operator adds one of its own,
once a second: when it was sent, a sequence number, and the ids of all events it stands by (in force or to
come). An empty list is therefore a statement, too: "no limit from me".

Whoever connects late or comes back after an outage must not be left with what it remembers: after every
reconnect the operator publishes its events again (a VEN would GET them from the VTN).
"""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiomqtt

HEARTBEAT_PERIOD_S: Final = 1.0
RECONNECT_WAIT_S: Final = 0.25
PUBLISH_WAIT_MAX_S: Final = 2.0
KEEPALIVE_S: Final = 5
PROGRAM_ID: Final = "powerblock-demo"
ALERT_TEXT: Final = "an exercise of the rig"
INFINITE: Final = "P9999Y"  # OpenADR's infinity
NODELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)  # else the first bursts stall for 40 ms

EVENT_TYPES: Final = ("IMPORT_CAPACITY_LIMIT", "DISPATCH_SETPOINT")  # what carries a power
ALERT_TYPES: Final = ("ALERT_GRID_EMERGENCY", "ALERT_BLACK_START", "ALERT_POSSIBLE_OUTAGE")  # and words


@dataclass(frozen=True, kw_only=True)
class GridEvent:
    """One OpenADR event with a single interval. `limit_kw`: None: an alert, in words."""

    id: str
    type: str
    limit_kw: float | None
    starts_utc_s: float
    duration_s: float | None  # None: until cancelled
    priority: int = 0

    def ends_utc_s(self) -> float:
        return float("inf") if self.duration_s is None else self.starts_utc_s + self.duration_s


class GridOperator:
    """Publishes to one broker; `run()` for as long as the operator is in business.

    Args:
        host: of the broker.
        port: of the broker.
        tls: for a broker that speaks TLS, with the operator's own certificate where it asks for one.
        event_topic: for notifications.
        heartbeat_topic: for heartbeats.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        event_topic: str,
        heartbeat_topic: str,
    ) -> None:
        self.silent = False  # fault: neither heartbeats nor events leave the house
        self._host, self._port, self._tls = host, port, tls
        self._event_topic, self._heartbeat_topic = event_topic, heartbeat_topic
        self._events: dict[str, GridEvent] = {}
        self._client: aiomqtt.Client | None = None
        self._seq = 0

    @property
    def standing(self) -> tuple[str, ...]:
        """Ids of the events it stands by: in force or to come."""
        now_utc_s = time.time()
        return tuple(event.id for event in self._events.values() if event.ends_utc_s() > now_utc_s)

    async def publish(self, event: GridEvent) -> bool:
        """Announce or change an event; False: nobody could hear it now, it goes out on reconnect."""
        operation = "UPDATE" if event.id in self._events else "CREATE"
        self._events[event.id] = event
        return await self._send(self._event_topic, notification(event, operation))

    async def cancel(self, event_id: str) -> bool:
        """Withdraw an event."""
        event = self._events.pop(event_id)
        return await self._send(self._event_topic, notification(event, "DELETE"))

    async def run(self) -> None:
        """Keep the connection, beat, and repeat standing events after every reconnect."""
        while True:
            try:
                async with aiomqtt.Client(
                    self._host,
                    self._port,
                    keepalive=KEEPALIVE_S,
                    timeout=PUBLISH_WAIT_MAX_S,
                    tls_context=self._tls,
                    socket_options=NODELAY,
                ) as client:
                    self._client = client
                    await self._beat()
            except aiomqtt.MqttError:
                await asyncio.sleep(RECONNECT_WAIT_S)
            finally:
                self._client = None

    async def _beat(self) -> None:
        for event_id in self.standing:
            await self._send(self._event_topic, notification(self._events[event_id], "CREATE"), required=True)
        while True:
            self._seq += 1
            sent_at = _rfc3339(time.time())
            beat = {"sent_at": sent_at, "seq": self._seq, "event_ids": list(self.standing)}
            await self._send(self._heartbeat_topic, beat, required=True)
            await asyncio.sleep(HEARTBEAT_PERIOD_S)

    async def _send(self, topic: str, message: Mapping[str, Any], *, required: bool = False) -> bool:
        if self.silent or self._client is None:
            return False
        try:
            await self._client.publish(topic, json.dumps(message), qos=1, timeout=PUBLISH_WAIT_MAX_S)
        except aiomqtt.MqttError:
            if required:
                raise
            return False
        return True


def notification(event: GridEvent, operation: str) -> dict[str, Any]:
    """The OpenADR 3.1 notification object that carries `event`."""
    now = _rfc3339(time.time())
    dates = {"createdDateTime": now, "modificationDateTime": now}
    return {"objectType": "EVENT", "operation": operation, "object": event_object(event) | dates}


def event_object(event: GridEvent) -> dict[str, Any]:
    """The OpenADR 3.1 event, without the dates that whoever keeps it gives it."""
    duration = INFINITE if event.duration_s is None else f"PT{event.duration_s:g}S"
    descriptor = {"objectType": "EVENT_PAYLOAD_DESCRIPTOR", "payloadType": event.type}
    if event.limit_kw is not None:
        descriptor["units"] = "KW"
    said = ALERT_TEXT if event.limit_kw is None else event.limit_kw
    return {
        "id": event.id,
        "objectType": "EVENT",
        "programID": PROGRAM_ID,
        "priority": event.priority,
        "intervalPeriod": {"start": _rfc3339(event.starts_utc_s), "duration": duration},
        "payloadDescriptors": [descriptor],
        "intervals": [{"id": 0, "payloads": [{"type": event.type, "values": [said]}]}],
    }


def _rfc3339(utc_s: float) -> str:
    return datetime.fromtimestamp(utc_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
