"""The broker of the run: amqtt in a process of ours, Debian's mosquitto, or NATS with its MQTT listener.

    embedded    no system package, no TLS: what the demonstration runs on
    mosquitto   what stands beside a block in production
    nats        what NVIDIA's DSX Exchange runs on

With mutual TLS a client is its certificate's common name, and may do what `Rights` says of that name and no
more. Both brokers get the same table in their own words: mosquitto an ACL file, NATS permissions on subjects
(`/` becomes `.`, `+` becomes `*`, `#` becomes `>`). They differ in how they say no: mosquitto grants every
subscription and withholds the messages, NATS refuses it; both take a forbidden publication and drop it.

NATS 2.9 knows no QoS 2 and hangs up on it, so `qos_max` is 1 there. It delivers QoS 1 through streams of its
own, for which every subscriber needs a right to `$MQTT.sub.>`. TCP_NODELAY is set in all of them, or bursts
would stall for 40 ms.
"""

import asyncio
import json
import os
import shutil
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from firmware_sim.authority import Authority, Identity
from firmware_sim.child import Child
from firmware_sim.facility import free_port
from firmware_sim.lifetime import RigError
from firmware_sim.scenario import BrokerKind

LOOPBACK: Final = "127.0.0.1"
START_MAX_S: Final = 10.0  # all three are there within 0.5 s
LOOK_AGAIN_S: Final = 0.05
STORE_MAX_BYTES: Final = 64 * 1024 * 1024  # what NATS may keep of messages that all are of this second
SYSTEM_PATHS: Final = "/usr/sbin:/usr/local/sbin"  # where daemons are, and the PATH of a user often is not
DELIVERIES: Final = "$MQTT.sub.>"  # NATS: where QoS 1 reaches its subscriber


@dataclass(frozen=True)
class Rights:
    """What one client may do: MQTT topic filters."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


class SiteBroker:
    """One broker as a child process, and what its clients need to know to reach it.

    Args:
        kind: which one.
        work_dir: for its configuration, log and state.
        rights: client name -> what it may do; with an `authority` everybody else is shut out.
        authority: whose certificates count; None: no TLS, and everybody may do everything.
        url: of somebody else's broker; empty: the rig starts its own.
        name: of the child and its files.

    Raises:
        RigError: the binary is missing.
    """

    def __init__(
        self,
        kind: BrokerKind,
        work_dir: Path,
        rights: Mapping[str, Rights],
        authority: Authority | None = None,
        url: str = "",
        name: str = "broker",
    ) -> None:
        self.url = url or f"{'mqtts' if authority else 'mqtt'}://{LOOPBACK}:{free_port()}"
        self.qos_max = 1 if kind == "nats" else 2
        self._kind, self._name = kind, name
        self._work_dir = work_dir
        self._authority = authority
        self._clients: dict[str, Identity] = {}
        self._server: Identity | None = None
        if authority is not None:
            self._server = authority.server("broker", [LOOPBACK])
            self._clients = {name: authority.client(name) for name in rights}
        self.child = None if url else self._child(rights)

    # ---- for its clients ------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or LOOPBACK

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 1883

    def mqtt_config(self, name: str) -> dict[str, Any]:
        """The `mqtt` part of a configuration file, for that client."""
        if self._authority is None:
            return {"url": self.url}
        mine = self._clients[name]
        return {
            "url": self.url,
            "ca": str(self._authority.ca),
            "cert": str(mine.cert),
            "key": str(mine.key),
        }

    def calling(self, name: str) -> ssl.SSLContext | None:
        """TLS for that client; None: none."""
        return None if self._authority is None else self._authority.calling(self._clients[name])

    def identity(self, name: str) -> Identity:
        return self._clients[name]

    # ---- its life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start it, and wait until it listens. Raises RigError when it does not."""
        if self.child is not None:
            self.child.start()
        deadline_s = time.monotonic() + START_MAX_S
        while time.monotonic() < deadline_s and not (self.child is not None and self.child.died):
            try:
                _, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            writer.close()
            return
        said = "start it, or take broker_url out of the scenario" if self.child is None else self.child.tail()
        raise RigError(f"no MQTT broker at {self.host}:{self.port} after {START_MAX_S:.0f} s:\n{said}")

    async def stop(self) -> None:
        if self.child is not None:
            await self.child.stop()

    async def show_certificate_of(self, authority: Authority) -> None:
        """Start again with a certificate that this authority issued, the same one as before or a foreigner.

        What the broker asks of its clients stays as it is: it is they who must not believe it.
        """
        assert self._server is not None  # the scenario was checked: there is no such fault without TLS
        shown = authority.server("broker", [LOOPBACK])
        await self.stop()
        for new, read in ((shown.cert, self._server.cert), (shown.key, self._server.key)):
            if new != read:
                shutil.copyfile(new, read)
        await self.start()

    # ---- its configuration ----------------------------------------------------------------------------

    def _child(self, rights: Mapping[str, Rights]) -> Child:
        commands = {"embedded": self._embedded, "mosquitto": self._mosquitto, "nats": self._nats}
        return Child(self._name, commands[self._kind](rights), self._work_dir / f"{self._name}.log")

    def _embedded(self, _rights: Mapping[str, Rights]) -> list[str]:
        return [sys.executable, "-m", "firmware_sim.broker", "--port", str(self.port)]

    def _mosquitto(self, rights: Mapping[str, Rights]) -> list[str]:
        lines = [
            f"listener {self.port} {LOOPBACK}",
            "set_tcp_nodelay true",
            "persistence false",
            "log_dest stderr",
            *self._mosquitto_access(rights),
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # else it turns into a user who cannot read this folder
        config = self._work_dir / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        return [_binary("mosquitto"), "-c", str(config)]

    def _mosquitto_access(self, rights: Mapping[str, Rights]) -> list[str]:
        if self._authority is None or self._server is None:
            return ["allow_anonymous true"]
        acl = self._work_dir / "mosquitto.acl"
        acl.touch(mode=0o600)  # mosquitto warns of an ACL that others may read
        acl.write_text(mosquitto_acl(rights))
        return [
            "allow_anonymous false",
            f"cafile {self._authority.ca}",
            f"certfile {self._server.cert}",
            f"keyfile {self._server.key}",
            "require_certificate true",
            "use_identity_as_username true",
            f"acl_file {acl}",
        ]

    def _nats(self, rights: Mapping[str, Rights]) -> list[str]:
        settings: dict[str, Any] = {
            "server_name": "rig",  # JetStream asks for a name, MQTT for JetStream
            "listen": f"{LOOPBACK}:-1",  # NATS' own protocol, which nobody here speaks
            "jetstream": {"store_dir": str(self._work_dir / "nats"), "max_file_store": STORE_MAX_BYTES},
            "mqtt": {"listen": f"{LOOPBACK}:{self.port}"},
        }
        if self._authority is not None and self._server is not None:
            tls = {
                "cert_file": str(self._server.cert),
                "key_file": str(self._server.key),
                "ca_file": str(self._authority.ca),
                "verify_and_map": True,
            }
            settings |= {"tls": tls, "authorization": {"users": nats_users(rights)}}
            settings["mqtt"] |= {"tls": tls}
        config = self._work_dir / "nats.conf"
        config.write_text(json.dumps(settings, indent=2) + "\n")  # its format is a superset of JSON
        return [_binary("nats-server"), "-c", str(config)]


def mosquitto_acl(rights: Mapping[str, Rights]) -> str:
    """The table in mosquitto's words; who is not in it may do nothing."""
    lines = []
    for name, allowed in rights.items():
        lines.append(f"user {name}")
        lines += [f"topic read {topic}" for topic in allowed.read]
        lines += [f"topic write {topic}" for topic in allowed.write]
    return "\n".join(lines) + "\n"


def nats_users(rights: Mapping[str, Rights]) -> list[dict[str, Any]]:
    """The table in NATS' words: users by the subject of their certificate."""
    return [
        {
            "user": f"CN={name}",
            "permissions": {
                # an empty list of what is allowed would allow everything
                "publish": {"allow": _subjects(allowed.write)} if allowed.write else {"deny": [">"]},
                "subscribe": {"allow": [*_subjects(allowed.read), DELIVERIES]},
            },
        }
        for name, allowed in rights.items()
    ]


def _subjects(topics: tuple[str, ...]) -> list[str]:
    """MQTT's `a/#` means `a` as well, NATS' `a.>` does not."""
    meant = [one for topic in topics for one in dict.fromkeys((topic, topic.removesuffix("/#")))]
    return [one.replace("/", ".").replace("+", "*").replace("#", ">") for one in meant]


def _binary(name: str) -> str:
    """Path of a broker's binary. Raises RigError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATHS}")
    if found is None:
        raise RigError(
            f"no {name} here: install it (Debian, Ubuntu: apt-get install {name}), "
            "or play a scenario whose site.broker is embedded"
        )
    return found
