"""Whether a claim holds: tests with seeds as the sample, and what they add up to.

A test states that an effect exceeds a threshold, and gives one p-value: how likely an effect as large would be if the
true one lay at the threshold. Small: it lies above. Near 1: it lies below. Between: these seeds cannot tell.

A test named in a table's YAML is a function of (measured, margin): what the runs measured (records.measured), and
the scale's margin, the smallest difference that counts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from normlab.report.records import Key, Measured

ALPHA = 0.05  # of a claim, on either side
Verdict = Literal["holds", "does not hold", "not enough seeds"]


class Evidence(NamedTuple):
    """The outcome of one test."""

    what: str  # the effect, in words
    effect: float  # NaN where a cell is missing
    threshold: float
    p: float  # NaN below two seeds
    seeds: int


def exceeds(
    measured: Measured,
    margin: float,
    *,
    of: Sequence[str],
    than: Sequence[str],
    margins: float = 0.0,
    quantity: str = "metric",
) -> Evidence:
    """The mean of one (row, column) is above that of another by more than `margins` times the margin.

    Welch's t-test, one-sided: cells of a table vary differently from seed to seed. Seeds are not paired, since equal
    ones share little beyond the initial weights.
    """
    values = measured.get(quantity, {})
    above, below = (_of_cell(values, row, column) for row, column in (of, than))
    threshold = margins * margin
    effect = float(above.mean() - below.mean()) if above.size and below.size else math.nan
    what = f"{' '.join(of)} − {' '.join(than)}"
    return Evidence(what, effect, threshold, welch_p(above, below, threshold), min(above.size, below.size))


def rises(measured: Measured, margin: float, *, quantity: str, row: str, columns: Sequence[str]) -> Evidence:
    """A quantity of a row rises along the columns.

    The slope per column is fitted for each seed; Student's t-test, one-sided, that the slopes' mean exceeds 0.
    """
    values = measured.get(quantity, {})
    seeds = sorted({seed for _, _, seed in values})
    complete = [seed for seed in seeds if all((row, column, seed) in values for column in columns)]
    lines_SK = np.array([[values[row, column, seed] for column in columns] for seed in complete])
    slopes_S = np.polyfit(range(len(columns)), lines_SK.T, 1)[0] if complete else np.array([])
    effect = float(slopes_S.mean()) if complete else math.nan
    what = f"{quantity} of {row}, per step from {columns[0]} to {columns[-1]}"
    return Evidence(what, effect, 0.0, student_p(slopes_S), len(complete))


def welch_p(above: NDArray[np.float64], below: NDArray[np.float64], threshold: float) -> float:
    """One-sided p of mean(above) - mean(below) > threshold; NaN if either has fewer than two values.

    Where neither varies, the difference itself decides.
    """
    if min(above.size, below.size) < 2:
        return math.nan
    if not _varies(above) and not _varies(below):
        return _p_without_spread(above[0] - below[0] - threshold)
    samples = [(s.mean(), s.std(ddof=1), s.size) for s in (above - threshold, below)]
    return float(stats.ttest_ind_from_stats(*samples[0], *samples[1], equal_var=False, alternative="greater").pvalue)


def student_p(values: NDArray[np.float64]) -> float:
    """One-sided p of a mean above 0; NaN below two values. Where they do not vary, their sign decides."""
    if values.size < 2:
        return math.nan
    if not _varies(values):
        return _p_without_spread(values[0])
    return float(stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)


def verdict(evidence: Sequence[Evidence]) -> Verdict:
    """A claim holds when each of its tests does, and fails when one is shown to be the other way round.

    All tests must pass at ALPHA (an intersection-union test, which needs no correction); that any is contradicted is
    tested at ALPHA divided by their number (Bonferroni). Else the seeds cannot tell.
    """
    if all(e.p < ALPHA for e in evidence):
        return "holds"
    if any(1 - e.p < ALPHA / len(evidence) for e in evidence):
        return "does not hold"
    return "not enough seeds"


def _of_cell(values: Mapping[Key, float], row: str, column: str) -> NDArray[np.float64]:
    return np.array([value for (r, c, _), value in values.items() if (r, c) == (row, column)])


def _varies(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) > 1e-9 * max(1.0, np.abs(values).max()))  # more than rounding does


def _p_without_spread(excess: float) -> float:
    return 0.5 if abs(excess) < 1e-9 else float(excess < 0)
