"""A value that nobody renews, over every server that we have: none of them may show it as a healthy one."""

import asyncio
import contextlib
import json
import struct
import time

import pytest
from facility_feed import Plant, served

from controller.agent.config import MqttConfig
from controller.facility.config import BmsConfig, MirrorConfig, ModbusServerConfig, PrometheusConfig
from controller.facility.dsx_bms.publisher import BmsPublisher
from controller.facility.mirror.publisher import Mirror
from controller.facility.modbus.registers import HEADER_WORDS, pages
from controller.facility.modbus.server import ModbusFacility
from controller.facility.modbus.sunspec import METER, layout
from controller.facility.prometheus import Prometheus
from controller.image.model import Group, Point, Quality
from protocols.modbus.answer import Peer
from tests.brokers import Mosquitto, listener, needs_mosquitto, open_folder, running, until

STALE_AFTER_S = 1.0
SOON_S = 20.0
GROUP = Group(
    path="devices/meter",
    kind="device",
    about={"kind": "meter"},
    points=(Point(name="power_w", unit="W", stale_after_s=STALE_AFTER_S),),
)
SOMEBODY = Peer(address="127.0.0.1", name="somebody")
NO_INTEGER = -0x8000


@contextlib.asynccontextmanager
async def native_registers(plant, _folder):
    """What each of these yields: a function that says the value, or None where it is not called good."""
    config = ModbusServerConfig(port=0, allow=("127.0.0.1",))
    facility = ModbusFacility(config, plant.feed, version="1", now_s=time.monotonic)
    (page,) = pages([GROUP])

    async def said():
        high, low, quality, _age = facility.read(
            "holding", page.unit_id, page.first + HEADER_WORDS, 4, SOMEBODY
        )
        return struct.unpack(">f", struct.pack(">2H", high, low))[0] if quality == Quality.GOOD else None

    yield said


@contextlib.asynccontextmanager
async def sunspec_meter(plant, _folder):
    config = ModbusServerConfig(port=0, allow=("127.0.0.1",))
    facility = ModbusFacility(config, plant.feed, version="1", now_s=time.monotonic)
    (field,) = [field for field in layout() if (field.model, field.name) == (METER, "W")]

    async def said():
        words = facility.read("holding", 1, field.at, field.words, SOMEBODY)
        value = struct.unpack(f">{field.code}", struct.pack(f">{field.words}H", *words))[0]
        return None if value == NO_INTEGER or value != value else value

    yield said


@contextlib.asynccontextmanager
async def metrics(plant, _folder):
    aiohttp = pytest.importorskip("aiohttp")
    server = Prometheus(PrometheusConfig(port=0), plant.feed)

    async def said():
        url = f"http://127.0.0.1:{server.port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            lines = (await answer.text()).splitlines()
        good = [line for line in lines if line.startswith("powerblock_quality{") and line.endswith(" 2")]
        power = [
            float(line.rpartition(" ")[2]) for line in lines if line.startswith("powerblock_power_watts{")
        ]
        return power[0] if good and power else None

    async with served(server):
        await until(lambda: server.port != 0, within_s=SOON_S)
        yield said


def newest(heard, topic):
    return [json.loads(payload) for one, payload, _ in heard if one == topic and payload][-1:]


@contextlib.asynccontextmanager
async def bms_bus(plant, folder):
    with open_folder() as broker_folder, Mosquitto(broker_folder) as broker:
        config = BmsConfig(mqtt=MqttConfig(url=broker.url), gap_s=0.05)
        publisher = BmsPublisher(config, plant.feed, block="hall-a", state_dir=folder)
        ear, heard = listener(broker.url, "BMS/#")

        async def said():
            told = newest(heard, "BMS/v1/PUB/Value/PowerMeter/ActivePower/hall-a/devices/meter/power_w")
            return told[0]["value"] * 1000 if told and told[0]["quality"] == 1 else None

        async with running(ear):
            await until(lambda: ear.connected, within_s=SOON_S)
            async with served(publisher):
                yield said


@contextlib.asynccontextmanager
async def mirror(plant, folder):
    with open_folder() as broker_folder, Mosquitto(broker_folder) as broker:
        config = MirrorConfig(mqtt=MqttConfig(url=broker.url))
        made = Mirror(config, plant.feed, block="hall-a", state_dir=folder)
        ear, heard = listener(broker.url, "points/#")

        async def said():
            told = newest(heard, "points/hall-a/devices/meter")
            good = bool(told) and told[0].keys() == {"at", "values", "age_s"}
            return told[0]["values"].get("power_w") if good else None

        async with running(ear):
            await until(lambda: ear.connected, within_s=SOON_S)
            async with served(made):
                await until(lambda: made._link.connected, within_s=SOON_S)
                yield said


SERVERS = {
    "native registers": native_registers,
    "SunSpec meter": sunspec_meter,
    "metrics": metrics,
    "BMS bus": pytest.param(bms_bus, marks=needs_mosquitto),
    "mirror": pytest.param(mirror, marks=needs_mosquitto),
}


OURS = {name: SERVERS[name] for name in ("metrics", "BMS bus", "mirror")}


@pytest.mark.parametrize("server", OURS.values(), ids=OURS)
async def test_a_dead_controllers_fresh_values_are_healthy_over_no_server_until_it_lives_again(
    server, tmp_path
):
    lasting = Group(
        path=GROUP.path, kind="device", about=GROUP.about, points=(Point(name="power_w", unit="W"),)
    )
    async with Plant(tmp_path, [lasting]) as plant, server(plant, tmp_path) as said:

        async def shows(wanted):
            deadline_s = time.monotonic() + SOON_S
            while (told := await said()) != wanted:
                assert time.monotonic() < deadline_s, f"{told!r} is shown, {wanted!r} would be right"
                await asyncio.sleep(0.02)

        plant.tell("devices/meter", 5000.0)
        await shows(5000.0)
        await plant.die()
        await shows(None)
        await plant.live_again()
        plant.tell("devices/meter", 5000.0)
        await shows(5000.0)


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_p15_a_value_that_nobody_renews_is_healthy_over_no_server(server, tmp_path):
    """Over OPC UA: `test_p15_a_silent_devices_value_turns_bad_by_itself`."""
    async with Plant(tmp_path, [GROUP]) as plant, server(plant, tmp_path) as said:

        async def shows(wanted):
            deadline_s = time.monotonic() + SOON_S
            while (told := await said()) != wanted:
                assert time.monotonic() < deadline_s, f"{told!r} is shown, {wanted!r} would be right"
                if wanted:
                    plant.tell("devices/meter", wanted)
                await asyncio.sleep(0.02)

        await shows(5000.0)
        await shows(None)
        plant.tell("devices/meter", 5000.0, doubt="frozen?")
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert await said() is None, "a doubted value is shown as a good one"
