"""One write to one point: shown first, byte by byte, and sent only when somebody says so.

    without --confirm   the value now, the frame that would go out, and what would go out before it
    with --confirm      sent, read back, compared

The way to the wire is that of the gateway: permission for this one value of this one point, refusal of
everything else at the transport, the device's identity checked first, and whatever the profile's control
block wants armed. Where a controller runs the block, it carries the write out: it alone may write there.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.commissioning.shown import Shown, number, said, wanted, words_said
from controller.commissioning.shown import unit as unit_of
from controller.commissioning.sources import ImageSource, ModbusSource, OpcuaSource, Source, holder, opened
from controller.commissioning.target import Target, ToolError
from controller.gateway_config import opcua_security
from controller.image.model import Quality, Result
from controller.views.command import carry_out, parsed
from protocols import codec
from protocols.codec import CodecError
from protocols.modbus import ModbusLink, ModbusUnit
from protocols.modbus.frames import Mbap, Rtu
from protocols.modbus.questions import write_question
from protocols.opcua import OpcUaDevice
from protocols.opcua.fence import PeerError
from protocols.opcua.values import UnfitError, variant
from protocols.profile import Point, Profile, Setting
from protocols.reading import NOTHING_SENT, DeviceError, Reading, Value, WriteRule, Written

CONNECT_WAIT_MAX_S: Final = 12.0  # a small OPC UA server that is busy with its keys
WRITE_WAIT_MAX_S: Final = 5.0
LEAVE_WAIT_MAX_S: Final = 1.0
POLL_S: Final = 1.0
SWITCH: Final = frozenset((0, 1))  # states of what can be told on and off, whatever they are called
WORDS: Final = {"on": 1.0, "true": 1.0, "off": 0.0, "false": 0.0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would happen.

    Attributes:
        now: the point as it is; None where it cannot be read.
        sends: each write in its order: what it is, and the bytes.
        notes: what else one should know.
    """

    target: Target
    where: str
    by_controller: bool
    point: Point
    value: float
    now: Shown | None
    sends: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.target.name,
            "where": self.where,
            "point": self.point.name,
            "value": self.value,
            "unit": self.point.unit,
            "now": None if self.now is None else self.now.as_json(),
            "sends": [{"what": what, "bytes": sent} for what, sent in self.sends],
            "notes": list(self.notes),
        }


async def plan(target: Target, name: str, text: str) -> Plan:
    """Judge the write and look at the point. Sends no write. Raises DeviceError or ToolError."""
    if held := await holder(target):
        raise ToolError(
            f"{target.name}: the controller of this host holds it, as {held}, and would write against you;"
            f" let it do the write: powerblock write BLOCK.yaml {held} {name} {text}"
        )
    source = await opened(target)
    try:
        point = _point(source, target, name)
        value = value_of(point, text)
        permitted(target, point, value)
        if source.stranger:
            raise DeviceError(f"{source.stranger}; nothing would be sent")
        now = (await source.take([point]))[name] if point.readable else None
        _demand_there(source, now)
        sends = await _sends(source, target, point, value)
        notes = (*_rounded(source, point, value), *_notes(source, target, point))
    finally:
        await source.close()
    return Plan(
        target=target,
        where=source.where,
        by_controller=source.by_controller,
        point=point,
        value=value,
        now=now,
        sends=sends,
        notes=notes,
    )


def _demand_there(source: Source, now: Shown | None) -> None:
    """Raises DeviceError for a point that cannot even be read: another device is easily told what to do."""
    if not isinstance(source, ModbusSource) or now is None or now.quality is not Quality.BAD or now.raw:
        return
    raise DeviceError(
        f"{now.point.name}: cannot be read: {now.why}; is it the device of profile {source.profile.name}?"
        f" {NOTHING_SENT}"
    )


def _point(source: Source, target: Target, name: str) -> Point:
    """The point, also one that cannot be read. Raises ToolError."""
    profile = getattr(source, "profile", None) or target.profile()
    if profile is None:
        return source.points([name])[0]
    if name not in profile.points:
        writable = ", ".join(one.name for one in profile.points.values() if one.writable) or "none"
        raise ToolError(f"{profile.name}: no point {name!r}; those that can be written: {writable}")
    found: Point = profile.points[name]
    return found


def value_of(point: Point, text: str) -> float:
    """A number in the point's unit, the name of a state, on or off. Raises ToolError."""
    states = {state.lower(): float(number) for number, state in point.enum.items()}
    word = text.strip().lower()
    if word in states:
        return states[word]
    if word in WORDS and (point.unit == "bool" or point.enum.keys() == SWITCH) and not states.keys() & WORDS:
        return WORDS[word]
    try:
        return float(text)
    except ValueError:
        rest = "on or off" if point.unit == "bool" else f"a number in {point.unit}"
        use = ", ".join(point.enum.values()) or rest
        raise ToolError(f"{point.name}: {text!r} is no value; use {use}") from None


def permitted(target: Target, point: Point, value: float) -> None:
    """Raises ToolError for what must not be written, before anything is sent."""
    if not point.writable:
        raise ToolError(f"{target.name}.{point.name}: read-only by its profile; nothing was sent")
    try:
        if point.node:
            codec.to_raw(point, value)
        elif point.address >= 0 and not (point.scale_factor or point.mask):
            codec.encode(point, value)
    except CodecError as error:
        raise ToolError(f"{error}; nothing was sent") from error
    if not point.lowest <= value <= point.highest:
        raise ToolError(
            f"{point.name}: {value:g} refused; use {point.lowest:g} to {point.highest:g} {point.unit};"
            " nothing was sent"
        )
    if target.run_dir is None:
        return
    rule = target.config.writes.get(point.name)
    if rule is None:
        raise ToolError(
            f"{target.name}.{point.name}: the block allows nobody to write it; name it under `writes`"
        )
    if not rule.lowest <= value <= rule.highest:
        raise ToolError(
            f"{target.name}.{point.name}: {value:g} is outside {rule.lowest:g} to {rule.highest:g}, all that"
            " the block allows; nothing was sent"
        )


# --- what would go out --------------------------------------------------------------------------------------


async def _sends(source: Source, target: Target, point: Point, value: float) -> tuple[tuple[str, str], ...]:
    if isinstance(source, OpcuaSource):
        return (await _opcua_send(source, point, value),)
    if isinstance(source, ModbusSource):
        control = source.profile.control
        settings = () if control is None else _arming(source.profile)
        wanted = [(source.profile.points[one.point], one.value) for one in settings]
        return tuple([await _modbus_send(source, target, *one) for one in (*wanted, (point, value))])
    return (("write, by the running controller", f"{target.name}.{point.name} = {value:g}"),)


def _arming(profile: Profile) -> Sequence[Setting]:
    """What the gateway writes before the first command, in its order."""
    control = profile.control
    assert control is not None
    settings = list(control.arm)
    reversion = control.reversion
    if reversion is not None:
        if reversion.value is not None:
            settings.append(Setting(point=reversion.value_point, value=reversion.value))
        settings.append(Setting(point=reversion.timer_point, value=reversion.seconds))
        if reversion.enable_point:
            settings.append(Setting(point=reversion.enable_point, value=reversion.enable_value))
    return settings


async def _modbus_send(source: ModbusSource, target: Target, point: Point, value: float) -> tuple[str, str]:
    known, onto = await _ground(source, target, point)
    try:
        words = codec.encode(point, value, known, onto)
        question = write_question(point.table, point.address, words, point.write, point.name)
    except ValueError as error:  # CodecError is one
        raise ToolError(f"{error}; nothing was sent") from error
    framing = Rtu() if source.talk.transport.rtu else Mbap()
    frame = framing.ask(target.config.unit, question)
    what = (
        f"{point.name} = {said(point, value)}: function {question.pdu[0]}, {point.table} {point.address},"
        f" {words_said(words)}"
    )
    return what, frame.hex(" ")


async def _ground(
    source: ModbusSource, target: Target, point: Point
) -> tuple[dict[str, Value], list[int] | None]:
    """What the write rests on: the scale factor, and the register that it shares with other points."""
    known: dict[str, Value] = {}
    if point.scale_factor:
        factor = source.profile.points[point.scale_factor]
        known[factor.name] = (await source.take([factor]))[factor.name].value
    if not point.mask:
        return known, None
    width = codec.width(point)
    return known, await source.talk.words(target.config.unit, point.table, point.address, width)


async def _opcua_send(source: OpcuaSource, point: Point, value: float) -> tuple[str, str]:
    session = source.session
    assert session is not None
    if point.method:
        return f"call {point.method}", "" if point.unit == "bool" else f"with {codec.to_raw(point, value):g}"
    try:
        (answer,) = await session.read([session.node_id(point.node)])
        if answer.Value is None or answer.Value.Value is None:
            return f"write {point.node}", f"{codec.to_raw(point, value):g}, as the type of the node"
        made = variant(point, value, answer.Value.VariantType, point.lowest, point.highest)
    except (PeerError, UnfitError, CodecError) as error:
        raise DeviceError(f"{point.name}: {error}; nothing was sent") from error
    return f"write {point.node}", f"{made.VariantType.name} {made.Value}"


def _rounded(source: Source, point: Point, value: float) -> Iterator[str]:
    """Of a value between two steps of the register."""
    if isinstance(source, ModbusSource) and not (point.scale_factor or point.mask):
        carried = codec.decode(point, codec.encode(point, value))
        if isinstance(carried, float | int) and number(carried) != number(value):
            yield f"the register has no {value:g}: it will say {number(carried)} {unit_of(point)}".rstrip()


def _notes(source: Source, target: Target, point: Point) -> list[str]:
    notes = []
    profile = None if isinstance(source, ImageSource) else getattr(source, "profile", None)
    if profile is not None and profile.control is not None:
        reversion = profile.control.reversion
        if reversion is not None:
            notes.append(f"the device falls back by itself within {reversion.seconds:g} s after this")
        elif profile.control.heartbeat is not None:
            notes.append("the device falls back by itself once its heartbeat rests after this")
        elif profile.control.release:
            undone = ", ".join(
                f"{one.point} = {said(profile.points[one.point], one.value)}"
                for one in profile.control.release
            )
            notes.append(f"it stays armed after this; what would release it: {undone}")
        notes += [f"it needs {one.point} to be {wanted(profile, one)}" for one in profile.control.requires]
    if not (point.readable and point.read_back):
        notes.append("it cannot be read back: the device's acknowledgement is all there will be")
    if profile is not None and profile.write_gap_s:
        notes.append(f"the device bears one write per {profile.write_gap_s:g} s")
    if target.run_dir is None:
        notes.append("whether a gateway elsewhere holds this device is not known here; stop it first")
    return notes


# --- sending it ---------------------------------------------------------------------------------------------


async def sent(made: Plan) -> Written:
    """Do it. Raises DeviceError, which says whether it may be in force."""
    target = made.target
    if made.by_controller:
        return await _by_controller(made)
    if target.config.is_opcua:
        return await _by_opcua(made)
    return await _by_modbus(made)


async def _by_controller(made: Plan) -> Written:
    target = made.target
    assert target.run_dir is not None
    words = (f"device={target.name}", f"point={made.point.name}", f"value={made.value!r}")
    command = parsed("write", list(words))  # as from the block's own panel
    outcome = await carry_out(target.run_dir, command)
    if outcome.result is Result.REJECTED:
        raise DeviceError(outcome.reason)
    value = made.value if outcome.value is None else outcome.value
    return Written(value, outcome.was, confirmed=outcome.value is not None)


async def _by_modbus(made: Plan) -> Written:
    config, name = made.target.config, made.target.name
    heard = _Heard()
    unit = ModbusUnit(
        name=name,
        profile=made.target.profile(),
        poll_s=POLL_S,
        on_reading=heard.take,
        unit_id=config.unit,
        points=(made.point.name,) if made.target.profile() is not None and made.point.readable else (),
        writes={made.point.name: WriteRule(made.value, made.value)},
    )
    link = ModbusLink(config.transport(), [unit], clock=time.monotonic)
    running = asyncio.create_task(link.run())
    try:
        await heard.up(running)
        return await link.write(name, made.point.name, made.value, WRITE_WAIT_MAX_S)
    finally:
        await _left(running)


async def _by_opcua(made: Plan) -> Written:
    config = made.target.config
    heard = _Heard()
    device = OpcUaDevice(
        made.target.name,
        config.url,
        made.target.known_profile(),
        on_reading=heard.take,
        clock=time.monotonic,
        points=(made.point.name,) if made.point.readable else (),
        security=opcua_security(config),
        writes={made.point.name: WriteRule(made.value, made.value)},
    )
    running = asyncio.create_task(device.run())
    try:
        await heard.up(running)
        return await device.write(made.point.name, made.value, WRITE_WAIT_MAX_S)
    finally:
        await _left(running)


class _Heard:
    """Waits for the first answer of a device."""

    def __init__(self) -> None:
        self._up = asyncio.Event()
        self._fault = "no answer"

    def take(self, reading: Reading) -> None:
        if reading.link == "up":
            self._up.set()
        self._fault = reading.fault

    async def up(self, running: asyncio.Task[None]) -> None:
        """Raises DeviceError if it does not come up in time."""
        try:
            async with asyncio.timeout(CONNECT_WAIT_MAX_S):
                waiting = asyncio.create_task(self._up.wait())
                await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        except TimeoutError:
            raise DeviceError(f"{self._fault}; nothing was sent") from None
        if running.done():
            running.result()


async def _left(running: asyncio.Task[None]) -> None:
    running.cancel()
    with suppress(asyncio.CancelledError, TimeoutError):
        async with asyncio.timeout(LEAVE_WAIT_MAX_S):
            await running


# --- on paper -----------------------------------------------------------------------------------------------


def render(made: Plan, written: Written | None) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    unit = unit_of(made.point)
    table.add_row(Text("device"), Text(f"{made.target.name}  {made.where}"))
    table.add_row(Text("point"), Text(f"{made.point.name}  {made.point.title}"))
    table.add_row(Text("before" if written is not None else "now"), Text(_now(made.now, unit)))
    table.add_row(Text("wanted"), Text(f"{said(made.point, made.value)} {unit}".strip(), style="bold"))
    for what, frame in made.sends:
        table.add_row(Text("sent" if written is not None else "would send"), Text(what))
        table.add_row(Text(""), Text(frame, style="cyan"))
    if written is not None:
        known = "read back" if written.confirmed else "acknowledged, cannot be read back"
        table.add_row(Text(known), Text(f"{said(made.point, written.value)} {unit}".strip(), style="green"))
    for note in made.notes:
        table.add_row(Text("note", style="yellow"), Text(note))
    last = (
        Text("") if written is not None else Text("nothing was sent; add --confirm to send it", style="bold")
    )
    return Group(table, last)


def _now(now: Shown | None, unit: str) -> str:
    if now is None:
        return "a command: cannot be read"
    if not now.came:
        return f"cannot be read: {now.why}"
    return f"{now.came} {unit}".rstrip() + (f"  ({now.why})" if now.why else "")


def written_as_json(made: Plan, written: Written | None) -> dict[str, Any]:
    outcome = (
        None
        if written is None
        else {"value": written.value, "was": written.was, "confirmed": written.confirmed}
    )
    return {**made.as_json(), "written": outcome}
