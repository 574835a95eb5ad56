"""A DSX Flex ISV: the grid operator's side of NVIDIA's bus, and its ears.

It sets load targets, signed with ES256, in CloudEvents envelopes, on `grid/v1/isv/{id}/loadtarget/set`. And
it listens to what the site's agent answers: power states and breaches, whose signature, source and shape it
checks before it believes them. What it heard is kept for the verdict.

DSX Exchange asks everybody to publish on change and to repeat periodically, in values and not in deltas. So
each message carries the whole wish: first what was withdrawn and would still run (null over its span), then
the standing targets, oldest first, since for any moment the latest one counts. It is repeated every second,
each time as a message with an id of its own: the contract has no heartbeat, and this is one. Start and end
are always written out, else each repetition would begin anew. With nothing to wish for the message is a null
without end: "no limit from me". The correlation id belongs to the wish: it changes with it, not with the
repetitions.

Source: github.com/NVIDIA/dsx-exchange, schemas/asyncapi/dsx-flex/dsx-flex.yaml, version 1.7.0.
"""

import asyncio
import json
import secrets
import ssl
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import uuid4

import aiomqtt
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, GuestProtocol
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from firmware_sim.grid_operator import KEEPALIVE_S, NODELAY, PUBLISH_WAIT_MAX_S, RECONNECT_WAIT_S, GridEvent
from firmware_sim.lifetime import end_tasks
from firmware_sim.scenario import StatusEvent

REPEAT_S: Final = 1.0
HEARD_MAX: Final = 10_000  # an hour at two statuses a second, and the reasons why others were not believed
DATA_MAX_BYTES: Final = 256 * 1024  # a breach with a hint for each of 1,152 GPUs takes 200 kB
ALGORITHM: Final = "ES256"
LOAD_TARGET_SET: Final = "grid.loadtarget.set.v1"
POWER_STATE_STATUS: Final = "grid.powerstate.status.v1"
POWER_BREACH_ALERT: Final = "grid.powerbreach.alert.v1"
UNITS_W: Final = {"watt": 1.0, "kilowatt": 1e3, "megawatt": 1e6}
TRACEPARENT: Final = r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"

Json = dict[str, Any]

_REGISTRY: Final = jws.JWSRegistry(algorithms=[ALGORITHM])
_REGISTRY.max_payload_length = DATA_MAX_BYTES  # the library's own bound is 8,000


def load_target_topic(isv_id: str) -> str:
    return f"grid/v1/isv/{isv_id}/loadtarget/set"


def agent_topics(agent_id: str) -> dict[str, str]:
    """Topic -> type of what an agent says there."""
    stem = f"grid/v1/dsx-flex-agent/{agent_id}"
    return {f"{stem}/powerstate/status": POWER_STATE_STATUS, f"{stem}/powerbreach": POWER_BREACH_ALERT}


# ---- what an agent says, as far as it matters here ------------------------------------------------------


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True)  # more may stand in a message than is read here


class Power(_Said):
    value: float = Field(ge=0, allow_inf_nan=False)
    unit: Literal[tuple(UNITS_W)]  # type: ignore[valid-type]

    @property
    def w(self) -> float:
        return self.value * UNITS_W[self.unit]


class TargetSaid(_Said):
    active: bool
    load_constraint: Power
    correlation_id: str


class FeedSaid(_Said):
    targets: tuple[TargetSaid, ...]
    calculated_load: Power
    in_flight: bool
    event: StatusEvent
    compliant: bool


class StatusData(_Said):
    snapshot_time: AwareDatetime
    feeds: dict[str, FeedSaid]


class BreachId(_Said):
    breach_id: str


class BreachData(_Said):
    feed_tag: str
    status: Literal["active", "escalated", "resolved"]
    severity: Literal["warning", "critical"]
    breach: BreachId
    measured_load: Power


class EnvelopeSaid(_Said):
    specversion: Literal["1.0.2"]
    id: str
    source: str
    type: str
    time: AwareDatetime
    datacontenttype: Literal["application/json"]
    subject: str
    traceparent: str = Field(pattern=TRACEPARENT)
    data: str  # unsigned data is an object, and not believed


@dataclass(frozen=True)
class Status:
    """What an agent said about one feed."""

    heard_utc_s: float
    feed: str
    event: StatusEvent
    in_flight: bool
    compliant: bool
    calculated_load_w: float
    active_w: float | None  # target in force; None: none
    correlation_id: str  # of that target


@dataclass(frozen=True)
class Breach:
    heard_utc_s: float
    feed: str
    breach_id: str
    status: str
    severity: str
    measured_w: float


@dataclass(frozen=True)
class Refused:
    """A message of the agent that could not be believed, and why."""

    heard_utc_s: float
    topic: str
    reason: str


class NotBelievedError(ValueError):
    """A message that may be sound, but not from the one who may send it."""


# ---- the ISV --------------------------------------------------------------------------------------------


class Isv:
    """One ISV at one broker; `run()` for as long as it is in business.

    Args:
        host: of the broker.
        port: of the broker.
        tls: for a broker that speaks TLS, with the ISV's own certificate.
        isv_id: its name on the bus.
        kid: names its key in signatures.
        key: its private key, P-256.
        agent_id: whom it listens to.
        agent_keys: kid -> public key of that agent.
        feed_tags: which of the site's feeds it speaks of.
        alert_qos: of its subscription to breaches; 2, except for brokers that know no QoS 2.

    Attributes:
        silent: fault: nothing leaves the house.
        statuses: believed, oldest first.
        breaches: believed, oldest first.
        refused: not believed.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        isv_id: str,
        kid: str,
        key: ECKey,
        agent_id: str,
        agent_keys: Mapping[str, ECKey],
        feed_tags: tuple[str, ...],
        alert_qos: int = 2,
    ) -> None:
        self.silent = False
        self.statuses: deque[Status] = deque(maxlen=HEARD_MAX)
        self.breaches: deque[Breach] = deque(maxlen=HEARD_MAX)
        self.refused: deque[Refused] = deque(maxlen=HEARD_MAX)
        self._host, self._port, self._tls = host, port, tls
        self._source = f"//grid/v1/isv/{isv_id}"
        self._topic = load_target_topic(isv_id)
        self._kid, self._key = kid, key
        self._agent_source = f"//grid/v1/dsx-flex-agent/{agent_id}"
        self._agent_topics = agent_topics(agent_id)
        self._agent_keys = dict(agent_keys)
        self._feed_tags = list(feed_tags)
        self._alert_qos = alert_qos
        self._standing: dict[str, GridEvent] = {}
        self._withdrawn: dict[str, GridEvent] = {}  # until they would have ended
        self._correlation_id = str(uuid4())
        self._client: aiomqtt.Client | None = None

    async def publish(self, event: GridEvent) -> bool:
        """Set or change a target; False: nobody could hear it now, it goes out with the next repetition."""
        self._standing.pop(event.id, None)  # the latest stands last
        self._standing[event.id] = event
        self._withdrawn.pop(event.id, None)
        return await self._wish_anew()

    async def cancel(self, event_id: str) -> bool:
        """Withdraw a target."""
        self._withdrawn[event_id] = self._standing.pop(event_id)
        return await self._wish_anew()

    def targets(self, now_utc_s: float) -> list[Json]:
        """The whole wish, as a message carries it."""
        gone, wanted = (
            [event for event in events.values() if event.ends_utc_s() > now_utc_s]
            for events in (self._withdrawn, self._standing)
        )
        nothing: Json = {"interval": {}, "feed_tags": self._feed_tags, "load_constraint": None}
        return [
            *(nothing | {"interval": _interval(event)} for event in gone),
            *(
                {
                    "interval": _interval(event),
                    "feed_tags": self._feed_tags,
                    "load_constraint": {"value": event.limit_kw, "unit": "kilowatt"},
                    "strategy": {"best_effort": False},
                }
                for event in wanted
            ),
        ] or [nothing]

    def message(self, now_utc_s: float) -> Json:
        """The envelope around it, signed, with an id of its own."""
        data = json.dumps({"targets": self.targets(now_utc_s)})
        return {
            "specversion": "1.0.2",
            "id": str(uuid4()),
            "source": self._source,
            "type": LOAD_TARGET_SET,
            "time": _rfc3339(now_utc_s),
            "datacontenttype": "application/json",
            "subject": "loadtarget",
            "traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
            "correlationid": self._correlation_id,
            "data": jws.serialize_compact({"alg": ALGORITHM, "kid": self._kid}, data, self._key),
        }

    async def run(self) -> None:
        """Keep the connection, listen, and repeat the wish; after every reconnect it goes out first."""
        while True:
            with suppress(aiomqtt.MqttError):
                await self._one_session()
            await asyncio.sleep(RECONNECT_WAIT_S)

    async def _one_session(self) -> None:
        async with aiomqtt.Client(
            self._host,
            self._port,
            keepalive=KEEPALIVE_S,
            timeout=PUBLISH_WAIT_MAX_S,
            tls_context=self._tls,
            socket_options=NODELAY,
        ) as client:
            granted = {POWER_STATE_STATUS: 1, POWER_BREACH_ALERT: self._alert_qos}
            await client.subscribe([(topic, granted[kind]) for topic, kind in self._agent_topics.items()])
            self._client = client
            tasks = [asyncio.create_task(self._listen(client)), asyncio.create_task(self._repeat())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._client = None
                await end_tasks(tasks)  # raises what broke the session

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            self.hear(message.topic.value, message.payload, time.time())

    async def _repeat(self) -> None:
        while True:
            await self._say(required=True)
            await asyncio.sleep(REPEAT_S)

    async def _wish_anew(self) -> bool:
        self._correlation_id = str(uuid4())
        return await self._say()

    async def _say(self, *, required: bool = False) -> bool:
        if self.silent or self._client is None:
            return False
        message = json.dumps(self.message(time.time()))
        try:
            await self._client.publish(self._topic, message, qos=1, timeout=PUBLISH_WAIT_MAX_S)
        except aiomqtt.MqttError:
            if required:
                raise
            return False
        return True

    # ---- ears -----------------------------------------------------------------------------------------

    def hear(self, topic: str, payload: bytes, now_utc_s: float) -> None:
        """Take in a message of the agent, or remember why not."""
        try:
            self._believe(topic, payload, now_utc_s)
        except (JoseError, ValueError) as error:  # pydantic's are ValueErrors, too
            self.refused.append(Refused(now_utc_s, topic, " ".join(str(error).split())))

    def _believe(self, topic: str, payload: bytes, now_utc_s: float) -> None:
        envelope = EnvelopeSaid.model_validate_json(payload)
        if envelope.type != self._agent_topics[topic]:
            raise NotBelievedError(f"type {envelope.type} on the topic of {self._agent_topics[topic]}")
        if envelope.source != self._agent_source:
            raise NotBelievedError(f"source {envelope.source} on the topic of {self._agent_source}")
        data = self._opened(envelope.data)
        if envelope.type == POWER_BREACH_ALERT:
            self.breaches.append(_breach(BreachData.model_validate_json(data), now_utc_s))
        else:
            self.statuses.extend(_statuses(StatusData.model_validate_json(data), now_utc_s))

    def _opened(self, compact: str) -> bytes:
        return jws.deserialize_compact(compact, self._agent_key, registry=_REGISTRY).payload

    def _agent_key(self, signature: GuestProtocol) -> ECKey:
        kid = str(signature.headers().get("kid"))
        if kid not in self._agent_keys:
            raise NotBelievedError(f"kid {kid!r} is unknown; known: {', '.join(self._agent_keys)}")
        return self._agent_keys[kid]


def missing_events(heard: list[StatusEvent], expected: tuple[StatusEvent, ...]) -> tuple[StatusEvent, ...]:
    """What of `expected` did not come in this order; others may come between."""
    rest = iter(heard)
    found = 0
    while found < len(expected) and expected[found] in rest:
        found += 1
    return expected[found:]


def _statuses(said: StatusData, now_utc_s: float) -> list[Status]:
    heard = []
    for tag, feed in said.feeds.items():
        active = next((target for target in feed.targets if target.active), None)
        heard.append(
            Status(
                heard_utc_s=now_utc_s,
                feed=tag,
                event=feed.event,
                in_flight=feed.in_flight,
                compliant=feed.compliant,
                calculated_load_w=feed.calculated_load.w,
                active_w=None if active is None else active.load_constraint.w,
                correlation_id="" if active is None else active.correlation_id,
            )
        )
    return heard


def _breach(said: BreachData, now_utc_s: float) -> Breach:
    return Breach(
        now_utc_s, said.feed_tag, said.breach.breach_id, said.status, said.severity, said.measured_load.w
    )


def _interval(event: GridEvent) -> Json:
    interval = {"start_time": _rfc3339(event.starts_utc_s)}
    if event.duration_s is not None:
        interval["end_time"] = _rfc3339(event.ends_utc_s())
    return interval


def _rfc3339(utc_s: float) -> str:
    return datetime.fromtimestamp(utc_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
