"""Field values: many numbers in one call, each with a type and a return code of its own.

`nvmlDeviceGetFieldValues` is the cheapest way to read, and the only one to instant power, to the limits of
a module and to power smoothing. A field that is not known here comes back with its code and costs the others
nothing. The structures are laid out as nvml.h has them (nvmlFieldValue_t, 40 bytes, little-endian as every
host of an NVIDIA GPU): reading them through pynvml takes longer than the call.
"""

import ctypes
from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from protocols.nvml.faults import native

AVERAGE: Final = 185  # over 1 s
INSTANT: Final = 186
MIN: Final = 187
MAX: Final = 188
DEFAULT: Final = 189
ENFORCED: Final = 190  # lowest of all limiters: requested, out-of-band, thermal
ENERGY: Final = 191
REQUESTED: Final = 192

SCOPE_GPU: Final = 0
SCOPE_MODULE: Final = 1  # GPU and the CPU beside it: GH200, GB200, GB300

_ENTRY: Final = Struct("<IIqqII8s")  # field, scope, timestamp, latency, value type, return code, value
_VALUES: Final = (
    Struct("<d"),
    Struct("<I"),
    Struct("<Q"),
    Struct("<Q"),
    Struct("<q"),
    Struct("<i"),
    Struct("<H"),
)


class Stamped(NamedTuple):
    """A value, and the driver's own time stamp of it, since 1970."""

    at_us: int
    value: float


class Fields:
    """A fixed question: which fields, each of which scope. Made once, asked often, by any thread."""

    def __init__(self, fields: Iterable[tuple[int, int]]) -> None:
        self._asked = tuple(fields)
        self._template = b"".join(_ENTRY.pack(field, scope, 0, 0, 0, 0, b"") for field, scope in self._asked)

    def read(self, handle: object) -> tuple[dict[int, float], dict[int, int]]:
        """Values by field as the driver counts them (mW, mJ, ...), and return codes of those that failed.

        A field asked for in several scopes is told once, for the last of them. Raises NVMLError when the
        call as a whole failed.
        """
        values, failed = {}, {}
        for field, _, _, _, kind, code, raw in _ENTRY.iter_unpack(self._answer(handle)):
            if code:
                failed[field] = code
            elif kind < len(_VALUES):
                struct = _VALUES[kind]
                values[field] = struct.unpack_from(raw)[0]
        return values, failed

    def stamped(self, handle: object) -> dict[int, Stamped]:
        """The same with their time stamps, those that were read. Raises NVMLError as above."""
        return {
            field: Stamped(at_us, _VALUES[kind].unpack_from(raw)[0])
            for field, _, at_us, _, kind, code, raw in _ENTRY.iter_unpack(self._answer(handle))
            if not code and kind < len(_VALUES)
        }

    def _answer(self, handle: object) -> bytes:
        buffer = ctypes.create_string_buffer(self._template, len(self._template))
        native("nvmlDeviceGetFieldValues", handle, len(self._asked), buffer)
        return buffer.raw


def in_scope(fields: Iterable[int], scope: int) -> Fields:
    """The question for these fields, all of one power scope."""
    return Fields((field, scope) for field in fields)
