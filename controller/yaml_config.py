"""A YAML file becomes a checked model, or a complete list of what is wrong with it.

An operator who fixes one error to meet the next one loses the night. So all errors come at once, one line
each, in the form `file: path: what; remedy`:

    node.yaml: mqtt.url: missing; add it
    node.yaml: fallback_w[3]: input should be greater than 0 (here: -5)

YAML's silent traps are errors here: a key given twice, and a file that is a list or empty. The model is
checked as JSON would be, strictly: a quoted number is a string, not a number.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from protocols import plain_yaml

M = TypeVar("M", bound=BaseModel)

FILE_MAX_BYTES: Final = 4 * 1024 * 1024  # a block of 1,152 GPUs takes 100 kB; anything near this is not ours
VALUES_MAX: Final = 500_000  # a hundred times that block
SHOWN_MAX_CHARS: Final = 60  # of a wrong value, in the sentence about it

KEY_TAGS: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "merge"))

# What to say instead of pydantic's words, by error type.
SENTENCES: Final = {
    "missing": "missing; add it",
    "extra_forbidden": "no such setting; remove it or correct its spelling",
}


class ConfigError(ValueError):
    """The file cannot be used. The text lists everything that is wrong with it, one line per error."""


def load(path: Path, model: type[M]) -> M:
    """Read and check a YAML file. Raises ConfigError with all errors at once."""
    return checked(path, parse(path), model)


def checked(path: Path, content: dict[str, Any], model: type[M]) -> M:
    """Check what was read from a file. Raises ConfigError with all errors at once."""
    try:
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [f"{path.name}: {_sentence(details)}" for details in found if not _is_echo(details, found)]
        raise ConfigError("\n".join(lines)) from None


def parse(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings. Raises ConfigError."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > FILE_MAX_BYTES:
            raise ConfigError(
                f"{path.name}: {size_bytes} bytes, {FILE_MAX_BYTES} at most; is it the right file?"
            )
        content = plain_yaml.load(path.read_text(encoding="utf-8"), _StrictLoader, values_max=VALUES_MAX)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; check the path and its permissions"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: {_syntax(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path.name}: must be settings of the form `name: value`, not {type(content).__name__}"
        )
    return content


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses what YAML would swallow: a key given twice, a key that is not text (`on:`)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in KEY_TAGS:
                raise yaml.MarkedYAMLError(
                    problem="a key must be text; quote it", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _syntax(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _is_echo(details: ErrorDetails, found: list[ErrorDetails]) -> bool:
    """A list is called too short when none of its members passed: what is wrong with them has been said."""
    where = details["loc"]
    inner = (other["loc"] for other in found if other is not details)
    return details["type"] == "too_short" and any(loc[: len(where)] == where for loc in inner)


def _sentence(details: ErrorDetails) -> str:
    where = _where(details["loc"])
    if details["type"] == "union_tag_invalid":
        told = details["ctx"]
        return f"{where}.kind: no kind {told['tag']!r}; one of {told['expected_tags']}"
    known = SENTENCES.get(details["type"])
    if known is not None:
        return f"{where}: {known}"
    what = details["msg"].removeprefix("Value error, ")
    shown = repr(details["input"])
    if len(shown) > SHOWN_MAX_CHARS or isinstance(details["input"], dict):
        return f"{where}: {what}"
    return f"{where}: {what} (here: {shown})"


def _where(location: tuple[int | str, ...]) -> str:
    """`("devices", 3, "url")` as `devices[3].url`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "the whole file"
