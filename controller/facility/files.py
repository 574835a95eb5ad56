"""Files that `facility` names: whether this user can read them, and whether they can be used together.

`powerblock serve` asks before it starts, `powerblock check` beforehand: both say the same, each sentence with
the place in the configuration that names the file. What systemd hands over when a service starts
(`/run/credentials`) is not judged while it is not there.
"""

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from controller.agent.config import MqttConfig
from controller.facility.config import (
    BmsConfig,
    FacilityConfig,
    MirrorConfig,
    ModbusServerConfig,
    OpcUaServerConfig,
)
from controller.yaml_config import ConfigError, FileName
from protocols.bms import BmsError
from protocols.mqtt import MqttConfigError, MqttLink

CREDENTIALS: Final = Path("/run/credentials")
MADE: Final = frozenset({"folder"})  # by the server, where it is not there yet
READ: Final = "check the path and its permissions"
TOGETHER: Final = "give PEM files that belong together, the key without a password"


def unusable(facility: FacilityConfig, block: str) -> Iterator[str]:
    """What `powerblock serve` cannot start with."""
    for name, server in facility:
        if server is None:
            continue
        where = f"facility.{name}"
        missing = list(unreadable(where, server))
        yield from missing
        if missing or any(_is_to_come(path) for _, path in named(where, server)):
            continue  # what belongs together can be tried only where all of it is
        for try_it in TRIALS.get(type(server), ()):
            yield from try_it(where, server, block)


def unreadable(where: str, settings: BaseModel) -> Iterator[str]:
    """Files that this user cannot read."""
    for place, path in named(where, settings):
        if _is_to_come(path):
            continue
        try:
            if not path.is_dir():
                path.open("rb").close()
        except OSError as error:
            yield f"{place}: {path}: {error.strerror}; {READ}"


def named(where: str, settings: BaseModel) -> Iterator[tuple[str, Path]]:
    """Every file, with its place."""
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield from named(f"{where}.{name}", value)
        elif isinstance(value, Path | FileName) and name not in MADE:
            yield f"{where}.{name}", Path(value)


def _is_to_come(path: Path) -> bool:
    """Other services' are closed to us."""
    return path.is_relative_to(CREDENTIALS) and not os.access(path, os.R_OK)


# --- what only shows when they are used ---------------------------------------------------------------------


def _mqtt(where: str, server: BmsConfig | MirrorConfig, block: str) -> Iterator[str]:
    mqtt = server.mqtt
    wrong = list(_pem(f"{where}.mqtt", mqtt.ca, mqtt.cert, mqtt.key))
    yield from wrong
    if not wrong:
        yield from _said(f"{where}.mqtt", partial(link, mqtt, f"check-{block}"))


def link(mqtt: MqttConfig, client_id: str) -> MqttLink:
    """One that is never connected. Raises MqttConfigError, ConfigError."""
    return MqttLink(
        mqtt.url,
        client_id=client_id,
        on_message=lambda *_: None,
        username=mqtt.username,
        password=mqtt.password(),
        tls=mqtt.tls(),
    )


def _tags(where: str, server: BmsConfig, block: str) -> Iterator[str]:
    from controller.facility.dsx_bms.system import System

    yield from _said(where, partial(System, server, server.site or block))


def _users(where: str, server: OpcUaServerConfig, _block: str) -> Iterator[str]:
    from controller.facility.opcua.users import Users

    yield from _said(f"{where}.users", partial(Users, server.users))


def _tls(where: str, server: ModbusServerConfig, _block: str) -> Iterator[str]:
    if server.tls is not None:
        yield from _pem(f"{where}.tls", server.tls.ca, server.tls.cert, server.tls.key)


def _pem(where: str, ca: str | Path | None, cert: str | Path | None, key: str | Path | None) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        yield from _said(f"{where}.ca: {ca}", partial(context.load_verify_locations, ca))
    if cert is not None:
        pair = f"{where}.cert, key: {cert}, {key or 'no key'}"
        yield from _said(pair, partial(context.load_cert_chain, cert, key, password=""))


def _said(where: str, try_it: Callable[[], Any]) -> Iterator[str]:
    try:
        try_it()
    except OSError as error:  # of files that can be read: ssl.SSLError
        why = getattr(error, "reason", None) or error.strerror or "is no such file"
        yield f"{where}: {str(why).lower().replace('_', ' ')}; {TOGETHER}"
    except (ConfigError, MqttConfigError, BmsError) as error:
        yield from (f"{where}: {line}" for line in str(error).splitlines())


Trial = Callable[[str, Any, str], Iterator[str]]

TRIALS: Final[Mapping[type[BaseModel], tuple[Trial, ...]]] = {
    OpcUaServerConfig: (_users,),
    ModbusServerConfig: (_tls,),
    BmsConfig: (_mqtt, _tags),
    MirrorConfig: (_mqtt,),
}
