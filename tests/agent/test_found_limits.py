"""The record of found limits: appended, never rewritten, bounded."""

import json

from controller.agent import found_limits
from protocols.nvml import Device, Reading

DEVICE = Device(index=0, uuid="GPU-1", name="g", min_w=200.0, max_w=700.0, default_w=700.0)


def record(folder, limit_w):
    reading = Reading(device=DEVICE, power_w=70.0, averaged=False, limit_w=limit_w, enforced_w=limit_w)
    found_limits.record(folder, [reading], boot="b", now_utc_s=1.0)


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
