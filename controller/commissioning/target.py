"""What was typed becomes a device: a URL, or a block's file and the name that the device has in it.

    powerblock read modbus+tcp://10.0.0.7 --profile xerus_pdu power_w
    powerblock read block.yaml pdu-a1 power_w

Either way it ends as the `DeviceConfig` that the gateway itself would run on, checked by the same rules, so
that what works here works there.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from controller.config import ConfigError, GatewayConfig, devices, load_config
from controller.gateway_config import (
    OPCUA_SCHEME,
    PROFILE_ENDING,
    SUNSPEC,
    Device,
    DeviceConfig,
    device_errors,
    profile_of,
)
from protocols.profile import Profile, ProfileError, builtin_profiles, load_profile

UNKNOWN: Final = ""  # profile of an OPC UA server that is only to be probed
SCHEME_MARK: Final = "://"
RATE_MAX_PER_S: Final = 50.0  # beyond that old serial gateways begin to drop
EVERY_LEAST_S: Final = 0.1  # the wire of a slow device is not ours alone
EVERY_MOST_S: Final = 3600.0
BLOCK_SUFFIXES: Final = (".yaml", ".yml")
EXAMPLES: Final = (
    "modbus+tcp://10.0.0.7, modbus+rtu:///dev/ttyUSB0?baud=19200&parity=E, opc.tcp://10.0.0.9:4840"
)


class ToolError(ValueError):
    """Asked for what cannot be done; the text names culprit and remedy."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device to look at.

    Attributes:
        name: in the block, or the URL.
        config: as the gateway would run it.
        run_dir: of the block that it belongs to; None: named by its URL, nobody else is known to hold it.
    """

    name: str
    config: DeviceConfig
    run_dir: Path | None = None

    @property
    def where(self) -> str:
        """Place of the device, as on the sheet."""
        if self.config.is_opcua:
            return self.config.url
        return f"{self.config.url} unit {self.config.unit}"

    def profile(self) -> Profile | None:
        """None: the device will say. Raises ToolError."""
        if self.config.profile == UNKNOWN:
            known = ", ".join(name for name in builtin_profiles() if load_profile(name).protocol == "opcua")
            raise ToolError(f"{self.name}: say what it is: --profile with {known}, or the path of yours")
        try:
            return profile_of(self.config)
        except ProfileError as error:
            raise ToolError(str(error)) from error

    def known_profile(self) -> Profile:
        """Raises ToolError where the device itself would have to be asked."""
        profile = self.profile()
        if profile is None:
            raise ToolError(f"{self.name}: profile {SUNSPEC} is told by the device; ask it by its URL")
        return profile


def parsed(
    words: Sequence[str],
    *,
    profile: str | None = None,
    unit: int | None = None,
    tls: Sequence[Path | None] = (None, None, None),
) -> tuple[Target, list[str]]:
    """The device that the first words name, and the words after it.

    Args:
        words: URL ..., or BLOCK.yaml DEVICE ...
        profile: of a device that is named by its URL; None: not known yet.
        unit: the same; None: 1.
        tls: files of the authority, our certificate and our key, for modbus+tls.

    Raises:
        ToolError: no such device, or options that the block decides.
    """
    if not words:
        raise ToolError(f"no device; give its URL ({EXAMPLES}), or BLOCK.yaml and its name")
    first, *rest = words
    if SCHEME_MARK in first:
        return _by_url(first, profile, 1 if unit is None else unit, tls), rest
    if not first.endswith(BLOCK_SUFFIXES):
        raise ToolError(f"{first!r} is no device; give its URL ({EXAMPLES}), or BLOCK.yaml and its name")
    if profile is not None or unit is not None or any(tls):
        raise ToolError(f"{first} says profile, unit and certificates itself; remove these options")
    return by_name(Path(first), rest[0] if rest else ""), rest[1:]


def by_name(path: Path, name: str) -> Target:
    """A device of a block. Raises ToolError."""
    config = loaded(path)
    found = {device.name: device for device in devices(config)}
    if name not in found:
        known = ", ".join(found) or "none"
        missing = f"no device {name!r}" if name else "name the device, too"
        raise ToolError(f"{path.name}: {missing}; it has {known}")
    return of_block(config, found[name])


def of_block(config: GatewayConfig, device: Device) -> Target:
    shown(device.config.url)
    return Target(name=device.name, config=device.config, run_dir=config.run_dir)


def shown(url: str) -> str:
    """A URL that may be shown: screens, sheets, recordings and histories keep it. Raises ToolError."""
    if "@" in url.partition("?")[0]:
        raise ToolError(
            "a user or a password in a URL would be on screens and sheets; name them in a block.yaml, as"
            " `user` and `password_file` under `security`"
        )
    try:
        (urlsplit(url).hostname or "").encode("idna")
    except UnicodeError:
        raise ToolError(f"{url!r}: that is no host; check its dots") from None
    except ValueError as error:
        raise ToolError(f"{url!r}: {error}") from None
    return url


def loaded(path: Path) -> GatewayConfig:
    """Raises ToolError with all that is wrong with the file."""
    try:
        return load_config(path)
    except ConfigError as error:
        raise ToolError(str(error)) from error


def in_block(profile: str) -> str:
    """A profile as `--profile` names it, as block.yaml has to: its folder is another one."""
    return str(Path(profile).absolute()) if profile.endswith(PROFILE_ENDING) else profile


def quoted(text: str) -> str:
    """As YAML takes it for a text, whatever a folder is called."""
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text)


def gap_s(rate_per_s: float) -> float:
    """Rest between two questions, of `--rate`. Raises ToolError."""
    if not 0.0 < rate_per_s <= RATE_MAX_PER_S:
        raise ToolError(
            f"--rate: {rate_per_s:g}; use more than 0, {RATE_MAX_PER_S:g} questions a second at most"
        )
    return 1.0 / rate_per_s


def period_s(text: str) -> float:
    """`--every`: `1s`, `0.5`, `200ms`, `2m`. Raises ToolError."""
    for ending, factor in (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("", 1.0)):
        if text.endswith(ending):
            try:
                value = float(text.removesuffix(ending)) * factor
            except ValueError:
                break
            if EVERY_LEAST_S <= value <= EVERY_MOST_S:
                return value
            break
    raise ToolError(
        f"--every: {text!r} is no period; write 1s, 500ms or 2m, from {EVERY_LEAST_S:g} s to an hour"
    )


def _by_url(url: str, profile: str | None, unit: int, tls: Sequence[Path | None]) -> Target:
    ca, cert, key = tls
    fields: dict[str, Any] = {"url": shown(url), "unit": unit, "ca": ca, "cert": cert, "key": key}
    is_opcua = url.partition(SCHEME_MARK)[0] == OPCUA_SCHEME
    if is_opcua:
        fields["security"] = "none"  # a server that wants more is described in a block
    fields["profile"] = profile or (UNKNOWN if is_opcua else SUNSPEC)
    try:
        config = DeviceConfig(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ToolError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} ({first['input']!r})") from error
    if config.profile == UNKNOWN:
        return Target(name=url, config=config)
    complaints = list(device_errors([Device("", url, config, "")]))
    if complaints:
        raise ToolError("\n".join(text.removeprefix(".") for text in complaints))
    return Target(name=url, config=config)
