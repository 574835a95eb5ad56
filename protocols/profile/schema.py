"""The JSON Schema of a profile file, for editors: completion, and a red line under what will not load.

It is made from the nouns in `model` and from nothing else. What it cannot say (units in names, worked
examples, blocks) is said when the profile is loaded. A file refers to it in its first line:

    # yaml-language-server: $schema=../../docs/profile.schema.json

`python -m protocols.profile.schema > docs/profile.schema.json` writes it anew.
"""

import json
import math
import sys
from typing import Any, Final

from pydantic import TypeAdapter

from protocols.profile.model import UNITS, Profile

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def profile_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a profile file."""
    made = TypeAdapter(Profile).json_schema(ref_template="#/$defs/{model}")
    schema: dict[str, Any] = _plain(made)
    definitions = schema["$defs"]
    for noun in (schema, definitions["Point"]):
        noun["properties"].pop("name")
        noun["required"] = [name for name in noun.get("required", ()) if name != "name"]
    definitions["Point"]["properties"]["unit"]["enum"] = list(UNITS)
    schema["title"] = "powerblock device profile"
    return {"$schema": DIALECT, **schema}


def _plain(node: Any) -> Any:
    """Without titles that repeat the key, and without defaults that JSON cannot say (infinity, NaN)."""
    if isinstance(node, list):
        return [_plain(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _plain(value)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str))
        and not (key == "default" and isinstance(value, float) and not math.isfinite(value))
    }


def text() -> str:
    """The schema as it is published."""
    return json.dumps(profile_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
