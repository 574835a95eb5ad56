"""`powerblock status`: the controller's `status.json`, drawn for a terminal.

What a person needs at night comes first: is anybody writing this at all, what is wrong, how much the block
draws, what binds it and why. Racks, nodes, links and the site follow. Long lists show their troubled rows
first and say how many they leave out; so does a screen that is too low. The file is taken at its word; only
its age is judged here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from controller.core.model import NO_LIMIT_W
from controller.views.figures import FOREVER_UTC_S, MARK, Bar, kw, moment, relative, span

VERSION: Final = 4  # of status.json
STALE_S: Final = 2.0  # eight writes missed
WIDE: Final = 110  # columns from which two tables stand side by side
ROWS_MAX: Final = 12  # of one table; a screen shows no more
REFUSED_SHOWN: Final = 3  # newest signals; the log has them all
OVER_BUDGET_RATIO: Final = 1.01  # from here on the law raises its own alarm
ROOM_SHOWN_RATIO: Final = 1.25  # of a rack's limits: more room than this says nothing
OBEYS: Final = ("obeys", "green")

MODE_STYLES: Final = {
    "limited": "yellow",
    "controlled": "green",
    "init": "bold magenta",
    "failsafe": "bold red",
    "autonomous": "bold magenta",
}


@dataclass(frozen=True)
class Seen:
    """The file as found. `told` is empty where there is none; `age_s` is None then."""

    told: dict[str, Any]
    age_s: float | None
    fault: str  # empty: written just now by a running controller


def look(path: Path, now_utc_s: float, *, guessed: bool = False) -> Seen:
    """The file at `path`; `guessed`: no configuration said that it is there."""
    try:
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        hint = "; is its run_dir another? powerblock status block.yaml" if guessed else ""
        return Seen({}, None, f"controller not running: {path} does not exist{hint}")
    except OSError as error:
        return Seen({}, None, f"{path}: {error.strerror}; run this as a user of the controller's group")
    except msgspec.DecodeError as error:
        return Seen({}, None, f"{path}: not a status file: {error}")
    if told.get("v") != VERSION:
        return Seen(
            {}, None, f"{path}: version {told.get('v')}, this program reads {VERSION}: update the older"
        )
    return Seen(told, now_utc_s - told["at_utc_s"], stale(told, now_utc_s))


def stale(told: Mapping[str, Any], now_utc_s: float) -> str:
    """That nobody writes it any more; empty: written just now."""
    age_s = now_utc_s - told["at_utc_s"]
    if abs(age_s) <= STALE_S:
        return ""
    when = f"{span(age_s)} ago" if age_s > 0 else f"{span(-age_s)} ahead of this clock"
    return f"controller not running or stuck: last written {when}"


def as_json(seen: Seen) -> dict[str, Any]:
    return {"age_s": seen.age_s, "fault": seen.fault, "status": seen.told or None}


def render(seen: Seen, now_utc_s: float, width: int) -> RenderableType:
    return _Fitted(Group(*_parts(seen, now_utc_s, width)))


def _parts(seen: Seen, now_utc_s: float, width: int) -> Iterator[RenderableType]:
    if seen.fault:
        yield Panel(Text(seen.fault), style="bold red")
    if not seen.told:
        return
    told = seen.told
    if _shown_alarms(told):
        yield _alarms(told)
    if "binding" not in told:  # a gateway without GPUs
        yield from (_switch(told), _links(told))
        return
    yield from (_block(told), _switch(told), *_shed(told))
    tables = [_limits(told), _racks(told), _nodes(told), _links(told)]
    yield from _side_by_side(tables) if width >= WIDE else tables
    yield from (_site(told, now_utc_s), _beat(told, now_utc_s))


@dataclass(frozen=True)
class _Fitted:
    """On a live screen, which cannot be scrolled, what has no room is counted on the last line."""

    content: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.content, options, pad=False)
        rows = options.max_height
        if console.is_alt_screen and len(lines) > rows:
            hidden = len(lines) - rows + 1
            words = f"… {hidden} more lines: --once, or a taller terminal"
            said = Text(words, style="bold yellow", no_wrap=True, overflow="ellipsis")
            lines = [*lines[: rows - 1], *console.render_lines(said, options, pad=False)]
        for line in lines:
            yield from line
            yield Segment.line()


def _side_by_side(tables: Sequence[RenderableType]) -> list[RenderableType]:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    for left, right in zip(tables[::2], tables[1::2], strict=True):
        grid.add_row(left, right)
    return [grid]


# --- the block ---------------------------------------------------------------------------------------


def _alarms(told: dict[str, Any]) -> Panel:
    """What is wrong now, or was and nobody has seen it; hidden ones are for `powerblock alarms`."""
    shown = _shown_alarms(told)
    lines = Table.grid(padding=(0, 2, 0, 0))
    for alarm in shown[:ROWS_MAX]:
        style, text_style, over = ("bold", "", "") if alarm["active"] else ("dim", "dim", "over: ")
        lines.add_row(Text(alarm["key"], style=style), Text(f"{over}{alarm['text']}", style=text_style))
    active = sum(alarm["active"] for alarm in shown)
    over = f", {len(shown) - active} over and not acknowledged" if len(shown) > active else ""
    title = f"{active} alarm{'' if active == 1 else 's'}{over}"
    style = "bold red" if active else "yellow"
    return Panel(Group(lines, *_rest(shown)), title=title, title_align="left", border_style=style)


def _switch(told: dict[str, Any]) -> RenderableType:
    """Who may move plant and power, and the limits that operators have set."""
    facility = told["facility"]
    said = Text.assemble(("switch ", "dim"), (facility["mode"].upper(), "bold"))
    for slot in facility["slots"][:ROWS_MAX]:
        said.append(f"   {kw(slot['limit_w'])} by {slot['writer']}, priority {slot['priority']}")
    return said


def _shed(told: dict[str, Any]) -> Iterator[Text]:
    """A level of shedding that is called."""
    shed = told.get("shed")
    if shed and shed["level"] is not None:
        limit_w = next(one["limit_w"] for one in shed["levels"] if one["name"] == shed["level"])
        callers = ", ".join(one["by"] for one in shed["called"][:ROWS_MAX])
        yield Text.assemble(
            ("shed ", "dim"), (f"{shed['level']} {kw(limit_w)}", "bold red"), f"   called by {callers}"
        )


def _shown_alarms(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that stand first."""
    shown = (
        alarm
        for alarm in told["alarms"]
        if not alarm["out_of_service"] and alarm["shelved_until_utc_s"] is None
    )
    return sorted(shown, key=lambda alarm: not alarm["active"])


def _block(told: dict[str, Any]) -> Panel:
    power_w, budget_w, rating_w = told["power_w"], told["budget_w"], told["feed_rating_w"]
    drawn_w = power_w or 0.0
    style = "red" if drawn_w > OVER_BUDGET_RATIO * budget_w else "green"
    words = Text.assemble((kw(power_w), "bold"), (f" of {kw(rating_w)}", "dim"))
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(ratio=1)
    line.add_row(Bar(drawn_w, budget_w, max(rating_w, drawn_w), style), words)
    binding = told["binding"]
    lines: list[RenderableType] = [
        line,
        Text.assemble(
            (f"{MARK} budget ", "dim"),
            (kw(budget_w), "bold"),
            ("   binding ", "dim"),
            (kw(binding["power_w"]), "bold"),
            (f"  {binding['source']}", "bold cyan"),
        ),
        Text(told["why"], style="dim"),
    ]
    if told["shortfall_w"] > 0.0:
        lines.append(Text(f"shortfall {kw(told['shortfall_w'])}: this much cannot be shed", style="bold red"))
    mode = told["mode"]
    title = Text.assemble((f"{told['block']}  ", "bold"), (mode, MODE_STYLES.get(mode, "")))
    return Panel(Group(*lines), title=title, title_align="left")


def _limits(told: dict[str, Any]) -> Table:
    table = _table(("limits", "left"), ("lowest first", "left"))
    limits = sorted(told["limits"], key=lambda limit: limit["power_w"])
    for number, limit in enumerate(limits[:ROWS_MAX]):
        words = f"{limit['source']}{'  (protection)' if limit['protection'] else ''}"
        power = Text(kw(limit["power_w"]), justify="right")
        table.add_row(power, words, style="bold cyan" if number == 0 else "")
    return _with_rest(table, limits)


# --- its parts ---------------------------------------------------------------------------------------


def _racks(told: dict[str, Any]) -> Table:
    """GPU power of every rack with the sum of its limits, on the scale of what its inlets have room for."""
    table = _table(("racks", "left"), ("PDUs", "right"), ("GPUs", "right"), ("limits", "right"), ("", "left"))
    racks = sorted(told["racks"], key=lambda rack: rack["gpu_room_w"] - rack["gpu_limit_w"])
    for rack in racks[:ROWS_MAX]:
        drawn_w, limit_w, room_w = rack["gpu_known_w"], rack["gpu_limit_w"], rack["gpu_room_w"]
        top_w = max(drawn_w, limit_w, min(room_w, ROOM_SHOWN_RATIO * limit_w))
        drawn = Bar(drawn_w, limit_w, top_w, "red" if drawn_w > room_w else "green")
        unknown = f" + {rack['gpus_unknown']} ?" if rack["gpus_unknown"] else ""
        table.add_row(rack["name"], kw(rack["power_w"]), f"{kw(drawn_w)}{unknown}", kw(limit_w), drawn)
    return _with_rest(table, racks)


def _nodes(told: dict[str, Any]) -> Table:
    table = _table(
        ("nodes", "left"), ("GPUs", "right"), ("draws", "right"), ("limits", "right"), ("", "left")
    )
    nodes = sorted(told["nodes"], key=lambda node: (_node_state(node) == OBEYS, node["name"]))
    for node in nodes[:ROWS_MAX]:
        words, style = _node_state(node)
        # What is wished of a node that does not obey says nothing of what it holds.
        powers = kw(node["power_w"]), kw(node["limit_w"] if node["heard"] and node["leased"] else None)
        table.add_row(node["name"], str(node["gpus"]), *powers, Text(words, style=style))
    return _with_rest(table, nodes)


def _node_state(node: dict[str, Any]) -> tuple[str, str]:
    """The node in a few words, and their style."""
    if not node["heard"]:
        return "silent", "bold red"
    if not node["leased"]:
        return "not under our orders", "bold red"
    if node["confirmed"] < node["order"]:
        return "order under way", "yellow"
    return OBEYS


def _links(told: dict[str, Any]) -> Table:
    """Those that are down, one by one with their fault; the rest in one line with the age of their values."""
    table = _table(("links", "left"), ("", "left"))
    down = [link for link in told["links"] if not link["up"]]
    for link in down[:ROWS_MAX]:
        how = ("in doubt ", "bold yellow") if link.get("in_doubt") else ("down ", "bold red")
        table.add_row(link["name"], Text.assemble(how, link["fault"]))
    up = [link["name"] + _age(link) for link in told["links"] if link["up"]]
    rest = f" and {len(up) - ROWS_MAX} more" if len(up) > ROWS_MAX else ""
    if up:
        table.add_row(Text("up", style="green"), f"{', '.join(up[:ROWS_MAX])}{rest}")
    return _with_rest(table, down)


def _age(link: dict[str, Any]) -> str:
    return "" if link["age_s"] is None else f" {span(link['age_s'])}"


def _site(told: dict[str, Any], now_utc_s: float) -> Table:
    site = told["site"]
    signals = f"{site['accepted']} signals accepted, {site['refused']} refused"
    table = _table(("site", "left"), (signals, "left"))
    for source in site["sources"]:
        table.add_row(Text(source["name"], justify="right"), _heard(source))
    for setpoint in site["setpoints"][:ROWS_MAX]:
        table.add_row(Text(_limit(setpoint), justify="right"), _window(setpoint, now_utc_s))
    for signal in [signal for signal in site["signals"] if not signal["accepted"]][-REFUSED_SHOWN:]:
        at = moment(signal["at_utc_s"], now_utc_s)
        about = f"{signal['source']} {signal['about']}".rstrip()
        table.add_row(Text("refused", style="red"), f"{at} {about}: {signal['reason']}")
    return _with_rest(table, site["setpoints"])


def _heard(source: dict[str, Any]) -> Text:
    """How long ago a source was heard, and where the block stands with it."""
    age_s, plan_s, mode = source["heartbeat_age_s"], source["plan_age_s"], source["mode"]
    heard = "never heard" if age_s is None else f"heard {span(age_s)} ago"
    plan = "no plan yet" if plan_s is None else f"plan {span(plan_s)} ago"
    stands = Text("not watched", style="dim") if mode is None else Text(mode, style=MODE_STYLES.get(mode, ""))
    return Text.assemble(stands, f"  {heard}, {plan}")


def _limit(setpoint: dict[str, Any]) -> str:
    return "no limit" if setpoint["limit_w"] >= NO_LIMIT_W else kw(setpoint["limit_w"])


def _window(setpoint: dict[str, Any], now_utc_s: float) -> str:
    times = _times(setpoint["starts_utc_s"], setpoint["ends_utc_s"], now_utc_s)
    stands = f"; {setpoint['stands']}" if setpoint["stands"] else ""
    return f"{setpoint['kind']} {setpoint['source']} {setpoint['id']}  {times}{stands}"


def _times(starts_utc_s: float, ends_utc_s: float, now_utc_s: float) -> str:
    """What panel and SCADA ask for has always been open, and starts at 0: nobody wants to see that."""
    end, ends = moment(ends_utc_s, now_utc_s), f"ends {relative(ends_utc_s, now_utc_s)}"
    if starts_utc_s > now_utc_s:
        return f"{moment(starts_utc_s, now_utc_s)} to {end}, opens {relative(starts_utc_s, now_utc_s)}"
    if starts_utc_s > 0.0:
        return f"{moment(starts_utc_s, now_utc_s)} to {end}, {ends}"
    return end if ends_utc_s >= FOREVER_UTC_S else f"until {end}, {ends}"


def _beat(told: dict[str, Any], now_utc_s: float) -> Text:
    beat = told["beat"]
    return Text(
        f" beat {beat['count']:,}  late {beat['late_p99_ms']:.1f} ms (most {beat['late_max_ms']:.1f}),"
        f" tick {beat['tick_p99_ms']:.1f} ms, {beat['skipped']} skipped,"
        f" up {span(now_utc_s - told['started_utc_s'])}",
        style="yellow" if beat["skipped"] else "dim",
    )


# --- tables ------------------------------------------------------------------------------------------


def _table(*columns: tuple[str, Literal["left", "right"]]) -> Table:
    """A table without lines; the header of its first column is its title."""
    table = Table(box=None, padding=(0, 1), header_style="dim", expand=True)
    for number, (name, justify) in enumerate(columns):
        header = Text(name, style="not dim bold" if number == 0 else "")
        last = number == len(columns) - 1
        table.add_column(
            header, justify=justify, no_wrap=not last, ratio=1 if last else None, overflow="fold"
        )
    return table


def _with_rest(table: Table, rows: Sequence[Any]) -> Table:
    for line in _rest(rows):
        table.add_row(line)
    return table


def _rest(rows: Sequence[Any]) -> list[Text]:
    return [Text(f"… {len(rows) - ROWS_MAX} more", style="dim")] if len(rows) > ROWS_MAX else []
