"""What a Modbus server answers: one request in, one reply out. No sockets, no clock.

A request names a table, a first address and a count, and everything else of it must agree with that: the
length of the frame, the byte count, the range. One that does not is answered with the exception that the
specification has for it (Modbus Application Protocol V1.1b3, section 6), never with a guess:

    1 function not offered, or not to this peer    4 what stands behind the registers failed
    2 address outside the map                      6 busy, ask again
    3 a count, length or value that cannot be      11 no such unit behind this gateway

What is in the registers is the business of a `Bank`. All registers of one read are asked for at once, so a
reply is of one moment. Whoever may not write gets exception 1 for every function that writes: that is what
Modbus/TCP Security asks for when authorization fails.
"""

import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, Protocol

Table = Literal["holding", "input", "coil", "discrete"]

READ_BITS_MAX: Final = 2000  # the bounds of sections 6.1 to 6.17: what fits a frame of 253 bytes
READ_REGISTERS_MAX: Final = 125
WRITE_BITS_MAX: Final = 1968
WRITE_REGISTERS_MAX: Final = 123
SWAP_REGISTERS_MAX: Final = 121  # written by a read/write request
ADDRESSES: Final = 0x10000
BIT_WORDS: Final = {0x0000: 0, 0xFF00: 1}  # the only two values of write single coil

WRITING: Final = frozenset({5, 6, 15, 16, 22, 23})

IDENTIFY: Final = 14  # MEI type of function 43
IDENTITY_BYTES_MAX: Final = 244  # of objects in one reply
CONFORMITY: Final = 0x83  # extended, as a stream and one by one
STREAMS: Final = {1: 0x03, 2: 0x7F, 3: 0xFF}  # read code -> its last object
ONE_OBJECT: Final = 4


class ExceptionCode(IntEnum):
    """Why a request is refused."""

    ILLEGAL_FUNCTION = 1
    ILLEGAL_DATA_ADDRESS = 2
    ILLEGAL_DATA_VALUE = 3
    SERVER_DEVICE_FAILURE = 4
    SERVER_DEVICE_BUSY = 6
    GATEWAY_TARGET_SILENT = 11


class Refusal(Exception):  # noqa: N818  it is an answer, not an error
    """A request that is answered with an exception code."""

    def __init__(self, code: ExceptionCode, why: str = "") -> None:
        super().__init__(why or code.name.lower().replace("_", " "))
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who asks.

    Attributes:
        address: IP address.
        name: common name of the certificate; without one, the address.
        role: as the certificate says; "" = it says none, or there is none.
        may_write: whether both lists and role allow it.
    """

    address: str
    name: str
    role: str = ""
    may_write: bool = False


class Bank(Protocol):
    """The registers. Whatever cannot be is refused with `Refusal`; an unknown unit with code 11."""

    def read(self, table: Table, unit: int, first: int, count: int, peer: Peer) -> Sequence[int]:
        """`count` registers (or bits, 0 or 1), all of one moment."""

    async def write(self, table: Table, unit: int, first: int, values: Sequence[int], peer: Peer) -> None:
        """All of them or none."""

    def identity(self, unit: int) -> Mapping[int, str]:
        """Device identification objects: 0 vendor, 1 product code, 2 version, 3 URL, 4 product, 5 model."""


async def answer(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    """Reply to a request, both without the header; `pdu` has one byte at least. Never raises."""
    function = pdu[0]
    try:
        if function in FUNCTIONS and (peer.may_write or function not in WRITING):
            return await FUNCTIONS[function](pdu, unit, bank, peer)
    except Refusal as refusal:
        return bytes((function | 0x80, refusal.code))
    return bytes((function | 0x80, ExceptionCode.ILLEGAL_FUNCTION))


# --- reading ----------------------------------------------------------------------------------------------


async def _read_bits(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    first, count = _span(pdu, READ_BITS_MAX)
    bits = bank.read("coil" if pdu[0] == 1 else "discrete", unit, first, count, peer)
    size = (count + 7) // 8
    packed = sum(1 << place for place, bit in enumerate(bits) if bit)
    return bytes((pdu[0], size)) + packed.to_bytes(size, "little")


async def _read_registers(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    first, count = _span(pdu, READ_REGISTERS_MAX)
    return _told(pdu[0], bank.read("holding" if pdu[0] == 3 else "input", unit, first, count, peer))


def _told(function: int, registers: Sequence[int]) -> bytes:
    return struct.pack(f">BB{len(registers)}H", function, 2 * len(registers), *registers)


# --- writing ----------------------------------------------------------------------------------------------


async def _write_bit(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    first, word = _fields(pdu, ">HH")
    _demand(word in BIT_WORDS)
    await bank.write("coil", unit, first, [BIT_WORDS[word]], peer)
    return pdu


async def _write_register(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    first, word = _fields(pdu, ">HH")
    await bank.write("holding", unit, first, [word], peer)
    return pdu


async def _write_bits(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    first, count = _span(pdu[:5], WRITE_BITS_MAX)
    size = (count + 7) // 8
    _demand(len(pdu) == 6 + size and pdu[5] == size)
    packed = int.from_bytes(pdu[6:], "little")
    await bank.write("coil", unit, first, [packed >> place & 1 for place in range(count)], peer)
    return pdu[:5]


async def _write_registers(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    first, count = _span(pdu[:5], WRITE_REGISTERS_MAX)
    await bank.write("holding", unit, first, _words(pdu[5:], count), peer)
    return pdu[:5]


async def _mask_register(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    first, keep, put = _fields(pdu, ">HHH")
    (word,) = bank.read("holding", unit, first, 1, peer)
    await bank.write("holding", unit, first, [(word & keep) | (put & ~keep & 0xFFFF)], peer)
    return pdu


async def _swap_registers(pdu: bytes, unit: int, bank: Bank, peer: Peer) -> bytes:
    """Writes, then reads; refused before anything is written if the read cannot be."""
    first, count = _span(pdu[:5], READ_REGISTERS_MAX)
    write_first, write_count = _span(pdu[:1] + pdu[5:9], SWAP_REGISTERS_MAX)
    words = _words(pdu[9:], write_count)
    bank.read("holding", unit, first, count, peer)
    await bank.write("holding", unit, write_first, words, peer)
    return _told(pdu[0], bank.read("holding", unit, first, count, peer))


# --- identification ---------------------------------------------------------------------------------------


async def _identify(pdu: bytes, unit: int, bank: Bank, _peer: Peer) -> bytes:
    """Function 43/14 (section 6.21): a stream of objects, continued where a frame ends, or a single one."""
    mei, code, first = _fields(pdu, ">BBB")
    if mei != IDENTIFY:
        raise Refusal(ExceptionCode.ILLEGAL_FUNCTION)
    objects = {number: text.encode("ascii", "replace")[:200] for number, text in bank.identity(unit).items()}
    if code == ONE_OBJECT:
        if first not in objects:
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        wanted = [first]
    else:
        _demand(code in STREAMS)
        start = first if first in objects else 0  # an unknown one begins the stream anew
        wanted = [number for number in sorted(objects) if start <= number <= STREAMS[code]]
    body, told = b"", 0
    for number in wanted:
        piece = bytes((number, len(objects[number]))) + objects[number]
        if len(body) + len(piece) > IDENTITY_BYTES_MAX:
            break
        body, told = body + piece, told + 1
    more = told < len(wanted)
    head = (pdu[0], IDENTIFY, code, CONFORMITY, 0xFF if more else 0, wanted[told] if more else 0, told)
    return bytes(head) + body


# --- what a request must be -------------------------------------------------------------------------------


def _demand(holds: bool) -> None:
    if not holds:
        raise Refusal(ExceptionCode.ILLEGAL_DATA_VALUE)


def _fields(pdu: bytes, layout: str) -> tuple[int, ...]:
    _demand(len(pdu) == 1 + struct.calcsize(layout))
    return struct.unpack_from(layout, pdu, 1)


def _span(pdu: bytes, count_max: int) -> tuple[int, int]:
    first, count = _fields(pdu, ">HH")
    _demand(1 <= count <= count_max)
    if first + count > ADDRESSES:
        raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
    return first, count


def _words(counted: bytes, count: int) -> tuple[int, ...]:
    """Registers behind their byte count."""
    _demand(len(counted) == 1 + 2 * count and counted[0] == 2 * count)
    return struct.unpack_from(f">{count}H", counted, 1)


FUNCTIONS: Final[Mapping[int, Callable[[bytes, int, Bank, Peer], Awaitable[bytes]]]] = {
    1: _read_bits,
    2: _read_bits,
    3: _read_registers,
    4: _read_registers,
    5: _write_bit,
    6: _write_register,
    15: _write_bits,
    16: _write_registers,
    22: _mask_register,
    23: _swap_registers,
    43: _identify,
}
