"""`powerblock agent --observe`: how long calls take, and how often the power sensors are renewed."""

import ast
import os
import re
import subprocess
import sys
from threading import Event, Thread

import pytest

from controller.agent import observing
from controller.agent.observing import RENEWALS_MIN, Renewed, Sample, renewed
from firmware_sim.gpu_firmware import environment
from protocols.nvml import LIBRARY_MISSING, NvmlFault, Stamped

CALL_S = 0.0025


def asked(period_s, *, stamped=True, for_s=2.0, still=False):
    """A field that its board renews so often, asked every 2.5 ms."""
    samples = []
    for call in range(round(for_s / CALL_S)):
        at_s = 1e5 + call * CALL_S
        renewal = int(at_s / period_s)
        stamp_us = round(renewal * period_s * 1e6) if stamped else round(at_s * 1e6)
        samples.append(Sample(at_s, Stamped(stamp_us, 0.0 if still else float(renewal))))
    return samples


@pytest.mark.parametrize("period_s", [0.02, 0.1, 0.5])
def test_the_period_is_read_off_the_fields_own_time_stamps(period_s):
    found = renewed(asked(period_s, still=True))
    assert found == Renewed(pytest.approx(period_s), "stamps")


@pytest.mark.parametrize("period_s", [0.02, 0.1, 0.5])
def test_where_every_answer_is_stamped_anew_values_that_change_tell_the_period(period_s):
    found = renewed(asked(period_s, stamped=False))
    assert found == Renewed(pytest.approx(period_s, abs=CALL_S), "values")


def test_one_value_that_repeats_by_chance_does_not_move_the_period():
    samples = asked(0.1, stamped=False)
    again = [one._replace(stamped=one.stamped._replace(value=-1.0)) for one in samples[200:280]]
    assert renewed([*samples[:200], *again, *samples[280:]]).period_s == pytest.approx(0.1, abs=CALL_S)


@pytest.mark.parametrize(
    "samples",
    [[], asked(0.1)[:1], asked(0.1, stamped=False, still=True), asked(2.0 / RENEWALS_MIN)],
    ids=["never answered", "once", "a value that stands still", "twice"],
)
def test_what_was_not_seen_often_enough_is_not_told(samples):
    assert renewed(samples) is None


def told(text, key):
    """Of the newest line."""
    line = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if "observed" in line][-1]
    found = re.search(rf"\b{key}=(\{{[^}}]*\}}|\S+)", line)
    assert found, line
    return ast.literal_eval(found[1])


async def test_an_observer_measures_the_calls_and_the_sensors_of_its_hardware(node):
    async with node(gpu_count=1) as n:
        n.memory.gpus["refresh_us"][:] = (200_000, 100_000, 150_000)
        n.memory.gpus["call_delay_us"][:] = 1_000
        n.start("--observe")
        await n.until(lambda: "observed" in n.logged(), within_s=20.0)
        n.stop()
        renewed_ms = {name: told(n.logged(), f"{name}_ms") for name in ("average", "instant", "energy")}
        assert renewed_ms == {"average": 200.0, "instant": 100.0, "energy": 150.0}
        assert told(n.logged(), "by") == dict.fromkeys(("average", "instant", "energy"), "stamps")
        read_ms, sensors_ms = told(n.logged(), "read_ms"), told(n.logged(), "sensors_ms")
        assert 1.0 <= sensors_ms["p50"] <= sensors_ms["p99"]
        assert read_ms["p50"] >= 3.0, "three calls: powers and limits, clock, its reasons"
        assert read_ms["calls"] >= 5
        assert list(n.memory.gpus["write_count"]) == [0]


async def test_a_driver_that_stamps_every_answer_anew_is_measured_by_its_values(node):
    async with node(gpu_count=1) as n:
        ends = Event()

        def renew():
            while not ends.wait(0.1):
                n.memory.gpus["instant_mw"] += 1

        board = Thread(target=renew)
        board.start()
        n.start("--observe")
        try:
            await n.until(lambda: "observed" in n.logged(), within_s=20.0)
        finally:
            ends.set()
            board.join()
        assert told(n.logged(), "instant_ms") >= 90.0
        assert told(n.logged(), "by") == {"instant": "values"}
        assert told(n.logged(), "energy_ms") is None


async def test_a_gpu_that_fails_while_it_is_looked_at_is_told_as_far_as_it_was_seen(node):
    async with node(gpu_count=2) as n:
        n.memory.gpus["forced_error"][0] = 15
        n.start("--observe")
        await n.until(lambda: n.logged().count("observed") >= 2, within_s=20.0)
        n.stop()
        lines = [
            line for line in re.sub(r"\x1b\[[0-9;]*m", "", n.logged()).splitlines() if "observed" in line
        ]
        assert "average_ms=None" in lines[0]
        assert "gpu=0" in lines[0]
        assert "gpu=1" in lines[1]


# --- a host without a driver --------------------------------------------------------------------------------


NOT_LOADED = NvmlFault(9, "the driver is not loaded: check the kernel log")


@pytest.fixture
def driver(monkeypatch):
    """`driver(answers)`: what opening it brings, one after the other, the last one for ever: a fault, or GPUs."""
    monkeypatch.setattr(observing, "OPEN_WAIT_MAX_S", 0.2)
    monkeypatch.setattr(observing, "OPEN_RETRY_S", 0.01)

    def answering(*answers):
        left = list(answers)

        class Driver:
            def __init__(self) -> None:
                answer = left.pop(0) if len(left) > 1 else left[0]
                if isinstance(answer, NvmlFault):
                    raise answer
                self.gpu_count = answer

        monkeypatch.setattr(observing, "Nvml", Driver)
        return left

    return answering


async def test_a_library_that_is_not_installed_is_not_waited_for(driver):
    left = driver(NvmlFault(LIBRARY_MISSING, "install the NVIDIA driver"), 8)
    assert await observing.driver_fault() == "install the NVIDIA driver"
    assert left == [8], "asked once"


@pytest.mark.parametrize("first", [NOT_LOADED, 0], ids=["not loaded", "no GPU yet"])
async def test_a_driver_that_is_being_loaded_is_waited_for(driver, first):
    left = driver(first, first, 8)
    assert await observing.driver_fault() == ""
    assert left == [8]


@pytest.mark.parametrize(
    ("answer", "why"),
    [(NOT_LOADED, NOT_LOADED.sentence), (0, "the driver shows no GPU: see `nvidia-smi` and the kernel log")],
    ids=["not loaded", "no GPU"],
)
async def test_a_driver_that_does_not_come_is_given_up_with_a_sentence(driver, answer, why):
    driver(answer)
    assert await observing.driver_fault() == f"{why} (tried for 0.2 s)"


async def test_a_driver_whose_opening_never_returns_is_given_up_too(driver, monkeypatch):
    driver(0)
    released = Event()

    class Hangs:
        def __init__(self) -> None:
            released.wait(30)

    monkeypatch.setattr(observing, "Nvml", Hangs)
    try:
        assert "has not returned" in await observing.driver_fault()
    finally:
        released.set()


def observer(node, **variables) -> subprocess.Popen:
    """The command as people type it."""
    return subprocess.Popen(
        [sys.executable, "-m", "controller.cli", "agent", str(node.file), "--observe"],
        env={**os.environ, **environment(node.library, node.memory.path), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(started) -> tuple[int, str, str]:
    """Its status, and what it said."""
    try:
        said = started.communicate(timeout=20)
    finally:
        started.kill()
    return started.returncode, *said


async def test_on_a_host_without_a_driver_it_ends_with_one_sentence_and_status_1(node, tmp_path):
    async with node() as n:
        code, out, told = ended(observer(n, LD_LIBRARY_PATH=str(tmp_path)))
        assert (code, out, told.count("\n")) == (1, "", 1)
        assert told.startswith("nothing to observe: cannot open the driver: ")
        assert "no libnvidia-ml.so.1: install the NVIDIA driver" in told


async def test_a_file_that_does_not_hold_is_said_before_the_driver_is_looked_for(node, tmp_path):
    async with node(fallback_w=-1) as n:
        code, _, told = ended(observer(n, LD_LIBRARY_PATH=str(tmp_path)))
        assert code == 2
        assert "node.yaml: fallback_w" in told
        assert "driver" not in told


async def test_with_a_driver_it_observes_as_it_always_did(node):
    """Whoever looked for the driver is not in the way of who opens it then."""
    async with node(gpu_count=1) as n:
        started = observer(n)
        try:
            report = await n.report(within_s=10.0)
        finally:
            started.terminate()
            code, *_ = ended(started)
        assert (code, report.mode, report.gpus[0].fault) == (0, "observe", "")
