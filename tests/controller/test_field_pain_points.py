"""What other gateways have failed at, tried on a whole one: its field, its image, its alarms, its clocks."""

import asyncio
import contextlib
import itertools
import socket
from dataclasses import fields

import pytest

from controller.clock import now_s
from controller.config import ConfigError, load_config
from controller.gateway import Gateway
from controller.gateway_config import DeviceConfig, GatewayConfig
from controller.image.feed import ImageFeed
from controller.image.model import Quality
from controller.site.facility import Facility
from protocols import reading
from protocols.modbus import ModbusLink, ModbusUnit, transport, transport_of
from protocols.modbus.transport import Tcp
from protocols.modbus.wire import Wire
from protocols.opcua import OpcUaDevice
from protocols.opcua import client as opcua
from protocols.opcua.fence import PeerError
from protocols.profile import Line, Profile, load_profile
from tests.protocols.modbus.modbus_peers import PROFILE, Device
from tests.virtual_time import in_no_time

SOON_S = 30.0
HOUR_S = 3600.0
METER = """title: bench
protocol: modbus
provenance: {document: bench, page: "1", evidence: document}
reply_wait_max_s: 0.2
blocks: [{table: holding, first: 0, last: 9}]
points:
  power_w: {unit: W, address: 0, type: u16}
examples: [{point: power_w, registers: [7], value: 7, source: counted}]
"""


class Site:
    """A gateway without processes: two good meters and what is wrong with the others."""

    def __init__(self, folder, device):
        (folder / "meter.yaml").write_text(METER)
        self._hole = socket.create_server(("127.0.0.1", 0))  # takes connections, and never answers
        with socket.create_server(("127.0.0.1", 0)) as closed:
            self._closed = closed.getsockname()[1]
        devices = {
            "good": f"modbus+tcp://127.0.0.1:{device.port}",
            "neighbour": f"modbus+tcp://127.0.0.1:{device.port}",
            "mute": f"modbus+tcp://127.0.0.1:{device.port}",
            "refused": f"modbus+tcp://127.0.0.1:{self._closed}",
            "hole": f"modbus+tcp://127.0.0.1:{self._hole.getsockname()[1]}",
        }
        meters = [
            {"name": name, "profile": str(folder / "meter.yaml"), "url": url, "unit": unit, "poll_s": 0.1}
            for unit, (name, url) in enumerate(devices.items(), start=1)
        ]
        plant = {
            "name": "plant",
            "profile": "opcua_cdu",
            "url": f"opc.tcp://127.0.0.1:{self._closed}",
            "security": "none",
        }
        config = GatewayConfig(
            block="hall-a", state_dir=folder / "state", run_dir=folder / "run", devices=(*meters, plant)
        )
        self.gateway = Gateway(
            config, epoch=1, takers={}, facility=Facility(0.0), settings=None, on_moved=lambda: None
        )

    def quality(self, name):
        return self.gateway.image._image.cell(f"devices/{name}", "power_w", now_s()).quality

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(run()) for run in self.gateway.runs().values()]
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.gateway.close()
        self._hole.close()


def mute_unit_3(_tid, unit, _pdu, frame):
    return None if unit == 3 else frame


@pytest.fixture
async def site(tmp_path):
    async with Device() as device:
        device.fault = mute_unit_3
        async with Site(tmp_path, device) as made:
            yield made


async def _until(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110  values of other tasks
            await asyncio.sleep(0.02)


async def test_p04_a_dead_unit_and_dead_devices_take_nothing_from_the_good_ones(site):
    """Also P3: one is mute on the good ones' own connection, the others cannot be reached."""
    await _until(lambda: site.quality("good") is Quality.GOOD and site.quality("mute") is Quality.BAD)
    good = []
    for _ in range(40):
        await asyncio.sleep(0.05)
        good += [site.quality(name) is Quality.GOOD for name in ("good", "neighbour")]
        assert site.quality("mute") is Quality.BAD
    assert all(good)


async def test_p16_every_driver_says_how_it_is(site):
    """Up or down, why, and how old its newest word is; and whoever is down is an alarm with his name."""
    await _until(lambda: {link["name"]: link["up"] for link in site.gateway.links()}.get("good"))
    await _until(lambda: all(link["fault"] != "not heard yet" for link in site.gateway.links()))
    told = {link["name"]: link for link in site.gateway.links()}
    assert told["good"] == {
        "name": "good",
        "up": True,
        "in_doubt": False,
        "fault": "",
        "age_s": told["good"]["age_s"],
    }
    assert told["good"]["age_s"] < SOON_S
    sentences = {
        "mute": "no answer within 0.2 s",
        "refused": "connection refused by 127.0.0.1",
        "hole": "no answer within 0.2 s",
        "plant": "is the server on",
    }
    for name, sentence in sentences.items():
        assert not told[name]["up"]
        assert sentence in told[name]["fault"]
        assert told[name]["age_s"] is None
    names = set()

    def are_alarms():
        names.update(alarm.key for alarm in site.gateway.tell(()))
        return names >= {f"device {name}" for name in sentences}

    await _until(are_alarms)
    assert not names & {"device good", "device neighbour"}


def test_p21_no_update_changes_a_default_in_silence():
    """Whoever changes one of these must say so to everybody whose devices got along with the old one."""
    assert {one.name: one.default for one in fields(Profile) if isinstance(one.default, (int, float))} == {
        "max_registers_per_read": 125,
        "max_bits_per_read": 2000,
        "min_gap_s": 0.0,
        "reply_wait_max_s": 0.5,
        "write_gap_s": 0.0,
        "single_connection": False,
        "pause_after_connect_s": 0.0,
        "one_request_per_point": False,
    }
    device = DeviceConfig(profile="xerus_pdu", url="modbus+tcp://pdu")
    assert (device.unit, device.poll_s, device.frozen_after_s) == (1, 1.0, 30.0)
    assert (transport.TCP_PORT, transport.TLS_PORT, transport.CONNECT_WAIT_MAX_S) == (502, 802, 1.0)
    assert (reading.RETRY_MIN_S, reading.RETRY_MAX_S) == (0.1, 2.0)
    assert transport_of("modbus+tcp://pdu") == Tcp("pdu", 502)
    assert Line() == Line(baud=19_200, parity="E", stop_bits=1)


# ---- an hour of refusals, on a clock that does not wait for it ----


class _Refusing(Wire):
    async def connect(self):
        raise ConnectionRefusedError


class _Closed(Tcp):
    def wire(self, line, *, writable):
        made = super().wire(line, writable=writable)
        made.__class__ = _Refusing
        return made


def modbus_client(knocks, _monkeypatch, _folder):
    def knocked(_reading):
        knocks()

    loop = asyncio.get_running_loop()
    unit = ModbusUnit(name="m", profile=PROFILE, poll_s=0.1, on_reading=knocked)
    return ModbusLink(_Closed("127.0.0.1", 1), [unit], clock=loop.time)


def opcua_client(knocks, monkeypatch, _folder):
    async def refused(_self):
        raise PeerError("refused")

    monkeypatch.setattr(opcua.OpcUaDevice, "_connection", refused)
    loop = asyncio.get_running_loop()
    profile = load_profile("opcua_cdu")
    return OpcUaDevice("p", "opc.tcp://127.0.0.1:1", profile, on_reading=lambda _: knocks(), clock=loop.time)


def image_feed(knocks, monkeypatch, folder):
    async def refused(*_args, **_kwargs):
        knocks()
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio, "open_unix_connection", refused)
    return ImageFeed(folder / "image.sock")


@pytest.mark.parametrize("made", [modbus_client, opcua_client, image_feed])
def test_p02_who_was_refused_for_an_hour_still_knocks_and_has_not_hammered(made, monkeypatch, tmp_path):
    async def hour():
        loop, at_s = asyncio.get_running_loop(), []
        life = made(lambda: at_s.append(loop.time()), monkeypatch, tmp_path)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOUR_S):
                await life.run()
        return at_s

    at_s = in_no_time(hour())
    pauses_s = [later - earlier for earlier, later in itertools.pairwise(at_s)]
    assert at_s[0] < 1.0
    assert at_s[-1] > HOUR_S - reading.RETRY_MAX_S
    assert max(pauses_s) <= reading.RETRY_MAX_S
    assert len(at_s) < 1.1 * HOUR_S / (reading.RETRY_MAX_S / 2), "it hammers"
    assert len(set(pauses_s[20:])) > len(pauses_s) / 2, "without jitter all of them knock in step"


def test_one_unit_is_configured_once(tmp_path):
    """Two names for one unit would poll it twice, and on a serial line take each other's answers."""
    entry = "{{name: {}, profile: xerus_pdu, url: 'modbus+rtu+tcp://10.0.0.7:502', unit: 3}}"
    path = tmp_path / "gateway.yaml"
    path.write_text(
        f"block: b\nstate_dir: {tmp_path}\nrun_dir: {tmp_path}\n"
        f"devices:\n  - {entry.format('a')}\n  - {entry.format('b')}\n"
    )
    with pytest.raises(ConfigError, match="two entries for one unit would poll it twice"):
        load_config(path)
