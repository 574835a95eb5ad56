"""Readers of what is served, one per way: what a site would buy, not what the gateway is made of.

    opcua        asyncua: a subscription, and once a second a read that proves it alive
    modbus       pysunspec2 for the block's power and its limit, pymodbus and the published map for the rest
    bms          an MQTT subscriber on the BMS event bus of DSX Exchange, units from its metadata
    prometheus   a scrape a second, read by prometheus_client
    mirror       an MQTT subscriber on the points themselves

Each tells what it saw of the watched points: a number in the point's unit, or None while the way says that it
has none or does not answer. Whatever fails is tried again: ways heal by themselves, and the moment they do is
what is measured.
"""

import asyncio
import json
import math
import socket
import ssl
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import aiohttp
import aiomqtt
from asyncua import Client, Node, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from prometheus_client.parser import text_string_to_metric_families
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from sunspec2.modbus import client as sunspec
from sunspec2.modbus import modbus as sunspec_wire

from firmware_sim import bms_check
from firmware_sim.scada_plan import (
    APPLICATION_URI,
    BUS_TOPICS,
    LOOPBACK,
    MIRROR_PREFIX,
    USER,
    Plan,
    published_map,
)
from firmware_sim.scenario_facility import Way
from firmware_sim.watched import WatchedPoint

RETRY_S: Final = 0.5
LOOK_S: Final = 1.0
CALL_MAX_S: Final = 5.0
MODBUS_WAIT_S: Final = 1.5  # the library waits it out, even when the connection has gone
PUBLISH_MS: Final = 250.0
BLOCK_POWER: Final = "block/power_w"
NAMESPACE: Final = "urn:powerblock:image"
NODELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)

REGISTERS_OF: Final = {"f32": 2, "u32": 2, "u16": 1}
FORMATS: Final = {"f32": "f", "u32": "I", "u16": "H"}
GOOD_QUALITY: Final = 2

BUS_UNITS: Final = {"kW": 1000.0, "%": 0.01}  # of the bus -> factor to ours
BUS_GOOD: Final = 1
BUS_BEAT: Final = "HeartbeatTimestampBms"
BUS_SILENT_S: Final = 25.0  # two of its heartbeats, and some
PREFIX: Final = "powerblock"
QUALITY: Final = f"{PREFIX}_quality"
METRICS: Final = {  # ending of a point's name -> of the metric's, and the factor to our unit
    "_w": ("_watts", 1.0),
    "_c": ("_celsius", 1.0),
    "_a": ("_amperes", 1.0),
    "_l_per_min": ("_liters_per_second", 60.0),
    "_ratio": ("_ratio", 1.0),
}
SUNSPEC_METER, SUNSPEC_RATINGS, SUNSPEC_CONTROL = 213, 702, 704
FULL_PERCENT: Final = 100.0
SUNSPEC_FAULTS: Final = (
    OSError, sunspec.SunSpecModbusClientError, sunspec_wire.ModbusClientError,
)  # fmt: skip

See = Callable[[Way, str, float | None], None]


class OrderRefusedError(Exception):
    """An order was not carried out; the text says why."""


class Reader(ABC):
    """Reads one way for as long as it lives.

    Args:
        plan: where everything is.
        see: takes way, address and value; None: nothing good.
    """

    way: ClassVar[Way]

    def __init__(self, plan: Plan, see: See) -> None:
        self.plan = plan
        self._see = see

    async def run(self) -> None:
        while True:
            try:
                await self._session()
            except* FAULTS:
                self._lose()
            await asyncio.sleep(RETRY_S)

    async def limit(self, limit_w: float, for_s: float) -> None:
        """Limit the block's power. Raises OrderRefusedError."""
        raise OrderRefusedError(f"{self.way}: no way to limit to {limit_w:g} W for {for_s:g} s")

    async def shed(self, level: str, for_s: float) -> None:
        """Call a level of shedding. Raises OrderRefusedError."""
        raise OrderRefusedError(f"{self.way}: no way to call {level} for {for_s:g} s")

    async def write(self, address: str, value: float) -> None:
        """Write a point of a device. Raises OrderRefusedError."""
        raise OrderRefusedError(f"{self.way}: no way to write {value:g} to {address}")

    @abstractmethod
    async def _session(self) -> None:
        """Connect and read until it breaks."""

    def _tell(self, address: str, value: float | None) -> None:
        self._see(self.way, address, None if value is None or math.isnan(value) else value)

    def _lose(self) -> None:
        for point in self.plan.points:
            self._see(self.way, point.address, None)


# ---- OPC UA ---------------------------------------------------------------------------------------------


class OpcUaReader(Reader):
    way = "opcua"

    def __init__(self, plan: Plan, see: See) -> None:
        super().__init__(plan, see)
        self._client: Client | None = None
        self._namespace = 0

    async def _session(self) -> None:
        client = Client(f"opc.tcp://{LOOPBACK}:{self.plan.opcua_port}/", timeout=CALL_MAX_S)
        client.application_uri = APPLICATION_URI
        client.set_user(USER)
        client.set_password(self.plan.password)
        await client.set_security(
            SecurityPolicyBasic256Sha256, self.plan.certificate, self.plan.key,
            mode=ua.MessageSecurityMode.SignAndEncrypt,
        )  # fmt: skip
        async with client:
            self._namespace = await client.get_namespace_index(NAMESPACE)
            nodes = {self._node_id(point.address): point.address for point in self.plan.points}
            subscription = await client.create_subscription(PUBLISH_MS, _Changes(nodes, self._take))
            await subscription.subscribe_data_change([client.get_node(node_id) for node_id in nodes])
            self._client = client
            try:
                while True:
                    await self._look(client, nodes)
                    await asyncio.sleep(LOOK_S)
            finally:
                self._client = None

    async def _look(self, client: Client, nodes: Mapping[ua.NodeId, str]) -> None:
        """The library announces no outage, and what stands still sends no news."""
        asked = [ua.ReadValueId(node_id, ua.AttributeIds.Value) for node_id in nodes]
        answers = await client.uaclient.read(ua.ReadParameters(NodesToRead=asked))
        for address, answer in zip(nodes.values(), answers, strict=True):
            self._take(address, answer)

    def _take(self, address: str, answer: ua.DataValue) -> None:
        status, variant = answer.StatusCode, answer.Value
        good = (status is None or status.is_good()) and variant is not None and variant.Value is not None
        self._tell(address, float(variant.Value) if good and variant is not None else None)

    def _node_id(self, address: str) -> ua.NodeId:
        return ua.NodeId(address, self._namespace)

    async def limit(self, limit_w: float, for_s: float) -> None:
        given = [ua.Variant(number, ua.VariantType.Double) for number in (limit_w, 0.0, float(for_s))]
        await self._call("SetPowerLimit", given)

    async def shed(self, level: str, for_s: float) -> None:
        given = [ua.Variant(level, ua.VariantType.String), ua.Variant(float(for_s), ua.VariantType.Double)]
        await self._call("Shed", given)

    async def _call(self, method: str, given: list[ua.Variant]) -> None:
        client = self._connected()
        call = ua.CallMethodRequest(self._node_id("Control"), self._node_id(f"Control/{method}"), given)
        (result,) = await client.uaclient.call([call])
        if not result.StatusCode.is_good():
            said = [str(one.Value) for one in result.OutputArguments]
            raise OrderRefusedError(f"{result.StatusCode.name}: {' '.join(said)}")

    async def write(self, address: str, value: float) -> None:
        told = ua.DataValue(ua.Variant(value, ua.VariantType.Double))
        asked = ua.WriteValue(self._node_id(address), ua.AttributeIds.Value, Value=told)
        (status,) = await self._connected().uaclient.write(ua.WriteParameters([asked]))
        if not status.is_good():
            raise OrderRefusedError(f"{address}: {status.name}")

    def _connected(self) -> Client:
        if self._client is None:
            raise OrderRefusedError("opcua: not connected")
        return self._client


class _Changes:
    """What the library calls for every change."""

    def __init__(self, nodes: Mapping[ua.NodeId, str], take: Callable[[str, ua.DataValue], None]) -> None:
        self._nodes, self._take = nodes, take

    def datachange_notification(self, node: Node, _value: Any, change: Any) -> None:
        self._take(self._nodes[node.nodeid], change.monitored_item.Value)

    def status_change_notification(self, status: ua.StatusChangeNotification) -> None:
        """The subscription is over; the next look finds out why."""


# ---- Modbus ---------------------------------------------------------------------------------------------


class ModbusReader(Reader):
    """The block as a SunSpec device, everything else by the published map."""

    way = "modbus"

    def __init__(self, plan: Plan, see: See) -> None:
        super().__init__(plan, see)
        registers = published_map(plan.register_map)
        self._registers = {p: registers[p.address] for p in plan.points if p.address in registers}
        self._has_block = any(point.address == BLOCK_POWER for point in plan.points)
        self._device: Any = None
        self._turn = asyncio.Lock()  # the library has one connection, and blocks

    async def _session(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_map())
            if self._has_block:
                tasks.create_task(self._read_sunspec())

    async def _read_map(self) -> None:
        client = AsyncModbusTcpClient(
            LOOPBACK, port=self.plan.modbus_port, timeout=MODBUS_WAIT_S, retries=0, reconnect_delay=0
        )
        try:
            if not await client.connect():
                raise ConnectionError("modbus: not there")
            while True:
                for point, (unit, address, kind) in self._registers.items():
                    if not (self._has_block and point.address == BLOCK_POWER):
                        self._tell(point.address, await _read(client, unit, address, kind))
                await asyncio.sleep(LOOK_S / 2)
        finally:
            client.close()

    async def _read_sunspec(self) -> None:
        device = sunspec.SunSpecModbusClientDeviceTCP(
            slave_id=1, ipaddr=LOOPBACK, ipport=self.plan.modbus_port, timeout=MODBUS_WAIT_S
        )
        try:
            await asyncio.to_thread(device.connect)
            await asyncio.to_thread(device.scan, connect=False)
            self._device = device
            meter = device.models[SUNSPEC_METER][0]
            while True:
                async with self._turn:
                    await asyncio.to_thread(meter.read)
                self._tell(BLOCK_POWER, meter.points["W"].cvalue)
                await asyncio.sleep(LOOK_S / 2)
        finally:
            self._device = None
            await asyncio.to_thread(device.disconnect)

    async def limit(self, limit_w: float, for_s: float) -> None:
        """Percent of the rating, with a reversion timer that nobody will write again."""
        if self._device is None:
            raise OrderRefusedError("modbus: not connected")
        ratings, control = (self._device.models[one][0] for one in (SUNSPEC_RATINGS, SUNSPEC_CONTROL))
        points = control.points
        points["WMaxLimPct"].cvalue = FULL_PERCENT * limit_w / ratings.points["WMax"].cvalue
        for name, value in (
            ("WMaxLimPctEna", 1),
            ("WMaxLimPctEnaRvrt", 0),
            ("WMaxLimPctRvrtTms", int(for_s)),
        ):
            points[name].value = value
        points["WMaxLimPctRvrt"].cvalue = FULL_PERCENT
        for name in (
            "WMaxLimPctEna",
            "WMaxLimPct",
            "WMaxLimPctRvrt",
            "WMaxLimPctEnaRvrt",
            "WMaxLimPctRvrtTms",
        ):
            points[name].dirty = True
        async with self._turn:
            try:
                await asyncio.to_thread(control.write)
            except SUNSPEC_FAULTS as error:
                raise OrderRefusedError(f"modbus: {error}") from error


async def _read(client: AsyncModbusTcpClient, unit: int, address: int, kind: str) -> float | None:
    """Value and quality lie side by side."""
    width = REGISTERS_OF[kind]
    reply = await client.read_holding_registers(address, count=width + 1, device_id=unit)
    if reply.isError():
        raise ConnectionError(f"modbus: unit {unit} address {address}: {reply}")
    *words, quality = reply.registers
    value: float = struct.unpack(f">{FORMATS[kind]}", struct.pack(f">{width}H", *words))[0]
    return float(value) if quality == GOOD_QUALITY else None


# ---- MQTT: the DSX bus and the mirror -------------------------------------------------------------------


class _MqttReader(Reader):
    async def _session(self) -> None:
        url = urlsplit(self.plan.mqtt["url"])
        async with aiomqtt.Client(
            url.hostname or LOOPBACK, url.port or 1883, tls_context=_tls(self.plan.mqtt),
            identifier=f"rig-{self.way}", socket_options=NODELAY,
        ) as client:  # fmt: skip
            await client.subscribe(self._filter())
            async for message in client.messages:
                self._hear(message.topic.value, bytes(message.payload or b""), retained=message.retain)

    @abstractmethod
    def _filter(self) -> str:
        """What to subscribe to."""

    @abstractmethod
    def _hear(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Take one message."""


class BusReader(_MqttReader):
    """Attributes: messages, invalid, first_fault: of all that the bus carried."""

    way = "bms"

    def __init__(self, plan: Plan, see: See) -> None:
        super().__init__(plan, see)
        self.messages = self.invalid = 0
        self.first_fault = ""
        check = None if plan.bms_schema is None else bms_check.Contract(plan.bms_schema).fault
        self._fault = check or bms_check.shape_fault
        self._addresses = {f"{plan.site}/{point.bus_address}": point.address for point in plan.points}
        self._units: dict[str, str] = {}  # tag path -> unit
        self._beat_at_s = math.inf

    async def _session(self) -> None:
        self._beat_at_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(super()._session())
            tasks.create_task(self._watch_beat())

    async def _watch_beat(self) -> None:
        """A value on the bus says nothing about who told it: the publisher's heartbeat does."""
        while True:
            await asyncio.sleep(LOOK_S)
            if time.monotonic() - self._beat_at_s > BUS_SILENT_S:
                self._lose()

    def _filter(self) -> str:
        return BUS_TOPICS

    def _hear(self, topic: str, payload: bytes, *, retained: bool) -> None:
        self.messages += 1
        if fault := self._fault(topic, payload):
            self.invalid += 1
            self.first_fault = self.first_fault or f"{topic}: {fault}"
            return
        _, _, _, sort, _, point_type, *levels = topic.split("/")
        tag = "/".join(levels)
        if point_type == BUS_BEAT and sort == "Value" and not retained:
            self._beat_at_s = time.monotonic()
        if tag not in self._addresses:
            return
        content = json.loads(payload)
        if sort == "Metadata":
            self._units[tag] = content.get("engUnit", "")
        elif tag in self._units:  # a value before its metadata is of no known unit
            good = content["quality"] == BUS_GOOD and content["value"] is not None
            factor = BUS_UNITS.get(self._units[tag], 1.0)
            self._tell(self._addresses[tag], content["value"] * factor if good else None)


class MirrorReader(_MqttReader):
    way = "mirror"

    def __init__(self, plan: Plan, see: See) -> None:
        super().__init__(plan, see)
        self._own_topic = f"{MIRROR_PREFIX}/{plan.site}/mirror"
        self._wanted: dict[str, list[WatchedPoint]] = {}
        for point in plan.points:
            self._wanted.setdefault(f"{MIRROR_PREFIX}/{plan.site}/{point.group}", []).append(point)

    def _filter(self) -> str:
        return f"{MIRROR_PREFIX}/{self.plan.site}/#"

    def _hear(self, topic: str, payload: bytes, *, retained: bool) -> None:  # noqa: ARG002  its will is
        if topic == self._own_topic and not json.loads(payload).get("online"):
            self._lose()
        wanted = self._wanted.get(topic)
        if not wanted:
            return
        said = json.loads(payload)
        if said.get("stored"):
            return  # of a time when nobody listened
        for point in wanted:
            if point.name in said["values"]:
                good = point.name not in said.get("quality", {})
                self._tell(point.address, said["values"][point.name] if good else None)


def _tls(mqtt: Mapping[str, str]) -> ssl.SSLContext | None:
    if "ca" not in mqtt:
        return None
    context = ssl.create_default_context(cafile=mqtt["ca"])
    context.load_cert_chain(mqtt["cert"], mqtt["key"])
    return context


# ---- Prometheus -----------------------------------------------------------------------------------------


class PrometheusReader(Reader):
    way = "prometheus"

    async def _session(self) -> None:
        wanted = {_series(point): point for point in self.plan.points}
        timeout = aiohttp.ClientTimeout(total=CALL_MAX_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                async with session.get(f"http://{LOOPBACK}:{self.plan.prometheus_port}/metrics") as answer:
                    answer.raise_for_status()
                    text = await answer.text()
                values, qualities = _samples(text)
                for series, point in wanted.items():
                    good = qualities.get(series) == GOOD_QUALITY and series in values
                    self._tell(point.address, values[series] * _metric(point)[1] if good else None)
                await asyncio.sleep(LOOK_S)


Series = tuple[str, str, str, str]  # metric, kind, name and part


def _samples(text: str) -> tuple[dict[Series, float], dict[Series, float]]:
    """Values and qualities."""
    values: dict[Series, float] = {}
    qualities: dict[Series, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            place = labels.get("kind", ""), labels.get("name", ""), labels.get("part", "")
            if sample.name == QUALITY:
                qualities[f"{PREFIX}_{labels['quantity']}", *place] = sample.value
            else:
                values[sample.name, *place] = sample.value
    return values, qualities


def _series(point: WatchedPoint) -> Series:
    kind, _, name = point.group.partition("/")
    stem = next(point.name.removesuffix(ending) for ending in METRICS if point.name.endswith(ending))
    return (f"{PREFIX}_{_metric(point)[0]}", kind.removesuffix("s"), name or kind, _part(stem)[1])


def _metric(point: WatchedPoint) -> tuple[str, float]:
    """Name without prefix, and the factor to our unit."""
    ending = next(ending for ending in METRICS if point.name.endswith(ending))
    unit, factor = METRICS[ending]
    return _part(point.name.removesuffix(ending))[0] + unit, factor


def _part(name: str) -> tuple[str, str]:
    """A phase is a label, not a part of the name."""
    stem, _, last = name.rpartition("_")
    is_phase = last in {"l1", "l2", "l3"}
    return (stem, last) if is_phase else (name, "")


FAULTS: Final = (
    OSError, EOFError, TimeoutError, asyncio.IncompleteReadError,
    ua.UaError, aiohttp.ClientError, aiomqtt.MqttError, ModbusException, *SUNSPEC_FAULTS,
)  # fmt: skip

READERS: Final[Mapping[Way, type[Reader]]] = {
    reader.way: reader for reader in (OpcUaReader, ModbusReader, BusReader, PrometheusReader, MirrorReader)
}
