"""A facility's OPC UA server over a controller that is filled by hand, and clients of it."""

import asyncio
import contextlib
from pathlib import Path

from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography.hazmat.primitives.serialization import Encoding

from controller.facility.config import OpcUaServerConfig
from controller.facility.opcua.server import OpcUaFacility
from controller.facility.opcua.users import hashed
from controller.image.model import Group, Point
from protocols.opcua.server_access import own_certificate
from tests.brokers import until
from tests.controller.facility.facility_feed import Plant

PASSWORDS = {"eyes": "look", "hands": "touch", "head": "think"}
ROLES = {"eyes": "observe", "hands": "operate", "head": "engineer"}
BITS = {0: "leak", 4: "fan failed"}
GROUPS = (
    Group(
        path="block",
        kind="block",
        title="hall A",
        points=(
            Point(name="power_w", unit="W", title="as metered", lowest=0, highest=1e6),
            Point(name="limit_source", text=True),
            Point(name="mode", states={0: "init", 1: "limited", 2: "free"}),
        ),
    ),
    Group(
        path="devices/pdu-1",
        kind="device",
        title="PDU 1",
        about={"profile": "xerus_pdu", "kind": "pdu"},
        points=(
            Point(name="power_w", unit="W", lowest=0, highest=20_000, deadband=5.0, stale_after_s=600),
            Point(name="current_a", unit="A", stale_after_s=600),
            Point(name="alarms", bits=BITS, stale_after_s=600),
            Point(
                name="flow_target", unit="L/min", lowest=100, highest=180, writable=True, stale_after_s=600
            ),
            Point(name="stage", states={1: "one", 2: "two", 8: "all"}, writable=True, stale_after_s=600),
        ),
    ),
    Group(path="devices/quick", kind="device", points=(Point(name="power_w", unit="W", stale_after_s=0.5),)),
    Group(
        path="nodes/n1",
        kind="node",
        points=tuple(
            Point(name=f"gpus/{gpu}/{what}", unit="W") for gpu in range(2) for what in ("power_w", "limit_w")
        ),
    ),
    Group(path="racks/r1", kind="rack", points=(Point(name="power_w", unit="W"),)),
)


def write_users(path, **roles):
    lines = [
        f'  - {{name: {name}, role: {role}, password: "{hashed(PASSWORDS[name])}"}}'
        for name, role in roles.items()
    ]
    path.write_text("users:\n" + "\n".join(lines) + "\n")
    path.chmod(0o640)
    return path


class Site:
    """The plant, the server, its folders, and clients.

    Attributes:
        plant: the controller's end.
        certificate, key: of an application that is trusted.
    """

    def __init__(self, folder: Path, *, groups=GROUPS, **settings):
        self.folder, self.settings = folder, settings
        self.pki = folder / "pki"
        self.plant = Plant(folder, groups)
        self.certificate, self.key = self.application("scada")
        (self.pki / "trusted").mkdir(parents=True)
        self.trust(self.certificate)
        if settings.get("users") is None:
            self.settings["users"] = write_users(folder / "users.yaml", **ROLES)
        self.port = 0

    def application(self, name):
        """Certificate and key of somebody, as PEM files."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        own = own_certificate(self.folder / f"{name}.der", key, f"urn:test:{name}", may_make=True)
        certificate.write_bytes(own.certificate.public_bytes(Encoding.PEM))
        return certificate, key

    def trust(self, certificate):
        (self.pki / "trusted" / certificate.name).write_bytes(certificate.read_bytes())

    @property
    def url(self):
        return f"opc.tcp://127.0.0.1:{self.port}/powerblock"

    async def start(self):
        config = OpcUaServerConfig(port=self.port, folder=self.pki, **self.settings)
        self.facility = OpcUaFacility(config, self.plant.feed, block="hall-a", state_dir=self.folder)
        self._task = asyncio.create_task(self.facility.run())
        await until(lambda: self.facility.port or self._task.done(), within_s=60)
        if self._task.done():
            self._task.result()
        self.port = self.facility.port

    async def stop(self):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for callbacks in (self.plant.feed.on_shape, self.plant.feed.on_alarms, self.plant.feed.on_alive):
            callbacks.clear()

    async def __aenter__(self):
        await self.plant.__aenter__()
        await self.start()
        return self

    async def __aexit__(self, *error):
        await self.stop()
        await self.plant.__aexit__(*error)

    @contextlib.asynccontextmanager
    async def client(self, user="hands", password=None, *, application=None, mode="SignAndEncrypt"):
        """A connected client of asyncua."""
        client = Client(self.url, timeout=20)
        certificate, key = application or (self.certificate, self.key)
        client.application_uri = f"urn:test:{certificate.stem}"
        if mode is not None:
            await client.set_security(
                SecurityPolicyBasic256Sha256, certificate, key, mode=getattr(ua.MessageSecurityMode, mode)
            )
        if user is not None:
            client.set_user(user)
            client.set_password(PASSWORDS.get(user, "") if password is None else password)
        async with client:
            yield client

    async def told(self, path, *values, **more):
        """Values of a group, until they have arrived at the server's side."""
        cells = self.plant.feed.image.groups[self.plant.index(path)]
        before = cells.revision
        self.plant.tell(path, *values, **more)
        await until(lambda: cells.revision > before, within_s=10)

    def node_id(self, id_):
        return ua.NodeId(id_, 2)


class Heard:
    """What a subscription was told."""

    def __init__(self):
        self.values, self.events = [], []

    def datachange_notification(self, node, value, data):
        self.values.append((node.nodeid.Identifier, value, data.monitored_item.Value))

    def event_notification(self, event):
        self.events.append(event)

    def of(self, id_):
        return [value for name, value, _ in self.values if name == id_]

    def status(self, id_):
        return [data.StatusCode.name for name, _, data in self.values if name == id_]
