"""Whoever comes to the image socket with frames that are none: he is let go, and nobody else notices."""

import asyncio
import logging
import socket

import msgspec
import pytest
from structlog.testing import capture_logs

from controller.clock import now_s
from controller.image import wire
from controller.image.feed import ImageFeed
from controller.image.image import Image
from controller.image.model import Command, Group, Outcome, Point, Result, Role
from controller.image.server import ImageServer

SOON_S = 20.0
PDU = Group(path="devices/pdu", kind="device", points=(Point(name="power_w"),))
GOOD = Command(verb="acknowledge", by="alice", role=Role.OPERATE, via="opcua")


def packed(*items):
    return b"".join(items)


def entry(name, value):
    return msgspec.msgpack.encode(name) + value


WHO = tuple(
    entry(name, msgspec.msgpack.encode(value)) for name, value in {"by": "x", "role": 1, "via": "x"}.items()
)
STRANGERS = {
    "nested deeply": packed(
        b"\x85", *WHO, entry("verb", b"\xa1x"), entry("more", b"\x91" * 15_000 + b"\xc0")
    ),
    "no UTF-8": packed(b"\x84", *WHO, entry("verb", b"\xa2\xff\xfe")),
    "no such role": msgspec.msgpack.encode({"verb": "x", "by": "x", "role": 9, "via": "x"}),
    "a list": b"\x90",
    "nothing": b"",
    "half of one": b"\x84",
}


async def accept(_command):
    return Outcome(result=Result.ACCEPTED)


async def _until(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110  values of other tasks
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("body", STRANGERS.values(), ids=STRANGERS)
async def test_a_frame_that_is_none_ends_its_own_connection_and_raises_nothing(body, tmp_path, caplog):
    path = tmp_path / "s"
    server = ImageServer(path, Image([PDU]), block="b", epoch=1, on_command=accept, now_s=now_s)
    feed = ImageFeed(path)
    tasks = [asyncio.create_task(server.run()), asyncio.create_task(feed.run())]
    try:
        await _until(lambda: feed.alive)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(len(body).to_bytes(wire.HEAD_BYTES, "big") + body)
        async with asyncio.timeout(SOON_S):
            while await reader.read(65_536):
                pass
        writer.close()
        assert (await feed.command(GOOD)).result is Result.ACCEPTED
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("body", STRANGERS.values(), ids=STRANGERS)
async def test_a_mirror_that_is_told_nonsense_connects_anew(body, tmp_path):
    told = asyncio.Event()
    connections = []

    async def nonsense(_reader, writer):
        connections.append(writer)
        writer.write(len(body).to_bytes(wire.HEAD_BYTES, "big") + body)
        if len(connections) > 1:
            told.set()

    server = await asyncio.start_unix_server(nonsense, tmp_path / "s")
    feed = ImageFeed(tmp_path / "s")
    task = asyncio.create_task(feed.run())
    async with asyncio.timeout(SOON_S):
        await told.wait()
    assert not task.done()
    assert not feed.alive
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.close()
    for writer in connections:
        writer.close()


async def test_a_tool_that_leaves_abruptly_is_no_news(tmp_path):
    """Whoever closes with unread bytes resets the connection: every `powerblock command` may."""
    path = tmp_path / "s"
    server = ImageServer(path, Image([PDU]), block="b", epoch=1, on_command=accept, now_s=now_s)
    feed = ImageFeed(path)
    tasks = [asyncio.create_task(server.run()), asyncio.create_task(feed.run())]
    try:
        with capture_logs() as logged:
            await _until(lambda: feed.alive)
            for _ in range(20):
                with socket.socket(socket.AF_UNIX) as tool:
                    tool.setblocking(False)
                    tool.connect(str(path))
                    await asyncio.sleep(0.01)  # the catalogue lies unread in its buffer
                    tool.send(b"\0")
            await asyncio.sleep(0.1)
            assert (await feed.command(GOOD)).result is Result.ACCEPTED
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [entry for entry in logged if entry["log_level"] != "debug"] == []
    assert any("reset" in entry["why"].lower() for entry in logged)
