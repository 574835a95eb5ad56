"""The files that a site begins with: they fit each other, and nothing but the site's own files is missing."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.agent.config import load_node
from controller.cli import app
from controller.config import load_block

SITE = Path(__file__).parents[2] / "examples" / "site"


@pytest.mark.parametrize("name", ["block.yaml", "node.yaml"])
def test_check_misses_nothing_but_files_of_the_site(name):
    found = CliRunner().invoke(app, ["check", str(SITE / name)])
    assert found.exit_code == 1, found.output
    lines = found.stderr.splitlines()
    assert lines
    assert all(re.search(r": /etc/powerblock/\S+: No such file or directory", line) for line in lines), lines


def test_the_node_is_one_of_the_block_and_may_fall_back_there():
    block, node = load_block(SITE / "block.yaml"), load_node(SITE / "node.yaml")
    (entry,) = [one for rack in block.racks for one in rack.nodes if one.name == node.node]
    assert node.block == block.block
    assert node.gpus is not None
    assert node.gpus.count == entry.gpus
    gpus = sum(one.gpus for rack in block.racks for one in rack.nodes)
    fallback_kw = node.fallback_limits_w(entry.gpus)[0] * gpus * block.supply.block_w_per_gpu_w / 1000
    assert fallback_kw + block.base_load.max_kw <= block.site.failsafe_kw
