"""Methods of the object `Control`, as a table: each is a verb of the controller with its arguments.

Numbers that may be left out are given as 0, because a client of OPC UA cannot leave out an argument. Texts
are bounded, numbers finite, priorities those that there are; whatever else is wrong says the controller.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from asyncua import ua

from controller.image.model import WORDS_MAX, Outcome
from controller.verbs import OPERATOR, PRIORITIES
from protocols.opcua.server_access import Identity
from protocols.opcua.server_space import Answer, Argument

ASKED: Final = ua.VariantType.Double
WORDS: Final = ua.VariantType.String


@dataclass(frozen=True, slots=True)
class Given:
    """An argument of a verb. `optional`: 0 leaves it out."""

    name: str
    kind: ua.VariantType
    title: str
    optional: bool = False


LIMIT: Final = (
    Given("limit_w", ASKED, "the block's power, W"),
    Given("ramp_w_per_s", ASKED, "how fast to get there, W/s; 0: as agreed", optional=True),
    Given("valid_for_s", ASKED, "how long it holds, s; 0: until released", optional=True),
)
PRIORITY: Final = Given(
    "priority", ASKED, "1, 5 (both: engineers), 8, 10 or 16, as in BACnet; 0: of the operator"
)
KEY: Final = Given("key", WORDS, "of the alarm")
KEY_OR_ALL: Final = Given("key", WORDS, "of the alarm; empty: all")
REASON: Final = Given("reason", WORDS, "why")

# Methods of Control: name, verb, what it does, arguments.
METHODS: Final[tuple[tuple[str, str, str, tuple[Given, ...]], ...]] = (
    ("SetPowerLimit", "set_power_limit", "limit the block's power", LIMIT),
    (
        "SetGuardedPowerLimit",
        "set_power_limit",
        "the same with a priority, and what holds when its writer falls silent or its time is over",
        (
            *LIMIT,
            PRIORITY,
            Given(
                "heartbeat_timeout_s",
                ASKED,
                "falls away when Heartbeat stops, s; 0: it does not",
                optional=True,
            ),
            Given("then_w", ASKED, "holds after valid_for_s, until released, W; 0: nothing", optional=True),
        ),
    ),
    ("Release", "release", "withdraw our limits", ()),
    ("ReleasePriority", "release", "withdraw our limit of one priority", (PRIORITY,)),
    (
        "Shed",
        "shed",
        "call a level of shedding: an emergency, at once and without a ramp",
        (
            Given("level", WORDS, "its name, as in block.yaml"),
            Given("valid_for_s", ASKED, "how long, s; 0: until EndShed", optional=True),
        ),
    ),
    ("EndShed", "end_shed", "withdraw our call; the power comes back by the agreed ramp", ()),
    ("SetMode", "set_mode", "switch who may", (Given("mode", WORDS, "remote, local or off"),)),
    (
        "Withdraw",
        "withdraw",
        "end what was written to a field device: its heartbeat and timer are kept alive no more",
        (Given("device", WORDS, "its name"),),
    ),
    ("Heartbeat", "heartbeat", "we are still here", ()),
    ("Acknowledge", "acknowledge", "an alarm was seen", (KEY_OR_ALL,)),
    ("Reset", "reset", "unlatch an alarm whose cause is gone; restarts nothing", (KEY_OR_ALL,)),
    (
        "Shelve",
        "shelve",
        "hide an alarm for a while",
        (KEY, Given("for_s", ASKED, "how long, s"), REASON),
    ),
    ("Unshelve", "unshelve", "show it again", (KEY,)),
    ("OutOfService", "out_of_service", "hide an alarm until it is returned", (KEY, REASON)),
    ("ReturnToService", "return_to_service", "show it again", (KEY,)),
)
OUTPUTS: Final = (
    Argument("result", ua.VariantType.UInt32, "1 accepted, 2 clamped, 3 rejected"),
    Argument("reason", WORDS, "why not, or not quite"),
    Argument("value", ASKED, "what holds now; NaN: no number"),
)


class Desk(Protocol):
    """Where orders go."""

    async def order(
        self, identity: Identity, verb: str, arguments: Mapping[str, float | str], what: str
    ) -> Outcome: ...
    def status_of(self, outcome: Outcome) -> int: ...


class Order:
    """What a method of Control does when it is called."""

    def __init__(self, desk: Desk, id_: str, verb: str, given: tuple[Given, ...]) -> None:
        self._desk, self._id, self._verb, self._given = desk, id_, verb, given

    async def __call__(self, identity: Identity, values: list[Any]) -> Answer:
        arguments: dict[str, float | str] = {}
        for one, value in zip(self._given, values, strict=True):
            if isinstance(value, str):
                if len(value) > WORDS_MAX:
                    return Answer(ua.StatusCodes.BadOutOfRange)
                arguments[one.name] = value
            elif not math.isfinite(value) or (one is PRIORITY and value and value not in PRIORITIES):
                return Answer(ua.StatusCodes.BadOutOfRange)
            elif one is PRIORITY:
                arguments[one.name] = int(value) or OPERATOR  # left out, a release would be one of all
            elif value or not one.optional:
                arguments[one.name] = value
        outcome = await self._desk.order(identity, self._verb, arguments, self._id)
        return Answer(
            self._desk.status_of(outcome),
            (
                ua.Variant(int(outcome.result), ua.VariantType.UInt32),
                ua.Variant(outcome.reason, WORDS),
                ua.Variant(math.nan if outcome.value is None else outcome.value, ASKED),
            ),
        )
