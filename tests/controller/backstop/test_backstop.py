"""The backstop against simulated BMCs over TLS: silent hosts, bad BMCs, a controller that dies in between."""

import asyncio
import contextlib
import itertools
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from controller.backstop import BackstopConfig, Heard, found, node
from controller.backstop.found import Found
from controller.backstop.node import NodeBackstop, bounds_w
from controller.backstop.phase import Guard, Phase
from controller.backstop.service import Hosts
from controller.clock import now_s
from controller.yaml_config import ConfigError
from firmware_sim.gpu_firmware import GpuMemory
from firmware_sim.redfish_bmc import RedfishBmc, self_signed
from protocols.redfish import Lever, Unreachable, levers, read
from protocols.redfish import client as http
from protocols.redfish.client import Answer
from tests.bmcs import PASSWORD, QUICK_S, USER, gpus, simulated

# Connections are cut here on purpose: see the tests of the client.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FINE, SILENT, DISOBEYS = Heard(0.1, True), Heard(99.0, False), Heard(0.1, False)
LIMIT_W = 400.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The same behaviour at thirty times the pace."""
    for module, name, value in (
        (node, "LOOK_S", 0.01),
        (node, "RETRY_MAX_S", 0.2),
        (node, "TOLD_S", 0.01),
        (node, "READ_BACK_MAX_S", 0.1),
        (levers, "READ_BACK_PAUSE_S", 0.02),
        (http, "LOGOUT_MAX_S", 0.5),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return self_signed(tmp_path_factory.mktemp("certificate"))


@dataclass
class Block:
    """Some hosts with their BMCs, and a controller's backstop for them."""

    folder: Path
    certificate: object
    heard: dict[str, Heard] = field(default_factory=dict)
    memories: dict[str, GpuMemory] = field(default_factory=dict)
    bmcs: dict[str, RedfishBmc] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    def config(self) -> BackstopConfig:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        said = {
            "after_s": 2.0,
            "limit_w": LIMIT_W,
            "bmcs": {name: {"url": bmc.url} for name, bmc in self.bmcs.items()},
            "fingerprint": self.certificate.fingerprint,
            "user": USER,
            "password_file": str(password),
            "reread_s": 0.5,
            "release_after_s": 0.3,
            "release_w_per_s": 600.0,
            "request_max_s": 0.5,
            **self.settings,
        }
        made = BackstopConfig.model_validate_json(json.dumps(said), strict=True)
        return made.model_copy(update={"reread_s": 0.1})  # quicker than an operator may have it

    def backstop(self) -> Hosts:
        counts = {name: len(memory.gpus) for name, memory in self.memories.items()}
        return Hosts(self.config(), counts, self.heard.__getitem__, self.folder / "state")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Hosts]:
        made = self.backstop()
        task = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or task.exception() is None

    def enforced_w(self, name: str = "n01") -> list[float]:
        return (self.memories[name].enforced_mw() / 1000).tolist()


@pytest.fixture
async def block(tmp_path, certificate):
    async with blocks(tmp_path, certificate, 1) as made:
        yield made


@contextlib.asynccontextmanager
async def blocks(folder: Path, certificate, hosts: int, answer_s=QUICK_S) -> AsyncIterator[Block]:
    made = Block(folder, certificate)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(1, hosts + 1):
            name = f"n{number:02d}"
            made.memories[name] = gpus(folder, node=name)
            bmc = simulated(made.memories[name], certificate, answer_s=answer_s, seed=number)
            made.bmcs[name] = await stack.enter_async_context(bmc)
            made.heard[name] = FINE
        yield made


async def until(holds, wait_max_s: float = 20.0) -> None:
    async with asyncio.timeout(wait_max_s):
        while not holds():  # noqa: ASYNC110  what is waited for is in another program in real life
            await asyncio.sleep(0.01)


def shown_w(backstop: Hosts, name: str = "n01") -> tuple[float, ...]:
    return next((one.limit_w for one in backstop.proven(now_s()) if one.node == name), ())


def writes(bmc: RedfishBmc) -> int:
    return sum(request.startswith("PATCH") for request in bmc.requests)


# -- holding ------------------------------------------------------------------------------------------------


async def test_a_host_that_is_heard_is_found_and_never_written(block):
    async with block.running() as backstop:
        await until(lambda: len(block.bmcs["n01"].requests) > 10)
        block.heard["n01"] = Heard(1.9, False)
        await asyncio.sleep(0.2)
        assert (writes(block.bmcs["n01"]), list(backstop.conditions()), backstop.told(now_s())) == (0, [], [])
        assert backstop.proven(now_s()) == ()


async def test_a_silent_host_is_capped_and_counts_so_once_its_bmc_shows_it(block):
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        seen = []
        while shown_w(backstop) != (LIMIT_W,) * 4:
            seen.append((shown_w(backstop), block.enforced_w()))
            await asyncio.sleep(0.001)
        assert block.enforced_w() == [LIMIT_W] * 4
        for limits_w, enforced_w in seen:  # never promised before it was true
            assert sum(limits_w or (math.inf,)) >= sum(enforced_w)
        (proof,) = backstop.proven(now_s())
        assert now_s() - 1 < proof.read_at_s <= now_s()
        await until(lambda: backstop.proven(now_s())[0].read_at_s > proof.read_at_s)  # and again
        assert list(backstop.conditions()) == [
            ("backstop n01", "n01 is silent; its BMC holds 4 of 4 GPUs at 400 W")
        ]
        assert backstop.told(now_s())[0]["limit_w"] == 1600


async def test_a_proof_grows_old_when_the_bmc_dies(block):
    block.settings["proof_age_max_s"] = 1.0
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop))
        await block.bmcs["n01"].stop()
        await until(lambda: not shown_w(backstop))
        await until(lambda: "cannot be reached" in dict(backstop.conditions())["backstop n01"])


async def test_controls_hold_as_well(block):
    block.settings["lever"] = "control"
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        assert block.enforced_w() == [LIMIT_W] * 4
        block.heard["n01"] = FINE
        await until(lambda: not list(backstop.conditions()))
        assert block.enforced_w() == [1200] * 4


async def test_a_policy_holds_too_and_proves_nothing_because_it_shows_no_power(block):
    block.settings["lever"] = "domain"
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: block.enforced_w() == [LIMIT_W] * 4)
        await until(lambda: "shows no power" in dict(backstop.conditions())["backstop n01"])
        assert "counts at its maximum" in dict(backstop.conditions())["backstop n01"]
        assert backstop.proven(now_s()) == ()
        block.heard["n01"] = FINE
        await until(lambda: not list(backstop.conditions()))
        assert block.enforced_w() == [1200] * 4


async def test_a_policy_that_somebody_switched_off_meanwhile_is_left_off_with_its_limit_back(block):
    block.settings["lever"] = "domain"
    bmc = block.bmcs["n01"]
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: block.enforced_w() == [LIMIT_W] * 4)
        bmc.policy_enabled = False
        block.heard["n01"] = FINE
        await until(lambda: not list(backstop.conditions()))
        assert (bmc._policy_w, block.enforced_w()) == (4800, [1200] * 4)


async def test_a_set_point_of_zero_is_no_cap_it_is_capped_and_ends_without_one(block):
    """HPE Cray EX shows 0 where no limit is set."""
    block.settings["lever"] = "control"
    block.bmcs["n01"]._shown_w[:] = [0.0] * 4
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        seen = []
        while shown_w(backstop) != (LIMIT_W,) * 4:
            seen.append((shown_w(backstop), block.enforced_w()))
            await asyncio.sleep(0.001)
        for limits_w, enforced_w in seen:
            assert sum(limits_w or (math.inf,)) >= sum(enforced_w)
        assert block.enforced_w() == [LIMIT_W] * 4
        block.heard["n01"] = FINE
        await until(lambda: not list(backstop.conditions()))
        assert block.enforced_w() == [1200] * 4


async def test_what_a_gpu_is_seen_to_draw_a_little_above_its_limit_is_what_counts(block):
    block.memories["n01"].gpus["average_mw"][2] = 412_000
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (412, LIMIT_W, LIMIT_W, LIMIT_W))
        assert dict(backstop.conditions())["backstop n01"].endswith("its BMC holds 4 of 4 GPUs at 400 W")


async def test_a_limit_that_is_low_enough_is_left_as_it_is(block):
    block.bmcs["n01"]._shown_w[:] = [390.0] * 4
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (390,) * 4)
        block.heard["n01"] = FINE
        await until(lambda: not list(backstop.conditions()))
        assert writes(block.bmcs["n01"]) == 0


async def test_a_node_may_be_held_lower_than_configured_never_higher(block):
    async with block.running() as backstop:
        block.heard["n01"] = Heard(99, False, 350.0)
        await until(lambda: shown_w(backstop) == (350,) * 4)
        block.heard["n01"] = Heard(99, False, 900.0)
        await asyncio.sleep(0.3)
        assert block.enforced_w() == [350] * 4


async def test_a_host_that_restarts_at_full_power_is_met_and_not_counted_as_capped(block):
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        block.bmcs["n01"].reset_limits()
        block.bmcs["n01"].fault = "ignores"
        await until(lambda: shown_w(backstop) != (LIMIT_W,) * 4)
        assert (
            "still shows 1200 W" in dict(backstop.conditions())["backstop n01"]
            or shown_w(backstop)[0] == 1200
        )
        block.bmcs["n01"].fault = ""
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)


async def test_what_the_boards_cannot_do_is_said(block):
    block.settings["limit_w"] = 150.0
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (200,) * 4)  # AllowableMin, and that is what counts
        await until(lambda: "goes no lower than 200 W" in dict(backstop.conditions())["backstop n01"])


# -- bad BMCs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("ignores", "accepted 400 W and still shows 1200 W"),
        ("booting", "busy or still booting"),
        ("deaf", "no answer within 0.5 s"),
        ("huge", "more than 262144 bytes"),
    ],
)
async def test_a_bad_bmc_proves_nothing_is_named_and_is_tried_again(block, fault, told):
    async with block.running() as backstop:
        await until(lambda: len(block.bmcs["n01"].requests) > 12)
        block.bmcs["n01"].fault = fault
        block.heard["n01"] = SILENT
        await until(lambda: told in dict(backstop.conditions()).get("backstop n01", ""))
        assert not shown_w(backstop) or min(shown_w(backstop)) >= 1200
        block.bmcs["n01"].fault = ""
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)


async def test_a_bmc_that_breaks_the_program_is_named_and_costs_no_other_host_its_proof(
    tmp_path, certificate, monkeypatch
):
    poison = ["a poison that nobody thought of " * 20]

    async def broken(bmc, lever):
        if poison and bmc.name == broken_one:
            raise TypeError(poison[0])
        return await read(bmc, lever)

    async with blocks(tmp_path, certificate, 2) as block:
        broken_one = f"BMC {block.bmcs['n01'].url.removeprefix('https://')}"
        monkeypatch.setattr(node, "read", broken)
        async with block.running() as backstop:
            block.heard.update(dict.fromkeys(block.heard, SILENT))
            await until(
                lambda: "fault of this program" in dict(backstop.conditions()).get("backstop n01", "")
            )
            await until(lambda: shown_w(backstop, "n02") == (LIMIT_W,) * 4)
            (proof,) = backstop.proven(now_s())
            await until(lambda: backstop.proven(now_s())[0].read_at_s > proof.read_at_s)  # and again
            told = dict(backstop.conditions())["backstop n01"]
            assert f"{broken_one}: a fault of this program, see its log: TypeError('a poison" in told
            assert len(told) < 400
            poison.clear()
            await until(lambda: shown_w(backstop, "n01") == (LIMIT_W,) * 4)
            assert "fault" not in dict(backstop.conditions())["backstop n01"]


async def test_a_bmc_that_says_where_its_session_is_and_that_is_no_address_is_used_all_the_same(
    tmp_path, certificate, monkeypatch
):
    exchange = http.Bmc._exchange

    async def spoilt(self, method, uri, *args) -> Answer:
        answer = await exchange(self, method, uri, *args)
        if method != "POST":
            return answer
        return replace(answer, headers={**answer.headers, "Location": "https://[bmc]/redfish/v1/x"}, body={})

    monkeypatch.setattr(http.Bmc, "_exchange", spoilt)
    async with blocks(tmp_path, certificate, 2) as block, block.running() as backstop:
        block.heard.update(dict.fromkeys(block.heard, SILENT))
        await until(lambda: all(shown_w(backstop, name) == (LIMIT_W,) * 4 for name in block.bmcs))


async def test_a_bmc_that_has_been_dead_for_days_is_asked_on_at_the_same_pace(block):
    bmc = OneControl("Disabled")
    bmc.get = unreachable
    made = backstop_of(block, bmc)
    made._failures = 5000
    await made._act()
    assert made.fault == "nobody there"
    assert 0.0 < made._next_at_s - now_s() <= node.RETRY_MAX_S


async def unreachable(_uri: str) -> Answer:
    raise Unreachable("nobody there")


async def test_a_gpu_that_draws_more_than_its_bmc_shows_is_not_capped(block):
    block.memories["n01"].gpus["average_mw"][2] = 900_000
    block.bmcs["n01"].fault = "mirrors"
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (math.inf, LIMIT_W, LIMIT_W, LIMIT_W))
        await until(
            lambda: "draws more: its GPU does not obey" in dict(backstop.conditions())["backstop n01"]
        )


async def test_a_bmc_that_cannot_be_used_is_an_alarm_on_a_quiet_day(block):
    block.settings["user"] = "somebody"
    async with block.running() as backstop:
        await until(lambda: list(backstop.conditions()))
        assert "not armed, n01 would count at its maximum" in dict(backstop.conditions())["backstop n01"]
        assert "login as somebody: 401, refused" in dict(backstop.conditions())["backstop n01"]


async def test_a_host_with_other_gpus_than_configured_is_told_and_the_missing_count_in_full(block):
    block.memories["n01"] = GpuMemory(block.memories["n01"].path)
    counts = {"n01": 5}
    made = Hosts(block.config(), counts, block.heard.__getitem__, block.folder / "state")
    task = asyncio.create_task(made.run())
    block.heard["n01"] = SILENT
    await until(lambda: shown_w(made) == (math.inf, *(LIMIT_W,) * 4))
    await until(lambda: "shows 4 GPUs, configured are 5" in dict(made.conditions())["backstop n01"])
    task.cancel()
    await asyncio.wait({task})


# -- release ------------------------------------------------------------------------------------------------


async def test_release_waits_for_obedience_is_slow_and_ends_where_it_began(block):
    block.bmcs["n01"]._shown_w[:] = [1200.0, 1200.0, 1000.0, 380.0]
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (400, 400, 400, 380))
        block.heard["n01"] = DISOBEYS
        await asyncio.sleep(0.6)
        assert max(block.enforced_w()) == LIMIT_W
        assert "heard again, but not obeying" in dict(backstop.conditions())["backstop n01"]
        block.heard["n01"] = FINE
        steps = []
        while list(backstop.conditions()):
            steps.append((block.enforced_w(), shown_w(backstop)))
            await asyncio.sleep(0.001)
        rises = [after[0] - before[0] for (before, _), (after, _) in itertools.pairwise(steps)]
        assert 0 < max(rises) <= 60  # 600 W/s for 0.1 s
        for enforced_w, proven_w in steps:  # a bound rises before what it bounds
            assert not proven_w or sum(proven_w) >= sum(enforced_w)
        assert block.bmcs["n01"].setpoints_w() == [1200, 1200, 1000, 380]
        assert json.loads((block.folder / "state" / found.NAME).read_text())["nodes"] == {}


async def test_silence_during_release_holds_again_at_once(block):
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        block.heard["n01"] = FINE
        await until(lambda: max(block.enforced_w()) > LIMIT_W + 100)
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        block.heard["n01"] = FINE
        await until(lambda: not list(backstop.conditions()))
        assert (
            block.bmcs["n01"].setpoints_w() == [1200] * 4
        )  # what was found first, not a step of the release


async def test_a_release_that_the_bmc_interrupts_goes_on_where_it_was(block):
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        block.heard["n01"] = FINE
        for _ in range(3):
            before_w = block.enforced_w()
            await until(lambda before_w=before_w: block.enforced_w() != before_w)
            await block.bmcs["n01"].stop()  # a change may have been made that nobody could read back
            await asyncio.sleep(0.1)
            await block.bmcs["n01"].start()
        await until(lambda: not list(backstop.conditions()))
        assert block.bmcs["n01"].setpoints_w() == [1200] * 4


async def test_a_limit_that_somebody_lowered_meanwhile_is_left_to_him(block):
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        block.bmcs["n01"]._set_gpu(1, 250.0)
        block.heard["n01"] = FINE
        await until(lambda: not list(backstop.conditions()))
        assert block.bmcs["n01"].setpoints_w() == [1200, 250, 1200, 1200]


@pytest.mark.parametrize("found_w", [300.0, 0.0, 1000.0])
async def test_a_control_that_was_off_is_off_again_whatever_it_was_set_to(block, found_w):
    block.settings["lever"] = "control"
    bmc = block.bmcs["n01"]
    bmc._modes[:], bmc._shown_w[:] = ["Disabled"] * 4, [found_w] * 4
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        block.heard["n01"] = FINE
        while list(backstop.conditions()):
            assert "left" not in dict(backstop.conditions()).get("backstop n01", "")
            assert not shown_w(backstop) or sum(shown_w(backstop)) >= sum(block.enforced_w())
            await asyncio.sleep(0.001)
        assert (bmc._modes, block.enforced_w()) == (["Disabled"] * 4, [1200] * 4)
        assert bmc.setpoints_w() == [found_w or 1200.0] * 4


async def test_a_gpu_that_fell_off_the_bus_is_named_and_the_others_are_released(block):
    bmc = block.bmcs["n01"]
    block.settings["release_w_per_s"] = 1000.0
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        block.heard["n01"] = FINE
        await until(lambda: bmc.setpoints_w()[2] > LIMIT_W)
        bmc.lost.add(2)
        await until(lambda: [w for w in bmc.setpoints_w() if w == 1200] == [1200] * 3)
        assert bmc.setpoints_w()[2] < 1200
        await until(lambda: "no longer has" in dict(backstop.conditions())["backstop n01"])
        assert "GPU_2/EnvironmentMetrics, which was at 1200 W" in dict(backstop.conditions())["backstop n01"]
        bmc.lost.clear()  # and it is released as well once it is back
        await until(lambda: not list(backstop.conditions()))
        assert bmc.setpoints_w() == [1200] * 4


async def test_a_host_that_obeys_no_more_while_it_is_released_is_held_again(block):
    block.settings["release_w_per_s"] = 50.0
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        block.heard["n01"] = FINE
        await until(lambda: max(block.enforced_w()) > LIMIT_W)
        block.heard["n01"] = DISOBEYS
        await until(lambda: "not obeying" in dict(backstop.conditions())["backstop n01"])
        await until(lambda: block.enforced_w() == [LIMIT_W] * 4)


class OneControl:
    """A BMC with one control for the whole host, off, set to nothing, that tells no bounds."""

    name = "BMC one"

    def __init__(self, mode: str) -> None:
        self.now = {"SetPoint": None, "ControlMode": mode}
        self.mode = mode

    async def get(self, uri: str) -> Answer:
        here = "/redfish/v1/Chassis"
        tree = {
            "/redfish/v1": {"Chassis": {"@odata.id": here}},
            here: {"Members": [{"@odata.id": f"{here}/1"}]},
            f"{here}/1": {"Controls": {"@odata.id": f"{here}/1/Controls"}},
            f"{here}/1/Controls": {"Members": [{"@odata.id": f"{here}/1/Controls/P"}]},
            f"{here}/1/Controls/P": {"ControlType": "Power", "PhysicalContext": "Chassis", **self.now},
        }
        return Answer(uri, 200, {}, tree[uri.rstrip("/")], now_s())

    async def patch(self, _uri: str, change) -> None:
        self.now |= change


def backstop_of(block, bmc: OneControl) -> NodeBackstop:
    config = block.config().model_copy(update={"lever": "control"})
    return NodeBackstop("n01", 4, bmc, config, Found(block.folder / "state"))


async def held_and_released(block, bmc: OneControl) -> NodeBackstop:
    made = backstop_of(block, bmc)
    made.guard = Guard(Phase.HOLDING)
    await made._act()
    assert bmc.now == {"SetPoint": 1600, "ControlMode": "Automatic"}
    made.guard = Guard(Phase.RELEASING)
    for _ in range(3):
        await made._act()
    return made


async def test_a_control_that_had_no_set_point_and_was_off_is_off_again(block):
    bmc = OneControl("Disabled")
    made = await held_and_released(block, bmc)
    assert (bmc.now["ControlMode"], made.fault, made._found.nodes) == ("Disabled", "", {})


async def test_what_can_not_be_put_back_is_owed_and_said_until_somebody_has_raised_it(block):
    bmc = OneControl("Automatic")
    made = await held_and_released(block, bmc)
    assert "it had no limit, and its BMC does not tell how far it goes: raise it by hand" in made.fault
    made = backstop_of(block, bmc)  # a controller that starts knows of it, and not what was written
    assert made.guard.phase is Phase.HOLDING
    made.guard = Guard(Phase.RELEASING)
    await made._act()
    assert "raise it by hand" in made.fault
    bmc.now["SetPoint"] = 2800
    await made._act()
    assert (made.fault, made._found.nodes, bmc.now["SetPoint"]) == ("", {}, 2800)


# -- memory -------------------------------------------------------------------------------------------------


async def test_what_was_found_is_on_disk_before_the_first_write(block, monkeypatch):
    file, kept = block.folder / "state" / found.NAME, []
    change = RedfishBmc._set_gpu

    def spied(bmc, gpu, limit_w):
        kept.append(json.loads(file.read_text())["nodes"]["n01"] if file.exists() else {})
        change(bmc, gpu, limit_w)

    monkeypatch.setattr(RedfishBmc, "_set_gpu", spied)
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
    assert [[lever["limit_w"] for lever in nodes.values()] for nodes in kept] == [[1200] * 4] * 4


async def test_a_controller_that_was_killed_is_followed_by_one_that_holds_and_restores(block):
    async with block.running() as first:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(first) == (LIMIT_W,) * 4)
    block.heard["n01"] = DISOBEYS  # heard, before it has a lease of the new controller
    async with block.running() as second:
        await until(lambda: shown_w(second) == (LIMIT_W,) * 4)
        block.heard["n01"] = FINE
        await until(lambda: not list(second.conditions()))
        assert block.enforced_w() == [1200] * 4


async def test_a_dead_disk_is_an_alarm_and_no_reason_to_leave_a_host_at_full_power(block):
    (block.folder / "state").write_text("a file where a folder belongs")
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        assert (
            "a restart now would not know which limits to restore"
            in dict(backstop.conditions())["backstop file"]
        )


async def test_a_disk_that_hangs_is_waited_for_a_second_not_for_ever(block, monkeypatch):
    monkeypatch.setattr(found, "DISK_WAIT_MAX_S", 0.1)
    monkeypatch.setattr(found, "_replaced", lambda _path, _content: time.sleep(1.0) or "")
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
        assert "does not answer within 0.1 s" in dict(backstop.conditions())["backstop file"]


def test_an_unreadable_file_is_set_aside_and_said(block):
    state = block.folder / "state"
    state.mkdir()
    (state / found.NAME).write_text("{broken")
    assert "limits it knew of are not restored" in dict(block.backstop().conditions())["backstop file"]
    assert (state / found.SET_ASIDE).read_text() == "{broken"


async def test_an_unreadable_file_is_said_until_somebody_has_dealt_with_it(block):
    state = block.folder / "state"
    state.mkdir()
    (state / found.NAME).write_text("{broken")
    for _ in range(2):  # and not only by the one that found it so
        async with block.running() as backstop:
            block.heard["n01"] = SILENT
            await until(lambda: shown_w(backstop) == (LIMIT_W,) * 4)
            assert "limits it knew of are not restored" in dict(backstop.conditions())["backstop file"]
            assert "not restored" not in dict(backstop.conditions())["backstop n01"]
    (state / found.SET_ASIDE).unlink()
    assert "backstop file" not in dict(block.backstop().conditions())


async def test_a_host_that_left_the_configuration_capped_is_not_forgotten(block):
    async with block.running() as backstop:
        block.heard["n01"] = SILENT
        await until(lambda: shown_w(backstop))
    made = Hosts(block.config(), {}, block.heard.__getitem__, block.folder / "state")
    assert "n01 is no longer configured and still capped" in dict(made.conditions())["backstop n01"]


# -- many hosts ---------------------------------------------------------------------------------------------


async def test_many_silent_hosts_are_capped_together_with_two_connections_and_one_login_each(
    tmp_path, certificate
):
    async with blocks(tmp_path, certificate, 24) as block:
        block.settings["bmcs_max"] = 4
        await block.bmcs["n03"].stop()  # one is dead: the others do not wait for it
        async with block.running() as backstop:
            block.heard.update(dict.fromkeys(block.heard, SILENT))
            await until(
                lambda: len([one for one in backstop.proven(now_s()) if max(one.limit_w) == LIMIT_W]) == 23
            )
        for name, bmc in block.bmcs.items():
            if name != "n03":
                assert (bmc.connections_peak, bmc.logins, bmc.basic_auths, bmc.refused) == (2, 1, 0, 0)
                assert block.enforced_w(name) == [LIMIT_W] * 4
                assert bmc.sessions == 0  # logged out in the end


async def test_silence_does_not_queue_behind_a_quiet_day(tmp_path, certificate):
    async with blocks(tmp_path, certificate, 20) as block:
        for bmc in block.bmcs.values():
            bmc.fault = "deaf"
        block.bmcs["n20"].fault = ""
        block.settings["request_max_s"] = 10.0
        async with block.running() as backstop:
            await asyncio.sleep(0.1)  # all places for arming are taken by BMCs that do not answer
            block.heard["n20"] = SILENT
            began_at_s = time.monotonic()
            await until(lambda: shown_w(backstop, "n20") == (LIMIT_W,) * 4)
            assert time.monotonic() - began_at_s < 8  # two seconds before the first of them is given up


# -- arithmetic ---------------------------------------------------------------------------------------------


def lever(gpu: int | None, setpoint_w: float | None, **kwargs) -> Lever:
    return Lever(
        f"/redfish/v1/{gpu}", "gpu" if gpu is not None else "control", gpu, setpoint_w=setpoint_w, **kwargs
    )


def policy(setpoint_w: float, **kwargs) -> Lever:
    return Lever("/redfish/v1/p", "domain", domain="0", setpoint_w=setpoint_w, mode="Enabled", **kwargs)


@pytest.mark.parametrize(
    ("levers", "count", "limits_w"),
    [
        ([], 2, (math.inf, math.inf)),
        ([lever(0, 300), lever(1, 400)], 2, (400, 300)),
        ([lever(0, 300)], 2, (math.inf, 300)),
        ([lever(0, 300), lever(1, None)], 2, (math.inf, 300)),
        ([lever(0, 300), lever(1, 400), lever(2, 500)], 2, (600, 600)),
        ([lever(None, 900)], 3, (300, 300, 300)),
        ([lever(None, 900, mode="Disabled")], 3, (math.inf,) * 3),
        ([lever(None, 900), lever(None, 600)], 3, (200, 200, 200)),
        ([lever(None, 900, reading_w=960), lever(None, 1200)], 3, (320, 320, 320)),
        ([lever(0, 300, reading_w=329), lever(1, 300, reading_w=331)], 2, (math.inf, 329)),
        ([lever(0, 0.0), lever(1, 199.0, min_w=200.0)], 2, (math.inf, math.inf)),
        ([policy(900)], 3, (math.inf,) * 3),
        ([policy(900, reading_w=600)], 3, (300,) * 3),
    ],
)
def test_bounds_hold_for_the_sum_of_all_gpus_of_a_host(levers, count, limits_w):
    assert bounds_w(levers, count) == limits_w


def test_a_lever_that_could_not_be_read_may_be_any_gpu_of_the_host():
    assert bounds_w([lever(0, 300), lever(1, 400)], 3, unread=1) == (math.inf, 400, 300)
    assert bounds_w([lever(0, 300), lever(1, 400)], 2, unread=1) == (math.inf, math.inf)


def test_a_missing_password_is_said_at_the_start(block):
    config = block.config().model_copy(update={"password_file": Path("/no/such/file")})
    with pytest.raises(ConfigError, match="password_file"):
        Hosts(config, {"n01": 4}, block.heard.__getitem__, block.folder)
