"""How GPU power follows its limit, and what the sensors say about it. Vectorised over GPUs.

A limit is enforced by firmware that moves clocks, hence not symmetrically. All figures are from the step
280 -> 200 -> 280 W of one V100 (github.com/denisa-c/gridpilot, E2_inner_loop, CC-BY 4.0, arXiv 2605.26384):

* down: clocks fall at once and a little too far. Power crosses the new limit after about 50 ms, dips 7 %
  below it and is back within 4 % after about 190 ms;
* up: the firmware looks every 167 ms and takes back 60 % of what is missing, so that one step of the limit
  becomes three of power: 95 % after 220 to 390 ms, later by the wait for the first look;
* held: power stays 1.5 % below the limit on average and wanders by 0.7 %. A limit bounds the average.

Demand that moves below the limit asks nobody: it follows within a few switching periods of the regulator.

A ceiling of the SM clock acts on demand itself, whether a limit binds or not. What the memory draws knows no
SM clock: of a language model that decodes, about 60 % of what it draws above idle, so that the lowest clocks
save about a third (H200: 137 to 300 W of 700 W drawn, at most 32 % of the energy saved; arXiv 2605.11999).
Between command and change of the clock lie some 10 ms, on Hopper seldom hundreds (worst cases as recalled
from arXiv 2502.20075: A100 20 ms, GH200 350 ms and more; medians are assumed).

Power smoothing (GB200, GB300): while it is on, power climbs to the floor no faster than its ramp, and once
there is kept there; when the work has drawn less for the hysteresis, the floor comes down at its ramp
(presets found on a GB300: 90 % of 1459 W, 20 W/s, 10 s). That the floor also wins over a lower limit is
assumed: the worse case.

Sensors: the instant one is the mean of a window at the end of each refresh period (V100: 20 ms of 20 ms;
A100 and H100: 25 ms of 100 ms, arXiv 2312.02741), the average one runs over 1 s, the energy counter moves
every 100 ms (ml.energy).
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FALL_TAU_S: Final = 0.020  # power after a fall of the clocks; with the dip below: crosses in 50 ms
RISE_TAU_S: Final = 0.018  # power after one clock step up
DEMAND_TAU_S: Final = 0.008  # kernel launches, no firmware involved
DIP_RATIO: Final = 0.33  # of the power given up: how far the clocks overshoot downwards
DIP_TAU_S: Final = 0.080
LOOK_PERIOD_S: Final = 0.167  # between two looks of the firmware at spare power
LOOK_GAIN_RATIO: Final = 0.60  # of the missing power is taken back per look
LOOK_CLOSE_RATIO: Final = 0.05  # of the limit: a smaller remainder is taken back whole
REGULATION_RATIO: Final = 0.985  # 196.4 W held of 200 W, 276.3 W of 280 W
WANDER_RATIO: Final = 0.007  # standard deviation of held power
WANDER_TAU_S: Final = 0.025
SENSOR_NOISE_RATIO: Final = 0.002
AVERAGE_SLOTS: Final = 20  # of 50 ms: the 1 s average
AVERAGE_SLOT_S: Final = 0.050
ENERGY_PERIOD_S: Final = 0.100
CLOCK_EXPONENT: Final = 2.4  # dynamic power over clock where voltage follows (V100 sweep, gridpilot E1)
CLOCK_SWITCH_SPREAD: Final = 1.0  # sigma of ln(latency): 1 change in 100 takes ten times the median
CLOCK_IDLE_HZ: Final = 345e6  # what an idle Hopper GPU shows
DECODE_MEMORY_RATIO: Final = 0.6  # of what decoding draws above idle
BUSY_RATIO: Final = 1.02  # of idle power: more is work


@dataclass(frozen=True)
class GpuModel:
    """What the data sheet and the sensor tests say about one GPU type."""

    name: str
    idle_w: float
    min_w: float
    max_w: float
    refresh_s: float
    window_s: float
    clock_max_hz: float
    clock_switch_s: float = 0.010  # median, from the command to another clock
    clock_switch_max_s: float = 0.020
    module_max_w: float = 0.0  # TMP, of which smoothing floors are a share; 0: no power smoothing


MODELS: Final = {
    model.name: model
    for model in (
        GpuModel(
            "V100", idle_w=56, min_w=150, max_w=300, refresh_s=0.020, window_s=0.020, clock_max_hz=1530e6
        ),
        GpuModel(
            "A100", idle_w=55, min_w=100, max_w=400, refresh_s=0.100, window_s=0.025, clock_max_hz=1410e6
        ),
        GpuModel(
            "H100",
            idle_w=70,
            min_w=200,
            max_w=700,
            refresh_s=0.100,
            window_s=0.025,
            clock_max_hz=1980e6,
            clock_switch_s=0.020,
            clock_switch_max_s=0.350,
        ),
        GpuModel(
            "H200",
            idle_w=75,
            min_w=200,
            max_w=700,
            refresh_s=0.100,
            window_s=0.025,
            clock_max_hz=1980e6,
            clock_switch_s=0.020,
            clock_switch_max_s=0.350,
        ),
        GpuModel(
            "B200",
            idle_w=140,
            min_w=200,
            max_w=1000,
            refresh_s=0.100,
            window_s=0.025,
            clock_max_hz=1965e6,
            clock_switch_s=0.020,
            clock_switch_max_s=0.350,
        ),
        # limits and TMP of a real one; clocks as the B200's, idle as read at 54 C
        GpuModel(
            "GB300",
            idle_w=232,
            min_w=200,
            max_w=1400,
            refresh_s=0.100,
            window_s=0.025,
            clock_max_hz=1965e6,
            clock_switch_s=0.020,
            clock_switch_max_s=0.350,
            module_max_w=1459,
        ),
    )
}


@dataclass(frozen=True)
class Floor:
    """Power smoothing that is on: arrays of shape (n). A GPU with `floor_w` 0 has it off."""

    floor_w: Floats
    ramp_up_w_per_s: Floats
    ramp_down_w_per_s: Floats
    hysteresis_s: Floats


class GpuBank:
    """Power of n GPUs of one model. All arrays have shape (n)."""

    def __init__(self, model: GpuModel, count: int, rng: np.random.Generator) -> None:
        self.model = model
        self.count = count
        self.power_w: Floats = np.full(count, model.idle_w)
        self.ceiling_w: Floats = np.full(count, model.max_w)  # what the firmware allows at this moment
        self.energy_j: Floats = np.zeros(count)
        self._rng = rng
        self._limit_w: Floats = np.full(count, model.max_w)
        self._dip_w: Floats = np.zeros(count)
        self._wander: Floats = np.zeros(count)
        self._look_in_s: Floats = rng.uniform(0, LOOK_PERIOD_S, count)  # nobody starts all GPUs at once
        self.capped: Bools = np.zeros(count, dtype=bool)  # the limit holds the clocks down
        self._wanted_w: Floats = np.full(count, model.idle_w)
        self._free_hz: Floats = np.full(count, model.clock_max_hz)
        self._locked = False  # any of them, asked or in force
        self._clock_limit_hz: Floats = self._free_hz  # in force
        self._clock_asked_hz: Floats = self._free_hz
        self._clock_in_s: Floats = np.zeros(count)  # until what was asked is in force
        self._floor_w: Floats = np.zeros(count)  # what smoothing keeps up at this moment; 0: nothing
        self._below_floor_s: Floats = np.zeros(count)

    def step(
        self,
        dt_s: float,
        demand_w: Floats,
        limit_w: Floats,
        clock_limit_hz: Floats | None = None,
        *,
        memory_w: Floats | None = None,
        floor: Floor | None = None,
    ) -> None:
        """Advance by `dt_s` (at most 20 ms) under the enforced limits and, where given, locked clocks.

        `memory_w` is the part of the demand that no SM clock moves; `floor` the power smoothing that is on.
        """
        self._follow_limit(dt_s, limit_w)
        wanted_w = demand_w
        if clock_limit_hz is not None or self._locked:
            self._follow_clock(dt_s, self._free_hz if clock_limit_hz is None else clock_limit_hz)
            wanted_w = self._clocked_w(demand_w, memory_w)
        held_w = (self.ceiling_w * (1 + self._wander) - self._dip_w) * REGULATION_RATIO
        capped = held_w < wanted_w
        target_w = np.where(capped, np.maximum(held_w, self.model.idle_w), wanted_w)
        self.capped, self._wanted_w = capped, wanted_w
        if floor is not None:
            target_w = self._smoothed_w(dt_s, target_w, floor)
        falling = target_w < self.power_w
        tau_s = np.where(capped, np.where(falling, FALL_TAU_S, RISE_TAU_S), DEMAND_TAU_S)
        # exact mean over the step, so that the energy counter and the power agree whatever dt is
        decay = np.exp(-dt_s / tau_s)
        gap_w = self.power_w - target_w
        self.energy_j += target_w * dt_s + gap_w * tau_s * (1 - decay)
        self.power_w = target_w + gap_w * decay

    def _follow_limit(self, dt_s: float, limit_w: Floats) -> None:
        lowered = limit_w < self._limit_w
        if lowered.any():
            given_up_w = np.where(lowered, np.maximum(self.power_w - limit_w * REGULATION_RATIO, 0), 0)
            self._dip_w = np.maximum(self._dip_w, DIP_RATIO * given_up_w)
        self._limit_w = limit_w.copy()
        self.ceiling_w = np.minimum(self.ceiling_w, limit_w)
        self._look_in_s -= dt_s
        looking = self._look_in_s <= 0
        if looking.any():
            missing_w = limit_w - self.ceiling_w
            step_w = np.where(missing_w < LOOK_CLOSE_RATIO * limit_w, missing_w, LOOK_GAIN_RATIO * missing_w)
            self.ceiling_w = np.where(looking, self.ceiling_w + step_w, self.ceiling_w)
            self._look_in_s[looking] += LOOK_PERIOD_S
        self._dip_w *= np.exp(-dt_s / DIP_TAU_S)
        keep = float(np.exp(-dt_s / WANDER_TAU_S))
        fresh = WANDER_RATIO * np.sqrt(1 - keep * keep)
        self._wander = keep * self._wander + fresh * self._rng.standard_normal(self.count)

    @property
    def clock_ratio(self) -> Floats | None:
        """Highest SM clock in force over the model's, (n); None: nothing holds any of them."""
        return self._clock_limit_hz / self.model.clock_max_hz if self._locked else None

    def clock_hz(self) -> Floats:
        """The SM clock that goes with the power of this moment."""
        idle_w = self.model.idle_w
        spent_ratio = np.maximum(self.power_w - idle_w, 0) / np.maximum(self._wanted_w - idle_w, 1)
        slowed_ratio = np.where(self.capped, np.minimum(spent_ratio, 1) ** (1 / CLOCK_EXPONENT), 1)
        working_hz = self._clock_limit_hz * slowed_ratio
        return np.where(self._wanted_w > BUSY_RATIO * idle_w, working_hz, CLOCK_IDLE_HZ)

    def _follow_clock(self, dt_s: float, clock_limit_hz: Floats) -> None:
        """A changed ceiling comes into force after a latency; one on its way takes the newer along."""
        asked_hz = np.minimum(clock_limit_hz, self.model.clock_max_hz)
        changed = asked_hz != self._clock_asked_hz
        if changed.any():
            starting = changed & (self._clock_asked_hz == self._clock_limit_hz)
            spread = np.exp(CLOCK_SWITCH_SPREAD * self._rng.standard_normal(self.count))
            latency_s = np.minimum(self.model.clock_switch_s * spread, self.model.clock_switch_max_s)
            self._clock_in_s = np.where(starting, latency_s, self._clock_in_s)
            self._clock_asked_hz = asked_hz
        self._clock_in_s -= dt_s
        self._clock_limit_hz = np.where(self._clock_in_s <= 0, self._clock_asked_hz, self._clock_limit_hz)
        self._locked = bool((np.minimum(asked_hz, self._clock_limit_hz) < self._free_hz).any())

    def _clocked_w(self, demand_w: Floats, memory_w: Floats | None) -> Floats:
        ratio = (self._clock_limit_hz / self.model.clock_max_hz) ** CLOCK_EXPONENT
        fixed_w = self.model.idle_w if memory_w is None else self.model.idle_w + memory_w
        clocked_w: Floats = np.where(demand_w > fixed_w, fixed_w + (demand_w - fixed_w) * ratio, demand_w)
        return clocked_w

    def _smoothed_w(self, dt_s: float, natural_w: Floats, floor: Floor) -> Floats:
        """What the GPU draws where firmware burns, or withholds, what smoothing asks for."""
        on = floor.floor_w > 0
        level_w = np.maximum(self._floor_w, self.model.idle_w)
        below = natural_w < level_w
        self._below_floor_s = np.where(below, self._below_floor_s + dt_s, 0)
        climbing_w = np.minimum(level_w + floor.ramp_up_w_per_s * dt_s, np.minimum(natural_w, floor.floor_w))
        leaving = below & (self._below_floor_s > floor.hysteresis_s)
        falling_w = np.where(leaving, level_w - floor.ramp_down_w_per_s * dt_s, level_w)
        level_w = np.where(below, np.maximum(falling_w, natural_w), np.maximum(climbing_w, level_w))
        self._floor_w = np.where(on, level_w, 0)
        withheld = level_w < floor.floor_w  # still on the way up: the floor is also a ceiling
        smoothed_w: Floats = np.where(withheld, level_w, np.maximum(natural_w, level_w))
        return np.where(on, smoothed_w, natural_w)


class GpuSensors:
    """What the driver tells of a bank: instant and averaged power, energy. All arrays have shape (n)."""

    def __init__(self, bank: GpuBank, rng: np.random.Generator) -> None:
        model = bank.model
        self.instant_w: Floats = bank.power_w.copy()
        self.average_w: Floats = bank.power_w.copy()
        self.energy_j: Floats = bank.energy_j.copy()
        self._bank = bank
        self._rng = rng
        self._window_s = model.window_s
        self._refresh_s = model.refresh_s
        self._window_at_j: Floats = bank.energy_j.copy()
        self._window_open: Bools = np.zeros(bank.count, dtype=bool)
        self._window_opened_s: Floats = np.zeros(bank.count)
        self._refresh_at_s: Floats = rng.uniform(0, model.refresh_s, bank.count)
        self._slots: deque[Floats] = deque([bank.power_w * AVERAGE_SLOT_S], maxlen=AVERAGE_SLOTS)
        self._slot_at_s = AVERAGE_SLOT_S
        self._slot_from_j: Floats = bank.energy_j.copy()
        self._energy_at_s = ENERGY_PERIOD_S

    def step(self, now_s: float) -> None:
        """Take what there is to take at `now_s`, the plant's time after its bank has stepped."""
        self._sample_instant(now_s)
        energy_j = self._bank.energy_j
        if now_s >= self._slot_at_s:
            self._slots.append(energy_j - self._slot_from_j)
            self._slot_from_j = energy_j.copy()
            self._slot_at_s += AVERAGE_SLOT_S
            self.average_w = np.sum(self._slots, axis=0) / (len(self._slots) * AVERAGE_SLOT_S)
        if now_s >= self._energy_at_s:
            self.energy_j = energy_j.copy()
            self._energy_at_s += ENERGY_PERIOD_S

    def _sample_instant(self, now_s: float) -> None:
        energy_j = self._bank.energy_j
        opening = ~self._window_open & (now_s >= self._refresh_at_s - self._window_s)
        if opening.any():
            self._window_at_j = np.where(opening, energy_j, self._window_at_j)
            self._window_opened_s = np.where(opening, now_s, self._window_opened_s)
            self._window_open |= opening
        closing = self._window_open & (now_s >= self._refresh_at_s) & (now_s > self._window_opened_s)
        if closing.any():
            spent_w = (energy_j - self._window_at_j) / np.maximum(now_s - self._window_opened_s, 1e-9)
            noise = 1 + SENSOR_NOISE_RATIO * self._rng.standard_normal(len(spent_w))
            self.instant_w = np.where(closing, spent_w * noise, self.instant_w)
            self._window_open &= ~closing
            self._refresh_at_s[closing] += self._refresh_s
            # a window as long as its period (V100) opens again in the same instant
            again = closing & (self._window_s >= self._refresh_s)
            self._window_at_j = np.where(again, energy_j, self._window_at_j)
            self._window_opened_s = np.where(again, now_s, self._window_opened_s)
            self._window_open |= again
