"""A block of many racks on a terminal: two short columns of them, and what an emergency did, last time.

    r01  44.1/ 46.9 kW ████▌│   72/72        rack, power, what it may draw, bar
    r02  12.0/ 46.9 kW █▏   │   64/72 12!    GPUs under a lease, alarms of this rack

The bar is power; its mark is what the limits in force let the rack draw. Red: more than that by 2 %. A full
bar is the most that the rack can draw, whatever it draws now: a rack that was shed looks emptier than before.
Sixteen racks fit a terminal of 80 by 24.
Nothing here is computed that the controller does not say or the plant does not show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from firmware_sim.gpu_power import MODELS
from firmware_sim.scenario_block import Block

EIGHTHS: Final = "▏▎▍▌▋▊▉█"
MARK: Final = "│"
OVER_RATIO: Final = 0.02
COLUMNS: Final = 2
FRAME: Final = 4  # characters of the panel around it
APART: Final = 2  # between the columns
BESIDE_BAR: Final = 26  # characters of a rack's cell that are neither name nor bar
ALARMS_MAX: Final = 99  # told; what fits the cell
BAR_MIN: Final = 3
STEPS: Final = {
    "decided_s": "decided",
    "sent_s": "sent",
    "obeyed_s": "hosts",
    "confirmed_s": "confirmed",
    "moved_s": "metered",
}
MS: Final = 1000.0


@dataclass(frozen=True)
class RackRow:
    """One rack now. `may_w`: what its limits let it draw; None: not told. `most_w`: what it can ever draw."""

    name: str
    power_w: float
    may_w: float | None
    most_w: float
    leased: int
    gpus: int
    alarms: int


def rack_rows(
    block: Block, rack_w: Sequence[float], status: Mapping[str, Any], alarms: Sequence[str]
) -> list[RackRow]:
    """From the plant's power and the controller's status."""
    nodes = {node["name"]: node for node in status.get("nodes", ())}
    told = {rack["name"]: rack for rack in status.get("racks", ())}
    gpus = {rack.name: sum(n.gpus for n in block.nodes if n.rack == rack.name) for rack in block.racks}
    return [
        RackRow(
            rack.name,
            power_w,
            _may_w(told.get(rack.name, {})),
            gpus[rack.name] * most_w_per_gpu(block),
            sum(n.gpus for n in block.nodes if n.rack == rack.name and nodes.get(n.name, {}).get("leased")),
            gpus[rack.name],
            _alarms_of(block, rack.name, alarms),
        )
        for rack, power_w in zip(block.racks, rack_w, strict=True)
    ]


def most_w_per_gpu(block: Block) -> float:
    """With its share of what is no GPU."""
    gpus = sum(node.gpus for node in block.nodes)
    return MODELS[block.gpu].max_w + block.base_load_max_kw * 1000 / gpus


def _may_w(told: Mapping[str, Any]) -> float | None:
    """What is not a GPU draws what it draws; the GPUs may draw their limits."""
    parts = [told.get(key) for key in ("power_w", "gpu_w", "gpu_limit_w")]
    if any(part is None for part in parts):
        return None
    power_w, gpu_w, gpu_limit_w = (float(part) for part in parts if part is not None)
    return power_w - gpu_w + gpu_limit_w


def _alarms_of(block: Block, rack: str, alarms: Sequence[str]) -> int:
    names = {rack, f"{rack}-a", f"{rack}-b", *(node.name for node in block.nodes if node.rack == rack)}
    return sum(bool(names & set(alarm.replace("/", " ").split())) for alarm in alarms)


def rack_table(rows: Sequence[RackRow], width: int) -> RenderableType:
    """All racks, down the left column and then down the right one."""
    name = 1 + max((len(row.name) for row in rows), default=0)
    bar = max(BAR_MIN, (width - FRAME - APART) // COLUMNS - name - BESIDE_BAR)
    half = -(-len(rows) // COLUMNS)
    table = Table.grid(padding=(0, APART))
    for left, right in zip(rows[:half], [*rows[half:], None], strict=False):
        table.add_row(*(_line(row, name, bar) for row in (left, right) if row is not None))
    return table


def _line(row: RackRow, name: int, cells: int) -> Text:
    """`name`, `cells`: characters of the name and of the bar."""
    over = row.may_w is not None and row.power_w > row.may_w * (1 + OVER_RATIO)
    may = "    ?" if row.may_w is None else f"{row.may_w / 1000:5.1f}"
    text = Text(f"{row.name:<{name}}{row.power_w / 1000:5.1f}/{may} kW ", no_wrap=True, overflow="ellipsis")
    text.append_text(_bar(row, cells, "red" if over else "blue"))
    lost = row.leased < row.gpus
    text.append(f"{row.leased:3d}/{row.gpus:<3d}", style="yellow" if lost else "dim")
    text.append(f"{min(row.alarms, ALARMS_MAX):2d}!" if row.alarms else "   ", style="bold red")
    return text


def _bar(row: RackRow, cells: int, style: str) -> Text:
    filled = row.power_w / row.most_w * cells
    whole, part = int(filled), int(filled % 1 * len(EIGHTHS))
    drawn = "█" * whole + (EIGHTHS[part - 1] if part else "")
    text = Text(drawn[:cells].ljust(cells), style=style)
    if row.may_w is None:
        return text
    at = min(cells, round(row.may_w / row.most_w * cells))
    marked = text[:at]
    marked.append(MARK, style="bold green")
    return marked.append_text(text[at:])


def shed_lines(status: Mapping[str, Any]) -> Text:
    """The level in force, how many nodes would obey the next, and what the last call took."""
    shed = status.get("shed") or {}
    if not shed:
        return Text("no levels of shedding", style="dim")
    level, by = shed.get("level"), ", ".join(one["by"] for one in shed.get("called", ()))
    text = Text("shed  ", no_wrap=True, overflow="ellipsis")
    text.append(
        f"{level} is called by {by}" if level else "nothing is called", style="bold red" if level else ""
    )
    text.append(f"   {shed.get('armed', 0)} of {shed.get('nodes', 0)} nodes armed", style="dim")
    last = shed.get("last")
    if last:
        steps = [f"{word} {_ms(last.get(key))}" for key, word in STEPS.items()]
        text.append(f"\nlast  {last['level']}: {', '.join(steps)} ms")
    return text


def _ms(length_s: float | None) -> str:
    return "?" if length_s is None else f"{length_s * MS:.0f}"
