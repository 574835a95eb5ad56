"""Which BMC, as whom, and why we believe that it is the one: checked when made.

BMCs come with certificates that they signed themselves. Whoever shows another one would get our password, so
there is no "do not verify": either a CA vouches for the certificate and its host name, or its SHA-256 is
known beforehand (`openssl s_client -connect HOST:443 </dev/null | openssl x509 -noout -fingerprint -sha256`).
"""

import re
import ssl
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from protocols.redfish.faults import RedfishConfigError, shown

FINGERPRINT: Final = re.compile(r"[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}")


@dataclass(frozen=True, kw_only=True)
class BmcSettings:
    """One BMC.

    Attributes:
        url: `https://host` or `https://host:port`.
        user: of an account that may change power limits (privilege ConfigureComponents).
        password: not from the url: urls end up in logs.
        ca_file: PEM of who signed its certificate; or
        fingerprint: SHA-256 of its certificate, hexadecimal, colons allowed. Exactly one of the two.
        request_max_s: one request, connection included.
    """

    url: str
    user: str
    password: str = field(repr=False)
    ca_file: str | None = None
    fingerprint: str | None = None
    request_max_s: float = 10.0  # five times what a busy BMC takes

    def __post_init__(self) -> None:
        if wrong := url_fault(self.url):
            raise RedfishConfigError(f"url: {wrong}")
        for name in ("user", "password"):
            if not getattr(self, name):
                raise RedfishConfigError(f"{name}: empty; give the BMC's account")
        if not 0 < self.request_max_s <= 60:
            raise RedfishConfigError(f"request_max_s: {self.request_max_s:g}; give 0 to 60 s, 10 is usual")
        if (self.ca_file is None) == (self.fingerprint is None):
            raise RedfishConfigError(
                f"{self.url}: give exactly one of ca and fingerprint: a certificate that nobody vouches for "
                "and nobody knows would get our password"
            )
        try:
            self.trust()
        except OSError as error:  # ssl.SSLError is one
            raise RedfishConfigError(f"ca {self.ca_file}: {error}; give a readable PEM file") from error

    def trust(self) -> ssl.SSLContext | aiohttp.Fingerprint:
        """How the certificate is judged; the CA file is read anew. Raises OSError, RedfishConfigError."""
        if self.fingerprint is not None:
            if wrong := fingerprint_fault(self.fingerprint):
                raise RedfishConfigError(f"fingerprint: {wrong}")
            return aiohttp.Fingerprint(bytes.fromhex(self.fingerprint.replace(":", "")))
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def fingerprint_fault(text: str) -> str:
    """What is wrong with a fingerprint; empty: nothing."""
    if FINGERPRINT.fullmatch(text):
        return ""
    return f"{shown(text)} is no SHA-256: give 64 hexadecimal digits, with or without colons"


def url_fault(url: str) -> str:
    """What is wrong with the address of a BMC; empty: nothing."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")  # as the resolver will
    except ValueError as error:
        return f"{shown(url)}: {error}; use https://host"
    if parts.scheme != "https" or not parts.hostname:
        return f"{shown(url)}: use https://host; without TLS everybody on that network reads the password"
    if parts.username is not None or parts.password is not None:
        return f"{shown(parts.hostname)}: a password in a url ends up in logs; give it on its own"
    if parts.path.strip("/") or parts.query or parts.fragment:
        return f"{shown(url)}: give host and port alone; Redfish begins at /redfish/v1 everywhere"
    return ""
