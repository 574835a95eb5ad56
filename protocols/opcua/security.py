"""How a connection is secured: policy and mode, our certificate, whom we trust, and who we say we are.

The order matters. First the server shows its certificate, over an open channel that carries nothing else;
then it is judged, against a pinned file or a `TrustFolder`; only then a channel is opened that is encrypted
for this very certificate, and only in there a password travels. A server that shows another certificate
inside, or that would have the password in the clear, does not get it.

Files are read at every connect, so renewed certificates hold from the next one on, and a reconnect never
comes without them. `Security` is refused when it is built if it could not work, or if it would look safer
than it is; unsecured is a word one has to say: `UNSECURED`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from asyncua import Client, ua
from asyncua.client.ua_session import UaSession
from asyncua.common.utils import Buffer
from asyncua.crypto import security_policies
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from protocols.opcua.fence import REMEDIES, PeerError, ask
from protocols.opcua.trust import RefusedError, TrustFolder, certificates_in, complaint_of_dates, uris_of

APPLICATION_URI: Final = "urn:powerblock:gateway"  # where no certificate says otherwise
APPLICATION_NAME: Final = "powerblock"
LIBRARY_CHECK_S: Final = (
    86_400.0  # its own probe drops servers that hide their state; the device has its beat
)
ANSWER_MAX_BYTES: Final = 64 * 1024  # thirty texts of 2 KiB; decoding more would make our own beat late
MESSAGE_MAX_BYTES: Final = 16 * 1024 * 1024  # never decoded, but it takes memory
CHANNEL_LIFE_LEAST_MS: Final = 500  # a server that grants none would have its keys renewed without a pause
KEY_FILE_MAX_BYTES: Final = 64 * 1024  # a chain of certificates has some 8 KiB
UNENCRYPTED: Final = ("", security_policies.SecurityPolicyNone.URI)

Policy = Literal["None", "Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"]
Mode = Literal["None", "Sign", "SignAndEncrypt"]

POLICIES: Final = {
    "Basic256Sha256": security_policies.SecurityPolicyBasic256Sha256,
    "Aes128Sha256RsaOaep": security_policies.SecurityPolicyAes128Sha256RsaOaep,
    "Aes256Sha256RsaPss": security_policies.SecurityPolicyAes256Sha256RsaPss,
}
MODES: Final = {
    "Sign": ua.MessageSecurityMode.Sign,
    "SignAndEncrypt": ua.MessageSecurityMode.SignAndEncrypt,
}


@dataclass(frozen=True, kw_only=True)
class Security:
    """How to connect; see the module. Raises ValueError, with the remedy, for what cannot work or is unsafe.

    Attributes:
        certificate, key: ours, PEM or DER; issuers may follow in the certificate's file.
        server_certificate: the one certificate that the server must show, or
        trust: a `TrustFolder` to judge it by; exactly one of the two.
        user, password, password_file: who we are to the server; the file is read at every connect.
        user_certificate, user_key: the same by certificate.
    """

    policy: Policy = "Basic256Sha256"
    mode: Mode = "SignAndEncrypt"
    certificate: Path | None = None
    key: Path | None = None
    server_certificate: Path | None = None
    trust: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    user_certificate: Path | None = None
    user_key: Path | None = None

    def __post_init__(self) -> None:
        complaints = [text for wrong, text in self._complaints() if wrong]
        if complaints:
            raise ValueError("security: " + "; ".join(complaints))

    def _complaints(self) -> Sequence[tuple[bool, str]]:
        secured = self.policy != "None"
        by_password = bool(self.password or self.password_file)
        by_certificate = bool(self.user_certificate or self.user_key)
        ours = (self.certificate, self.key, self.server_certificate, self.trust)
        return (
            (secured and self.policy not in POLICIES, f"policy {self.policy!r}; use {', '.join(POLICIES)}"),
            (secured and self.mode not in MODES, f"mode {self.mode!r}; use {', '.join(MODES)}"),
            (not secured and self.mode != "None", "policy None goes with mode None alone"),
            (not secured and any(ours), "policy None uses no certificates; choose a policy or remove them"),
            (not secured and bool(self.user), "a user needs a policy: the password would travel unguarded"),
            (
                secured and not (self.certificate and self.key),
                "give certificate and key; powerblock's own, not the server's",
            ),
            (
                secured and (self.server_certificate is None) == (self.trust is None),
                "give either server_certificate or a trust folder, or anybody could be the server",
            ),
            (bool(self.password and self.password_file), "give password or password_file, not both"),
            (by_password != bool(self.user), "user and password go together"),
            (
                (self.user_certificate is None) != (self.user_key is None),
                "user_certificate and user_key go together",
            ),
            (by_certificate and bool(self.user), "give a user or a user certificate, not both"),
            (by_certificate and not secured, "a user certificate needs a policy"),
        )


UNSECURED: Final = Security(policy="None", mode="None")  # what everybody on the network may read and forge


class Identity(NamedTuple):
    """A certificate, its issuers, and its key."""

    certificate: x509.Certificate
    issuers: list[x509.Certificate]
    key: Any


class BoundedSession(UaSession):  # type: ignore[misc]  # asyncua is untyped here
    """asyncua's session, except that no answer holds up the loop: what is too large is refused undecoded."""

    async def _send_request(self, request: Any, timeout: float | None = None) -> Buffer:
        answer = await super()._send_request(request, timeout)
        if len(answer) > ANSWER_MAX_BYTES and isinstance(request, ua.ReadRequest | ua.PublishRequest):
            raise ua.UaStatusCodeError(ua.StatusCodes.BadResponseTooLarge)
        return answer


class SecuredClient(Client):  # type: ignore[misc]  # asyncua is untyped here
    """asyncua's client, except that it says why, and never sends a password that others could read."""

    secure_channel_timeout: int  # ms

    def __init__(self, url: str, wait_max_s: float) -> None:
        super().__init__(url, timeout=wait_max_s, watchdog_intervall=LIBRARY_CHECK_S)
        self.uaclient.session = BoundedSession(self.uaclient)

    async def send_hello(self) -> None:
        await super().send_hello()
        limits = self.uaclient.protocol._connection._limits  # what the server wishes is no limit  # noqa: SLF001
        limits.max_message_size = min(limits.max_message_size or MESSAGE_MAX_BYTES, MESSAGE_MAX_BYTES)

    async def open_secure_channel(self, renew: bool = False) -> None:
        try:
            await super().open_secure_channel(renew)
        except AssertionError as error:  # the library logs the server's refusal, and stumbles over it
            remedy = REMEDIES["BadSecurityChecksFailed"]
            raise PeerError(f"the server refuses the secure channel: {remedy}", lasting=True) from error
        self.secure_channel_timeout = max(self.secure_channel_timeout, CHANNEL_LIFE_LEAST_MS)

    async def activate_session(
        self, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> Any:
        encrypted = self.security_policy.Mode == ua.MessageSecurityMode.SignAndEncrypt
        if username:
            token = self.server_policy(ua.UserTokenType.UserName)
            if not encrypted and token.SecurityPolicyUri in UNENCRYPTED:
                raise PeerError(
                    "the server wants the password in the clear: use SignAndEncrypt", lasting=True
                )
        return await super().activate_session(username, password, certificate)


async def secured_client(url: str, security: Security, wait_max_s: float) -> tuple[SecuredClient, bytes]:
    """A client for one connection, made ready, and the server's certificate as trusted (b"" if unsecured).

    Nothing has been sent to the server yet but the question for its endpoints.

    Raises:
        PeerError: the server cannot be asked, offers no such policy, is not trusted, or a file of ours is
            unfit; the text says which.
    """
    client = SecuredClient(url, wait_max_s)
    client.application_uri, client.name, client.description = (
        APPLICATION_URI,
        APPLICATION_NAME,
        APPLICATION_NAME,
    )
    if security.policy == "None":
        return client, b""
    own = await ask(asyncio.to_thread(_identity, security.certificate, security.key), wait_max_s)
    client.application_uri = next(iter(uris_of(own.certificate)), APPLICATION_URI)
    shown = await _server_certificate(url, security, wait_max_s)
    server = certificates_in(shown)[0]
    policy = POLICIES[security.policy](
        server, own.certificate, own.key, MODES[security.mode], host_cert_chain=own.issuers
    )
    client.security_policy = policy
    client.uaclient.set_security(policy)
    if security.user:
        client.set_user(security.user)
        client.set_password(await ask(asyncio.to_thread(_password, security), wait_max_s))
    if security.user_certificate is not None:
        user = await ask(
            asyncio.to_thread(_identity, security.user_certificate, security.user_key), wait_max_s
        )
        client.user_certificate, client.user_private_key = user.certificate, user.key
    return client, shown


async def judge_again(url: str, security: Security, shown: bytes, wait_max_s: float) -> None:
    """Whether the server's certificate still holds: it may have expired or been revoked since we connected.

    Raises PeerError if not.
    """
    if shown:
        await ask(asyncio.to_thread(_judge, url, security, shown, ""), wait_max_s)


async def _server_certificate(url: str, security: Security, wait_max_s: float) -> bytes:
    """The certificate to encrypt for, judged."""
    application_uri = ""
    if security.server_certificate is not None:
        pinned = await ask(asyncio.to_thread(_certificates, security.server_certificate), wait_max_s)
        shown = pinned[0].public_bytes(serialization.Encoding.DER)
    else:
        endpoint = _chosen(await _endpoints(url, wait_max_s), security)
        shown = bytes(endpoint.ServerCertificate or b"")
        application_uri = str(endpoint.Server.ApplicationUri or "")
    await ask(asyncio.to_thread(_judge, url, security, shown, application_uri), wait_max_s)
    return shown


async def _endpoints(url: str, wait_max_s: float) -> list[Any]:
    asker = Client(url, timeout=wait_max_s)
    try:
        return list(await ask(asker.connect_and_get_server_endpoints(), wait_max_s) or ())
    finally:
        asker.disconnect_socket()


def _chosen(endpoints: Sequence[Any], security: Security) -> Any:
    uri, mode = POLICIES[security.policy].URI, MODES[security.mode]
    for endpoint in endpoints:
        if (endpoint.SecurityPolicyUri, endpoint.SecurityMode) == (uri, mode):
            return endpoint
    offers = {f"{str(e.SecurityPolicyUri).rpartition('#')[2]}/{e.SecurityMode.name}" for e in endpoints}
    raise PeerError(
        f"the server does not offer {security.policy}/{security.mode}; it offers {', '.join(sorted(offers))}",
        lasting=True,
    )


def _judge(url: str, security: Security, shown: bytes, application_uri: str) -> None:
    now = datetime.now(UTC)
    if security.trust is None:
        if complaint := complaint_of_dates(certificates_in(shown)[0], now):
            raise PeerError(f"{security.server_certificate} {complaint}", lasting=True)
        return
    host = urlsplit(url).hostname or ""
    try:
        TrustFolder(security.trust).check(shown, host=host, now=now, application_uri=application_uri)
    except RefusedError as refused:
        raise PeerError(str(refused), lasting=True) from refused


def _identity(certificate: Path | None, key: Path | None) -> Identity:
    assert certificate is not None
    assert key is not None
    leaf, *issuers = _certificates(certificate)
    if complaint := complaint_of_dates(leaf, datetime.now(UTC)):
        raise PeerError(f"our own certificate {certificate} {complaint}", lasting=True)
    content = _read(key)
    pem = b"-----BEGIN" in content
    load = serialization.load_pem_private_key if pem else serialization.load_der_private_key
    try:
        private = load(content, None)
    except (ValueError, TypeError) as error:
        raise PeerError(f"{key} is no private key without a password: {error}", lasting=True) from error
    if private.public_key() != leaf.public_key():
        raise PeerError(f"{key} is not the key of {certificate}; give the pair", lasting=True)
    return Identity(leaf, issuers, private)


def _certificates(file: Path) -> list[x509.Certificate]:
    try:
        return certificates_in(_read(file))
    except ValueError as error:
        raise PeerError(f"{file} is no certificate: {error}", lasting=True) from error


def _password(security: Security) -> str:
    if security.password_file is None:
        return security.password
    return _read(security.password_file).decode(errors="replace").rstrip("\r\n")


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(KEY_FILE_MAX_BYTES)
    except OSError as error:
        raise PeerError(f"{file} cannot be read: {error.strerror}; check path and permissions") from error
