"""The GPU node agent as a process: obeys limits while its lease runs, falls back by itself when it does not.

What each GPU should hold is decided in `lease` (pure); `node` gives it readings and does what it says;
`rounds` has the time and the threads. Here is what stands around them: the driver, however long it takes to
come, the link, the lock of this node, and how it all ends.

The agent runs on through everything but a driver that is gone or will not open (a new process gets a new one)
and a lack of permission at the start. A stop or a restart changes no limit.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from controller.agent import lock
from controller.agent.config import ConfigError, NodeConfig, load_node
from controller.agent.lanes import Lane, Stuck
from controller.agent.node import Agent, DriverGoneError
from controller.agent.rounds import NotPermittedError, Rounds
from controller.clock import now_s
from controller.endless import Life, run_and_leave
from controller.notify import notify
from protocols import agent_link
from protocols.mqtt import MqttConfigError, MqttLink, Subscription
from protocols.nvml import Nvml, NvmlFault

DRIVER_RETRY_S: Final = 3.0  # a driver that is being installed or loaded takes minutes
DRIVER_OPEN_MAX_S: Final = 30.0  # nvmlInit has been seen to queue for 12 s behind other processes
DRIVER_HUNG_MAX_S: Final = 120.0  # four times that: it will not return, and holds the library in this process
LOCK_WAIT_MAX_S: Final = 3.0  # a predecessor that is ending, or limits being put back by hand
LOCK_RETRY_S: Final = 0.1
OPENING: Final = -1  # stands for the driver itself where a lane wants a GPU index

log = structlog.get_logger(__name__)


class DriverHungError(RuntimeError):
    """A call that opens the driver does not return; only a new process can try again."""


async def open_driver(expected_gpus: int | None) -> Nvml:
    """The driver, however long it takes to come: a host may boot, or be repaired, with the agent running.

    Raises DriverHungError.
    """
    stuck = Stuck()
    lane = Lane("nvml open", deadline_s=DRIVER_OPEN_MAX_S, stuck=stuck)
    logged = ""
    answered_at_s = now_s()
    while True:
        opened = (await lane.run({OPENING: Nvml}))[OPENING]
        why = _why_unusable(opened)
        if stuck.fault(OPENING) is None:
            answered_at_s = now_s()
        elif now_s() - answered_at_s < DRIVER_HUNG_MAX_S:
            why = "the driver does not open: the call has not returned, see the kernel log"
        else:
            raise DriverHungError(f"opening the driver has not returned for {DRIVER_HUNG_MAX_S:.0f} s")
        if isinstance(opened, Nvml) and not why:
            if expected_gpus not in (None, opened.gpu_count):
                log.error(
                    "gpu count",
                    expected=expected_gpus,
                    found=opened.gpu_count,
                    remedy="see Xid in the kernel log",
                )
            log.info("driver open", version=opened.driver_version, gpus=opened.gpu_count)
            return opened
        if why != logged:
            log.error("driver not usable, trying again", why=why, every_s=DRIVER_RETRY_S)
        logged = why
        # The unit's start time-out must not end this patience.
        notify(
            f"STATUS=waiting for the driver: {why}\nEXTEND_TIMEOUT_USEC={int((DRIVER_OPEN_MAX_S + 30) * 1e6)}"
        )
        await asyncio.sleep(DRIVER_RETRY_S)


def link_of(config: NodeConfig, on_message: Callable[[str, bytes, bool], None]) -> MqttLink:
    """Raises MqttConfigError, ConfigError."""
    return MqttLink(
        config.mqtt.url,
        client_id=f"powerblock-agent-{config.block}-{config.node}",
        on_message=on_message,
        subscriptions=(
            Subscription(agent_link.call_topic(config.block)),
            Subscription(agent_link.order_topic(config.block, config.node)),
            Subscription(agent_link.table_topic(config.block, config.node)),
        ),
        username=config.mqtt.username,
        password=config.mqtt.password(),
        tls=config.mqtt.tls(),
    )


async def take_lock(config: NodeConfig) -> None:
    """The lock of this node, for the rest of the process; beside another agent rather than not at all."""
    for _ in range(round(LOCK_WAIT_MAX_S / LOCK_RETRY_S)):
        try:
            lock.take(config.state_dir)
        except lock.LockedError as error:
            why = str(error)
        except OSError as error:
            why = f"{config.state_dir}: {error}"
            break
        else:
            return
        await asyncio.sleep(LOCK_RETRY_S)
    log.error("not alone on this node?", node=config.node, why=why, remedy="run one agent per node")
    lock.join(config.state_dir)


def _why_unusable(opened: Nvml | NvmlFault) -> str:
    if isinstance(opened, NvmlFault):
        return opened.sentence
    return "" if opened.gpu_count > 0 else "the driver shows no GPU: see `nvidia-smi` and the kernel log"


async def run(
    configs: Sequence[NodeConfig], driver_of: Callable[[Nvml], Sequence[Nvml]], *, observe: bool
) -> int:
    """The life of a process that serves these nodes, each with its part of the driver.

    Returns the exit code: 0 stopped, 1 driver gone or hung, 2 cannot work as set up.
    """
    life = Life()
    life.end_on_signals()
    agents: list[Agent] = []
    try:
        # First the links, whose settings may be wrong; they bring messages only once the agents serve them.
        links = [
            link_of(config, lambda *message, place=place: agents[place].on_message(*message))
            for place, config in enumerate(configs)
        ]
        for config in configs:
            if observe:  # under one name they would throw each other off the broker
                lock.require_free(config.state_dir)
            else:
                await take_lock(config)
        gpus = [None if config.gpus is None else config.gpus.count for config in configs]
        driver = await open_driver(gpus[0] if len(gpus) == 1 else None)
        agents += [
            Agent(config, part, observe=observe)
            for config, part in zip(configs, driver_of(driver), strict=True)
        ]
        await Rounds(list(zip(agents, links, strict=True))).serve(life)
    except asyncio.CancelledError:
        code, why = 0, "stopped"
    except DriverGoneError as error:
        code, why = 1, f"the driver is gone, a new process must open it: {error}"
    except DriverHungError as error:
        code, why = 1, f"{error}, a new process must try: see the kernel log, the host may need a reboot"
    except NotPermittedError as error:
        code, why = 2, f"{error}; or only watch with --observe"
    except lock.LockedError as error:
        code, why = 2, f"{error} and reports what it sees: `powerblock status` shows it; or stop it first"
    except MqttConfigError as error:
        code, why = 2, f"node.yaml: mqtt: {error}"
    except ConfigError as error:
        code, why = 2, str(error)
    notify("STOPPING=1")
    log.log(
        logging.INFO if code == 0 else logging.ERROR,
        "agent ends, limits stay as they are",
        why=why,
        code=code,
    )
    return code


def main(path: Path, observe: bool) -> int:
    """Command `powerblock agent`. Returns 2 for a bad configuration; else the process ends, see `run`."""
    try:
        config = load_node(path)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return run_and_leave(run([config], lambda driver: [driver], observe=observe))
