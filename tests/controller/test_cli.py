"""The commands as people type them: what they print, and their exit status."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from rich.screen import Screen
from typer.testing import CliRunner

from controller.cli import app
from controller.config import load_block, settings_of
from controller.core.bounds import FOREVER_S
from controller.image.model import AlarmView
from controller.journal import Journal
from controller.reload import is_sound
from controller.status import StatusFile, block_status
from tests.controller.recorded import beats
from tests.core.blocks import SETTINGS

NOW = "2026-11-21T17:55:00Z"
EXAMPLES = Path(__file__).parents[2] / "examples"


def powerblock(*arguments, columns=100):
    result = CliRunner().invoke(
        app, [str(a) for a in arguments], env={"COLUMNS": str(columns), "TERM": "dumb"}
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def words(text) -> str:
    """One line, so that no sentence depends on where a terminal broke it."""
    return " ".join(text.split())


def test_help_names_every_command_and_exit_status():
    said = powerblock("--help").output
    assert all(
        name in said
        for name in ("run", "agent", "agent-farm", "check", "status", "explain", "replay", "Exit status")
    )


@pytest.mark.parametrize("command", ["run", "agent", "check", "explain", "replay"])
def test_a_command_without_its_file_is_bad_input(command):
    assert powerblock(command).exit_code == 2


def unboxed(text) -> str:
    return words("".join(letter for letter in text if letter not in "│╭╮╰╯─"))


# --- check -------------------------------------------------------------------------------------------


def test_check_lists_every_error_on_stderr_and_nothing_else(block_with):
    found = powerblock("check", block_with({"racks.0.nodes.0.tier": "gold", "meter.point": "nix"}))
    assert found.exit_code == 2
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 2


def test_check_takes_the_file_of_a_node_too(tmp_path):
    path = tmp_path / "node.yaml"
    lines = [
        "block: hall-a",
        "node: n1",
        "mqtt: {url: mqtt://127.0.0.1}",
        "gpus: {count: 8}",
        "state_dir: state",
    ]
    path.write_text("\n".join([*lines, "fallback_w: 250"]))
    found = powerblock("check", path)
    assert (found.exit_code, found.stderr) == (0, "")
    said = "node n1 of block hall-a: 8 GPUs; without a lease down to 250 W each, 2.00 kW in all"
    assert said in found.stdout
    assert json.loads(powerblock("check", path, "--json").stdout)["fallback_w"] == [250.0]
    path.write_text("\n".join([*lines, "fallback_w: 250"]).replace("node:", "nod:"))
    assert "did you mean node?" in powerblock("check", path).stderr
    path.write_text("\n".join([*lines, "fallback_w: -5"]))
    found = powerblock("check", path)
    assert (found.exit_code, found.stdout) == (2, "")
    assert "node.yaml: fallback_w" in found.stderr


NODE_FILES = ("password_file", "ca", "cert", "key")


@pytest.fixture
def node_with(tmp_path):
    """`node_with(ca="ca.pem", ...)`: path of a node.yaml whose broker is reached with these."""

    def write(**mqtt):
        path = tmp_path / "node.yaml"
        content = {"block": "hall-a", "node": "n1", "fallback_w": 250, "state_dir": "state"}
        path.write_text(json.dumps({**content, "mqtt": {"url": "mqtts://127.0.0.1", **mqtt}}))
        return path

    return write


def test_check_of_a_node_names_every_file_that_is_not_there_and_says_the_rest(node_with, tmp_path):
    path = node_with(**{name: f"no-{name}" for name in NODE_FILES}, username="n1")
    for options in ([], ["--json"]):
        found = powerblock("check", path, *options)
        assert found.exit_code == 1
        assert "250" in found.stdout
        told = found.stderr.splitlines()
        assert len(told) == len(NODE_FILES)
        for name, line in zip(NODE_FILES, told, strict=True):
            assert line.startswith(
                f"node.yaml: mqtt.{name}: {tmp_path}/no-{name}: No such file or directory; "
            )
            assert "check the path and its permissions: the agent will not start without it" in line


@pytest.mark.parametrize(
    ("mqtt", "sentence"),
    [
        ({"username": "n1", "password_file": "empty"}, "mqtt.password_file: {}/empty holds no password"),
        ({"ca": "empty"}, "mqtt: Tls(ca_file='{}/empty'"),
    ],
)
def test_check_of_a_node_tries_its_broker_as_the_agent_would(node_with, tmp_path, mqtt, sentence):
    (tmp_path / "empty").touch()
    found = powerblock("check", node_with(**mqtt))
    assert found.exit_code == 1
    assert f"node.yaml: {sentence.format(tmp_path)}" in found.stderr


def test_a_url_that_is_no_brokers_is_an_error_of_the_file(node_with):
    found = powerblock("check", node_with(url="http://h"))
    assert found.exit_code == 2
    assert found.stderr.startswith("node.yaml: mqtt.url: ")
    assert "http://h: use mqtt://host:port or mqtts://host:port" in found.stderr


def test_what_systemd_gives_an_agent_later_is_not_missed(node_with):
    given = "/run/credentials/powerblock-agent.service/mqtt_n1.password"
    found = powerblock("check", node_with(username="n1", password_file=given))
    assert (found.exit_code, found.stderr) == (0, "")


@pytest.mark.parametrize("scenario", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_scenario_of_the_rig_is_told_where_it_belongs(scenario):
    found = powerblock("check", scenario)
    assert (found.exit_code, found.stdout) == (2, "")
    (told,) = found.stderr.splitlines()
    assert f"{scenario.name}: a scenario for the rig" in told
    assert f"`powerblock-rig run {scenario}`" in told
    assert "check takes a block.yaml or a node.yaml" in told


def test_a_block_with_a_stray_setting_of_scenarios_is_still_a_block(block_with):
    found = powerblock("check", block_with({"timeline": []}))
    assert found.stderr == "block.yaml: timeline: no such setting; remove it or correct its spelling\n"


def test_check_shows_the_tree_of_limits(block_with):
    found = powerblock("check", block_with())
    assert found.exit_code == 0
    for said in (
        "feed rating 14.00 kW",
        "failsafe of openadr 9.00 kW 5.0 s after it was last heard, until it is back",
        "ramp 0.6 kW/s down, 0.4 up begins when a window opens",
        "rack r1 17.66 kW on shared inlets, 8.83 kW on one",
        "inlet r1-a feed A 32 A x 230 V x 3 = 22.08 kW, continuous 17.66 kW",
        "continuous 8.83 kW tightest",
        "node node-b 8 GPUs of 200 to 700 W = 1.60 kW to 5.60 kW; tier critical, floor 500 W",
        "every GPU at its most 12.37 kW 16.87 kW",
        "can shed 5.61 kW, 40 % of 14.00 kW",
        "fallback_w of the nodes: 235 W per GPU at most, so that all agents may be left alone at once",
    ):
        assert said in words(found.stdout).replace("│ ", "").replace("├── ", "").replace("└── ", ""), said


@pytest.mark.parametrize(
    ("changes", "fallback_w", "bound"),
    [
        ({}, 4000.0 / 1.06 / 16, "the failsafe limit"),
        ({"site.failsafe_kw": 14, "feed.rating_kw": 14}, 9000.0 / 1.06 / 16, "the failsafe limit"),
        (
            {"site.failsafe_kw": 14, "racks.1.inlets.0.rating_a": 12},
            (6624.0 - 2500.0) / 1.06 / 8,
            "rack r2 on one inlet",
        ),
        ({"racks.1.inlets.0.rating_a": 5}, None, "rack r2 on one inlet"),
        # eight are never below 300 W, so the others have what is left
        (
            {"site.failsafe_kw": 10, "racks.0.nodes.0.min_w": 300},
            5000.0 / 1.06 / 8 - 300.0,
            "the failsafe limit",
        ),
    ],
)
def test_check_derives_what_agents_may_fall_back_to_all_at_once(block_with, changes, fallback_w, bound):
    facts = json.loads(powerblock("check", block_with(changes), "--json").stdout)["facts"]
    assert (facts["fallback_w"], facts["fallback_bound"]) == (fallback_w and pytest.approx(fallback_w), bound)


def test_check_says_what_follows_in_numbers(block_with):
    path = block_with({"site.ramp_margin_ratio": 0})
    facts = json.loads(powerblock("check", path, "--json").stdout)["facts"]
    gpu_w = 1.06 * 16
    assert facts["most_w"] == pytest.approx(5000.0 + gpu_w * 700.0)
    assert facts["least_w"] == pytest.approx(5000.0 + gpu_w * 200.0)
    assert facts["full_w"] == 14_000.0
    assert facts["sheddable_w"] == pytest.approx(14_000.0 - facts["least_w"])
    assert facts["failsafe_fall_s"] == pytest.approx(5000.0 / 600.0 + settings_of(load_block(path)).lead_s)
    assert facts["failsafe_rise_s"] == pytest.approx(5000.0 / 400.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "above the feed rating: normal for a block that shares"),
        ({"feed.rating_kw": 40}, "the racks bind before the feed does"),
        ({"site.failsafe_kw": 9}, "tiers lose their floors while the site is lost"),
        ({"racks.1.inlets.0.rating_a": 5}, "no fallback_w is low enough: were all agents left alone at once"),
        ({"site.failsafe_release_after_s": 600}, "opens up while its site is blind"),
        ({"racks.1.nodes.0.max_w": 1000}, "rack r2: at full power 10.98 kW, one inlet carries 8.83 kW"),
        ({"racks.1.inlets.0.rating_a": 5}, "limits alone cannot save it"),
        ({"racks.1.inlets.0.rating_a": 5}, "rack r2: its GPUs never all reach their most"),
        ({"racks.1.inlets.0.feed": "B"}, "rack r2: all inlets hang on feed B"),
        ({"tiers.spare": {"floor_w": 300}}, "tier 'spare' is given to no node"),
        ({"tiers.standard.floor_w": 900}, "node node-a: the floor of tier 'standard', 900 W, lies outside"),
        ({"racks.0.inlets.0.poll_s": 3.0}, "inlet r1-a: polled every 3 s but stale after 5 s"),
        (
            {"racks.0.inlets.1.url": "modbus+tcp://10.0.0.11"},
            "inlets r1-a, r1-b read the same point of the same device",
        ),
        (
            {"cooling": {"profile": "opcua_cdu", "url": "opc.tcp://h", "security": "none", "blind_kw": 8.0}},
            "cooling.blind_kw 8.00 kW cannot be reached",
        ),
    ],
)
def test_check_warns_of_what_may_not_be_meant(block_with, changes, sentence):
    found = powerblock("check", block_with(changes))
    assert found.exit_code == 0
    assert sentence in words(found.stdout)


BACKSTOP = {
    "limit_w": 230,
    "url_template": "https://{node}-bmc.example",
    "user": "powerblock",
    "password_file": "bmc",
    "fingerprint": "9f" * 32,
}
FREQUENCY = {"preset": "nordic_ffr_a_short", "committed_kw": 5, "input": {"way": "mqtt", "topic": "grid/hz"}}


@pytest.fixture
def armed_with(block_with, tmp_path):
    """`armed_with(changes)`: path of a block with a frequency response and a backstop."""
    (tmp_path / "bmc").write_text("secret")

    def write(changes=None):
        return block_with({"frequency": dict(FREQUENCY), "backstop": dict(BACKSTOP), **(changes or {})})

    return write


def test_check_shows_what_answers_the_frequency_and_what_holds_a_silent_host(armed_with):
    found = powerblock("check", armed_with(), columns=200)
    assert (found.exit_code, found.stderr) == (0, "")
    for said in (
        "frequency response: Nordic FFR 49.7 Hz, 1.3 s, short support, committed 5.00 kW",
        "100 % at 49.7 Hz, full within 1.3 s; held 5.0 s",
        "ready again 15 min after it began",
        "input mqtt, a value every 0.02 s",
        "backstop: a silent host is held by its BMC at 230 W per GPU",
        "after 10 s of silence, by lever gpu",
        "BMCs at https://{node}-bmc.example; user powerblock",
    ):
        assert said in words(found.stdout), said
    assert "frequency.committed_kw" not in found.stdout
    assert "backstop.limit_w" not in found.stdout


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"frequency.committed_kw": 5000}, "frequency.committed_kw: 5,000.00 kW can never be shed"),
        (
            {"backstop.limit_w": 900},
            "backstop.limit_w: 900 W is above the most of the GPUs of node node-a, 200 to 700 W, and of 1 more",
        ),
        (
            {"backstop.limit_w": 100},
            "backstop.limit_w: 100 W is below the least of the GPUs of node node-a, 200 to 700 W, and of 1 more",
        ),
        (
            {"backstop.limit_w": 650},
            "backstop.limit_w: 650 W is above 235 W, the most that all GPUs may be held at when every agent is",
        ),
    ],
)
def test_check_warns_of_numbers_that_the_hall_cannot_follow(armed_with, changes, sentence):
    found = powerblock("check", armed_with(changes))
    assert found.exit_code == 0
    assert sentence in words(found.stdout)


def test_a_backstop_at_what_every_gpu_can_do_is_not_above_it(armed_with):
    changes = {"site.failsafe_kw": 40, "feed.rating_kw": 40, "backstop.limit_w": 700}
    changes |= {f"racks.{rack}.inlets.{inlet}.rating_a": 63 for rack in (0, 1) for inlet in (0, 1)}
    assert "backstop.limit_w" not in powerblock("check", armed_with(changes)).stdout


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "No such file or directory"), ("", "holds no password; write it there")],
    ids=["missing", "empty"],
)
def test_a_password_of_bmcs_that_is_not_there_stops_check_and_reload(
    armed_with, tmp_path, content, sentence, capfd
):
    path = armed_with()
    assert is_sound(path)
    (tmp_path / "bmc").unlink()
    if content is not None:
        (tmp_path / "bmc").write_text(content)
    found = powerblock("check", path)
    assert found.exit_code == 1
    assert sentence in found.stderr
    assert "backstop.password_file" in found.stderr
    capfd.readouterr()
    assert not is_sound(path), "or the running controller would end, and not start again"
    said = capfd.readouterr()
    assert sentence in said.out + said.err


def with_cas(armed_with, *, common="ca.pem", own="own.pem"):
    """A block whose BMCs are vouched for by CAs: one of its own for node-b."""
    entry = {key: value for key, value in BACKSTOP.items() if key != "fingerprint"}
    url = "https://10.0.7.2"
    return armed_with({"backstop": {**entry, "ca": common, "bmcs": {"node-b": {"url": url, "ca": own}}}})


def test_a_missing_ca_of_bmcs_hides_nothing_of_the_block_and_no_other_file(armed_with, tmp_path):
    path = with_cas(armed_with)
    (tmp_path / "bmc").unlink()
    found = powerblock("check", path)
    assert found.exit_code == 1
    assert "a silent host is held by its BMC at 230 W per GPU" in words(found.stdout)
    assert found.stderr.splitlines() == [
        f"block.yaml: {place}: {tmp_path}/{file}: No such file or directory; check the path and its"
        " permissions: the controller will not start without it"
        for place, file in (
            ("backstop.password_file", "bmc"),
            ("backstop.ca", "ca.pem"),
            ("backstop.bmcs.node-b.ca", "own.pem"),
        )
    ]


def test_a_missing_ca_does_not_hide_what_is_wrong_inside_of_other_files(armed_with, tmp_path):
    """Only what belongs to the missing file waits for it."""
    (tmp_path / "own.pem").write_text("no certificate")
    (tmp_path / "bmc").write_text("\n")
    told = powerblock("check", with_cas(armed_with)).stderr
    assert f"backstop.ca: {tmp_path}/ca.pem: No such file or directory" in told
    assert f"backstop.password_file: {tmp_path}/bmc holds no password; write it there" in told
    assert f"backstop.bmcs.node-b.ca: {tmp_path}/own.pem: no certificate or crl found; give a PEM" in told


def test_a_ca_that_several_bmcs_share_is_told_once(armed_with, tmp_path):
    told = powerblock("check", with_cas(armed_with, own="ca.pem")).stderr
    assert told.count("No such file") == 1
    assert f"backstop.ca: {tmp_path}/ca.pem: " in told


def test_a_reload_does_not_happen_without_the_ca_of_bmcs(armed_with):
    assert not is_sound(with_cas(armed_with))


def test_what_systemd_gave_this_process_is_there_or_a_reload_would_end_it(armed_with, monkeypatch):
    """Credentials are copied when a service starts: a reload gets no new ones."""
    given = "/run/credentials/powerblock.service"
    path = armed_with({"backstop.password_file": f"{given}/bmc"})
    assert powerblock("check", path).exit_code == 0, "somebody else's are to come"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", given)
    assert not is_sound(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/powerblock-serve.service")
    assert is_sound(path)


def test_a_failsafe_limit_above_all_that_is_drawn_is_said_to_take_nothing(block_with):
    shown = words(powerblock("check", block_with({"feed.rating_kw": 40, "site.failsafe_kw": 20})).stdout)
    assert "failsafe 20.00 kW takes nothing: the block never draws more than 16.87 kW" in shown
    assert "back up in" not in shown


def with_dsx(block_with, tmp_path, **changes):
    from tests.controller.site.dsx_site import source_config

    return block_with({"site.sources": [source_config(tmp_path, **changes)]})


def test_check_of_files_that_fit_is_all_well(block_with, tmp_path):
    found = powerblock("check", with_dsx(block_with, tmp_path))
    assert (found.exit_code, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"signing_key": "absent.pem"}, "the controller will not start without it"),
        ({"signing_key": "isv-1.pub.pem"}, "give a PEM of an EC P-256 or RSA private key"),
        ({"publishers": {"isv-1": "isv-1.key.pem"}}, "give a PEM that begins with BEGIN PUBLIC KEY"),
        (
            {"mqtt": {"url": "mqtt://b", "ca": "isv-1.pub.pem"}},
            "site.sources[0].mqtt: mqtt://b: TLS files are given, but the url is not mqtts://",
        ),
        (
            {"mqtt": {"url": "mqtt://b", "username": "a", "password_file": "empty"}},
            "block.yaml: site.sources[0].mqtt.password_file: ",
        ),
    ],
)
def test_check_tries_the_files_as_the_controller_would(block_with, tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    found = powerblock("check", with_dsx(block_with, tmp_path, **changes))
    assert found.exit_code == 1
    assert sentence in found.stderr


def test_a_source_that_is_wrong_does_not_make_the_list_too_short(block_with):
    found = powerblock(
        "check", block_with({"site.sources.0.hearbeat": 5, "site.sources.0.heartbeat_topic": ...})
    )
    assert found.exit_code == 2
    assert "hearbeat: no such setting" in found.stderr
    assert "Tuple should have" not in found.stderr


def test_a_source_of_no_kind_is_told_the_kinds(block_with):
    found = powerblock("check", block_with({"site.sources.0.kind": "openadr"}))
    assert "site.sources[0].kind: no kind 'openadr'; one of 'openadr_mqtt'" in found.stderr


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"way": "mqttt"}, "frequency.input.way: no way 'mqttt'; one of 'meter', 'phasor_udp'"),
        ({"topic": "grid/hz"}, "frequency.input.way: missing; add it"),
    ],
)
def test_a_setting_that_decides_which_others_there_are_is_called_by_its_name(armed_with, given, sentence):
    found = powerblock("check", armed_with({"frequency.input": given}))
    assert found.exit_code == 2
    assert sentence in found.stderr


# --- status ------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path):
    """A run directory as a controller leaves it, written just now."""
    from controller.clock import now_utc_s

    *_, (_, seen, decision) = beats(40)
    content = {
        "block": "hall-a",
        "epoch": 1,
        "started_utc_s": now_utc_s() - 60.0,
        **block_status(SETTINGS, seen, decision),
        "at_utc_s": now_utc_s(),
        "links": [
            {"name": "broker", "up": True, "fault": "", "age_s": None},
            {"name": "r1-a", "up": False, "fault": "no reply from unit 1", "age_s": 12.0},
        ],
        "site": {
            "sources": [{"name": "openadr", "mode": "limited", "heartbeat_age_s": 0.4, "plan_age_s": None}],
            "setpoints": [{**asdict(one), "stands": "binds"} for one in seen.site.setpoints],
            "accepted": 3,
            "refused": 1,
            "signals": [
                {
                    "at_utc_s": 0.0,
                    "source": "openadr",
                    "sender": "t",
                    "about": "create dr-7",
                    "accepted": False,
                    "reason": "units 'MW'; send KW",
                }
            ],
        },
        "alarms": [],
        "facility": {"mode": "remote", "limit_w": None, "slots": []},
        "beat": {"count": 40, "late_p99_ms": 0.4, "late_max_ms": 0.6, "tick_p99_ms": 0.9, "skipped": 0},
    }

    def write(**changes):
        StatusFile(tmp_path / "run").write(content | changes)
        return tmp_path / "run"

    return write


def alarm(key, text, **changes):
    view = AlarmView(
        key=key,
        text=text,
        priority="high",
        state="",
        active=True,
        acknowledged=False,
        since_utc_s=0.0,
    )
    return msgspec.structs.replace(view, **changes)


@pytest.mark.parametrize("columns", [80, 120])
def test_status_of_a_gateway_shows_its_devices(tmp_path, columns):
    from controller.clock import now_utc_s

    links = [
        {"name": "pdu-1", "up": True, "fault": "", "age_s": 0.2},
        {"name": "cdu-1", "up": False, "fault": "connection refused", "age_s": None},
    ]
    StatusFile(tmp_path).write(
        {
            "block": "hall-a",
            "epoch": 3,
            "started_utc_s": now_utc_s(),
            "at_utc_s": now_utc_s(),
            "alarms": [alarm("device cdu-1", "connection refused")],
            "links": links,
            "facility": {"mode": "remote", "limit_w": None, "slots": []},
        }
    )
    shown = powerblock("status", "--run-dir", tmp_path, "--once", columns=columns)
    assert shown.exit_code == 0
    for said in ("1 alarm", "switch REMOTE", "pdu-1", "cdu-1 down connection refused"):
        assert said in words(shown.stdout), said


def test_alarms_that_are_over_come_last_and_say_so_without_any_colour(run_dir):
    over = [alarm(f"device d{number}", "was away", active=False) for number in range(20)]
    folder = run_dir(alarms=[*over, alarm("shortfall", "1.28 kW cannot be shed")])
    shown = words(powerblock("status", "--run-dir", folder, "--once").stdout)
    assert shown.index("shortfall 1.28 kW cannot be shed") < shown.index("device d0 over: was away")


def test_what_was_wished_of_a_node_that_does_not_obey_is_not_shown_as_its_limit(run_dir):
    nodes = [
        {"name": name, "heard": heard, "leased": leased, "gpus": 8, "power_w": 5160.0, "limit_w": 3470.0}
        | {"order": 3, "confirmed": 3, "refused": "", "faults": []}
        for name, heard, leased in (("n1", True, True), ("n2", True, False), ("n3", False, False))
    ]
    shown = words(powerblock("status", "--run-dir", run_dir(nodes=nodes), "--once").stdout)
    for said in ("n1 8 5.16 kW 3.47 kW", "n2 8 5.16 kW ? kW not under", "n3 8 5.16 kW ? kW silent"):
        assert said in shown, said


@pytest.mark.parametrize("columns", [80, 120])
def test_status_shows_what_binds_and_what_is_wrong(run_dir, columns):
    folder = run_dir(
        alarms=[
            alarm("pdu r1-a", "PDU r1-a not usable"),
            alarm("broker", "was away", active=False),
            alarm("meter", "nobody wants to see this", out_of_service=True),
        ],
        facility={
            "mode": "local",
            "limit_w": 4000.0,
            "slots": [{"writer": "panel bob", "priority": 8, "limit_w": 4000.0, "ends_utc_s": 1e12}],
        },
    )
    shown = powerblock("status", "--run-dir", folder, "--once", columns=columns)
    assert shown.exit_code == 0
    assert max(len(line) for line in shown.stdout.splitlines()) <= columns
    for said in (
        "hall-a",
        "1 alarm, 1 over and not acknowledged",
        "PDU r1-a not usable",
        "switch LOCAL 4.00 kW by panel bob, priority 8",
        "binding",
        "lowest first",
        "feed rating (protection)",
    ):
        assert said in words(shown.stdout), said
    assert "nobody wants to see this" not in shown.stdout
    for said in (
        "r1-a down no reply from unit 1",
        "units 'MW'; send KW",
        "n0",
        "r0",
        "heard 0.4 s ago, no plan yet",
    ):
        assert said in words(shown.stdout), said


def test_status_shows_a_level_that_is_called_and_by_whom(run_dir):
    levels = [{"name": "gentle", "limit_w": 4000.0}, {"name": "deep", "limit_w": 3000.0}]
    called = [{"level": "deep", "by": "stop"}, {"level": "gentle", "by": "alice"}]
    calm = {"level": None, "called": [], "levels": levels}
    folder = run_dir(shed=calm | {"level": "deep", "called": called})
    shown = words(powerblock("status", "--run-dir", folder, "--once").stdout)
    assert "shed deep 3.00 kW called by stop, alice" in shown
    assert "called by" not in powerblock("status", "--run-dir", run_dir(shed=calm), "--once").stdout


@pytest.mark.parametrize(
    ("starts_s", "ends_s", "said"),
    [
        (None, 600.5, "power limit facility panel jane until {end}, ends in 10 min; binds"),
        (None, None, "power limit facility panel jane no end; binds"),
        (-60.0, 600.5, "power limit facility panel jane {start} to {end}, ends in 10 min; binds"),
        (60.5, 600.5, "power limit facility panel jane {start} to {end}, opens in 1 min; binds"),
    ],
)
def test_a_window_that_has_always_been_open_shows_its_end_alone(run_dir, starts_s, ends_s, said):
    """The panel's limits start at 0, in 1970."""
    from controller.clock import now_utc_s
    from controller.views.figures import moment

    now = now_utc_s()
    starts_utc_s = 0.0 if starts_s is None else now + starts_s
    ends_utc_s = FOREVER_S if ends_s is None else now + ends_s
    one = {"source": "facility", "id": "panel jane", "kind": "power limit", "limit_w": 4000.0}
    window = one | {"starts_utc_s": starts_utc_s, "ends_utc_s": ends_utc_s, "stands": "binds"}
    site = {"sources": [], "setpoints": [window], "accepted": 0, "refused": 0, "signals": []}
    shown = words(powerblock("status", "--run-dir", run_dir(site=site), "--once").stdout)
    assert said.format(start=moment(starts_utc_s, now), end=moment(ends_utc_s, now)) in shown
    assert "1970" not in shown


def on_screen(folder, rows, columns=80) -> list[str]:
    """The lines of a live screen as high as this."""
    from controller.clock import now_utc_s
    from controller.views import status as view

    console = Console(file=io.StringIO(), force_terminal=True, width=columns, height=rows)
    now = now_utc_s()
    screen = Screen(view.render(view.look(folder / "status.json", now), now, columns))
    with console.screen():
        return ["".join(part.text for part in line) for line in console.render_lines(screen)]


@pytest.mark.parametrize("columns", [24, 80, 120])
def test_a_screen_that_is_too_low_says_how_many_lines_it_leaves_out(run_dir, columns):
    folder = run_dir()
    paper = powerblock("status", "--run-dir", folder, "--once", columns=columns).stdout.splitlines()
    lines = on_screen(folder, len(paper) - 3, columns)
    assert len(lines) == len(paper) - 3
    assert lines[-1].startswith("… 4 more lines: --once"), "three, and the one that it stands on"
    assert "more lines" not in "".join(on_screen(folder, len(paper), columns) + paper)


def test_a_rack_of_a_silent_node_shows_what_is_known_and_counts_the_gpus_that_are_not(run_dir):
    rack = {"name": "r0", "power_w": 1000.0, "gpu_w": None, "gpu_known_w": 700.0, "gpus_unknown": 8}
    racks = [rack | {"gpu_limit_w": 2000.0, "gpu_room_w": 2500.0}]
    shown = powerblock("status", "--run-dir", run_dir(racks=racks), "--once").stdout
    assert "r0 1.00 kW 0.70 kW + 8 ? 2.00 kW █" in words(shown)


def test_status_says_when_nobody_writes_it(tmp_path):
    shown = powerblock("status", "--run-dir", tmp_path, "--once")
    assert shown.exit_code == 1
    assert "controller not running" in shown.stdout
    assert "does not exist; is its run_dir another? powerblock status block.yaml" in unboxed(shown.stdout)


def test_status_of_a_file_that_names_the_folder_does_not_ask_for_it(block_with):
    shown = powerblock("status", block_with(), "--once")
    assert "run/status.json does not exist" in unboxed(shown.stdout)
    assert "is its run_dir another" not in unboxed(shown.stdout)


def test_status_calls_a_device_that_answers_and_is_not_believed_in_doubt(run_dir):
    links = [
        {"name": "cdu-1", "up": False, "in_doubt": True, "fault": "no register has moved", "age_s": 0.4},
        {"name": "r1-a", "up": False, "in_doubt": False, "fault": "no reply", "age_s": 12.0},
    ]
    shown = words(powerblock("status", "--run-dir", run_dir(links=links), "--once").stdout)
    assert "cdu-1 in doubt no register has moved" in shown
    assert "r1-a down no reply" in shown


@pytest.mark.parametrize(("age_s", "when"), [(12.0, "12 s ago"), (-30.0, "30 s ahead of this clock")])
def test_status_says_when_the_controller_is_stuck(run_dir, age_s, when):
    from controller.clock import now_utc_s

    shown = powerblock("status", "--run-dir", run_dir(at_utc_s=now_utc_s() - age_s), "--once")
    assert shown.exit_code == 1
    assert f"controller not running or stuck: last written {when}" in words(shown.stdout)


def test_status_of_a_block_that_knows_nothing_shows_question_marks(run_dir):
    folder = run_dir(power_w=None)
    assert "? kW of 5.00 kW" in words(powerblock("status", "--run-dir", folder, "--once").stdout)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"v": 9}'])
def test_status_of_a_file_it_cannot_read_is_a_sentence(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    shown = powerblock("status", "--run-dir", tmp_path, "--once")
    assert shown.exit_code == 1
    assert "status.json" in shown.stdout


def test_status_for_programs(run_dir, block_with):
    found = json.loads(powerblock("status", "--run-dir", run_dir(), "--json").stdout)
    assert found["fault"] == ""
    assert found["age_s"] < 2.0
    assert found["status"]["block"] == "hall-a"
    assert powerblock("status", block_with(), "--json").exit_code == 0, "the block file names the same folder"


def test_long_lists_show_the_troubled_first_and_count_the_rest(run_dir):
    node = {"gpus": 8, "power_w": 1.0, "limit_w": 2.0, "order": 1, "confirmed": 1, "leased": True}
    nodes = [node | {"name": f"n{i:03}", "heard": i != 70} for i in range(72)]
    shown = powerblock("status", "--run-dir", run_dir(nodes=nodes), "--once").stdout
    assert "n070" in shown
    assert "… 60 more" in shown


# --- replay ------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    made = Journal(path, SETTINGS, file_max_bytes=1 << 30, files_max=2)
    for beat in beats(60):
        made.record(*beat)
    made.close()
    return path


def test_replay_of_an_unchanged_law_finds_nothing(journal):
    found = powerblock("replay", journal)
    assert (found.exit_code, found.stdout.strip()) == (0, "60 beats over 3.0 s: every decision the same")


def test_replay_lists_what_is_decided_differently(journal):
    head, *lines = journal.read_text().splitlines()
    told = json.loads(lines[30])
    told["decided"]["budget_w"] += 5.0
    told["decided"]["gpu_limits_w"][2] += 7.0
    told["decided"]["binding"]["source"] = "the operator"
    lines[30] = json.dumps(told)
    journal.write_text("\n".join([head, *lines, ""]))
    found = powerblock("replay", journal)
    assert found.exit_code == 1
    assert "60 beats over 3.0 s: 1 decided differently" in words(found.stdout)
    assert "n1/0" in found.stdout
    assert "the operator" in found.stdout
    one = powerblock("replay", journal, "--max", "1")
    assert "… and 2 more" in one.stdout
    listed = json.loads(powerblock("replay", journal, "--json").stdout)
    assert (listed["beats_differing"], listed["by_field"]) == (
        1,
        {"budget_w": 1, "gpu_limits_w": 1, "binding": 1},
    )
    assert {d["beat"] for d in listed["differences"]} == {31}


def test_replay_finds_a_changed_law(journal, monkeypatch):
    from controller.core import ramp

    monkeypatch.setattr(ramp, "RISE_TICKS_MAX", 0.5)
    found = powerblock("replay", journal, "--json")
    assert found.exit_code == 1
    assert "budget_w" in json.loads(found.stdout)["by_field"]


def test_replay_of_a_damaged_file_says_what_it_found_until_there(journal):
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:20], "x", *lines[20:], ""]))
    found = powerblock("replay", journal)
    assert found.exit_code == 2
    assert "19 beats" in found.stdout
    assert "journal.jsonl:21: " in found.stderr


def test_replay_of_no_journal_is_bad_input(tmp_path):
    assert powerblock("replay", tmp_path / "none").exit_code == 2


def test_status_of_a_gateway_is_found_by_its_file(tmp_path):
    from controller.clock import now_utc_s

    path = tmp_path / "gateway.yaml"
    path.write_text(f"{{block: hall-a, state_dir: {tmp_path}, run_dir: {tmp_path}}}")
    told = {
        "block": "hall-a",
        "epoch": 1,
        "started_utc_s": 0.0,
        "at_utc_s": now_utc_s(),
        "alarms": [],
        "links": [],
    }
    StatusFile(tmp_path).write(told | {"facility": {"mode": "remote", "limit_w": None, "slots": []}})
    assert powerblock("status", path, "--once").exit_code == 0
