"""What is published about block.yaml for people and editors is what the code takes."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from controller.agent.config import NodeConfig, load_node
from controller.backstop.config import BackstopConfig
from controller.block_schema import block_schema, text
from controller.config import GatewayConfig, load_block, load_config
from controller.facility.dsx_bms.rules import KINDS
from controller.facility.opcua.users import UserFile
from controller.yaml_config import load, models_in
from firmware_sim.redfish_bmc import self_signed
from tests.controller.conftest import BLOCK

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "facility.md").read_text()
SECTION = PAGE.partition("## Every setting of a gateway")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
NODE = "block: b\nnode: n\nmqtt: {url: 'mqtt://h'}\nfallback_w: 300\nstate_dir: s\n"
FRAME = {"block": "hall-a", "state_dir": "/var/lib/powerblock", "run_dir": "/run/powerblock"}
VALIDATOR = jsonschema.Draft202012Validator(block_schema())


def examples(title: str) -> list[str]:
    """Those of a section of the operations page."""
    return re.findall(r"```yaml\n(.*?)```", section(title), re.DOTALL)


def section(title: str) -> str:
    return OPERATIONS.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def unexplained(model: type[BaseModel], title: str) -> set[str]:
    """Settings that are in no example and in no comment of the section."""
    shown = set().union(*(used(yaml.safe_load(block)) for block in examples(title)))
    return {one for one in settings(model) - shown if not re.search(rf"# .*\b{one}\b", section(title))}


def as_json(content):
    """As an editor sees it."""
    return json.loads(json.dumps(content))


def used(value, names=()) -> set[str]:
    """Every setting that a YAML document gives, by its name."""
    if isinstance(value, dict):
        return set(value).union(*(used(one) for one in value.values()))
    return set().union(*(used(one) for one in value)) if isinstance(value, list) else set(names)


def settings(model: type[BaseModel]) -> set[str]:
    inner = [one for field in model.model_fields.values() for one in models_in(field.annotation)]
    return set(model.model_fields).union(*(settings(one) for one in inner))


@pytest.mark.parametrize("block", BLOCKS, ids=[one.split("\n")[1].strip() for one in BLOCKS])
def test_every_example_of_a_setting_can_be_used_as_it_stands(block, tmp_path):
    content = yaml.safe_load(block)
    path = tmp_path / "example.yaml"
    if "users" in content:
        path.write_text(block)
        assert load(path, UserFile).users
        return
    path.write_text(yaml.safe_dump(FRAME | content))
    assert load_config(path)
    assert not [error.message for error in VALIDATOR.iter_errors(as_json(FRAME | content))]


def test_every_setting_of_a_gateway_is_explained():
    shown = set().union(*(used(yaml.safe_load(block)) for block in BLOCKS))
    unused = settings(GatewayConfig) - shown
    assert {one for one in unused if not re.search(rf"# .*\b{one}\b", SECTION)} == set()


@pytest.mark.parametrize("block", examples("Settings of an agent: `node.yaml`"))
def test_every_example_of_an_agents_setting_can_be_used_as_it_stands(block, tmp_path):
    path = tmp_path / "node.yaml"
    path.write_text(block if "node:" in block else NODE + block)
    assert load_node(path)


def test_every_setting_of_an_agent_is_explained():
    assert unexplained(NodeConfig, "Settings of an agent: `node.yaml`") == set()


def test_the_example_of_a_backstop_can_be_used_as_it_stands(tmp_path):
    (example,) = examples("Backstop")
    certificate = self_signed(tmp_path)
    here = example.replace("/etc/powerblock/bmc-ca.crt", str(certificate.cert_file))
    path = tmp_path / "block.yaml"
    path.write_text(BLOCK.format(folder=tmp_path).replace("node-a", "n07") + here)
    assert load_block(path).backstop is not None
    assert not list(VALIDATOR.iter_errors(as_json(yaml.safe_load(path.read_text()))))


def test_every_setting_of_the_backstop_is_explained():
    assert unexplained(BackstopConfig, "Backstop") == set()


@pytest.mark.parametrize(
    ("model", "title", "inside"),
    [(NodeConfig, "Settings of an agent: `node.yaml`", ()), (BackstopConfig, "Backstop", ("backstop",))],
    ids=["node.yaml", "backstop"],
)
def test_a_number_that_may_be_left_out_is_shown_as_it_is_then(model, title, inside):
    shown = {}
    for block in examples(title):
        content = yaml.safe_load(block)
        shown |= content[inside[0]] if inside else content
    defaults = {name: field.default for name, field in model.model_fields.items()}
    optional = {name: value for name, value in defaults.items() if isinstance(value, int | float)}
    assert len(optional) > 4
    assert {name: shown[name] for name in optional} == optional


def test_every_kind_that_the_bus_has_is_listed():
    assert {kind for kind in KINDS if f"`{kind}`" not in SECTION} == set()


def test_the_published_schema_is_current():
    """Else: python -m controller.block_schema > docs/block.schema.json."""
    assert (ROOT / "docs" / "block.schema.json").read_text() == text()


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(block_schema())


def test_a_block_with_gpus_fits_the_schema(tmp_path):
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(BLOCK.format(folder=tmp_path))))


@pytest.mark.parametrize(
    "wrong",
    [
        {"devcies": []},
        {"block": "hall a"},
        {"devices": [{"name": "a", "profile": "xerus_pdu", "url": "x", "poll": 1}]},
        {"devices": [{"name": "a", "profile": "xerus_pdu", "url": "x", "poll_s": "1"}]},
        {"facility": {"modbus": {}}},
        {"racks": []},
    ],
)
def test_an_editor_marks_what_would_not_load(wrong):
    assert list(VALIDATOR.iter_errors(FRAME | wrong))


def test_an_editor_shows_what_a_setting_is_for():
    device = block_schema()["$defs"]["NamedDeviceConfig"]["properties"]
    assert "null for plant that stands still" in device["frozen_after_s"]["description"]
    assert device["rack"]["description"] == device["feed"]["description"]
