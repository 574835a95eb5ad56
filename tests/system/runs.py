"""A scenario played whole, and what the operator was told meanwhile: for tests that judge both."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firmware_sim.rig import Rig, View
from firmware_sim.scenario import parse_scenario


@dataclass
class Told:
    """What a person at the status could read while the time line was played, each text once.

    Attributes:
        alarms: key -> texts.
        remedies: key -> what to do.
        words: further places of the status -> what stood there.
    """

    alarms: dict[str, list[str]] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)

    def note(self, view: View, read: Callable[[dict[str, Any]], dict[str, str]]) -> None:
        if not (view.status and view.marks):
            return  # what a start brings with it is no answer to anything
        for alarm in view.status["alarms"]:
            _add(self.alarms, alarm["key"], alarm["text"])
            self.remedies[alarm["key"]] = alarm["response"]
        for place, text in read(view.status).items():
            _add(self.words, place, text)


def _add(texts: dict[str, list[str]], key: str, text: str) -> None:
    if text not in texts.setdefault(key, []):
        texts[key].append(text)


def nothing_more(_status: dict[str, Any]) -> dict[str, str]:
    return {}


PLAYS_MAX = 3  # of a run in which the machine was too busy to judge anybody


def played(
    scenario: dict[str, Any],
    folder: Path,
    powerblock: Path,
    read: Callable[[dict[str, Any]], dict[str, str]] = nothing_more,
) -> tuple[Rig, Told, dict[str, Any]]:
    """The rig after a run that kept every bound, what was told meanwhile, and the written verdict.

    A run whose rig itself fell behind real time says nothing about the controller: it is played again.
    """
    for play in range(PLAYS_MAX):
        told = Told()
        rig = Rig(parse_scenario(scenario, "short.yaml"), folder / f"report-{play}", powerblock)
        outcome = asyncio.run(rig.run(lambda view, told=told: told.note(view, read)))
        broken = {one.key for one in outcome.verdict.expectations if not one.met}
        if "rig_lost_s" not in broken:
            break
    verdict = json.loads((rig.report_dir / "verdict.json").read_text())
    assert not broken, (broken, outcome.verdict.figures, told, verdict.get("scada"))
    return rig, told, verdict


def life_of(rig: Rig, key: str) -> list[str]:
    """What became of an alarm, in its own order: raised, cleared."""
    lines = (rig.work_dir / "state" / "alarms.jsonl").read_text().splitlines()
    return [one["what"] for one in map(json.loads, lines) if one["key"] == key]
