"""The run while it happens, on a terminal: progress, power against budget, events, and what SCADA sees."""

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from firmware_sim.live_racks import rack_rows, rack_table, shed_lines
from firmware_sim.plot import RACKS_MIN
from firmware_sim.recorder import beat_of
from firmware_sim.rig import Outcome, View
from firmware_sim.scada_side import Line, Sight
from firmware_sim.scenario import Scenario
from firmware_sim.scenario_facility import Way
from firmware_sim.verdict import RIG_LOST, RIG_LOST_MAX_S, Verdict

BARS: Final = " ▁▂▃▄▅▆▇█"
HISTORY: Final = 72  # columns, one per view
WIDE: Final = 118  # five ways beside the longest name, on a terminal of 120 columns
MARKS_SHOWN: Final = 5
RACK_MARKS_SHOWN: Final = 3  # beside sixteen racks, on 24 lines
PLAIN_BELOW: Final = 10_000  # from there on four digits would need an exponent
NARROW: Final = 80  # columns of the usual terminal, and the least that a block is drawn for
WIDEST: Final = 120
ALARMS_SHOWN: Final = 3
OLD_S: Final = 5.0  # a value that was told longer ago is shown as such
WAYS: Final[Mapping[Way, str]] = {  # as people call them
    "opcua": "OPC UA",
    "modbus": "Modbus",
    "bms": "DSX bus",
    "prometheus": "Prometheus",
    "mirror": "MQTT",
}
UNITS: Final[Mapping[str, tuple[str, float, str]]] = {  # unit -> as shown, factor, format
    "W": ("kW", 0.001, ".3f"),
    "degC": ("°C", 1.0, ".2f"),
    "ratio": ("%", 100.0, ".1f"),
    "A": ("A", 1.0, ".1f"),
    "L/min": ("L/min", 1.0, ".1f"),
}


class LiveView:
    """Turns views into something rich can show. `width`: columns of the terminal."""

    def __init__(self, scenario: Scenario, width: int = NARROW) -> None:
        self._scenario = scenario
        self._width = min(max(width, NARROW), WIDEST)
        self._history_w: deque[float] = deque(maxlen=HISTORY)

    def render(self, view: View) -> RenderableType:
        self._history_w.append(view.sample.block_w)
        scenario = self._scenario
        total_s = scenario.warm_up_s + scenario.duration_s
        phase = "warming up" if view.t_s < 0 else "running"
        head = Text(f"{scenario.name}  {phase}  {view.t_s:6.1f} s", style="bold")
        bar = ProgressBar(total=total_s, completed=min(total_s, view.t_s + scenario.warm_up_s), width=HISTORY)
        spark = Text(_sparkline(self._history_w), style="blue")
        rows = Table.grid()  # a bare progress bar does not end its line
        rows.add_row(bar)
        many = len(scenario.block.racks) >= RACKS_MIN and not scenario.facility.alone
        numbers = _numbers(view, alone=scenario.facility.alone, alarms=not many)
        if many:
            return self._block(view, [head, rows, spark, numbers, _alarms(view)])
        parts: list[RenderableType] = [head, rows, spark, numbers, _marks(view)]
        if view.lines:
            parts += [Text(), _seen(view.lines)]
        return Panel(Group(*parts), width=WIDE if view.lines else HISTORY + 6)

    def _block(self, view: View, parts: list[RenderableType]) -> RenderableType:
        """A block of many racks: a row for each."""
        block, beat = self._scenario.block, beat_of(view.status)
        lines = rack_rows(block, view.sample.rack_w, view.status, () if beat is None else beat.alarms)
        if block.shed is not None:
            parts.append(shed_lines(view.status))
        if block.frequency is not None:
            parts.append(Text(f"grid  {view.sample.frequency_hz:.3f} Hz"))
        return Panel(
            Group(*parts, rack_table(lines, self._width), _marks(view, RACK_MARKS_SHOWN)), width=self._width
        )


def verdict_table(outcome: Outcome) -> Table:
    """Every expectation with its value, then the other figures."""
    verdict = outcome.verdict
    title = f"[bold {'green' if verdict.passed else 'red'}]{_judgement(verdict)}"
    table = Table("figure", "value", "at least", "at most", "", title=title, title_justify="left")
    judged = {e.key for e in verdict.expectations}
    for e in verdict.expectations:
        met = "" if not verdict.judged else "[green]ok" if e.met else "[bold red]FAILED"
        bounds = (_number(e.key, bound, "") for bound in (e.lowest, e.highest))
        table.add_row(e.key, _number(e.key, e.value), *bounds, met)
    table.add_section()
    for key, value in verdict.figures.items():
        if key not in judged:
            table.add_row(key, _number(key, value), "", "", "", style="dim")
    return table


def _judgement(verdict: Verdict) -> str:
    """The first word of a verdict; where there is none, why, and what to do."""
    if verdict.judged:
        return verdict.word
    return (
        f"{verdict.word}: the machine was too busy: the rig lost {verdict.figures[RIG_LOST] or 0:.2f} s"
        f" of real time ({RIG_LOST_MAX_S:g} s at most); look at uptime, try again"
    )


def _numbers(view: View, *, alone: bool, alarms: bool) -> Table:
    sample, beat = view.sample, beat_of(view.status)
    table = Table.grid(padding=(0, 2))
    table.add_row("block", _kw(sample.block_w), "meter", _kw(sample.metered_w), "GPUs", _kw(sample.gpu_w))
    if alone:  # with no law in between
        return table
    budget = "?" if beat is None else _kw(beat.budget_w)
    table.add_row(
        "budget", budget, "cooling", _kw(sample.capacity_w), "tokens/s", f"{sample.tokens_per_s:,.0f}"
    )
    if beat is not None:
        last = ("alarms", _some(beat.alarms)) if alarms else ()
        table.add_row("mode", beat.mode, "binding", beat.binding, *last)
    return table


def _alarms(view: View) -> Text:
    """On a line of their own, however many: racks want the others."""
    beat = beat_of(view.status)
    alarms = () if beat is None else beat.alarms
    return Text(f"{len(alarms)} alarms  {', '.join(alarms)}", no_wrap=True, overflow="ellipsis")


def _some(alarms: tuple[str, ...]) -> str:
    more = f" and {len(alarms) - ALARMS_SHOWN} more" if len(alarms) > ALARMS_SHOWN else ""
    return (", ".join(alarms[:ALARMS_SHOWN]) or "none") + more


def _seen(lines: tuple[Line, ...]) -> Table:
    """What the plant holds, and what each way shows of it, with the age of what it says."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("point")
    table.add_column("plant", justify="right")
    for way in lines[0].shown:
        table.add_column(WAYS[way], justify="right")
    for line in lines:
        unit, factor, form = UNITS[line.unit]
        shown = [_sight(sight, factor, form) for sight in line.shown.values()]
        table.add_row(line.label, f"{line.true * factor:{form}} {unit}", *shown)
    return table


def _sight(sight: Sight | None, factor: float, form: str) -> Text:
    if sight is None:
        return Text("-", style="dim")
    text = Text()
    if sight.value is None:
        text.append("bad", style="bold red")
    else:
        text.append(f"{sight.value * factor:{form}}", style="yellow" if sight.age_s > OLD_S else "green")
    age = f"{sight.age_s:4.1f}" if sight.age_s < 100 else f"{min(sight.age_s, 999):4.0f}"
    return text.append(f" {age}s", style="dim")


def _marks(view: View, shown: int = MARKS_SHOWN) -> Text:
    """What happened last."""
    lines = [f"{mark.t_s:7.1f} s  {mark.text}" for mark in view.marks[-shown:]]
    return Text("\n".join(lines), style="yellow", no_wrap=True, overflow="ellipsis")


def _sparkline(values: Any) -> str:
    lowest, highest = min(values), max(values)
    span = max(highest - lowest, 0.05 * highest)  # noise must not look like an event
    return "".join(BARS[1 + int((value - lowest) / span * (len(BARS) - 2))] for value in values)


def _kw(power_w: float) -> str:
    return f"{power_w / 1000:.2f} kW"


def _number(key: str, value: float | None, missing: str = "none") -> str:
    """A figure as people read it."""
    if value is None:
        return missing
    if key.endswith("_w"):
        return f"{value / 1000:.3g} kW"
    return f"{value:.4g}" if abs(value) < PLAIN_BELOW else f"{value:.0f}"
