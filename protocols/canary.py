"""A canary for a subscription: we send ourselves a message a second, and mind when it stays away.

A broker that withholds what its access list denies grants the subscription all the same (seen with mosquitto
2.0.11), and one that is frozen keeps its sockets open. Either way nothing arrives, which looks like nobody
having anything to say. So we publish a probe to a topic that we hear ourselves, under the same rule of the
access list as the messages that matter, and expect it back.

What counts is a probe of our own, of late, once: each carries a nonce that nobody can know beforehand. A
retained or repeated copy, one from before a restart, and one of another client all count for nothing.

Pure: time and nonces come from outside. Due, heard and fault are asked by whoever owns the link:

    canary = Canary("site/block-1/canary", nonce=lambda: secrets.token_hex(8))
    on connect:        canary.forget()
    on a message:      canary.heard(payload, now_s)
    on every beat:     if (probe := canary.due(now_s)) is not None: link.publish(canary.topic, probe)
                       fault = link.fault or canary.fault(now_s)
"""

from collections.abc import Callable
from typing import Final

PROBE_EVERY_S: Final = 1.0  # often enough to notice within seconds, 100 bytes a second
ANSWER_WAIT_MAX_S: Final = 4.0  # the way there and back takes 1 ms; a busy broker's disk may take a second


class Canary:
    """Watches one topic over one connection.

    Args:
        topic: ours alone; we may publish to it and have subscribed to it, by itself or by a wildcard.
        nonce: gives another text at every call, which no other client can guess, and which ASCII can write.
        probe_every_s: seconds between two probes.
        answer_wait_max_s: a probe away for longer than this is a fault; at least `probe_every_s`.

    Raises:
        ValueError: seconds that make no sense, a fault of the caller.
    """

    def __init__(
        self,
        topic: str,
        *,
        nonce: Callable[[], str],
        probe_every_s: float = PROBE_EVERY_S,
        answer_wait_max_s: float = ANSWER_WAIT_MAX_S,
    ) -> None:
        if not 0 < probe_every_s <= answer_wait_max_s:
            raise ValueError(
                f"canary {topic}: probe_every_s {probe_every_s:g}, answer_wait_max_s {answer_wait_max_s:g}; "
                "give seconds above 0, the second at least the first"
            )
        self.topic = topic
        self._nonce = nonce
        self._probe_every_s = probe_every_s
        self._answer_wait_max_s = answer_wait_max_s
        self.answers = 0  # probes that came back in time, ever
        self.forget()

    def forget(self) -> None:
        """A new connection: what the last one carried or lost says nothing about this one."""
        self._sent_s: dict[bytes, float] = {}  # by probe, oldest first; only those that may still be answered
        self._silent_since_s: float | None = (
            None  # when the oldest probe was sent that nothing answered since
        )
        self._next_s: float | None = None
        self._answered = False

    def due(self, now_s: float) -> bytes | None:
        """The probe to publish now (QoS 0, not retained), or None when it is not time yet."""
        if self._next_s is not None and now_s < self._next_s:
            return None
        self._next_s = now_s + self._probe_every_s
        self._sent_s = {
            probe: sent_s for probe, sent_s in self._sent_s.items() if self._counts(sent_s, now_s)
        }
        probe = self._nonce().encode("ascii")
        self._sent_s[probe] = now_s
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        return probe

    def heard(self, payload: bytes, now_s: float) -> None:
        """Anything that arrived on the topic."""
        sent_s = self._sent_s.get(payload)
        if sent_s is None or not self._counts(sent_s, now_s):
            return
        self.answers += 1
        self._answered = True
        # Spent, and with it what was sent before and is still away: a probe may get lost.
        self._sent_s = {probe: later_s for probe, later_s in self._sent_s.items() if later_s > sent_s}
        self._silent_since_s = next(iter(self._sent_s.values()), None)

    def fault(self, now_s: float) -> str:
        """Empty, or one sentence: what stays away, for how long, and why that may be."""
        if self._silent_since_s is None or now_s - self._silent_since_s <= self._answer_wait_max_s:
            return ""
        silent_s = now_s - self._silent_since_s
        if self._answered:
            return (
                f"nothing has come back on {self.topic} for {silent_s:.0f} s, though the connection stands: "
                "the broker is frozen or overloaded, or its ACL has changed"
            )
        return (
            f"the broker took our subscription to {self.topic} but delivered nothing for {silent_s:.0f} s: "
            "check that its ACL lets us both write and read there, and that it is not frozen"
        )

    def _counts(self, sent_s: float, now_s: float) -> bool:
        return now_s - sent_s <= self._answer_wait_max_s
