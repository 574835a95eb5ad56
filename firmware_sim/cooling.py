"""The cooling of the block: one coolant distribution unit (CDU) between racks and facility water.

Heat warms the secondary loop, which has inertia; a valve lets facility water take it out again. With the
valve fully open the exchanger carries `ua_w_per_k` times the difference between loop and facility water:

    loop_j_per_k * d(loop)/dt = heat - valve * ua * (loop - facility)

So what the CDU *can* take away, its capacity, is ua * (hottest allowed loop - facility water), and it falls
when a chiller derates and facility water turns warm, long before anything is hot. Facility water itself
has inertia: a derated chiller shows over `facility_tau_s`. It also wanders a little, as all water does.

A chiller makes the facility water. Told to take less than there is to cool, it lets the water get warmer, so
a limit on it shows in what the CDU can still carry away.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

WATER_J_PER_KG_K: Final = 4180.0
PUMP_IDLE_W: Final = 120.0
PUMP_MAX_W: Final = 450.0
WANDER_K: Final = 0.05  # standard deviation of the facility water's temperature
WANDER_TAU_S: Final = 10.0
PUMP_SPEED_MIN_RATIO: Final = 0.3
VALVE_GAIN_PER_K: Final = 0.25  # opening per kelvin above the setpoint
CHILLER_TAU_S: Final = 2.0  # compressors follow their load
CHILLER_MINIMUM_RATIO: Final = 0.3  # it does not go lower while it runs
WARMER_K_PER_RATIO: Final = 20.0  # facility water, per share of the chiller that is missing


@dataclass(frozen=True, kw_only=True)
class CduType:
    ua_w_per_k: float = 1000.0
    loop_j_per_k: float = 170e3  # 40 kg of water and as much metal
    flow_kg_per_s: float = 0.5
    units: int = 1  # of this size, side by side: pumps are counted so
    setpoint_c: float = 36.0
    loop_max_c: float = 44.0  # above it the hottest cold plate leaves its range
    facility_c: float = 22.0
    facility_tau_s: float = 6.0  # minutes on a real site; a demonstration has less


class Cdu:
    """Temperatures in degrees Celsius, heat and power in W."""

    def __init__(self, cdu_type: CduType, rng: np.random.Generator) -> None:
        self.type = cdu_type
        self._rng = rng
        self._wander_k = 0.0
        self._mean_c = cdu_type.facility_c
        self.setpoint_c = cdu_type.setpoint_c
        self.flow_kg_per_s = cdu_type.flow_kg_per_s
        self.facility_target_c = cdu_type.facility_c
        self.facility_c = cdu_type.facility_c
        self.loop_c = cdu_type.setpoint_c
        self.heat_w = 0.0
        self.pump_speed_ratio = 0.5

    @property
    def pump_w(self) -> float:
        """Electrical power; affinity law between idle and full speed."""
        unit_w = PUMP_IDLE_W + (PUMP_MAX_W - PUMP_IDLE_W) * self.pump_speed_ratio**3
        return self.type.units * unit_w

    @property
    def capacity_w(self) -> float:
        """Heat it can carry with the valve open and the loop as hot as it may be."""
        return max(0.0, self.type.ua_w_per_k * (self.type.loop_max_c - self.facility_c))

    @property
    def supply_c(self) -> float:
        return self.loop_c - self._half_rise_k

    @property
    def return_c(self) -> float:
        return self.loop_c + self._half_rise_k

    @property
    def flow_lpm(self) -> float:
        return self.flow_kg_per_s * 60.0

    @property
    def _half_rise_k(self) -> float:
        return self.heat_w / (2 * self.flow_kg_per_s * WATER_J_PER_KG_K)

    def step(self, dt_s: float, heat_w: float, warmer_k: float = 0.0) -> None:
        """Advance by `dt_s` with this heat, and facility water `warmer_k` warmer than meant."""
        self.heat_w = heat_w
        keep = float(np.exp(-dt_s / self.type.facility_tau_s))
        target_c = self.facility_target_c + warmer_k
        self._mean_c = target_c + (self._mean_c - target_c) * keep
        keep = float(np.exp(-dt_s / WANDER_TAU_S))
        fresh_k = WANDER_K * np.sqrt(1 - keep * keep) * float(self._rng.standard_normal())
        self._wander_k = keep * self._wander_k + fresh_k
        self.facility_c = self._mean_c + self._wander_k
        balance = heat_w / max(self.type.ua_w_per_k * (self.loop_c - self.facility_c), 1.0)  # feed forward
        valve = min(1.0, max(0.0, balance + VALVE_GAIN_PER_K * (self.loop_c - self.setpoint_c)))
        removed_w = valve * self.type.ua_w_per_k * max(0.0, self.loop_c - self.facility_c)
        self.loop_c += (heat_w - removed_w) / self.type.loop_j_per_k * dt_s
        self.pump_speed_ratio = max(PUMP_SPEED_MIN_RATIO, valve)


class Chiller:
    """Makes the facility water; what it may take, as a share of what it can, is for others to limit."""

    def __init__(self, capacity_w: float) -> None:
        self.capacity_w = capacity_w
        self.demand_limit_ratio = 1.0
        self.minimum_ratio = CHILLER_MINIMUM_RATIO
        self.load_ratio = 0.0
        self.warmer_k = 0.0

    def step(self, dt_s: float, heat_w: float) -> None:
        asked_ratio = heat_w / self.capacity_w
        given_ratio = min(asked_ratio, max(self.minimum_ratio, self.demand_limit_ratio))
        keep = float(np.exp(-dt_s / CHILLER_TAU_S))
        self.load_ratio = given_ratio + (self.load_ratio - given_ratio) * keep
        self.warmer_k = WARMER_K_PER_RATIO * (asked_ratio - given_ratio)
