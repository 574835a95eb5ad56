"""An OPC UA server on asyncua, with what that library leaves to others.

From asyncua: encoding, secure channels, cryptography, browsing, the standard address space. Ours:

    server_space           nodes, made when somebody looks
    server_subscriptions   subscriptions, at a cost one can pay; server_items: what they watch
    server_values          values, encoded once
    server_events          events and their filters
    server_access          certificates and the right to guess
    server_session         who somebody is, and what he may
    this module            endpoints and connections

The fences of this module around the library, each with a test that fails when it is taken down:

* It opens an unsecured channel whatever the endpoints say, and a session on it. Such a channel is good for
  discovery alone here, unless the settings allow more.
* It checks a certificate that the client names, if it names one. Here the channel's own is checked, always.
* It lets a connection ask for ever without reading the answers, and collects a message of any size. Here
  whoever does not read is not listened to, and what is no message closes the connection.
* It answers the requests of a connection one after the other. Orders wait for plant, so they run beside.
* It loses a session when a connection creates another one. Here the older one is closed.
* Whoever asks without a session is told so, with the status that makes clients begin a new one.

Nobody adds nodes, deletes them, registers servers or writes anything but values, whoever he is.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from asyncua import Server, ua
from asyncua.common.connection import TransportLimits
from asyncua.common.utils import Buffer, ServiceError
from asyncua.server.address_space import ViewService
from asyncua.server.binary_server_asyncio import BinaryServer, OPCUAProtocol
from asyncua.server.internal_server import InternalServer
from asyncua.server.uaprocessor import UaProcessor
from asyncua.ua.ua_binary import nodeid_from_binary, struct_from_binary

from protocols.opcua.server_access import Guesses, Identity, Own, RefusedError
from protocols.opcua.server_events import Event
from protocols.opcua.server_session import Rules, Session, address_of
from protocols.opcua.server_space import Space, Thing
from protocols.opcua.server_subscriptions import SubscriptionService
from protocols.opcua.server_values import Variable

CHUNK_MAX_BYTES: Final = 65_535
REQUEST_MAX_BYTES: Final = 4 * 1024 * 1024  # 20,000 monitored items in one request
UNREAD_MAX_BYTES: Final = 1024 * 1024  # answers that a client has not taken yet
IN_HAND_MAX: Final = 8  # of one connection at a time; the next one waits
CONNECTIONS_PER_SESSION: Final = 2  # one may be dying while its client comes back
SESSION_MIN_S, SESSION_MAX_S = 10.0, 3600.0
HELLO_WAIT_S: Final = 20.0  # until a connection has a session
NAMESPACE_INDEX: Final = 2

PRODUCT: Final = "urn:powerblock"
UNSECURED: Final = ua.SecurityPolicyType.NoSecurity

# Requests by what they are: numbers of their encodings.
OPENING: Final = {
    ua.ObjectIds.CreateSessionRequest_Encoding_DefaultBinary,
    ua.ObjectIds.ActivateSessionRequest_Encoding_DefaultBinary,
}
WITHOUT_SESSION: Final = OPENING | {
    ua.ObjectIds.CloseSessionRequest_Encoding_DefaultBinary,
    ua.ObjectIds.GetEndpointsRequest_Encoding_DefaultBinary,
    ua.ObjectIds.FindServersRequest_Encoding_DefaultBinary,
    ua.ObjectIds.CloseSecureChannelRequest_Encoding_DefaultBinary,
}
REFUSED: Final = {
    ua.ObjectIds.RegisterServerRequest_Encoding_DefaultBinary,
    ua.ObjectIds.RegisterServer2Request_Encoding_DefaultBinary,
    ua.ObjectIds.AddNodesRequest_Encoding_DefaultBinary,
    ua.ObjectIds.DeleteNodesRequest_Encoding_DefaultBinary,
    ua.ObjectIds.AddReferencesRequest_Encoding_DefaultBinary,
    ua.ObjectIds.DeleteReferencesRequest_Encoding_DefaultBinary,
}
SLOW: Final = {
    ua.ObjectIds.CallRequest_Encoding_DefaultBinary,
    ua.ObjectIds.WriteRequest_Encoding_DefaultBinary,
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a server.

    Attributes:
        host, port: where it listens; port 0: any.
        uri, name: of this application.
        policies: what a session may be secured with; `UNSECURED` among them: with nothing.
        namespace: of the identifiers.
        sessions_max: clients at a time.
        guesses_per_minute: wrong passwords of one address.
        fastest_s: nothing is sampled or published faster.
    """

    host: str
    port: int
    uri: str
    name: str
    namespace: str
    policies: Sequence[ua.SecurityPolicyType]
    sessions_max: int = 20
    guesses_per_minute: int = 10
    fastest_s: float = 0.1


class OpcUaServer:
    """A server. Build its space, `start` it, tell it events, `stop` it.

    Raises on `start`: OSError when it cannot listen.

    Attributes:
        space: what it shows.
    """

    def __init__(self, settings: Settings, own: Own, rules: Rules) -> None:
        self._settings, self._rules = settings, rules
        self._iserver = _Internals(settings, rules)
        self._iserver.certificate, self._iserver.private_key = own.certificate, own.key
        self._server = _Server(self._iserver)

    @property
    def space(self) -> Space:
        return self._iserver.space

    @property
    def port(self) -> int:
        """That it listens on; 0: not yet."""
        return int(self._server.bserver.port) if self._server.bserver is not None else 0

    @property
    def sessions(self) -> list[tuple[str, Identity]]:
        """Who is there: address and identity."""
        return [(one.address, one.identity) for one in self._iserver.sessions]

    def node_id(self, id_: str) -> ua.NodeId:
        return self.space.node_id(id_)

    async def prepare(self) -> None:
        """The standard address space, into which ours can be built."""
        server, settings = self._server, self._settings
        _quieten()
        server.limits = TransportLimits(
            max_recv_buffer=CHUNK_MAX_BYTES,
            max_send_buffer=CHUNK_MAX_BYTES,
            max_chunk_count=REQUEST_MAX_BYTES // CHUNK_MAX_BYTES + 1,
            max_message_size=REQUEST_MAX_BYTES,
        )
        server.product_uri, server.manufacturer_name, server.name = PRODUCT, "powerblock", settings.name
        server.application_type = ua.ApplicationType.Server
        await server.init()
        await server.set_application_uri(settings.uri)
        server.set_endpoint(f"opc.tcp://{settings.host}:{settings.port}/powerblock")
        server.set_security_policy(list(settings.policies))
        tokens = [ua.UserNameIdentityToken, ua.X509IdentityToken]
        if self._rules.users.anonymous() is not None:
            tokens.append(ua.AnonymousIdentityToken)
        server.set_identity_tokens(tokens)
        index = await server.register_namespace(settings.namespace)
        assert index == NAMESPACE_INDEX
        self._iserver.adopt()

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._iserver.service.close()
        await self._server.stop()

    def serve_level(self, level: Callable[[], int]) -> None:
        """How good we are at the moment, for clients that choose between servers: 0 to 255."""
        self._iserver.set_attribute_value_callback(
            ua.NodeId(ua.ObjectIds.Server_ServiceLevel),
            lambda *_: ua.DataValue(
                ua.Variant(level(), ua.VariantType.Byte), SourceTimestamp=datetime.now(UTC)
            ),
        )

    def tell(self, event: Event) -> None:
        """Everybody who wants to hear it."""
        self._iserver.service.tell(event)

    def rebuilt(self) -> None:
        """The space was built anew."""
        self._iserver.service.find_again()

    async def disconnect_all(self) -> None:
        """Close every connection; clients come back by themselves."""
        for transport in list(self._iserver.asyncio_transports):
            transport.close()


class _Nodes:
    """What subscriptions ask of the address space."""

    def __init__(self, iserver: "_Internals") -> None:
        self._iserver = iserver

    def variable(self, node_id: ua.NodeId) -> Variable | None:
        entry = self._iserver.space.entry(node_id)
        return entry if isinstance(entry, Variable) else None

    def read(self, node_id: ua.NodeId, attribute: int) -> ua.DataValue:
        return self._iserver.aspace.read_attribute_value(node_id, attribute)

    def is_notifier(self, node_id: ua.NodeId) -> bool:
        entry = self._iserver.space.entry(node_id)
        if isinstance(entry, Thing):
            return entry.is_notifier
        return bool(node_id == ua.NodeId(ua.ObjectIds.Server))


class _Views(ViewService):  # type: ignore[misc]  # asyncua is untyped here
    """Browsing. The library looks for subtypes of a reference type anew for every reference: 0.2 ms each."""

    def __init__(self, aspace: Any) -> None:
        super().__init__(aspace)
        self._known: dict[ua.NodeId, frozenset[ua.NodeId]] = {}

    def _suitable_reftype(self, ref1: ua.NodeId, ref2: ua.NodeId, subtypes: bool) -> bool:
        if ref1.is_null() or ref1 == ref2:
            return True
        if not subtypes or ref1 not in self._aspace:
            return False
        if ref1 not in self._known:
            self._known[ref1] = frozenset(self._get_sub_ref(ref1))
        return ref2 in self._known[ref1]


class _Internals(InternalServer):  # type: ignore[misc]  # asyncua is untyped here
    """The library's inner server, with our sessions, subscriptions and space."""

    def __init__(self, settings: Settings, rules: Rules) -> None:
        super().__init__()
        self.rules, self.sessions_max = rules, settings.sessions_max
        self.is_open = UNSECURED in settings.policies
        self.guesses = Guesses(settings.guesses_per_minute)
        self.max_connections = CONNECTIONS_PER_SESSION * settings.sessions_max
        self.max_pending_activation_seconds = HELLO_WAIT_S
        self.min_session_timeout_ms, self.max_session_timeout_ms = SESSION_MIN_S * 1000, SESSION_MAX_S * 1000
        self.user_manager = None  # the library asks nobody, then: sessions of ours have asked before
        self.disabled_clock = True  # the time is told when it is asked for
        self.view_service = _Views(self.aspace)
        self.space = Space({}, NAMESPACE_INDEX)
        self.service = SubscriptionService(
            _Nodes(self), fastest_s=settings.fastest_s, most=10 * settings.sessions_max
        )
        self.subscription_service = self.service

    def adopt(self) -> None:
        """Put our space in place of the library's dict, now that the standard nodes are there."""
        self.space = self.aspace._nodes = Space(self.aspace._nodes, NAMESPACE_INDEX)  # noqa: SLF001  as its own shelf

    async def start(self) -> None:
        await super().start()
        status = await self.server_status_node.read_value()

        def now(part: Callable[[], Any]) -> ua.DataValue:
            status.CurrentTime = moment = datetime.now(UTC)
            return ua.DataValue(part(), SourceTimestamp=moment, ServerTimestamp=moment)

        self.set_attribute_value_callback(self.server_status_node.nodeid, lambda *_: now(lambda: status))
        self.set_attribute_value_callback(
            self.current_time_node.nodeid, lambda *_: now(lambda: status.CurrentTime)
        )

    @property
    def sessions(self) -> "list[Session]":
        return [one for one in self._external_sessions.values() if one.is_activated()]

    def create_session(self, name: Any, user: Any = None, external: bool = False) -> "Session":  # noqa: ARG002
        if len(self._external_sessions) >= self.sessions_max:
            log.warning(
                "opc ua: refused", address=address_of(name), why=f"{self.sessions_max} sessions are open"
            )
            raise ServiceError(ua.StatusCodes.BadTooManySessions)
        return Session(self, name)


class _Processor(UaProcessor):  # type: ignore[misc]  # asyncua is untyped here
    """A connection's requests."""

    def __init__(self, iserver: _Internals, transport: Any, limits: TransportLimits) -> None:
        super().__init__(iserver, transport, limits)
        self.session: Session | None = None
        self._in_hand: set[asyncio.Task[Any]] = set()

    @property
    def certificate(self) -> bytes | None:
        content: bytes | None = self._connection.security_policy.peer_certificate
        return content

    @property
    def mode(self) -> ua.MessageSecurityMode:
        return self._connection.security_policy.Mode

    async def process_message(self, seqhdr: Any, body: Buffer) -> bool:
        start = body.copy()
        kind = nodeid_from_binary(start).Identifier
        header = struct_from_binary(ua.RequestHeader, start)
        refusal = self._refusal(kind)
        if refusal:
            response = ua.ServiceFault()
            response.ResponseHeader.ServiceResult = ua.StatusCode(refusal)
            self.send_response(header.RequestHandle, seqhdr, response)
            return True
        if kind == ua.ObjectIds.CreateSessionRequest_Encoding_DefaultBinary:
            return await self._create_session(seqhdr, body)
        if kind == ua.ObjectIds.ActivateSessionRequest_Encoding_DefaultBinary:
            self._reattach(header.AuthenticationToken)
        if kind in SLOW and len(self._in_hand) < IN_HAND_MAX:
            task = asyncio.create_task(super().process_message(seqhdr, body), name="opc ua order")
            self._in_hand.add(task)
            task.add_done_callback(self._in_hand.discard)
            return True
        return bool(await super().process_message(seqhdr, body))

    def _refusal(self, kind: int) -> Any:
        """Status; Good: none."""
        if kind in REFUSED:
            return ua.StatusCodes.BadServiceUnsupported
        if self.session is None and kind not in WITHOUT_SESSION:
            return ua.StatusCodes.BadSessionIdInvalid
        if kind not in OPENING:
            return ua.StatusCodes.Good
        if self.mode is ua.MessageSecurityMode.None_:
            return ua.StatusCodes.Good if self.iserver.is_open else ua.StatusCodes.BadSecurityModeRejected
        try:
            self.iserver.rules.clients.admit(self.certificate)
        except RefusedError as refused:
            log.warning("opc ua: refused", address=address_of(self.name), why=str(refused))
            return ua.StatusCodes.BadSecurityChecksFailed
        return ua.StatusCodes.Good

    async def _create_session(self, seqhdr: Any, body: Buffer) -> bool:
        """One per connection: the library would forget an older one without closing it."""
        if self.session is not None:
            await self.session.close_session(delete_subs=True)
            self.session = None
        goes_on = bool(await super().process_message(seqhdr, body))
        if self.session is not None:
            self.session.opened_by(self)
        return goes_on

    def _reattach(self, ticket: ua.NodeId) -> None:
        session = self.session or self.iserver.lookup_external_session(ticket)
        if session is not None and session.certificate == self.certificate:
            session.channel = self


class _Connection(OPCUAProtocol):  # type: ignore[misc]  # asyncua is untyped here
    """A connection."""

    processor: _Processor | None
    _buffer: bytes

    def connection_made(self, transport: Any) -> None:
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        super().connection_made(transport)
        if self.processor is not None:  # there was room for it
            transport.set_write_buffer_limits(high=UNREAD_MAX_BYTES)
            self.processor = _Processor(self.iserver, transport, self.limits)
            self.processor.set_policies(self.policies)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if len(self._buffer) > CHUNK_MAX_BYTES and self.transport is not None:
            log.warning(
                "opc ua: closed", address=address_of(self.peer_name), why="what it sends is no OPC UA"
            )
            self._buffer = b""
            self.transport.close()

    def pause_writing(self) -> None:
        self._may_answer.clear()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._may_answer.set()
        if not self.transport.is_closing():
            self.transport.resume_reading()

    async def _process_one_msg(self, header: Any, buf: Buffer) -> bool:
        await self._may_answer.wait()
        try:
            return bool(await super()._process_one_msg(header, buf))
        except Exception as error:  # noqa: BLE001  a stranger's bytes can trip any decoder of the library
            log.info(
                "opc ua: closed", address=address_of(self.peer_name), why=f"{type(error).__name__}: {error}"
            )
            self.transport.close()
            return False


class _Listener(BinaryServer):  # type: ignore[misc]  # asyncua is untyped here
    def _make_protocol(self) -> _Connection:
        return _Connection(
            iserver=self.iserver,
            policies=self._policies,
            clients=self.clients,
            closing_tasks=self.closing_tasks,
            limits=self.limits,
        )


class _Server(Server):  # type: ignore[misc]  # asyncua is untyped here
    """The library's server, with connections of ours."""

    def __init__(self, iserver: _Internals) -> None:
        super().__init__(iserver=iserver)

    async def start(self) -> None:
        await self._setup_server_nodes()
        await self.iserver.start()
        self.bserver = _Listener(self.iserver, self.endpoint.hostname, self.endpoint.port, self.limits)
        self.bserver.set_policies(self._policies)
        await self.bserver.start()


def _quieten() -> None:
    """The library writes a stack for whatever a stranger sends; what matters is said here."""
    for name in ("asyncua.server", "asyncua.uaprotocol"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
