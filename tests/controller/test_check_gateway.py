"""`powerblock check` of a gateway: what is read, what may be written, which doors are open."""

import pytest
from typer.testing import CliRunner

from controller.cli import app

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


def check(tmp_path, *arguments, host="127.0.0.1", extra=""):
    path = tmp_path / "gateway.yaml"
    path.write_text(GATEWAY.format(folder=tmp_path, host=host, extra=extra))
    return CliRunner().invoke(app, ["check", str(path), *arguments], env={"COLUMNS": "140"})


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
