"""Every alarm the program can make: how urgent it is, what it means, what happens by itself, what to do.

The one place where that is written down. The operator's screen, the servers and `docs/alarms.md` take it from
here. `…` in a pattern stands for a name. Within a group causes stand before effects: of alarms that came in
the same moment the first one is taken for the cause.

Priorities follow the time that is left to do something: `critical` minutes, before a breaker does it; `high`
within the hour, a promise is broken or the block is blind; `medium` this shift, something is worked around;
`low` this week, nothing is lost but a record. An alarm that could cost equipment is never shelved. Delays
come on top of those that a condition has of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Final

SHELVE_MAX_S: Final = 8 * 3600.0  # a shift: whoever comes next decides anew
LEFT_OUT: Final = "alarms"  # kind of the alarm that counts those for which there is no room
LINK_OFF_S: Final = 5.0  # a link that is up again has to show that it stays up
MEASURED_OFF_S: Final = 2.0


class Priority(StrEnum):
    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


URGENCY: Final = MappingProxyType({priority: number for number, priority in enumerate(Priority)})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of one kind of alarm beforehand.

    Attributes:
        pattern: the key, or its beginning and `…` for the name that follows.
        meaning, by_itself, response: what has happened, what the block does about it, what a person does.
        group: alarms that follow from one another; "": it stands alone.
        latching: stays until it is reset, though its condition has gone.
        suppressible: may be shelved and taken out of service.
    """

    pattern: str
    priority: Priority
    meaning: str
    by_itself: str
    response: str
    group: str = ""
    latching: bool = False
    suppressible: bool = True
    on_delay_s: float = 0.0
    off_delay_s: float = MEASURED_OFF_S


BLOCK: Final = (
    Entry(
        pattern="broker",
        priority=Priority.HIGH,
        meaning="no connection to the block's own MQTT broker",
        by_itself="agents fall back after their lease; sources on this broker fall silent: failsafe limit",
        response="`systemctl status mosquitto`; reconnects by itself within 2 s",
        group="block",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="meter",
        priority=Priority.HIGH,
        meaning="the block meter is not usable",
        by_itself="last good base load for 30 s, then the assumed maximum, or what was measured if that was"
        " more: less for the GPUs",
        response="wire, address, unit id; `powerblock status` shows the device's own words",
        group="block",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="meter implausible",
        priority=Priority.MEDIUM,
        meaning="the meter reads less than GPUs and hosts draw",
        by_itself="its word is not used",
        response="transformer ratio, phase order, wrong unit; is another load's meter configured?",
        group="block",
    ),
    Entry(
        pattern="pdu …",
        priority=Priority.MEDIUM,
        meaning="this PDU is not usable",
        by_itself="its rack counts as hanging on one inlet",
        response="wire, address, unit id",
        group="block",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="cooling",
        priority=Priority.HIGH,
        meaning="the cooling plant's capacity is unknown",
        by_itself="`cooling.blind_kw` limits the block, or the last capacity heard, if that was lower",
        response="is its OPC UA server up? certificates, node names",
        group="block",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="shed",
        priority=Priority.HIGH,
        meaning="a level of shedding is called; the text says which, and by whom",
        by_itself="every GPU went to its entry in the table at once; the power comes back by the agreed ramp"
        " when the call ends",
        response="`powerblock shed` shows what came of it; if `shortfall` stands beside it, shed by hand. Is"
        " the reason real? Who called it ends it",
        group="block",
        off_delay_s=0.0,
    ),
    Entry(
        pattern="contact …",
        priority=Priority.HIGH,
        meaning="this contact cannot be read; the text says what it counts as",
        by_itself="counts as it was last seen, or as closed where `lost_calls` is set",
        response="wire, address, unit id of its PLC. Until it is back nobody can call by it, and a call by it"
        " does not end",
        group="block",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="report …",
        priority=Priority.MEDIUM,
        meaning="this node's newest report was refused; the text says why",
        by_itself="as `agent`",
        response="number of GPUs, names of node or block: correct `block.yaml` or `node.yaml`",
        group="block",
    ),
    Entry(
        pattern="agent …",
        priority=Priority.HIGH,
        meaning="no report from this node for half a second",
        by_itself="counts its GPUs at what they may hold, at their most after ten seconds; sheds elsewhere",
        response="on the host: `systemctl status powerblock-agent`; if the host is off for longer, take it"
        " out of `block.yaml`",
        group="block",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="lease …",
        priority=Priority.MEDIUM,
        meaning="the node is heard but does not act on orders",
        by_itself="as `agent`",
        response="its log says `order refused` with the reason; two controllers on one broker? an agent"
        " started with `--observe`?",
        group="block",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="faults …",
        priority=Priority.LOW,
        meaning="what this node's agent says of its GPUs, or limits of a GPU that do not fit `block.yaml`",
        by_itself="as `gpu`; limits of `block.yaml` are taken",
        response="the sentence names the remedy; correct `min_w`, `max_w`",
        group="block",
    ),
    Entry(
        pattern="gpu …",
        priority=Priority.MEDIUM,
        meaning="this GPU cannot be read, or does not take its limit",
        by_itself="counts it at what it may hold; one that cannot be read tells nothing, is ordered to its"
        " least, and after ten seconds counts at its most",
        response="the agent's log names the driver's error and the remedy; see Xid in the kernel log",
        group="block",
    ),
    Entry(
        pattern="excess …",
        priority=Priority.MEDIUM,
        meaning="this GPU draws more than its limit",
        by_itself="what it draws is counted, others give way",
        response="a limit set by somebody else? thermal or firmware fault; drain and reset it",
        group="block",
    ),
    Entry(
        pattern="rack …",
        priority=Priority.HIGH,
        meaning="GPUs of this rack may draw more than its inlets carry",
        by_itself="every GPU of it that can be reached is at its least, or its cut is not confirmed yet",
        response="as `shortfall`, for one rack: who cannot be reached? Shed by hand if an inlet is full",
        group="block",
        suppressible=False,
    ),
    Entry(
        pattern="inlet …",
        priority=Priority.CRITICAL,
        meaning="this inlet carries over 2 % more than it may for long (80 % of its rating)",
        by_itself="cuts its rack",
        response="loads on this feed that are not in `block.yaml`? supplies that lost the other feed, which"
        " then all hang on this one? Shed by hand before the breaker does",
        group="block",
        latching=True,
        suppressible=False,
    ),
    Entry(
        pattern="shortfall",
        priority=Priority.CRITICAL,
        meaning="so much above the promised line cannot be shed",
        by_itself="every GPU it can reach is already at its least",
        response="find who cannot be reached (`agent`, `lease`, `gpu`); tell the site what cannot be kept;"
        " shed by hand if a breaker is near",
        group="block",
        suppressible=False,
    ),
    Entry(
        pattern="over budget",
        priority=Priority.HIGH,
        meaning="the meter reads more than is promised, by over 1 %",
        by_itself="goes on cutting as measured base load rises",
        response="look for `excess`, `gpu`, `agent` beside it; else loads on the feed that are not in"
        " `block.yaml`",
        group="block",
        suppressible=False,
    ),
    Entry(
        pattern="state file",
        priority=Priority.HIGH,
        meaning="the state cannot be kept on disk",
        by_itself="goes on, but a restart now would forget limits",
        response="free the disk, repair permissions of the state directory; do not restart before",
        group="disk",
    ),
    Entry(
        pattern="journal",
        priority=Priority.LOW,
        meaning="the journal cannot be written",
        by_itself="goes on; lines are lost and counted",
        response="free the disk",
        group="disk",
    ),
    Entry(
        pattern="history",
        priority=Priority.LOW,
        meaning="`signals.jsonl` cannot be written",
        by_itself="goes on; lines are lost and counted",
        response="free the disk",
        group="disk",
    ),
    Entry(
        pattern="shed record",
        priority=Priority.LOW,
        meaning="`sheds.jsonl` cannot be written",
        by_itself="calls are carried out all the same; how long their steps took is lost",
        response="free the disk",
        group="disk",
    ),
    Entry(
        pattern="commands",
        priority=Priority.LOW,
        meaning="`commands.jsonl` cannot be written",
        by_itself="commands are carried out all the same; who gave them is lost",
        response="free the disk",
        group="disk",
    ),
)

SITE: Final = (
    Entry(
        pattern="broker …",
        priority=Priority.MEDIUM,
        meaning="no connection to the source's own broker, or a topic of the source that its broker denies",
        by_itself="this source falls silent; the loop in the block is not touched",
        response="the text says what the broker did: address, login, certificate, denied subscription;"
        " reconnects by itself within 2 s",
        group="site",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="canary …",
        priority=Priority.LOW,
        meaning="what we send to ourselves there does not come back",
        by_itself="nothing: life is judged by the heartbeat",
        response="broker frozen or overloaded, or its access list withholds",
        group="site",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="vtn …",
        priority=Priority.MEDIUM,
        meaning="a round, the notifier or a report went wrong; the text says what",
        by_itself="asks again, at most after a minute. Without a whole round for `heartbeat_timeout_s`:"
        " failsafe limit. A round with an event that was refused proves that the VTN lives, and states no"
        " plan: it does not end `init` or `failsafe`",
        response="address, secret, scope, certificate: as the text says. While enrolling fails, events that"
        " are targeted at us may not be listed for us",
        group="site",
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="flood",
        priority=Priority.MEDIUM,
        meaning="more signals than may be looked at, in the last ten seconds",
        by_itself="no more than 20 % of the time goes into signals; each source's newest are read, the"
        " others refused unread; heartbeats are read first",
        response="find who publishes so much (`powerblock signals`), and take its right to write away. A VTN"
        " is asked for everything again by itself; over bare MQTT what was lost shows as `plan`",
        group="site",
    ),
    Entry(
        pattern="signal …",
        priority=Priority.MEDIUM,
        meaning="a signal was refused; the text says why",
        by_itself="the signal counts for nothing; what was known of that event before stays in force",
        response="tell the sender the sentence. Goes out when the same event is accepted (for DSX: a target"
        " that says something new), or after ten minutes",
        group="site",
    ),
    Entry(
        pattern="site not heard …",
        priority=Priority.MEDIUM,
        meaning="it has not spoken since our start",
        by_itself="failsafe limit",
        response="is the site's application up? `powerblock status` shows when it was heard last; look for"
        " `broker`, `vtn`, `signal`, `canary` beside it. Heartbeats that were heard and refused (late,"
        " retained, repeated, malformed) are a `signal` alarm",
        group="site",
        on_delay_s=5.0,  # after every start of ours, until its next heartbeat
    ),
    Entry(
        pattern="site lost …",
        priority=Priority.HIGH,
        meaning="not heard for its `heartbeat_timeout_s`",
        by_itself="failsafe limit, approached by the ramp; open windows stay",
        response="as `site not heard`; after coming back it must state its plan: heartbeats with `event_ids`"
        " or any event (bare MQTT), a whole round (VTN), a load target (DSX)",
        group="site",
    ),
    Entry(
        pattern="plan …",
        priority=Priority.MEDIUM,
        meaning="its heartbeat lists events that never arrived or were refused; or, five times in a row,"
        " leaves out one that stands here; or it has more windows within reach than find a place",
        by_itself="keeps what it has; a heartbeat with unknown events does not end `init` or `failsafe`, and"
        " one that leaves an event out releases nothing",
        response="let it send these events again, or delete what is over; `powerblock signals` says if one"
        " was refused, and why",
        group="site",
    ),
    Entry(
        pattern="status …",
        priority=Priority.LOW,
        meaning="a status or alert was too large or could not be written, and was not told",
        by_itself="goes on; the next one is told again",
        response="fewer windows at once; the text says what",
        group="site",
    ),
)

FIELD: Final = (
    Entry(
        pattern="facility mode",
        priority=Priority.LOW,
        meaning="the block is switched to LOCAL or OFF",
        by_itself="refuses remote commands that move plant or power and says so; in OFF draws its least",
        response="switch back to REMOTE when the work on site is done",
        off_delay_s=0.0,
    ),
    Entry(
        pattern="device …",
        priority=Priority.MEDIUM,
        meaning="this field device does not answer, or answers what cannot be true",
        by_itself="its values count as bad wherever they are served; no other device is touched",
        response="wire, address, unit id; the text gives the device's own words",
        on_delay_s=5.0,  # a start, and a device that restarts its server, are no news
        off_delay_s=LINK_OFF_S,
    ),
    Entry(
        pattern="write …",
        priority=Priority.HIGH,
        meaning="a value written to this device was not confirmed: refused, or read back as another",
        by_itself="says so to whoever asked; writes nothing more by itself",
        response="is the device in local mode, or does somebody else write to it? Look at the device before"
        " the next try, then reset the alarm",
        latching=True,
    ),
    Entry(
        pattern="lapsed …",
        priority=Priority.HIGH,
        meaning="a writer that promised a heartbeat with its power limit has fallen silent",
        by_itself="its limit ended; its fallback holds, where it set one",
        response="is that system alive? The alarm ends when it sets a limit again; or release its slot:"
        " `powerblock command block.yaml release writer='…'`",
    ),
    Entry(
        pattern="facility server",
        priority=Priority.MEDIUM,
        meaning="`powerblock serve` has not been heard for ten seconds",
        by_itself="control goes on; nothing is served to SCADA, DSX Exchange and monitoring meanwhile",
        response="`systemctl status powerblock-serve`; what it told last stands until it says otherwise",
    ),
    Entry(
        pattern="served …",
        priority=Priority.LOW,
        meaning="the facility server says that something it serves is not well: a broker that is away, a disk"
        " that is full, an integration that is silent or asks for what it may not",
        by_itself="goes on with everything else; what cannot be sent is stored where it was configured so",
        response="the text names what it is; control of the block does not depend on it",
    ),
    Entry(
        pattern="high-high …",
        priority=Priority.CRITICAL,
        meaning="the value of this point is above its highest limit",
        by_itself="nothing",
        response="as configured for the point; else look at the plant",
        latching=True,
        suppressible=False,
    ),
    Entry(
        pattern="low-low …",
        priority=Priority.CRITICAL,
        meaning="the value of this point is below its lowest limit",
        by_itself="nothing",
        response="as configured for the point; else look at the plant",
        latching=True,
        suppressible=False,
    ),
    Entry(
        pattern="high …",
        priority=Priority.MEDIUM,
        meaning="the value of this point is above its limit",
        by_itself="nothing",
        response="as configured for the point; else look at the plant",
    ),
    Entry(
        pattern="low …",
        priority=Priority.MEDIUM,
        meaning="the value of this point is below its limit",
        by_itself="nothing",
        response="as configured for the point; else look at the plant",
    ),
    Entry(
        pattern="flag …",
        priority=Priority.MEDIUM,
        meaning="the device itself reports this; priority and latch as in its profile",
        by_itself="nothing",
        response="see the device's manual; the text names point and bit",
    ),
)

OURS: Final = (
    Entry(
        pattern="alarm file",
        priority=Priority.LOW,
        meaning="the alarms' own state cannot be kept on disk",
        by_itself="goes on; after a restart now, alarms would ask to be acknowledged again and shelves would"
        " end",
        response="free the disk, repair permissions of the state directory",
        group="disk",
    ),
    Entry(
        pattern="alarm memory",
        priority=Priority.LOW,
        meaning="what was kept of the alarms could not be read at the start; the file was set aside",
        by_itself="begins without: what stands asks to be acknowledged again; latched alarms whose condition"
        " has gone, shelves and what was out of service are forgotten",
        response="look through `powerblock alarms`; take out of service again what is under repair",
        off_delay_s=0.0,
    ),
    Entry(
        pattern="alarm journal",
        priority=Priority.LOW,
        meaning="`alarms.jsonl` cannot be written",
        by_itself="goes on; lines are lost and counted",
        response="free the disk",
        group="disk",
    ),
    Entry(
        pattern="alarms …",
        priority=Priority.MEDIUM,
        meaning="more alarms of this kind than are listed one by one",
        by_itself="counts the rest",
        response="so many alike have one cause: look for what they have in common",
    ),
    Entry(
        pattern="…",
        priority=Priority.MEDIUM,
        meaning="an alarm that this table does not know",
        by_itself="unknown",
        response="the text is all that is known; report it to whoever maintains this program",
    ),
)

SECTIONS: Final[Mapping[str, tuple[Entry, ...]]] = MappingProxyType(
    {
        "The block": BLOCK,
        "The site's sources": SITE,
        "Field devices, their points, and commands": FIELD,
        "The alarms themselves": OURS,
    }
)
TABLE: Final = tuple(entry for entries in SECTIONS.values() for entry in entries)


@dataclass(frozen=True)
class AlarmSettings:
    """Constant for the life of a process.

    Args:
        own: entries of single keys, such as those of configured points: `pattern` is the whole key.
        shelve_max_s: the longest that an alarm can be shelved for.
    """

    own: tuple[Entry, ...] = ()
    shelve_max_s: float = SHELVE_MAX_S

    def entry(self, key: str) -> Entry:
        """The entry of a key: its own, else that of the longest beginning which the table knows."""
        return _longest(self._entries, key)

    def room(self, key: str) -> str:
        """Alarms that share one room: those of a kind, of single points also of one priority."""
        return self._rooms[self.entry(key).pattern]

    def rank(self, key: str) -> int:
        """Place in the table: causes before effects."""
        return self._ranks[self.entry(key).pattern]

    def is_one(self, key: str) -> bool:
        """Whether that is the key of one alarm which may come, rather than of a kind with names."""
        return key in self._entries and not key.endswith("…")

    @cached_property
    def _entries(self) -> Mapping[str, Entry]:
        return {entry.pattern: entry for entry in (*TABLE, *self.own)}

    @cached_property
    def _rooms(self) -> Mapping[str, str]:
        kinds = {entry.pattern: entry for entry in TABLE}
        rooms = {one.pattern: f"{_kind(_longest(kinds, one.pattern))} {one.priority}" for one in self.own}
        return {entry.pattern: _kind(entry) for entry in TABLE} | rooms

    @cached_property
    def _ranks(self) -> Mapping[str, int]:
        return {pattern: rank for rank, pattern in enumerate(self._entries)}


def _longest(entries: Mapping[str, Entry], key: str) -> Entry:
    found, beginning = entries.get(key), key
    while found is None:
        beginning = beginning.rpartition(" ")[0]
        found = entries.get(f"{beginning} …" if beginning else "…")
    return found


def _kind(entry: Entry) -> str:
    return entry.pattern.removesuffix(" …")
