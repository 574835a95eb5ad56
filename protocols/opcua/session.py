"""One connection as it was found: where the nodes are, what one request may carry, and questions to it.

A namespace's index may change with every start of a server, so nodes are found by the namespace's URI after
every connect. Requests are cut to what the server says it takes, and to what can be decoded between two
beats of ours: two thousand values in one answer would hold everything else up for 45 ms. What a server
refuses as too much, or what comes and cannot be decoded, is asked for again in halves, down to the node at
fault.

A server may number its namespaces anew under a standing connection, when its program is loaded again; the
same identifier may then be something else. So every read asks for their names along with the values.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asyncua import Client, ua

from protocols.opcua.fence import PeerError, ask
from protocols.profile import Point

READ_MAX: Final = 30  # values per request: a millisecond to decode, and hardly more per value than 2,000
NODES_AT_ONCE: Final = 500  # texts to node ids: two thousand take 7 ms
NAMESPACES_MAX: Final = 1024  # a server that names more is not a device

NAMESPACE_ARRAY: Final = ua.NodeId(2255)  # numbers of OPC 10000-6, annex A
READS_MAX_NODE: Final = ua.NodeId(11705)
ITEMS_MAX_NODE: Final = ua.NodeId(11714)


@dataclass(frozen=True, kw_only=True)
class Session:
    """What is known of an open connection.

    `nodes` holds the points that can be read, `absent` those whose namespace the server does not have.
    """

    client: Client
    certificate: bytes  # the server's, as judged when connecting; b"" if unsecured
    uris: tuple[str, ...]
    nodes: Mapping[str, ua.NodeId]
    absent: Mapping[str, str]  # name of the point -> URI
    read_max: int
    items_max: int
    wait_max_s: float

    async def read(
        self, nodes: Sequence[ua.NodeId], attribute: ua.AttributeIds = ua.AttributeIds.Value
    ) -> list[ua.DataValue]:
        """What the server says of less than `read_max` nodes now, in the same order. Raises PeerError."""
        wanted = [ua.ReadValueId(NodeId=node, AttributeId=attribute) for node in nodes]
        if not self.uris:
            return await self._read(wanted)
        spaces = ua.ReadValueId(NodeId=NAMESPACE_ARRAY, AttributeId=ua.AttributeIds.Value)
        *answers, said = await self._read([*wanted, spaces])  # as the last: it speaks of those before it
        uris = said.Value.Value if said.Value is not None else None
        if isinstance(uris, list) and tuple(uris[: len(self.uris)]) != self.uris:
            raise PeerError("the server has numbered its namespaces anew; connecting anew")
        return answers

    async def _read(self, wanted: Sequence[ua.ReadValueId]) -> list[ua.DataValue]:
        """Answers to all of it, in halves where they do not come at once. Raises PeerError."""
        wish = ua.ReadParameters()
        wish.TimestampsToReturn = ua.TimestampsToReturn.Both
        wish.NodesToRead = list(wanted)
        try:
            answers = await ask(self.client.uaclient.read(wish), self.wait_max_s)
        except PeerError as error:
            if not error.too_much:
                raise
            if len(wanted) == 1:
                return [ua.DataValue(StatusCode=ua.StatusCode(getattr(ua.StatusCodes, error.too_much)))]
            half = len(wanted) // 2
            return [*await self._read(wanted[:half]), *await self._read(wanted[half:])]
        if answers is None or len(answers) != len(wanted):
            raise PeerError(f"{len(wanted)} nodes asked for, {len(answers or ())} came")
        return list(answers)

    async def read_all(self, nodes: Mapping[str, ua.NodeId]) -> AsyncIterator[list[tuple[str, ua.DataValue]]]:
        """The same for any number of nodes by name, in pieces."""
        names, step = list(nodes), max(1, self.read_max - 1)
        for first in range(0, len(names), step):
            piece = names[first : first + step]
            answers = await self.read([nodes[name] for name in piece])
            yield list(zip(piece, answers, strict=True))

    def node_id(self, text: str) -> ua.NodeId:
        """Node of `nsu=<URI>;s=<name>` or `i=<n>`. Raises PeerError where the server lacks the namespace."""
        return _node_id(text, self.uris)


async def look_around(
    client: Client, certificate: bytes, points: Mapping[str, Point], wait_max_s: float
) -> Session:
    """Find out what there is on a connection just made. Raises PeerError."""
    bare = Session(
        client=client, certificate=certificate, uris=(), nodes={}, absent={}, read_max=READ_MAX, items_max=0,
        wait_max_s=wait_max_s,
    )  # fmt: skip
    answers = await bare.read([NAMESPACE_ARRAY, READS_MAX_NODE, ITEMS_MAX_NODE])
    said, read_max, items_max = (answer.Value.Value if answer.Value else None for answer in answers)
    if not isinstance(said, list) or len(said) > NAMESPACES_MAX or not all(isinstance(u, str) for u in said):
        raise PeerError("the server does not name its namespaces; is it an OPC UA server of a device?")
    uris = tuple(said)
    readable = {name: point for name, point in points.items() if point.readable}
    absent = {
        name: point.namespace_uri
        for name, point in readable.items()
        if point.namespace_uri and point.namespace_uri not in uris
    }
    return Session(
        client=client,
        certificate=certificate,
        uris=uris,
        nodes=await _node_ids({name: p.node for name, p in readable.items() if name not in absent}, uris),
        absent=absent,
        read_max=min(_limit(read_max), READ_MAX),
        items_max=_limit(items_max),
        wait_max_s=wait_max_s,
    )


async def _node_ids(nodes: Mapping[str, str], uris: Sequence[str]) -> dict[str, ua.NodeId]:
    found = {}
    for name, text in nodes.items():
        found[name] = _node_id(text, uris)
        if len(found) % NODES_AT_ONCE == 0:
            await asyncio.sleep(0)
    return found


def _node_id(text: str, uris: Sequence[str]) -> ua.NodeId:
    uri, semicolon, identifier = text.removeprefix("nsu=").rpartition(";")
    if not semicolon:
        return ua.NodeId.from_string(identifier)
    if uri not in uris:
        raise PeerError(f"the server has no namespace {uri}; check the profile's node")
    return ua.NodeId.from_string(f"ns={uris.index(uri)};{identifier}")


def _limit(said: Any) -> int:
    """0 and silence mean no limit."""
    return said if isinstance(said, int) and said > 0 else 1 << 30
