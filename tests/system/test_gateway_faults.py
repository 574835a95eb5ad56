"""A gateway as its two processes, with a device on one side and masters on the other, and what befalls them."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from controller.config import load_config
from controller.facility.modbus.shown import register_map
from controller.gateway import catalogue

ROOT = Path(__file__).parents[2]
SOON_S = 60.0  # a process starts in one to three seconds, and in ten on a machine that is busy
POLL_S = 0.1
RELOADS = int(os.environ.get("RELOADS", "2"))  # of either process; RELOADS=100 takes some minutes
MIB = 1024.0

PROFILE = """title: bench
protocol: modbus
provenance: {document: bench, page: "1", evidence: document}
reply_wait_max_s: 0.5
blocks: [{table: holding, first: 0, last: 9}]
points:
  power_w: {unit: W, address: 0, type: u32}
  target_w: {unit: W, address: 4, type: u16, access: rw}
examples: [{point: power_w, registers: [0, 7], value: 7, source: counted}]
"""


class Device:
    """A meter whose power is the number of the request, so that no value can pass for another moment's."""

    def __init__(self):
        self.heard_at_s, self.target_w, self.writes = [], 1000, 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._open = set()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # their tasks hear of it

    async def _serve(self, reader, writer):
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                tid, _, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
                pdu = self._answer(await reader.readexactly(length - 1))
                writer.write(struct.pack(">HHHB", tid, 0, len(pdu) + 1, unit) + pdu)
        self._open.discard(writer)
        writer.close()

    def _answer(self, pdu):
        code, address, count = struct.unpack(">BHH", pdu[:5])
        self.heard_at_s.append(time.monotonic())
        if code == 3:
            power_w = len(self.heard_at_s)
            words = [power_w >> 16, power_w & 0xFFFF, 0, 0, self.target_w, 0, 0, 0, 0, 0]
            return struct.pack(f">BB{count}H", 3, 2 * count, *words[address : address + count])
        self.writes += 1
        self.target_w = count if code == 6 else struct.unpack(">H", pdu[6:8])[0]
        return pdu[:5]

    def longest_pause_s(self, since_s):
        times = [since_s, *(at_s for at_s in self.heard_at_s if at_s > since_s), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


class Process:
    """`powerblock run` or `powerblock serve` on a file."""

    def __init__(self, command, path, folder):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.log = (folder / f"{command}.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "controller.cli", command, str(path)],
            env=environment,
            stdout=self.log,
            stderr=self.log,
        )
        self.pid = self._process.pid

    @property
    def starts(self):
        """How often it has begun, so far."""
        return Path(self.log.name).read_text().count('"event": "start"')

    @property
    def alive(self):
        return self._process.poll() is None

    @property
    def open_files(self):
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def resident_mib(self):
        fields = dict(line.split(":") for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) / MIB

    def send(self, number):
        os.kill(self.pid, number)

    def end(self):
        if self.alive:
            self.send(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(SOON_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.log.close()


class Gateway:
    """Both processes of one gateway, its file, and masters of its Modbus server."""

    def __init__(self, folder, device):
        self.folder, self.path = folder, folder / "gateway.yaml"
        (folder / "bench.yaml").write_text(PROFILE)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.content = {
            "block": "hall-a",
            "state_dir": str(folder / "state"),
            "run_dir": str(folder / "run"),
            "devices": [
                {
                    "name": "meter",
                    "profile": str(folder / "bench.yaml"),
                    "url": f"modbus+tcp://127.0.0.1:{device.port}",
                    "poll_s": POLL_S,
                }
            ],
            "facility": {
                "modbus": {"port": self.port, "allow": ["127.0.0.0/8"], "write_allow": ["127.0.0.0/8"]}
            },
        }
        self.write_file()
        names = register_map(catalogue(load_config(self.path)))
        self.places = {register.name: (register.unit_id, register.address) for register in names}
        self.run = Process("run", self.path, folder)
        self.serve = Process("serve", self.path, folder)

    def write_file(self, **of_the_meter):
        self.content["devices"][0] |= of_the_meter
        self.path.write_text(yaml.safe_dump(self.content))

    @property
    def status(self):
        return json.loads((self.folder / "run" / "status.json").read_text())

    def close(self):
        for process in (self.run, self.serve):
            process.end()

    @contextlib.asynccontextmanager
    async def master(self):
        """A connection, as soon as somebody listens."""
        async with asyncio.timeout(SOON_S):
            while True:
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    break
                assert self.serve.alive, "the facility server has ended"
                await asyncio.sleep(0.05)
        try:
            yield Master(self, reader, writer)
        finally:
            writer.close()


class Master:
    def __init__(self, gateway, reader, writer):
        self._places, self._reader, self._writer = gateway.places, reader, writer

    async def ask(self, unit, pdu):
        self._writer.write(struct.pack(">HHHB", 1, 0, len(pdu) + 1, unit) + pdu)
        async with asyncio.timeout(SOON_S):
            _, _, length, _ = struct.unpack(">HHHB", await self._reader.readexactly(7))
            return await self._reader.readexactly(length - 1)

    async def power_w(self):
        """None where it is not good; a NaN stands for it."""
        unit, address = self._places["devices/meter/power_w"]
        reply = await self.ask(unit, struct.pack(">BHH", 3, address, 4))
        if reply[0] & 0x80:
            return None
        value, quality, _age = struct.unpack(">fHH", reply[2:])
        return value if quality == 2 else None

    async def write_target(self, value_w):
        """The exception code; 0: done."""
        unit, address = self._places["devices/meter/target_w"]
        reply = await self.ask(unit, struct.pack(">BHHBf", 16, address, 2, 4, value_w))
        return reply[1] if reply[0] & 0x80 else 0

    async def sees(self, wanted):
        async with asyncio.timeout(SOON_S):
            while not wanted(told := await self.power_w()):  # noqa: ASYNC110  of another process
                await asyncio.sleep(0.02)
        return told


def is_good(power_w):
    return power_w is not None


@pytest.fixture
async def gateway(tmp_path):
    async with Device() as device:
        made = Gateway(tmp_path, device)
        made.device = device
        try:
            yield made
        finally:
            made.close()


async def _until(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110  of another process: no event to wait for
            await asyncio.sleep(0.02)


async def test_p01_devices_are_read_on_whatever_happens_to_the_north(gateway):
    """The facility server is stopped in its tracks, goes on, and is killed: no poll is missed for it."""
    async with gateway.master() as master:
        await master.sees(is_good)
    began_s = time.monotonic()
    gateway.serve.send(signal.SIGSTOP)
    await asyncio.sleep(1.0)
    gateway.serve.send(signal.SIGCONT)
    async with gateway.master() as master:
        newest_w = len(gateway.device.heard_at_s)
        await master.sees(lambda power_w: is_good(power_w) and power_w >= newest_w)
    gateway.serve.send(signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert gateway.run.alive
    assert gateway.device.longest_pause_s(began_s) < 1.0


async def test_p12_after_a_change_of_the_file_writes_work_or_say_that_they_do_not(gateway):
    async with gateway.master() as master:
        await master.sees(is_good)
        assert await master.write_target(500.0) != 0
        for writes, allowed in (({"target_w": {"lowest": 0, "highest": 900}}, True), ({}, False)):
            epoch = gateway.status["epoch"]
            gateway.write_file(writes=writes)
            gateway.run.send(signal.SIGHUP)
            await _until(lambda epoch=epoch: gateway.status["epoch"] > epoch)
            before = gateway.device.writes
            await master.sees(is_good)
            async with asyncio.timeout(SOON_S):
                while ((refused := await master.write_target(700.0)) == 0) != allowed:
                    assert refused or gateway.device.target_w == 700, "taken, and lost"
                    await asyncio.sleep(0.05)
            assert (gateway.device.writes > before) == allowed
            assert (await master.write_target(950.0)) != 0
            assert gateway.device.target_w == (700 if gateway.device.writes else 1000)


async def test_a_file_with_a_mistake_changes_nothing(gateway):
    async with gateway.master() as master:
        await master.sees(is_good)
        await _until((gateway.folder / "run" / "status.json").exists)
        epoch, began_s = gateway.status["epoch"], time.monotonic()
        gateway.write_file(profile="none_such", poll_s=-1)
        for process in (gateway.run, gateway.serve):
            process.send(signal.SIGHUP)
        log = gateway.folder / "run.log"
        await _until(lambda: "everything stays as it was" in log.read_text())
        newest_w = len(gateway.device.heard_at_s)
        await master.sees(lambda power_w: is_good(power_w) and power_w > newest_w)
        assert gateway.status["epoch"] == epoch
        assert gateway.device.longest_pause_s(began_s) < 1.0
        assert gateway.run.alive
        assert gateway.serve.alive


@pytest.mark.timeout(max(120, 20 * RELOADS))
async def test_reload_after_reload_with_masters_connected_leaves_nothing_behind(gateway):
    """A master of the facility server stays connected while the controller begins anew, again and again."""
    async with gateway.master() as master:
        await master.sees(is_good)
        grown = {}
        for number in range(RELOADS + 1):
            if number == 1:
                grown = {"files": gateway.run.open_files, "memory": gateway.run.resident_mib}
            epoch = gateway.status["epoch"]
            gateway.write_file(poll_s=POLL_S + 0.01 * (number % 2))
            gateway.run.send(signal.SIGHUP)
            await _until(lambda epoch=epoch: gateway.status["epoch"] > epoch)
            newest_w = len(gateway.device.heard_at_s)
            await master.sees(lambda power_w: is_good(power_w) and power_w > newest_w)  # noqa: B023
        assert gateway.run.open_files <= grown["files"]
        assert gateway.run.resident_mib <= grown["memory"] + 16.0
        served = gateway.serve.open_files
    for _ in range(RELOADS):
        starts = gateway.serve.starts
        gateway.serve.send(signal.SIGHUP)
        await _until(lambda starts=starts: gateway.serve.starts > starts)
        async with gateway.master() as master:
            await master.sees(is_good)
    assert gateway.serve.open_files <= served + 1
    assert gateway.serve.resident_mib < 200.0
