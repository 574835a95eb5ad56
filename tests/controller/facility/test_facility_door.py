"""A port that cannot be had costs its own server alone, is one line in the log and an alarm, and is tried again."""

import asyncio
import errno
import socket
import urllib.request

import pytest
import yaml
from facility_feed import Plant, pdu
from structlog.testing import capture_logs

from controller.config import load_config
from controller.facility import door as doors
from controller.facility import serve
from controller.facility.config import ModbusServerConfig, OpcUaServerConfig, PrometheusConfig
from controller.facility.door import Door
from controller.facility.modbus.server import ModbusFacility
from controller.facility.opcua.server import OpcUaFacility
from controller.facility.prometheus import Prometheus
from tests.brokers import until

SOON_S = 30.0


def taken():
    """A socket that has a port."""
    return socket.create_server(("127.0.0.1", 0))


def modbus(plant, folder, port):
    config = ModbusServerConfig(port=port, allow=("127.0.0.1",))
    return ModbusFacility(config, plant.feed, version="1", now_s=lambda: 0.0, state_dir=folder)


def opcua(plant, folder, port):
    config = OpcUaServerConfig(port=port, anonymous="observe")
    return OpcUaFacility(config, plant.feed, block="b", state_dir=folder)


def prometheus(plant, _folder, port):
    return Prometheus(PrometheusConfig(port=port), plant.feed)


def is_listening(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("made", [modbus, opcua, prometheus])
async def test_a_server_whose_port_is_taken_says_so_and_listens_when_it_is_free(made, tmp_path):
    async with Plant(tmp_path, [pdu()]) as plant:
        with taken() as other:
            port = other.getsockname()[1]
            server = made(plant, tmp_path, port)
            with capture_logs() as lines:
                running = asyncio.create_task(server.run())
                await until(lambda: server.fault or running.done(), within_s=SOON_S)
                await asyncio.sleep(0.5)  # some more tries
            fault = f"127.0.0.1:{port}: address already in use; choose another port, or stop who has it"
            assert server.fault == f"{fault} (ss -ltnp)"
            assert serve.said({made.__name__: server}) == {made.__name__: server.fault}
            said = [line["why"] for line in lines if line["log_level"] == "error"]
            assert said == [f"facility.{made.__name__}: {server.fault}"]
        await until(lambda: is_listening(port) or running.done(), within_s=SOON_S)
        assert not server.fault
        assert not running.done()
        await asyncio.sleep(0.2)  # it takes that connection
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_other_ways_out_are_served_meanwhile(tmp_path, monkeypatch):
    """The whole of `powerblock serve`: Modbus cannot listen, metrics are there."""
    ready = asyncio.Event()
    monkeypatch.setattr(serve, "notify", lambda _text: ready.set())
    with taken() as other, taken() as free:
        port, free_port = other.getsockname()[1], free.getsockname()[1]
        free.close()
        path = tmp_path / "gateway.yaml"
        facility = {"modbus": {"port": port, "allow": ["127.0.0.1"]}, "prometheus": {"port": free_port}}
        document = {"block": "b", "state_dir": str(tmp_path), "run_dir": str(tmp_path), "facility": facility}
        path.write_text(yaml.safe_dump(document))
        running = asyncio.create_task(serve.run(load_config(path), path))
        await until(lambda: is_listening(free_port) or running.done(), within_s=SOON_S)
        assert not running.done(), running
        url = f"http://127.0.0.1:{free_port}/metrics"
        answer = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())
        assert b"powerblock_controller_up" in answer
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "cannot assign requested address; this host has no such address"),
        ("no.such.host.invalid", "choose another host or port"),
    ],
)
async def test_an_address_that_is_not_ours_is_named_with_a_remedy(host, words):
    door = Door("facility.modbus", host, 0)
    waiting = asyncio.create_task(door.is_free())
    await until(lambda: door.fault or waiting.done(), within_s=SOON_S)
    waiting.cancel()
    assert door.fault.startswith(f"{host}:0: ")
    assert words in door.fault


async def test_a_port_that_needs_a_right_names_the_file_that_gives_it(monkeypatch):
    """Root may listen anywhere, so the system's answer is played."""

    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(doors.socket, "create_server", refuse)
    door = Door("facility.modbus", "127.0.0.1", 502)
    waiting = asyncio.create_task(door.is_free())
    await until(lambda: door.fault, within_s=SOON_S)
    waiting.cancel()
    assert "127.0.0.1:502: permission denied; " in door.fault
    assert "see systemd/drop-ins/serve-ports.conf" in door.fault
