"""What a Modbus device says about itself: Read Device Identification, function 43 / 14.

Modbus Application Protocol V1.1b3, 6.21. The answer is a list of numbered texts of any length, told in as
many pieces as it takes. It is asked for like registers are, and its answer is checked like theirs: function,
unit and length (see `questions`). It reads and changes nothing. Devices that do not know the function refuse
it, or say nothing at all, and some close the connection over it.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from protocols.modbus.questions import IDENTIFIED_AT, Question, RefusedError, identification_question

MORE: Final = 0xFF
PIECES_MAX: Final = 16  # a name plate takes one or two


async def read_identification(ask: Callable[[Question], Awaitable[bytes]]) -> dict[int, str]:
    """Texts of a unit by their number: 0 vendor, 1 product code, 2 revision, 3 to 6 names, from 128 its own.

    Args:
        ask: the unit; gives the PDU of the right answer and raises as `Wire.ask` does.

    Raises:
        RefusedError: the unit does not know the function, or tells the same again and again.
    """
    told: dict[int, str] = {}
    first = 0
    for _ in range(PIECES_MAX):
        piece, following = _texts(await ask(identification_question(first)))
        if following is None:
            return told | piece
        if not piece.keys() - told.keys():
            break
        told |= piece
        first = following
    raise RefusedError("a device identification that never ends")


def _texts(pdu: bytes) -> tuple[dict[int, str], int | None]:
    """Texts of one right answer, and the number that the next one begins with; None: it was the last."""
    more, following, count = pdu[4:IDENTIFIED_AT]
    told: dict[int, str] = {}
    at = IDENTIFIED_AT
    for _ in range(count):
        number, length = pdu[at : at + 2]
        at += 2
        text = pdu[at : at + length].split(b"\0", 1)[0].decode("ascii", "replace").strip()
        told[number] = "".join(char if char.isprintable() else "?" for char in text)
        at += length
    return told, following if more == MORE else None
