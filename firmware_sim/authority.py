"""The certificate authority of one run: made at its start, worth nothing after it.

Mutual TLS in miniature, as a site would have it: one authority, a certificate for each server, one for each
client. A client's name is its certificate's common name, and nothing else about it is believed: brokers map
it to rights, so client certificates carry no alternative name that could be taken for another one. Servers
carry the address that they are called by.

A second authority of the same kind is the foreigner: all its certificates are sound, and nobody here has a
reason to believe them. Keys are P-256: made in a millisecond, and what the field uses.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAME_MAX_CHARS: Final = 64  # of a common name, says X.509
VALID_FROM_AGO: Final = timedelta(days=1)  # for hosts whose clock is behind
VALID_FOR: Final = timedelta(days=7)  # longer than any run


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, as PEM files."""

    name: str
    cert: Path
    key: Path


class Authority:
    """Issues certificates into a folder; `ca` is its own, for those who shall believe it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        usage = _key_usage(signs_certificates=True)
        builder = _begun(self._name, self._name, self._key.public_key(), self._key.public_key())
        made = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, SHA256())
        )
        self.ca.write_bytes(made.public_bytes(Encoding.PEM))

    def server(self, name: str, addresses: Sequence[str]) -> Identity:
        """A certificate for a server that is called by these IP addresses."""
        hosts = x509.SubjectAlternativeName([x509.IPAddress(ip_address(one)) for one in addresses])
        return self._issue(name, ExtendedKeyUsageOID.SERVER_AUTH, hosts)

    def client(self, name: str) -> Identity:
        """A certificate for a client of that name."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def serving(self, identity: Identity) -> ssl.SSLContext:
        """For a server that asks its clients for no certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(identity.cert, identity.key)
        return context

    def calling(self, identity: Identity) -> ssl.SSLContext:
        """For a client that believes this authority alone."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(identity.cert, identity.key)
        return context

    def _issue(
        self, name: str, purpose: x509.ObjectIdentifier, hosts: x509.SubjectAlternativeName | None
    ) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _begun(_common_name(name), self._name, key.public_key(), self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if hosts is not None:
            builder = builder.add_extension(hosts, critical=False)
        identity = Identity(name, self._folder / f"{name}.pem", self._folder / f"{name}.key")
        identity.cert.write_bytes(builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM))
        write_private_key(identity.key, key)
        return identity


def write_private_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """As PKCS #8, readable by its owner alone."""
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer_public: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    """What every certificate has; the key identifiers are what strict verifiers ask for."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - VALID_FROM_AGO)
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
