"""The fields of an OpenADR message, each asked for with its place in it.

Keys are folded, so that objectType, object_type and payLoadType (all found in the wild) are one. A missing
field and one that is null are the same: servers may leave defaults out or write them down.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from protocols.members import SHOWN_MAX_CHARS, Members, shown

PAYLOAD_MAX_BYTES: Final = 256 * 1024  # an event of 1,000 intervals is 120 kB
TEXT_MAX_CHARS: Final = SHOWN_MAX_CHARS  # of a date or a duration; the longest honest one has 40

__all__ = [
    "PAYLOAD_MAX_BYTES",
    "TEXT_MAX_CHARS",
    "OpenAdrError",
    "list_at",
    "object_at",
    "optional_text",
    "read_json",
    "shown",
    "text_at",
    "whole_at",
]


class OpenAdrError(ValueError):
    """A message that must not be acted on; the text names the place in it and the remedy."""


@lru_cache(maxsize=256)  # the standard has a hundred names, and a message of 1,000 intervals repeats ten
def _folded(key: str) -> str:
    return key.replace("_", "").lower()


_members: Final = Members(OpenAdrError, "an OpenADR event", PAYLOAD_MAX_BYTES, spelled=_folded)
object_at: Final = _members.an_object
whole_at: Final = _members.a_whole


def read_json(payload: bytes | str) -> object:
    """JSON with its keys folded.

    Raises:
        OpenAdrError: not JSON, too long, or one key twice with different values.
    """
    return _members.decode(payload, "message")


def list_at(value: object, path: str) -> list[Any]:
    if isinstance(value, list):  # at once: there are thousands in a message
        return value
    return [] if value is None else _members.a_list(value, path)


def text_at(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise OpenAdrError(f"{path}: {shown(value)}; send a text")
    return value


def optional_text(said: Mapping[str, Any], key: str, path: str) -> str | None:
    """`key` as folded, `path` as the sender spells it."""
    value = said.get(key)
    return None if value is None else text_at(value, path)
