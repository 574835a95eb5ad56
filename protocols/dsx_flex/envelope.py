"""The CloudEvents envelope of every DSX Flex message, in structured JSON.

An envelope says who speaks (`source`), what about (`type`), when (`time`) and because of what (`traceparent`,
`correlationid`). `data` travels as a JWS compact string; plain objects are legal in the schema and forbidden
in its prose, so whether one counts is `signing`'s caller's decision, never made here.

The contract writes specversion "1.0.2", which is the edition of the CloudEvents text; CloudEvents itself
writes "1.0", and so do its SDKs. We write the former and read both.

A trace is passed on as it came: answer with the `trace` of the message that caused yours. A message without
a cause starts one.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocols.dsx_flex import topics
from protocols.dsx_flex.topics import CHANNELS, SPELLINGS
from protocols.dsx_flex.wire import (
    DsxFlexError,
    a_text,
    a_uuid,
    a_word,
    decode,
    encode,
    moment,
    time_utc_s,
)
from protocols.members import shown

SPECVERSION: Final = "1.0.2"
SPECVERSIONS_READ: Final = ("1.0", SPECVERSION)
CONTENT_TYPE: Final = "application/json"
TRACESTATE_MAX_CHARS: Final = 512  # what W3C Trace Context asks everyone to pass on
SEEN_MAX: Final = 1024  # ids remembered: all that mosquitto queues for one client, 100 kB on disk
BODIES_MAX: Final = 4096  # signed bodies remembered, 150 kB on disk: an hour of one per second
DIGEST_BYTES: Final = 16  # of a SHA-256: nobody finds another body for a given one
AHEAD_MAX_S: Final = 5.0  # so far may a publisher's clock be ahead of ours
ENTROPY_BYTES: Final = 24  # 16 of a trace id, 8 of a span id

SOURCE: Final = re.compile(rf"//{topics.PREFIX}/(?P<spelling>[^/]+)/(?P<identifier>[^/]+)")
TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII
)


@dataclass(frozen=True)
class Trace:
    """W3C Trace Context of a message."""

    parent: str
    state: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.parent, str) or not TRACEPARENT.fullmatch(self.parent):
            raise DsxFlexError(
                f"traceparent: {shown(self.parent)}; send 00-<32 hex>-<16 hex>-01, not all zero"
            )


def start_trace(entropy: bytes) -> Trace:
    """A trace for a message that no other one caused.

    Args:
        entropy: ENTROPY_BYTES random bytes.
    """
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a trace takes {ENTROPY_BYTES} random bytes, not {len(entropy)}")
    return Trace(f"00-{entropy[:16].hex()}-{entropy[16:].hex()}-01")


@dataclass(frozen=True)
class Envelope:
    """One message, checked when made, be it read or to be sent.

    Attributes:
        id: UUIDv4 of this message.
        source: who speaks, `//grid/v1/<role>/<identifier>`.
        type: one of `topics.CHANNELS`.
        time_utc_s: when it was made, by the publisher's clock; nothing signs it.
        trace: of this message; pass it on to those that it causes.
        data: JWS compact string, or the plain object.
        correlation_id: UUIDv4 that the operator gave to a load target, echoed in what follows from it.
    """

    id: str
    source: str
    type: str
    time_utc_s: float
    trace: Trace
    data: str | Mapping[str, Any]
    correlation_id: str | None = None

    def __post_init__(self) -> None:
        a_uuid(self.id, "id")
        a_word(self.type, "type", CHANNELS)
        if self.correlation_id is not None:
            a_uuid(self.correlation_id, "correlationid")
        match = SOURCE.fullmatch(a_text(self.source, "source"))
        role = CHANNELS[self.type].role
        if match is None or match["spelling"] not in SPELLINGS[role]:
            spelling = SPELLINGS[role][0]
            raise DsxFlexError(
                f"source: {shown(self.source)}; {self.type} comes from //{topics.PREFIX}/{spelling}/NAME"
            )

    @property
    def key(self) -> tuple[str, str]:
        """What makes a message the same one, however often it is delivered."""
        return self.source, self.id.lower()

    @property
    def thread_id(self) -> str:
        """The correlation id; the message's own id where the operator sent none, as the schema permits."""
        return self.correlation_id or self.id


def read(payload: bytes) -> Envelope:
    """Opens a message; its `data` is neither verified nor understood yet.

    Raises:
        DsxFlexError: not an envelope of this contract.
    """
    said = decode(payload, "message")
    a_word(said.get("specversion"), "specversion", SPECVERSIONS_READ)
    a_word(said.get("datacontenttype"), "datacontenttype", (CONTENT_TYPE,))
    a_text(said.get("subject"), "subject")
    data = said.get("data")
    if not isinstance(data, str | dict):
        raise DsxFlexError(f"data: {shown(data)}; send a JWS compact string")
    return Envelope(
        id=a_uuid(said.get("id"), "id"),
        source=a_text(said.get("source"), "source"),
        type=a_word(said.get("type"), "type", CHANNELS),
        time_utc_s=time_utc_s(said.get("time"), "time"),
        trace=Trace(a_text(said.get("traceparent"), "traceparent"), _tracestate(said.get("tracestate"))),
        data=data,
        correlation_id=said.get("correlationid"),
    )


def write(envelope: Envelope) -> bytes:
    """The message as it goes onto the wire."""
    said: dict[str, Any] = {
        "specversion": SPECVERSION,
        "id": envelope.id,
        "source": envelope.source,
        "type": envelope.type,
        "time": moment(envelope.time_utc_s),
        "datacontenttype": CONTENT_TYPE,
        "subject": CHANNELS[envelope.type].subject,
        "traceparent": envelope.trace.parent,
    }
    if envelope.trace.state is not None:
        said["tracestate"] = envelope.trace.state
    if envelope.correlation_id is not None:
        said["correlationid"] = envelope.correlation_id
    return encode(said | {"data": envelope.data})


def check_age(envelope: Envelope, now_utc_s: float, *, age_max_s: float, ahead_max_s: float) -> None:
    """Raises DsxFlexError on a message from long ago (a broker kept it) or from the future (clocks differ).

    Args:
        envelope: the message.
        now_utc_s: our wall clock.
        age_max_s: a message may be that old.
        ahead_max_s: the publisher's clock may be that far ahead of ours.
    """
    age_s = now_utc_s - envelope.time_utc_s
    if age_s > age_max_s:
        raise DsxFlexError(f"time: {age_s:.0f} s ago, {age_max_s:g} s at most; send it anew")
    if age_s < -ahead_max_s:
        raise DsxFlexError(f"time: {-age_s:.0f} s ahead of us, {ahead_max_s:g} s at most; check both clocks")


class Seen:
    """Tells a message delivered twice from a new one, by source and id. Forgets the oldest beyond SEEN_MAX.

    Enter a message only once it is verified: else anyone could use up the ids of others.
    """

    def __init__(self, keys: tuple[tuple[str, str], ...] = ()) -> None:
        self._keys = dict.fromkeys(keys[-SEEN_MAX:])

    def __contains__(self, envelope: Envelope) -> bool:
        return envelope.key in self._keys

    def enter(self, envelope: Envelope) -> None:
        self._keys.pop(envelope.key, None)
        self._keys[envelope.key] = None
        if len(self._keys) > SEEN_MAX:
            del self._keys[next(iter(self._keys))]

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """What is remembered, oldest first."""
        return tuple(self._keys)


class Bodies:
    """Tells a signed body that was sent before from a new one, in whatever envelope; forgets the idle first.

    Nothing signs an envelope: whoever has recorded a body can send it again in a fresh one. Only a body that
    nobody has seen, or an `exp` in it, proves that it was made now. An operator that signs every repetition
    anew fills the memory; one that wants certainty puts an `exp` into the data.
    """

    def __init__(self, digests: tuple[str, ...] = ()) -> None:
        self._digests = dict.fromkeys(digests[-BODIES_MAX:])

    def enter(self, envelope: Envelope) -> bool:
        """Whether the body of a verified message is new; what is not signed always is."""
        if not isinstance(envelope.data, str):
            return True
        digest = hashlib.sha256(envelope.data.encode()).digest()[:DIGEST_BYTES].hex()
        is_new = digest not in self._digests
        self._digests.pop(digest, None)
        self._digests[digest] = None
        if len(self._digests) > BODIES_MAX:
            del self._digests[next(iter(self._digests))]
        return is_new

    @property
    def digests(self) -> tuple[str, ...]:
        """What is remembered, the idle first."""
        return tuple(self._digests)


def _tracestate(value: object) -> str | None:
    """W3C: one that cannot be passed on is dropped, and the message is not."""
    is_good = isinstance(value, str) and value.isprintable() and 0 < len(value) <= TRACESTATE_MAX_CHARS
    return value if is_good and isinstance(value, str) else None
