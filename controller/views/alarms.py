"""`powerblock alarms`: every alarm that stands, what it is about and what to do, drawn for a terminal.

Taken from the controller's `status.json`, in its order: the most urgent first. What nobody has acknowledged
is bold and marked. Hidden ones, shelved or out of service, come last, with who hid them and why: nobody shall
forget them. What came first of a cascade says how many followed it, and those name it. Where no controller
writes any more, that comes before all of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.views.figures import moment, relative
from controller.views.status import stale

WIDE: Final = 110  # columns from which sentences stand beside the names
ROWS_MAX: Final = 100  # more than anybody reads; JSON has them all
UNSEEN_MARK: Final = "●"
STYLES: Final = {"critical": "bold white on red", "high": "bold red", "medium": "yellow", "low": "cyan"}

Alarm = Mapping[str, Any]


def as_json(told: Mapping[str, Any]) -> dict[str, Any]:
    """`told`: the status; empty: there is none."""
    return {"alarms": told.get("alarms")}


def render(told: Mapping[str, Any], now_utc_s: float, width: int) -> RenderableType:
    if not told:
        return Text("nothing is known of any alarm", style="dim")
    alarms: Sequence[Alarm] = told["alarms"]
    hidden = [alarm for alarm in alarms if _is_hidden(alarm)]
    listed = [alarm for alarm in alarms if not _is_hidden(alarm)]
    followers = Counter(alarm["first_out"] for alarm in alarms if alarm["first_out"] != alarm["key"])
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    if width >= WIDE:
        table.add_column(overflow="fold", max_width=width // 3)
    table.add_column(overflow="fold", ratio=1)
    for alarm in [*listed, *hidden][:ROWS_MAX]:
        cells = _name(alarm, now_utc_s), _sentences(alarm, followers)
        table.add_row(_mark(alarm), *(cells if width >= WIDE else (Text("\n").join(cells),)))
    fault = stale(told, now_utc_s)
    parts: list[RenderableType] = (
        [Text(f"{fault}; what follows was so then", style="bold red")] if fault else []
    )
    parts.append(_summary(told["block"], listed, hidden))
    if alarms:
        parts += [Text(), table]
    if len(alarms) > ROWS_MAX:
        parts.append(Text(f"… {len(alarms) - ROWS_MAX} more: see --json", style="dim"))
    return Group(*parts)


def _is_hidden(alarm: Alarm) -> bool:
    return bool(alarm["out_of_service"]) or alarm["shelved_until_utc_s"] is not None


def _summary(block: str, listed: Sequence[Alarm], hidden: Sequence[Alarm]) -> Text:
    unseen = sum(not alarm["acknowledged"] for alarm in listed)
    active = sum(alarm["active"] for alarm in listed)
    words = Text.assemble((block, "bold"), f"  {active} active" if listed else "  no alarms")
    if listed:
        words.append(f", {unseen} not acknowledged", "bold red" if unseen else "dim")
    return words.append(f", {len(hidden)} hidden" if hidden else "")


def _mark(alarm: Alarm) -> Text:
    if _is_hidden(alarm):
        return Text(f"  {alarm['priority']}", style="dim")
    mark = " " if alarm["acknowledged"] else UNSEEN_MARK
    return Text.assemble((mark, "bold red"), " ", (alarm["priority"], STYLES.get(alarm["priority"], "")))


def _name(alarm: Alarm, now_utc_s: float) -> Text:
    """Who, in which state, since when."""
    unseen = not (alarm["acknowledged"] or _is_hidden(alarm))
    name = Text.assemble(
        (alarm["key"], "bold" if unseen else ""),
        (f"  {alarm['state']}", "bold red" if unseen else "dim"),
    )
    return Text("\n").join([name, Text(", ".join(_history(alarm, now_utc_s)), style="dim")])


def _history(alarm: Alarm, now_utc_s: float) -> list[str]:
    since_utc_s, until_utc_s = alarm["since_utc_s"], alarm["shelved_until_utc_s"]
    said = []
    if until_utc_s is not None:
        said.append(f"until {moment(until_utc_s, now_utc_s)} UTC")
    if alarm["count"]:
        said.append(f"came {moment(since_utc_s, now_utc_s)} UTC, {relative(since_utc_s, now_utc_s)}")
    if alarm["count"] > 1:
        said.append(f"{alarm['count']} times so far")
    if alarm["by"]:
        said.append(f"by {alarm['by']}")
    return said


def _sentences(alarm: Alarm, followers: Counter[str]) -> Text:
    """What is wrong, or was; what came first; what to do."""
    lines = [Text(alarm["text"])]
    if not alarm["active"]:
        lines = [Text(f"over: {alarm['text']}" if alarm["count"] else "did not come so far", style="dim")]
    if cascade := _cascade(alarm, followers):
        lines.append(Text(cascade, style="magenta"))
    if alarm["latched"]:
        due = "latches: to be reset when it is over" if alarm["active"] else "latched: to be reset"
        lines.append(Text(due, style="yellow"))
    if alarm["active"] and not _is_hidden(alarm):
        lines.append(Text(f"→ {alarm['response']}", style="green"))
    return Text("\n").join(lines)


def _cascade(alarm: Alarm, followers: Counter[str]) -> str:
    first, count = alarm["first_out"], followers[alarm["key"]]
    if first == alarm["key"]:
        return f"came first; {count} followed" if count else ""
    return f"followed {first}" if first else ""
