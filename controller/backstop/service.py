"""All hosts' backstops: one task each, so many BMCs at a time, none of it in the beat.

Nothing here is waited for by the control law. `proven` and `conditions` return what is known at once.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from controller.backstop.config import BackstopConfig
from controller.backstop.found import Found
from controller.backstop.node import NodeBackstop
from controller.backstop.phase import Heard, Phase, Proven
from controller.clock import now_s
from controller.yaml_config import ConfigError
from protocols.redfish import Bmc, RedfishConfigError

ARMING_MAX: Final = 16  # BMCs looked at on a quiet day at a time: 144 slow ones take two minutes


class Backstop:
    """The backstop of a block.

    Args:
        config: of the backstop.
        gpus: how many every node has, by name.
        hear: what is known of a node's agent at this moment; called twice a second per node.
        state_dir: for what the limits were; of this controller alone.

    Raises:
        ConfigError: no password, or a BMC that cannot be used as configured.
    """

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

    def proven(self, now_s: float) -> tuple[Proven, ...]:
        """Upper bounds that BMCs have shown, none older than `proof_age_max_s`.

        A node that is missing, and a GPU at inf, count at their maximum.
        """
        proofs = (node.proof for node in self._nodes.values())
        age_max_s = self._config.proof_age_max_s
        return tuple(one for one in proofs if one is not None and now_s - one.read_at_s <= age_max_s)

    def conditions(self) -> Iterator[tuple[str, str]]:
        """Alarms: key and text."""
        if self._found.fault:
            yield "backstop file", self._found.fault
        for name, node in self._nodes.items():
            if text := node.condition():
                yield f"backstop {name}", text
        for name, owed in self._found.nodes.items():
            if name not in self._nodes:
                limits = ", ".join(f"{uri} {lever.limit_w} W" for uri, lever in owed.items())
                yield f"backstop {name}", f"{name} is no longer configured and still capped; it had: {limits}"

    def told(self, now_s: float) -> list[dict[str, Any]]:
        """For the status: every node that is not simply watched."""
        return [
            {
                "node": name,
                "phase": str(node.guard.phase),
                "limit_w": None if node.proof is None else _sum_w(node.proof),
                "age_s": None if node.proof is None else round(now_s - node.proof.read_at_s, 1),
                "fault": node.fault,
            }
            for name, node in self._nodes.items()
            if node.guard.phase is not Phase.WATCHING or node.fault
        ]


def _sum_w(proof: Proven) -> float | None:
    total_w = sum(proof.limit_w)
    return total_w if math.isfinite(total_w) else None
