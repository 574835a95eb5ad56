"""What the GPUs were like before this agent touched them, on disk before the first write.

NVML cannot say which limit a site had set before us; who wants it back must remember it. JSON lines, forced
to disk, appended and never changed; what a line is about shows in its keys:
    limit_w                  found at an agent's start, per GPU; `module`: that of its module, whole
    profiles, preset         found before we requested ours; `asked`: what we request
    ceiling_mhz, host_boot   a clock ceiling of ours is about to be set, this one first (0: there is none any
                             more); void once the host has booted again, which clears all locks

What counts as found is the first line of its kind for a GPU: later ones tell what we had left there
ourselves. A file that has grown too long steps aside: the first one ever is kept for good, of the later ones
the last full one. The lines of a GPU that was put back (`agent --restore`) go, and what is found of it from
then on is the site's again.

A line counts as written when the disk has it; until then it is owed (`Record`) and tried again. A line that
cannot be read may be about any GPU: nobody can say then that all is as it was found.
"""

import errno
import io
import json
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from controller.clock import now_s, now_utc_s
from protocols.nvml import Device, Profiles, Reading

FILE_MAX_BYTES: Final = 1024 * 1024  # some 5,000 lines: 600 starts of an eight-GPU host
NAME: Final = "found-limits.jsonl"
FIRST: Final = "found-limits.first.jsonl"
PREVIOUS: Final = "found-limits.previous.jsonl"
RESTORED: Final = "found-limits.restored.jsonl"
HOST_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
REST_RATIO: Final = 9.0  # a disk that takes long to fail may hold writing up for a tenth of the time


@dataclass(slots=True)
class Found:
    """What one GPU was like before us. None: nothing was recorded, nothing of the kind was touched."""

    gpu: int
    limit_w: float | None = None
    module: bool = False  # that limit is its module's
    profiles: tuple[int, ...] | None = None
    asked: tuple[int, ...] = field(default=())
    preset: int | None = None
    ceiling_mhz: int = 0  # a ceiling of ours may be in force; when it was set first it was this one


def limit_line(reading: Reading) -> dict[str, Any]:
    device = reading.device
    return {
        **_gpu(device),
        "limit_w": reading.limit_w,
        "default_w": device.default_w,
        "min_w": device.min_w,
        "max_w": device.max_w,
        "module": device.module,
    }


def settings_line(
    device: Device, profiles: Profiles | None, asked: Iterable[int], preset: int | None
) -> dict[str, Any]:
    """Before profiles are requested and a preset is activated."""
    found = None if profiles is None else list(profiles.requested)
    return {**_gpu(device), "profiles": found, "asked": list(asked), "preset": preset}


def ceiling_line(device: Device, ceiling_mhz: int) -> dict[str, Any]:
    return {**_gpu(device), "ceiling_mhz": ceiling_mhz, "host_boot": host_boot()}


class Record:
    """What was found and the disk does not have yet: of each GPU one line of a kind, so it cannot grow.

    Written in a thread, by one at a time.
    """

    def __init__(self, state_dir: Path, boot: str) -> None:
        self._state_dir = state_dir
        self._boot = boot
        self._owed: dict[tuple[str, bool, bool, bool], dict[str, Any]] = {}
        self._touching = threading.Lock()  # `_owed`
        self._writing = threading.Lock()
        self._again_at_s = 0.0
        self._told = ""

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        with self._touching:
            for line in lines:
                kind = (line["uuid"], "asked" in line, "ceiling_mhz" in line, bool(line.get("module")))
                if "ceiling_mhz" in line:
                    self._owed[kind] = line  # the newest counts,
                else:
                    self._owed.setdefault(kind, line)  # of all else the first

    def is_due(self, now: float) -> bool:
        """Something is owed, and the disk is not known to be busy or slow to fail."""
        return bool(self._owed) and now >= self._again_at_s and not self._writing.locked()

    def write(self) -> None:
        """What is owed, onto the disk. Raises OSError when it begins to fail; later tries fail silently."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            self._write()
        finally:
            self._writing.release()

    def _write(self) -> None:
        with self._touching:
            owed, began_s = dict(self._owed), now_s()
        try:
            record(self._state_dir, owed.values(), boot=self._boot, now_utc_s=now_utc_s())
        except OSError as error:
            self._again_at_s = now_s() + REST_RATIO * (now_s() - began_s)
            was, self._told = self._told, str(error)
            if self._told != was:
                raise
            return
        self._told = ""
        with self._touching:
            for kind, line in owed.items():
                if self._owed[kind] is line:
                    del self._owed[kind]


def record(state_dir: Path, lines: Iterable[Mapping[str, Any]], *, boot: str, now_utc_s: float) -> None:
    """Append lines and wait for the disk; all or nothing. Raises OSError."""
    path = state_dir / NAME
    state_dir.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > FILE_MAX_BYTES:
        path.replace(state_dir / (PREVIOUS if (state_dir / FIRST).exists() else FIRST))
    stamp = {"at_utc_s": round(now_utc_s, 3), "boot": boot}
    text = "".join(json.dumps({**stamp, **line}, allow_nan=False) + "\n" for line in lines).encode()
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):
            text = b"\n" + text  # a crash has cut the last line off: it must not take ours with it
        try:
            _write_all(file, text)
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def _write_all(file: io.FileIO, text: bytes) -> None:
    if file.write(text) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())


def read(state_dir: Path) -> dict[str, Found]:
    """What was found, by UUID, as far as it can be read: see `unreadable`. Raises OSError."""
    found: dict[str, Found] = {}
    booted = host_boot()
    for _, _, line in _lines(state_dir):
        if line is not None:
            _take(found.setdefault(line.uuid, Found(line.gpu)), line, booted)
    return found


def unreadable(state_dir: Path) -> list[str]:
    """Where lines stand that cannot be read, or say nothing. Raises OSError."""
    return [place for place, _, line in _lines(state_dir) if line is None]


def drop(state_dir: Path, uuids: Collection[str]) -> None:
    """All of these GPUs was put back: their lines are set aside, all others stay. Raises OSError."""
    lines = list(_lines(state_dir))
    dropped = [text for _, text, line in lines if line is not None and line.uuid in uuids]
    if not dropped:
        return
    kept = [text for _, text, line in lines if line is None or line.uuid not in uuids]
    _replace(state_dir / RESTORED, dropped)
    _replace(state_dir / NAME, kept)  # first: a crash in between leaves too much, never too little
    for name in (PREVIOUS, FIRST):
        (state_dir / name).unlink(missing_ok=True)


def host_boot() -> str:
    """Another one after every boot of the host; empty where nobody tells it, and then no line is void."""
    try:
        return HOST_BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _gpu(device: Device) -> dict[str, Any]:
    return {"gpu": device.index, "uuid": device.uuid}


class _Line(msgspec.Struct, frozen=True):
    """What is needed of a line. Numbers that are none (NaN, Infinity) are refused by the decoder."""

    uuid: str
    gpu: int
    limit_w: float | None = None
    module: bool = False
    profiles: tuple[int, ...] | None = None
    asked: tuple[int, ...] | None = None
    preset: int | None = None
    ceiling_mhz: int | None = None
    host_boot: str = ""


def _lines(state_dir: Path) -> Iterator[tuple[str, bytes, _Line | None]]:
    """Place, text and meaning of every line, oldest first. Raises OSError."""
    for name in (FIRST, PREVIOUS, NAME):
        path = state_dir / name
        if not path.exists():
            continue
        for number, text in enumerate(path.read_bytes().split(b"\n"), 1):
            if text:
                yield f"{path} line {number}", text, _parsed(text)


def _parsed(text: bytes) -> _Line | None:
    try:
        line = msgspec.json.decode(text, type=_Line)
    except ValueError:  # of msgspec, or not UTF-8
        return None
    told = (line.limit_w, line.asked, line.ceiling_mhz)
    return None if told == (None, None, None) else line


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file anew, whole or not at all, for the agent to go on with even if root does it."""
    beside = path.with_name(f"{path.name}.new")
    with beside.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(beside, owner.st_uid, owner.st_gid)
    beside.replace(path)


def _take(one: Found, line: _Line, host_boot: str) -> None:
    if one.limit_w is None or (line.module and not one.module):  # its own could be read and never be set
        one.limit_w, one.module = line.limit_w, line.module
    if line.asked is not None:
        one.asked = tuple(sorted({*one.asked, *line.asked}))
        if one.profiles is None:
            one.profiles = line.profiles
        if one.preset is None:
            one.preset = line.preset
    if line.ceiling_mhz is not None:
        is_void = bool(host_boot and line.host_boot) and line.host_boot != host_boot
        one.ceiling_mhz = 0 if is_void else line.ceiling_mhz
