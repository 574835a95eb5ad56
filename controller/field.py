"""The field: configured devices become supervised tasks, their readings cells of the process image.

Devices behind one address share one connection and one task. Whatever comes goes into the image as what it
is: good, doubted or missing, each with its reason. A device that answers for ever with the same bits is not
live any more, and its values are in doubt. The law's own instruments are told to the board as well: it takes
good values alone.

The other way, a write goes through the same connection, ahead of its reads, and only to points that the
configuration names.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from controller.clock import now_s, now_utc_s
from controller.core.model import NEVER_S, Measurement
from controller.gateway_config import Device, DeviceConfig, opcua_security, profile_of
from controller.image.image import ALL
from controller.image.model import WORDS_MAX, Group, Point
from controller.image.wire import Update
from protocols import profile as profiles
from protocols.modbus import ModbusLink, ModbusUnit, Transport
from protocols.opcua import OpcUaDevice
from protocols.profile import Profile
from protocols.reading import DeviceError, Reading, WriteRule, Written

STALE_POLLS: Final = {"fast": 3.0, "slow": 30.0, "once": 1e9}  # slow points come with every tenth poll
STALE_MIN_S: Final = 2.0
OPCUA_BEAT_S: Final = (1.0, 30.0)  # its poll: once per second at most, and an outage is found within two
TOLD_AGAIN_S: Final = 60.0  # in the log, while a device stays as well, or as unwell, as it was
ABSENT: Final = "the device does not have it"
PLACES_KEPT_MAX: Final = 64  # subsets of points that came together: few with polls, any with notifications

Taker = Callable[[Measurement], None]

log = structlog.get_logger(__name__)


@dataclass
class DeviceLink:
    """How a device is, for people. In doubt: it answers, and its answers are not believed."""

    name: str
    up: bool = False
    in_doubt: bool = False
    fault: str = "not heard yet"
    taken_at_s: float = field(default=NEVER_S)
    told_at_s: float = field(default=NEVER_S)  # in the log


class _Live:
    """One device: its place in the image, and who else wants its readings."""

    def __init__(self, device: Device, index: int, taker: Taker | None) -> None:
        self.device, self.index, self.taker = device, index, taker
        self.link = DeviceLink(device.name)
        self.write: Callable[[str, float, float], Awaitable[Written]] | None = None
        self.release: Callable[[float], Awaitable[None]] | None = None
        self.group = group_of(device, profile_of(device.config))
        self._places: dict[tuple[str, ...], list[int] | None] = {}

    def places(self, reading: Reading) -> list[int] | None:
        """Where its values belong; None: they are all that there are, in their order."""
        names = tuple(reading.values)
        if names not in self._places:
            if len(self._places) >= PLACES_KEPT_MAX:
                self._places.clear()
            place = {point.name: index for index, point in enumerate(self.group.points)}
            found = [place[name] for name in names]
            self._places[names] = None if found == list(range(len(place))) else found
        return self._places[names]

    def regroup(self, profile: Profile) -> Group:
        self._places.clear()
        self.group = group_of(self.device, profile)
        return self.group


class Field:
    """All devices. `runs` holds one coroutine function per connection.

    Args:
        devices: as configured.
        first: index of the first one's group in the catalogue; the others follow.
        takers: by name of a device, where measurements of the point that the law needs go.
        on_update: called with every reading, for the image.
        on_group: called when a device has told what it is, with its index.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        first: int,
        takers: Mapping[str, Taker],
        on_update: Callable[[Update], None],
        on_group: Callable[[int, Group], None],
    ) -> None:
        self._on_update, self._on_group = on_update, on_group
        self._live = {
            device.name: _Live(device, first + index, takers.get(device.name))
            for index, device in enumerate(devices)
        }
        self.runs: dict[str, Callable[[], Awaitable[None]]] = {}
        lines: defaultdict[Transport, list[_Live]] = defaultdict(list)
        for live in self._live.values():
            if live.device.config.is_opcua:
                self._open_opcua(live)
            else:
                lines[live.device.config.transport()].append(live)
        for transport, behind in lines.items():
            self._open_modbus(transport, behind)

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(live.group for live in self._live.values())

    @property
    def links(self) -> tuple[DeviceLink, ...]:
        return tuple(live.link for live in self._live.values())

    async def write(self, device: str, point: str, value: float, wait_max_s: float) -> Written:
        """Raises DeviceError: no such device or point, not permitted, refused, silent, or not confirmed."""
        live = self._live.get(device)
        if live is None or live.write is None:
            known = ", ".join(self._live) or "none"
            raise DeviceError(f"no device {device!r} here; configured are {known:.{WORDS_MAX}}")
        return await live.write(point, value, wait_max_s)

    async def release(self, device: str, wait_max_s: float) -> None:
        """Withdraw our commands to a device: it is kept by nobody any more. Raises DeviceError."""
        live = self._live.get(device)
        if live is None or live.release is None:
            known = ", ".join(self._live) or "none"
            raise DeviceError(f"no device {device!r} here; configured are {known:.{WORDS_MAX}}")
        await live.release(wait_max_s)

    # --- connections ------------------------------------------------------------------------------------

    def _open_modbus(self, transport: Transport, behind: Sequence[_Live]) -> None:
        units = [
            ModbusUnit(
                name=live.device.name,
                profile=profile_of(live.device.config),
                poll_s=live.device.config.poll_s,
                on_reading=partial(self._take, live),
                on_profile=partial(self._told, live),
                unit_id=live.device.config.unit,
                points=live.device.config.points,
                writes=write_rules(live.device.config),
            )
            for live in behind
        ]
        link = ModbusLink(transport, units, clock=now_s)
        for live in behind:
            live.write = partial(link.write, live.device.name)
            live.release = partial(link.release, live.device.name)
        self.runs[transport.where] = link.run

    def _open_opcua(self, live: _Live) -> None:
        config, profile = live.device.config, profile_of(live.device.config)
        assert profile is not None  # checked with the configuration
        client = OpcUaDevice(
            live.device.name,
            config.url,
            profile,
            on_reading=partial(self._take, live),
            clock=now_s,
            points=config.points,
            silence_max_s=2 * _beat_s(config),
            security=opcua_security(config),
            writes=write_rules(config),
        )
        live.write, live.release = client.write, client.release
        self.runs[live.device.name] = client.run

    # --- readings ---------------------------------------------------------------------------------------

    def _told(self, live: _Live, profile: Profile) -> None:
        """The device has said what it is."""
        self._on_group(live.index, live.regroup(profile))

    def _take(self, live: _Live, reading: Reading) -> None:
        frozen = _frozen(live.device.config, reading)
        doubt = frozen or reading.doubt
        if live.group.points:
            self._on_update(_update(live, reading, doubt))
        well = reading.link == "up" and not doubt
        needs = live.device.needs
        if live.taker is not None and (needs in reading.values or not well):  # others may have changed alone
            value = reading.values.get(needs)
            number = value if well and isinstance(value, float | int) else None
            live.taker(Measurement(number or 0.0, number is not None, reading.taken_at_s))
            well = number is not None
        fault = doubt or reading.fault or (f"{needs}: {ABSENT}" if needs in reading.absent else "")
        live.link.in_doubt = bool(doubt) and reading.link == "up"
        self._judge(live.link, reading, fault, well=well)

    def _judge(self, link: DeviceLink, reading: Reading, fault: str, *, well: bool) -> None:
        news = link.up != well or (link.fault != fault and reading.taken_at_s - link.told_at_s > TOLD_AGAIN_S)
        if news:
            (log.info if well else log.warning)("device", name=link.name, good=well, fault=fault[:WORDS_MAX])
            link.told_at_s = reading.taken_at_s
        link.up, link.fault = well, fault
        if reading.link == "up":
            link.taken_at_s = reading.taken_at_s


def _frozen(config: DeviceConfig, reading: Reading) -> str:
    still_s = reading.taken_at_s - reading.unchanged_since_s
    if reading.link == "down" or config.frozen_after_s is None or still_s <= config.frozen_after_s:
        return ""  # who does not answer is not frozen
    return f"answers, but no register has moved for {still_s:.0f} s: frozen? (frozen_after_s)"


def _update(live: _Live, reading: Reading, doubt: str) -> Update:
    sources = None
    if reading.source_at_utc_s:
        place = {point.name: index for index, point in enumerate(live.group.points)}
        sources = {place[name]: at_utc_s for name, at_utc_s in reading.source_at_utc_s.items()}
    return Update(
        live.index,
        list(reading.values.values()),
        reading.taken_at_s,
        now_utc_s(),
        live.places(reading),
        sources,
        _faults(live, reading),
        doubt[:WORDS_MAX],
    )


def _faults(live: _Live, reading: Reading) -> dict[int, str] | None:
    """Why values are missing."""
    if not reading.fault:
        return {ALL: ABSENT} if reading.absent else None
    faults = {ALL: reading.fault[:WORDS_MAX]}
    if reading.absent:
        faults |= {
            place: ABSENT for place, point in enumerate(live.group.points) if point.name in reading.absent
        }
    return faults


def write_rules(config: DeviceConfig) -> dict[str, WriteRule]:
    return {name: WriteRule(one.lowest, one.highest, one.rate_per_s) for name, one in config.writes.items()}


def group_of(device: Device, profile: Profile | None) -> Group:
    """A device in the catalogue; without points as long as it has not said what it is."""
    config = device.config
    points = () if profile is None else profile.select(config.points)
    about = {
        "profile": str(config.profile),  # the path of a file is a text of its own kind, which no frame takes
        "url": config.url,
        "unit": str(config.unit),
        "kind": device.kind,
        "rack": device.rack,
        "feed": device.feed,
    }
    return Group(
        path=f"devices/{device.name}",
        kind="device",
        title=config.title or ("" if profile is None else profile.title),
        about={key: value for key, value in about.items() if value},
        points=tuple(_point(config, point) for point in points),
    )


def _beat_s(config: DeviceConfig) -> float:
    """How often all of a device is read."""
    if not config.is_opcua:
        return config.poll_s
    least_s, most_s = OPCUA_BEAT_S
    return min(max(least_s, config.poll_s), most_s)


def _point(config: DeviceConfig, point: profiles.Point) -> Point:
    rule = config.writes.get(point.name)
    lowest = point.lowest if rule is None else rule.lowest
    highest = point.highest if rule is None else rule.highest
    return Point(
        name=point.name,
        unit=point.unit,
        title=point.title,
        lowest=lowest if lowest > float("-inf") else None,
        highest=highest if highest < float("inf") else None,
        states=dict(point.enum),
        bits={number: bit.name for number, bit in point.bits.items()},
        text=point.unit == "text",
        writable=rule is not None,
        deadband=point.deadband,
        stale_after_s=max(STALE_MIN_S, STALE_POLLS[point.poll] * _beat_s(config)),
    )
