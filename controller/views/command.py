"""The block's own panel: a command over the image socket, from whoever may open it on this host.

Commands from here count in LOCAL as well. Who may is the socket's business: its owner and group.
"""

import getpass
from pathlib import Path
from typing import Any

from controller.commands import VERBS
from controller.image.feed import heard
from controller.image.model import Command, Outcome, Result, Role
from controller.image.wire import SOCKET_NAME


class CommandError(ValueError):
    """No such verb, or arguments that are none."""


def parsed(verb: str, arguments: list[str]) -> Command:
    """`name=value` words as a command. Raises CommandError."""
    if verb not in VERBS:
        raise CommandError(f"no verb {verb!r}; one of {', '.join(VERBS)}")
    known = VERBS[verb].arguments.__struct_fields__
    said: dict[str, float | bool | str | None] = {}
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            wanted = ", ".join(f"{one}=…" for one in known) or "none"
            raise CommandError(f"{word!r} is no argument of {verb}; it takes {wanted}")
        said[name] = _value(value)
    return Command(
        verb=verb, arguments=said, by=getpass.getuser(), role=Role.ENGINEER, via="panel", local=True
    )


def _value(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


async def carry_out(run_dir: Path, command: Command) -> Outcome:
    """Have it done by the controller that runs there."""
    try:
        async with heard(run_dir / SOCKET_NAME) as feed:
            return await feed.command(command)
    except TimeoutError:
        reason = f"no controller at {run_dir / SOCKET_NAME}: does it run, and may you open the socket?"
        return Outcome(result=Result.REJECTED, reason=reason)


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "result": outcome.result.name.lower(),
        "reason": outcome.reason,
        "value": outcome.value,
        "was": outcome.was,
    }


def render(outcome: Outcome) -> str:
    words = [outcome.result.name.lower()]
    if outcome.value is not None:
        before = "" if outcome.was is None else f", was {outcome.was:g}"
        words.append(f"(now {outcome.value:g}{before})")
    if outcome.reason:
        words.append(f": {outcome.reason}")
    return " ".join(words).replace(" :", ":")
