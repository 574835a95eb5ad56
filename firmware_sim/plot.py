"""The run as one picture: power, budget and limit above, tokens per second below, the judgement in the title.

Every mean is of the second before, as whoever watches a meter has it: nothing moves before its cause. The
line of the contract goes through the same mean, as it does in the verdict. The budget is the controller's own
word: what power must be under by now, so after a call it falls when limits have had their time.

A block of many racks has a second picture, of every rack, all to one scale: 1 s means over the time line,
shaded while a level of shedding was called, so that a rack that does not do as the others is seen.

Where a facility is served, a third panel shows one power, the block's if there is one, as each way showed it:
a step for each value told, and a gap where it had none. A gateway without GPUs has such panels alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from firmware_sim.agreement import Shown
from firmware_sim.recorder import Mark
from firmware_sim.scenario_facility import Way
from firmware_sim.verdict import Contract, Floats, Request, Trace, Verdict, line_w, mean_of

INK: Final = "#1f2933"
PALE: Final = "#52606d"
GREY: Final = "#9aa5b1"
POWER: Final = "#1565c0"
FROM_S: Final = -3.0  # of the warm-up only the end matters
BUDGET: Final = "#2e7d32"
LIMIT: Final = "#c62828"
TOKENS: Final = "#6a1b9a"
WAYS: Final[Mapping[Way, tuple[str, str]]] = {  # as the legend has them; no colour of a mark
    "opcua": ("OPC UA", "#1565c0"),
    "modbus": ("Modbus", "#2e7d32"),
    "bms": ("DSX bus", "#00acc1"),
    "prometheus": ("Prometheus", "#8d6e63"),
    "mirror": ("MQTT", "#6a1b9a"),
}
CALLED: Final = "#ad1457"  # a level of shedding
CALLED_SHADE: Final = "#fce4ec"
ASKED_SHADE: Final = "#fff3e0"
RACKS_MIN: Final = 6  # fewer are seen well enough in the record
RACK_COLUMNS: Final = 4
LEGEND_COLUMNS: Final = 4
TITLE_SIZE, TITLE_CHARS = 15.0, 82  # points, and what of them fits the picture
LATE_RATIO: Final = 0.8  # of the run: what stands there is written to the left
MARK: Final = {"event": "#c62828", "fault": "#ef6c00"}


@dataclass(frozen=True)
class SeenPoint:
    """A power as the plant had it (k moments), and as each way showed it."""

    label: str
    t_s: Floats
    true_w: Floats
    shown: Mapping[Way, Shown]


def draw(
    path: Path,
    title: str,
    trace: Trace,
    budget_w: Floats,
    requests: Sequence[Request],
    contract: Contract,
    marks: Sequence[Mark],
    verdict: Verdict,
    seen: SeenPoint | None = None,
    racks: Mapping[str, Floats] | None = None,
    called: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Write a PNG.

    Args:
        path: of the picture.
        title: above it.
        trace: of the run.
        budget_w: of the controller, one per sample of `trace`, NaN where it had none.
        requests: what the site asked, in order.
        contract: what it is held against.
        marks: what happened.
        verdict: for the title and the line below it.
        seen: a power as every way showed it.
        racks: rack -> power, one per sample of `trace`; few racks are not drawn.
        called: levels of shedding: from, to, and power.
    """
    title = _titled(title, verdict)
    if racks is not None and len(racks) >= RACKS_MIN:
        _draw_racks(path.with_name("racks.png"), title, trace, racks, called)
    drawn = trace.t_s >= FROM_S
    trace = Trace(*(getattr(trace, field.name)[drawn] for field in fields(Trace)))
    budget_w = budget_w[drawn]
    figure, panels = _figure((3, 1.4, 1) if seen else (3, 1))
    power, tokens = panels[0], panels[-1]
    if seen:
        _draw_ways(panels[1], seen, marks)
    _draw_power(power, trace, budget_w, requests, contract)
    for i, (begins_s, ends_s, level_w) in enumerate(called):
        until_s = min(ends_s, float(trace.t_s[-1]))
        level, stands = (None, None) if i else ("level of shedding", "while it is called")
        power.hlines(level_w / 1000, begins_s, until_s, color=CALLED, linewidth=1.6, label=level)
        for axes in panels:
            axes.axvspan(begins_s, until_s, color=CALLED_SHADE, zorder=0, label=stands)
    tokens.plot(trace.t_s, trace.tokens_per_s / 1000, color=TOKENS, linewidth=0.4, alpha=0.35)
    tokens.plot(trace.t_s, mean_of(trace, trace.tokens_per_s) / 1000, color=TOKENS, linewidth=1.8)
    tokens.set_ylabel("thousand tokens/s")
    tokens.set_ylim(bottom=0)
    for axes in panels:
        for i, request in enumerate(requests):
            until_s = min(request.ends_s, float(trace.t_s[-1]))
            stands = None if i else "while a limit is asked for"
            axes.axvspan(request.signal_s, until_s, color=ASKED_SHADE, zorder=0, label=stands)
    figure.legend(
        *power.get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS,
        frameon=False, fontsize=9,
    )  # fmt: skip
    _draw_marks(power, marks, float(trace.t_s[-1]))
    power.set_title(_headline(verdict), loc="left", fontsize=10, color=PALE)
    _write(figure, path, title)


def draw_seen(
    path: Path, title: str, marks: Sequence[Mark], seen: Sequence[SeenPoint], verdict: Verdict
) -> None:
    """Write a PNG of a gateway without GPUs: what it has shown, one panel for each power."""
    figure, panels = _figure((2,) * len(seen))
    for axes, point in zip(panels, seen, strict=True):
        _draw_ways(axes, point, marks)
    panels[0].margins(y=0.3)  # room for the marks
    _draw_marks(panels[0], marks, float(seen[0].t_s[-1]))
    _write(figure, path, _titled(title, verdict))


def _figure(heights: Sequence[float]) -> tuple[Any, Sequence[Any]]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        len(heights), 1, figsize=(12, 1.8 * sum(heights)), squeeze=False,
        sharex=True, height_ratios=heights, layout="constrained", facecolor="white",
    )  # fmt: skip
    for axes in panels[:, 0]:
        axes.grid(color="#e4e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    panels[-1, 0].set_xlabel("seconds")
    return figure, list(panels[:, 0])


def _write(figure: Any, path: Path, title: str) -> None:
    from matplotlib import pyplot as plt

    size = TITLE_SIZE * min(1.0, TITLE_CHARS / len(title))
    figure.suptitle(title, x=0.01, ha="left", fontsize=size, fontweight="bold", color=INK)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_power(
    axes: Any, trace: Trace, budget_w: Floats, requests: Sequence[Request], contract: Contract
) -> None:
    axes.plot(
        trace.t_s, trace.block_w / 1000, color=POWER, linewidth=0.5, alpha=0.35, label="block power, 50 ms"
    )
    axes.plot(
        trace.t_s,
        mean_of(trace, trace.block_w) / 1000,
        color=POWER,
        linewidth=2.0,
        label="block power, mean of the last second",
    )
    if not np.isnan(budget_w).all():
        axes.plot(
            trace.t_s,
            budget_w / 1000,
            color=BUDGET,
            linewidth=1.3,
            label="budget of the controller, once obeyed",
        )
    if trace.capacity_w.min() < contract.rating_w:
        axes.plot(
            trace.t_s, trace.capacity_w / 1000, color="#00838f", linewidth=1.3, label="cooling capacity"
        )
    for i, request in enumerate(requests):
        later_s = [other.signal_s for other in requests if other.signal_s > request.signal_s]
        until_s = min([request.ends_s + 60, *later_s])
        near = (trace.t_s > request.signal_s - 1) & (trace.t_s < until_s)
        axes.plot(
            trace.t_s[near], mean_of(trace, line_w(trace.centre_s, request, contract))[near] / 1000,
            color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), label=None if i else "line of the contract",
        )  # fmt: skip
    lowest_w, highest_w = float(trace.block_w.min()), float(trace.block_w.max())
    room_w = 0.15 * (highest_w - lowest_w) + 200
    axes.set_ylim((lowest_w - room_w) / 1000, (highest_w + 1.6 * room_w) / 1000)
    axes.set_ylabel("kW")


def _draw_racks(
    path: Path,
    title: str,
    trace: Trace,
    racks: Mapping[str, Floats],
    called: Sequence[tuple[float, float, float]],
) -> None:
    """Write a PNG: a small picture of every rack."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(racks) // RACK_COLUMNS)
    figure, panels = plt.subplots(
        rows, RACK_COLUMNS, figsize=(12, 1.25 * rows + 0.6), squeeze=False,
        sharex=True, sharey=True, layout="constrained", facecolor="white",
    )  # fmt: skip
    drawn = trace.t_s >= FROM_S
    t_s = trace.t_s[drawn]
    for axes, (name, power_w) in zip(panels.flat, racks.items(), strict=False):
        axes.plot(t_s, mean_of(trace, power_w)[drawn] / 1000, color=POWER, linewidth=1.1)
        for begins_s, ends_s, _ in called:
            axes.axvspan(begins_s, min(ends_s, float(t_s[-1])), color=CALLED_SHADE, zorder=0)
        axes.text(0.02, 0.06, name, transform=axes.transAxes, fontsize=9, color=INK, fontweight="bold")
        axes.grid(color="#e4e7eb", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
        axes.tick_params(labelsize=7, colors=PALE)
    for axes in list(panels.flat)[len(racks) :]:
        axes.set_axis_off()
    figure.supxlabel("seconds", fontsize=9, color=PALE)
    figure.supylabel("kW", fontsize=9, color=PALE)
    _write(figure, path, title)


def _draw_ways(axes: Any, seen: SeenPoint, marks: Sequence[Mark]) -> None:
    drawn = seen.t_s >= FROM_S
    t_s, true_w = seen.t_s[drawn], seen.true_w[drawn]
    axes.plot(t_s, true_w / 1000, color=GREY, linewidth=0.5, alpha=0.6, label="plant")
    for way, shown in seen.shown.items():
        name, colour = WAYS[way]
        axes.plot(t_s, shown.at(t_s) / 1000, color=colour, linewidth=1.1, label=name)
    for mark in marks:
        axes.axvline(mark.t_s, color=MARK[mark.kind], linewidth=0.9, linestyle=":")
    axes.set_title(f"{seen.label}, as seen", loc="left", fontsize=10, color=PALE)
    axes.set_ylabel("kW")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 0.98), frameon=False, fontsize=8, ncols=len(seen.shown) + 1
    )


def _draw_marks(axes: Any, marks: Sequence[Mark], end_s: float) -> None:
    transform = axes.get_xaxis_transform()
    for i, mark in enumerate(marks):
        colour = MARK[mark.kind]
        axes.axvline(mark.t_s, color=colour, linewidth=0.9, linestyle=":")
        height = 0.98 - 0.05 * (i % 3)  # neighbours do not overwrite each other
        side = "right" if mark.t_s > LATE_RATIO * end_s else "left"  # of the line, to stay in the picture
        axes.text(
            mark.t_s, height, f" {mark.text} ", transform=transform,
            color=colour, fontsize=9, va="top", ha=side,
        )  # fmt: skip


def _titled(title: str, verdict: Verdict) -> str:
    return f"{verdict.word}   {title}"


def _headline(verdict: Verdict) -> str:
    parts = []
    for key, text, scale in (
        ("reaction_s", "reacts in {:.2f} s", 1),
        ("overshoot_ratio", "at most {:.1f} % above the limit", 100),
        ("ramp_error_rms_ratio", "ramp within {:.1f} % rms of rating", 100),
        ("tokens_kept_ratio", "keeps {:.0f} % of the tokens", 100),
    ):
        value = verdict.figures.get(key)
        if value is not None:
            parts.append(text.format(value * scale))
    return "   ·   ".join(parts)
