"""`powerblock run` without GPUs: field devices in, SCADA and DSX Exchange out, and no law.

The same gateway as in a block, beaten four times a second. The switch (LOCAL, REMOTE, OFF) survives a restart
as in a block; there is no power to limit, and whoever tries is told so.
"""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import structlog

from controller.clock import now_s, now_utc_s
from controller.config import GatewayConfig
from controller.endless import Life
from controller.gateway import Gateway
from controller.notify import notify
from controller.site.config import FACILITY
from controller.site.facility import Facility
from controller.status import PERIOD_S, StatusFile
from controller.store import Store

FREEZE_AFTER_S: Final = 5.0  # by then all connections stand

log = structlog.get_logger(__name__)


class PureGateway:
    """A block without GPUs. Raises StoreError at once."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._store = Store(config.state_dir)
        self._epoch = self._store.begin(now_utc_s())
        self._started_utc_s = now_utc_s()
        self._facility = self._kept_facility()
        self._gateway = Gateway(
            config,
            epoch=self._epoch,
            takers={},
            facility=self._facility,
            settings=None,
            on_moved=self._keep,
        )
        self._status = StatusFile(config.run_dir)
        log.info("start", block=config.block, epoch=self._epoch, devices=len(config.devices))

    async def serve(self, life: Life) -> None:
        """Run until `life` ends."""
        await life.live({**self._gateway.runs(), "beat": self._beat_for_ever})

    async def _beat_for_ever(self) -> None:
        notify("READY=1")
        asyncio.get_running_loop().call_later(FREEZE_AFTER_S, _freeze)
        while True:
            self._beat()
            await asyncio.sleep(PERIOD_S)

    def _beat(self) -> None:
        if self._store.fault:
            self._keep()  # the disk may be well again
        alarms = self._gateway.tell(self._conditions())
        links = list(self._gateway.links())
        up = sum(link["up"] for link in links)
        told: dict[str, Any] = {
            "block": self._config.block,
            "epoch": self._epoch,
            "started_utc_s": self._started_utc_s,
            "at_utc_s": now_utc_s(),
            "alarms": alarms,
            "links": links,
            "facility": self._gateway.told(),
        }
        self._status.write(told)
        notify(f"WATCHDOG=1\nSTATUS={up} of {len(links)} devices answer")

    def _conditions(self) -> Iterator[tuple[str, str]]:
        if self._store.fault:
            yield "state file", self._store.fault
        yield from self._facility.alarms(now_s())

    def _kept_facility(self) -> Facility:
        try:
            return Facility(0.0, (self._store.book or {}).get(FACILITY))
        except msgspec.ValidationError as error:
            self._store.set_book_aside(str(error))
            return Facility(0.0)

    def _keep(self) -> str:
        self._store.keep_book({FACILITY: self._facility.kept()})
        return self._store.fault

    def close(self) -> None:
        self._gateway.close()
        self._store.close()


def _freeze() -> None:
    gc.collect()
    gc.freeze()  # what lives now lives for good: collections need not walk it again
