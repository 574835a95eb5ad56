"""Who is where: the GPUs that agents tell of, held against the tree that `block.yaml` draws.

Limits are ordered by node, and inlets carry racks. So it matters that the GPUs that answer are those that
were meant, and that they hang where the file says. Agents tell which GPUs they have (UUID, the most they can
do) and, on boards that know it, in which chassis they sit. A chassis that shows up in two racks is a
contradiction even where nobody has written any serial down: the few are in doubt, not the many.

What does not agree makes the readings of those GPUs worthless, and unknown is the worst case by the ordinary
path: they count as heard but not readable. The law then orders them to their least, gives them nothing, and
counts them at the most they can do, after the time that it allows every silent GPU. Power readings stay in
use while the GPUs are surely of this block: the base load needs them.

Nothing here is done per tick: facts come every ten seconds, and are looked at again when they say something
new. What was never told is not checked, and is listed as that. Pure: time is an argument.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np

from controller.config import BlockConfig
from controller.core.model import Bools, Floats, Settings
from protocols.agent_link import Facts, Gpu, GpuFacts, Report

FILE: Final = "grouping.json"  # in the run directory
BELIEVED_MAX_RATIO: Final = 3.0  # of a GPU's maximum: spikes reach twice it, more is a broken register
BOARD_MAX_W: Final = 10_000.0  # of a maximum that is told: the largest module in sight has 2.9 kW
KEPT_S: Final = 60.0  # six facts of an agent missed: it claims no GPU against others any more
TWIN_AFTER_S: Final = 5.0  # what an agent that was replaced still had on the way has come by then
LOOK_S: Final = 5.0  # how soon it shows that somebody has fallen silent
PROCESSES_MAX: Final = 4  # agents remembered per node
STRANGERS_MAX: Final = 1024  # names that come from the wire: a hall's worth, each takes power of ours
FALL_W: Final = 100.0  # of an unknown node's draw: more is looked at at once
TEXT_MAX_CHARS: Final = 64  # of what comes from the wire and goes into sentences: UUIDs have 40
NAMED_MAX: Final = 1  # UUIDs or names in a sentence, which has to fit an alarm; JSON has them all


class Kind(StrEnum):
    COUNT = "count"
    TWICE = "one GPU on two nodes"
    OTHER = "another GPU"
    RACK = "another rack"
    MAXIMUM = "maximum"
    TWINS = "two hosts"
    TWO_AGENTS = "two agents"
    STRANGER = "unknown node"


class Rule(NamedTuple):
    """What a mismatch costs, in words, what a person does, and which readings of its GPUs are in doubt."""

    cost: str
    remedy: str
    limit: bool = False
    power: bool = False


LEAST: Final = "ordered to their least, and counted at {most_kw:.2f} kW"
RULES: Final = MappingProxyType(
    {
        Kind.COUNT: Rule(
            "its reports are refused; counted at {most_kw:.2f} kW when it has been silent for ten seconds",
            "correct `gpus` in block.yaml; or mend the GPU that its agent misses, and restart the agent",
        ),
        Kind.TWICE: Rule(
            LEAST,
            "one host answers for two nodes: correct `node` in the node.yaml of the one that is not it",
            limit=True,
            power=True,
        ),
        Kind.OTHER: Rule(
            LEAST,
            "if a GPU was replaced, put its UUID into `gpu_uuids` of block.yaml; if it is another node's"
            " host, correct `node` in its node.yaml",
            limit=True,
        ),
        Kind.RACK: Rule(
            LEAST + " in the rack of block.yaml; where they really hang they count as measured",
            "move the node to its rack in block.yaml, or correct `chassis_serials` of the rack",
            limit=True,
        ),
        Kind.MAXIMUM: Rule(
            "ordered no more than is configured; counted at {most_kw:.2f} kW when silent",
            "if this model was meant, correct `max_w` in block.yaml",
        ),
        Kind.TWINS: Rule(
            LEAST + ", those of the other host included",
            "two hosts run an agent of this name: correct `node` in the node.yaml of one",
            limit=True,
            power=True,
        ),
        Kind.TWO_AGENTS: Rule(
            "its work: the agent that is not heard holds the GPUs at its fallback; the newer one is believed",
            "end one of them: is it a service and started by hand as well?",
        ),
        Kind.STRANGER: Rule(
            "it obeys nobody: base load, as measured, and counted up to {most_kw:.2f} kW",
            "add it to block.yaml (`powerblock grouping --propose`), or correct `block` or `node` in its"
            " node.yaml",
        ),
    }
)


# --- what was configured, what was found ------------------------------------------------------------


class Planned(NamedTuple):
    """A node as configured. `uuids` empty: any will do."""

    rack: str
    gpus: int
    max_w: float  # of one GPU
    uuids: frozenset[str]


class Plan(NamedTuple):
    """`chassis`: serials by rack, of those racks that name them."""

    nodes: Mapping[str, Planned]
    chassis: Mapping[str, frozenset[str]]


class FoundGpu(NamedTuple):
    """One GPU as its agent tells it. What it could not read is empty or 0; `slot` below 0: not known."""

    uuid: str
    name: str = ""
    min_w: float = 0.0
    max_w: float = 0.0
    chassis: str = ""
    slot: int = -1
    persistence: bool | None = None  # False: its limit is lost whenever the last program closes the driver


class Host(NamedTuple):
    """What stands behind a node name. `twins`: GPUs of other agents that go on speaking under it."""

    node: str
    gpus: tuple[FoundGpu, ...]
    twins: tuple[tuple[FoundGpu, ...], ...] = ()
    live: bool = True  # heard lately: what it tells of its GPUs counts against others


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing of one node that is not as configured.

    `gpus`: places of the configured node that are concerned; `most_w`: what they count at, together.
    """

    kind: Kind
    node: str
    gpus: tuple[int, ...]
    configured: str
    found: str
    most_w: float

    @property
    def cost(self) -> str:
        return RULES[self.kind].cost.format(most_kw=self.most_w / 1e3)

    @property
    def remedy(self) -> str:
        return RULES[self.kind].remedy

    @property
    def sentence(self) -> str:
        return f"found {self.found}, configured {self.configured}: {self.cost}; {self.remedy}"


def plan_of(config: BlockConfig) -> Plan:
    return Plan(
        nodes={
            node.name: Planned(rack.name, node.gpus, node.max_w, frozenset(node.gpu_uuids))
            for rack in config.racks
            for node in rack.nodes
        },
        chassis={rack.name: frozenset(rack.chassis_serials) for rack in config.racks if rack.chassis_serials},
    )


# --- the check --------------------------------------------------------------------------------------


def check(plan: Plan, hosts: Sequence[Host]) -> tuple[Mismatch, ...]:
    """All that does not agree, by node in the order of `hosts`; who is not configured comes last."""
    expected = [host for host in hosts if host.node in plan.nodes]
    found = [
        *(mismatch for host in expected for mismatch in _of_one(plan, host)),
        *_twice(plan, hosts),
        *_misplaced(plan, expected),
    ]
    order = {host.node: number for number, host in enumerate(hosts)}
    return (
        *sorted(found, key=lambda mismatch: order[mismatch.node]),
        *_strangers(plan, [host for host in hosts if host.node not in plan.nodes]),
    )


def _of_one(plan: Plan, host: Host) -> Iterator[Mismatch]:
    planned = plan.nodes[host.node]
    all_gpus = tuple(range(planned.gpus))
    own_w = _most_w(host.gpus, planned.max_w)
    if len(host.gpus) != planned.gpus:
        missing = planned.uuids - {gpu.uuid for gpu in host.gpus}
        which = f", {_named(sorted(missing))} not among them" if missing else ""
        most_w = own_w + planned.max_w * max(0, planned.gpus - len(host.gpus))
        yield Mismatch(
            Kind.COUNT, host.node, all_gpus, f"{planned.gpus}", f"{len(host.gpus)} GPUs{which}", most_w
        )
    else:
        yield from _of_its_gpus(plan, host, planned)
    for twin in host.twins:
        same = _is_one_host(twin, host.gpus)
        kind, found = (
            (Kind.TWO_AGENTS, "two agents on one host")
            if same
            else (Kind.TWINS, f"a second host with {len(twin)} GPUs")
        )
        most_w = own_w + (0.0 if same else _most_w(twin, planned.max_w))
        yield Mismatch(kind, host.node, all_gpus, "one", found, most_w)


def _is_one_host(one: Sequence[FoundGpu], other: Sequence[FoundGpu]) -> bool:
    """Two agents on it, that is; GPUs without a UUID prove nothing."""
    return {gpu.uuid for gpu in one} == {gpu.uuid for gpu in other} != {""}


def _of_its_gpus(plan: Plan, host: Host, planned: Planned) -> Iterator[Mismatch]:
    others = [gpu for gpu, one in enumerate(host.gpus) if one.uuid and one.uuid not in planned.uuids]
    if planned.uuids and others:
        missing = planned.uuids - {gpu.uuid for gpu in host.gpus}
        yield _at_gpus(Kind.OTHER, plan, host, others, _named(sorted(missing)), _homes(plan, host, others))
    high = [gpu for gpu, one in enumerate(host.gpus) if one.max_w > planned.max_w]
    if high:
        top_w = max(host.gpus[gpu].max_w for gpu in high)
        models = _named(sorted({host.gpus[gpu].name for gpu in high}))
        found = f"GPUs of up to {top_w:g} W ({models})"
        yield _at_gpus(Kind.MAXIMUM, plan, host, high, f"{planned.max_w:g} W", found)


def _homes(plan: Plan, host: Host, gpus: Sequence[int]) -> str:
    """GPUs by their UUIDs, and which node they are configured for."""
    homes = {uuid: name for name, planned in plan.nodes.items() for uuid in planned.uuids}
    return _named(
        [
            f"{uuid} of {homes[uuid]}" if (uuid := host.gpus[gpu].uuid) in homes else f"{uuid}, not known"
            for gpu in gpus
        ]
    )


def _twice(plan: Plan, hosts: Sequence[Host]) -> Iterator[Mismatch]:
    """GPUs that two nodes claim, or one node twice."""
    claims: defaultdict[str, list[str]] = defaultdict(list)
    for host in hosts:
        if host.live:
            for gpu in host.gpus:
                claims[gpu.uuid].append(host.node)
    claims.pop("", None)  # not read yet
    contested = {uuid: nodes for uuid, nodes in claims.items() if len(nodes) > 1}
    for host in hosts if contested else ():
        planned = plan.nodes.get(host.node)
        if planned is None or not host.live:
            continue
        gpus = [gpu for gpu, one in enumerate(host.gpus[: planned.gpus]) if one.uuid in contested]
        if gpus:
            rivals = {node for gpu in gpus for node in contested[host.gpus[gpu].uuid]} - {host.node}
            found = f"{len(gpus)} GPUs that {_named(sorted(rivals)) or 'it tells twice'} has as well"
            yield _at_gpus(Kind.TWICE, plan, host, gpus, "each GPU once", found)


def _misplaced(plan: Plan, expected: Sequence[Host]) -> Iterator[Mismatch]:
    """Nodes whose chassis belongs to another rack: as configured, else as most of its nodes say."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for rack, serials in plan.chassis.items():
        for serial in serials:
            owners[serial].add(rack)
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for host in expected:
        rack = plan.nodes[host.node].rack
        if rack not in plan.chassis:
            for serial in _chassis(host):
                votes[serial][rack] += 1
    for host in expected:
        planned = plan.nodes[host.node]
        named = plan.chassis.get(planned.rack, frozenset())
        for serial in sorted(_chassis(host) - named):
            racks = owners.get(serial) or _most_voted(votes[serial])
            if not named and racks == {planned.rack}:
                continue
            gpus = [gpu for gpu, one in enumerate(host.gpus[: planned.gpus]) if one.chassis == serial]
            there = sorted(racks - {planned.rack})
            found = f"chassis {serial}, of {'rack ' + _named(there) if there else 'no rack that is known'}"
            yield _at_gpus(Kind.RACK, plan, host, gpus, f"rack {planned.rack}", found)


def _chassis(host: Host) -> set[str]:
    return {gpu.chassis for gpu in host.gpus if gpu.chassis}


def _most_voted(votes: Counter[str]) -> set[str]:
    """Racks with most nodes in a chassis; more than one: nobody knows."""
    most = max(votes.values(), default=0)
    return {rack for rack, count in votes.items() if count == most}


def _strangers(plan: Plan, hosts: Sequence[Host]) -> Iterator[Mismatch]:
    """A hall's worth of them may come, so what holds for all is found once."""
    homes = {uuid: name for name, planned in plan.nodes.items() for uuid in planned.uuids} if hosts else {}
    top_w = _top_w(plan)
    for host in hosts:
        meant = {homes[gpu.uuid] for gpu in host.gpus if gpu.uuid in homes}
        which = f", which are those of {_named(sorted(meant))}" if meant else ""
        twins = (twin for twin in host.twins if not _is_one_host(twin, host.gpus))
        gpus = [*host.gpus, *(gpu for twin in twins for gpu in twin)]
        most_w = sum(believed_max_w(gpu.max_w, top_w) for gpu in gpus)
        found = f"{len(host.gpus)} GPUs{which}"
        yield Mismatch(Kind.STRANGER, host.node, (), "no such node", found, most_w)


def _at_gpus(
    kind: Kind, plan: Plan, host: Host, gpus: Sequence[int], configured: str, found: str
) -> Mismatch:
    most_w = _most_w([host.gpus[gpu] for gpu in gpus], plan.nodes[host.node].max_w)
    return Mismatch(kind, host.node, tuple(gpus), configured, found, most_w)


def _most_w(gpus: Sequence[FoundGpu], planned_w: float) -> float:
    return sum(max(believed_max_w(gpu.max_w, planned_w), planned_w) for gpu in gpus)


def believed_max_w(told_max_w: float, otherwise_w: float) -> float:
    """What a device tells that it can do, if a board can; else `otherwise_w`."""
    return told_max_w if 0.0 < told_max_w <= BOARD_MAX_W else otherwise_w


def _top_w(plan: Plan) -> float:
    return max(planned.max_w for planned in plan.nodes.values())


def _drawn_w(gpu: Gpu, top_w: float) -> float:
    """What the meter shows of a GPU of an unknown node: nothing that is sure, if no GPU can draw it."""
    most_w, power_w = believed_max_w(gpu.max_w, top_w), gpu.power_w or 0.0
    return min(power_w, most_w) if 0.0 <= power_w <= BELIEVED_MAX_RATIO * most_w else 0.0


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more


# --- what is remembered -----------------------------------------------------------------------------


class Doubts(NamedTuple):
    """What of the agents' word does not count, arrays (n)."""

    limit: Bools  # the limit that is read back
    power: Bools  # the power
    most_w: Floats  # what the GPU may draw at most, as far as that is more than configured; else 0
    stray_w: float = 0.0  # what GPUs of unknown nodes may draw beyond what they do


def no_doubts(count: int) -> Doubts:
    return Doubts(np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_), np.zeros(count))


@dataclass(slots=True)
class _Process:
    """One agent process, by what it told last."""

    boot: str
    gpus: tuple[FoundGpu, ...]
    since_s: float
    heard_s: float
    drawn_w: float = 0.0  # of an unknown node's: falls at once, rises slower than the meter follows
    drawn_at_s: float = -np.inf

    def draws(self, power_w: float, now_s: float) -> bool:
        """Whether it fell by what matters: it may rise by as much again, and fast."""
        fell = power_w < self.drawn_w - FALL_W
        part = min(1.0, (now_s - self.drawn_at_s) / LOOK_S)
        self.drawn_w = min(power_w, self.drawn_w + part * (power_w - self.drawn_w))
        self.drawn_at_s = now_s
        return fell


class Grouping:
    """All agents ever heard, and what follows from it. `revision` moves when any of it does."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        topology = settings.topology
        firsts = np.searchsorted(topology.gpu_node, np.arange(len(topology.node_names) + 1)).tolist()
        self._members = dict(zip(topology.node_names, pairwise(firsts), strict=True))
        self._plan = plan
        self._top_w = _top_w(plan)
        self._configured_w = topology.gpu_max_w
        self._processes: dict[str, list[_Process]] = {name: [] for name in plan.nodes}
        self._news = False
        self._look_at_s = 0.0
        self.revision = 0
        self.mismatches: tuple[Mismatch, ...] = ()
        self.doubts = self._doubts()

    def hear(self, facts: Facts, now_s: float) -> None:
        self._hear(facts.node, facts.boot, tuple(_found(gpu) for gpu in facts.gpus), now_s)

    def hear_stranger(self, report: Report, now_s: float) -> None:
        """A report of a node that is not configured, whose agent may never tell what it is."""
        known = self._processes.get(report.node, ())
        told = next((process.gpus for process in known if process.boot == report.boot), ())
        gpus = told or tuple(FoundGpu(gpu.uuid, min_w=gpu.min_w, max_w=gpu.max_w) for gpu in report.gpus)
        drawn_w = sum(_drawn_w(gpu, self._top_w) for gpu in report.gpus)
        process = self._hear(report.node, report.boot, gpus, now_s)
        if process is not None:
            self._news |= process.draws(drawn_w, now_s)

    def _hear(self, told_node: str, boot: str, gpus: tuple[FoundGpu, ...], now_s: float) -> _Process | None:
        """None: one name too many."""
        node = told_node[:TEXT_MAX_CHARS]
        processes = self._processes.get(node)
        if processes is None:
            if len(self._processes) - len(self._plan.nodes) >= STRANGERS_MAX:
                return None
            processes = self._processes[node] = []
        for process in processes:
            if process.boot == boot:
                self._news |= gpus != process.gpus or process is not processes[-1]
                process.gpus, process.heard_s = gpus, now_s
                return process
        processes.append(_Process(boot, gpus, now_s, now_s))
        del processes[:-PROCESSES_MAX]
        self._news = True
        return processes[-1]

    def look(self, now_s: float) -> bool:
        """Check where there is something new. True: `doubts` are others than before."""
        if not self._news and now_s < self._look_at_s:
            return False
        self._forget(now_s)
        before, self.mismatches = self.mismatches, check(self._plan, self._hosts(now_s))
        changed = self.mismatches != before
        self.revision += self._news or changed
        self._news, self._look_at_s = False, now_s + LOOK_S
        stray_w = self._stray_w()
        if changed:
            self.doubts = self._doubts()
        elif stray_w == self.doubts.stray_w:
            return False
        self.doubts = self.doubts._replace(stray_w=stray_w)
        return True

    def _stray_w(self) -> float:
        """What unknown nodes may draw beyond what their newest agents tell."""
        return sum(
            max(0.0, mismatch.most_w - self._processes[mismatch.node][-1].drawn_w)
            for mismatch in self.mismatches
            if mismatch.kind is Kind.STRANGER
        )

    def _forget(self, now_s: float) -> None:
        """Agents that are silent; of a configured node the newest one stays, for it tells what was there."""
        for node, processes in list(self._processes.items()):
            kept = [process for process in processes if now_s - process.heard_s <= KEPT_S]
            if node in self._plan.nodes:
                self._processes[node] = kept or processes[-1:]
            elif kept:
                self._processes[node] = kept
            else:
                del self._processes[node]

    def _hosts(self, now_s: float) -> list[Host]:
        hosts = []
        for node, processes in self._processes.items():
            if processes:
                *older, newest = processes
                twins = tuple(
                    process.gpus for process in older if process.heard_s > newest.since_s + TWIN_AFTER_S
                )
                hosts.append(Host(node, newest.gpus, twins, live=now_s - newest.heard_s <= KEPT_S))
        return hosts

    def _doubts(self) -> Doubts:
        limit, power, most_w, _ = no_doubts(len(self._configured_w))
        for mismatch in self.mismatches:
            if not mismatch.gpus:
                continue
            gpus = self._members[mismatch.node][0] + np.array(mismatch.gpus)
            limit[gpus] |= RULES[mismatch.kind].limit
            power[gpus] |= RULES[mismatch.kind].power
            most_w[gpus] = np.maximum(most_w[gpus], mismatch.most_w / len(gpus))
        return Doubts(limit, power, np.where(most_w > self._configured_w, most_w, 0.0))

    def conditions(self) -> Iterator[tuple[str, str]]:
        """What does not agree, by key of the alarm and text: one for each node, one for all strangers."""
        by_node: defaultdict[str, list[Mismatch]] = defaultdict(list)
        strangers = []
        for mismatch in self.mismatches:
            if mismatch.kind is Kind.STRANGER:
                strangers.append(mismatch)
            else:
                by_node[mismatch.node].append(mismatch)
        for node, (first, *others) in by_node.items():
            more = f"{len(others)} more of this node: `powerblock grouping`. " if others else ""
            yield f"grouping {node}", f"{more}{first.sentence}"
        if strangers:
            names = _named([repr(mismatch.node) for mismatch in strangers])
            most_kw = sum(mismatch.most_w for mismatch in strangers) / 1e3
            yield (
                "unknown nodes",
                f"agents speak as {names}: {RULES[Kind.STRANGER].cost.format(most_kw=most_kw)}",
            )
        off = self._without_persistence()
        if off:
            text = (
                f"persistence mode is off on {sum(off.values())} GPUs of {_named(list(off))}: limits are lost"
                " whenever the last program closes the driver; enable nvidia-persistenced there"
            )
            yield "persistence", text

    def _without_persistence(self) -> dict[str, int]:
        """How many GPUs of a configured node, by its name."""
        newest = {node: self._processes[node][-1].gpus for node in self._plan.nodes if self._processes[node]}
        off = {node: sum(gpu.persistence is False for gpu in gpus) for node, gpus in newest.items()}
        return {node: count for node, count in off.items() if count}

    def told(self) -> dict[str, Any]:
        """All that was found and what does not agree, for `grouping.json`."""
        newest = {node: processes[-1].gpus for node, processes in self._processes.items() if processes}
        return {
            "mismatches": [
                {**asdict(mismatch), "cost": mismatch.cost, "remedy": mismatch.remedy}
                for mismatch in self.mismatches
            ],
            "unchecked": [
                {"node": node, "why": why}
                for node in self._plan.nodes
                for why in self._unchecked(node, newest)
            ],
            "nodes": [
                {"name": node, "gpus": [gpu._asdict() for gpu in gpus]} for node, gpus in newest.items()
            ],
        }

    def _unchecked(self, node: str, newest: Mapping[str, tuple[FoundGpu, ...]]) -> Iterator[str]:
        gpus = newest.get(node, ())
        if not gpus:
            yield "has not told its GPUs: silent since the start, or an older agent"
            return
        if not all(gpu.uuid for gpu in gpus):
            yield "some GPUs were never readable"
        if not self._plan.nodes[node].uuids:
            yield "no `gpu_uuids` configured"
        if not any(gpu.chassis for gpu in gpus):
            yield "its boards do not know their chassis"


def _found(gpu: GpuFacts) -> FoundGpu:
    place = gpu.place
    return FoundGpu(
        gpu.uuid[:TEXT_MAX_CHARS],
        gpu.name[:TEXT_MAX_CHARS],
        gpu.min_w,
        gpu.max_w,
        "" if place is None else place.chassis_serial[:TEXT_MAX_CHARS],
        -1 if place is None else place.slot,
        gpu.persistence,
    )
