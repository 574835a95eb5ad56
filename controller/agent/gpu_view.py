"""What this agent knows about one GPU: the last readings, the last writes, and what is wrong with it.

Readings and writes come from two threads, and a reading that began before a write ended tells of the past.
Such a reading counts for power, never for the limit: otherwise the agent would see its own write undone and
write again.

A clock ceiling cannot be read back at all. It is remembered as it was asked, and is sure only as long as the
GPU has not begun anew (`Reading.generation`).
"""

from dataclasses import dataclass, field
from typing import Final

from controller.agent import contest, levers
from controller.agent.contest import Contest
from controller.agent.lanes import TIMEOUT
from controller.agent.lease import Ceiling, Found, lower_mhz, same_limit
from controller.agent.levers import Learned, Seen
from protocols.nvml import GPU_IDLE, NOT_SUPPORTED, Device, NvmlFault, Profiles, Reading, Smoothing

WRITE_AGAIN_S: Final = 1.0  # a GPU that refuses a limit refuses the next twenty as well
NEVER_AGAIN_S: Final = 3600.0  # a GPU without the lever; a driver update may bring it
NOTICE_SHOWN_S: Final = 1.0  # ten reports: enough to be seen, too short to look like a lasting fault
EARLY_READINGS_MAX: Final = 20  # two seconds: enough to suspect a clock lock that was there before us

NEVER_OURS: Final = Ceiling(None)


@dataclass(slots=True)
class GpuView:
    """One GPU as last seen. `reading` is None while it cannot be read.

    Powers and limits are as the driver has them: of its module, where that has the limit.
    """

    device: Device | None = None
    reading: Reading | None = None  # None: the last sweep did not reach it
    limit_w: float | None = None  # requested limit as last read; None: never, or a write failed since
    first_w: float | None = None  # the first limit ever read
    read_fault: str = ""
    write_fault: str = ""
    clock_fault: str = ""
    module_fault: str = ""  # whose limit it is, is not as node.yaml has it
    notice_text: str = ""  # something to know that is no fault; shown for a moment
    notice_until_s: float = 0.0
    written_at_s: float = -1.0  # end of the last write
    confirmed_w: float | None = None  # limit that we wrote and read back
    confirmed_generation: int = 0
    refused_w: float | None = None  # limit that could not be written
    write_again_at_s: float = 0.0
    hangs: bool = False  # a write of its limit has not returned, as far as is known: it may take effect yet
    contest: Contest = contest.NONE_YET
    ceiling: Ceiling = NEVER_OURS
    clock_again_at_s: float = 0.0
    generation: int = -1
    learned: Learned = levers.NOTHING_YET
    early: list[Reading] = field(default_factory=list)  # before any ceiling of ours
    smoothing: Smoothing | None = None
    profiles: Profiles | None = None
    set_up_in: int = -1  # generation in which profiles and preset were requested
    set_up_again_at_s: float = 0.0

    def swept(self, result: Reading | NvmlFault, began_at_s: float) -> None:
        """Take in what a sweep that began then has read."""
        if isinstance(result, NvmlFault):
            # whatever it held a moment ago, nobody knows what it holds now
            self.reading, self.limit_w, self.read_fault = None, None, result.sentence
            return
        if self.read_fault:  # it is back: what it refused while it was ill may be tried at once
            self.refused_w = None
        if result.device is not self.device or result.generation != self.generation:
            self._began_anew(result)
        self.reading, self.read_fault = result, ""
        if began_at_s > self.written_at_s:
            self.limit_w, self.hangs = result.limit_w, False
        last = self.learned.last
        if last is None or began_at_s - last.at_s >= levers.LEARN_PERIOD_S:
            self.learned = levers.learn(self.learned, self._seen(result, began_at_s))
        if self.ceiling.asked_mhz is None and len(self.early) < EARLY_READINGS_MAX:
            self.early.append(result)

    def wrote(self, asked_w: float, result: tuple[float, float] | NvmlFault, now_s: float) -> None:
        """Take in a write: what was written after clamping and what was read back, or the fault."""
        self.written_at_s = now_s
        if isinstance(result, NvmlFault):
            self.limit_w = None  # the write may have taken effect, or still may: unknown until read again
            self._refuse(asked_w, result.sentence, now_s)
            if result.code == TIMEOUT:  # the lane calls no GPU that hangs: as soon as it may, it shall
                self.write_again_at_s, self.hangs = now_s, True
            return
        (written_w, self.limit_w), self.hangs = result, False
        if not same_limit(written_w, self.limit_w):
            self.contest = contest.reasserted(self.contest, now_s)
            self._refuse(asked_w, contest.not_taken(written_w, self.limit_w), now_s)
            return
        self.write_fault, self.confirmed_w, self.refused_w = "", self.limit_w, None
        self.confirmed_generation = self.generation
        self.learned = levers.pulled_limit(self.learned, self.limit_w, now_s)

    def was_concerned(self, now_s: float) -> None:
        """Another GPU of its module was written, and what this one shows since then is not known."""
        self.written_at_s, self.limit_w = now_s, None

    def may_write(self, limit_w: float, now_s: float) -> bool:
        """Not too soon after the same limit was refused, and not too often over somebody else's."""
        lowering = self.limit_w is None or limit_w < self.limit_w
        if self.refused_w == limit_w:
            if now_s < self.write_again_at_s:
                return False
        elif not self._was_taken(limit_w):
            return True
        if contest.may_reassert(self.contest, now_s, lowering=lowering):
            return True
        if self.limit_w is not None and not lowering:
            self.write_fault = ""  # it holds less than it may: that costs work and breaks no promise
            self.note(contest.changed(self.limit_w, limit_w, hot=True), now_s)
        return False

    def about_to_write(self, limit_w: float, now_s: float) -> None:
        """`limit_w` is about to be written; if it was confirmed before, something has changed it since."""
        if not self._was_taken(limit_w):
            return
        assert self.limit_w is not None
        if self.generation != self.confirmed_generation:
            self.note(
                f"the limit had become {self.limit_w:.0f} W instead of {limit_w:.0f} W and was written "
                "again: the driver was reloaded, or the GPU reset",
                now_s,
            )
            return
        self.contest = contest.reasserted(self.contest, now_s)
        hot = contest.is_hot(self.contest, now_s)
        self.note(contest.changed(self.limit_w, limit_w, hot=hot), now_s)

    def settle(self) -> None:
        """The GPU holds what it should, by whatever road: no write is failing any more."""
        self.write_fault, self.refused_w = "", None

    def ceiling_wrote(self, asked_mhz: int, result: NvmlFault | int, now_s: float) -> None:
        """Take in a write of the clocks; 0: the ceiling was taken away."""
        if not isinstance(result, NvmlFault):
            self.ceiling, self.clock_fault = Ceiling(asked_mhz), ""
            self.learned = levers.pulled_ceiling(self.learned, result if asked_mhz else 0, now_s)
            return
        self.clock_fault, self.clock_again_at_s = result.sentence, now_s + WRITE_AGAIN_S
        before_mhz = self.ceiling.asked_mhz
        if result.code == TIMEOUT:  # it may have been set, or still be: unknown until it is written again
            before_mhz = lower_mhz(before_mhz or 0, asked_mhz)
        self.ceiling = Ceiling(before_mhz, sure=False)
        if result.code == NOT_SUPPORTED:
            self.ceiling, self.clock_again_at_s = NEVER_OURS, now_s + NEVER_AGAIN_S

    def found(self) -> Found | None:
        """Limit and constraints as the driver shows them; None while the GPU cannot be read."""
        if self.device is None or self.limit_w is None or self.read_fault:
            return None
        return Found(self.limit_w, self.device.min_w, self.device.max_w)

    def floor_w(self) -> float | None:
        """The power that smoothing keeps up; None: it may, and by how much is not known."""
        smoothing = self.smoothing
        if smoothing is None or smoothing.enabled is False:
            return 0.0
        return smoothing.floor_w

    def fault(self) -> str:
        """What is wrong, in a sentence; empty when all is well."""
        return self.read_fault or self.write_fault or self.clock_fault or self.module_fault

    def notice(self, now_s: float, held_ratio: float = 1.0) -> str:
        """What else should be known, in a sentence. `held_ratio`: its share of the limit, see `shares`."""
        if now_s < self.notice_until_s:
            return self.notice_text
        reading = self.reading
        if reading is None:
            return ""
        held_down = contest.held_down(reading.limit_w, reading.enforced_w)
        floor_w, limit_w = self.floor_w(), held_ratio * reading.limit_w
        if held_down or not floor_w or floor_w <= limit_w:
            return held_down
        return (
            f"power smoothing keeps it at {floor_w:.0f} W whatever the limit: "
            f"{floor_w - limit_w:.0f} W above its limit"
        )

    def note(self, text: str, now_s: float) -> None:
        self.notice_text, self.notice_until_s = text, now_s + NOTICE_SHOWN_S

    def _began_anew(self, result: Reading) -> None:
        if self.device is not None and self.device.uuid != result.device.uuid:  # another board in its place
            self.ceiling, self.first_w, self.confirmed_w, self.profiles = NEVER_OURS, None, None, None
            self.learned, self.contest = levers.NOTHING_YET, contest.NONE_YET
            self.early.clear()
        elif self.device is not None and self.device.module is not result.device.module:
            self.first_w, self.confirmed_w, self.learned = None, None, levers.NOTHING_YET  # of another thing
            self.contest = contest.NONE_YET
        if result.generation != self.generation:
            self.generation = result.generation
            self.ceiling = Ceiling(self.ceiling.asked_mhz, sure=False)
        self.device, self.smoothing = result.device, result.device.smoothing
        if self.first_w is None:
            self.first_w = result.limit_w

    def _was_taken(self, limit_w: float) -> bool:
        return (
            self.confirmed_w is not None
            and self.limit_w is not None
            and same_limit(self.confirmed_w, limit_w)
            and not same_limit(self.limit_w, limit_w)
        )

    def _refuse(self, asked_w: float, sentence: str, now_s: float) -> None:
        self.write_fault, self.confirmed_w = sentence, None
        self.refused_w, self.write_again_at_s = asked_w, now_s + WRITE_AGAIN_S

    def _seen(self, reading: Reading, at_s: float) -> Seen:
        return Seen(
            at_s=at_s,
            power_w=reading.power_w,
            limit_w=reading.limit_w,
            clock_mhz=reading.clock_mhz,
            capped=reading.capped,
            idle=bool(reading.reasons & GPU_IDLE),
            most_w=reading.device.max_w,
            slowed=bool(self.ceiling.asked_mhz),
        )
