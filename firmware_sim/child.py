"""A process of the rig: the broker, or a part of the device under test, started by its command line.

Its output goes to a log file. It gets a session of its own, so that Ctrl-C reaches the rig alone and the rig
ends its children in order: ask (SIGTERM), wait, then kill.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

STOP_WAIT_MAX_S: Final = 5.0  # a controller persists its limit and says good-bye; that takes milliseconds
POLL_S: Final = 0.02
TAIL_LINES: Final = 15


class Child:
    """One child process that can be killed, frozen and started again."""

    def __init__(
        self, name: str, argv: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.expected = False  # whether it is meant to run now
        self._argv = list(argv)
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def returncode(self) -> int | None:
        """Exit status; None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int | None:
        """Of the running process; None: none runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    @property
    def died(self) -> bool:
        """It is meant to run and does not."""
        return self.expected and self.returncode is not None

    def start(self) -> None:
        """Start it; its output is appended to the log."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  the rig's own command lines
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )
        self.expected = True

    def kill(self) -> None:
        """As the kernel's OOM killer would: no warning, no clean-up."""
        self.expected = False
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        """Stop its time: sockets stay open, nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Ask it to end, then make it."""
        self.expected = False
        self.thaw()
        self._signal(signal.SIGTERM)
        for _ in range(round(STOP_WAIT_MAX_S / POLL_S)):
            if self._process is None or self._process.poll() is not None:
                return
            await asyncio.sleep(POLL_S)
        self.kill()

    def tail(self) -> str:
        """The last lines of its log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
