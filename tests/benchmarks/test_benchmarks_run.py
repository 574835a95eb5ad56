"""The benches run to their end and say what they should. Their figures are nobody's business here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHES

ROOT = Path(__file__).parents[2]
RUN_MAX_S = 280  # a tiny run takes seconds, on a slow and busy machine some minutes


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=RUN_MAX_S, check=False,
    )  # fmt: skip


@pytest.mark.timeout(RUN_MAX_S + 20)
@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_leaves_its_figures_and_says_which_targets_it_missed(name, tmp_path):
    """A missed target is printed and fails nothing."""
    done = benchmarks("--tiny", "--out", str(tmp_path), name)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert (path.stem, content["name"]) == (name, name)
    assert content["figures"]
    assert content["machine"].keys() >= {"cpu", "cores", "python", "uvloop"}
    assert content["conditions_before"]["load_average"]
    assert content["targets"].keys() <= content["figures"].keys()
    missed = [figure for figure, target in content["targets"].items() if not target["met"]]
    assert content["met"] == (not missed)
    last_line = done.stdout.splitlines()[-1]
    assert last_line == (f"TARGETS MISSED: {', '.join(missed)}" if missed else "all targets met")


def test_an_unknown_bench_is_refused_with_the_names_of_those_there_are():
    done = benchmarks("tock")
    assert done.returncode == 2
    assert "no bench tock" in done.stderr
    assert "order_path" in done.stderr
