"""Commands from outside: roles, the switch, clear refusals, and a log of all of them."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from controller.commands import CommandDesk
from controller.config import load_block, settings_of
from controller.image.model import Command, Outcome, Result, Role
from controller.site.facility import Facility
from controller.verbs import VERBS
from protocols.reading import DeviceError, Written


class Desk:
    """A command desk with a facility, one writable point and fake alarms."""

    def __init__(self, state_dir: Path, settings) -> None:
        self.facility, self.moved, self.asked, self.disk = Facility(4000.0), 0, [], ""
        self.now_s = 10.0
        self.desk = CommandDesk(
            state_dir,
            write=self.write,
            withdraw=self.withdraw,
            alarms=self,
            facility=self.facility,
            settings=settings,
            on_moved=self.on_moved,
            clock=(lambda: self.now_s, lambda: 1000.0),
        )
        self.log = state_dir / "commands.jsonl"

    def on_moved(self) -> str:
        self.moved += 1
        return self.disk

    async def write(self, device: str, point: str, value: float, _wait_max_s: float) -> Written:
        if device != "cdu":
            raise DeviceError(f"no device {device!r}")
        return Written(value, 20.0, True)

    async def withdraw(self, device: str, _wait_max_s: float) -> None:
        if device != "cdu":
            raise DeviceError(f"no device {device!r}")
        self.asked.append(("withdraw", device))

    def command(self, verb: str, by: str, **arguments) -> Outcome:
        self.asked.append((verb, by, arguments))
        return Outcome(result=Result.ACCEPTED)

    async def do(self, verb: str, role: Role = Role.ENGINEER, local: bool = False, **arguments) -> Outcome:
        command = Command(verb=verb, arguments=arguments, by="alice", role=role, via="opcua", local=local)
        return await self.desk.carry_out(command)


SHED = {"levels": [{"name": "gentle", "kw": 10.0}, {"name": "deep", "kw": 8.6}]}


@pytest.fixture
def desk(tmp_path: Path, block_with):
    made = Desk(tmp_path, settings_of(load_block(block_with({"shed": SHED}))))
    yield made
    made.desk.close()


ARGUMENTS = {
    "set_power_limit": {"limit_w": 9000.0},
    "set_mode": {"mode": "local"},
    "write": {"device": "cdu", "point": "p", "value": 1.0},
    "withdraw": {"device": "cdu"},
    "shelve": {"key": "meter", "for_s": 60.0},
    "out_of_service": {"key": "meter"},
    "shed": {"level": "deep"},
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("role", list(Role))
async def test_nobody_without_the_role_has_anything_done(desk: Desk, verb: str, role: Role):
    if verb in ("release", "heartbeat"):
        await desk.do("set_power_limit", limit_w=9000.0, heartbeat_timeout_s=60.0)
    if verb == "end_shed":
        await desk.do("shed", level="gentle")
    outcome = await desk.do(verb, role, **ARGUMENTS.get(verb, {}))
    allowed = role >= VERBS[verb].role
    assert (outcome.result is not Result.REJECTED) == allowed
    assert allowed or VERBS[verb].role.name.lower() in outcome.reason


@pytest.mark.parametrize("mode", ["local", "off"])
async def test_in_local_and_off_a_remote_writer_is_refused_with_the_reason_and_the_panel_is_not(
    desk: Desk, mode: str
):
    await desk.do("set_mode", local=True, mode=mode)
    refused = await desk.do("set_power_limit", limit_w=9000.0)
    assert refused.result is Result.REJECTED
    assert mode.upper() in refused.reason
    assert (await desk.do("set_mode", mode="remote")).result is Result.REJECTED
    assert (await desk.do("write", device="cdu", point="p", value=1.0)).result is Result.REJECTED
    assert (await desk.do("acknowledge")).result is Result.ACCEPTED
    assert (await desk.do("set_power_limit", local=True, limit_w=9000.0)).result is Result.ACCEPTED


async def test_a_limit_enters_the_arbitration_and_is_released_by_its_writer(desk: Desk):
    first = await desk.do("set_power_limit", limit_w=9000.0)
    second = await desk.do("set_power_limit", limit_w=8000.0, valid_for_s=60.0)
    assert (first.value, first.was, second.value, second.was) == (9000.0, None, 8000.0, 9000.0)
    (slot,) = desk.facility.slots
    assert (slot.writer, slot.priority, slot.ends_utc_s) == ("opcua alice", 8, 1060.0)
    released = await desk.do("release")
    assert (released.result, released.value, desk.moved) == (Result.ACCEPTED, None, 3)
    assert "holds no such limit" in (await desk.do("release")).reason


@pytest.mark.parametrize(("asked_w", "held_w"), [(0.0, 4000.0), (9000.0, 9000.0), (1e9, 14_000.0)])
async def test_what_the_block_cannot_do_is_clamped_and_said(desk: Desk, asked_w: float, held_w: float):
    outcome = await desk.do("set_power_limit", limit_w=asked_w)
    assert outcome.value == held_w
    assert outcome.result is (Result.ACCEPTED if asked_w == held_w else Result.CLAMPED)
    assert (f"limit {held_w:.0f} W" in outcome.reason) == (asked_w != held_w)
    then = await desk.do("set_power_limit", limit_w=9000.0, valid_for_s=60.0, then_w=asked_w)
    assert then.result is (Result.ACCEPTED if asked_w == held_w else Result.CLAMPED)
    assert (f"then {held_w:.0f} W" in then.reason) == (asked_w != held_w)


async def test_a_writer_may_ramp_more_slowly_than_agreed_and_never_faster(desk: Desk):
    assert (await desk.do("set_power_limit", limit_w=9000.0, ramp_w_per_s=200.0)).result is Result.ACCEPTED
    (slot,) = desk.facility.slots
    assert slot.ramp == (200.0, 200.0)
    assert (await desk.do("set_power_limit", limit_w=9000.0, ramp_w_per_s=0.1)).result is Result.CLAMPED
    (slot,) = desk.facility.slots
    assert min(slot.ramp) > 10.0, "the way up would outlast the limit by hours"
    faster = await desk.do("set_power_limit", limit_w=9000.0, ramp_w_per_s=1e6)
    assert faster.result is Result.CLAMPED
    assert "agreed" in faster.reason


@pytest.mark.parametrize(
    ("verb", "arguments", "word"),
    [
        ("launch", {}, "no verb 'launch'"),
        ("set_power_limit", {}, "limit_w"),
        ("set_power_limit", {"limit_w": float("nan")}, "limit_w"),
        ("set_power_limit", {"limit_w": -1.0}, "limit_w"),
        ("set_power_limit", {"limit_w": "9 kW"}, "limit_w"),
        ("set_power_limit", {"limit_w": 1.0, "color": "red"}, "color"),
        ("set_power_limit", {"limit_w": 1.0, "priority": 3}, "priority"),
        ("set_power_limit", {"limit_w": 1.0, "valid_for_s": 0.0}, "valid_for_s"),
        ("set_mode", {"mode": "sideways"}, "mode"),
        ("write", {"device": "pump", "point": "p", "value": 1.0}, "no device 'pump'"),
        ("write", {"device": "cdu", "point": "p", "value": float("inf")}, "value"),
        ("withdraw", {"device": "pump"}, "no device 'pump'"),
    ],
)
async def test_nonsense_is_refused_with_its_culprit(desk: Desk, verb: str, arguments: dict, word: str):
    outcome = await desk.do(verb, **arguments)
    assert outcome.result is Result.REJECTED
    assert word in outcome.reason
    assert desk.facility.slots == ()


async def test_what_was_written_to_a_device_is_withdrawn_by_name(desk: Desk):
    assert (await desk.do("withdraw", role=Role.OPERATE, device="cdu")).result is Result.ACCEPTED
    assert desk.asked == [("withdraw", "cdu")]


async def test_a_doubtful_write_is_doubtful_no_more_once_it_is_withdrawn(desk: Desk):
    async def lost(*_: object) -> Written:
        raise DeviceError("sent, and not answered")

    desk.desk._write = lost
    await desk.do("write", device="cdu", point="p", value=1.0)
    assert [key for key, _ in desk.desk.conditions(10.0)] == ["write cdu/p"]
    await desk.do("withdraw", device="cdu")
    assert list(desk.desk.conditions(10.0)) == []


async def test_a_gateway_without_gpus_limits_no_power_and_says_so(tmp_path: Path):
    desk = Desk(tmp_path, None)
    assert "no GPUs" in (await desk.do("set_power_limit", limit_w=9000.0)).reason
    assert (await desk.do("write", device="cdu", point="p", value=25.0)).was == 20.0
    desk.desk.close()


async def test_every_command_is_logged_with_who_what_old_new_and_outcome(desk: Desk):
    await desk.do("set_power_limit", limit_w=9000.0)
    await desk.do("set_power_limit", Role.OBSERVE, limit_w=1.0)
    await desk.do("set_power_limit", limit_w=9000.0, heartbeat_timeout_s=60.0)
    await desk.do("heartbeat")
    desk.desk.close()
    lines = [json.loads(line) for line in desk.log.read_text().splitlines()]
    assert [(line["by"], line["via"], line["verb"], line["result"]) for line in lines] == [
        ("alice", "opcua", "set_power_limit", "accepted"),
        ("alice", "opcua", "set_power_limit", "rejected"),
        ("alice", "opcua", "set_power_limit", "accepted"),
    ]
    assert lines[0]["arguments"] == {"limit_w": 9000.0}
    assert (lines[0]["value"], lines[0]["was"], lines[0]["at_utc_s"]) == (9000.0, None, 1000.0)
    assert "operate" in lines[1]["reason"]


async def test_a_flood_of_commands_does_not_fill_the_disk(desk: Desk):
    for _ in range(1000):
        await desk.do("set_power_limit", Role.OBSERVE, limit_w=1.0)
    await desk.do("set_power_limit", limit_w=9000.0)
    desk.desk.close()
    lines = desk.log.read_text().splitlines()
    assert len(lines) <= 101
    assert '"accepted"' in lines[-1], "refusals must not hide what was done"


async def test_a_write_that_may_be_in_force_is_an_alarm_until_one_is_confirmed(desk: Desk):
    async def unsure(device: str, point: str, value: float, _wait_max_s: float) -> Written:
        if point == "locked":
            raise DeviceError("cdu.locked: read-only by its profile; nothing was sent")
        if value > 50.0:
            raise DeviceError("cdu.p: wrote 60, reads back 20: local mode?")
        return Written(value, 20.0, True)

    desk.desk._write = unsure
    await desk.do("write", device="cdu", point="locked", value=1.0)
    assert list(desk.desk.conditions(10.0)) == []
    assert (await desk.do("write", device="cdu", point="p", value=60.0)).result is Result.REJECTED
    assert list(desk.desk.conditions(10.0)) == [
        ("write cdu/p", "cdu.p: wrote 60, reads back 20: local mode?")
    ]
    await desk.do("write", device="cdu", point="p", value=30.0)
    assert list(desk.desk.conditions(10.0)) == []


async def test_what_the_facility_server_finds_wrong_is_an_alarm_while_it_goes_on_saying_so(desk: Desk):
    await desk.do("say", Role.OBSERVE, mirror="the broker is away")
    assert list(desk.desk.conditions(12.0)) == [("served mirror", "the broker is away")]
    await desk.do("say", Role.OBSERVE)
    assert list(desk.desk.conditions(12.0)) == []
    await desk.do("say", Role.OBSERVE, mirror="the broker is away")
    found = dict(desk.desk.conditions(21.0))
    assert found["served mirror"] == "the broker is away", "silence clears nothing"
    assert "not heard for 11 s" in found["facility server"]
    assert not desk.log.exists()


async def test_a_heartbeat_on_which_nothing_lives_is_refused(desk: Desk):
    assert "lapsed, or never set" in (await desk.do("heartbeat")).reason
    await desk.do("set_power_limit", limit_w=9000.0, heartbeat_timeout_s=5.0)
    assert (await desk.do("heartbeat")).result is Result.ACCEPTED
    desk.facility.beat(desk.now_s + 6.0)
    assert (await desk.do("heartbeat")).result is Result.REJECTED


async def test_an_engineer_or_the_panel_releases_what_its_writer_left_behind(desk: Desk):
    await desk.do("set_power_limit", limit_w=9000.0)
    stranger = Command(
        verb="release", arguments={"writer": "opcua alice"}, by="bob", role=Role.OPERATE, via="modbus"
    )
    assert "engineer" in (await desk.desk.carry_out(stranger)).reason
    engineer = msgspec.structs.replace(stranger, role=Role.ENGINEER)
    assert (await desk.desk.carry_out(engineer)).result is Result.ACCEPTED
    assert desk.facility.slots == ()


async def test_a_limit_that_stands_behind_another_is_told_so(desk: Desk):
    await desk.do("set_power_limit", limit_w=12_000.0, priority=1)
    behind = await desk.do("set_power_limit", limit_w=6000.0)
    assert behind.value == 6000.0
    assert "stands behind opcua alice (manual life safety) at 12000 W" in behind.reason


async def test_a_limit_that_could_not_be_kept_on_disk_is_told_so(desk: Desk):
    desk.disk = "no space left"
    outcome = await desk.do("set_power_limit", limit_w=9000.0)
    assert "not on disk: no space left" in outcome.reason


async def test_local_is_answered_when_no_write_of_before_is_under_way(desk: Desk):
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def slow(device: str, point: str, value: float, _wait_max_s: float) -> Written:
        under_way.set()
        await go_on.wait()
        return Written(value, 20.0, True)

    desk.desk._write = slow
    write = asyncio.create_task(desk.do("write", device="cdu", point="p", value=1.0))
    await under_way.wait()
    turn = asyncio.create_task(desk.do("set_mode", mode="local", local=True))
    await asyncio.sleep(0.02)
    assert not turn.done()
    go_on.set()
    assert (await turn).result is Result.ACCEPTED
    assert write.done()


# --- levels of shedding ------------------------------------------------------------------------------


async def test_a_level_is_called_by_its_name_or_its_number_and_ended_by_its_caller(desk: Desk):
    called = await desk.do("shed", level="deep", valid_for_s=60.0)
    assert (called.result, called.value, called.was, called.reason) == (Result.ACCEPTED, 8600.0, None, "")
    (slot,) = desk.facility.calls
    assert (slot.writer, slot.shed_level, slot.ends_utc_s) == ("opcua alice", 1, 1060.0)
    assert (await desk.do("shed", number=1)).value == 10_000.0
    (slot,) = desk.facility.calls
    assert slot.shed_level == 0, "a writer calls one level at a time"
    assert (await desk.do("end_shed")).result is Result.ACCEPTED
    assert (desk.facility.calls, desk.moved) == ((), 3)
    assert "has called no level of shedding" in (await desk.do("end_shed")).reason


@pytest.mark.parametrize(
    "arguments", [{}, {"level": "DEEP"}, {"number": 3}, {"number": 0}, {"number": 1.5}, {"level": 1.0}]
)
async def test_a_level_that_is_none_is_refused_and_what_is_known_is_said(desk: Desk, arguments: dict):
    outcome = await desk.do("shed", **arguments)
    assert outcome.result is Result.REJECTED
    assert ("known: gentle, deep" in outcome.reason) or outcome.reason.startswith("shed: ")
    assert desk.facility.calls == ()


async def test_a_block_without_levels_says_where_they_are_configured(tmp_path: Path, config):
    bare = Desk(tmp_path, settings_of(config))
    assert "none are configured, see `shed.levels`" in (await bare.do("shed", level="deep")).reason
    bare.desk.close()


async def test_a_deeper_call_of_somebody_else_stands_before_and_after_and_that_is_said(desk: Desk):
    await desk.do("shed", local=True, level="deep")
    bob = Command(verb="shed", arguments={"level": "gentle"}, by="bob", role=Role.OPERATE, via="opcua")
    assert (await desk.desk.carry_out(bob)).reason == "stands behind opcua alice's call of level deep"
    theirs = msgspec.structs.replace(bob, verb="end_shed", arguments={"writer": "opcua alice"})
    assert "is for an engineer" in (await desk.desk.carry_out(theirs)).reason
    assert len(desk.facility.calls) == 2
    ended = msgspec.structs.replace(bob, verb="end_shed", arguments={})
    assert (await desk.desk.carry_out(ended)).reason == "opcua alice's call still stands"
    engineer = msgspec.structs.replace(theirs, role=Role.ENGINEER)
    assert (await desk.desk.carry_out(engineer)).result is Result.ACCEPTED
    assert desk.facility.calls == ()


async def test_a_call_is_no_power_limit_and_a_release_does_not_end_it(desk: Desk):
    await desk.do("shed", level="deep")
    await desk.do("set_power_limit", limit_w=9000.0)
    assert (desk.facility.limit_w, len(desk.facility.limits)) == (9000.0, 1)
    await desk.do("release")
    assert [slot.shed_level for slot in desk.facility.calls] == [1]


async def test_a_call_that_is_not_on_disk_is_in_force_and_says_so(desk: Desk):
    desk.disk = "full"
    assert "in force, but not on disk: full" in (await desk.do("shed", level="deep")).reason
    assert len(desk.facility.calls) == 1


@pytest.mark.parametrize("verb", ["shed", "end_shed"])
async def test_who_may_only_look_and_who_is_not_at_the_panel_in_local_calls_and_ends_nothing(
    desk: Desk, verb: str
):
    await desk.do("shed", level="gentle")
    arguments = {"level": "deep"} if verb == "shed" else {}
    assert "needs the role operate" in (await desk.do(verb, Role.OBSERVE, **arguments)).reason
    await desk.do("set_mode", local=True, mode="local")
    assert "switched to LOCAL" in (await desk.do(verb, **arguments)).reason
    assert [slot.shed_level for slot in desk.facility.calls] == [0]
    assert (await desk.do(verb, local=True, **arguments)).result is Result.ACCEPTED


@pytest.mark.parametrize("priority", [1, 5])
async def test_only_an_engineer_outranks_the_operators(desk: Desk, priority: int):
    """Slots above the operators' hold against everybody on shift."""
    asked = {"limit_w": 9000.0, "priority": priority}
    refused = await desk.do("set_power_limit", Role.OPERATE, **asked)
    assert refused.result is Result.REJECTED
    assert f"priority {priority}" in refused.reason
    assert "engineer" in refused.reason
    assert desk.facility.slots == ()
    assert desk.moved == 0
    assert (await desk.do("set_power_limit", Role.ENGINEER, **asked)).result is Result.ACCEPTED
    assert (await desk.do("release", Role.OPERATE, priority=priority)).result is Result.ACCEPTED


@pytest.mark.parametrize("priority", [8, 10, 16])
async def test_operators_take_the_slots_from_their_own_on(desk: Desk, priority: int):
    asked = await desk.do("set_power_limit", Role.OPERATE, limit_w=9000.0, priority=priority)
    assert asked.result is Result.ACCEPTED
