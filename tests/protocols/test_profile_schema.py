"""What is published for editors and readers is what the code says."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from protocols.profile import BUILTIN, builtin_profiles, load_profile
from protocols.profile.devices import table
from protocols.profile.schema import profile_schema, text

ROOT = Path(__file__).parents[2]
VALIDATOR = jsonschema.Draft202012Validator(profile_schema())


def as_json(name):
    """As an editor sees the file: keys are strings."""
    return json.loads(json.dumps(yaml.safe_load((BUILTIN / f"{name}.yaml").read_text())))


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(profile_schema())
    json.dumps(profile_schema(), allow_nan=False)


def test_the_published_schema_is_current():
    """Else: python -m protocols.profile.schema > docs/profile.schema.json."""
    assert (ROOT / "docs" / "profile.schema.json").read_text() == text()


def test_the_profile_that_shows_how_to_write_one_is_one(tmp_path):
    shown = table().partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "mine.yaml").write_text(shown)
    profile = load_profile(tmp_path / "mine.yaml")
    assert profile.points["energy_imported_wh"].word_order == "little"
    assert not list(VALIDATOR.iter_errors(json.loads(json.dumps(yaml.safe_load(shown)))))


def test_the_published_table_of_devices_is_current():
    """Else: python -m protocols.profile.devices > docs/devices.md."""
    assert (ROOT / "docs" / "devices.md").read_text() == table()


@pytest.mark.parametrize("name", builtin_profiles())
def test_every_builtin_profile_fits_the_schema_and_names_it(name):
    assert not [error.message for error in VALIDATOR.iter_errors(as_json(name))]
    first = (BUILTIN / f"{name}.yaml").read_text().splitlines()[0]
    path = first.removeprefix("# yaml-language-server: $schema=")
    assert (BUILTIN / path).resolve() == ROOT / "docs" / "profile.schema.json"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("points", "power_w", "unit"), "kW"),
        (("points", "power_w", "adress"), 1),
        (("points", "power_w", "type"), "f16"),
        (("points", "power_w", "address"), "x"),
        (("provenance", "evidence"), "hearsay"),
        (("protocol",), "bacnet"),
        (("colour",), "red"),
    ],
)
def test_an_editor_marks_what_would_not_load(place, value):
    document = as_json("pm5000_meter")
    *path, key = place
    target = document
    for step in path:
        target = target[step]
    target[key] = value
    assert list(VALIDATOR.iter_errors(document))


def test_every_key_says_what_it_is_for():
    """The editor's tooltip; the few without one are said by their name."""
    point = profile_schema()["$defs"]["Point"]["properties"]
    silent = [key for key, said in point.items() if not said.get("description")]
    assert not silent
