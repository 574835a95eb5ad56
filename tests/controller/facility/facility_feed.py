"""A process image with its two ends and a real socket between them, filled by hand."""

import asyncio
import contextlib

from controller.clock import now_s, now_utc_s
from controller.image.feed import ImageFeed
from controller.image.image import Image
from controller.image.model import Group, Outcome, Point, Result
from controller.image.server import ImageServer
from controller.image.wire import Update
from tests.brokers import until


def pdu(name="pdu-1", count=4, **about):
    """A group with `count` powers and a text."""
    points = tuple(Point(name=f"outlet_{number}_power_w", unit="W") for number in range(count - 1))
    return Group(
        path=f"devices/{name}",
        kind="device",
        title=f"PDU {name}",
        points=(Point(name="power_w", unit="W", deadband=5.0), *points),
        about={"profile": "xerus_pdu", "kind": "pdu", **about},
    )


class Plant:
    """The controller's end, and a feed at the other.

    Attributes:
        commands: what came back, in order; `outcome` answers each.
    """

    def __init__(self, folder, groups):
        self.groups = list(groups)
        self.commands = []
        self.outcome = lambda command: Outcome(result=Result.ACCEPTED, value=command.arguments.get("value"))
        self._path = folder / "image.sock"
        self.feed = ImageFeed(self._path)
        self._server = self._new_server()
        self._task = None

    def _new_server(self):
        return ImageServer(
            self._path, Image(self.groups), block="hall-a", epoch=1, on_command=self._carry_out, now_s=now_s
        )

    async def _carry_out(self, command):
        self.commands.append(command)
        return self.outcome(command)

    def index(self, path):
        return [group.path for group in self.groups].index(path)

    def tell(self, path, *values, points=None, doubt="", faults=None, age_s=0.0, sources_utc_s=None):
        """New values of a group, from the controller's side; `points` by name."""
        index = self.index(path)
        names = [point.name for point in self.groups[index].points]
        places = None if points is None else [names.index(name) for name in points]
        self._server.update(
            Update(index, list(values), now_s() - age_s, now_utc_s(), places, sources_utc_s, faults, doubt)
        )

    def regroup(self, index, group):
        self.groups[index] = group
        self._server.regroup(index, group)

    def alarms(self, *alarms):
        self._server.alarms(alarms)

    async def die(self):
        """The controller is gone, and its socket with it."""
        self._task.cancel()
        await asyncio.wait({self._task})
        for listener in list(self._server._listeners):
            listener.writer.close()

    async def live_again(self):
        self._server = self._new_server()
        self._task = asyncio.create_task(self._server.run())

    async def __aenter__(self):
        self._task = asyncio.create_task(self._server.run())
        self._feeding = asyncio.create_task(self.feed.run())
        await until(lambda: self.feed.alive, within_s=10.0)
        return self

    async def __aexit__(self, *_):
        for task in (self._feeding, self._task):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for listener in list(self._server._listeners):
            listener.writer.close()


@contextlib.asynccontextmanager
async def served(*parts):
    """Runs these until the end, and shows their errors."""
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        yield
    finally:
        waiting = set(tasks)
        while waiting:  # as `serve` does: a cancellation may be lost in a library
            for task in waiting:
                task.cancel()
            _, waiting = await asyncio.wait(waiting, timeout=0.5)
        for task in tasks:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception()
