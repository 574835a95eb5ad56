"""What keeps a command alive in a device behind OPC UA, against asyncua's server and against node-opcua.

Both servers simulate a device with a reversion timer: unless the timer is written anew in time, the device
withdraws the setpoint by itself.
"""

import asyncio
import contextlib
import signal
import sys
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from asyncua import Server, ua
from asyncua.common.callback import CallbackType

from protocols.opcua import OpcUaDevice
from protocols.profile import Control, Heartbeat, Identity, Reversion, Setting
from protocols.reading import DeviceError, WriteRule
from tests.brokers import free_port
from tests.protocols.opcua.bench import TEMPLATE, Plant, Readings, Relay, down, healthy, point, watching

pytestmark = pytest.mark.asyncio(loop_scope="module")

# as `opcua_cdu_control`, with times that a test can wait for
PROFILE = replace(
    TEMPLATE,
    points={
        "setpoint_c": point("setpoint_c", "s=Cdu.Setpoint", "degC", access="rw", lowest=10, highest=60),
        "command": point("command", "s=Cdu.Command", "count", access="rw"),
        "beat": point("beat", "s=Cdu.Beat", "count", access="rw", read_back=False),
        "timer_s": point("timer_s", "s=Cdu.Timer", "s", access="rw"),
        "fallback_c": point("fallback_c", "s=Cdu.Fallback", "degC", access="rw"),
        "enable": point("enable", "s=Cdu.Enable", "bool", access="rw"),
        "remote": point("remote", "s=Cdu.Remote", "bool"),
    },
    control=Control(
        requires=(Identity(point="remote", equals=1),),
        arm=(Setting(point="command", value=3),),
        release=(Setting(point="command", value=0), Setting(point="enable", value=0)),
        heartbeat=Heartbeat(point="beat", period_s=0.2, wraps_at=3),
        reversion=Reversion(
            timer_point="timer_s", seconds=1.5, value_point="fallback_c", value=20, enable_point="enable"
        ),
    ),
)
RULES = {"setpoint_c": WriteRule(18, 45)}
ARMS = [["Command", 3], ["Fallback", 20], ["Timer", 1.5], ["Enable", True]]
RELEASE = [["Command", 0], ["Enable", False]]
START = {"Setpoint": 30.0, "Command": 0, "Beat": 0, "Timer": 0.0, "Fallback": 25.0, "Enable": False, "Remote": True}  # fmt: skip
TYPES = {
    "Setpoint": ua.VariantType.Float,
    "Command": ua.VariantType.UInt16,
    "Beat": ua.VariantType.UInt16,
    "Timer": ua.VariantType.Double,
    "Fallback": ua.VariantType.Float,
    "Enable": ua.VariantType.Boolean,
    "Remote": ua.VariantType.Boolean,
}


class NodeOpcua:
    """The device on node-opcua."""

    def __init__(self, folder: Any) -> None:
        self._plant = Plant(folder, trustAll=True)
        self.url = self._plant.url
        self.start = self._plant.__aenter__
        self.end = lambda: self._plant.__aexit__(None, None, None)

    async def stop(self) -> None:
        await self._plant.ask("stop")

    async def start_again(self) -> None:
        await self._plant.ask("start")

    async def writes(self) -> list[list[Any]]:
        return await self._plant.ask("writes")

    async def seen(self) -> None:
        await self._plant.ask("seen")

    async def get(self, name: str) -> Any:
        return (await self._plant.ask("get", name=f"Cdu.{name}"))["value"]

    async def set(self, name: str, value: Any) -> None:
        await self._plant.say(f"Cdu.{name}", value)

    async def drop(self) -> None:
        await self._plant.ask("drop")


class Asyncua:
    """The same device on asyncua's server."""

    def __init__(self, _folder: Any) -> None:
        self.port = free_port()
        self.url = f"opc.tcp://127.0.0.1:{self.port}"
        self.on_write = lambda _name: None
        self._writes: list[list[Any]] = []
        self._timer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._server = server = Server()
        await server.init()
        server.set_endpoint(self.url)
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        index = await server.register_namespace("urn:powerblock:cdu")
        self._nodes = {}
        for name, value in START.items():
            node_id = ua.NodeId(f"Cdu.{name}", index)
            node = await server.nodes.objects.add_variable(node_id, name, value, TYPES[name])
            await node.set_writable()
            self._nodes[name] = node
        server.subscribe_server_callback(CallbackType.PostWrite, self._written)
        await server.start()

    async def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._server.stop()

    async def stop(self) -> None:
        await self.end()

    async def start_again(self) -> None:
        await self.start()

    def _written(self, event: Any, _service: Any) -> None:
        if not event.is_external:
            return
        for wish in event.request_params.NodesToWrite:
            name, value = wish.NodeId.Identifier.removeprefix("Cdu."), wish.Value.Value.Value
            self._writes.append([name, value])
            self.on_write(name)
            if name == "Timer":
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = asyncio.create_task(self._run_down(value))

    async def _run_down(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.set("Enable", False)
        await self.set("Setpoint", await self.get("Fallback"))

    async def writes(self) -> list[list[Any]]:
        return list(self._writes)

    async def seen(self) -> None:
        self._writes.clear()

    async def get(self, name: str) -> Any:
        return await self._nodes[name].read_value()

    async def set(self, name: str, value: Any) -> None:
        await self._nodes[name].write_value(ua.Variant(value, TYPES[name]))

    async def drop(self) -> None:
        for connection in list(self._server.bserver.clients):
            connection.transport.abort()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[Asyncua, NodeOpcua])
async def shared(request, tmp_path_factory):
    if request.param is NodeOpcua:
        request.getfixturevalue("node_modules")
    device = request.param(tmp_path_factory.mktemp("device"))
    await device.start()
    yield device
    await device.end()


@pytest_asyncio.fixture(loop_scope="module")
async def device(shared):
    for name, value in START.items():
        await shared.set(name, value)
    await shared.seen()
    return shared


@contextlib.asynccontextmanager
async def commanding(device, readings=None, **options):
    readings = Readings() if readings is None else readings
    async with watching(device.url, readings, **{"profile": PROFILE, "writes": RULES, **options}) as client:
        await readings.until(healthy)
        yield client


async def refusal(command):
    with pytest.raises(DeviceError) as caught:
        await command
    return str(caught.value)


async def written(device, *without):
    return [write for write in await device.writes() if write[0] not in without]


async def until(check, within_s=10.0):
    for _ in range(round(within_s / 0.05)):
        if await check():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {within_s} s")


async def test_no_command_no_trace_and_the_first_one_arms_in_order(device):
    async with commanding(device) as client:
        await asyncio.sleep(0.5)
        assert await device.writes() == []
        assert (await client.write("setpoint_c", 22.5)).confirmed
        assert (await device.writes())[:5] == [*ARMS, ["Setpoint", 22.5]]
        await client.write("setpoint_c", 23)
        assert (await written(device, "Beat", "Timer"))[-1] == ["Setpoint", 23]
        assert (await written(device)).count(["Command", 3]) == 1  # armed once


async def test_while_a_command_stands_the_heart_beats_and_the_timer_never_runs_out(device):
    async with commanding(device) as client:
        await client.write("setpoint_c", 22.5)
        await asyncio.sleep(2.4)  # longer than the timer's life
        assert await device.get("Setpoint") == 22.5
        writes = await device.writes()
        beats = [value for name, value in writes if name == "Beat"]
        assert beats[:6] == [1, 2, 3, 0, 1, 2]
        assert [name for name, _ in writes].count("Timer") >= 4  # at a third of its life each
    await until(lambda: _is(device, "Setpoint", 20))  # and without us it falls back


async def _is(device, name, value):
    return await device.get(name) == value


async def test_a_release_ends_all_of_it(device):
    async with commanding(device) as client:
        await client.release()  # nothing stands: nothing to do
        assert await device.writes() == []
        await client.write("setpoint_c", 22.5)
        await client.release()
        assert (await device.writes())[-2:] == RELEASE
        await device.seen()
        await asyncio.sleep(0.8)
        assert await device.writes() == []
        await client.write("setpoint_c", 23)  # and a new command arms anew
        assert (await device.writes())[:5] == [*ARMS, ["Setpoint", 23]]


async def test_a_release_comes_after_the_command_that_is_under_way(device):
    """Otherwise the caller is told that all is withdrawn, and the command stands all the same."""
    async with commanding(device) as client:
        command = asyncio.create_task(client.write("setpoint_c", 22.5))
        await asyncio.sleep(0)
        await client.release()
        await command
        assert (await device.writes())[-2:] == RELEASE
        await device.seen()
        await asyncio.sleep(0.8)
        assert await device.writes() == []


async def test_after_a_reconnect_a_standing_command_is_armed_and_told_again(device):
    readings = Readings()
    async with commanding(device, readings) as client:
        await client.write("setpoint_c", 22.5)
        await device.stop()
        await readings.until(down, within_s=20)
        await device.seen()
        await device.start_again()  # and has forgotten everything
        await readings.until(lambda r: r.values.get("setpoint_c") == 22.5, within_s=20)
        assert (await written(device, "Beat"))[:5] == [*ARMS, ["Setpoint", 22.5]]
        await asyncio.sleep(2.0)
        assert await device.get("Setpoint") == 22.5


async def test_a_release_while_the_device_is_away_is_made_good_when_it_is_back(device):
    readings = Readings()
    async with commanding(device, readings) as client:
        await client.write("setpoint_c", 22.5)
        await device.drop()
        await readings.until(down)
        assert "not connected" in await refusal(client.release())
        await device.seen()
        await readings.until(healthy)
        await until(lambda: _wrote(device, RELEASE))
        await device.seen()
        await asyncio.sleep(0.5)
        assert await device.writes() == []


async def _wrote(device, writes):
    return await device.writes() == writes


async def test_a_device_in_local_mode_is_not_commanded(device):
    await device.set("Remote", False)
    async with commanding(device) as client:
        told = await refusal(client.write("setpoint_c", 22.5))
        assert "remote reads 0.0, a command needs 1: local mode? nothing was sent" in told
        assert "outside 18 to 45" in await refusal(client.write("setpoint_c", 50))
        assert await device.writes() == []


async def test_a_command_that_cannot_be_carried_out_arms_nothing(device):
    node = PROFILE.points["remote"].node  # a Boolean: 18 to 45 does not go in
    points = PROFILE.points | {"setpoint_c": replace(PROFILE.points["setpoint_c"], node=node)}
    async with commanding(device, profile=replace(PROFILE, points=points), points=("remote",)) as client:
        assert "wants a Boolean" in await refusal(client.write("setpoint_c", 22.5))
    assert await device.writes() == []


async def test_what_was_armed_for_a_command_that_failed_is_released(device):
    nowhere = replace(PROFILE.points["enable"], node="nsu=urn:powerblock:cdu;s=Cdu.Nowhere")
    profile = replace(
        PROFILE,
        points=PROFILE.points | {"enable": nowhere},
        control=replace(PROFILE.control, release=PROFILE.control.release[:1]),
    )
    readings = Readings()
    async with commanding(device, readings, profile=profile, points=("setpoint_c",)) as client:
        assert "cdu.enable: the server does not say" in await refusal(client.write("setpoint_c", 22.5))
        assert await device.writes() == ARMS[:3]
        told = await readings.until(lambda r: r.fault)
        assert "its control: not released yet: cdu.enable: the server does not say" in told.fault
        await readings.until(healthy)
        assert (await device.writes())[3:] == RELEASE[:1]


async def test_a_command_whose_answer_is_lost_does_not_stand_and_is_withdrawn(tmp_path):
    """It is in force, and its caller was told that nobody knows."""
    device = Asyncua(tmp_path)
    await device.start()
    try:
        async with Relay(device.port) as relay:
            device.on_write = lambda name: setattr(relay, "mute", name == "Setpoint")
            readings = Readings()
            async with watching(relay.url, readings, profile=PROFILE, writes=RULES) as client:
                await readings.until(healthy)
                told = await refusal(client.write("setpoint_c", 22.5))
                assert told.endswith("it may be in force or not")
                assert (await device.writes())[:5] == [*ARMS, ["Setpoint", 22.5]]
                await readings.until(down)
                await device.seen()
                relay.mute = False
                await readings.until(healthy)
                await until(lambda: _wrote(device, RELEASE))
    finally:
        await device.end()


async def test_upkeep_that_fails_is_a_fault_in_the_readings_until_it_works_again(device):
    readings = Readings()
    async with commanding(device, readings) as client:
        await client.write("setpoint_c", 22.5)
        client._commands._profile = replace(  # the server takes the node away for a while
            PROFILE,
            points=PROFILE.points
            | {"beat": replace(PROFILE.points["beat"], node="nsu=urn:powerblock:cdu;s=Cdu.Nowhere")},
        )
        bad = await readings.until(lambda r: "commands not kept alive" in r.fault)
        assert "BadNodeIdUnknown" in bad.fault
        client._commands._profile = PROFILE
        await readings.until(healthy)


async def test_the_control_blocks_points_are_ours_alone_and_a_read_only_site_writes_none_of_them(device):
    async with commanding(device) as client:
        assert "no rule allows to write it" in await refusal(client.write("command", 1))
    async with commanding(device, writes={}) as client:
        assert "no rule allows to write it" in await refusal(client.write("setpoint_c", 22.5))
        await client.release()
    assert await device.writes() == []


async def test_a_client_killed_outright_leaves_a_device_that_falls_back_by_itself(device):
    """kill -9: no release, no goodbye."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.protocols.opcua.test_opcua_control",
        device.url,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            assert await child.stdout.readline() == b"stands\n"
        assert await device.get("Setpoint") == 22.5
        await asyncio.sleep(1.8)
        assert await device.get("Setpoint") == 22.5  # kept alive
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()
        child._transport.close()
    assert await device.get("Setpoint") == 22.5
    await until(lambda: _is(device, "Setpoint", 20), within_s=5)
    assert await device.get("Enable") is False
    assert ["Command", 0] not in await device.writes()


async def _command_for_ever(url: str) -> None:
    """The child of the test above."""
    readings = Readings()
    client = OpcUaDevice(
        "cdu", url, PROFILE, on_reading=readings.put, clock=asyncio.get_running_loop().time, writes=RULES
    )
    running = asyncio.create_task(client.run())
    await readings.until(healthy)
    await client.write("setpoint_c", 22.5)
    sys.stdout.write("stands\n")
    sys.stdout.flush()
    await running


if __name__ == "__main__":
    asyncio.run(_command_for_ever(sys.argv[1]))
