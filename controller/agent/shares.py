"""GPUs that share the limit of their module: how much of it is each one's. Pure.

On such a board the driver tells of every GPU what its whole module draws, holds and can do. Everyone else
counts by GPU, and would count the module as often as it has GPUs. So orders, tables, fallbacks, reports and
facts are of single GPUs on any board, and only what meets the driver is of the module: readings, writes,
whoever else writes, and what was found and is put back.

* a module's limit is the sum of what its GPUs should hold;
* of what it holds and draws, a GPU is told the part that it should hold of that sum: read back, an order is
  what it was, and the parts are the module, whatever the sum has become;
* of what it can do, a GPU is told an equal part.

So the controller may give the GPUs of a module unequal limits. The module keeps to their sum; no board parts
it as they do.
"""

from collections.abc import Collection, Sequence
from math import inf
from typing import Final, NamedTuple

Modules = tuple[tuple[int, ...], ...]  # all GPUs of a node, by the limit that they share; empty: none does


class Share(NamedTuple):
    """What part of the driver's numbers is one GPU's."""

    held_ratio: float = 1.0  # of limit and power
    range_ratio: float = 1.0  # of the lowest, the highest and the default limit


class Range(NamedTuple):
    """What limits a board allows."""

    min_w: float
    max_w: float


WHOLE: Final = Share()
ANY: Final = Range(0.0, inf)  # nobody has told


def modules_of(by_module: Sequence[bool], per_module: int, apart: Collection[int] = ()) -> Modules:
    """GPUs by the limit that they share: `per_module` in a row, where the driver limits one by its module.

    `by_module` says so of every GPU; `apart` are GPUs that have a limit of their own all the same.
    """
    if not any(by_module):
        return ()
    modules: list[tuple[int, ...]] = []
    for first in range(0, len(by_module), per_module):
        gpus = tuple(range(first, min(first + per_module, len(by_module))))
        shared = any(by_module[gpu] for gpu in gpus) and not any(gpu in apart for gpu in gpus)
        modules += [gpus] if shared else [(gpu,) for gpu in gpus]
    return tuple(modules)


def module_with(modules: Modules, gpu: int) -> tuple[int, ...]:
    """All GPUs that hold one limit with this one, itself among them."""
    return next((members for members in modules if gpu in members), (gpu,))


def wanted_w(
    held_w: Sequence[float | None], members: Sequence[int], allowed: Range
) -> tuple[float, ...] | None:
    """What each GPU of a module should hold, as far as the board allows it; None: they are left as they are.

    `held_w` is of all GPUs of the node, `allowed` of the whole module.
    """
    wanted = tuple(
        min(max(one_w, allowed.min_w / len(members)), allowed.max_w / len(members))
        for one_w in (held_w[gpu] for gpu in members)
        if one_w is not None
    )
    return wanted if len(wanted) == len(members) else None


def shares(
    held_w: Sequence[float | None], allowed: Sequence[Range | None], modules: Modules
) -> tuple[Share, ...]:
    """The share of every GPU of a node; in equal parts where nobody has said what they should hold.

    `allowed`: as the driver tells it of every GPU; None: it has not been read.
    """
    told = [WHOLE] * len(held_w)
    for members in modules:
        if len(members) == 1:
            continue
        of_module = next((one for one in (allowed[gpu] for gpu in members) if one is not None), ANY)
        parts_w = wanted_w(held_w, members, of_module) or ()
        sum_w = sum(parts_w)
        for place, gpu in enumerate(members):
            equal_ratio = 1.0 / len(members)
            told[gpu] = Share(parts_w[place] / sum_w if sum_w > 0.0 else equal_ratio, equal_ratio)
    return tuple(told)
