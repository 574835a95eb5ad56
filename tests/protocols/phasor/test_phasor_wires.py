"""Frequency over real sockets: a unit that sends by itself, one that is asked, and an independent one."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time

import pytest
from phasor_parts import PLAIN, data, mhz

from protocols.phasor import Frames, FrequencyUdp, JsonReadings, PhasorTcp, c37_118

HOST = "127.0.0.1"
WAIT_MAX_S = 10.0


def now_s():
    return time.monotonic()


async def until(condition):
    async with asyncio.timeout(WAIT_MAX_S):
        while not condition():  # noqa: ASYNC110  a condition of several tasks
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(part):
    task = asyncio.create_task(part.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def udp(reader, samples, **kwargs):
    return FrequencyUdp(
        (HOST, 0),
        reader,
        only_from=HOST,
        on_sample=samples.append,
        clock=now_s,
        clock_utc=time.time,
        **kwargs,
    )


async def test_a_unit_that_sends_by_itself_is_heard_once_it_has_said_what_it_sends():
    samples = []
    port = udp(Frames(), samples)
    sent = [data(mhz(1)), PLAIN, data(mhz(-300)), b"rubbish", b"", data(mhz(0), soc=3)]
    async with running(port):
        await until(lambda: port.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unit:
            for frame in sent:
                unit.sendto(frame, (HOST, port.port))
            await until(lambda: sum(port.refused.values()) == 4)  # too early, rubbish, empty, too old
    assert [round(sample.hz, 3) for sample in samples] == [49.7]
    assert port.fault == ""


async def test_lines_of_json_over_udp_are_heard_and_silence_has_a_sentence():
    samples = []
    port = udp(JsonReadings(), samples)
    async with running(port):
        await until(lambda: "UDP port" in port.fault)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as meter:
            meter.sendto(json.dumps({"hz": 49.98, "at": time.time()}).encode(), (HOST, port.port))
            await until(lambda: samples)
    assert (samples[0].hz, port.fault) == (49.98, "")


async def test_datagrams_of_anybody_else_are_dropped():
    samples = []
    port = FrequencyUdp(
        (HOST, 0),
        JsonReadings(),
        only_from="127.0.0.9",
        on_sample=samples.append,
        clock=now_s,
        clock_utc=time.time,
    )
    async with running(port):
        await until(lambda: port.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b'{"hz": 49.0, "at": 1}', (HOST, port.port))
            await until(lambda: port.refused)
    assert samples == []
    assert list(port.refused) == ["of somebody other than 127.0.0.9"]


async def test_a_port_in_use_is_said_and_tried_again():
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind((HOST, 0))
    port = udp(JsonReadings(), [])
    port._listen = taken.getsockname()
    async with running(port):
        await until(lambda: "cannot be opened" in port.fault)
        taken.close()
        await until(lambda: "no frequency from" in port.fault)


class Asked(asyncio.DatagramProtocol):
    """A unit on UDP that sends what it is asked for."""

    def __init__(self):
        self.commands = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, frame, sender):
        (what,) = struct.unpack_from(">H", frame, c37_118.HEAD.size)
        self.commands.append((c37_118.open_frame(frame).id_code, what))
        if what == c37_118.SEND_CONFIG_2:
            self.transport.sendto(PLAIN, sender)
        if what == c37_118.DATA_ON:
            self.transport.sendto(data(mhz(20)), sender)


async def test_a_unit_that_wants_to_be_asked_is_asked_and_turned_off_at_the_end():
    samples, unit = [], Asked()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: unit, local_addr=(HOST, 0)
    )
    port = udp(Frames(), samples, ask=transport.get_extra_info("sockname")[1], id_code=7734)
    async with running(port):
        await until(lambda: samples)
    await until(lambda: unit.commands[-1] == (7734, c37_118.DATA_OFF))
    assert unit.commands[:2] == [(7734, c37_118.SEND_CONFIG_2), (7734, c37_118.DATA_ON)]
    transport.close()


@contextlib.asynccontextmanager
async def unit_over_tcp(talk):
    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def tcp(port, samples):
    return PhasorTcp(
        HOST, port, id_code=7734, frames=Frames(), on_sample=samples.append, clock=now_s, clock_utc=time.time
    )


async def test_frames_are_found_however_tcp_cuts_them_and_a_lost_place_means_a_new_call():
    calls = []

    async def talk(reader, writer):
        calls.append(await reader.readexactly(c37_118.COMMAND_BYTES))
        writer.write(PLAIN)
        await reader.readexactly(c37_118.COMMAND_BYTES)
        stream = data(mhz(10), soc=2000) + data(mhz(20), soc=2001)
        for n in range(0, len(stream), 7):
            writer.write(stream[n : n + 7])
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"what is this")
        await reader.read()

    samples = []
    async with unit_over_tcp(talk) as port:
        unit = tcp(port, samples)
        async with running(unit):
            await until(lambda: len(calls) >= 2)
    assert [round(sample.hz, 2) for sample in samples[:2]] == [50.01, 50.02]
    assert unit.refused["does not begin like a frame"] >= 1


async def test_a_unit_that_is_not_there_is_data():
    unit = tcp(1, [])
    async with running(unit):
        await until(lambda: "does not answer" in unit.fault)


PEER = """
    import collections, collections.abc, sys, time
    collections.Sequence = collections.abc.Sequence  # the library is older than Python 3.10
    from synchrophasor.frame import ConfigFrame2, DataFrame
    from synchrophasor.pmu import Pmu

    pmu = Pmu(ip="127.0.0.1", port=int(sys.argv[1]), data_rate=50)
    pmu.logger.setLevel("CRITICAL")
    pmu.set_configuration(ConfigFrame2(
        7734, 1000000, 1, "Peer", 7734, (True, bool(int(sys.argv[2])), True, False), 1, 1, 1,
        ["VA", "ANALOG1"] + [f"SWITCH {n}" for n in range(16)],
        [(1000000, "v")], [(1, "pow")], [(0, 0xFFFF)], 50, 1, 50))
    pmu.set_header()
    pmu.run()
    while True:
        if pmu.clients:
            pmu.send(DataFrame(7734, ("ok", True, "timestamp", False, False, False, 0, "<10", 0),
                               [(230, 1)], -188, 0, [9.9], [1], pmu.cfg2))
        time.sleep(0.02)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("synchrophasor") is None,
    reason="no independent phasor unit here: pip install synchrophasor==1.0.0a0",
)
@pytest.mark.parametrize("phasor_form", ["0", "1"])
async def test_an_independent_unit_is_heard(phasor_form):
    """Its integer frequencies only: its float ones are deviations, which the standard does not have."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    peer = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", textwrap.dedent(PEER), str(port), phasor_form],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    samples = []
    unit = tcp(port, samples)
    try:
        async with running(unit):
            await until(lambda: len(samples) >= 20)
    finally:
        os.killpg(peer.pid, signal.SIGKILL)  # a child of its own serves the connection, and would stay
        peer.wait()
    assert {round(sample.hz, 4) for sample in samples} == {49.812}
    assert all(sample.good for sample in samples)
    assert unit.refused == {}


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # uvloop's own, of such a port
def test_an_address_of_another_host_is_said_to_be_one(name):
    """The two loops tell the reason in different places."""
    loop = pytest.importorskip(name, reason="uvloop is for linux").new_event_loop

    async def fault():
        port = udp(JsonReadings(), [])
        port._listen = ("192.0.2.5", 47130)
        async with running(port):
            await until(lambda: "cannot be opened" in port.fault)
        return port.fault

    with asyncio.Runner(loop_factory=loop) as runner:
        said = runner.run(fault())
    assert said == "192.0.2.5:47130 cannot be opened: Cannot assign requested address"
