"""`docs/alarms.md`, written from the table, so that what people read is what the program says.

python -m controller.alarms > docs/alarms.md
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from controller.alarms.book import CASCADE_S, CHATTER_COUNT, CHATTER_S, KIND_MAX
from controller.alarms.model import TRANSITIONS
from controller.alarms.table import SECTIONS, SHELVE_MAX_S, TABLE, Entry, Priority

MEANS: Final = {
    Priority.CRITICAL: "act within minutes: a breaker or a machine does it otherwise",
    Priority.HIGH: "act within the hour: a promise is broken, or the block is blind",
    Priority.MEDIUM: "act in this shift: something is worked around",
    Priority.LOW: "act this week: nothing is lost but a record",
}

INTRODUCTION: Final = """\
# Alarms

Written by `python -m controller.alarms`; edit `controller/alarms/table.py`.

An alarm is a condition that has lasted for its delay, and asks a person to do something. Its life follows
ISA-18.2 / IEC 62682. Nothing here changes a limit or starts plant.
"""

RULES: Final = f"""\
* **Acknowledge**: somebody has seen it. It never clears a latch.
* **Reset**: takes a latched alarm off the list whose condition is gone; refused while it lasts. It never
  acknowledges, and it restarts nothing.
* **Shelve**: hidden for a stated time, {SHELVE_MAX_S / 3600:.0f} hours at most, with a name and a reason.
  It ends by itself, also over a restart; what is active then asks to be acknowledged anew.
* **Out of service**: the same without an end, for what is under repair.
* What is marked *never hidden* could cost equipment: it can be neither shelved nor taken out of service.
* **First-out**: alarms of one group whose conditions came within {CASCADE_S:.0f} s name the one that came
  first.
* **Chattering**: an alarm rises {CHATTER_COUNT} times within {CHATTER_S:.0f} s; then it stays up until that
  time is over, however its condition flickers.
* **Flood**: {KIND_MAX} alarms of one kind are listed; an alarm `alarms …` counts the rest. Of some kinds the
  law itself spells eight out, and `… others` counts the rest.
* **Restart**: everything here survives it (`alarms.json` in the state directory). Who did what, and when,
  stands in `alarms.jsonl` beside it.
"""


def page() -> str:
    return "\n".join((INTRODUCTION, *_priorities(), *_life(), RULES, *_sections()))


def _priorities() -> Iterator[str]:
    counts = Counter(entry.priority for entry in TABLE)
    yield "## Priorities\n"
    yield "| priority | what it asks for | kinds |\n|---|---|---|"
    for priority in Priority:
        yield f"| {priority} | {MEANS[priority]} | {counts[priority]} |"
    yield ""


def _life() -> Iterator[str]:
    yield "## States\n"
    yield "| state | what happens | next state |\n|---|---|---|"
    for (state, turn), after in TRANSITIONS.items():
        yield f"| {state} | {turn} | {after} |"
    yield "\nWhat is not in the table changes nothing, or is refused with a reason.\n"


def _sections() -> Iterator[str]:
    yield "`…` stands for a name. Delays come on top of those that a condition has of its own.\n"
    for title, entries in SECTIONS.items():
        yield f"## {title}\n"
        yield "| alarm | priority | meaning | what the block does by itself | what to do | how it behaves |"
        yield "|---|---|---|---|---|---|"
        for entry in entries:
            yield (
                f"| `{entry.pattern}` | {entry.priority} | {entry.meaning} | {entry.by_itself}"
                f" | {entry.response} | {'; '.join(_behaviour(entry))} |"
            )
        yield ""


def _behaviour(entry: Entry) -> Iterator[str]:
    if entry.latching:
        yield "latches"
    if not entry.suppressible:
        yield "never hidden"
    if entry.on_delay_s:
        yield f"after {entry.on_delay_s:g} s"
    yield f"gone after {entry.off_delay_s:g} s"
    if entry.group:
        yield f"first-out among `{entry.group}`"
