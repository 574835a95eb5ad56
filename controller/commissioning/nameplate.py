"""What a Modbus device says about itself: Read Device Identification, function 43 / 14. Pure.

Modbus Application Protocol V1.1b3, 6.21. The answer is a list of numbered texts of any length, told in as
many pieces as it takes. No answer of another function is of unknown length, so the framings of the client do
not know it; `NameplateFraming` stands before one of them and takes this one function off its hands.

It reads and changes nothing. Devices that do not know the function refuse it, or say nothing at all.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from protocols.modbus.frames import Framing, is_sealed
from protocols.modbus.questions import EXCEPTION, Question, RefusedError

FUNCTION: Final = 43
MEI: Final = 14
REGULAR: Final = 2  # names, beyond vendor, product and version; a device of less tells what it has
HEAD_BYTES: Final = 7  # function, MEI, code, conformity, more follows, next object, number of objects
MORE: Final = 0xFF
OBJECTS_MAX: Final = 256
PIECES_MAX: Final = 16  # a name plate takes one or two

NAMES: Final = {
    0: "vendor", 1: "product_code", 2: "revision", 3: "url", 4: "product", 5: "model", 6: "application",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NameplateQuestion(Question):
    """It reads, though its function code is none of those for registers."""

    @property
    def reads(self) -> bool:
        return True


def nameplate_question(first: int = 0) -> NameplateQuestion:
    """Ask for the objects from `first` on."""
    return NameplateQuestion(
        what="reading the device identification",
        pdu=bytes((FUNCTION, MEI, REGULAR, first)),
        head=bytes((FUNCTION, MEI)),
        size=HEAD_BYTES,
    )


def objects(pdu: bytes) -> tuple[dict[int, str], int | None]:
    """Texts by number in a piece, and the number that the next piece begins with; None: it was the last.

    Raises RefusedError for an exception, and for bytes that are no such answer.
    """
    if pdu and pdu[0] & EXCEPTION:
        code = pdu[1] if len(pdu) > 1 else 0
        raise RefusedError(f"the device does not tell what it is (exception {code})", code)
    if len(pdu) < HEAD_BYTES or pdu[:2] != bytes((FUNCTION, MEI)):
        raise RefusedError("an answer that is no device identification")
    _, _, _, _, more, following, count = struct.unpack_from(">7B", pdu)
    told: dict[int, str] = {}
    at = HEAD_BYTES
    for _ in range(count):
        if len(pdu) < at + 2 or len(pdu) < at + 2 + pdu[at + 1]:
            raise RefusedError("a device identification that ends in the middle")
        number, length = pdu[at], pdu[at + 1]
        text = pdu[at + 2 : at + 2 + length].split(b"\0", 1)[0].decode("ascii", "replace").strip()
        told[number] = "".join(char if char.isprintable() else "?" for char in text)
        at += 2 + length
    return told, following if more == MORE else None


def named(told: dict[int, str]) -> dict[str, str]:
    """The same by name, without what is empty; private objects by their number."""
    return {NAMES.get(number, f"object_{number}"): text for number, text in sorted(told.items()) if text}


class NameplateFraming:
    """A framing that passes everything on, except for the one function that the other does not know."""

    def __init__(self, other: Framing, *, rtu: bool) -> None:
        self._other, self._rtu = other, rtu
        self._unit_id: int | None = None  # asked for its name plate; None: the other is at work
        self._tid = b""

    @property
    def unasked(self) -> str:
        return self._other.unasked

    @unasked.setter
    def unasked(self, text: str) -> None:
        self._other.unasked = text

    @property
    def came(self) -> str:
        return self._other.came

    @came.setter
    def came(self, text: str) -> None:
        self._other.came = text

    def ask(self, unit_id: int, question: Question, owed: Collection[bytes] = ()) -> bytes:
        frame = self._other.ask(unit_id, question, owed)
        self._unit_id = unit_id if isinstance(question, NameplateQuestion) else None
        self._tid = frame[:2]
        return frame

    def feed(self, data: bytes) -> tuple[int, bytes | None]:
        if self._unit_id is None:
            return self._other.feed(data)
        at = 0
        while len(data) > at:
            size = self._size(data, at)
            if size is None:
                break
            frame = data[at : at + size]
            at += size
            if not self._is_ours(frame):
                continue  # late, of another unit, or no frame
            self.give_up()
            return at, frame[1:-2] if self._rtu else frame[7:]
        return at, None

    def give_up(self) -> None:
        self._unit_id = None
        self._other.give_up()

    def _size(self, data: bytes, at: int) -> int | None:
        """Bytes of the frame that begins here; None: not there yet. One byte at a time through noise."""
        if not self._rtu:
            if len(data) < at + 7:
                return None
            size = 6 + int.from_bytes(data[at + 4 : at + 6], "big")
            return size if len(data) >= at + size else None
        if len(data) < at + 5:
            return None
        body = _rtu_bytes(data[at:])
        return None if body is None else body

    def _is_ours(self, frame: bytes) -> bool:
        if self._rtu:
            return is_sealed(frame) and frame[0] == self._unit_id and frame[1] & ~EXCEPTION == FUNCTION
        return frame[:2] == self._tid and len(frame) > 7 and frame[6] == self._unit_id


def _rtu_bytes(data: bytes) -> int | None:
    """Length of the RTU frame at the beginning of `data`; None: more must come; 1: none begins here."""
    if data[1] == FUNCTION | EXCEPTION:
        return 5
    if data[1] != FUNCTION:
        return 1
    end = 1 + HEAD_BYTES
    if len(data) < end:
        return None
    for _ in range(data[HEAD_BYTES]):
        if len(data) < end + 2:
            return None
        end += 2 + data[end + 1]
    return end + 2 if len(data) >= end + 2 else None
