"""The unit files as systemd itself reads them: no unknown key, no open door, every line with its reason."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = (
    "powerblock.service",
    "powerblock-serve.service",
    "powerblock-agent.service",
    "powerblock-rig@.service",
)
DROP_INS = sorted((FOLDER / "drop-ins").glob("*.conf"))
EXPOSURE_MAX = {
    "powerblock.service": 2.0,
    "powerblock-serve.service": 2.0,
    "powerblock-agent.service": 4.0,
    "powerblock-rig@.service": 2.0,
}
COMMANDS = {
    "powerblock.service": "/opt/powerblock/venv/bin/powerblock run /etc/powerblock/block.yaml",
    "powerblock-serve.service": "/opt/powerblock/venv/bin/powerblock serve /etc/powerblock/block.yaml",
    "powerblock-agent.service": "/opt/powerblock/venv/bin/powerblock agent /etc/powerblock/node.yaml",
    "powerblock-rig@.service": "/opt/powerblock/venv/bin/powerblock-rig run /etc/powerblock/rig/%i.yaml",
}


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (FOLDER / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def verify(unit: str, folder: Path, drop_in: Path | None = None, extra: str = "") -> str:
    """What systemd-analyze says about a unit. It exits 0 on an unknown key: only its words count.

    The unit is read with a command that exists here, for a missing one is reported as well.
    """
    text = re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", (FOLDER / unit).read_text(), flags=re.MULTILINE)
    path = folder / unit.replace("@", "@bench")
    path.write_text(text + extra)
    if drop_in is not None:
        place = folder / f"{path.name}.d"
        place.mkdir()
        shutil.copy(drop_in, place)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout + done.stderr


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_about_a_unit(unit, tmp_path):
    assert verify(unit, tmp_path) == ""


@needs("systemd-analyze")
@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.name)
def test_systemd_has_nothing_to_say_about_a_sample_drop_in(drop_in, tmp_path):
    assert verify("powerblock.service", tmp_path, drop_in) == ""


@needs("systemd-analyze")
@pytest.mark.parametrize("mistake", ["\n[Service]\nProtectHoem=yes\n", "\n[Service]\nWatchdogSec=soon\n"])
def test_a_mistake_in_a_unit_would_be_seen_here(mistake, tmp_path):
    assert verify("powerblock.service", tmp_path, extra=mistake) != ""


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS)
def test_exposure_stays_below_its_bound(unit):
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX[unit] * 10:.0f}"]
    done = subprocess.run(
        [*command, str(FOLDER / unit)], capture_output=True, text=True, check=False, timeout=30
    )
    overall = re.search(r"Overall exposure level for \S+ ([\d.]+)", done.stdout)
    assert overall is not None, done.stderr
    assert float(overall[1]) <= EXPOSURE_MAX[unit]
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [*UNITS, *(f"drop-ins/{path.name}" for path in DROP_INS)])
def test_every_service_line_has_its_reason_above_it(file):
    """ExecStart alone speaks for itself; a key repeated to take several values is one thing to say."""
    lines = (FOLDER / file).read_text().split("[Service]")[1].split("[Install]")[0].splitlines()
    lines = [line for line in lines if line]
    for above, line in zip(["", *lines], lines, strict=False):
        key = line.split("=")[0]
        if not line.startswith("#") and key != "ExecStart" and not above.startswith(f"{key}="):
            assert above.startswith("#"), f"{file}: {line} stands there without a reason"


@pytest.mark.parametrize("unit", UNITS)
def test_each_unit_starts_its_own_command(unit):
    assert settings(unit)["ExecStart"] == [COMMANDS[unit]]


@pytest.mark.parametrize("unit", ["powerblock.service", "powerblock-agent.service"])
def test_what_controls_power_is_watched_and_always_comes_back(unit):
    said = settings(unit)
    assert said["Type"] == ["notify"]
    assert "WatchdogSec" in said
    assert said["Restart"] == ["always"]
    assert said["StartLimitIntervalSec"] == ["0"], "a unit that gives up leaves its block without control"


def test_the_agent_holds_one_capability_and_the_controller_none():
    agent, controller = settings("powerblock-agent.service"), settings("powerblock.service")
    assert agent["CapabilityBoundingSet"] == agent["AmbientCapabilities"] == ["CAP_SYS_ADMIN"]
    assert controller["CapabilityBoundingSet"] == controller["AmbientCapabilities"] == [""]
    assert "root" not in agent["User"] + controller["User"]


def test_the_agent_can_reach_the_gpus():
    """PrivateDevices would hide them; ProcSubset=pid would hide /proc/driver from NVML."""
    agent = settings("powerblock-agent.service")
    assert "PrivateDevices" not in agent
    assert "ProcSubset" not in agent
    assert agent["DeviceAllow"] == ["char-nvidia* rw"]
    assert any("nvidia-persistenced.service" in after for after in agent["After"])


def test_a_restart_falls_into_no_lock_step_with_its_own_time_limits():
    said = settings("powerblock.service")
    watchdog_s, restart_s = (int(said[key][0].removesuffix("s")) for key in ("WatchdogSec", "RestartSec"))
    stuck_s = int(said["LimitRTTIME"][0].removesuffix("s"))
    assert watchdog_s < stuck_s, "the watchdog tells where it hung, the real-time limit just kills"
    assert restart_s >= 1


@needs("systemd-sysusers")
@needs("systemd-tmpfiles")
def test_users_and_directories_are_made_as_the_units_need_them(tmp_path):
    (tmp_path / "etc").mkdir()
    root = f"--root={tmp_path}"
    for command in (
        ["systemd-sysusers", root, FOLDER / "powerblock.sysusers.conf"],
        ["systemd-tmpfiles", root, "--create", FOLDER / "powerblock.tmpfiles.conf"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    users = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert users == {settings(unit)["User"][0] for unit in UNITS if "User" in settings(unit)}
    credentials = tmp_path / "etc/powerblock/credentials"
    assert credentials.stat().st_mode & 0o777 == 0o700
    assert settings("powerblock.service")["LoadCredential"] == ["mqtt:/etc/powerblock/credentials"]
