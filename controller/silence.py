"""Since when a node is silent, as the backstop asks: for that alone a host is capped through its BMC.

The age of its readings is no answer. That is unknown, and the law counts on the worst at once, with a single
report that does not echo an order of our clock: of an agent that has just begun, or that obeys another
controller. Neither has fallen silent. Nor is every report that comes a sign of life: one may have lain in a
broker while its host died. So a report counts as heard

* at the moment that its echo proves, where it echoes an order of our clock, however late it comes;
* when it comes, while its agent is leased by another controller and goes on hearing that one: the sending
  time that it echoes moves on, which no report told again shows, nor one that obeys a controller that died;
* else when it comes, for UNKNOWN_MAX_S in a row. Late, repeated and replaced ones the board has refused, but
  of a process that it does not know the first ones may be of any age, and whoever is dead must be found dead.
  Of a live agent we know better by then, or nobody does, and its host is as good as silent.

So what lay in a queue makes a dead host live longer by UNKNOWN_MAX_S at most, once, or until the queue is
empty. The moment never goes back.
"""

from typing import Final, NamedTuple

from controller.core.model import NEVER_S
from controller.incumbent import leader
from protocols.agent_link import Report

UNKNOWN_MAX_S: Final = 10.0  # an agent that hears us echoes us within a second; its broker may be slow
LIVES_MAX_S: Final = 5.0  # three renewals of the longest lease: of whom none came within, that one is dead


class _Signs(NamedTuple):
    """What one node has given of life."""

    at_s: float = NEVER_S
    unknown_from_s: float | None = None  # reports have been of unknown age ever since
    led_by: int = 0  # another start than ours, which is obeyed there
    sent_at_s: float = NEVER_S  # of the newest order of that one, by its clock
    led_at_s: float = NEVER_S  # when that was seen to move on, by ours


class Silence:
    """By node; `epoch` is our own start."""

    def __init__(self, nodes: int, epoch: int) -> None:
        self._epoch = epoch
        self._signs = [_Signs()] * nodes

    def put(self, node: int, report: Report, known_at_s: float | None, now_s: float) -> None:
        """Of a report that was believed. `known_at_s`: its readings are not older; None: of unknown age."""
        before = self._signs[node]
        signs = self._led(before, report, now_s)
        heard_s, unknown_from_s = now_s, None
        if now_s - signs.led_at_s > LIVES_MAX_S:
            if known_at_s is not None:
                heard_s = known_at_s
            else:
                unknown_from_s = now_s if before.unknown_from_s is None else before.unknown_from_s
                heard_s = min(now_s, unknown_from_s + UNKNOWN_MAX_S)
        self._signs[node] = signs._replace(at_s=max(before.at_s, heard_s), unknown_from_s=unknown_from_s)

    def _led(self, before: _Signs, report: Report, now_s: float) -> _Signs:
        """Whether it shows another controller that lives."""
        start, sent_at_s = leader(report), report.echo_sent_at_s
        if start in (0, self._epoch):
            return before._replace(led_by=0, led_at_s=NEVER_S)
        if start != before.led_by:
            return before._replace(led_by=start, sent_at_s=sent_at_s, led_at_s=NEVER_S)
        if sent_at_s > before.sent_at_s:
            return before._replace(sent_at_s=sent_at_s, led_at_s=now_s)
        return before

    def heard_s(self, node: int) -> float:
        """When it was heard last; NEVER_S: never."""
        return self._signs[node].at_s

    def is_led_by_another(self, node: int, now_s: float) -> bool:
        """Whether it obeys another controller that lives."""
        return now_s - self._signs[node].led_at_s <= LIVES_MAX_S
