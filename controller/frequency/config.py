"""The `frequency` part of `block.yaml`: what was committed to the grid, and where its frequency comes from.

    frequency:
      preset: nordic_ffr_a_short
      committed_kw: 200
      input: {way: phasor_udp, listen: "10.1.0.5:4713", from: 10.1.0.9}

Instead of a preset, `own` numbers. The input has to be fast enough for the product: what sees a crossing too
late to answer it is refused here, not discovered in an event.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from controller.core.frequency_model import FrequencySettings, Point
from controller.core.frequency_presets import PRESETS
from controller.core.model import Ramp
from controller.gateway_config import Device, DeviceConfig, profile_of
from controller.site.config import OneTopic
from protocols.profile import ProfileError

KW: Final = 1000.0
OBEY_S: Final = 0.2  # link, driver call, and a GPU's way down: what is left of full_s is for seeing
COARSEST_HZ: Final = 0.01  # of a meter's register: a step of 0.1 Hz hides a whole event
STEP_BELOW_MIN_HZ: Final = 0.1  # of a threshold below nominal: twice what a quiet grid wanders
PERIODS_STALE: Final = 5.0
STALE_MIN_S: Final = 0.1
TWO_SAMPLES_S: Final = 0.015  # two samples at 50/s

Kw = Annotated[float, Field(gt=0, le=1_000_000)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Hz = Annotated[float, Field(ge=45, le=65)]
Period = Annotated[float, Field(ge=0.008, le=1.0)]
IdCode = Annotated[int, Field(ge=1, le=65_534)]
PortNumber = Annotated[int, Field(ge=1, le=65_535)]


def _endpoint(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError("write ADDRESS:PORT, such as 10.1.0.5:4713")
    return text


def _address(text: str) -> str:
    ip_address(text)
    return text


Endpoint = Annotated[str, AfterValidator(_endpoint)]
Address = Annotated[str, AfterValidator(_address)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class MeterInput(DeviceConfig):
    """A meter's frequency register, polled on its own.

    Attributes:
        refresh_s: how often the meter itself has a new value; most average over ten cycles.
    """

    way: Literal["meter"]
    point: str = "frequency_hz"
    poll_s: Annotated[float, Field(ge=0.05, le=1.0)] = 0.05
    refresh_s: Period = 0.2

    @property
    def period_s(self) -> float:
        return max(self.poll_s, self.refresh_s)


class PhasorUdpInput(_Strict):
    """C37.118 frames in datagrams.

    Attributes:
        sender: the one address that is listened to; `from` in the file.
        ask: port of a unit that sends only when asked; it needs `id`.
        id: code of the stream.
        pmu: code of the PMU within the stream; left out: the first.
    """

    model_config = ConfigDict(populate_by_name=True)

    way: Literal["phasor_udp"]
    listen: Endpoint
    sender: Annotated[Address, Field(alias="from")]
    ask: PortNumber | None = None
    id: IdCode | None = None
    pmu: IdCode | None = None
    period_s: Period = 0.02

    @model_validator(mode="after")
    def _asked_by_code(self) -> "PhasorUdpInput":
        if self.ask is not None and self.id is None:
            raise ValueError("id: missing; a unit that is asked needs the code of its stream")
        return self


class PhasorTcpInput(_Strict):
    """C37.118 over a connection that we open."""

    way: Literal["phasor_tcp"]
    connect: Endpoint
    id: IdCode
    pmu: IdCode | None = None
    period_s: Period = 0.02


class JsonUdpInput(_Strict):
    """Lines such as {"hz": 49.98, "at": 1767225600.02} in datagrams."""

    model_config = ConfigDict(populate_by_name=True)

    way: Literal["json_udp"]
    listen: Endpoint
    sender: Annotated[Address, Field(alias="from")]
    period_s: Period = 0.02


class MqttInput(_Strict):
    """The same lines, on a topic of the block's broker."""

    way: Literal["mqtt"]
    topic: OneTopic
    period_s: Period = 0.02


Input = Annotated[
    MeterInput | PhasorUdpInput | PhasorTcpInput | JsonUdpInput | MqttInput, Field(discriminator="way")
]


class PointConfig(_Strict):
    hz: Hz
    share: Annotated[float, Field(ge=0, le=1)]


class OwnConfig(_Strict):
    """A product that has no preset."""

    title: Annotated[str, Field(min_length=1, max_length=80)]
    nominal_hz: Literal[50, 60]
    full_s: Annotated[float, Field(ge=0.05, le=60)]
    sustain_s: Seconds
    rearm_s: Seconds = 0.0
    dead_band_hz: Annotated[float, Field(ge=0, le=1)] = 0.0
    droop: Annotated[tuple[PointConfig, ...], Field(max_length=16)] = ()
    steps: Annotated[tuple[PointConfig, ...], Field(max_length=16)] = ()
    release_hz: Hz | None = None
    release_share_per_s: Annotated[float, Field(gt=0, le=10)] | None = None
    over_max_ratio: Annotated[float, Field(ge=1, le=10)] | None = None


class FrequencyConfig(_Strict):
    """All of it.

    Attributes:
        trigger_hz: in place of the preset's, or where it has none.
        hold_s: how long a crossing stands before it is believed; left out: the preset's.
        delay_s: what it waits on purpose.
        rearm_s: in place of the preset's.
    """

    preset: str | None = None
    own: OwnConfig | None = None
    committed_kw: Kw
    input: Input
    trigger_hz: Hz | None = None
    hold_s: Annotated[float, Field(ge=0, le=0.5)] | None = None
    delay_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    rearm_s: Seconds | None = None
    frozen_after_s: Annotated[float, Field(ge=1, le=3600)] = 10.0

    @model_validator(mode="after")
    def _one_product(self) -> "FrequencyConfig":
        if (self.preset is None) == (self.own is None):
            raise ValueError("give a preset or own numbers, one of the two")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset: no {self.preset!r}; there are {', '.join(PRESETS)}")
        if self.preset is not None and PRESETS[self.preset].needs_trigger and self.trigger_hz is None:
            raise ValueError(f"trigger_hz: missing; {self.preset} has none of its own, your contract does")
        if self.trigger_hz is not None and (self.own is not None or PRESETS[str(self.preset)].droop):
            raise ValueError("trigger_hz: belongs to a preset with one step")
        self._check_steps()
        return self

    def _check_steps(self) -> None:
        """Raises ValueError for a threshold that a sound grid passes many times a day."""
        where, product = ("trigger_hz", _preset(self)) if self.own is None else ("own.steps", _own(self.own))
        highest_hz = product.nominal_hz - STEP_BELOW_MIN_HZ
        for step in product.steps:
            if step.hz > highest_hz:
                raise ValueError(
                    f"{where}: {step.hz:g} Hz is passed by a sound grid; name one of at most"
                    f" {highest_hz:g} Hz, or a droop curve"
                )


def frequency_settings(config: FrequencyConfig, ramp: Ramp) -> FrequencySettings:
    """The core's view, in W and s. Raises ValueError with a sentence.

    Args:
        config: as written.
        ramp: agreed with the site; the way back is never steeper.
    """
    product = _own(config.own) if config.own is not None else _preset(config)
    committed_w, period_s = config.committed_kw * KW, config.input.period_s
    up_w_per_s = ramp.up_w_per_s
    if product.release_share_per_s is not None:
        up_w_per_s = min(up_w_per_s, product.release_share_per_s * committed_w)
    hold_s = product.hold_s if config.hold_s is None else config.hold_s
    if isinstance(config.input, MeterInput):
        hold_s = max(hold_s, period_s)  # one value of a meter is polled several times, and is still one value
    return FrequencySettings(
        product=product.title,
        nominal_hz=product.nominal_hz,
        committed_w=committed_w,
        full_s=product.full_s,
        sustain_s=product.sustain_s,
        release_w_per_s=up_w_per_s,
        rearm_s=product.rearm_s if config.rearm_s is None else config.rearm_s,
        dead_band_hz=product.dead_band_hz,
        droop=product.droop,
        steps=product.steps,
        release_hz=product.release_hz,
        hold_s=hold_s,
        delay_s=config.delay_s,
        age_max_s=max(STALE_MIN_S, PERIODS_STALE * period_s),
        frozen_after_s=config.frozen_after_s,
        over_max_ratio=product.over_max_ratio,
    )


class _Product(NamedTuple):
    """A preset or own numbers, in one shape."""

    title: str
    nominal_hz: float
    full_s: float
    sustain_s: float
    rearm_s: float
    dead_band_hz: float
    droop: tuple[Point, ...]
    steps: tuple[Point, ...]
    release_hz: float | None
    release_share_per_s: float | None
    hold_s: float
    over_max_ratio: float | None


def _preset(config: FrequencyConfig) -> _Product:
    preset = PRESETS[str(config.preset)]
    trigger_hz, release = config.trigger_hz, preset.release_share_per_s
    if trigger_hz is None and preset.trigger_hz is not None:
        trigger_hz = preset.trigger_hz.value
    return _Product(
        title=preset.title,
        nominal_hz=preset.nominal_hz,
        full_s=preset.full_s.value,
        sustain_s=preset.sustain_s.value,
        rearm_s=preset.rearm_s.value,
        dead_band_hz=0.0 if preset.dead_band_hz is None else preset.dead_band_hz.value,
        droop=preset.droop,
        steps=() if trigger_hz is None else (Point(trigger_hz, 1.0),),
        release_hz=None,
        release_share_per_s=None if release is None else release.value,
        hold_s=preset.hold_s.value,
        over_max_ratio=None if preset.over_max_ratio is None else preset.over_max_ratio.value,
    )


def _own(own: OwnConfig) -> _Product:
    return _Product(
        title=own.title,
        nominal_hz=float(own.nominal_hz),
        full_s=own.full_s,
        sustain_s=own.sustain_s,
        rearm_s=own.rearm_s,
        dead_band_hz=own.dead_band_hz,
        droop=tuple(Point(point.hz, point.share) for point in own.droop),
        steps=tuple(Point(point.hz, point.share) for point in own.steps),
        release_hz=own.release_hz,
        release_share_per_s=own.release_share_per_s,
        hold_s=TWO_SAMPLES_S,
        over_max_ratio=own.over_max_ratio,
    )


def frequency_device(config: FrequencyConfig | None) -> Device | None:
    """The meter as a field device; None: the frequency comes another way."""
    if config is None or not isinstance(config.input, MeterInput):
        return None
    meter = config.input
    if not meter.points:  # its pace is for this point alone
        meter = meter.model_copy(update={"points": (meter.point,)})
    return Device(
        "frequency.input", "frequency", meter, meter.kind or "meter", needs=meter.point, needs_unit="Hz"
    )


def frequency_errors(config: FrequencyConfig, ramp: Ramp) -> Iterator[str]:
    """What only shows between the parts."""
    try:
        settings = frequency_settings(config, ramp)
    except ValueError as error:
        yield f"frequency: {error}"
        return
    yield from _release_errors(settings)
    if isinstance(config.input, MeterInput):
        yield from _meter_errors(config.input)
    period_s = config.input.period_s
    seen_s = period_s + max(settings.hold_s, period_s, settings.delay_s)
    if seen_s + OBEY_S > settings.full_s:
        yield (
            f"frequency.input: a crossing is certain {seen_s:g} s after it at the latest, and obeying takes"
            f" {OBEY_S:g} s: too late for the {settings.full_s:g} s of {settings.product};"
            " use a faster instrument, or another product"
        )


def _release_errors(settings: FrequencySettings) -> Iterator[str]:
    """A step that is held until a frequency comes back must not be let go where it is asked for."""
    release_hz = settings.release_hz
    if release_hz is None:
        return
    if settings.droop:
        yield "frequency.own.release_hz: a droop follows the frequency back; remove it"
    elif not settings.steps[0].hz < release_hz <= settings.nominal_hz:
        yield (
            f"frequency.own.release_hz: {release_hz:g}; give more than the highest step,"
            f" {settings.steps[0].hz:g} Hz, and at most {settings.nominal_hz:g} Hz"
        )


def _meter_errors(meter: MeterInput) -> Iterator[str]:
    try:
        profile = profile_of(meter)
    except ProfileError:
        return  # said with the devices
    point = None if profile is None else profile.points.get(meter.point)
    if point is None:
        return
    if point.poll != "fast":
        yield (
            f"frequency.input.point: {meter.point!r} is polled slowly in profile {meter.profile};"
            " a copy of the profile can say `poll: fast`"
        )
    if point.type[:1] in "iu" and point.scale > COARSEST_HZ:
        yield (
            f"frequency.input.point: {meter.point!r} counts in steps of {point.scale:g} Hz;"
            f" {COARSEST_HZ:g} Hz is the coarsest that shows an event: use another instrument"
        )
