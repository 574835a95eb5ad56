"""The record of found limits: appended, never rewritten, bounded."""

import json

from controller.agent import found_limits
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


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    record(tmp_path, 650.0)
    with (tmp_path / found_limits.NAME).open("a") as file:
        file.write('{"gpu": 1, "uui')
    assert found_limits.read(tmp_path)["GPU-1"].limit_w == 650.0


def test_the_first_file_is_read_before_the_later_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(found_limits, "FILE_MAX_BYTES", 300)
    for limit_w in range(200, 240):
        record(tmp_path, float(limit_w))
    assert found_limits.read(tmp_path)["GPU-1"].limit_w == 200.0


def test_after_all_was_put_back_the_record_begins_anew(tmp_path):
    record(tmp_path, 650.0)
    found_limits.set_aside(tmp_path)
    assert found_limits.read(tmp_path) == {}
    assert "650.0" in (tmp_path / found_limits.RESTORED).read_text()
    record(tmp_path, 500.0)
    assert found_limits.read(tmp_path)["GPU-1"].limit_w == 500.0
