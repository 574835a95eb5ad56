"""Alarms on disk: whole at every instant, bounded, and never in the way."""

import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from controller.alarms import memory
from controller.alarms.book import KIND_MAX
from controller.alarms.memory import Kept, Memory
from controller.alarms.model import (
    KEY_MAX_CHARS,
    TEXT_MAX_CHARS,
    WORDS_MAX_CHARS,
    Book,
    Hidden,
    Record,
    State,
)
from tests.controller.alarms.alarm_play import Play

FULL = Record(
    "pdu r1-a", "text", State.LATCHED, True, 1.0, 2.0, 3.0, 4, (5.0, 6.0), "x", "anna", Hidden("b", "c", 7.0, 8.0, 9.0)
)  # fmt: skip


def book(*records):
    return Book({one.key: one for one in records})


def written(kept):
    """Wait for the thread that writes."""
    deadline_s = time.monotonic() + 10.0
    while kept._newest is not None or not kept.path.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    kept.close()


@pytest.fixture
def kept(tmp_path):
    it = Memory(tmp_path)
    yield it
    it.close()


def test_everything_comes_back_as_it_was(kept, tmp_path):
    kept.keep(book(FULL, Record("a")))
    written(kept)
    assert memory.load(tmp_path) == ((FULL, Record("a")), "")


def test_a_first_start_has_nothing_and_misses_nothing(tmp_path):
    assert memory.load(tmp_path) == ((), "")
    assert memory.load(tmp_path / "not" / "there") == ((), "")


def test_while_the_disk_is_slow_only_the_newest_is_kept_for_it(kept, tmp_path, monkeypatch):
    writes, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (writes.append(fd), time.sleep(0.02), fsync(fd)))
    for number in range(500):
        kept.keep(book(Record("a", count=number)))
    kept.close()
    assert len(writes) < 10
    assert memory.load(tmp_path)[0][0].count == 499


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"v":1}',
        b'{"v":9,"alarms":[]}',
        b'{"v":1,"alarms":[{"key":1}]}',
        b'{"v":1,"alarms":[{"key":"a","state":"asleep"}]}',
        b'{"v":1,"alarms":[{"key":"a","since_utc_s":1e999}]}',
        b'{"v":1,"alarms":[{"key":"a","since_utc_s":NaN}]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
    ],
)
def test_an_unreadable_file_is_set_aside_and_said(tmp_path, content):
    (tmp_path / "alarms.json").write_bytes(content)
    records, why = memory.load(tmp_path)
    assert records == ()
    assert why.startswith(f"{tmp_path}/alarms.json: ")
    assert (tmp_path / "alarms.json.unreadable").read_bytes() == content
    assert memory.load(tmp_path) == ((), ""), "once"


def test_a_file_larger_than_any_book_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "FILE_MAX_BYTES", 100)
    (tmp_path / "alarms.json").write_bytes(b" " * 101)
    assert "larger than 100 bytes" in memory.load(tmp_path)[1]


def test_the_fullest_book_fits_the_file():
    text, words = "\x01" * TEXT_MAX_CHARS, "\x01" * WORDS_MAX_CHARS
    key = "k" * KEY_MAX_CHARS
    one = Record(key, text, first_out=key, by=words, hidden=Hidden(words, words, 0.0))
    fullest = (one,) * (KIND_MAX * (KIND_MAX + 1))
    assert len(msgspec.json.encode(Kept(1, fullest))) < memory.FILE_MAX_BYTES


def test_a_disk_that_fails_is_a_fault_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "RETRY_S", 0.01)
    (tmp_path / "alarms.json.new").mkdir()
    kept = Memory(tmp_path)
    kept.keep(book(FULL))
    deadline_s = time.monotonic() + 10.0
    while not kept.fault:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    assert "a restart now would forget" in kept.fault
    (tmp_path / "alarms.json.new").rmdir()
    while kept.fault:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    kept.close()
    assert memory.load(tmp_path)[0] == (FULL,)


def test_a_disk_that_never_works_does_not_hold_up_a_stop(tmp_path):
    (tmp_path / "alarms.json.new").mkdir()
    kept = Memory(tmp_path)
    kept.keep(book(FULL))
    began_s = time.monotonic()
    kept.close()
    assert time.monotonic() - began_s < memory.CLOSE_MAX_S + 1.0
    assert not kept._thread.is_alive()


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_content(kept, tmp_path):
    kept.keep(book(FULL))
    written(kept)
    (tmp_path / "alarms.json.new").write_bytes(b'{"v":1,"alarms":[{"ke')
    assert memory.load(tmp_path) == ((FULL,), "")
    again = Memory(tmp_path)
    again.keep(book(Record("a")))
    again.close()
    assert memory.load(tmp_path) == ((Record("a"),), "")


KILLED = """
import os, pathlib, sys, time
from controller.alarms.memory import Memory
from controller.alarms.model import Book, Record

after = float(sys.argv[2])
real = pathlib.Path.replace
calls = 0

def replace(self, target):
    global calls
    calls += 1
    if calls > 1 and sys.argv[3] == "before":
        os.kill(os.getpid(), 9)  # written and synced, not yet renamed
    return real(self, target)

pathlib.Path.replace = replace
kept = Memory(pathlib.Path(sys.argv[1]))
kept.keep(Book({"a": Record("a", count=1)}))
while not kept.path.exists():
    time.sleep(0.001)
print("up", flush=True)
number = 1
while True:
    number += 1
    kept.keep(Book({f"k{n}": Record(f"k{n}", count=number) for n in range(200)}))
    time.sleep(after)
"""


def killed(folder, when, after_s=0.0):
    """A process that writes without end and is killed; what the next one reads."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), "0.0005", when], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"up\n"
        time.sleep(after_s)
        if when != "before":
            process.kill()
        assert process.wait(10.0) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return memory.load(folder)


def test_killed_between_write_and_rename_the_old_content_stands(tmp_path):
    records, why = killed(tmp_path, "before")
    assert (records, why) == ((Record("a", count=1),), "")
    assert (tmp_path / "alarms.json.new").exists()


def test_killed_at_any_instant_one_whole_book_is_found(tmp_path):
    for round_ in range(6):
        folder = tmp_path / str(round_)
        folder.mkdir()
        records, why = killed(folder, "later", after_s=0.007 * round_)
        assert why == ""
        assert len({one.count for one in records}) == 1, "all of one moment"
        assert len(records) in {1, 200}


def test_what_a_person_finds_in_the_file_is_readable(kept):
    play = Play().step("a")
    kept.keep(play.book)
    written(kept)
    (found,) = json.loads(kept.path.read_text())["alarms"]
    assert (found["key"], found["state"], found["count"]) == ("a", "unacknowledged", 1)
