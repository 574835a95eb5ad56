"""HTTP with one BMC: one session, two connections, everything within bounds; every fault is a sentence.

* Credentials go out once, at login. The token they give is used until the BMC answers 401 (sessions end by
  themselves, after minutes of silence or a reboot), then renewed once, the old session ended first: there
  are few places. A login that is refused is not tried again for LOGIN_AGAIN_S: BMCs lock accounts after a few
  failures, for the operator as well. Nor is a session renewed for so long that got a 401 when it was new: it
  lacks privileges.
* GB200 and GB300 serve four connections at once, and NVIDIA's own DPS takes two: CONNECTIONS_MAX is what is
  left for others. Waiting for a turn is not held against the request's own deadline.
* A change goes out without ETag. Where the BMC asks for one (428, or 412 as some firmware has it) it gets
  the newest, and from then on without being asked.
* 202 means "later": the task monitor is asked until it knows.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL

from protocols.redfish.faults import RedfishFault, Unreachable, refusal, sentence, shown
from protocols.redfish.settings import BmcSettings

CONNECTIONS_MAX: Final = 2  # of the four that a GB200 BMC serves
BODY_MAX_BYTES: Final = 256 * 1024  # the largest resource asked for has 20 kB; decoding stays below 2 ms
URI_MAX_CHARS: Final = 512
LOGIN_AGAIN_S: Final = 60.0  # after a refusal: lock-outs begin at three to ten failures in a few minutes
LOGOUT_MAX_S: Final = 2.0  # a session that stays behind ends by itself
TASK_MAX_S: Final = 30.0  # a limit that takes longer is no backstop
TASK_PAUSE_S: Final = (0.2, 1.0, 5.0)  # least, without Retry-After, most

SESSIONS: Final = "/redfish/v1/SessionService/Sessions"
DONE: Final = frozenset({200, 201, 204})
WANTS_ETAG: Final = frozenset({412, 428})
LOGIN_REFUSED: Final = frozenset({400, 401, 403})
TASK_RUNNING: Final = frozenset(
    {"New", "Pending", "Running", "Service", "Starting", "Stopping", "Suspended", "Cancelling"}
)


@dataclass(frozen=True)
class Answer:
    """What a BMC said of `uri`; `asked_at_s` is on the clock given, from before the request left."""

    uri: str
    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]
    asked_at_s: float

    @property
    def etag(self) -> str:
        """For If-Match; `*` where the BMC names none: then any version is the right one."""
        told = self.body.get("@odata.etag")
        return self.headers.get("ETag") or (told if isinstance(told, str) and told else "*")


class Bmc:
    """One BMC. Use `close` in the end: a session left open takes one of few places until it times out.

    Args:
        settings: which, and as whom.
        clock: for `Answer.asked_at_s`.

    Attributes:
        name: for sentences.
        logins: sessions begun, for whoever watches that there are few.
    """

    def __init__(self, settings: BmcSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = f"BMC {urlsplit(settings.url).netloc}"
        self.logins = 0
        self._settings = settings
        self._clock = clock
        self._base = settings.url.rstrip("/")
        self._http: aiohttp.ClientSession | None = None
        self._turn = asyncio.Semaphore(CONNECTIONS_MAX)
        self._login_lock = asyncio.Lock()
        self._login_at_s = -math.inf  # earliest next try
        self._renew_at_s = -math.inf  # likewise, after a 401
        self._login_fault = ""
        self._token = ""
        self._session_uri = ""
        self._wants_etag = False

    async def get(self, uri: str) -> Answer:
        """A resource. Raises RedfishFault, Unreachable."""
        answer = await self._ask("GET", uri)
        if answer.status != 200:
            raise refusal(f"{self.name} GET {uri}", answer.status, answer.body)
        return answer

    async def patch(self, uri: str, change: Mapping[str, Any]) -> None:
        """Change a resource and wait until the BMC says that it is done. Raises RedfishFault, Unreachable."""
        body = msgspec.json.encode(change)
        what = f"{self.name} PATCH {uri}"
        for again in (False, True):
            etag = (await self.get(uri)).etag if self._wants_etag else ""
            answer = await self._ask("PATCH", uri, body, etag)
            if answer.status not in WANTS_ETAG or again:
                break
            self._wants_etag = True
        if answer.status == 202:
            answer = await self._finished(answer, what)
        if answer.status not in DONE:
            raise refusal(what, answer.status, answer.body)

    async def close(self) -> None:
        """Log out, within LOGOUT_MAX_S, and hang up."""
        try:
            await self._log_out()
        finally:
            await self._hang_up()

    # -- session -------------------------------------------------------------------------------------------

    async def _ask(self, method: str, uri: str, body: bytes | None = None, etag: str = "") -> Answer:
        """One request with a session, which is renewed once if need be."""
        headers = {"If-Match": etag} if etag else {}
        token = await self._session()
        answer = await self._exchange(method, uri, {**headers, "X-Auth-Token": token}, body)
        if answer.status == 401 and (renewed := await self._session(refused=token)) != token:
            answer = await self._exchange(method, uri, {**headers, "X-Auth-Token": renewed}, body)
            if answer.status == 401:
                self._renew_at_s = time.monotonic() + LOGIN_AGAIN_S
        return answer

    async def _session(self, refused: str = "") -> str:
        """Its token; another one than `refused`, unless a new one did no better lately."""
        async with self._login_lock:
            if self._token == refused and time.monotonic() >= self._renew_at_s:
                await self._log_out()
            if not self._token:
                if time.monotonic() < self._login_at_s:
                    raise Unreachable(self._login_fault)
                await self._login()
            return self._token

    async def _login(self) -> None:
        account = {"UserName": self._settings.user, "Password": self._settings.password}
        answer = await self._exchange("POST", SESSIONS, {}, msgspec.json.encode(account))
        what = f"{self.name} login as {shown(self._settings.user)}"
        if answer.status in LOGIN_REFUSED:
            self._login_at_s = time.monotonic() + LOGIN_AGAIN_S
            self._login_fault = (
                f"{what}: {answer.status}, refused: check user and password file; not tried again for "
                f"{LOGIN_AGAIN_S:g} s, lest the account be locked"
            )
            raise Unreachable(self._login_fault, answer.status)
        if answer.status not in DONE:
            raise Unreachable(str(refusal(what, answer.status, answer.body)), answer.status)
        token = answer.headers.get("X-Auth-Token", "")
        if not token:
            raise Unreachable(f"{what}: gives no X-Auth-Token: its firmware has no sessions; update it")
        told = (answer.headers.get("Location"), answer.body.get("@odata.id"))
        self._session_uri = next(filter(None, map(path_of, told)), "")  # without one it ends by itself
        self._token = token
        self.logins += 1

    async def _log_out(self) -> None:
        uri, token, self._token = self._session_uri, self._token, ""
        if token and uri:
            with suppress(RedfishFault, TimeoutError):
                async with asyncio.timeout(LOGOUT_MAX_S):
                    await self._exchange("DELETE", uri, {"X-Auth-Token": token})

    # -- tasks ---------------------------------------------------------------------------------------------

    async def _finished(self, answer: Answer, what: str) -> Answer:
        """The last answer of a task monitor."""
        location = answer.headers.get("Location", "")
        monitor = path_of(location)
        if location and not monitor:
            raise RedfishFault(f"{what}: accepted, and how it ends is told at {shown(location)}: no address")
        try:
            async with asyncio.timeout(TASK_MAX_S):
                while monitor and _is_running(answer):
                    await asyncio.sleep(_pause_s(answer.headers.get("Retry-After", "")))
                    answer = await self._ask("GET", monitor)
        except TimeoutError as error:
            raise RedfishFault(f"{what}: accepted, and not done after {TASK_MAX_S:g} s") from error
        state = answer.body.get("TaskState", "Completed")
        if answer.status in DONE and state != "Completed":
            raise RedfishFault(f"{what}: accepted, then its task ended as {shown(state)}")
        # Accepted, and no word how it ends, or the monitor is gone with its task: reading back will tell.
        return answer if answer.status not in (202, 404, 410) else replace(answer, status=204)

    # -- HTTP ----------------------------------------------------------------------------------------------

    async def _exchange(
        self, method: str, uri: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Answer:
        """One request: status and body, whatever they are."""
        what = f"{self.name} {method} {shown(uri)}"
        if fault := uri_fault(uri):
            raise RedfishFault(f"{what}: {fault}")
        if body is not None:
            headers = {**headers, "Content-Type": "application/json"}
        wait_s = self._settings.request_max_s
        async with self._turn:
            asked_at_s = self._clock()
            try:
                async with (
                    asyncio.timeout(wait_s),
                    self._client().request(
                        method,
                        URL(self._base + uri, encoded=True),
                        data=body,
                        headers=headers,
                        allow_redirects=False,
                    ) as answer,
                ):
                    raw = await _bounded(answer, what)
                    return Answer(uri, answer.status, answer.headers, _decoded(raw), asked_at_s)
            except TimeoutError as error:
                raise Unreachable(
                    f"{what}: no answer within {wait_s:g} s: the BMC hangs or is off; reset it if it stays so"
                ) from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerFingerprintMismatch):
                    await self._hang_up()  # the next try reads the CA file anew
                raise Unreachable(f"{what}: {sentence(error)}") from error

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._settings.trust(), limit=CONNECTIONS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a small body must not become a large one
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "OData-Version": "4.0",
                },
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._http

    async def _hang_up(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()


def path_of(told: object) -> str:
    """The path of an address that a BMC named; empty: that is none."""
    try:
        return urlsplit(told).path if isinstance(told, str) else ""
    except ValueError:  # a host in brackets that is no IPv6 address
        return ""


def uri_fault(uri: str) -> str:
    """What is wrong with a path that a BMC named; empty: nothing. The session goes nowhere else."""
    if not uri.startswith("/redfish/v1") or len(uri) > URI_MAX_CHARS:
        return "no path below /redfish/v1"
    if not all("!" <= sign <= "~" for sign in uri) or "/../" in f"{uri}/":
        return "not a path that we follow"
    return ""


async def _bounded(answer: aiohttp.ClientResponse, what: str) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            raise RedfishFault(f"{what}: an answer of more than {BODY_MAX_BYTES} bytes")
    return bytes(body)


def _decoded(raw: bytes) -> dict[str, Any]:
    """A JSON object; anything else reads as an empty one, and what it should have said is missing then."""
    try:
        said = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}
    return said if isinstance(said, dict) else {}


def _is_running(answer: Answer) -> bool:
    state = answer.body.get("TaskState")
    return answer.status == 202 or (answer.status == 200 and isinstance(state, str) and state in TASK_RUNNING)


def _pause_s(retry_after: str) -> float:
    least_s, usual_s, most_s = TASK_PAUSE_S
    return min(max(float(retry_after), least_s), most_s) if retry_after.isdecimal() else usual_s
