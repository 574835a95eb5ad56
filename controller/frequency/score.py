"""What a record says of a response: how fast 95 % of it came, and how much of it was there.

Measured at the block's meter, which has a lag of its own: a figure here is never better than the truth. The
clock runs from the first sample beyond the threshold. Delivery is judged from the moment at which the product
wants all of it, for as long as the same share is held.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

REACHED_RATIO: Final = 0.95


class Row(NamedTuple):
    """One moment of a record; powers in W. None: not known."""

    at_s: float
    at_utc_s: float
    hz: float | None
    block_w: float | None
    budget_w: float
    limit_w: float | None
    share: float
    phase: str


class Score(NamedTuple):
    """None: there is nothing to judge it by."""

    response_s: float | None  # until 95 % of what was asked then
    least_ratio: float | None  # of what was asked, once it was due
    mean_ratio: float | None
    most_ratio: float | None
    over_max_ratio: float | None = None  # what the product allows

    def __str__(self) -> str:
        said = "95 % not reached" if self.response_s is None else f"95 % after {self.response_s:.2f} s"
        if self.mean_ratio is None:
            return f"{said}; delivery not judged"
        assert self.least_ratio is not None
        assert self.most_ratio is not None
        verdict = "" if self.least_ratio >= REACHED_RATIO else "; under-delivery"
        if self.over_max_ratio is not None and self.most_ratio > self.over_max_ratio:
            verdict += f"; over-delivery, {100 * self.over_max_ratio:g} % is allowed"
        return (
            f"{said}; delivered {100 * self.mean_ratio:.1f} % of what was asked"
            f" (least {100 * self.least_ratio:.1f} %, most {100 * self.most_ratio:.1f} %){verdict}"
        )


def score(
    rows: Sequence[Row],
    *,
    began_at_s: float,
    baseline_w: float,
    committed_w: float,
    full_s: float,
    over_max_ratio: float | None = None,
) -> Score:
    """Of one activation.

    Args:
        rows: in order of time; those before `began_at_s` do not count.
        began_at_s: first sample beyond the threshold.
        baseline_w: block power then.
        committed_w: what is shed at share 1.
        full_s: from `began_at_s` to full response, as the product has it.
        over_max_ratio: of what is asked: more is over-delivery; None: the product says nothing.
    """
    ratios = [
        (row.at_s - began_at_s, row.share, (baseline_w - row.block_w) / (row.share * committed_w))
        for row in rows
        if row.at_s >= began_at_s and row.block_w is not None and row.share > 0.0
    ]
    reached = next((at_s for at_s, _, ratio in ratios if ratio >= REACHED_RATIO), None)
    settled: list[float] = []
    moved_at_s = -full_s
    for n, (at_s, held, ratio) in enumerate(ratios):
        if n and held != ratios[n - 1][1]:
            moved_at_s = at_s  # a droop that moves, or a recovery: due again a little later
        if at_s - max(0.0, moved_at_s) >= full_s:
            settled.append(ratio)
    if not settled:
        return Score(reached, None, None, None)
    return Score(reached, min(settled), sum(settled) / len(settled), max(settled), over_max_ratio)
