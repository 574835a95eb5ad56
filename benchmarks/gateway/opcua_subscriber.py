"""An OPC UA client that subscribes and counts; a process of its own, so that its work is not the server's.

    python -m benchmarks.gateway.opcua_subscriber URL PATTERN WANTED SEAT SEATS PERIOD_MS

It waits until the server has WANTED variables whose browse name matches PATTERN and takes its share of them:
those of SEAT (from 0) of SEATS; all of them with SEATS 1. It says how many those are, then how many
values have come so far whenever it gets a line, and ends with its standard input.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

from asyncua import Client, Node, ua

VISITS_MAX: Final = 200_000  # nodes; no server of ours has more
SERVER_OBJECT: Final = ua.NodeId(ua.ObjectIds.Server)  # diagnostics of the server itself
REQUEST_ITEMS: Final = 500
LOOK_S: Final = 1.0  # the server may still wait for the controller to tell what there is
ANSWER_MAX_S: Final = 30.0  # a busy server is slow to take thousands of subscriptions


class Count:
    """Values that have come."""

    def __init__(self) -> None:
        self.values = 0

    def datachange_notification(self, _node: Node, _value: Any, _change: Any) -> None:
        self.values += 1


async def variables(client: Client, pattern: str) -> AsyncIterator[Node]:
    """Every variable below `Objects` whose name matches, in the order of the address space."""
    names, seen = re.compile(pattern), {SERVER_OBJECT}
    waiting = [client.nodes.objects]
    while waiting and len(seen) < VISITS_MAX:
        for child in await waiting.pop(0).get_children_descriptions():
            if child.NodeId in seen:
                continue
            seen.add(child.NodeId)
            node = client.get_node(child.NodeId)
            if child.NodeClass == ua.NodeClass.Object:
                waiting.append(node)
            elif child.NodeClass == ua.NodeClass.Variable and names.fullmatch(child.BrowseName.Name):
                yield node


async def _run(url: str, pattern: str, wanted: int, seat: int, seats: int, period_ms: int) -> None:
    count = Count()
    async with Client(url, timeout=ANSWER_MAX_S) as client:
        found: list[Node] = []
        while len(found) < wanted:
            await asyncio.sleep(LOOK_S)
            found = [node async for node in variables(client, pattern)]
        nodes = found[seat::seats]
        subscription = await client.create_subscription(period_ms, count)
        for first in range(0, len(nodes), REQUEST_ITEMS):
            await subscription.subscribe_data_change(nodes[first : first + REQUEST_ITEMS])
        print(len(nodes), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(count.values, flush=True)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])))
