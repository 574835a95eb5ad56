"""The OPC UA client against a real server that starts, stops, freezes and lacks what was promised."""

import asyncio
import contextlib
import itertools
import math
from dataclasses import replace

import pytest
import pytest_asyncio
from asyncua import Server, ua

from protocols.opcua import OpcUaDevice
from protocols.profile import ProfileError, load_profile
from tests.brokers import free_port
from tests.protocols.opcua import bench
from tests.protocols.opcua.bench import Readings, Relay, healthy, whole

PROFILE = load_profile("opcua_cdu")
VALUES = {
    "Cdu.CoolantSupply": 32.0,
    "Cdu.CoolantReturn": 44.5,
    "Cdu.Flow": 1200.0,
    "Cdu.HeatKw": 812.5,
    "Cdu.CapacityKw": 1500.0,
    "Cdu.PumpSpeedPercent": 65.0,
    "Cdu.Running": True,
    "Cdu.Name": "north",
}
SILENCE_MAX_S = 0.6
pytestmark = pytest.mark.asyncio(
    loop_scope="module"
)  # a server takes a second to build: most tests share one


class Cdu:
    """An asyncua server with the tree of the template profile; `extra` namespaces shift the index."""

    def __init__(self, port, extra=()):
        self.url, self.port, self.extra = f"opc.tcp://127.0.0.1:{port}", port, extra

    async def __aenter__(self):
        self.server = Server()
        await self.server.init()
        self.server.set_endpoint(self.url)
        self.server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        for uri in self.extra:
            await self.server.register_namespace(uri)
        index = await self.server.register_namespace("urn:powerblock:cdu")
        self.nodes = {
            name: await self.server.nodes.objects.add_variable(ua.NodeId(name, index), name, value)
            for name, value in VALUES.items()
        }
        await self.server.start()
        return self

    async def __aexit__(self, *_):
        await self.server.stop()

    async def say(self, name, value, status=ua.StatusCodes.Good):
        code = ua.StatusCode(status)
        await self.nodes[name].write_value(ua.DataValue(ua.Variant(value), StatusCode=code))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared():
    async with Cdu(free_port(), extra=("urn:vendor:first", "urn:vendor:second")) as cdu:
        yield cdu


@pytest_asyncio.fixture(loop_scope="module")
async def cdu(shared):
    """The shared server with all values as they should be."""
    for name, value in VALUES.items():
        await shared.say(name, value)
    return shared


@contextlib.asynccontextmanager
async def watching(url, readings, **options):
    """With a clock that counts how often it is read."""
    ticks = itertools.count(1)
    options = {
        "profile": PROFILE,
        "silence_max_s": SILENCE_MAX_S,
        "clock": lambda: float(next(ticks)),
    } | options
    async with bench.watching(url, readings, **options) as device:
        yield device


async def test_values_arrive_in_the_units_of_the_house_and_changes_come_at_once(cdu):
    readings = Readings()
    async with watching(cdu.url, readings, silence_max_s=20):
        first = await readings.until()
        assert healthy(first)
        assert first.values == pytest.approx({
            "coolant_supply_c": 32.0, "coolant_return_c": 44.5, "flow_l_per_min": 1200.0,
            "heat_w": 812_500.0, "capacity_w": 1_500_000.0, "pump_speed_ratio": 0.65, "running": 1.0,
        })  # fmt: skip
        await asyncio.sleep(0.5)  # the subscription's own first notifications are over
        await cdu.say("Cdu.HeatKw", 900.0)
        changed = await readings.until(lambda r: r.values.get("heat_w") == 900_000.0, within_s=5.0)
        assert changed.values.keys() == {"heat_w"}  # and nothing that did not change
        assert changed.unchanged_since_s == changed.taken_at_s > first.taken_at_s


async def test_a_server_at_rest_is_still_read_every_beat_and_shows_its_last_change(cdu):
    readings = Readings()
    async with watching(cdu.url, readings):
        first = await readings.until()
        for _ in range(3):
            await readings.until(whole)
        assert readings[-1].taken_at_s > first.taken_at_s
        assert readings[-1].unchanged_since_s == first.taken_at_s


async def test_a_missing_node_a_text_and_an_unknown_namespace_are_their_own_fault_and_nobody_elses(cdu):
    strange = {
        "flow_l_per_min": "nsu=urn:powerblock:cdu;s=Cdu.NoSuchNode",
        "capacity_w": "nsu=urn:powerblock:cdu;s=Cdu.Name",
        "running": "nsu=urn:elsewhere;s=Running",
    }
    points = {
        name: replace(point, node=strange.get(name, point.node)) for name, point in PROFILE.points.items()
    }
    profile = replace(PROFILE, points=points)
    readings = Readings()
    async with watching(cdu.url, readings, profile=profile, silence_max_s=20):
        reading = await readings.until()
        assert reading.values["flow_l_per_min"] is None
        assert reading.values["heat_w"] == 812_500.0
        assert reading.values["capacity_w"] is reading.values["running"] is None
        assert "running: the server has no namespace urn:elsewhere" in reading.fault
        assert "flow_l_per_min: BadNodeIdUnknown" in reading.fault
        assert "capacity_w: a str where a number belongs" in reading.fault
        await asyncio.sleep(0.5)
        await cdu.say("Cdu.HeatKw", 1.0)  # and the others are still subscribed
        await readings.until(lambda r: r.values.get("heat_w") == 1000.0, within_s=5.0)


async def test_only_a_good_plausible_number_is_a_value(cdu):
    lies = [
        (1200.0, ua.StatusCodes.BadSensorFailure, "BadSensorFailure"),
        (1200.0, ua.StatusCodes.UncertainLastUsableValue, "UncertainLastUsableValue"),
        (math.nan, ua.StatusCodes.Good, "nan is implausible"),
        (1e9, ua.StatusCodes.Good, "1000000000.0 is implausible; expected 0.0 to 20000.0 L/min"),
    ]
    readings = Readings()
    async with watching(cdu.url, readings):
        await readings.until(healthy)
        for value, status, sentence in lies:
            await cdu.say("Cdu.Flow", value, status)
            await readings.until(lambda r, s=sentence: f"flow_l_per_min: {s}" in r.fault)
            assert readings.now["flow_l_per_min"] is None
            assert readings.now["heat_w"] == 812_500.0
        await cdu.say("Cdu.Flow", 1.0, ua.StatusCodes.GoodLocalOverride)
        await readings.until(lambda r: r.values.get("flow_l_per_min") == 1.0)


async def test_a_server_that_stops_is_reported_and_found_again_with_its_subscription():
    port = free_port()
    readings = Readings()
    async with watching(f"opc.tcp://127.0.0.1:{port}", readings):
        absent = await readings.until()
        assert (absent.link, set(absent.values.values())) == ("down", {None})
        assert f"opc.tcp://127.0.0.1:{port}" in absent.fault
        async with Cdu(port) as cdu:
            await readings.until(healthy)
            await asyncio.sleep(0.5)
            await cdu.say("Cdu.HeatKw", 1.0)
            await readings.until(lambda r: r.values == {"heat_w": 1000.0})
        gone = await readings.until(lambda r: r.link == "down")
        assert set(gone.values.values()) == {None}


async def test_a_server_that_freezes_is_found_within_the_silence_allowed(cdu):
    async with Relay(cdu.port) as relay:
        readings = Readings()
        loop = asyncio.get_running_loop()
        async with watching(relay.url, readings):
            await readings.until(healthy)
            relay.frozen = True
            frozen_at_s = loop.time()
            await readings.until(lambda r: r.link == "down")
            assert loop.time() - frozen_at_s < SILENCE_MAX_S + 0.6  # the machine may be busy
            relay.frozen = False
            await readings.until(healthy)


async def test_an_end_that_is_asked_for_comes_at_any_moment(cdu):
    """The library swallows a cancellation that meets it taking leave, and would then go on for ever."""
    for step in range(24):
        readings = Readings()
        device = OpcUaDevice("cdu", cdu.url, PROFILE, on_reading=readings.put, clock=lambda: 0.0)
        task = asyncio.create_task(device.run())
        await readings.until(healthy)
        for connection in list(cdu.server.bserver.clients):
            connection.transport.abort()
        await readings.until(lambda r: r.link == "down")
        for _ in range(step % 8):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=4)
        assert done, f"still running, cancelled {step % 8} turns of the loop after the loss"


async def test_a_peer_that_is_no_opc_ua_server_is_a_fault_not_an_end():
    async def babble(_reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    url = f"opc.tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    readings = Readings()
    async with watching(url, readings):
        await readings.until(lambda r: r.link == "down")
        await readings.until(lambda r: r.link == "down")
    server.close()


async def test_a_device_that_cannot_work_is_refused_when_built():
    def build(**options):
        profile = options.pop("profile", PROFILE)
        OpcUaDevice("cdu", "opc.tcp://x", profile, on_reading=print, clock=lambda: 0.0, **options)

    with pytest.raises(ProfileError, match="no point 'heat_kw'"):
        build(points=("heat_kw",))
    with pytest.raises(ProfileError, match="speaks modbus, not opcua"):
        build(profile=load_profile("xerus_pdu"))
    with pytest.raises(ProfileError, match="silence_max_s 0"):
        build(silence_max_s=0)
