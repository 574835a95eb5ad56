"""An OPC UA server with ten subscribers: what it costs, and whether they get everything.

The subscribers are asyncua clients in processes of their own (`opcua_subscriber`); they cost more than the
server may, so on a machine of two cores they are what limits the load.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple

from benchmarks.gateway.usage import usage

SUBSCRIBERS: Final = 10
PERIOD_MS: Final = 100
READY_MAX_S: Final = 120.0
ANSWER_MAX_S: Final = 10.0
STOP_MAX_S: Final = 5.0


class Load(NamedTuple):
    """What the server's processes took of one core, and what its subscribers got."""

    cpu_ratio: float
    resident_mib: float
    variables: int  # that are subscribed to, in all
    values_per_s: float  # of all subscribers


class Subscribers:
    """Ten clients that share the variables; or, `each_all`, ten that want all of them."""

    def __init__(self, children: Sequence[Process], variables: int) -> None:
        self._children = children
        self.variables = variables

    async def values(self) -> int:
        """How many values they all have got so far."""
        return sum(await asyncio.gather(*(_ask(child) for child in self._children)))


@asynccontextmanager
async def subscribers(
    url: str, pattern: str, wanted: int, count: int = SUBSCRIBERS, *, each_all: bool = False
) -> AsyncIterator[Subscribers]:
    """Subscribed to `wanted` variables; TimeoutError when the server takes too long to have or grant them."""
    async with AsyncExitStack() as stack:
        children = []
        for seat in range(count):
            share = (0, 1) if each_all else (seat, count)
            children.append(await stack.enter_async_context(_subscriber(url, pattern, wanted, *share)))
        async with asyncio.timeout(READY_MAX_S):
            shares = await asyncio.gather(*(_told(child) for child in children))
        yield Subscribers(children, sum(shares))


async def measure(clients: Subscribers, server_pids: Sequence[int], window_s: float) -> Load:
    """Raises FileNotFoundError when the server ends meanwhile."""
    loop = asyncio.get_running_loop()
    began_s, before, values_before = loop.time(), usage(server_pids), await clients.values()
    await asyncio.sleep(window_s)
    ended_s, after, values_after = loop.time(), usage(server_pids), await clients.values()
    return Load(
        cpu_ratio=(after.cpu_s - before.cpu_s) / (ended_s - began_s),
        resident_mib=after.resident_mib,
        variables=clients.variables,
        values_per_s=(values_after - values_before) / (ended_s - began_s),
    )


@asynccontextmanager
async def _subscriber(url: str, pattern: str, wanted: int, seat: int, seats: int) -> AsyncIterator[Process]:
    arguments = (url, pattern, str(wanted), str(seat), str(seats), str(PERIOD_MS))
    argv = (sys.executable, "-m", "benchmarks.gateway.opcua_subscriber", *arguments)
    child = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE)
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            async with asyncio.timeout(STOP_MAX_S):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()


async def _ask(child: Process) -> int:
    assert child.stdin is not None
    child.stdin.write(b"\n")
    async with asyncio.timeout(ANSWER_MAX_S):
        return await _told(child)


async def _told(child: Process) -> int:
    assert child.stdout is not None
    line = await child.stdout.readline()
    if not line:
        raise RuntimeError("a subscriber ended; what it said is above")
    return int(line)
