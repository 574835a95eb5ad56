"""`powerblock run` refuses at the door what would otherwise end it an hour later, or let two of them run."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from controller.config import ConfigError, load_config
from controller.reload import is_sound
from controller.service import run

NOBODY = 65_534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where everybody may look, and only its owner may write; pytest's own folders are closed to others."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def gateway(folder):
    path = folder / "block.yaml"
    path.write_text(yaml.safe_dump({"block": "hall-a", "state_dir": "state", "run_dir": "run"}))
    return load_config(path)


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def closed(path: Path) -> None:
    path.mkdir()
    path.chmod(0o555)


def run_as_nobody(config) -> int:
    """As a user who may not write what root has made; who is not root already is one."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        return asyncio.run(run(config))
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("setting", ["state_dir", "run_dir"])
def test_a_folder_that_this_user_may_not_write_ends_it_before_anything_is_begun(
    folder, gateway, setting, capfd
):
    for name in ("state", "run"):
        (closed if f"{name}_dir" == setting else open_to_all)(folder / name)
    assert run_as_nobody(gateway) == 2
    said = capfd.readouterr()
    place = folder / setting.removesuffix("_dir")
    assert (
        f"{setting} {place}: this user may not write there; chown it, or have the systemd unit"
        in said.out + said.err
    )
    assert not list(folder.glob("*/*")), "nothing was begun"


@pytest.mark.parametrize("setting", ["state_dir", "run_dir"])
def test_a_folder_below_a_file_ends_it_with_a_sentence(folder, setting, capfd):
    path = folder / "block.yaml"
    content = {"block": "hall-a", "state_dir": "state", "run_dir": "run"} | {setting: "block.yaml/x"}
    path.write_text(yaml.safe_dump(content))
    assert asyncio.run(run(load_config(path))) == 2
    said = capfd.readouterr()
    assert f"{setting} {path}/x: Not a directory; choose another {setting}" in said.out + said.err


def test_a_reload_onto_a_folder_that_it_may_not_write_changes_nothing(folder, gateway, capfd):
    """Only of whoever writes there: the facility server is reloaded with the same file."""
    del gateway
    closed(folder / "state")
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        assert not is_sound(folder / "block.yaml", writes=True)
        assert is_sound(folder / "block.yaml")
    finally:
        os.seteuid(was)
    said = capfd.readouterr()
    assert f"state_dir {folder}/state: this user may not write there" in said.out + said.err


def test_a_run_dir_too_long_for_its_socket_is_an_error_of_the_file(folder):
    path = folder / "block.yaml"
    path.write_text(yaml.safe_dump({"block": "b", "state_dir": "s", "run_dir": f"/run/{'x' * 93}"}))
    with pytest.raises(ConfigError, match=r"run_dir: .* is 2 bytes too long"):
        load_config(path)
    path.write_text(yaml.safe_dump({"block": "b", "state_dir": "s", "run_dir": f"/run/{'x' * 91}"}))
    assert load_config(path)


def test_both_folders_are_named_at_once(folder, gateway, capfd):
    folder.chmod(0o555)
    assert run_as_nobody(gateway) == 2
    said = capfd.readouterr()
    assert f"state_dir {folder}/state: " in said.out + said.err
    assert f"run_dir {folder}/run: " in said.out + said.err


def test_a_lock_of_another_user_is_no_lock_of_ours(folder, gateway, capfd):
    for name in ("state", "run"):
        open_to_all(folder / name)
    (folder / "state" / "lock").touch(mode=0o400)
    assert run_as_nobody(gateway) == 2
    said = capfd.readouterr()
    assert f"{folder}/state/lock: this user may not write it; chown it" in said.out + said.err


@pytest.mark.parametrize(
    ("kind", "sentence"), [("gateway", "its values turn bad"), ("block", "leases run out")]
)
async def test_what_a_stop_means_is_said_of_what_stops(gateway, block_with, kind, sentence, capfd):
    config = gateway if kind == "gateway" else load_config(block_with())
    asyncio.get_running_loop().call_later(0.5, os.kill, os.getpid(), signal.SIGTERM)
    assert await run(config) == 0
    assert sentence in capfd.readouterr().out
