"""A link that tells old orders again: which, how many, and that what is of now still passes."""

import asyncio
import contextlib
import random

from firmware_sim import broken_link
from firmware_sim.broken_link import TAPE_MAX, BrokenLink, Tape


def published(topic: bytes, body: bytes) -> bytes:
    rest = len(topic).to_bytes(2, "big") + topic + body
    return bytes((0x30, len(rest))) + rest


ORDER, REPORT = b"powerblock/b/agent/n/order", b"powerblock/b/agent/n/report"


def test_a_tape_keeps_orders_of_all_times_and_gives_those_of_long_ago():
    tape = Tape(random.Random(1))
    for second in range(4 * TAPE_MAX):
        tape.note(b"%d" % second, float(second))
    old = {int(packet) for packet in tape.old(5000, 2.0 * TAPE_MAX)}
    assert old <= set(range(2 * TAPE_MAX - 4))
    assert min(old) < TAPE_MAX / 4
    assert max(old) > 2 * TAPE_MAX * 3 / 4
    assert tape.old(3, -1.0) == []


async def test_a_flood_tells_old_orders_to_the_agent_and_nothing_to_the_broker(monkeypatch):
    monkeypatch.setattr(broken_link, "LONG_AGO_S", 0.05)
    to_broker, written = bytearray(), []

    async def broker(reader, writer):
        written.append(writer)
        while chunk := await reader.read(100):
            to_broker.extend(chunk)
        writer.close()

    server = await asyncio.start_server(broker, "127.0.0.1", 0)
    async with server, BrokenLink("127.0.0.1", server.sockets[0].getsockname()[1], sees_packets=True) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        async with asyncio.timeout(5.0):
            writer.write(published(REPORT, b"x"))
            while not to_broker:  # noqa: ASYNC110  a buffer has no event
                await asyncio.sleep(0.01)
            written[0].write(published(ORDER, b"1") + published(REPORT, b"2"))
            await reader.readexactly(len(published(ORDER, b"1") + published(REPORT, b"2")))
            await asyncio.sleep(0.1)
            link.flood_per_s = 1000.0
            old = published(ORDER, b"1")
            assert await reader.readexactly(50 * len(old)) == 50 * old
            written[0].write(published(ORDER, b"3"))
            while await reader.readexactly(len(old)) == old:
                pass
            link.flood_per_s = 0.0
        assert link.told_again >= 50
        assert to_broker == published(REPORT, b"x")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
