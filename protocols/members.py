"""Members of foreign JSON, read strictly: a value typed as wanted, or an error that names its place.

What comes over a wire was written by somebody else, by mistake or in malice. Before anything is made of it:
* a message has a size bound, is UTF-8, and is JSON without traps: no NaN, no infinity, no half character;
* a name stands once in an object, or every time with the same value: of two values, two readers would act on
  different ones;
* whatever is shown in an error is short and on one line, however long or deep it was sent.

Each protocol reads in its own words: `Members` carries its error, its bound, and how its keys are spelled.
Readers take a value as it came and the path under which it stood.
"""

import json
import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

SHOWN_MAX_CHARS: Final = 64  # of a foreign value in a log line

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring = 2, 2 * SHOWN_MAX_CHARS  # plain repr recurses as deep as the sender nested


def shown(value: object) -> str:
    """Short enough for a log line, whatever was sent."""
    if value is None:
        return "missing"
    text = _short.repr(value)
    return text if len(text) <= SHOWN_MAX_CHARS else f"{text[:SHOWN_MAX_CHARS]}..."


@dataclass(frozen=True)
class Members:
    """Readers for the messages of one protocol.

    Attributes:
        error: raised for whatever is refused; its text names the place and the remedy.
        noun: what should have been sent: "an OpenADR event".
        bytes_max: of a message.
        spelled: the one spelling of a key; None: keys are as they are written.
    """

    error: type[ValueError]
    noun: str
    bytes_max: int
    spelled: Callable[[str], str] | None = None

    def decode(self, payload: bytes | str, path: str) -> object:
        """What the JSON says, keys in their one spelling. Raises `error`."""
        size = len(payload)
        if size > self.bytes_max:
            raise self.error(f"{path}: {size} bytes; send {self.bytes_max} at most")
        try:
            text = payload if isinstance(payload, str) else payload.decode("utf-8-sig")
            said = self._decoder.decode(text)
            if "\\" in text and "\\ud" in text.lower():  # an escape is the only way to half a character
                json.dumps(said, ensure_ascii=False).encode()
        except self.error:
            raise
        except RecursionError as error:
            raise self.error(f"{path}: nested too deeply; send {self.noun}") from error
        except ValueError as error:  # JSONDecodeError and the Unicode errors are ones
            raise self.error(f"{path}: not JSON: {error}") from error
        return said

    def an_object(self, value: object, path: str) -> dict[str, Any]:
        """Raises `error`."""
        if not isinstance(value, dict):
            raise self.error(f"{path}: {shown(value)}; send an object")
        return value

    def a_list(self, value: object, path: str) -> list[Any]:
        """Raises `error`."""
        if not isinstance(value, list):
            raise self.error(f"{path}: {shown(value)}; send a list")
        return value

    def a_whole(self, value: object, path: str, *, low: int, high: int, remedy: str) -> int:
        """A whole number from `low` to `high`; a truth value is none. Raises `error`."""
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(f"{path}: {shown(value)}; send {remedy}")
        return value

    @cached_property
    def _decoder(self) -> json.JSONDecoder:
        join = self._as_written if self.spelled is None else self._in_one_spelling
        return json.JSONDecoder(
            object_pairs_hook=join, parse_float=self._finite, parse_constant=self._no_constant
        )

    def _as_written(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        said = dict(pairs)
        if len(said) != len(pairs):
            self._check_same(pairs)
        return said

    def _in_one_spelling(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        spelled = self.spelled
        assert spelled is not None
        said = {}
        for key, value in pairs:  # thousands of objects in a message: a comprehension would cost a call each
            said[spelled(key)] = value
        if len(said) != len(pairs):
            self._check_same(pairs)
        return said

    def _check_same(self, pairs: list[tuple[str, Any]]) -> None:
        spelled = self.spelled or str
        first: dict[str, Any] = {}
        for key, value in pairs:
            if first.setdefault(spelled(key), value) != value:
                name = repr(key[:SHOWN_MAX_CHARS])[1:-1]
                raise self.error(f"{name}: given twice with different values; send it once")

    def _finite(self, digits: str) -> float:
        value = float(digits)
        if -math.inf < value < math.inf:
            return value
        raise self.error(f"message: {digits[:SHOWN_MAX_CHARS]} is beyond all numbers; send a smaller one")

    def _no_constant(self, name: str) -> float:
        raise self.error(f"message: {name} is not JSON; send a number")
