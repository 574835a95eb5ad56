"""One contender's turn: it starts, finds all devices, settles, is measured over a window, and is ended."""

import asyncio
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.gateway.account import Account, Sample, account
from benchmarks.gateway.contender import Contender, Missing
from benchmarks.gateway.farm import Farm
from benchmarks.gateway.tape import Tape
from benchmarks.gateway.usage import usage
from benchmarks.live import process

FOUND_MAX_S: Final = 60.0  # the slowest takes three seconds on an idle machine
LOOK_S: Final = 0.5
LOG_TAIL: Final = 600


class Turn(NamedTuple):
    account: Account
    window_s: float
    cpu_s: float
    resident_mib: float
    farm_cpu_s: float
    messages: int


async def turn(
    contender: Contender, source: Farm, broker_port: int, folder: Path, settle_s: float, window_s: float
) -> Turn:
    """Raises Missing when it does not read the whole farm, or ends by itself."""
    log_path = folder / "log"
    with Tape(broker_port) as tape, ExitStack() as stack:
        children = [
            stack.enter_context(process(command.argv, log_path, command.env, command.cwd))
            for command in contender.commands
        ]
        commanded = zip(children, contender.commands, strict=True)
        pids = [child.pid for child, command in commanded if command.measured]
        try:
            await _found(contender, source, tape, children)
            await asyncio.sleep(settle_s)
            began_s, before, farm_before = time.monotonic(), usage(pids), usage([source.pid])
            await asyncio.sleep(window_s)
            ended_s, after, farm_after = time.monotonic(), usage(pids), usage([source.pid])
        except (TimeoutError, ChildProcessError, FileNotFoundError) as error:
            what = "did not find all devices" if isinstance(error, TimeoutError) else "ended by itself"
            raise Missing(f"it {what}: {log_path.read_text(errors='replace')[-LOG_TAIL:]}") from error
        messages = [message for message in tape.messages() if began_s <= message.arrived_s < ended_s]
    samples = [
        Sample(message.arrived_s, device, values)
        for message in messages
        for device, values in contender.decode(message.topic, message.payload)
    ]
    return Turn(
        account=account(samples, source, ended_s - began_s),
        window_s=ended_s - began_s,
        cpu_s=after.cpu_s - before.cpu_s,
        resident_mib=after.resident_mib,
        farm_cpu_s=farm_after.cpu_s - farm_before.cpu_s,
        messages=len(messages),
    )


async def _found(
    contender: Contender, source: Farm, tape: Tape, children: Sequence[subprocess.Popen[bytes]]
) -> None:
    """Wait until every device has been heard of. Raises TimeoutError, ChildProcessError."""
    async with asyncio.timeout(FOUND_MAX_S):
        while len(set(_heard(contender, tape))) < len(source.ports):
            if any(child.poll() is not None for child in children):
                raise ChildProcessError
            await asyncio.sleep(LOOK_S)


def _heard(contender: Contender, tape: Tape) -> Iterator[int]:
    for message in tape.messages():
        for device, _ in contender.decode(message.topic, message.payload):
            yield device
