"""What must hold for whatever bytes come over a wire, one function per reader and all that follows it.

A property takes any bytes. It returns when they were refused with the package's own error, or understood with
all that must then be true; anything else is raised. In common:
* no other exception escapes;
* a refused message leaves its book exactly as it was, so no bad message can raise a limit;
* what an accepted one leaves is sound: finite numbers, no negative power, every end after its start, and it
  survives a restart through the journal.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any, Final

import msgspec
from joserfc import jws
from joserfc.jwk import ECKey

from protocols.dsx_flex import envelope, load_target
from protocols.dsx_flex.breach import alert_data, read_alert
from protocols.dsx_flex.enforcement import enforcement_data, read_enforcement
from protocols.dsx_flex.load_target import LoadTargetBook
from protocols.dsx_flex.signing import KeySet, open_data, read_public_pem
from protocols.dsx_flex.topics import LOAD_TARGET_SET
from protocols.dsx_flex.wire import POWER_MAX_W, DsxFlexError
from protocols.openadr import (
    FOREVER_UTC_S,
    TYPES,
    EventBook,
    Heartbeat,
    OpenAdrError,
    Window,
    parse,
    parse_heartbeat,
    parse_program,
)
from protocols.ven import Ven, VenSettings, reading
from protocols.ven.faults import TEXT_MAX_CHARS, VtnFault
from tests.fuzz import facility, field, link, modbus_client
from tests.protocols.dsx_flex import dsx_parts
from tests.protocols.openadr_said import T0_UTC_S, event, interval, notification

INPUT_MAX_S: Final = (
    3.0  # of CPU time, on slow machines too; the dearest that the bounds allow take 0.1 s here
)
FILE_MAX_S: Final = 30.0  # a file is its owner's and is read at a start: brackets in brackets cost a second
FILES: Final = ("profile", "config")
SENTENCE_MAX_CHARS: Final = 5 * TEXT_MAX_CHARS  # of a fault: a remedy, an address and what a stranger says


# -- OpenADR ------------------------------------------------------------------------------------------------

STANDING = (
    notification(event(interval(3000.0), event_id="standing", priority=1)),
    notification(event(interval(2000.0), modified="2026-11-21T16:00:00Z")),
)


def openadr(payload: bytes) -> None:
    """A notification or an event from a topic."""
    with suppress(OpenAdrError):
        parse_program(payload)
    book = EventBook()
    for said in STANDING:
        assert book.apply(said, T0_UTC_S).accepted
    before, known = kept(book), book.windows(-math.inf)
    try:
        said = parse(payload)
    except OpenAdrError:
        return
    verdict = book.apply(said, T0_UTC_S)
    windows = book.windows(-math.inf)
    if not verdict.accepted or verdict.reason == "duplicate":
        assert kept(book) == before, "a refused message changed the book"
        assert windows == known, "a refused message changed the windows"
    others = {one for one in known if one.event_id != said.event.id}
    assert others <= set(windows), "a message changed another event"
    check_windows(windows)
    again = EventBook.from_dict(msgspec.json.decode(kept(book)))
    assert again.windows(-math.inf) == windows, "a restart changed the windows"
    assert again.in_force(T0_UTC_S) == book.in_force(T0_UTC_S), "a restart changed what is in force"


def check_windows(windows: Iterable[Window]) -> None:
    for one in windows:
        meaning = TYPES[one.type]
        assert meaning.low * 1000 <= one.value <= meaning.high * 1000, f"a value out of bounds: {one}"
        assert one.starts_utc_s < one.ends_utc_s <= FOREVER_UTC_S, f"a window that is none: {one}"
        assert math.isfinite(one.starts_utc_s), f"a window without a start: {one}"


def heartbeat(payload: bytes) -> None:
    """A sign of life of the site."""
    try:
        said = parse_heartbeat(payload)
    except OpenAdrError:
        return
    assert isinstance(said, Heartbeat)
    assert math.isfinite(said.sent_at_utc_s), "a heartbeat from nowhere in time"
    assert said.seq is None or said.seq >= 0, "a count below zero"
    msgspec.json.encode(sorted(said.event_ids or ()))


# -- DSX Flex -----------------------------------------------------------------------------------------------

FEEDS = ("main-a", "main-b")
KEYS = KeySet([read_public_pem("k", dsx_parts.public_pem("EC"))])
PRIVATE = ECKey.import_key(dsx_parts.private_key("EC"))
HELD = load_target.read({"targets": [{"interval": {}, "load_constraint": {"value": 5, "unit": "megawatt"}}]})


def dsx(payload: bytes) -> None:
    """A message from a topic, signed or not."""
    try:
        opened = envelope.read(payload)
        data = open_data(opened.data, KEYS, T0_UTC_S, accept_unsigned=True)
        envelope.write(opened)
    except DsxFlexError:
        return
    take(opened, data)


def dsx_signed(payload: bytes) -> None:
    """What a publisher with a good key has signed: it may still be any bytes."""
    try:
        compact = jws.serialize_compact({"alg": "ES256", "kid": "k"}, payload, PRIVATE)
        data = open_data(compact, KEYS, T0_UTC_S, accept_unsigned=False)
    except DsxFlexError:
        return
    take(dsx_parts.envelope(7, data=compact), data)


def take(opened: envelope.Envelope, data: Mapping[str, Any]) -> None:
    with suppress(DsxFlexError):
        json.dumps(alert_data(read_alert(data)))
    with suppress(DsxFlexError):
        json.dumps(enforcement_data(read_enforcement(data)))
    if opened.type != LOAD_TARGET_SET:
        return
    book = LoadTargetBook(FEEDS)
    assert book.apply(dsx_parts.envelope(8), HELD, T0_UTC_S).accepted
    before = kept(book)
    try:
        targets = load_target.read(data)
    except DsxFlexError:
        return
    verdict = book.apply(opened, targets, T0_UTC_S)
    if not verdict.accepted or verdict.reason == "duplicate":
        assert kept(book) == before, "a refused message changed the book"
    windows = book.windows(-math.inf)
    for one, two in pairwise(windows):
        assert one.feed != two.feed or one.ends_utc_s <= two.starts_utc_s, f"windows overlap: {one}, {two}"
    for one in windows:
        assert 0 <= one.limit_w <= POWER_MAX_W, f"no power: {one}"
        assert 0 <= one.starts_utc_s < one.ends_utc_s <= load_target.FOREVER_UTC_S, f"no window: {one}"
    again = LoadTargetBook.from_dict(FEEDS, msgspec.json.decode(kept(book)))
    assert again.windows(-math.inf) == windows, "a restart changed the windows"


def kept(book: EventBook | LoadTargetBook) -> bytes:
    return msgspec.json.encode(book.to_dict())


# -- VEN ----------------------------------------------------------------------------------------------------

LABORATORY = VenSettings(
    url="http://127.0.0.1", client_id="c", client_secret="s", ven_name="block-1", plain=True
)
KNOWN_EVENT = "ev-known"


def ven(payload: bytes) -> None:
    """An answer of a VTN to any question, or a notification of its broker."""
    for read in READERS:
        told = ""
        try:
            read(payload)
        except VtnFault as fault:
            told = str(fault)
        assert told.isprintable(), f"a fault that spoils the log: {told!r}"
        assert len(told) <= SENTENCE_MAX_CHARS, f"a fault of {len(told)} characters"
    passed_on: list[bytes] = []
    one = Ven(LABORATORY, on_message=lambda raw, _: passed_on.append(raw), on_program=msgspec.json.encode)
    one._register.begin_round()
    one._register.enter_listed(KNOWN_EVENT)
    one._on_notification("t", payload, False)
    assert passed_on in ([], [payload]), "a notification was altered on its way"
    if one.status.events == 0:
        cause = reading.notification(payload)
        assert cause.deleted, "an event was forgotten that nobody called off"
        assert cause.said["id"] == KNOWN_EVENT, "another event was forgotten"
        assert passed_on, "an event was called off without a word"


def read_list(payload: bytes) -> None:
    for raw in reading.decoded_list(payload, "GET"):
        found = reading.item(bytes(raw))
        if found is not None:
            whole = msgspec.json.decode(reading.wrapped(found.raw, "UPDATE"))
            assert reading.fold(whole["object"])["id"] == found.id, "an event was altered on its way"
            list(reading.target_names(found.said))


def read_binding(payload: bytes) -> None:
    said = reading.fold(reading.decoded(payload)).get("mqtt")
    if isinstance(said, dict):
        bound = reading.binding(reading.fold(said), ("t",), LABORATORY, shared=False)
        assert bound.uris, "a broker without address"


def read_token(payload: bytes) -> None:
    token, life_s = reading.token(200, payload)
    assert token.isprintable(), "a token that spoils the header"
    assert reading.TOKEN_LIFE_MIN_S <= life_s <= reading.TOKEN_LIFE_MAX_S, f"a token for {life_s} s"


READERS: tuple[Callable[[bytes], object], ...] = (
    read_list,
    read_binding,
    read_token,
    lambda payload: reading.topic_names(payload, "topics"),
    lambda payload: reading.token(500, payload),
)

PROPERTIES: Final[Mapping[str, Callable[[bytes], int | None]]] = {
    "openadr": openadr,
    "heartbeat": heartbeat,
    "dsx": dsx,
    "dsx-signed": dsx_signed,
    "ven": ven,
    "modbus-tcp": modbus_client.over_tcp,
    "modbus-rtu": modbus_client.over_rtu,
    "modbus-server": facility.modbus_server,
    "sunspec": field.sunspec,
    "opcua": field.opcua,
    "profile": field.profile,
    "config": field.config,
    "image": facility.image,
    "command": facility.command,
    "bms": facility.bms,
    "link": link.link,
}
MESSAGES: Final[Counter[str]] = (
    Counter()
)  # heard so far, by property: one per input, or as many as it returns


def cost_s(name: str, payload: bytes) -> float:
    """CPU time that a property took. Raises whatever broke, be it the time."""
    began_s = time.thread_time()
    MESSAGES[name] += PROPERTIES[name](payload) or 1
    took_s = time.thread_time() - began_s
    most_s = FILE_MAX_S if name in FILES else INPUT_MAX_S
    assert took_s <= most_s, f"{len(payload)} bytes took {took_s:.2f} s; {most_s:g} s at most"
    return took_s
