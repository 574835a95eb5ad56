"""What must survive `kill -9` at any instant: two small files, each replaced as a whole.

`state.json` is what binds now and changes with every step of a ramp; `book.json` is what the site announced
and changes with its signals, so a long plan does not slow the beat. Both are written before they are acted
upon. The rename makes new content visible at once and whole: a process killed in the middle leaves the old
file or the new one. Against loss of power a thread syncs them, at most once in `SYNC_S`: the beat does not
wait for a disk, and after a loss of power the block holds its failsafe limit until the site has spoken
anyway. A disk that fails is a fault to show, and is tried again.

Beside the limit that binds stands what else must not be forgotten because the site does not say it again: a
response to the grid's frequency, the cooling capacity when last heard, and dry contacts that call.

Limits are kept with both clocks. Within one boot of the host the monotonic one decides, so that a wall
clock that was stepped meanwhile neither ends nor stretches a limit. After a reboot only the wall clock
is left, which may be years off: no window is inherited for longer than it was meant to last.
"""

import fcntl
import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import structlog

from controller.core.frequency_model import Underway
from controller.core.model import FOREVER_S, NEVER_S, NO_LIMIT_W, Carried, Decision, Running, Setpoint

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
SYNC_S: Final = 1.0
BASE_KEPT_S: Final = 5.0  # a base load on disk is no older than this; the law trusts it for six times that
RETRY_S: Final = 1.0  # after a failed write
VERSION: Final = 1
UNREADABLE: Final = (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)

T = TypeVar("T")

log = structlog.get_logger(__name__)


class KeptRunning(msgspec.Struct, frozen=True):
    setpoint: Setpoint
    ends_at_s: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `state.json`. `*_at_s` count on the monotonic clock of `boot_id`."""

    v: int = VERSION
    boot_id: str = ""
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0  # a number that JSON readers agree on
    running: tuple[KeptRunning, ...] = ()
    limit_w: float | None = None  # the binding one
    budget_w: float = 0.0
    source: str = ""
    ends_at_s: float = FOREVER_S
    ends_utc_s: float = FOREVER_S
    base_w: float = 0.0
    base_at_s: float = NEVER_S
    up_w_per_s: float | None = None
    length_s: float = FOREVER_S  # of the window that binds
    at_s: float = NEVER_S  # when this was decided, by both clocks
    at_utc_s: float = NEVER_S
    response: Underway | None = None  # to the grid's frequency
    cooling_w: float = NO_LIMIT_W  # no more than was last heard
    contacts: tuple[str, ...] = ()  # that call a level of shedding, by name


class StoreError(Exception):
    """A directory belongs to another process or user; the text names it."""


class Store:
    """Owner of the state directory's files. Raises StoreError when another controller owns them.

    Attributes:
        kept: what binds; what the last process left until this one decides.
        book: accepted signals by source, as the site's desk writes them; None: none were kept.
        fault: why something is not on disk, or an empty string.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "state.json"
        self.book_path = state_dir / "book.json"
        self.fault = ""
        self._encoder = msgspec.json.Encoder()
        self._tried_at_s = NEVER_S
        self._unwritten_book = b""
        self._running: tuple[Running, ...] | None = None  # as kept
        self._dirty = threading.Event()
        self._lock: int | None = None
        self._boot_id = BOOT_ID.read_text().strip()
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(state_dir / "lock")
        except PermissionError:
            raise StoreError(f"{state_dir / 'lock'}: this user may not write it; chown it") from None
        except OSError as error:
            self._fail(f"{state_dir}: {error.strerror}; give this user a writable state_dir")
        self.kept = self._load(self.path, Kept) or Kept()
        if self.kept.v != VERSION:
            self._set_aside(self.path, f"version {self.kept.v}, this program keeps {VERSION}")
            self.kept = Kept()
        self.book: dict[str, Any] | None = self._load(self.book_path, dict[str, Any])

    def begin(self, now_utc_s: float) -> int:
        """Number of this start: greater than all before, even if the file was lost.

        In microseconds, since two hosts may start in one second: after a loss of power they do.
        """
        self._replace(epoch=max(self.kept.epoch + 1, int(now_utc_s * 1e6)))
        threading.Thread(target=self._sync_for_ever, name="store sync", daemon=True).start()
        return self.kept.epoch

    def same_clock(self) -> frozenset[int]:
        """Before `begin`: the start before this one, if this host has not been booted since it decided."""
        return frozenset({self.kept.epoch} if self.kept.boot_id == self._boot_id else ())

    def close(self) -> None:
        """Let another process own the files; the kernel does the same for one that was killed."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def inherited(self, now_s: float, now_utc_s: float) -> tuple[Carried | None, tuple[Running, ...]]:
        """What bound the block when the last process ended, on this process's clocks."""
        kept = self.kept
        if kept.limit_w is None:
            return None, ()
        if kept.boot_id == self._boot_id:
            running = tuple(Running(entry.setpoint, entry.ends_at_s) for entry in kept.running)
            carried = Carried(
                kept.limit_w,
                kept.budget_w,
                kept.source,
                kept.ends_at_s,
                kept.base_w,
                kept.base_at_s,
                kept.up_w_per_s,
                kept.cooling_w,
                kept.response,
            )
            return carried, running
        left_s = min(kept.ends_utc_s - now_utc_s, kept.length_s)
        ends_at_s = min(now_s + left_s, FOREVER_S)
        carried = Carried(
            kept.limit_w,
            kept.budget_w,
            kept.source,
            ends_at_s,
            up_w_per_s=kept.up_w_per_s,
            cooling_w=kept.cooling_w,
            response=_moved(kept.response, (now_s - kept.at_s) - max(0.0, now_utc_s - kept.at_utc_s)),
        )
        opened = (
            Running(s, now_s + min(s.ends_utc_s - now_utc_s, _length_s(s)))
            for s in (entry.setpoint for entry in kept.running)
        )
        return carried, tuple(entry for entry in opened if entry.ends_at_s > now_s)

    def keep_book(self, book: dict[str, Any]) -> None:
        """Accepted signals, before they are acted upon."""
        self.book = book
        self._unwritten_book = self._encoder.encode(book)
        self._write(state=False)

    def set_book_aside(self, why: str) -> None:
        """The book was read, but makes no sense to its owner."""
        self._set_aside(self.book_path, why)
        self.book = None

    def keep_decision(
        self,
        decision: Decision,
        now_utc_s: float,
        response: Underway | None = None,
        contacts: tuple[str, ...] = (),
    ) -> None:
        """What binds, and the windows that are open, if they changed or could not be written.

        Args:
            decision: of this beat.
            now_utc_s: by the wall clock.
            response: to the grid's frequency; None: none is under way.
            contacts: names of those that call.
        """
        kept, running = self.kept, decision.state.running
        base, cooling_w = decision.state.base, decision.state.cooling_w
        said = (decision.binding.power_w, decision.budget_w, decision.binding.source, response, contacts)
        known = (kept.limit_w, kept.budget_w, kept.source, kept.response, kept.contacts)
        measured = base.measured_at_s - kept.base_at_s < BASE_KEPT_S
        measured &= cooling_w >= kept.cooling_w  # more of it can wait for the next write
        if said == known and running == self._running and measured:
            if self.fault and decision.state.at_s - self._tried_at_s >= RETRY_S:
                self._tried_at_s = decision.state.at_s
                self._write()
            return
        mine = [e for e in running if e.setpoint.limit_w == decision.binding.power_w]
        self._running = running
        self._replace(
            boot_id=self._boot_id,
            running=tuple(KeptRunning(entry.setpoint, entry.ends_at_s) for entry in running),
            limit_w=decision.binding.power_w,
            budget_w=decision.budget_w,
            source=decision.binding.source,
            base_w=base.upper_w,
            base_at_s=base.measured_at_s,
            up_w_per_s=decision.state.pace.up_w_per_s,
            ends_at_s=max((entry.ends_at_s for entry in mine), default=FOREVER_S),
            ends_utc_s=max((entry.setpoint.ends_utc_s for entry in mine), default=FOREVER_S),
            length_s=max((_length_s(entry.setpoint) for entry in mine), default=FOREVER_S),
            at_s=decision.state.at_s,
            at_utc_s=now_utc_s,
            response=response,
            cooling_w=cooling_w,
            contacts=contacts,
        )

    def _replace(self, **changes: Any) -> None:
        self.kept = msgspec.structs.replace(self.kept, **changes)
        self._write()

    def _write(self, *, state: bool = True) -> None:
        """The state as it is now, and the book if the one on disk is not the newest."""
        path = self.path
        try:
            if self._unwritten_book:
                path = self.book_path
                _replace_file(path, self._unwritten_book)
                self._unwritten_book, path = b"", self.path
            if state or self.fault:
                _replace_file(path, self._encoder.encode(self.kept))
        except OSError as error:
            self._fail(f"{path}: {error.strerror}: a restart now would forget the limits in force")
            return
        self.fault = ""
        self._dirty.set()

    def _fail(self, fault: str) -> None:
        if fault != self.fault:
            log.error("state not kept", why=fault)
        self.fault = fault

    def _load(self, path: Path, content: type[T]) -> T | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=content)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UNREADABLE as error:
            self._set_aside(path, f"not a kept state: {error}")
        return None

    def _set_aside(self, path: Path, why: str) -> None:
        """An unreadable memory must not keep the block without a controller: failsafe is safe without it."""
        aside = path.with_suffix(".json.unreadable")
        try:
            path.replace(aside)
        except OSError as error:
            self._fail(f"{path}: {error.strerror}; give this user a writable state_dir")
        log.error("kept state unreadable, going on without it", why=why, moved_to=str(aside))

    def _sync_for_ever(self) -> None:
        while True:
            self._dirty.wait()
            self._dirty.clear()
            try:
                for path in (self.book_path, self.path, self.path.parent):
                    if path.exists():
                        _sync(path)
            except OSError as error:
                log.warning("state not synced", path=str(self.path), why=error.strerror)
            threading.Event().wait(SYNC_S)


def require_writable(**folders: Path) -> None:
    """Makes them. Raises StoreError naming all, by setting, that cannot be written."""
    refused: list[str] = []
    for setting, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            refused.append(refusal(setting, folder, error))
    if refused:
        raise StoreError("\n".join(refused))


def refusal(setting: str, folder: Path, error: OSError) -> str:
    """Why a folder that a setting names cannot be written, in a sentence."""
    if isinstance(error, PermissionError):
        return (
            f"{setting} {folder}: this user may not write there; chown it, or have the systemd unit make it"
            " (docs/operations.md, Installing)"
        )
    return f"{setting} {folder}: {error.strerror}; choose another {setting}, or mend what is there"


def _moved(response: Underway | None, by_s: float) -> Underway | None:
    """On another monotonic clock."""
    if response is None:
        return None
    return replace(
        response, raised_at_s=response.raised_at_s + by_s, ready_from_s=response.ready_from_s + by_s
    )


def _length_s(setpoint: Setpoint) -> float:
    return setpoint.ends_utc_s - setpoint.starts_utc_s


def _locked(path: Path) -> int:
    """An open file that no other process holds open in this way."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"{path.parent}: another controller runs on this state_dir; stop it first") from None
    return descriptor


def _replace_file(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".json.new")
    temporary.write_bytes(content)
    temporary.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
