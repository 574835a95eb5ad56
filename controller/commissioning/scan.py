"""Which units answer? A bounded, slow walk over hosts, ports and unit ids that reads one register of each.

A plant network is no place for hurry: four questions a second, one connection at a time, nothing but reads,
and a range that somebody has written out. What is found is a list of ids; `probe` says what they are.

Any answer proves a unit, a refusal as well as a value. A gateway that says "target does not respond" answers
for itself and not for the unit. A device that ignores unit ids answers to all of them alike; that is seen,
and said once.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.commissioning import probe_opcua
from controller.commissioning.sources import short
from controller.commissioning.talk import SILENT_WAIT_MAX_S, Talk
from controller.commissioning.target import SCHEME_MARK, Target, ToolError, shown
from controller.gateway_config import OPCUA_SCHEME, DeviceConfig
from protocols.modbus import Tcp, Transport, transport_of
from protocols.modbus.questions import LostError, RefusedError, SilentError

RATE_PER_S: Final = 4.0
HOSTS_MAX: Final = 256  # an installation's own subnet; more is somebody else's
PORTS_MAX: Final = 8
UNIT_MAX: Final = 247  # Modbus over serial line V1.02, 2.2
QUESTIONS_MAX: Final = 10_000  # at four a second and a second of silence each: a night
PLATE: Final = ("vendor", "product_code", "product", "model", "revision")
OPCUA_PORT: Final = 4840
CLOSED_SHOWN: Final = 3  # places of one reason
ALIKE_MIN: Final = 4  # units that answer the same at one place

_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A connection to try: a Modbus transport, or an OPC UA server."""

    url: str
    transport: Transport | None  # None: OPC UA

    @property
    def where(self) -> str:
        return self.url if self.transport is None else self.transport.where


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One that answers.

    Attributes:
        said: its first register, or how it refused.
        nameplate: as it tells itself; "" = it does not.
    """

    url: str
    unit: int
    said: str
    nameplate: str = ""


@dataclass
class Survey:
    """What has been found so far; complete or not.

    Attributes:
        done, of: questions asked, and planned.
        closed: URLs of places without a connection, by the reason.
        notes: about places, such as one that ignores unit ids.
        complete: the whole range has been asked.
    """

    of: int
    done: int = 0
    units: list[Unit] = field(default_factory=list)
    servers: list[probe_opcua.Found] = field(default_factory=list)
    closed: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def found(self) -> int:
        return len(self.units) + len(self.servers)

    def close(self, place: Place, why: str) -> None:
        """Places that fail alike are told together."""
        for where in filter(None, (place.where, urlsplit(place.url).netloc)):
            why = why.removeprefix(f"{where}: ").replace(where, "it")
        self.closed.setdefault(why, []).append(place.url)


def numbers(text: str, what: str, lowest: int, highest: int) -> list[int]:
    """`1-20,33` as numbers in their order. Raises ToolError."""
    found: dict[int, None] = {}
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ToolError(f"{what}: {part.strip()!r} is no range; write it like 1-20,33")
        first, last = int(match[1]), int(match[2] or match[1])
        if not lowest <= first <= last <= highest:
            raise ToolError(f"{what}: {part.strip()}: use {lowest} to {highest}, the lower one first")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def hosts(words: Sequence[str]) -> list[str]:
    """Addresses and names, ranges written out as 10.0.0.7-20 or 10.0.0.7-10.0.0.20. Raises ToolError."""
    found = list(dict.fromkeys(host for word in words for host in _hosts(word)))
    if len(found) > HOSTS_MAX:
        raise ToolError(f"{len(found)} hosts; {HOSTS_MAX} at most: scan one subnet after the other")
    return found


def _hosts(word: str) -> Iterator[str]:
    if "/" in word:
        raise ToolError(
            f"{word!r}: write the range out, such as 10.0.0.7-20: a whole network is seldom yours"
        )
    if ":" in word:
        raise ToolError(f"{word!r}: name the port by --ports, or write a URL, such as modbus+tcp://{word}")
    first, dash, last = word.partition("-")
    try:
        begin = ipaddress.IPv4Address(first)
    except ValueError:
        yield word  # a name, in which a dash is a letter like any other
        return
    if not dash:
        yield word
        return
    try:
        end = ipaddress.IPv4Address(last if "." in last else f"{first.rpartition('.')[0]}.{last}")
    except ValueError:
        raise ToolError(f"{word!r} is no range of hosts; write it like 10.0.0.7-20") from None
    if not 0 <= int(end) - int(begin) < HOSTS_MAX:
        raise ToolError(f"{word!r}: from the lower to the higher address, {HOSTS_MAX} hosts at most")
    yield from (str(ipaddress.IPv4Address(number)) for number in range(int(begin), int(end) + 1))


def places(
    words: Sequence[str], ports: Sequence[int], *, tls: Sequence[Path | None] = (None, None, None)
) -> list[Place]:
    """What to connect to: URLs as they are, hosts with each of the ports. Raises ToolError.

    `tls`: files of the authority, our certificate and our key, for modbus+tls.
    """
    if len(ports) > PORTS_MAX:
        raise ToolError(
            f"--ports: {len(ports)} ports; {PORTS_MAX} at most: a scan looks for devices, not for holes"
        )
    urls = [word for word in words if SCHEME_MARK in word]
    found = [_place(url, tls) for url in urls]
    for host, port in product(hosts([word for word in words if word not in urls]), ports):
        scheme = "opc.tcp" if port == OPCUA_PORT else "modbus+tcp"
        found.append(_place(f"{scheme}://{host}:{port}"))
    if not found:
        raise ToolError("nothing to scan; give hosts (10.0.0.7-20) or a URL (modbus+rtu:///dev/ttyUSB0)")
    return found


def _place(url: str, tls: Sequence[Path | None] = (None, None, None)) -> Place:
    if shown(url).startswith(OPCUA_SCHEME):
        return Place(url=url, transport=None)
    ca, cert, key = tls if url.startswith("modbus+tls") else (None, None, None)
    try:
        return Place(url=url, transport=transport_of(url, ca=ca, cert=cert, key=key))
    except ValueError as error:
        raise ToolError(str(error)) from error


def planned(where: Sequence[Place], units: Sequence[int]) -> Survey:
    """Raises ToolError for a range that would take the night."""
    of = sum(len(units) if place.transport is not None else 1 for place in where)
    if of > QUESTIONS_MAX:
        raise ToolError(f"{of} questions; {QUESTIONS_MAX} at most: fewer hosts, --units or --ports")
    return Survey(of=of)


async def scan(
    where: Sequence[Place],
    units: Sequence[int],
    survey: Survey,
    *,
    gap_s: float = 1.0 / RATE_PER_S,
    on_step: Callable[[str], None] = lambda _: None,
) -> None:
    """Fill `survey`, so that an interrupted scan still tells what it knows. Raises nothing."""
    for place in where:
        planned_to = survey.done + (1 if place.transport is None else len(units))
        try:
            if place.transport is None:
                on_step(place.url)
                await _ask_server(place, survey)
            else:
                await _ask_units(place, place.transport, units, survey, gap_s, on_step)
        except LostError as lost:
            survey.close(place, str(lost))
            survey.done = planned_to
    survey.complete = True


async def _ask_server(place: Place, survey: Survey) -> None:
    """Raises LostError."""
    try:  # where nothing listens, a client of OPC UA would wait for ten times as long
        async with Talk(Tcp(*_address(place.url)), gap_s=0.0):
            pass
    except LostError as lost:
        raise LostError(str(lost).replace("Modbus", "its OPC UA server")) from None
    target = Target(name=place.url, config=DeviceConfig(profile="", url=place.url, security="none"))
    found = probe_opcua.Found(where=place.url, url=place.url)
    await probe_opcua.probe(target, found)
    survey.servers.append(found)
    survey.done += 1


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or OPCUA_PORT


async def _ask_units(
    place: Place,
    transport: Transport,
    units: Sequence[int],
    survey: Survey,
    gap_s: float,
    on_step: Callable[[str], None],
) -> None:
    """Raises LostError when there is no connection, or nothing but hanging up."""
    here: list[Unit] = []
    hung_up: dict[int, LostError] = {}
    async with Talk(transport, gap_s=gap_s, wait_max_s=SILENT_WAIT_MAX_S) as talk:
        for unit_id in units:
            on_step(f"{place.url} unit {unit_id}")
            try:
                if not talk.connected:
                    await talk.connect()
                said = await _first_word(talk, unit_id)
                if said:
                    plate = await _plate(talk, unit_id)
                    here.append(Unit(url=place.url, unit=unit_id, said=said, nameplate=plate))
                    survey.units.append(here[-1])
            except _StrangeError as strange:
                survey.notes.append(f"{place.url} unit {unit_id}: {strange}")
            except LostError as lost:  # over an id that is not theirs some devices hang up
                hung_up[unit_id] = lost
            survey.done += 1
    if len(hung_up) == len(units):
        raise hung_up[units[0]]
    if hung_up:
        ids = ", ".join(map(str, hung_up))
        survey.notes.append(f"{place.url}: hangs up when asked for unit {ids}: it may not have them")
    survey.notes += _alike(here, len(units))


async def _plate(talk: Talk, unit_id: int) -> str:
    try:
        told, _ = await talk.introduction(unit_id)
    except LostError:
        return ""
    return " ".join(told[name] for name in PLATE if name in told)


def _alike(here: Sequence[Unit], asked: int) -> Iterator[str]:
    """Many ids that answer the same, or all of them: hardly many devices."""
    alike = [rows for rows in _rows(here) if len(rows) >= ALIKE_MIN]
    if len(here) == asked >= ALIKE_MIN and not alike:
        yield (
            f"{here[0].url}: every unit id that was asked answers; if there are not so many devices, one"
            " answers for all: ask for ids that cannot be there, such as --units 240-247"
        )
    for rows in alike:
        yield (
            f"{rows[0].url}: {len(rows)} unit ids answer alike ({rows[0].said}): one device that ignores"
            " the id, or a gateway that answers for units it does not have"
        )


def _rows(units: Sequence[Unit]) -> list[list[Unit]]:
    """Those that answer the same at one place, together."""
    rows: dict[tuple[str, str, str], list[Unit]] = {}
    for one in units:
        rows.setdefault((one.url, one.said, one.nameplate), []).append(one)
    return list(rows.values())


class _StrangeError(Exception):
    """An answer that is none of Modbus."""


async def _first_word(talk: Talk, unit_id: int) -> str:
    """Its first register, or how it refused; "" = nobody there. Raises LostError or _StrangeError."""
    try:
        (word,) = await talk.words(unit_id, "holding", 0, 1)
    except SilentError:
        return ""
    except RefusedError as refused:
        if not refused.code:
            raise _StrangeError("answers, and not as Modbus does: another service, or an echo") from None
        return f"refused: {short(refused)}"
    return f"holding 0 is {word}"


# --- on paper -----------------------------------------------------------------------------------------------


def as_json(survey: Survey) -> dict[str, Any]:
    return {
        "complete": survey.complete,
        "asked": survey.done,
        "of": survey.of,
        "closed": [{"why": why, "urls": urls} for why, urls in survey.closed.items()],
        "units": [
            {"url": one.url, "unit": one.unit, "said": one.said, "nameplate": one.nameplate}
            for one in survey.units
        ],
        "servers": [{"url": one.url, "application": one.application} for one in survey.servers],
        "notes": survey.notes,
    }


def _closed(why: str, urls: Sequence[str]) -> str:
    places = ", ".join(urls[:CLOSED_SHOWN])
    more = f" and {len(urls) - CLOSED_SHOWN} more" if len(urls) > CLOSED_SHOWN else ""
    count = "1 place" if len(urls) == 1 else f"{len(urls)} places"
    return f"{count} without a connection: {why} ({places}{more})"


def render(survey: Survey) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("at", "unit", "name plate", "answered"):
        table.add_column(column, overflow="fold")
    for alike in _rows(survey.units):
        one, ids = alike[0], ", ".join(str(one.unit) for one in alike)
        table.add_row(Text(one.url, style="bold"), Text(ids), Text(one.nameplate), Text(one.said))
    for server in survey.servers:
        table.add_row(Text(server.url, style="bold"), "", Text(server.application), Text("OPC UA"))
    parts: list[RenderableType] = [table] if survey.found else []
    asked = f"{survey.done} of {survey.of} asked, {survey.found} answer"
    parts.append(Text(asked + ("" if survey.complete else "; interrupted")))
    parts += [Text(_closed(why, urls)) for why, urls in survey.closed.items()]
    parts += [Text(note, style="yellow") for note in survey.notes]
    if survey.units:
        first = min(_rows(survey.units), key=len)[0]
        parts.append(Text(f"next: powerblock probe {first.url} --unit {first.unit}", style="dim"))
    return Group(*parts)
