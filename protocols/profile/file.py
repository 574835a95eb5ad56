"""Reads a profile file: YAML to nouns, with every error of the file at once."""

from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from protocols import plain_yaml
from protocols.profile import complaints
from protocols.profile.model import Block, Example, Identity, Point, Profile, ProfileError

BUILTIN: Final = Path(__file__).parent.parent / "profiles"
FILE_MAX_BYTES: Final = 256 * 1024  # the largest vendor map seen, fully written out, needs a quarter of it
VALUES_MAX: Final = 100_000  # such a file has no more, even if it is all commas
MERGE_TAG: Final = "tag:yaml.org,2002:merge"
SHOWN_MAX_CHARS: Final = 60  # of a wrong value, in the sentence about it


class _UniqueKeys(yaml.SafeLoader):
    """A point written twice would silently replace the first one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE_TAG:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    "'<<' merges keys in unseen; write them out where they belong",
                    key_node.start_mark,
                )
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands twice; remove one", key_node.start_mark
                )
            seen.add(str(key) if not isinstance(key, (str, int)) else key)
        return super().construct_mapping(node, deep)


def builtin_profiles() -> tuple[str, ...]:
    """Names that `load_profile` knows without a path, sorted."""
    return tuple(sorted(path.stem for path in BUILTIN.glob("*.yaml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile of that name (built in) or in that file (anything that ends in .yaml).

    Raises:
        ProfileError: not there, not readable or not right; every error of the file, one per line.
    """
    path = Path(name_or_path)
    if path.suffix != ".yaml":
        if str(name_or_path) not in builtin_profiles():
            raise ProfileError(
                f"no built-in profile {str(name_or_path)!r}; "
                f"use {', '.join(builtin_profiles())}, or the path of a .yaml file"
            )
        path = BUILTIN / f"{name_or_path}.yaml"
    document = _read(path)
    errors: list[str] = []
    profile = _profile(document, path.stem, errors)
    if errors or profile is None:
        raise ProfileError("\n".join(f"{path.name}: {error}" for error in errors))
    return profile


def _read(path: Path) -> dict[Any, Any]:
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ProfileError(f"{path}: larger than {FILE_MAX_BYTES} bytes; this is not a profile")
        document = plain_yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys, values_max=VALUES_MAX)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}; check path and permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ProfileError(f"{path}: a profile is a mapping of title, protocol, points, ...; see {BUILTIN}")
    return document


def _profile(document: dict[Any, Any], name: str, errors: list[str]) -> Profile | None:
    """Build part by part, so that a fault in one point does not hide the fault in the next."""
    points = {
        str(key): point
        for key, raw in _mapping(document.get("points", {}), "points", errors).items()
        if (point := _build(Point, raw, f"points.{key}", errors, name=str(key)))
    }
    blocks = _build_each(Block, document.get("blocks", ()), "blocks", errors)
    identity = _build_each(Identity, document.get("identity", ()), "identity", errors)
    examples = _build_each(Example, document.get("examples", ()), "examples", errors)
    profile = _build(
        Profile, document, "", errors,
        name=name, points=points, blocks=blocks, identity=identity, examples=examples,
    )  # fmt: skip
    whole = not errors
    for point in points.values():
        errors.extend(f"points.{point.name}.{text}" for text in complaints.of_point(point))
    if profile is not None and whole:  # how parts fit together is worth a word once all parts are there
        errors.extend(complaints.of_profile(profile))
    return profile


_T = TypeVar("_T")


def _build(cls: type[_T], raw: object, path: str, errors: list[str], **given: object) -> _T | None:
    fields = _mapping(raw, path, errors)
    try:
        built: _T = _ADAPTERS[cls].validate_python({**fields, **given})
    except ValidationError as failure:
        for error in failure.errors(include_url=False):
            place = ".".join([path, *map(str, error["loc"])]).lstrip(".")
            shown = repr(error["input"])[:SHOWN_MAX_CHARS]
            errors.append(f"{place}: {_REMEDIES.get(error['type'], '{msg}').format(shown=shown, **error)}")
        return None
    return built


# making an adapter takes as long as loading a profile with it
_ADAPTERS: Final[dict[type, TypeAdapter[Any]]] = {
    noun: TypeAdapter(noun) for noun in (Point, Block, Identity, Example, Profile)
}

# pydantic's words -> ours, where ours name the remedy better
_REMEDIES: Final = {
    "missing": "missing; add it",
    "unexpected_keyword_argument": "unknown key; check the spelling or remove it",
    "literal_error": "{shown} is not known; use {ctx[expected]}",
}


def _build_each(cls: type[_T], raw: object, path: str, errors: list[str]) -> tuple[_T, ...]:
    if not isinstance(raw, (list, tuple)):
        errors.append(f"{path}: must be a list; start each entry with '- '")
        return ()
    built = (_build(cls, entry, f"{path}[{i}]", errors) for i, entry in enumerate(raw))
    return tuple(entry for entry in built if entry is not None)


def _mapping(raw: object, path: str, errors: list[str]) -> dict[str, Any]:
    if isinstance(raw, dict):
        return {str(key): value for key, value in raw.items()}
    errors.append(f"{path}: must be a mapping of names to values, not {type(raw).__name__}")
    return {}
