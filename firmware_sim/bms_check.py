"""Is a message of the DSX Exchange BMS bus what the contract says? By its AsyncAPI file, or by its shape.

    BMS/v1/PUB/Metadata/<object type>/<point type>/<tag path>   what the point is
    BMS/v1/PUB/Value/<object type>/<point type>/<tag path>      its value, timestamp (ms UTC) and quality

Every message of a run is looked at; one that does not fit fails the run.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

LEVELS_MIN: Final = 7
SORTS: Final = ("Value", "Metadata")
VALUE_MEMBERS: Final = {"value", "timestamp", "quality"}


def shape_fault(topic: str, payload: bytes) -> str:
    """What is wrong with the shape of a message; "": nothing."""
    levels = topic.split("/")
    if len(levels) < LEVELS_MIN or levels[:3] != ["BMS", "v1", "PUB"] or levels[3] not in SORTS:
        return "no topic of the bus"
    try:
        content = json.loads(payload)
    except ValueError as error:
        return f"no JSON: {error}"
    if not isinstance(content, dict):
        return "no object"
    if levels[3] == "Metadata":
        named = (content.get("objectType"), content.get("pointType"))
        return "" if named == (levels[4], levels[5]) else f"metadata of {named}"
    return _value_fault(content)


def _value_fault(content: Mapping[str, Any]) -> str:
    if content.keys() != VALUE_MEMBERS:
        return f"a value with the members {sorted(content)}"
    if not (content["value"] is None or _is_number(content["value"])):
        return f"value {content['value']!r}"
    if not isinstance(content["timestamp"], int) or not isinstance(content["quality"], int):
        return f"timestamp {content['timestamp']!r}, quality {content['quality']!r}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Contract:
    """The bus' own AsyncAPI file as a yardstick. Needs jsonschema, which comes with the `dev` extra."""

    def __init__(self, path: Path) -> None:
        from jsonschema import Draft202012Validator

        self._document: dict[str, Any] = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
        self._made = Draft202012Validator
        self._validators = cache(self._validators_of)

    def fault(self, topic: str, payload: bytes) -> str:
        """What is wrong with a message; "": nothing."""
        if fault := shape_fault(topic, payload):
            return fault
        _, _, _, sort, object_type, point_type, *_ = topic.split("/")
        content = json.loads(payload)
        validators = self._validators(sort, object_type, point_type)
        fitting = sum(validator.is_valid(content) for validator in validators)
        return "" if fitting == 1 else f"{fitting} message types of {object_type}/{point_type} fit {content}"

    def _validators_of(self, sort: str, object_type: str, point_type: str) -> tuple[Any, ...]:
        start = f"BMS/v1/PUB/{sort}/{object_type}/"
        for channel in self._document["channels"].values():
            points = channel.get("parameters", {}).get("pointType", {}).get("enum", ())
            if channel["address"].startswith(start) and point_type in points:
                names = [message["$ref"].rpartition("/")[2] for message in channel["messages"].values()]
                return tuple(self._validator(name) for name in names)
        return ()

    def _validator(self, message: str) -> Any:
        components = self._document["components"]
        payload = components["messages"][message]["payload"]
        return self._made({"allOf": [payload], "components": components})
