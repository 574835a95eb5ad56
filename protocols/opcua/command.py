"""Commands to one device: allowed or not, as the node's own type, written, read back, compared.

Nothing leaves without a rule of the site for that very point, and a value outside the rule is refused, not
clamped. The node says which type it wants; a number goes out as the nearest step of it that the rule allows.
An answer "Good" means that the server took it, not that it did it: only the value read back says so.

Of several writes that wait for the same point the newest counts. Every command has a deadline, and what is
not confirmed by then may be in force or not: the error says which of the two it knows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from asyncua import ua
from asyncua.common.ua_utils import data_type_to_variant_type

from protocols import codec
from protocols.opcua import values
from protocols.opcua.fence import PeerError, ask, explained, status_name
from protocols.opcua.session import Session
from protocols.profile import Point, Profile
from protocols.reading import DeviceError, Value, WriteRule, Written

READ_BACK_TRIES: Final = 5
READ_BACK_GAP_S: Final = 0.1  # some devices take a cycle of their own until a node shows what it was told
BUILT_IN_TYPES: Final = 15  # OPC 10000-6, 5.1.2: numbers 1 to 15 are Boolean to ByteString

_T = TypeVar("_T")
Rules = Mapping[str, tuple[WriteRule, ...]]


class Commands:
    """Writes and calls for one device, over whatever connection there is at the moment."""

    def __init__(
        self,
        device: str,
        profile: Profile,
        *,
        writes: Mapping[str, WriteRule],
        calls: Rules,
        clock: Callable[[], float],
        session: Callable[[], Session | None],
    ) -> None:
        profile.select((*writes, *calls))  # a misspelt rule would forbid in silence what it was to allow
        self._device, self._profile, self._writes, self._calls = device, profile, writes, calls
        self._clock, self._session = clock, session
        self._turns = {name: asyncio.Lock() for name in (*writes, *calls)}
        self._newest: dict[str, object] = {}
        self._written_at_s: dict[str, float] = {}

    async def write(self, name: str, value: float, wait_max_s: float) -> Written:
        """See `OpcUaDevice.write`."""
        point = self._point(name)
        rule = self._writes.get(name)
        if not point.writable:
            raise DeviceError(f"{self._device}.{name}: read-only by its profile; nothing was sent")
        if rule is None:
            raise DeviceError(f"{self._device}.{name}: no rule allows to write it; nothing was sent")
        if point.method:
            return await self._press(point, rule, value, wait_max_s)
        return await self._in_turn(name, wait_max_s, lambda: self._write(point, rule, value))

    async def call(self, name: str, arguments: Sequence[float], wait_max_s: float) -> tuple[Value, ...]:
        """See `OpcUaDevice.call`."""
        point = self._point(name)
        rules = self._calls.get(name)
        if not point.method:
            raise DeviceError(f"{self._device}.{name}: no method by its profile; nothing was sent")
        if rules is None:
            raise DeviceError(f"{self._device}.{name}: no rule allows to call it; nothing was sent")
        if len(arguments) != len(rules):
            raise DeviceError(
                f"{self._device}.{name}: {len(arguments)} arguments, its rule names {len(rules)}; "
                f"nothing was sent"
            )
        for number, (rule, argument) in enumerate(zip(rules, arguments, strict=True), 1):
            if complaint := rule.complaint(argument, None):
                raise DeviceError(f"{self._device}.{name}: argument {number}: {complaint}; nothing was sent")
        return await self._in_turn(name, wait_max_s, lambda: self._call(point, arguments))

    def _point(self, name: str) -> Point:
        if name not in self._profile.points:
            raise DeviceError(f"{self._device}: its profile {self._profile.name} has no point {name!r}")
        return self._profile.points[name]

    async def _in_turn(self, name: str, wait_max_s: float, act: Callable[[], Awaitable[_T]]) -> _T:
        """One at a time for each point, the newest of those that wait, all within the wait."""
        mine = self._newest[name] = object()
        sent = False
        try:
            async with asyncio.timeout(wait_max_s), self._turns[name]:
                if self._newest[name] is not mine:
                    raise DeviceError(f"{self._device}.{name}: replaced by a newer write; nothing was sent")
                sent = True
                return await act()
        except TimeoutError as error:
            known = "it may be in force or not" if sent else "nothing was sent"
            raise DeviceError(
                f"{self._device}.{name}: not confirmed within {wait_max_s:g} s; {known}"
            ) from error
        except PeerError as error:
            raise DeviceError(f"{self._device}.{name}: {error}; it may be in force or not") from error

    def _open(self, name: str) -> Session:
        session = self._session()
        if session is None:
            raise DeviceError(f"{self._device}.{name}: not connected; nothing was sent")
        return session

    # ---- variables ----

    async def _write(self, point: Point, rule: WriteRule, value: float) -> Written:
        session = self._open(point.name)
        what = f"{self._device}.{point.name}"
        try:
            node = session.node_id(point.node)
            was, kind = await self._before(session, point, node)
        except PeerError as error:
            raise DeviceError(f"{what}: {error}; nothing was sent") from error
        now_s = self._clock()
        since_last_s = now_s - self._written_at_s.get(point.name, -float("inf"))
        if complaint := rule.complaint(value, was, since_last_s):
            raise DeviceError(f"{what}: {complaint}; nothing was sent")
        try:
            variant = values.variant(point, value, kind, rule.lowest, rule.highest)
        except (values.UnfitError, codec.CodecError) as error:
            raise DeviceError(f"{what}: {error}; nothing was sent") from error
        self._written_at_s[point.name] = now_s
        status = await self._send(session, node, variant)
        if status != "Good":
            raise DeviceError(f"{what}: refused: {explained(status)}")
        if not (point.read_back and point.readable):
            return Written(value, was, confirmed=False)
        return Written(await self._read_back(session, point, node, variant), was, confirmed=True)

    async def _before(self, session: Session, point: Point, node: ua.NodeId) -> tuple[Value, ua.VariantType]:
        """The present value (None: unknown) and the type that the node holds."""
        was: Value = None
        if point.readable:
            (answer,) = await session.read([node])
            was = values.judge(point, answer)[0]
            if answer.Value is not None and answer.Value.Value is not None:
                return was, answer.Value.VariantType
        (answer,) = await session.read([node], ua.AttributeIds.DataType)
        return was, await _kind_of(session, answer)

    async def _send(self, session: Session, node: ua.NodeId, variant: ua.Variant) -> str:
        """Name of the status that the server answers with."""
        wish = ua.WriteParameters()
        bare = ua.DataValue(variant, StatusCode=None)  # servers that take no status refuse even Good
        wish.NodesToWrite = [ua.WriteValue(NodeId=node, AttributeId=ua.AttributeIds.Value, Value=bare)]
        results = await ask(session.client.uaclient.write(wish), session.wait_max_s)
        if not results:
            raise PeerError("the server answered nothing to a write")
        return "Good" if results[0].is_good() else status_name(results[0])

    async def _read_back(self, session: Session, point: Point, node: ua.NodeId, variant: ua.Variant) -> float:
        """What the device shows, once it is what it was told."""
        for _ in range(READ_BACK_TRIES):
            (answer,) = await session.read([node])
            value, fault = values.judge(point, answer)
            if isinstance(value, float | int) and values.same(variant, values.raw_of(answer)):
                return float(value)
            shown = fault or f"{value} {point.unit}"
            await asyncio.sleep(READ_BACK_GAP_S)
        raise DeviceError(
            f"{self._device}.{point.name}: told {variant.Value} and taken, but it shows {shown}: "
            f"is the device in local mode, or another master at it?"
        )

    # ---- methods ----

    async def _press(self, point: Point, rule: WriteRule, value: float, wait_max_s: float) -> Written:
        """A write to a method: calls it with the value; one of unit bool is a button, and takes only 1."""
        what = f"{self._device}.{point.name}"
        if complaint := rule.complaint(value, None):
            raise DeviceError(f"{what}: {complaint}; nothing was sent")
        if point.unit == "bool" and value != 1:
            raise DeviceError(f"{what}: a call cannot be taken back, write 1; nothing was sent")
        try:
            arguments = () if point.unit == "bool" else (codec.to_raw(point, value),)
        except codec.CodecError as error:
            raise DeviceError(f"{what}: {error}; nothing was sent") from error
        await self._in_turn(point.name, wait_max_s, lambda: self._call(point, arguments))
        return Written(value, None, confirmed=False)

    async def _call(self, point: Point, arguments: Sequence[float]) -> tuple[Value, ...]:
        session = self._open(point.name)
        what = f"{self._device}.{point.name}"
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
        (result,) = await ask(session.client.uaclient.call([wish]), session.wait_max_s)
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
    (found,) = await ask(session.client.uaclient.translate_browsepaths_to_nodeids([path]), session.wait_max_s)
    if status_name(found.StatusCode) == "BadNoMatch":
        return []
    if not found.StatusCode.is_good() or not found.Targets:
        raise PeerError(f"the method's arguments: {explained(status_name(found.StatusCode))}")
    (answer,) = await session.read([found.Targets[0].TargetId])
    declared = answer.Value.Value if answer.Value is not None else None
    return [await _variant_type(session, argument.DataType) for argument in declared or ()]
