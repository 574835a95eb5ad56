"""What every DSX Flex message is made of: JSON, powers, moments, ids; read strictly, written one way.

Readers take a value as it came and the path under which it stood, and return it typed, in W and UTC seconds;
or they raise the package's one error, whose sentence names the path and the remedy. They never guess: a unit
that is not in the table is refused, since a guess is wrong by a factor of 1000.

Writers always write W and UTC with a Z, to the millisecond.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from protocols.members import Members, shown

PAYLOAD_MAX_BYTES: Final = 256 * 1024  # a plan of 1,000 targets, signed, is 230 kB
TEXT_MAX_CHARS: Final = 256  # of a name or a sentence in a message
TIME_MAX_CHARS: Final = 40  # nanoseconds and an offset take 35
POWER_MAX_W: Final = 1e11  # 100 GW: more than any grid connection, hence a wrong unit
FOREVER_UTC_S: Final = 1e12  # no end; finite because journals are JSON, which knows no infinity
YEAR_10000_UTC_S: Final = 253_402_300_800.0  # beyond the calendar

UNITS_W: Final[Mapping[str, float]] = {"watt": 1.0, "kilowatt": 1e3, "megawatt": 1e6}

RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
UUID_4: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE
)


class DsxFlexError(ValueError):
    """A message that must not be acted on or sent; the text names the place in it and the remedy."""


# -- reading ------------------------------------------------------------------------------------------------

_members: Final = Members(DsxFlexError, "a DSX Flex message", PAYLOAD_MAX_BYTES)
an_object: Final = _members.an_object
a_whole: Final = _members.a_whole


def decode(payload: bytes | str, path: str) -> dict[str, Any]:
    """One JSON object.

    Raises:
        DsxFlexError: too large, not JSON, not an object, or a key twice.
    """
    return an_object(_members.decode(payload, path), path)


def a_list(value: object, path: str, count_max: int) -> list[Any]:
    said = _members.a_list(value, path)
    if len(said) > count_max:
        raise DsxFlexError(f"{path}: {len(said)} entries; send {count_max} at most")
    return said


def a_text(value: object, path: str, chars_max: int = TEXT_MAX_CHARS) -> str:
    """Printable, so that it may stand in a log or on a screen, whoever sent it."""
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= chars_max:
        raise DsxFlexError(f"{path}: {shown(value)}; send a text of 1 to {chars_max} printable characters")
    return value


def a_word(value: object, path: str, words: Collection[str]) -> str:
    if not isinstance(value, str) or value not in words:
        raise DsxFlexError(f"{path}: {shown(value)}; send one of {', '.join(sorted(words))}")
    return value


def a_uuid(value: object, path: str) -> str:
    if not isinstance(value, str) or not UUID_4.fullmatch(value):
        raise DsxFlexError(f"{path}: {shown(value)}; send a UUIDv4")
    return value


def power_w(value: object, path: str) -> float:
    """A power with its unit, in W; 0 and more.

    Raises:
        DsxFlexError: no number, negative, beyond any grid, or a unit that the contract does not know.
    """
    said = an_object(value, path)
    number = said.get("value")
    unit_w = UNITS_W[a_word(said.get("unit"), f"{path}.unit", UNITS_W)]
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise DsxFlexError(f"{path}.value: {shown(number)}; send a number")
    if not 0 <= number <= POWER_MAX_W / unit_w:
        raise DsxFlexError(f"{path}.value: {shown(number)} {said['unit']}; send 0 to {POWER_MAX_W:g} W")
    return float(number) * unit_w


def time_utc_s(value: object, path: str) -> float:
    """UTC seconds of an RFC 3339 time.

    Raises:
        DsxFlexError: no such time, or one without its offset: a limit moved by a time zone is a wrong limit.
    """
    if isinstance(value, str) and len(value) <= TIME_MAX_CHARS and RFC_3339.fullmatch(value):
        try:
            utc_s = datetime.fromisoformat(value.upper()).timestamp()
        except (ValueError, OverflowError):  # 31 February; or an offset that leads out of the calendar
            utc_s = math.nan
        if 0 <= utc_s < YEAR_10000_UTC_S:
            return utc_s
    raise DsxFlexError(f"{path}: {shown(value)}; send a time like 2026-11-21T18:00:00Z, with Z or an offset")


# -- writing ------------------------------------------------------------------------------------------------


def encode(said: Mapping[str, Any]) -> bytes:
    """Raises DsxFlexError when larger than what this side would read."""
    payload = json.dumps(said, separators=(",", ":"), allow_nan=False).encode()
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise DsxFlexError(f"message of {len(payload)} bytes to send; {PAYLOAD_MAX_BYTES} at most")
    return payload


def power(value_w: float) -> dict[str, Any]:
    """A power as the contract writes it. The contract knows no negative ones: an exporting feed draws 0."""
    if not value_w <= POWER_MAX_W:
        raise DsxFlexError(f"power to send: {value_w} W; at most {POWER_MAX_W:g} W can be meant")
    return {"value": max(0.0, round(value_w, 3)), "unit": "watt"}


def moment(utc_s: float) -> str:
    if not 0 <= utc_s < YEAR_10000_UTC_S:
        raise DsxFlexError(f"time to send: {utc_s} UTC s is not within the calendar")
    return datetime.fromtimestamp(utc_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
