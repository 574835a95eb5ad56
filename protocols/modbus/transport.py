"""Ways to a device: Modbus TCP, Modbus/TCP Security, RTU through TCP, RTU on a serial line.

A transport is what one connection needs to know, as a value; `connect` makes a new `Wire` of it each time.
What travels inside TLS is the MBAP frame of Modbus TCP, on port 802, TLS 1.2 or newer, with a certificate on
either side (MODBUS/TCP Security Protocol Specification V2.1). The files are read anew for each connection,
so a renewed certificate needs no restart; a revocation list in the CA file is honoured.

`address` names the thing at the other end, whatever is spoken with it: two links with one address would
fight over a serial line, or over a device that keeps a single connection (see `address_complaints`).
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, Protocol
from urllib.parse import SplitResult, parse_qs, urlsplit

from pymodbus.transport import CommParams, CommType

from protocols.modbus.frames import Mbap, Rtu
from protocols.modbus.questions import LostError
from protocols.modbus.wire import Wire
from protocols.profile import Line

TCP_PORT: Final = 502
TLS_PORT: Final = 802
CONNECT_WAIT_MAX_S: Final = 1.0  # a device in the same hall answers within a millisecond
HANDSHAKE_WAIT_MAX_S: Final = 5.0  # an embedded CPU signs once per handshake, and takes a second or two
BITS_PER_CHARACTER: Final = 11  # start, 8 data, parity or second stop, stop; Modbus over serial line V1.02
SILENT_CHARACTERS: Final = 3.5  # between two frames; the same, 2.5.1.1
SILENT_LEAST_S: Final = 0.00175  # above 19200 baud; the same
_PARITIES: Final[dict[str, Literal["N", "E", "O"]]] = {"N": "N", "E": "E", "O": "O"}
_SCHEMES: Final = ("modbus+tcp", "modbus+tls", "modbus+rtu+tcp", "modbus+rtu")
_USE: Final = (
    "use modbus+tcp://host:502, modbus+tls://host:802, modbus+rtu+tcp://host:port or "
    "modbus+rtu:///dev/ttyUSB0?baud=19200&parity=E&stop_bits=1"
)


class Transport(Protocol):
    """How to reach units; `rtu`: framing without transaction ids."""

    @property
    def rtu(self) -> bool: ...

    @property
    def connect_wait_max_s(self) -> float: ...

    @property
    def where(self) -> str: ...

    @property
    def address(self) -> str: ...

    def wire(self, line: Line, *, writable: bool) -> Wire:
        """A new client, not yet connected; `line` is how the devices' profiles want their serial line.

        Raises LostError for files that cannot be used.
        """


@dataclass(frozen=True)
class _Socket:
    host: str
    port: int
    connect_wait_max_s: ClassVar[float] = CONNECT_WAIT_MAX_S

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def address(self) -> str:
        return f"tcp {self.host.lower()}:{self.port}"

    def _params(self) -> CommParams:
        return CommParams(comm_type=CommType.TCP, host=self.host, port=self.port)


@dataclass(frozen=True)
class Tcp(_Socket):
    """Modbus TCP."""

    rtu: ClassVar[bool] = False

    def wire(self, line: Line, *, writable: bool) -> Wire:  # noqa: ARG002
        return Wire(self._params(), Mbap(), self.where, writable=writable)


@dataclass(frozen=True)
class RtuOverTcp(_Socket):
    """RTU frames through a serial device server."""

    rtu: ClassVar[bool] = True

    def wire(self, line: Line, *, writable: bool) -> Wire:
        character_s = BITS_PER_CHARACTER / line.baud
        return Wire(
            self._params(),
            Rtu(),
            self.where,
            writable=writable,
            gap_s=_silence_s(line),
            character_s=character_s,
        )


@dataclass(frozen=True)
class Tls(_Socket):
    """Modbus/TCP Security. `ca`, `cert`, `key`: PEM files; `server_name` where it is not the host."""

    ca: str
    cert: str
    key: str
    server_name: str | None = None
    rtu: ClassVar[bool] = False
    connect_wait_max_s: ClassVar[float] = HANDSHAKE_WAIT_MAX_S

    def wire(self, line: Line, *, writable: bool) -> Wire:  # noqa: ARG002
        params = self._params()
        params.comm_type, params.sslctx = CommType.TLS, self._context()
        return Wire(params, Mbap(), self.where, writable=writable, server_name=self.server_name)

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if "BEGIN X509 CRL" in Path(self.ca).read_text(encoding="ascii", errors="replace"):
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
            context.load_cert_chain(self.cert, self.key)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise LostError(
                f"{self.where}: certificates cannot be used: {error}; "
                f"check {self.ca}, {self.cert} and {self.key}"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


@dataclass(frozen=True)
class Serial:
    """RTU on a serial line; `line` None: as the devices' profiles say."""

    path: str
    line: Line | None = None
    rtu: ClassVar[bool] = True
    connect_wait_max_s: ClassVar[float] = CONNECT_WAIT_MAX_S

    @property
    def where(self) -> str:
        return self.path

    @property
    def address(self) -> str:
        return f"serial {Path(self.path).resolve()}"

    def wire(self, line: Line, *, writable: bool) -> Wire:
        line = self.line or line
        params = CommParams(
            comm_type=CommType.SERIAL,
            host=self.path,
            baudrate=line.baud,
            bytesize=8,
            parity=line.parity,
            stopbits=line.stop_bits,
        )
        return Wire(
            params,
            Rtu(),
            self.path,
            writable=writable,
            gap_s=_silence_s(line),
            character_s=BITS_PER_CHARACTER / line.baud,
        )


def transport_of(
    url: str, *, ca: Path | str | None = None, cert: Path | str | None = None, key: Path | str | None = None
) -> Tcp | Tls | RtuOverTcp | Serial:
    """The transport that a URL names; `ca`, `cert` and `key` are the PEM files of a modbus+tls one.

    Raises ValueError with the remedy.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}; {_USE}") from error
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"{url!r}: unknown scheme {parts.scheme!r}; {_USE}")
    if parts.scheme != "modbus+tls" and (ca or cert or key):
        raise ValueError(f"{url!r}: certificates belong to modbus+tls; change the scheme or remove them")
    if parts.scheme == "modbus+rtu":
        return _serial(url, parts)
    host = _host(url, parts)
    if parts.scheme == "modbus+tcp":
        return Tcp(host, port or TCP_PORT)
    if parts.scheme == "modbus+rtu+tcp":
        if port is None:
            raise ValueError(f"{url!r}: the port is missing; serial device servers have no usual one")
        return RtuOverTcp(host, port)
    if not (ca and cert and key):
        raise ValueError(f"{url!r}: give ca, cert and key: Modbus/TCP Security wants them on either side")
    return Tls(host, port or TLS_PORT, str(ca), str(cert), str(key))


def _host(url: str, parts: SplitResult) -> str:
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError(f"{url!r}: give host and port and nothing more; {_USE}")
    if parts.port == 0:
        raise ValueError(f"{url!r}: there is no port 0; {_USE}")
    try:
        parts.hostname.encode("idna")  # the system's own way, which raises when we connect
    except UnicodeError as error:
        raise ValueError(f"{url!r}: {parts.hostname!r} is no host name: {error}") from error
    return parts.hostname


def _serial(url: str, parts: SplitResult) -> Serial:
    if parts.netloc or not parts.path.startswith("/"):
        raise ValueError(f"{url!r}: give the device's path after three slashes; {_USE}")
    asked = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if not asked:
        return Serial(parts.path)
    baud, parity, stop_bits = (
        asked.pop(n, d) for n, d in (("baud", "19200"), ("parity", "E"), ("stop_bits", "1"))
    )
    if asked:
        raise ValueError(f"{url!r}: unknown {', '.join(asked)}; use baud, parity and stop_bits")
    if not (baud.isdecimal() and 300 <= int(baud) <= 4_000_000):
        raise ValueError(f"{url!r}: baud {baud!r}; use 300 to 4000000")
    if parity not in _PARITIES:
        raise ValueError(f"{url!r}: parity {parity!r}; use N, E or O")
    if stop_bits not in ("1", "2"):
        raise ValueError(f"{url!r}: stop_bits {stop_bits!r}; use 1 or 2")
    return Serial(
        parts.path, Line(baud=int(baud), parity=_PARITIES[parity], stop_bits=2 if stop_bits == "2" else 1)
    )


def address_complaints(transports: Sequence[Transport], single: Sequence[bool]) -> list[str]:
    """What is wrong with opening all of these at once; `single`: has a device of a single connection."""
    complaints = []
    for i, (one, alone) in enumerate(zip(transports, single, strict=True)):
        for other, other_alone in zip(transports[:i], single[:i], strict=True):
            shared = one.address == other.address
            if shared and (alone or other_alone or one.rtu or other.rtu):
                complaints.append(
                    f"{one.where}: opened twice, and what is there serves one; "
                    f"give these devices the same url, so that they share a connection"
                )
    return complaints


def _silence_s(line: Line) -> float:
    """Rest between two frames."""
    return max(SILENT_CHARACTERS * BITS_PER_CHARACTER / line.baud, SILENT_LEAST_S)
