"""Events: what happened, in fields, and what a client wants to hear of it.

A client names the fields it wants and a condition (OPC 10000-4, 7.7 and 7.22). Fields are known here by their
browse path, `ActiveState/Id`. One that an event does not have is null, as the standard says. An event is
encoded once for all clients that want the same fields.

The condition comes from a stranger: its size is bounded, an element may only refer to a later one, so it
ends, and an operator that is not in the table is refused when the client subscribes, not when something
happens.
"""

import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from asyncua import ua
from asyncua.ua.ua_binary import variant_to_binary

FIELDS_MAX: Final = 128  # AlarmConditionType has some 60
ELEMENTS_MAX: Final = 64
CONDITION_ID: Final = "#"  # the one field that is no path: the node of the condition itself

_NULL: Final = ua.Variant(None, ua.VariantType.Null)


class FilterError(ValueError):
    """A filter that cannot be used, and why."""


@dataclass(frozen=True, eq=False, slots=True)
class Event:
    """Something that happened.

    Attributes:
        fields: by browse path.
        kinds: numbers of its type and of all that it is derived from, in namespace 0.
        notifiers: nodes where it can be heard.
        needs: role of whoever may hear it.
    """

    fields: Mapping[str, ua.Variant]
    kinds: frozenset[int]
    notifiers: frozenset[ua.NodeId]
    needs: int = 0
    _encoded: dict[tuple[str, ...], bytes] = field(default_factory=dict)

    def encoded(self, wanted: tuple[str, ...]) -> bytes:
        """The array of fields as it stands in an EventFieldList."""
        known = self._encoded.get(wanted)
        if known is None:
            values = [variant_to_binary(self.fields.get(path, _NULL)) for path in wanted]
            known = self._encoded[wanted] = struct.pack("<i", len(values)) + b"".join(values)
        return known


class EventFilter:
    """What one client wants to hear.

    Raises:
        FilterError: it cannot be told.
    """

    def __init__(self, asked: Any) -> None:
        if not isinstance(asked, ua.EventFilter):
            raise FilterError("an event needs an event filter")
        clauses, self._elements = asked.SelectClauses or [], (asked.WhereClause.Elements or [])
        if not 0 < len(clauses) <= FIELDS_MAX or len(self._elements) > ELEMENTS_MAX:
            raise FilterError(f"1 to {FIELDS_MAX} fields, at most {ELEMENTS_MAX} elements")
        self.fields = tuple(_path(clause) for clause in clauses)
        for number, element in enumerate(self._elements):
            self._check(number, element)

    def wants(self, event: Event) -> bool:
        return not self._elements or self._value(0, event) is True

    def _check(self, number: int, element: Any) -> None:
        operands = element.FilterOperands or []
        least = OPERANDS.get(element.FilterOperator)
        if least is None or len(operands) < least:
            raise FilterError(f"element {number}: operator {element.FilterOperator!r} is not known here")
        for operand in operands:
            if isinstance(operand, ua.ElementOperand):
                if not number < operand.Index < len(self._elements):
                    raise FilterError(f"element {number}: refers to {operand.Index}; only to later ones")
            elif not isinstance(operand, ua.LiteralOperand | ua.SimpleAttributeOperand):
                raise FilterError(f"element {number}: operand {type(operand).__name__} is not known here")

    def _value(self, number: int, event: Event) -> Any:
        element = self._elements[number]
        operands = [self._operand(operand, event) for operand in element.FilterOperands]
        if element.FilterOperator == ua.FilterOperator.OfType:
            kind = operands[0]
            return isinstance(kind, ua.NodeId) and not kind.NamespaceIndex and kind.Identifier in event.kinds
        try:
            return EVALUATE[element.FilterOperator](operands)
        except TypeError:  # a text against a number, or against nothing: unknown, OPC 10000-4, 7.7.3
            return None

    def _operand(self, operand: Any, event: Event) -> Any:
        if isinstance(operand, ua.ElementOperand):
            return self._value(operand.Index, event)
        if isinstance(operand, ua.LiteralOperand):
            return operand.Value.Value if operand.Value is not None else None
        return event.fields.get(_path(operand), _NULL).Value


def _path(clause: Any) -> str:
    if not clause.BrowsePath and clause.AttributeId == ua.AttributeIds.NodeId:
        return CONDITION_ID
    return "/".join(str(name.Name) for name in clause.BrowsePath or [])


Evaluate = Callable[[Sequence[Any]], Any]

EVALUATE: Final[Mapping[ua.FilterOperator, Evaluate]] = {
    ua.FilterOperator.Equals: lambda given: operator.eq(given[0], given[1]),
    ua.FilterOperator.IsNull: lambda given: given[0] is None,
    ua.FilterOperator.GreaterThan: lambda given: operator.gt(given[0], given[1]),
    ua.FilterOperator.LessThan: lambda given: operator.lt(given[0], given[1]),
    ua.FilterOperator.GreaterThanOrEqual: lambda given: operator.ge(given[0], given[1]),
    ua.FilterOperator.LessThanOrEqual: lambda given: operator.le(given[0], given[1]),
    ua.FilterOperator.Not: lambda given: None if given[0] is None else not given[0],
    ua.FilterOperator.Between: lambda given: given[1] <= given[0] <= given[2],
    ua.FilterOperator.InList: lambda given: given[0] in given[1:],
    ua.FilterOperator.And: lambda given: given[0] is True and given[1] is True,
    ua.FilterOperator.Or: lambda given: given[0] is True or given[1] is True,
}
OPERANDS: Final[Mapping[ua.FilterOperator, int]] = {
    **dict.fromkeys(EVALUATE, 2),
    ua.FilterOperator.IsNull: 1,
    ua.FilterOperator.Not: 1,
    ua.FilterOperator.OfType: 1,
    ua.FilterOperator.Between: 3,
}
