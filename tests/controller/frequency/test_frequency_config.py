"""The `frequency` part of block.yaml: what it means, and what it refuses before anything starts."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

import protocols
from controller.config import ConfigError, devices, load_block
from controller.core.frequency_model import Point
from controller.core.frequency_presets import PRESETS
from controller.core.model import Ramp
from controller.frequency import FrequencyConfig, frequency_device, frequency_errors, frequency_settings

PROFILES = Path(protocols.__file__).parent / "profiles"
RAMP = Ramp(50e3, 5e3)
MQTT = {"way": "mqtt", "topic": "grid/hz"}
METER = {"way": "meter", "profile": "janitza_umg", "url": "modbus+tcp://10.0.0.7"}


def config(**changes: Any) -> FrequencyConfig:
    plain = {"preset": "nordic_ffr_a_short", "committed_kw": 200.0, "input": MQTT}
    return TypeAdapter(FrequencyConfig).validate_python(
        {key: value for key, value in {**plain, **changes}.items() if value is not None}
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_settings_that_a_phasor_stream_can_serve(name):
    trigger_hz = 49.8 if PRESETS[name].needs_trigger else None
    one = config(preset=name, trigger_hz=trigger_hz)
    settings = frequency_settings(one, RAMP)
    assert settings.committed_w == 200e3
    assert list(frequency_errors(one, RAMP)) == []


def test_the_way_back_is_the_gentler_of_product_and_site():
    assert frequency_settings(config(), RAMP).release_w_per_s == 5e3
    assert frequency_settings(config(), Ramp(1e6, 1e6)).release_w_per_s == pytest.approx(40e3)  # 20 %/s
    assert frequency_settings(config(preset="nordic_ffr_a_long"), Ramp(1e6, 1e6)).release_w_per_s == 1e6


def test_a_preset_without_a_threshold_asks_for_that_of_the_contract():
    with pytest.raises(ValidationError, match="your contract does"):
        config(preset="eirgrid_ffr")
    settings = frequency_settings(config(preset="eirgrid_ffr", trigger_hz=49.75), RAMP)
    assert settings.steps == (Point(49.75, 1.0),)


def test_a_product_of_ones_own_is_taken_as_written():
    own = {
        "title": "site relay",
        "nominal_hz": 60,
        "full_s": 0.5,
        "sustain_s": 60.0,
        "steps": ({"hz": 59.7, "share": 1.0},),
        "release_hz": 59.95,
    }
    settings = frequency_settings(config(preset=None, own=own), RAMP)
    assert (settings.product, settings.nominal_hz, settings.release_hz) == ("site relay", 60.0, 59.95)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": None}, "one of the two"),
        ({"preset": "ffr"}, "there are ercot_ffr"),
        ({"preset": "gb_dynamic_containment_low", "trigger_hz": 49.8}, "preset with one step"),
        ({"input": {"way": "phasor_udp", "listen": "4713", "from": "10.0.0.1"}}, "ADDRESS:PORT"),
        ({"input": {"way": "phasor_udp", "listen": "h:4713", "from": "pmu"}}, "IPv4"),
        ({"input": {"way": "phasor_udp", "listen": "h:1", "from": "10.0.0.1", "ask": 4712}}, "id: missing"),
        ({"input": {"way": "mqtt", "topic": "grid/#"}}, "one topic"),
        (
            {"trigger_hz": 49.97},
            "trigger_hz: 49.97 Hz is passed by a sound grid; name one of at most 49.9 Hz",
        ),
        ({"preset": "ercot_ffr", "trigger_hz": 60.0}, "at most 59.9 Hz"),
        (
            {
                "preset": None,
                "own": {
                    "title": "t",
                    "nominal_hz": 60,
                    "full_s": 0.5,
                    "sustain_s": 60.0,
                    "steps": ({"hz": 59.7, "share": 0.5}, {"hz": 59.95, "share": 1.0}),
                },
            },
            "own.steps: 59.95 Hz",
        ),
        ({"committed_kw": 0.0}, "greater than 0"),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(changes, words):
    with pytest.raises(ValidationError, match=words):
        config(**changes)


def test_an_instrument_too_slow_for_its_product_is_refused():
    """A meter that averages over ten cycles sees a crossing when ERCOT wants the power gone."""
    errors = list(frequency_errors(config(preset="ercot_ffr", input=METER), RAMP))
    assert len(errors) == 1
    assert "use a faster instrument" in errors[0]
    assert list(frequency_errors(config(input=METER), RAMP)) == []


@pytest.mark.parametrize(
    ("profile", "point", "words"),
    [
        ("em24_meter", "frequency_hz", "steps of 0.1 Hz"),
        ("iem3000_meter", "frequency_hz", "polled slowly"),
    ],
)
def test_a_register_that_cannot_show_an_event_is_refused(profile, point, words):
    errors = list(frequency_errors(config(input={**METER, "profile": profile, "point": point}), RAMP))
    assert any(words in error for error in errors)


def test_a_meter_is_a_field_device_and_one_of_its_values_counts_once():
    one = config(input=METER)
    device = frequency_device(one)
    assert (device.name, device.needs, device.config.poll_s) == ("frequency", "frequency_hz", 0.05)
    assert device.config.points == ("frequency_hz",), "nothing else of the meter is read at that pace"
    assert frequency_settings(one, RAMP).hold_s == 0.2
    assert frequency_device(config()) is None
    assert frequency_device(None) is None


def test_a_block_with_a_meter_of_the_frequency_holds_as_a_whole(block_with, tmp_path):
    """Also with a copy of a profile whose register was polled slowly."""
    slow = (PROFILES / "pm5000_meter.yaml").read_text()
    fast = tmp_path / "fast.yaml"
    fast.write_text(re.sub(r"(frequency_hz: .*)poll: slow", r"\1poll: fast", slow))
    for profile in ("janitza_umg", str(fast)):
        part = {"preset": "nordic_ffr_a_short", "committed_kw": 5, "input": {**METER, "profile": profile}}
        block = load_block(block_with({"frequency": part}))
        assert [one.name for one in devices(block)][-1] == "frequency"


def test_a_register_of_another_unit_is_no_frequency(block_with):
    part = {"preset": "nordic_ffr_a_short", "committed_kw": 5, "input": {**METER, "point": "power_w"}}
    with pytest.raises(ConfigError, match=r"frequency\.input: point 'power_w' is in W; Hz is needed"):
        load_block(block_with({"frequency": part}))


@pytest.mark.parametrize(
    ("release_hz", "is_right"), [(49.4, False), (49.5, False), (49.6, True), (51.0, False)]
)
def test_a_step_is_let_go_above_itself_and_where_the_grid_comes_back_to(release_hz, is_right):
    own = {"title": "relay", "nominal_hz": 50, "full_s": 0.5, "sustain_s": 5.0, "release_hz": release_hz}
    steps = ({"hz": 49.5, "share": 0.5}, {"hz": 49.0, "share": 1.0})
    errors = list(frequency_errors(config(preset=None, own={**own, "steps": steps}), RAMP))
    assert ([] if is_right else ["frequency.own.release_hz"]) == [one.partition(":")[0] for one in errors]


def test_a_droop_has_no_frequency_to_be_let_go_at():
    droop = ({"hz": 49.9, "share": 0.0}, {"hz": 49.5, "share": 1.0})
    own = {"title": "relay", "nominal_hz": 50, "full_s": 0.5, "sustain_s": 5.0, "droop": droop}
    assert not list(frequency_errors(config(preset=None, own=own), RAMP))
    (error,) = frequency_errors(config(preset=None, own={**own, "release_hz": 49.95}), RAMP)
    assert "a droop follows the frequency back" in error
