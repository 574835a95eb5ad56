"""What may be asked of a block: each verb, what it takes, and the role that it needs.

The words of every way in: OPC UA, Modbus, DSX Exchange, the panel. `controller/commands.py` carries them out.
Here is nothing but the table, so that the panel on the host, which calls a level of shedding in an emergency,
has not to load the whole controller first.
"""

from typing import Annotated, Final, Literal, NamedTuple, get_args

import msgspec

from controller.image.model import Role, Words

PRIORITIES: Final = {  # BACnet's (ASHRAE 135, 19.2), as far as a power limit has use for them
    1: "manual life safety",
    5: "critical equipment",
    8: "operator",
    10: "site",
    16: "default",
}
OPERATOR: Final = 8
SHED_LEVELS_MAX: Final = 8  # a level each for more than anybody can tell apart in an emergency

Mode = Literal["remote", "local", "off"]
MODES: Final = get_args(Mode)
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=366 * 86_400)]  # longer is "until released"


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of a verb."""


class SetPowerLimit(Arguments, frozen=True):
    limit_w: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    ramp_w_per_s: Positive | None = None
    valid_for_s: Seconds | None = None
    priority: int = OPERATOR
    heartbeat_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] | None = None
    then_w: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None


class Release(Arguments, frozen=True):
    """`writer`: another than the asker; for engineers and the panel."""

    priority: int | None = None
    writer: Words | None = None


class Shed(Arguments, frozen=True):
    """`level`: its name; or `number`, from 1 on, the gentlest first, for those who cannot write words."""

    level: Words = ""
    number: Annotated[int, msgspec.Meta(ge=1, le=SHED_LEVELS_MAX)] | None = None
    valid_for_s: Seconds | None = None


class EndShed(Arguments, frozen=True):
    """`writer`: another than the asker; for engineers and the panel."""

    writer: Words | None = None


class SetMode(Arguments, frozen=True):
    mode: Mode


class Write(Arguments, frozen=True):
    device: Words
    point: Words
    value: Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]


class Withdraw(Arguments, frozen=True):
    """Commands to a device are kept alive until this: its arming, heartbeat and reversion timer."""

    device: Words


class Heartbeat(Arguments, frozen=True):
    pass


class OfAlarm(Arguments, frozen=True):
    key: Words = ""


class Shelve(Arguments, frozen=True):
    key: Words
    for_s: Seconds
    reason: Words = ""


class OutOfService(Arguments, frozen=True):
    key: Words
    reason: Words = ""


class Verb(NamedTuple):
    """What it takes."""

    arguments: type[Arguments]
    role: Role
    moves: bool = False  # plant or power: in LOCAL and OFF for the panel alone


VERBS: Final = {
    "set_power_limit": Verb(SetPowerLimit, Role.OPERATE, moves=True),
    "release": Verb(Release, Role.OPERATE, moves=True),
    "shed": Verb(Shed, Role.OPERATE, moves=True),
    "end_shed": Verb(EndShed, Role.OPERATE, moves=True),
    "write": Verb(Write, Role.OPERATE, moves=True),
    "withdraw": Verb(Withdraw, Role.OPERATE, moves=True),
    "set_mode": Verb(SetMode, Role.ENGINEER, moves=True),
    "heartbeat": Verb(Heartbeat, Role.OPERATE),
    "acknowledge": Verb(OfAlarm, Role.OPERATE),
    "reset": Verb(OfAlarm, Role.OPERATE),
    "shelve": Verb(Shelve, Role.OPERATE),
    "unshelve": Verb(OfAlarm, Role.OPERATE),
    "out_of_service": Verb(OutOfService, Role.ENGINEER),
    "return_to_service": Verb(OfAlarm, Role.ENGINEER),
}
