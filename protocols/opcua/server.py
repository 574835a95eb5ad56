"""An OPC UA server on asyncua, with what that library leaves to others.

From asyncua: encoding, secure channels, cryptography, browsing, the standard address space. Ours:

    server_space           nodes, made when somebody looks
    server_subscriptions   monitored items, at a cost one can pay
    server_values          values, encoded once
    server_events          events and their filters
    server_access          certificates and the right to guess
    this module            endpoints, connections, sessions, and who may what

The fences of this module, each with a test that fails when it is taken down:

* The library opens an unsecured channel whatever the endpoints say, and a session on it. Such a channel is
  good for discovery alone here, unless the settings allow more.
* It checks a certificate that the client names, or none. Here the channel's own is checked.
* It takes the application's certificate for a user, passwords in the clear, and SHA-1. Not here.
* Its tickets for taking over a session are numbers in a row. Here they are random, and the ticket is good for
  the same application only.
* It lets a connection ask for ever without reading the answers, and collects a message of any size. Here
  whoever does not read is not listened to, and what is no message closes the connection.
* It answers one request of a connection after the other. Calls and writes wait for plant, so they run beside.
* Whoever asks without a session is told so, with the status that makes clients begin a new one.

Nobody adds nodes, deletes them, registers servers or writes anything but values, whoever he is.
"""

import asyncio
import hmac
import logging
import secrets
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog
from asyncua import Server, ua
from asyncua.common.connection import TransportLimits
from asyncua.common.utils import Buffer, ServiceError
from asyncua.crypto import security_policies, uacrypto
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.address_space import ViewService
from asyncua.server.binary_server_asyncio import BinaryServer, OPCUAProtocol
from asyncua.server.internal_server import InternalServer
from asyncua.server.internal_session import InternalSession
from asyncua.server.uaprocessor import UaProcessor
from asyncua.ua.ua_binary import nodeid_from_binary, struct_from_binary

from protocols.opcua.server_access import NOBODY, Authority, ClientFolder, Guesses, Identity, Own, RefusedError
from protocols.opcua.server_events import Event
from protocols.opcua.server_space import Answer, Method, Space, Thing
from protocols.opcua.server_subscriptions import SubscriptionService
from protocols.opcua.server_values import Variable

CHUNK_MAX_BYTES: Final = 65_535
REQUEST_MAX_BYTES: Final = 4 * 1024 * 1024  # 20,000 monitored items in one request
UNREAD_MAX_BYTES: Final = 1024 * 1024  # answers that a client has not taken yet
OPERATIONS_MAX: Final = 10_000  # of one request, as the server's own limits say
ORDERS_MAX: Final = 50  # writes or calls of one request
IN_HAND_MAX: Final = 8  # of one connection at a time; the next one waits
CONNECTIONS_PER_SESSION: Final = 2  # one may be dying while its client comes back
KEEP_MAX: Final = 10_000  # values of history in one answer
SESSION_MIN_S, SESSION_MAX_S = 10.0, 3600.0
HELLO_WAIT_S: Final = 20.0  # until a connection has a session
TICKET_BYTES: Final = 32
NAMESPACE_INDEX: Final = 2

PRODUCT: Final = "https://github.com/powerblock/powerblock"

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

DECRYPT: Final[Mapping[str, Callable[[Any, bytes], bytes]]] = {
    "http://www.w3.org/2001/04/xmlenc#rsa-oaep": uacrypto.decrypt_rsa_oaep,
    "http://opcfoundation.org/UA/security/rsa-oaep-sha2-256": uacrypto.decrypt_rsa_oaep_sha256,
}
VERIFY: Final[Mapping[str, Callable[[Any, bytes, bytes], None]]] = {
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256": uacrypto.verify_sha256,
    "http://opcfoundation.org/UA/security/rsa-pss-sha2-256": uacrypto.verify_pss_sha256,
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Past:
    """A piece of history, oldest first unless asked the other way round. `next_utc_s`: there is more from there on."""

    values: Sequence[ua.DataValue]
    next_utc_s: float | None = None


class Keeper(Protocol):
    """Remembers values."""

    def read(
        self, variable: Variable, start_utc_s: float | None, end_utc_s: float | None, most: int
    ) -> Past: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a server.

    Attributes:
        host, port: where it listens; port 0: any.
        uri, name: of this application.
        policies: what a session may be secured with; `UNSECURED` among them: with nothing.
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


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Who decides what.

    Attributes:
        clients: whose certificates are let in.
        users: who is who.
        needs: least role of whoever has a session at all.
        write: carries a write out, for whom.
        keeper: of history.
        standard_calls: methods of the standard address space, by number.
    """

    clients: ClientFolder
    users: Authority
    needs: int
    write: Callable[[Identity, Variable, Any], Awaitable[int]]
    keeper: Keeper
    standard_calls: Mapping[int, Callable[["Caller", ua.NodeId, list[Any]], Awaitable[Answer]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a method, and the subscriptions that are his."""

    identity: Identity
    session: "_Session"

    def hears(self, number: int, event: Event, item: int | None = None) -> bool:
        """Tell one of his subscriptions alone; False: it is not his."""
        try:
            one = self.session.service.find(self.session, number)
        except ServiceError:
            return False
        if item is not None and not one.has_item(item):
            return False
        one.hear(event, item)
        return True


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
    def sessions(self) -> "list[_Session]":
        return [one for one in self._external_sessions.values() if one.is_activated()]

    def create_session(self, name: Any, user: Any = None, external: bool = False) -> "_Session":  # noqa: ARG002
        if len(self._external_sessions) >= self.sessions_max:
            log.warning("opc ua: refused", address=_address(name), why=f"{self.sessions_max} sessions are open")
            raise ServiceError(ua.StatusCodes.BadTooManySessions)
        return _Session(self, name)


class _Session(InternalSession):  # type: ignore[misc]  # asyncua is untyped here
    """A client at work."""

    def __init__(self, iserver: _Internals, name: Any) -> None:
        super().__init__(iserver, iserver.aspace, iserver.service, name, external=False)
        self.external, self.auth_token = True, ua.NodeId(secrets.token_bytes(TICKET_BYTES), 0)
        iserver.register_external_session(self)
        self.address = _address(name)
        self.service: SubscriptionService = iserver.service
        self.rules: Rules = iserver.rules
        self.identity = NOBODY
        self.channel: _Processor | None = None
        self.certificate: bytes | None = None

    @property
    def role(self) -> int:
        return self.identity.role

    # --- who it is --------------------------------------------------------------------------------------

    def opened_by(self, channel: "_Processor") -> None:
        self.channel, self.certificate = channel, channel.certificate

    def activate_session(
        self, params: ua.ActivateSessionParameters, peer_certificate: bytes | None
    ) -> ua.ActivateSessionResult:
        if peer_certificate != self.certificate:
            raise ServiceError(ua.StatusCodes.BadSecurityChecksFailed)
        identity = self._identified(params)
        result = super().activate_session(params, peer_certificate)
        if identity != self.identity:
            log.info("opc ua: session", user=identity.name, role=identity.role, address=self.address)
        self.identity, self.user = identity, User(role=UserRole.User, name=identity.name)
        return result

    def _identified(self, params: ua.ActivateSessionParameters) -> Identity:
        guesses, token = self.iserver.guesses, params.UserIdentityToken
        if not guesses.may(self.address):
            log.warning("opc ua: refused", address=self.address, why="too many wrong passwords in a minute")
            raise ServiceError(ua.StatusCodes.BadUserAccessDenied)
        try:
            identity = self._named(token, params.UserTokenSignature)
        except (ValueError, TypeError, struct.error, uacrypto.InvalidSignature) as error:
            guesses.wrong(self.address)
            raise ServiceError(ua.StatusCodes.BadIdentityTokenInvalid) from error
        if identity is None or identity.role < self.rules.needs:
            guesses.wrong(self.address)
            who = getattr(token, "UserName", None) or type(token).__name__
            log.warning("opc ua: refused", address=self.address, user=str(who)[:80], why="not known, or no role")
            raise ServiceError(ua.StatusCodes.BadUserAccessDenied)
        return identity

    def _named(self, token: Any, signature: ua.SignatureData) -> Identity | None:
        users = self.rules.users
        match token:
            case ua.UserNameIdentityToken():
                return users.by_password(str(token.UserName), self._password(token))
            case ua.X509IdentityToken():
                return users.by_certificate(self._signed(token, signature))
            case ua.AnonymousIdentityToken():
                return users.anonymous()
            case ua.ExtensionObject() if token.TypeId.is_null():  # OPC 10000-4, 5.7.3: the same
                return users.anonymous()
        raise ServiceError(ua.StatusCodes.BadIdentityTokenRejected)

    def _password(self, token: ua.UserNameIdentityToken) -> str:
        """Raises ValueError."""
        if not token.EncryptionAlgorithm:
            assert self.channel is not None
            if self.channel.mode is not ua.MessageSecurityMode.SignAndEncrypt:
                raise ServiceError(ua.StatusCodes.BadIdentityTokenRejected)
            return bytes(token.Password or b"").decode()
        decrypt = DECRYPT.get(token.EncryptionAlgorithm)
        if decrypt is None:
            raise ServiceError(ua.StatusCodes.BadIdentityTokenRejected)
        content = decrypt(self.iserver.private_key, token.Password)
        (length,) = struct.unpack_from("<I", content)
        secret, nonce = content[4 : 4 + length], self.nonce or b""
        if not hmac.compare_digest(secret[-len(nonce) :], nonce):
            raise ValueError("encrypted for another session")
        return secret[: -len(nonce)].decode()

    def _signed(self, token: ua.X509IdentityToken, signature: ua.SignatureData) -> bytes:
        """Certificate of a user who has its key. Raises ValueError, InvalidSignature."""
        verify = VERIFY.get(signature.Algorithm or "")
        if verify is None:
            raise ServiceError(ua.StatusCodes.BadUserSignatureInvalid)
        content = bytes(token.CertificateData)
        ours = uacrypto.der_from_x509(self.iserver.certificate)
        verify(uacrypto.x509_from_der(content), ours + (self.nonce or b""), signature.Signature)
        return content

    # --- values -----------------------------------------------------------------------------------------

    async def read(self, params: ua.ReadParameters) -> list[ua.DataValue]:
        _bounded(params.NodesToRead, OPERATIONS_MAX)
        answers = self.iserver.attribute_service.read(params)
        for place, asked in enumerate(params.NodesToRead):
            if asked.AttributeId in MINE:
                answers[place] = self._mine(asked, answers[place])
        return answers

    def _mine(self, asked: ua.ReadValueId, answer: ua.DataValue) -> ua.DataValue:
        """What this user may, where the attribute says what anybody may."""
        entry = self.iserver.space.entry(asked.NodeId)
        if isinstance(entry, Method) and self.role < entry.needs:
            return ua.DataValue(ua.Variant(False, ua.VariantType.Boolean))
        if isinstance(entry, Variable) and entry.meaning.needs is not None and self.role < entry.meaning.needs:
            mask = answer.Value.Value & ~ua.AccessLevel.CurrentWrite.mask
            return ua.DataValue(ua.Variant(mask, ua.VariantType.Byte))
        return answer

    async def write(self, params: ua.WriteParameters) -> list[ua.StatusCode]:
        _bounded(params.NodesToWrite, ORDERS_MAX)
        return [ua.StatusCode(ua.UInt32(await self._write(asked))) for asked in params.NodesToWrite]

    async def _write(self, asked: ua.WriteValue) -> int:
        entry = self.iserver.space.entry(asked.NodeId)
        if entry is None and asked.NodeId not in self.iserver.aspace:
            return ua.StatusCodes.BadNodeIdUnknown
        is_value = isinstance(entry, Variable) and asked.AttributeId == ua.AttributeIds.Value
        if not isinstance(entry, Variable) or not is_value or entry.meaning.needs is None:
            return ua.StatusCodes.BadNotWritable
        if self.role < entry.meaning.needs:
            return ua.StatusCodes.BadUserAccessDenied
        if asked.IndexRange or (asked.Value.StatusCode is not None and not asked.Value.StatusCode.is_good()):
            return ua.StatusCodes.BadWriteNotSupported
        value = _fitting(entry.meaning.kind, asked.Value.Value)
        if value is None:
            return ua.StatusCodes.BadTypeMismatch
        return await self.rules.write(self.identity, entry, value)

    async def history_read(self, params: ua.HistoryReadParameters) -> list[ua.HistoryReadResult]:
        _bounded(params.NodesToRead, OPERATIONS_MAX)
        if params.ReleaseContinuationPoints:
            return [ua.HistoryReadResult() for _ in params.NodesToRead]  # they hold nothing here
        return [self._history(params.HistoryReadDetails, asked) for asked in params.NodesToRead]

    def _history(self, details: Any, asked: ua.HistoryReadValueId) -> ua.HistoryReadResult:
        entry = self.iserver.space.entry(asked.NodeId)
        if not isinstance(entry, Variable):
            return _no_history(ua.StatusCodes.BadNodeIdUnknown)
        is_raw = isinstance(details, ua.ReadRawModifiedDetails) and not details.IsReadModified
        if not is_raw or not entry.meaning.is_kept:
            return _no_history(ua.StatusCodes.BadHistoryOperationUnsupported)
        start_utc_s, end_utc_s = _utc_s(details.StartTime), _utc_s(details.EndTime)
        if [start_utc_s, end_utc_s, details.NumValuesPerNode or None].count(None) > 1:
            return _no_history(ua.StatusCodes.BadHistoryOperationInvalid)  # two of three: OPC 10000-11, 6.5.3
        if asked.ContinuationPoint:
            (start_utc_s,) = struct.unpack("<d", asked.ContinuationPoint[:8].ljust(8, b"\0"))
        most = min(details.NumValuesPerNode or KEEP_MAX, KEEP_MAX)
        past = self.rules.keeper.read(entry, start_utc_s, end_utc_s, most)
        goes_on = past.next_utc_s is not None and None not in {_utc_s(details.StartTime), end_utc_s}
        return ua.HistoryReadResult(
            StatusCode=ua.StatusCode(ua.StatusCodes.Good if past.values else ua.StatusCodes.GoodNoData),
            ContinuationPoint=struct.pack("<d", past.next_utc_s) if goes_on else None,
            HistoryData=ua.HistoryData(DataValues=list(past.values)),
        )

    async def history_update(self, params: ua.HistoryUpdateParameters) -> list[ua.HistoryUpdateResult]:
        refused = ua.StatusCode(ua.StatusCodes.BadHistoryOperationUnsupported)
        return [ua.HistoryUpdateResult(StatusCode=refused) for _ in params.HistoryUpdateDetails]

    # --- methods ----------------------------------------------------------------------------------------

    async def call(self, params: list[ua.CallMethodRequest]) -> list[ua.CallMethodResult]:
        _bounded(params, ORDERS_MAX)
        return [await self._call(asked) for asked in params]

    async def _call(self, asked: ua.CallMethodRequest) -> ua.CallMethodResult:
        given = asked.InputArguments or []
        if asked.MethodId.NamespaceIndex == 0:
            standard = self.rules.standard_calls.get(asked.MethodId.Identifier)
            if standard is None:
                return _called(Answer(ua.StatusCodes.BadMethodInvalid))
            arguments = [one.Value for one in given]
            return _called(await standard(Caller(self.identity, self), asked.ObjectId, arguments))
        entry = self.iserver.space.entry(asked.MethodId)
        if not isinstance(entry, Method) or asked.ObjectId != self.iserver.space.node_id(entry.parent):
            return _called(Answer(ua.StatusCodes.BadMethodInvalid))
        if self.role < entry.needs:
            return _called(Answer(ua.StatusCodes.BadUserAccessDenied))
        if len(given) != len(entry.inputs):
            few = len(given) < len(entry.inputs)
            return _called(
                Answer(ua.StatusCodes.BadArgumentsMissing if few else ua.StatusCodes.BadTooManyArguments)
            )
        fitting = [_fitting(one.kind, variant) for one, variant in zip(entry.inputs, given, strict=True)]
        if None in fitting:
            results = [BAD_TYPE if value is None else ua.StatusCode() for value in fitting]
            return ua.CallMethodResult(
                StatusCode=ua.StatusCode(ua.StatusCodes.BadInvalidArgument), InputArgumentResults=results
            )
        return _called(await entry.call(self.identity, fitting), len(given))

    # --- subscriptions ----------------------------------------------------------------------------------

    async def create_subscription(
        self, params: ua.CreateSubscriptionParameters, callback: Any, request_callback: Any = None
    ) -> ua.CreateSubscriptionResult:
        del callback, request_callback  # both are the channel's, which may be another one tomorrow
        assert self.channel is not None
        return self.service.create(self, self.channel, params)

    def modify_subscription(self, params: ua.ModifySubscriptionParameters) -> ua.ModifySubscriptionResult:
        return self.service.modify(self, params)

    async def delete_subscriptions(self, ids: list[int]) -> list[ua.StatusCode]:
        return await self.service.delete(self, ids)

    async def set_publishing_mode(self, params: ua.SetPublishingModeParameters) -> list[ua.StatusCode]:
        results = []
        for number in params.SubscriptionIds:
            try:
                self.service.find(self, number).enabled = bool(params.PublishingEnabled)
                results.append(ua.StatusCode())
            except ServiceError as refused:
                results.append(ua.StatusCode(refused.code))
        return results

    async def create_monitored_items(
        self, params: ua.CreateMonitoredItemsParameters
    ) -> list[ua.MonitoredItemCreateResult]:
        _bounded(params.ItemsToCreate, OPERATIONS_MAX)
        one, results = self.service.find(self, params.SubscriptionId), []
        for asked in params.ItemsToCreate:
            results.append(one.create(params.TimestampsToReturn, asked))
            if len(results) % TURN == 0:
                await asyncio.sleep(0)  # others are waiting
        return results

    async def modify_monitored_items(
        self, params: ua.ModifyMonitoredItemsParameters
    ) -> list[ua.MonitoredItemModifyResult]:
        _bounded(params.ItemsToModify, OPERATIONS_MAX)
        one = self.service.find(self, params.SubscriptionId)
        return [one.modify(params.TimestampsToReturn, asked) for asked in params.ItemsToModify]

    async def set_monitoring_mode(self, params: ua.SetMonitoringModeParameters) -> list[ua.StatusCode]:
        one = self.service.find(self, params.SubscriptionId)
        return one.set_mode(ua.MonitoringMode(params.MonitoringMode), params.MonitoredItemIds)

    async def delete_monitored_items(self, params: ua.DeleteMonitoredItemsParameters) -> list[ua.StatusCode]:
        return self.service.find(self, params.SubscriptionId).delete(params.MonitoredItemIds)

    def publish(
        self, acks: Sequence[ua.SubscriptionAcknowledgement] | None = None
    ) -> tuple[int, list[ua.StatusCode]]:
        return self.service.publish(self, acks or [])

    def republish(self, params: ua.RepublishParameters) -> ua.NotificationMessage:
        return self.service.find(self, params.SubscriptionId).republish(params.RetransmitSequenceNumber)

    async def transfer_subscriptions(
        self, params: ua.TransferSubscriptionsParameters, callback: Any
    ) -> list[ua.TransferResult]:
        del callback
        return [self._transfer(number, bool(params.SendInitialValues)) for number in params.SubscriptionIds]

    def _transfer(self, number: int, tell_all: bool) -> ua.TransferResult:
        """Only what is of the same user and the same application."""
        assert self.channel is not None
        one = self.service.subscriptions.get(number)
        if one is None:
            return ua.TransferResult(StatusCode=ua.StatusCode(ua.StatusCodes.BadSubscriptionIdInvalid))
        owner = one.owner
        same = isinstance(owner, _Session) and (owner.identity, owner.certificate) == (
            self.identity,
            self.certificate,
        )
        if not same:
            return ua.TransferResult(StatusCode=ua.StatusCode(ua.StatusCodes.BadUserAccessDenied))
        return self.service.transfer(number, self, self.channel, tell_all=tell_all)


class _Processor(UaProcessor):  # type: ignore[misc]  # asyncua is untyped here
    """A connection's requests."""

    def __init__(self, iserver: _Internals, transport: Any, limits: TransportLimits) -> None:
        super().__init__(iserver, transport, limits)
        self._in_hand: set[asyncio.Task[Any]] = set()

    @property
    def certificate(self) -> bytes | None:
        return self._connection.security_policy.peer_certificate

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

    def _refusal(self, kind: int) -> int:
        """Status; 0: none."""
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
            log.warning("opc ua: refused", address=_address(self.name), why=str(refused))
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
            log.warning("opc ua: closed", address=_address(self.peer_name), why="what it sends is no OPC UA")
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
            log.info("opc ua: closed", address=_address(self.peer_name), why=f"{type(error).__name__}: {error}")
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


def _bounded(asked: Sequence[Any], most: int) -> None:
    if len(asked) > most:
        raise ServiceError(ua.StatusCodes.BadTooManyOperations)
    if not asked:
        raise ServiceError(ua.StatusCodes.BadNothingToDo)


def _fitting(kind: ua.VariantType, variant: ua.Variant | None) -> Any:
    """The value, if it is of this type; a number of any size counts as one. None: it is not."""
    value = variant.Value if variant is not None else None
    if kind is ua.VariantType.String:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _called(answer: Answer, inputs: int = 0) -> ua.CallMethodResult:
    return ua.CallMethodResult(
        StatusCode=ua.StatusCode(ua.UInt32(answer.status)),
        InputArgumentResults=[ua.StatusCode() for _ in range(inputs)],
        OutputArguments=list(answer.outputs),
    )


def _no_history(status: int) -> ua.HistoryReadResult:
    return ua.HistoryReadResult(StatusCode=ua.StatusCode(status))


def _utc_s(moment: datetime | None) -> float | None:
    """None for the first moment of OPC UA's calendar, too: that is how a client leaves it out."""
    if moment is None or moment.year <= 1601:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _address(peer: Any) -> str:
    return str(peer[0]) if isinstance(peer, tuple) and peer else str(peer)


def _quieten() -> None:
    """The library writes a stack for whatever a stranger sends; what matters is said here."""
    for name in ("asyncua.server", "asyncua.uaprotocol"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


MINE: Final = {ua.AttributeIds.UserAccessLevel, ua.AttributeIds.UserExecutable}
TURN: Final = 200
BAD_TYPE: Final = ua.StatusCode(ua.StatusCodes.BadTypeMismatch)
