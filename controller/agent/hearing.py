"""What comes in: orders, tables, calls. Decided at once, inside the socket's read event; written later.

Here is the node's lease and its shed table, and what is known of the controller's clock. Whether a message
is obeyed is decided in `lease` (pure). A refusal is logged once per reason, since orders come twenty times a
second, and counted: reports carry the counts.
"""

from collections.abc import Callable

import structlog

from controller.agent.lease import Lease, LeaseSettings, Mode, Refusal, begin, offer, shed
from controller.clock import now_s
from protocols import agent_link

log = structlog.get_logger(__name__)

# Orders of a controller that is not in force: its clock would mislead ours.
NOT_OURS = (Refusal.OVERTAKEN, Refusal.SECOND_CONTROLLER)


class Ear:
    """`on_change` is called when there may be something to write."""

    def __init__(
        self, node: str, settings: LeaseSettings, on_change: Callable[[], None], *, observe: bool
    ) -> None:
        self.lease: Lease = begin(settings, now_s(), observe=observe)
        self.table: agent_link.Table | None = None  # what to do when a level is called
        self.heard_sent_at_s = -1.0  # of the newest order heard, controller's clock
        self.heard_at_s = 0.0  # when it came, our clock
        self.newest_at_s = 0.0  # when the newest order or call came
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
        if after.newest != before.newest:
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
        if refusal not in NOT_OURS:
            self.heard_sent_at_s, self.heard_at_s = order.sent_at_s, now
        return refusal

    def _hear_table(self, payload: bytes) -> str | None:
        table = agent_link.decode_table(payload)
        if any(len(level.limits_w) != len(self.lease.held_w) for level in table.levels):
            return Refusal.OTHER_GPU_COUNT
        in_force = (self.lease.newest[0], 0)
        newest = in_force if self.table is None else (self.table.epoch, self.table.version)
        if (table.epoch, table.version) < max(newest, in_force):
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
            log.warning("order refused", node=self._node, why=why, refused=counts)
        self._logged_refusal = why

    def _log_mode(self, before: Lease) -> None:
        after = self.lease
        took_over = before.mode is Mode.LEASED and after.newest[0] != before.newest[0]
        say = log.warning if took_over else log.info
        say(
            "another controller took over" if took_over else "mode",
            node=self._node,
            was=before.mode,
            now=after.mode,
            was_newest=before.newest,
            newest=after.newest,
        )
