"""Whoever has no role changes nothing, whichever way they come: one real command desk behind all protocols."""

import asyncio
import contextlib
import json
import stat
import struct
import time

import msgspec
import pytest
from asyncua import ua
from test_facility_modbus import Master
from test_facility_modbus_tls import Authority, ask, secured

from controller.agent.config import MqttConfig
from controller.commands import CommandDesk
from controller.facility.config import BmsConfig
from controller.facility.dsx_bms import publisher as bms
from controller.facility.dsx_bms.publisher import BmsPublisher
from controller.facility.modbus.registers import ANSWER_AT, NATIVE_UNIT, REQUEST_AT, SUNSPEC_UNIT, pages
from controller.facility.modbus.sunspec import WRITABLE, layout
from controller.image import wire
from controller.image.block import FACILITY
from controller.image.model import Command, Outcome, Result, Role
from controller.site.facility import Facility
from controller.verbs import VERBS
from protocols.reading import Written
from tests.brokers import Mosquitto, needs_mosquitto, open_folder, running, speaker, until
from tests.controller.facility.facility_feed import Plant, served
from tests.controller.facility.modbus_site import serving
from tests.controller.facility.opcua_site import GROUPS as PLANT_GROUPS
from tests.controller.facility.opcua_site import Site
from tests.core.blocks import settings

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

GROUPS = (*PLANT_GROUPS, FACILITY)
SOON_S = 20.0
ARGUMENTS = {
    "set_power_limit": {"limit_w": 5000.0},
    "set_mode": {"mode": "off"},
    "write": {"device": "pdu-1", "point": "flow_target", "value": 120.0},
    "withdraw": {"device": "pdu-1"},
    "shelve": {"key": "meter", "for_s": 60.0},
    "out_of_service": {"key": "meter"},
}


class Desk:
    """A real desk; `done` is everything that it has changed."""

    def __init__(self, folder):
        self.done = []
        self.facility = Facility(1000.0)
        self.desk = CommandDesk(
            folder,
            write=self._write,
            withdraw=self._withdraw,
            alarms=self,
            facility=self.facility,
            settings=settings(),
            on_moved=lambda: self.done.append("moved"),
            clock=(time.monotonic, time.time),
        )

    async def _withdraw(self, device, _wait_max_s):
        self.done.append(("withdrew", device))

    async def _write(self, device, point, value, _wait_max_s):
        self.done.append(("wrote", device, point, value))
        return Written(value, 0.0, confirmed=True)

    def command(self, verb, by, **arguments):
        self.done.append((verb, by, arguments))
        return Outcome(result=Result.ACCEPTED)

    async def carry_out(self, command):
        return await self.desk.carry_out(command)


# ---- the ways in, each tried with everything that it has; they yield how often they were refused ----


async def _over_opcua(site, user):
    refused = 0
    async with site.client(user) as client:
        value = ua.DataValue(ua.Variant(120.0))
        for id_ in ("devices/pdu-1/flow_target", "devices/pdu-1/stage", "block/power_w"):
            asked = ua.WriteValue(ua.NodeId(id_, 2), ua.AttributeIds.Value, Value=value)
            (status,) = await client.uaclient.write(ua.WriteParameters([asked]))
            refused += not status.is_good()
        for node in await client.get_node(ua.NodeId("Control", 2)).get_methods():
            inputs = [ua.Variant(1.0)] * 6
            asked = ua.CallMethodRequest(ua.NodeId("Control", 2), node.nodeid, inputs)
            refused += not (await client.uaclient.call([asked]))[0].StatusCode.is_good()
    return refused


async def opcua_observer(plant, _folder, site):
    return await _over_opcua(site, "eyes")


async def opcua_anonymous(plant, _folder, site):
    return await _over_opcua(site, None)


def _writes():
    """(unit, request) for whatever a Modbus master may write somewhere."""
    places = [(SUNSPEC_UNIT, field.at) for field in layout() if (field.model, field.name) in WRITABLE]
    places += [(NATIVE_UNIT, address) for address in range(REQUEST_AT, ANSWER_AT)]
    places += [
        (page.unit_id, page.first + record.at)
        for page in pages(GROUPS)
        for record in page.records
        if record.point.writable
    ]
    for unit, address in places:
        yield unit, struct.pack(">BHH", 6, address, 1)
        yield unit, struct.pack(">BHHBH", 16, address, 1, 2, 1)
        yield unit, struct.pack(">BHHB2H", 16, address, 2, 4, 0x42F0, 0)
        yield unit, struct.pack(">BHHH", 22, address, 0, 1)
        yield unit, struct.pack(">BHHHHBH", 23, address, 1, address, 1, 2, 1)
    for code in (5, 15):
        yield NATIVE_UNIT, struct.pack(">BHH", code, 0, 1) + b"\1\1"[: code // 8 * 2]


async def modbus_unlisted(plant, _folder, _site):
    refused = 0
    async with serving(plant.feed, write_allow=("127.0.0.2",), requests_per_s=100_000) as facility:
        reader, writer = await asyncio.open_connection("127.0.0.1", facility.servers[0].port)
        master = Master(reader, writer)
        for unit, request in _writes():
            refused += (await master.ask(unit, request))[0] == request[0] | 0x80
        writer.close()
    return refused


async def modbus_tls_observer(plant, folder, _site):
    ca, refused = Authority(folder), 0
    _, cert, key = ca.issue("viewer", ("observe",))
    async with secured(plant.feed, ca, write_allow=("127.0.0.0/8",)) as facility:
        for unit, request in list(_writes())[::25]:
            refused += (await ask(facility, ca, cert, key, request, unit))[0] == request[0] | 0x80
    return refused


async def modbus_tls_without_a_certificate(plant, folder, _site):
    ca, refused = Authority(folder), 0
    async with secured(plant.feed, ca, write_allow=("127.0.0.0/8",)) as facility:
        for unit, request in list(_writes())[:3]:
            try:
                await ask(facility, ca, None, None, request, unit)
            except (OSError, EOFError):
                refused += 1
    return refused


async def bms_stranger(plant, folder, _site):
    """A program that the configuration does not name, and one that is named and asks for more than it may."""
    asked = {"point": "RackLiquidIsolationRequest", "at": "racks/r1"}
    with open_folder() as broker_folder, Mosquitto(broker_folder) as broker:
        config = BmsConfig(
            mqtt=MqttConfig(url=broker.url), gap_s=0.05, integrations={"KNOWN": {"requests": (asked,)}}
        )
        publisher = BmsPublisher(config, plant.feed, block="hall-a", state_dir=folder)
        mouth = speaker(broker.url)
        async with running(mouth), served(publisher):
            await until(
                lambda: publisher._link.connected and mouth.connected and publisher._asks, within_s=SOON_S
            )
            kinds = (
                "CDU/LiquidTemperatureSpRequest",
                "Rack/RackLiquidIsolationRequest",
                "PowerMeter/CurrentLimit",
            )
            paths = (
                "devices/pdu-1/flow_target",
                "racks/r1/RackLiquidIsolationRequest",
                "devices/pdu-1/stage",
            )
            payload = json.dumps({"value": 1, "timestamp": int(time.time() * 1000), "quality": 1}).encode()
            for name in ("STRANGER", "KNOWN", "PUB"):
                for kind in kinds:
                    for path in paths:
                        mouth.publish(f"BMS/v1/{name}/Value/{kind}/hall-a/{path}", payload)
            await until(lambda: publisher.ignored >= len(kinds) * len(paths) - 1, within_s=SOON_S)
            await asyncio.sleep(3 * bms.STEP_S)
            return publisher.ignored


async def _on_the_socket(plant, *frames):
    reader, writer = await asyncio.open_unix_connection(plant.feed._path)
    refused = 0
    try:
        writer.writelines(frames)
        async with asyncio.timeout(SOON_S):
            async for body in wire.bodies(reader, wire.FRAME_MAX_BYTES):
                match wire.frame(body):
                    case wire.Done(outcome=Outcome(result=Result.REJECTED)):
                        refused += 1
                        if refused == len(frames):
                            return refused
        return len(frames)  # it was closed
    finally:
        writer.close()


async def image_socket_observer(plant, _folder, _site):
    """Each verb, by nobody and by an observer; what says nobody's role at all ends the connection."""
    assert stat.S_IMODE(plant.feed._path.stat().st_mode) & 0o007 == 0, "anybody may open the socket"
    refused = 0
    for role in (Role.NOBODY, Role.OBSERVE):
        frames = [
            wire.packed(
                Command(
                    id=number,
                    verb=verb,
                    arguments=ARGUMENTS.get(verb, {}),
                    by="x",
                    role=role,
                    via="opcua",
                    local=True,
                )
            )
            for number, verb in enumerate(VERBS, start=1)
        ]
        refused += await _on_the_socket(plant, *frames)
    for role in (-1, 4, 99, "engineer", None, 2.0, True):
        said = {
            "id": 1,
            "verb": "set_mode",
            "arguments": {"mode": "off"},
            "by": "x",
            "role": role,
            "via": "opcua",
        }
        body = msgspec.msgpack.encode(said)
        refused += await _on_the_socket(plant, len(body).to_bytes(wire.HEAD_BYTES, "big") + body)
    return refused


WAYS = {
    "OPC UA, observer": opcua_observer,
    "OPC UA, anonymous": opcua_anonymous,
    "Modbus, not on the write list": modbus_unlisted,
    "Modbus in TLS, observer": modbus_tls_observer,
    "Modbus in TLS, no certificate": modbus_tls_without_a_certificate,
    "BMS, a stranger": pytest.param(bms_stranger, marks=needs_mosquitto),
    "image socket, observer": image_socket_observer,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_nobody_without_the_role_changes_anything_over_any_protocol(way, tmp_path, monkeypatch):
    monkeypatch.setattr(bms, "STEP_S", 0.05)
    (tmp_path / "desk").mkdir()
    desk = Desk(tmp_path / "desk")
    is_opcua = way in (opcua_observer, opcua_anonymous)
    async with contextlib.AsyncExitStack() as stack:
        site = Site(tmp_path, groups=GROUPS, anonymous="observe") if is_opcua else None
        plant = site.plant if site is not None else Plant(tmp_path, GROUPS)
        plant._server._on_command = desk.carry_out
        await stack.enter_async_context(site or plant)
        for group in GROUPS:
            plant.tell(group.path, *[None if point.text else 0.0 for point in group.points])
        before = desk.facility.kept()
        refused = await way(plant, tmp_path, site)
        assert refused >= 3, "it was not even tried"
        assert desk.done == []
        assert desk.facility.kept() == before
        chief = Command(
            verb="set_mode", arguments={"mode": "local"}, by="chief", role=Role.ENGINEER, via="panel"
        )
        assert (await plant.feed.command(chief)).result is Result.ACCEPTED
        assert desk.done == ["moved"]
    desk.desk.close()
