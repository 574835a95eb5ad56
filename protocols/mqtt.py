"""One supervised MQTT connection that carries newest values, both ways, and never gets in the way.

Everything this project sends over MQTT is complete in itself: an order, a report, a status, an event with
its own validity. So the newest message of a topic is worth more than all before it, and a queue is a fault
waiting for an outage. Hence:
* `publish` returns at once. What waits for the broker is one message per topic, the newest; one batch at a
  time is on the wire, so a broker that stalls holds back a bounded number of bytes and never a caller;
* `on_message` runs inside the socket's read event: no queue stands between wire and caller;
* sessions are clean. A persistent session replays old QoS 1 commands after an outage, indistinguishable
  from fresh ones (seen with mosquitto 2.0.11); here we subscribe anew after every connect;
* TCP_NODELAY is set, or bursts stall for 40 ms. The broker needs it as well: `set_tcp_nodelay true`.
`run` ends only by cancellation or by a fault of the program: an outage is data (`connected`, `fault`).
"""

import asyncio
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiomqtt
import paho.mqtt.client as paho
import structlog
from aiomqtt.exceptions import MqttConnectError

PAYLOAD_MAX_BYTES: Final = 256 * 1024  # a plan of 1,000 windows is half of it; MQTT itself allows 256 MB
OUTBOX_TOPICS_MAX: Final = 2048  # a block of 1,152 GPUs has at most one node per GPU, and a few status topics
CONNECT_WAIT_MAX_S: Final = 2.0  # a broker of this block is one switch away; also bounds a clean stop
REPLY_WAIT_MAX_S: Final = 2.0  # CONNACK, SUBACK, PUBACK: thousands of times the usual 0.5 ms
KEEPALIVE_S: Final = 5  # a frozen broker is seen within twice this; a dead one within a millisecond
BACKOFF_MIN_S: Final = 0.05  # a broker that restarts is back in 20 ms
BACKOFF_MAX_S: Final = 2.0  # longer would waste more of a lease than it saves the broker
SESSION_STABLE_S: Final = 5.0  # a session this long was a good one: the back-off starts over
PORTS: Final = {"mqtt": 1883, "mqtts": 8883}

# What the socket says, and what to do about it. First match wins: the special before the general.
SOCKET_FAULTS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionRefusedError, "refused the connection: is mosquitto running and listening there?"),
    (socket.gaierror, "has no address: check the host name in the url, and DNS"),
    (ssl.SSLCertVerificationError, "shows a certificate that our CA file or its host name disproves"),
    (ssl.SSLError, "does not agree on TLS: check that the port speaks TLS and accepts our certificate"),
    (TimeoutError, "does not answer: check address, cable and firewall"),
    (FileNotFoundError, "was not called, a TLS file is missing: check the paths of CA, certificate and key"),
    (OSError, "cannot be reached"),
)

log = structlog.get_logger(__name__)

# The libraries log every refused connection as an error. Our `fault` says it once, with a remedy.
_wire_log = logging.getLogger(f"{__name__}.wire")
_wire_log.setLevel(logging.CRITICAL)


class MqttConfigError(ValueError):
    """The link cannot work as configured; the text names the culprit and the remedy."""


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
    topic: str  # filter: may hold + and #
    qos: int = 0


class Outgoing(NamedTuple):
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


class MqttLink:
    """A connection to one broker, made anew as often as it takes.

    Args:
        url: `mqtt://host[:port]` or `mqtts://host[:port]`.
        client_id: unique at the broker: a second client of the same id throws the first one out.
        on_message: called as (topic, payload, retained) for every message, in the event loop; must be cheap.
            An exception in it ends `run`.
        on_connect: called after every connect, once the subscriptions stand: from then on nothing is missed,
            and what was missed before can be asked for.
        subscriptions: made after every connect, before `connected` turns true.
        username: for brokers that ask for one.
        password: not from the url: urls end up in logs. The attribute is read at every connect, so a token
            that was renewed can be put there.
        tls: files for `mqtts://`.
        will: published by the broker when this client vanishes without saying goodbye.
        keepalive_s: whole seconds.

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
        subscriptions: tuple[Subscription, ...] = (),
        username: str | None = None,
        password: str | None = None,
        tls: Tls | None = None,
        will: Outgoing | None = None,
        keepalive_s: int = KEEPALIVE_S,
    ) -> None:
        self._host, self._port, scheme = _parse_url(url)
        if tls is not None and scheme != "mqtts":
            raise MqttConfigError(f"{url}: TLS files are given, but the url is not mqtts://")
        if not client_id:
            raise MqttConfigError(f"{url}: client_id is empty; give each client of the broker its own")
        self._tls = (tls or Tls()) if scheme == "mqtts" else None
        _check_tls(self._tls)
        _check_filters(subscriptions)
        self._client_id = client_id
        self._on_message = on_message
        self._on_connect = on_connect
        self._subscriptions = subscriptions
        self._username, self.password = username, password
        self._will = will
        self._keepalive_s = keepalive_s

        self._outbox: dict[str, Outgoing] = {}
        self._wake = asyncio.Event()
        self._callback_error: Exception | None = None
        self._session_s = 0.0  # length of the session that just ended; 0: there was none
        self._logged_fault = ""

        self.connected = False
        self.connected_since_s = -1.0  # time.monotonic() of the newest connect; below 0: never yet
        self.fault = f"broker {self.address} was not called yet"  # empty while connected
        self.sessions = 0  # successful connects
        self.oversized = 0  # incoming messages dropped: larger than PAYLOAD_MAX_BYTES
        self.overflowed = 0  # outgoing messages dropped: more than OUTBOX_TOPICS_MAX topics waiting

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def _rival(self) -> str:
        return f"if this repeats, another client uses the id {self._client_id!r}"

    def publish(self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> None:
        """Leaves the message for the wire and returns; replaces one of the same topic that still waits.

        When the link is connected and idle, the message is on the wire two turns of the event loop later.
        A message that was on the wire when the connection broke is sent again unless a newer one waits.

        Raises:
            ValueError: payload larger than PAYLOAD_MAX_BYTES, a fault of the caller.
        """
        if len(payload) > PAYLOAD_MAX_BYTES:
            raise ValueError(f"{topic}: payload of {len(payload)} bytes, {PAYLOAD_MAX_BYTES} at most")
        if topic not in self._outbox and len(self._outbox) >= OUTBOX_TOPICS_MAX:
            del self._outbox[next(iter(self._outbox))]  # the topic that waits longest
            self.overflowed += 1
        self._outbox[topic] = Outgoing(topic, payload, qos, retain)
        self._wake.set()

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
            granted = await client.subscribe([(one.topic, one.qos) for one in self._subscriptions])
            _check_granted(self._subscriptions, granted)
        self.connected, self.fault = True, ""
        self.connected_since_s = time.monotonic()
        self.sessions += 1
        log.info("mqtt connected", broker=self.address, client_id=self._client_id, session=self.sessions)
        if self._on_connect is not None:
            self._on_connect()
        try:
            await self._drain(client)
        finally:
            self.connected, self.fault = False, f"broker {self.address}: session ended"
            self._session_s = time.monotonic() - self.connected_since_s

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[aiomqtt.Client]:
        """An open connection that leaves no socket behind, whichever way it ends."""
        client = self._new_client()
        wire = _wire(client)
        wire.connect_timeout = CONNECT_WAIT_MAX_S
        # Connecting happens in a thread, which cannot be cancelled: see it out (bounded by the wait above),
        # or it would open a socket that nobody owns.
        entering = asyncio.ensure_future(client.__aenter__())
        try:
            await asyncio.shield(entering)
            if wire.socket() is None:  # aiomqtt forgets a disconnect that comes on the heels of CONNACK
                raise aiomqtt.MqttError(f"accepted the login and hung up; {self._rival}")
            yield client
        finally:
            await asyncio.wait({entering})
            if not entering.cancelled() and entering.exception() is None:
                await _say_goodbye(client)
            wire._sock_close()  # noqa: SLF001  aiomqtt keeps the socket open when CONNACK stays away

    def _new_client(self) -> aiomqtt.Client:
        tls = self._tls
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
            logger=_wire_log,
            queue_type=_inbox(self._deliver),
            will=None if self._will is None else aiomqtt.Will(*self._will),
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            tls_params=None
            if tls is None
            else aiomqtt.TLSParameters(ca_certs=tls.ca_file, certfile=tls.cert_file, keyfile=tls.key_file),
        )

    def _deliver(self, message: aiomqtt.Message) -> None:
        payload = message.payload
        assert isinstance(payload, bytes)  # as received; other types exist only for sending
        if len(payload) > PAYLOAD_MAX_BYTES:
            self.oversized += 1
            return
        try:
            self._on_message(message.topic.value, payload, message.retain)
        except Exception as error:  # noqa: BLE001  paho would take it for a broken socket; `_drain` raises it
            self._callback_error = error
            self._wake.set()

    async def _drain(self, client: aiomqtt.Client) -> None:
        """Sends what waits, batch by batch, each batch complete before the next."""
        wire = _wire(client)
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._callback_error is not None:
                raise self._callback_error
            if not self._outbox:
                continue
            # QoS 0 first: then the last one's confirmation confirms them all.
            batch = sorted(self._outbox.values(), key=lambda message: message.qos)
            self._outbox.clear()
            try:
                for message in batch[:-1]:
                    wire.publish(*message)
                await client.publish(*batch[-1])
            except BaseException:
                for message in batch:
                    self._outbox.setdefault(message.topic, message)  # unless a newer one waits already
                self._wake.set()
                raise

    def _lost(self, error: aiomqtt.MqttError) -> None:
        fault = f"broker {self.address} {_sentence(error)}"
        if 0 < self._session_s < SESSION_STABLE_S:
            fault += f"; {self._rival}"
        if fault != self._logged_fault or self._session_s > 0:
            log.warning("mqtt not connected", fault=fault, client_id=self._client_id)
        self.fault = self._logged_fault = fault


def _wire(client: aiomqtt.Client) -> paho.Client:
    """The paho client inside: aiomqtt's own publish costs 80 µs and a task each, paho's 12 µs."""
    return client._client  # noqa: SLF001


def _inbox(deliver: Callable[[aiomqtt.Message], None]) -> type[asyncio.Queue[aiomqtt.Message]]:
    """A 'queue' that hands every message on at once and so is always empty."""

    class Inbox(asyncio.Queue[aiomqtt.Message]):
        def put_nowait(self, item: aiomqtt.Message) -> None:
            deliver(item)

    return Inbox


async def _until_disconnected(client: aiomqtt.Client) -> None:
    async for _ in client.messages:  # the inbox stays empty: this only ever ends by MqttError
        pass


async def _say_goodbye(client: aiomqtt.Client) -> None:
    """A clean DISCONNECT, so that the broker keeps the will to itself; a broken line has nobody to tell."""
    try:
        await client.__aexit__(None, None, None)
    except aiomqtt.MqttError as error:
        _wire_log.debug("no goodbye: %s", error)


def _parse_url(url: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise MqttConfigError(f"{url}: {error}; use mqtt://host:port or mqtts://host:port") from error
    if parts.scheme not in PORTS or not parts.hostname:
        raise MqttConfigError(f"{url}: use mqtt://host:port or mqtts://host:port")
    if parts.username is not None or parts.password is not None:
        raise MqttConfigError(f"{parts.hostname}: a password in a url ends up in logs; give it on its own")
    return parts.hostname, port or PORTS[parts.scheme], parts.scheme


def _check_tls(tls: Tls | None) -> None:
    """Reads the files once now: a wrong path or key is a sentence at start, not a fault at night."""
    if tls is None:
        return
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise MqttConfigError(f"{tls}: {error}; give readable PEM files that belong together") from error


def _check_filters(subscriptions: tuple[Subscription, ...]) -> None:
    for topic, qos in subscriptions:
        try:
            aiomqtt.Wildcard(topic)
        except ValueError as error:
            raise MqttConfigError(f"subscription {topic!r}: {error}; + is one level, # the rest") from error
        if qos not in (0, 1):
            raise MqttConfigError(f"subscription {topic!r}: qos {qos}; use 0 or 1")


def _check_granted(subscriptions: tuple[Subscription, ...], granted: object) -> None:
    """Mosquitto grants what its ACL will withhold; other brokers say no (0x80) and are heard here."""
    assert isinstance(granted, list)  # one reason code per filter, in order
    denied = [one.topic for one, code in zip(subscriptions, granted, strict=True) if code.value >= 0x80]
    if denied:
        raise aiomqtt.MqttError(f"denies the subscription to {', '.join(denied)}: check its ACL")


def _first(faults: BaseExceptionGroup[aiomqtt.MqttError]) -> aiomqtt.MqttError:
    """One MqttError out of a group that may nest."""
    error: BaseException = faults
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, aiomqtt.MqttError)
    return error


def _sentence(error: aiomqtt.MqttError) -> str:
    """What the broker did, as the rest of a sentence that begins with its address."""
    if isinstance(error, MqttConnectError):
        return f"refused the login: {error}; check user name, password and client id"
    origin = error.__cause__ or error.__context__  # aiomqtt re-raises OSError as text, `from None`
    if isinstance(origin, aiomqtt.MqttCodeError):
        return f"closed the connection: {origin}"
    for cls, text in SOCKET_FAULTS:
        if isinstance(origin, cls):
            return f"{text} ({origin})" if str(origin) else text
    return str(error)


def _backoff_s(short_sessions: int) -> float:
    """Doubling, bounded, and jittered over its upper half so that a block's agents do not return as one."""
    ceiling_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(short_sessions, 10))
    return random.uniform(ceiling_s / 2, ceiling_s)  # noqa: S311  jitter, not a secret
