"""The `facility` part of `block.yaml`: what is served to SCADA, DSX Exchange and monitoring, and to whom.

What is left out is not served. Nothing is open to everybody unless the file says so.
"""

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controller.agent.config import MqttConfig, TopicName


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OpcUaServerConfig(_Strict):
    """An OPC UA server.

    Attributes:
        host, port: where it listens; `0.0.0.0` is every address of this host.
        name, uri: of this application, as clients show and trust it; left out: made of host and block.
        folder: of certificates: own/, trusted/, rejected/, crl/; left out: `opcua` in the state directory.
        certificate, key: ours, where not own/cert.der and own/key.pem, which are made at the first start.
        policies, modes: how a channel may be secured.
        unsecured: also not at all: whoever is on the network reads along, and may change what is sent.
        users: file of who may come in, and with which role; see `powerblock password`.
        anonymous: `observe`: whoever does not say who he is may read.
        sessions_max: clients at a time.
        guesses_per_minute: wrong passwords from one address, then it has to wait.
        fastest_s: nothing is sampled or published faster.
        history: patterns of points (`racks/*/power_w`) whose last `history_h` hours can be read.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 4840
    name: Annotated[str, Field(max_length=100)] = ""
    uri: Annotated[str, Field(max_length=200)] = ""
    folder: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    policies: Annotated[
        tuple[Literal["Aes256Sha256RsaPss", "Aes128Sha256RsaOaep", "Basic256Sha256"], ...],
        Field(min_length=1),
    ] = ("Aes256Sha256RsaPss", "Aes128Sha256RsaOaep", "Basic256Sha256")
    modes: Annotated[tuple[Literal["SignAndEncrypt", "Sign"], ...], Field(min_length=1)] = (
        "SignAndEncrypt",
        "Sign",
    )
    unsecured: bool = False
    users: Path | None = None
    anonymous: Literal["nobody", "observe"] = "nobody"
    sessions_max: Annotated[int, Field(ge=1, le=200)] = 20
    guesses_per_minute: Annotated[int, Field(ge=1, le=100)] = 10
    fastest_s: Annotated[float, Field(ge=0.05, le=10)] = 0.1
    history: Annotated[tuple[str, ...], Field(max_length=100)] = (
        "block/power_w",
        "block/budget_w",
        "block/limit_w",
        "feeds/*/power_w",
        "racks/*/power_w",
    )
    history_h: Annotated[float, Field(gt=0, le=168)] = 24.0
    history_period_s: Annotated[float, Field(ge=0.1, le=3600)] = 1.0

    @model_validator(mode="after")
    def _usable(self) -> "OpcUaServerConfig":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; give both or neither")
        if self.users is None and self.anonymous == "nobody":
            raise ValueError("nobody could come in; give `users`, or let `anonymous: observe` read")
        return self


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
RoleName = Literal["observe", "operate", "engineer"]
ROLES: Final[dict[str, RoleName]] = {"observe": "observe", "operate": "operate", "engineer": "engineer"}


class ModbusTlsConfig(_Strict):
    """Modbus/TCP Security: clients show a certificate of this authority. Files are read per connection."""

    port: Annotated[int, Field(ge=0, le=65_535)] = 802
    ca: Path
    cert: Path
    key: Path
    crl: Path | None = None  # PEM; once given, it must not run out


class ModbusServerConfig(_Strict):
    """A Modbus server: SunSpec on unit 1, the native map from unit 2 on.

    Who is in `allow` may read; who is in `write_allow`, too, may command: over a plain connection as
    `plain_role`, in TLS as the role in the certificate says (`roles`: theirs to ours).
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] | None = 502  # None: in TLS only
    tls: ModbusTlsConfig | None = None
    allow: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)]  # 10.1.0.0/24, or one address
    write_allow: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    plain_role: Literal["operate", "engineer"] = "operate"
    roles: dict[str, RoleName] = ROLES
    heartbeat_timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 40.0
    meter: str = "devices/meter"  # group of the image that the SunSpec meter shows
    connections_max: Annotated[int, Field(ge=1, le=1000)] = 32
    idle_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    requests_per_s: Annotated[float, Field(ge=1, le=100_000)] = 500.0  # of one address

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(map(ipaddress.ip_network, self.allow))

    @property
    def write_networks(self) -> tuple[Network, ...]:
        return tuple(map(ipaddress.ip_network, self.write_allow))

    @model_validator(mode="after")
    def _checked(self) -> Self:
        """Raises ValueError."""
        for one in (*self.allow, *self.write_allow):
            try:
                ipaddress.ip_network(one)
            except ValueError as error:
                raise ValueError(f"{error}; write a network (10.1.0.0/24) or an address") from None
        for network in self.write_networks:
            if not any(_covers(wider, network) for wider in self.networks):
                raise ValueError(f"write_allow: {network} may not even connect; add it to `allow`")
        if self.port is None and self.tls is None:
            raise ValueError("neither port nor tls: nothing would be served; give one of them")
        return self


def _covers(wider: Network, narrower: Network) -> bool:
    if isinstance(wider, ipaddress.IPv4Network):
        return isinstance(narrower, ipaddress.IPv4Network) and narrower.subnet_of(wider)
    return isinstance(narrower, ipaddress.IPv6Network) and narrower.subnet_of(wider)


class BmsObjectConfig(_Strict):
    """What one group of the image is on the bus, where that does not follow from its kind. None: it does.

    Attributes:
        publish: false: nothing of it is told.
        type: PowerMeter, CDU, Chiller ...
        id, name: of the object; of a rack: its location, as the IT side knows it.
        rack: name of the rack that it stands in or feeds.
        serves: ids of the objects that it feeds, towards the racks.
        part_of: id of the object that it is a part of; it is then no object of its own.
        area: where in the plant, such as [Secondary].
    """

    publish: bool = True
    type: str | None = None
    id: str | None = None
    name: str | None = None
    rack: str | None = None
    serves: tuple[str, ...] | None = None
    part_of: str | None = None
    area: tuple[str, ...] = ()


class BmsPointConfig(_Strict):
    """What one point of the image is on the bus, where that does not follow from its name and unit.

    Attributes:
        publish: false: it is not told.
        type: its point type, such as LiquidTemperature.
        area: where in the object, such as [Secondary, Supply].
        phase: A, B, C or 1, 2, 3.
        setpoint: a target, not a reading.
        scale: factor from the bus's own unit to what is told, on top of the unit's; 1.732 for phase voltages.
        nonzero: 1 is told for any number but 0: for a row of alarm bits that means one thing.
        deadband: changes up to this are not worth telling, in the point's unit; None: the point's own.
    """

    publish: bool = True
    type: str | None = None
    area: tuple[str, ...] | None = None
    phase: str | None = None
    setpoint: bool | None = None
    scale: float = 1.0
    nonzero: bool = False
    deadband: Annotated[float, Field(ge=0)] | None = None


class BmsRequestConfig(_Strict):
    """One point that an integration publishes and we are asked to act upon.

    Attributes:
        point: its point type.
        at: group of the image that it is about: devices/cdu-1, racks/r1.
        writes: point that is written: devices/cdu-1/supply_target_c; None: it is only shown and said.
        lowest, highest: what is asked is held between these.
        rate_per_s: what is written moves no faster; None: at once.
        safe: where it goes back to when the integration falls silent; None: where it was before.
    """

    point: Literal[
        "LiquidTemperatureSpRequest",
        "RackLiquidIsolationRequest",
        "RackElectricalIsolationRequest",
        "RackLeakDetectTray",
    ]
    at: str
    writes: str | None = None
    lowest: float | None = None
    highest: float | None = None
    rate_per_s: Annotated[float, Field(gt=0)] | None = None
    safe: float | None = None

    @model_validator(mode="after")
    def _fenced(self) -> Self:
        """Raises ValueError."""
        if self.writes is None:
            return self
        if self.lowest is None or self.highest is None:
            raise ValueError("lowest, highest: missing; what others may write needs both")
        if not self.lowest <= (self.lowest if self.safe is None else self.safe) <= self.highest:
            raise ValueError("safe: outside lowest to highest; choose one between them")
        if self.writes.count("/") < 2 or not self.writes.startswith("devices/"):
            raise ValueError(f"writes: {self.writes!r} is no point of a device; write devices/NAME/POINT")
        return self


class BmsIntegrationConfig(_Strict):
    """One program of the IT side, by the name that it publishes under; the broker says who may use it."""

    silent_after_s: Annotated[float, Field(ge=11, le=3600)] = 30.0  # its heartbeat comes every 10 s
    name: str | None = None
    requests: Annotated[tuple[BmsRequestConfig, ...], Field(max_length=1000)] = ()


class BmsConfig(_Strict):
    """Publisher on the BMS event bus of DSX Exchange (version 1.0.0), in the role of the BMS.

    Attributes:
        mqtt: broker of the bus.
        site: first part of every tag path; None: the block's name.
        id, name: of this BMS in its heartbeat.
        gap_s: changes are told this often at most.
        repeat_s: every value and all metadata are told at least this often.
        generic: points without a type of their own are told as GenericPoint.
        objects: by group, * stands for anything; the first that fits counts.
        points: by group/point, likewise.
        integrations: by name.
    """

    mqtt: MqttConfig
    site: str | None = None
    id: TopicName = "BMS"
    name: str = "powerblock"
    gap_s: Annotated[float, Field(ge=0.05, le=2)] = 1.0
    repeat_s: Annotated[float, Field(ge=1, le=100)] = 100.0
    generic: bool = True
    objects: dict[str, BmsObjectConfig] = Field(default_factory=dict)
    points: dict[str, BmsPointConfig] = Field(default_factory=dict)
    integrations: dict[TopicName, BmsIntegrationConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        """Raises ValueError."""
        if "PUB" in self.integrations or self.id in self.integrations:
            raise ValueError(
                f"integrations: PUB and {self.id} are the BMS itself; use the integration's name"
            )
        asked: dict[str, str] = {}
        for name, integration in self.integrations.items():
            for request in integration.requests:
                place = request.writes or f"{request.at} {request.point}"
                if asked.setdefault(place, name) != name or integration.requests.count(request) > 1:
                    raise ValueError(f"integrations.{name}: {place} is asked for twice; one writer per point")
        return self


class PrometheusConfig(_Strict):
    """Metrics over HTTP, for whoever can reach the address: there are no users.

    Attributes:
        host, port: where `/metrics` is served.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 9464


class MirrorConfig(_Strict):
    """Every point over MQTT, stored on disk while the broker is away.

    Attributes:
        mqtt: its broker.
        prefix: first part of every topic.
        send: every update as it comes, or changes beyond each point's deadband.
        repeat_s: with `changes`: a group is told as a whole at least this often.
        qos: of live values. Either way they come at least once to the broker; with 1 it also keeps them for
            subscribers of QoS 1 that are away, at five times the work.
        spool_mib: room on disk; the oldest make room for the newest.
        replay_per_s: how many stored messages are sent per second, beside the live ones.
    """

    mqtt: MqttConfig
    prefix: Annotated[str, Field(pattern=r"^[^/+#\s$]{1,64}(/[^/+#\s]{1,64}){0,7}$")] = "points"
    send: Literal["updates", "changes"] = "updates"
    repeat_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    qos: Literal[0, 1] = 0
    spool_mib: Annotated[int, Field(ge=1, le=1024 * 1024)] = 1024
    replay_per_s: Annotated[int, Field(ge=10, le=10_000)] = 1000


class FacilityConfig(_Strict):
    opcua: OpcUaServerConfig | None = None
    modbus: ModbusServerConfig | None = None
    bms: BmsConfig | None = None
    prometheus: PrometheusConfig | None = None
    mirror: MirrorConfig | None = None


def facility_errors(facility: FacilityConfig) -> Iterator[str]:
    """What only shows between the parts."""
    taken: dict[tuple[str, int], str] = {}
    for place, host, port in _doors(facility):
        other = taken.setdefault((host, port), place)
        if port and other != place:
            yield f"facility.{place}: {host}:{port} is taken by {other}; give it another port"


def _doors(facility: FacilityConfig) -> Iterator[tuple[str, str, int]]:
    """Where it listens."""
    if facility.opcua is not None:
        yield "opcua.port", facility.opcua.host, facility.opcua.port
    if facility.modbus is not None:
        host, tls = facility.modbus.host, facility.modbus.tls
        if facility.modbus.port is not None:
            yield "modbus.port", host, facility.modbus.port
        if tls is not None:
            yield "modbus.tls.port", host, tls.port
    if facility.prometheus is not None:
        yield "prometheus.port", facility.prometheus.host, facility.prometheus.port
