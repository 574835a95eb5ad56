"""A small OpenADR 3.1 VTN: real HTTP(S), real MQTT notifications, and on command as bad as VTNs get.

It keeps programmes, events, VENs, resources and reports in memory. Business logic is whoever holds the
object: `create_event`, `update_event`, `delete_event` and their like change the store and notify at once,
as a VTN does after a POST of its operator. VENs come over HTTP with a token of the client-credentials flow
and see what the standard lets them see: objects without targets, and those with a target that they ask for
and have been granted (Definition 3.1, "Object Privacy").

Faults are states, not scripts: `faults["events"] = "hang"` holds until it is taken away, `notify` says what
becomes of the next notifications. Topics carry a prefix of the caller's choice, because a VEN that guesses
topics is wrong. Source: OpenADR 3.1.0 openapi and Definition; for snake_case the reference VTN.
"""

import asyncio
import itertools
import json
import re
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import aiomqtt
from aiohttp import web

from firmware_sim.lifetime import end_tasks

LOOPBACK: Final = "127.0.0.1"
BASE_PATH: Final = "/openadr3/3.1.0"
ALL_PATHS: Final = "*"
PAGE_MAX: Final = 50  # the standard's own bound of `limit`
HUGE_BODY_BYTES: Final = 64 * 1024 * 1024
CHUNK_BYTES: Final = 256 * 1024
STOP_WAIT_MAX_S: Final = 0.2  # for requests that hang on purpose
PUBLISH_WAIT_MAX_S: Final = 2.0
RECONNECT_WAIT_S: Final = 0.05
OUTBOX_MAX: Final = 1000  # notifications that wait for a broker; a VTN forgets, it does not grow
NODELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)  # else bursts stall for 40 ms

Json = dict[str, Any]
Kind = Literal["PROGRAM", "EVENT", "VEN", "RESOURCE", "REPORT"]
Fault = Literal[
    "absent",
    "cut",
    "empty",
    "endless",
    "error",
    "forbid",
    "garbage",
    "hang",
    "html",
    "huge",
    "mixed",
    "redirect",
    "stuck",
]
Notify = Literal["camel", "snake", "drop", "duplicate", "reorder"]
PATHS: Final[Mapping[Kind, str]] = {
    "PROGRAM": "programs",
    "EVENT": "events",
    "VEN": "vens",
    "RESOURCE": "resources",
    "REPORT": "reports",
}
# Attributes by which GET of a listing may be narrowed, and the kind of object.
FILTERS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "PROGRAM": (),
    "EVENT": ("programID",),
    "VEN": ("venName",),
    "RESOURCE": ("resourceName", "venID"),
    "REPORT": ("programID", "eventID", "clientName"),
}


@dataclass(frozen=True)
class Broker:
    """The broker that the VTN publishes to, and what it tells VENs about it.

    Attributes:
        url: `mqtt://host:port` or `mqtts://host:port`, for the VTN itself.
        tls: for `mqtts://`, with the VTN's own certificate where the broker asks for one.
        username: of the VTN, where the broker asks for one.
        password: of the VTN.
        told_uris: for GET /notifiers; empty: `url`.
        authentication: for GET /notifiers, as the standard has it.
    """

    url: str
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    told_uris: tuple[str, ...] = ()
    authentication: Mapping[str, str] = field(default_factory=lambda: {"method": "ANONYMOUS"})


class Vtn:
    """A VTN on loopback: `async with Vtn(...) as vtn:`.

    Args:
        clients: client id -> client secret.
        tls: server side, for HTTPS; None: plain HTTP.
        broker: None: GET /notifiers names no MQTT.
        topic_prefix: before every topic.
        ven_topics: False: there are no topics per VEN, only per programme.
        token_life_s: of every token.
        port: 0: any free one.

    Attributes:
        faults: by path below the base path (`events`, `auth/token`); with a slash at the end: all below;
            ALL_PATHS: everything.
        notify: what becomes of notifications from now on.
        reports: as they came, the oldest first.
        requests: method and path of every request, the oldest first.
        issue_token: makes the text of the next token.
    """

    def __init__(
        self,
        *,
        clients: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
        broker: Broker | None = None,
        topic_prefix: str = "",
        ven_topics: bool = True,
        token_life_s: float = 3600.0,
        port: int = 0,
    ) -> None:
        self.faults: dict[str, Fault] = {}
        self.notify: Notify = "camel"
        self.reports: list[Json] = []
        self.requests: list[str] = []
        self.issue_token: Callable[[], str] = lambda: secrets.token_urlsafe(24)
        self.broker = broker
        self.ven_topics = ven_topics
        self.token_life_s = token_life_s
        self.tokens_issued = 0

        self._clients = dict(clients)
        self._tls = tls
        self._prefix = topic_prefix
        self._port = port
        self._store: dict[Kind, dict[str, Json]] = {kind: {} for kind in PATHS}
        self._ids = itertools.count(1)
        self._tokens: dict[str, tuple[str, float]] = {}  # token -> client id, time.monotonic() of its end
        self._held_back: list[tuple[str, bytes]] = []
        self._outbox: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(OUTBOX_MAX)
        self._runner: web.AppRunner | None = None
        self._publisher: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base path, as a VEN is told it."""
        return f"{'https' if self._tls else 'http'}://{LOOPBACK}:{self._port}{BASE_PATH}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens. A VTN that was stopped comes back on its port, with its store and without its tokens."""
        app = web.Application(middlewares=[self._gate])
        app.add_routes(self._routes())
        self._runner = web.AppRunner(app, shutdown_timeout=STOP_WAIT_MAX_S, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port, ssl_context=self._tls).start()
        self._port = self._runner.addresses[0][1]
        self._publisher = asyncio.create_task(self._publish_all(), name="vtn notifications")

    async def stop(self) -> None:
        self._tokens.clear()
        if self._publisher is not None:
            await end_tasks([self._publisher])
            self._publisher = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # -- business logic -------------------------------------------------------------------------------------

    def create_program(self, program: Json) -> Json:
        return self._put("PROGRAM", program, "CREATE")

    def update_program(self, program_id: str, change: Json) -> Json:
        return self._put("PROGRAM", {**self._store["PROGRAM"][program_id], **change}, "UPDATE")

    def create_event(self, event: Json) -> Json:
        return self._put("EVENT", event, "CREATE")

    def update_event(self, event_id: str, change: Json) -> Json:
        return self._put("EVENT", {**self._store["EVENT"][event_id], **change}, "UPDATE")

    def delete_event(self, event_id: str) -> Json:
        event = self._store["EVENT"].pop(event_id)
        self._notify("EVENT", event, "DELETE")
        return event

    def grant(self, ven_name: str, targets: list[str]) -> Json:
        """Gives a VEN targets: what business logic alone may do. The VEN must have enrolled."""
        ven = next(ven for ven in self._store["VEN"].values() if ven["venName"] == ven_name)
        return self._put("VEN", {**ven, "targets": targets}, "UPDATE")

    def expire_tokens(self) -> None:
        self._tokens.clear()

    def objects(self, kind: Kind) -> list[Json]:
        return list(self._store[kind].values())

    def _put(self, kind: Kind, said: Json, operation: str) -> Json:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        made = {
            **said,
            "id": said.get("id") or f"{kind.lower()}-{next(self._ids)}",
            "objectType": kind,
            "createdDateTime": said.get("createdDateTime", now),
            "modificationDateTime": now,
        }
        self._store[kind][made["id"]] = made
        self._notify(kind, made, operation)
        return made

    # -- notifications --------------------------------------------------------------------------------------

    def _notify(self, kind: Kind, made: Json, operation: str) -> None:
        """Onto the topics of all VENs that may see the object, and of its programme."""
        if self.broker is None or kind not in ("EVENT", "PROGRAM") or self.notify == "drop":
            return
        message = {"objectType": kind, "operation": operation, "object": made}
        payload = json.dumps(_snake(message) if self.notify == "snake" else message).encode()
        for scope in self._scopes(kind, made):
            self._send(f"{self._prefix}{scope}/{operation.lower()}", payload)

    def _scopes(self, kind: Kind, made: Json) -> list[str]:
        path = PATHS[kind]
        if self.ven_topics:
            seers = [ven for ven in self.objects("VEN") if _may_see(made, self._granted(ven["clientID"]))]
            return [f"{path}/vens/{ven['id']}" for ven in seers]
        return ["programs"] if kind == "PROGRAM" else [f"events/programs/{made.get('programID')}"]

    def _send(self, topic: str, payload: bytes) -> None:
        if self.notify == "reorder":  # each pair the wrong way round
            self._held_back.append((topic, payload))
            if len(self._held_back) < 2:
                return
            batch = self._held_back[::-1]
            self._held_back.clear()
        else:
            batch = [(topic, payload)] * (2 if self.notify == "duplicate" else 1)
        for message in batch:
            if not self._outbox.full():
                self._outbox.put_nowait(message)

    async def _publish_all(self) -> None:
        """Publishes what comes; a message that finds no broker is lost, as with QoS 0."""
        while self.broker is not None:
            try:
                async with self._client(self.broker) as client:
                    while True:
                        topic, payload = await self._outbox.get()
                        await client.publish(topic, payload, qos=1, timeout=PUBLISH_WAIT_MAX_S)
            except aiomqtt.MqttError:
                await asyncio.sleep(RECONNECT_WAIT_S)

    @asynccontextmanager
    async def _client(self, broker: Broker) -> AsyncIterator[aiomqtt.Client]:
        parts = urlsplit(broker.url)
        assert parts.hostname is not None
        assert parts.port is not None
        async with aiomqtt.Client(
            parts.hostname,
            parts.port,
            username=broker.username,
            password=broker.password,
            tls_context=broker.tls,
            timeout=PUBLISH_WAIT_MAX_S,
            socket_options=NODELAY,
        ) as client:
            yield client

    # -- HTTP -----------------------------------------------------------------------------------------------

    def _routes(self) -> list[web.RouteDef]:
        listings = [web.get(f"{BASE_PATH}/{PATHS[kind]}", self._lister(kind)) for kind in PATHS]
        return [
            *listings,
            web.get(f"{BASE_PATH}/auth/server", self._auth_server),
            web.post(f"{BASE_PATH}/auth/token", self._token),
            web.get(f"{BASE_PATH}/events/{{id}}", self._event),
            web.post(f"{BASE_PATH}/vens", self._enrol_ven),
            web.post(f"{BASE_PATH}/resources", self._enrol_resource),
            web.post(f"{BASE_PATH}/reports", self._take_report),
            web.get(f"{BASE_PATH}/notifiers", self._notifiers),
            web.get(f"{BASE_PATH}/notifiers/mqtt/topics/{{scope:.+}}", self._topics),
        ]

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Faults first, then the token, then what was asked for."""
        path = request.path.removeprefix(BASE_PATH + "/")
        self.requests.append(f"{request.method} /{path}")
        below = (kind for key, kind in self.faults.items() if key.endswith("/") and path.startswith(key))
        fault = self.faults.get(path) or next(below, None) or self.faults.get(ALL_PATHS)
        if fault is not None:
            return await FAULTS[fault](request)
        if not path.startswith("auth/") and not self._client_of(request):
            return _problem(401, "Unauthorized", "token unknown or expired")
        return await handler(request)

    def _client_of(self, request: web.Request) -> str:
        """Empty: the token is none of ours, or no longer."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        client_id, ends_at_s = self._tokens.get(token, ("", -1.0))
        return client_id if scheme == "Bearer" and time.monotonic() < ends_at_s else ""

    async def _auth_server(self, _request: web.Request) -> web.Response:
        return web.json_response({"tokenURL": f"{self.url}/auth/token"})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        client_id = str(form.get("client_id"))
        secret = self._clients.get(client_id)
        if secret is None or form.get("client_secret") != secret:
            return web.json_response({"error": "invalid_client"}, status=401)
        if form.get("grant_type") != "client_credentials":
            return web.json_response({"error": "unsupported_grant_type"}, status=400)
        token = self.issue_token()
        self.tokens_issued += 1
        self._tokens[token] = (client_id, time.monotonic() + self.token_life_s)
        said = {"access_token": token, "token_type": "Bearer", "expires_in": self.token_life_s}
        return web.json_response(said)

    def _lister(self, kind: Kind) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def listing(request: web.Request) -> web.Response:
            query = request.query
            wanted = {key: query[key] for key in FILTERS[kind] if key in query}
            asked = set(query.getall("targets", []))
            seen = [
                made
                for made in self.objects(kind)
                if all(made.get(key) == value for key, value in wanted.items())
                and self._is_visible(kind, made, self._client_of(request), asked)
            ]
            skip, limit = int(query.get("skip", 0)), min(int(query.get("limit", PAGE_MAX)), PAGE_MAX)
            return web.json_response(seen[skip : skip + limit])

        return listing

    def _is_visible(self, kind: Kind, made: Json, client_id: str, asked: set[str]) -> bool:
        if kind in ("PROGRAM", "EVENT"):
            return _may_see(made, asked & self._granted(client_id))
        return bool(made.get("clientID") == client_id)

    def _granted(self, client_id: str) -> set[str]:
        owned = [*self.objects("VEN"), *self.objects("RESOURCE")]
        return {name for one in owned if one["clientID"] == client_id for name in one.get("targets", ())}

    async def _event(self, request: web.Request) -> web.Response:
        event = self._store["EVENT"].get(request.match_info["id"])
        if event is None or not _may_see(event, self._granted(self._client_of(request))):
            return _problem(404, "Not Found", "no such event")
        return web.json_response(event)

    async def _enrol_ven(self, request: web.Request) -> web.Response:
        return await self._enrol(request, "VEN", "VEN_VEN_REQUEST", "venName")

    async def _enrol_resource(self, request: web.Request) -> web.Response:
        return await self._enrol(request, "RESOURCE", "VEN_RESOURCE_REQUEST", "resourceName")

    async def _enrol(self, request: web.Request, kind: Kind, object_type: str, name: str) -> web.Response:
        said = await request.json()
        if said.get("objectType") != object_type or not said.get(name):
            return _problem(400, "Bad Request", f"objectType {object_type} and {name} are required")
        if "targets" in said:
            return _problem(403, "Forbidden", "only business logic may write targets")
        if any(
            one[name] == said[name] and one.get("venID") == said.get("venID") for one in self.objects(kind)
        ):
            return _problem(409, "Conflict", f"{name} {said[name]} exists")
        made = self._put(kind, {**said, "clientID": self._client_of(request)}, "CREATE")
        return web.json_response(made, status=201)

    async def _take_report(self, request: web.Request) -> web.Response:
        said = await request.json()
        missing = [key for key in ("eventID", "clientName", "resources") if key not in said]
        if missing:
            return _problem(400, "Bad Request", f"{', '.join(missing)} missing")
        self.reports.append(said)
        made = self._put("REPORT", {**said, "clientID": self._client_of(request)}, "CREATE")
        return web.json_response(made, status=201)

    async def _notifiers(self, _request: web.Request) -> web.Response:
        said: Json = {"WEBHOOK": True}
        if self.broker is not None:
            said["MQTT"] = {
                "URIS": list(self.broker.told_uris or (self.broker.url,)),
                "serialization": "JSON",
                "authentication": dict(self.broker.authentication),
            }
        return web.json_response(said)

    async def _topics(self, request: web.Request) -> web.Response:
        """Topic names of a scope: `vens/{id}/events`, `programs/{id}/events`, `programs`."""
        scope = request.match_info["scope"]
        if found := re.fullmatch(r"vens/([\w-]+)/(events|programs)", scope):
            ven = self._store["VEN"].get(found[1])
            if not self.ven_topics or ven is None or ven["clientID"] != self._client_of(request):
                return _problem(404, "Not Found", "no such topics")
            stem = f"{found[2]}/vens/{found[1]}"
        elif found := re.fullmatch(r"programs/([\w-]+)/events", scope):
            stem = f"events/programs/{found[1]}"
        elif scope == "programs":
            stem = "programs"
        else:
            return _problem(403, "Forbidden", "topics of business logic")
        verbs = {verb: f"{self._prefix}{stem}/{verb.lower()}" for verb in ("CREATE", "UPDATE", "DELETE")}
        return web.json_response({"topics": {**verbs, "ALL": f"{self._prefix}{stem}/+"}})


# -- misbehaviour -------------------------------------------------------------------------------------------


async def _error(_request: web.Request) -> web.StreamResponse:
    return _problem(500, "Internal Server Error", "the database is on fire")


async def _hang(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def _garbage(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=b'{"id": "half', content_type="application/json")


async def _html(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html><body>Please log in</body></html>", content_type="text/html")


async def _huge(request: web.Request) -> web.StreamResponse:
    """One string that does not end, in chunks: no Content-Length warns of it."""
    answer = web.StreamResponse(headers={"Content-Type": "application/json"})
    await answer.prepare(request)
    await answer.write(b'["')
    for _ in range(HUGE_BODY_BYTES // CHUNK_BYTES):
        await answer.write(b"x" * CHUNK_BYTES)
    await answer.write_eof(b'"]')
    return answer


async def _endless(request: web.Request) -> web.StreamResponse:
    """Pages without an end, each full of objects never seen before."""
    skip, limit = int(request.query.get("skip", 0)), int(request.query.get("limit", PAGE_MAX))
    made = [{"id": f"endless-{number}", "programID": "p"} for number in range(skip, skip + limit)]
    return web.json_response(made)


async def _stuck(request: web.Request) -> web.StreamResponse:
    """The first page, whichever was asked for."""
    limit = int(request.query.get("limit", PAGE_MAX))
    return web.json_response([{"id": f"stuck-{number}", "programID": "p"} for number in range(limit)])


async def _redirect(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "http://127.0.0.1:9/elsewhere"})


async def _cut(request: web.Request) -> web.StreamResponse:
    """Promises more than it sends."""
    answer = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await answer.prepare(request)
    await answer.write(b'[{"id": "')
    assert request.transport is not None
    request.transport.abort()
    return answer


async def _mixed(_request: web.Request) -> web.StreamResponse:
    """A list of things that are no objects, and one that is."""
    return web.json_response([None, 7, "event", {"programID": "p"}, {"id": "good", "programID": "p"}])


async def _empty(_request: web.Request) -> web.StreamResponse:
    """Success, with nothing in it: a database that lost its tables."""
    return web.json_response([])


async def _absent(_request: web.Request) -> web.StreamResponse:
    return _problem(404, "Not Found", "no such endpoint")


async def _forbid(_request: web.Request) -> web.StreamResponse:
    return _problem(403, "Forbidden", "scope missing")


FAULTS: Final[Mapping[Fault, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = {
    "absent": _absent,
    "cut": _cut,
    "empty": _empty,
    "endless": _endless,
    "error": _error,
    "forbid": _forbid,
    "garbage": _garbage,
    "hang": _hang,
    "html": _html,
    "huge": _huge,
    "mixed": _mixed,
    "redirect": _redirect,
    "stuck": _stuck,
}


def _problem(status: int, title: str, detail: str) -> web.Response:
    return web.json_response({"title": title, "status": status, "detail": detail}, status=status)


def _may_see(made: Json, targets: set[str]) -> bool:
    return not made.get("targets") or not targets.isdisjoint(made["targets"])


def _snake(value: Any) -> Any:
    """Keys in snake_case, all the way down, as the reference VTN writes notifications."""
    if isinstance(value, dict):
        return {re.sub(r"(?<=[a-z])([A-Z]+)", r"_\1", key).lower(): _snake(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_snake(one) for one in value]
    return value
