"""One reading of a point: a number or nothing, the moment it is of, and whether it can be trusted.

Quality 1 is good; any other whole number is not to be trusted. We send 0 with a value that is missing, and 2
with one that came and is doubted. What an integration sends is judged member by member: a reading that
breaks the contract is refused as a whole, with the reason.
"""

import math
from typing import Final

import msgspec

from protocols.bms.catalogue import BmsError

BAD: Final = 0
GOOD: Final = 1
UNCERTAIN: Final = 2

PAYLOAD_MAX_BYTES: Final = 1024  # ten times what a reading takes


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As it goes over the wire.

    Attributes:
        value: in the point's unit, or the number of a state; None: no valid reading.
        timestamp: of the source's event, ms UTC.
        quality: 1 is good.
    """

    value: float | None
    timestamp: int
    quality: int

    def payload(self) -> bytes:
        return _encoder.encode(self)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Value)


def read_value(payload: bytes) -> Value:
    """What an integration sent. Raises BmsError."""
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise BmsError(f"{len(payload)} bytes, {PAYLOAD_MAX_BYTES} at most")
    try:
        value = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BmsError(f"no value message: {error}") from None
    if value.value is not None and not math.isfinite(value.value):
        raise BmsError(f"value {value.value} is no number to act on")
    return value
