"""Who we are and whom we ask: checked when made, so that what is wrong is said before anything starts.

Secrets and tokens go only to addresses that are encrypted, unless the settings say that this is a laboratory.
What a VTN names by itself (a token server, a broker) is held to the same rule, by the same function.
"""

import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from protocols.ven.faults import shown


class VenConfigError(ValueError):
    """The VEN cannot work as configured; the text names the culprit and the remedy."""


@dataclass(frozen=True, kw_only=True)
class VenSettings:
    """Who we are, whom we ask.

    Attributes:
        url: base path of the VTN: `https://vtn.example/openadr3/3.1.0`.
        client_id: from the VTN's operator, with its secret.
        client_secret: not from the url: urls end up in logs.
        ven_name: unique at the VTN.
        resources: names to register below it.
        token_url: None: asked of the VTN at /auth/server, else its own /auth/token.
        scope: None: what the VTN grants by itself.
        ca_file: PEM of who vouches for VTN and broker (a file may hold several); None: the system's.
        cert_file: our own certificate, where the VTN or its broker asks for one.
        key_file: its key; None: in `cert_file` as well.
        plain: http:// and mqtt:// are allowed: laboratories only.
        poll_s: longest time between two rounds.
    """

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    ven_name: str
    resources: tuple[str, ...] = ()
    token_url: str | None = None
    scope: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    plain: bool = False
    poll_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("client_id", "client_secret", "ven_name"):
            if not getattr(self, name):
                raise VenConfigError(f"{name}: empty; the VTN's operator assigns it")
        if not self.poll_s > 0:
            raise VenConfigError(f"poll_s: {self.poll_s:g}; give seconds above 0, 60 is usual")
        for name, url in (("url", self.url), ("token_url", self.token_url)):
            if url is not None and (wrong := url_fault(url, "https", plain=self.plain)):
                raise VenConfigError(f"{name}: {wrong}")
        try:
            self.tls_context()
        except OSError as error:  # ssl.SSLError is one
            raise VenConfigError(
                f"ca_file {self.ca_file}, cert_file {self.cert_file}, key_file {self.key_file}: {error}; "
                "give readable PEM files that belong together"
            ) from error

    def tls_context(self) -> ssl.SSLContext:
        """Made anew from the files."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


def url_fault(url: str, safe_scheme: str, *, plain: bool) -> str:
    """What is wrong with an address; empty: nothing.

    Args:
        url: of a server, whoever names it.
        safe_scheme: "https" or "mqtts"; without its s it is the plain one.
        plain: that one is allowed, too.
    """
    allowed = {safe_scheme, safe_scheme[:-1]} if plain else {safe_scheme}
    try:
        parts = urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")  # as the resolver will, where it would be no OSError
    except ValueError as error:
        return f"{shown(url)}: {error}; use {safe_scheme}://host"
    if parts.scheme + "s" == safe_scheme and not plain:
        return f"{shown(url)} is not encrypted; use {safe_scheme}://, or set plain: true in a laboratory"
    if parts.scheme not in allowed or not parts.hostname:
        return f"{shown(url)}: use {safe_scheme}://host"
    if parts.username is not None or parts.password is not None:
        return f"{shown(parts.hostname)}: a password in a url ends up in logs; give it on its own"
    return ""
