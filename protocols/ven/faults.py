"""What goes wrong with a VTN, as sentences for the operator.

Three kinds, by what may still succeed: a `Refusal` is an answer, and says so of one request; a `VtnFault` in
general spoils one request; after `Unreachable` no other request will fare better for now.

A sentence may quote a stranger, so what is quoted is short, printable and on one line; it never quotes what
may hold a secret.
"""

from collections.abc import Mapping
from typing import Final

import aiohttp

TEXT_MAX_CHARS: Final = 120  # of what a VTN says about its own faults

# What the socket says, and what to do about it. First match wins: the special before the general.
HTTP_FAULTS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        aiohttp.ClientConnectorCertificateError,
        "shows a certificate that our CA file or its host name disproves",
    ),
    (
        aiohttp.ClientSSLError,
        "does not agree on TLS: check that the port speaks TLS and wants our certificate",
    ),
    (aiohttp.ClientConnectorDNSError, "has no address: check the host name in the url, and DNS"),
    (aiohttp.ClientConnectorError, "cannot be reached: check address, port and firewall"),
    (aiohttp.ServerDisconnectedError, "hung up without an answer"),
    (aiohttp.ClientPayloadError, "broke off in the middle of an answer"),
    (aiohttp.ClientResponseError, "does not speak HTTP as we know it"),
    (aiohttp.ClientError, "cannot be talked to"),
    (OSError, "cannot be reached"),
    (Exception, "answers what HTTP does not allow"),
)
# And what its answer says. 404 of an object is the asker's to judge.
STATUS_REMEDIES: Final[Mapping[int, str]] = {
    400: "it finds our request wrong",
    401: "it does not accept our token: check client id and secret",
    403: "it forbids that: ask its operator for the scope",
    404: "it does not know that: check the url, base path included",
    409: "the name is taken by another client: give this VEN its own",
    429: "it is asked too often: raise poll_s",
}
ABSENT: Final = frozenset({404, 405, 501})  # the endpoint does not exist: an older or a smaller VTN
GONE: Final = frozenset({404, 410})  # an object by its id: deleted; 403 says nothing about the object


class VtnFault(Exception):  # noqa: N818  the word of this project for what is expected to go wrong
    """The VTN did not do its part; the text is a sentence for the operator. Other requests may succeed."""


class Refusal(VtnFault):
    """An answer, but not the one wished for."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Unreachable(VtnFault):
    """Nobody there, or no token: no other request will fare better now."""


def remedy(status: int) -> str:
    """The end of a sentence about an HTTP status."""
    if 300 <= status < 400:
        return ", a redirection: our token goes only where the settings say; put the new address there"
    told = STATUS_REMEDIES.get(status)
    return f", {told}" if told else ""


def sentence(error: Exception) -> str:
    """What an exception of the HTTP library means, in our words and its own."""
    text = next(text for kind, text in HTTP_FAULTS if isinstance(error, kind))
    told = str(error)
    return f"{text} ({shown(told)})" if told else text


def shown(value: object) -> str:
    """Text of a stranger, safe in one line of a log."""
    if isinstance(value, bytes):
        value = value[: 4 * TEXT_MAX_CHARS].decode(errors="replace")
    text = value if isinstance(value, str) else repr(value)
    printable = "".join(sign if sign.isprintable() else "?" for sign in text[:TEXT_MAX_CHARS])
    return printable if len(text) <= TEXT_MAX_CHARS else f"{printable}..."
