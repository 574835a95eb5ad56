"""`powerblock check` of a gateway: what is read, what may be written, which doors are open."""

import json

import pytest
from typer.testing import CliRunner

from controller.cli import app
from controller.views import check_gateway

GATEWAY = """
block: hall-a
state_dir: {folder}
run_dir: {folder}
devices:
  - {{name: pdu-a1, profile: xerus_pdu, url: "modbus+tcp://10.0.0.7", alarms: {{power_w: {{high: 9000}}}}}}
  - name: rpu-1
    profile: orv3_rpu
    url: modbus+rtu:///dev/ttyUSB0
    unit: 3
    writes: {{flow_target_l_per_min: {{lowest: 100, highest: 180, rate_per_s: 5}}}}
  - {{name: meter-1, profile: sunspec, url: "modbus+tcp://10.0.0.8"{extra}}}
facility:
  modbus: {{host: {host}, allow: [10.0.0.0/8]}}
"""


def check(tmp_path, *arguments, host="127.0.0.1", extra="", folder=None):
    path = tmp_path / "gateway.yaml"
    path.write_text(GATEWAY.format(folder=folder or tmp_path, host=host, extra=extra))
    return CliRunner().invoke(app, ["check", str(path), *arguments], env={"COLUMNS": "400"})


def test_it_lists_what_is_read_what_may_be_written_and_what_is_served(tmp_path):
    found = check(tmp_path)
    assert found.exit_code == 0
    for said in (
        "hall-a  a gateway without GPUs",
        "field devices: 3",
        "pdu-a1  xerus_pdu, 20 points, every 1 s  modbus+tcp://10.0.0.7 unit 1",
        "alarms of power_w: high 9000",
        "may write flow_target_l_per_min: 100 to 180, 5 per s",
        "meter-1  sunspec: what it says of itself",
        "modbus  127.0.0.1:502",
    ):
        assert said in found.stdout, said
    assert "open to other hosts" not in found.stdout


def test_a_door_that_is_open_to_others_is_said(tmp_path):
    assert "modbus  0.0.0.0:502  open to other hosts" in check(tmp_path, host="0.0.0.0").stdout


def test_a_host_may_be_a_name(tmp_path):
    assert "open to other hosts" in check(tmp_path, host="scada.example").stdout
    assert "open to other hosts" not in check(tmp_path, host="localhost").stdout


def test_folders_that_this_user_cannot_write_are_a_remark_because_the_service_is_somebody_else(
    tmp_path, monkeypatch
):
    """Root may write anywhere, so the system's answer is played."""
    found = check(tmp_path)
    assert "cannot be written" not in found.stdout

    def refuse(**_where):
        raise PermissionError

    monkeypatch.setattr(check_gateway.tempfile, "TemporaryFile", refuse)
    found = check(tmp_path)
    assert found.exit_code == 0
    assert f"state_dir: {tmp_path} cannot be written by" in found.stdout
    assert "run_dir: " in found.stdout
    assert len(json.loads(check(tmp_path, "--json").stdout)["warnings"]) == 2


@pytest.mark.parametrize("place", ["file/state", "nowhere", "/proc/nobody"])
def test_a_folder_that_nobody_could_make_is_no_remark(tmp_path, place):
    """Of the nearest that there is: the service makes the rest."""
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    found = check(tmp_path, folder=tmp_path / place)
    assert found.exit_code == 1
    for setting in ("state_dir", "run_dir"):
        assert f"{setting} {tmp_path / place}: " in found.stderr


def test_a_folder_that_is_not_there_yet_is_looked_for_and_not_left_behind(tmp_path):
    found = check(tmp_path, folder=tmp_path / "later" / "state")
    assert (found.exit_code, found.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.yaml"]


def test_a_certificate_that_is_not_there_is_named_with_its_place(tmp_path):
    found = check(tmp_path, extra=f', ca: "{tmp_path}/absent.pem"')
    assert found.exit_code in (1, 2)
    assert "absent.pem" in found.stderr or "modbus+tls" in found.stderr


@pytest.mark.parametrize("word", ["devices", "facility"])
def test_for_programs_it_is_json(tmp_path, word):
    found = check(tmp_path, "--json")
    assert found.exit_code == 0
    assert f'"{word}"' in found.stdout


def test_two_servers_at_one_port_are_an_error_with_both_names(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(
        f"{{block: b, state_dir: {tmp_path}, run_dir: {tmp_path}, facility: "
        "{modbus: {port: 9464, allow: [127.0.0.1]}, prometheus: {}}}"
    )
    found = CliRunner().invoke(app, ["check", str(path)])
    assert found.exit_code == 2
    assert "facility.prometheus.port: 127.0.0.1:9464 is taken by modbus.port" in found.stderr
