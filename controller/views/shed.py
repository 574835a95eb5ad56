"""`powerblock shed`: the levels of shedding, who calls one now, and how long the last call took.

Calling and ending are commands of the block's own panel and go the way of all others. What is shown comes
from the controller's `status.json`: the steps of the last call from the signal to the watt, and beside them
what all calls since the start took. A step that was not seen is a question mark, and whoever did not do as
called is named. Where no controller writes, that comes first, and nobody is said to obey.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.image.model import Command
from controller.views import command
from controller.views.figures import kw, length_s, moment, short
from controller.views.status import stale

if TYPE_CHECKING:  # a call of an emergency does not wait for it
    from controller.config import ShedConfig

STEPS: Final = {
    "decided": "the law had decided",
    "sent": "the call was on its way to the broker",
    "received": "the last agent had the call, at the latest",
    "obeyed": "slowest node, from arrival to last limit read back",
    "confirmed": "every GPU was read at its new limit",
    "moved": "the meter showed it",
}
MOST_RATIO: Final = 0.99  # of all calls
NODES_SHOWN: Final = 6


def wanted(level: str | None, valid_for: str | None, *, end: bool, writer: str | None) -> Command | None:
    """The command that these options ask for; None: to be shown. Raises CommandError."""
    if end and (level or valid_for):
        raise command.CommandError("--end takes no level and no --for: it ends the call that stands")
    if writer is not None and not end:
        raise command.CommandError("--of says whose call to end; add --end")
    if end:
        return command.parsed("end_shed", [] if writer is None else [f"writer={writer}"])
    if level is None:
        if valid_for is not None:
            raise command.CommandError("--for: name a level to call")
        return None
    arguments = [f"level={level}"]
    if valid_for is not None:
        try:
            arguments.append(f"valid_for_s={length_s(valid_for)}")
        except ValueError as error:
            raise command.CommandError(f"--for: {error}") from None
    return command.parsed("shed", arguments)


def as_json(told: dict[str, Any]) -> dict[str, Any]:
    return {"at_utc_s": told.get("at_utc_s"), "shed": told.get("shed")}


def render(told: dict[str, Any], now_utc_s: float, configured: "ShedConfig | None" = None) -> RenderableType:
    """`told`: the status; empty: there is none, and the levels are shown as `configured`."""
    if not told:
        return Group(*_unknown(configured))
    shed = told.get("shed")
    if not shed or not shed["levels"]:
        return Text("no levels of shedding: configure `shed.levels`", style="dim")
    fault = stale(told, now_utc_s)
    parts: list[RenderableType] = []
    if fault:
        parts.append(Text(f"{fault}; what follows was so then", style="bold red"))
    parts += [_levels(shed), Text(), _armed_then(shed) if fault else _armed(shed)]
    if shed["last"] is None:
        parts.append(Text("no call since the controller started", style="dim"))
    else:
        parts += [Text(), *_last(shed["last"], now_utc_s)]
        parts += [_steps(shed)]
    return Group(*parts)


def _unknown(configured: "ShedConfig | None") -> Iterator[RenderableType]:
    yield Text(
        "controller not running, or its status cannot be read: who calls, and who would obey, is not known",
        style="bold red",
    )
    if configured:
        table = Table("level", box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("block at most", justify="right")
        for level in configured.levels:
            table.add_row(level.name, kw(1e3 * level.kw))
        yield from (Text("as configured:", style="dim"), table)


def _levels(shed: dict[str, Any]) -> Table:
    table = Table("level", box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("block at most", justify="right")
    table.add_column("called by", overflow="fold")
    for level in shed["levels"]:
        callers = [one["by"] for one in shed["called"] if one["level"] == level["name"]]
        style = "bold red" if level["name"] == shed["level"] else ""
        table.add_row(level["name"], kw(level["limit_w"]), ", ".join(callers) or "nobody", style=style)
    return table


def _armed(shed: dict[str, Any]) -> Text:
    all_of_them = shed["armed"] == shed["nodes"]
    return Text(
        f"{shed['armed']} of {shed['nodes']} nodes have their table and obey"
        + ("" if all_of_them else "; the others get every limit spelt out, which takes longer"),
        style="green" if all_of_them else "yellow",
    )


def _armed_then(shed: dict[str, Any]) -> Text:
    return Text(
        f"who would obey now is not known; then {shed['armed']} of {shed['nodes']} nodes had their table",
        style="yellow",
    )


def _last(last: dict[str, Any], now_utc_s: float) -> Iterator[Text]:
    """What was called, and who did not do it."""
    before = "" if last["before_w"] is None else f" from {kw(last['before_w'])}"
    yield Text.assemble(
        ("last call ", "bold"),
        f"{moment(last['at_utc_s'], now_utc_s)} UTC, {last['source']}:{before} to {kw(last['limit_w'])},"
        f" {last['nodes']} nodes at once",
    )
    for words, nodes in (
        ("had no table, and were ordered one by one", last["without_table"]),
        ("did not confirm, and were ordered again", [*map(_unconfirmed, last["unconfirmed"])]),
    ):
        if nodes:
            more = f" and {len(nodes) - NODES_SHOWN} more" if len(nodes) > NODES_SHOWN else ""
            yield Text(f"{', '.join(nodes[:NODES_SHOWN])}{more} {words}", style="yellow")


def _unconfirmed(one: dict[str, Any]) -> str:
    """A node, and where it has answered, its GPUs that were read above what the call leaves them."""
    gpus, limit_w = one["gpus"], one["limit_w"]
    if not gpus:
        return str(one["node"])
    which = f"GPU {gpus[0]}" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    if limit_w is None:
        return f"{one['node']} ({which}, limit not readable)"
    return f"{one['node']} ({which} at {'up to ' if len(gpus) > 1 else ''}{limit_w:.0f} W)"


def _steps(shed: dict[str, Any]) -> Table:
    table = Table("step", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    table.add_column("this call", justify="right")
    table.add_column(f"{100 * MOST_RATIO:.0f} % of all", justify="right")
    table.add_column("calls", justify="right")
    for step, words in STEPS.items():
        lengths = shed["steps"][step]
        all_calls = str(sum(lengths["counts"]))
        table.add_row(step, words, short(shed["last"][f"{step}_s"]), _most(lengths), all_calls)
    return table


def _most(lengths: dict[str, Any]) -> str:
    """How long nearly all of them took at most: the end of the bucket that the last of those is in."""
    count = sum(lengths["counts"])
    if not count:
        return "?"
    ends = zip(accumulate(lengths["counts"]), lengths["buckets_s"], strict=False)
    end_s = next((end_s for below, end_s in ends if below >= MOST_RATIO * count), None)
    return f"over {short(lengths['buckets_s'][-1])}" if end_s is None else f"≤ {short(end_s)}"
