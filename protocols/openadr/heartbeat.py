"""The site is alive: sent by the site's application, since the standard has no heartbeat.

`{"sent_at": "2026-11-21T18:00:00Z", "seq": 7, "event_ids": ["dr-1"]}`. A transport that is up proves nothing
about who plans the power behind it. With `event_ids` the heartbeat is also a statement of the whole plan:
whoever does not know one of them has missed a message.
"""

from dataclasses import dataclass
from typing import Final

from protocols.openadr.fields import OpenAdrError, list_at, object_at, read_json, text_at, whole_at
from protocols.openadr.model import AT_ONCE_UTC_S
from protocols.openadr.parse import object_id
from protocols.openadr.timing import parse_time

SEQ_MAX: Final = 2**53 - 1  # what every JSON reader keeps exact


@dataclass(frozen=True)
class Heartbeat:
    """The site is alive.

    Attributes:
        sent_at_utc_s: by the site's clock.
        seq: grows by one per heartbeat; None: the site does not count.
        event_ids: the whole plan: every event in force or to come; None: the site does not say.
    """

    sent_at_utc_s: float
    seq: int | None
    event_ids: frozenset[str] | None


def parse_heartbeat(payload: bytes | str) -> Heartbeat:
    """Reads `{"sent_at": RFC 3339 time, "seq": 7, "event_ids": ["a"]}`; the last two may be missing.

    Raises:
        OpenAdrError: anything in it is not what it should be.
    """
    said = object_at(read_json(payload), "heartbeat")
    seq = said.get("seq")
    if seq is not None:
        seq = whole_at(seq, "heartbeat.seq", low=0, high=SEQ_MAX, remedy="a count from 0 on, or leave it out")
    sent_at_utc_s = parse_time(text_at(said.get("sentat"), "heartbeat.sent_at"), "heartbeat.sent_at")
    if sent_at_utc_s == AT_ONCE_UTC_S:
        raise OpenAdrError("heartbeat.sent_at: 0001-01-01; send the time of sending")
    ids = said.get("eventids")
    return Heartbeat(
        sent_at_utc_s=sent_at_utc_s,
        seq=seq,
        event_ids=None if ids is None else frozenset(_ids(ids)),
    )


def _ids(value: object) -> list[str]:
    path = "heartbeat.event_ids"
    return [object_id(one, f"{path}[{number}].id") for number, one in enumerate(list_at(value, path))]
