"""What goes wrong with a BMC, as sentences for the operator.

Two kinds, by what may still succeed: a `RedfishFault` spoils one request, after `Unreachable` no other will
fare better for now. What is quoted of a BMC is short, printable and on one line.
"""

from collections.abc import Mapping
from typing import Any, Final

import aiohttp

TEXT_MAX_CHARS: Final = 160  # of what a BMC says about its own faults: a message and its resolution

# What the socket says, and what to do about it. First match wins: the special before the general.
HTTP_FAULTS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        aiohttp.ClientConnectorCertificateError,
        "shows a certificate that our CA file or its host name disproves: use the right CA, or pin it",
    ),
    (aiohttp.ClientSSLError, "does not agree on TLS: check that the port speaks TLS 1.2"),
    (aiohttp.ClientConnectorDNSError, "has no address: check the host name in the url, and DNS"),
    (aiohttp.ClientConnectorError, "cannot be reached: check address, management network and firewall"),
    (aiohttp.ServerDisconnectedError, "hung up without an answer: it may have no connection left for us"),
    (aiohttp.ClientPayloadError, "broke off in the middle of an answer"),
    (aiohttp.ClientResponseError, "does not speak HTTP as we know it"),
    (aiohttp.ClientError, "cannot be talked to"),
    (OSError, "cannot be reached"),
    (Exception, "answers what HTTP does not allow"),
)
STATUS_REMEDIES: Final[Mapping[int, str]] = {
    401: "it does not accept the session it has just given: check the user's privileges",
    403: "it forbids that: give the user the privilege ConfigureComponents",
    404: "it does not know that: its firmware may have changed; discovery will look again",
    405: "it does not let that be changed: another lever may do, or newer firmware",
    412: "somebody else changes it at the same time",
    428: "it wants an ETag and gives none: its firmware needs an update",
    501: "its firmware cannot do that",
}
NOT_NOW: Final = frozenset({429, 502, 503, 504})  # busy or booting: the next request fares no better


class RedfishConfigError(ValueError):
    """The BMC cannot be used as configured; the text names the culprit and the remedy."""


class RedfishFault(Exception):  # noqa: N818  the word of this project for what is expected to go wrong
    """The BMC did not do its part; the text is a sentence for the operator."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Unreachable(RedfishFault):
    """Nobody there, not now, or no session: no other request will fare better at this moment."""


def refusal(what: str, status: int, body: Mapping[str, Any]) -> RedfishFault:
    """An answer that is not the one wished for, with what the BMC says about it."""
    if 300 <= status < 400:
        told = ", a redirection: our session goes only where the url says; put the new address there"
    elif status in NOT_NOW:
        told = ", it is busy or still booting: asked again later"
    else:
        told = f", {STATUS_REMEDIES[status]}" if status in STATUS_REMEDIES else ""
    kind = Unreachable if status in NOT_NOW else RedfishFault
    return kind(f"{what}: {status}{told}{extended(body)}", status)


def extended(body: Mapping[str, Any]) -> str:
    """The first message of a Redfish error body, as the end of a sentence."""
    error = body.get("error")
    messages = error.get("@Message.ExtendedInfo") if isinstance(error, dict) else None
    first = messages[0] if isinstance(messages, list) and messages else error
    if not isinstance(first, dict):
        return ""
    texts = [first.get(key) for key in ("Message", "message", "Resolution")]
    said = " ".join(text for text in texts if isinstance(text, str) and text)
    return f" ({shown(said)})" if said else ""


def sentence(error: Exception) -> str:
    """What an exception of the HTTP library means, in our words and its own."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return (
            f"shows another certificate than the pinned one, its SHA-256 is {error.got.hex()}: "
            "pin that if it was renewed on purpose, else find out who answers there"
        )
    text = next(text for kind, text in HTTP_FAULTS if isinstance(error, kind))
    told = str(error)
    return f"{text} ({shown(told)})" if told else text


def shown(value: object) -> str:
    """Text of a stranger, safe in one line of a log."""
    text = value if isinstance(value, str) else repr(value)
    printable = "".join(sign if sign.isprintable() else "?" for sign in text[:TEXT_MAX_CHARS])
    return printable if len(text) <= TEXT_MAX_CHARS else f"{printable}..."
