"""A device that says itself what it is, on the sheet: with a real controller running, and with what it lacks."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import time

import pytest

from protocols.modbus.server import Access, ModbusServer
from tests.controller.commissioning.devices_on_site import block, powerblock, served
from tests.controller.commissioning.test_commissioning_identify import SunSpecBank
from tests.protocols.modbus.test_modbus_server import LOOPBACK
from tests.protocols.test_sunspec import common, made

PLANT = "import sys; from controller.cli import app; app()"
LACKING = "the device does not have it"


@pytest.fixture
def battery(site):
    """A storage that fills in three points of its model; the standard marks the rest as not implemented."""
    bank = SunSpecBank(common(), made(713, {"SoC": 55, "Pct_SF": 0, "Sta": 1}))
    server = ModbusServer(bank, Access(read_from=LOOPBACK), host="127.0.0.1", port=0)
    site.add(served(server))
    return f"modbus+tcp://127.0.0.1:{server.port}"


@contextlib.contextmanager
def running(path):
    """`powerblock run`, as an operator starts it."""
    controller = subprocess.Popen(
        [sys.executable, "-c", PLANT, "run", str(path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    try:
        end_s = time.monotonic() + 60
        while not (path.parent / "run" / "image.sock").exists():
            assert controller.poll() is None, "the controller ended"
            assert time.monotonic() < end_s, "no image"
            time.sleep(0.05)
        yield
    finally:
        controller.terminate()
        controller.wait(timeout=30)


def checked(path, *words):
    found = powerblock("checkout", path, "--json", *words)
    return found, json.loads(found.stdout)


def lines_of(folder):
    text = (folder / "sheet.csv").read_text(encoding="utf-8-sig")
    return {row["point"]: row for row in csv.DictReader(io.StringIO(text))}


def test_what_a_device_says_that_it_does_not_have_is_not_fitted_and_no_failure(battery, tmp_path):
    path = block(tmp_path, f"{{name: bess-1, profile: sunspec, url: '{battery}'}}")
    found, said = checked(path, "-o", tmp_path / "sheet")
    assert found.exit_code == 0, found.stdout
    assert said["failed"] == 0
    assert said["not_fitted"] >= 3
    row = lines_of(tmp_path)["m713_state_of_health_ratio"]
    assert (row["result"], row["reason"], row["read"]) == ("not fitted", LACKING, "")
    assert f"{said['not_fitted']} not fitted" in (tmp_path / "sheet.html").read_text()
    assert f"{said['not_fitted']} not fitted" in powerblock("checkout", path).stdout


def test_a_read_of_all_that_a_device_has_is_well_and_one_of_what_it_lacks_is_not(battery):
    assert powerblock("read", battery).exit_code == 0
    found = powerblock("read", battery, "m713_state_of_health_ratio")
    assert found.exit_code == 1
    assert "not fitted" in found.stdout
    assert LACKING in found.stdout


def test_a_checkout_beside_a_running_controller_shows_what_the_device_told_it(battery, tmp_path):
    path = block(tmp_path, f"{{name: bess-1, profile: sunspec, url: '{battery}'}}")
    with running(path):
        deadline_s = time.monotonic() + 30
        said = {"passed": 0}
        while not said["passed"] and time.monotonic() < deadline_s:  # until it has been asked who it is
            found, said = checked(path)
        found, said = checked(path, "-o", tmp_path / "sheet")
        shown = powerblock("read", path, "bess-1")
    assert found.exit_code == 0, found.stdout
    assert said["failed"] == 0
    assert said["not_fitted"] >= 3
    row = lines_of(tmp_path)["m713_state_of_charge_ratio"]
    assert (row["result"], row["address"], row["read"]) == ("pass", "told by the controller", "0.55")
    assert shown.exit_code == 0, shown.stdout
