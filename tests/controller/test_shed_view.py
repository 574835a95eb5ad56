"""`powerblock shed`, and what check and status show of levels of shedding."""

import asyncio
import contextlib
import copy
import json
import threading

import pytest

from controller.clock import now_s, now_utc_s
from controller.config import load_block
from controller.core.model import ShedRequest
from controller.image.image import Image
from controller.image.model import Command, Outcome, Result
from controller.image.server import ImageServer
from controller.image.wire import SOCKET_NAME
from controller.status import StatusFile, shed_status, shed_words
from controller.steps import STEPS, Histogram
from controller.views.figures import length_s, short
from tests.controller.test_block_config import SHED
from tests.controller.test_cli import powerblock, words
from tests.core.blocks import settings, snapshot
from tests.core.test_shed import DEEP, GENTLE, LEVELS, Prepared

LAST = {
    "at_utc_s": 0.0,
    "level": "deep",
    "limit_w": 8_600.0,
    "source": "shed deep (stop)",
    "before_w": 13_250.0,
    "nodes": 2,
    "without_table": [],
    "unconfirmed": [],
    "decided_s": 0.0004,
    "sent_s": 0.0006,
    "received_s": 0.0021,
    "confirmed_s": 0.0154,
    "obeyed_s": 0.0091,
    "moved_s": 0.21,
}


def histograms(*lengths_s):
    made = {step: Histogram() for step in STEPS}
    for length in lengths_s:
        made["confirmed"].add(length)
    return {step: one.told() for step, one in made.items()}


def told(**changes):
    return {
        "level": None,
        "called": [],
        "levels": [{"name": "gentle", "limit_w": 10_000.0}, {"name": "deep", "limit_w": 8_600.0}],
        "armed": 2,
        "nodes": 2,
        "last": None,
        "steps": histograms(),
    } | changes


@pytest.fixture
def shown(block_with, tmp_path):
    """`shown(columns=100, age_s=0.0, **changes of the status)`: what is printed, in one line."""

    def show(*arguments, columns=100, age_s=0.0, **changes):
        content = {"block": "hall-a", "at_utc_s": now_utc_s() - age_s, "shed": told(**changes)}
        StatusFile(tmp_path / "run").write(content)
        found = powerblock("shed", block_with({"shed": copy.deepcopy(SHED)}), *arguments, columns=columns)
        assert max((len(line) for line in found.stdout.splitlines()), default=0) <= columns
        return found

    return show


def test_the_levels_are_shown_with_their_power_and_nobody_calling(shown):
    found = shown()
    assert found.exit_code == 0
    for said in ("gentle 10.00 kW nobody", "deep 8.60 kW nobody", "2 of 2 nodes have their table and obey"):
        assert said in words(found.stdout), said
    assert "no call since the controller started" in found.stdout


def test_who_calls_is_named_and_who_would_not_obey_at_once_counted(shown):
    called = [
        {"level": "deep", "by": "stop"},
        {"level": "deep", "by": "facility opcua alice's call"},
        {"level": "gentle", "by": "dsx: critical breach of main-a"},
    ]
    found = words(shown(level="deep", called=called, armed=1).stdout)
    assert "gentle 10.00 kW dsx: critical breach of main-a" in found
    assert "deep 8.60 kW stop, facility opcua alice's call" in found
    assert "1 of 2 nodes have their table and obey; the others get every limit spelt out" in found


@pytest.mark.parametrize("columns", [80, 120])
def test_the_last_call_is_shown_step_by_step_beside_what_all_calls_took(shown, columns):
    steps = histograms(*[0.0154] * 99, 0.3)
    found = words(shown(columns=columns, last=LAST, steps=steps).stdout)
    for said in (
        "shed deep (stop): from 13.25 kW to 8.60 kW, 2 nodes at once",
        "decided the law had decided 0.4 ms ? 0",
        "confirmed every GPU was read at its new limit 15 ms ≤ 20 ms 100",
        "moved the meter showed it 210 ms ? 0",
    ):
        assert said in found, said
    assert "99 % of all" in found


def test_who_did_not_do_as_called_is_named(shown):
    unconfirmed = [{"node": f"n{number}", "gpus": [], "limit_w": None} for number in range(9)]
    last = LAST | {"unconfirmed": unconfirmed, "without_table": ["n9"], "confirmed_s": None, "moved_s": None}
    found = words(shown(last=last, steps=histograms(99.0)).stdout)
    assert "n0, n1, n2, n3, n4, n5 and 3 more did not confirm, and were ordered again" in found
    assert "n9 had no table, and were ordered one by one" in found
    assert "read at its new limit ? over 5.00 s 1" in found


@pytest.mark.parametrize(
    ("gpus", "limit_w", "said"),
    [
        ([1], 650.0, "n0 (GPU 1 at 650 W) did not confirm"),
        ([1, 3], 650.0, "n0 (2 GPUs at up to 650 W) did not confirm"),
        ([1], None, "n0 (GPU 1, limit not readable) did not confirm"),
    ],
)
def test_a_gpu_that_still_holds_more_is_shown_with_what_it_holds(shown, gpus, limit_w, said):
    unconfirmed = [{"node": "n0", "gpus": gpus, "limit_w": limit_w}]
    assert said in words(shown(last=LAST | {"unconfirmed": unconfirmed, "confirmed_s": None}).stdout)


def test_it_is_json_for_programs(shown):
    found = json.loads(shown("--json", last=LAST).stdout)
    assert found["shed"]["last"]["level"] == "deep"
    assert found["at_utc_s"] == pytest.approx(now_utc_s(), abs=60.0)


def test_a_block_without_levels_says_where_they_are_configured(shown):
    assert "configure `shed.levels`" in shown(levels=[]).stdout


def test_without_a_controller_the_status_is_1_and_said(block_with):
    found = powerblock("shed", block_with({"shed": copy.deepcopy(SHED)}))
    assert found.exit_code == 1
    assert "controller not running" in found.stderr
    said = words(found.stdout)
    assert said.startswith("controller not running, or its status cannot be read")
    assert "is not known as configured: level block at most gentle 10.00 kW deep 8.60 kW" in said


def test_of_a_controller_that_was_killed_its_age_comes_first_and_nobody_obeys(shown):
    found = shown(age_s=95.0, last=LAST)
    assert found.exit_code == 1
    said = words(found.stdout)
    assert said.startswith("controller not running or stuck: last written 1 min 35 s ago; what follows was")
    assert "who would obey now is not known; then 2 of 2 nodes had their table" in said
    assert "and obey" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["deep", "--end"], "--end takes no level"),
        (["--end", "--for", "10m"], "--end takes no level and no --for"),
        (["--for", "10m"], "--for: name a level"),
        (["deep", "--for", "ten"], "--for: 'ten' is no length of time; write 90s, 15m, 2h"),
        (["deep", "--of", "opcua alice"], "--of says whose call to end"),
    ],
)
def test_options_that_make_no_sense_are_bad_input_and_call_nothing(block_with, arguments, says):
    found = powerblock("shed", block_with(), *arguments)
    assert found.exit_code == 2
    assert says in found.stderr


class Panel:
    """A controller's end of the image socket, in a thread of its own."""

    def __init__(self, folder) -> None:
        self.commands: list[Command] = []
        self.outcome = Outcome(result=Result.ACCEPTED, value=8600.0)
        folder.mkdir(exist_ok=True)
        self._path, self._loop = folder / SOCKET_NAME, asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(5.0)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(5.0)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            server = ImageServer(
                self._path, Image([]), block="hall-a", epoch=1, on_command=self._carry_out, now_s=now_s
            )
            self._task = self._loop.create_task(server.run())
            self._loop.call_soon(self._up.set)
            self._loop.run_until_complete(asyncio.wait({self._task}))

    async def _carry_out(self, command: Command) -> Outcome:
        self.commands.append(command)
        return self.outcome


@pytest.mark.parametrize(
    ("arguments", "verb", "asked"),
    [
        (["deep"], "shed", {"level": "deep"}),
        (["deep", "--for", "10m"], "shed", {"level": "deep", "valid_for_s": 600}),
        (["--end"], "end_shed", {}),
        (["--end", "--of", "opcua alice"], "end_shed", {"writer": "opcua alice"}),
    ],
)
def test_a_call_goes_through_the_image_socket_as_the_panels(block_with, tmp_path, arguments, verb, asked):
    with Panel(tmp_path / "run") as panel:
        found = powerblock("shed", block_with(), *arguments)
    assert found.exit_code == 0
    assert "accepted (now 8600)" in found.stdout
    (command,) = panel.commands
    assert (command.verb, command.arguments, command.via, command.local) == (verb, asked, "panel", True)


def test_a_call_that_is_refused_has_status_1(block_with, tmp_path):
    with Panel(tmp_path / "run") as panel:
        panel.outcome = Outcome(result=Result.REJECTED, reason="no level 'deeep'; known: gentle, deep")
        found = powerblock("shed", block_with(), "deeep")
    assert found.exit_code == 1
    assert "rejected: no level 'deeep'; known: gentle, deep" in words(found.stdout)


# --- what the status tells -------------------------------------------------------------------------------


def test_the_status_tells_levels_callers_and_how_many_would_obey():
    block = Prepared()
    calm = shed_status(block.settings, *one_beat(block))
    assert (calm["level"], calm["called"], calm["armed"], calm["nodes"]) == (None, [], 2, 2)
    assert [level["limit_w"] for level in calm["levels"]] == [level.limit_w for level in LEVELS]
    assert shed_words(calm) == ""
    both = shed_status(block.settings, *one_beat(block, ("alice", GENTLE), ("stop", DEEP)))
    assert both["level"] == "deep"
    assert shed_words(both) == "level deep is called: alice (gentle), stop"
    alone = shed_status(settings(), *one_beat(block))
    assert (alone["levels"], alone["level"]) == ([], None)


def one_beat(block, *requests):
    """Snapshot and decision of one beat in which these levels are asked for."""
    decision = block.ask(*requests)
    sheds = tuple(ShedRequest(source, level) for source, level in requests)
    table = block.state.shedding.table.node_version
    return snapshot(block.now_s, sheds=sheds, table=table), decision


# --- check -----------------------------------------------------------------------------------------------


def test_check_shows_every_level_with_who_calls_it(block_with):
    shed = copy.deepcopy(SHED)
    shed["contacts"][0]["lost_calls"] = True
    found = words(powerblock("check", block_with({"shed": shed}), columns=140).stdout)
    flat = found.replace("│ ", "").replace("├── ", "").replace("└── ", "")
    assert "levels of shedding, by tables and without a ramp; people may call any" in flat
    assert "gentle 10.00 kW called by a critical breach of a feed, told over DSX Flex" in flat
    assert (
        "deep 8.60 kW called by contact stop (neutral_overcurrent = 1, and while it cannot be read);"
        " ALERT_GRID_EMERGENCY" in flat
    )
    assert "shed.critical_breach: no source of kind dsx_flex has advisers" in flat


def test_check_says_which_level_cannot_be_reached_and_by_how_much(block_with):
    """Base load at its most and 16 GPUs at 200 W draw 8.39 kW."""
    levels = [{"name": "gentle", "kw": 8.5}, {"name": "deep", "kw": 8.0}]
    path = block_with({"shed": {"levels": levels}})
    found = words(powerblock("check", path, columns=140).stdout)
    assert "shed level deep of 8.00 kW may not be reached" in found
    assert "shed level gentle" not in found
    assert "may not be reached, 0.39 kW are missing; called by nobody else" in found
    facts = json.loads(powerblock("check", path, "--json").stdout)["facts"]["sheds"]
    assert [one["missing_w"] for one in facts] == pytest.approx([0.0, 392.0])


def test_check_of_a_block_without_levels_is_silent_about_them(block_with):
    assert "shedding" not in powerblock("check", block_with()).stdout
    assert load_block(block_with()).shed is None


# --- figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "text"),
    [(None, "?"), (0.00042, "0.4 ms"), (0.0154, "15 ms"), (0.25, "250 ms"), (1.2, "1.20 s")],
)
def test_short_times_are_read_in_milliseconds(length, text):
    assert short(length) == text


@pytest.mark.parametrize(
    ("text", "length"), [("90s", 90.0), ("10m", 600.0), ("2h", 7200.0), ("1d", 86_400.0)]
)
def test_lengths_of_time_are_read_as_people_type_them(text, length):
    assert length_s(text) == length


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "1.5h", "10 m"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(ValueError, match="is no length of time"):
        length_s(text)
