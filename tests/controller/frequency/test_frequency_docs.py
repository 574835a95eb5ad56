"""docs/frequency-response.md has the numbers of the presets, each with its mark."""

from pathlib import Path

import pytest

from controller.core.frequency_presets import PRESETS, Figure

PAGE = Path(__file__).parents[3] / "docs" / "frequency-response.md"


def cell(figure, factor=1.0, unit=" s"):
    return "not said" if figure is None else f"{factor * figure.value:g}{unit} [{figure.mark}]"


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_has_every_figure_of_a_preset_with_its_mark(name):
    preset = PRESETS[name]
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    cells = [one.strip() for one in line.strip("|").split("|")]
    assert cells[2:6] == [
        cell(one) for one in (preset.full_s, preset.sustain_s, preset.rearm_s, preset.hold_s)
    ]
    release = preset.release_share_per_s
    assert cells[6] == ("the site's ramp" if release is None else cell(release, 100.0, " %/s"))
    assert cells[7] == cell(preset.over_max_ratio, 100.0, " %")
    if preset.trigger_hz is not None:
        assert cells[1] == cell(preset.trigger_hz, unit=" Hz")
    for point in preset.droop[1:]:
        assert f"{100 * point.share:g} % at {point.hz:g} Hz" in cells[1]


def test_every_figure_has_a_mark_and_a_source_and_memory_is_called_so():
    figures = [one for preset in PRESETS.values() for one in preset if isinstance(one, Figure)]
    assert len(figures) > 40
    for figure in figures:
        assert figure.source
        assert (figure.mark == "M") == (figure.source == "not verified")
    assert "[M] is from\nmemory and unverified" in PAGE.read_text()
