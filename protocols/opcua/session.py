"""One connection as it was found: where the nodes are, what one request may carry, and questions to it.

A namespace's index may change with every start of a server, so nodes are found by the namespace's URI after
every connect. Requests are cut to what the server says it takes, and to what can be decoded between two
beats of ours: two thousand values in one answer would hold everything else up for 45 ms.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asyncua import Client, ua

from protocols.opcua.fence import PeerError, ask
from protocols.profile import Point

READ_MAX: Final = 30  # values per request: a millisecond to decode, and hardly more per value than 2,000
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
        """What the server says of at most `read_max` nodes now, in the same order. Raises PeerError."""
        wish = ua.ReadParameters()
        wish.TimestampsToReturn = ua.TimestampsToReturn.Both
        wish.NodesToRead = [ua.ReadValueId(NodeId=node, AttributeId=attribute) for node in nodes]
        answers = await ask(self.client.uaclient.read(wish), self.wait_max_s)
        if answers is None or len(answers) != len(nodes):
            raise PeerError(f"{len(nodes)} nodes asked for, {len(answers or ())} came")
        return list(answers)

    async def read_all(self, nodes: Mapping[str, ua.NodeId]) -> AsyncIterator[list[tuple[str, ua.DataValue]]]:
        """The same for any number of nodes by name, in pieces."""
        names = list(nodes)
        for first in range(0, len(names), self.read_max):
            piece = names[first : first + self.read_max]
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
        nodes={name: _node_id(p.node, uris) for name, p in readable.items() if name not in absent},
        absent=absent,
        read_max=min(_limit(read_max), READ_MAX),
        items_max=_limit(items_max),
        wait_max_s=wait_max_s,
    )


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
