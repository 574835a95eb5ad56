"""`powerblock agent --restore`: everything as it was before the first agent, and nothing else."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.agent import found_limits, lock
from firmware_sim.gpu_firmware import environment, gpu_uuid
from protocols.agent_link import Level

LIMITS_W = (600.0, 550.0, 500.0, 450.0)
FOUND_W = [650.0, 640.0, 630.0, 620.0]


def restore(node, *arguments, wait_s=0.0) -> subprocess.CompletedProcess:
    options = ["--restore", "--wait", str(wait_s), *arguments]
    return subprocess.run(
        [sys.executable, "-m", "controller.cli", "agent", str(node.file), *options],
        env={**os.environ, **environment(node.library, node.memory.path), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def used(n) -> None:
    """Two lives of an agent on this node, with both levers pulled and profiles requested."""
    n.memory.gpus["requested_mw"] = [round(limit_w * 1000) for limit_w in FOUND_W]
    n.memory.add_smoothing(1400.0)
    n.memory.gpus["profiles_supported"], n.memory.gpus["profiles_requested"] = 0b1111111, 0b10
    for _ in range(2):
        boot = n.newest.boot if n.reports else ""
        n.start()
        await n.report(lambda report, boot=boot: report.boot != boot)
        await n.lead(LIMITS_W, (1200, 0, 0, 0))
        await n.until(lambda: list(n.memory.gpus["smoothing_preset"]) == [2] * 4)
        n.stop()


async def test_limits_clocks_profiles_and_presets_are_as_they_were_found(node):
    async with node(profiles=[6], smoothing={"preset": 2}) as n:
        await used(n)
        assert n.ceilings_mhz() == [1200, None, None, None]
        shown = restore(n, "--dry-run")
        assert shown.returncode == 0, shown.stderr
        assert "would be put back" in shown.stdout
        assert n.limits_w() == list(LIMITS_W)  # only shown
        done = restore(n)
        assert done.returncode == 0, done.stderr
        assert n.limits_w() == FOUND_W
        assert n.ceilings_mhz() == [None] * 4
        assert list(n.memory.gpus["profiles_requested"]) == [0b10] * 4
        assert list(n.memory.gpus["smoothing_preset"]) == [0] * 4
        assert "650 W" in done.stdout
        assert "600 W" in done.stdout
        again = restore(n)
        assert again.returncode == 2  # all was put back: there is nothing on record any more
        assert "nothing is recorded" in again.stderr
        assert (n.folder / "state" / "found-limits.restored.jsonl").exists()


async def test_limits_rise_when_the_controller_counts_on_it_and_all_else_needs_no_wait(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        n.stop()
        began_s = time.monotonic()
        putting = asyncio.create_task(asyncio.to_thread(restore, n, wait_s=4.0))
        await n.until(lambda: n.limits_w() != list(LIMITS_W), within_s=20.0)
        assert time.monotonic() - began_s > 4.0
        done = await putting
        assert (done.returncode, n.limits_w()) == (0, [700.0] * 4)
        assert "begins in 4 s" in done.stderr
        n.start()
        await n.report(lambda report: report.mode == "waiting")
        await n.lead((700.0,) * 4)
        n.stop()
        n.memory.gpus["requested_mw"] = 710_000  # by somebody else: what was found is lower
        done = restore(n, wait_s=60.0)
        assert (done.returncode, done.stderr, n.limits_w()) == (0, "", [700.0] * 4)


async def test_an_agent_that_starts_while_it_waits_is_not_undone(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        n.stop()
        putting = asyncio.create_task(asyncio.to_thread(restore, n, wait_s=15.0))
        await n.until(lambda: _is_taken(n.folder / "state"), within_s=10.0)
        boot = n.newest.boot
        n.start()
        await n.report(lambda report: report.boot != boot, within_s=14.0)
        refused = await putting
        assert refused.returncode == 2
        assert f"process {n.process.pid}" in refused.stderr
        assert n.limits_w() == list(LIMITS_W)


def _is_taken(state_dir) -> bool:
    try:
        lock.require_free(state_dir)
    except lock.LockedError:
        return True
    return False


async def test_the_lock_of_the_site_comes_back_where_node_yaml_names_it(node):
    async with node(clock_lock_mhz=[600, 1305]) as n:
        n.memory.gpus["locked_clock_min_mhz"], n.memory.gpus["locked_clock_max_mhz"] = 600, 1305
        n.start()
        await n.report()
        await n.lead(LIMITS_W, (900,) * 4)
        n.stop()
        assert restore(n).returncode == 0
        assert n.ceilings_mhz() == [1305] * 4
        assert list(n.memory.gpus["locked_clock_min_mhz"]) == [600] * 4


async def test_it_refuses_while_an_agent_runs_and_names_it(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        refused = restore(n)
        assert refused.returncode == 2
        assert f"process {n.process.pid}" in refused.stderr
        assert "systemctl stop powerblock-agent" in refused.stderr
        assert n.limits_w() == list(LIMITS_W)


async def test_what_fails_is_said_and_can_be_tried_again(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        n.stop()
        n.memory.gpus["write_error"][2] = 4
        failed = restore(n)
        assert failed.returncode == 1
        assert "grant CAP_SYS_ADMIN" in failed.stderr
        assert n.limits_w() == [700.0, 700.0, 500.0, 700.0]
        n.memory.gpus["write_error"][2] = 0
        assert restore(n).returncode == 0
        assert n.limits_w() == [700.0] * 4


async def test_a_line_that_cannot_be_read_is_no_success_and_hides_nobody_else(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        n.stop()
        record = n.folder / "state" / found_limits.NAME
        lines = record.read_text().splitlines()
        lines[2] = lines[2].replace('"limit_w": 700.0', '"limit_w": NaN')
        record.write_text("\n".join(lines) + "\n")
        failed = restore(n)
        assert failed.returncode == 1
        assert f"{record} line 1: cannot be read" in failed.stderr  # all others have gone from it
        assert n.limits_w() == [700.0, 700.0, LIMITS_W[2], 700.0]
        assert restore(n).returncode == 1
        record.write_text("")
        assert restore(n).returncode == 2


async def test_a_board_that_is_gone_is_told_and_what_was_put_back_never_comes_again(node):
    """Years later the site runs other limits: those are what was found then."""
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        n.stop()
        record = n.folder / "state" / found_limits.NAME
        record.write_text(record.read_text().replace(gpu_uuid(n.folder.name, 3), "GPU-of-old"))
        for _ in range(2):
            done = restore(n)
            assert (done.returncode, done.stderr) == (0, "")
            assert "not in this host" in done.stdout
        assert n.limits_w() == [700.0, 700.0, 700.0, LIMITS_W[3]]
        n.memory.gpus["requested_mw"] = 520_000
        boot = n.newest.boot
        n.start()
        await n.report(lambda report: report.boot != boot)
        await n.lead(LIMITS_W)
        n.stop()
        assert restore(n).returncode == 0
        assert n.limits_w() == [520.0] * 4


async def test_an_agent_beside_one_that_hangs_keeps_the_lock_when_that_is_gone(node):
    async with node() as n:
        hung = lock.take(n.folder / "state")
        n.start()
        await n.report(within_s=20.0)
        await n.lead(LIMITS_W)
        assert "run one agent per node" in n.logged()
        assert restore(n).returncode == 2
        lock.release(hung)
        refused = restore(n)
        assert refused.returncode == 2
        assert f"process {n.process.pid}" in refused.stderr
        assert n.limits_w() == list(LIMITS_W)


async def test_an_agent_that_starts_while_limits_are_put_back_has_the_lock_after_that(node):
    async with node() as n:
        restoring = lock.take(n.folder / "state")
        n.start()
        await n.report(within_s=20.0)  # the GPUs are not left alone
        lock.release(restoring)

        def is_refused() -> bool:
            try:
                lock.release(lock.take(n.folder / "state"))
            except lock.LockedError:
                return True
            return False

        await n.until(is_refused)


@pytest.mark.parametrize("made", [False, True], ids=["no directory", "an empty one"])
async def test_without_a_record_it_touches_nothing_and_ends_as_the_page_says(node, made):
    async with node() as n:
        if made:
            (n.folder / "state").mkdir()
        for options in ([], ["--dry-run"]):
            ended = restore(n, *options)
            assert (ended.returncode, ended.stdout) == (2, "")
            assert f"{n.folder}/state: " in ended.stderr
            assert "no agent has written any limit, or all was put back already" in ended.stderr
            assert "correct `state_dir` in node.yaml" in ended.stderr
        assert list(n.memory.gpus["write_count"]) == [0] * 4
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `powerblock agent --restore` |")]
    assert "nothing is on record" in row.split("|")[4], "column of status 2"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--restore", "--observe"], "give one of them"),
        (["--dry-run"], "--dry-run belongs to --restore"),
        (["--wait", "5"], "--wait belongs to --restore"),
        (["--restore"], "no such file"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, says):
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli", "agent", str(tmp_path / "node.yaml"), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr.lower()


async def test_an_observer_takes_no_lock_and_leaves_no_trace(node):
    async with node() as n:
        n.start("--observe")
        await n.report()
        await n.table(Level(limits_w=(300.0,) * 4, clocks_mhz=(1200,) * 4))
        assert not (n.folder / "state").exists()
