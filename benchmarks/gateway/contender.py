"""What a contender is: commands to start, and how to read what it publishes."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Values = Iterator[tuple[int, Mapping[int, float]]]  # device, and value by register


class Missing(Exception):  # noqa: N818  no error: the run goes on without it
    """A contender cannot be had here; the text says why."""


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    measured: bool = True


@dataclass(frozen=True)
class Contender:
    """Reads every device of the farm, all of its registers, each poll period; publishes to the broker."""

    versions: Mapping[str, str]
    commands: tuple[Command, ...]
    decode: Callable[[str, bytes], Values]  # of a topic and a payload; yields nothing for other messages


def plain(topic: str, payload: bytes) -> Values:
    """Of `bench/DEVICE`: {"device": 7, "values": {"r0": 0.1, ...}, ...}."""
    if topic.startswith("bench/"):
        content = json.loads(payload)
        yield content["device"], {int(name[1:]): value for name, value in content["values"].items()}
