"""Messages between the block controller and its GPU node agents, over MQTT.

Five messages, each complete in itself, so that the newest one wins and a lost one costs nothing: an `Order`
(controller to agent: limits for all GPUs of the node), a `Report` (agent to controller, ten times a second:
what they draw and hold, and which order is in force), `Facts` (agent to controller, now and then: what these
GPUs are), a `Table` (controller to agent: what each GPU does at every level of shedding) and a `Call`
(controller to all agents at once: do what your table says of this level).

A call is an order that needs no lease, because it only lowers: every GPU goes to what it holds or to its
entry in the table, whichever is less. It is confirmed by its number, as an order is.

Nobody trusts the other's clock. Each side sends its own monotonic time and gets it echoed:
* an order echoes the newest report's `at_s`; the lease runs from that moment on the *agent's* clock, so
  an order that lay in a broker for ten seconds is as old as the report it answers;
* a report echoes the newest order's `sent_at_s`, whose order that was, and how long ago it came; hence the
  controller knows on *its* clock a moment that the readings cannot be older than. What a controller on
  another host has sent is another clock's time, and tells it nothing.

A field that one side may lack has a default that means "not told", and does not raise the version.
"""

from typing import Annotated, Final, TypeVar

import msgspec

VERSION: Final = 2
MESSAGE_MAX_BYTES: Final = 64 * 1024  # 72 GPUs need 4 kB; anything near this is not ours
LIMIT_MAX_W: Final = 1e6  # a thousand times any GPU: more is a unit mistake
CLOCK_MAX_MHZ: Final = 10_000  # three times any GPU: more is a unit mistake

# A whole number that every JSON reader keeps exact and every 64 bit array can hold.
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Mhz = Annotated[int, msgspec.Meta(ge=0, le=CLOCK_MAX_MHZ)]


class LinkError(ValueError):
    """A message of the agent link that must not be acted on; the text says what is wrong with it."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for every GPU of one node, in NVML index order, valid for one lease."""

    v: int = VERSION
    epoch: Count  # grows with every controller start: an old controller's orders are refused
    seq: Count  # grows with every change of this node's limits; repeated while nothing changes
    sent_at_s: float  # controller's monotonic clock, echoed in reports
    echo_at_s: float  # `at_s` of the newest report heard, agent's clock; below 0: none heard yet
    known_at_s: float  # `at_s` of the newest report whose readings went into this decision; below 0: none
    lease_s: float  # right to hold these limits, counted from `echo_at_s` on the agent's clock
    limits_w: tuple[float, ...]
    clocks_mhz: tuple[Mhz, ...] = ()  # ceiling of the SM clock per GPU, 0: none; empty: none for any of them
    boot: str = ""  # random per controller process: tells two of one epoch apart


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One level of shedding for one node, in NVML index order."""

    limits_w: tuple[float, ...]
    clocks_mhz: tuple[Mhz, ...] = ()  # as in an order


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """What a node does when a level is called, the gentlest level first."""

    v: int = VERSION
    epoch: Count
    version: Count
    levels: tuple[Level, ...]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """Do what your table says of this level, at once. Numbered among the orders, confirmed like one."""

    v: int = VERSION
    epoch: Count
    seq: Count
    version: (
        Count  # of the newest table; an older one is obeyed as well, and what is missing is ordered after
    )
    level: Count
    sent_at_s: float
    boot: str = ""  # as in an order


class Gpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU as the driver tells it, or its share of its module. `fault` is empty, or a sentence.

    What stands at its default is not sent: most of it, most of the time.
    """

    uuid: str = ""  # told in `Facts`; here only where there is no report without
    power_w: float | None
    limit_w: float | None  # requested limit read back from the driver
    enforced_w: float | None  # lowest of all limiters, out-of-band ones included
    min_w: float
    max_w: float
    fault: str = ""
    notice: str = ""  # something to know that is no fault: put right, or somebody else's doing
    clock_mhz: Mhz | None = None  # of the SMs, now
    ceiling_mhz: Mhz = 0  # SM clock ceiling of ours in force, as ordered; 0: none
    capped: bool = False  # the limit holds the clocks down at this moment
    lever: str = ""  # what moves its power now: "cap", "clock", "none"; empty: not known yet
    floor_w: float | None = 0.0  # power smoothing keeps it at this, whatever the limit; None: unknown


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a node draws and holds."""

    v: int = VERSION
    node: str
    boot: str  # random per agent process
    at_s: float  # agent's monotonic clock when the readings were taken
    echo_sent_at_s: float  # `sent_at_s` of the newest order heard; below 0: none heard yet
    echo_age_s: float  # agent's `at_s` minus its clock when that order came
    echo_epoch: Count = 0  # of that order: whose clock it is; 0: none heard, or an agent that does not tell
    epoch: Count  # of the order in force; 0: none
    seq: Count  # of the order in force (written and read back); 0: none
    mode: str  # "observe", "waiting", "leased" or "fallback"
    gpus: tuple[Gpu, ...]
    table_epoch: Count = 0  # of the shed table in memory, and its version; 0: none
    table: Count = 0
    came_ago_s: float = -1.0  # how long the order or call in force had been here when this was sent
    obeyed_in_s: float = -1.0  # from its arrival to its last limit read back
    refused: dict[str, Count] = {}  # orders refused since this agent's start, by reason
    rivals_s: float = -1.0  # how long ago a controller other than the one in force was heard; below 0: never


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a board sits, as GB200 and GB300 know it; see `protocols.nvml.Platform`."""

    chassis_serial: str
    slot: int
    tray: int
    host_id: int
    module_id: int


class Smoothing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Power smoothing of a Blackwell GPU; see `protocols.nvml.Smoothing`. None: hidden from the host."""

    enabled: bool | None = None
    floor_w: float | None = None
    ceiling_w: float | None = None
    preset: int | None = None
    ramp_up_w_per_s: float | None = None
    ramp_down_w_per_s: float | None = None
    hysteresis_s: float | None = None
    immediate: bool | None = None
    lifetime_ratio: float | None = None


class GpuFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one GPU is. A GPU that was never read has an empty UUID and nothing else but its fallback."""

    fallback_w: float  # what it goes down to when this agent is left alone
    uuid: str = ""
    name: str = ""
    min_w: float = 0.0
    max_w: float = 0.0
    default_w: float = 0.0
    found_w: float | None = None  # its limit when this agent first saw it
    clock_min_mhz: Mhz = 0
    clock_max_mhz: Mhz = 0  # 0: unknown
    module: int = -1  # in this node, of which the powers here are its share; below 0: it has its own limit
    mig: bool = False
    persistence: bool | None = None
    place: Place | None = None
    smoothing: Smoothing | None = None  # None: it has none
    profiles: tuple[int, ...] = ()  # workload power profiles it supports
    profiles_requested: tuple[int, ...] = ()
    locked_mhz: tuple[Mhz, Mhz] | None = None  # the site's own clock lock, as node.yaml names it


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What changes seldom, sent when it does and every ten seconds."""

    v: int = VERSION
    node: str
    boot: str
    at_s: float  # agent's monotonic clock
    driver: str  # its version
    lease_max_s: float
    waiting_max_s: float | None
    fallback_ramp_w_per_s: float
    gpus: tuple[GpuFacts, ...]


M = TypeVar("M", Order, Report, Table, Call, Facts)

ORDER, TABLE, CALL, REPORT, FACTS = "order", "table", "call", "report", "facts"  # last levels of the topics


def order_topic(block: str, node: str) -> str:
    return f"powerblock/{block}/agent/{node}/{ORDER}"


def table_topic(block: str, node: str) -> str:
    return f"powerblock/{block}/agent/{node}/{TABLE}"


def call_topic(block: str) -> str:
    """Topic that all agents of a block hear."""
    return f"powerblock/{block}/agents/{CALL}"


def report_topic(block: str, node: str) -> str:
    """Topic of one node's reports; node `+` subscribes to all of a block."""
    return f"powerblock/{block}/agent/{node}/{REPORT}"


def facts_topic(block: str, node: str) -> str:
    """Topic of one node's facts; node `+` subscribes to all of a block."""
    return f"powerblock/{block}/agent/{node}/{FACTS}"


_encoder = msgspec.json.Encoder()
_order_decoder = msgspec.json.Decoder(Order)
_report_decoder = msgspec.json.Decoder(Report)
_table_decoder = msgspec.json.Decoder(Table)
_call_decoder = msgspec.json.Decoder(Call)
_facts_decoder = msgspec.json.Decoder(Facts)


def encode(message: Order | Report | Table | Call | Facts) -> bytes:
    return _encoder.encode(message)


def decode_order(payload: bytes) -> Order:
    """Raises LinkError on anything that is not an order of this version."""
    order = _decode(_order_decoder, payload)
    _check_limits(f"order {order.epoch}/{order.seq}", order.limits_w, order.clocks_mhz)
    return order


def decode_table(payload: bytes) -> Table:
    """Raises LinkError on anything that is not a shed table of this version."""
    table = _decode(_table_decoder, payload)
    for level in table.levels:
        _check_limits(f"table {table.epoch}/{table.version}", level.limits_w, level.clocks_mhz)
    return table


def decode_call(payload: bytes) -> Call:
    """Raises LinkError on anything that is not a call of this version."""
    return _decode(_call_decoder, payload)


def decode_facts(payload: bytes) -> Facts:
    """Raises LinkError on anything that is not facts of this version."""
    return _decode(_facts_decoder, payload)


def _check_limits(what: str, limits_w: tuple[float, ...], clocks_mhz: tuple[int, ...]) -> None:
    if not all(0.0 <= limit_w < LIMIT_MAX_W for limit_w in limits_w):
        raise LinkError(f"{what}: a limit is not a power in W: {limits_w}")
    if clocks_mhz and len(clocks_mhz) != len(limits_w):
        raise LinkError(f"{what}: {len(clocks_mhz)} clock ceilings for {len(limits_w)} GPUs")


def decode_report(payload: bytes) -> Report:
    """Raises LinkError on anything that is not a report of this version."""
    return _decode(_report_decoder, payload)


def _decode(decoder: "msgspec.json.Decoder[M]", payload: bytes) -> M:
    kind = decoder.type.__name__
    if len(payload) > MESSAGE_MAX_BYTES:
        raise LinkError(f"{kind} of {len(payload)} bytes refused, {MESSAGE_MAX_BYTES} at most")
    try:
        message = decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise LinkError(f"not a {kind}: {error}") from error
    if message.v != VERSION:
        raise LinkError(f"{kind} version {message.v}, this side speaks {VERSION}: update the older side")
    return message
