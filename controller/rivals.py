"""Who else gives orders to our agents: a second controller that lives, or somebody who tells old ones again.

Agents refuse both, and their reports say so: which start they obey, how long ago another controller was
heard, and how many orders they have refused for which reason. This is what the operator is told of it.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from controller.core.model import NEVER_S
from protocols.agent_link import Report

SHOWN_S: Final = 10.0  # after it was heard last
# Why an agent refuses an order that is not of now. A good link shows none, a bad one a few at a time.
STALE: Final = ("overtaken", "expired", "earlier_agent", "future_report")
STALE_MAX_PER_S: Final = 5.0
LOOK_S: Final = 1.0  # over so long


class Said(NamedTuple):
    """What one agent has said of it."""

    rival_at_s: float = NEVER_S  # a second controller was heard then
    led_by: int = 0  # the start that is obeyed there, if it is another than ours
    boot: str = ""
    refused: int = 0  # orders that were not of now, up to `since_s`
    since_s: float = NEVER_S
    stale_per_s: float = 0.0  # over the time before `since_s`


class Rivals:
    """By node; `epoch` is our own start."""

    def __init__(self, nodes: Sequence[str], epoch: int) -> None:
        self._epoch = epoch
        self._said = dict.fromkeys(nodes, Said())

    def put(self, report: Report, now_s: float) -> None:
        """Of a node that this block knows."""
        said = self._said[report.node]
        theirs = report.mode == "leased" and report.epoch != self._epoch
        self._said[report.node] = _counted(said, report, now_s)._replace(
            rival_at_s=said.rival_at_s if report.rivals_s < 0.0 else now_s - report.rivals_s,
            led_by=report.epoch if theirs else 0,
        )

    def conditions(self, now_s: float) -> Iterator[tuple[str, str]]:
        """What is wrong, by key and text."""
        told = [node for node, said in self._said.items() if now_s - said.rival_at_s <= SHOWN_S]
        if told:
            yield "two controllers", f"another controller gives orders to {_some(told)}: {self._obeyed()}"
        flooded = {
            node: said.stale_per_s
            for node, said in self._said.items()
            if said.stale_per_s > STALE_MAX_PER_S and now_s - said.since_s <= SHOWN_S
        }
        if flooded:
            per_s = 10 * round(sum(flooded.values()) / 10)  # a text that stands still while nothing changes
            text = (
                f"{_some(list(flooded))}: {per_s} orders a second are of long ago, and refused; they move"
                " nothing and cost their agents time: find who else may publish on the order topics"
            )
            yield "stale orders", text

    def _obeyed(self) -> str:
        """Which of two controllers is, and what that costs."""
        theirs = [said.led_by for said in self._said.values() if said.led_by]
        if not theirs:
            return "they refuse it and obey this one; end the other"
        return (
            f"{len(theirs)} of {len(self._said)} nodes obey start {max(theirs)} and not this one"
            f" ({self._epoch}), and count here at the most they may hold; end one: the other leads then"
        )


def _counted(said: Said, report: Report, now_s: float) -> Said:
    refused = sum(report.refused.get(reason, 0) for reason in STALE)
    if report.boot != said.boot:
        return said._replace(boot=report.boot, refused=refused, since_s=now_s, stale_per_s=0.0)
    lasted_s = now_s - said.since_s
    if lasted_s < LOOK_S:
        return said
    return said._replace(refused=refused, since_s=now_s, stale_per_s=(refused - said.refused) / lasted_s)


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
