"""What is done to one node: written as its own type, read back, called. No permission is asked here.

The node says which type it wants, and most servers refuse any other. An answer "Good" means that the server
took it, not that the device did it: only the value read back says so.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from asyncua import ua
from asyncua.common.ua_utils import data_type_to_variant_type

from protocols.opcua import values
from protocols.opcua.fence import PeerError, ask, explained, status_name
from protocols.opcua.session import Session
from protocols.profile import Point
from protocols.reading import DeviceError, Value

READ_BACK_TRIES: Final = 5
READ_BACK_GAP_S: Final = 0.1  # some devices take a cycle of their own until a node shows what it was told
BUILT_IN_TYPES: Final = 15  # OPC 10000-6, 5.1.2: numbers 1 to 15 are Boolean to ByteString


async def look(session: Session, point: Point) -> tuple[Value, str]:
    """The point's value as of now, and why it has none. Raises PeerError."""
    (answer,) = await session.read([session.node_id(point.node)])
    return values.judge(point, answer)


async def before(session: Session, point: Point, node: ua.NodeId) -> tuple[Value, ua.VariantType]:
    """The present value (None: unknown) and the type that the node holds. Raises PeerError."""
    was: Value = None
    if point.readable:
        (answer,) = await session.read([node])
        was = values.judge(point, answer)[0]
        if answer.Value is not None and answer.Value.Value is not None:
            return was, answer.Value.VariantType
    (answer,) = await session.read([node], ua.AttributeIds.DataType)
    return was, await _kind_of(session, answer)


async def send(session: Session, node: ua.NodeId, variant: ua.Variant) -> str:
    """Write; name of the status that the server answers with. Raises PeerError."""
    wish = ua.WriteParameters()
    bare = ua.DataValue(variant, StatusCode=None)  # servers that take no status refuse even Good
    wish.NodesToWrite = [ua.WriteValue(NodeId=node, AttributeId=ua.AttributeIds.Value, Value=bare)]
    result = _only(await ask(session.client.uaclient.write(wish), session.wait_max_s), "a write")
    return "Good" if result.is_good() else status_name(result)


async def read_back(session: Session, what: str, point: Point, node: ua.NodeId, variant: ua.Variant) -> float:
    """What the device shows, once it is what it was told. Raises PeerError, or DeviceError if it is not."""
    for _ in range(READ_BACK_TRIES):
        (answer,) = await session.read([node])
        value, fault = values.judge(point, answer)
        if isinstance(value, float | int) and values.same(variant, values.raw_of(answer)):
            return float(value)
        shown = fault or f"{value} {point.unit}"
        await asyncio.sleep(READ_BACK_GAP_S)
    raise DeviceError(
        f"{what}: told {variant.Value} and taken, but it shows {shown}: "
        f"is the device in local mode, or another master at it?"
    )


async def call(session: Session, what: str, point: Point, arguments: Sequence[float]) -> tuple[Value, ...]:
    """Call the point's method; its outputs. Raises PeerError, or DeviceError if it is refused."""
    try:
        method = session.node_id(point.method)
        kinds = await _argument_kinds(session, method)
    except PeerError as error:
        raise DeviceError(f"{what}: {error}; nothing was sent") from error
    if len(kinds) != len(arguments):
        raise DeviceError(
            f"{what}: the method takes {len(kinds)} arguments, not {len(arguments)}; nothing was sent"
        )
    wish = ua.CallMethodRequest()
    wish.ObjectId, wish.MethodId = session.node_id(point.node), method
    try:
        wish.InputArguments = [values.exact(a, kind) for a, kind in zip(arguments, kinds, strict=True)]
    except values.UnfitError as error:
        raise DeviceError(f"{what}: {error}; nothing was sent") from error
    result = _only(await ask(session.client.uaclient.call([wish]), session.wait_max_s), "a call")
    if not result.StatusCode.is_good():
        raise DeviceError(f"{what}: refused: {explained(status_name(result.StatusCode))}")
    return tuple(values.plain(output) for output in result.OutputArguments or ())


async def _kind_of(session: Session, answer: ua.DataValue) -> ua.VariantType:
    """The type behind a DataType attribute, looked up at the server where it is not built in."""
    node = answer.Value.Value if answer.Value is not None else None
    if not isinstance(node, ua.NodeId):
        raise PeerError(f"the server does not say which type the node has: {status_name(answer.StatusCode)}")
    return await _variant_type(session, node)


async def _variant_type(session: Session, node: ua.NodeId) -> ua.VariantType:
    if node.NamespaceIndex == 0 and node.Identifier in range(1, BUILT_IN_TYPES + 1):
        return ua.VariantType(node.Identifier)
    kind = await ask(data_type_to_variant_type(session.client.get_node(node)), session.wait_max_s)
    return ua.VariantType(kind)


async def _argument_kinds(session: Session, method: ua.NodeId) -> list[ua.VariantType]:
    """Types of the method's arguments in order; [] for one that declares none."""
    path = ua.BrowsePath()
    path.StartingNode = method
    path.RelativePath = ua.RelativePath.from_string("0:InputArguments")
    asked = ask(session.client.uaclient.translate_browsepaths_to_nodeids([path]), session.wait_max_s)
    found = _only(await asked, "the question for the method's arguments")
    if status_name(found.StatusCode) == "BadNoMatch":
        return []
    if not found.StatusCode.is_good() or not found.Targets:
        raise PeerError(f"the method's arguments: {explained(status_name(found.StatusCode))}")
    (answer,) = await session.read([found.Targets[0].TargetId])
    declared = values.raw_of(answer) or []
    types = [getattr(one, "DataType", None) for one in declared] if isinstance(declared, list) else [None]
    if not all(isinstance(one, ua.NodeId) for one in types):
        raise PeerError("the server does not say which arguments the method takes")
    return [await _variant_type(session, one) for one in types]


def _only(results: Sequence[Any] | None, what: str) -> Any:
    """The one result of one request. Raises PeerError."""
    if results is None or len(results) != 1:
        raise PeerError(f"the server gave {len(results or ())} answers to {what}")
    return results[0]
