"""The gateways that others use for this, each set up as its documentation says and as well as we know how.

    node_red     Node-RED with node-red-contrib-modbus: per device one client and one `modbus-read` node, then
                 one function node that decodes and scales, then one `mqtt out` node. No editor.
    thingsboard  thingsboard-gateway with its Modbus connector: one read of all registers per device. Its
                 platform is the broker itself, with `session_limits` to answer its one question: it
                 publishes to `v1/gateway/telemetry`, with QoS 1 as shipped.
    bare         `bare_loop`, a reference point and not a gateway

They are fetched once, in the versions named here, into a folder that git ignores. The C++ and JavaScript that
comes with them runs as whoever runs the bench.
"""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.gateway.contender import Command, Contender, Missing, Values, plain
from benchmarks.gateway.farm import PER_UNIT, REGISTERS, Farm
from firmware_sim.facility import free_port

FETCHED: Final = Path(__file__).parents[1] / "out" / "peers"
FETCH_MAX_S: Final = 600.0
NODE_RED: Final = {
    "dependencies": {"node-red": "4.1.8", "node-red-contrib-modbus": "5.45.2"},
    # It depends on a fork that is not on the registry; the original has the same interface.
    "overrides": {"@openp4nr/modbus-serial": "npm:modbus-serial@8.0.25"},
}
THINGSBOARD: Final = {
    "thingsboard-gateway": "3.8.5",
    "pymodbus": "3.9.2",  # what it installs by itself when it first runs, and the two others
    "pyserial": "3.5",
    "pyserial-asyncio": "0.6",
}
DECODE_JS: Final = f"""\
const values = {{}};
for (let i = 0; i < {REGISTERS}; i++) values["r" + i] = msg.payload[i] / {PER_UNIT};
return {{
    topic: "bench/" + msg.topic,
    payload: {{device: Number(msg.topic), taken_at: Date.now() / 1000, quality: "good", values}},
}};
"""
SETTINGS_JS: Final = """\
module.exports = {
    uiHost: "127.0.0.1", uiPort: %d, httpAdminRoot: false, httpNodeRoot: false,
    flowFile: "flows.json", credentialSecret: false,
    externalModules: { autoInstall: false },
    logging: { console: { level: "warn" } },
};
"""


def bare(farm: Farm, broker_port: int, poll_s: float, folder: Path) -> Contender:
    del folder  # nothing to configure
    argv = (sys.executable, "-m", "benchmarks.gateway.bare_loop", str(broker_port), str(poll_s))
    versions = {name: version(name) for name in ("pymodbus", "aiomqtt", "uvloop", "msgspec")}
    return Contender(versions, (Command((*argv, *map(str, farm.ports))),), plain)


# -- Node-RED -----------------------------------------------------------------------------------------------


def node_red(farm: Farm, broker_port: int, poll_s: float, folder: Path) -> Contender:
    """Raises Missing."""
    home = FETCHED / "node-red"
    node = _fetch_node_red(home)
    (folder / "settings.js").write_text(SETTINGS_JS % free_port())
    (folder / "flows.json").write_text(json.dumps(_flow(farm, broker_port, poll_s)))
    (folder / "node_modules").symlink_to(home / "node_modules")
    (folder / "package.json").write_text((home / "package.json").read_text())
    argv = (node, str(home / "node_modules" / "node-red" / "red.js"), "--userDir", str(folder))
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    versions = {"node": told.removeprefix("v"), "modbus-serial": "8.0.25", **NODE_RED["dependencies"]}
    return Contender(versions, (Command(argv),), plain)


def _fetch_node_red(home: Path) -> str:
    """The path of `node`; everything else lies in `home` afterwards."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("no node and npm on PATH")
    wanted = json.dumps({"private": True, **NODE_RED})
    manifest = home / "package.json"
    if not manifest.exists() or manifest.read_text() != wanted:
        home.mkdir(parents=True, exist_ok=True)
        manifest.write_text(wanted)
        _fetch([npm, "install", "--no-audit", "--no-fund", "--loglevel=error"], home)
    return node


def _flow(farm: Farm, broker_port: int, poll_s: float) -> list[dict[str, Any]]:
    tab = {"z": "tab"}
    nodes: list[dict[str, Any]] = [
        {"id": "tab", "type": "tab", "label": "farm"},
        {
            "id": "broker", "type": "mqtt-broker", "broker": "127.0.0.1", "port": str(broker_port),
            "clientid": "", "autoConnect": True, "usetls": False, "protocolVersion": "4", "keepalive": "60",
            "cleansession": True,
        },
        {"id": "decode", **tab, "type": "function", "func": DECODE_JS, "outputs": 1, "wires": [["publish"]]},
        {"id": "publish", **tab, "type": "mqtt out", "topic": "", "qos": "0", "broker": "broker"},
    ]  # fmt: skip
    for number, port in enumerate(farm.ports):
        nodes += [
            {
                "id": f"client{number}", "type": "modbus-client", "clienttype": "tcp",
                "bufferCommands": True, "parallelUnitIdsAllowed": True, "failureLogEnabled": True,
                "tcpHost": "127.0.0.1", "tcpPort": str(port), "tcpType": "DEFAULT",
                "unit_id": "1", "commandDelay": "1", "clientTimeout": "1000",
                "reconnectOnTimeout": True, "reconnectTimeout": "2000",
            },
            {
                "id": f"read{number}", **tab, "type": "modbus-read", "server": f"client{number}",
                "topic": str(number), "dataType": "HoldingRegister", "adr": "0", "quantity": str(REGISTERS),
                "rate": str(round(1e3 * poll_s)), "rateUnit": "ms", "showErrors": True,
                "wires": [["decode"], []],
            },
        ]  # fmt: skip
    return nodes


# -- ThingsBoard gateway ------------------------------------------------------------------------------------


def thingsboard(farm: Farm, broker_port: int, poll_s: float, folder: Path) -> Contender:
    """Raises Missing."""
    home = FETCHED / "thingsboard"
    _fetch_thingsboard(home)
    (shipped,) = home.glob("lib/python*/site-packages/thingsboard_gateway/config")
    shutil.copy(shipped / "logs.json", folder)
    (folder / "logs").mkdir()
    settings = json.loads((shipped / "tb_gateway.json").read_text())
    settings["thingsboard"] |= {
        "host": "127.0.0.1", "port": broker_port, "remoteConfiguration": False, "remoteShell": False,
        "security": {"type": "accessToken", "accessToken": "bench"},
        "statistics": {"enable": False}, "checkingDeviceActivity": {"checkDeviceInactivity": False},
        **dict.fromkeys(
            ("rateLimits", "dpRateLimits", "messagesRateLimits",
             "deviceMessagesRateLimits", "deviceRateLimits", "deviceDpRateLimits"), "0:0,",
        ),
    }  # fmt: skip
    settings["connectors"] = [{"type": "modbus", "name": "farm", "configuration": "modbus.json"}]
    (folder / "tb_gateway.json").write_text(json.dumps(settings))
    slaves = [_slave(number, port, poll_s) for number, port in enumerate(farm.ports)]
    (folder / "modbus.json").write_text(json.dumps({"master": {"slaves": slaves}}))
    env = {"TB_GW_CONFIG_DIR": str(folder)}
    answering = (sys.executable, "-m", "benchmarks.gateway.session_limits", str(broker_port))
    commands = (
        Command(answering, measured=False),
        Command((str(home / "bin" / "thingsboard-gateway"),), env, folder),
    )
    return Contender(THINGSBOARD, commands, _telemetry)


def _fetch_thingsboard(home: Path) -> None:
    pins = [f"{name}=={pin}" for name, pin in THINGSBOARD.items()]
    stamp = home / "fetched"
    if not stamp.exists() or stamp.read_text() != repr(pins):
        _fetch([sys.executable, "-m", "venv", "--clear", str(home)], Path.cwd())
        _fetch([str(home / "bin" / "pip"), "install", "--quiet", *pins], home)
        stamp.write_text(repr(pins))


def _slave(number: int, port: int, poll_s: float) -> dict[str, Any]:
    return {
        "host": "127.0.0.1", "port": port, "type": "tcp", "method": "socket", "unitId": 1,
        "deviceName": f"d{number}", "timeout": 1, "byteOrder": "BIG", "wordOrder": "BIG", "retries": 0,
        "pollPeriod": round(1e3 * poll_s),
        "connectAttemptTimeMs": 500, "connectAttemptCount": 5, "waitAfterFailedAttemptsMs": 30000,
        "attributes": [], "attributeUpdates": [], "rpc": [],
        "timeseries": [
            {
                "tag": "r${address}", "type": "16uint", "functionCode": 3, "objectsCount": 1,
                "address": f"0-{REGISTERS - 1}", "maxRegistersPerRequest": REGISTERS, "divider": PER_UNIT,
            }
        ],
    }  # fmt: skip


def _telemetry(topic: str, payload: bytes) -> Values:
    """Of `v1/gateway/telemetry`: {"d7": [{"ts": 1700000000000, "values": {"r0": 0.1, ...}}, ...], ...}."""
    if topic == "v1/gateway/telemetry":
        for device, samples in json.loads(payload).items():
            for sample in samples:
                values = {int(name[1:]): value for name, value in sample["values"].items()}
                yield int(device[1:]), values


def _fetch(argv: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=FETCH_MAX_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{argv[0]} took longer than {FETCH_MAX_S:g} s") from error
    if done.returncode != 0:
        raise Missing(f"{' '.join(argv[:3])}: {(done.stderr or done.stdout).strip()[-400:]}")
