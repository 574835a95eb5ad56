"""Whether two versions of an event say the same: servers stamp by the second, and change twice in one.

A digest of all that decides anything here, so that a book can tell a message that came twice from another
one of the same date, across restarts too. Left out is what differs between two ways to the same event, or
counts for nothing: its targets, and the values of payload types that nobody acts on. Numbers are compared as
numbers: 9 and 9.0 are one. Which types are acted on is part of it: what was passed over until now has to
be read anew.
"""

import hashlib
from collections.abc import Collection
from typing import Any, Final

import msgspec

from protocols.openadr.model import Event, Payload
from protocols.openadr.resolve import VALUE_MAX, WINDOWS_MAX

DIGEST_BYTES: Final = 8  # told apart are versions of one event, and nobody gains from a collision
BEYOND: Final = 2.0 * VALUE_MAX  # all that is larger is refused alike


def digest(event: Event, acts_on: Collection[str]) -> str:
    """The same for two messages that mean the same to us, whenever they come; hexadecimal."""
    intervals = [
        (one.id, one.period, [_said(payload, acts_on) for payload in one.payloads]) for one in event.intervals
    ]
    said = (
        event.program_id,
        event.priority,
        event.period,
        event.duration,
        sorted((name, unit) for name, unit in event.units.items() if name in acts_on),
        intervals,
        event.report_descriptors,
    )
    return hashlib.blake2b(msgspec.json.encode(said), digest_size=DIGEST_BYTES).hexdigest()


def _said(payload: Payload, acts_on: Collection[str]) -> tuple[Any, ...]:
    if payload.type not in acts_on:
        return (payload.type,)
    return payload.type, len(payload.values), [_plain(value) for value in payload.values[:WINDOWS_MAX]]


def _plain(value: object) -> object:
    """Numbers as numbers; what is neither number nor text is refused, whatever is in it."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return float(min(max(value, -BEYOND), BEYOND))
    return [type(value).__name__]
