"""What a run says on a terminal: the verdict's first words, and the racks of a block."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from firmware_sim.facility import Sample
from firmware_sim.live import LiveView, verdict_table
from firmware_sim.live_racks import RackRow, rack_table
from firmware_sim.recorder import Mark
from firmware_sim.rig import Outcome, View
from firmware_sim.scenario import load_scenario
from firmware_sim.verdict import RIG_LOST, RIG_LOST_MAX_S, Expectation, Verdict

BLOCK_1152 = Path(__file__).parents[2] / "examples" / "block_1152.yaml"


def shown_on(width, renderable):
    """Lines of it on a terminal of so many columns."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text().splitlines()


# ---- the verdict ----------------------------------------------------------------------------------------


def said_of(lost_s):
    expectations = (
        Expectation("settle_s", 9.0, None, 2.0),
        Expectation(RIG_LOST, lost_s, None, RIG_LOST_MAX_S),
    )
    verdict = Verdict({"settle_s": 9.0, RIG_LOST: lost_s}, expectations)
    return " ".join(" ".join(shown_on(100, verdict_table(Outcome(verdict, (), Path())))).split())


def test_a_run_on_a_machine_that_was_too_busy_says_so_first_and_calls_no_figure_failed():
    said = said_of(0.97)
    assert said.startswith("not judged: the machine was too busy: the rig lost 0.97 s")
    assert "look at uptime, try again" in said
    assert "FAILED" not in said
    assert "settle_s │ 9 " in said, "the figures are still told"


def test_a_run_that_was_judged_says_failed_first_and_of_each_figure():
    said = said_of(0.1)
    assert said.startswith("FAILED")
    assert said.count("FAILED") == 2
    assert "busy" not in said


# ---- the racks of a block -------------------------------------------------------------------------------


def racks_on(width, power_w=44e3, alarms=0, most_w=60e3, name="r{:02}"):
    rows = [
        RackRow(name.format(number + 1), power_w, power_w + 1e3, most_w, leased=72, gpus=72, alarms=alarms)
        for number in range(16)
    ]
    return shown_on(width, rack_table(rows, width))


@pytest.mark.parametrize("width", [80, 120, 160])
@pytest.mark.parametrize("alarms", [0, 3, 14, 700])
@pytest.mark.parametrize(("power_w", "most_w"), [(44e3, 60e3), (131e3, 140e3)])
@pytest.mark.parametrize("name", ["r{:02}", "rack-{:02}"])
def test_a_rack_has_one_line_whatever_it_draws_and_however_many_alarms_it_has(
    width, alarms, power_w, most_w, name
):
    lines = racks_on(width, power_w, alarms, most_w, name)
    assert len(lines) == 8
    assert max(map(len, lines)) <= width - 4, "the panel around it wants four"
    told = {0: "72/72", 3: " 3!", 14: "14!", 700: "99!"}[alarms]
    assert all(line.count(told) == 2 for line in lines), lines


def test_a_rack_that_was_shed_looks_emptier_than_before():
    full, shed = (racks_on(120, power_w)[0].count("█") for power_w in (50e3, 25e3))
    assert shed == pytest.approx(full / 2, abs=1)


@pytest.mark.parametrize("width", [80, 120, 160])
def test_a_block_in_trouble_fits_the_terminal(width):
    """Every agent of four racks is missing, and a call was answered slowly."""
    scenario = load_scenario(BLOCK_1152)
    missing = [f"agent r{rack:02}-n{node}" for rack in range(1, 5) for node in range(1, 10)]
    last = dict.fromkeys(("decided_s", "sent_s", "obeyed_s", "confirmed_s", "moved_s"), 0.4)
    status = {
        "at_utc_s": 1.0, "budget_w": 48e4, "binding": {"source": "shed deep (trip)"}, "mode": "controlled",
        "alarms": [{"key": key} for key in missing],
        "shed": {"level": "deep", "called": [{"by": "trip"}], "armed": 108, "nodes": 144, "last": {"level": "deep"} | last},
    }  # fmt: skip
    sample = Sample(1, 1, 7e5, 7e5, 5e5, 1e5, 1.08e6, 22, 1.2e6, (44e3,) * 16, (), 49.91)
    marks = tuple(Mark(float(at), "r05-n1 at full power", "fault") for at in range(9))
    lines = shown_on(width, LiveView(scenario, width).render(View(3.0, sample, status, marks)))
    assert len(lines) <= 24 - 1, "the prompt needs a line"
    text = "\n".join(lines)
    for words in ("36 alarms  agent r01-n1", "metered 400 ms", "49.910 Hz"):
        assert words in text, text
    assert text.count(" 9!") == 4
