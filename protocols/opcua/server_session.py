"""A client's session: who it is, and what it may ask for.

The library has the wire, the nonce and the time-out of a session; all that it asks for goes through here,
once, with the role of whoever asks. What is refused is refused with the status that says why.

Somebody is who he proves to be: by a password that is encrypted for this very session, by a certificate whose
key has signed this session's nonce, or, if the settings let him, by saying nothing. The library would take a
password in the clear, SHA-1, PKCS #1 v1.5, and the application's certificate for a user's.

A ticket takes a session over to another channel, after a broken connection. It is random, and good for the
same application only.
"""

import asyncio
import hmac
import secrets
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog
from asyncua import ua
from asyncua.common.utils import ServiceError
from asyncua.crypto import uacrypto
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.internal_session import InternalSession

from protocols.opcua.server_access import NOBODY, Authority, ClientFolder, Identity
from protocols.opcua.server_events import Event
from protocols.opcua.server_space import Answer, Method
from protocols.opcua.server_subscriptions import SubscriptionService
from protocols.opcua.server_values import TIMES, Variable

OPERATIONS_MAX: Final = 10_000  # of one request, as the server's own limits say
ORDERS_MAX: Final = 50  # writes or calls of one request
KEEP_MAX: Final = 10_000  # values of history in one answer
TICKET_BYTES: Final = 32
TURN: Final = 200  # monitored items made before others have their turn

DECRYPT: Final[Mapping[str, Callable[[Any, bytes], bytes]]] = {
    "http://www.w3.org/2001/04/xmlenc#rsa-oaep": uacrypto.decrypt_rsa_oaep,
    "http://opcfoundation.org/UA/security/rsa-oaep-sha2-256": uacrypto.decrypt_rsa_oaep_sha256,
}
VERIFY: Final[Mapping[str, Callable[[Any, bytes, bytes], None]]] = {
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256": uacrypto.verify_sha256,
    "http://opcfoundation.org/UA/security/rsa-pss-sha2-256": uacrypto.verify_pss_sha256,
}

MINE: Final = {ua.AttributeIds.UserAccessLevel, ua.AttributeIds.UserExecutable}
BAD_TYPE: Final = ua.StatusCode(ua.StatusCodes.BadTypeMismatch)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Past:
    """A piece of history; `next_utc_s`: there is more from there on."""

    values: Sequence[ua.DataValue]
    next_utc_s: float | None = None


class Keeper(Protocol):
    """Remembers values."""

    def read(
        self, variable: Variable, start_utc_s: float | None, end_utc_s: float | None, most: int
    ) -> Past: ...


class Channel(Protocol):
    """The secured connection of a session."""

    @property
    def certificate(self) -> bytes | None: ...

    @property
    def mode(self) -> ua.MessageSecurityMode: ...

    async def forward_publish_response(self, result: ua.PublishResult, request: Any) -> None: ...

    def get_publish_request(self, number: int) -> Any | None: ...


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Who decides what.

    Attributes:
        clients: whose certificates are let in.
        users: who is who.
        write: carries a write out, for whom.
        keeper: of history.
        standard_calls: methods of the standard address space, by number.
    """

    clients: ClientFolder
    users: Authority
    write: Callable[[Identity, Variable, Any], Awaitable[int]]
    keeper: Keeper
    standard_calls: Mapping[int, Callable[["Caller", ua.NodeId, list[Any]], Awaitable[Answer]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a method, and the subscriptions that are his."""

    identity: Identity
    session: "Session"

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


class Session(InternalSession):  # type: ignore[misc]  # asyncua is untyped here
    """A client at work."""

    def __init__(self, iserver: Any, name: Any) -> None:
        super().__init__(iserver, iserver.aspace, iserver.service, name, external=False)
        self.external, self.auth_token = True, ua.NodeId(secrets.token_bytes(TICKET_BYTES), 0)
        iserver.register_external_session(self)
        self.address = address_of(name)
        self.service: SubscriptionService = iserver.service
        self.rules: Rules = iserver.rules
        self.identity = NOBODY
        self.channel: Channel | None = None
        self.certificate: bytes | None = None

    @property
    def role(self) -> int:
        return self.identity.role

    # --- who it is --------------------------------------------------------------------------------------

    def opened_by(self, channel: Channel) -> None:
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
        if identity is None:
            guesses.wrong(self.address)
            who = getattr(token, "UserName", None) or type(token).__name__
            log.warning(
                "opc ua: refused", address=self.address, user=str(who)[:80], why="not known, or wrong"
            )
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
        answers: list[ua.DataValue] = self.iserver.attribute_service.read(params)
        for place, asked in enumerate(params.NodesToRead):
            if asked.AttributeId in MINE:
                answers[place] = self._mine(asked, answers[place])
        return answers

    def _mine(self, asked: ua.ReadValueId, answer: ua.DataValue) -> ua.DataValue:
        """What this user may, where the attribute says what anybody may."""
        entry = self.iserver.space.entry(asked.NodeId)
        if isinstance(entry, Method) and self.role < entry.needs:
            return ua.DataValue(ua.Variant(False, ua.VariantType.Boolean))
        if (
            isinstance(entry, Variable)
            and entry.meaning.needs is not None
            and self.role < entry.meaning.needs
        ):
            mask = answer.Value.Value & ~ua.AccessLevel.CurrentWrite.mask
            return ua.DataValue(ua.Variant(mask, ua.VariantType.Byte))
        return answer

    async def write(self, params: ua.WriteParameters) -> list[ua.StatusCode]:
        _bounded(params.NodesToWrite, ORDERS_MAX)
        return [ua.StatusCode(ua.UInt32(await self._write(asked))) for asked in params.NodesToWrite]

    async def _write(self, asked: ua.WriteValue) -> Any:
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
        return await self._order(entry, given)

    async def _order(self, method: Method, given: Sequence[ua.Variant]) -> ua.CallMethodResult:
        if len(given) < len(method.inputs):
            return _called(Answer(ua.StatusCodes.BadArgumentsMissing))
        if len(given) > len(method.inputs):
            return _called(Answer(ua.StatusCodes.BadTooManyArguments))
        fitting = [_fitting(one.kind, variant) for one, variant in zip(method.inputs, given, strict=True)]
        if None in fitting:
            results = [BAD_TYPE if value is None else ua.StatusCode() for value in fitting]
            status = ua.StatusCode(ua.StatusCodes.BadInvalidArgument)
            return ua.CallMethodResult(StatusCode=status, InputArgumentResults=results)
        return _called(await method.call(self.identity, fitting), len(given))

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
        _known(params.TimestampsToReturn)
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
        _known(params.TimestampsToReturn)
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
        same = isinstance(owner, Session) and (owner.identity, owner.certificate) == (
            self.identity,
            self.certificate,
        )
        if not same:
            return ua.TransferResult(StatusCode=ua.StatusCode(ua.StatusCodes.BadUserAccessDenied))
        return self.service.transfer(number, self, self.channel, tell_all=tell_all)


def _bounded(asked: Sequence[Any], most: int) -> None:
    if len(asked) > most:
        raise ServiceError(ua.StatusCodes.BadTooManyOperations)
    if not asked:
        raise ServiceError(ua.StatusCodes.BadNothingToDo)


def _known(times: ua.TimestampsToReturn) -> None:
    if times not in TIMES:
        raise ServiceError(ua.StatusCodes.BadTimestampsToReturnInvalid)


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


def address_of(peer: Any) -> str:
    """Of a socket's peer, for the log and for counting."""
    return str(peer[0]) if isinstance(peer, tuple) and peer else str(peer)
