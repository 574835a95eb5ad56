"""Clock, logs and systemd notices: what every daemon of the project shares."""

import json
import socket
import subprocess
import sys
import time

from controller import clock
from controller.notify import notify

LOGGING = """
import logging, structlog
from controller import logs
logs.configure("info", json={json})
structlog.get_logger("powerblock").info("limit written", gpu=3, limit_w=300.0)
structlog.get_logger("powerblock").debug("not shown")
logging.getLogger("library").warning("from %s", "elsewhere")
logging.getLogger("asyncio").info("not shown")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("powerblock").exception("failed")
"""


def logged(*, as_json: bool) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOGGING.format(json=as_json)], check=True, capture_output=True, text=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_logs_are_one_object_per_line_whoever_logs():
    lines = [json.loads(line) for line in logged(as_json=True)]
    assert [line["event"] for line in lines] == ["limit written", "from elsewhere", "failed"]
    assert (lines[0]["gpu"], lines[0]["limit_w"], lines[0]["level"]) == (3, 300.0, "info")
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[1]["level"] == "warning"
    assert "ZeroDivisionError" in lines[2]["exception"]


def test_logs_for_people_show_the_same(tmp_path):
    text = "\n".join(logged(as_json=False))
    assert "limit written" in text
    assert "gpu=3" in text
    assert "from elsewhere" in text
    assert "ZeroDivisionError" in text
    assert "not shown" not in text


def test_systemd_is_told_by_path_and_by_abstract_name(tmp_path, monkeypatch):
    for name, address in (
        (str(tmp_path / "s"), str(tmp_path / "s")),
        ("@powerblock-test", "\0powerblock-test"),
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(address)
            systemd.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", name)
            notify("READY=1\nSTATUS=fine")
            assert systemd.recv(100) == b"READY=1\nSTATUS=fine"


def test_nobody_listening_is_no_fault_and_no_wait(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "deaf"))
        began_s = time.monotonic()
        for _ in range(2000):  # far more than its queue takes
            notify("WATCHDOG=1")
        assert time.monotonic() - began_s < 2.0


def test_the_clock_counts_from_boot_and_the_wall_clock_from_1970():
    first_s = clock.now_s()
    assert clock.now_s() >= first_s >= time.monotonic() - 1.0
    assert abs(clock.now_utc_s() - time.time()) < 1.0
