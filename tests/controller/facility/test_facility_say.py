"""What the facility server says of itself among the block's alarms: bounded, whatever there is to say."""

import asyncio

import msgspec
import pytest

from controller.clock import now_s
from controller.facility import serve
from controller.image import wire
from controller.image.feed import ImageFeed
from controller.image.image import Image
from controller.image.model import WORDS_MAX, Command, Group, Outcome, Point, Result, Role
from controller.image.server import ImageServer

SOON_S = 20.0
PDU = Group(path="devices/pdu", kind="device", points=(Point(name="power_w"),))


class Complaining:
    """A server with as much to complain of as there can be."""

    def __init__(self, letter: str) -> None:
        self._letter = letter
        self.fault = letter * 10_000

    def flags(self):
        return [(f"{self._letter * WORDS_MAX}{n}"[-WORDS_MAX:], self._letter * WORDS_MAX) for n in range(99)]


class Controller:
    """An image socket that keeps what it is told."""

    def __init__(self, folder) -> None:
        self.heard: list[Command] = []
        path = folder / "s"
        self.server = ImageServer(path, Image([PDU]), block="b", epoch=1, on_command=self.take, now_s=now_s)
        self.feed = ImageFeed(path)

    async def take(self, command: Command) -> Outcome:
        self.heard.append(command)
        return Outcome(result=Result.ACCEPTED)

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self.server.run()), asyncio.create_task(self.feed.run())]
        async with asyncio.timeout(SOON_S):
            while not self.feed.alive:  # noqa: ASYNC110  a value of another task
                await asyncio.sleep(0.005)
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("letter", ["x", "ü", "語", "🜁"])
async def test_what_all_servers_complain_of_together_still_fits_one_command(letter, tmp_path):
    """A frame that is too large would end the connection, and with it everything that is served."""
    servers = {name: Complaining(letter) for name in serve.SERVERS}
    said = serve.said(servers)
    assert len(msgspec.msgpack.encode(said)) < wire.COMMAND_MAX_BYTES
    assert set(servers) <= set(said), "a fault of each is said before the flags of any"
    assert "more" in said["more"]
    async with Controller(tmp_path) as there:
        command = msgspec.structs.replace(serve.FACILITY, arguments=said)
        assert (await there.feed.command(command)).result is Result.ACCEPTED
        assert there.heard[-1].arguments == said
        assert there.feed.alive


def test_what_fits_is_said_whole():
    class Calm:
        fault = ""

        def flags(self):
            return [("bms x", "asks")]

    assert serve.said({"bms": Calm(), "mirror": object()}) == {"bms x": "asks"}


async def test_a_command_that_is_too_long_is_refused_and_costs_the_mirror_nothing(tmp_path):
    """A reason of 20,000 letters must not cut off everybody else who is served."""
    async with Controller(tmp_path) as there:
        long = Command(
            verb="shelve", arguments={"key": "meter", "for_s": 60.0, "reason": "x" * 20_000},
            by="alice", role=Role.OPERATE, via="opcua",
        )  # fmt: skip
        outcome = await there.feed.command(long)
        assert outcome.result is Result.REJECTED
        assert "too long" in outcome.reason
        assert there.feed.alive
        short = msgspec.structs.replace(long, arguments={"key": "meter", "for_s": 60.0})
        assert (await there.feed.command(short)).result is Result.ACCEPTED
        assert [command.arguments for command in there.heard] == [short.arguments]


async def test_a_writer_whose_name_is_too_long_is_refused_and_costs_the_mirror_nothing(tmp_path):
    """A certificate's name is as long as its authority let it be; the controller takes no such frame."""
    async with Controller(tmp_path) as there:
        command = Command(verb="heartbeat", by="x" * 301, role=Role.OPERATE, via="modbus+tls")
        outcome = await there.feed.command(command)
        assert outcome.result is Result.REJECTED
        assert "nothing was sent" in outcome.reason
        assert there.feed.alive
        assert there.heard == []
