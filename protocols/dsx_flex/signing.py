"""Signatures of DSX Flex messages: JWS compact (RFC 7515), ES256 or RS256, keys told apart by `kid`.

The classic ways to fool a verifier are closed by construction, not by care:
* the algorithm is the key's, fixed when the key is read; the header's `alg` may only repeat it. So "none" and
  HS256 with our own public key as its secret lead nowhere;
* the key comes from our own set by `kid`; keys or addresses of keys in the header (`jwk`, `jku`, `x5u`) are
  never looked at, and what a header declares critical is refused;
* sizes are bounded before anything is decoded.

A signature does not age: an `exp` in signed data is honoured, though the contract asks for none. Whether a
message is too old is the caller's decision (`envelope.check_age`). A key set opens messages of all its
publishers alike: hold one per publisher.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from joserfc import jws
from joserfc.errors import BadSignatureError, JoseError
from joserfc.jwk import ECKey, RSAKey

from protocols.dsx_flex.wire import (
    PAYLOAD_MAX_BYTES,
    DsxFlexError,
    a_list,
    a_text,
    an_object,
    decode,
    encode,
)
from protocols.members import shown

ALGORITHMS: Final = ("ES256", "RS256")
KEYS_MAX: Final = 64  # in one set: every publisher with an old and a new key, many times over
RSA_MIN_BITS: Final = 2048  # RFC 7518, 3.3
RSA_MAX_BITS: Final = 8192  # more only costs time; its signature is 1366 characters long
HEADER_MAX_CHARS: Final = 2048  # an x5c chain that nobody asked for may stand in it
SIGNATURE_MAX_CHARS: Final = 1400
COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def _registry() -> jws.JWSRegistry:
    """The library's own bounds, set to ours; unknown header members are ignored, as RFC 7515 asks."""
    registry = jws.JWSRegistry(algorithms=list(ALGORITHMS), strict_check_header=False)
    registry.max_header_length = HEADER_MAX_CHARS
    registry.max_payload_length = PAYLOAD_MAX_BYTES
    registry.max_signature_length = SIGNATURE_MAX_CHARS
    return registry


_REGISTRY: Final = _registry()


@dataclass(frozen=True)
class VerifyKey:
    """A publisher's public key with its one algorithm."""

    kid: str
    algorithm: str
    key: ECKey | RSAKey


class KeySet:
    """The public keys of one publisher, by `kid`."""

    def __init__(self, keys: Iterable[VerifyKey]) -> None:
        self._keys: dict[str, VerifyKey] = {}
        for key in keys:
            if key.kid in self._keys:
                raise DsxFlexError(f"key {key.kid!r}: twice in one set; give each key its own kid")
            self._keys[key.kid] = key
        if len(self._keys) > KEYS_MAX:
            raise DsxFlexError(f"key set of {len(self._keys)} keys; {KEYS_MAX} at most")

    def verify(self, compact: str, now_utc_s: float) -> dict[str, Any]:
        """The data that was signed.

        Args:
            compact: JWS compact serialization.
            now_utc_s: decides on an `exp` in the data, if there is one.

        Raises:
            DsxFlexError: not signed by a key of this set with that key's algorithm, or expired.
        """
        key = self._key_for(_header(compact))
        try:
            payload = jws.deserialize_compact(compact, key.key, registry=_REGISTRY).payload
        except BadSignatureError as error:
            raise DsxFlexError(
                f"data: signature does not match key {key.kid!r}: altered, or signed with another key"
            ) from error
        except (JoseError, ValueError) as error:
            raise DsxFlexError(
                f"data: malformed JWS: {error}; send RFC 7515 compact serialization"
            ) from error
        data = decode(payload, "data")
        _check_expiry(data, now_utc_s)
        return data

    def _key_for(self, header: dict[str, Any]) -> VerifyKey:
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS:
            raise DsxFlexError(
                f"data: algorithm {shown(algorithm)} refused; sign with {' or '.join(ALGORITHMS)}"
            )
        if "crit" in header or "b64" in header:
            raise DsxFlexError("data: its header asks for extensions of JWS; sign without crit and b64")
        kid = header.get("kid")
        if not isinstance(kid, str):
            raise DsxFlexError(f"data: kid {shown(kid)}; name the signing key in the header")
        key = self._keys.get(kid)
        if key is None:
            known = ", ".join(sorted(self._keys)) or "none"
            raise DsxFlexError(f"data: kid {shown(kid)} is unknown; known: {known}; add the publisher's key")
        if key.algorithm != algorithm:
            raise DsxFlexError(f"data: algorithm {algorithm}, but key {kid!r} is one for {key.algorithm}")
        return key


class Signer:
    """Our private key. Its public half goes to those who read our messages."""

    def __init__(self, kid: str, private_pem: bytes, password: bytes | None = None) -> None:
        """Takes a PEM of P-256 or of RSA, PKCS #8 or older."""
        path = f"private key {a_text(kid, 'kid')!r}"
        try:
            private = load_pem_private_key(private_pem, password)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise DsxFlexError(f"{path}: {error}; give a PEM of an EC P-256 or RSA private key") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise DsxFlexError(f"{path}: neither EC nor RSA; make one with openssl ecparam -name prime256v1")
        self._header = {"alg": _algorithm(private.public_key(), path), "kid": kid}
        self._key = _wrap(private)

    def sign(self, data: Mapping[str, Any]) -> str:
        """JWS compact serialization of the data."""
        return jws.serialize_compact(self._header, encode(data), self._key, registry=_REGISTRY)


def open_data(
    data: str | Mapping[str, Any], keys: KeySet, now_utc_s: float, *, accept_unsigned: bool
) -> Mapping[str, Any]:
    """What an envelope's `data` says, verified; plain objects only where the site accepts unsigned messages.

    Raises:
        DsxFlexError: unsigned or wrongly signed.
    """
    if isinstance(data, str):
        return keys.verify(data, now_utc_s)
    if not accept_unsigned:
        raise DsxFlexError("data: not signed; sign it, or let the site accept unsigned messages")
    return data


def unverified(data: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """What signed data says, its signature not looked at: to study a message, never to act on it.

    Raises:
        DsxFlexError: not a JWS.
    """
    if not isinstance(data, str):
        return data
    _header(data)  # says what is wrong with a text that is no JWS
    return decode(_base64url(data.split(".")[1], "data"), "data")


def read_public_pem(kid: str, pem: bytes) -> VerifyKey:
    """A public key from its PEM (BEGIN PUBLIC KEY).

    Raises:
        DsxFlexError: no PEM of a P-256 or RSA public key.
    """
    path = f"public key {a_text(kid, 'kid')!r}"
    try:
        public = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DsxFlexError(
            f"{path}: {error}; give a PEM that begins with BEGIN PUBLIC KEY "
            "(from a certificate: openssl x509 -pubkey -noout)"
        ) from error
    if not isinstance(public, PublicKey):
        raise DsxFlexError(f"{path}: neither EC nor RSA; ask the publisher for a key for ES256 or RS256")
    return VerifyKey(kid, _algorithm(public, path), _wrap(public))


def read_jwks(document: bytes) -> tuple[VerifyKey, ...]:
    """The keys of a JWK set (RFC 7517) that can verify ES256 or RS256; others in it are passed over.

    Raises:
        DsxFlexError: no JWK set, no key for us in it, one without kid, or a private key among them.
    """
    entries = a_list(decode(document, "JWKS").get("keys"), "JWKS: keys", KEYS_MAX)
    keys = []
    for number, entry in enumerate(entries):
        path = f"JWKS: keys[{number}]"
        said = an_object(entry, path)
        if "d" in said:
            raise DsxFlexError(f"{path}: a private key; publish the public half alone and replace this key")
        if _can_verify(said):
            keys.append(_jwk(said, path))
    if not keys:
        raise DsxFlexError(f"JWKS: no key for {' or '.join(ALGORITHMS)} in it; ask the publisher for one")
    return tuple(keys)


def _can_verify(jwk: dict[str, Any]) -> bool:
    kind = {("EC", "P-256"): "ES256", ("RSA", None): "RS256"}.get((str(jwk.get("kty")), _curve(jwk)))
    return kind is not None and jwk.get("alg", kind) == kind and jwk.get("use", "sig") == "sig"


def _curve(jwk: dict[str, Any]) -> str | None:
    curve = jwk.get("crv")
    return curve if isinstance(curve, str) else None


def _jwk(said: dict[str, Any], path: str) -> VerifyKey:
    kid = a_text(said.get("kid"), f"{path}.kid")
    public: PublicKey
    try:
        if said["kty"] == "EC":
            x, y = (_number(said.get(name), f"{path}.{name}") for name in ("x", "y"))
            public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        else:
            e, n = (_number(said.get(name), f"{path}.{name}") for name in ("e", "n"))
            public = rsa.RSAPublicNumbers(e, n).public_key()
    except DsxFlexError:
        raise
    except ValueError as error:
        raise DsxFlexError(f"{path}: {error}; ask the publisher for a sound key") from error
    return VerifyKey(kid, _algorithm(public, path), _wrap(public))


def _number(value: object, path: str) -> int:
    """RFC 7518, 2: Base64urlUInt."""
    return int.from_bytes(_base64url(a_text(value, path, RSA_MAX_BITS // 4), path))


def _algorithm(public: PublicKey, path: str) -> str:
    if isinstance(public, rsa.RSAPublicKey):
        if not RSA_MIN_BITS <= public.key_size <= RSA_MAX_BITS:
            raise DsxFlexError(f"{path}: RSA of {public.key_size} bits; {RSA_MIN_BITS} to {RSA_MAX_BITS}")
        return "RS256"
    if not isinstance(public.curve, ec.SECP256R1):
        raise DsxFlexError(f"{path}: curve {public.curve.name}; ES256 takes P-256 (secp256r1)")
    return "ES256"


def _wrap(key: PublicKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> ECKey | RSAKey:
    """In the library's own type. Sizes are checked before: the library only warns of them."""
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return RSAKey.import_key(key)
    return ECKey.import_key(key)


def _header(compact: str) -> dict[str, Any]:
    if len(compact) > PAYLOAD_MAX_BYTES:
        raise DsxFlexError(f"data: {len(compact)} characters; send {PAYLOAD_MAX_BYTES} at most")
    match = COMPACT.fullmatch(compact)
    if match is None:
        raise DsxFlexError(f"data: {shown(compact)} is no JWS; send HEADER.PAYLOAD.SIGNATURE in base64url")
    if len(match[1]) > HEADER_MAX_CHARS or len(match[3]) > SIGNATURE_MAX_CHARS:
        raise DsxFlexError(f"data: header over {HEADER_MAX_CHARS} or signature over {SIGNATURE_MAX_CHARS}")
    return decode(_base64url(match[1], "data: header"), "data: header")


def _base64url(text: str, path: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise DsxFlexError(f"{path}: {shown(text)} is no base64url: {error}") from error


def _check_expiry(data: dict[str, Any], now_utc_s: float) -> None:
    expires = data.get("exp")
    if expires is None:
        return
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        raise DsxFlexError(f"data: exp {shown(expires)}; send UTC seconds, or leave it out")
    if expires <= now_utc_s:
        raise DsxFlexError(f"data: expired (exp {shown(expires)}, now {now_utc_s:.0f}); sign it anew")
