"""What waits on disk for its broker: order, bound, kill -9, full disk, ruined file."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from controller.facility.mirror.spool import BYTES_MIN, Spool, SpoolError

MESSAGE = ("points/hall-a/devices/pdu-1", b"x" * 1000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "spool.db"


@pytest.fixture
def spool(path):
    spool = Spool(path, max_bytes=64 * BYTES_MIN)
    yield spool
    spool.close()


def numbered(first, last):
    return [("t", b"%d" % number) for number in range(first, last)]


def payloads(records):
    return [int(record.payload) for record in records]


def test_what_came_first_goes_first_and_stays_until_it_is_delivered(spool):
    spool.append(numbered(0, 10))
    spool.append(numbered(10, 15))
    assert payloads(spool.first(100)) == list(range(15))
    head = spool.first(4)
    assert payloads(spool.first(4)) == [0, 1, 2, 3]
    spool.drop(head[-1].id)
    assert payloads(spool.first(3)) == [4, 5, 6]
    assert payloads(spool.first(3, after=spool.first(3)[-1].id)) == [7, 8, 9]
    assert spool.count == 11


def test_another_start_finds_all_of_it(path):
    before = Spool(path, max_bytes=BYTES_MIN)
    before.append(numbered(0, 10))
    before.drop(before.first(3)[-1].id)
    before.close()
    after = Spool(path, max_bytes=BYTES_MIN)
    assert after.count == 7
    assert payloads(after.first(100)) == list(range(3, 10))
    after.close()


def test_when_there_is_no_room_the_oldest_go_and_are_counted(path):
    spool = Spool(path, max_bytes=BYTES_MIN)
    for start in range(0, 4000, 40):
        spool.append([("t", b"%d" % number + b" " * 1000) for number in range(start, start + 40)])
    left = payloads(spool.first(10_000))
    assert left == list(range(spool.dropped, 4000))
    assert len(left) == spool.count > 500
    files_bytes = sum(one.stat().st_size for one in path.parent.iterdir())
    assert files_bytes < BYTES_MIN * 1.1 + 8 * BYTES_MIN  # the log of writes is bounded, too
    assert path.stat().st_size < BYTES_MIN * 1.1
    spool.close()


WRITER = """
import sys
from pathlib import Path
from controller.facility.mirror.spool import Spool
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30)
for start in range(0, 10**9, 7):
    spool.append([("t", b"%d" % number) for number in range(start, start + 7)])
    sys.stdout.write(f"{start + 7}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("after_lines", [1, 50, 400])
def test_kill_9_takes_nothing_that_was_taken_on(path, after_lines):
    """Killed in the middle of writing, again and again; what it had said it holds is there, in order."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    for _ in range(after_lines):
        taken_on = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    said = child.stdout.read().split(b"\n")[:-1]  # what it still said before it was gone
    child.stdout.close()
    child.wait()
    taken_on = int(said[-1]) if said else taken_on
    spool = Spool(path, max_bytes=1 << 30)
    found = payloads(spool.first(10**7))
    assert found == list(range(len(found)))
    assert taken_on <= len(found) <= taken_on + 7
    assert spool.count == len(found)
    spool.close()


def test_a_torn_tail_costs_the_tail_alone(path):
    """As after a loss of power: the last transaction is half there."""
    script = WRITER.replace("10**9", "70") + "import os; os._exit(0)"  # leaves its log of writes behind
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, env=env, capture_output=True)
    log_of_writes = path.with_name("spool.db-wal")
    whole = log_of_writes.read_bytes()
    log_of_writes.write_bytes(whole[:-1500])
    spool = Spool(path, max_bytes=1 << 30)
    assert payloads(spool.first(1000)) == list(range(63))
    spool.append(numbered(63, 64))
    assert payloads(spool.first(1000)) == list(range(64))
    spool.close()


@pytest.mark.parametrize("ruin", [b"no database at all" * 500, b""])
def test_a_ruined_file_is_set_aside_and_a_new_one_begun(path, ruin):
    path.parent.mkdir()
    path.write_bytes(ruin)
    spool = Spool(path, max_bytes=BYTES_MIN)
    spool.append(numbered(0, 3))
    assert payloads(spool.first(10)) == [0, 1, 2]
    assert path.with_name("spool.db.unreadable").exists() == bool(ruin)
    spool.close()


def fill(spool):
    for _ in range(100):
        spool.append([MESSAGE] * 40)


def test_a_full_disk_is_an_error_with_a_remedy_and_costs_nothing_that_was_there(spool):
    spool.append([MESSAGE] * 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(SpoolError, match="check space"):
            fill(spool)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    held = spool.count
    assert held % 40 == 0
    assert len(spool.first(10_000)) == held >= 40
    spool.append([MESSAGE])  # there is room again
    assert spool.count == held + 1


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="check space, rights"):
        Spool(tmp_path / "file" / "spool.db", max_bytes=BYTES_MIN)


def test_a_spool_that_another_process_writes_is_an_error(path):
    spool = Spool(path, max_bytes=BYTES_MIN)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SpoolError, match="locked"):
        spool.append(numbered(0, 1))
    other.execute("ROLLBACK")
    other.close()
    spool.append(numbered(0, 1))
    assert spool.count == 1
    spool.close()
