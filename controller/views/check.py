"""`powerblock check`: the tree of limits as the configuration means it, and what follows from it.

A file that is valid may still not be what was meant. So this view says what the law will make of it: how
far the block can be shed and how long that takes, what every rack carries on shared inlets and on one
alone, and what looks like a slip of the pen. All powers are at the meter: a watt at a GPU counts with its
power supply. The base load is taken at its assumed most, which is what the law does when it is blind.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from controller.backstop.config import read_ca
from controller.config import BlockConfig, InletConfig, NodeEntry, RackConfig, settings_of
from controller.core.model import Floats, Settings, ShedLevel
from controller.site.config import DsxFlexConfig, OpenAdrVtnConfig, RampConfig, Source
from controller.site.keys import key_files, signer_file
from controller.site.openadr import ven_settings
from controller.site.policy import ACTS, policy_of
from controller.views import check_files, check_gateway
from controller.views.figures import kw, percent, span

KW: Final = 1000.0
SOURCE_FILES: Final = ("client_secret_file", "signing_key", "ca", "cert", "key")
ALIKE_W: Final = 1.0  # inlets that differ by less are equally tight
EVEN_STEPS: Final = 40  # halvings: from kilowatts to less than a microwatt


@dataclass(frozen=True)
class RackFacts:
    """What a rack's inlets carry for hours, and what its GPUs and base load could ask of them, W."""

    name: str
    shared_w: float  # all inlets carry alike
    alone_w: float  # one inlet carries everything: the other feed is gone, or is not metered
    most_w: float
    least_w: float


@dataclass(frozen=True)
class ShedFacts:
    """A level of shedding, and who calls it."""

    name: str
    limit_w: float
    callers: tuple[str, ...]
    missing_w: float  # above it with every GPU at its least; 0: it can be reached


@dataclass(frozen=True)
class BlockFacts:
    """What follows from the configuration; W at the meter, base load at its assumed most."""

    gpus: int
    most_w: float  # every GPU at its most
    floors_w: float  # every GPU at the floor of its tier
    least_w: float  # every GPU at its least
    base_span_w: float  # so much lower is each of them with the base load at its least
    full_w: float  # the most this block ever draws: `most_w`, or the feed rating
    sheddable_w: float  # from there down to `least_w`
    sheddable_ratio: float
    failsafe_fall_s: float  # from full to the failsafe limit, obeying included
    failsafe_rise_s: float  # and back
    fallback_w: (
        float | None
    )  # the most for a GPU's `fallback_w` in node.yaml; None: even the least is too much
    fallback_bound: str  # what allows no more
    racks: tuple[RackFacts, ...]
    sheds: tuple[ShedFacts, ...]


def facts(config: BlockConfig) -> BlockFacts:
    settings = settings_of(config)
    topology, gain = settings.topology, settings.block_w_per_gpu_w

    def at_meter_w(gpu_w: "np.typing.NDArray[np.float64]") -> float:
        return settings.base_max_w + gain * float(gpu_w.sum())

    floor_w = np.clip(topology.gpu_floor_w, topology.gpu_min_w, topology.gpu_max_w)
    most_w, least_w = at_meter_w(topology.gpu_max_w), at_meter_w(topology.gpu_min_w)
    full_w = min(most_w, settings.feed_rating_w)
    above_failsafe_w = max(0.0, full_w - settings.failsafe_w)
    fallback_w, fallback_bound = _fallback(settings)
    return BlockFacts(
        gpus=len(topology.gpu_node),
        most_w=most_w,
        floors_w=at_meter_w(floor_w),
        least_w=least_w,
        base_span_w=settings.base_max_w - settings.base_min_w,
        full_w=full_w,
        sheddable_w=max(0.0, full_w - least_w),
        sheddable_ratio=max(0.0, full_w - least_w) / full_w,
        failsafe_fall_s=above_failsafe_w / settings.ramp.down_w_per_s + settings.lead_s,
        failsafe_rise_s=above_failsafe_w / settings.ramp.up_w_per_s,
        fallback_w=fallback_w,
        fallback_bound=fallback_bound,
        racks=tuple(_rack_facts(settings, index) for index in range(len(topology.rack_names))),
        sheds=tuple(
            ShedFacts(
                level.name, level.limit_w, tuple(_callers(config, level)), max(0.0, least_w - level.limit_w)
            )
            for level in settings.shed_levels
        ),
    )


def _fallback(settings: Settings) -> tuple[float | None, str]:
    """The most that every GPU may fall back to so that all agents may do so at once, and what bounds it.

    A GPU counts at this, or at its own least or most where those are above or below.
    """
    topology, gain = settings.topology, settings.block_w_per_gpu_w
    everywhere = np.ones(len(topology.gpu_node), dtype=np.bool_)
    bounds = [
        ("the feed rating", settings.feed_rating_w - settings.base_max_w, everywhere),
        ("the failsafe limit", settings.failsafe_w - settings.base_max_w, everywhere),
    ]
    for rack, name in enumerate(topology.rack_names):
        one_inlet_w = float(topology.inlet_continuous_w[topology.inlet_rack == rack].min())
        room_w = one_inlet_w - float(settings.rack_base_max_w[rack])
        bounds.append((f"rack {name} on one inlet", room_w, topology.gpu_rack == rack))
    found = [
        (_even_w(room_w / gain, topology.gpu_min_w[members], topology.gpu_max_w[members]), name)
        for name, room_w, members in bounds
        if members.any()
    ]
    fallback_w, bound = min(found)
    return None if fallback_w < 0.0 else fallback_w, bound


def _even_w(room_w: float, min_w: Floats, max_w: Floats) -> float:
    """The highest limit for all that fits into `room_w` when each keeps to its own bounds; -1: none does."""
    if min_w.sum() > room_w:
        return -1.0
    if max_w.sum() <= room_w:
        return float(max_w.max())
    low_w, high_w = 0.0, float(max_w.max())
    for _ in range(EVEN_STEPS):
        middle_w = (low_w + high_w) / 2.0
        fits = np.clip(middle_w, min_w, max_w).sum() <= room_w
        low_w, high_w = (middle_w, high_w) if fits else (low_w, middle_w)
    return low_w


def _callers(config: BlockConfig, level: ShedLevel) -> Iterator[str]:
    """Who calls that level by himself; people may call any."""
    shed = config.shed
    if shed is None:
        return
    for contact in shed.contacts:
        if contact.level == level.name:
            lost = ", and while it cannot be read" if contact.lost_calls else ""
            yield f"contact {contact.name} ({contact.point} = {contact.closed:g}{lost})"
    yield from (str(alert) for alert, name in shed.alerts.items() if name == level.name)
    if shed.critical_breach == level.name:
        yield "a critical breach of a feed, told over DSX Flex"


def _rack_facts(settings: Settings, rack: int) -> RackFacts:
    topology, gain = settings.topology, settings.block_w_per_gpu_w
    inlets_w = topology.inlet_continuous_w[topology.inlet_rack == rack]
    members, base_w = topology.gpu_rack == rack, float(settings.rack_base_max_w[rack])
    return RackFacts(
        name=topology.rack_names[rack],
        shared_w=len(inlets_w) * float(inlets_w.min()),
        alone_w=float(inlets_w.min()),
        most_w=base_w + gain * float(topology.gpu_max_w[members].sum()),
        least_w=base_w + gain * float(topology.gpu_min_w[members].sum()),
    )


# --- what deserves a second look ---------------------------------------------------------------------


def warnings(config: BlockConfig, found: BlockFacts) -> Iterator[str]:
    """Sentences about a valid configuration that may not be what was meant."""
    yield from _block_warnings(config, found)
    for rack, rack_found in zip(config.racks, found.racks, strict=True):
        yield from _rack_warnings(rack, rack_found)
    yield from _tier_warnings(config)
    yield from _device_warnings(config)
    yield from _source_warnings(config)
    yield from _shed_warnings(config, found)
    yield from _frequency_warnings(config, found)
    yield from _backstop_warnings(config, found)
    yield from check_gateway.warnings(config)


def _block_warnings(config: BlockConfig, found: BlockFacts) -> Iterator[str]:
    rating_w, failsafe_w = config.feed.rating_kw * KW, config.site.failsafe_kw * KW
    if found.most_w > rating_w:
        yield (
            f"every GPU at its most would draw {kw(found.most_w)}, {percent(found.most_w / rating_w - 1.0)}"
            " above the feed rating: normal for a block that shares, the law holds the rating"
        )
    racks_w = sum(rack.shared_w for rack in found.racks)
    if racks_w < rating_w:
        yield (
            f"all racks together carry {kw(racks_w)}, less than the feed rating {kw(rating_w)}:"
            " the racks bind before the feed does"
        )
    if failsafe_w < found.floors_w:
        yield (
            f"the failsafe limit {kw(failsafe_w)} is below {kw(found.floors_w)}, every tier at its floor:"
            " tiers lose their floors while the site is lost"
        )
    if config.cooling is not None and config.cooling.blind_kw * KW < found.least_w:
        yield (
            f"cooling.blind_kw {kw(config.cooling.blind_kw * KW)} cannot be reached: base load and GPUs at"
            f" their least draw up to {kw(found.least_w)}"
        )
    if found.fallback_w is None:
        yield (
            "no fallback_w is low enough: were all agents left alone at once, base load and GPUs at their"
            f" least could draw more than {found.fallback_bound} allows"
        )
    if config.site.failsafe_release_after_s is not None:
        yield (
            f"the failsafe limit is released {span(config.site.failsafe_release_after_s)} after the site was"
            " lost: the block then opens up while its site is blind"
        )


def _shed_warnings(config: BlockConfig, found: BlockFacts) -> Iterator[str]:
    for level in found.sheds:
        if level.missing_w > 0.0:
            yield (
                f"shed level {level.name} of {kw(level.limit_w)} may not be reached: base load and GPUs at"
                f" their least draw up to {kw(found.least_w)}"
            )
    shed, sources = config.shed, config.site.sources
    if shed is None:
        return
    if shed.critical_breach and not any(getattr(source, "advisers", None) for source in sources):
        yield "shed.critical_breach: no source of kind dsx_flex has advisers, so nobody can tell of a breach"
    if shed.alerts and all(isinstance(source, DsxFlexConfig) for source in sources):
        yield "shed.alerts: no source speaks OpenADR, so no alert can arrive"


def _frequency_warnings(config: BlockConfig, found: BlockFacts) -> Iterator[str]:
    if config.frequency is not None and config.frequency.committed_kw * KW > found.sheddable_w:
        yield (
            f"frequency.committed_kw: {kw(config.frequency.committed_kw * KW)} can never be shed: from"
            f" {kw(found.full_w)}, the most this block ever draws, to GPUs at their least it is"
            f" {kw(found.sheddable_w)}"
        )


def _backstop_warnings(config: BlockConfig, found: BlockFacts) -> Iterator[str]:
    if config.backstop is None:
        return
    limit_w = config.backstop.limit_w
    for amiss, is_amiss, so in (
        ("above the most", [node for node in config.nodes if limit_w > node.max_w], "it holds nothing"),
        (
            "below the least",
            [node for node in config.nodes if limit_w < node.min_w],
            "its BMC may refuse it, and it then counts at its most",
        ),
    ):
        if is_amiss:
            node, *others = is_amiss
            more = f", and of {len(others)} more nodes" if others else ""
            yield (
                f"backstop.limit_w: {limit_w:g} W is {amiss} of the GPUs of node {node.name},"
                f" {node.min_w:g} to {node.max_w:g} W{more}: {so}"
            )
    if found.fallback_w is not None and limit_w > found.fallback_w:
        yield (
            f"backstop.limit_w: {limit_w:g} W is above {math.floor(found.fallback_w)} W, the most that all"
            f" GPUs may be held at when every agent is silent: {found.fallback_bound} allows no more"
        )


def _source_warnings(config: BlockConfig) -> Iterator[str]:
    for source in config.site.sources:
        if source.heartbeat_timeout_s is None:
            yield f"source {source.name} is not watched: its silence changes nothing, its limits stay"
        if getattr(source, "accept_unsigned", False):
            yield f"source {source.name} accepts unsigned commands: its broker alone decides who steers"
        if getattr(source, "plain", False):
            yield f"source {source.name} may go without encryption: for laboratories"


def unfit(config: BlockConfig) -> Iterator[str]:
    """Files and addresses with which the controller would not start, for this user on this machine."""
    yield from check_gateway.unfit(config)
    yield from check_files.unfit(_files(config), _trials(config), "the controller")


def _trials(config: BlockConfig) -> Iterator[check_files.Trial]:
    """What the controller makes of them first: connections not yet connected, key sets, a VEN's settings."""
    yield "mqtt", partial(check_files.linked, "mqtt", config.mqtt)
    if config.backstop is not None:
        yield "backstop.password_file", config.backstop.password
        for place, file in config.backstop.ca_files(_names(config)).items():
            yield place, partial(read_ca, place, file)
    for number, source in enumerate(config.site.sources):
        place, where = f"site.sources[{number}]", f"site.sources: {source.name}"
        mqtt = getattr(source, "mqtt", None)
        if mqtt is not None:
            yield f"{place}.mqtt", partial(check_files.linked, f"{place}.mqtt", mqtt)
        if isinstance(source, DsxFlexConfig):
            for field in ("publishers", "advisers"):
                yield f"{place}.{field}", partial(key_files, f"{where}: {field}", getattr(source, field))
            signer = partial(signer_file, f"{where}: signing_key", source.signing_key, source.signing_kid)
            yield f"{place}.signing_key", signer
        if isinstance(source, OpenAdrVtnConfig):
            yield place, partial(ven_settings, source)


def _files(config: BlockConfig) -> Iterator[tuple[str, Path]]:
    """Files that the configuration names, with the place where it does."""
    yield from check_files.of_broker("mqtt", config.mqtt)
    if config.backstop is not None:
        yield "backstop.password_file", config.backstop.password_file
        for place, file in config.backstop.ca_files(_names(config)).items():
            yield place, Path(file)
    for number, source in enumerate(config.site.sources):
        where = f"site.sources[{number}]"
        yield from check_files.of_broker(f"{where}.mqtt", getattr(source, "mqtt", None))
        named = {name: getattr(source, name, None) for name in SOURCE_FILES}
        for field in ("publishers", "advisers"):
            named |= {f"{field}.{name}": path for name, path in getattr(source, field, {}).items()}
        yield from ((f"{where}.{name}", Path(path)) for name, path in named.items() if path is not None)


def _names(config: BlockConfig) -> list[str]:
    return [node.name for node in config.nodes]


def _rack_warnings(rack: RackConfig, found: RackFacts) -> Iterator[str]:
    if found.least_w > found.alone_w:
        yield (
            f"rack {found.name}: base load and GPUs at their least draw up to {kw(found.least_w)}, one inlet"
            f" carries {kw(found.alone_w)}: if the other fails, limits alone cannot save it"
        )
    elif found.most_w > found.alone_w:
        yield (
            f"rack {found.name}: at full power {kw(found.most_w)}, one inlet carries {kw(found.alone_w)}:"
            " while the other is lost or not metered, its GPUs are held down to that"
        )
    if found.most_w > found.shared_w:
        yield f"rack {found.name}: its GPUs never all reach their most; its inlets carry {kw(found.shared_w)}"
    feeds = [inlet.feed for inlet in rack.inlets]
    if len(feeds) > 1 and len(set(feeds)) == 1:
        yield f"rack {found.name}: all inlets hang on feed {feeds[0]}: no second feed to fall back on"


def _tier_warnings(config: BlockConfig) -> Iterator[str]:
    used = {node.tier for node in config.nodes}
    for name in config.tiers.keys() - used:
        yield f"tier {name!r} is given to no node"
    for node in config.nodes:
        floor_w = config.tiers[node.tier].floor_w
        if not node.min_w <= floor_w <= node.max_w:
            yield (
                f"node {node.name}: the floor of tier {node.tier!r}, {floor_w:g} W, lies outside its GPUs'"
                f" {node.min_w:g} to {node.max_w:g} W"
            )


def _device_warnings(config: BlockConfig) -> Iterator[str]:
    age_max_s = settings_of(config).inlet_age_max_s
    for inlet in config.inlets:
        if 2.0 * inlet.poll_s > age_max_s:
            yield (
                f"inlet {inlet.name}: polled every {inlet.poll_s:g} s but stale after {age_max_s:g} s:"
                " one lost reading, and it counts as unknown"
            )
    places = Counter((inlet.url, inlet.unit, inlet.point) for inlet in config.inlets)
    for (url, unit, point), count in places.items():
        if count > 1:
            names = [i.name for i in config.inlets if (i.url, i.unit, i.point) == (url, unit, point)]
            yield f"inlets {', '.join(names)} read the same point of the same device: {url} unit {unit}"


# --- on paper ----------------------------------------------------------------------------------------


def as_json(config: BlockConfig) -> dict[str, Any]:
    found = facts(config)
    return {
        "block": config.block,
        "config": config.model_dump(mode="json"),
        "facts": asdict(found),
        "warnings": list(warnings(config, found)),
        **check_gateway.facility_json(config),
    }


def render(config: BlockConfig) -> RenderableType:
    found = facts(config)
    parts: list[RenderableType] = [_tree(config, found), Text(), _powers(found), _times(config, found)]
    parts += map(check_gateway.warning, warnings(config, found))
    return Group(*parts)


def _tree(config: BlockConfig, found: BlockFacts) -> Tree:
    tree = Tree(
        Text.assemble(
            (config.block, "bold"),
            f"  {found.gpus} GPUs, {len(config.nodes)} nodes, {len(config.racks)} racks",
        ),
        guide_style="dim",
    )
    limits = tree.add(Text("limits of the block"))
    rows = list(_block_limits(config))
    wide, high = max(len(name) for name, *_ in rows), max(len(power) for _, power, _ in rows)
    for name, power, words in rows:
        limits.add(Text.assemble((f"{name:{wide}}  ", ""), (f"{power:>{high}}", "bold"), f"  {words}"))
    signals = tree.add(Text("signals, the lowest of which binds"))
    for source in config.site.sources:
        signals.add(_source(config, source))
    if found.sheds:
        sheds = tree.add(Text("levels of shedding, by tables and without a ramp; people may call any"))
        for level in found.sheds:
            sheds.add(_level(level))
    for branch in (*_frequency(config), *_backstop(config)):
        tree.add(branch)
    for rack, rack_found in zip(config.racks, found.racks, strict=True):
        branch = tree.add(
            Text.assemble(
                "rack ",
                (rack.name, "bold"),
                f"  {kw(rack_found.shared_w)} on shared inlets, {kw(rack_found.alone_w)} on one",
            )
        )
        for inlet in rack.inlets:
            branch.add(_inlet(inlet, rack))
        for node in rack.nodes:
            branch.add(_node(node, config))
    for branch in check_gateway.branches(config):
        tree.add(branch)
    return tree


def _block_limits(config: BlockConfig) -> Iterator[tuple[str, str, str]]:
    """(name, power, words) of everything that bounds the block as a whole."""
    site, base = config.site, config.base_load
    yield "feed rating", kw(config.feed.rating_kw * KW), "protection: does not wait for a ramp"
    release_s = site.failsafe_release_after_s
    until = "until it is back" if release_s is None else f"for {span(release_s)} at most"
    for source in site.watched:
        silent_s = source.heartbeat_timeout_s or 0.0
        yield (
            f"failsafe of {source.name}",
            kw(site.failsafe_kw * KW),
            f"{span(silent_s)} after it was last heard, {until}",
        )
    if config.cooling is not None:
        yield "cooling blind", kw(config.cooling.blind_kw * KW), "while the capacity is unknown"
    yield "ramp", *_ramp_words(site.ramp)
    for source in site.sources:
        for name, ramp in (("ramp", source.ramp), ("urgent ramp", source.urgent_ramp)):
            if ramp is not None:
                yield f"{name} of {source.name}", *_ramp_words(ramp)
    yield (
        "base load",
        kw(base.max_kw * KW),
        f"assumed while it is not measured; never below {kw(base.min_kw * KW)}",
    )


def _ramp_words(ramp: RampConfig) -> tuple[str, str]:
    way = f"{ramp.down_kw_per_s:g} kW/s down, {ramp.up_kw_per_s:g} up"
    begins = "there when a window opens" if ramp.arrive_at_start else "begins when a window opens"
    spread = f"; ends up to {span(ramp.recovery_spread_s)} later" if ramp.recovery_spread_s else ""
    return way, begins + spread


def _source(config: BlockConfig, source: Source) -> Text:
    """Who may ask, and for what: levels, prices and alerts mean nothing until they are agreed."""
    said = Text.assemble((source.name, "bold"), f"  {source.kind}")
    if source.heartbeat_timeout_s is None:
        said.append("  not watched: its silence means nothing", style="yellow")
    if isinstance(source, DsxFlexConfig):
        shares = ", ".join(f"{percent(share)} of the block" for share in source.feeds.values())
        said.append(f"; feeds {', '.join(source.feeds)}: {shares}; steered by {', '.join(source.publishers)}")
        return said
    acts_on = policy_of(config, source).acts_on
    said.append(f"; acts on {', '.join(sorted(acts_on))}")
    unset = sorted(ACTS.keys() - acts_on)
    if unset:
        said.append(f"; not agreed: {', '.join(unset)}", style="dim")
    return said


def _level(level: ShedFacts) -> Text:
    return Text.assemble(
        (level.name, "bold"),
        f"  {kw(level.limit_w)}  ",
        (f"may not be reached, {kw(level.missing_w)} are missing; ", "yellow") if level.missing_w else "",
        "called by " + "; ".join(level.callers) if level.callers else ("called by nobody else", "dim"),
    )


def _frequency(config: BlockConfig) -> Iterator[Tree]:
    """What is done by itself when the grid's frequency falls."""
    settings = settings_of(config).frequency
    if config.frequency is None or settings is None:
        return
    one = config.frequency.input
    tree = Tree(
        Text.assemble(
            f"frequency response: {settings.product}, committed ", (kw(settings.committed_w), "bold")
        ),
        guide_style="dim",
    )
    points = settings.droop or settings.steps
    shares = ", ".join(f"{percent(point.share)} at {point.hz:g} Hz" for point in points)
    until = "" if settings.release_hz is None else f" and until {settings.release_hz:g} Hz"
    tree.add(Text(f"{shares}, full within {settings.full_s:g} s; held {span(settings.sustain_s)}{until}"))
    tree.add(
        Text(
            f"back up by {settings.release_w_per_s / KW:g} kW/s; ready again {span(settings.rearm_s)} after"
            " it began"
        )
    )
    tree.add(
        Text(
            f"input {one.way}, a value every {one.period_s:g} s; believed after {settings.hold_s:g} s,"
            f" blind after {settings.age_max_s:g} s without one"
        )
    )
    yield tree


def _backstop(config: BlockConfig) -> Iterator[Tree]:
    """What is done about a host whose agent is silent."""
    backstop = config.backstop
    if backstop is None:
        return
    tree = Tree(
        Text.assemble(
            "backstop: a silent host is held by its BMC at ", (f"{backstop.limit_w:g} W", "bold"), " per GPU"
        ),
        guide_style="dim",
    )
    tree.add(
        Text(
            f"after {span(backstop.after_s)} of silence, by lever {backstop.lever}; back up by"
            f" {backstop.release_w_per_s:g} W/s per GPU when its agent has obeyed for"
            f" {span(backstop.release_after_s)}"
        )
    )
    own = f"; of their own: {len(backstop.bmcs)}" if backstop.bmcs else ""
    tree.add(Text(f"BMCs at {backstop.url_template or 'no common address'}{own}; user {backstop.user}"))
    yield tree


def _inlet(inlet: InletConfig, rack: RackConfig) -> Text:
    continuous_w = [other.continuous_w for other in rack.inlets]
    tightest = inlet.continuous_w <= min(continuous_w) + ALIKE_W < max(continuous_w)
    rating_w = inlet.rating_a * inlet.voltage_v * inlet.phases
    return Text.assemble(
        f"inlet {inlet.name}  feed {inlet.feed}"
        f"  {inlet.rating_a:g} A x {inlet.voltage_v:g} V x {inlet.phases} = {kw(rating_w)}, continuous ",
        (kw(inlet.continuous_w), "bold"),
        ("  tightest", "yellow") if tightest else "",
    )


def _node(node: NodeEntry, config: BlockConfig) -> Text:
    floor_w = config.tiers[node.tier].floor_w
    return Text(
        f"node {node.name}  {node.gpus} GPUs of {node.min_w:g} to {node.max_w:g} W"
        f" = {kw(node.gpus * node.min_w)} to {kw(node.gpus * node.max_w)};"
        f" tier {node.tier}, floor {floor_w:g} W"
    )


def _powers(found: BlockFacts) -> Table:
    table = Table("block power at the meter", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("base load at its least", justify="right")
    table.add_column("base load at its most", justify="right")
    for name, power_w in (
        ("every GPU at its most", found.most_w),
        ("every GPU at its tier's floor", found.floors_w),
        ("every GPU at its least", found.least_w),
    ):
        table.add_row(name, kw(power_w - found.base_span_w), kw(power_w))
    return table


def _times(config: BlockConfig, found: BlockFacts) -> Text:
    failsafe_w = config.site.failsafe_kw * KW
    if failsafe_w < found.full_w:
        failsafe = (
            f"from {kw(found.full_w)} to failsafe {kw(failsafe_w)} in {span(found.failsafe_fall_s)},"
            f" back up in {span(found.failsafe_rise_s)}"
        )
    else:
        failsafe = (
            f"failsafe {kw(failsafe_w)} takes nothing: the block never draws more than {kw(found.full_w)}"
        )
    return Text(
        f"\ncan shed {kw(found.sheddable_w)}, {percent(found.sheddable_ratio)} of {kw(found.full_w)}"
        f"\n{failsafe}\n{_fallback_words(found)}\n"
    )


def _fallback_words(found: BlockFacts) -> str:
    if found.fallback_w is None:
        return "fallback_w of the nodes: no value is low enough"
    return (
        f"fallback_w of the nodes: {math.floor(found.fallback_w)} W per GPU at most, so that all agents may"
        f" be left alone at once; {found.fallback_bound} allows no more"
    )
