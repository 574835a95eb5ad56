"""Registers to values with units, and back. Pure: no IO, no clock.

A register is 16 bits. A number takes one, two or four of them; the Modbus standard fixes the order of the
two bytes inside a register and leaves the order of the registers to the vendor. Hence three steps, each
undone by `encode` in reverse:

    registers --(byte and word order)--> bit pattern --(mask, type)--> raw number --(scale, offset)--> value

A value is None wherever a number would be a lie: the pattern is one of the vendor's "not present" marks,
the float is NaN or infinite, the state has no name, the scale factor is not known, the text is not text, or
the value lies outside what the point can plausibly be. None means bad quality; there is no second way to say
so. Nothing is clamped: a wrong number made plausible is worse than no number.

`decode` and `encode` take one point; `SpanDecoder` takes all points of one read request and is what polls
use.
"""

from protocols.codec.point import (
    EXPONENT_MAX,
    FLOATS,
    NOTHING_KNOWN,
    REGISTER_MAX,
    TYPES,
    CodecError,
    Value,
    decode,
    encode,
    from_raw,
    is_absent,
    to_raw,
    width,
)
from protocols.codec.span import SpanDecoder

__all__ = [
    "EXPONENT_MAX",
    "FLOATS",
    "NOTHING_KNOWN",
    "REGISTER_MAX",
    "TYPES",
    "CodecError",
    "SpanDecoder",
    "Value",
    "decode",
    "encode",
    "from_raw",
    "is_absent",
    "to_raw",
    "width",
]
