"""node.yaml, and every YAML file of the project: all errors at once, each with its culprit and remedy."""

from pathlib import Path

import pytest

from controller.agent.config import ConfigError, load_node
from controller.yaml_config import NAME_SENTENCE

GOOD = """
block: hall-a
node: n01
mqtt: {url: "mqtt://127.0.0.1"}
fallback_w: 300
state_dir: /var/lib/powerblock-agent
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "node.yaml"
    path.write_text(text)
    return path


def errors(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_node(written(folder, text))
    return str(caught.value).splitlines()


def test_a_password_in_a_url_is_refused_and_not_shown(tmp_path):
    path = tmp_path / "node.yaml"
    for url in (
        "mqtt://agent:s3cret@broker:1883",
        "mqt://agent:s3cret@broker",
        "mqtt://agent:s3cret@broker:x",
    ):
        path.write_text(f"block: b\nnode: n\nmqtt: {{url: '{url}'}}\nfallback_w: 300\nstate_dir: s\n")
        with pytest.raises(ConfigError, match=r"node\.yaml: mqtt\.url: ") as told:
            load_node(path)
        assert "s3cret" not in str(told.value)


def test_the_shortest_file_is_enough(tmp_path):
    config = load_node(written(tmp_path, GOOD))
    assert config.fallback_limits_w(8) == (300.0,) * 8
    assert (config.report_period_s, config.waiting_max_s, config.lease_max_s) == (0.1, 30.0, 10.0)
    assert config.mqtt.tls() is None
    assert config.mqtt.password() is None


def test_all_errors_come_at_once(tmp_path):
    wrong = "block: a/b\nmqtt: {url: 5, colour: red}\nfallback_w: [300, -5, x]\nreport_period_s: .nan\n"
    assert errors(tmp_path, wrong) == [
        f"node.yaml: block: {NAME_SENTENCE} (here: 'a/b')",
        "node.yaml: node: missing; add it",
        "node.yaml: mqtt.url: Input should be a valid string (here: 5)",
        "node.yaml: mqtt.colour: no such setting; remove it or correct its spelling",
        "node.yaml: fallback_w[1]: Input should be greater than 0 (here: -5)",
        "node.yaml: fallback_w[2]: Input should be a valid number (here: 'x')",
        "node.yaml: report_period_s: Input should be a finite number (here: nan)",
        "node.yaml: state_dir: missing; add it",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "node.yaml: the file is empty; write settings of the form `name: value`"),
        ("- 1\n", "node.yaml: must be settings of the form `name: value`, not list"),
        ("a: 1\nb: [\n", "node.yaml: line 3, column 1: "),
        ("a: 1\nb: 2\na: 3\n", "node.yaml: line 3, column 1: 'a' is given twice"),
        ("on: 1\n", "node.yaml: line 1, column 1: a key must be text; quote it"),
        (
            "a: !!python/object:os.system {}\n",
            "node.yaml: line 1, column 4: could not determine a constructor",
        ),
    ],
)
def test_a_file_that_is_no_settings_names_its_line(tmp_path, text, sentence):
    assert errors(tmp_path, text)[0].startswith(sentence)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; check the path"):
        load_node(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"block: \xe4\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 7"):
        load_node(tmp_path / "latin.yaml")


def test_one_fallback_per_gpu_needs_to_know_how_many_gpus(tmp_path):
    text = GOOD.replace("300", "[300, 250]")
    assert "give one number for all GPUs" in errors(tmp_path, text)[0]
    config = load_node(written(tmp_path, text + "gpus: {count: 2}\n"))
    assert config.fallback_limits_w(2) == (300.0, 250.0)
    assert config.fallback_limits_w(3) == (250.0, 250.0, 250.0)  # another count than told: the lowest for all


def test_modules_of_node_yaml_are_whole(tmp_path):
    text = GOOD + "gpus: {count: 3, per_module: 2}\n"
    assert errors(tmp_path, text) == [
        "node.yaml: gpus: count is 3, per_module 2: give a count of whole modules"
    ]


def test_a_password_comes_from_a_file(tmp_path):
    (tmp_path / "password").write_text("secret\n")
    text = GOOD.replace(
        '"mqtt://127.0.0.1"', f'"mqtt://h", username: n01, password_file: {tmp_path}/password'
    )
    assert load_node(written(tmp_path, text)).mqtt.password() == "secret"
    (tmp_path / "password").write_text("")
    with pytest.raises(ConfigError, match="holds no password"):
        load_node(written(tmp_path, text)).mqtt.password()
    (tmp_path / "password").unlink()
    with pytest.raises(ConfigError, match="make it readable"):
        load_node(written(tmp_path, text)).mqtt.password()


def test_paths_count_from_the_folder_of_node_yaml(tmp_path, monkeypatch):
    text = GOOD.replace('"mqtt://127.0.0.1"', '"mqtts://b", ca: ca.pem, password_file: pw')
    path = written(tmp_path, text.replace("/var/lib/powerblock-agent", "state"))
    monkeypatch.chdir("/")
    config = load_node(path)
    assert config.state_dir == tmp_path / "state"
    assert (config.mqtt.ca, config.mqtt.password_file) == (f"{tmp_path}/ca.pem", tmp_path / "pw")
