"""The library behind a fence: every wait has a bound of ours, and whatever goes wrong is a `PeerError`.

asyncua's decoders guard nothing: a server's odd bytes come out as KeyError or TypeError as readily as
ConnectionError. It swallows cancellations that meet it at the wrong moment, and a half-open connection keeps
its calls waiting. One odd server must not end, or hold up, the process that serves all others; so each call
runs in a task of its own that is left behind when its time is up.

A server's refusal carries the name of its status code, and the table here says what a person does about it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from asyncua import ua

STATUS_CODE: Final = 0xFFFF0000  # the lower half is flags, such as "the queue has overflowed"

# status -> what to do about it
REMEDIES: Final = {
    "BadDecodingError": "no value that can be read here; check the profile's node",
    "BadResponseTooLarge": "too large for a value of a device; check the profile's node",
    "BadCertificateHostNameInvalid": "dial the name that the certificate carries",
    "BadCertificateRevoked": "our certificate is on the server's revocation list; have a new one issued",
    "BadCertificateTimeInvalid": "our certificate has expired, or the server's clock is wrong",
    "BadCertificateUntrusted": "have the server trust our certificate: it lies in its rejected folder now",
    "BadCertificateUriInvalid": "the URI in our certificate is not the one that the server wants",
    "BadCertificateUseNotAllowed": "our certificate lacks the key usage that the server asks for",
    "BadIdentityTokenInvalid": "the server does not take this kind of user; see what its endpoint offers",
    "BadIdentityTokenRejected": "the server does not let this user in: check name, password or certificate",
    "BadNodeIdUnknown": "the server has no such node; check the profile's node",
    "BadNotReadable": "the server does not let it be read; check the user's rights",
    "BadNotWritable": "the server does not let it be written at all",
    "BadOutOfRange": "the device does not take this value",
    "BadSecurityChecksFailed": "have the server trust our certificate: it lies in its rejected folder now",
    "BadSecurityModeRejected": "choose a policy and mode that the server offers",
    "BadSecurityPolicyRejected": "choose a policy and mode that the server offers",
    "BadSessionIdInvalid": "the server has lost our session: restarted?",
    "BadTcpEndpointUrlInvalid": "the server does not know itself by this URL; check host and path",
    "BadTooManyMonitoredItems": "the server watches no more nodes: select fewer points, or close a client",
    "BadTooManySessions": "close another client of the server",
    "BadTooManySubscriptions": "close another client of the server",
    "BadTypeMismatch": "the device wants another type",
    "BadUserAccessDenied": "the user may not: check name, password and rights",
    "BadWriteNotSupported": "the server does not support this write",
}

# Refusals that trying again at once will not cure. Each try costs the controller a key exchange, and enough
# wrong passwords lock an account.
LASTING: Final = frozenset(
    name
    for name in REMEDIES
    if name.startswith(("BadCertificate", "BadIdentity", "BadSecurity", "BadUserAccess"))
)

# Refusals of a request that asked for too much at once.
TOO_MUCH: Final = frozenset(
    {
        "BadEncodingError", "BadEncodingLimitsExceeded", "BadOutOfMemory", "BadRequestTooLarge",
        "BadResponseTooLarge", "BadTooManyOperations",
    }
)  # fmt: skip

_T = TypeVar("_T")


class PeerError(Exception):
    """Why there is no connection, or no longer.

    Attributes:
        lasting: trying again soon will not help.
        too_much: status of a request that may do better in smaller parts: it asked for too much, or something
            in its answer cannot be decoded; "" for all other errors.
    """

    def __init__(self, text: str, *, lasting: bool = False, too_much: str = "") -> None:
        super().__init__(text)
        self.lasting, self.too_much = lasting, too_much


def status_name(status: ua.StatusCode | None) -> str:
    """Name without flags; a value that carries no status is Good."""
    if status is None:
        return "Good"
    return str(ua.StatusCode(status.value & STATUS_CODE).name)


def explained(name: str) -> str:
    """The name of a status, and what to do about it where that is known."""
    return f"{name}: {REMEDIES[name]}" if name in REMEDIES else name


async def ask(call: Coroutine[Any, Any, _T], wait_max_s: float) -> _T:
    """What the library answers within the wait. Raises PeerError for anything else."""
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task}, timeout=wait_max_s)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(heed)
    if not task.done():
        raise PeerError(f"no answer within {wait_max_s:g} s")
    if task.cancelled():
        raise PeerError("the library gave up a request")
    error = task.exception()
    if error is None:
        return task.result()
    raise _peer_error(error) from error


def heed(task: asyncio.Future[Any]) -> None:
    """Take note of how a task ended that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _peer_error(error: BaseException) -> PeerError:
    if isinstance(error, PeerError):
        return error
    if not isinstance(error, Exception):
        raise error  # an end of the process, not of the peer
    if isinstance(error, ua.UaStatusCodeError) and error.code is not None:
        name = status_name(ua.StatusCode(error.code))
        return PeerError(explained(name), lasting=name in LASTING, too_much=name if name in TOO_MUCH else "")
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return PeerError("the server does not answer")
    return PeerError(
        f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
        too_much="" if isinstance(error, OSError) else "BadDecodingError",
    )
