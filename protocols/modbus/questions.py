"""What is asked of a unit, as bytes, and what its answer must look like. Pure.

A `Question` is made once and asked many times: the request, and the bytes that a right answer must begin
with. For a read these are function code and byte count, for a write the echo, which is the whole answer. So
one comparison checks function code, length and, for writes, address and value; only an answer that fails it
is looked at more closely, to say what is wrong with it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from protocols.profile import BIT_TABLES, Table
from protocols.reading import DeviceError

PDU_MAX: Final = 253  # Modbus Application Protocol V1.1b3, 4.1
READ_CODES: Final = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
IDENTIFY: Final = bytes((43, 14))  # function and MEI type; function 43 has others, which are no reads
REGULAR: Final = 2  # names, beyond vendor, product and version; a device of less tells what it has
IDENTIFIED_AT: Final = 7  # function, MEI, code, conformity, more follows, next object, number of objects
EXCEPTION: Final = 0x80  # added to the function code of a request that was refused
COIL_ON: Final = 0xFF00

_EXCEPTIONS: Final = {  # Modbus Application Protocol V1.1b3, 7
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledged but not done",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target does not respond",
}
_LASTING: Final = (1, 2, 3)  # asking again for the same registers will not help
_TARGET_SILENT: Final = (10, 11)  # the gateway answers, the unit behind it does not


class SilentError(DeviceError):
    """No answer within the wait."""


class TargetSilentError(SilentError):
    """A gateway answered: the unit behind it does not."""


class HeldBackError(SilentError):
    """Not asked: until `until_s` (event loop's clock) a late answer could pass for this one's."""

    def __init__(self, text: str, until_s: float) -> None:
        super().__init__(text)
        self.until_s = until_s


class LostError(DeviceError):
    """The connection is gone."""


class RefusedError(DeviceError):
    """An answer, but not the one asked for."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code  # Modbus exception code; 0: the reply was malformed

    @property
    def lasting(self) -> bool:
        return self.code in _LASTING


@dataclass(frozen=True, slots=True)
class Question:
    """One request: its PDU, how the PDU of a right answer begins and how many bytes it has.

    `size` None: the answer says itself how long it is (see `identification`).
    """

    what: str  # "reading holding 0..4"
    pdu: bytes
    head: bytes
    size: int | None

    @property
    def reads(self) -> bool:
        return self.pdu[0] in READ_CODES.values() or self.pdu.startswith(IDENTIFY)

    @property
    def longest(self) -> int:
        """Bytes that a right answer has at most."""
        return PDU_MAX if self.size is None else self.size

    def fits(self, pdu: bytes) -> bool:
        size = identification_size(pdu) if self.size is None else self.size
        return pdu.startswith(self.head) and len(pdu) == size


def read_question(table: Table, first: int, count: int) -> Question:
    """Ask for `count` registers (or bits) from `first`; the answer's data are all after its second byte."""
    code = READ_CODES[table]
    data_bytes = (count + 7) // 8 if table in BIT_TABLES else 2 * count
    return Question(
        what=f"reading {table} {first}..{first + count - 1}",
        pdu=struct.pack(">BHH", code, first, count),
        head=bytes((code, data_bytes)),
        size=2 + data_bytes,
    )


def write_question(
    table: Table, address: int, words: Sequence[int], how: Literal["auto", "single", "multiple"], name: str
) -> Question:
    """Ask the unit to take `words` (or one coil); the answer repeats address and value, or address and count.

    Raises ValueError for what no function code can carry: several registers by a single write.
    """
    if how == "single" and len(words) > 1:
        raise ValueError(f"{name}: {len(words)} registers do not fit a single write; use write: multiple")
    single = len(words) == 1 and how != "multiple"
    match table, single:
        case "coil", True:
            pdu = struct.pack(">BHH", 5, address, COIL_ON if words[0] else 0)
        case "coil", False:
            bits = sum(bool(bit) << i for i, bit in enumerate(words)).to_bytes(
                (len(words) + 7) // 8, "little"
            )
            pdu = struct.pack(">BHHB", 15, address, len(words), len(bits)) + bits
        case _, True:
            pdu = struct.pack(">BHH", 6, address, words[0])
        case _:
            pdu = struct.pack(f">BHHB{len(words)}H", 16, address, len(words), 2 * len(words), *words)
    return Question(what=f"writing {name} at {table} {address}", pdu=pdu, head=pdu[:5], size=5)


def identification_question(first: int) -> Question:
    """Ask for all texts that the unit tells of itself, from object `first` on."""
    return Question(
        what="reading the device identification",
        pdu=IDENTIFY + bytes((REGULAR, first)),
        head=IDENTIFY,
        size=None,
    )


def identification_size(pdu: bytes) -> int | None:
    """Bytes of the identification that `pdu` begins with; None: more must come to tell."""
    end = IDENTIFIED_AT
    if len(pdu) < end:
        return None
    for _ in range(pdu[end - 1]):
        if len(pdu) < end + 2:
            return None
        end += 2 + pdu[end + 1]
    return end


def check(question: Question, pdu: bytes) -> None:
    """Raise what is wrong with an answer; return if nothing is.

    Raises:
        TargetSilentError: a gateway says that the unit does not answer.
        RefusedError: an exception, or not the answer to this question.
    """
    if question.fits(pdu):
        return
    if pdu == question.pdu:
        raise RefusedError(
            f"{question.what}: the question itself came back: an echo; "
            f"is a unit there, and does the line (or its converter) echo?"
        )
    code, asked = pdu[0], question.pdu[0]
    if code & EXCEPTION:
        number = pdu[1] if len(pdu) > 1 else 0
        meaning = _EXCEPTIONS.get(number, f"exception {number}")
        if number in _TARGET_SILENT:
            raise TargetSilentError(f"{question.what}: {meaning}: is the unit on, and its id right?")
        raise RefusedError(f"{question.what}: {meaning}; is the profile the device's?", number)
    if code != asked:
        raise RefusedError(f"{question.what}: asked with function {asked}, answered with {code}")
    if not question.reads:
        raise RefusedError(
            f"{question.what}: confirmed with {pdu[1:].hex(' ')} instead of {question.head[1:].hex(' ')}; "
            f"check what the device did"
        )
    if question.size is None:
        raise RefusedError(f"{question.what}: an answer that ends in the middle, or goes on behind its end")
    if len(pdu) == question.size:
        raise RefusedError(
            f"{question.what}: {question.head[1]} bytes came and are said to be {pdu[1]}; is it Modbus?"
        )
    raise RefusedError(
        f"{question.what}: {_amount(question.size - 2, asked)} asked, {_amount(len(pdu) - 2, asked)} came; "
        f"is the profile the device's?"
    )


def _amount(data_bytes: int, code: int) -> str:
    return f"{data_bytes // 2}" if code in (3, 4) else f"{8 * data_bytes} bits"
