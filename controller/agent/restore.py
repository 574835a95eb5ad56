"""`powerblock agent node.yaml --restore`: the GPUs as they were before the first agent of this node.

What was found is on disk (`found_limits`). For every GPU, by its UUID: the limit, the workload profiles that
we requested, the smoothing preset, and the clock lock: one of ours is taken away, or becomes the lock of the
site where node.yaml names it. What we never touched is left as it is.

`--dry-run` shows what it would do. It refuses while an agent runs. Where a limit would rise it waits first,
with nothing written yet: the controller goes on counting this host at its last order until its agent has been
silent for `agents.silent_max_after_s`, and at its maximum from then on. After that nothing is promised that
this could break.

A limit that GPUs share was found once: with the first of them that was met.

What was put back goes from the record; what could not be, and what is not there, stays on it. A board that is
not there is told and is no failure: it may never come back.

Exit status: 0 all that is there is as it was found; 1 something could not be put back, or the record cannot
be read throughout; 2 nothing was tried: no record, an agent that runs, no driver, a bad file.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from controller.agent import found_limits, lock
from controller.agent.config import ConfigError, NodeConfig, load_node
from controller.agent.found_limits import Found
from controller.agent.lease import same_limit
from protocols.nvml import Nvml, NvmlFault

WAIT_S: Final = 35.0  # longer than `agents.silent_max_after_s` of any block
EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2
NOTHING: Final = (
    "no agent has written any limit, or all was put back already; else correct `state_dir` in node.yaml"
)
NOT_FOUND: Final = 6  # nvmlReturn: the driver has no such GPU; one that fell off the bus has another code


@dataclass(frozen=True, slots=True)
class Row:
    """One thing of one GPU: found, present, and what came of it."""

    gpu: str
    what: str
    found: str
    now: str
    outcome: str
    failed: bool = False
    gone: bool = False


def main(path: Path, *, dry_run: bool, wait_s: float) -> int:
    """Command `powerblock agent --restore`. `wait_s`: before a limit rises."""
    try:
        config = load_node(path)
        _check_used(config)
        held = lock.take(config.state_dir)
        try:
            return _restore(config, held, dry_run=dry_run, wait_s=wait_s)
        finally:
            lock.release(held)
    except lock.LockedError as error:
        why = f"{error}; stop it first: systemctl stop powerblock-agent"
    except (ConfigError, NvmlFault, OSError) as error:
        why = str(error)
    sys.stderr.write(f"{why}\n")
    return EXIT_BAD_INPUT


def _check_used(config: NodeConfig) -> None:
    """Raises ConfigError where no agent was ever: the lock would make its directory, and make it root's."""
    if not config.state_dir.is_dir():
        raise ConfigError(f"{config.state_dir}: no such directory: {NOTHING}")


def _restore(config: NodeConfig, held: int, *, dry_run: bool, wait_s: float) -> int:
    """`held`: the lock. Raises LockedError, ConfigError, NvmlFault, OSError when nothing could be tried."""
    found = found_limits.read(config.state_dir)
    if not found and not found_limits.unreadable(config.state_dir):
        raise ConfigError(f"{config.state_dir}: nothing is recorded there: {NOTHING}")
    driver = Nvml()
    _share_found(config, driver, found)
    if not dry_run and wait_s > 0.0 and any(_rises(driver, uuid, one) for uuid, one in found.items()):
        sys.stderr.write(f"limits rise by this: begins in {wait_s:g} s, when the controller counts on it\n")
        time.sleep(wait_s)
        lock.require_alone(held, config.state_dir)
    rows = {
        uuid: list(restored(config, driver, uuid, one, dry_run=dry_run))
        for uuid, one in sorted(found.items(), key=lambda item: item[1].gpu)
    }
    Console().print(_table([row for one in rows.values() for row in one], dry_run))
    failures = [
        f"GPU {row.gpu}: {row.what}: {row.outcome}" for one in rows.values() for row in one if row.failed
    ]
    done = {uuid for uuid, one in rows.items() if not any(row.failed or row.gone for row in one)}
    try:
        found_limits.drop(config.state_dir, () if dry_run else done)
        failures += [
            f"{place}: cannot be read, so some GPU may not be as it was: set that right by hand, then delete "
            "this line"
            for place in found_limits.unreadable(config.state_dir)
        ]
    except OSError as error:
        failures.append(f"the record still has what was put back: {error}")
    if not failures:
        return 0
    failures.append("not all could be put back: what is left stays on record, try again")
    sys.stderr.write("".join(f"{failure}\n" for failure in failures))
    return EXIT_FAILED


def _share_found(config: NodeConfig, driver: Nvml, found: Mapping[str, Found]) -> None:
    """Of a module, what its first GPU was found at: a later one may have met what we had set by then."""
    per_module = (None if config.gpus is None else config.gpus.per_module) or 1
    limits_w: dict[int, float] = {}
    for uuid, one in found.items():
        with suppress(NvmlFault):  # told where it is to be put back
            if one.module and one.limit_w is not None:
                one.limit_w = limits_w.setdefault(driver.index_of(uuid) // per_module, one.limit_w)


def _rises(driver: Nvml, uuid: str, found: Found) -> bool:
    with suppress(NvmlFault):  # told where it is to be put back
        now_w = driver.read_limit_w(driver.index_of(uuid))
        return found.limit_w is not None and found.limit_w > now_w and not same_limit(now_w, found.limit_w)
    return False


def restored(config: NodeConfig, driver: Nvml, uuid: str, one: Found, *, dry_run: bool) -> Iterator[Row]:
    """Put back what was found of a GPU, or only say what that would be. Yields a row per thing."""
    try:
        gpu = driver.index_of(uuid)
    except NvmlFault as fault:
        gone = fault.code == NOT_FOUND
        outcome = "not in this host: nothing to put back" if gone else fault.sentence
        yield Row(f"was {one.gpu}", uuid, "", "", outcome, failed=not gone, gone=gone)
        return
    for what, put_back in (
        ("limit", _limit),
        ("clock lock", _clocks),
        ("profiles", _profiles),
        ("smoothing preset", _preset),
    ):
        try:
            yield from put_back(config, driver, gpu, one, dry_run)
        except NvmlFault as fault:
            yield Row(str(gpu), what, "", "", fault.sentence, failed=True)


def _limit(_config: NodeConfig, driver: Nvml, gpu: int, found: Found, dry_run: bool) -> Iterator[Row]:
    if found.limit_w is None:
        return
    now_w = driver.read_limit_w(gpu)
    same = same_limit(now_w, found.limit_w)
    outcome = _outcome(dry_run, same, lambda: driver.set_limit_w(gpu, found.limit_w or now_w))
    held_w = now_w if same or dry_run else driver.read_limit_w(gpu)
    failed = not dry_run and not same_limit(held_w, found.limit_w)
    if failed:
        outcome = f"the driver shows {held_w:.0f} W: is there another writer?"
    yield Row(str(gpu), "limit", f"{found.limit_w:.0f} W", f"{now_w:.0f} W", outcome, failed)


def _clocks(config: NodeConfig, driver: Nvml, gpu: int, found: Found, dry_run: bool) -> Iterator[Row]:
    """Nobody can read a lock: what was there is what node.yaml says."""
    if not found.ceiling_mhz:
        return
    site = config.clock_lock_mhz
    if site is None:
        outcome = _outcome(dry_run, False, lambda: driver.set_clock_ceiling(gpu, None))
        yield Row(str(gpu), "clock lock", "none known", "a ceiling of ours", outcome)
        return
    outcome = _outcome(dry_run, False, lambda: driver.set_clock_lock(gpu, *site))
    yield Row(
        str(gpu),
        "clock lock",
        f"{site[0]}-{site[1]} MHz (node.yaml)",
        "a ceiling of ours",
        outcome,
    )


def _profiles(_config: NodeConfig, driver: Nvml, gpu: int, found: Found, dry_run: bool) -> Iterator[Row]:
    if found.profiles is None or (now := driver.read_profiles(gpu)) is None:
        return
    ours = sorted(set(found.asked) - set(found.profiles))
    extra = [number for number in now.requested if number in ours]
    outcome = _outcome(dry_run, not extra, lambda: driver.clear_profiles(gpu, extra))
    yield Row(str(gpu), "profiles", _numbers(found.profiles), _numbers(now.requested), outcome)


def _preset(_config: NodeConfig, driver: Nvml, gpu: int, found: Found, dry_run: bool) -> Iterator[Row]:
    preset = found.preset
    if preset is None or (now := driver.read_smoothing(gpu)) is None:
        return
    outcome = _outcome(dry_run, now.preset == preset, lambda: driver.activate_preset(gpu, preset))
    yield Row(str(gpu), "smoothing preset", str(preset), str(now.preset), outcome)


def _outcome(dry_run: bool, same: bool, put_back: Callable[[], object]) -> str:
    if same:
        return "as it was found"
    if dry_run:
        return "would be put back"
    put_back()
    return "put back"


def _numbers(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _table(rows: list[Row], dry_run: bool) -> Table:
    table = Table(title="nothing was changed (--dry-run)" if dry_run else None)
    for heading in ("GPU", "what", "found", "now", "outcome"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row.gpu, row.what, row.found, row.now, row.outcome)
    return table
