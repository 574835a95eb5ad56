"""What an operator writes into `node.yaml`, checked before the agent touches anything.

    block: hall-a
    node: n01
    mqtt:
      url: mqtts://block-a.example:8883
      ca: /etc/powerblock/ca.crt
    fallback_w: 300            # or one number per GPU, in NVML index order
    state_dir: /var/lib/powerblock-agent

`fallback_w` is the one number nobody can guess: what each GPU may draw when the controller is not heard.
The block is safe only if the fallback limits of all nodes together fit under the feed with everything else:
`powerblock check block.yaml` says how much that leaves for each GPU.

What few hosts need:

    gpus: {count: 4, per_module: 2}  # GPUs in a row that share one limit, where it is the module's; else 1
    clock_lock_mhz: [345, 1410]      # the site's own lock: our ceilings stay below, release brings it back
    profiles: [6]                    # workload power profiles to request beside those found (Blackwell)
    smoothing: {preset: 1}           # preset of power smoothing to make the active one (Blackwell)

A clock lock cannot be read from the driver. A site that locks clocks must name its lock here, or it is gone
when the controller takes a ceiling away.
"""

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from controller.yaml_config import NAME_PATTERN, UNSHOWN, ConfigError, File, load
from protocols.mqtt import MqttConfigError, Tls, parse_url

__all__ = ["ConfigError", "MqttConfig", "NodeConfig", "load_node"]

GPUS_MAX: Final = 128  # one driver of the largest host known (NVL72 as one node), with room
PASSWORD_MAX_CHARS: Final = 1024  # a file larger than this is not a password

CLOCK_MAX_MHZ: Final = 10_000  # three times any GPU
PROFILES_MAX: Final = 255  # bits of the driver's mask
PRESETS_MAX: Final = 5

TopicName = Annotated[str, Field(pattern=NAME_PATTERN)]
PowerW = Annotated[float, Field(gt=0, le=10_000)]  # the largest module in sight is 2.9 kW


def _one_or_many(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _rising(range_mhz: tuple[int, int]) -> tuple[int, int]:
    if range_mhz[0] > range_mhz[1]:
        raise ValueError("give the lower clock first")
    return range_mhz


Mhz = Annotated[int, Field(gt=0, le=CLOCK_MAX_MHZ)]
ClockRange = Annotated[tuple[Mhz, Mhz], BeforeValidator(_tuple), AfterValidator(_rising)]
Profile = Annotated[int, Field(ge=0, lt=PROFILES_MAX)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _broker(url: str) -> str:
    try:
        parse_url(url)
    except MqttConfigError as error:  # says what is fit to be shown of it
        raise PydanticCustomError(UNSHOWN, "{why}", {"why": str(error)}) from None
    return url


class MqttConfig(_Strict):
    """How to reach the block's broker. A password lives in a file of its own, never here."""

    url: Annotated[str, AfterValidator(_broker)]
    username: str | None = None
    password_file: Path | None = None
    ca: File | None = None
    cert: File | None = None
    key: File | None = None

    def password(self) -> str | None:
        """The password, read now. Raises ConfigError."""
        if self.password_file is None:
            return None
        try:
            text = self.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"mqtt.password_file: {self.password_file}: {error}; make it readable"
            ) from None
        if not 0 < len(text) <= PASSWORD_MAX_CHARS:
            raise ConfigError(f"mqtt.password_file: {self.password_file} holds no password; write it there")
        return text

    def tls(self) -> Tls | None:
        """The TLS files given here; None: none, which is right for mqtt:// and for public authorities."""
        if self.ca is None and self.cert is None and self.key is None:
            return None
        return Tls(self.ca, self.cert, self.key)


class GpusConfig(_Strict):
    count: Annotated[int, Field(ge=1, le=GPUS_MAX)]
    per_module: Annotated[int, Field(ge=1, le=8)] | None = None  # None: not said, see `shares`

    @model_validator(mode="after")
    def _whole_modules(self) -> "GpusConfig":
        if self.count % (self.per_module or 1):
            raise ValueError(
                f"count is {self.count}, per_module {self.per_module}: give a count of whole modules"
            )
        return self


class SmoothingConfig(_Strict):
    preset: Annotated[int, Field(ge=0, lt=PRESETS_MAX)]


class NodeConfig(_Strict):
    """Settings of one node agent."""

    block: TopicName
    node: TopicName
    mqtt: MqttConfig
    gpus: GpusConfig | None = None  # how many the driver should show; None: whatever it shows
    fallback_w: Annotated[
        tuple[PowerW, ...], BeforeValidator(_one_or_many), Field(min_length=1, max_length=GPUS_MAX)
    ]
    fallback_ramp_w_per_s: Annotated[float, Field(ge=1, le=10_000)] = 50.0  # per GPU, downwards
    report_period_s: Annotated[float, Field(ge=0.02, le=1.0)] = 0.1  # H100 sensors renew at 10 Hz
    lease_max_s: Annotated[float, Field(ge=0.5, le=60)] = 10.0
    waiting_max_s: Annotated[float, Field(ge=1, le=3600)] | None = 30.0  # null: wait for ever
    call_deadline_s: Annotated[float, Field(ge=0.05, le=5)] = 0.25  # a healthy call takes 1 to 30 ms
    clock_lock_mhz: ClockRange | None = None
    profiles: Annotated[tuple[Profile, ...], BeforeValidator(_tuple)] = ()
    smoothing: SmoothingConfig | None = None
    state_dir: Path

    @model_validator(mode="after")
    def _fallback_fits_count(self) -> "NodeConfig":
        count = None if self.gpus is None else self.gpus.count
        if len(self.fallback_w) > 1 and count != len(self.fallback_w):
            raise ValueError(
                f"fallback_w has {len(self.fallback_w)} numbers, gpus.count is {count}; "
                "give one number for all GPUs, or gpus.count and one number per GPU"
            )
        return self

    def fallback_limits_w(self, gpu_count: int) -> tuple[float, ...]:
        """One fallback limit per GPU. If the driver shows another number of GPUs, the lowest for all."""
        if len(self.fallback_w) == gpu_count:
            return self.fallback_w
        return (min(self.fallback_w),) * gpu_count


def load_node(path: Path) -> NodeConfig:
    """Read `node.yaml`. Raises ConfigError listing everything that is wrong with it."""
    return load(path, NodeConfig)
