"""The socket between controller and facility server: real sockets, both ends, and what breaks between them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controller.clock import now_s
from controller.image import feed as feeds
from controller.image import server as servers
from controller.image import wire
from controller.image.feed import ImageFeed
from controller.image.image import Image
from controller.image.model import AlarmView, Command, Group, Outcome, Point, Result, Role
from controller.image.server import ImageServer
from controller.image.wire import Update

PDU = Group(path="devices/pdu", kind="device", points=(Point(name="power_w"), Point(name="current_a")))
ALARM = AlarmView(
    key="meter",
    text="gone",
    priority="high",
    state="unacknowledged",
    active=True,
    acknowledged=False,
    since_utc_s=1.0,
)
LIMIT = Command(
    verb="set_power_limit", arguments={"limit_w": 9000.0}, by="alice", role=Role.OPERATE, via="opcua"
)


async def accept(command: Command) -> Outcome:
    return Outcome(result=Result.ACCEPTED, value=float(command.arguments["limit_w"] or 0.0))


def server_at(path: Path, carry_out=accept, epoch: int = 1) -> ImageServer:
    return ImageServer(path, Image([PDU]), block="b", epoch=epoch, on_command=carry_out, now_s=now_s)


@asynccontextmanager
async def running(*runs) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(run()) for run in runs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition) -> None:  # values of other tasks: there is no event to wait for
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def power_w(feed: ImageFeed) -> object:
    return feed.image.cell("devices/pdu", "power_w", now_s()).value if feed.image.groups else None


async def test_a_mirror_gets_what_is_known_and_then_every_change(tmp_path: Path):
    server, feed = server_at(tmp_path / "s"), ImageFeed(tmp_path / "s")
    server.update(Update(0, [1.0, 2.0], now_s(), 1.0))
    server.alarms((ALARM,))
    changes: list[tuple[int, object]] = []
    feed.on_update.append(lambda group, points: changes.append((group, points)))
    async with running(server.run, feed.run):
        await until(lambda: power_w(feed) == 1.0 and feed.alarms == (ALARM,))
        assert feed.block == "b"
        server.update(Update(0, [3.0], now_s(), 2.0, points=[0]))
        await until(lambda: power_w(feed) == 3.0)
        assert changes[-1] == (0, [0])


async def test_a_device_that_tells_what_it_is_changes_the_mirrors_shape(tmp_path: Path):
    server, feed = server_at(tmp_path / "s"), ImageFeed(tmp_path / "s")
    shapes: list[int] = []
    feed.on_shape.append(lambda: shapes.append(len(feed.image.groups[0].group.points)))
    async with running(server.run, feed.run):
        await until(lambda: feed.alive)
        server.regroup(0, Group(path="devices/pdu", kind="device", points=(Point(name="only"),)))
        await until(lambda: shapes == [2, 1])


async def test_a_restarted_controller_of_the_same_shape_leaves_address_spaces_alone(tmp_path: Path):
    path = tmp_path / "s"
    feed, shapes = ImageFeed(path), []
    feed.on_shape.append(lambda: shapes.append(1))
    async with running(feed.run):
        for number in (1.0, 2.0):
            server = server_at(path)
            server.update(Update(0, [number, 0.0], now_s(), 1.0))
            async with running(server.run):
                await until(lambda: power_w(feed) == number)  # noqa: B023
            await until(lambda: not feed.alive)
    assert shapes == [1]


async def test_a_controller_that_hangs_with_an_open_socket_is_noticed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(feeds, "SILENT_S", 0.3)
    server, feed = server_at(tmp_path / "s"), ImageFeed(tmp_path / "s")
    turns: list[bool] = []
    feed.on_alive.append(lambda: turns.append(feed.alive))
    monkeypatch.setattr(servers, "PULSE_S", 60.0)
    async with running(server.run, feed.run):
        await until(lambda: turns[:2] == [True, False])


async def test_commands_come_back_with_their_outcome(tmp_path: Path):
    server, feed = server_at(tmp_path / "s"), ImageFeed(tmp_path / "s")
    async with running(server.run, feed.run):
        await until(lambda: feed.alive)
        outcomes = await asyncio.gather(*(feed.command(LIMIT) for _ in range(5)))
    assert [outcome.value for outcome in outcomes] == [9000.0] * 5


async def test_a_command_that_waits_for_a_slow_device_holds_up_no_other(tmp_path: Path):
    released = asyncio.Event()

    async def carry_out(command: Command) -> Outcome:
        if command.verb == "write":
            await released.wait()
        return Outcome(result=Result.ACCEPTED)

    server, feed = server_at(tmp_path / "s", carry_out), ImageFeed(tmp_path / "s")
    write = Command(verb="write", by="a", role=Role.OPERATE, via="opcua")
    async with running(server.run, feed.run):
        await until(lambda: feed.alive)
        slow = asyncio.create_task(feed.command(write))
        assert (await feed.command(LIMIT)).result is Result.ACCEPTED
        assert not slow.done()
        released.set()
        assert (await slow).result is Result.ACCEPTED


async def test_more_commands_than_can_be_in_hand_are_refused_not_queued(tmp_path: Path):
    released = asyncio.Event()

    async def carry_out(_: Command) -> Outcome:
        await released.wait()
        return Outcome(result=Result.ACCEPTED)

    server, feed = server_at(tmp_path / "s", carry_out), ImageFeed(tmp_path / "s")
    async with running(server.run, feed.run):
        await until(lambda: feed.alive)
        asked = [asyncio.create_task(feed.command(LIMIT)) for _ in range(servers.IN_HAND_MAX + 1)]
        await until(lambda: any(task.done() for task in asked))
        released.set()
        results = [(await task).result for task in asked]
    assert results.count(Result.REJECTED) == 1


async def test_a_command_whose_controller_is_lost_is_answered_honestly(tmp_path: Path):
    async def never(_: Command) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    server, feed = server_at(tmp_path / "s", never), ImageFeed(tmp_path / "s")
    async with running(feed.run):
        async with running(server.run):
            await until(lambda: feed.alive)
            asked = asyncio.create_task(feed.command(LIMIT))
            await asyncio.sleep(0.05)
        await until(lambda: not feed.alive)
        outcome = await asked
        assert outcome.result is Result.REJECTED
        assert "carried out or not" in outcome.reason
        assert "nothing was sent" in (await feed.command(LIMIT)).reason


async def test_a_reader_that_does_not_keep_up_costs_nothing_and_gets_the_newest(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(servers, "BEHIND_BYTES", 4096)
    path = tmp_path / "s"
    server = server_at(path)
    async with running(server.run):
        await until(path.exists)
        reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        for number in range(100_000):
            server.update(Update(0, [float(number), 0.0], now_s(), 1.0))
            if number % 500 == 0:
                await asyncio.sleep(0.003)
        (listener,) = server._listeners
        assert listener.seen is not None
        assert listener.unsent_bytes < 400_000  # what was under way when it fell behind, and nothing since
        last = -1.0
        async with asyncio.timeout(10):
            async for body in wire.bodies(reader, wire.FRAME_MAX_BYTES):
                frame = wire.frame(body)
                if isinstance(frame, Update):
                    last = frame.values[0]
                if last == 99_999.0:
                    break
        writer.close()


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x03abc", b"\x00\x00\x00\x01\xc0"])
async def test_garbage_closes_its_own_connection_and_no_other(tmp_path: Path, garbage: bytes):
    path = tmp_path / "s"
    server, feed = server_at(path), ImageFeed(path)
    async with running(server.run, feed.run):
        await until(lambda: feed.alive)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        async with asyncio.timeout(5):
            await reader.read(-1)
        writer.close()
        assert (await feed.command(LIMIT)).result is Result.ACCEPTED


async def test_another_version_is_refused_with_the_remedy(tmp_path: Path, monkeypatch, capsys):
    server, feed = server_at(tmp_path / "s"), ImageFeed(tmp_path / "s")
    monkeypatch.setattr(servers.wire, "VERSION", 2)
    catalogue = wire.Catalogue(3, "b", 1, (PDU,))
    with pytest.raises(wire.WireError, match="update both"):
        feed._learn(catalogue)
    del server


async def test_what_an_earlier_controller_knew_is_no_news_of_the_next_one(tmp_path: Path):
    path = tmp_path / "s"
    feed = ImageFeed(path)
    async with running(feed.run):
        first = server_at(path, epoch=1)
        first.update(Update(0, [1.0, 2.0], now_s(), 1.0))
        async with running(first.run):
            await until(lambda: power_w(feed) == 1.0)
        await until(lambda: not feed.alive)
        async with running(server_at(path, epoch=2).run):
            await until(lambda: feed.alive)
            cell = feed.image.cell("devices/pdu", "power_w", now_s())
            assert (cell.value, cell.why) == (None, "not heard yet")


async def test_for_the_panel_speaks_only_who_runs_as_this_user(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(servers, "_peer_uid", lambda _: 4711)
    server, feed = server_at(tmp_path / "s"), ImageFeed(tmp_path / "s")
    panel = Command(verb="set_mode", arguments={}, by="mallory", role=Role.ENGINEER, via="opcua", local=True)
    async with running(server.run, feed.run):
        await until(lambda: feed.alive)
        assert "panel speaks its own user" in (await feed.command(panel)).reason
        assert (await feed.command(LIMIT)).result is Result.ACCEPTED


async def test_a_command_that_breaks_the_program_is_answered_all_the_same(tmp_path: Path):
    async def broken(_: Command) -> Outcome:
        raise KeyError("a bug")

    server, feed = server_at(tmp_path / "s", broken), ImageFeed(tmp_path / "s")
    async with running(server.run, feed.run):
        await until(lambda: feed.alive)
        assert "fault of this program" in (await feed.command(LIMIT)).reason


async def test_who_does_not_read_the_answers_is_not_heard_and_costs_no_memory(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(servers, "BEHIND_BYTES", 4096)
    monkeypatch.setattr(servers, "COMMAND_GAP_S", 0.0)
    path = tmp_path / "s"
    server = server_at(path)
    async with running(server.run):
        await until(path.exists)
        _, writer = await asyncio.open_unix_connection(path)
        frame = wire.packed(LIMIT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                for _ in range(5000):
                    writer.write(frame * 10)
                    await writer.drain()
        (listener,) = server._listeners
        assert listener.unsent_bytes < 64 * 1024
        writer.transport.abort()
        await asyncio.sleep(0.05)
