"""docs/figures.md explains every figure that a verdict can have."""

import re
from pathlib import Path

import numpy as np
import yaml

from firmware_sim import emergency
from firmware_sim.facility import Fine
from firmware_sim.figure_names import FIGURE_NAMES
from firmware_sim.verdict import FIGURES, Contract, Request, Trace, judge

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "figures.md").read_text()
WAYS = ("opcua", "modbus", "bms", "mirror", "prometheus")


def named():
    """Words in the first columns."""
    return " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("|"))


def unexplained(figures):
    """Those that stand in no first column; a way's own stand there as WAY."""
    ways = {f"{way}_{what}": f"WAY_{what}" for way in WAYS for what in ("agreement_ratio", "lag_s", "bad_s")}
    return {name for name in figures if f"`{ways.get(name, name)}`" not in named()}


def test_whatever_a_scenario_expects_is_explained():
    scenarios = [yaml.safe_load(path.read_text()) for path in (ROOT / "examples").glob("*.yaml")]
    expected = {name for one in scenarios for name in one.get("expect", {})}
    assert len(expected) > 20
    assert unexplained(expected) == set()


def test_every_figure_of_events_and_of_powers_is_explained():
    t_s = np.arange(0.05, 20.0, 0.05)
    trace = Trace(t_s, np.full(len(t_s), 9e3), np.ones(len(t_s)), np.full(len(t_s), 1e4))
    request = Request(published_s=5.0, starts_s=5.0, ends_s=15.0, baseline_w=9e3, limit_w=8e3)
    figures = judge(trace, [request], Contract(1e3, 1e3, 1e4, 0.5), {}).figures
    assert figures.keys() > FIGURES.keys()
    assert figures.keys() <= FIGURE_NAMES
    assert unexplained(figures) == set()


def test_every_figure_of_sheds_and_of_frequency_is_explained():
    fine = Fine([0.005 * step for step in range(400)], *([50.0] * 400 for _ in range(3)))
    told = [{f"{step}_s": 0.1 for step in emergency.STEPS}]
    figures = emergency.figures(fine, [emergency.Shed("deep", 40.0, 1.0, 2.0)], (49.7, 10.0), told)
    assert len(figures) == 10
    assert figures.keys() <= FIGURE_NAMES
    assert unexplained(figures) == set()


def test_a_scenario_may_expect_whatever_the_page_explains_and_nothing_else():
    told = set(re.findall(r"`(\w+)`", named()))
    told |= {name.replace("WAY", way) for name in told if name.startswith("WAY") for way in WAYS}
    assert {name for name in told if not name.startswith("WAY")} == FIGURE_NAMES
    assert unexplained(FIGURE_NAMES) == set()


def test_a_figure_without_a_row_would_be_seen():
    assert unexplained(["opcua_lag_s", "wonder_ratio"]) == {"wonder_ratio"}
