"""Frequency products by name: their numbers, and how well each number is known.

Every figure carries a mark, because a grid operator's terms change and most of what is found about them is
second hand:

    S    read at its source: the operator's own page
    2    read at second hand
    M    from memory, not verified: ask the operator before use
    own  chosen here, where the product says nothing

Nothing here is a qualification for any product: see docs/frequency-response.md, whose table a test holds
against this one. A figure of None is one that only your contract knows: the configuration must bring it.
"""

from typing import Final, Literal, NamedTuple

from controller.core.frequency_model import Point

Mark = Literal["S", "2", "M", "own"]


class Figure(NamedTuple):
    value: float
    mark: Mark
    source: str


class Preset(NamedTuple):
    """One product; frequencies in Hz, times in s, the rest shares of the commitment."""

    title: str
    nominal_hz: float
    trigger_hz: Figure | None  # of a single step of the whole commitment; None: a droop, or your contract's
    full_s: Figure
    sustain_s: Figure
    rearm_s: Figure
    hold_s: Figure
    release_share_per_s: Figure | None  # None: as fast as the site's ramp allows
    dead_band_hz: Figure | None = None
    droop: tuple[Point, ...] = ()
    droop_source: Figure | None = None  # of its deepest point
    over_max_ratio: Figure | None = None  # of the commitment: more than this is over-delivery

    @property
    def needs_trigger(self) -> bool:
        return self.trigger_hz is None and not self.droop


CIMVIEW: Final = "cimview.com, FFR"
ERCOT_STUDY: Final = "ERCOT Ancillary Services Study, September 2024, as quoted by others"
FINGRID: Final = "developers.fingrid.fi, FFR business context"
NESO: Final = "nationalgrideso.com, Dynamic Containment specification"
NESO_DYNAMIC: Final = "neso.energy, new dynamic services"
EIRGRID: Final = "lawinsider.com, FFR response time"
UNVERIFIED: Final = "not verified"

_READY_AGAIN: Final = Figure(900.0, "S", f"{FINGRID}: ready again within 15 min")
_HOLD_LONG: Final = Figure(0.1, "own", "five samples at 50/s")
_HOLD_SHORT: Final = Figure(0.015, "own", "two samples at 50/s: 0.25 s leaves no more")


def _nordic(trigger_hz: float, full_s: float, *, long: bool) -> Preset:
    return Preset(
        title=f"Nordic FFR {trigger_hz:g} Hz, {full_s:g} s, {'long' if long else 'short'} support",
        nominal_hz=50.0,
        trigger_hz=Figure(trigger_hz, "S", FINGRID),
        full_s=Figure(full_s, "S", FINGRID),
        sustain_s=Figure(30.0 if long else 5.0, "S", "fingrid.fi, FFR"),
        rearm_s=_READY_AGAIN,
        hold_s=_HOLD_LONG if full_s >= 1.0 else Figure(0.05, "own", "three samples at 50/s"),
        release_share_per_s=None if long else Figure(0.2, "S", "fingrid.fi, FFR: at most 20 %/s"),
        over_max_ratio=Figure(1.35, "M", UNVERIFIED),
    )


PRESETS: Final[dict[str, Preset]] = {
    "ercot_ffr": Preset(
        title="ERCOT FFR",
        nominal_hz=60.0,
        trigger_hz=Figure(59.85, "2", ERCOT_STUDY),
        full_s=Figure(0.25, "2", f"{CIMVIEW}: 15 cycles"),
        sustain_s=Figure(900.0, "2", CIMVIEW),
        rearm_s=Figure(1800.0, "2", f"{CIMVIEW}: 15 min to reset, after 15 min of support"),
        hold_s=_HOLD_SHORT,
        release_share_per_s=None,
        over_max_ratio=Figure(1.1, "M", UNVERIFIED),
    ),
    "nordic_ffr_a_short": _nordic(49.7, 1.3, long=False),
    "nordic_ffr_a_long": _nordic(49.7, 1.3, long=True),
    "nordic_ffr_b_short": _nordic(49.6, 1.0, long=False),
    "nordic_ffr_b_long": _nordic(49.6, 1.0, long=True),
    "nordic_ffr_c_short": _nordic(49.5, 0.7, long=False),
    "nordic_ffr_c_long": _nordic(49.5, 0.7, long=True),
    "gb_dynamic_containment_low": Preset(
        title="GB Dynamic Containment, low frequency",
        nominal_hz=50.0,
        trigger_hz=None,
        full_s=Figure(1.0, "S", NESO_DYNAMIC),
        sustain_s=Figure(900.0, "S", f"{NESO_DYNAMIC}: 15 min"),
        rearm_s=Figure(0.0, "own", "it follows the frequency all the time"),
        hold_s=Figure(0.05, "own", "three samples at 50/s; response must begin within 0.5 s"),
        release_share_per_s=Figure(1.0, "own", "as fast up as down, where the site's ramp allows it"),
        dead_band_hz=Figure(0.015, "S", NESO),
        droop=(Point(49.985, 0.0), Point(49.8, 0.05), Point(49.5, 1.0)),
        droop_source=Figure(49.5, "S", f"{NESO}: 5 % at 0.2 Hz, all at 0.5 Hz"),
    ),
    "eirgrid_ffr": Preset(
        title="EirGrid FFR",
        nominal_hz=50.0,
        trigger_hz=None,
        full_s=Figure(2.0, "2", EIRGRID),
        sustain_s=Figure(20.0, "2", f"{EIRGRID}: due until 10 s, and assessed until 20 s"),
        rearm_s=Figure(900.0, "own", "as the Nordic product; your contract decides"),
        hold_s=_HOLD_LONG,
        release_share_per_s=None,
    ),
}
