"""`powerblock map`: whole while the controller runs, and honest about what it lacks while none does."""

import asyncio
import csv
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from typer.testing import CliRunner

from controller.cli import app
from controller.clock import now_s
from controller.config import load_config
from controller.facility.modbus.registers import fingerprint
from controller.facility.modbus.shown import register_map
from controller.gateway import catalogue
from controller.image.image import Image
from controller.image.model import Outcome, Point, Result
from controller.image.server import ImageServer
from controller.image.wire import SOCKET_NAME

GATEWAY = """
block: hall-a
state_dir: {folder}
run_dir: {folder}
devices:
  - {{name: meter-1, profile: sunspec, url: "modbus+tcp://10.0.0.8"}}
  - {{name: pdu-a1, profile: xerus_pdu, url: "modbus+tcp://10.0.0.7"}}
facility: {{modbus: {{allow: [10.0.0.0/8]}}}}
"""


@pytest.fixture
def gateway(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(GATEWAY.format(folder=tmp_path))
    return path


def written(gateway):
    """Names and places in the map, its notes, and what was said about it."""
    out = gateway.parent / "map.csv"
    made = CliRunner().invoke(app, ["map", str(gateway), "-o", str(out)])
    assert made.exit_code == 0, made.output
    lines = out.read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    notes = [line for line in lines if line.startswith("#")]
    return {row["name"]: (row["unit id"], row["address"]) for row in rows}, notes, made.stderr


@asynccontextmanager
async def controller_of(gateway):
    """That has read its meter, and found a power in it."""
    groups = catalogue(load_config(gateway))
    found = [
        group
        if group.points
        else msgspec.structs.replace(group, points=(Point(name="m201_power_w", unit="W"),))
        for group in groups
    ]
    socket = gateway.parent / SOCKET_NAME
    server = ImageServer(socket, Image(found), block="hall-a", epoch=1, on_command=refuse, now_s=now_s)
    running = asyncio.create_task(server.run())
    while not socket.exists():  # noqa: ASYNC110  made by another task
        await asyncio.sleep(0.005)
    try:
        yield found
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def refuse(_command):
    return Outcome(result=Result.REJECTED)


def test_without_a_controller_the_map_says_which_devices_it_lacks_and_what_to_do(gateway):
    names, notes, said = written(gateway)
    assert "devices/pdu-a1/power_w" in names
    assert "devices/meter-1/m201_power_w" not in names
    for told in (said, "\n".join(notes)):
        assert "devices/meter-1: what they have, only they say" in told
        assert "devices/pdu-a1" not in told


async def test_while_the_controller_runs_the_map_has_what_it_found_and_the_fingerprint_that_is_served(
    gateway,
):
    without, _, _ = written_apart = await asyncio.to_thread(written, gateway)
    async with controller_of(gateway) as groups:
        names, notes, said = await asyncio.to_thread(written, gateway)
    assert names["devices/meter-1/m201_power_w"] == ("110", "4")
    assert {name: names[name] for name in without} == without, "places of all others are the same"
    assert said == ""
    assert not any("NOT WHOLE" in note for note in notes)
    assert any(f"{fingerprint(register_map(groups)):08x}" in note for note in notes)
    assert notes != written_apart[1]


async def test_a_socket_that_nobody_answers_at_is_as_good_as_none(gateway, monkeypatch):
    monkeypatch.setattr("controller.image.feed.HEARD_WAIT_S", 0.05)
    (gateway.parent / SOCKET_NAME).touch()
    _, _, said = await asyncio.to_thread(written, gateway)
    assert "devices/meter-1" in said
