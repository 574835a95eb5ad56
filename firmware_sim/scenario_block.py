"""The `block` and `workloads` of a scenario: racks and nodes one by one, or by pattern where they are many.

    block:
      racks: {count: 16, name: "r{:02}", rating_a: 125}       # r01 to r16
      nodes: {per_rack: 9, gpus: 8, name: "{rack}-n{}"}       # r01-n1 to r16-n9
      farm: {processes: 2, apart: 4}                          # 4 agents alone, the others in 2 processes
      shed:
        levels: [{name: deep, kw: 560}]
        contacts: {breaker: deep}                             # relays behind a PLC, and what they call
        alerts: {ALERT_GRID_EMERGENCY: deep}
      frequency: {preset: nordic_ffr_a_short, committed_kw: 100, trigger_hz: 49.7}
    workloads:
      - {racks: 1-6, kind: training}                          # one job per rack; `together`: one for all
      - {racks: 7-16, kind: decode, intensity_ratio: 0.4}

Patterns are spelt out before anything else looks at them, so the rest of the rig knows lists alone. Nodes
that are apart are spread over the racks; the others go to the farm's processes rack by rack.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from firmware_sim.gpu_power import MODELS
from firmware_sim.mains import StreamFormat
from firmware_sim.workload import IN_STEP, Job, Kind

GPUS_MAX: Final = 72 * 64  # what the plant steps in real time on one core
RACKS_MAX: Final = 64
NODES_PER_RACK_MAX: Final = 72
NODE_NAME_MAX_CHARS: Final = 58  # `agent-` and a name must fit the 64 characters of a certificate's name

Alert = Literal["ALERT_GRID_EMERGENCY", "ALERT_BLACK_START", "ALERT_POSSIBLE_OUTAGE"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(Strict):
    name: str = Field(min_length=1, max_length=NODE_NAME_MAX_CHARS)
    rack: str
    gpus: int = Field(8, ge=1, le=1024)
    tier: Literal["standard", "critical"] = "standard"


class RackSpec(Strict):
    name: str
    share_a_ratio: float = Field(0.5, ge=0, le=1)
    rating_a: float = Field(32, gt=0)
    voltage_v: float = Field(230, gt=0)
    phases: Literal[1, 3] = 3


class RackPattern(Strict):
    """So many racks alike. `name`: a format of their number, from 1 on."""

    count: int = Field(ge=1, le=RACKS_MAX)
    name: str = "r{:02}"
    share_a_ratio: float = 0.5
    rating_a: float = 125
    voltage_v: float = 230
    phases: Literal[1, 3] = 3

    def spelt_out(self) -> list[dict[str, Any]]:
        alike = self.model_dump(exclude={"count", "name"})
        return [{"name": self.name.format(number + 1), **alike} for number in range(self.count)]


class NodePattern(Strict):
    """So many nodes alike in every rack. `name`: a format of `rack` and of the number in it, from 1 on."""

    per_rack: int = Field(ge=1, le=NODES_PER_RACK_MAX)
    gpus: int = Field(8, ge=1, le=1024)
    name: str = "{rack}-n{}"
    critical_per_rack: int = Field(0, ge=0)  # the first ones

    def spelt_out(self, racks: Iterable[str]) -> list[dict[str, Any]]:
        return [
            {
                "name": self.name.format(number + 1, rack=rack),
                "rack": rack,
                "gpus": self.gpus,
                "tier": "critical" if number < self.critical_per_rack else "standard",
            }
            for rack in racks
            for number in range(self.per_rack)
        ]


class Cooling(Strict):
    capacity_kw: float = Field(22, gt=0)  # with the facility water of a good day
    blind_kw: float = Field(11, gt=0)


class Farm(Strict):
    """Real agents, many in a process. `apart`: nodes that have a process of their own all the same."""

    processes: int = Field(2, ge=1, le=16)
    apart: int = Field(4, ge=0)


class ShedLevel(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    kw: float = Field(gt=0)


class Shed(Strict):
    """Levels of shedding, the gentlest first, and who calls which. `contacts`: name -> level."""

    levels: tuple[ShedLevel, ...] = Field(min_length=1, max_length=8)
    contacts: dict[str, str] = {}
    alerts: dict[Alert, str] = {}

    def level_w(self, name: str) -> float:
        """Power of that level. Raises KeyError."""
        return {level.name: level.kw * 1000 for level in self.levels}[name]


class Frequency(Strict):
    """A product of frequency response. `form`: what the rig's instrument speaks."""

    preset: str
    committed_kw: float = Field(gt=0)
    trigger_hz: float = Field(ge=45, le=65)
    rearm_s: float | None = Field(None, ge=0)
    form: StreamFormat = "c37_118"


class Block(Strict):
    name: str = "demo"
    gpu: str = "H100"
    feed_rating_kw: float = Field(20, gt=0)
    base_load_min_kw: float = Field(0.5, ge=0)
    base_load_max_kw: float = Field(5, gt=0)
    failsafe_kw: float = Field(9, gt=0)
    heartbeat_timeout_s: float = Field(5, gt=0)
    ramp_down_kw_per_s: float = Field(0.6, gt=0)
    ramp_up_kw_per_s: float = Field(0.4, gt=0)
    cooling: Cooling = Cooling()
    racks: tuple[RackSpec, ...] = Field(min_length=1)
    nodes: tuple[Node, ...] = Field(min_length=1)
    farm: Farm | None = None
    shed: Shed | None = None
    frequency: Frequency | None = None

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, given: Any) -> Any:
        """Patterns become lists. What is wrong within them is told by the list's own models."""
        if not isinstance(given, dict):
            return given
        said = dict(given)
        if isinstance(said.get("racks"), dict):
            said["racks"] = RackPattern.model_validate(said["racks"]).spelt_out()
        if isinstance(said.get("nodes"), dict):
            racks = [rack["name"] for rack in said.get("racks", ()) if isinstance(rack, dict)]
            said["nodes"] = NodePattern.model_validate(said["nodes"]).spelt_out(racks)
        return said

    @property
    def apart(self) -> tuple[Node, ...]:
        """Nodes whose agent has a process of its own, spread over the block."""
        if self.farm is None:
            return self.nodes
        count = min(self.farm.apart, len(self.nodes))
        return tuple(self.nodes[index * len(self.nodes) // count] for index in range(count))

    @property
    def farms(self) -> dict[str, tuple[Node, ...]]:
        """Farm process -> its nodes, in the order of their GPUs."""
        if self.farm is None:
            return {}
        apart = {node.name for node in self.apart}
        rest = [node for node in self.nodes if node.name not in apart]
        count = min(self.farm.processes, len(rest))
        edges = [index * len(rest) // max(count, 1) for index in range(count + 1)]
        return {f"farm-{i + 1}": tuple(rest[edges[i] : edges[i + 1]]) for i in range(count)}


def _range(value: Any) -> Any:
    """`3` or `1-6` as first and last."""
    first, _, last = str(value).partition("-")
    return (first, last or first)


class Workload(Strict):
    """What a node does, or the nodes of some racks. `together`: all of those racks are one job."""

    node: str | None = None
    racks: Annotated[tuple[int, int] | None, BeforeValidator(_range)] = None
    together: bool = False
    kind: Kind
    tokens_per_s: float = Field(1000, ge=0)
    intensity_ratio: float = Field(0.92, ge=0, le=1)
    swing_ratio: float = Field(1, ge=0, le=1)
    step_s: float = Field(0.25, gt=0)
    exchange_share_ratio: float = Field(0.10, ge=0, lt=1)
    exchange_demand_ratio: float = Field(0.75, ge=0, le=1)
    checkpoint_every_s: float = Field(0, ge=0)
    checkpoint_s: float = Field(2, gt=0)

    def groups(self, block: Block) -> list[list[str]]:
        """Nodes of each job."""
        if self.racks is None:
            return [[str(self.node)]]
        names = [rack.name for rack in block.racks[self.racks[0] - 1 : self.racks[1]]]
        groups = [[node.name for node in block.nodes if node.rack == name] for name in names]
        return [list(chain(*groups))] if self.together else groups

    def jobs(self, block: Block, rows: dict[str, tuple[int, ...]]) -> Iterator[Job]:
        """As the plant has them. `rows`: node -> its GPUs."""
        what = self.model_dump(exclude={"node", "racks", "together"})
        for number, group in enumerate(self.groups(block)):
            gpus = tuple(gpu for node in group for gpu in rows[node])
            step_s = self.step_s * (1 + STEP_SPREAD_RATIO * number if self.kind in IN_STEP else 1)
            yield Job(gpus=gpus, **{**what, "step_s": step_s})


STEP_SPREAD_RATIO: Final = 0.01  # two jobs are never of one length, else their exchanges would fall together


def gpu_rows(nodes: tuple[Node, ...]) -> dict[str, tuple[int, ...]]:
    """Node -> its GPUs, numbered through all nodes."""
    rows, first = {}, 0
    for node in nodes:
        rows[node.name] = tuple(range(first, first + node.gpus))
        first += node.gpus
    return rows


def block_complaints(block: Block) -> Iterator[str]:
    """What only shows between the parts."""
    racks = [rack.name for rack in block.racks]
    for twice in _repeated(racks):
        yield f"block.racks: {twice!r} stands there twice; names must differ"
    for twice in _repeated(node.name for node in block.nodes):
        yield f"block.nodes: {twice!r} stands there twice; names must differ"
    for i, node in enumerate(block.nodes):
        if node.rack not in racks:
            yield f"block.nodes.{i}.rack: no rack {node.rack!r}; use one of {', '.join(racks)}"
    if block.gpu not in MODELS:
        yield f"block.gpu: no model {block.gpu!r}; use one of {', '.join(MODELS)}"
    if sum(node.gpus for node in block.nodes) > GPUS_MAX:
        yield f"block.nodes: more than {GPUS_MAX} GPUs; the plant could not keep real time"
    if block.shed is not None:
        yield from _shed_complaints(block.shed)


def _shed_complaints(shed: Shed) -> Iterator[str]:
    names = [level.name for level in shed.levels]
    for where, level in (*shed.contacts.items(), *shed.alerts.items()):
        if level not in names:
            yield f"block.shed: {where} calls {level!r}; use one of {', '.join(names)}"


def workload_complaints(workloads: tuple[Workload, ...], block: Block) -> Iterator[str]:
    """Who works where, and nobody at two things."""
    nodes = [node.name for node in block.nodes]
    taken: list[str] = []
    for i, work in enumerate(workloads):
        if (work.node is None) == (work.racks is None):
            yield f"workloads.{i}: give either node or racks"
        elif work.racks is not None and not 1 <= work.racks[0] <= work.racks[1] <= len(block.racks):
            yield f"workloads.{i}.racks: there are racks 1 to {len(block.racks)}; write 3 or 1-6"
        elif work.node is not None and work.node not in nodes:
            yield f"workloads.{i}.node: no node {work.node!r}; use one of {some(nodes)}"
        else:
            taken += [node for group in work.groups(block) for node in group]
    for twice in _repeated(taken):
        yield f"workloads: two for node {twice!r}; a node does one thing"


def _repeated(names: Iterable[str]) -> Iterator[str]:
    return (name for name, count in Counter(names).items() if count > 1)


NAMES_TOLD_MAX: Final = 24


def some(names: Iterable[str]) -> str:
    """These, for a complaint; of many names the first."""
    known = list(names)
    more = f", ... ({len(known)} in all)" if len(known) > NAMES_TOLD_MAX else ""
    return f"{', '.join(known[:NAMES_TOLD_MAX])}{more}"
