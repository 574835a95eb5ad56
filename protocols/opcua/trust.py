"""Which servers are the ones meant: a folder of certificates, kept by people.

    trusted/    a server's certificate, or the authority that issued it: either is enough
    issuers/    authorities in between; they lead up to a trusted one, and are not trusted by themselves
    crl/        revocation lists of those authorities
    rejected/   copies of what was refused, for a person to look at and to move to trusted/

A certificate that lies in trusted/ itself is known, whatever host it names. One that only its issuer speaks
for must name the host that was dialled: an authority vouches for a whole plant, and the certificate of one
device must not open the connection to another.

A revocation list is believed because it lies in our folder: who may write there may as well write trusted/.
One that cannot be read could hide a revocation, so it stops everything until it is replaced.
"""

import hashlib
import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

CHAIN_MAX: Final = 5  # a server, three authorities in between, a root
REJECTED_MAX: Final = 32  # copies kept for people; a stranger could fill the disk otherwise
FILES_MAX: Final = 1024  # in one folder of ours; more were put there by accident
FILE_MAX_BYTES: Final = 4 * 1024 * 1024  # a revocation list of a large authority
RSA_LEAST_BITS: Final = 2048  # OPC 10000-7: all three policies ask for it
CERTIFICATES: Final = (".pem", ".crt", ".cer", ".der")
LISTS: Final = (".crl", ".pem", ".der")


class RefusedError(Exception):
    """A certificate that is not let in; the text says whose, why, and what to do."""


def certificates_in(content: bytes) -> list[x509.Certificate]:
    """PEM or DER, one or several after each other, parsed to the last field. ValueError for anything else."""
    if not content:
        raise ValueError("there is none")
    try:
        pem = b"-----BEGIN" in content
        found = (
            x509.load_pem_x509_certificates(content)
            if pem
            else [x509.load_der_x509_certificate(der) for der in _split(content)]
        )
        for one in found:  # the parser is lazy: what is nonsense shall turn out here and nowhere else
            _ = one.subject, one.issuer, one.extensions, one.public_key(), one.signature_hash_algorithm
    except Exception as error:  # a dozen kinds, some of them its programmer's
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return found


def complaint_of_dates(certificate: x509.Certificate, now: datetime) -> str:
    """Why it does not hold now; '' if it does."""
    if now > certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; have a new one issued"
    if now < certificate.not_valid_before_utc:
        begins = certificate.not_valid_before_utc
        return f"holds only from {begins:%Y-%m-%d %H:%M} UTC; wait, or check the clocks"
    return ""


def uris_of(certificate: x509.Certificate) -> list[str]:
    """The application URIs that it names."""
    names = _alternative_names(certificate)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []


class TrustFolder:
    """The folder; read anew at every check, so that what a person moves holds from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, content: bytes, *, host: str, now: datetime, application_uri: str = "") -> None:
        """Let a server's certificate in, or raise RefusedError and keep a copy of it.

        Args:
            content: as the server sent it: DER, its issuers after it or not.
            host: that was dialled.
            now: with time zone.
            application_uri: that the server claims; '' = none.
        """
        try:
            chain = certificates_in(content)[:CHAIN_MAX]
            self._check(chain, host, now, application_uri)
        except RefusedError as refused:
            kept = self._keep(chain[0])
            raise RefusedError(f"the server's certificate {_title(chain[0])}: {refused}; {kept}") from refused
        except ValueError as error:
            raise RefusedError(f"the server's certificate cannot be read: {error}") from error

    def _check(
        self, chain: Sequence[x509.Certificate], host: str, now: datetime, application_uri: str
    ) -> None:
        leaf = chain[0]
        path = self._path(chain)
        for certificate in path or [leaf]:
            if complaint := complaint_of_dates(certificate, now):
                raise RefusedError(complaint if certificate == leaf else f"{_title(certificate)} {complaint}")
            if list_file := self._revoked_by(certificate):
                who = "" if certificate == leaf else f"{_title(certificate)} "
                raise RefusedError(f"{who}revoked by {list_file}; have a new one issued")
        if not path:
            raise RefusedError("neither it nor its issuer is trusted; move it to trusted/ if it is the one")
        key = leaf.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < RSA_LEAST_BITS:
            raise RefusedError(f"no RSA key of {RSA_LEAST_BITS} bits or more; have a new one issued")
        if application_uri and (uris := uris_of(leaf)) and application_uri not in uris:
            raise RefusedError(f"issued to {', '.join(uris)}, shown by {application_uri}; another server's?")
        if len(path) > 1 and not _names(leaf, host):
            raise RefusedError(f"does not name the host {host}; dial by its name, or move it to trusted/")

    def _path(self, chain: Sequence[x509.Certificate]) -> list[x509.Certificate]:
        """The certificate and its issuers up to a trusted one; empty if none is."""
        trusted = list(self._certificates("trusted"))
        candidates = [*trusted, *self._certificates("issuers"), *chain[1:]]
        path = [chain[0]]
        while path[-1] not in trusted:
            below = len(path) - 1  # authorities between it and the server
            issuer = next((c for c in candidates if c not in path and _issued(c, path[-1], below)), None)
            if issuer is None or len(path) == CHAIN_MAX:
                return []
            path.append(issuer)
        return path

    def _certificates(self, folder: str) -> Iterator[x509.Certificate]:
        for file in self._files(folder, CERTIFICATES):
            with suppress(ValueError):  # a file that is no certificate makes nobody trusted
                yield from certificates_in(_content(file))

    def _revoked_by(self, certificate: x509.Certificate) -> str:
        """Name of the list that revokes it; '' if none does."""
        for file in self._files("crl", LISTS):
            content = _content(file)
            pem = b"-----BEGIN" in content
            try:
                revoked = x509.load_pem_x509_crl(content) if pem else x509.load_der_x509_crl(content)
            except ValueError as error:
                raise RefusedError(f"{file} is no revocation list: replace it or take it away") from error
            if revoked.issuer != certificate.issuer:
                continue
            if revoked.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                return f"crl/{file.name}"
        return ""

    def _files(self, folder: str, endings: tuple[str, ...]) -> list[Path]:
        try:
            files = sorted(self.path.joinpath(folder).iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RefusedError(f"{self.path / folder} cannot be read: {error.strerror}") from error
        files = [file for file in files if file.suffix.lower() in endings and file.is_file()]
        if len(files) > FILES_MAX:
            raise RefusedError(f"{self.path / folder} holds {len(files)} files; {FILES_MAX} at most")
        return files

    def _keep(self, certificate: x509.Certificate) -> str:
        """Put a copy into rejected/, the oldest ones giving way; a sentence that says where."""
        content = certificate.public_bytes(Encoding.DER)
        folder = self.path / "rejected"
        copy = folder / f"{hashlib.sha256(content).hexdigest()[:40]}.der"
        try:
            folder.mkdir(exist_ok=True)
            copy.write_bytes(content)
            copies = sorted(folder.glob("*.der"), key=lambda file: file.stat().st_mtime_ns)
            for old in copies[:-REJECTED_MAX]:
                old.unlink(missing_ok=True)
        except OSError as error:
            return f"no copy could be kept in {folder}: {error.strerror}"
        return f"a copy is {copy}"


def _split(content: bytes) -> Iterator[bytes]:
    """DER certificates one after the other: each begins with its own length."""
    while content:
        if len(content) < 2 or content[0] != 0x30:
            raise ValueError("not a certificate in DER")
        if content[1] < 0x80:
            size = 2 + content[1]
        else:
            digits = content[1] & 0x7F
            size = 2 + digits + int.from_bytes(content[2 : 2 + digits], "big")
        yield content[:size]
        content = content[size:]


def _content(file: Path) -> bytes:
    try:
        if file.stat().st_size > FILE_MAX_BYTES:
            raise RefusedError(f"{file} is larger than {FILE_MAX_BYTES} bytes; no certificate is")
        return file.read_bytes()
    except OSError as error:
        raise RefusedError(f"{file} cannot be read: {error.strerror}; check its permissions") from error


def _issued(issuer: x509.Certificate, certificate: x509.Certificate, below: int) -> bool:
    """Whether one is an authority that may have issued the other, and did."""
    if issuer.subject != certificate.issuer:
        return False
    try:
        authority = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(issuer)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return authority.ca and (authority.path_length is None or below <= authority.path_length)


def _names(certificate: x509.Certificate, host: str) -> bool:
    names = _alternative_names(certificate)
    if names is None:
        return False
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        return host.lower() in [name.lower() for name in names.get_values_for_type(x509.DNSName)]


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _title(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string()[:120])
