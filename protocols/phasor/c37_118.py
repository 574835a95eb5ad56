"""Frames of IEEE C37.118.2 (2011, and the frames of 2005 that it took over): frequency out of bytes.

A data frame is a row of bare numbers; what they are, the configuration frame (type 2) of the same stream has
said before. All frames begin alike:

    SYNC u16 | FRAMESIZE u16 | IDCODE u16 | SOC u32 | FRACSEC u32 | … | CHK u16

SYNC is AA, then frame type (bits 6-4) and version (3-0). SOC counts seconds since 1970; FRACSEC has the
fraction in TIME_BASE parts (bits 23-0) and the quality of time (27-24; F: clock failed). CHK is CRC-CCITT,
from FFFF. In a data frame every PMU has STAT, phasors, FREQ, DFREQ, analogs and digital words. FREQ is the
deviation from nominal in mHz (i16), or the frequency in Hz (f32), as FORMAT bit 3 says.

STAT: bits 15-14 other than 0: no measurement, or one of a test; 13: time is not synchronized; 12: sorted by
arrival; 10: the configuration is about to change. The first alone spoils a frequency. The others are told.

Frames of IEEE C37.118.2-2011, tables 2 to 15. Configuration frames of type 3 are not asked for.
"""

import math
import struct
from binascii import crc_hqx
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocols.phasor.moments import Moments
from protocols.phasor.reading import Refusals, Sample

HEAD: Final = struct.Struct(">HHHII")
CHECK_BYTES: Final = 2
SYNC_BYTE: Final = 0xAA
VERSIONS: Final = (1, 2)  # 2005, 2011
DATA, HEADER, CONFIG_1, CONFIG_2, COMMAND, CONFIG_3 = 0, 1, 2, 3, 4, 5  # frame types
DATA_OFF, DATA_ON, SEND_CONFIG_2 = 1, 2, 5  # commands
COMMAND_BYTES: Final = HEAD.size + 2 + CHECK_BYTES
FRAME_MAX_BYTES: Final = 65_535  # FRAMESIZE has 16 bits
PMUS_MAX: Final = 64  # of a stream; concentrators of whole regions have more, and no business here
NAME_BYTES: Final = 16
BITS_PER_WORD: Final = 16
CLOCK_FAILED: Final = 0xF
ANEW_AFTER_S: Final = 1.0  # stamps that stay behind for so long are of a clock that was put back

_DOUBTS: Final = (
    (1 << 13, "not synchronized"),
    (1 << 12, "sorted by arrival"),
    (1 << 10, "about to change its configuration"),
)


class FrameError(ValueError):
    """A frame that cannot be used; the text says why, in the words of a count."""


class _Pmu(NamedTuple):
    """Where one PMU's frequency lies in a data frame."""

    id_code: int
    name: str
    nominal_hz: float
    stat_at: int
    freq_at: int
    is_float: bool


@dataclass(frozen=True)
class Config:
    """What a configuration frame says of the data frames of its stream.

    Attributes:
        id_code: of the stream.
        time_base: parts of a second that FRACSEC counts in.
        rate_hz: frames per second.
        pmus: in the order of the data frame.
        data_bytes: that every data frame has.
    """

    id_code: int
    time_base: int
    rate_hz: float
    pmus: tuple[_Pmu, ...]
    data_bytes: int


class Head(NamedTuple):
    kind: int
    id_code: int
    soc: int
    fraction: int
    time_quality: int


def command(id_code: int, what: int, now_utc_s: float) -> bytes:
    """A command frame to the sender of a stream."""
    soc = int(now_utc_s) % 2**32
    body = HEAD.pack(SYNC_BYTE << 8 | COMMAND << 4 | 1, COMMAND_BYTES, id_code, soc, 0) + struct.pack(
        ">H", what
    )
    return body + struct.pack(">H", crc_hqx(body, 0xFFFF))


def open_frame(frame: bytes) -> Head:
    """Raises FrameError on anything that is not a whole, undamaged frame."""
    if len(frame) < HEAD.size + CHECK_BYTES:
        raise FrameError("too short for a frame")
    sync, size, id_code, soc, fracsec = HEAD.unpack_from(frame)
    if sync >> 8 != SYNC_BYTE or sync & 0x80:
        raise FrameError("does not begin like a frame")
    if sync & 0xF not in VERSIONS:
        raise FrameError("of an unknown version")
    if size != len(frame):
        raise FrameError("of another length than it says")
    if crc_hqx(frame[:-CHECK_BYTES], 0xFFFF) != int.from_bytes(frame[-CHECK_BYTES:], "big"):
        raise FrameError("damaged: its check sum is wrong")
    return Head(sync >> 4 & 0x7, id_code, soc, fracsec & 0xFFFFFF, fracsec >> 24 & 0xF)


def parse_config(frame: bytes) -> Config:
    """A frame of type 2 that `open_frame` has accepted. Raises FrameError."""
    head = HEAD.unpack_from(frame)
    body = memoryview(frame)[:-CHECK_BYTES]
    try:
        time_base, number = struct.unpack_from(">IH", body, HEAD.size)
        if not 0 < number <= PMUS_MAX:
            raise FrameError(f"configuration of {number} PMUs; 1 to {PMUS_MAX} are read")
        at, data_at, pmus = HEAD.size + 6, HEAD.size, []
        for _ in range(number):
            pmu, at, data_at = _parse_pmu(body, at, data_at)
            pmus.append(pmu)
        (rate,) = struct.unpack_from(">h", body, at)
    except struct.error:
        raise FrameError("configuration that ends too soon") from None
    if at + 2 != len(body):
        raise FrameError("configuration with more in it than it says")
    if not time_base & 0xFFFFFF or not rate:
        raise FrameError("configuration without a time base or a rate")
    return Config(
        id_code=head[2],
        time_base=time_base & 0xFFFFFF,
        rate_hz=float(rate) if rate > 0 else -1.0 / rate,
        pmus=tuple(pmus),
        data_bytes=data_at + CHECK_BYTES,
    )


def _parse_pmu(body: memoryview, at: int, data_at: int) -> tuple[_Pmu, int, int]:
    """One PMU's part, where the next one begins, and where the next one's data begin."""
    name = bytes(body[at : at + NAME_BYTES]).decode("ascii", "replace").strip(" \0")
    id_code, shape, phasors, analogs, digitals = struct.unpack_from(">5H", body, at + NAME_BYTES)
    names = phasors + analogs + BITS_PER_WORD * digitals
    at += NAME_BYTES + 10 + NAME_BYTES * names + 4 * (phasors + analogs + digitals)
    (nominal,) = struct.unpack_from(">H", body, at)
    wide_phasor, wide_analog, wide_freq = shape & 2, shape & 4, shape & 8
    freq_at = data_at + 2 + phasors * (8 if wide_phasor else 4)
    end = freq_at + (8 if wide_freq else 4) + analogs * (4 if wide_analog else 2) + 2 * digitals
    pmu = _Pmu(id_code, name, 50.0 if nominal & 1 else 60.0, data_at, freq_at, bool(wide_freq))
    return pmu, at + 4, end


class Frames:
    """The frames of one stream: remembers its configuration, and turns data frames into samples.

    Args:
        id_code: of the stream; others are refused. None: any.
        pmu: id code of the PMU within the stream; None: the first.

    Attributes:
        config: None: not known yet, and data frames say nothing.
    """

    def __init__(self, *, id_code: int | None = None, pmu: int | None = None) -> None:
        self.config: Config | None = None
        self.refusals = Refusals()
        self._id_code, self._pmu_code = id_code, pmu
        self._pmu: _Pmu | None = None
        self._moments = Moments()
        self._newest_stamp_s = self._newest_at_s = -math.inf

    def take(self, frame: bytes, arrived_at_s: float) -> Sample | None:
        """The frequency, if it is a data frame that has one; whatever is wrong is counted, never raised."""
        try:
            head = open_frame(frame)
            if self._id_code is not None and head.id_code != self._id_code:
                raise FrameError(f"of stream {head.id_code}; {self._id_code} is expected")  # noqa: TRY301
            if head.kind == CONFIG_2:
                self._configure(parse_config(frame))
            return self._sample(head, frame, arrived_at_s) if head.kind == DATA else None
        except FrameError as error:
            self.refusals.add(str(error))
            return None

    def forget(self) -> None:
        """The configuration may have changed: data frames say nothing until it comes again."""
        self.config = self._pmu = None

    def _configure(self, config: Config) -> None:
        known = {pmu.id_code: pmu for pmu in reversed(config.pmus)}
        pmu = config.pmus[0] if self._pmu_code is None else known.get(self._pmu_code)
        if pmu is None:
            names = ", ".join(str(code) for code in sorted(known))
            raise FrameError(f"configuration without PMU {self._pmu_code}; it has {names:.100}")
        self.config, self._pmu = config, pmu

    def _sample(self, head: Head, frame: bytes, arrived_at_s: float) -> Sample | None:
        config, pmu = self.config, self._pmu
        if config is None or pmu is None or config.id_code != head.id_code:
            raise FrameError("data before a configuration")
        if len(frame) != config.data_bytes:
            self.forget()
            raise FrameError("data that do not fit their configuration")
        stamp_s = head.soc + head.fraction / config.time_base
        if stamp_s <= self._newest_stamp_s and arrived_at_s - self._newest_at_s < ANEW_AFTER_S:
            raise FrameError("not newer than the one before")
        self._newest_stamp_s, self._newest_at_s = stamp_s, arrived_at_s
        (stat,) = struct.unpack_from(">H", frame, pmu.stat_at)
        if pmu.is_float:
            (hz,) = struct.unpack_from(">f", frame, pmu.freq_at)
        else:
            hz = pmu.nominal_hz + struct.unpack_from(">h", frame, pmu.freq_at)[0] / 1e3
        doubts = [words for bit, words in _DOUBTS if stat & bit]
        if head.time_quality == CLOCK_FAILED:
            doubts.append("its clock has failed")
        good = stat >> 14 == 0 and math.isfinite(hz)
        return Sample(hz, good, self._moments.moment_s(stamp_s, arrived_at_s), ", ".join(doubts))
