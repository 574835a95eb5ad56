"""block.yaml of a gateway: what a newcomer writes wrong is named with its place and its remedy, all of it at once."""

from pathlib import Path

import pytest
import yaml

from controller.config import ConfigError, load_block, load_config
from controller.gateway_config import profile_of

PDU = {"name": "pdu-1", "profile": "xerus_pdu", "url": "modbus+tcp://10.0.0.7"}
RPU = {"name": "rpu-1", "profile": "orv3_rpu", "url": "modbus+tcp://10.0.0.8"}
CHILLER = {"name": "ch-1", "profile": "carrier_30xv", "url": "modbus+tcp://10.0.0.9"}
BUS = {"mqtt": {"url": "mqtt://127.0.0.1"}}


@pytest.fixture
def gateway(tmp_path):
    def write(*devices, **settings):
        content = {"block": "hall-a", "state_dir": "state", "run_dir": "run", "devices": list(devices)}
        path = tmp_path / "block.yaml"
        path.write_text(yaml.safe_dump(content | settings))
        return path

    return write


def errors(path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value).splitlines()


# --- kinds and ranges --------------------------------------------------------------------------------


def test_a_kind_that_the_bus_does_not_have_is_refused_with_the_one_that_was_meant(gateway):
    (said,) = errors(gateway(PDU | {"kind": "pud"}, facility={"bms": BUS}))
    assert said.startswith(
        "block.yaml: devices[0].kind: 'pud' is none that facility.bms can tell; write one of pdu,"
    )
    assert said.endswith("(did you mean pdu?)")


@pytest.mark.parametrize("said", [{"type": "PowerMeter"}, {"publish": False}])
def test_a_kind_of_ones_own_is_no_error_where_the_objects_say_what_it_is(gateway, said):
    assert load_config(
        gateway(PDU | {"kind": "busway"}, facility={"bms": BUS | {"objects": {"devices/pdu-*": said}}})
    )


def test_without_the_bus_a_kind_is_but_a_word(gateway):
    assert load_config(gateway(PDU | {"kind": "busway"}))


def test_a_range_beyond_the_profiles_is_an_error_that_says_what_one_means(gateway):
    wide = {"demand_limit_ratio": {"lowest": -1, "highest": 100}}
    assert errors(gateway(CHILLER | {"writes": wide})) == [
        "block.yaml: devices[0].writes.demand_limit_ratio.highest: 100 is above the profile's 1 (a ratio: 1 is 100 %)",
        "block.yaml: devices[0].writes.demand_limit_ratio.lowest: -1 is below the profile's 0 (a ratio: 1 is 100 %)",
    ]


def test_a_range_says_its_unit(gateway):
    (said,) = errors(gateway(RPU | {"writes": {"coolant_supply_target_c": {"lowest": 15, "highest": 70}}}))
    assert said.endswith("coolant_supply_target_c.highest: 70 is above the profile's 60 (degC)")


# --- paths -------------------------------------------------------------------------------------------


def test_paths_count_from_the_folder_of_the_file_that_names_them(gateway, tmp_path, monkeypatch):
    security = {"certificate": "own.der", "key": "own.key", "trust": "trusted"}
    cdu = {"name": "cdu-1", "profile": "opcua_cdu", "url": "opc.tcp://10.0.0.6", "security": security}
    mqtt = {
        "url": "mqtts://b",
        "ca": "ca.pem",
        "cert": "sub/a.crt",
        "key": "/etc/a.key",
        "password_file": "pw",
    }
    path = gateway(cdu, facility={"bms": {"mqtt": mqtt}, "opcua": {"users": "users.yaml"}})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(path)
    assert (config.state_dir, config.run_dir) == (tmp_path / "state", tmp_path / "run")
    found = config.devices[0].security
    assert (found.certificate, found.key) == (tmp_path / "own.der", tmp_path / "own.key")
    assert (found.trust, found.user_key) == (tmp_path / "trusted", None)
    told = config.facility.bms.mqtt
    assert (told.ca, told.cert, told.key) == (f"{tmp_path}/ca.pem", f"{tmp_path}/sub/a.crt", "/etc/a.key")
    assert told.password_file == tmp_path / "pw"
    assert config.facility.opcua.users == tmp_path / "users.yaml"


def test_a_profile_of_ones_own_lies_beside_the_file_that_names_it(gateway, tmp_path, monkeypatch):
    from protocols.profile import BUILTIN

    (tmp_path / "types").mkdir()
    (tmp_path / "types" / "mine.yaml").write_text((BUILTIN / "xerus_pdu.yaml").read_text())
    path = gateway(PDU | {"profile": "types/mine.yaml"})
    monkeypatch.chdir("/")
    assert profile_of(load_config(path).devices[0]).name == "mine"


def test_a_profile_that_is_not_there_is_named_by_its_whole_path(gateway, tmp_path):
    (said,) = errors(gateway(PDU | {"profile": "mine.yaml"}))
    assert f"devices[0].profile: {tmp_path}/mine.yaml: cannot be read" in said


def test_in_a_relatively_named_file_paths_are_whole_as_well(gateway, tmp_path, monkeypatch):
    gateway(PDU)
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("block.yaml")).state_dir == tmp_path / "state"


def test_sources_of_the_site_count_from_the_file_too(block_with, tmp_path):
    source = {
        "kind": "openadr_vtn",
        "name": "vtn",
        "url": "https://vtn",
        "client_id": "a",
        "client_secret_file": "secret",
        "ven_name": "a",
        "ca": "vtn.pem",
    }
    (found,) = load_block(block_with({"site.sources": [source]})).site.sources
    assert (found.client_secret_file, found.ca) == (tmp_path / "secret", f"{tmp_path}/vtn.pem")


# --- all at once, in friendly words ------------------------------------------------------------------


def test_wrong_shapes_do_not_hide_what_is_wrong_with_sound_devices(gateway):
    path = gateway(
        PDU | {"poll": 1},
        PDU | {"name": "a", "profile": "xerus_pud"},
        PDU | {"name": "b", "url": "tcp://10.0.0.7"},
        PDU | {"name": "c"},
        PDU | {"name": "c", "url": "modbus+tcp://10.0.0.17"},
        "pdu",
    )
    said = "\n".join(errors(path))
    for one in (
        "devices[0].poll: no such setting; remove it or correct its spelling (did you mean poll_s?)",
        "devices[1].profile: no built-in profile 'xerus_pud'",
        "(did you mean xerus_pdu?)",
        "devices[2].url: 'tcp://10.0.0.7': unknown scheme",
        "devices[3], devices[4]: 'c' is used 2 times",
        "devices[5]: ",
    ):
        assert one in said, one


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"facilty": {}}, "facilty: no such setting; remove it or correct its spelling (did you mean facility?)"),
        ({"facility": {"bms": BUS | {"object": {}}}}, "facility.bms.object: no such setting; remove it or correct its spelling (did you mean objects?)"),
        ({"block": "hall a"}, "block: letters, digits, _ . - only, no spaces, 64 characters at most; a letter or digit first (here: 'hall a')"),
        ({"zzz": 1}, "zzz: no such setting; remove it or correct its spelling"),
    ],
)  # fmt: skip
def test_a_slip_is_told_what_was_meant(gateway, changes, sentence):
    assert errors(gateway(PDU, **changes)) == [f"block.yaml: {sentence}"]


def test_a_slip_in_a_source_of_the_site_is_compared_with_what_a_source_has(block_with):
    said = errors(block_with({"site.sources.0.hartbeat_topic": "t"}))
    assert said[0].endswith("correct its spelling (did you mean heartbeat_topic?)")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "---\n"])
def test_an_empty_file_is_called_empty(tmp_path, text):
    path = tmp_path / "block.yaml"
    path.write_text(text)
    assert errors(path) == ["block.yaml: the file is empty; write settings of the form `name: value`"]


def test_what_only_blocks_have_does_not_make_a_gateway_a_block(gateway):
    said = errors(gateway(PDU | {"profile": "nix"}, journal={"path": "j"}, mqtt={"url": "mqtt://b"}))
    assert said[0].startswith(
        "block.yaml: journal: is of blocks with GPUs; a gateway has none: remove it, or add"
    )
    assert said[1].startswith("block.yaml: mqtt: is of blocks with GPUs")
    assert said[2].startswith("block.yaml: devices[0].profile: no built-in profile 'nix'")
    assert len(said) == 3
