"""A scenario: which block, which work, what happens when, and what must come of it. One YAML file.

    name: curtailment
    block:     racks, nodes, devices, ratings, ramps
    site:      who speaks for the grid, over which broker, with or without mutual TLS
    workloads: what the GPUs of each node do
    facility:  field devices beside the block's own, and the ways that SCADA is served by
    timeline:  grid events, commands of SCADA and faults, in seconds from the start (after the warm-up)
    expect:    bounds on keys of the verdict; one broken bound fails the run

A file loads whole or not at all; a refusal lists every error at once.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from firmware_sim.cooling import CduType
from firmware_sim.electrical import Host, Rack
from firmware_sim.figure_names import FIGURE_NAMES
from firmware_sim.gpu_power import MODELS
from firmware_sim.grid_operator import ALERT_TYPES, EVENT_TYPES
from firmware_sim.plant import PlantType
from firmware_sim.refusals import close_to, sentences
from firmware_sim.scenario_block import (
    Block,
    Strict,
    Workload,
    block_complaints,
    gpu_rows,
    some,
    workload_complaints,
)
from firmware_sim.scenario_facility import (
    Command,
    FacilitySpec,
    Write,
    command_complaints,
    facility_complaints,
    write_complaints,
)

FILE_MAX_BYTES: Final = 256 * 1024  # the largest example has 5 kB
DURATION_MAX_S: Final = 3600.0
CDU_UNIT_KW: Final = 22.0  # of one cooling unit: more capacity is more of them

Signal = Literal["bare", "vtn", "dsx"]
BrokerKind = Literal["embedded", "mosquitto", "nats"]
StatusEvent = Literal[
    "target_set", "start_ramp_down", "end_ramp_down", "start_ramp_up", "end_ramp_up", "periodic"
]
SIGNALS: Final[tuple[Signal, ...]] = ("bare", "vtn", "dsx")

# target -> mode -> needs `name`, and which
FAULTS: Final[dict[str, dict[str, str]]] = {
    "device": dict.fromkeys(("frozen", "silent", "refusing", "lying", "nan"), "device"),
    "gpu": dict.fromkeys(("lost", "oob_limit", "reset", "inert", "foreign"), "gpu"),
    "host": {"reboot": "apart"},  # its GPUs come back at full power before its agent does
    "link": dict.fromkeys(("partition", "lossy", "stale_flood"), "rack"),  # of its agents to the broker
    "phasor": {"silent": ""},
    "feed": {"lost": "feed"},
    "chiller": {"derate": ""},
    "broker": dict.fromkeys(("kill", "freeze", "replaced"), ""),
    "certificate": {"replaced": ""},  # of the broker, by one of a foreign authority
    "operator": {"silent": ""},  # whoever publishes wishes himself: bare, dsx
    "vtn": dict.fromkeys(("silent", "error", "refusing"), ""),
    "agent": dict.fromkeys(("kill", "freeze"), "agent"),
    # twice: a second one is started by mistake; usurped: by somebody who insists
    "controller": dict.fromkeys(("kill", "freeze", "twice", "usurped"), ""),
    "server": {"kill": "", "freeze": ""},  # towards the facility
}

LOOKED_INTO: Final = {"lossy", "stale_flood"}  # links that pick messages out


class ScenarioError(ValueError):
    """A scenario that must not be run; one line per error."""


def _signals(value: Any) -> Any:
    """One word, `mixed` for all of them, or a list."""
    if value == "mixed":
        return SIGNALS
    return (value,) if isinstance(value, str) else value


class Site(Strict):
    """How the grid reaches the block.

    Attributes:
        signals: bare: OpenADR notifications and a heartbeat over plain topics; vtn: an OpenADR 3.1 server,
            REST and the notifications of its choice; dsx: an ISV of DSX Flex. The first is the usual one.
        broker: embedded needs no system package, and knows no TLS.
        tls: mutual: an authority of the run, a certificate for each client, rights by its name.
        own_bus: the site has a broker of its own, apart from the block's embedded one: what breaks there
            must not touch the agents.
    """

    signals: Annotated[tuple[Signal, ...], BeforeValidator(_signals), Field(min_length=1)] = ("bare",)
    broker: BrokerKind = "embedded"
    tls: Literal[False, "mutual"] = False
    own_bus: bool = False


class Event(Strict):
    """A grid event. Its size is `reduce_ratio` of the power just before, or `limit_kw`; alerts have none."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")  # as OpenADR has it
    via: Signal | None = None  # None: the site's first signal
    type: Literal[EVENT_TYPES + ALERT_TYPES] = "IMPORT_CAPACITY_LIMIT"  # type: ignore[valid-type]
    reduce_ratio: float | None = Field(None, gt=0, lt=1)
    limit_kw: float | None = Field(None, gt=0)
    duration_s: float | None = Field(None, gt=0)
    notice_s: float = Field(0, ge=0)
    priority: int = Field(0, ge=0)  # type and priority are OpenADR's: DSX Flex has neither

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        sizes = sum(size is not None for size in (self.reduce_ratio, self.limit_kw))
        if self.is_alert and sizes:
            raise ValueError("an alert has no size: leave reduce_ratio and limit_kw out")
        if not self.is_alert and sizes != 1:
            raise ValueError("give either reduce_ratio or limit_kw")
        return self

    @property
    def is_alert(self) -> bool:
        return self.type in ALERT_TYPES


class Contact(Strict):
    """A relay closes, or opens."""

    name: str
    closed: bool = True


class GridFrequency(Strict):
    """The grid's frequency goes there at an even rate."""

    to_hz: float = Field(ge=45, le=65)
    within_s: float = Field(0.2, ge=0, le=60)


class Fault(Strict):
    target: Literal[tuple(FAULTS)]  # type: ignore[valid-type]
    mode: str
    name: str = ""  # device: r1-a, meter, cdu; gpu: node-a/3 or node-a/*; agent: node-a, farm-1; feed: a
    for_s: float | None = Field(None, gt=0)  # None: to the end of the run
    scale_ratio: float = Field(0.5, gt=0)  # lying
    limit_w: float = Field(300, gt=0)  # oob_limit, foreign
    dark_s: float = Field(2, gt=0)  # host: without power, until the firmware gives it all again
    lost_ratio: float = Field(0.3, gt=0, le=1)  # link, lossy: messages that never arrive
    per_s: float = Field(200, gt=0, le=10_000)  # link, stale_flood: old orders told again to each agent
    facility_c: float = Field(34, ge=5, le=60)  # derate

    def __str__(self) -> str:
        return " ".join(filter(None, (self.target, self.name, self.mode)))


class Moment(Strict):
    """One entry of the time line: one of event, cancel (an event's id), fault, command and the others."""

    at_s: float = Field(ge=0)
    event: Event | None = None
    cancel: str | None = None
    fault: Fault | None = None
    command: Command | None = None
    write: Write | None = None
    contact: Contact | None = None
    frequency: GridFrequency | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        things = [name for name in Moment.model_fields if name != "at_s"]
        if sum(getattr(self, name) is not None for name in things) != 1:
            raise ValueError(f"give exactly one of {', '.join(things)}")
        return self


class Bound(Strict):
    max: float | None = None
    min: float | None = None


class Scenario(Strict):
    name: str
    about: str = ""
    seed: int = 1
    warm_up_s: float = Field(20, ge=0, le=DURATION_MAX_S)
    duration_s: float = Field(gt=0, le=DURATION_MAX_S)
    broker_url: str = ""  # empty: the rig starts its own
    site: Site = Site()
    response_s: float = Field(0.5, ge=0)  # promised dead time between signal and obeyed limit
    block: Block
    workloads: tuple[Workload, ...] = ()
    facility: FacilitySpec = FacilitySpec()
    timeline: tuple[Moment, ...] = ()
    expect: dict[str, Bound] = Field(default_factory=dict)
    status_events: tuple[StatusEvent, ...] = ()  # expected by the ISV in this order; others may come between

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of all field devices: PDUs, block meter, CDU, and those that stand beside them."""
        return (*self.own_devices, *(device.name for device in self.facility.devices))

    @property
    def own_devices(self) -> tuple[str, ...]:
        """Those that the law lives by."""
        inlets = tuple(f"{rack.name}-{feed}" for rack in self.block.racks for feed in "ab")
        return (*inlets, "meter", "cdu")

    def plant_type(self) -> PlantType:
        """The plant of this scenario."""
        rows = gpu_rows(self.block.nodes)
        model = MODELS[self.block.gpu]
        spare_k = CduType().loop_max_c - CduType().facility_c
        units = max(1, round(self.block.cooling.capacity_kw / CDU_UNIT_KW))
        jobs = tuple(job for work in self.workloads for job in work.jobs(self.block, rows))
        return PlantType(
            gpu=model,
            hosts=tuple(
                Host(
                    name=node.name,
                    rack=node.rack,
                    gpus=rows[node.name],
                    gpu_heat_max_w=node.gpus * model.max_w,
                )
                for node in self.block.nodes
            ),
            racks=tuple(Rack(name=rack.name, share_a_ratio=rack.share_a_ratio) for rack in self.block.racks),
            jobs=jobs,
            cdu=CduType(
                ua_w_per_k=self.block.cooling.capacity_kw * 1000 / spare_k,
                loop_j_per_k=units * CduType().loop_j_per_k,
                flow_kg_per_s=units * CduType().flow_kg_per_s,
                units=units,
            ),
            seed=self.seed,
        )

    def gpu_index(self, name: str) -> tuple[str, int | slice]:
        """Node and index of a GPU written as node/index; node/* is all of them."""
        node, _, index = name.partition("/")
        return node, slice(None) if index == "*" else int(index)

    def linked(self) -> dict[str, bool]:
        """Racks whose agents reach the broker through something that breaks; True: it looks into messages."""
        broken: dict[str, bool] = {}
        for fault in (moment.fault for moment in self.timeline if moment.fault is not None):
            if fault.target == "link":
                for rack in rack_names(fault.name):
                    broken[rack] = broken.get(rack, False) or fault.mode in LOOKED_INTO
        return broken


def load_scenario(path: Path) -> Scenario:
    """The scenario in that file. Raises ScenarioError with every error, one per line."""
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ScenarioError(f"{path}: larger than {FILE_MAX_BYTES} bytes; this is not a scenario")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ScenarioError(f"{path}: a scenario is a mapping of name, block, workloads, timeline, expect")
    if what := _other_file(document):
        raise ScenarioError(f"{path}: this is {what}; `powerblock-rig` plays scenarios, as in examples/")
    return parse_scenario(document, path.name)


def _other_file(document: dict[str, Any]) -> str:
    """What it is, and what runs it, if it is a file of the controller or of an agent; "" if not."""
    if isinstance(document.get("node"), str):
        return "a node.yaml, which `powerblock agent` runs"
    if isinstance(document.get("block"), str):
        return "a block.yaml, which `powerblock run` runs"
    return ""


def parse_scenario(document: dict[str, Any], name: str) -> Scenario:
    """Check shape, then meaning. Raises ScenarioError with every error, one per line."""
    try:
        scenario = Scenario.model_validate(document)
    except ValidationError as failure:
        told = sentences(failure, Scenario)
        raise ScenarioError("\n".join(f"{name}: {line}" for line in told)) from failure
    if complaints := list(_complaints(scenario)):
        raise ScenarioError("\n".join(f"{name}: {line}" for line in complaints))
    return scenario


def _complaints(scenario: Scenario) -> Iterator[str]:
    yield from block_complaints(scenario.block)
    yield from _site_complaints(scenario)
    racks = [rack.name for rack in scenario.block.racks]
    yield from facility_complaints(scenario.facility, racks, scenario.own_devices)
    yield from workload_complaints(scenario.workloads, scenario.block)
    for key in sorted(scenario.expect.keys() - FIGURE_NAMES):
        yield f"expect.{key}: no such figure; docs/figures.md has them all{close_to(key, FIGURE_NAMES)}"
    events: dict[str, str] = {}
    for i, moment in enumerate(scenario.timeline):
        yield from (f"timeline.{i}.{line}" for line in _moment_complaints(moment, scenario, events))


def _site_complaints(scenario: Scenario) -> Iterator[str]:
    site = scenario.site
    for twice in (name for name, count in Counter(site.signals).items() if count > 1):
        yield f"site.signals: {twice!r} stands there twice; name each once"
    if site.own_bus and scenario.broker_url:
        yield "site.own_bus: the rig starts both brokers then; leave broker_url out"
    if site.tls and site.broker == "embedded":
        yield "site.tls: the embedded broker knows no TLS; use broker: mosquitto or nats"
    if "vtn" in site.signals and not site.tls:
        yield "site.signals: a VTN speaks https and mqtts alone; use tls: mutual"
    if scenario.broker_url and (site.broker != "embedded" or site.tls):
        yield "broker_url: the rig cannot set up somebody else's broker; leave site.broker and site.tls out"
    names = (scenario.block.name, *(node.name for node in scenario.block.nodes))
    if site.broker == "nats" and any("." in name for name in names):
        yield "site.broker: to NATS a dot is a level of the topic; take the dots out of block and node names"
    if scenario.status_events and "dsx" not in site.signals:
        yield "status_events: an ISV hears them, and there is none; add dsx to site.signals"


def _moment_complaints(moment: Moment, scenario: Scenario, events: dict[str, str]) -> Iterator[str]:
    if moment.at_s > scenario.duration_s:
        yield f"at_s: {moment.at_s} is after the end at {scenario.duration_s} s"
    if moment.event is not None:
        yield from _event_complaints(moment.event, scenario, events)
    if moment.command is not None:
        shed = scenario.block.shed
        levels = () if shed is None else tuple(level.name for level in shed.levels)
        yield from command_complaints(moment.command, scenario.facility, levels)
        if events.setdefault(moment.command.id, "SCADA") != "SCADA":
            yield f"command.id: {moment.command.id!r} is an event's; give this one its own id"
    if moment.write is not None:
        yield from write_complaints(moment.write, scenario.facility)
    if moment.cancel is not None and events.get(moment.cancel, "SCADA") == "SCADA":
        yield f"cancel: no event {moment.cancel!r} before it"
    if moment.fault is not None:
        yield from _fault_complaints(moment.fault, scenario)
    if moment.contact is not None:
        contacts = {} if scenario.block.shed is None else scenario.block.shed.contacts
        if moment.contact.name not in contacts:
            known_names = ", ".join(contacts) or "none"
            yield f"contact.name: no contact {moment.contact.name!r}; use one of {known_names}"


def _event_complaints(event: Event, scenario: Scenario, events: dict[str, str]) -> Iterator[str]:
    signals = scenario.site.signals
    via = event.via or signals[0]
    if scenario.facility.alone:
        yield "event: a gateway hears no grid; remove it, or facility.alone"
    if via not in signals:
        yield f"event.via: nobody speaks {via} here; use {', '.join(signals)}, or add it to site.signals"
    if event.is_alert and via == "dsx":
        yield "event.type: DSX Flex knows no alerts; tell it by bare or vtn"
    if event.is_alert and (scenario.block.shed is None or event.type not in scenario.block.shed.alerts):
        yield f"event.type: {event.type} calls nothing here; add it to block.shed.alerts"
    if events.setdefault(event.id, via) != via:
        yield f"event.id: {event.id!r} came by {events[event.id]} before; give this one its own id"


def _fault_complaints(fault: Fault, scenario: Scenario) -> Iterator[str]:
    modes = FAULTS[fault.target]
    if fault.mode not in modes:
        yield f"fault.mode: a {fault.target} cannot {fault.mode!r}; use {', '.join(modes)}"
        return
    known = _names(modes[fault.mode], scenario)
    if known is None:
        if fault.name:
            yield f"fault.name: there is one {fault.target}; remove the name"
    elif not (rack_names(fault.name) if fault.target == "link" else {fault.name}) <= set(known):
        yield f"fault.name: no {fault.target} {fault.name!r}; use {some(known)}"
    yield from _absent_complaints(fault, scenario)


def _absent_complaints(fault: Fault, scenario: Scenario) -> Iterator[str]:
    """What cannot break because it is not there."""
    if fault.target == "device" and fault.name == "cdu" and fault.mode == "silent":
        yield "fault.mode: the CDU cannot be silent; use refusing"
    if fault.target == "vtn" and "vtn" not in scenario.site.signals:
        yield "fault.target: there is no VTN; add vtn to site.signals"
    if fault.target == "operator" and scenario.site.signals == ("vtn",):
        yield "fault.target: a VTN speaks for the operator; use target: vtn"
    if fault.target == "server" and not scenario.facility.serve:
        yield "fault.target: nothing is served; add to facility.serve"
    if fault.target in {"agent", "gpu", "host", "link"} and scenario.facility.alone:
        yield f"fault.target: a gateway has no {fault.target}; remove it, or facility.alone"
    if fault.target == "phasor" and scenario.block.frequency is None:
        yield "fault.target: nobody tells the frequency; add block.frequency"
    if fault.mode in LOOKED_INTO and scenario.site.tls and not scenario.site.own_bus:
        yield "fault.mode: nobody can pick messages out of TLS; leave site.tls out, or use partition"
    if fault.target == "certificate" and not scenario.site.tls:
        yield "fault.target: the broker has no certificate; use site.tls: mutual"


def _names(what: str, scenario: Scenario) -> tuple[str, ...] | None:
    nodes = scenario.block.nodes
    return {
        "": None,
        "device": scenario.devices,
        "agent": (*(node.name for node in scenario.block.apart), *scenario.block.farms),
        "apart": tuple(node.name for node in scenario.block.apart),
        "rack": tuple(rack.name for rack in scenario.block.racks),
        "feed": ("a", "b"),
        "gpu": tuple(f"{node.name}/{i}" for node in nodes for i in (*range(node.gpus), "*")),
    }[what]


def rack_names(name: str) -> set[str]:
    """`r01` or `r01 r02 r03`."""
    return set(name.split())
