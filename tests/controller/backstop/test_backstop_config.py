"""The `backstop` part of block.yaml."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from controller.backstop import BackstopConfig, BmcEntry, backstop_errors
from controller.backstop import config as module
from controller.config import load_block
from controller.yaml_config import ConfigError
from protocols.redfish import RedfishConfigError

ROOT = Path(__file__).parents[3]
PIN = "ab" * 32


def config(**kwargs) -> BackstopConfig:
    wanted = {
        "limit_w": 300.0,
        "url_template": "https://{node}-bmc.mgmt.example",
        "user": "powerblock",
        "password_file": "/no/such/file",
        "fingerprint": PIN,
        **kwargs,
    }
    return BackstopConfig.model_validate_json(json.dumps(wanted), strict=True)


def test_every_node_has_a_bmc_by_template_or_by_name(tmp_path):
    made = config(bmcs={"n02": {"url": "https://10.0.7.2", "fingerprint": "cd" * 32}})
    assert list(backstop_errors(made, ["n01", "n02"])) == []
    assert made.settings("n01", "p").url == "https://n01-bmc.mgmt.example"
    assert (made.settings("n02", "p").url, made.settings("n02", "p").fingerprint) == (
        "https://10.0.7.2",
        "cd" * 32,
    )


def test_no_backstop_is_no_error():
    assert list(backstop_errors(None, ["n01"])) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"url_template": "https://bmc"}, "backstop.url_template: one BMC for all nodes"),
        ({"url_template": None}, "BMC of n01: url: missing"),
        (
            {"fingerprint": None},
            "BMC of n01: https://n01-bmc.mgmt.example: give exactly one of ca and fingerprint",
        ),
        ({"bmcs": {"n09": {}}}, "backstop.bmcs.n09: no such node"),
        ({"url_template": "http://{node}"}, "BMC of n01: url: http://n01: use https"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(wrong, told):
    assert any(
        error.startswith(("backstop: " + told, told)) for error in backstop_errors(config(**wrong), ["n01"])
    )


def test_what_is_wrong_with_all_nodes_is_not_said_of_each():
    told = list(backstop_errors(config(fingerprint=None), [f"n{number}" for number in range(144)]))
    assert (len(told), told[-1]) == (4, "backstop: BMCs of 141 more nodes: likewise")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://10.0.7.1", "https://10.0.7.1"),
        ("https://10.0.7.1", "https://10.0.7.1:443/"),
        ("https://N07-BMC.example", "https://n07-bmc.example."),
        ("https://[fd00::7]", "https://[fd00:0:0::7]"),
    ],
)
def test_two_nodes_with_one_bmc_are_named(one, other):
    made = config(bmcs={"n07": {"url": one}, "n08": {"url": other}})
    (told,) = backstop_errors(made, ["n01", "n07", "n08"])
    assert told.startswith("backstop: n07 and n08 have the same BMC")
    assert "give each its own url in backstop.bmcs" in told


def test_two_ports_of_one_address_are_two_bmcs():
    made = config(bmcs={"n07": {"url": "https://10.0.7.1:8443"}, "n08": {"url": "https://10.0.7.1"}})
    assert list(backstop_errors(made, ["n07", "n08"])) == []


def test_own_trust_replaces_that_of_all():
    made = config(bmcs={"n01": {"fingerprint": "cd" * 32}}, fingerprint=None, ca="/etc/ca.crt")
    assert made.settings("n01", "p").ca_file is None
    assert BmcEntry().url is None


@pytest.mark.parametrize(
    "wrong", [{"after_s": 0.5}, {"limit_w": 0}, {"lever": "oem"}, {"insecure": True}, {"user": None}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        config(**wrong)


def test_the_password_is_read_from_its_file(tmp_path):
    file = tmp_path / "password"
    with pytest.raises(ConfigError, match="make it readable"):
        config(password_file=str(file)).password()
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no password"):
        config(password_file=str(file)).password()
    file.write_text("secret\n")
    assert config(password_file=str(file)).password() == "secret"


def test_files_count_from_the_folder_of_block_yaml_which_opens_none_of_them(block_with):
    entry = {"limit_w": 300, "user": "powerblock", "password_file": "bmc-password", "ca": "pki/bmc.crt"}
    url = {
        "url_template": "https://{node}-bmc.example",
        "bmcs": {"node-a": {"url": "https://n-bmc.example", "ca": "pki/n.crt"}},
    }
    path = block_with({"backstop": entry | url})
    found = load_block(path).backstop  # none of them is there
    assert found.ca_files(["node-a", "node-b"]) == {
        "backstop.bmcs.node-a.ca": f"{path.parent}/pki/n.crt",
        "backstop.ca": f"{path.parent}/pki/bmc.crt",
    }
    for node in ("node-a", "node-b"):
        with pytest.raises(RedfishConfigError, match="give a readable PEM file"):
            found.settings(node, "p")  # as whoever talks to BMCs does before anything else


def test_a_ca_that_vouches_for_nobody_is_not_asked_for():
    made = config(bmcs={"n01": {"fingerprint": PIN}}, fingerprint=None, ca="/etc/ca.crt")
    assert made.ca_files(["n01"]) == {}


def test_a_ca_does_not_excuse_a_bmc_that_cannot_be_reached():
    made = config(fingerprint=None, ca="/no/such.crt", url_template="http://{node}")
    assert any("use https" in error for error in backstop_errors(made, ["n01"]))
    assert any("exactly one of ca and" in error for error in backstop_errors(config(ca="/ca.crt"), ["n01"]))


def test_the_example_in_the_source_is_that_of_the_operations_page():
    """Down to the path of the password, which is systemd's copy."""
    section = (ROOT / "docs" / "operations.md").read_text().partition("\n## Backstop\n")[2]
    shown = yaml.safe_load(section.partition("```yaml\n")[2].partition("```")[0])["backstop"]
    source = module.__doc__.partition("\n\n")[2].partition("\n\n")[0]
    given = yaml.safe_load(source)["backstop"]
    for name in given.keys() - {"bmcs"}:
        assert given[name] == shown[name], name
    assert "/etc/powerblock/credentials" in source
