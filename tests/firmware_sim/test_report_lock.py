"""Two rigs never share a report folder: the second would wipe the first one's state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firmware_sim.cli import app
from firmware_sim.lifetime import RigError
from firmware_sim.report_lock import FILE_NAME, alone_in

ROOT = Path(__file__).parents[2]
DIES = """
import os, subprocess, sys
from pathlib import Path
from firmware_sim.report_lock import alone_in
with alone_in(Path(sys.argv[1])):
    subprocess.Popen(["sleep", "3"], close_fds=False)
    os._exit(9)
"""


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_a_second_rig_is_refused_and_touches_nothing(tmp_path, verb):
    state = tmp_path / "work" / "controller.state"
    state.parent.mkdir()
    state.write_text("the first one's")
    argv = [verb, str(ROOT / "examples" / "curtailment.yaml"), "--report", str(tmp_path)]
    with alone_in(tmp_path):
        refused = CliRunner().invoke(
            app, [*argv, *(["--powerblock", sys.executable] if verb == "run" else [])]
        )
    assert refused.exit_code == 2
    assert f"{tmp_path}: another rig runs there (process {os.getpid()})" in refused.stderr
    assert "--report" in refused.stderr
    assert state.read_text() == "the first one's"


def test_a_rig_that_has_ended_or_died_leaves_the_folder_free_whatever_lives_on(tmp_path):
    folder = tmp_path / "new"
    with alone_in(folder):
        pass
    assert subprocess.run([sys.executable, "-c", DIES, str(folder)], cwd=ROOT, check=False).returncode == 9
    with alone_in(folder):
        assert (folder / FILE_NAME).read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_made_is_answered_with_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RigError, match=r"file/report: cannot be written: Not a directory; .*--report"),
        alone_in(tmp_path / "file" / "report"),
    ):
        pass
