"""The block's instruments: configured devices become supervised tasks that put readings on the board.

Devices behind one address share one connection and one task. A reading that is bad, that comes over a dead
link, or whose registers have not moved for longer than a living instrument can stand still, goes onto the
board as what it is: not good. The law does the rest.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import structlog

from controller.board import Board
from controller.clock import now_s
from controller.config import BlockConfig, DeviceConfig, endpoint
from controller.core.model import Measurement
from protocols.modbus import ModbusLink, ModbusUnit
from protocols.opcua import OpcUaDevice
from protocols.profile import load_profile
from protocols.reading import Reading

log = structlog.get_logger(__name__)


@dataclass
class DeviceLink:
    """How a device is, for people."""

    name: str
    up: bool = False
    fault: str = "not heard yet"
    taken_at_s: float = field(default=-1e12)


@dataclass(frozen=True)
class _Device:
    name: str
    config: DeviceConfig
    point: str
    put: Callable[[Measurement], None]


class Field:
    """All instruments of the block. `runs` holds one coroutine function per connection."""

    def __init__(self, config: BlockConfig, board: Board) -> None:
        self.links = {device.name: DeviceLink(device.name) for device in _devices(config, board)}
        self.runs: dict[str, Callable[[], Awaitable[None]]] = {}
        modbus: dict[tuple[str, int], list[ModbusUnit]] = defaultdict(list)
        for device in _devices(config, board):
            profile = load_profile(device.config.profile)
            on_reading = partial(self._take, device)
            if profile.protocol == "opcua":
                client = OpcUaDevice(
                    device.name,
                    device.config.url,
                    profile,
                    on_reading=on_reading,
                    clock=now_s,
                )
                self.runs[device.name] = client.run
                continue
            where = endpoint(device.config.url)
            unit = ModbusUnit(
                name=device.name,
                profile=profile,
                poll_s=device.config.poll_s,
                on_reading=on_reading,
                unit_id=device.config.unit,
            )
            modbus[where.host, where.port].append(unit)
        for (host, port), units in modbus.items():
            self.runs[f"{host}:{port}"] = ModbusLink(host, port, units, clock=now_s).run

    def _take(self, device: _Device, reading: Reading) -> None:
        value = reading.values.get(device.point)
        frozen_after_s = device.config.frozen_after_s
        still_s = reading.taken_at_s - reading.unchanged_since_s
        frozen = frozen_after_s is not None and still_s > frozen_after_s
        fault = (
            f"answers, but no register has moved for {still_s:.0f} s: frozen?" if frozen else reading.fault
        )
        good = value is not None and reading.link == "up" and not frozen
        device.put(Measurement(value or 0.0, good, reading.taken_at_s))
        link = self.links[device.name]
        if (link.up, link.fault) != (good, fault):
            (log.info if good else log.warning)("device", name=device.name, good=good, fault=fault)
        link.up, link.fault = good, fault
        if reading.link == "up":
            link.taken_at_s = reading.taken_at_s


def _devices(config: BlockConfig, board: Board) -> list[_Device]:
    def put_meter(measurement: Measurement) -> None:
        board.meter = measurement

    def put_cooling(measurement: Measurement) -> None:
        board.cooling = measurement

    devices = [_Device("meter", config.meter, config.meter.point, put_meter)]
    devices += [
        _Device(inlet.name, inlet, inlet.point, partial(board.put_inlet, index))
        for index, inlet in enumerate(config.inlets)
    ]
    if config.cooling is not None:
        devices.append(_Device("cooling", config.cooling, config.cooling.capacity_point, put_cooling))
    return devices
