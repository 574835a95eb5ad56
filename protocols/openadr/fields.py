"""From bytes to JSON whose fields can be asked for, each with its place in the message for the error.

Keys are folded, so that objectType, object_type and payLoadType (all found in the wild) are one. A missing
field and one that is null are the same: servers may leave defaults out or write them down. What was sent is
shown in an error as short as a log line allows, however long or deep it is.
"""

import json
import reprlib
from collections.abc import Mapping
from typing import Any, Final

PAYLOAD_MAX_BYTES: Final = 256 * 1024  # an event of 1,000 intervals is 120 kB
TEXT_MAX_CHARS: Final = (
    64  # of a date or a duration, and of what an error shows; the longest honest one has 40
)


class OpenAdrError(ValueError):
    """A message that must not be acted on; the text names the place in it and the remedy."""


def read_json(payload: bytes | str) -> object:
    """JSON with its keys folded.

    Raises:
        OpenAdrError: not JSON, too long, or one key twice with different values.
    """
    size = len(payload)
    if size > PAYLOAD_MAX_BYTES:
        raise OpenAdrError(f"message of {size} bytes; send {PAYLOAD_MAX_BYTES} at most, in several events")
    try:
        text = payload if isinstance(payload, str) else payload.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_fold, parse_constant=_no_constant)
    except OpenAdrError:
        raise
    except RecursionError as error:
        raise OpenAdrError("message: nested too deeply; send an OpenADR event") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ones
        raise OpenAdrError(f"message: not JSON: {error}") from error


def _fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    folded: dict[str, Any] = {}
    for key, value in pairs:
        name = key.replace("_", "").lower()
        if name in folded and folded[name] != value:
            raise OpenAdrError(f"{key}: given twice with different values; send it once")
        folded[name] = value
    return folded


def _no_constant(name: str) -> float:
    raise OpenAdrError(f"message: {name} is not JSON; send a number")


def object_at(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OpenAdrError(f"{path}: {shown(value)}; send an object")
    return value


def list_at(value: object, path: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise OpenAdrError(f"{path}: {shown(value)}; send a list")
    return value


def text_at(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise OpenAdrError(f"{path}: {shown(value)}; send a text")
    return value


def optional_text(said: Mapping[str, Any], key: str, path: str) -> str | None:
    """`key` as folded, `path` as the sender spells it."""
    value = said.get(key)
    return None if value is None else text_at(value, path)


def whole_at(value: object, path: str, *, low: int, high: int, remedy: str) -> int:
    """A whole number from `low` to `high`; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OpenAdrError(f"{path}: {shown(value)}; send {remedy}")
    return value


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring = 2, 2 * TEXT_MAX_CHARS  # plain repr recurses as deep as the sender nested


def shown(value: object) -> str:
    """Short enough for a log line, whatever was sent."""
    if value is None:
        return "missing"
    text = _short.repr(value)
    return text if len(text) <= TEXT_MAX_CHARS else f"{text[:TEXT_MAX_CHARS]}..."
