"""Bytes on a wire to answers: Modbus TCP (MBAP) and RTU framing. Pure: no IO, no clock.

One conversation at a time: `ask` gives the bytes to send, `feed` takes what came and gives the answer once it
is there. The common case is one comparison against the bytes that a right answer must begin with; whatever
else comes is taken apart frame by frame to say what it is. The library's own framers and transactions accept
answers with a wrong function code, count or transaction 0, and lose their way after one late RTU answer;
hence these.

The two framings differ in what a late answer can do. MBAP carries a transaction id: a late answer names the
request that it belongs to and is dropped. RTU carries none: a late answer of the same unit and shape *is* the
next answer, as far as anyone can tell. So an RTU conversation is told the shapes (`owed`) that may still come
of earlier requests, whoever asks next asks for another shape, and what is owed is dropped when it comes.
"""

import struct
from collections.abc import Collection, Iterator
from typing import Final, Protocol

from pymodbus.framer import FramerRTU

from protocols.modbus.questions import (
    EXCEPTION,
    IDENTIFY,
    PDU_MAX,
    Question,
    RefusedError,
    check,
    identification_size,
)
from protocols.reading import DeviceError

NOISE_MAX: Final = 520  # two of the longest frames: what lies before them can only be noise
TID_MAX: Final = 0xFFFF
_FIXED: Final = {5: 8, 6: 8, 15: 8, 16: 8}  # function code -> bytes of its whole RTU answer
_COUNTED: Final = (1, 2, 3, 4)
_HEADER: Final = struct.Struct(">HHHB")


class BrokenError(DeviceError):
    """The stream cannot be followed any further: what comes next may begin in the middle of something."""


class Framing(Protocol):
    """One conversation. `unasked`, if not empty, says what came that nobody asked for."""

    unasked: str
    came: str  # what came instead of the answer that is being waited for

    def ask(self, unit_id: int, question: Question, owed: Collection[bytes] = ()) -> bytes:
        """The frame to send; from now on `feed` waits for its answer."""

    def feed(self, data: bytes) -> tuple[int, bytes | None]:
        """Bytes of `data` that are done with, and the PDU of the answer once it is there.

        Raises:
            RefusedError, SilentError: the unit answered, but not that (see `questions.check`).
            BrokenError: no telling where the next frame begins.
        """

    def give_up(self) -> None:
        """Stop waiting; what still comes was not asked for."""


class Mbap:
    """[transaction 2][protocol 2 = 0][length 2][unit 1] PDU; plain or in TLS."""

    def __init__(self) -> None:
        self.unasked = self.came = ""
        self._tid = 0
        self._answered_tid = -1
        self._unit_id = 0
        self._question: Question | None = None
        self._start = b""
        self._size = -1

    def ask(self, unit_id: int, question: Question, owed: Collection[bytes] = ()) -> bytes:  # noqa: ARG002
        tid = self._tid = self._tid % TID_MAX + 1  # 0 is what broken servers answer with
        self._question, self._unit_id, self.came = question, unit_id, ""
        if question.size is None:  # the way of the uncommon case takes it
            self._size = -1
        else:
            self._start = _HEADER.pack(tid, 0, question.size + 1, unit_id) + question.head
            self._size = question.size + 7
        return _HEADER.pack(tid, 0, len(question.pdu) + 1, unit_id) + question.pdu

    def feed(self, data: bytes) -> tuple[int, bytes | None]:
        if len(data) == self._size and data.startswith(self._start):
            self._settle()
            return len(data), data[7:]
        at = 0
        while len(data) >= at + 8:
            tid, protocol, length, unit_id = _HEADER.unpack_from(data, at)
            if protocol != 0 or not 2 <= length <= PDU_MAX + 1:
                raise BrokenError(
                    f"bytes came that are not Modbus TCP ({data[at : at + 8].hex(' ')}): "
                    f"right port, or does RTU framing come out of it?"
                )
            if len(data) < at + 6 + length:
                break
            pdu = data[at + 7 : at + 6 + length]
            at += 6 + length
            if self._question is None or tid != self._tid:
                self._stray(tid)
                continue
            question = self._question
            self._settle()
            if unit_id != self._unit_id:
                raise RefusedError(
                    f"{question.what}: asked unit {self._unit_id}, the answer is of unit {unit_id}"
                )
            check(question, pdu)
            return at, pdu
        return at, None

    def give_up(self) -> None:
        self._question, self._size = None, -1

    def _settle(self) -> None:
        self._answered_tid = self._tid
        self.give_up()

    def _stray(self, tid: int) -> None:
        """Late answers are dropped in silence: their transaction is told. A second answer is not normal."""
        self.came = f"an answer to transaction {tid}"
        if tid == self._answered_tid:
            self.unasked = "answered twice: two devices with one unit id?"


class Rtu:
    """[unit 1] PDU [CRC 2]; on a serial line, or the same bytes through TCP."""

    def __init__(self) -> None:
        self.unasked = self.came = ""
        self._unit_id = 0
        self._question: Question | None = None
        self._owed: Collection[bytes] = ()
        self._start = b""
        self._size = -1

    def ask(self, unit_id: int, question: Question, owed: Collection[bytes] = ()) -> bytes:
        self._question, self._unit_id, self._owed, self.came = question, unit_id, owed, ""
        self._start = bytes((unit_id,)) + question.head
        self._size = -1 if question.size is None else question.size + 3
        return sealed(bytes((unit_id,)) + question.pdu)

    def feed(self, data: bytes) -> tuple[int, bytes | None]:
        if self._question is None:
            self.unasked = (
                f"{len(data)} bytes that nobody asked for: a late answer, or two devices with one unit id?"
            )
            return len(data), None
        for start in _places(data, self._start) if self._size > 0 else ():
            frame = data[start : start + self._size]
            if len(frame) == self._size and is_sealed(frame):
                if len(data) > start + self._size:
                    self.unasked = "bytes after the answer: two devices with one unit id?"
                self.give_up()
                return len(data), frame[1:-2]
        return self._other(data, self._question)

    def give_up(self) -> None:
        self._question, self._size = None, -1

    def _other(self, data: bytes, question: Question) -> tuple[int, bytes | None]:
        """Whatever is not the answer: an exception or a wrong answer of our unit, others' frames, noise."""
        at = 0
        while len(data) > at:
            size = frame_size(data, at)
            if size is None:
                break  # could still become a frame
            frame = data[at : at + size]
            if not size or not is_sealed(frame):
                self.came = "bytes that are no frame: noise, wrong baud rate or parity, two devices at once?"
                at += 1
                continue
            at += size
            if frame[0] != self._unit_id:
                self.came = f"an answer of unit {frame[0]}"
            elif frame[1:3] in self._owed or frame[1:6] in self._owed:
                self.came = self.unasked = "the late answer to an earlier request"
            else:
                self.give_up()
                check(question, frame[1:-2])
                return len(data), frame[1:-2]
        return max(at, len(data) - NOISE_MAX), None


def sealed(body: bytes) -> bytes:
    """`body` with its CRC."""
    return body + FramerRTU.compute_CRC(body).to_bytes(2, "big")


def is_sealed(frame: bytes) -> bool:
    return len(frame) > 3 and FramerRTU.compute_CRC(frame[:-2]).to_bytes(2, "big") == frame[-2:]


def frame_size(data: bytes, at: int) -> int | None:
    """Bytes of the answer frame that begins at `at`; 0: none begins here; None: more bytes are needed."""
    if len(data) < at + 3:
        return None
    code = data[at + 1]
    if code & EXCEPTION:
        size = 5
    elif code in _COUNTED:
        size = 5 + data[at + 2]
    elif data[at + 1 : at + 3] == IDENTIFY:
        told = identification_size(data[at + 1 : at + 1 + PDU_MAX])
        if told is None:
            return None if len(data) <= at + PDU_MAX else 0
        size = told + 3
    else:
        size = _FIXED.get(code, 0)
    return size if len(data) >= at + size else None


def _places(data: bytes, start: bytes) -> Iterator[int]:
    at = data.find(start)
    while at >= 0:
        yield at
        at = data.find(start, at + 1)
