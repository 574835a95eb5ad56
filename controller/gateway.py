"""What a block has with and without GPUs: field devices, the process image, alarms, commands of others.

    devices --readings--> Field --updates--> image --socket--> facility server (OPC UA, Modbus, DSX, metrics)
    facility server, panel --commands--> CommandDesk --> field devices, alarms, the facility's power limit

With a law beside it, the controller composes it in; without one, `GatewayService` is the whole daemon.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from controller.alarms import AlarmDesk, AlarmSettings
from controller.alarms.points import SEVERITIES, Flag, PointRules, Rule, Threshold
from controller.clock import now_s, now_utc_s
from controller.commands import CommandDesk
from controller.config import BlockConfig, GatewayConfig, devices, settings_of
from controller.core.model import Settings
from controller.field import Field, Taker, group_of
from controller.gateway_config import Device, profile_of
from controller.image.block import FACILITY, BlockPoints
from controller.image.image import GroupCells, Image
from controller.image.model import AlarmView, Command, Group, Outcome, Value
from controller.image.server import ImageServer
from controller.image.wire import SOCKET_NAME, Update
from controller.site.config import DsxFlexConfig
from controller.site.facility import Facility
from controller.site.policy import block_w
from controller.verbs import MODES
from protocols.profile import Point

FACILITY_INDEX: Final = 0
FIRST_OWN: Final = 1  # groups of the law begin here, those of devices follow


def block_points(config: BlockConfig) -> BlockPoints:
    """The law's own groups."""
    settings = settings_of(config)
    feeds = next((dict(one.feeds) for one in config.site.sources if isinstance(one, DsxFlexConfig)), {})
    names = [source.name for source in config.site.sources]
    return BlockPoints(
        settings, block_w(settings, settings.topology.gpu_min_w), names, feeds, first=FIRST_OWN
    )


def catalogue(config: GatewayConfig | BlockConfig) -> list[Group]:
    """All groups, as a controller that has just started tells them: of SunSpec devices not yet the points."""
    own = block_points(config).groups if isinstance(config, BlockConfig) else []
    return [FACILITY, *own, *(group_of(device, profile_of(device.config)) for device in devices(config))]


class Gateway:
    """Field, image, alarms and commands of one block.

    Args:
        config: of the block.
        epoch: number of this start.
        groups: the law's own, if there is one.
        takers: by device, where measurements for the law go.
        facility: limits that operators set, and the switch.
        settings: of the law; None: there is none.
        on_moved: called when the facility asks for another power; why that is not on disk, or "".
    """

    def __init__(
        self,
        config: GatewayConfig | BlockConfig,
        *,
        epoch: int,
        groups: Sequence[Group] = (),
        takers: Mapping[str, Taker],
        facility: Facility,
        settings: Settings | None,
        on_moved: Callable[[], str],
    ) -> None:
        self._facility = facility
        self._instruments = frozenset(takers)  # the law has alarms of its own for those
        self.field = Field(
            devices(config),
            first=FIRST_OWN + len(groups),
            takers=takers,
            on_update=self._on_reading,
            on_group=self._on_group,
        )
        image = Image([FACILITY, *groups, *self.field.groups])
        self.image = ImageServer(
            config.run_dir / SOCKET_NAME,
            image,
            block=config.block,
            epoch=epoch,
            on_command=self._carry_out,
            now_s=now_s,
        )
        self._rules = PointRules(point_rules(devices(config)))
        self._conditions_held: Mapping[str, str] = {}
        self._judged: dict[
            int, list[tuple[str, int]]
        ] = {}  # by group: address and place of points with rules
        for index, cells in enumerate(image.groups):
            self._watch(index, cells)
        self.alarms = AlarmDesk(config.state_dir, AlarmSettings(own=self._rules.entries()))
        self.commands = CommandDesk(
            config.state_dir,
            write=self.field.write,
            withdraw=self.field.release,
            alarms=self.alarms,
            facility=facility,
            settings=settings,
            on_moved=on_moved,
            clock=(now_s, now_utc_s),
        )

    def runs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {**self.field.runs, "image": self.image.run}

    def update(self, update: Update) -> None:
        """New values of a group."""
        self.image.update(update)

    def tell(self, conditions: Iterable[tuple[str, str]]) -> tuple[AlarmView, ...]:
        """A few times a second: what is wrong, by key and text. Returns the alarms that this makes."""
        at_s, at_utc_s = now_s(), now_utc_s()
        self.alarms.update([*conditions, *self._conditions()], at_s, at_utc_s)
        alarms = self.alarms.view()
        self.image.alarms(alarms)
        self.update(Update(FACILITY_INDEX, self._row(alarms), at_s, at_utc_s))
        return alarms

    def links(self) -> Iterator[dict[str, Any]]:
        """Connections, for the status."""
        at_s = now_s()
        for link in self.field.links:
            age_s = at_s - link.taken_at_s if link.taken_at_s > 0.0 else None
            yield {
                "name": link.name,
                "up": link.up,
                "in_doubt": link.in_doubt,
                "fault": link.fault,
                "age_s": age_s,
            }

    def told(self) -> dict[str, Any]:
        """The facility's part of the status: power limits as slots, and who calls a level of shedding."""
        facility, at_s = self._facility, now_s()
        calls = [
            {
                "writer": slot.writer,
                "level": slot.shed_level,
                "remaining_s": facility.remaining_s(slot, at_s),
                "counts": number == 0,
            }
            for number, slot in enumerate(facility.calls)
        ]
        slots = [
            {
                "writer": slot.writer,
                "priority": slot.priority,
                "limit_w": slot.limit_w,
                "then_w": slot.then_w,
                "remaining_s": facility.remaining_s(slot, at_s),
                "heartbeat_timeout_s": slot.heartbeat_timeout_s,
                "ramp_w_per_s": None if slot.ramp is None else slot.ramp.down_w_per_s,
                "over": slot.is_over,
                "counts": number == 0,
            }
            for number, slot in enumerate(facility.limits)
        ]
        return {"mode": facility.mode, "limit_w": facility.limit_w, "slots": slots, "calls": calls}

    def close(self) -> None:
        self.commands.close()
        self.alarms.close()

    async def _carry_out(self, command: Command) -> Outcome:
        return await self.commands.carry_out(command)

    # --- what comes from the field ----------------------------------------------------------------------

    def _on_reading(self, update: Update) -> None:
        self.image.update(update)
        judged = self._judged.get(update.group)
        if judged and not update.doubt:
            values = self.image.cells(update.group).values
            changed = {address: _number(values[place]) for address, place in judged}
            self._conditions_held = self._rules.judged(self._conditions_held, changed)

    def _on_group(self, index: int, group: Group) -> None:
        """A device has told what it is."""
        self.image.regroup(index, group)
        self._watch(index, self.image.cells(index))

    def _watch(self, index: int, cells: GroupCells) -> None:
        path = cells.group.path
        found = [(f"{path}/{name}", place) for name, place in cells.places.items()]
        self._judged[index] = [one for one in found if one[0] in self._rules.points]

    def _conditions(self) -> Iterator[tuple[str, str]]:
        """What is wrong here."""
        yield from self._conditions_held.items()
        yield from self.commands.conditions(now_s())
        for link in self.field.links:
            if not link.up and link.name not in self._instruments:
                yield f"device {link.name}", link.fault

    def _row(self, alarms: Sequence[AlarmView]) -> list[Value]:
        facility = self._facility
        slot = facility.limits[0] if facility.limits else None
        return [
            float(MODES.index(facility.mode)),
            facility.limit_w,
            None if slot is None else float(slot.priority),
            None if slot is None else facility.remaining_s(slot, now_s()),
            "" if slot is None else slot.writer,
            float(sum(alarm.active for alarm in alarms if not is_hidden(alarm))),
            float(sum(not alarm.acknowledged for alarm in alarms if not is_hidden(alarm))),
            msgspec.json.encode(self.told()["slots"]).decode(),
        ]


def point_rules(configured: Iterable[Device]) -> Iterator[Rule]:
    """Limits that the configuration sets, and flags by which devices report something themselves."""
    for device in configured:
        path = f"devices/{device.name}"
        profile = profile_of(device.config)
        for name, limits in device.config.alarms.items():
            for level, limit in limits.levels().items():
                yield Threshold(
                    point=f"{path}/{name}",
                    level=level,
                    limit=limit,
                    unit="" if profile is None else profile.points[name].unit,
                    deadband=limits.deadband,
                    on_delay_s=limits.on_delay_s,
                    off_delay_s=limits.off_delay_s,
                    response=limits.response,
                )
        if profile is not None:
            yield from _flags(path, profile.select(device.config.points))


def _flags(path: str, points: Iterable[Point]) -> Iterator[Rule]:
    for point in points:
        for number, bit in point.bits.items():
            if bit.severity in SEVERITIES:
                yield Flag(
                    point=f"{path}/{point.name}",
                    bit=number,
                    name=bit.name,
                    active=bit.active,
                    severity=bit.severity,
                    latching=bit.latched,
                )


def is_hidden(alarm: AlarmView) -> bool:
    """Shelved, or out of service."""
    return alarm.out_of_service or alarm.shelved_until_utc_s is not None


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, float | int) else None
