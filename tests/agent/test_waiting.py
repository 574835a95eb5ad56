"""Since when a host waits for a controller, as its agents remember it."""

import pytest
from structlog.testing import capture_logs

from controller.agent import found_limits, waiting


def test_those_who_start_later_go_on_from_the_first_until_an_order_was_obeyed(tmp_path):
    folder = tmp_path / "state"  # as a first start finds it: not there
    assert [waiting.since_s(folder, now_s) for now_s in (100.0, 107.0, 120.0)] == [100.0] * 3
    waiting.end(folder)
    waiting.end(folder)
    assert waiting.since_s(folder, 130.0) == 130.0


@pytest.mark.parametrize(
    "text",
    [b"", b'{"host_boot":"', b"[]", b'{"host_boot":"x"}', b"\xff", b'{"host_boot":"\xff","since_s":1}'],
)
def test_a_note_that_is_none_is_written_anew(tmp_path, text):
    (tmp_path / waiting.NAME).write_bytes(text)
    assert waiting.since_s(tmp_path, 50.0) == 50.0
    assert waiting.since_s(tmp_path, 60.0) == 50.0


def test_a_note_of_another_boot_or_of_a_time_to_come_is_void(tmp_path, monkeypatch):
    waiting.since_s(tmp_path, 100.0)
    assert waiting.since_s(tmp_path, 90.0) == 90.0
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(found_limits, "HOST_BOOT", tmp_path / "boot")
    assert waiting.since_s(tmp_path, 200.0) == 200.0


def test_a_disk_that_fails_is_told_and_costs_the_memory_alone(tmp_path):
    (tmp_path / "state").write_text("no folder")
    with capture_logs() as logged:
        assert waiting.since_s(tmp_path / "state", 10.0) == 10.0
        assert waiting.since_s(tmp_path / "state", 20.0) == 20.0
        waiting.end(tmp_path / "state")
    assert [line["event"].split(" of ")[0] for line in logged] == ["begin", "begin", "end"]
