"""One supervised MQTT connection that carries newest values, both ways, and never gets in the way.

Nearly everything this project sends over MQTT is complete in itself: an order, a report, a status. So the
newest message of a topic is worth more than all before it, and a queue is a fault waiting for an outage:
* `publish` returns at once. What waits for the broker is one message per topic, the newest; one batch at a
  time is on the wire, so a broker that stalls holds back a bounded number of bytes and never a caller;
* what is worth sending each (alerts, transitions) is published with `keep`: in order, a bounded number;
* a message that the broker will not have, and hangs up over, costs a few reconnects and then itself alone
  (seen with nats-server 2.9: QoS 2, and dots and blanks in topics);
* `on_message` runs inside the socket's read event: no queue stands between wire and caller;
* sessions are clean. A persistent session replays old QoS 1 commands after an outage, indistinguishable
  from fresh ones (seen with mosquitto 2.0.11); here we subscribe anew after every connect;
* TCP_NODELAY is set, or bursts stall for 40 ms. The broker needs it as well: `set_tcp_nodelay true`.
`run` ends only by cancellation or by a fault of the program: an outage is data (`connected`, `fault`).
"""

import asyncio
import contextlib
import itertools
import logging
import random
import re
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiomqtt
import paho.mqtt.client as paho
import structlog
from aiomqtt.exceptions import MqttConnectError

PAYLOAD_MAX_BYTES: Final = 256 * 1024  # a plan of 1,000 windows is half of it; MQTT itself allows 256 MB
TEXT_MAX_BYTES: Final = 65_535  # of a topic or user name: MQTT counts them in 16 bits
OUTBOX_TOPICS_MAX: Final = 2048  # a block of 1,152 GPUs has at most one node per GPU, and a few status topics
KEPT_MESSAGES_MAX: Final = 1024  # a day of transitions, an hour of alerts; older ones make room
POST_QOS_MAX: Final = 1  # mosquitto 2.0.11 confirms a burst of QoS 2 and loses part of it (seen)
REFUSALS_MAX: Final = 3  # short sessions in a row: then, for SESSION_STABLE_S, messages go one by one
CONNECT_WAIT_MAX_S: Final = 2.0  # a broker of this block is one switch away; also bounds a clean stop
REPLY_WAIT_MAX_S: Final = 2.0  # CONNACK, SUBACK, PUBACK: thousands of times the usual 0.5 ms
KEEPALIVE_S: Final = 5  # a frozen broker is seen within twice this; a dead one within a millisecond
BACKOFF_MIN_S: Final = 0.05  # a broker that restarts is back in 20 ms
BACKOFF_MAX_S: Final = 2.0  # longer would waste more of a lease than it saves the broker
SESSION_STABLE_S: Final = 5.0  # a session this long was a good one: the back-off starts over
READ_TURN_PACKETS_MAX: Final = 64  # under a flood: 1 ms of reading, then the rest of the loop has its turn
UNCONFIRMED: Final = (
    f"does not answer, nor confirm what we publish, for {REPLY_WAIT_MAX_S:g} s: "
    "frozen, overloaded, or its disk is full"
)
PORTS: Final = {"mqtt": 1883, "mqtts": 8883}

# What TLS says when it breaks off (the end of OpenSSL's reason), and what to do about it.
TLS_FAULTS: Final[tuple[tuple[str, str], ...]] = (
    ("CERTIFICATE_EXPIRED", "finds our certificate expired: renew it"),
    ("CERTIFICATE_REVOKED", "finds our certificate revoked: get a new one"),
    ("UNKNOWN_CA", "does not know who issued our certificate: use one of its own CA"),
    ("CERTIFICATE_REQUIRED", "wants a certificate from us: configure one with its key"),
    ("BAD_CERTIFICATE", "will not have our certificate: check that it is of the right CA and not expired"),
    ("HANDSHAKE_FAILURE", "does not agree on TLS: check that it knows TLS 1.2 and accepts our certificate"),
)

# What the socket says, and what to do about it. First match wins: the special before the general.
SOCKET_FAULTS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionRefusedError, "refused the connection: is mosquitto running and listening there?"),
    (socket.gaierror, "has no address: check the host name in the url, and DNS"),
    (ssl.SSLCertVerificationError, "shows a certificate that our CA file or its host name disproves"),
    (ssl.SSLError, "does not agree on TLS: check that the port speaks TLS and accepts our certificate"),
    (TimeoutError, "does not answer: check address, cable and firewall, and whether it wants TLS"),
    (ConnectionResetError, "closed the connection"),
    (BrokenPipeError, "closed the connection"),
    (OSError, "cannot be reached"),
)

log = structlog.get_logger(__name__)
T = TypeVar("T")


class MqttConfigError(ValueError):
    """The link cannot work as configured; the text names the culprit and the remedy."""


class NotDeliveredError(Exception):
    """A post that the broker has not confirmed as a whole: any part of it may have arrived.

    Attributes:
        hung_up: it was on the wire when the session ended, so it may be the reason.
    """

    def __init__(self, text: str, *, hung_up: bool = False) -> None:
        super().__init__(text)
        self.hung_up = hung_up


class _Fault(aiomqtt.MqttError):
    """An outage in our own words: the rest of a sentence that begins with the broker's address."""


@dataclass(frozen=True)
class Tls:
    """PEM files for `mqtts://`, read anew at every connect: a renewed certificate needs no restart.

    Attributes:
        ca_file: who vouches for the broker; None: the system's certificate authorities.
        cert_file: our own certificate, when the broker asks for one.
        key_file: its key; None: in `cert_file` as well.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class Subscription(NamedTuple):
    """What to hear. QoS 2 is for publishing only.

    Of a burst of more than 20 messages to a subscription of QoS 2, mosquitto 2.0.11 delivers 20 and then
    waits for ever (seen); nats-server before 2.10 grants 1 in its place. With 1 a message may come twice.
    """

    topic: str  # filter: may hold + and #
    qos: int = 0


class Outgoing(NamedTuple):
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclass(eq=False)
class _Post:
    """Messages whose sender wants to know that the broker has them all."""

    unconfirmed: int
    done: asyncio.Future[None]


class MqttLink:
    """A connection to one broker, made anew as often as it takes.

    Args:
        url: `mqtt://host[:port]` or `mqtts://host[:port]`.
        client_id: unique at the broker: a second client of the same id throws the first one out.
        on_message: called as (topic, payload, retained) for every message, in the event loop; must be cheap.
            An exception in it ends `run`.
        on_oversized: called as (topic, size_bytes) when a message larger than PAYLOAD_MAX_BYTES was dropped.
        on_connect: called after every connect, once the subscriptions stand: from then on nothing is missed,
            and what was missed before can be asked for.
        subscriptions: made after every connect, before `connected` turns true.
        username: for brokers that ask for one.
        password: not from the url: urls end up in logs. The attribute is read at every connect, so a token
            that was renewed can be put there.
        tls: files for `mqtts://`.
        will: published by the broker when this client vanishes without saying goodbye.
        keepalive_s: whole seconds.
        qos_max: what the broker knows; higher ones are lowered to it. 1 for nats-server before 2.10, which
            hangs up on QoS 2. A link that meets such a broker unwarned lowers itself after REFUSALS_MAX.

    Raises:
        MqttConfigError: at once, on anything that no reconnect could cure.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        on_message: Callable[[str, bytes, bool], None],
        on_connect: Callable[[], None] | None = None,
        on_oversized: Callable[[str, int], None] | None = None,
        subscriptions: tuple[Subscription, ...] = (),
        username: str | None = None,
        password: str | None = None,
        tls: Tls | None = None,
        will: Outgoing | None = None,
        keepalive_s: int = KEEPALIVE_S,
        qos_max: int = 2,
    ) -> None:
        self._host, self._port, scheme = parse_url(url)
        if tls is not None and scheme != "mqtts":
            raise MqttConfigError(f"{url}: TLS files are given, but the url is not mqtts://")
        if not client_id:
            raise MqttConfigError(f"{url}: client_id is empty; give each client of the broker its own")
        self._tls = (tls or Tls()) if scheme == "mqtts" else None
        _check_tls(self._tls)
        _check_filters(subscriptions)
        if qos_max not in (0, 1, 2):
            raise MqttConfigError(f"{url}: qos_max {qos_max}; use 0, 1 or 2")
        self._client_id = client_id
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_oversized = on_oversized
        self._subscriptions = subscriptions
        self._username, self.password = username, password
        self._will = will
        self._keepalive_s = keepalive_s

        self._newest: dict[str, Outgoing] = {}  # by topic; stays until the broker has it, like all that waits
        self._kept: deque[Outgoing] = deque(maxlen=KEPT_MESSAGES_MAX)
        self._on_wire: dict[int, tuple[Outgoing, ...]] = {}  # by message id: published, not yet confirmed
        self._posts: dict[int, _Post] = {}  # by message id; of this session
        self._open_wire: paho.Client | None = None  # while connected
        self._stall: _Fault | None = None  # found by a post; ends the session
        self._wake = asyncio.Event()
        self._confirmed = asyncio.Event()
        self._refusals = 0  # short sessions in a row, perhaps broken over what we publish
        self._alone = False  # the message on the wire has company
        self._callback_error: Exception | None = None
        self._session_s = 0.0  # length of the session that just ended; 0: there was none
        self._logged_fault = ""
        self._wire_log = _WireLog()

        self.connected = False
        self.connected_since_s = -1.0  # time.monotonic() of the newest connect; below 0: never yet
        self.called = False  # once: a first call has come to its end, whichever
        self.fault = f"broker {self.address} was not called yet"  # empty while connected
        self.denied: tuple[str, ...] = ()  # subscriptions that the broker of the newest session said no to
        self.sessions = 0  # successful connects
        self.oversized = 0  # incoming messages dropped: larger than PAYLOAD_MAX_BYTES
        self.garbled = 0  # incoming messages dropped: topic not UTF-8; nats-server passes those on (seen)
        self.overflowed = (
            0  # outgoing messages dropped: more waited than OUTBOX_TOPICS_MAX, KEPT_MESSAGES_MAX
        )
        self.refused = 0  # outgoing messages dropped: the broker hung up over each of them
        self.refusal = ""  # the newest of these as a sentence, or that the broker takes no QoS 2; stays
        self.qos_max = qos_max

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def denial(self) -> str:
        """What the broker did about our subscriptions, as the rest of a sentence; empty: it granted them."""
        if not self.denied:
            return ""
        return (
            f"denies the subscription to {', '.join(self.denied)}: check its ACL "
            "(nats-server before 2.10 knows no topics with dots or blanks either)"
        )

    @property
    def _rival(self) -> str:
        return f"if this repeats, another client uses the id {self._client_id!r}"

    @property
    def waiting(self) -> int:
        """Messages that the broker has not confirmed yet."""
        return len(self._newest) + len(self._kept)

    def publish(
        self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False, keep: bool = False
    ) -> None:
        """Leaves the message for the wire and returns; replaces one of the same topic that still waits.

        When the link is connected and idle, the message is on the wire two turns of the event loop later, or
        with the next `flush`.
        A message that was on the wire when the connection broke is sent again unless a newer one waits.

        Args:
            topic: no wildcards.
            payload: at most PAYLOAD_MAX_BYTES.
            qos: at most; see `qos_max`. With 1 and 2 a message may arrive twice after a broken connection.
            retain: the broker shows the message to whoever subscribes later.
            keep: no later message of the topic replaces this one. Those of one topic arrive in order; of more
                than KEPT_MESSAGES_MAX that wait, the oldest is dropped and counted.

        Raises:
            ValueError: payload too large or topic impossible, a fault of the caller.
        """
        if len(payload) > PAYLOAD_MAX_BYTES:
            raise ValueError(f"{topic}: payload of {len(payload)} bytes, {PAYLOAD_MAX_BYTES} at most")
        if not topic or "+" in topic or "#" in topic:
            raise ValueError(f"topic {topic!r}: empty, or with a wildcard; messages go to one topic each")
        message = Outgoing(topic, payload, qos, retain)
        if keep:
            self._newest.pop(topic, None)  # replaced like by any newer one, or it would arrive after this one
            self.overflowed += len(self._kept) == KEPT_MESSAGES_MAX
            self._kept.append(message)
        else:
            if topic not in self._newest and len(self._newest) >= OUTBOX_TOPICS_MAX:
                del self._newest[next(iter(self._newest))]  # the topic that waits longest
                self.overflowed += 1
            self._newest[topic] = message
        self._wake.set()

    def flush(self) -> None:
        """Writes what waits to the socket before it returns; where something is under way it goes as ever."""
        wire = self._open_wire
        if wire is None or self._on_wire or self._stall is not None or self._is_on_trial():
            return
        if batch := self._batch():
            self._alone = False
            try:
                self._put(wire, batch, 0)
            except _Fault as fault:
                self._end_session(fault)
                return
            wire.loop_write()

    def post(self, messages: Sequence[Outgoing]) -> asyncio.Future[None]:
        """Sends these now, in order and past what waits; resolved when the broker has confirmed them all.

        Nothing is kept or sent again here: that is the business of whoever must not lose them. With QoS 0
        "confirmed" means that the socket has them; QoS 2 goes as 1. A broker reads in order, so one message
        of QoS 1 behind many of QoS 0 confirms them all. The future fails with NotDeliveredError when there
        is no session, when it ends first, or after REPLY_WAIT_MAX_S, which also ends it.
        """
        loop = asyncio.get_running_loop()
        post = _Post(0, loop.create_future())
        wire = self._open_wire
        if wire is None:
            post.done.set_exception(NotDeliveredError(self.fault))
            return post.done
        for qos, same in itertools.groupby(messages, lambda one: min(one.qos, self.qos_max, POST_QOS_MAX)):
            for sent in _publish_each(wire, same, qos) if qos else (_publish_joined(wire, same),):
                if sent.rc != paho.MQTT_ERR_SUCCESS:
                    self._end_session(_Fault("closed the connection"))
                    post.done.set_exception(NotDeliveredError(f"broker {self.address} closed the connection"))
                    return post.done
                post.unconfirmed += 1
                self._posts[sent.mid] = post
        if not post.unconfirmed:
            post.done.set_result(None)
        loop.call_later(REPLY_WAIT_MAX_S, self._give_up, post)
        return post.done

    async def run(self) -> None:
        """Keeps the link up until cancelled. Run it as one task of the service's TaskGroup."""
        failures = 0
        while True:
            self._session_s = 0.0
            try:
                await self._one_session()
            except* aiomqtt.MqttError as faults:
                self._lost(_first(faults))
            failures = 0 if self._session_s > SESSION_STABLE_S else failures + 1
            await asyncio.sleep(_backoff_s(failures))

    async def _one_session(self) -> None:
        """Connect, talk until it breaks. Expected faults leave as MqttError, alone or in a group."""
        async with self._connect() as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(_until_disconnected(client), name=f"mqtt watch {self.address}")
            tasks.create_task(self._talk(client), name=f"mqtt talk {self.address}")

    async def _talk(self, client: aiomqtt.Client) -> None:
        if self._subscriptions:
            wanted = [(topic, min(qos, self.qos_max)) for topic, qos in self._subscriptions]
            self.denied = _denied(self._subscriptions, await _or_cancelled(client.subscribe(wanted)))
            if len(self.denied) == len(self._subscriptions):
                raise _Fault(self.denial)
            if self.denied:
                log.warning("subscription denied", broker=self.address, why=self.denial)
        self.called, self.connected, self.fault = True, True, ""
        self.connected_since_s = time.monotonic()
        self.sessions += 1
        log.info("mqtt connected", broker=self.address, client_id=self._client_id, session=self.sessions)
        self._open_wire = _wire(client)
        try:
            if self._on_connect is not None:
                self._on_connect()
            await self._drain(_wire(client))
        finally:
            self._open_wire = None
            self._fail_posts()
            self.connected, self.fault = False, f"broker {self.address}: session ended"
            self._session_s = time.monotonic() - self.connected_since_s

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[aiomqtt.Client]:
        """An open connection that leaves no socket behind, whichever way it ends."""
        self._on_wire.clear()
        self._stall = None
        self._wire_log.socket_fault = None
        tls_context = await self._tls_context()
        with _unsendable_is_a_fault():
            client = self._new_client(tls_context)
        wire = _wire(client)
        wire.connect_timeout = CONNECT_WAIT_MAX_S
        wire.on_message = self._on_incoming
        wire.on_publish = self._on_published
        # Connecting happens in a thread, which cannot be cancelled: see it out (bounded by the wait above),
        # or it would open a socket that nobody owns.
        entering = asyncio.ensure_future(client.__aenter__())
        try:
            with _unsendable_is_a_fault():
                await asyncio.shield(entering)
            if wire.socket() is None:  # aiomqtt forgets a disconnect that comes on the heels of CONNACK
                raise _Fault(f"accepted the login and hung up; {self._rival}")
            _Turns(wire)
            yield client
        finally:
            await asyncio.wait({entering})
            if not entering.cancelled() and entering.exception() is None:
                await _say_goodbye(client)
            wire._sock_close()  # noqa: SLF001  aiomqtt keeps the socket open when CONNACK stays away

    async def _tls_context(self) -> ssl.SSLContext | None:
        """Read anew every time, and in a thread: the disk is not ours alone."""
        if self._tls is None:
            return None
        try:
            return await asyncio.to_thread(_load, self._tls)
        except OSError as error:  # ssl.SSLError is one
            raise _Fault(f"was not called, our TLS files are no good: {error}; see {self._tls}") from error

    def _new_client(self, tls_context: ssl.SSLContext | None) -> aiomqtt.Client:
        will = self._will
        qos = 0 if will is None else min(will.qos, self.qos_max)
        return aiomqtt.Client(
            self._host,
            self._port,
            identifier=self._client_id,
            username=self._username,
            password=self.password,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=True,
            keepalive=self._keepalive_s,
            timeout=REPLY_WAIT_MAX_S,
            max_inflight_messages=0,  # no second window beside ours: one batch at a time is on the wire
            logger=self._wire_log,
            will=None if will is None else aiomqtt.Will(will.topic, will.payload, qos, will.retain),
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            tls_context=tls_context,
        )

    def _on_incoming(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        """Straight from paho: aiomqtt's message objects and queue would cost as much again as the rest."""
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self.garbled += 1
            return
        payload = bytes(message.payload)
        try:
            if len(payload) <= PAYLOAD_MAX_BYTES:
                self._on_message(topic, payload, message.retain)
                return
            self.oversized += 1
            if self._on_oversized is not None:
                self._on_oversized(topic, len(payload))
        except Exception as error:  # noqa: BLE001  paho would take it for a broken socket; `_drain` raises it
            self._callback_error = error
            self._wake.set()

    def _on_published(self, _client: paho.Client, _userdata: object, mid: int, *_: object) -> None:
        """The broker has it; with QoS 0: the socket has it."""
        if (post := self._posts.pop(mid, None)) is not None:
            post.unconfirmed -= 1
            if not post.unconfirmed and not post.done.done():
                post.done.set_result(None)
            return
        if (messages := self._on_wire.pop(mid, None)) is None:
            return  # of a post that was given up
        for message in messages:
            self._done_with(message)
        if not self._on_wire:
            self._confirmed.set()

    def _give_up(self, post: _Post) -> None:
        """A post that is not confirmed by now never will be."""
        if not post.done.done():
            self._end_session(_Fault(UNCONFIRMED))
            post.done.set_exception(NotDeliveredError(f"broker {self.address} {UNCONFIRMED}"))

    def _end_session(self, why: _Fault) -> None:
        self._stall = why
        self._wake.set()

    def _fail_posts(self) -> None:
        posts, self._posts = dict.fromkeys(self._posts.values()), {}  # in their order
        for post in posts:
            if not post.done.done():
                why = f"broker {self.address}: session ended"
                post.done.set_exception(NotDeliveredError(why, hung_up=self._stall is None))

    def _done_with(self, message: Outgoing) -> None:
        if self._newest.get(message.topic) is message:
            del self._newest[message.topic]
            return
        for place, kept in enumerate(self._kept):  # nearly always the first
            if kept is message:
                del self._kept[place]
                return

    async def _drain(self, wire: paho.Client) -> None:
        """Sends what waits, batch by batch, each batch complete before the next."""
        while True:
            if self._callback_error is not None:
                raise self._callback_error
            if self._stall is not None:
                raise self._stall
            if not self._on_wire and (batch := self._batch()):
                self._alone = self._is_on_trial()
                # on trial one by one and each confirmed, so that the guilty one is known
                self._put(wire, batch[:1] if self._alone else batch, 1 if self._alone else 0)
            if self._on_wire:
                await self._until_confirmed()
            else:
                await self._wake.wait()
                self._wake.clear()

    def _batch(self) -> list[Outgoing]:
        """All that waits, but of QoS 2 one alone, and nothing that would overtake another of its topic."""
        batch: list[Outgoing] = []
        topics_later: set[str] = set()
        qos2_left = 1  # mosquitto 2.0.11 confirms, then loses, what exceeds its max_inflight_messages (seen)
        for message in itertools.chain(self._kept, self._newest.values()):  # of a topic, kept ones are older
            exactly_once = message.qos == self.qos_max == 2
            if message.topic in topics_later or (exactly_once and not qos2_left):
                topics_later.add(message.topic)
                continue
            qos2_left -= exactly_once
            batch.append(message)
        return batch

    def _is_on_trial(self) -> bool:
        """Sessions ended soon and often, perhaps over one of our messages."""
        young = time.monotonic() - self.connected_since_s < SESSION_STABLE_S
        return self._refusals >= REFUSALS_MAX and young

    def _put(self, wire: paho.Client, batch: Sequence[Outgoing], qos_min: int) -> None:
        """Hands a batch to paho; those of QoS 0 that follow each other as one piece. Raises _Fault."""
        self._confirmed.clear()
        for qos, same in itertools.groupby(batch, lambda one: min(max(one.qos, qos_min), self.qos_max)):
            for messages in ((message,) for message in same) if qos else (tuple(same),):
                sent = next(_publish_each(wire, messages, qos)) if qos else _publish_joined(wire, messages)
                if sent.rc != paho.MQTT_ERR_SUCCESS:
                    raise _Fault("closed the connection")
                self._on_wire[sent.mid] = messages

    async def _until_confirmed(self) -> None:
        """Raises _Fault."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPLY_WAIT_MAX_S):
                await self._confirmed.wait()
                return
        raise _Fault(UNCONFIRMED)

    def _lost(self, error: aiomqtt.MqttError) -> None:
        fault = f"broker {self.address} {_sentence(error, self._wire_log.socket_fault)}"
        if self._session_s > 0:
            fault += self._blame()
        if fault != self._logged_fault or self._session_s > 0:
            log.warning("mqtt not connected", fault=fault, client_id=self._client_id)
        self.called, self.fault, self._logged_fault = True, fault, fault

    def _blame(self) -> str:
        """What may have broken the session. Of a message that did so alone, after others, we let go."""
        was_stable = self._session_s > SESSION_STABLE_S
        self._refusals = 1 if was_stable else self._refusals + 1
        if not self._on_wire:
            return "" if was_stable else f"; {self._rival}"
        message, *others = itertools.chain.from_iterable(self._on_wire.values())
        qos = min(message.qos, self.qos_max)
        if not self._alone:
            more = f" and {len(others)} more" if others else ""
            return f"; on the wire was a message to {message.topic} with QoS {qos}{more}"
        if qos == 2:
            self.qos_max = 1
            self.refusal = f"it takes no QoS 2 (to {message.topic}), we go on with 1: set qos_max"
        else:
            self._done_with(message)
            self.refused += 1
            self.refusal = f"it takes no message to {message.topic}, dropped: check topic and rights there"
        return f"; {self.refusal}"


class _WireLog(logging.Logger):
    """Takes what the libraries log. Our `fault` says it once, with a remedy; paho tells only its log why."""

    def __init__(self) -> None:
        super().__init__(f"{__name__}.wire", logging.ERROR)
        self.socket_fault: OSError | None = None

    def handle(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple):
            self.socket_fault = next(
                (said for said in record.args if isinstance(said, OSError)), self.socket_fault
            )


def _wire(client: aiomqtt.Client) -> paho.Client:
    """The paho client inside: aiomqtt's own publish costs 80 µs and a task each, paho's 12 µs."""
    return client._client  # noqa: SLF001


def _publish_each(
    wire: paho.Client, messages: Iterable[Outgoing], qos: int
) -> Iterator[paho.MQTTMessageInfo]:
    for topic, payload, _, retain in messages:
        yield wire.publish(topic, payload, qos, retain)


def _publish_joined(wire: paho.Client, messages: Iterable[Outgoing]) -> paho.MQTTMessageInfo:
    """Messages of QoS 0 as one piece of wire: paho's publish takes 30 µs each, the joining 2 µs."""
    sent = paho.MQTTMessageInfo(wire._mid_generate())  # noqa: SLF001
    packets = b"".join(itertools.chain.from_iterable(map(_packet, messages)))
    if wire.socket() is None:
        sent.rc = paho.MQTT_ERR_NO_CONN
    else:
        sent.rc = wire._packet_queue(paho.PUBLISH, packets, sent.mid, 0, sent)  # noqa: SLF001
    return sent


def _packet(message: Outgoing) -> tuple[bytes | bytearray, ...]:
    """PUBLISH with QoS 0, as in section 3.3 of MQTT 3.1.1."""
    topic, payload = message.topic.encode(), message.payload
    length, lengths = 2 + len(topic) + len(payload), bytearray()
    while length > 0x7F:
        lengths.append(length & 0x7F | 0x80)
        length >>= 7
    lengths.append(length)
    return bytes((paho.PUBLISH | message.retain,)), lengths, len(topic).to_bytes(2, "big"), topic, payload


class _Turns:
    """Reads in bounded turns, where aiomqtt reads until TLS holds nothing back: in a flood for ever.

    And begins to wait for a writable socket at once, where aiomqtt does so in the next turn of the loop: by
    then `flush` may have written all, and the socket may be closed.
    """

    def __init__(self, wire: paho.Client) -> None:
        sock = wire.socket()
        assert isinstance(sock, socket.socket)  # others are for websockets
        self._wire, self._sock = wire, sock
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.Handle | None = None
        self._loop.add_reader(sock, self._turn)  # takes the place of aiomqtt's; removed with it
        wire.on_socket_register_write = self._wait_to_write

    def _turn(self) -> None:
        if self._again is not None:
            self._again.cancel()
        try:
            for _ in range(READ_TURN_PACKETS_MAX):
                self._wire.loop_read()
                if self._wire.socket() is None or not self._left_over():
                    return
        except Exception as error:  # noqa: BLE001  no packet may end the program: this one ends the session
            log.warning("mqtt packet not understood", error=repr(error))
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            self._again = self._loop.call_soon(self._turn)  # what is decrypted already wakes no selector

    def _wait_to_write(self, _client: paho.Client, _userdata: object, _sock: object) -> None:
        self._loop.add_writer(self._sock, self._write)

    def _write(self) -> None:
        try:
            self._wire.loop_write()
        except Exception as error:  # noqa: BLE001  as above
            log.warning("mqtt packet not sent", error=repr(error))
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _left_over(self) -> bool:
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0


@contextlib.contextmanager
def _unsendable_is_a_fault() -> Iterator[None]:
    """What paho cannot send may come from outside, as a token does: it is an outage, not the end."""
    try:
        yield
    except (ValueError, struct.error) as error:  # a UnicodeError is a ValueError
        raise _Fault(
            f"cannot be logged in to: {error}; check host name, client id, user name and password"
        ) from error


async def _until_disconnected(client: aiomqtt.Client) -> None:
    async for _ in client.messages:  # its queue stays empty: this only ever ends by MqttError
        pass


async def _or_cancelled(reply: Awaitable[T]) -> T:
    """The reply, or the cancellation that came meanwhile.

    Where both come at once, Python 3.11's `wait_for` (in aiomqtt) hands over the reply alone, and whoever
    cancels again is not heard: a TaskGroup passes on the first time only.
    """
    waiting = asyncio.ensure_future(reply)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        waiting.cancel()
        await asyncio.wait({waiting})
        raise


async def _say_goodbye(client: aiomqtt.Client) -> None:
    """A clean DISCONNECT, so that the broker keeps the will to itself; a broken line has nobody to tell."""
    with contextlib.suppress(aiomqtt.MqttError):
        await _or_cancelled(client.__aexit__(None, None, None))


def parse_url(url: str) -> tuple[str, int, str]:
    """Host, port and scheme. Raises MqttConfigError, without what may be a password."""
    shown = re.sub(r"//[^/]*@", "//…@", url)
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # as the resolver will, where it would be no OSError
    except ValueError as error:
        raise MqttConfigError(f"{shown}: {error}; use mqtt://host:port or mqtts://host:port") from error
    if parts.scheme not in PORTS or not parts.hostname:
        raise MqttConfigError(f"{shown}: use mqtt://host:port or mqtts://host:port")
    if parts.username is not None or parts.password is not None:
        raise MqttConfigError(f"{parts.hostname}: a password in a url ends up in logs; give it on its own")
    return parts.hostname, port or PORTS[parts.scheme], parts.scheme


def _check_tls(tls: Tls | None) -> None:
    """Reads the files once now: a wrong path or key is a sentence at start, not a fault at night."""
    if tls is None:
        return
    try:
        _load(tls)
    except OSError as error:  # ssl.SSLError is one
        raise MqttConfigError(f"{tls}: {error}; give readable PEM files that belong together") from error


def _load(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.sslsocket_class = _TidySocket
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")  # a locked key: no prompt, an error
    return context


class _TidySocket(ssl.SSLSocket):
    """Paho forgets a socket whose handshake fails."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except ConnectionError as error:
            self.close()
            raise ssl.SSLError(f"hung up in the handshake: {error}") from error
        except OSError:
            self.close()
            raise


def _check_filters(subscriptions: tuple[Subscription, ...]) -> None:
    for topic, qos in subscriptions:
        try:
            aiomqtt.Wildcard(topic)
        except ValueError as error:
            raise MqttConfigError(f"subscription {topic!r}: {error}; + is one level, # the rest") from error
        if len(topic.encode()) > TEXT_MAX_BYTES:
            raise MqttConfigError(f"subscription {topic[:40]!r}...: more than {TEXT_MAX_BYTES} bytes")
        if qos not in (0, 1):
            raise MqttConfigError(f"subscription {topic!r}: qos {qos}; use 0 or 1, with 2 mosquitto stalls")


def _denied(subscriptions: tuple[Subscription, ...], granted: object) -> tuple[str, ...]:
    """Mosquitto grants what its ACL will withhold; other brokers say no (0x80) and are heard here."""
    assert isinstance(granted, list)  # one reason code per filter, in order
    if len(granted) != len(subscriptions):
        raise _Fault(f"answers {len(subscriptions)} subscriptions with {len(granted)} codes: not MQTT")
    pairs = zip(subscriptions, granted, strict=True)
    return tuple(one.topic for one, code in pairs if code.value >= 0x80)


def _first(faults: BaseExceptionGroup[aiomqtt.MqttError]) -> aiomqtt.MqttError:
    """One MqttError out of a group that may nest."""
    error: BaseException = faults
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, aiomqtt.MqttError)
    return error


def _sentence(error: aiomqtt.MqttError, socket_fault: OSError | None) -> str:
    """What the broker did, as the rest of a sentence that begins with its address."""
    if isinstance(error, _Fault):
        return str(error)
    if isinstance(error, MqttConnectError):
        return f"refused the login: {error}; check user name, password and client id"
    # aiomqtt re-raises OSError as text, `from None`. With TLS 1.3 a certificate of ours is refused only after
    # the handshake: paho then notes it and aiomqtt waits for a CONNACK in vain.
    origin = error.__cause__ or error.__context__
    if isinstance(socket_fault, ssl.SSLError) or origin is None:
        origin = socket_fault
    if isinstance(origin, aiomqtt.MqttCodeError):
        return f"closed the connection: {origin}"
    reason = str(getattr(origin, "reason", ""))
    for ending, text in TLS_FAULTS:
        if reason.endswith(ending):
            return text
    for cls, text in SOCKET_FAULTS:
        if isinstance(origin, cls):
            return f"{text} ({origin})" if str(origin) else text
    return str(error)


def _backoff_s(short_sessions: int) -> float:
    """Doubling, bounded, and jittered over its upper half so that a block's agents do not return as one."""
    ceiling_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(short_sessions, 10))
    return random.uniform(ceiling_s / 2, ceiling_s)  # noqa: S311  jitter, not a secret
