"""What every DSX Flex message is made of: JSON, powers, moments, ids; read strictly, written one way.

Readers take a value as it came and the path under which it stood, and return it typed, in W and UTC seconds;
or they raise the package's one error, whose sentence names the path and the remedy. They never guess: a unit
that is not in the table is refused, since a guess is wrong by a factor of 1000.

Writers always write W and UTC with a Z, to the millisecond.
"""

import json
import math
import re
import reprlib
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

PAYLOAD_MAX_BYTES: Final = 256 * 1024  # a plan of 1,000 targets, signed, is 230 kB
TEXT_MAX_CHARS: Final = 256  # of a name or a sentence in a message
SHOWN_MAX_CHARS: Final = 64  # of a foreign value in a log line
TIME_MAX_CHARS: Final = 40  # nanoseconds and an offset take 35
POWER_MAX_W: Final = 1e11  # 100 GW: more than any grid connection, hence a wrong unit
FOREVER_UTC_S: Final = 1e12  # no end; finite because journals are JSON, which knows no infinity
YEAR_10000_UTC_S: Final = 253_402_300_800.0  # beyond the calendar

UNITS_W: Final[Mapping[str, float]] = {"watt": 1.0, "kilowatt": 1e3, "megawatt": 1e6}

RFC_3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d(?:\.\d{1,9})?)([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
UUID_4: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE
)


class DsxFlexError(ValueError):
    """A message that must not be acted on or sent; the text names the place in it and the remedy."""


# -- reading ------------------------------------------------------------------------------------------------


def decode(payload: bytes | str, path: str) -> dict[str, Any]:
    """One JSON object; no key twice (two readers would read two messages), no NaN.

    Raises:
        DsxFlexError: too large, not JSON, not an object.
    """
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise DsxFlexError(f"{path}: {len(payload)} bytes; send {PAYLOAD_MAX_BYTES} at most")
    try:
        text = payload if isinstance(payload, str) else payload.decode()
        said = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except DsxFlexError:
        raise
    except RecursionError as error:
        raise DsxFlexError(f"{path}: nested too deeply; send a DSX Flex message") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ones
        raise DsxFlexError(f"{path}: not JSON: {error}") from error
    return an_object(said, path)


def an_object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DsxFlexError(f"{path}: {shown(value)}; send an object")
    return value


def a_list(value: object, path: str, count_max: int) -> list[Any]:
    if not isinstance(value, list):
        raise DsxFlexError(f"{path}: {shown(value)}; send a list")
    if len(value) > count_max:
        raise DsxFlexError(f"{path}: {len(value)} entries; send {count_max} at most")
    return value


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
    if isinstance(value, str) and len(value) <= TIME_MAX_CHARS and (match := RFC_3339.fullmatch(value)):
        offset = "+00:00" if match[3] in "Zz" else match[3]
        try:
            utc_s = datetime.fromisoformat(f"{match[1]}T{match[2]}{offset}").timestamp()
        except (ValueError, OverflowError):  # 31 February; or an offset that leads out of the calendar
            utc_s = math.nan
        if 0 <= utc_s < YEAR_10000_UTC_S:
            return utc_s
    raise DsxFlexError(f"{path}: {shown(value)}; send a time like 2026-11-21T18:00:00Z, with Z or an offset")


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring = 2, 2 * SHOWN_MAX_CHARS  # plain repr recurses as deep as the sender nested


def shown(value: object) -> str:
    """Short enough for a log line, whatever was sent."""
    if value is None:
        return "missing"
    text = _short.repr(value)
    return text if len(text) <= SHOWN_MAX_CHARS else f"{text[:SHOWN_MAX_CHARS]}..."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    said = dict(pairs)
    if len(said) != len(pairs):
        raise DsxFlexError(f"message: a key twice among {shown([key for key, _ in pairs])}; send it once")
    return said


def _no_constant(name: str) -> float:
    raise DsxFlexError(f"message: {name} is not JSON; send a number")


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
