"""The OPC UA client against a server that breaks the rules: nothing wrong is ever good, nothing holds us up."""

import asyncio
import itertools
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import pytest_asyncio
from asyncua import Server, ua
from asyncua.client import ua_session as library
from asyncua.common.connection import SecureConnection

from protocols.opcua import client, security, watch
from protocols.profile import load_profile
from protocols.reading import DeviceError, WriteRule
from tests.brokers import free_port
from tests.protocols.opcua.bench import (
    PROFILE,
    Plant,
    Readings,
    Relay,
    down,
    healthy,
    watching,
    whole,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TREE = load_profile("opcua_cdu")
NAMESPACES = ua.NodeId(2255)
VALUES = {
    "Cdu.CoolantSupply": 32.0,
    "Cdu.CoolantReturn": 44.5,
    "Cdu.Flow": 1200.0,
    "Cdu.HeatKw": 812.5,
    "Cdu.CapacityKw": 1500.0,
    "Cdu.PumpSpeedPercent": 65.0,
    "Cdu.Running": True,
}


class Rogue:
    """asyncua's server, whose values and answers can be put in place behind its back."""

    async def start(self):
        self.port = free_port()
        self.url = f"opc.tcp://127.0.0.1:{self.port}"
        self.server = Server()
        await self.server.init()
        self.server.set_endpoint(self.url)
        self.server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        index = await self.server.register_namespace("urn:powerblock:cdu")
        for name, value in VALUES.items():
            await self.server.nodes.objects.add_variable(ua.NodeId(name, index), name, value)
        self.index = index
        self.spaces = self._held(NAMESPACES).value.Value.Value
        await self.server.start()

    def _held(self, node):
        return self.server.iserver.aspace._nodes[node].attributes[ua.AttributeIds.Value]

    def put(self, name, value):
        """As no honest server would: of any type."""
        self._held(ua.NodeId(name, self.index)).value = ua.DataValue(ua.Variant(value))

    def number(self, *uris):
        self._held(NAMESPACES).value = ua.DataValue(ua.Variant(list(uris)))

    def heal(self):
        for name, value in VALUES.items():
            self.put(name, value)
        self.number(*self.spaces)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared():
    rogue = Rogue()
    await rogue.start()
    yield rogue
    await rogue.server.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def rogue(shared):
    yield shared
    shared.heal()


async def test_a_value_that_changes_its_type_is_no_value(rogue):
    """True would pass for one watt, and 0.37 for a switch."""
    readings = Readings()
    async with watching(rogue.url, readings, profile=TREE):
        await readings.until(healthy)
        for name, value, known, fault in (
            ("Cdu.HeatKw", True, "heat_w", "heat_w: a bool where a number belongs"),
            ("Cdu.Running", 0.37, "running", "running: 0.37 is implausible"),
            ("Cdu.HeatKw", "812", "heat_w", "heat_w: a str where a number belongs"),
            ("Cdu.HeatKw", -math.inf, "heat_w", "heat_w: -inf is implausible"),
        ):
            rogue.put(name, value)
            await readings.until(lambda r, f=fault: f in r.fault)
            assert readings.now[known] is None
            assert readings.now["flow_l_per_min"] == 1200.0
            rogue.heal()
            await readings.until(healthy)


async def test_namespaces_numbered_anew_under_a_standing_connection_are_noticed_with_the_next_answer(rogue):
    """The same identifier may be something else behind the old number."""
    readings = Readings()
    async with watching(rogue.url, readings, profile=TREE):
        await readings.until(healthy)
        rogue.number(*rogue.spaces[:-1], "urn:elsewhere", "urn:powerblock:cdu")
        told = await readings.until(down)
        assert "numbered its namespaces anew" in told.fault
        rogue.number(*rogue.spaces, "urn:appended")  # which moves nothing
        await readings.until(healthy)
        rogue.number(*rogue.spaces, "urn:appended", "urn:later")
        begun = len(readings)
        await readings.until(whole)
        await readings.until(whole)
        assert not any(down(r) for r in readings[begun:])


async def test_a_huge_value_is_its_own_fault_and_holds_nobody_up(rogue, monkeypatch):
    monkeypatch.setattr(client, "SLOW_EVERY", 2)
    readings = Readings()
    async with watching(rogue.url, readings, profile=TREE):
        await readings.until(healthy)
        for huge in ([1.0] * 50_000, "x" * 200_000):
            rogue.put("Cdu.HeatKw", huge)
            told = await readings.until(lambda r: "heat_w: BadResponseTooLarge: too large" in r.fault)
            assert told.link == "up"
            assert readings.now["heat_w"] is None
            rogue.put("Cdu.Flow", 7.0)
            await readings.until(lambda r: r.values.get("flow_l_per_min") == 7.0)
            rogue.heal()
            await readings.until(whole)
            assert readings.now["heat_w"] == 812_500.0


async def test_no_answer_is_decoded_that_would_make_our_beat_late(rogue, monkeypatch):
    rogue.put("Cdu.HeatKw", [1.0] * 50_000)
    readings = Readings()
    decoded = []
    plain = library.struct_from_binary

    def spy(kind, data):
        decoded.append(len(data))
        return plain(kind, data)

    monkeypatch.setattr(library, "struct_from_binary", spy)
    async with watching(rogue.url, readings, profile=TREE):
        await readings.until(lambda r: "BadResponseTooLarge" in r.fault)
    assert 0 < max(decoded) <= security.ANSWER_MAX_BYTES


async def test_what_the_server_looks_at_once_an_hour_is_read_and_dates_nobody_else_back(rogue, monkeypatch):
    session = rogue.server.iserver.isession.__class__
    plain = session.create_monitored_items

    async def slow(self, *args, **kwargs):
        results = await plain(self, *args, **kwargs)
        results[0].RevisedSamplingInterval = 3_600_000.0
        results[1].RevisedSamplingInterval = math.nan
        return results

    monkeypatch.setattr(session, "create_monitored_items", slow)
    readings = Readings()
    async with watching(rogue.url, readings, profile=TREE):
        told = await readings.until(lambda r: "not watched" in r.fault)
        assert "coolant_supply_c (only every 3600 s), coolant_return_c (only every nan s)" in told.fault
        await readings.until(whole_of_all)
        assert all(time.monotonic() - r.taken_at_s < 30 for r in readings)


def whole_of_all(reading):
    return reading.values.keys() == TREE.points.keys()


async def test_a_subscription_that_promises_nonsense_is_given_up_in_time():
    made = SimpleNamespace(SubscriptionId=1, RevisedPublishingInterval=math.nan, RevisedMaxKeepAliveCount=10)

    async def create(_wish, _callback):
        return made

    one = watch.Watch(
        SimpleNamespace(uaclient=SimpleNamespace(create_subscription=create)), {}, watch.Sampling(),
        items_max=1, wait_max_s=1.0, clock=time.monotonic, on_news=print,
    )  # fmt: skip
    least_s, most_s = 3 * watch.KEEPALIVE_S, 3 * watch.KEEPALIVE_MAX_S
    assert await one._subscribe() == least_s
    for interval_ms, wanted_s in ((math.inf, most_s), (1e300, most_s), (-5.0, least_s), (100.0, least_s)):
        made.RevisedPublishingInterval = interval_ms
        assert await one._subscribe() == wanted_s


async def test_a_channel_that_lives_no_time_is_not_renewed_without_a_pause(rogue, monkeypatch):
    plain, asked = SecureConnection.open, []

    def brief(self, *args):
        asked.append(time.monotonic())
        answer = plain(self, *args)
        answer.SecurityToken = replace(answer.SecurityToken, RevisedLifetime=0)
        return answer

    monkeypatch.setattr(SecureConnection, "open", brief)
    readings = Readings()
    async with watching(rogue.url, readings, profile=TREE):
        await readings.until(healthy)
        begun = len(asked)
        await asyncio.sleep(1.2)
        assert len(asked) - begun <= 4


async def test_a_write_that_the_server_does_not_answer_is_a_fault_of_the_device(rogue, monkeypatch):
    own = rogue.server.iserver.isession  # through which the server sets its own clock
    written = own.__class__.write

    async def mute(session, *args, **kwargs):
        return await written(session, *args, **kwargs) if session is own else []

    monkeypatch.setattr(own.__class__, "write", mute)
    flow = replace(TREE.points["flow_l_per_min"], access="rw")
    profile = replace(TREE, points=TREE.points | {"flow_l_per_min": flow})
    readings = Readings()
    rules = {"flow_l_per_min": WriteRule(0, 2000)}
    async with watching(rogue.url, readings, profile=profile, writes=rules) as device:
        await readings.until(healthy)
        with pytest.raises(DeviceError, match="gave 0 answers to a write; it may be in force or not"):
            await device.write("flow_l_per_min", 5)


async def test_two_devices_behind_one_server_do_not_know_of_each_other(rogue):
    ours, theirs = Readings(), Readings()
    twin = replace(
        TREE, points={"heat_w": replace(TREE.points["heat_w"], node="nsu=urn:powerblock:cdu;s=Nowhere")}
    )
    async with watching(rogue.url, ours, profile=TREE), watching(rogue.url, theirs, profile=twin):
        await ours.until(healthy)
        told = await theirs.until(lambda r: r.fault)
        assert theirs.now == {"heat_w": None}
        assert "BadNodeIdUnknown" in told.fault
        await ours.until(whole)
        assert ours.now["heat_w"] == 812_500.0


async def test_slow_points_come_with_every_tenth_beat_and_name_plates_once_per_connection(rogue, monkeypatch):
    assert client.SLOW_EVERY == 10
    monkeypatch.setattr(client, "SLOW_EVERY", 3)
    speeds = {"heat_w": "slow", "capacity_w": "once", "running": "once"}
    points = {name: replace(p, poll=speeds.get(name, p.poll)) for name, p in TREE.points.items()}
    rogue.put("Cdu.Running", "not yet")
    readings = Readings()
    async with Relay(rogue.port) as relay:
        device = watching(relay.url, readings, profile=replace(TREE, points=points), silence_max_s=0.6)
        async with device:
            first = await readings.until(whole_of_all)
            assert first.values["running"] is None
            rogue.put("Cdu.Running", True)  # what it did not say at first is asked for again
            await readings.until(lambda r: r.values.get("running") == 1.0)
            readings.clear()
            while sum("heat_w" in r.values for r in readings) < 3:
                await readings.until(lambda r: "flow_l_per_min" in r.values)
            beats = [r for r in readings if "flow_l_per_min" in r.values]
            slow = [number for number, r in enumerate(beats) if "heat_w" in r.values]
            assert [later - sooner for sooner, later in itertools.pairwise(slow)] == [3, 3]
            assert not any("capacity_w" in r.values or "running" in r.values for r in readings)
            relay.frozen = True
            assert (await readings.until(down)).values == dict.fromkeys(points)
            relay.frozen = False
            again = await readings.until(lambda r: not down(r))
            assert again.values.keys() == points.keys()


async def test_a_server_that_takes_one_node_at_a_time_is_read_all_the_same(node_modules, tmp_path):
    """Its limit cannot be read either but one node at a time."""
    limits = {"operationLimits": {"maxNodesPerRead": 1}}
    readings, plant = Readings(), Plant(tmp_path, trustAll=True, limits=limits)
    async with plant, watching(plant.url, readings, silence_max_s=4, profile=PROFILE):
        told = await readings.until(whole)
        assert told.values["heat_w"] == 812_500.0
