"""YAML that is written out: text to plain values, in bounded time and memory, with one kind of error.

YAML's aliases let a few hundred bytes stand for billions of values (`a: [*b, *b]`, `b: [*c, *c]`, ...), or
for a list that holds itself. They cost nothing while they are read, and everything once somebody walks over
them: to check them, to show them. So what a document would be without aliases is counted before it is made.

The library's own constructors raise whatever Python does with a number of 5000 digits, a 13th month or a
`!!bool abc`; here all of it is a YAMLError, as a missing bracket is.
"""

from typing import Any, Final

import yaml

DIGITS_MAX: Final = 100  # of a number; Python itself refuses to show one of 4300
# What the constructors let through for a scalar that is none of its tag; none of them is about the program.
_UNFIT: Final = (ValueError, LookupError, ArithmeticError, AttributeError, TypeError)


def load(text: str, loader: type[yaml.SafeLoader], *, values_max: int) -> Any:
    """The document, made by a safe `loader`; None for an empty one.

    Raises YAMLError: no YAML, nested too deeply, or more than `values_max` values once it is written out.
    """
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _size(node, {}, values_max)
        return reader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply; write it flatter") from None
    except _UNFIT as error:
        raise yaml.YAMLError(f"a value that cannot be: {error}") from error


def _demand_number(node: yaml.Node) -> None:
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > DIGITS_MAX:
        raise yaml.MarkedYAMLError(
            problem=f"a number of {len(node.value)} digits, {DIGITS_MAX} at most",
            problem_mark=node.start_mark,
        )


def _size(node: yaml.Node, known: dict[yaml.Node, int], values_max: int) -> int:
    """Values below and including this one, counted as often as they are meant."""
    if node in known:
        size = known[node]
    else:
        known[node] = values_max  # until it is known: whatever holds itself has no end
        _demand_number(node)
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        size = 1
        for child in children:
            for part in child if isinstance(child, tuple) else (child,):
                size += _size(part, known, values_max)
        known[node] = size
    if size > values_max:
        raise yaml.MarkedYAMLError(
            problem=f"more than {values_max} values once its aliases are written out; use fewer of them",
            problem_mark=node.start_mark,
        )
    return size
