"""What an operator writes into `block.yaml`, checked as a whole before anything starts.

People read kW, so the file says kW; the core knows W alone, and this is where one becomes the other. Every
error is listed at once, as `file: path: what; remedy`: shape and range first, then what only shows between
the parts (names that do not exist, a block that cannot reach its own failsafe limit, profiles without the
point asked for).
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from controller.agent.config import MqttConfig, TopicName
from controller.backstop.config import BackstopConfig, backstop_errors
from controller.core.model import FailsafeSettings, Ramp, Settings, ShedLevel, Topology
from controller.facility.config import facility_errors
from controller.frequency.config import (
    FrequencyConfig,
    frequency_device,
    frequency_errors,
    frequency_settings,
)
from controller.gateway_config import (
    Device,
    DeviceConfig,
    GatewayConfig,
    NamedDeviceConfig,
    device_errors,
    kind_errors,
    own_device,
    own_devices,
    profile_of,
)
from controller.image.wire import SOCKET_NAME
from controller.site.config import Alert, RampConfig, SiteConfig, site_errors
from controller.yaml_config import ConfigError, checked, parse
from protocols.profile import ProfileError

__all__ = [
    "BlockConfig",
    "ConfigError",
    "GatewayConfig",
    "devices",
    "load_block",
    "load_config",
    "ramp_of",
    "settings_of",
]

CONTINUOUS_RATIO: Final = 0.8  # of a breaker's rating for loads that last for hours (NEC 210.20, 215.3)
KW: Final = 1000.0
SOCKET_PATH_MAX_BYTES: Final = 107  # of Linux: sun_path with its end


Kw = Annotated[float, Field(gt=0, le=1_000_000)]
BOARD_LEAST_W: Final = 10.0  # no board in sight is limited below it: 0.7 was meant as kW
Watts = Annotated[float, Field(gt=0, le=10_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Uuid = Annotated[str, Field(pattern=r"^GPU-[0-9a-f-]{1,60}$")]  # as `nvidia-smi -L` shows it
Serial = Annotated[str, Field(min_length=1, max_length=16)]  # NVML's structure has 16 characters


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class MeterConfig(DeviceConfig):
    point: str = "power_w"
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 0.2
    age_max_s: Seconds = 1.0
    lag_s: Annotated[float, Field(ge=0, le=10)] = 0.2  # half its averaging window and its refresh period
    skew_s: Annotated[float, Field(ge=0.02, le=2)] = 0.1  # how well that is known


class InletConfig(DeviceConfig):
    name: str
    feed: str
    rating_a: Annotated[float, Field(gt=0, le=5000)]
    voltage_v: Annotated[float, Field(ge=50, le=1000)]  # phase to neutral
    phases: Annotated[int, Field(ge=1, le=3)] = 3
    point: str = "power_w"

    @property
    def continuous_w(self) -> float:
        return CONTINUOUS_RATIO * self.rating_a * self.voltage_v * self.phases


class CoolingConfig(DeviceConfig):
    capacity_point: str = "capacity_w"
    blind_kw: Kw  # block power while the plant's capacity is unknown
    age_max_s: Seconds = 5.0


class NodeEntry(_Strict):
    """One GPU host.

    Attributes:
        gpu_uuids: of its GPUs, in any order: any other one is listed and counted at its most. Left out: any
            will do.
    """

    name: TopicName
    gpus: Annotated[int, Field(ge=1, le=128)]
    min_w: Watts
    max_w: Watts
    tier: str = "standard"
    gpu_uuids: Annotated[tuple[Uuid, ...], Field(max_length=128)] = ()


class RackConfig(_Strict):
    """One rack.

    Attributes:
        chassis_serials: of the chassis in it, as GB200 and GB300 boards tell them. Left out: the chassis that
            its nodes agree on.
    """

    name: str
    inlets: Annotated[tuple[InletConfig, ...], Field(min_length=1, max_length=8)]
    nodes: Annotated[tuple[NodeEntry, ...], Field(min_length=1, max_length=128)]
    base_max_kw: Kw | None = None  # None: its share of base_load.max_kw
    chassis_serials: Annotated[tuple[Serial, ...], Field(max_length=16)] = ()


class TierConfig(_Strict):
    """What flexibility was agreed for a group of GPUs."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    floor_w: Watts


class FeedConfig(_Strict):
    rating_kw: Kw


class BaseLoadConfig(_Strict):
    min_kw: Kw
    max_kw: Kw
    margin_kw: Annotated[float, Field(ge=0, le=10_000)] | None = None  # None: 0.1 % of the feed rating


class SupplyConfig(_Strict):
    """Power supplies: a watt at the GPU in watts at the meter."""

    block_w_per_gpu_w: Annotated[float, Field(ge=1.0, le=1.5)] = 1.06


class JournalConfig(_Strict):
    path: Path
    file_max_mib: Annotated[int, Field(ge=1, le=4096)] = 64
    files_max: Annotated[int, Field(ge=2, le=100)] = 8


class AgentLinkConfig(_Strict):
    """How agents are led.

    Attributes:
        report_age_max_s: an older reading of a GPU is not believed. Twice the `report_period_s` of its agent,
            at the least.
    """

    lease_s: Annotated[float, Field(ge=0.5, le=10)] = 3.0
    report_age_max_s: Annotated[float, Field(ge=0.2, le=2)] = 0.5
    silent_max_after_s: Annotated[float, Field(ge=1, le=30)] = 10.0  # sooner than any host boots


class ClocksConfig(_Strict):
    """Clock ceilings for GPUs whose limit takes nothing from them. See controller/core/clocks.py."""

    least_ratio: Annotated[float, Field(ge=0.3, le=1.0)] = 0.6  # of the highest clock; 1: no ceilings


class ShedLevelConfig(_Strict):
    name: TopicName
    kw: Kw


class ContactConfig(DeviceConfig):
    """A dry contact behind a PLC: while it is closed, a level of shedding is called."""

    name: str
    point: str
    closed: float = 1.0  # value of the point while the level is called
    level: str
    poll_s: Annotated[float, Field(ge=0.01, le=60)] = 0.05
    age_max_s: Seconds = 1.0
    lost_calls: bool = False  # a contact that cannot be read counts as closed; else as it was last seen
    frozen_after_s: Seconds | None = None  # a relay may rest for years


class ShedConfig(_Strict):
    """Levels of shedding, the gentlest first, and who calls which. See controller/core/shed.py.

    `alerts` and `critical_breach` name the level for what OpenADR and DSX Flex know as emergencies.
    """

    levels: Annotated[tuple[ShedLevelConfig, ...], Field(min_length=1, max_length=8)]
    alerts: dict[Alert, str] = Field(default_factory=dict)
    critical_breach: str | None = None
    contacts: Annotated[tuple[ContactConfig, ...], Field(max_length=32)] = ()

    def level(self, name: str) -> int:
        """Index of the level of that name. Raises ValueError."""
        return [level.name for level in self.levels].index(name)


class BlockConfig(GatewayConfig):
    """All of a `block.yaml` with GPUs."""

    journal: JournalConfig
    mqtt: MqttConfig
    site: SiteConfig
    feed: FeedConfig
    base_load: BaseLoadConfig
    supply: SupplyConfig = SupplyConfig()
    meter: MeterConfig
    racks: Annotated[tuple[RackConfig, ...], Field(min_length=1, max_length=512)]
    tiers: dict[str, TierConfig]
    cooling: CoolingConfig | None = None
    shed: ShedConfig | None = None
    frequency: FrequencyConfig | None = None
    backstop: BackstopConfig | None = None
    agents: AgentLinkConfig = AgentLinkConfig()
    clocks: ClocksConfig = ClocksConfig()
    beat_hz: Annotated[int, Field(ge=2, le=100)] = 20

    @property
    def nodes(self) -> tuple[NodeEntry, ...]:
        return tuple(node for rack in self.racks for node in rack.nodes)

    @property
    def inlets(self) -> tuple[InletConfig, ...]:
        return tuple(inlet for rack in self.racks for inlet in rack.inlets)


OF_BLOCKS: Final = BlockConfig.model_fields.keys() - GatewayConfig.model_fields.keys()
MARKS: Final = frozenset({"racks", "site", "feed", "base_load", "tiers"})  # one of them: meant to have GPUs


def load_config(path: Path) -> GatewayConfig | BlockConfig:
    """Read `block.yaml`, with or without GPUs. Raises ConfigError listing all that is wrong with it."""
    content = parse(path)
    has_law = not MARKS.isdisjoint(content)
    strays = [] if has_law else [key for key in content if key in OF_BLOCKS]
    errors = [
        f"{path.name}: {key}: is of blocks with GPUs; a gateway has none: remove it, or add racks, site and"
        " what else a block has"
        for key in strays
    ]
    sound = {key: value for key, value in content.items() if key not in strays}
    try:
        config = checked(path, sound, BlockConfig if has_law else GatewayConfig)
    except ConfigError as error:
        wrong = device_errors(_sound_devices(path, content.get("devices")))
        raise ConfigError("\n".join([*errors, str(error), *_in_file(path, wrong)])) from None
    errors += _in_file(path, _cross_errors(config))
    if errors:
        raise ConfigError("\n".join(errors))
    return config


def _in_file(path: Path, errors: Iterator[str]) -> Iterator[str]:
    return (f"{path.name}: {error}" for error in errors)


def _sound_devices(path: Path, entries: Any) -> list[Device]:
    """Those of a list that is not sound as a whole: what is wrong with them shall not wait for the rest."""
    found: list[Device] = []
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        with suppress(ConfigError):
            found.append(own_device(index, checked(path, entry, NamedDeviceConfig)))
    return found


def load_block(path: Path) -> BlockConfig:
    """Read a `block.yaml` with GPUs. Raises ConfigError."""
    config = load_config(path)
    if not isinstance(config, BlockConfig):
        raise ConfigError(
            f"{path.name}: has no GPUs (no `racks`, no `site`): a gateway has no power to limit;"
            " this command is for a block that does"
        )
    return config


def settings_of(config: BlockConfig) -> Settings:
    """The law's view of the configuration, in W and s."""
    nodes, racks = config.nodes, config.racks
    rack_of = {node.name: index for index, rack in enumerate(racks) for node in rack.nodes}
    counts = [node.gpus for node in nodes]
    tier_of = [config.tiers[node.tier] for node in nodes]

    def per_gpu(values: list[float]) -> "np.typing.NDArray[np.float64]":
        return np.repeat(np.array(values, dtype=np.float64), counts)

    topology = Topology(
        node_names=tuple(node.name for node in nodes),
        rack_names=tuple(rack.name for rack in racks),
        inlet_names=tuple(inlet.name for inlet in config.inlets),
        gpu_node=np.repeat(np.arange(len(nodes)), counts),
        gpu_rack=np.repeat(np.array([rack_of[node.name] for node in nodes]), counts),
        inlet_rack=np.repeat(np.arange(len(racks)), [len(rack.inlets) for rack in racks]),
        inlet_continuous_w=np.array([inlet.continuous_w for inlet in config.inlets]),
        gpu_min_w=per_gpu([node.min_w for node in nodes]),
        gpu_max_w=per_gpu([node.max_w for node in nodes]),
        gpu_floor_w=per_gpu([tier.floor_w for tier in tier_of]),
        gpu_weight=per_gpu([tier.weight for tier in tier_of]),
    )
    rating_w, base_max_w = config.feed.rating_kw * KW, config.base_load.max_kw * KW
    margin_kw = config.base_load.margin_kw
    rack_base_kw = [rack.base_max_kw or config.base_load.max_kw / len(racks) for rack in racks]
    site, cooling = config.site, config.cooling
    return Settings(
        topology=topology,
        failsafes=tuple(
            FailsafeSettings(
                limit_w=site.failsafe_kw * KW,
                heartbeat_timeout_s=source.heartbeat_timeout_s,
                release_after_s=site.failsafe_release_after_s,
                source=source.name,
            )
            for source in site.watched
            if source.heartbeat_timeout_s is not None
        ),
        tick_s=1.0 / config.beat_hz,
        feed_rating_w=rating_w,
        ramp=ramp_of(site.ramp, site.ramp_margin_ratio),
        block_w_per_gpu_w=config.supply.block_w_per_gpu_w,
        base_min_w=config.base_load.min_kw * KW,
        base_max_w=base_max_w,
        base_margin_w=0.001 * rating_w if margin_kw is None else margin_kw * KW,
        rack_base_max_w=np.array(rack_base_kw) * KW,
        cooling_blind_w=None if cooling is None else cooling.blind_kw * KW,
        report_age_max_s=config.agents.report_age_max_s,
        silent_max_after_s=config.agents.silent_max_after_s,
        clock_least_ratio=config.clocks.least_ratio,
        meter_age_max_s=config.meter.age_max_s,
        meter_lag_s=config.meter.lag_s,
        skew_s=config.meter.skew_s,
        cooling_age_max_s=5.0 if cooling is None else cooling.age_max_s,
        witness_tolerance_w=0.03 * rating_w,
        shed_levels=()
        if config.shed is None
        else tuple(ShedLevel(level.name, level.kw * KW) for level in config.shed.levels),
        frequency=None
        if config.frequency is None
        else frequency_settings(config.frequency, ramp_of(site.ramp, site.ramp_margin_ratio)),
    )


def ramp_of(ramp: RampConfig, margin_ratio: float) -> Ramp:
    """What is commanded, in W/s, to stay within what was agreed."""
    return Ramp(ramp.down_kw_per_s * KW * (1.0 - margin_ratio), ramp.up_kw_per_s * KW * (1.0 - margin_ratio))


def _cross_errors(config: GatewayConfig | BlockConfig) -> Iterator[str]:
    if isinstance(config, BlockConfig):
        yield from site_errors(config.site)
        yield from _name_errors(config)
        yield from _age_errors(config)
        yield from _power_errors(config)
        yield from _shed_errors(config)
        yield from backstop_errors(config.backstop, [node.name for node in config.nodes])
        if config.frequency is not None:
            yield from frequency_errors(
                config.frequency, ramp_of(config.site.ramp, config.site.ramp_margin_ratio)
            )
    yield from _run_dir_errors(config)
    yield from device_errors(devices(config))
    yield from facility_errors(config.facility)
    if config.facility.bms is not None:
        yield from kind_errors(devices(config), config.facility.bms)


def _run_dir_errors(config: GatewayConfig) -> Iterator[str]:
    over_bytes = len(os.fsencode(config.run_dir / SOCKET_NAME)) - SOCKET_PATH_MAX_BYTES
    if over_bytes > 0:
        yield (
            f"run_dir: {config.run_dir} is {over_bytes} bytes too long for the path of the socket in it;"
            " choose a shorter one"
        )


def _name_errors(config: BlockConfig) -> Iterator[str]:
    for r, rack in enumerate(config.racks):
        for n, node in enumerate(rack.nodes):
            where = f"racks[{r}].nodes[{n}]"
            if node.tier not in config.tiers:
                known = ", ".join(config.tiers) or "none"
                yield f"{where}.tier: no tier {node.tier!r}; name one of: {known}"
            if node.min_w > node.max_w:
                yield f"{where}.min_w: {node.min_w:g} is above max_w {node.max_w:g}; swap or correct them"
            if node.max_w < BOARD_LEAST_W:
                yield f"{where}.max_w: {node.max_w:g} W is no GPU's; write watts, as its driver does"
            if node.gpu_uuids and len(node.gpu_uuids) != node.gpus:
                yield f"{where}.gpu_uuids: {len(node.gpu_uuids)} for {node.gpus} GPUs; list all, or none"
    for kind, names, remedy in (
        ("racks", [rack.name for rack in config.racks], "give each its own name"),
        ("nodes", [node.name for node in config.nodes], "give each its own name"),
        ("gpu_uuids", [uuid for node in config.nodes for uuid in node.gpu_uuids], "a GPU is in one node"),
    ):
        for name in sorted(name for name, count in Counter(names).items() if count > 1):
            yield f"racks: {kind}: {name!r} is used twice; {remedy}"


def devices(config: GatewayConfig | BlockConfig) -> list[Device]:
    """All field devices: those of the law, in the order of the file, then the others."""
    found: list[Device] = []
    if isinstance(config, BlockConfig):
        found.append(
            Device("meter", "meter", config.meter, config.meter.kind or "meter", needs=config.meter.point)
        )
        for r, rack in enumerate(config.racks):
            found += (
                Device(
                    f"racks[{r}].inlets[{i}]",
                    inlet.name,
                    inlet,
                    inlet.kind or "pdu",
                    rack.name,
                    inlet.feed,
                    inlet.point,
                )
                for i, inlet in enumerate(rack.inlets)
            )
        if config.cooling is not None:
            cooling = config.cooling
            found.append(
                Device("cooling", "cooling", cooling, cooling.kind or "cdu", needs=cooling.capacity_point)
            )
        found += (
            Device(
                f"shed.contacts[{c}]",
                contact.name,
                contact if contact.points else contact.model_copy(update={"points": (contact.point,)}),
                contact.kind or "contact",
                needs=contact.point,
                needs_unit="",
            )
            for c, contact in enumerate(config.shed.contacts if config.shed else ())
        )
        grid = frequency_device(config.frequency)
        found += [grid] if grid is not None else []
    return [*found, *own_devices(config)]


def _shed_errors(config: BlockConfig) -> Iterator[str]:
    shed = config.shed
    if shed is None:
        return
    names, powers_kw = [level.name for level in shed.levels], [level.kw for level in shed.levels]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"shed.levels: {name!r} is used twice; give each its own name"
    if powers_kw != sorted(set(powers_kw), reverse=True):
        yield "shed.levels: order them by kw, the gentlest first, each with less than the one before"
    if powers_kw[0] >= config.feed.rating_kw:
        yield f"shed.levels: {names[0]!r} sheds nothing: the feed carries {config.feed.rating_kw:g} kW anyway"
    for where, level in (
        *((f"shed.alerts.{alert}", level) for alert, level in shed.alerts.items()),
        *((f"shed.contacts[{c}].level", contact.level) for c, contact in enumerate(shed.contacts)),
        *([("shed.critical_breach", shed.critical_breach)] if shed.critical_breach else []),
    ):
        if level not in names:
            yield f"{where}: no level {level!r}; name one of: {', '.join(names)}"
    for c, contact in enumerate(shed.contacts):
        yield from _contact_errors(f"shed.contacts[{c}]", contact)
    for alert in sorted(shed.alerts.keys() & config.site.meanings.alerts_kw.keys()):
        yield f"shed.alerts.{alert}: site.meanings.alerts_kw has it, too; leave one of them out"


def _contact_errors(where: str, contact: ContactConfig) -> Iterator[str]:
    """A contact that is never at `closed` would call nothing, and nobody would know before the emergency."""
    with suppress(ProfileError):  # told with its device
        profile = profile_of(contact)
        point = None if profile is None else profile.points.get(contact.point)
        if point is None:
            return
        one_bit = point.type in ("bool", "number") or point.mask.bit_count() == 1
        states = sorted(point.enum) or ([0, 1] if point.unit == "bool" and one_bit else [])
        if not states:
            yield (
                f"{where}.point: {contact.point!r} is no state but a number: in the profile give it"
                " `unit: bool`, and a `mask` of one bit in a register, or `unit: enum` with its states"
            )
        elif contact.closed not in states:
            yield (
                f"{where}.closed: {contact.point!r} is never {contact.closed:g}, and nobody could call by it;"
                f" write one of {', '.join(map(str, states))}"
            )


def _age_errors(config: BlockConfig) -> Iterator[str]:
    """A reading that is too old before the next one can come is an instrument that comes and goes."""
    cooling = config.cooling
    for where, device, age_max_s in (
        ("meter", config.meter, config.meter.age_max_s),
        *([("cooling", cooling, cooling.age_max_s)] if cooling is not None else []),
        *(
            (f"shed.contacts[{c}]", contact, contact.age_max_s)
            for c, contact in enumerate(config.shed.contacts if config.shed else ())
        ),
    ):
        if age_max_s < 2.0 * device.poll_s:
            yield (
                f"{where}.age_max_s: {age_max_s:g} is less than two polls of {device.poll_s:g} s;"
                " poll more often or allow an older reading"
            )


def _power_errors(config: BlockConfig) -> Iterator[str]:
    base = config.base_load
    if base.min_kw > base.max_kw:
        yield f"base_load.min_kw: {base.min_kw:g} is above max_kw {base.max_kw:g}; swap or correct them"
    if config.site.failsafe_kw > config.feed.rating_kw:
        yield (
            f"site.failsafe_kw: {config.site.failsafe_kw:g} is above feed.rating_kw"
            f" {config.feed.rating_kw:g}; choose what the block may draw when nobody is heard"
        )
    least_kw = (
        base.max_kw + config.supply.block_w_per_gpu_w * sum(n.gpus * n.min_w for n in config.nodes) / KW
    )
    if least_kw > config.site.failsafe_kw:
        yield (
            f"site.failsafe_kw: {config.site.failsafe_kw:g} cannot be reached: base load and GPUs at their"
            f" lowest limits draw up to {least_kw:.2f} kW; raise it, or lower base_load.max_kw"
        )
