"""What is wrong with a scenario, in sentences: where, what, and what to do about it.

curtailment.yaml: timeline.0.event.limit_kv: no such setting; remove it or correct its spelling (did you mean
limit_kw?)
"""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

# What to say instead of pydantic's words, by error type.
SENTENCES: Final = {
    "missing": "missing; add it",
    "extra_forbidden": "no such setting; remove it or correct its spelling",
    "model_type": "must be settings of the form `name: value`",
    "model_attributes_type": "must be settings of the form `name: value`",
}
SHOWN_MAX_CHARS: Final = 60  # of a wrong value, in the sentence about it


def close_to(name: str, known: Iterable[str]) -> str:
    """What may have been meant, for the end of a sentence; "" if nothing comes near."""
    near = get_close_matches(name, sorted(known), 3)
    best = min(near, key=lambda one: one[:1] != name[:1], default="")  # slips seldom hit the first letter
    return f" (did you mean {best}?)" if best else ""


def sentences(failure: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Every error in the shape of a `model`."""
    found = failure.errors(include_url=False)
    for error in found:
        if _is_echo(error, found):
            continue
        *outer, last = error["loc"] or ("the whole file",)
        where = ".".join(map(str, (*outer, last)))
        what = SENTENCES.get(error["type"])
        if error["type"] == "extra_forbidden":
            what = f"{what}{close_to(str(last), _settings_at(model, outer))}"
        yield f"{where}: {what or _as_told(error['msg'], error['input'])}"


def _is_echo(error: ErrorDetails, found: Iterable[ErrorDetails]) -> bool:
    """A list is called too short when none of its members passed: what is wrong with them has been said."""
    where = error["loc"]
    inner = (other["loc"] for other in found if other is not error)
    return error["type"] == "too_short" and any(loc[: len(where)] == where for loc in inner)


def _as_told(message: str, value: Any) -> str:
    what, shown = message.removeprefix("Value error, "), repr(value)
    if isinstance(value, dict) or len(shown) > SHOWN_MAX_CHARS:
        return what
    return f"{what} (here: {shown})"


def _settings_at(model: type[BaseModel], location: Iterable[int | str]) -> set[str]:
    """Names of the settings that there are at this place of the file."""
    models = [model]
    for part in location:  # an index or a key leads on to the same models
        fields = [
            one.model_fields[part] for one in models if isinstance(part, str) and part in one.model_fields
        ]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or models
    return {name for one in models for name in one.model_fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Those that a setting of this type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
