"""The address space of an OPC UA server, made when somebody looks.

A block of 1,152 GPUs has some 10,000 values, and the library needs several kB and most of a millisecond for
each with its properties: seconds of start and tens of MB for nodes that nobody may ever browse. So there is
only an index here, identifiers to entries, and a node is made from its entry when it is asked for. A number
of those made last are kept, because a client that browses asks for the same one several times.

Identifiers are paths, for good: `devices/pdu-a1/power_w` is the same node after a restart, a new device or an
update. `#` leads to a property: `devices/pdu-a1/power_w#EURange`.

The types are the standard ones (OPC 10000-8): AnalogItemType with EURange and EngineeringUnits,
MultiStateDiscreteType with EnumStrings, OptionSetType with the names of its bits. Units are UNECE codes.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from asyncua import ua
from asyncua.server.address_space import AttributeValue, NodeData

from protocols.opcua.server_values import Meaning, Variable

KEPT_MAX: Final = 4096  # nodes made last, some 3 kB each
PROPERTY: Final = "#"
UNITS_URI: Final = "http://www.opcfoundation.org/UA/units/un/cefact"
NO_CODE: Final = -1  # a unit without a code of its own

# Unit as in profiles: code of UNECE Recommendation 20, and its name.
UNITS: Final[Mapping[str, tuple[str, str]]] = {
    "W": ("WTT", "watt"), "kW": ("KWT", "kilowatt"), "MW": ("MAW", "megawatt"),
    "VA": ("D46", "volt-ampere"), "kVA": ("KVA", "kilovolt-ampere"),
    "var": ("D44", "var"), "kvar": ("KVR", "kilovar"),
    "Wh": ("WHR", "watt hour"), "kWh": ("KWH", "kilowatt hour"), "MWh": ("MWH", "megawatt hour"),
    "J": ("JOU", "joule"), "V": ("VLT", "volt"), "kV": ("KVT", "kilovolt"), "A": ("AMP", "ampere"),
    "mA": ("4K", "milliampere"), "Ah": ("AMH", "ampere hour"), "Hz": ("HTZ", "hertz"),
    "ohm": ("OHM", "ohm"), "degC": ("CEL", "degree Celsius"), "K": ("KEL", "kelvin"),
    "Pa": ("PAL", "pascal"), "kPa": ("KPA", "kilopascal"), "bar": ("BAR", "bar"),
    "L/min": ("L2", "litre per minute"), "m3/h": ("MQH", "cubic metre per hour"),
    "rpm": ("RPM", "revolutions per minute"), "ms": ("C26", "millisecond"), "s": ("SEC", "second"),
    "min": ("MIN", "minute"), "h": ("HUR", "hour"), "%": ("P1", "percent"), "ratio": ("C62", "one"),
    "count": ("C62", "one"), "kg": ("KGM", "kilogram"), "L": ("LTR", "litre"), "deg": ("DD", "degree"),
}  # fmt: skip

Values = Mapping[str, ua.Variant]


@dataclass(eq=False, slots=True)
class Thing:
    """An object.

    Attributes:
        values: its properties by path (`profile`; `ActiveState` and `ActiveState/Id`); replaced as a whole.
        type: of the object; a number in namespace 0, or an identifier of ours.
        is_notifier: events can be heard here.
    """

    id: str
    parent: str
    name: str
    title: str = ""
    type: int | str = ua.ObjectIds.BaseObjectType
    values: Values = field(default_factory=dict)
    is_notifier: bool = False
    children: dict[str, None] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Kind:
    """A type of object."""

    id: str
    name: str
    title: str


Call = Callable[[Any, list[Any]], Awaitable["Answer"]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call or a write. Outputs are told in either case."""

    status: int
    outputs: Sequence[ua.Variant] = ()


@dataclass(frozen=True, slots=True)
class Argument:
    """Of a method."""

    name: str
    kind: ua.VariantType
    title: str = ""


@dataclass(eq=False, slots=True)
class Method:
    """A method.

    Attributes:
        needs: role that may call it.
        call: carries it out, for whom and with checked arguments.
    """

    id: str
    parent: str
    name: str
    title: str
    needs: int
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    call: Call


Entry = Thing | Kind | Method | Variable

ROOT: Final = ""  # parent of what hangs under Objects


class Space(dict[ua.NodeId, NodeData]):
    """Nodes by id: the library's own, and ours as they are asked for. Takes the place of the library's dict.

    Args:
        standard: what the library has.
        index: number of our namespace.
    """

    def __init__(self, standard: Mapping[ua.NodeId, NodeData], index: int) -> None:
        super().__init__(standard)
        self.index = index
        self.entries: dict[str, Entry] = {}
        self._made: dict[str, NodeData] = {}
        self._kinds: list[str] = []

    # --- building ---------------------------------------------------------------------------------------

    def add(self, entry: Entry) -> None:
        """Make it known, below its parent, which must be known. Raises ValueError for a second one."""
        if entry.id in self.entries:
            raise ValueError(f"{entry.id}: two nodes of one identifier")
        self.entries[entry.id] = entry
        if isinstance(entry, Kind):
            home = ua.NodeId(ua.ObjectIds.BaseObjectType)
        elif entry.parent == ROOT:
            home = ua.NodeId(ua.ObjectIds.ObjectsFolder)
        else:
            parent = self.entries[entry.parent]
            assert isinstance(parent, Thing)
            parent.children[entry.id] = None
            self._made.pop(entry.parent, None)
            return
        self[home].references.append(self._reference(entry, _way_to(entry), forward=True))

    def remove(self, id_: str) -> None:
        """Forget an entry and all below it."""
        entry = self.entries.pop(id_)
        self._made.clear()
        if isinstance(entry, Thing):
            for child in entry.children:
                self.remove(child)
        if not isinstance(entry, Kind) and isinstance(parent := self.entries.get(entry.parent), Thing):
            parent.children.pop(id_, None)

    def clear_things(self) -> None:
        """Forget all but the types."""
        for entry in [one for one in self.entries.values() if isinstance(one, Thing) and one.parent == ROOT]:
            references = self[ua.NodeId(ua.ObjectIds.ObjectsFolder)].references
            references[:] = [one for one in references if one.NodeId != self.node_id(entry.id)]
        self.entries = {id_: entry for id_, entry in self.entries.items() if isinstance(entry, Kind)}
        self._made.clear()

    def node_id(self, id_: str) -> ua.NodeId:
        return ua.NodeId(id_, self.index)

    def entry(self, node_id: ua.NodeId) -> Entry | None:
        return self.entries.get(node_id.Identifier) if self._is_ours(node_id) else None

    def _is_ours(self, node_id: ua.NodeId) -> bool:
        return bool(node_id.NamespaceIndex == self.index and isinstance(node_id.Identifier, str))

    # --- what the library asks --------------------------------------------------------------------------

    def get(self, key: ua.NodeId, default: Any = None) -> Any:
        known = super().get(key)
        return known or self._ours(key) or default

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, ua.NodeId) and self._ours(key) is not None)

    def __missing__(self, key: ua.NodeId) -> NodeData:
        node = self._ours(key)
        if node is None:
            raise KeyError(key)
        return node

    def _ours(self, key: ua.NodeId) -> NodeData | None:
        if not self._is_ours(key):
            return None
        id_ = key.Identifier
        node = self._made.get(id_)
        if node is None:
            node = self._make(id_)
            if node is not None:
                if len(self._made) >= KEPT_MAX:
                    del self._made[next(iter(self._made))]
                self._made[id_] = node
        return node

    # --- making nodes -----------------------------------------------------------------------------------

    def _make(self, id_: str) -> NodeData | None:
        owner, _, path = id_.partition(PROPERTY)
        entry = self.entries.get(owner)
        if entry is None:
            return None
        if path:
            return self._property(entry, path) if path in values_of(entry) else None
        node = NodeData(self.node_id(id_))
        names = _names(entry, self.index)
        node.attributes = _attributes(node.nodeid, *names) | self._own_attributes(entry)
        node.references = list(self._references(entry))
        return node

    def _own_attributes(self, entry: Entry) -> dict[ua.AttributeIds, AttributeValue]:
        match entry:
            case Variable():
                return _variable_attributes(entry)
            case Thing():
                return {ua.AttributeIds.EventNotifier: NOTIFIER if entry.is_notifier else SILENT}
            case Method():
                return {ua.AttributeIds.Executable: YES, ua.AttributeIds.UserExecutable: YES}
            case Kind():
                return {ua.AttributeIds.IsAbstract: NO}

    def _references(self, entry: Entry) -> Iterator[ua.ReferenceDescription]:
        yield self._back(entry)
        kind = type_of(entry)
        if kind is not None:
            yield self._to_type(kind)
        values = values_of(entry)
        for path in values:
            if "/" not in path:
                yield self._to_value(entry, path, values)
        if isinstance(entry, Thing):
            for child in entry.children:
                other = self.entries[child]
                yield self._reference(other, _way_to(other), forward=True)

    def _back(self, entry: Entry) -> ua.ReferenceDescription:
        """To where it hangs."""
        if isinstance(entry, Kind):
            return _standard(ua.ObjectIds.HasSubtype, ua.ObjectIds.BaseObjectType, ua.NodeClass.ObjectType)
        if entry.parent == ROOT:
            return _standard(ua.ObjectIds.Organizes, ua.ObjectIds.ObjectsFolder, ua.NodeClass.Object)
        return self._reference(self.entries[entry.parent], _way_to(entry), forward=False)

    def _to_type(self, kind: int | str) -> ua.ReferenceDescription:
        if isinstance(kind, str):
            return self._reference(self.entries[kind], ua.ObjectIds.HasTypeDefinition, forward=True)
        return _standard(ua.ObjectIds.HasTypeDefinition, kind, ua.NodeClass.ObjectType, forward=True)

    def _reference(self, other: Entry, way: int, *, forward: bool) -> ua.ReferenceDescription:
        kind = type_of(other)
        node_class, browse_name, title, _ = _names(other, self.index)
        to_type = ua.NodeId() if kind is None else self._type_id(kind)
        return ua.ReferenceDescription(
            ua.NodeId(way), forward, self.node_id(other.id), browse_name, title, node_class, to_type
        )

    def _type_id(self, kind: int | str) -> ua.NodeId:
        return self.node_id(kind) if isinstance(kind, str) else ua.NodeId(kind)

    def _to_value(self, entry: Entry, path: str, values: Values) -> ua.ReferenceDescription:
        has_parts = any(other.startswith(f"{path}/") for other in values)
        way = ua.ObjectIds.HasComponent if has_parts else ua.ObjectIds.HasProperty
        return ua.ReferenceDescription(
            ua.NodeId(way),
            True,
            self.node_id(f"{entry.id}{PROPERTY}{path}"),
            self._value_name(entry, path),
            ua.LocalizedText(path.rpartition("/")[2]),
            ua.NodeClass.Variable,
            ua.NodeId(ua.ObjectIds.BaseDataVariableType if has_parts else ua.ObjectIds.PropertyType),
        )

    def _value_name(self, entry: Entry, path: str) -> ua.QualifiedName:
        """Facts of a thing of ours are ours; all others are named by the standard."""
        is_fact = isinstance(entry, Thing) and isinstance(entry.type, str)
        return ua.QualifiedName(path.rpartition("/")[2], self.index if is_fact else 0)

    def _property(self, entry: Entry, path: str) -> NodeData:
        """A property, or a part of one: whatever its owner says at the moment."""
        node = NodeData(self.node_id(f"{entry.id}{PROPERTY}{path}"))
        values = values_of(entry)
        variant = values[path]
        way = self._to_value(entry, path, values)
        node.attributes = _attributes(
            node.nodeid, ua.NodeClass.Variable, way.BrowseName, way.DisplayName, ua.LocalizedText("")
        )
        rank = 1 if variant.is_array or isinstance(variant.Value, list) else -1
        node.attributes |= {
            ua.AttributeIds.DataType: _value(_data_type(variant), ua.VariantType.NodeId),
            ua.AttributeIds.ValueRank: _value(rank, ua.VariantType.Int32),
            ua.AttributeIds.AccessLevel: READABLE,
            ua.AttributeIds.UserAccessLevel: READABLE,
            ua.AttributeIds.Historizing: NO,
            ua.AttributeIds.MinimumSamplingInterval: AT_ONCE,
            ua.AttributeIds.Value: _called(lambda: _now(values_of(entry).get(path))),
        }
        owner, _, _ = path.rpartition("/")
        if owner:
            back = self._to_value(entry, owner, values)
            back.ReferenceTypeId, back.IsForward = way.ReferenceTypeId, False
        else:
            back = self._reference(entry, way.ReferenceTypeId.Identifier, forward=False)
        node.references = [back, self._to_type_of_value(way.TypeDefinition)]
        for other in values:
            if other.rpartition("/")[0] == path:
                node.references.append(self._to_value(entry, other, values))
        return node

    def _to_type_of_value(self, kind: ua.NodeId) -> ua.ReferenceDescription:
        return _standard(
            ua.ObjectIds.HasTypeDefinition, kind.Identifier, ua.NodeClass.VariableType, forward=True
        )


def values_of(entry: Entry) -> Values:
    """Properties of an entry."""
    match entry:
        case Thing():
            return entry.values
        case Variable():
            return properties_of(entry.meaning) | _as_text(entry)
        case Method():
            lists = {"InputArguments": entry.inputs, "OutputArguments": entry.outputs}
            return {name: _arguments(given) for name, given in lists.items() if given}
        case Kind():
            return {}


def _as_text(variable: Variable) -> dict[str, ua.Variant]:
    """The name of the state; the standard wants it where the numbers have gaps."""
    states = variable.meaning.states
    if not states or _is_row(states):
        return {}
    number = variable.batch.read(variable).Value.Value
    text = ua.LocalizedText(states.get(number, "") if number is not None else "")
    return {"ValueAsText": ua.Variant(text, ua.VariantType.LocalizedText)}


def properties_of(meaning: Meaning) -> dict[str, ua.Variant]:
    """What the standard wants to be told of a value, as far as it is known."""
    told: dict[str, ua.Variant] = {}
    if meaning.states:
        names = [meaning.states[number] for number in sorted(meaning.states)]
        if _is_row(meaning.states):
            told["EnumStrings"] = _texts(names)
        else:
            pairs = [
                ua.EnumValueType(Value=number, DisplayName=ua.LocalizedText(meaning.states[number]))
                for number in sorted(meaning.states)
            ]
            told["EnumValues"] = ua.Variant(pairs, ua.VariantType.ExtensionObject, is_array=True)
    elif meaning.bits:
        told["OptionSetValues"] = _texts(
            [meaning.bits.get(number, "") for number in range(max(meaning.bits) + 1)]
        )
    elif not meaning.text:
        if meaning.unit:
            told["EngineeringUnits"] = ua.Variant(_unit(meaning.unit), ua.VariantType.ExtensionObject)
        if meaning.lowest is not None and meaning.highest is not None:
            limits = ua.Range(Low=float(meaning.lowest), High=float(meaning.highest))
            told["EURange"] = ua.Variant(limits, ua.VariantType.ExtensionObject)
    return told


def type_of(entry: Entry) -> Any:
    """Type definition: a number in namespace 0, or an identifier of ours; None: it has none."""
    match entry:
        case Thing():
            return entry.type
        case Variable():
            return _variable_type(entry.meaning)
        case _:
            return None


def _variable_type(meaning: Meaning) -> Any:
    if meaning.states:
        row = _is_row(meaning.states)
        return ua.ObjectIds.MultiStateDiscreteType if row else ua.ObjectIds.MultiStateValueDiscreteType
    if meaning.bits:
        return ua.ObjectIds.OptionSetType
    if meaning.text:
        return ua.ObjectIds.DataItemType
    if meaning.lowest is not None and meaning.highest is not None:
        return ua.ObjectIds.AnalogItemType
    return ua.ObjectIds.AnalogUnitType if meaning.unit else ua.ObjectIds.DataItemType


def _is_row(states: Mapping[int, str]) -> bool:
    """0, 1, 2 ... without a gap: what EnumStrings can say."""
    return sorted(states) == list(range(len(states)))


def _unit(unit: str) -> ua.EUInformation:
    code, name = UNITS.get(unit, ("", unit))
    number = int.from_bytes(code.encode("ascii"), "big") if code else NO_CODE
    return ua.EUInformation(UNITS_URI, number, ua.LocalizedText(unit), ua.LocalizedText(name))


def _names(
    entry: Entry, index: int
) -> tuple[ua.NodeClass, ua.QualifiedName, ua.LocalizedText, ua.LocalizedText]:
    """Class, browse name, display name and description."""
    title = entry.meaning.title if isinstance(entry, Variable) else entry.title
    return (
        CLASSES[type(entry)],
        ua.QualifiedName(entry.name, index),
        ua.LocalizedText(entry.name),
        ua.LocalizedText(title),
    )


def _way_to(entry: Entry) -> Any:
    """Reference from its parent."""
    if isinstance(entry, Kind):
        return ua.ObjectIds.HasSubtype
    return ua.ObjectIds.Organizes if entry.parent == ROOT else ua.ObjectIds.HasComponent


def _attributes(
    node_id: ua.NodeId,
    node_class: ua.NodeClass,
    browse_name: ua.QualifiedName,
    title: ua.LocalizedText,
    description: ua.LocalizedText,
) -> dict[ua.AttributeIds, AttributeValue]:
    return {
        ua.AttributeIds.NodeId: _value(node_id, ua.VariantType.NodeId),
        ua.AttributeIds.NodeClass: _value(node_class, ua.VariantType.Int32),
        ua.AttributeIds.BrowseName: _value(browse_name, ua.VariantType.QualifiedName),
        ua.AttributeIds.DisplayName: _value(title, ua.VariantType.LocalizedText),
        ua.AttributeIds.Description: _value(description, ua.VariantType.LocalizedText),
        ua.AttributeIds.WriteMask: NO_MASK,
        ua.AttributeIds.UserWriteMask: NO_MASK,
    }


def _variable_attributes(variable: Variable) -> dict[ua.AttributeIds, AttributeValue]:
    meaning = variable.meaning
    access = ua.AccessLevel.CurrentRead.mask
    access |= ua.AccessLevel.CurrentWrite.mask if meaning.needs is not None else 0
    access |= ua.AccessLevel.HistoryRead.mask if meaning.is_kept else 0
    level = _value(access, ua.VariantType.Byte)
    return {
        ua.AttributeIds.DataType: _value(ua.NodeId(int(meaning.kind)), ua.VariantType.NodeId),
        ua.AttributeIds.ValueRank: SCALAR,
        ua.AttributeIds.AccessLevel: level,
        ua.AttributeIds.UserAccessLevel: level,
        ua.AttributeIds.Historizing: YES if meaning.is_kept else NO,
        ua.AttributeIds.MinimumSamplingInterval: AT_ONCE,
        ua.AttributeIds.Value: _called(lambda: variable.batch.read(variable)),
    }


def _called(read: Callable[[], ua.DataValue]) -> AttributeValue:
    """An attribute that is made when it is read."""
    attribute = AttributeValue(ua.DataValue())
    attribute.value_callback = lambda _node_id, _attribute: read()
    return attribute


def _now(variant: ua.Variant | None) -> ua.DataValue:
    now = datetime.now(UTC)
    if variant is None:
        return ua.DataValue(StatusCode=ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown))
    return ua.DataValue(variant, SourceTimestamp=now, ServerTimestamp=now)


def _value(value: Any, kind: ua.VariantType) -> AttributeValue:
    return AttributeValue(ua.DataValue(ua.Variant(value, kind)))


def _texts(texts: Sequence[str]) -> ua.Variant:
    return ua.Variant([ua.LocalizedText(text) for text in texts], ua.VariantType.LocalizedText, is_array=True)


def _arguments(given: Sequence[Argument]) -> ua.Variant:
    described = [
        ua.Argument(one.name, ua.NodeId(int(one.kind)), -1, [], ua.LocalizedText(one.title)) for one in given
    ]
    return ua.Variant(described, ua.VariantType.ExtensionObject, is_array=True)


def _data_type(variant: ua.Variant) -> ua.NodeId:
    """Structures name their own type; everything else is built in."""
    if variant.VariantType is not ua.VariantType.ExtensionObject:
        return ua.NodeId(int(variant.VariantType))
    sample = variant.Value[0] if isinstance(variant.Value, list) else variant.Value
    return sample.data_type


def _standard(
    way: int, node: int, node_class: ua.NodeClass, *, forward: bool = False
) -> ua.ReferenceDescription:
    """To a node of the standard address space."""
    name = "Objects" if node == ua.ObjectIds.ObjectsFolder else ua.ObjectIdNames[node]
    return ua.ReferenceDescription(
        ua.NodeId(way),
        forward,
        ua.NodeId(node),
        ua.QualifiedName(name, 0),
        ua.LocalizedText(name),
        node_class,
        ua.NodeId(),
    )


CLASSES: Final = {
    Thing: ua.NodeClass.Object,
    Kind: ua.NodeClass.ObjectType,
    Method: ua.NodeClass.Method,
    Variable: ua.NodeClass.Variable,
}
# Attributes that are the same everywhere, shared by all nodes.
YES, NO = _value(True, ua.VariantType.Boolean), _value(False, ua.VariantType.Boolean)
NOTIFIER, SILENT = _value(1, ua.VariantType.Byte), _value(0, ua.VariantType.Byte)
READABLE: Final = _value(ua.AccessLevel.CurrentRead.mask, ua.VariantType.Byte)
SCALAR: Final = _value(-1, ua.VariantType.Int32)
NO_MASK: Final = _value(0, ua.VariantType.UInt32)
AT_ONCE: Final = _value(0.0, ua.VariantType.Double)
