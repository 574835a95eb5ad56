"""The block's own panel: a command over the image socket, from whoever may open it on this host.

Commands from here count in LOCAL as well. Who may is the socket's business: its owner and group.
"""

import getpass
import re
import socket
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from controller.image.feed import heard
from controller.image.model import Command, Outcome, Result, Role
from controller.image.wire import SOCKET_NAME
from controller.verbs import VERBS

TYPES: Final = {"float": "a number", "int": "a whole number", "str": "a text"}


class CommandError(ValueError):
    """No such verb, or arguments that are none; or the way to the controller is closed to this user."""


def parsed(verb: str, arguments: list[str]) -> Command:
    """`name=value` words as a command. Raises CommandError."""
    if verb not in VERBS:
        raise CommandError(f"no verb {verb!r}; one of {', '.join(VERBS)}")
    known = {field.name: field for field in msgspec.structs.fields(VERBS[verb].arguments)}
    said: dict[str, float | bool | str | None] = {}
    for word in arguments:
        name, equals, text = word.partition("=")
        if not equals or name not in known:
            wanted = ", ".join(f"{one}=…" for one in known) or "none"
            raise CommandError(f"{word!r} is no argument of {verb}; it takes {wanted}")
        said[name] = _value(known[name], text)
    for field in known.values():
        if field.required and field.name not in said:
            raise CommandError(f"{verb}: {field.name}=… is missing; add it")
    return Command(
        verb=verb, arguments=said, by=getpass.getuser(), role=Role.ENGINEER, via="panel", local=True
    )


def _value(field: msgspec.structs.FieldInfo, text: str) -> float | str | None:
    """Raises CommandError for what the controller would not understand: a slip is no refusal."""
    words = get_args(field.type) if get_origin(field.type) is Literal else ()
    if words and text not in words:
        raise CommandError(f"{field.name}: {text!r} is none of {', '.join(words)}")
    try:
        value: float | str | None = msgspec.convert(text, field.type, strict=False)
    except msgspec.ValidationError as error:
        why = re.sub(r"`(\w+)[^`]*`", lambda said: TYPES[said[1]], str(error).partition(", got")[0].lower())
        raise CommandError(f"{field.name}: {why} (here: {text})") from None
    return value


async def carry_out(run_dir: Path, command: Command) -> Outcome:
    """Have it done by the controller that runs there. Raises CommandError where this user may not ask it."""
    _require_open(run_dir / SOCKET_NAME)
    try:
        async with heard(run_dir / SOCKET_NAME) as feed:
            return await feed.command(command)
    except TimeoutError:
        reason = f"no controller at {run_dir / SOCKET_NAME}: does it run, and is this its run_dir?"
        return Outcome(result=Result.REJECTED, reason=reason)


def _require_open(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except PermissionError:
            raise CommandError(
                f"{path}: permission denied: run this as root or as a user of the controller's group"
            ) from None
        except OSError:
            return  # nobody there, which is said by whoever asks


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
