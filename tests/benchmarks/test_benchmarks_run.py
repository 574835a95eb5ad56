"""The benches run to their end and say what they should. Their figures are nobody's business here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHES = {"tick", "block_day", "world", "order_path", "signals", "memory", "beat", "gateway", "scada"}


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("benchmarks")
    done = benchmarks("--tiny", "--out", str(out_dir))
    assert done.returncode == 0, done.stderr
    return done.stdout, {path.stem: json.loads(path.read_text()) for path in out_dir.glob("*.json")}


def test_every_bench_runs_and_leaves_its_figures(tiny_run):
    _, written = tiny_run
    assert written.keys() == BENCHES
    for name, content in written.items():
        assert content["name"] == name
        assert content["figures"]
        assert content["machine"].keys() >= {"cpu", "cores", "python", "uvloop"}
        assert content["conditions_before"]["load_average"]


def test_a_bench_with_a_target_says_whether_it_was_met(tiny_run):
    _, written = tiny_run
    for content in written.values():
        missed = [name for name, target in content["targets"].items() if not target["met"]]
        assert content["met"] == (not missed)
        assert content["targets"].keys() <= content["figures"].keys()


def test_a_missed_target_is_printed_and_fails_nothing(tiny_run):
    stdout, written = tiny_run
    missed = {name for content in written.values() for name, t in content["targets"].items() if not t["met"]}
    last_line = stdout.splitlines()[-1]
    if missed:
        assert set(last_line.removeprefix("TARGETS MISSED: ").split(", ")) == missed
    else:
        assert last_line == "all targets met"


def test_an_unknown_bench_is_refused_with_the_names_of_those_there_are():
    done = benchmarks("tock")
    assert done.returncode == 2
    assert "no bench tock" in done.stderr
    assert "order_path" in done.stderr
