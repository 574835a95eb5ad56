"""The instruments of the gateway bench: farm, tape, account, and what is asked of the contenders."""

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import time

import aiomqtt
import pytest
from asyncua import Server

from benchmarks.gateway import contest, farm, ours, peers, side_by_side
from benchmarks.gateway.account import Sample, account
from benchmarks.gateway.contender import Command, Contender, Missing, plain
from benchmarks.gateway.contest import turn
from benchmarks.gateway.farm import Farm
from benchmarks.gateway.opcua_load import measure, subscribers
from benchmarks.gateway.tape import Tape
from benchmarks.gateway.usage import usage
from benchmarks.live import broker
from benchmarks.result import Mode
from firmware_sim.facility import free_port

POLL_S = 0.1


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with farm.running(3, POLL_S, tmp_path_factory.mktemp("farm")) as running:
        yield running


def ask(port, *requests, reply_bytes):
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        line.sendall(b"".join(requests))
        reply = b""
        while len(reply) < reply_bytes:
            reply += line.recv(4096)
    return reply


def read(transaction, first, count, function=3):
    return struct.pack(">HHHBBHH", transaction, 0, 6, 1, function, first, count)


# -- farm ---------------------------------------------------------------------------------------------------


def test_pipelined_reads_are_all_answered_in_order_and_numbered(source):
    size = 9 + 2 * farm.REGISTERS
    both = ask(source.ports[1], read(7, 0, 60), read(8, 0, 60), reply_bytes=2 * size)
    first, second = (struct.unpack(">60H", both[at + 9 : at + size]) for at in (0, size))
    assert both[0:2] + both[size : size + 2] == b"\x00\x07\x00\x08"
    assert second[farm.SERIAL] == first[farm.SERIAL] + 1
    for registers in (first, second):
        assert farm.wrong(1, {at: register / 10 for at, register in enumerate(registers)}) == 0
    assert all(a != b for a, b in zip(first[2:], second[2:], strict=True))


def test_the_version_of_a_device_tells_when_it_changed(source):
    for _ in range(10):  # so that each device is asked before and after a change
        for device, port in enumerate(source.ports):
            before_s = time.monotonic()
            (version,) = struct.unpack(">H", ask(port, read(1, 0, 1), reply_bytes=11)[9:])
            assert source.changed_at_s(device, version) <= time.monotonic()
            assert source.changed_at_s(device, version + 1) > before_s
        time.sleep(0.1 * source.change_s)


@pytest.mark.parametrize(
    ("request_", "reason"), [(read(1, 1, 60), 2), (read(1, 0, 0), 2), (read(1, 0, 1, 6), 1)]
)
def test_what_the_farm_does_not_have_is_an_exception(source, request_, reason):
    reply = ask(source.ports[0], request_, reply_bytes=9)
    assert reply[7] == request_[7] | 0x80
    assert reply[8] == reason


# -- tape ---------------------------------------------------------------------------------------------------


async def test_the_tape_has_every_message_with_the_moment_of_its_arrival(tmp_path):
    async with broker(tmp_path) as (url, _):
        port = int(url.rpartition(":")[2])
        with Tape(port) as tape:
            before_s = time.monotonic()
            async with aiomqtt.Client("127.0.0.1", port) as client:
                for number in range(20):
                    await client.publish(f"bench/{number}", b"x" * (number * 100), qos=number % 2)
            async with asyncio.timeout(10):
                while len(messages := list(tape.messages())) < 20:  # noqa: ASYNC110  a tape has no bell
                    await asyncio.sleep(0.02)
    assert {(m.topic, len(m.payload)) for m in messages} == {(f"bench/{n}", n * 100) for n in range(20)}
    assert all(before_s < message.arrived_s < time.monotonic() for message in messages)


def test_a_message_that_came_in_pieces_arrived_with_the_last_of_them():
    tape = object.__new__(Tape)
    packet = b"\x30\x85\x01\x00\x03a/b" + b"." * 128
    tape._pieces = [(1.0, packet[:1]), (2.0, packet[1:50]), (3.0, packet[50:] + packet)]
    assert [(m.arrived_s, m.topic, len(m.payload)) for m in tape.messages()] == [(3.0, "a/b", 128)] * 2


# -- account ------------------------------------------------------------------------------------------------

ONE = Farm(ports=(1,), epoch_s=100.0, change_s=0.37, pid=0)


def sample(arrived_s, serial, version=0, **other):
    registers = {0: version, 1: serial % 65536, **{at: (serial * 31 + at * 7) % 65536 for at in range(2, 60)}}
    return Sample(arrived_s, 0, {at: register / 10 for at, register in registers.items()} | other)


def test_gaps_between_serials_are_values_lost_also_where_the_serial_begins_anew():
    told = account([sample(1.0, serial) for serial in (65534, 65535, 65538, 65539)], ONE, window_s=2.0)
    assert (told.reads, told.rate_hz, told.lost_values, told.wrong_values) == (4, 2.0, 2 * 60, 0)


def test_what_comes_twice_counts_once_and_what_comes_late_is_not_lost():
    told = account([sample(1.0, serial) for serial in (5, 7, 6, 7)], ONE, window_s=1.0)
    assert (told.reads, told.lost_values) == (3, 0)


def test_a_change_counts_from_its_moment_to_its_first_arrival():
    at_s = [ONE.changed_at_s(0, version) for version in range(5)]
    samples = [sample(at_s[1] + 0.1, 1, 1), sample(at_s[2] + 0.05, 2, 2), sample(at_s[2] + 0.15, 3, 2)]
    told = account([*samples, sample(at_s[4] + 0.2, 4, 4)], ONE, window_s=1.0)
    assert told.change_s == pytest.approx([0.05, 0.2])
    assert told.changes_missed == 1


def test_a_value_of_another_read_is_wrong():
    mixed = sample(1.0, 9).values | {30: sample(1.0, 8).values[30]}
    assert account([Sample(1.0, 0, mixed)], ONE, window_s=1.0).wrong_values == 1


def test_a_device_that_never_came_shows_in_the_worst_rate():
    two = Farm(ports=(1, 2), epoch_s=100.0, change_s=0.37, pid=0)
    told = account([sample(1.0, 1)], two, window_s=1.0)
    assert (told.rate_hz, told.rate_worst_hz) == (0.5, 0.0)


# -- what is asked of the contenders ------------------------------------------------------------------------


def test_each_contender_is_told_to_read_all_registers_of_all_devices(tmp_path):
    many = Farm(ports=tuple(range(4001, 4041)), epoch_s=0.0, change_s=0.37, pid=0)
    nodes = peers._flow(many, 1883, POLL_S)
    reads = {node["server"]: node for node in nodes if node["type"] == "modbus-read"}
    clients = {node["id"]: int(node["tcpPort"]) for node in nodes if node["type"] == "modbus-client"}
    assert sorted(clients.values()) == list(many.ports)
    assert reads.keys() == clients.keys()
    assert {(node["quantity"], node["rate"], node["rateUnit"]) for node in reads.values()} == {
        ("60", "100", "ms")
    }

    slaves = [peers._slave(number, port, POLL_S) for number, port in enumerate(many.ports)]
    assert [slave["port"] for slave in slaves] == list(many.ports)
    assert {(slave["pollPeriod"], slave["timeseries"][0]["address"]) for slave in slaves} == {(100, "0-59")}

    devices = ours.farm_devices(many.ports, POLL_S, tmp_path)
    assert [device["url"] for device in devices] == [f"modbus+tcp://127.0.0.1:{port}" for port in many.ports]


def test_each_contender_is_understood():
    values = {at: 0.1 * at for at in range(3)}
    said = {f"r{at}": value for at, value in values.items()}
    ours_said = {f"r{at}_w": value for at, value in values.items()}
    payload = json.dumps({"device": 7, "values": said}).encode()
    assert list(plain("bench/7", payload)) == [(7, values)]
    payload = json.dumps({"d7": [{"ts": 1, "values": said}, {"ts": 2, "values": said}]}).encode()
    assert list(peers._telemetry("v1/gateway/telemetry", payload)) == [(7, values), (7, values)]
    assert list(ours.decode(f"{ours.DEVICES}7", json.dumps({"values": ours_said}).encode())) == [(7, values)]
    for decode in (plain, peers._telemetry, ours.decode):
        assert list(decode("v1/gateway/connect", b"{}")) == []


async def test_a_contender_that_says_nothing_is_left_out_with_its_last_words(source, tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "FOUND_MAX_S", 1.5)  # the interpreter's start is within it
    dumb = Command((sys.executable, "-c", "print('no licence', flush=True); import time; time.sleep(60)"))
    async with broker(tmp_path) as (url, _):
        port = int(url.rpartition(":")[2])
        with pytest.raises(Missing, match=r"did not find all devices.*no licence"):
            await turn(Contender({}, (dumb,), plain), source, port, tmp_path, settle_s=0.0, window_s=0.1)


async def test_a_contender_that_ends_is_left_out_at_once(source, tmp_path):
    brief = Command((sys.executable, "-c", "raise SystemExit('unknown option')"))
    async with broker(tmp_path) as (url, _):
        port = int(url.rpartition(":")[2])
        async with asyncio.timeout(0.5 * contest.FOUND_MAX_S):
            with pytest.raises(Missing, match=r"ended by itself: unknown option"):
                await turn(Contender({}, (brief,), plain), source, port, tmp_path, settle_s=0.0, window_s=0.1)


def test_what_cannot_be_had_is_left_out_and_the_rest_is_told(monkeypatch):
    def absent(*_):
        raise Missing("no such thing here")

    def mute(*_):
        return Contender({"mute": "1.0"}, (Command(("false",)),), plain)

    others = {"bare": peers.bare, "node_red": absent, "thingsboard": mute}
    monkeypatch.setattr(side_by_side, "CONTENDERS", others)
    monkeypatch.setattr(side_by_side, "TINY_CONTENDERS", others)
    report = side_by_side.run(Mode.TINY)
    assert report.about["versions"].keys() == {"bare"}
    assert report.about["left_out"].keys() == {"node_red", "thingsboard"}
    assert "node_red left out: no such thing here" in report.text
    assert {figure.name: figure.value for figure in report.figures}["bare_lost_values"] == 0


async def test_the_bare_loop_loses_nothing(source, tmp_path):
    async with broker(tmp_path) as (url, _):
        port = int(url.rpartition(":")[2])
        contender = peers.bare(source, port, POLL_S, tmp_path)
        result = await turn(contender, source, port, tmp_path, settle_s=0.0, window_s=0.5)
    assert result.account.reads > 0
    assert (result.account.lost_values, result.account.wrong_values) == (0, 0)


def test_children_count_as_their_parent():
    burn = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn.format(0.3) + 'time.sleep(60)'!r}])"
    with subprocess.Popen([sys.executable, "-c", nested]) as parent:
        deadline_s = time.monotonic() + 20
        while usage([parent.pid]).cpu_s < 0.3 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        told = usage([parent.pid])
        for child in usage_children(parent.pid):
            os.kill(child, 9)
        parent.wait(5)
    assert 0.3 <= told.cpu_s < 5
    assert told.resident_mib > 5


def usage_children(pid):
    from benchmarks.gateway.usage import _children

    return _children(pid)


# -- OPC UA -------------------------------------------------------------------------------------------------


async def test_subscribers_share_the_variables_and_count_what_comes():
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{(port := free_port())}")
    space = await server.register_namespace("urn:bench")
    device = await server.nodes.objects.add_object(space, "d0")
    nodes = [await device.add_variable(space, f"r{at}_w", 0.0) for at in range(5)]
    await device.add_variable(space, "serial_number", 0.0)

    async def change():
        for number in range(10_000):
            for node in nodes:
                await node.write_value(float(number))
            await asyncio.sleep(0.1)

    async with server:
        changing = asyncio.create_task(change())
        async with subscribers(f"opc.tcp://127.0.0.1:{port}", r"r\d+_w", 5, 2) as clients:
            load = await measure(clients, [os.getpid()], window_s=1.0)
        changing.cancel()
    assert load.variables == 5
    assert load.values_per_s > 5
    assert load.cpu_ratio < 2
