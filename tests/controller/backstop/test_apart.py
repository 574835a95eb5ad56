"""The backstop in a process apart: what the controller has of it, and what happens when it ends or hangs."""

import asyncio
import contextlib
import json
import math
import os
import signal
import sys

import pytest

from controller.backstop import Backstop, BackstopConfig, Heard, Proven, apart
from controller.backstop.apart import Ear
from controller.backstop.said import NodeSaid, Said, decode, encode
from controller.clock import now_s
from controller.yaml_config import ConfigError
from firmware_sim.redfish_bmc import self_signed
from tests.bmcs import PASSWORD, USER, gpus, simulated

FINE, SILENT = Heard(0.1, True), Heard(99.0, False)
LIMIT_W = 400.0
WAIT_MAX_S = 30.0  # the child imports for seconds on a busy machine


class Block:
    """One host with its BMC, and the controller's side of its backstop."""

    def __init__(self, folder, url: str, fingerprint: str) -> None:
        password = folder / "password"
        password.write_text(PASSWORD)
        said = {
            "after_s": 2.0,
            "limit_w": LIMIT_W,
            "bmcs": {"n01": {"url": url}},
            "fingerprint": fingerprint,
            "user": USER,
            "password_file": str(password),
            "reread_s": 0.5,
            "proof_age_max_s": 2.0,
        }
        config = BackstopConfig.model_validate_json(json.dumps(said), strict=True)
        self.heard = FINE
        self.children: list[int] = []
        self.backstop = Backstop(config, {"n01": 4}, lambda _: self.heard, folder / "state")

    @contextlib.asynccontextmanager
    async def running(self, monkeypatch):
        begin = asyncio.create_subprocess_exec

        async def noted(*argv, **kwargs):
            child = await begin(*argv, **kwargs)
            self.children.append(child.pid)
            return child

        monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
        task = asyncio.create_task(self.backstop.run())
        try:
            yield self.backstop
        finally:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or task.exception() is None

    def shown_w(self) -> tuple[float, ...]:
        return next((one.limit_w for one in self.backstop.proven(now_s())), ())


@pytest.fixture
async def block(tmp_path):
    certificate = self_signed(tmp_path)
    memory = gpus(tmp_path)
    async with simulated(memory, certificate) as bmc:
        made = Block(tmp_path, bmc.url, certificate.fingerprint)
        made.bmc, made.memory = bmc, memory
        yield made


async def until(holds) -> None:
    async with asyncio.timeout(WAIT_MAX_S):
        while not holds():  # noqa: ASYNC110  what is waited for is in another process
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_silent_host_is_capped_by_another_process_and_counts_as_capped_here(block, monkeypatch):
    async with block.running(monkeypatch) as backstop:
        await until(lambda: block.bmc.logins == 1)
        assert (backstop.proven(now_s()), list(backstop.conditions())) == ((), [])
        block.heard = SILENT
        seen = []
        while block.shown_w() != (LIMIT_W,) * 4:
            seen.append((block.shown_w(), (block.memory.enforced_mw() / 1000).tolist()))
            await asyncio.sleep(0.01)
        for limits_w, enforced_w in seen:  # never promised before it was true
            assert sum(limits_w or (math.inf,)) >= sum(enforced_w)
        assert dict(backstop.conditions()) == {
            "backstop n01": "n01 is silent; its BMC holds 4 of 4 GPUs at 400 W"
        }
        assert backstop.told(now_s())[0]["limit_w"] == 1600
    assert (block.bmc.sessions, block.bmc.logins) == (0, 1)  # logged out
    assert is_gone(block.children[0])


async def test_a_process_that_is_killed_is_begun_anew_and_holds_on(block, monkeypatch):
    monkeypatch.setattr(apart, "BEGIN_AGAIN_S", (1.0, 1.0))
    async with block.running(monkeypatch) as backstop:
        block.heard = SILENT
        await until(block.shown_w)
        os.kill(block.children[0], signal.SIGKILL)
        await until(lambda: "ended (-9)" in dict(backstop.conditions()).get("backstop process", ""))
        await until(lambda: not block.shown_w())  # nobody reads the limits any more
        await until(block.shown_w)
        assert "backstop process" not in dict(backstop.conditions())
        assert len(block.children) == 2


STRAY = "import time; print('hello', flush=True); time.sleep(60)"
TORN = "import sys; sys.stdout.write('{\"nod'); sys.stdout.flush()"


@pytest.mark.parametrize(
    "fault", [STRAY, TORN, OSError(11, "no process to be had")], ids=["stray", "torn", "none"]
)
async def test_a_process_that_begins_badly_is_begun_anew_and_ends_nobody_else(block, monkeypatch, fault):
    monkeypatch.setattr(apart, "BEGIN_AGAIN_S", (0.1, 0.1))
    begin, faults = asyncio.create_subprocess_exec, [fault]

    async def badly(*argv, **kwargs):
        if not faults:
            return await begin(*argv, **kwargs)
        first = faults.pop()
        if isinstance(first, OSError):
            raise first
        return await begin(sys.executable, "-c", first, **kwargs)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", badly)
    async with block.running(monkeypatch) as backstop:
        await until(lambda: "begun anew" in dict(backstop.conditions()).get("backstop process", ""))
        await until(lambda: block.bmc.logins == 1)


async def test_a_process_that_hangs_is_told_and_its_proofs_grow_old(block, monkeypatch):
    monkeypatch.setattr(apart, "SILENT_MAX_S", 1.5)
    monkeypatch.setattr(apart, "END_MAX_S", 0.2)
    async with block.running(monkeypatch) as backstop:
        block.heard = SILENT
        await until(block.shown_w)
        os.kill(block.children[0], signal.SIGSTOP)
        await until(lambda: "has said nothing for" in dict(backstop.conditions()).get("backstop process", ""))
        await until(lambda: not block.shown_w())
    assert is_gone(block.children[0]), "a process that does not end is killed"


async def test_signals_of_the_terminal_do_not_end_it_before_the_controller_does(block, monkeypatch):
    async with block.running(monkeypatch):
        await until(lambda: block.bmc.logins == 1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(block.children[0], number)
        block.heard = SILENT
        await until(block.shown_w)
        assert len(block.children) == 1


def test_a_controller_that_hangs_makes_nobody_silent_and_releases_nobody(monkeypatch):
    ear = Ear()
    ear.take(b'{"n01": {"silent_s": 0.1, "obeys": true}}')
    assert ear.hear("n01") == Heard(0.1, True)
    assert ear.hear("n02") == Heard(0.0, False), "not told of yet"
    monkeypatch.setattr(apart, "SILENT_MAX_S", -1.0)
    assert ear.hear("n01") == Heard(0.1, False)


def test_what_is_not_proven_survives_the_way_as_infinity():
    proof = Proven("n01", (math.inf, 400.0), 12.5)
    said = Said((NodeSaid("n01", "holding", "", "told", proof),), (("backstop file", "full"),))
    assert decode(encode(said).strip()) == said


async def test_a_missing_password_is_said_before_a_process_is_begun(block, tmp_path):
    config = block.backstop._config.model_copy(update={"password_file": tmp_path / "none"})
    with pytest.raises(ConfigError, match="password_file"):
        Backstop(config, {"n01": 4}, lambda _: FINE, tmp_path)
