"""Writes and method calls, against an independent server that takes, refuses, or only pretends."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
import pytest_asyncio

from protocols.opcua import OpcUaDevice, client
from protocols.profile import ProfileError
from protocols.reading import DeviceError, WriteRule, Written
from tests.protocols.opcua.bench import PROFILE, Plant, Readings, Relay, down, watching, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

RULES = {
    "setpoint_c": WriteRule(18, 45),
    "speed_ratio": WriteRule(0.2, 0.9),
    "mode": WriteRule(0, 2),
    "enabled": WriteRule(0, 1),
    "stubborn": WriteRule(0, 10),
    "locked": WriteRule(0, 10),
    "set_flow_l_per_min": WriteRule(0, 500),
}
CALLS = {"set_flow_l_per_min": (WriteRule(-1, 500), WriteRule(0, 60))}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(node_modules, tmp_path_factory):
    async with Plant(tmp_path_factory.mktemp("plant"), trustAll=True) as plant:
        yield plant


@pytest_asyncio.fixture(loop_scope="module")
async def plant(shared):
    yield shared
    for name, value in (
        ("Cdu.Setpoint", 30),
        ("Cdu.PumpSpeedPercent", 65),
        ("Cdu.Mode", 1),
        ("Cdu.Running", True),
    ):
        await shared.say(name, value)


@contextlib.asynccontextmanager
async def commanding(url, **options):
    readings = Readings()
    async with watching(url, readings, **{"writes": RULES, "calls": CALLS, **options}) as device:
        await readings.until(whole)
        yield device


async def refusal(command):
    with pytest.raises(DeviceError) as caught:
        await command
    return str(caught.value)


async def test_a_write_goes_out_as_the_nodes_own_type_and_is_confirmed_by_reading_it_back(plant):
    async with commanding(plant.url) as device:
        assert await device.write("setpoint_c", 22.5) == Written(22.5, 30.0, confirmed=True)
        assert await plant.ask("get", name="Cdu.Setpoint") == {
            "value": 22.5,
            "type": "Float",
            "status": "Good",
        }
        assert await device.write("speed_ratio", 0.333) == Written(
            0.33, 0.65, confirmed=True
        )  # whole percents
        assert await plant.ask("get", name="Cdu.PumpSpeedPercent") == {
            "value": 33,
            "type": "Int16",
            "status": "Good",
        }
        assert await device.write("mode", 2) == Written(2.0, 1.0, confirmed=True)
        assert await plant.ask("get", name="Cdu.Mode") == {"value": 2, "type": "UInt16", "status": "Good"}
        assert await device.write("enabled", 0) == Written(0.0, 1.0, confirmed=True)
        assert await plant.ask("get", name="Cdu.Running") == {
            "value": False,
            "type": "Boolean",
            "status": "Good",
        }
        assert (await device.write("setpoint_c", 30.1)).value == pytest.approx(30.1)  # no Float is 30.1


async def test_a_node_that_cannot_be_read_back_is_written_as_its_declared_type_and_not_confirmed(plant):
    blind = {
        name: replace(PROFILE.points[name], access="w", read_back=False)
        for name in ("setpoint_c", "mode", "enabled")
    }
    profile = replace(PROFILE, points={**PROFILE.points, **blind})
    async with commanding(plant.url, profile=profile) as device:
        assert await device.write("setpoint_c", 22.5) == Written(22.5, None, confirmed=False)
        assert await plant.ask("get", name="Cdu.Setpoint") == {
            "value": 22.5,
            "type": "Float",
            "status": "Good",
        }
        await device.write("mode", 2)
        assert await plant.ask("get", name="Cdu.Mode") == {"value": 2, "type": "UInt16", "status": "Good"}
        await device.write("enabled", 0)
        assert await plant.ask("get", name="Cdu.Running") == {
            "value": False,
            "type": "Boolean",
            "status": "Good",
        }


async def test_nothing_leaves_without_a_rule_nor_outside_it(plant):
    async with commanding(plant.url) as device:
        sent = {
            "coolant_supply_c: read-only by its profile": device.write("coolant_supply_c", 1),
            "setpoint_c: 17 is outside 18 to 45": device.write("setpoint_c", 17),
            "setpoint_c: nan is outside": device.write("setpoint_c", float("nan")),
            "mode: 1.5 is none of its states": device.write("mode", 1.5),
            "no point 'setpoint'": device.write("setpoint", 20),
            "heat_w: no method": device.call("heat_w"),
            "argument 1: 900 is outside -1 to 500": device.call("set_flow_l_per_min", 900, 1),
            "1 arguments, its rule names 2": device.call("set_flow_l_per_min", 100),
        }
        for sentence, command in sent.items():
            told = await refusal(command)
            assert sentence in told
            assert "nothing was sent" in told or "no point" in told
        assert (await plant.ask("get", name="Cdu.Setpoint"))["value"] == 30
    async with commanding(plant.url, writes={}, calls={}) as device:
        assert "no rule allows to write it" in await refusal(device.write("setpoint_c", 20))
        assert "no rule allows to call it" in await refusal(device.call("set_flow_l_per_min", 1, 1))
        assert "no rule allows to write it" in await refusal(device.write("set_flow_l_per_min", 1))
    with pytest.raises(ProfileError, match="no point 'setpiont_c'"):
        OpcUaDevice(
            "cdu",
            plant.url,
            PROFILE,
            on_reading=print,
            clock=lambda: 0.0,
            writes={"setpiont_c": WriteRule(0, 1)},
        )


async def test_a_rate_is_kept_from_the_value_that_the_device_shows(plant):
    now_s = 100.0
    rules = {"setpoint_c": WriteRule(18, 45, rate_per_s=1.0)}
    async with commanding(plant.url, writes=rules, clock=lambda: now_s) as device:
        assert "ramp it" in await refusal(device.write("setpoint_c", 32))
        await device.write("setpoint_c", 31)
        now_s += 0.5
        assert "0.5 now" in await refusal(device.write("setpoint_c", 32))
        await device.write("setpoint_c", 31.5)


async def test_a_device_that_says_yes_and_does_nothing_is_found_out(plant):
    async with commanding(plant.url) as device:
        told = await refusal(device.write("stubborn", 5))
        assert "told 5.0 and taken, but it shows 1.0 count: is the device in local mode" in told


async def test_a_refusal_of_the_server_is_said_in_its_words_and_ours(plant):
    async with commanding(plant.url) as device:
        assert "locked: refused: BadNotWritable: the server does not let it be written" in await refusal(
            device.write("locked", 5)
        )
        assert "refused: BadOutOfRange" in await refusal(device.call("set_flow_l_per_min", -1, 5))


async def test_a_method_is_called_with_its_own_types_and_answers(plant):
    async with commanding(plant.url) as device:
        assert await device.call("set_flow_l_per_min", 300, 10) == (150.0,)
        assert (await plant.ask("calls"))[-1] == [["Float", 300], ["UInt16", 10]]
        told = await refusal(device.call("set_flow_l_per_min", 300, 10.5))
        assert "the method wants a UInt16, not 10.5; nothing was sent" in told
        told = await refusal(device.write("set_flow_l_per_min", 300))  # by its one value, as profiles do
        assert "the method takes 2 arguments, not 1; nothing was sent" in told


async def test_of_writes_that_wait_the_newest_counts(plant):
    async with Relay(plant.port, delay_s=0.05) as relay, commanding(relay.url, silence_max_s=5) as device:
        first = asyncio.create_task(device.write("setpoint_c", 20, wait_max_s=10))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(device.write("setpoint_c", 21, wait_max_s=10))
        await asyncio.sleep(0)
        third = asyncio.create_task(device.write("setpoint_c", 22, wait_max_s=10))
        assert (await first).value == 20.0
        assert "replaced by a newer write; nothing was sent" in await refusal(second)
        assert (await third).value == 22.0
        assert (await plant.ask("get", name="Cdu.Setpoint"))["value"] == 22


async def test_a_write_has_a_deadline_and_says_what_is_known(plant):
    async with Relay(plant.port) as relay, commanding(relay.url, silence_max_s=10) as device:
        relay.frozen = True
        told = await refusal(device.write("setpoint_c", 20, wait_max_s=0.3))
        assert "not confirmed within 0.3 s; it may be in force or not" in told


async def test_without_a_connection_a_write_fails_at_once(plant, monkeypatch):
    monkeypatch.setattr(client, "CONNECT_WAIT_MAX_S", 1.0)
    readings = Readings()
    async with watching("opc.tcp://127.0.0.1:1", readings, writes=RULES) as device:
        await readings.until(down)
        assert "not connected; nothing was sent" in await refusal(device.write("setpoint_c", 20))
