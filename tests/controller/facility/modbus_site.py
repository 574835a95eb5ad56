"""A block as its Modbus masters see it: an image with a meter, a desk that takes commands, a server."""

import asyncio
import contextlib
import json
import time

import msgspec

from controller.facility.config import ModbusServerConfig
from controller.facility.modbus.server import ModbusFacility
from controller.image.image import Image
from controller.image.model import Command, Group, Outcome, Point, Result
from controller.image.wire import Update
from controller.verbs import VERBS

RATING_W = 14_000.0

BLOCK = Group(
    path="block",
    kind="block",
    about={"feed_rating_w": f"{RATING_W:g}"},
    points=(
        Point(name="power_w", unit="W"),
        Point(name="limit_w", unit="W"),
        Point(name="budget_w", unit="W"),
        Point(name="shortfall_w", unit="W"),
        Point(name="least_w", unit="W"),
        Point(name="limit_source", text=True),
    ),
)
FACILITY = Group(
    path="facility",
    kind="facility",
    points=(
        Point(name="mode", states={0: "remote", 1: "local", 2: "off"}),
        Point(name="limit_w", unit="W"),
        Point(name="priority"),
        Point(name="remaining_s", unit="s"),
        Point(name="by", text=True),
        Point(name="alarms_active"),
        Point(name="alarms_unacknowledged"),
        Point(name="slots", text=True),
    ),
)
METER = Group(
    path="devices/meter",
    kind="device",
    points=(
        Point(name="power_w", unit="W"),
        Point(name="frequency_hz", unit="Hz"),
        Point(name="voltage_l1_v", unit="V"),
        Point(name="state", states={0: "off", 1: "on"}),
        Point(name="flags", bits={0: "leak", 31: "fire"}),
        Point(name="serial", text=True),
        Point(name="setpoint_c", unit="degC", writable=True),
    ),
)
RACK = Group(path="racks/r1", kind="rack", points=(Point(name="power_w", unit="W"),))
GROUPS = (BLOCK, FACILITY, RACK, METER)
VALUES = {
    "block": [9000.0, 12_000.0, 11_900.0, 0.0, 4000.0, "grid operator"],
    "facility": [0.0, None, None, None, None, 2.0, 1.0, "[]"],
    "racks/r1": [4500.0],
    "devices/meter": [9001.5, 50.02, 230.5, 1.0, float(1 << 31 | 1), "SN-17", 18.0],
}


class Site:
    """What `ImageFeed` is to the server. `command` answers with `outcomes` by verb, else accepts."""

    def __init__(self, groups=GROUPS) -> None:
        self.image = Image(groups)
        self.alive = True
        self.block = "hall-a"
        self.commands: list[Command] = []
        self.outcomes: dict[str, Outcome] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        for group in groups:
            self.tell(group.path, VALUES[group.path])

    def tell(self, path, values, doubt="", taken_at_s=None):
        index = self.image.index(path)
        now_s = time.monotonic() if taken_at_s is None else taken_at_s
        self.image.take(Update(index, list(values), now_s, time.time(), doubt=doubt))

    def put(self, path, **points):
        """Some values of a group."""
        cells = self.image.groups[self.image.index(path)]
        places = [cells.places[name] for name in points]
        self.image.take(
            Update(self.image.index(path), list(points.values()), time.monotonic(), time.time(), places)
        )

    async def command(self, command):
        """Checks role and arguments as the controller's desk does."""
        await self.gate.wait()
        self.commands.append(command)
        verb = VERBS[command.verb]
        try:
            arguments = msgspec.convert(command.arguments, verb.arguments)
        except msgspec.ValidationError as error:
            return Outcome(result=Result.REJECTED, reason=str(error))
        if command.role < verb.role:
            return Outcome(result=Result.REJECTED, reason=f"{command.verb} needs {verb.role.name.lower()}")
        if command.verb in self.outcomes:
            return self.outcomes[command.verb]
        return Outcome(result=Result.ACCEPTED, value=getattr(arguments, "limit_w", None))

    def holds(self, **slot):
        """The controller says that a limit stands, SunSpec's unless said otherwise."""
        told = {"writer": "sunspec registers", "priority": 8, "then_w": None, "over": False, **slot}
        self.put("facility", slots=json.dumps([told]))

    @property
    def asked(self):
        """Verb and arguments of all commands so far."""
        return [(command.verb, command.arguments) for command in self.commands]


def config(**changes):
    return ModbusServerConfig(
        **{"port": 0, "allow": ("127.0.0.0/8",), "write_allow": ("127.0.0.0/8",), **changes}
    )


@contextlib.asynccontextmanager
async def serving(site, now_s=time.monotonic, state_dir=None, **changes):
    facility = ModbusFacility(config(**changes), site, version="1.2.3", now_s=now_s, state_dir=state_dir)
    task = asyncio.create_task(facility.run())
    for server in facility.servers:
        await server.listening.wait()
    try:
        yield facility
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
