"""`powerblock check`: files that a configuration names, each judged for itself: no fault hides another one.

A trial is what a program makes of some files when it starts. What belongs together can be tried only where
all of it is there; what systemd puts in place when a service starts is not judged before.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from controller.agent.config import MqttConfig
from controller.facility.files import CREDENTIALS, READ, link
from controller.yaml_config import ConfigError
from protocols.mqtt import MqttConfigError

BROKER_FILES: Final = ("password_file", "ca", "cert", "key")

Trial = tuple[str, Callable[[], object]]  # the place under which its files are named; raises ConfigError


def unfit(files: Iterable[tuple[str, Path]], trials: Iterable[Trial], program: str) -> Iterator[str]:
    """What is wrong with them for this user on this machine. `program`: would not start so."""
    absent: set[str] = set()
    for place, path in files:
        if _is_to_come(path):
            absent.add(place)
            continue
        try:
            path.open("rb").close()
        except OSError as error:
            absent.add(place)
            yield f"{place}: {path}: {error.strerror}; {READ}: {program} will not start without it"
    for place, try_it in trials:
        if any(f"{one}.".startswith(f"{place}.") for one in absent):
            continue
        try:
            try_it()
        except ConfigError as error:
            yield str(error)


def of_broker(place: str, mqtt: MqttConfig | None) -> Iterator[tuple[str, Path]]:
    """The files of a connection, with their places."""
    for name in BROKER_FILES:
        path = getattr(mqtt, name, None)
        if path is not None:
            yield f"{place}.{name}", Path(path)


def linked(place: str, mqtt: MqttConfig) -> None:
    """A connection that is never made. Raises ConfigError."""
    try:
        link(mqtt, "check")
    except MqttConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    except ConfigError as error:  # knows its own name alone
        raise ConfigError(f"{place.removesuffix('mqtt')}{error}") from None


def _is_to_come(path: Path) -> bool:
    """Put there by systemd when its service starts; what this very process was given is there, or is not."""
    own = os.environ.get("CREDENTIALS_DIRECTORY")
    return path.is_relative_to(CREDENTIALS) and (own is None or not path.is_relative_to(own))
