"""Devices on libmodbus (see `fault_server.c`), alone on a socket or several on one serial line."""

import asyncio
import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import tty
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fault_server.c")
FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror")


@functools.cache
def _program() -> Path | str:
    """The built server, or why there is none."""
    cc, pkg_config = shutil.which("cc"), shutil.which("pkg-config")
    if cc is None or pkg_config is None:
        return "no cc and pkg-config on PATH: libmodbus peers cannot be built"
    found = subprocess.run(
        [pkg_config, "--cflags", "--libs", "libmodbus"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        return "libmodbus is not installed (Debian: libmodbus-dev)"
    program = Path(tempfile.mkdtemp(prefix="fault-server-")) / "fault_server"
    subprocess.run([cc, *FLAGS, "-o", program, SOURCE, *found.stdout.split()], check=True)
    return program


needs_libmodbus = pytest.mark.skipif(isinstance(_program(), str), reason=str(_program()))


class FaultServer:
    """One process of it. `requests` are (unit, function, address, count or value) as libmodbus saw them."""

    def __init__(self, *args):
        self._args = args or ("tcp",)
        self.requests = []

    async def __aenter__(self):
        self._process = await asyncio.create_subprocess_exec(
            _program(), *map(str, self._args), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._done = asyncio.Queue()
        ready, port = (await self._process.stdout.readline()).split()
        assert ready == b"ready"
        self.port = int(port)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self):
        async for line in self._process.stdout:
            if line == b"done\n":
                self._done.put_nowait(None)
            else:
                self.requests.append(tuple(map(int, line.split())))

    async def tell(self, command):
        self._process.stdin.write(f"{command}\n".encode())
        await self._done.get()

    async def fault(self, unit, name, argument=0):
        await self.tell(f"fault {unit} {name} {argument}")

    async def set(self, unit, address, value):
        await self.tell(f"set {unit} {address} {value}")


class Bus:
    """A serial line with a libmodbus process per unit; what a slave says reaches the master.

    What the master says reaches the slaves of that id alone: libmodbus takes whatever follows a request to
    another slave for that slave's answer, so beside a dead one it would lose its own requests.

    The master's end is a terminal (`path`) or, as with a serial device server, a TCP port (`port`).
    """

    def __init__(self, *units):
        self._units = units
        self.servers = []
        self._fds = []

    async def __aenter__(self):
        self._stack = contextlib.AsyncExitStack()
        self._slaves = []
        for unit in self._units:
            fd, path = self._terminal()
            self._slaves.append(fd)
            self.servers.append(await self._stack.enter_async_context(FaultServer("rtu", path, unit)))
        self._serial, self.path = self._terminal()
        self._tcp = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._writers = []
        loop = asyncio.get_running_loop()
        loop.add_reader(self._serial, self._from_master)
        for fd in self._slaves:
            loop.add_reader(fd, self._from_slave, fd)
        return self

    async def __aexit__(self, *_):
        loop = asyncio.get_running_loop()
        for fd in (self._serial, *self._slaves):
            loop.remove_reader(fd)
        self._tcp.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._stack.aclose()
        for fd in self._fds:
            os.close(fd)
        await asyncio.sleep(0)

    def _terminal(self):
        ours, theirs = os.openpty()
        tty.setraw(theirs)  # no echo
        os.set_blocking(ours, False)
        self._fds += [ours, theirs]
        return ours, os.ttyname(theirs)

    def _from_master(self):
        self._send(os.read(self._serial, 1024))

    def _send(self, data):
        for unit, fd in zip(self._units, self._slaves, strict=True):
            if unit == data[0]:
                os.write(fd, data)

    def _from_slave(self, fd):
        data = os.read(fd, 1024)
        if not self._writers:
            os.write(self._serial, data)
        for writer in self._writers:
            writer.write(data)

    async def _accept(self, reader, writer):
        for old in self._writers:
            old.transport.abort()
        self._writers = [writer]
        with contextlib.suppress(OSError):
            while data := await reader.read(1024):
                self._send(data)
