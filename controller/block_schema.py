"""The JSON Schema of `block.yaml`, for editors: completion, tooltips, and a red line under a slip.

It is made of the models that `powerblock check` uses, tooltips of their docstrings. What only shows between
settings (names, ranges of profiles, ports that two want) is for `powerblock check`. A file with any setting
that only blocks with GPUs have is such a block, any other a gateway, as `load_config` sees it. A file refers
to the schema in its first line:

    # yaml-language-server: $schema=/opt/powerblock/docs/block.schema.json

`python -m controller.block_schema > docs/block.schema.json` writes it anew.
"""

import json
import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from controller.config import MARKS, BlockConfig, GatewayConfig
from controller.yaml_config import models_in

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ATTRIBUTE: Final = re.compile(r"^    (\w+(?:, \w+)*): (.+(?:\n        .+)*)", re.MULTILINE)  # of a docstring


def block_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a block.yaml, with or without GPUs."""
    places, made = models_json_schema([(GatewayConfig, "validation"), (BlockConfig, "validation")])
    definitions = _plain(made["$defs"])
    for model in _all_of(BlockConfig):
        _explain(definitions[model.__name__], model)
    return {
        "$schema": DIALECT,
        "title": "powerblock block.yaml",
        "if": {"anyOf": [{"required": [mark]} for mark in sorted(MARKS)]},
        "then": places[BlockConfig, "validation"],
        "else": places[GatewayConfig, "validation"],
        "$defs": definitions,
    }


def _plain(node: Any) -> Any:
    """Without titles that repeat the key."""
    if isinstance(node, list):
        return [_plain(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _plain(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))
    }


def _all_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from _all_of(inner)


def _explain(noun: dict[str, Any], model: type[BaseModel]) -> None:
    """What the docstrings of a model and its bases say of an attribute goes to the attribute."""
    if "description" in noun:
        noun["description"] = noun["description"].partition("\n\nAttributes:\n")[0]
    for base in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        for names, said in ATTRIBUTE.findall(cleandoc(base.__doc__ or "")):
            for name in names.split(", "):
                written = model.model_fields[name].alias or name
                noun["properties"][written]["description"] = " ".join(said.split())


def text() -> str:
    """The schema as it is published."""
    return json.dumps(block_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
