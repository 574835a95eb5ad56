"""`powerblock command` and `powerblock password`: what is typed wrong is told apart from what is refused."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from controller.cli import COMMAND_HELP, app
from controller.facility.opcua.users import UserFile, Users
from controller.image.wire import SOCKET_NAME
from controller.verbs import VERBS
from controller.views.command import CommandError, carry_out, parsed

NOBODY = 65_534


def gateway(folder: Path) -> Path:
    path = folder / "block.yaml"
    path.write_text("block: hall-a\nstate_dir: state\nrun_dir: run\n")
    return path


def command(path, *words):
    return CliRunner().invoke(app, ["command", str(path), *words], env={"COLUMNS": "200"})


# --- arguments ---------------------------------------------------------------------------------------


def test_the_help_lists_every_verb_with_every_argument():
    _, _, table = COMMAND_HELP.partition("left out)\n")
    rows: dict[str, list[str]] = {}
    for line in table.partition("\n\n")[0].splitlines():
        words = line.split()
        verb = list(rows)[-1] if line.startswith(" ") else words.pop(0)
        rows.setdefault(verb, []).extend(words)
    assert rows == {
        name: [f"{one.name}{'' if one.required else '?'}" for one in msgspec.structs.fields(verb.arguments)]
        for name, verb in VERBS.items()
    }


def test_the_help_is_shown_line_by_line():
    shown = CliRunner().invoke(app, ["command", "--help"], env={"COLUMNS": "100", "TERM": "dumb"}).stdout
    assert [line.split() for line in shown.splitlines() if line.strip().startswith("shelve ")] == [
        ["shelve", "key", "for_s", "reason?"]
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("set_mode mode=lokal", "mode: 'lokal' is none of remote, local, off"),
        ("set_power_limit", "set_power_limit: limit_w=… is missing; add it"),
        ("set_power_limit limit_w=-5", "limit_w: expected a number >= 0.0 (here: -5)"),
        ("set_power_limit limit_w=much", "limit_w: expected a number (here: much)"),
        ("set_power_limit limit_w=nan", "limit_w: expected a number >= 0.0 (here: nan)"),
        ("set_power_limit limit_w=5 priority=1.5", "priority: expected a whole number (here: 1.5)"),
        ("set_mode modus=off", "'modus=off' is no argument of set_mode; it takes mode=…"),
        ("set_mod", "no verb 'set_mod'; one of set_power_limit, release,"),
    ],
)
def test_wrong_usage_is_said_before_anybody_is_asked(tmp_path, words, sentence):
    found = command(gateway(tmp_path), *words.split())
    assert found.exit_code == 2
    assert found.stderr.startswith(sentence)


def test_texts_stay_texts_though_they_look_like_numbers():
    assert parsed("write", ["device=7", "point=x", "value=1e3"]).arguments == {
        "device": "7",
        "point": "x",
        "value": 1000.0,
    }


def test_a_refusal_is_no_wrong_usage(tmp_path):
    found = command(gateway(tmp_path), "set_mode", "mode=off")
    assert found.exit_code == 1
    assert "no controller at" in found.stdout


def test_a_socket_that_this_user_may_not_open_is_said_so():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / SOCKET_NAME))
        (folder / SOCKET_NAME).chmod(0o600)
        listening.listen()
        was = os.geteuid()
        if was == 0:
            os.seteuid(NOBODY)
        else:
            (folder / SOCKET_NAME).chmod(0)
        try:
            with pytest.raises(CommandError, match="permission denied: run this as root or as a user of the"):
                asyncio.run(carry_out(folder, parsed("heartbeat", [])))
        finally:
            os.seteuid(was)
            shutil.rmtree(folder)


# --- users -------------------------------------------------------------------------------------------


def test_password_prints_the_whole_line_for_the_file_of_users(tmp_path):
    found = CliRunner().invoke(app, ["password", "scada: 1", "--role", "operate"], input="secret\nsecret\n")
    assert found.exit_code == 0
    line = found.stdout.splitlines()[-1]
    path = tmp_path / "users.yaml"
    path.write_text(f"users:\n{line}\n")
    path.chmod(0o600)
    (user,) = UserFile.model_validate(yaml.safe_load(path.read_text()), strict=False).users
    assert (user.name, user.role) == ("scada: 1", "operate")
    assert Users(path).by_password("scada: 1", "secret") is not None


def test_a_user_who_is_not_said_to_do_more_only_reads():
    found = CliRunner().invoke(app, ["password", "jane"], input="secret\nsecret\n")
    assert '"role": "observe"' in found.stdout


def test_a_name_that_the_file_would_not_take_is_refused():
    found = CliRunner().invoke(app, ["password", "n" * 81], input="secret\nsecret\n")
    assert found.exit_code == 2
    assert "NAME: " in found.stderr


# --- in an emergency ---------------------------------------------------------------------------------


def test_a_call_needs_nothing_of_the_file_but_where_its_controller_is(tmp_path):
    """A profile that was renamed since the controller started, a typing slip: no reason not to shed."""
    path = gateway(tmp_path)
    path.write_text(path.read_text() + "meter: {profile: gone}\nslip: 1\nracks: [{name: r1}]\n")
    said = CliRunner().invoke(app, ["shed", str(path), "deep"], env={"COLUMNS": "200"})
    assert f"no controller at {tmp_path / 'run' / SOCKET_NAME}" in said.stdout
    assert CliRunner().invoke(app, ["shed", str(path)]).exit_code == 2, "who looks is told of the file"


@pytest.mark.parametrize("text", ["", "[1]", "block: a\n", "run_dir: [a]\n", "run_dir: {", "\tx"])
def test_a_file_that_does_not_say_where_its_controller_is_is_named(tmp_path, text):
    path = tmp_path / "block.yaml"
    path.write_text(text)
    said = CliRunner().invoke(app, ["shed", str(path), "deep"], env={"COLUMNS": "200"})
    assert said.exit_code == 2
    assert "block.yaml" in said.stderr


def test_a_call_does_not_wait_for_libraries_that_it_has_no_use_for():
    """They take the panel's processor for a second."""
    code = (
        "import sys, controller.views.command, controller.views.shed, controller.yaml_config;"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"asyncua", "aiohttp", "pymodbus", "aiomqtt"} & set(loaded.split())
