"""The OPC UA server as an independent client sees it: node-opcua, in a process of its own."""

import asyncio
import json
import math
import time

import pytest
import pytest_asyncio

from controller.image.model import Outcome, Result, Role
from tests.brokers import until
from tests.controller.facility.opcua_site import PASSWORDS, Site
from tests.controller.facility.test_facility_opcua import DEVICE, leak
from tests.node_peers import NodePeer, PeerFault, node_modules

pytestmark = pytest.mark.asyncio(loop_scope="module")
POWER, FLOW = "ns=2;s=devices/pdu-1/power_w", "ns=2;s=devices/pdu-1/flow_target"
CONTROL, LIMIT = "ns=2;s=Control", "ns=2;s=Control/SetPowerLimit"
FIELDS = ["Message", "Severity", "SourceName", "ActiveState.Id", "AckedState.Id", "Retain", "ConditionName"]
__all__ = ["node_modules"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory, node_modules):
    async with Site(tmp_path_factory.mktemp("opcua"), history_period_s=0.1) as site:
        yield site


@pytest_asyncio.fixture(loop_scope="module")
async def told(site):
    site.plant.commands.clear()
    site.plant.outcome = lambda _: Outcome(result=Result.ACCEPTED, value=1.0)
    await site.told("block", 90_000.0, "feed rating", 1.0)
    await site.told("devices/pdu-1", *DEVICE)
    return site


def peer(site):
    settings = {
        "certificate": str(site.certificate),
        "key": str(site.key),
        "pki": str(site.folder / "peer-pki"),
    }
    return NodePeer("scada_client.js", SCADA=json.dumps(settings))


async def connect(scada, site, user="hands", policy="Aes256_Sha256_RsaPss", mode="SignAndEncrypt"):
    return await scada.ask(
        "connect", url=site.url, policy=policy, mode=mode, user=user, password=PASSWORDS[user]
    )


async def test_it_finds_its_way_and_reads_values_with_units_ranges_and_times(told):
    async with peer(told) as scada:
        assert ["Aes256_Sha256_RsaPss", "SignAndEncrypt"] in await scada.ask("endpoints", url=told.url)
        await connect(scada, told)
        names = {one["name"]: one["id"] for one in await scada.ask("browse", node="ns=2;s=PowerBlock")}
        assert {"block", "devices", "nodes", "racks", "alarms", "Control"} <= set(names)
        assert [one["name"] for one in await scada.ask("browse", node=names["devices"])] == ["pdu-1", "quick"]
        points = {one["name"]: one for one in await scada.ask("browse", node="ns=2;s=devices/pdu-1")}
        assert points["power_w"] == {"id": POWER, "name": "power_w", "type": "ns=0;i=2368"}
        answer = await scada.ask("read", node=POWER)
        assert (answer["value"], answer["type"], answer["status"]) == (5000.0, "Double", "Good")
        assert answer["source"] == pytest.approx(time.time(), abs=20)
        unit = (await scada.ask("read", node=f"{POWER}#EngineeringUnits"))["value"]
        assert (unit["unitId"], unit["displayName"]["text"]) == (5_723_220, "W")
        assert (await scada.ask("read", node=f"{POWER}#EURange"))["value"] == {"low": 0, "high": 20_000}
        states = (await scada.ask("read", node="ns=2;s=block/mode#EnumStrings"))["value"]
        assert [one["text"] for one in states] == ["init", "limited", "free"]
        assert (await scada.ask("read", node="ns=2;s=racks/r1/power_w"))[
            "status"
        ] == "BadWaitingForInitialData"
        inputs = (await scada.ask("read", node=f"{LIMIT}#InputArguments"))["value"]
        assert [one["name"] for one in inputs] == ["limit_w", "ramp_w_per_s", "valid_for_s"]
        await scada.ask("disconnect")


async def test_it_is_told_changes_and_the_loss_of_the_controller(told):
    async with peer(told) as scada:
        await connect(scada, told, policy="Basic256Sha256")
        await scada.ask("subscribe", ids=[POWER, "ns=2;s=block/limit_source", "ns=2;s=devices/none/x"])
        await scada.until(lambda line: line.get("changed") == POWER and line["value"] == 5000.0)
        await scada.until(lambda line: "BadNodeIdUnknown" in str(line.get("text", "")))
        await told.told("devices/pdu-1", 6000.0, *DEVICE[1:])
        await scada.until(lambda line: line.get("changed") == POWER and line["value"] == 6000.0)
        await told.plant.die()
        await scada.until(
            lambda line: line.get("changed") == POWER and line["status"] == "BadNoCommunication"
        )
        await told.plant.live_again()
        await until(lambda: told.plant.feed.alive, within_s=20)
        await told.told("devices/pdu-1", *DEVICE)
        await scada.until(
            lambda line: (
                scada.heard.index(line) > 3 and line.get("status") == "Good" and line["value"] == 5000.0
            )
        )
        await scada.ask("disconnect")


async def test_it_calls_methods_and_hears_what_became_of_them(told):
    async with peer(told) as scada:
        await connect(scada, told)
        call = {"object": CONTROL, "method": LIMIT}
        inputs = [["Double", 80_000], ["Double", 0], ["Double", 60]]
        told.plant.outcome = lambda _: Outcome(result=Result.CLAMPED, reason="to 75 kW", value=75_000.0)
        assert await scada.ask("call", **call, inputs=inputs) == {
            "status": "GoodClamped", "outputs": [2, "to 75 kW", 75_000.0],
        }  # fmt: skip
        (command,) = told.plant.commands
        assert (command.arguments, command.role) == ({"limit_w": 80_000.0, "valid_for_s": 60.0}, Role.OPERATE)
        told.plant.outcome = lambda _: Outcome(
            result=Result.REJECTED, reason="the block is switched to LOCAL"
        )
        answer = await scada.ask("call", **call, inputs=inputs)
        assert answer["status"] == "BadRequestNotAllowed"
        assert answer["outputs"][:2] == [3, "the block is switched to LOCAL"]
        assert (await scada.ask("call", **call, inputs=inputs[:1]))["status"] == "BadArgumentsMissing"
        await scada.ask("disconnect")


async def test_without_the_role_it_reads_and_nothing_else(told):
    async with peer(told) as scada:
        await connect(scada, told, user="eyes")
        assert (await scada.ask("read", node=POWER))["value"] == 5000.0
        assert await scada.ask("write", node=FLOW, type="Double", value=120) == "BadUserAccessDenied"
        inputs = [["Double", 80_000], ["Double", 0], ["Double", 60]]
        answer = await scada.ask("call", object=CONTROL, method=LIMIT, inputs=inputs)
        assert answer["status"] == "BadUserAccessDenied"
        assert not told.plant.commands
        await scada.ask("disconnect")
        with pytest.raises(PeerFault, match="BadUserAccessDenied"):
            await scada.ask(
                "connect", url=told.url, policy="Basic256Sha256", mode="Sign", user="hands", password="wrong"
            )


async def test_a_write_says_what_became_of_it(told):
    async with peer(told) as scada:
        await connect(scada, told, policy="Aes128_Sha256_RsaOaep", mode="Sign")
        assert await scada.ask("write", node=FLOW, type="Double", value=150) == "Good"
        assert told.plant.commands[0].arguments == {"device": "pdu-1", "point": "flow_target", "value": 150.0}
        assert await scada.ask("write", node=FLOW, type="Double", value=500) == "BadOutOfRange"
        assert await scada.ask("write", node=FLOW, type="String", value="x") == "BadTypeMismatch"
        assert await scada.ask("write", node=POWER, type="Double", value=1) == "BadNotWritable"
        told.plant.outcome = lambda _: Outcome(result=Result.REJECTED, reason="read back 99")
        assert await scada.ask("write", node=FLOW, type="Double", value=150) == "BadRequestNotAllowed"
        await scada.ask("disconnect")


async def test_it_hears_alarms_and_gets_what_stands_by_condition_refresh(told):
    told.plant.alarms(leak(key="devices/pdu-1/smoke", text="smoke"))
    async with peer(told) as scada:
        await connect(scada, told)
        await scada.ask("events", fields=FIELDS)
        assert await scada.ask("refresh") == "Good"
        line = await scada.until(
            lambda line: line.get("event", {}).get("ConditionName") == "devices/pdu-1/smoke"
        )
        assert line["event"]["Retain"] is True
        told.plant.alarms(leak())
        line = await scada.until(
            lambda line: line.get("event", {}).get("ConditionName") == "devices/pdu-1/leak"
        )
        event = line["event"]
        assert (event["Message"]["text"], event["Severity"], event["SourceName"]) == (
            "water",
            900,
            "devices/pdu-1",
        )
        assert (event["ActiveState.Id"], event["AckedState.Id"]) == (True, False)
        assert event["ConditionId"] == "ns=2;s=alarms/devices/pdu-1/leak"
        gone = await scada.until(
            lambda line: (
                line.get("event", {}).get("ConditionName") == "devices/pdu-1/smoke"
                and not line["event"]["ActiveState.Id"]
            )
        )
        assert gone["event"]["Retain"] is False
        told.plant.alarms()
        await scada.ask("disconnect")


async def test_it_reads_history(told):
    for power_w in range(1000, 5000, 1000):
        await told.told("block", float(power_w), "x", 1.0)
        await asyncio.sleep(0.2)
    async with peer(told) as scada:
        await connect(scada, told)
        now = time.time()
        answer = await scada.ask("history", node="ns=2;s=block/power_w", start=now - 300, end=now + 60)
        assert answer["status"] == "Good"
        found = [one["value"] for one in answer["values"] if one["status"] == "Good"]
        assert found[-4:] == [1000.0, 2000.0, 3000.0, 4000.0]
        page = await scada.ask("history", node="ns=2;s=block/power_w", start=now - 300, end=now + 60, most=2)
        assert (len(page["values"]), page["more"]) == (2, True)
        answer = await scada.ask("history", node=POWER, start=now - 300, end=now)
        assert answer["status"] == "BadHistoryOperationUnsupported"
        await scada.ask("disconnect")


async def test_p19_a_client_recovers_after_our_restart(told):
    """The same certificate and the same identifiers: its subscription goes on as if nothing had been."""
    async with peer(told) as scada:
        await connect(scada, told)
        await scada.ask("subscribe", ids=[POWER])
        await scada.until(lambda line: line.get("changed") == POWER)
        await told.stop()
        await scada.until(lambda line: line.get("link") == "connection_lost")
        await told.start()
        await until(
            lambda: any(one.get("link") == "connection_reestablished" for one in scada.heard), within_s=30
        )
        before = len(scada.heard)
        await told.told("devices/pdu-1", 7000.0, *DEVICE[1:])
        await scada.until(lambda line: line.get("changed") == POWER and line["value"] == 7000.0, within_s=30)
        assert len(scada.heard) > before
        assert await scada.ask("write", node=FLOW, type="Double", value=150) == "Good"
        await scada.ask("disconnect")


async def test_a_broken_connection_loses_no_session(told):
    async with peer(told) as scada:
        session = await connect(scada, told)
        assert session
        await scada.ask("subscribe", ids=[POWER])
        await scada.until(lambda line: line.get("changed") == POWER)
        (before,) = told.facility._server._iserver.sessions
        await told.facility._server.disconnect_all()
        await scada.until(lambda line: line.get("link") == "connection_reestablished", within_s=30)
        await told.told("devices/pdu-1", 8000.0, *DEVICE[1:])
        await scada.until(lambda line: line.get("changed") == POWER and line["value"] == 8000.0, within_s=30)
        assert before in told.facility._server._iserver.sessions
        await scada.ask("disconnect")


async def test_a_client_that_is_frozen_for_a_while_gets_the_newest_value(told):
    async with peer(told) as scada:
        await connect(scada, told)
        await scada.ask("subscribe", ids=[POWER])
        await scada.until(lambda line: line.get("changed") == POWER)
        scada.freeze()
        for power_w in range(5000, 9000, 100):
            await told.told("devices/pdu-1", float(power_w), *DEVICE[1:])
            await asyncio.sleep(0.02)
        scada.thaw()
        await scada.until(lambda line: line.get("changed") == POWER and line["value"] == 8900.0, within_s=20)
        await scada.ask("disconnect")


async def test_numbers_that_are_none_do_not_upset_anybody(told):
    async with peer(told) as scada:
        await connect(scada, told)
        await told.told("devices/pdu-1", math.inf, math.nan, 2.0**40, -1.0, 3.5)
        assert (await scada.ask("read", node=POWER))["value"] == "Infinity"
        assert (await scada.ask("read", node="ns=2;s=devices/pdu-1/alarms"))["status"] == "BadOutOfRange"
        assert (await scada.ask("read", node=FLOW))["value"] == -1
        await scada.ask("disconnect")
