"""The part of `block.yaml` that a gateway without GPUs has, too: field devices and what is served of them.

    block: hall-a
    state_dir: /var/lib/powerblock
    run_dir: /run/powerblock
    devices:
      - {name: pdu-a1, profile: xerus_pdu, url: "modbus+tcp://10.0.0.7"}
      - {name: cdu-1, profile: orv3_rpu, url: "modbus+rtu:///dev/ttyUSB0", unit: 3,
         writes: {flow_target_l_per_min: {lowest: 100, highest: 180}}}
    facility:
      modbus: {listen: "0.0.0.0:502"}

A point that `writes` does not name is never written, whatever its profile allows. Relative paths, those of
own profiles included, count from the folder of this file.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from controller.agent.config import TopicName
from controller.alarms.points import Level
from controller.facility.config import BmsConfig, FacilityConfig
from controller.yaml_config import FileName, close_to
from protocols.modbus import Transport, address_complaints, transport_of
from protocols.opcua import UNSECURED, Security
from protocols.profile import Point, Profile, ProfileError, builtin_profiles, load_profile

SUNSPEC: Final = "sunspec"  # instead of a profile: the device itself says what it has
PROFILE_ENDING: Final = ".yaml"  # of a file of one's own
OPCUA_SCHEME: Final = "opc.tcp"
DEVICES_MAX: Final = 2000

Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _name_or_file(profile: str) -> str:
    return FileName(profile) if profile.endswith(PROFILE_ENDING) else profile


ProfileName = Annotated[str, AfterValidator(_name_or_file)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WriteConfig(_Strict):
    """Permission to write a point, in its unit."""

    lowest: float
    highest: float
    rate_per_s: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "WriteConfig":
        if self.lowest > self.highest:
            raise ValueError(f"lowest: {self.lowest:g} is above highest {self.highest:g}; swap them")
        return self


class LimitsConfig(_Strict):
    """Alarms of a point, in its unit. What is left out makes none."""

    high_high: float | None = None
    high: float | None = None
    low: float | None = None
    low_low: float | None = None
    deadband: Annotated[float, Field(ge=0)] = 0.0
    on_delay_s: Annotated[float, Field(ge=0, le=3600)] = 1.0
    off_delay_s: Annotated[float, Field(ge=0, le=3600)] = 2.0
    response: str = ""  # what the operator is to do

    def levels(self) -> dict[Level, float]:
        found = {
            Level.HIGH_HIGH: self.high_high,
            Level.HIGH: self.high,
            Level.LOW: self.low,
            Level.LOW_LOW: self.low_low,
        }
        return {level: limit for level, limit in found.items() if limit is not None}

    @model_validator(mode="after")
    def _in_order(self) -> "LimitsConfig":
        limits = list(self.levels().values())
        if not limits:
            raise ValueError("no limit; give high_high, high, low or low_low")
        if limits != sorted(limits, reverse=True) or len(set(limits)) < len(limits):
            raise ValueError("limits must fall from high_high over high and low to low_low; order them")
        return self


class SecurityConfig(_Strict):
    """How to connect to an OPC UA server; see protocols/opcua/security.py."""

    policy: Literal["Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"] = "Basic256Sha256"
    mode: Literal["Sign", "SignAndEncrypt"] = "SignAndEncrypt"
    certificate: Path
    key: Path
    server_certificate: Path | None = None
    trust: Path | None = None
    user: str = ""
    password_file: Path | None = None
    user_certificate: Path | None = None
    user_key: Path | None = None

    def made(self) -> Security:
        """Raises ValueError for what cannot work."""
        return Security(**{name: getattr(self, name) for name in type(self).model_fields})


class DeviceConfig(_Strict):
    """A field device: where it is, what it is, which of its points matter here.

    Attributes:
        profile: a built-in name, the path of a YAML file, or `sunspec`: what the device says of itself.
        points: those that are read; empty: all.
        frozen_after_s: all registers bit-identical for this long: in doubt; null for plant that stands still.
        writes: what may be written, and how far.
        kind: pdu, meter, cdu, chiller, ups, bess, breaker ...: what facility systems call it.
        alarms: limits of points beyond which a person shall know.
        security: of `opc.tcp`; `none` must be said.
        ca, cert, key: of `modbus+tls`: the authority that signed the device's certificate, and ours.
    """

    profile: ProfileName
    url: str
    unit: Annotated[int, Field(ge=1, le=247)] = 1
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    points: tuple[str, ...] = ()
    frozen_after_s: Seconds | None = 30.0
    writes: dict[str, WriteConfig] = Field(default_factory=dict)
    alarms: dict[str, LimitsConfig] = Field(default_factory=dict)
    kind: str = ""
    title: str = ""
    security: SecurityConfig | Literal["none"] | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def is_opcua(self) -> bool:
        return self.url.partition("://")[0] == OPCUA_SCHEME

    def transport(self) -> Transport:
        """Raises ValueError with a remedy."""
        return transport_of(self.url, ca=self.ca, cert=self.cert, key=self.key)


class NamedDeviceConfig(DeviceConfig):
    """One of `devices`.

    Attributes:
        name: for good: its points are `devices/NAME/…`.
        rack, feed: where it stands, and what it hangs on.
    """

    name: TopicName
    rack: str = ""
    feed: str = ""


class GatewayConfig(_Strict):
    """All of a `block.yaml` without GPUs."""

    block: TopicName
    state_dir: Path
    run_dir: Path
    devices: Annotated[tuple[NamedDeviceConfig, ...], Field(max_length=DEVICES_MAX)] = ()
    facility: FacilityConfig = FacilityConfig()


class Device(NamedTuple):
    """A device with its place in the file.

    Attributes:
        where: path in the file.
        name: for good: points of the image, alarms and links carry it.
        config: as written.
        kind: what it is.
        rack: that it is in; "" for none.
        feed: that it hangs on; "" for none.
        needs: the point that the law lives by; "" for none.
        needs_unit: its unit; "" for any.
    """

    where: str
    name: str
    config: DeviceConfig
    kind: str
    rack: str = ""
    feed: str = ""
    needs: str = ""
    needs_unit: str = "W"


def own_devices(config: GatewayConfig) -> Iterator[Device]:
    """Those under `devices`."""
    for index, device in enumerate(config.devices):
        yield own_device(index, device)


def own_device(index: int, device: NamedDeviceConfig) -> Device:
    """One of those under `devices`."""
    return Device(f"devices[{index}]", device.name, device, device.kind, device.rack, device.feed)


def device_errors(devices: Sequence[Device]) -> Iterator[str]:
    """Everything wrong with them, one by one and together."""
    for device in devices:
        yield from _profile_errors(device)
    yield from _name_errors(devices)
    yield from _line_errors(devices)


def kind_errors(devices: Sequence[Device], bms: BmsConfig) -> Iterator[str]:
    """Kinds that the BMS bus does not have, where `objects` does not say what the device is there."""
    from controller.facility.dsx_bms.rules import KINDS  # of no use without that bus

    for device in devices:
        path = f"devices/{device.name}"
        said = next((one for pattern, one in bms.objects.items() if fnmatchcase(path, pattern)), None)
        is_said = said is not None and (said.type is not None or not said.publish)
        if device.kind and device.kind not in KINDS and not is_said:
            yield (
                f"{device.where}.kind: {device.kind!r} is none that facility.bms can tell; write one of"
                f" {', '.join(KINDS)}, or say it under facility.bms.objects{close_to(device.kind, KINDS)}"
            )


def profile_of(device: DeviceConfig) -> Profile | None:
    """None: the device will say. Raises ProfileError."""
    if device.profile == SUNSPEC:
        return None
    path = Path(device.profile)
    return _loaded(device.profile, path.stat().st_mtime_ns if path.is_file() else 0)


@cache
def _loaded(name: str, _changed_ns: int) -> Profile:
    """Reading a file takes 20 ms, and four hundred devices may share one."""
    return load_profile(name)


def _profile_errors(device: Device) -> Iterator[str]:
    config, where = device.config, device.where
    try:
        profile = profile_of(config)
    except ProfileError as error:
        yield f"{where}.profile: {error}{close_to(config.profile, (SUNSPEC, *builtin_profiles()))}"
        return
    speaks = "modbus" if profile is None else profile.protocol
    if config.is_opcua and speaks != "opcua":
        yield f"{where}.url: profile {config.profile} needs modbus+tcp:// or another of Modbus, not opc.tcp://"
        return
    if speaks == "opcua" and not config.is_opcua:
        yield f"{where}.url: profile {config.profile} needs opc.tcp://, not {config.url.partition('://')[0]}://"
        return
    try:
        if config.is_opcua:
            opcua_security(config)
        else:
            config.transport()
    except ValueError as error:
        yield f"{where}.{error}" if config.is_opcua else f"{where}.url: {error}"
    if profile is not None:
        yield from _point_errors(device, profile)


def opcua_security(device: DeviceConfig) -> Security:
    """Raises ValueError."""
    if device.security is None:
        raise ValueError("security: missing; name our certificate and whom to trust, or say none")
    return UNSECURED if device.security == "none" else device.security.made()


def _point_errors(device: Device, profile: Profile) -> Iterator[str]:
    config, where, known = device.config, device.where, ", ".join(profile.points)
    asked = {
        "points": tuple(name for name in config.points if name != device.needs),
        "writes": tuple(config.writes),
        "alarms": tuple(config.alarms),
        "point": (device.needs,),
    }
    for key, names in asked.items():
        for name in names:
            if name and name not in profile.points:
                place = where if key == "point" else f"{where}.{key}"
                yield f"{place}: profile {config.profile} has no point {name!r}; it has {known}"
    needed = profile.points.get(device.needs)
    if needed is not None and device.needs_unit not in ("", needed.unit):
        unit = needed.unit or "no unit"
        yield f"{where}: point {device.needs!r} is in {unit}; {device.needs_unit} is needed"
    if needed is not None and config.points and device.needs not in config.points:
        yield f"{where}.points: {device.needs!r} is needed here; add it"
    for name in config.writes:
        if name in profile.points and not profile.points[name].writable:
            yield f"{where}.writes: {name!r} is read-only in profile {config.profile}; remove it"
        elif name in profile.points:
            yield from _range_errors(f"{where}.writes.{name}", config.writes[name], profile.points[name])


def _range_errors(where: str, rule: WriteConfig, point: Point) -> Iterator[str]:
    """What would be permitted here, and refused for ever by the profile."""
    unit = "a ratio: 1 is 100 %" if point.unit == "ratio" else point.unit
    if rule.highest > point.highest:
        yield f"{where}.highest: {rule.highest:g} is above the profile's {point.highest:g} ({unit})"
    if rule.lowest < point.lowest:
        yield f"{where}.lowest: {rule.lowest:g} is below the profile's {point.lowest:g} ({unit})"


def _name_errors(devices: Sequence[Device]) -> Iterator[str]:
    for name, count in Counter(device.name for device in devices).items():
        if count > 1:
            places = ", ".join(device.where for device in devices if device.name == name)
            yield f"{places}: {name!r} is used {count} times; give each device its own name"


def _line_errors(devices: Sequence[Device]) -> Iterator[str]:
    """What shares a wire must agree about it."""
    units: dict[tuple[Transport, int], Device] = {}
    single: dict[Transport, bool] = {}
    for device in devices:
        if device.config.is_opcua:
            continue
        try:
            transport, profile = device.config.transport(), profile_of(device.config)
        except ValueError:
            continue  # said already
        alone = profile is not None and profile.single_connection
        single[transport] = single.get(transport, False) or alone
        twin = units.setdefault((transport, device.config.unit), device)
        if twin is not device and not (twin.needs and device.needs):  # one PDU may have several inlets
            yield (
                f"{device.where}.unit: {device.config.unit} at {transport.where} is {twin.where} already;"
                " two entries for one unit would poll it twice"
            )
    yield from address_complaints(tuple(single), tuple(single.values()))
