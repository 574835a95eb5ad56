"""The published AsyncAPI contract as a yardstick, where it is at hand."""

import json
import os
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

SHARED = Path(os.environ.get("POWERBLOCK_SHARED", Path(__file__).parents[3].parent / "shared"))
CONTRACT = SHARED / "schemas" / "bms-1.0.0.yaml"
needs_contract = pytest.mark.skipif(not CONTRACT.exists(), reason=f"the contract is not at {CONTRACT}")


@cache
def contract():
    return yaml.safe_load(CONTRACT.read_text())


def channels():
    """(publisher, sort, object type) -> point types."""
    told = {}
    for channel in contract()["channels"].values():
        publisher, sort, object_type = channel["address"].split("/")[2:5]
        told[publisher, sort, object_type] = set(channel["parameters"]["pointType"]["enum"])
    return told


@cache
def _metadata_schemas(object_type):
    """What the messages of a channel must look like; a message says by its point type which it is."""
    channel = next(
        one
        for one in contract()["channels"].values()
        if one["address"].startswith(f"BMS/v1/PUB/Metadata/{object_type}/")
    )
    names = [message["$ref"].rpartition("/")[2] for message in channel["messages"].values()]
    return tuple(contract()["components"]["messages"][name]["payload"] for name in names)


@cache
def _validators(object_type):
    return tuple(_validator(json.dumps(schema)) for schema in _metadata_schemas(object_type))


@cache
def _validator(schema):
    whole = {"allOf": [json.loads(schema)], "components": contract()["components"]}
    return jsonschema.Draft202012Validator(whole)


def check(topic, payload):
    """Raises ValidationError when a message may not be on this topic of the bus."""
    bus, version, publisher, sort, object_type, point_type, *tag = topic.split("/")
    assert (bus, version) == ("BMS", "v1")
    assert tag
    content = json.loads(payload)
    allowed = channels()["PUB" if publisher == "PUB" else "{integration}", sort, object_type]
    assert point_type in allowed, f"{publisher} may not tell {sort} of {object_type}/{point_type}"
    if sort == "Value":
        _validator(json.dumps(contract()["components"]["messages"]["ValueMessage"]["payload"])).validate(
            content
        )
        return
    assert (content["objectType"], content["pointType"]) == (object_type, point_type)
    fitting = sum(validator.is_valid(content) for validator in _validators(object_type))
    if fitting != 1:
        raise jsonschema.ValidationError(f"{fitting} message types fit {content}")
