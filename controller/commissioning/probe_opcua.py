"""Who is there? What an OPC UA server says before and after a session is opened, without writing anything.

Before: its endpoints, with security policies, modes, users and certificate. After, if it lets somebody in
unsecured or the block says how: product, state, namespaces, and how many nodes of each profile it has.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from asyncua import Client, ua
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.commissioning.shown import printable
from controller.commissioning.target import Target, in_block, quoted
from controller.gateway_config import opcua_security
from protocols.modbus.questions import LostError
from protocols.opcua.fence import PeerError, ask
from protocols.opcua.security import secured_client
from protocols.opcua.session import Session, look_around
from protocols.opcua.values import judge, raw_of, utc_s
from protocols.profile import Profile, builtin_profiles, load_profile

CONNECT_WAIT_MAX_S: Final = 8.0
ANSWER_WAIT_MAX_S: Final = 3.0
LEAVE_WAIT_MAX_S: Final = 0.5
ENDPOINTS_MAX: Final = 64
NAMESPACES_SHOWN: Final = 40
CLOCK_ERROR_SHOWN_S: Final = 2.0

# numbers of OPC 10000-6, annex A
ABOUT: Final[Mapping[str, ua.NodeId]] = {
    "manufacturer": ua.NodeId(2263),
    "product": ua.NodeId(2261),
    "product URI": ua.NodeId(2262),
    "version": ua.NodeId(2264),
    "build": ua.NodeId(2265),
    "state": ua.NodeId(2259),
    "clock": ua.NodeId(2258),
}
STATES: Final = {0: "running", 1: "failed", 2: "no configuration", 3: "suspended", 4: "shutdown", 5: "test"}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    policy: str
    mode: str
    users: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How many points of a profile the server has: good ones of all that can be read.

    `written`: the profile as block.yaml names it.
    """

    profile: str
    written: str
    title: str
    good: int
    of: int
    why: str = ""


@dataclass
class Found:
    where: str
    url: str
    application: str = ""
    endpoints: list[Endpoint] = field(default_factory=list)
    certificate: str = ""
    session_fault: str = ""
    about: dict[str, str] = field(default_factory=dict)
    namespaces: list[str] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)

    @property
    def well(self) -> bool:
        return bool(self.chosen)

    @property
    def chosen(self) -> list[str]:
        return [one.written for one in self.fits if one.good and one.good == one.of]


async def probe(
    target: Target, found: Found, only: str | None = None, on_step: Callable[[str], None] = lambda _: None
) -> None:
    """Fill `found`. Raises LostError where there is no server to ask."""
    url = target.config.url
    on_step("endpoints")
    asker = Client(url, timeout=CONNECT_WAIT_MAX_S)
    try:
        endpoints = await ask(asker.connect_and_get_server_endpoints(), CONNECT_WAIT_MAX_S)
    except PeerError as error:
        raise LostError(f"{url}: {error}; check address, port and path") from error
    finally:
        asker.disconnect_socket()
    _note(found, list(endpoints or ())[:ENDPOINTS_MAX])
    on_step("session")
    names = builtin_profiles() if only is None else (only,)
    profiles = {in_block(name): load_profile(name) for name in names}
    try:
        await _look_inside(target, found, {n: one for n, one in profiles.items() if one.protocol == "opcua"})
    except PeerError as error:
        found.session_fault = str(error)


def _note(found: Found, endpoints: list[Any]) -> None:
    for one in endpoints:
        users = tuple(sorted({token.TokenType.name for token in one.UserIdentityTokens or ()}))
        policy = printable(str(one.SecurityPolicyUri).rpartition("#")[2])
        found.endpoints.append(Endpoint(policy=policy, mode=one.SecurityMode.name, users=users))
    if endpoints:
        server = endpoints[0].Server
        found.application = printable(f"{server.ApplicationName.Text or '?'} ({server.ApplicationUri})")
    shown = next((bytes(one.ServerCertificate) for one in endpoints if one.ServerCertificate), b"")
    found.certificate = _certificate(shown) if shown else ""


def _certificate(shown: bytes) -> str:
    try:
        certificate = x509.load_der_x509_certificate(shown)
    except ValueError as error:
        return f"cannot be read: {error}"
    print_ = certificate.fingerprint(hashes.SHA256()).hex(":", 2)
    until = certificate.not_valid_after_utc
    expired = ", EXPIRED" if until < datetime.now(UTC) else ""
    name = printable(certificate.subject.rfc4514_string())
    return f"{name}, until {until:%Y-%m-%d}{expired}, SHA-256 {print_}"


async def _look_inside(target: Target, found: Found, profiles: Mapping[str, Profile]) -> None:
    """Raises PeerError where the server does not let us in."""
    client, certificate = await secured_client(
        target.config.url, opcua_security(target.config), CONNECT_WAIT_MAX_S
    )
    try:
        await ask(client.connect(), CONNECT_WAIT_MAX_S)
        session = await look_around(client, certificate, {}, ANSWER_WAIT_MAX_S)
        answers = await session.read(list(ABOUT.values()))
        for name, answer in zip(ABOUT, answers, strict=True):
            if text := _about(name, answer):
                found.about[name] = text
        found.namespaces = [printable(uri) for uri in session.uris]
        for written, profile in profiles.items():
            found.fits.append(await _fit(session, profile, written))
    finally:
        with suppress(PeerError):  # the line is cut, and the session at the server runs out
            await ask(client.disconnect(), LEAVE_WAIT_MAX_S)
        client.disconnect_socket()


def _about(name: str, answer: ua.DataValue) -> str:
    raw = raw_of(answer)
    if name == "state":
        return STATES.get(raw, str(raw)) if raw is not None else ""
    if name == "clock":
        theirs_s = utc_s(raw)
        if theirs_s is None:
            return ""
        off_s = theirs_s - time.time()
        return "right" if abs(off_s) < CLOCK_ERROR_SHOWN_S else f"{off_s:+.0f} s off: set it"
    return "" if raw is None else printable(str(raw))


async def _fit(session: Session, profile: Profile, written: str) -> Fit:
    points = [point for point in profile.points.values() if point.readable]
    there = [point for point in points if not point.namespace_uri or point.namespace_uri in session.uris]
    why = "" if len(there) == len(points) else "the server lacks its namespace"
    good = 0
    nodes = {point.name: session.node_id(point.node) for point in there}
    async for piece in session.read_all(nodes):
        for name, answer in piece:
            fault = judge(profile.points[name], answer)[1]
            good += not fault
            why = why or (f"{name}: {fault}" if fault else "")
    return Fit(profile=profile.name, written=written, title=profile.title, good=good, of=len(points), why=why)


# --- on paper -----------------------------------------------------------------------------------------------


def block_lines(found: Found, target: Target) -> str:
    chosen = found.chosen
    profile = chosen[0] if chosen else "path/to/your-profile.yaml"
    lines = ["devices:", "  - name: opcua-1  # its name for good", f"    profile: {quoted(profile)}"]
    lines.append(f'    url: "{found.url}"')
    best = next((one for one in found.endpoints if one.mode == "SignAndEncrypt"), None)
    if best is None or (found.about and target.config.security == "none"):
        remark = "" if best is None else "  # it offers more: see docs/commissioning.md"
        lines.append(f"    security: none{remark}")
    else:
        lines += [
            "    security:",
            f"      policy: {best.policy}",
            "      certificate: /etc/powerblock/opcua.pem  # ours",
            "      key: /etc/powerblock/opcua.key",
            "      server_certificate: /etc/powerblock/server.pem  # or trust: a folder",
        ]
    return "\n".join(lines)


def as_json(found: Found, target: Target) -> dict[str, Any]:
    return {
        "url": found.url,
        "application": found.application,
        "endpoints": [
            {"policy": one.policy, "mode": one.mode, "users": list(one.users)} for one in found.endpoints
        ],
        "certificate": found.certificate,
        "session_fault": found.session_fault,
        "about": found.about,
        "namespaces": found.namespaces,
        "profiles": [
            {"profile": one.profile, "good": one.good, "of": one.of, "why": one.why} for one in found.fits
        ],
        "chosen": found.chosen,
        "block_yaml": block_lines(found, target),
    }


def render(found: Found, target: Target) -> RenderableType:
    head = Table.grid(padding=(0, 2))
    head.add_row(Text("server"), Text(found.where, style="bold"))
    head.add_row(Text("application"), Text(found.application))
    for one in found.endpoints:
        head.add_row(Text("endpoint"), Text(f"{one.policy} / {one.mode}; users: {', '.join(one.users)}"))
    head.add_row(Text("certificate"), Text(found.certificate or "none"))
    if found.session_fault:
        known = "" if target.run_dir is not None else "; say in a block.yaml how to get in"
        head.add_row(Text("session"), Text(f"{found.session_fault}{known}", style="yellow"))
    for name, text in found.about.items():
        head.add_row(Text(name), Text(text))
    for index, uri in enumerate(found.namespaces[:NAMESPACES_SHOWN]):
        head.add_row(Text("namespace"), Text(f"{index}  {uri}"))
    table = Table.grid(padding=(0, 2))
    for fit in found.fits:
        style = "bold green" if fit.written in found.chosen else "dim"
        table.add_row(
            Text(fit.profile, style=style), Text(f"{fit.good} of {fit.of} points are good"), Text(fit.why)
        )
    return Group(
        head, table, Text(""), Text(block_lines(found, target), style="cyan", no_wrap=True, overflow="ignore")
    )
