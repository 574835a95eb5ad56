"""Does another controller lead this block? Asked at the door, before anything is said, and a moment longer.

Every report names the start that its agent obeys and echoes when that start's newest order was sent. Who
listens for a moment knows: of a living controller that time moves on, of a dead one it stands still. A start
on the same `state_dir` before this one is dead for certain, since its files are ours now.

A start that finds the block led ends with a sentence. That leaves nobody without control: the service manager
starts it again every two seconds, and one that has died sends nothing new, so the next start is let in.

What cannot be heard refuses nobody: a block whose broker is down gets its controller. Two that start at once
both find the door open, as after a loss of power. Agents obey the newer one; the older one hears it in their
reports and goes again. Who has led for longer stays: it was usurped, and is heir (controller/agent/lease.py).
"""

import asyncio
import secrets
from contextlib import suppress
from typing import Final

import structlog

from controller.config import BlockConfig
from controller.endless import CANCEL_AGAIN_S
from protocols import agent_link
from protocols.agent_link import Report
from protocols.mqtt import MqttLink, Subscription

CONNECT_MAX_S: Final = 1.0  # a broker answers within milliseconds, or is not there
HEAR_S: Final = 0.5  # five reports of every agent
STILL_LEASES: Final = 0.5  # three renewals: of whom none came within, that one is dead
NEWCOMER_S: Final = 3.0  # who was let in beside us is obeyed within a second; a loaded host takes longer

log = structlog.get_logger(__name__)


async def incumbent(config: BlockConfig, predecessor: int) -> str:
    """Who leads this block and lives, in a sentence; empty: nobody. `predecessor`: the last start of ours."""
    ear = Ear(predecessor, frozenset(node.name for node in config.nodes))
    mqtt, connected = config.mqtt, asyncio.Event()
    link = MqttLink(
        mqtt.url,
        client_id=f"powerblock-{config.block}-door-{secrets.token_hex(4)}",
        on_message=ear.on_message,
        on_connect=connected.set,
        subscriptions=(Subscription(agent_link.report_topic(config.block, "+")),),
        username=mqtt.username,
        password=mqtt.password(),
        tls=mqtt.tls(),
    )
    listening = asyncio.create_task(link.run(), name="at the door")
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_MAX_S):
                await connected.wait()
            await ear.decided(STILL_LEASES * config.agents.lease_s)
    finally:
        while not listening.done():  # a cancellation may be lost in the farewell
            listening.cancel()
            await asyncio.wait({listening}, timeout=CANCEL_AGAIN_S)
    if not listening.cancelled():
        listening.result()  # a fault of the program
    if not ear.living:
        return ""
    node, epoch = ear.living
    return (
        f"{node} obeys another controller of block {config.block}, start {epoch} (UTC microseconds), whose"
        " orders go on coming: two cannot lead. End that one (`systemctl stop powerblock` on its host), and"
        " this one is let in; or start this one with --take-over"
    )


class Ear:
    """What reports say of who leads."""

    def __init__(self, predecessor: int, nodes: frozenset[str]) -> None:
        self.living: tuple[str, int] | None = None  # a node, and the start that it obeys
        self._predecessor, self._nodes = predecessor, nodes
        self._settled = asyncio.Event()
        self._signs = SignsOfLife()

    def on_message(self, _topic: str, payload: bytes, retained: bool) -> None:
        if retained:
            return
        try:
            report = agent_link.decode_report(payload)
        except agent_link.LinkError:
            return  # the board will count it, and say so
        if report.node not in self._nodes:
            return  # of a bench that speaks under our block's name
        epoch = leader(report)
        if epoch and epoch == self._predecessor:
            self._settled.set()
        elif self._signs.of_leader(report):
            self.living = (report.node, epoch)
            self._settled.set()

    async def decided(self, still_max_s: float) -> None:
        """Until it is known who leads: that nobody does takes `HEAR_S`, that who did is dead, more."""
        for wait_s in (HEAR_S, still_max_s):
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._settled.wait()
            if self._settled.is_set() or not self._signs.seen:
                return


class Newcomer:
    """A start that was let in, in case that another was let in as well."""

    def __init__(self, epoch: int, now_s: float) -> None:
        self._epoch, self._entered_at_s = epoch, now_s
        self._led_from_s: float | None = None
        self._signs = SignsOfLife()
        self._told = False

    def hear(self, report: Report, now_s: float) -> str:
        """Who leads in our place, in a sentence; empty: nobody, or we have led for so long that we stay."""
        epoch = leader(report)
        if epoch == self._epoch and self._led_from_s is None:
            self._led_from_s = now_s
        if self._led_from_s is not None and now_s - self._led_from_s > NEWCOMER_S:
            return ""
        if epoch == self._epoch and 0.0 <= report.rivals_s < now_s - self._entered_at_s and not self._told:
            self._told = True
            log.warning(
                "another controller gives orders, too",
                why=f"{report.node} refuses it and obeys this start, {self._epoch}. Was it started at the"
                " same moment as this one, then it ends by itself; else end it",
            )
        if epoch <= self._epoch or not self._signs.of_leader(report):
            return ""
        return (
            f"{report.node} obeys start {epoch} (UTC microseconds) of another controller of this block, which"
            f" is newer than this one, {self._epoch}, and was let in as well: that one leads, this one ends."
            " Started again, it is let in when the other has ended"
        )


class SignsOfLife:
    """Of a start that lives, the time that its orders are sent at moves on, as reports echo it."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, float]] = {}  # node -> start that it obeys, send time of an order

    @property
    def seen(self) -> bool:
        """Somebody leads, or led and has died."""
        return bool(self._first)

    def of_leader(self, report: Report) -> bool:
        """Whether this report shows that the start lives which its agent obeys."""
        epoch = leader(report)
        if not epoch:
            return False
        first_epoch, sent_at_s = self._first.setdefault(report.node, (epoch, report.echo_sent_at_s))
        if first_epoch != epoch:
            self._first[report.node] = (epoch, report.echo_sent_at_s)
            return False
        return report.echo_sent_at_s > sent_at_s


def leader(report: Report) -> int:
    """The start that an agent obeys, 0: none. It may not have written its first order yet."""
    if report.mode != "leased":
        return 0
    return report.echo_epoch or report.epoch
