"""What people and programs outside may want done, who may, and what became of it.

Every way in (OPC UA, Modbus, DSX Exchange, the panel on the host) ends here: one table of verbs, one check of
roles, one switch position, one log. A command is answered with what came of it, and refused with a reason;
none is dropped in silence. Whoever authenticated the asker has said the role; whether it suffices is decided
here, again, for all ways alike.

In LOCAL, and in OFF, verbs that move plant or power are refused unless they come from the block's own panel;
writes that were under way when the switch was turned are done before the one who turned it is answered. To
look after alarms is everybody's business who may.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from controller.alarms import AlarmDesk
from controller.core.model import FOREVER_S, NEVER_S, Ramp, Settings
from controller.image.model import Command, Outcome, Result, Role
from controller.lines import Lines
from controller.site.facility import CRITICAL_EQUIPMENT, Facility, Slot
from controller.site.history import Room
from controller.verbs import (
    OPERATOR,
    PRIORITIES,
    VERBS,
    Arguments,
    EndShed,
    Heartbeat,
    Release,
    SetMode,
    SetPowerLimit,
    Shed,
    Withdraw,
    Write,
)
from protocols.reading import DeviceError, Written

FILE_NAME: Final = "commands.jsonl"
FILE_MAX_BYTES: Final = 4 * 1024 * 1024  # some 15,000 lines
FILES_MAX: Final = 4
UNCONFIRMED_MAX: Final = 64  # points whose last write is in doubt
SERVED_S: Final = 10.0  # what the facility server told longer ago holds no more
WRITE_WAIT_S: Final = 5.0  # a slow device behind a busy line, its read-back included
RAMP_LEAST_RATIO: Final = 0.1  # of the agreed ramp: a slower one would outlast its limit by hours
ABOVE_OPERATORS: Final = Role.ENGINEER  # what takes a priority above theirs: it holds against a whole shift
SAY: Final = "say"  # the facility server tells what is wrong with itself: no command, and not logged

log = structlog.get_logger(__name__)


class CommandDesk:
    """Carries commands out.

    Args:
        state_dir: where `commands.jsonl` is written.
        write: sets a point of a field device, and says what it reads back.
        withdraw: ends what was written to a field device, where it has a way back.
        alarms: of the block.
        power: what limits of the facility go to, with the law's settings; None: a gateway without GPUs.
        on_moved: called when the facility asks for another power; returns why that is not on disk, or "".
        clock: monotonic and wall clock, s.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        write: Callable[[str, str, float, float], Awaitable[Written]],
        withdraw: Callable[[str, float], Awaitable[None]],
        alarms: AlarmDesk,
        facility: Facility,
        settings: Settings | None,
        on_moved: Callable[[], str],
        clock: tuple[Callable[[], float], Callable[[], float]],
    ) -> None:
        self._write, self._withdraw = write, withdraw
        self._alarms, self._facility, self._settings = alarms, facility, settings
        self._on_moved = on_moved
        self._now_s, self._now_utc_s = clock
        self._lines = Lines(state_dir / FILE_NAME, files_max=FILES_MAX)
        self._written_bytes = FILE_MAX_BYTES  # the first line begins a file
        self._encoder = msgspec.json.Encoder()
        self._rooms = {refused: Room() for refused in (True, False)}  # refusals must not hide what was done
        self._does: dict[type[Arguments], Callable[[Command, Any], Outcome | Awaitable[Outcome]]] = {
            SetPowerLimit: self._set_power_limit,
            Release: self._release,
            Shed: self._shed,
            EndShed: self._end_shed,
            SetMode: self._set_mode,
            Write: self._write_point,
            Withdraw: self._withdraw_from,
            Heartbeat: self._heartbeat,
        }
        self._under_way = 0  # writes
        self._quiet = asyncio.Event()  # none is
        self._quiet.set()
        self._unconfirmed: dict[str, str] = {}  # by device and point
        self._served: dict[str, str] = {}  # what the facility server finds wrong with itself
        self._served_at_s = NEVER_S

    @property
    def fault(self) -> str:
        return self._lines.fault

    def conditions(self, now_s: float) -> Iterator[tuple[str, str]]:
        """What is wrong, by key and text."""
        if self.fault:
            yield "commands", self.fault
        yield from ((f"write {point}", text) for point, text in self._unconfirmed.items())
        yield from ((f"served {key}", text) for key, text in self._served.items())
        if NEVER_S < self._served_at_s < now_s - SERVED_S:
            yield (
                "facility server",
                f"not heard for {now_s - self._served_at_s:.0f} s: what it told last stands",
            )

    async def carry_out(self, command: Command) -> Outcome:
        """Never raises for what a command says or a device does."""
        if command.verb == SAY:
            self._served = {key: str(text) for key, text in command.arguments.items()}
            self._served_at_s = self._now_s()
            return Outcome(result=Result.ACCEPTED)
        refusal = self._refusal(command)
        if refusal:
            return self._told(command, _rejected(refusal))
        try:
            arguments = msgspec.convert(command.arguments, VERBS[command.verb].arguments)
        except msgspec.ValidationError as error:
            return self._told(command, _rejected(f"{command.verb}: {error}"))
        outcome = await self._run(command, arguments)
        return self._told(command, outcome)

    def close(self) -> None:
        self._lines.close()

    def _refusal(self, command: Command) -> str:
        verb = VERBS.get(command.verb)
        if verb is None:
            return f"no verb {command.verb!r}; one of {', '.join(VERBS)}"
        if command.role < verb.role:
            return (
                f"{command.verb} needs the role {verb.role.name.lower()},"
                f" {command.by} has {Role(command.role).name.lower()}"
            )
        mode = self._facility.mode
        if verb.moves and mode != "remote" and not command.local:
            return f"the block is switched to {mode.upper()}: only its own panel may; switch to REMOTE there"
        return ""

    async def _run(self, command: Command, arguments: Arguments) -> Outcome:
        does = self._does.get(type(arguments))
        if does is not None:
            outcome = does(command, arguments)
            return outcome if isinstance(outcome, Outcome) else await outcome
        return self._alarms.command(command.verb, command.by, **msgspec.structs.asdict(arguments))

    # --- power ------------------------------------------------------------------------------------------

    def _set_power_limit(self, command: Command, said: SetPowerLimit) -> Outcome:
        settings, facility = self._settings, self._facility
        if settings is None:
            return _rejected("this gateway has no GPUs: there is no power to limit")
        if said.priority not in PRIORITIES:
            return _rejected(f"priority: {said.priority} is none of {', '.join(map(str, PRIORITIES))}")
        if said.priority < OPERATOR and command.role < ABOVE_OPERATORS:
            return _rejected(
                f"priority {said.priority} ({PRIORITIES[said.priority]}) needs the role engineer,"
                f" {command.by} has {Role(command.role).name.lower()}"
            )
        least_w, most_w = facility.least_w, settings.feed_rating_w
        limit_w = min(max(said.limit_w, least_w), most_w)
        then_w = None if said.then_w is None else min(max(said.then_w, least_w), most_w)
        ramp = None if said.ramp_w_per_s is None else _within(said.ramp_w_per_s, settings.ramp)
        ends_utc_s = FOREVER_S if said.valid_for_s is None else self._now_utc_s() + said.valid_for_s
        slot = Slot(
            writer_of(command),
            said.priority,
            limit_w,
            ends_utc_s,
            then_w,
            ramp,
            said.heartbeat_timeout_s,
            command.local,
        )
        before = facility.limit_w
        refusal = facility.put(slot, self._now_s())
        if refusal:
            return _rejected(refusal)
        words = []
        if (limit_w, then_w) != (said.limit_w, said.then_w):
            words.append(f"the block can do {least_w:.0f} to {most_w:.0f} W: limit {limit_w:.0f} W")
            words[-1] += "" if then_w is None else f", then {then_w:.0f} W"
        if ramp is not None and said.ramp_w_per_s not in ramp:
            words.append(
                f"ramp {ramp.down_w_per_s:.0f} W/s down, {ramp.up_w_per_s:.0f} up: within what was agreed"
            )
        result = Result.CLAMPED if words else Result.ACCEPTED
        return self._moved(result, before, words, slot)

    def _moved(
        self, result: Result, before: float | None, words: list[str], slot: Slot | None = None
    ) -> Outcome:
        """What the facility asks has changed: onto the disk, to the law, and back to whoever asked."""
        words += self._kept()
        facility = self._facility
        first = facility.limits[0] if facility.limits else None
        if slot is not None and first is not None and first.place != slot.place:
            words.append(f"stands behind {first.id} at {first.asks_w:.0f} W")
        value = facility.limit_w if slot is None else slot.limit_w
        return Outcome(result=result, reason="; ".join(words), value=value, was=before)

    def _kept(self) -> list[str]:
        """To the law, and onto the disk; why it is not there."""
        unkept = self._on_moved()
        return [f"in force, but not on disk: {unkept}"] if unkept else []

    def _release(self, command: Command, said: Release) -> Outcome:
        before, writer = self._facility.limit_w, said.writer or writer_of(command)
        if self._is_foreign(command, writer):
            return _rejected(f"{writer}'s limit is for an engineer, or the block's own panel, to release")
        if not self._facility.release(writer, said.priority):
            return _rejected(f"{writer} holds no such limit")
        return self._moved(Result.ACCEPTED, before, [])

    def _is_foreign(self, command: Command, writer: str) -> bool:
        return writer != writer_of(command) and not command.local and command.role < Role.ENGINEER

    def _shed(self, command: Command, said: Shed) -> Outcome:
        levels = () if self._settings is None else self._settings.shed_levels
        names = [level.name for level in levels]
        wanted = said.level
        if said.number is not None:
            wanted = names[said.number - 1] if said.number <= len(names) else f"number {said.number}"
        if wanted not in names:
            known = ", ".join(names) or "none are configured, see `shed.levels` in block.yaml"
            return _rejected(f"level: no level {wanted!r}; known: {known}")
        number, facility = names.index(wanted), self._facility
        ends_utc_s = FOREVER_S if said.valid_for_s is None else self._now_utc_s() + said.valid_for_s
        slot = Slot(
            writer_of(command),
            CRITICAL_EQUIPMENT,
            levels[number].limit_w,
            ends_utc_s,
            local=command.local,
            shed_level=number,
        )
        refusal = facility.put(slot, self._now_s())
        if refusal:
            return _rejected(refusal)
        words, first = self._kept(), facility.calls[0]
        if first.place != slot.place:
            words.append(f"stands behind {first.id} of level {names[first.shed_level]}")
        return Outcome(result=Result.ACCEPTED, reason="; ".join(words), value=slot.limit_w)

    def _end_shed(self, command: Command, said: EndShed) -> Outcome:
        writer = said.writer or writer_of(command)
        if self._is_foreign(command, writer):
            return _rejected(f"{writer}'s call is for an engineer, or the block's own panel, to end")
        if not self._facility.release(writer, None, shed=True):
            return _rejected(f"{writer} has called no level of shedding")
        words = self._kept()
        words += [f"{slot.id} still stands" for slot in self._facility.calls[:1]]
        return Outcome(result=Result.ACCEPTED, reason="; ".join(words))

    async def _set_mode(self, command: Command, said: SetMode) -> Outcome:
        """Answered when no earlier write is under way any more: somebody may be about to touch the plant."""
        before = self._facility.limit_w
        self._facility.switch(said.mode, writer_of(command), self._now_utc_s(), local=command.local)
        outcome = self._moved(Result.ACCEPTED, before, [])
        await self._quiet.wait()  # bounded: no write takes longer than WRITE_WAIT_S
        return outcome

    def _heartbeat(self, command: Command, _said: Heartbeat) -> Outcome:
        if not self._facility.heartbeat(writer_of(command), self._now_s()):
            return _rejected(
                f"no limit of {writer_of(command)} lives by its heartbeat: lapsed, or never set?"
            )
        return Outcome(result=Result.ACCEPTED)

    # --- plant ------------------------------------------------------------------------------------------

    async def _write_point(self, _command: Command, said: Write) -> Outcome:
        address = f"{said.device}/{said.point}"
        try:
            with self._moving():
                written = await self._write(said.device, said.point, said.value, WRITE_WAIT_S)
        except DeviceError as error:
            if error.may_be_in_force and len(self._unconfirmed) < UNCONFIRMED_MAX:
                self._unconfirmed[address] = str(error)
            return _rejected(str(error))
        self._unconfirmed.pop(address, None)
        was = written.was if isinstance(written.was, (int, float)) else None
        return Outcome(result=Result.ACCEPTED, value=written.value, was=was)

    async def _withdraw_from(self, _command: Command, said: Withdraw) -> Outcome:
        try:
            with self._moving():
                await self._withdraw(said.device, WRITE_WAIT_S)
        except DeviceError as error:
            return _rejected(str(error))
        for address in [one for one in self._unconfirmed if one.startswith(f"{said.device}/")]:
            del self._unconfirmed[address]
        return Outcome(result=Result.ACCEPTED)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Plant is being moved: who turns the switch waits for its end."""
        self._under_way += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()

    # --- the log ----------------------------------------------------------------------------------------

    def _told(self, command: Command, outcome: Outcome) -> Outcome:
        """Who, when, what, and what came of it. A heartbeat is no news."""
        if command.verb != "heartbeat" or outcome.result is Result.REJECTED:
            self._note(command, outcome)
        return outcome

    def _note(self, command: Command, outcome: Outcome) -> None:
        now_s = self._now_s()
        if not self._rooms[outcome.result is Result.REJECTED].takes(now_s) or not self._lines.takes(1, now_s):
            return
        line = (
            self._encoder.encode(
                {
                    "at_utc_s": self._now_utc_s(),
                    "by": command.by,
                    "via": command.via,
                    "role": Role(command.role).name.lower(),
                    "local": command.local,
                    "verb": command.verb,
                    "arguments": command.arguments,
                    "result": Result(outcome.result).name.lower(),
                    "reason": outcome.reason,
                    "value": outcome.value,
                    "was": outcome.was,
                }
            )
            + b"\n"
        )
        first = self._lines.needs_head or self._written_bytes + len(line) > FILE_MAX_BYTES
        self._written_bytes = len(line) if first else self._written_bytes + len(line)
        self._lines.put(line, first=first)
        write = log.warning if outcome.result is Result.REJECTED else log.info
        write(
            "command",
            verb=command.verb,
            by=command.by,
            via=command.via,
            result=outcome.result.name.lower(),
            reason=outcome.reason,
        )


def _within(asked_w_per_s: float, agreed: Ramp) -> Ramp:
    """A writer's own ramp: slower than agreed, not faster, and not for ever."""
    down, up = (
        min(max(asked_w_per_s, RAMP_LEAST_RATIO * rate), rate)
        for rate in (agreed.down_w_per_s, agreed.up_w_per_s)
    )
    return Ramp(down, up)


def writer_of(command: Command) -> str:
    return f"{command.via} {command.by}"


def _rejected(reason: str) -> Outcome:
    return Outcome(result=Result.REJECTED, reason=reason)
