"""A Modbus TCP server for many masters, plain or in TLS (Modbus/TCP Security).

One task per connection: read a frame, answer it, read the next. So requests that come in one segment are
all answered, in their order, and a master that reads slowly or writes nonsense delays itself alone. A frame
whose header cannot be right ends the connection, because nothing after it can be trusted to be a header.

Who may connect and who may write is decided by address before a byte is read, and in TLS by the
certificate's role besides (extension 1.3.6.1.4.1.50316.802.1); a certificate is always demanded. Certificates
and revocation lists are read anew for each connection, so renewed ones need no restart.

Everything is bounded: connections (at the bound, one that has long been idle gives way, or the new one is
refused), idle time, time for a handshake, bytes waiting either way, and requests per second and address. A
master above its rate is not refused: it is read more slowly, and TCP passes that on to it.
"""

import asyncio
import ipaddress
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from protocols.modbus.answer import WRITING, Bank, Peer, answer

HEAD: Final = struct.Struct(">HHHB")  # transaction, protocol (0), length of what follows, unit
LENGTH_MIN: Final = 2  # unit and function
LENGTH_MAX: Final = 254  # unit and 253 bytes (Modbus Messaging on TCP/IP V1.0b, 4.1)

BUFFER_BYTES: Final = 4096  # unread requests, after which TCP holds the master back; twice that at most
SLOW_READER_S: Final = 10.0  # with 64 kB of replies waiting
HANDSHAKE_S: Final = 10.0
GIVES_WAY_S: Final = 10.0  # idle for longer than the slowest usual poll: may be closed for a newcomer
TURN: Final = 64  # requests in a row before other connections get theirs: 1 ms
ACCEPT_PAUSE_S: Final = 0.5  # out of sockets: not a reason to spin
BACKLOG: Final = 32
COMPLAINTS_MAX: Final = 500  # distinct sentences in the log; after that only the counts go on

ROLE: Final = x509.ObjectIdentifier("1.3.6.1.4.1.50316.802.1")
UTF8_STRING: Final = 0x0C  # its DER tag
ROLE_BYTES_MAX: Final = 127  # what a DER length of one byte can say

NAME_MAX: Final = 64  # characters of a common name (X.520); a longer one is cut

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may connect, and who of those may write.

    Attributes:
        read_from: networks that may connect and read.
        write_from: networks that may write, too.
        writing_roles: roles that may write, from certificates; on a plain connection nobody has one and the
            network alone decides.
    """

    read_from: tuple[Network, ...]
    write_from: tuple[Network, ...] = ()
    writing_roles: frozenset[str] = frozenset()

    def may_connect(self, address: str) -> bool:
        return _within(address, self.read_from)

    def may_write(self, address: str, role: str | None) -> bool:
        """`role` is None on a plain connection."""
        return _within(address, self.write_from) and (role is None or role in self.writing_roles)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    connections_max: int = 32
    idle_s: float = 120.0
    requests_per_s: float = 500.0  # of all connections of one address


@dataclass
class Counts:
    """Since the start."""

    requests: int = 0
    exceptions: int = 0
    writes: int = 0
    writes_refused: int = 0  # by address or role
    connections: int = 0
    connections_refused: int = 0
    frames_malformed: int = 0


class ModbusServer:
    """Serves a bank of registers on one port.

    Args:
        bank: the registers.
        access: who may do what.
        host: address to listen on.
        port: 0 = any that is free.
        tls: makes the context of one connection, see `server_tls`; None: plain.
        bounds: of connections and rates.

    Attributes:
        port: that it listens on, once `listening` is set.
        counts: what came, and what was refused.
    """

    def __init__(
        self,
        bank: Bank,
        access: Access,
        *,
        host: str,
        port: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
        bounds: Bounds = Bounds(),
    ) -> None:
        self.port = port
        self.counts = Counts()
        self.listening = asyncio.Event()
        self._bank, self._access, self._host, self._tls, self._bounds = bank, access, host, tls, bounds
        self._open: set[_Connection] = set()
        self._allowances: dict[str, _Allowance] = {}
        self._complaints: set[tuple[str, str]] = set()
        self._turn = 0

    async def run(self) -> None:
        """Serve for ever. Raises OSError when the port or a certificate cannot be had."""
        if self._tls is not None:
            self._tls()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.create_server((self._host, self.port), family=family, backlog=BACKLOG) as listener:
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            self.listening.set()
            async with asyncio.TaskGroup() as group:
                await self._accept(listener, group)

    @property
    def connections(self) -> int:
        return len(self._open)

    # --- connections ------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, place = await loop.sock_accept(listener)
            except OSError as error:  # out of file descriptors, or gone before it was taken
                self._complain("", f"a connection could not be taken: {error.strerror}")
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            address = _plain(place[0])
            if not self._admits(address, loop.time()):
                self.counts.connections_refused += 1
                sock.close()
                continue
            self.counts.connections += 1
            connection = _Connection(address, loop.time())
            self._open.add(connection)
            connection.task = group.create_task(self._serve(sock, connection), name=f"modbus {address}")

    def _admits(self, address: str, now_s: float) -> bool:
        if not self._access.may_connect(address):
            self._complain(address, "connection refused: add its network to `allow` if it may read")
            return False
        self._allowances = {
            known: allowance
            for known, allowance in self._allowances.items()
            if known == address or not allowance.is_rested(now_s)
        }
        if len(self._open) < self._bounds.connections_max:
            return True
        oldest = min(self._open, key=lambda connection: connection.heard_at_s)
        if oldest.busy or now_s - oldest.heard_at_s < GIVES_WAY_S:
            self._complain(address, f"connection refused: {len(self._open)} are open and in use")
            return False
        self._complain(oldest.address, "idle connection closed: a new one needed its place")
        self._open.discard(oldest)
        oldest.close()
        return True

    async def _serve(self, sock: socket.socket, connection: "_Connection") -> None:
        """One connection, from handshake to end. What a peer does to it ends here."""
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await self._shake_hands(sock)
            peer = self._peer(connection.address, writer)
            await self._converse(reader, writer, peer, connection)
        except asyncio.IncompleteReadError:
            pass  # closed by the master, in the middle of a frame or between two
        except TimeoutError:
            pass  # idle, or it does not read its replies
        except _MalformedError as error:
            self.counts.frames_malformed += 1
            self._complain(connection.address, f"connection closed: {error}")
        except OSError as error:
            if self._tls is not None:
                self._complain(connection.address, f"connection failed: {error}")
        finally:
            self._open.discard(connection)
            sock.close() if writer is None else writer.transport.abort()

    async def _shake_hands(self, sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # asyncio does so only for sockets that it has made; several replies in a row would wait 40 ms
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=BUFFER_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        tls = None if self._tls is None else self._tls()
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=tls, ssl_handshake_timeout=None if tls is None else HANDSHAKE_S
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _peer(self, address: str, writer: asyncio.StreamWriter) -> Peer:
        ssl_object = writer.get_extra_info("ssl_object")
        if ssl_object is None:
            return Peer(address=address, name=address, may_write=self._access.may_write(address, None))
        name, role = holder(ssl_object.getpeercert(binary_form=True))
        may_write = self._access.may_write(address, role)
        return Peer(address=address, name=name or address, role=role, may_write=may_write)

    # --- requests ---------------------------------------------------------------------------------------

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: Peer,
        connection: "_Connection",
    ) -> None:
        """Answer for ever, in order. Raises when the connection should end."""
        loop = asyncio.get_running_loop()
        allowance = self._allowances.setdefault(peer.address, _Allowance(self._bounds.requests_per_s))
        while True:
            async with asyncio.timeout(self._bounds.idle_s):
                transaction, protocol, length, unit = HEAD.unpack(await reader.readexactly(HEAD.size))
                if protocol != 0 or not LENGTH_MIN <= length <= LENGTH_MAX:
                    raise _MalformedError(f"not Modbus TCP: protocol {protocol}, length {length}")
                pdu = await reader.readexactly(length - 1)
            connection.heard_at_s, connection.busy = loop.time(), True
            await self._take_turn(allowance, connection.heard_at_s)
            reply = await answer(pdu, unit, self._bank, peer)
            self._count(pdu[0], reply, peer)
            writer.write(HEAD.pack(transaction, 0, len(reply) + 1, unit) + reply)
            async with asyncio.timeout(SLOW_READER_S):
                await writer.drain()
            connection.busy = False

    async def _take_turn(self, allowance: "_Allowance", now_s: float) -> None:
        wait_s = allowance.take(now_s)
        self._turn += 1
        if wait_s > 0.0 or self._turn % TURN == 0:
            await asyncio.sleep(wait_s)

    def _count(self, function: int, reply: bytes, peer: Peer) -> None:
        refused = bool(reply[0] & 0x80)
        self.counts.requests += 1
        self.counts.exceptions += refused
        if function in WRITING:
            self.counts.writes += not refused
            if not peer.may_write:
                self.counts.writes_refused += 1
                self._complain(
                    peer.address, f"write of {peer.name!r} refused: no right to write ({_lacks(peer)})"
                )

    def _complain(self, address: str, why: str) -> None:
        """Each sentence once per address: a master repeats its mistake every second."""
        if (address, why) not in self._complaints and len(self._complaints) < COMPLAINTS_MAX:
            self._complaints.add((address, why))
            log.warning("modbus server", peer=address, why=why)


class _MalformedError(Exception):
    """A header that cannot be one."""


@dataclass(eq=False)
class _Connection:
    address: str
    heard_at_s: float
    busy: bool = False  # a request of it is being answered
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()


class _Allowance:
    """So many requests a second, one second's worth at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._left, self._at_s = per_s, per_s, -1e9

    def take(self, now_s: float) -> float:
        """How long to wait for the one that is taken now."""
        self._left = min(self._per_s, self._left + (now_s - self._at_s) * self._per_s) - 1.0
        self._at_s = now_s
        return max(0.0, -self._left / self._per_s)

    def is_rested(self, now_s: float) -> bool:
        return self._left + (now_s - self._at_s) * self._per_s >= self._per_s


def server_tls(*, ca: Path, cert: Path, key: Path, crl: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer, the client's certificate demanded. Raises OSError when a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    context.load_cert_chain(cert, key)
    if crl is not None:
        context.load_verify_locations(crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def holder(certificate_der: bytes) -> tuple[str, str]:
    """Common name and role in a certificate; "" where it has none, not exactly one, or is malformed."""
    name = ""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        if len(names) == 1:
            name = "".join(filter(str.isprintable, str(names[0].value)))[:NAME_MAX]
        extension = certificate.extensions.get_extension_for_oid(ROLE).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return name, ""
    raw = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    if len(raw) < 2 or raw[0] != UTF8_STRING or raw[1] > ROLE_BYTES_MAX or len(raw) != 2 + raw[1]:
        return name, ""
    return name, raw[2:].decode("utf-8", "replace")


def _lacks(peer: Peer) -> str:
    return f"role {peer.role!r}" if peer.role else "by its network or for want of a role"


def _plain(address: str) -> str:
    """An IPv4 address that came through an IPv6 socket is itself again; a zone is of no interest."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _within(address: str, networks: tuple[Network, ...]) -> bool:
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in networks)  # one of the other family is in none
