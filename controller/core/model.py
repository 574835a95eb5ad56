"""The nouns of the control law: everything that enters a tick, everything that leaves it.

A tick is `decision = tick(settings, state, snapshot)`. `Settings` never change while the daemon runs.
`Snapshot` is every input of one moment, frozen. `State` is all that the law remembers; it comes back in
the `Decision`. Nothing here reads a clock: `now_s` is a monotonic clock that survives suspend, `now_utc_s`
is the wall clock, which people and time servers move about and which therefore never ends a limit.

Whatever is made anew in every tick is a NamedTuple: a frozen dataclass takes three times as long to make.

Powers are W, drawn is positive. Arrays run over GPUs (n), nodes, racks (r) or inlets (m) in the order of
`Topology`. "Never" and "no end" are finite numbers, because the journal is JSON and JSON has no infinity.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from controller.core.bounds import FOREVER_S as FOREVER_S  # noqa: PLC0414  part of this interface
from controller.core.bounds import NEVER_S as NEVER_S  # noqa: PLC0414
from controller.core.bounds import NO_LIMIT_W as NO_LIMIT_W  # noqa: PLC0414
from controller.core.frequency_model import FrequencySettings, FrequencyState, Underway

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LOWEST_PRIORITY: Final = 1_000_000  # what a setpoint without a priority gets; 0 is the highest


# --- what is constant -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """The tree that limits live on."""

    node_names: tuple[str, ...]
    rack_names: tuple[str, ...]
    inlet_names: tuple[str, ...]
    gpu_node: Ints  # (n) index into nodes
    gpu_rack: Ints  # (n) index into racks
    inlet_rack: Ints  # (m) index into racks
    inlet_continuous_w: Floats  # (m) what an inlet may carry for hours: 80 % of its rating
    gpu_min_w: Floats  # (n) until the device itself has told
    gpu_max_w: Floats  # (n)
    gpu_floor_w: Floats  # (n) what the tier keeps while others can still give
    gpu_weight: Floats  # (n) share of what is left above the floors

    def gpu_name(self, index: int) -> str:
        """Node and position on it, such as `node-a/3`."""
        node = int(self.gpu_node[index])
        return f"{self.node_names[node]}/{index - int(np.searchsorted(self.gpu_node, node))}"

    def rack_sums(self, gpu_values: Floats) -> Floats:
        """(n) over GPUs to (r) over racks."""
        sums: Floats = np.bincount(self.gpu_rack, gpu_values, len(self.rack_names))  # type: ignore[assignment]
        return sums

    def inlet_sums(self, inlet_values: Floats | Bools) -> Floats:
        """(m) over inlets to (r) over racks."""
        sums: Floats = np.bincount(self.inlet_rack, inlet_values, len(self.rack_names))  # type: ignore[assignment]
        return sums


class Ramp(NamedTuple):
    """How fast block power may move, as agreed, W/s."""

    down_w_per_s: float
    up_w_per_s: float


@dataclass(frozen=True, slots=True)
class FailsafeSettings:
    """What the silence of one source of setpoints means."""

    limit_w: float
    heartbeat_timeout_s: float
    release_after_s: float | None = None  # None: hold until the source is back
    source: str = "site"


class ShedLevel(NamedTuple):
    """A step of shedding, agreed beforehand: what the block may draw while it is called."""

    name: str
    limit_w: float


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    topology: Topology
    failsafes: tuple[FailsafeSettings, ...]  # one for each source that is watched
    tick_s: float
    feed_rating_w: float
    ramp: Ramp  # where a setpoint brings none of its own
    block_w_per_gpu_w: float  # power supplies: a watt at the GPU is a little more at the meter
    base_min_w: float  # less is not believed
    base_max_w: float  # assumed when nothing is known
    base_margin_w: float
    rack_base_max_w: Floats  # (r)
    cooling_blind_w: float | None  # block power while the cooling plant is unknown; None: no cooling metered
    lead_s: float = 0.6  # from a decision to obeyed power: the wait for a stride, link, driver call, settling
    settle_s: float = 0.2  # GPU power after its limit was written (measured: within 190 ms on a V100)
    ack_wait_s: float = 0.4  # an order unanswered for longer counts as not obeyed
    silent_max_after_s: float = 10.0  # no host comes back from a reboot or driver reload sooner
    report_age_max_s: float = 0.5
    meter_age_max_s: float = 1.0
    meter_lag_s: float = 0.1
    skew_s: float = 0.1  # how well the moments of meter and GPU readings are known against each other
    inlet_age_max_s: float = 5.0
    inlet_lag_s: float = 1.0
    cooling_age_max_s: float = 5.0
    base_age_max_s: float = 30.0
    witness_tolerance_w: float = 500.0  # PDUs lag behind the meter while the block ramps
    reshare_s: float = 0.5
    shed_levels: tuple[ShedLevel, ...] = ()  # the gentlest first
    frequency: FrequencySettings | None = None  # what was committed to the grid; None: nothing
    clock_least_ratio: float = 0.6  # of the highest clock: lower is no ceiling set; 1: none ever is

    @property
    def failsafe_w(self) -> float:
        """What the block may draw while nobody has been heard."""
        return min((failsafe.limit_w for failsafe in self.failsafes), default=self.feed_rating_w)


# --- what enters ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measurement:
    """One value with its moment. `good` is the source's own word; age is judged by whoever uses it."""

    value: float
    good: bool
    taken_at_s: float

    def is_usable(self, now_s: float, age_max_s: float) -> bool:
        # a reading from the future comes from a broken clock, not from a good instrument
        return self.good and 0.0 <= now_s - self.taken_at_s + 0.001 <= age_max_s + 0.001


UNKNOWN: Final = Measurement(0.0, good=False, taken_at_s=NEVER_S)


@dataclass(frozen=True, slots=True, eq=False)
class Inlets:
    """All PDU inlets: power with quality and moment, arrays of length m."""

    power_w: Floats
    good: Bools
    taken_at_s: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Gpus:
    """What the agents report. NaN: not readable. `revision` moves when any of it does."""

    revision: int
    power_w: Floats  # (n)
    limit_w: Floats  # (n) the limit the driver holds, read back
    min_w: Floats  # (n) the device's own constraints
    max_w: Floats  # (n)
    cap_w: Floats  # (n) what the site's infrastructure asks of single GPUs; NO_LIMIT_W: nothing
    proven_w: Floats  # (n) what a BMC was read to enforce, whatever its host does; NO_LIMIT_W: nothing
    floor_w: (
        Floats  # (n) power smoothing keeps it at this, whatever its limit; 0: it does not, or nobody knows
    )
    capped: Bools  # (n) the driver says that the limit holds the clock down
    by_clock: (
        Bools  # (n) its agent has learnt that a lower clock would take power from it, and a limit would not
    )
    clock_max_mhz: Ints  # (n) 0: not known
    ceiling_mhz: Ints  # (n) of ours, in force; 0: none
    node_at_s: Floats  # (nodes) a moment that the node's readings are not older than
    node_seq: Ints  # (nodes) newest of our orders that the node says is in force; 0: none
    node_leased: Bools  # (nodes) the node obeys us; else it waits, fell back or only observes
    node_table: Ints  # (nodes) version of the shed table that it has from us; 0: none
    stray_w: float = 0.0  # what GPUs of nodes that nobody configured may draw beyond what they do


@dataclass(frozen=True, slots=True)
class Setpoint:
    """One window of what the site asks. `kind` groups setpoints that replace each other by priority."""

    source: str
    id: str
    kind: str
    limit_w: float
    starts_utc_s: float
    ends_utc_s: float
    priority: int = LOWEST_PRIORITY
    arrive_at_start: bool = False  # be there when the window opens, instead of leaving then
    ramp: Ramp | None = None  # None: the block's
    shed_level: int = -1  # of shedding, called at once while the window is open; -1: none, the ramp is kept


class Contact(NamedTuple):
    """Signs of life of one source of setpoints."""

    heartbeat_at_s: float = NEVER_S
    plan_at_s: float = NEVER_S  # when it last stated what it wants, be it "no limit"


@dataclass(frozen=True, slots=True)
class Site:
    """What is known of the site: signs of life in the order of `Settings.failsafes`, and all wishes."""

    contacts: tuple[Contact, ...] = ()
    setpoints: tuple[Setpoint, ...] = ()

    def contact(self, index: int) -> Contact:
        return self.contacts[index] if index < len(self.contacts) else Contact()


class ShedRequest(NamedTuple):
    """Somebody asks for a level of shedding, now and until the request is gone."""

    source: str
    level: int  # index into `Settings.shed_levels`


class Snapshot(NamedTuple):
    now_s: float
    now_utc_s: float
    meter: Measurement
    inlets: Inlets
    cooling: Measurement  # heat the plant can take away, W
    gpus: Gpus
    site: Site
    sheds: tuple[ShedRequest, ...] = ()
    frequency: Measurement = UNKNOWN  # of the grid, Hz


# --- what is decided --------------------------------------------------------------------------------


class Mode(StrEnum):
    """Where the block stands with a source of setpoints (states of EEBUS LPC 1.0.0, see failsafe.py)."""

    INIT = "init"
    CONTROLLED = "controlled"
    LIMITED = "limited"
    FAILSAFE = "failsafe"
    AUTONOMOUS = "autonomous"


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on block power with its source. Protection does not wait for a comfort ramp."""

    power_w: float
    source: str
    protection: bool = False
    ramp: Ramp | None = None  # None: the block's


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should know. `key` names it for good, `text` says it now."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Carried:
    """What a restart inherits: the limit that bound the block before, and how long it was meant to."""

    limit_w: float
    budget_w: float
    source: str
    ends_at_s: float = FOREVER_S
    base_w: float = 0.0  # base load as last measured, and when: it ages like any other
    base_at_s: float = NEVER_S
    up_w_per_s: float | None = None  # as agreed with whoever held the aim down last; None: as the block's
    cooling_w: float = NO_LIMIT_W  # capacity when last heard
    response: Underway | None = None  # to the frequency of the grid


class Running(NamedTuple):
    """A setpoint whose window has opened. Its end hangs on the monotonic clock from then on."""

    setpoint: Setpoint
    ends_at_s: float


class Link(NamedTuple):
    """State of the failsafe machine of one source."""

    mode: Mode
    entered_at_s: float
    first_heartbeat_at_s: float = NEVER_S  # since the mode was entered


class Standing(NamedTuple):
    """What the ledger says of every GPU at this moment, arrays (n)."""

    held_w: Floats  # the highest limit it may hold
    ordered_w: Floats  # the highest of its orders that may still be in force
    present_w: Floats  # the limit that cuts and rises start from
    waited_s: Floats  # how long it has owed the answer to an order; 0: owes none


class Obedience(NamedTuple):
    """When every GPU was last seen to obey, arrays (n): an order that was confirmed may be undone later."""

    taken_at_s: Floats  # its limit was read at or under its orders
    kept_at_s: Floats  # its draw was within what it may hold


class Ledger(NamedTuple):
    """Which limits every GPU may hold: one row per order that might still be in force, oldest first."""

    seq: int
    limits_w: Floats  # (k, n)
    acked_at_s: Floats  # (k, n) FOREVER_S: not acknowledged
    node_seq: Ints  # (k, nodes) what a node must acknowledge for the row to be in force there
    at_s: Floats  # (k) when the row was decided


class Pace(NamedTuple):
    """The ramp: what we aim at now, and the line we promise, which lags by the time obeying takes."""

    aim_w: float
    budget_w: float
    line_w: float  # where power is to be on a way down; below the aim by what swings leave unused
    target_w: float  # the lowest limit of the last beat
    falling: bool
    sure: bool  # it was known where this fall began
    up_w_per_s: float  # as agreed with whoever held the aim down last
    trail: tuple[tuple[float, float], ...]  # (at_s, aim_w) of the last `lead_s`


class BaseLoad(NamedTuple):
    """Block power that no GPU limit can move, and the windows it is measured from."""

    upper_w: float
    measured_at_s: float
    rack_upper_w: Floats  # (r)
    rack_measured_at_s: Floats  # (r)
    gpu_at_s: Floats  # (k) moments of the GPU sums
    gpu_rack_w: Floats  # (k, r) sums per rack
    gpu_run: Ints  # (k) samples of one run vouch for all that is between them
    run: int  # of the next sample in which all GPUs are known
    settled_at_s: float  # when the last cut of much power is over
    meter_at_s: Floats  # (k)
    meter_w: Floats  # (k)
    inlet_at_s: Floats  # (m) moment of the newest PDU reading used
    disbelieved_at_s: float  # last time the meter said less than the base load can be
    bound_w: float  # meter less the known GPUs, while some are unknown
    bounded_at_s: float


class Shares(NamedTuple):
    """How the GPU budget was last shared out."""

    desired_w: Floats  # (n)
    peak_w: Floats  # (n) draw with a slow decay: what a GPU has lately needed
    held_ratio: Floats  # (n) of about the last half second in which its limit was seen to hold it
    recent_w: Floats  # (k, n) draw at some moments of the last second
    recent_at_s: float  # the newest of them
    excess_w: Floats  # (n) draw above the limit it holds, smoothed: a GPU that does not obey
    observed_at_s: float
    shared_at_s: float
    gpu_budget_w: float
    rack_budget_w: Floats  # (r) GPU power the inlets have room for
    controllable: Bools  # (n)
    bound: Bools  # (n)
    strode_at_s: float  # when limits could last rise
    lift_w: float  # how high the sum of limits may stand now without outrunning the ramp
    sums: tuple[tuple[float, float], ...]  # (at_s, sum of limits) of the last second


class ShedTable(NamedTuple):
    """What every GPU does at every level of shedding."""

    version: int
    limits_w: Floats  # (levels, n)
    clocks_mhz: Ints  # (levels, n) ceilings; 0: none
    clock_ratios: tuple[float, ...]  # (levels) that they come from
    node_version: Ints  # (nodes) in which the node's part was last changed; 0: it has none yet


class ShedCall(NamedTuple):
    """One message to all nodes: do what your table says."""

    seq: int  # of the row in the ledger
    level: int
    version: int
    nodes: Bools  # (nodes) for whom the call is enough


class Shedding(NamedTuple):
    level: int  # called last and not yet taken back; -1: none
    table: ShedTable
    turn: int  # which level is divided next
    turned_at_s: float
    call: ShedCall | None  # made in this tick


class Clocks(NamedTuple):
    """Clock ceilings as last ordered."""

    ratio: float  # what GPUs that can be slowed get of their clock; 1: all of it
    moved_at_s: float  # when the ratio changed last
    ceilings_mhz: Ints  # (n) 0: none
    changed_at_s: Floats  # (n) when the ceiling changed last


class Watch(NamedTuple):
    """Alarm conditions and since when they hold, by kind, and the alarms they made."""

    since_s: Mapping[str, Floats]  # over what the kind tells apart; FOREVER_S: holds not
    alarms: tuple[Alarm, ...]


class State(NamedTuple):
    """All memory of the law."""

    at_s: float
    links: tuple[Link, ...]  # in the order of `Settings.failsafes`
    carried: Carried | None
    running: tuple[Running, ...]
    ended: frozenset[Setpoint]
    pace: Pace
    base: BaseLoad
    ledger: Ledger
    obedience: Obedience
    shares: Shares
    shedding: Shedding
    frequency: FrequencyState | None  # None: nothing was committed
    clocks: Clocks
    seen_at_s: Floats  # (n) when the GPU's limit was last read
    seen_w: Floats  # (n) and what it was; 0: never
    gpus_revision: int
    cooling_w: float  # capacity when last heard
    watch: Watch


class Decision(NamedTuple):
    state: State
    mode: Mode  # the worst of all sources
    binding: Limit
    limits: tuple[Limit, ...]
    budget_w: float  # the line we promise to stay under
    base_w: float  # upper estimate of everything that is not a GPU
    gpu_limits_w: Floats  # (n)
    clocks_mhz: Ints  # (n) ceilings; 0: none
    node_seq: Ints  # (nodes) number of the order that carries these limits
    shortfall_w: float  # what we cannot shed
    alarms: tuple[Alarm, ...]
