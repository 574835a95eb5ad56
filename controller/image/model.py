"""The nouns of the process image.

The image is a list of groups (a device, a rack, a node, the block itself), each with its points in a fixed
order. A group's path and a point's name make the point's address for good: `devices/pdu-a1/power_w`,
`nodes/n1/gpus/0/limit_w`. What a point means stands in the catalogue, told once; what flows afterwards is
numbers.

A value never travels alone. Its cell carries quality, the moment it is of by the source's own clock, the
moment it came, and why it is not good. Only `GOOD` may be acted upon. `UNCERTAIN` is a value that came and
is doubted; `BAD` has no value at all, so nobody can mistake an old one for a new one.
"""

from enum import IntEnum
from typing import Annotated, Final

import msgspec

Value = float | str | None

WORDS_MAX: Final = 300  # characters of whatever a stranger wrote
Words = Annotated[str, msgspec.Meta(max_length=WORDS_MAX)]


class Quality(IntEnum):
    BAD = 0
    UNCERTAIN = 1
    GOOD = 2


class Role(IntEnum):
    """What somebody may do; each includes those below it."""

    NOBODY = 0
    OBSERVE = 1
    OPERATE = 2
    ENGINEER = 3


class Point(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one value of a group means.

    Attributes:
        name: within its group; may hold slashes: `gpus/0/power_w`.
        unit: as in profiles: W, A, degC, ratio ...; "" = none.
        states: of a number that stands for a state.
        bits: of a number that is a row of flags; the text names the flag that is set.
        text: the value is a string.
        writable: somebody with the role may write it.
        deadband: smaller changes are not worth telling, in `unit`.
        stale_after_s: a value that came longer ago is none.
    """

    name: str
    unit: str = ""
    title: str = ""
    lowest: float | None = None
    highest: float | None = None
    states: dict[int, str] = {}
    bits: dict[int, str] = {}
    text: bool = False
    writable: bool = False
    deadband: float = 0.0
    stale_after_s: float = 10.0


class Group(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Points that come together.

    Attributes:
        path: its address for good, such as `devices/pdu-a1`; see `KINDS`.
        kind: what it is: a key of `KINDS`.
        about: facts that never change: profile, url, rack, feed ...
    """

    path: str
    kind: str
    title: str = ""
    points: tuple[Point, ...] = ()
    about: dict[str, str] = {}


KINDS: Final = {
    "block": "block",
    "facility": "facility",
    "feed": "feeds/<tag>",
    "rack": "racks/<name>",
    "node": "nodes/<name>",
    "source": "sources/<name>",
    "device": "devices/<name>",
}


class Cell(msgspec.Struct, frozen=True):
    """A value with everything one must know to use it. Times are UTC, s; 0: never."""

    value: Value
    quality: Quality
    source_at_utc_s: float
    received_at_utc_s: float
    age_s: float  # since it was taken, by a clock that does not step
    why: str = ""  # not good


class AlarmView(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm as people see it (ISA-18.2)."""

    key: str
    text: str
    priority: str
    state: str
    active: bool
    acknowledged: bool
    since_utc_s: float
    latched: bool = False
    shelved_until_utc_s: float | None = None
    out_of_service: bool = False
    first_out: str = ""
    response: str = ""
    count: int = 1
    by: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What somebody outside wants done. `verb` and its arguments: controller/verbs.py.

    Attributes:
        id: the asker's own; the outcome carries it.
        by: who, as authenticated: a user, a certificate's name, an address.
        role: what whoever authenticated them says they may do.
        via: the way it came: opcua, modbus, bms, panel.
        local: from the block's own panel: counts in LOCAL, too.
    """

    id: int = 0
    verb: Words
    arguments: dict[str, float | bool | str | None] = {}
    by: Words
    role: Role
    via: Words
    local: bool = False


class Result(IntEnum):
    """As in the handshake over Modbus registers."""

    NONE = 0
    ACCEPTED = 1
    CLAMPED = 2
    REJECTED = 3


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a command; `value` is what now holds, and `was` before, where they are numbers."""

    id: int = 0
    result: Result
    reason: str = ""
    value: float | None = None
    was: float | None = None
