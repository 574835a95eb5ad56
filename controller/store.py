"""What must survive `kill -9` at any instant: one small file, replaced as a whole.

Written before it is acted upon. The rename makes the new content visible at once and whole: a process
killed in the middle leaves the old file or the new one, never half of either. Against loss of power the
file is also synced, by a thread, at most once in `SYNC_S`: the loop does not wait for a disk.

Limits are kept with both clocks. Within one boot of the host the monotonic one decides, so that a wall
clock that was stepped meanwhile neither ends nor stretches a limit; after a reboot only the wall clock
is left.
"""

import os
import threading
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from controller.core.model import FOREVER_S, Carried, Decision, Running, Setpoint

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
SYNC_S: Final = 1.0
VERSION: Final = 1

log = structlog.get_logger(__name__)


class KeptRunning(msgspec.Struct, frozen=True):
    setpoint: Setpoint
    ends_at_s: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content. `*_at_s` count on the monotonic clock of `boot_id`."""

    v: int = VERSION
    boot_id: str = ""
    epoch: int = 0
    book: dict[str, Any] | None = None  # accepted signals, as the site adapter writes them
    running: tuple[KeptRunning, ...] = ()
    limit_w: float | None = None  # the binding one
    budget_w: float = 0.0
    source: str = ""
    ends_at_s: float = FOREVER_S
    ends_utc_s: float = FOREVER_S


class StoreError(Exception):
    """The state cannot be kept or read; the text names the file and the remedy."""


class Store:
    """Owner of `state.json` in the state directory. Raises StoreError at start only."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "state.json"
        self.fault = ""
        self._temporary = state_dir / "state.json.new"
        self._encoder = msgspec.json.Encoder()
        self._dirty = threading.Event()
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._boot_id = BOOT_ID.read_text().strip()
        except OSError as error:
            raise StoreError(f"{state_dir}: {error.strerror}; give this user a writable state_dir") from None
        self.kept = self._load()

    def begin(self, now_utc_s: float) -> int:
        """Number of this start: greater than all before, even if the file was lost."""
        self._replace(epoch=max(self.kept.epoch + 1, int(now_utc_s)))
        if self.fault:
            raise StoreError(self.fault)
        threading.Thread(target=self._sync_for_ever, name="store sync", daemon=True).start()
        return self.kept.epoch

    def inherited(self, now_s: float, now_utc_s: float) -> tuple[Carried | None, tuple[Running, ...]]:
        """What bound the block when the last process ended, on this process's clocks."""
        kept = self.kept
        if kept.limit_w is None:
            return None, ()
        same_boot = kept.boot_id == self._boot_id
        running = tuple(
            Running(
                entry.setpoint,
                entry.ends_at_s if same_boot else now_s + entry.setpoint.ends_utc_s - now_utc_s,
            )
            for entry in kept.running
        )
        ends_at_s = kept.ends_at_s if same_boot else min(now_s + kept.ends_utc_s - now_utc_s, FOREVER_S)
        return Carried(kept.limit_w, kept.budget_w, kept.source, ends_at_s), running

    def keep_book(self, book: dict[str, Any]) -> None:
        """Accepted signals, before they are acted upon."""
        self._replace(book=book)

    def keep_decision(self, decision: Decision) -> None:
        """The binding limit and the windows that are open, if they changed."""
        running = tuple(KeptRunning(entry.setpoint, entry.ends_at_s) for entry in decision.state.running)
        mine = [e for e in running if e.setpoint.limit_w == decision.binding.power_w]
        kept = self.kept
        said = (decision.binding.power_w, decision.budget_w, decision.binding.source)
        if said == (kept.limit_w, kept.budget_w, kept.source) and running == kept.running:
            return
        self._replace(
            boot_id=self._boot_id,
            running=running,
            limit_w=decision.binding.power_w,
            budget_w=decision.budget_w,
            source=decision.binding.source,
            ends_at_s=max((entry.ends_at_s for entry in mine), default=FOREVER_S),
            ends_utc_s=max((entry.setpoint.ends_utc_s for entry in mine), default=FOREVER_S),
        )

    def _replace(self, **changes: Any) -> None:
        self.kept = msgspec.structs.replace(self.kept, **changes)
        try:
            self._temporary.write_bytes(self._encoder.encode(self.kept))
            self._temporary.replace(self.path)
        except OSError as error:
            fault = f"{self.path}: {error.strerror}: a restart now would forget the limits in force"
            if fault != self.fault:
                log.error("state not kept", why=fault)
            self.fault = fault
            return
        self.fault = ""
        self._dirty.set()

    def _load(self) -> Kept:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return Kept()
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; make it readable for this user") from None
        try:
            kept = msgspec.json.decode(content, type=Kept)
        except msgspec.DecodeError as error:
            return self._set_aside(f"not a kept state: {error}")
        return (
            kept if kept.v == VERSION else self._set_aside(f"version {kept.v}, this program keeps {VERSION}")
        )

    def _set_aside(self, why: str) -> Kept:
        """An unreadable memory must not keep the block without a controller: failsafe is safe without it."""
        aside = self.path.with_suffix(".json.unreadable")
        self.path.replace(aside)
        log.error("kept state unreadable, starting at the failsafe limit", why=why, moved_to=str(aside))
        return Kept()

    def _sync_for_ever(self) -> None:
        while True:
            self._dirty.wait()
            self._dirty.clear()
            try:
                descriptor = os.open(self.path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            except OSError as error:
                log.warning("state not synced", path=str(self.path), why=error.strerror)
            threading.Event().wait(SYNC_S)
