"""All hosts' backstops: one task each, so many BMCs at a time. They run in a process of their own: see apart.

Nothing here is waited for by the control law. `said` returns what is known at once.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from controller.backstop.config import BackstopConfig
from controller.backstop.found import Found
from controller.backstop.node import NodeBackstop
from controller.backstop.phase import Heard, Phase, Proven
from controller.backstop.said import NodeSaid, Said
from controller.clock import now_s
from controller.yaml_config import ConfigError
from protocols.redfish import Bmc, RedfishConfigError

ARMING_MAX: Final = 16  # BMCs looked at on a quiet day at a time: 144 slow ones take two minutes


class Hosts:
    """The backstops of all hosts of a block, in the process that talks to BMCs. Arguments: see `Backstop`."""

    def __init__(
        self,
        config: BackstopConfig,
        gpus: Mapping[str, int],
        hear: Callable[[str], Heard],
        state_dir: Path,
    ) -> None:
        self._config = config
        self._hear = hear
        self._found = Found(state_dir)
        password = config.password()
        try:
            self._nodes = {
                node: NodeBackstop(
                    node, count, Bmc(config.settings(node, password), now_s), config, self._found
                )
                for node, count in gpus.items()
            }
        except RedfishConfigError as error:
            raise ConfigError(f"backstop: {error}") from None

    async def run(self) -> None:
        """Supervise until cancelled; no limit is changed by that. Logs out of every BMC."""
        arming, acting = asyncio.Semaphore(ARMING_MAX), asyncio.Semaphore(self._config.bmcs_max)
        async with asyncio.TaskGroup() as tasks:
            for name, node in self._nodes.items():
                tasks.create_task(
                    node.run(partial(self._hear, name), arming, acting), name=f"backstop {name}"
                )

    def said(self) -> Said:
        """What is known now."""
        nodes = tuple(
            NodeSaid(
                node=name,
                phase=node.guard.phase,
                fault=node.fault,
                condition=node.condition(),
                proof=node.proof,
            )
            for name, node in self._nodes.items()
            if node.guard.phase is not Phase.WATCHING or node.fault
        )
        return Said(nodes, tuple(self._conditions()))

    def _conditions(self) -> Iterator[tuple[str, str]]:
        if self._found.fault:
            yield "backstop file", self._found.fault
        for name, owed in self._found.nodes.items():
            if name not in self._nodes:
                limits = ", ".join(f"{uri} {lever}" for uri, lever in owed.items())
                yield f"backstop {name}", f"{name} is no longer configured and still capped; it had: {limits}"

    def proven(self, now_s: float) -> tuple[Proven, ...]:
        return self.said().proven(now_s, self._config.proof_age_max_s)

    def conditions(self) -> Iterator[tuple[str, str]]:
        return self.said().conditions()

    def told(self, now_s: float) -> list[dict[str, Any]]:
        return self.said().told(now_s)
