"""The journal: every file replays by itself, and a bad disk costs lines, never a beat."""

import json
import time

import numpy as np
import pytest

from controller import lines
from controller.core import law
from controller.journal import Journal, JournalError, read
from tests.controller.recorded import beats
from tests.core.blocks import SETTINGS

PLENTY_BYTES = 1 << 30


def until(holds):
    deadline_s = time.monotonic() + 5.0
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def written(path, count=60, *, file_max_bytes=PLENTY_BYTES, files_max=4):
    made = Journal(path, SETTINGS, file_max_bytes=file_max_bytes, files_max=files_max)
    for beat in beats(count):
        made.record(*beat)
        until(lambda: made._lines._waiting.qsize() < 100)
    made.close()
    return made


def replayed(path) -> int:
    """Beats of a file, each decided again and found the same."""
    settings, state, recorded = read(path)
    count = 0
    for beat in recorded:
        decision = law.tick(settings, state, beat.snapshot)
        state = decision.state
        assert beat.decided["gpu_limits_w"] == decision.gpu_limits_w.tolist()
        assert (beat.decided["budget_w"], beat.decided["base_w"]) == (decision.budget_w, decision.base_w)
        assert beat.decided["binding"]["source"] == decision.binding.source
        count += 1
    return count


def test_what_was_decided_is_decided_again_from_the_file_alone(tmp_path):
    made = written(tmp_path / "j.jsonl")
    assert (replayed(tmp_path / "j.jsonl"), made.lost, made.fault) == (60, 0, "")


def test_what_cannot_be_read_off_a_gpu_comes_back_as_not_a_number(tmp_path):
    written(tmp_path / "j.jsonl", 4)
    _, _, recorded = read(tmp_path / "j.jsonl")
    power_w = next(recorded).snapshot.gpus.power_w
    assert np.isnan(power_w[0])
    assert power_w[1] == 300.0


def test_a_line_carries_only_what_changed(tmp_path):
    written(tmp_path / "j.jsonl", 2)
    second = json.loads((tmp_path / "j.jsonl").read_text().splitlines()[2])
    assert "gpus" not in second
    assert "meter" in second


def test_files_are_rotated_by_size_bounded_in_number_and_each_replays_alone(tmp_path):
    path = tmp_path / "j.jsonl"
    written(path, 120, file_max_bytes=20_000, files_max=3)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["j.jsonl", "j.jsonl.1", "j.jsonl.2"]
    assert all(replayed(tmp_path / name) > 0 for name in files)
    assert all((tmp_path / name).stat().st_size < 40_000 for name in files)


def test_a_start_keeps_the_file_of_the_process_before(tmp_path):
    written(tmp_path / "j.jsonl", 5)
    written(tmp_path / "j.jsonl", 7)
    assert (replayed(tmp_path / "j.jsonl"), replayed(tmp_path / "j.jsonl.1")) == (7, 5)


def test_a_kill_in_the_middle_of_a_line_costs_that_line(tmp_path):
    path = tmp_path / "j.jsonl"
    written(path, 10)
    path.write_bytes(path.read_bytes()[:-20])
    assert replayed(path) == 9


class SickDisk:
    """A file that fails, or takes half a line, when told to."""

    def __init__(self, file) -> None:
        self.file, self.sick, self.short, self.closed = file, False, False, False

    def write(self, line):
        if self.sick:
            raise OSError(28, "No space left on device")
        return self.file.write(line[: len(line) // 2] if self.short else line)

    def close(self):
        self.closed = True
        self.file.close()


@pytest.mark.parametrize("illness", ["sick", "short"])
def test_a_full_disk_is_said_and_afterwards_files_have_no_holes(tmp_path, illness):
    path = tmp_path / "j.jsonl"
    made = Journal(path, SETTINGS, file_max_bytes=PLENTY_BYTES, files_max=4)
    next_file, disks, faults = made._lines._next_file, [], set()
    made._lines._next_file = lambda file: disks.append(SickDisk(next_file(file))) or disks[-1]
    for number, beat in enumerate(beats(100)):
        if number == 20:
            setattr(disks[-1], illness, True)
        made.record(*beat)
        until(made._lines._waiting.empty)
        time.sleep(0.001)
        faults.add(made.fault)
    made.close()
    assert made.fault == ""
    assert any("No space left" in fault for fault in faults)
    assert 0 < made.lost < 30
    assert replayed(tmp_path / "j.jsonl.1") == 20
    assert replayed(path) > 50


def test_a_disk_that_stays_full_does_not_push_old_files_out(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "RETRY_S", 0.1)
    path = tmp_path / "j.jsonl"
    written(path, 10)
    made = Journal(path, SETTINGS, file_max_bytes=PLENTY_BYTES, files_max=3)
    next_file = made._lines._next_file

    def full(file):
        disk = SickDisk(next_file(file))
        disk.sick = True
        return disk

    made._lines._next_file = full
    for beat in beats(100):
        made.record(*beat)
        until(made._lines._waiting.empty)
    made.close()
    assert made.lost >= 99
    assert replayed(tmp_path / "j.jsonl.1") == 10


def test_a_folder_that_cannot_be_is_a_fault_and_not_an_end(tmp_path):
    (tmp_path / "file").write_text("")
    made = written(tmp_path / "file" / "j.jsonl", 5)
    assert made.fault
    assert made.lost > 0


def test_a_disk_that_does_not_answer_holds_nobody_up(tmp_path):
    import threading

    gate = threading.Event()
    made = Journal(tmp_path / "j.jsonl", SETTINGS, file_max_bytes=PLENTY_BYTES, files_max=4)
    next_file = made._lines._next_file
    made._lines._next_file = lambda file: gate.wait(10) and next_file(file)
    history = list(beats(lines.WAITING_MAX + 50))
    for beat in history[: lines.WAITING_MAX + 20]:
        made.record(*beat)
    assert made.lost > 0
    assert "does not keep up" in made.fault
    gate.set()
    until(made._lines._waiting.empty)
    for beat in history[lines.WAITING_MAX + 20 :]:
        made.record(*beat)
    made.close()
    assert replayed(tmp_path / "j.jsonl") == 30
    assert replayed(tmp_path / "j.jsonl.1") > 100


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty"),
        (b"{}\n", "not the head of a journal"),
        (b'{"v":9,"settings":{}}\n', "not the head of a journal"),
        (b"not json\n", "j.jsonl:1: "),
        (b'{"v":6,"settings":{},"state":{}}\n', "written by another version"),
    ],
)
def test_what_is_no_journal_is_said_with_file_and_line(tmp_path, content, sentence):
    (tmp_path / "j.jsonl").write_bytes(content)
    with pytest.raises(JournalError, match=sentence):
        read(tmp_path / "j.jsonl")


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(JournalError, match="No such file or directory; name a journal file"):
        read(tmp_path / "none")


def test_a_file_without_its_first_beats_cannot_be_replayed(tmp_path):
    path = tmp_path / "j.jsonl"
    written(path, 4)
    head, _, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + b"".join(rest[:1]))
    with pytest.raises(JournalError, match=r"j\.jsonl:2: incomplete beat"):
        list(read(path)[2])
