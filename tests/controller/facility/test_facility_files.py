"""`powerblock check` and `powerblock serve` say the same of files that cannot be used, and neither goes on."""

import asyncio

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner

from controller.cli import app
from controller.config import load_config
from controller.facility import serve
from controller.facility.files import CREDENTIALS
from controller.facility.opcua.users import hashed
from tests.brokers import Authority

URL = "mqtts://127.0.0.1:8883"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Certificates of two that have nothing to do with each other."""
    folder = tmp_path_factory.mktemp("authority")
    authority = Authority(folder)
    return authority, authority.client("one"), authority.client("other")


class Block:
    """A configuration with its folder."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "gateway.yaml"

    def written(self, **facility):
        content = {"block": "b", "state_dir": str(self.folder), "run_dir": str(self.folder)}
        self.path.write_text(yaml.safe_dump({**content, "facility": facility}))
        return self

    def checked(self):
        """Status and what was said."""
        found = CliRunner().invoke(app, ["check", str(self.path)], env={"COLUMNS": "200"})
        return found.exit_code, found.stderr.splitlines()

    def served(self):
        """Status and what was said."""

        async def run():
            return await serve.run(load_config(self.path), self.path)

        with capture_logs() as lines:
            status = asyncio.run(run())
        return status, [line["why"] for line in lines if line["event"] == "cannot start"]

    def said(self):
        """By both alike."""
        (status, said), (serve_status, serve_said) = self.checked(), self.served()
        assert (status, serve_status) == (1, 2)
        assert said == serve_said
        return "\n".join(said)


@pytest.fixture
def block(tmp_path):
    return Block(tmp_path)


def users(block, text, mode=0o640):
    path = block.folder / "users.yaml"
    path.write_text(text)
    path.chmod(mode)
    return block.written(opcua={"users": "users.yaml", "port": 0})


GOOD_USER = f'users:\n  - {{name: eyes, role: observe, password: "{hashed("look")}"}}\n'
BAD_USERS = {
    "an unknown role": ("users:\n  - {name: a, role: operator, password: x}\n", 0o640, "users[0].role"),
    "a plain password": ("users:\n  - {name: a, role: operate, password: x}\n", 0o640, "powerblock password"),
    "another structure": ("- {name: a}\n", 0o640, "must be settings"),
    "readable for everybody": (GOOD_USER, 0o644, "chmod 640"),
}


@pytest.mark.parametrize(("text", "mode", "words"), BAD_USERS.values(), ids=BAD_USERS)
def test_users_that_the_server_would_refuse_are_seen_beforehand(block, text, mode, words):
    said = users(block, text, mode).said()
    assert said.startswith("gateway.yaml: facility.opcua.users: ")
    assert words in said


def test_users_that_are_well_are_no_complaint(block):
    assert users(block, GOOD_USER).checked() == (0, [])


@pytest.mark.parametrize("way", ["bms", "mirror"])
def test_every_file_of_a_broker_that_is_not_there_is_named_with_its_place(block, way):
    mqtt = {"url": URL, "ca": "no-ca.pem", "cert": "no-cert.pem", "key": "no-key.pem"}
    said = block.written(**{way: {"mqtt": mqtt}}).said()
    for name in ("ca", "cert", "key"):
        path = block.folder / f"no-{name}.pem"
        assert f"facility.{way}.mqtt.{name}: {path}: No such file or directory" in said
    assert "Tls(" not in said


@pytest.mark.parametrize("way", ["bms", "mirror"])
def test_a_key_of_another_certificate_is_named_with_its_place(block, authority, way):
    own, one, other = authority
    mqtt = {"url": URL, "ca": own.ca_file, "cert": one.cert_file, "key": other.key_file}
    said = block.written(**{way: {"mqtt": mqtt}}).said()
    assert f"facility.{way}.mqtt.cert, key: {one.cert_file}, {other.key_file}: key values mismatch" in said


def test_a_file_that_is_no_certificate_is_named_with_its_place(block, authority):
    _, one, _ = authority
    nothing = block.folder / "empty.pem"
    nothing.write_text("")
    tls = {"ca": str(nothing), "cert": one.cert_file, "key": one.key_file}
    said = block.written(modbus={"allow": ["127.0.0.1"], "tls": tls}).said()
    assert f"facility.modbus.tls.ca: {nothing}: " in said


def test_what_the_bus_cannot_carry_is_seen_beforehand(block):
    said = block.written(bms={"mqtt": {"url": "mqtt://127.0.0.1"}, "site": "a b/#"}).said()
    assert "facility.bms: " in said


def test_what_systemd_hands_over_later_is_not_judged(block):
    late = str(CREDENTIALS / "powerblock-serve.service" / "ca.pem")
    mqtt = {"url": URL, "ca": late, "cert": late, "key": late}
    assert block.written(bms={"mqtt": mqtt}).checked() == (0, [])


def test_a_folder_that_the_server_makes_need_not_be_there(block):
    block.written(opcua={"anonymous": "observe", "folder": "pki", "port": 0})
    assert block.checked() == (0, [])
    assert not (block.folder / "pki").exists()


def test_a_folder_that_cannot_be_made_is_a_sentence_and_no_stack(block):
    (block.folder / "file").write_text("")
    block.written(opcua={"anonymous": "observe", "folder": "file/opcua", "port": 0})
    status, said = block.served()
    assert status == 2
    assert said == [f"{block.folder}/file/opcua/trusted: Not a directory; check the path and its permissions"]
