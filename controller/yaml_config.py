"""A YAML file becomes a checked model, or a complete list of what is wrong with it.

An operator who fixes one error to meet the next one loses the night. So all errors come at once, one line
each, in the form `file: path: what; remedy`:

    node.yaml: mqtt.url: missing; add it
    node.yaml: fallback_w[3]: input should be greater than 0 (here: -5)

A relative path in a file counts from that file's folder, wherever the program was started: see `FileName`.

YAML's silent traps are errors here: a key given twice, and a file that is a list or empty. The model is
checked as JSON would be, strictly: a quoted number is a string, not a number.
"""

import json
from collections.abc import Hashable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import ErrorDetails

from protocols import plain_yaml

M = TypeVar("M", bound=BaseModel)

FILE_MAX_BYTES: Final = 4 * 1024 * 1024  # a block of 1,152 GPUs takes 100 kB; anything near this is not ours
VALUES_MAX: Final = 500_000  # a hundred times that block
SHOWN_MAX_CHARS: Final = 60  # of a wrong value, in the sentence about it

FAST_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # where libyaml was there to build with

KEY_TAGS: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "merge"))

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # part of an MQTT topic: no levels, no wildcards

UNSHOWN: Final = "unshown"  # type of an error whose value must not be shown

# What to say instead of pydantic's words, by error type.
SENTENCES: Final = {
    "missing": "missing; add it",
    "extra_forbidden": "no such setting; remove it or correct its spelling",
}
NAME_SENTENCE: Final = (
    "letters, digits, _ . - only, no spaces, 64 characters at most; a letter or digit first"
)


class FileName(str):
    """A path that goes on as text. Like a `Path`, it counts from the folder of the file that names it."""

    __slots__ = ()


File = Annotated[str, AfterValidator(FileName)]  # in a model


class ConfigError(ValueError):
    """The file cannot be used. The text lists everything that is wrong with it, one line per error."""


def load(path: Path, model: type[M]) -> M:
    """Read and check a YAML file. Raises ConfigError with all errors at once."""
    return checked(path, parse(path), model)


def checked(path: Path, content: dict[str, Any], model: type[M]) -> M:
    """Check what was read from a file. Raises ConfigError with all errors at once."""
    try:
        found = model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path.name}: {one}" for one in _sentences(error, model))) from None
    made: M = _beside(found, path.absolute().parent)
    return made


def _beside(value: Any, folder: Path) -> Any:
    """The same with every path absolute. What has none stays the same object."""
    match value:
        case Path() | FileName():
            return type(value)(folder / value)
        case BaseModel():
            places = {name: (one, _beside(one, folder)) for name, one in value}
            changed = {name: new for name, (old, new) in places.items() if new is not old}
            return value.model_copy(update=changed) if changed else value
        case tuple():
            items = tuple(_beside(one, folder) for one in value)
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        case dict():
            return {key: _beside(one, folder) for key, one in value.items()}
    return value


def close_to(name: str, known: Iterable[str]) -> str:
    """What may have been meant, for the end of a sentence; "" if nothing comes near."""
    near = get_close_matches(name, list(known), 3)
    best = min(near, key=lambda one: one[:1] != name[:1], default="")  # slips seldom hit the first letter
    return f" (did you mean {best}?)" if best else ""


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
    if content is None:
        raise ConfigError(f"{path.name}: the file is empty; write settings of the form `name: value`")
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path.name}: must be settings of the form `name: value`, not {type(content).__name__}"
        )
    return content


def run_dir_of(path: Path) -> Path:
    """`run_dir` of a block.yaml, and nothing else: an emergency does not wait for profiles to be read.

    Nor does it fail at what else may be wrong with the file by now. Raises ConfigError.
    """
    try:
        file = yaml.compose(path.read_text(encoding="utf-8"), Loader=FAST_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    settings = file.value if isinstance(file, yaml.MappingNode) else []
    for key, value in settings:
        if key.value == "run_dir" and isinstance(value, yaml.ScalarNode):
            return path.absolute().parent / str(value.value)
    raise ConfigError(f"{path.name}: run_dir: missing; add it, or name the block.yaml of this block")


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


def _sentences(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    found = error.errors(include_url=False)
    for details in found:
        if details["type"] == "extra_forbidden":
            *outer, key = details["loc"]
            yield _sentence(details) + close_to(str(key), _settings_at(model, outer))
        elif not _is_echo(details, found):
            yield _sentence(details)


def _settings_at(model: type[BaseModel], location: list[int | str]) -> set[str]:
    """Names of the settings that there are at this place of the file."""
    models = [model]
    for part in location:  # an index, a key or the kind of a source leads on to the same models
        fields = [
            one.model_fields[part] for one in models if isinstance(part, str) and part in one.model_fields
        ]
        models = [inner for field in fields for inner in models_in(field.annotation)] or models
    return {name for one in models for name in one.model_fields}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Those that a setting of this type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def _sentence(details: ErrorDetails) -> str:
    where = _where(details["loc"])
    if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
        told = details["ctx"]
        tag = str(told["discriminator"]).strip("'")
        if "tag" not in told:
            return f"{where}.{tag}: {SENTENCES['missing']}"
        return f"{where}.{tag}: no {tag} {told['tag']!r}; one of {told['expected_tags']}"
    known = SENTENCES.get(details["type"])
    if known is not None:
        return f"{where}: {known}"
    what = details["msg"].removeprefix("Value error, ")
    if details.get("ctx", {}).get("pattern") == NAME_PATTERN:
        what = NAME_SENTENCE
    shown = repr(details["input"])
    if details["type"] == UNSHOWN or len(shown) > SHOWN_MAX_CHARS or isinstance(details["input"], dict):
        return f"{where}: {what}"
    return f"{where}: {what} (here: {shown})"


def _where(location: tuple[int | str, ...]) -> str:
    """`("devices", 3, "url")` as `devices[3].url`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "the whole file"
