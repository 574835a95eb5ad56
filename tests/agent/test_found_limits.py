"""The record of found limits: appended, never rewritten, bounded."""

import json
import os
import resource
import threading
import time

import pytest

from controller.agent import found_limits
from controller.clock import now_s
from protocols.nvml import Device, Reading

DEVICE = Device(index=0, uuid="GPU-1", name="g", min_w=200.0, max_w=700.0, default_w=700.0)


def record(folder, limit_w):
    reading = Reading(device=DEVICE, power_w=70.0, averaged=False, limit_w=limit_w, enforced_w=limit_w)
    found_limits.record(folder, [found_limits.limit_line(reading)], boot="b", now_utc_s=1.0)


def test_every_start_appends(tmp_path):
    record(tmp_path / "new" / "folder", 650.0)
    record(tmp_path / "new" / "folder", 600.0)
    lines = (tmp_path / "new" / "folder" / found_limits.NAME).read_text().splitlines()
    assert [json.loads(line)["limit_w"] for line in lines] == [650.0, 600.0]


def test_the_first_file_ever_is_kept_however_many_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(found_limits, "FILE_MAX_BYTES", 300)
    for limit_w in range(200, 240):
        record(tmp_path, float(limit_w))
    assert {path.name for path in tmp_path.iterdir()} == {
        found_limits.NAME,
        found_limits.FIRST,
        found_limits.PREVIOUS,
    }
    first = (tmp_path / found_limits.FIRST).read_text().splitlines()[0]
    newest = (tmp_path / found_limits.NAME).read_text().splitlines()[-1]
    assert (json.loads(first)["limit_w"], json.loads(newest)["limit_w"]) == (200.0, 239.0)
    assert all(path.stat().st_size < 600 for path in tmp_path.iterdir())


def uuid_line(number, **what):
    return {"gpu": number, "uuid": f"GPU-{number}", **what}


def test_what_counts_as_found_is_the_first_of_its_kind(tmp_path):
    lines = [
        uuid_line(1, limit_w=650.0),
        uuid_line(1, limit_w=300.0),  # what our first life left there
        uuid_line(1, profiles=[1], asked=[6], preset=0),
        uuid_line(1, profiles=[1, 6], asked=[6, 7], preset=2),
        uuid_line(1, ceiling_mhz=1200),
        uuid_line(2, limit_w=700.0),
    ]
    for line in lines:
        found_limits.record(tmp_path, [line], boot="b", now_utc_s=1.0)
    found = found_limits.read(tmp_path)
    one = found["GPU-1"]
    assert (one.limit_w, one.profiles, one.asked, one.preset, one.ceiling_mhz) == (
        650.0,
        (1,),
        (6, 7),
        0,
        1200,
    )
    assert (found["GPU-2"].limit_w, found["GPU-2"].profiles, found["GPU-2"].ceiling_mhz) == (700.0, None, 0)


def test_a_line_that_a_crash_cut_off_takes_no_other_with_it_and_is_told(tmp_path):
    record(tmp_path, 650.0)
    with (tmp_path / found_limits.NAME).open("a") as file:
        file.write('{"gpu": 1, "uui')
    found_limits.record(tmp_path, [uuid_line(2, limit_w=640.0)], boot="b", now_utc_s=1.0)
    found = found_limits.read(tmp_path)
    assert (found["GPU-1"].limit_w, found["GPU-2"].limit_w) == (650.0, 640.0)
    assert found_limits.unreadable(tmp_path) == [f"{tmp_path / found_limits.NAME} line 2"]


@pytest.mark.parametrize(
    "text",
    [
        b'{"gpu": 1, "uuid": "GPU-1", "limit_w": NaN}',
        b'{"gpu": 1, "uuid": "GPU-1", "limit_w": 1e999}',
        b'{"gpu": 1, "uuid": "GPU-1", "limit_w": "650"}',
        b'{"gpu": 1, "uuid": "GPU-1", "asked": "six"}',
        b'{"gpu": 1, "uuid": "GPU-1", "limlt_w": 650.0}',
        b'{"gpu": 1, "limit_w": 650.0}',
        b"\0\0\0\0",
        b"\xff",
        b"[]",
    ],
)
def test_a_line_that_is_damaged_says_nothing_and_is_told(tmp_path, text):
    (tmp_path / found_limits.NAME).write_bytes(text + b"\n")
    assert found_limits.read(tmp_path) == {}
    assert len(found_limits.unreadable(tmp_path)) == 1


def test_a_disk_that_is_full_half_way_keeps_no_half_line(tmp_path):
    record(tmp_path, 650.0)
    whole = (tmp_path / found_limits.NAME).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
    try:
        with pytest.raises(OSError, match="No space left"):
            record(tmp_path, 640.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / found_limits.NAME).read_bytes() == whole


def test_what_the_disk_did_not_take_is_owed_until_it_does(tmp_path):
    """Told once; what is written then is what was found, not what is there by then."""
    folder = tmp_path / "state"
    folder.write_text("in the way")
    owed = found_limits.Record(folder, "b")
    owed.add([uuid_line(1, limit_w=650.0)])
    with pytest.raises(OSError, match="exists"):
        owed.write()
    owed.add([uuid_line(1, limit_w=300.0), uuid_line(2, limit_w=640.0)])
    owed.write()
    assert owed.is_due(now_s() + 1.0)
    folder.unlink()
    owed.write()
    found = found_limits.read(folder)
    assert (found["GPU-1"].limit_w, found["GPU-2"].limit_w) == (650.0, 640.0)
    assert not owed.is_due(now_s() + 1.0)


def test_what_is_owed_does_not_grow_with_every_ceiling(tmp_path):
    owed = found_limits.Record(tmp_path, "b")
    for mhz in range(1000, 2000):
        owed.add([uuid_line(1, ceiling_mhz=mhz)])
    owed.write()
    (line,) = (tmp_path / found_limits.NAME).read_text().splitlines()
    assert json.loads(line)["ceiling_mhz"] == 1999


def test_a_disk_that_does_not_answer_is_asked_once_and_what_comes_meanwhile_is_written_then(
    tmp_path, monkeypatch
):
    asked, answers, write = [], threading.Event(), found_limits.record

    def hangs(folder, lines, **stamp):
        asked.append(len(lines))
        assert answers.wait(10)
        write(folder, lines, **stamp)

    monkeypatch.setattr(found_limits, "record", hangs)
    owed = found_limits.Record(tmp_path, "b")
    owed.add([uuid_line(1, limit_w=650.0)])
    writing = threading.Thread(target=owed.write)
    writing.start()
    while not asked:
        time.sleep(0.001)
    owed.add([uuid_line(2, limit_w=640.0)])
    assert not owed.is_due(now_s())
    owed.write()  # nobody waits for the first
    assert asked == [1]
    answers.set()
    writing.join()
    assert owed.is_due(now_s())
    owed.write()
    assert asked == [1, 1]
    assert set(found_limits.read(tmp_path)) == {"GPU-1", "GPU-2"}


def test_a_disk_that_is_slow_to_fail_is_left_alone_for_nine_times_as_long(tmp_path, monkeypatch):
    clock = [100.0]

    def fails(*_, **__):
        clock[0] += 30.0
        raise OSError("input/output error")

    monkeypatch.setattr(found_limits, "record", fails)
    monkeypatch.setattr(found_limits, "now_s", lambda: clock[0])
    owed = found_limits.Record(tmp_path, "b")
    owed.add([uuid_line(1, limit_w=650.0)])
    with pytest.raises(OSError, match="input/output"):
        owed.write()
    assert not owed.is_due(130.0 + 269.0)
    assert owed.is_due(130.0 + 270.0)


def test_the_first_file_is_read_before_the_later_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(found_limits, "FILE_MAX_BYTES", 300)
    for limit_w in range(200, 240):
        record(tmp_path, float(limit_w))
    assert found_limits.read(tmp_path)["GPU-1"].limit_w == 200.0


def test_what_was_put_back_goes_and_all_else_stays(tmp_path):
    for name, limit_w in ((found_limits.FIRST, 650), (found_limits.PREVIOUS, 300), (found_limits.NAME, 310)):
        lines = (uuid_line(gpu, limit_w=limit_w + gpu) for gpu in (1, 2))
        (tmp_path / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "torn\n")
    found_limits.drop(tmp_path, {"GPU-1"})
    found = found_limits.read(tmp_path)
    assert (set(found), found["GPU-2"].limit_w) == ({"GPU-2"}, 652.0)
    assert len(found_limits.unreadable(tmp_path)) == 3
    assert "651" in (tmp_path / found_limits.RESTORED).read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_record_that_root_has_shortened_still_belongs_to_the_agent(tmp_path):
    os.chown(tmp_path, 65534, 65534)
    for number in (1, 2):
        found_limits.record(tmp_path, [uuid_line(number, limit_w=1.0)], boot="b", now_utc_s=1.0)
    found_limits.drop(tmp_path, {"GPU-1"})
    assert (tmp_path / found_limits.NAME).stat().st_uid == 65534


def test_after_all_was_put_back_the_record_begins_anew(tmp_path):
    record(tmp_path, 650.0)
    found_limits.drop(tmp_path, {"GPU-1"})
    assert found_limits.read(tmp_path) == {}
    assert "650.0" in (tmp_path / found_limits.RESTORED).read_text()
    record(tmp_path, 500.0)
    assert found_limits.read(tmp_path)["GPU-1"].limit_w == 500.0
