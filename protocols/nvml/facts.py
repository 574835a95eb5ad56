"""What the driver tells of a GPU: the facts that last, and one moment of it. W, MHz, J, s; ratios of 1."""

from dataclasses import dataclass
from typing import Final

# Clocks event reasons, bits of `Reading.reasons` (nvml.h, NvmlClocksEventReasons)
GPU_IDLE: Final = 0x1
SW_POWER_CAP: Final = 0x4  # the power limit holds the clocks down
# All that may hold clocks down and says so; a clock lock is not among them
LIMITERS: Final = SW_POWER_CAP | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100


@dataclass(frozen=True, slots=True)
class Platform:
    """Where the board sits, as GB200 and GB300 know it: the key from GPU to rack.

    `slot` counts all slots of the chassis, `tray` the compute trays alone, `host_id` the nodes in a slot,
    `module_id` the GPUs of a node.
    """

    chassis_serial: str
    slot: int
    tray: int
    host_id: int
    module_id: int


@dataclass(frozen=True, slots=True)
class Preset:
    """One preset of power smoothing. The floor is a share of the total module power (TMP)."""

    floor_ratio: float
    ramp_up_w_per_s: float
    ramp_down_w_per_s: float
    hysteresis_s: float  # how long the floor is held when the load has gone


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Power smoothing of a Blackwell GPU. While `enabled`, power is kept at `floor_w` whatever limit is set.

    All None: the GPU has it, but its BMC hides it from the host, so that a floor may be in force unseen.
    """

    enabled: bool | None = None
    floor_w: float | None = None  # the power kept up now; 0 while not enabled
    ceiling_w: float | None = None  # TMP, of which floors are a share
    preset: int | None = None  # the active one
    in_force: Preset | None = None  # the active preset, or what an administrator has put over it
    immediate: bool | None = None  # power may fall at once, without hysteresis and ramp
    lifetime_ratio: float | None = None  # what is left of the circuit that burns the difference


@dataclass(frozen=True, slots=True)
class Profiles:
    """Workload power profiles by number (2 compute, 6 inference, ...; NVML_POWER_PROFILE_*)."""

    supported: tuple[int, ...]
    requested: tuple[int, ...]
    enforced: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """What changes seldom while a GPU lives, or never; `Nvml.describe` reads anew what does."""

    index: int
    uuid: str
    name: str
    min_w: float
    max_w: float
    default_w: float
    module: bool = False  # limits and powers are those of the module, CPU and all: not to be summed per GPU
    clock_min_mhz: int = 0  # 0: unknown
    clock_max_mhz: int = 0  # highest SM clock that a user may reach; 0: unknown
    mig: bool = False  # divided into instances; limits are those of the whole
    persistence: bool | None = None  # False: limits are lost when the last user closes the driver
    platform: Platform | None = None
    smoothing: Smoothing | None = None  # None: the GPU has no such thing
    profiles: tuple[int, ...] = ()  # supported workload power profiles


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU at one moment. `averaged`: no instant power here, `power_w` lags by up to 1 s.

    `generation` grows whenever the GPU was found anew: after any fault, or because its energy counter has
    begun again (driver reload, reset). Limits, locks and profiles set before then may be gone.
    """

    device: Device
    power_w: float
    averaged: bool
    limit_w: float  # requested
    enforced_w: float
    clock_mhz: int | None = None  # of the SMs
    reasons: int = 0  # clocks event reasons, bits
    energy_j: float | None = None  # since the driver was loaded
    ceiling_mhz: int | None = None  # SM clock ceiling that we set in this generation; None: none of ours
    generation: int = 0

    @property
    def capped(self) -> bool:
        """The power limit holds the clocks down at this moment."""
        return bool(self.reasons & SW_POWER_CAP)
