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
from dataclasses import KW_ONLY, dataclass, replace
from enum import StrEnum
from functools import cached_property, partial
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
CRITICAL, HIGH, MEDIUM, LOW = Priority


@dataclass(frozen=True)
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
    _: KW_ONLY
    group: str = ""
    latching: bool = False
    suppressible: bool = True
    on_delay_s: float = 0.0
    off_delay_s: float = MEASURED_OFF_S


_link = partial(Entry, off_delay_s=LINK_OFF_S)


def _cascade(group: str, *entries: Entry) -> tuple[Entry, ...]:
    """They follow from one another, causes before effects."""
    return tuple(replace(entry, group=group) for entry in entries)


# pattern, priority, meaning, what the block does by itself, what a person does; then what is special

BLOCK: Final = _cascade(
    "block",
    _link("broker", HIGH, "no connection to the block's own MQTT broker",
          "nobody can be ordered: after their lease agents take all GPUs down to `fallback_w` and keep them"
          " there; what these had above it is work lost. No curtailment, shed or frequency response takes"
          " anything off them meanwhile. Sources on this broker fall silent: failsafe limit",
          "`systemctl status mosquitto`; reconnects by itself within 2 s, and power comes back by the agreed"
          " ramp. Until then shed by hand if the site asks for less than the fallback"),
    _link("meter", HIGH, "the block meter is not usable",
          "last good base load for 30 s, then the assumed maximum, or what was measured if that was more:"
          " less for the GPUs",
          "wire, address, unit id; `powerblock status` shows the device's own words"),
    Entry("meter implausible", MEDIUM, "the meter reads less than GPUs and hosts draw",
          "its word is not used",
          "transformer ratio, phase order, wrong unit; is another load's meter configured?"),
    _link("pdu …", MEDIUM, "this PDU is not usable",
          "its rack counts as hanging on one inlet",
          "wire, address, unit id"),
    _link("cooling", HIGH, "the cooling plant's capacity is unknown",
          "`cooling.blind_kw` limits the block, or the last capacity heard, if that was lower",
          "is its OPC UA server up? certificates, node names"),
    Entry("report …", MEDIUM, "this node's newest report was refused; the text says why",
          "as `agent`",
          "number of GPUs, names of node or block: correct `block.yaml` or `node.yaml`"),
    Entry("grouping …", HIGH,
          "GPUs of this node are not those, or not where, `block.yaml` says; the text says what was found",
          "what the text says it costs: mostly, they are ordered to their least and count at their most",
          "the text ends with the remedy; `powerblock grouping block.yaml` lists all, and with `--propose`"
          " prints the racks as they were found"),
    Entry("unknown nodes", HIGH, "agents speak under this block's name that `block.yaml` does not know",
          "counts them at their most: what they draw is base load, as measured, and room is held for the"
          " rest; gives them no orders",
          "add them to `block.yaml` (`powerblock grouping --propose`), or correct `block` or `node` in their"
          " node.yaml: until then the room held for them is lost to the block"),
    Entry("false name", HIGH, "a message came on the topic of one node in the name of another",
          "refuses it: brokers grant rights by topic, and only what comes on a node's own counts for it",
          "who publishes there? A login that was copied to another host, a bridge between brokers that"
          " renames topics, a host that is not in the hands of its owner any more"),
    Entry("shed", HIGH, "a level of shedding is called; the text says which, and by whom",
          "every GPU went to its entry in the table at once; the power comes back by the agreed ramp when"
          " the call ends",
          "`powerblock shed` shows what came of it; if `shortfall` stands beside it, shed by hand. Is the"
          " reason real? Who called it ends it", off_delay_s=0.0),
    Entry("shed plan …", HIGH, "this level of shedding would not reach its power if it were called now",
          "keeps the plan as low as the GPUs allow",
          "who cannot be reached (`agent`, `lease`, `gpu`)? Is power smoothing on, whose floor no limit takes"
          " away? Else the level is below what GPUs at their least and base load need: tell the site"),
    Entry("floors unknown", LOW, "power smoothing of some GPUs is on, or may be, and hides its floor",
          "counts what they draw above their limits once it is seen",
          "let the agents read it (driver, rights), or switch smoothing off where a shed must be kept"),
    _link("contact …", MEDIUM, "this contact cannot be read; the text says what it counts as",
          "counts as it was last seen, or as closed where `lost_calls` is set",
          "wire, address, unit id of its PLC. Until it is back nobody can call by it, and a call by it does"
          " not end"),
    _link("frequency", MEDIUM, "the grid's frequency is not heard",
          "no response begins; one that is under way holds for its sustain time",
          "the instrument, its line, its clock; the commitment to the grid is not kept meanwhile: tell them"),
    Entry("frequency frozen", MEDIUM, "the grid's frequency has not moved in the last digit for seconds",
          "as `frequency`",
          "restart the instrument: a live grid is never still"),
    Entry("frequency wild", LOW, "frequency samples were beyond what a grid can do",
          "does not use them; no response begins on them",
          "shield and earth of the instrument, its transformer"),
    Entry("frequency commitment", MEDIUM, "the block could shed less than it has committed",
          "would shed what GPUs can: down to their minima, floors, and what those out of reach may hold",
          "who cannot be reached (`agent`, `lease`, `gpu`)? Is power smoothing on? Does the block draw less"
          " than usual? Else tell the grid operator, or lower `frequency.committed_kw`"),
    Entry("frequency baseline", LOW,
          "the block's power is not measured, and a response would start from an old value",
          "starts from the last known power",
          "the block meter's wire, address, unit id"),
    _link("agent …", HIGH, "no report from this node for half a second",
          "counts its GPUs at what they may hold, at their most after ten seconds; sheds elsewhere",
          "on the host: `systemctl status powerblock-agent`; if the host is off for longer, take it out"
          " of `block.yaml`"),
    _link("lease …", MEDIUM, "the node is heard but does not act on orders",
          "as `agent`",
          "its log says `order refused` with the reason; two controllers on one broker? an agent started"
          " with `--observe`?"),
    _link("backstop process", MEDIUM, "the process that talks to BMCs ended or hangs",
          "begins it anew; what BMCs have shown counts for `proof_age_max_s`, then silent nodes at most",
          "its reason is in the journal of `powerblock`; if it hangs, end the child process"),
    _link("backstop …", MEDIUM, "this node's BMC cannot be used, or does not do what it says",
          "the node counts at its most while its agent is silent",
          "the text says what the BMC did: address, login, certificate, no such limit. The node must not be"
          " left to its agent alone for long"),
    Entry("two controllers", HIGH, "agents hear another controller of this block",
          "agents obey the newer start and refuse the older one; this one counts at their most the nodes that"
          " do not act on its orders",
          "end one of them: the text says which is obeyed. The other leads again by itself two leases later"),
    Entry("stale orders", MEDIUM, "agents are told orders of long ago, many a second",
          "agents refuse them; they renew no lease and move no limit",
          "somebody records and repeats, or a bridge between brokers loops: only the controller may publish"
          " on `powerblock/BLOCK/agent/+/order` (access list of the broker)",
          on_delay_s=3.0),  # a link that was cut for seconds delivers late, once
    Entry("persistence", LOW, "persistence mode is off on some GPUs: their driver forgets limits",
          "never switches it. While an agent runs it holds the driver open; when it is the last program that"
          " ends, its GPUs go back to their default limits, and count at their most once it is silent",
          "`systemctl enable --now nvidia-persistenced` on these hosts"),
    Entry("fallback", MEDIUM,
          "were all agents left alone at once, the block could draw more than failsafe limit or feed allow",
          "nothing: agents fall back by what their own files say",
          "lower `fallback_w` in the node.yaml files; agents that have never told theirs, or have"
          " `waiting_max_s: null`, count at their most, and no GPU lower than its least or the floor that"
          " power smoothing keeps up",
          on_delay_s=30.0),  # agents tell theirs every ten seconds
    Entry("faults …", LOW,
          "what this node's agent says of its GPUs, or limits of a GPU that do not fit `block.yaml`",
          "as `gpu`; limits of `block.yaml` are taken",
          "the sentence names the remedy; correct `min_w`, `max_w`"),
    Entry("notice …", LOW,
          "somebody else sets limits of these GPUs, or their driver began anew: the text says by how much",
          "its agent writes its own limit again, six times a minute; one that is lower is then left for a"
          " minute, one that is higher is lowered every second",
          "find the other writer: an administrator, a scheduler's node agent, a DCGM policy, the BMC. What a"
          " GPU holds below its limit is work lost, and no other GPU is given it",
          off_delay_s=10.0),  # agents say it for a second each time
    Entry("other limits", MEDIUM,
          "GPUs hold limits that this block has not ordered: how many in the whole block, and how much power"
          " that is",
          "limits below the orders cost work and no promise: that power is kept for these GPUs, and no other"
          " is given it. Limits above are counted, and others give way",
          "`notice …` and `gpu …` name the GPUs and what their agents see: another writer, the BMC, heat, a"
          " driver that does not take limits. End it, or lower what the block expects of these GPUs",
          on_delay_s=3.0, off_delay_s=10.0),  # agents write theirs again at once, six times a minute
    Entry("gpu …", MEDIUM, "this GPU cannot be read, or does not take its limit",
          "counts it at what it may hold; one that cannot be read tells nothing, is ordered to its least,"
          " and after ten seconds counts at its most",
          "the agent's log names the driver's error and the remedy; see Xid in the kernel log"),
    Entry("excess …", MEDIUM, "this GPU draws more than its limit",
          "what it draws is counted, others give way",
          "a limit set by somebody else? thermal or firmware fault; drain and reset it"),
    Entry("rack …", HIGH, "GPUs of this rack may draw more than its inlets carry",
          "every GPU of it that can be reached is at its least, or its cut is not confirmed yet",
          "as `shortfall`, for one rack: who cannot be reached? Shed by hand if an inlet is full",
          suppressible=False),
    Entry("inlet …", CRITICAL, "this inlet carries over 2 % more than it may for long (80 % of its rating)",
          "cuts its rack",
          "loads on this feed that are not in `block.yaml`? supplies that lost the other feed, which then"
          " all hang on this one? Shed by hand before the breaker does", latching=True, suppressible=False),
    Entry("shortfall", CRITICAL, "so much above the promised line cannot be shed",
          "every GPU it can reach is already at its least",
          "find who cannot be reached (`agent`, `lease`, `gpu`); tell the site what cannot be kept; shed"
          " by hand if a breaker is near", suppressible=False),
    Entry("over budget", HIGH, "the meter reads more than is promised, by over 1 %",
          "goes on cutting as measured base load rises",
          "look for `excess`, `gpu`, `agent` beside it; else loads on the feed that are not in"
          " `block.yaml`", suppressible=False),
)  # fmt: skip

DISK: Final = _cascade(
    "disk",
    Entry("state file", HIGH, "the state cannot be kept on disk",
          "goes on, but a restart now would forget limits",
          "free the disk, repair permissions of the state directory; do not restart before"),
    Entry("journal", LOW, "the journal cannot be written",
          "goes on; lines are lost and counted",
          "free the disk"),
    Entry("history", LOW, "`signals.jsonl` cannot be written",
          "goes on; lines are lost and counted",
          "free the disk"),
    Entry("shed record", LOW, "`sheds.jsonl` cannot be written",
          "calls are carried out all the same; how long their steps took is lost",
          "free the disk"),
    Entry("frequency record", LOW, "the record of a frequency response cannot be written",
          "responds all the same; what was delivered cannot be shown afterwards",
          "free the disk; the folder `records` of the state directory"),
    Entry("backstop file", HIGH, "what BMCs held before they were set cannot be kept on disk, or read",
          "caps silent hosts all the same; a restart now would not know what to put back",
          "free the disk, repair permissions of the state directory; do not restart before. A file that was"
          " set aside: put those limits back by hand, delete it, `systemctl reload powerblock`"),
    Entry("commands", LOW, "`commands.jsonl` cannot be written",
          "commands are carried out all the same; who gave them is lost",
          "free the disk"),
)  # fmt: skip

SITE: Final = _cascade(
    "site",
    _link("broker …", MEDIUM,
          "no connection to the source's own broker, or a topic of the source that its broker denies",
          "this source falls silent; the loop in the block is not touched",
          "the text says what the broker did: address, login, certificate, denied subscription;"
          " reconnects by itself within 2 s"),
    _link("canary …", LOW, "what we send to ourselves there does not come back",
          "nothing: life is judged by the heartbeat",
          "broker frozen or overloaded, or its access list withholds"),
    _link("vtn …", MEDIUM, "a round, the notifier or a report went wrong; the text says what",
          "asks again, at most after a minute. Without a whole round for `heartbeat_timeout_s`: failsafe"
          " limit. A round with an event that was refused proves that the VTN lives, and states no plan:"
          " it does not end `init` or `failsafe`",
          "address, secret, scope, certificate: as the text says. While enrolling fails, events that are"
          " targeted at us may not be listed for us"),
    Entry("flood", MEDIUM, "more signals than may be looked at, in the last ten seconds",
          "no more than 20 % of the time goes into signals; each source's newest are read, the others"
          " refused unread; heartbeats are read first",
          "find who publishes so much (`powerblock signals`), and take its right to write away. A VTN is"
          " asked for everything again by itself; over bare MQTT what was lost shows as `plan`"),
    Entry("signal …", MEDIUM, "a signal was refused; the text says why",
          "the signal counts for nothing; what was known of that event before stays in force",
          "tell the sender the sentence. Goes out when the same event is accepted (for DSX: a target that"
          " says something new), or after ten minutes"),
    Entry("site not heard …", MEDIUM, "it has not spoken since our start",
          "failsafe limit",
          "is the site's application up? `powerblock status` shows when it was heard last; look for"
          " `broker`, `vtn`, `signal`, `canary` beside it. Heartbeats that were heard and refused (late,"
          " retained, repeated, malformed) are a `signal` alarm",
          on_delay_s=5.0),  # after every start of ours, until its next heartbeat
    Entry("site lost …", HIGH, "not heard for its `heartbeat_timeout_s`",
          "failsafe limit, approached by the ramp; open windows stay",
          "as `site not heard`; after coming back it must state its plan: heartbeats with `event_ids` or"
          " any event (bare MQTT), a whole round (VTN), a load target (DSX)"),
    Entry("plan …", MEDIUM,
          "its heartbeat lists events that never arrived or were refused; or, five times in a row, leaves"
          " out one that stands here; or it has more windows within reach than find a place",
          "keeps what it has; a heartbeat with unknown events does not end `init` or `failsafe`, and one"
          " that leaves an event out releases nothing",
          "let it send these events again, or delete what is over; `powerblock signals` says if one was"
          " refused, and why"),
    Entry("status …", LOW, "a status or alert was too large or could not be written, and was not told",
          "goes on; the next one is told again",
          "fewer windows at once; the text says what"),
)  # fmt: skip

FIELD: Final = (
    Entry("facility mode", LOW, "the block is switched to LOCAL or OFF",
          "refuses remote commands that move plant or power and says so; in OFF draws its least",
          "switch back to REMOTE when the work on site is done", off_delay_s=0.0),
    _link("device …", MEDIUM, "this field device does not answer, or answers what cannot be true",
          "its values count as bad wherever they are served; no other device is touched",
          "wire, address, unit id; the text gives the device's own words. If it says frozen and the plant"
          " is really still (whole numbers, no load): `frozen_after_s: null`, or longer, in `block.yaml`",
          on_delay_s=5.0),  # a start, and a device that restarts its server, are no news
    Entry("write …", HIGH,
          "a value written to this device was not confirmed: refused, or read back as another",
          "says so to whoever asked; writes nothing more by itself",
          "is the device in local mode, or does somebody else write to it? Look at the device before the"
          " next try, then reset the alarm", latching=True),
    Entry("lapsed …", HIGH, "a writer that promised a heartbeat with its power limit has fallen silent",
          "its limit ended; its fallback holds, where it set one",
          "is that system alive? The alarm ends when it sets a limit again; or release its slot:"
          " `powerblock command block.yaml release writer='…'`"),
    Entry("facility server", MEDIUM, "`powerblock serve` has not been heard for ten seconds",
          "control goes on; nothing is served to SCADA, DSX Exchange and monitoring meanwhile",
          "`systemctl status powerblock-serve`; what it told last stands until it says otherwise"),
    Entry("served …", LOW,
          "the facility server says that something it serves is not well: a port that somebody else has, a"
          " broker that is away, a disk that is full, an integration that is silent or asks for what it may"
          " not",
          "goes on with everything else; what cannot be sent is stored where it was configured so",
          "the text names what it is; control of the block does not depend on it"),
    Entry("high-high …", CRITICAL, "the value of this point is above its highest limit",
          "nothing",
          "as configured for the point; else look at the plant", latching=True, suppressible=False),
    Entry("low-low …", CRITICAL, "the value of this point is below its lowest limit",
          "nothing",
          "as configured for the point; else look at the plant", latching=True, suppressible=False),
    Entry("high …", MEDIUM, "the value of this point is above its limit",
          "nothing",
          "as configured for the point; else look at the plant"),
    Entry("low …", MEDIUM, "the value of this point is below its limit",
          "nothing",
          "as configured for the point; else look at the plant"),
    Entry("flag …", MEDIUM, "the device itself reports this; priority and latch as in its profile",
          "nothing",
          "see the device's manual; the text names point and bit"),
)  # fmt: skip

OURS: Final = (
    Entry("alarm file", LOW, "the alarms' own state cannot be kept on disk",
          "goes on; after a restart now, alarms would ask to be acknowledged again and shelves would end",
          "free the disk, repair permissions of the state directory", group="disk"),
    Entry("alarm memory", LOW,
          "what was kept of the alarms could not be read at the start; the file was set aside",
          "begins without: what stands asks to be acknowledged again; latched alarms whose condition has"
          " gone, shelves and what was out of service are forgotten",
          "look through `powerblock alarms`; take out of service again what is under repair",
          off_delay_s=0.0),
    Entry("alarm journal", LOW, "`alarms.jsonl` cannot be written",
          "goes on; lines are lost and counted",
          "free the disk", group="disk"),
    Entry("alarms …", MEDIUM, "more alarms of this kind than are listed one by one",
          "counts the rest",
          "so many alike have one cause: look for what they have in common"),
    Entry("…", MEDIUM, "an alarm that this table does not know",
          "unknown",
          "the text is all that is known; report it to whoever maintains this program"),
)  # fmt: skip

SECTIONS: Final[Mapping[str, tuple[Entry, ...]]] = MappingProxyType(
    {
        "The block": BLOCK + DISK,
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
