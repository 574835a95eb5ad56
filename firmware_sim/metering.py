"""What meters say: a meter follows the truth with its own lag and shows it only when it refreshes.

A reading is the mean over the time since the last one (ten mains cycles at the block meter, as in
IEC 61000-4-30), behind a first-order filter of the instrument. Rack PDUs renew their registers once a second,
the block meter five times. Between two refreshes the registers stand still: that is what a controller has to
live with, and what a frozen meter looks like for longer.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

NOISE_RATIO: Final = 0.001  # class 0.5 S meters repeat far better than they are accurate


@dataclass(frozen=True)
class MeterType:
    lag_s: float
    refresh_s: float


PDU: Final = MeterType(lag_s=0.30, refresh_s=1.0)
BLOCK_METER: Final = MeterType(lag_s=0.02, refresh_s=0.2)


class Meter:
    """One power reading, W."""

    def __init__(self, meter_type: MeterType, rng: np.random.Generator) -> None:
        self.reading_w = 0.0
        self._type = meter_type
        self._rng = rng
        self._filtered_w: float | None = None
        self._since_j = 0.0
        self._since_s = 0.0
        self._refresh_at_s = float(rng.uniform(0, meter_type.refresh_s))  # meters are not synchronised

    def step(self, now_s: float, dt_s: float, true_w: float) -> None:
        if self._filtered_w is None:  # it has been installed for years
            self._filtered_w = self.reading_w = true_w
        keep = float(np.exp(-dt_s / self._type.lag_s))
        self._filtered_w = true_w + (self._filtered_w - true_w) * keep
        self._since_j += self._filtered_w * dt_s
        self._since_s += dt_s
        if now_s >= self._refresh_at_s:
            self.reading_w = (
                self._since_j / self._since_s * (1 + NOISE_RATIO * float(self._rng.standard_normal()))
            )
            self._since_j = self._since_s = 0.0
            self._refresh_at_s += self._type.refresh_s
