"""Who may come to our OPC UA server: our own certificate, the clients' ones, and how often one may guess.

    own/        cert.der and key.pem, made when the server first starts; key readable by its owner alone
    trusted/    clients' certificates, or authorities that issue them
    issuers/    authorities in between
    crl/        revocation lists
    rejected/   copies of whatever knocked and was refused: a person moves one to trusted/ and it may come in

The folders are read anew for every session, so a client is let in or shut out without a restart.

The library looks at the certificate that a client names when it creates a session, if it names one, and not
at the one that secures the channel. Here it is the channel's, always.
"""

import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocols.opcua.trust import RefusedError, TrustFolder, certificates_in, complaint_of_dates, uris_of

KEY_BITS: Final = 2048  # what all three policies take, and what small panels can still do
VALID_FOR: Final = timedelta(days=20 * 365)  # as long as the plant: nobody renews it at three in the morning
KEY_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
ADDRESSES_MAX: Final = 256  # remembered at a time
FAILURES_OF_ALL: Final = 6  # times as many as from one address
MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody, as authenticated. `role`: higher may more; 0 may nothing."""

    name: str
    role: int


NOBODY: Final = Identity("", 0)


class Authority(Protocol):
    """Knows users."""

    def by_password(self, name: str, password: str) -> Identity | None: ...

    def by_certificate(self, content: bytes) -> Identity | None: ...

    def anonymous(self) -> Identity | None: ...


class ClientFolder(TrustFolder):
    """The same folder for clients. They have no host that could be dialled."""

    def admit(self, content: bytes | None) -> None:
        """Let a client's certificate in, or raise RefusedError and keep a copy of it."""
        try:
            chain = certificates_in(content or b"")
        except ValueError as error:
            raise RefusedError(f"the client's certificate cannot be read: {error}") from error
        if not chain:
            raise RefusedError("the client shows no certificate")
        try:
            self._admit(chain)
        except RefusedError as refused:
            title = chain[0].subject.rfc4514_string()[:120]
            raise RefusedError(
                f"the client's certificate {title!r}: {refused}; {self._keep(chain[0])}"
            ) from refused

    def _admit(self, chain: list[x509.Certificate]) -> None:
        path = self._path(chain)
        if not path:
            raise RefusedError("neither it nor its issuer is trusted; move it to trusted/ if it may come in")
        now = datetime.now(UTC)
        for certificate in path:
            if complaint := complaint_of_dates(certificate, now):
                raise RefusedError(complaint)
            if revoked_by := self._revoked_by(certificate):
                raise RefusedError(f"revoked by {revoked_by}")


@dataclass(frozen=True, slots=True)
class Own:
    """Our certificate and its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey


def own_certificate(certificate_file: Path, key_file: Path, uri: str, *, may_make: bool) -> Own:
    """Ours, read; made first where there is none yet and `may_make`.

    Raises:
        RefusedError: it cannot be read, or is not usable; says what to do.
    """
    try:
        if may_make and not certificate_file.exists():
            _make(certificate_file, key_file, uri)
        certificate = certificates_in(certificate_file.read_bytes())[0]
        key = load_pem_private_key(key_file.read_bytes(), None)
    except OSError as error:
        raise RefusedError(
            f"{error.filename}: {error.strerror}; check the path and its permissions"
        ) from error
    except (ValueError, TypeError, IndexError) as error:
        raise RefusedError(
            f"{certificate_file} and {key_file} are no certificate and its PEM key without password: {error}"
        ) from error
    if not isinstance(key, rsa.RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise RefusedError(f"{key_file} is not the RSA key of {certificate_file}")
    if complaint := complaint_of_dates(certificate, datetime.now(UTC)):
        raise RefusedError(f"{certificate_file}: {complaint}")
    if uri not in uris_of(certificate):
        named = ", ".join(uris_of(certificate)) or "none"
        raise RefusedError(f"{certificate_file} is for {named}, the server is {uri}; set one to the other")
    return Own(certificate, key)


def _make(certificate_file: Path, key_file: Path, uri: str) -> None:
    """The key first: one without a certificate is of no harm, and is replaced."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    for folder in {certificate_file.parent, key_file.parent}:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    key_file.unlink(missing_ok=True)
    key_file.touch(mode=KEY_MODE, exist_ok=False)
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    certificate_file.write_bytes(_self_signed(key, uri).public_bytes(Encoding.DER))


def _self_signed(key: rsa.RSAPrivateKey, uri: str) -> x509.Certificate:
    """As OPC 10000-6, 6.2.2 asks for."""
    host, now = socket.gethostname(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"powerblock {host}"[:64])])
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), x509.DNSName(host)]
    public = key.public_key()
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=True,
        key_encipherment=True,
        data_encipherment=True,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clients' clocks
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


class Guesses:
    """How often somebody may be wrong: per address and, as addresses are cheap, of all together.

    Args:
        per_minute: wrong answers from one address.
        now_s: a clock that does not step.
    """

    def __init__(self, per_minute: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._now_s = per_minute, now_s
        self._wrong_s: dict[str, deque[float]] = {}
        self._all_s: deque[float] = deque(maxlen=per_minute * FAILURES_OF_ALL)

    def may(self, address: str) -> bool:
        """Whether it may try."""
        since_s = self._now_s() - MINUTE_S
        if len(self._all_s) == self._all_s.maxlen and self._all_s[0] > since_s:
            return False
        wrong_s = self._wrong_s.get(address)
        return wrong_s is None or len(wrong_s) < self._per_minute or wrong_s[0] <= since_s

    def wrong(self, address: str) -> None:
        now_s = self._now_s()
        self._all_s.append(now_s)
        if address not in self._wrong_s and len(self._wrong_s) >= ADDRESSES_MAX:
            del self._wrong_s[next(iter(self._wrong_s))]
        self._wrong_s.setdefault(address, deque(maxlen=self._per_minute)).append(now_s)


__all__ = [
    "NOBODY",
    "Authority",
    "ClientFolder",
    "Guesses",
    "Identity",
    "Own",
    "RefusedError",
    "own_certificate",
]
