"""The picture of a run says what was judged, and shows nothing before its cause."""

import numpy as np
import pytest

from firmware_sim import plot
from firmware_sim.recorder import Mark
from firmware_sim.verdict import Contract, Expectation, Request, Trace, Verdict

CONTRACT = Contract(ramp_down_w_per_s=2000, ramp_up_w_per_s=2000, rating_w=62_000, response_s=0.5)
CALL_S = 5.0


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Draws; gives back the title of each file and its figure."""
    kept = {}

    def keep(figure, path, title):
        kept[path.name] = title, figure

    monkeypatch.setattr(plot, "_write", keep)

    def draw(*, passed=True, requests=(), called=(), racks=None):
        t_s = np.arange(-60, 400) * 0.05
        block_w = np.where(t_s <= CALL_S, 57e3, 33e3)
        trace = Trace(t_s, block_w, block_w, np.full(len(t_s), 70e3))
        verdict = Verdict({}, (Expectation("peak_w", 57e3, None, 60e3 if passed else 50e3),))
        marks = [Mark(CALL_S, "trip: deep", "event")]
        all_racks = None if racks is None else {f"r{number:02}": block_w for number in range(racks)}
        plot.draw(
            tmp_path / "plot.png", "a run", trace, np.full(len(t_s), 62e3), requests, CONTRACT, marks, verdict,
            None, all_racks, called,
        )  # fmt: skip
        return kept

    yield draw
    from matplotlib import pyplot as plt

    plt.close("all")


@pytest.mark.parametrize(("passed", "word"), [(True, "PASSED"), (False, "FAILED")])
def test_every_picture_says_whether_the_run_passed(written, passed, word):
    titles = {name: title for name, (title, _) in written(passed=passed, racks=8).items()}
    assert titles == dict.fromkeys(("plot.png", "racks.png"), f"{word}   a run")


def test_a_gateways_picture_says_it_too(written, tmp_path):
    seen = plot.SeenPoint("feed a", np.arange(0, 5.0), np.ones(5), {})
    plot.draw_seen(tmp_path / "seen.png", "a gateway", [], [seen], Verdict({}, ()))
    assert written()["seen.png"][0] == "PASSED   a gateway"


def test_no_mean_moves_before_its_cause(written):
    figures = [figure for _, figure in written(racks=8).values()]
    lines = [line for figure in figures for axes in figure.axes for line in axes.lines]
    means = [line for line in lines if line.get_linewidth() > 1 and len(line.get_xdata()) > 300]
    assert len(means) >= 2 + 8
    for line in means:
        t_s, values = line.get_xdata(), line.get_ydata()
        before = values[(t_s <= CALL_S) & ~np.isnan(values)]
        assert before == pytest.approx(before[0])


def test_the_line_of_the_contract_goes_through_the_same_mean_as_power(written):
    request = Request(published_s=CALL_S, starts_s=CALL_S, ends_s=15.0, baseline_w=57e3, limit_w=49e3)
    figure = written(requests=[request])["plot.png"][1]
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "line of the contract"]
    at_kw = dict(zip(np.round(line.get_xdata(), 2), line.get_ydata(), strict=True))
    assert at_kw[CALL_S] == pytest.approx(57)
    assert at_kw[8.0] == pytest.approx(57 - 2 * 2.5, abs=0.06), (
        "half a second behind, as a mean of one second is"
    )


def test_the_legend_names_levels_calls_and_limits_once_each(written):
    request = Request(published_s=CALL_S, starts_s=CALL_S, ends_s=15.0, baseline_w=57e3, limit_w=49e3)
    called = [(5.0, 9.0, 34e3), (12.0, np.inf, 45e3)]
    (legend,) = written(requests=[request], called=called)["plot.png"][1].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names))
    for name in ("level of shedding", "while it is called", "while a limit is asked for"):
        assert name in names
