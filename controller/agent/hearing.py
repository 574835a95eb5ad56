"""What comes in: orders, tables, calls. Decided at once, inside the socket's read event; written later.

Here is the node's lease and its shed table, and what is known of the controller's clock. Whether a message
is obeyed is decided in `lease` (pure). A refusal is logged once per reason, since orders come twenty times a
second, and counted: reports carry the counts.
"""

from collections.abc import Callable

import structlog

from controller.agent.lease import Lease, LeaseSettings, Mode, Refusal, begin, leads, offer, shed
from controller.clock import now_s
from protocols import agent_link

log = structlog.get_logger(__name__)


# Of somebody else, or of long ago: such a clock would mislead ours.
NOT_OF_NOW = (Refusal.OVERTAKEN, Refusal.SECOND_CONTROLLER)


class Ear:
    """`on_change` is called when there may be something to write."""

    def __init__(
        self,
        node: str,
        settings: LeaseSettings,
        on_change: Callable[[], None],
        *,
        observe: bool,
        waits_from_s: float | None = None,
    ) -> None:
        self.lease: Lease = begin(settings, now_s(), observe=observe, waits_from_s=waits_from_s)
        self.table: agent_link.Table | None = None  # what to do when a level is called
        self.heard_sent_at_s = -1.0  # of the newest order heard, controller's clock
        self.heard_at_s = 0.0  # when it came, our clock
        self.heard_epoch = 0  # whose clock that is
        self.newest_at_s = 0.0  # when the newest order or call came, or was granted anew after a lapse
        self._node = node
        self._settings = settings
        self._on_change = on_change
        self._logged_refusal = ""
        self._hears: dict[str, Callable[[bytes], str | None]] = {
            agent_link.ORDER: self._hear_order,
            agent_link.TABLE: self._hear_table,
            agent_link.CALL: self._hear_call,
        }

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        """Something came."""
        if retained:  # a broker's memory is not a controller
            self._refused("it was retained: publish orders without the retain flag")
            return
        hear = self._hears.get(topic.rpartition("/")[2], self._hear_order)
        before, table = self.lease, self.table
        try:
            refusal = hear(payload)
        except agent_link.LinkError as error:
            refusal = str(error)
        if refusal is not None:
            self._refused(refusal)
            return
        self._logged_refusal = ""
        after = self.lease
        if (after.newest, after.mode) != (before.newest, before.mode):
            self.newest_at_s = now_s()
        if after.mode is not before.mode or after.newest[0] != before.newest[0]:
            self._log_mode(before)
        if table is not self.table or (after.mode, after.newest, after.held_w, after.held_mhz) != (
            before.mode,
            before.newest,
            before.held_w,
            before.held_mhz,
        ):
            self._on_change()

    def _hear_order(self, payload: bytes) -> str | None:
        """Why it is refused, or None. Raises LinkError."""
        order = agent_link.decode_order(payload)
        now = now_s()
        self.lease, refusal = offer(self._settings, self.lease, order, now)
        is_leader = self.lease.newest[0] in (0, order.epoch) and refusal not in NOT_OF_NOW
        if refusal is None or is_leader:
            self._echo(order, now)
        return refusal

    def _echo(self, order: agent_link.Order, now: float) -> None:
        """Remember when the newest order was sent: an old one told again would make our readings look old."""
        if order.epoch == self.heard_epoch and order.sent_at_s <= self.heard_sent_at_s:
            return
        self.heard_epoch, self.heard_sent_at_s, self.heard_at_s = order.epoch, order.sent_at_s, now

    def _hear_table(self, payload: bytes) -> str | None:
        table = agent_link.decode_table(payload)
        if any(len(level.limits_w) != len(self.lease.held_w) for level in table.levels):
            return Refusal.OTHER_GPU_COUNT
        in_force, held = self.lease.newest[0], self.table
        if not leads(self.lease, table.epoch) or (in_force and table.epoch != in_force):
            return Refusal.OVERTAKEN  # whoever gives no orders here has no say in an emergency
        if held is not None and held.epoch == table.epoch and table.version < held.version:
            return Refusal.OVERTAKEN
        self.table = table
        return None

    def _hear_call(self, payload: bytes) -> str | None:
        call = agent_link.decode_call(payload)
        table = self.table
        if table is None or table.epoch != call.epoch or call.level >= len(table.levels):
            return f"level {call.level} is called, and this agent has no table for it: its orders will come"
        level = table.levels[call.level]
        self.lease, refusal = shed(self.lease, call, level.limits_w, level.clocks_mhz, now_s())
        return refusal

    def _refused(self, why: str) -> None:
        if why != self._logged_refusal:
            counts = {refusal.name.lower(): count for refusal, count in self.lease.refused.items()}
            log.warning("order refused", node=self._node, why=str(why), refused=counts)
        self._logged_refusal = why

    def _log_mode(self, before: Lease) -> None:
        after = self.lease
        event = "mode"
        if before.newest[0] > after.newest[0]:
            event = "an earlier controller leads again"
        elif before.mode is Mode.LEASED and after.newest[0] != before.newest[0]:
            event = "another controller took over"
        say = log.info if event == "mode" else log.warning
        say(
            event,
            node=self._node,
            was=before.mode,
            now=after.mode,
            was_newest=before.newest,
            newest=after.newest,
        )
