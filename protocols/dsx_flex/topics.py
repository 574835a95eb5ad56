"""Where the four DSX Flex messages live, and who may publish each.

A topic is `grid/v1/<role>/<identifier>/<tail>`; the `source` of a message is `//grid/v1/<role>/<identifier>`.
Brokers grant rights by topic, and nothing signs a source. So the two are held against each other: who may
write only to their own topic can then speak only in their own name.

The agent's role has two spellings: until July 2026 it was `poweragent`, since then `dsx-flex-agent`, both
under version 1.7.0. We write the one that the site configures and read both.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from protocols.dsx_flex.wire import DsxFlexError, a_word
from protocols.members import shown

PREFIX: Final = "grid/v1"
Role = Literal["isv", "agent", "infra"]
AGENT_SPELLINGS: Final = ("dsx-flex-agent", "poweragent")
SPELLINGS: Final[Mapping[Role, tuple[str, ...]]] = {
    "isv": ("isv",),
    "agent": AGENT_SPELLINGS,
    "infra": ("infra",),
}

LOAD_TARGET_SET: Final = "grid.loadtarget.set.v1"
POWER_STATE_STATUS: Final = "grid.powerstate.status.v1"
POWER_BREACH_ALERT: Final = "grid.powerbreach.alert.v1"
POWER_BREACH_ENFORCEMENT: Final = "grid.powerbreach.enforcement.v1"

# Names end up in topics, where + and # are wildcards; 128 characters is twice the longest host label.
IDENTIFIER: Final = re.compile(r"[^/+#\s\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")


@dataclass(frozen=True)
class Channel:
    """One of the four: who publishes it, on which tail, how surely, and what it calls its subject."""

    role: Role
    tail: str
    qos: Literal[1, 2]
    subject: str


CHANNELS: Final[Mapping[str, Channel]] = {
    LOAD_TARGET_SET: Channel("isv", "loadtarget/set", 1, "loadtarget"),
    POWER_STATE_STATUS: Channel("agent", "powerstate/status", 1, "powerstate"),
    POWER_BREACH_ALERT: Channel("agent", "powerbreach", 2, "powerbreach"),
    POWER_BREACH_ENFORCEMENT: Channel("infra", "powerbreach/enforcement", 2, "powerbreach"),
}
_ADDRESSES: Final = {
    (spelling, channel.tail): message_type
    for message_type, channel in CHANNELS.items()
    for spelling in SPELLINGS[channel.role]
}


@dataclass(frozen=True)
class Address:
    """A topic, read: what is said there, and by whom."""

    type: str
    spelling: str  # of the role
    identifier: str

    @property
    def source(self) -> str:
        return f"//{PREFIX}/{self.spelling}/{self.identifier}"


def topic(message_type: str, identifier: str, *, agent_spelling: str = AGENT_SPELLINGS[0]) -> str:
    """The topic to publish a message on.

    Args:
        message_type: one of CHANNELS.
        identifier: the publisher's name on the bus.
        agent_spelling: of the agent's role, one of AGENT_SPELLINGS.
    """
    channel = CHANNELS[a_word(message_type, "type", CHANNELS)]
    spelling = _written(channel.role, agent_spelling)
    return f"{PREFIX}/{spelling}/{_identifier(identifier)}/{channel.tail}"


def filters(message_type: str, identifier: str = "+") -> tuple[str, ...]:
    """The topic filters to subscribe to, in every spelling; identifier `+`: whoever publishes."""
    channel = CHANNELS[a_word(message_type, "type", CHANNELS)]
    name = identifier if identifier == "+" else _identifier(identifier)
    return tuple(f"{PREFIX}/{spelling}/{name}/{channel.tail}" for spelling in SPELLINGS[channel.role])


def source(role: Role, identifier: str, *, agent_spelling: str = AGENT_SPELLINGS[0]) -> str:
    """The source to write into our messages."""
    return f"//{PREFIX}/{_written(role, agent_spelling)}/{_identifier(identifier)}"


def read_topic(name: str) -> Address:
    """Raises DsxFlexError on a topic that is none of the four."""
    parts = name.removeprefix(f"{PREFIX}/").split("/", 2)
    if name.startswith(f"{PREFIX}/") and len(parts) == 3 and IDENTIFIER.fullmatch(parts[1]):
        message_type = _ADDRESSES.get((parts[0], parts[2]))
        if message_type is not None:
            return Address(message_type, parts[0], parts[1])
    raise DsxFlexError(
        f"topic {shown(name)}: none of DSX Flex; they look like {PREFIX}/isv/NAME/loadtarget/set"
    )


def check_source(address: Address, *, message_type: str, source: str) -> None:
    """Raises DsxFlexError when a message speaks for somebody else than the owner of its topic."""
    if message_type != address.type:
        raise DsxFlexError(f"type: {shown(message_type)} on a topic of {address.type}; publish it on its own")
    if source.rpartition("/")[2] != address.identifier:
        raise DsxFlexError(
            f"source: {shown(source)} on a topic of {address.source}; publish under your own name"
        )


def _written(role: Role, agent_spelling: str) -> str:
    return role if role != "agent" else a_word(agent_spelling, "role", AGENT_SPELLINGS)


def _identifier(identifier: str) -> str:
    if not IDENTIFIER.fullmatch(identifier):
        raise DsxFlexError(f"identifier: {shown(identifier)}; 1 to 128 characters without / + # and blanks")
    return identifier
