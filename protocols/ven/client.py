"""HTTP with one VTN: a valid token, all pages, within bounds; every fault is a sentence.

The token is fetched with the client credentials when one is needed, renewed before it expires, and once
more when the VTN refuses it. It goes only to the address in the settings: redirections are not followed.

aiohttp: client and (for the simulator) server in one library, in active maintenance on one stable line since
2016; httpx has had no stable release since 2024.
"""

import asyncio
import math
import random
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from protocols.ven.faults import ABSENT, Refusal, Unreachable, VtnFault, remedy, sentence
from protocols.ven.reading import (
    ITEMS_MAX,
    Item,
    Listing,
    decoded,
    decoded_list,
    fold,
    item,
    problem,
    text,
    token,
)
from protocols.ven.settings import VenSettings, url_fault

REQUEST_WAIT_MAX_S: Final = 5.0  # a VTN answers in 0.1 s; five times what a bad mobile line adds
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 60.0  # a VTN that comes back is asked within a minute
BODY_MAX_BYTES: Final = 2 * 1024 * 1024  # a page of PAGE_ITEMS events of 1,000 intervals is 1.6 MB
PAGE_ITEMS: Final = 20  # the standard allows 50; smaller pages keep a body small
TOKEN_RENEW_RATIO: Final = 0.8  # of its life: leaves time for retries


class VtnClient:
    """Requests to one VTN, with a valid token, within bounds. Every fault is a VtnFault."""

    def __init__(self, settings: VenSettings) -> None:
        self._settings = settings
        self._base = settings.url.rstrip("/")
        self._http: aiohttp.ClientSession | None = None
        self._token_lock = asyncio.Lock()
        self._renew_at_s = math.inf
        self.newest_token: str | None = None
        self.name = f"VTN {urlsplit(settings.url).netloc}"

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes | None = None,
    ) -> bytes:
        """The body of a successful answer. A token that is refused is renewed, once.

        Raises:
            Refusal: any status but 2xx.
            VtnFault: no usable answer: too late, too long.
            Unreachable: no connection, or no token.
        """
        for renewed in (False, True):
            headers = {"Authorization": f"Bearer {await self.token()}"}
            if body is not None:
                headers["Content-Type"] = "application/json"
            status, said = await self._exchange(
                method, f"{self._base}/{path}", headers=headers, params=query, data=body
            )
            if status != 401 or renewed:
                break
            self.drop_token()
        if not 200 <= status < 300:
            raise Refusal(f"{self.name} {method} /{path}: {status}{remedy(status)}{problem(said)}", status)
        return said

    async def listing(self, path: str, query: Mapping[str, str | int] | None = None) -> Listing:
        """All pages of a list, each item as it came.

        Raises:
            VtnFault: as `call`; also for what is not a list, and for more than ITEMS_MAX items.
        """
        source = f"{self.name} GET /{path}"
        items: dict[str, Item] = {}
        skip = spoiled = 0
        while True:
            paged = {**(query or {}), "skip": skip, "limit": PAGE_ITEMS}
            page = decoded_list(await self.call("GET", path, query=paged), source)
            known = len(items)
            for raw in page[: ITEMS_MAX + 1]:
                found = item(bytes(raw))
                if found is None:
                    spoiled += 1
                else:
                    items[found.id] = found
                await asyncio.sleep(0)  # a large event costs milliseconds: others want to run in between
            if max(len(items), spoiled) > ITEMS_MAX:
                raise VtnFault(f"{source}: more than {ITEMS_MAX} items; narrow what we may see")
            # A page without news: the VTN does not know how to skip and has told all it will.
            if len(page) < PAGE_ITEMS or len(items) == known:
                return Listing(source, tuple(items.values()), spoiled)
            skip += len(page)

    async def token(self) -> str:
        """A token that is still good for a while. Raises Unreachable."""
        async with self._token_lock:  # rounds, reports and the broker ask at the same time
            if self.newest_token is None or time.monotonic() >= self._renew_at_s:
                self.newest_token, life_s = await self._new_token()
                self._renew_at_s = time.monotonic() + life_s * TOKEN_RENEW_RATIO
            return self.newest_token

    def drop_token(self) -> None:
        self._renew_at_s = -math.inf

    def renewal_due_in_s(self) -> float:
        return max(0.0, self._renew_at_s - time.monotonic())

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _new_token(self) -> tuple[str, float]:
        settings = self._settings
        form = {
            "grant_type": "client_credentials",
            "client_id": settings.client_id,
            "client_secret": settings.client_secret,
        }
        if settings.scope:
            form["scope"] = settings.scope
        try:
            url = settings.token_url or await self._token_url()
            return token(*await self._exchange("POST", url, data=form))
        except Unreachable:
            raise
        except VtnFault as fault:
            raise Unreachable(f"{self.name} gives no token: {fault}") from fault

    async def _token_url(self) -> str:
        """As the VTN says; where it does not say, the place the standard suggests."""
        status, said = await self._exchange("GET", f"{self._base}/auth/server")
        if status in ABSENT | {401, 403}:
            return f"{self._base}/auth/token"
        if not 200 <= status < 300:
            raise Refusal(f"GET /auth/server: {status}{problem(said)}", status)
        url = text(fold(decoded(said)), "tokenurl") or ""
        if wrong := url_fault(url, "https", plain=self._settings.plain):
            raise VtnFault(f"it names a token url that is not to be trusted with our secret: {wrong}")
        return url

    async def _exchange(self, method: str, url: str, **request: Any) -> tuple[int, bytes]:
        """One request: status and body, whatever they are."""
        what = f"{self.name} {method} {urlsplit(url).path}"
        try:
            async with asyncio.timeout(REQUEST_WAIT_MAX_S):
                http = self._session()
                async with http.request(method, url, allow_redirects=False, **request) as answer:
                    body = bytearray()
                    async for chunk in answer.content.iter_any():
                        body += chunk
                        if len(body) > BODY_MAX_BYTES:
                            raise VtnFault(f"{what}: an answer of more than {BODY_MAX_BYTES} bytes")
                    return answer.status, bytes(body)
        except TimeoutError as error:
            raise VtnFault(
                f"{what}: does not answer within {REQUEST_WAIT_MAX_S:g} s: check address, route and firewall"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            told = f"{what}: {sentence(error)}"
            # TLS 1.3 refuses our certificate only after the handshake: aiohttp may see a server that hung up.
            # The next session reads the TLS files anew: the certificate may have been renewed.
            if isinstance(error, aiohttp.ClientConnectionError | OSError):
                await self.close()
            if isinstance(error, aiohttp.ClientConnectorError):
                raise Unreachable(told) from error
            raise VtnFault(told) from error

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._settings.tls_context()),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a small body must not become a large one
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, connect=REQUEST_WAIT_MAX_S / 2),
            )
        return self._http


def retry_s(failures: int) -> float:
    """The wait after so many failures in a row; jittered, or the VENs of a region return as one."""
    ceiling_s = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(failures - 1, 10))
    return random.uniform(ceiling_s / 2, ceiling_s)  # noqa: S311  jitter
