"""The broker that the VTN names: one connection at a time, to where and as whom the VTN says.

The VTN may name another broker, other topics or another way to log in at any round (`discover`); then the
connection is made anew. So it is when the broker is away for too long: with a new token, since the old one
may be what it dislikes, and at the next of the addresses that the VTN gave.
"""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from protocols.mqtt import MqttConfigError, MqttLink, Subscription, Tls
from protocols.ven.client import VtnClient
from protocols.ven.faults import ABSENT, GONE, Refusal, VtnFault
from protocols.ven.reading import Binding, binding, decoded, fold, topic_names
from protocols.ven.settings import VenSettings

PROGRAMS_MAX: Final = 64  # followed by topics of their own where the VTN has none for VENs
BROKER_DOWN_MAX_S: Final = 20.0  # then: a new token, the next address
BROKER_LOOK_S: Final = 0.5
BROKER_KEEPALIVE_S: Final = 30  # across the internet, not across a switch
STOP_WAIT_S: Final = 0.5  # a cancellation may be lost in the farewell to a broker: repeat it


class Notifier:
    """Hears what the VTN's broker tells. `discover` finds it, `run` listens.

    Args:
        settings: who we are.
        vtn: is asked for broker, topics and token.
        on_notification: called as (topic, payload, retained), inside the socket's read event.
        on_gap: called when something may have been missed: after a connect, or with a broker away.
    """

    def __init__(
        self,
        settings: VenSettings,
        vtn: VtnClient,
        *,
        on_notification: Callable[[str, bytes, bool], None],
        on_gap: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._vtn = vtn
        self._on_notification = on_notification
        self._on_gap = on_gap
        self._binding: Binding | None = None
        self._rebind = asyncio.Event()
        self._uri_turn = 0
        self._link: MqttLink | None = None
        self._fault = ""

    @property
    def is_heard(self) -> bool:
        return self._link is not None and self._link.connected

    @property
    def fault(self) -> str:
        """A sentence; empty: none, or no broker to have one."""
        return self._fault if self._link is None or self.is_heard else self._link.fault

    @property
    def address(self) -> str:
        """host:port; empty: no broker."""
        return "" if self._link is None else self._link.address

    @property
    def is_shared(self) -> bool:
        """Its topics carry events for other VENs, too."""
        return self._binding is None or self._binding.shared

    # -- which broker ---------------------------------------------------------------------------------------

    async def discover(self, ven_id: str, program_ids: Collection[str]) -> None:
        """Asks the VTN for its broker, its topics, and how to log in. Raises VtnFault."""
        try:
            said = fold(decoded(await self._vtn.call("GET", "notifiers"))).get("mqtt")
        except Refusal as refusal:
            if refusal.status not in ABSENT:
                raise
            said = None
        found = None
        if isinstance(said, dict):
            topics, shared = await self._topics(ven_id, program_ids)
            found = binding(fold(said), topics, self._settings, shared=shared)
        if found != self._binding:
            self._binding = found
            self._rebind.set()

    async def _topics(self, ven_id: str, program_ids: Collection[str]) -> tuple[tuple[str, ...], bool]:
        """Topic filters, and whether they carry events for others, too: not every VTN has them per VEN."""
        own = await self._asked_topics(f"vens/{quote(ven_id, safe='')}/events") if ven_id else ()
        if own:
            return (*own, *await self._asked_topics(f"vens/{quote(ven_id, safe='')}/programs")), False
        found = list(await self._asked_topics("programs"))
        for program_id in list(program_ids)[-PROGRAMS_MAX:]:
            found += await self._asked_topics(f"programs/{quote(program_id, safe='')}/events")
        return tuple(dict.fromkeys(found)), True

    async def _asked_topics(self, path: str) -> tuple[str, ...]:
        try:
            raw = await self._vtn.call("GET", f"notifiers/mqtt/topics/{path}")
        except Refusal as refusal:
            if refusal.status in GONE | ABSENT | {403}:
                return ()
            raise
        return topic_names(raw, f"{self._vtn.name} names no topics for {path}")

    # -- listening ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """One connection to the broker the VTN names; a new one whenever it names another."""
        while True:
            self._rebind.clear()
            self._fault = ""
            if self._binding is not None:
                try:
                    await self._hear(self._binding)
                except (MqttConfigError, VtnFault) as fault:
                    self._fault = f"the VTN's notifier cannot be used: {fault}"
                else:
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(BROKER_DOWN_MAX_S):
                    await self._rebind.wait()

    async def _hear(self, bound: Binding) -> None:
        """Returns when the binding has changed, or when the broker is away for too long."""
        uri = bound.uris[self._uri_turn % len(bound.uris)]
        password = await self._vtn.token() if bound.bearer else None
        with ExitStack() as stack:
            self._link = MqttLink(
                uri,
                client_id=f"ven{secrets.token_hex(8)}",
                on_message=self._on_notification,
                on_connect=self._on_gap,
                subscriptions=tuple(Subscription(topic, 1) for topic in bound.topics),
                username=bound.username,
                password=password,
                tls=_tls(uri, bound, self._settings, stack),
                keepalive_s=BROKER_KEEPALIVE_S,
            )
            task = asyncio.create_task(self._link.run(), name="ven broker")
            try:
                await self._watch(self._link, task, bound)
            finally:
                self._link = None
                while not task.done():
                    task.cancel()
                    await asyncio.wait({task}, timeout=STOP_WAIT_S)
        if not task.cancelled():
            task.result()  # ends by itself only when a callback failed: a fault of the program

    async def _watch(self, link: MqttLink, task: asyncio.Task[None], bound: Binding) -> None:
        up_at_s = time.monotonic()
        while not self._rebind.is_set() and not task.done():
            if link.connected:
                up_at_s = time.monotonic()
            elif time.monotonic() - up_at_s > BROKER_DOWN_MAX_S:
                self._uri_turn += 1
                self._vtn.drop_token()  # it may be what the broker dislikes
                self._on_gap()
                return
            if bound.bearer:
                link.password = self._vtn.newest_token
            await asyncio.wait({task}, timeout=BROKER_LOOK_S)


def _tls(uri: str, bound: Binding, settings: VenSettings, stack: ExitStack) -> Tls | None:
    """The VTN's PEM texts as files, since files are what TLS libraries read; else those of the settings."""
    if urlsplit(uri).scheme == "mqtt":
        return None
    texts = {"ca": bound.ca_pem, "cert": bound.cert_pem, "key": bound.key_pem}
    files = _written({name: pem for name, pem in texts.items() if pem is not None}, stack)
    if "cert" not in files:
        files |= {"cert": settings.cert_file, "key": settings.key_file}
    return Tls(files.get("ca") or settings.ca_file, files["cert"], files.get("key"))


def _written(texts: dict[str, str], stack: ExitStack) -> dict[str, str | None]:
    """Their paths, until the stack is left. Raises VtnFault when there is no place for them."""
    if not texts:
        return {}
    try:
        # Readable by its owner alone. That it cannot be removed is no reason to end.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ven-", ignore_cleanup_errors=True))
        paths = {name: Path(folder, f"{name}.pem") for name in texts}
        for name, path in paths.items():
            path.write_text(texts[name], encoding="utf-8")
    except OSError as error:
        raise VtnFault(
            f"no place for its certificates: {error}; make room in the temporary folder"
        ) from error
    return {name: str(path) for name, path in paths.items()}
