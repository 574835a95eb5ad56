"""What this agent knows about one GPU: the last readings, the last write, and what is wrong with it.

Readings and writes come from two threads, and a reading that began before a write ended tells of the past.
Such a reading counts for power, never for the limit: otherwise the agent would see its own write undone and
write again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controller.agent.lease import Found, same_limit
from protocols import agent_link
from protocols.nvml import Device, NvmlFault, Reading

WRITE_AGAIN_S: Final = 1.0  # a GPU that refuses a limit refuses the next twenty as well
NOTICE_SHOWN_S: Final = 1.0  # ten reports: enough to be seen, too short to look like a lasting fault


@dataclass(slots=True)
class GpuView:
    """One GPU as last seen. `power_w` and `enforced_w` are None while it cannot be read."""

    device: Device | None = None
    reading: Reading | None = None  # None: the last sweep did not reach it
    limit_w: float | None = None  # requested limit as last read; None: never, or a write failed since
    read_fault: str = ""
    write_fault: str = ""
    notice: str = ""  # something that was put right; shown for a moment
    notice_until_s: float = 0.0
    written_at_s: float = -1.0  # end of the last write
    confirmed_w: float | None = None  # limit that we wrote and read back
    refused_w: float | None = None  # limit that could not be written
    write_again_at_s: float = 0.0

    def swept(self, result: Reading | NvmlFault, began_at_s: float) -> None:
        """Take in what a sweep that began then has read."""
        if isinstance(result, NvmlFault):
            # whatever it held a moment ago, nobody knows what it holds now
            self.reading, self.limit_w, self.read_fault = None, None, result.sentence
            return
        if self.read_fault:  # it is back: what it refused while it was ill may be tried at once
            self.refused_w = None
        self.reading, self.device, self.read_fault = result, result.device, ""
        if began_at_s > self.written_at_s:
            self.limit_w = result.limit_w

    def wrote(self, asked_w: float, result: tuple[float, float] | NvmlFault, now_s: float) -> None:
        """Take in a write: what was written after clamping and what was read back, or the fault."""
        self.written_at_s = now_s
        if isinstance(result, NvmlFault):
            self.limit_w = None  # the write may have taken effect, or still may: unknown until read again
            self._refuse(asked_w, result.sentence, now_s)
            return
        written_w, self.limit_w = result
        if not same_limit(written_w, self.limit_w):
            shown = f"{written_w:.0f} W were written, the driver shows {self.limit_w:.0f} W"
            self._refuse(asked_w, f"{shown}: is there another writer?", now_s)
            return
        self.write_fault, self.confirmed_w, self.refused_w = "", self.limit_w, None

    def may_write(self, limit_w: float, now_s: float) -> bool:
        """Not too soon after the same limit was refused."""
        return self.refused_w is None or self.refused_w != limit_w or now_s >= self.write_again_at_s

    def notice_foreign_change(self, limit_w: float, now_s: float) -> None:
        """`limit_w` is about to be written; if it was confirmed before, somebody has changed it since."""
        if self.confirmed_w is None or self.limit_w is None or not same_limit(self.confirmed_w, limit_w):
            return
        self.notice = (
            f"the limit had become {self.limit_w:.0f} W instead of {limit_w:.0f} W and was written again: "
            "driver reload, or another writer?"
        )
        self.notice_until_s = now_s + NOTICE_SHOWN_S

    def settle(self) -> None:
        """The GPU holds what it should, by whatever road: no write is failing any more."""
        self.write_fault, self.refused_w = "", None

    def found(self) -> Found | None:
        """Limit and constraints as the driver shows them; None while the GPU cannot be read."""
        if self.device is None or self.limit_w is None or self.read_fault:
            return None
        return Found(self.limit_w, self.device.min_w, self.device.max_w)

    def fault(self, now_s: float) -> str:
        """What is wrong, in a sentence; empty when all is well."""
        return self.read_fault or self.write_fault or (self.notice if now_s < self.notice_until_s else "")

    def _refuse(self, asked_w: float, sentence: str, now_s: float) -> None:
        self.write_fault, self.confirmed_w = sentence, None
        self.refused_w, self.write_again_at_s = asked_w, now_s + WRITE_AGAIN_S


def described(views: Sequence[GpuView], now_s: float) -> tuple[agent_link.Gpu, ...]:
    """All GPUs as a report tells them; empty while not one has been read since the start.

    A GPU that has never been read is given the widest limits among the others: nobody knows better, and its
    controller must count with the worst.
    """
    devices = [view.device for view in views if view.device is not None]
    if not devices:
        return ()
    widest = (min(device.min_w for device in devices), max(device.max_w for device in devices))
    return tuple(_described(view, widest, now_s) for view in views)


def _described(view: GpuView, widest: tuple[float, float], now_s: float) -> agent_link.Gpu:
    device, reading = view.device, view.reading
    min_w, max_w = widest if device is None else (device.min_w, device.max_w)
    return agent_link.Gpu(
        uuid="" if device is None else device.uuid,
        power_w=None if reading is None else reading.power_w,
        limit_w=view.limit_w,
        enforced_w=None if reading is None else reading.enforced_w,
        min_w=min_w,
        max_w=max_w,
        fault=view.fault(now_s),
    )
