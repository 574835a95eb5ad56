"""`powerblock signals`: every signal that arrived, what was said to it, and what came of it.

Reads the history that the controller keeps beside its state, newest last; the controller need not be
running. Who asks afterwards why the block drew less at six, or why it did not, finds here who sent what,
whether it counted and since when it held.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.site import history
from controller.views.figures import kw, length_s, moment

ROWS_MAX: Final = 500  # on a terminal; more is asked for as JSON


class HistoryError(ValueError):
    """There is no history to read; the text says why and what to do."""


def look(state_dir: Path, since_utc_s: float) -> tuple[dict[str, Any], ...]:
    """All lines from `since_utc_s` on, oldest first. Raises HistoryError."""
    try:
        return tuple(line for line in history.read(state_dir) if line.get("at_utc_s", 0.0) >= since_utc_s)
    except FileNotFoundError as error:
        raise HistoryError(
            f"{error.filename}: nothing was ever kept there; name the block's own file"
        ) from None
    except OSError as error:
        raise HistoryError(
            f"{error.filename}: {error.strerror}; run this as a user of the controller's group"
        ) from None


def as_json(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"signals": list(lines)}


def render(lines: Sequence[dict[str, Any]], now_utc_s: float) -> RenderableType:
    if not lines:
        return Text("no signals in that time", style="dim")
    table = Table("at (UTC)", "source", box=None, padding=(0, 2, 0, 0))
    table.add_column("about", overflow="fold")
    table.add_column("")
    table.add_column("what was said, what came of it", overflow="fold")
    for line in lines[-ROWS_MAX:]:
        table.add_row(*_cells(line, now_utc_s))
    left_out = len(lines) - ROWS_MAX
    rest = [Text(f"{left_out} older ones: see --since and --json", style="dim")] if left_out > 0 else []
    return Group(*rest, table)


def _cells(line: dict[str, Any], now_utc_s: float) -> Iterator[str | Text]:
    yield moment(line["at_utc_s"], now_utc_s)
    yield line["source"]
    yield line["about"]
    if "came" in line:
        limit = "no limit" if line["limit_w"] is None else kw(line["limit_w"])
        yield Text("→", style="cyan")
        yield Text(f"{line['kind']} of {limit} {line['came']}{_untold(line)}", style="cyan")
        return
    accepted = line["accepted"]
    yield Text("accepted" if accepted else "refused", style="green" if accepted else "bold red")
    reason = "" if line["reason"] == "accepted" else f"{line['reason']}  "
    yield Text.assemble(reason, (f"from {line['sender']}{_untold(line)}", "dim"))


def _untold(line: dict[str, Any]) -> str:
    """A flood is counted, not written down."""
    return f"; {line['untold_before']} more before it" if line.get("untold_before") else ""


def moment_of(text: str, now_utc_s: float) -> float:
    """`2026-11-21T18:00:00Z`, or a length of time before now: `90s`, `15m`, `2h`, `1d`. Raises ValueError."""
    with suppress(ValueError):
        return now_utc_s - length_s(text)
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
