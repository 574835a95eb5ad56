"""The server against a raw socket: what a master may send, and what comes back."""

import asyncio
import contextlib
import ipaddress
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.modbus import server as module
from protocols.modbus.answer import ExceptionCode, Peer, Refusal, answer
from protocols.modbus.server import Access, Bounds, ModbusServer

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
READ_TWO = bytes((3, 0, 0, 0, 2))
WRITER = Peer(address="127.0.0.1", name="test", may_write=True)


class Registers:
    """A bank of unit 1: a hundred registers and bits; all rise together with every read."""

    def __init__(self):
        self.holding = list(range(100))
        self.bits = [0] * 100
        self.reads = 0
        self.written = []
        self.gate = asyncio.Event()
        self.gate.set()

    def read(self, table, unit, first, count, peer):
        if unit != 1:
            raise Refusal(ExceptionCode.GATEWAY_TARGET_SILENT)
        row = self.holding if table in ("holding", "input") else self.bits
        if first + count > len(row):
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        self.reads += 1
        return row[first : first + count]

    async def write(self, table, unit, first, values, peer):
        self.read(table, unit, first, len(values), peer)
        await self.gate.wait()
        self.written.append((table, first, list(values), peer))
        row = self.holding if table == "holding" else self.bits
        row[first : first + len(values)] = values

    def identity(self, unit):
        if unit != 1:
            raise Refusal(ExceptionCode.GATEWAY_TARGET_SILENT)
        return {0: "vendor", 1: "code", 2: "1.0", 4: "x" * 190, 5: "y" * 190, 0x80: "private"}


def frame(pdu, transaction=1, unit=1, protocol=0, length=None):
    return struct.pack(">HHHB", transaction, protocol, length or len(pdu) + 1, unit) + pdu


@contextlib.asynccontextmanager
async def serving(bank=None, *, read_from=LOOPBACK, write_from=LOOPBACK, **bounds):
    server = ModbusServer(
        bank or Registers(),
        Access(read_from=read_from, write_from=write_from),
        host="127.0.0.1",
        port=0,
        bounds=Bounds(**bounds),
    )
    task = asyncio.create_task(server.run())
    await server.listening.wait()
    try:
        yield server
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def master(server, source="127.0.0.1"):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def reply(reader, within_s=5.0):
    """Transaction, unit and PDU of the next reply."""
    async with asyncio.timeout(within_s):
        transaction, protocol, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
        assert protocol == 0
        return transaction, unit, await reader.readexactly(length - 1)


async def asked(server, pdu, unit=1, source="127.0.0.1"):
    async with master(server, source) as (reader, writer):
        writer.write(frame(pdu, 7, unit))
        transaction, said_unit, answered = await reply(reader)
        assert (transaction, said_unit) == (7, unit)
        return answered


async def left(server, count, within_s=5.0):
    """Once no more than so many connections are open."""
    async with asyncio.timeout(within_s):
        while server.connections > count:  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0.01)


async def closed(reader, within_s=5.0):
    async with asyncio.timeout(within_s):
        with contextlib.suppress(ConnectionResetError):
            return await reader.read() == b""
    return True


# --- requests and replies ---------------------------------------------------------------------------------


async def test_pipelined_requests_are_all_answered_in_their_order():
    """Eight in one segment; the usual library answers the first alone."""
    async with serving() as server, master(server) as (reader, writer):
        writer.write(b"".join(frame(bytes((3, 0, n, 0, 1)), transaction=n) for n in range(8)))
        for n in range(8):
            assert await reply(reader) == (n, 1, bytes((3, 2, 0, n)))


async def test_replies_to_pipelined_requests_do_not_wait_for_acknowledgements():
    """Nagle's algorithm against delayed acknowledgements costs 40 ms in each burst."""
    loop = asyncio.get_running_loop()
    async with serving(requests_per_s=100_000) as server, master(server) as (reader, writer):
        took_s = []
        for _ in range(20):
            begun_s = loop.time()
            writer.write(frame(READ_TWO) * 8)
            for _ in range(8):
                await reply(reader)
            took_s.append(loop.time() - begun_s)
        assert min(took_s) < 0.03


async def test_a_write_among_pipelined_reads_keeps_its_place():
    bank = Registers()
    async with serving(bank) as server, master(server) as (reader, writer):
        read, write = bytes((3, 0, 5, 0, 1)), bytes((6, 0, 5, 0xAB, 0xCD))
        writer.write(frame(read, 1) + frame(write, 2) + frame(read, 3))
        assert await reply(reader) == (1, 1, bytes((3, 2, 0, 5)))
        assert await reply(reader) == (2, 1, write)
        assert await reply(reader) == (3, 1, bytes((3, 2, 0xAB, 0xCD)))


async def test_a_frame_that_comes_byte_by_byte_is_one_request():
    async with serving() as server, master(server) as (reader, writer):
        for byte in frame(READ_TWO):
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0.001)
        assert (await reply(reader))[2] == bytes((3, 4, 0, 0, 0, 1))


@pytest.mark.parametrize(
    ("pdu", "expected"),
    [
        ("01 0000 000A", "01 02 0000"),
        ("02 0000 0003", "02 01 00"),
        ("03 0002 0002", "03 04 0002 0003"),
        ("04 0002 0001", "04 02 0002"),
        ("05 0001 FF00", "05 0001 FF00"),
        ("06 0001 1234", "06 0001 1234"),
        ("0F 0000 000A 02 0503", "0F 0000 000A"),
        ("10 0001 0002 04 0001 0002", "10 0001 0002"),
        ("16 0004 00F2 0025", "16 0004 00F2 0025"),
        ("17 0003 0002 0003 0001 02 00FF", "17 04 00FF 0004"),
        ("2B 0E 01 00", "2B 0E 01 83 00 00 03 00 06 76656E646F72 01 04 636F6465 02 03 312E30"),
        ("2B 0E 04 02", "2B 0E 04 83 00 00 01 02 03 312E30"),
    ],
)
async def test_each_function_is_answered_as_the_specification_has_it(pdu, expected):
    assert await answer(bytes.fromhex(pdu), 1, Registers(), WRITER) == bytes.fromhex(expected)


async def test_a_masked_write_keeps_the_other_bits():
    """The example of the specification: 0x12, and 0xF2, or 0x25, gives 0x17."""
    bank = Registers()
    bank.holding[4] = 0x12
    await answer(bytes.fromhex("16 0004 00F2 0025"), 1, bank, WRITER)
    assert bank.holding[4] == 0x17


async def test_bits_are_packed_from_the_lowest():
    bank = Registers()
    await answer(bytes.fromhex("0F 0000 000A 02 CD01"), 1, bank, WRITER)
    assert bank.bits[:10] == [1, 0, 1, 1, 0, 0, 1, 1, 1, 0]
    assert await answer(bytes.fromhex("01 0000 000A"), 1, bank, WRITER) == bytes.fromhex("01 02 CD01")


@pytest.mark.parametrize(
    ("pdu", "unit", "code"),
    [
        ("08 0000 0000", 1, 1),  # diagnostics: serial lines only
        ("00", 1, 1),
        ("80", 1, 1),
        ("FF 00", 1, 1),
        ("2B 0D 00 00", 1, 1),
        ("03 0060 0005", 1, 2),
        ("03 FFFF 0002", 1, 2),
        ("2B 0E 04 09", 1, 2),
        ("03 0000 0000", 1, 3),
        ("03 0000 007E", 1, 3),  # 126 registers
        ("01 0000 07D1", 1, 3),  # 2001 bits
        ("10 0000 007C F8" + "0000" * 124, 1, 3),
        ("10 0000 0002 02 0001", 1, 3),
        ("10 0000 0001 02 0001 00", 1, 3),
        ("0F 0000 07B1 F7" + "00" * 247, 1, 3),
        ("17 0000 0001 0000 007A F4" + "0000" * 122, 1, 3),
        ("05 0000 0001", 1, 3),
        ("03 00", 1, 3),
        ("03 0000 0001 00", 1, 3),
        ("2B 0E 05 00", 1, 3),
        ("03 0000 0001", 2, 11),
        ("06 0000 0001", 255, 11),
        ("2B 0E 01 00", 3, 11),
    ],
)
async def test_what_cannot_be_is_refused_with_its_exception(pdu, unit, code):
    request = bytes.fromhex(pdu)
    assert await answer(request, unit, Registers(), WRITER) == bytes((request[0] | 0x80, code))


async def test_a_swap_whose_read_cannot_be_writes_nothing():
    bank = Registers()
    refused = await answer(bytes.fromhex("17 0063 0002 0000 0001 02 00FF"), 1, bank, WRITER)
    assert refused == bytes((0x97, 2))
    assert bank.written == []


async def test_a_long_identification_is_continued_where_the_frame_ended():
    first = await answer(bytes.fromhex("2B 0E 02 00"), 1, Registers(), WRITER)
    assert first[4:6] == bytes((0xFF, 5))
    rest = await answer(bytes.fromhex("2B 0E 02 05"), 1, Registers(), WRITER)
    assert rest[4:7] == bytes((0, 0, 1))
    assert rest[7:9] == bytes((5, 190))


# --- malformed, slow and idle -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        frame(READ_TWO, protocol=1),
        frame(READ_TWO, length=1),
        frame(READ_TWO, length=255),
        frame(READ_TWO, length=65535),
        b"GET / HTTP/1.1\r\nHost: plant\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20),  # a TLS client on the plain port
    ],
)
async def test_a_header_that_cannot_be_ends_the_connection_and_no_other(sent):
    async with serving() as server, master(server) as (good, good_writer):
        async with master(server) as (reader, writer):
            writer.write(sent)
            assert await closed(reader)
        assert server.counts.frames_malformed == 1
        good_writer.write(frame(READ_TWO))
        assert (await reply(good))[2][:1] == b"\x03"


async def test_a_master_that_falls_silent_in_the_middle_of_a_frame_is_let_go():
    async with serving(idle_s=0.2) as server, master(server) as (reader, writer):
        writer.write(frame(READ_TWO)[:9])
        assert await closed(reader)
        await left(server, 0)


async def test_an_idle_connection_is_closed():
    async with serving(idle_s=0.2) as server, master(server) as (reader, writer):
        writer.write(frame(READ_TWO))
        await reply(reader)
        assert await closed(reader)


async def test_a_master_that_does_not_read_delays_itself_alone_and_is_let_go(monkeypatch):
    monkeypatch.setattr(module, "SLOW_READER_S", 0.3)
    async with serving(requests_per_s=100_000) as server, master(server) as (good, good_writer):
        with socket.create_connection(("127.0.0.1", server.port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            request = frame(bytes((3, 0, 0, 0, 100))) * 50
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while True:
                    deaf.send(request)
                    await asyncio.sleep(0)
            good_writer.write(frame(READ_TWO))
            assert (await reply(good, within_s=1.0))[2][:1] == b"\x03"
            await left(server, 1)


async def test_a_read_does_not_wait_for_another_masters_write():
    bank = Registers()
    bank.gate.clear()
    async with (
        serving(bank) as server,
        master(server) as (one, one_writer),
        master(server) as (two, two_writer),
    ):
        one_writer.write(frame(bytes((6, 0, 0, 0, 9))))
        await asyncio.sleep(0.05)
        two_writer.write(frame(READ_TWO))
        assert (await reply(two, within_s=1.0))[2][:1] == b"\x03"
        bank.gate.set()
        assert (await reply(one))[2][:1] == b"\x06"


async def test_a_master_above_its_rate_is_served_at_its_rate():
    async with serving(requests_per_s=50) as server, master(server) as (reader, writer):
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        writer.write(frame(READ_TWO) * 65)
        for _ in range(65):
            await reply(reader)
        assert 0.25 <= loop.time() - begun_s < 3.0  # fifty at once, fifteen at 50 a second


async def test_the_rate_is_of_an_address_however_many_connections_it_opens():
    async with serving(requests_per_s=20) as server:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for _ in range(6):
            async with master(server) as (reader, writer):
                writer.write(frame(READ_TWO) * 5)
                for _ in range(5):
                    await reply(reader)
        assert loop.time() - begun_s >= 0.4  # thirty requests, twenty of them at once


async def test_connections_are_bounded_and_a_busy_one_never_gives_way():
    async with serving(connections_max=2) as server, master(server) as (one, one_writer), master(server):
        one_writer.write(frame(READ_TWO))
        await reply(one)
        async with master(server) as (third, _):
            assert await closed(third)
        assert server.counts.connections_refused == 1
        one_writer.write(frame(READ_TWO))
        assert (await reply(one))[2][:1] == b"\x03"


async def test_a_long_idle_connection_gives_way_to_a_new_one(monkeypatch):
    monkeypatch.setattr(module, "GIVES_WAY_S", 0.1)
    async with (
        serving(connections_max=2) as server,
        master(server) as (old, _),
        master(server) as (two, two_writer),
    ):
        await asyncio.sleep(0.2)
        two_writer.write(frame(READ_TWO))
        await reply(two)
        async with master(server) as (third, third_writer):
            third_writer.write(frame(READ_TWO))
            assert (await reply(third))[2][:1] == b"\x03"
            assert await closed(old)
        two_writer.write(frame(READ_TWO))
        await reply(two)


async def test_a_master_gone_without_a_word_is_forgotten():
    """Half-open: its host was switched off, no FIN ever comes. The idle time finds it."""
    async with serving(idle_s=0.3) as server, master(server) as (reader, writer):
        writer.write(frame(READ_TWO))
        await reply(reader)
        assert server.connections == 1
        await left(server, 0)


# --- who may ----------------------------------------------------------------------------------------------


async def test_only_listed_networks_may_connect():
    async with serving(read_from=(ipaddress.ip_network("127.0.0.2/32"),)) as server:
        async with master(server) as (reader, _):
            assert await closed(reader)
        assert server.counts.connections_refused == 1
        assert (await asked(server, READ_TWO, source="127.0.0.2"))[0] == 3


@pytest.mark.parametrize(
    "pdu", ["05 0000 FF00", "06 0000 0001", "0F 0000 0001 01 01", "10 0000 0001 02 0001", "16 0000 0000 0001",
            "17 0000 0001 0000 0001 02 0001"],
)  # fmt: skip
async def test_nobody_outside_the_write_list_writes_anything(pdu):
    """Exception 1: not a function for this master. Reads go on."""
    bank, request = Registers(), bytes.fromhex(pdu)
    async with serving(bank, write_from=(ipaddress.ip_network("127.0.0.2/32"),)) as server:
        assert await asked(server, request) == bytes((request[0] | 0x80, 1))
        assert (await asked(server, READ_TWO))[0] == 3
        assert bank.written == []
        assert server.counts.writes_refused == 1
        assert (await asked(server, request, source="127.0.0.2"))[0] == request[0]
        assert bank.written[0][3].address == "127.0.0.2"


async def test_an_empty_write_list_is_a_read_only_server():
    bank = Registers()
    async with serving(bank, write_from=()) as server:
        assert await asked(server, bytes((6, 0, 0, 0, 1))) == bytes((0x86, 1))
    assert bank.written == []


async def test_a_refused_writer_is_said_once_and_counted_each_time(monkeypatch):
    said = []
    monkeypatch.setattr(module.log, "warning", lambda *words, **more: said.append(more["why"]), raising=False)
    async with serving(write_from=()) as server:
        for _ in range(5):
            await asked(server, bytes((6, 0, 0, 0, 1)))
        assert server.counts.writes_refused == 5
    assert len(said) == 1
    assert "write" in said[0]


def test_an_ipv4_master_on_an_ipv6_socket_is_known_by_its_own_address():
    assert module._plain("::ffff:10.1.2.3") == "10.1.2.3"
    assert module._plain("fe80::1%eth0") == "fe80::1"


# --- anything at all --------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=253), st.integers(0, 255), st.booleans())
def test_no_request_raises_or_outgrows_a_frame_and_no_reader_writes(pdu, unit, may_write):
    bank = Registers()
    peer = Peer(address="127.0.0.1", name="fuzz", may_write=may_write)
    answered = asyncio.run(answer(pdu, unit, bank, peer))
    assert 2 <= len(answered) <= 253
    assert answered[0] in (pdu[0], pdu[0] | 0x80)
    assert may_write or not bank.written


_functions = st.sampled_from([1, 2, 3, 4, 5, 6, 15, 16, 22, 23, 43])
_pdus = st.builds(lambda function, rest: bytes((function,)) + rest, _functions, st.binary(max_size=20))
_pieces = st.one_of(
    _pdus.map(frame),
    _pdus.map(lambda pdu: frame(pdu, length=len(pdu))),
    _pdus.map(lambda pdu: frame(pdu, length=len(pdu) + 9)),
    st.binary(max_size=30),
)


async def test_no_stream_of_bytes_harms_the_server():
    """Frames, broken frames and noise, cut anywhere: each connection is answered or closed, and a good one
    beside them is served throughout."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(_pieces, max_size=8), st.lists(st.integers(1, 40), max_size=8))
    def streams(pieces, cuts):
        examples.append((b"".join(pieces), cuts))

    examples = []
    streams()
    async with serving(requests_per_s=100_000) as server, master(server) as (good, good_writer):
        for stream, cuts in examples:
            async with master(server) as (reader, writer):
                rest = stream
                for cut in cuts:
                    writer.write(rest[:cut])
                    rest = rest[cut:]
                    await asyncio.sleep(0)
                writer.write(rest)
                with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                    writer.write_eof()
                    while True:
                        await reply(reader)
            good_writer.write(frame(READ_TWO))
            assert (await reply(good))[2][:2] == bytes((3, 4))
        await left(server, 1)
