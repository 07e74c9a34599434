"""Tests of claims, with seeds as the sample; what they add up to is judged in judging.py.

A test states that an effect exceeds a threshold, and gives one p-value: how likely an effect as large would be if the
true one lay at the threshold. Small: it lies above. Near 1: it lies below. Between: these seeds cannot tell.

A test named in a table's YAML is a function of (measured, margin): what the runs measured (report/quantities.py names
it), and the scale's margin, the smallest difference that counts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Gt
from numpy.typing import NDArray
from scipy import special  # scipy.stats, which has these tests, takes a second to import

from normlab.report.quantities import Measured, divergence_between


class Evidence(NamedTuple):
    """The outcome of one test."""

    what: str  # the effect, in words
    effect: float  # NaN where a cell is missing
    threshold: float
    p: float  # NaN below two seeds
    seeds: int
    error: float = math.nan  # standard error of the effect
    freedom: float = math.nan  # degrees of it
    is_paired: bool = False  # a difference of numbers that each run has both of
    margin: float = math.nan  # the smallest effect that counts, where that is known

    @property
    def is_lead(self) -> bool:
        """Whether it asks who is ahead, by however little: then both may be equal within the margin."""
        return self.threshold == 0 and not math.isnan(self.margin)

    @property
    def p_equal(self) -> float:
        """Of two one-sided tests that the effect lies between minus and plus the margin (Schuirmann 1987)."""
        if math.isnan(self.p) or math.isnan(self.margin):
            return math.nan
        if self.error == 0:
            return float(abs(self.effect) >= self.margin)
        return t_tail((self.margin - abs(self.effect)) / self.error, self.freedom)


def exceeds(
    measured: Measured,
    margin: float,
    *,
    of: Sequence[str],
    than: Sequence[str],
    margins: float = 0.0,
    quantity: str = "metric",
    than_quantity: str | None = None,
) -> Evidence:
    """The mean of one (row, column) is above that of another by more than `margins` times the margin.

    `than_quantity` is what is compared of the other, if it is not `quantity` too. Where both numbers are of one run,
    as its accuracy under two estimators, they are paired: Student's t-test of the differences, one-sided. Else Welch's:
    cells of a table vary differently from seed to seed, and runs of equal seeds share little beyond the initial
    weights. There is no p where all runs of both diverged.
    """
    one, other = measured.of(quantity, of), measured.of(than_quantity or quantity, than)
    what = f"{_named(quantity)}{' '.join(of)} − {_named(than_quantity or 'metric')}{' '.join(than)}"
    threshold = margins * margin
    counts = margin if quantity == "metric" and than_quantity in (None, "metric") else math.nan
    if measured.are_same_runs(of, than):
        differences = np.array([one[seed] - other[seed] for seed in one.keys() & other.keys()])
        found = _student(what, differences, threshold)._replace(is_paired=True, margin=counts)
    else:
        found = _welch(what, _array(one), _array(other), threshold)._replace(margin=counts)
    guesses = quantity == "metric" and measured.all_diverged(of) and measured.all_diverged(than)
    return found._replace(p=math.nan) if guesses else found


def gains_most_of(
    measured: Measured,
    margin: float,
    *,
    of: Sequence[str],
    start: Sequence[str],
    end: Sequence[str],
    better: Literal["higher", "lower"],
) -> Evidence:
    """The metric of one (row, column) is better than the middle between those at the start and the end of a change.

    What it has of the change is then most of what all of it gains. Welch's t-test of the contrast of the three,
    one-sided.
    """
    cells = [_array(measured.of("metric", cell)) for cell in (of, start, end)]
    sign = 1.0 if better == "higher" else -1.0
    what = f"{' '.join(of)} beyond the middle of {' '.join(start)} and {' '.join(end)}"
    return _contrast(what, cells, [sign, -sign / 2, -sign / 2], 0.0)


def most_exceed(measured: Measured, margin: float, *, pairs: Sequence[Sequence[Sequence[str]]]) -> Evidence:
    """Of most pairs of (row, column) the first has the higher metric: their share exceeds a half.

    The share is counted for each seed, of the pairs whose runs there are; ties count a half. Student's t-test,
    one-sided.
    """
    ahead: dict[int, list[float]] = {}
    for one, other in pairs:
        values, others = measured.of("metric", one), measured.of("metric", other)
        for seed in values.keys() & others.keys():
            ahead.setdefault(seed, []).append(0.5 * (1 + np.sign(values[seed] - others[seed])))
    shares_S = np.array([np.mean(ahead[seed]) for seed in sorted(ahead)])
    return _student(f"share of {len(pairs)} pairs whose first is ahead", shares_S, 0.5)


def gains_more(measured: Measured, margin: float, *, pairs: Sequence[Sequence[Sequence[str]]]) -> Evidence:
    """The metric of the first pair of (row, column), the one minus the other, is above that of the second pair.

    Welch's t-test of the contrast of the four, one-sided.
    """
    (one, other), (third, fourth) = pairs
    cells = [_array(measured.of("metric", cell)) for cell in (one, other, third, fourth)]
    names = [" ".join(cell) for cell in (one, other, third, fourth)]
    what = "({} − {}) − ({} − {})".format(*names)
    return _contrast(what, cells, [1.0, -1.0, -1.0, 1.0], 0.0)


def rises(measured: Measured, margin: float, *, quantity: str, row: str, columns: Sequence[str]) -> Evidence:
    """A quantity of a row rises along the columns.

    The slope per column is fitted for each seed; Student's t-test, one-sided, that the slopes' mean exceeds 0.
    """
    by_column = [measured.of(quantity, (row, column)) for column in columns]
    complete = sorted(set(by_column[0]).intersection(*by_column[1:]))
    lines_SK = np.array([[values[seed] for values in by_column] for seed in complete])
    slopes_S = np.polyfit(range(len(columns)), lines_SK.T, 1)[0] if complete else np.array([])
    return _student(f"{quantity} of {row}, per step from {columns[0]} to {columns[-1]}", slopes_S, 0.0)


def lies_above(measured: Measured, margin: float, *, cell: Sequence[str], quantity: str, value: float) -> Evidence:
    """A quantity of a (row, column) exceeds a number. Student's t-test, one-sided."""
    return _student(f"{quantity} of {' '.join(cell)}", _array(measured.of(quantity, cell)), value)


def lies_below(measured: Measured, margin: float, *, cell: Sequence[str], quantity: str, value: float) -> Evidence:
    """A quantity of a (row, column) is less than a number. Student's t-test, one-sided."""
    return _student(f"− {quantity} of {' '.join(cell)}", -_array(measured.of(quantity, cell)), -value)


def departs(
    measured: Measured,
    margin: float,
    *,
    of: Sequence[str],
    than: Sequence[str],
    reference: Sequence[str],
    moment: Literal["mean", "var"],
) -> Evidence:
    """The ratios of one (row, column) are farther from the reference's than another's are.

    Distances are divergences of the ratios at the end, averaged over the layers (Distinct, Fig. 5), between runs of one
    seed; where `than` is the reference itself, its own is between each seed and the next, the last and the first.
    Student's t-test, one-sided, of their differences.
    """
    far, near, home = (measured.layers_of(cell) for cell in (of, than, reference))
    seeds = sorted(far.keys() & near.keys() & home.keys())
    others = seeds
    if list(than) == list(reference):
        others = [*seeds[1:], *seeds[:1]] if len(seeds) > 1 else []
    effects = [
        divergence_between(far[seed], home[seed], moment) - divergence_between(near[other], home[seed], moment)
        for seed, other in zip(seeds, others, strict=False)
    ]
    what = f"D({moment}) from {' '.join(reference)}: {' '.join(of)} − {' '.join(than)}"
    return _student(what, np.array(effects), 0.0)


def varies_less(
    measured: Measured, margin: float, *, cell: Sequence[str], margins: Annotated[float, Gt(0)]
) -> Evidence:
    """The standard deviation of a (row, column) over seeds is below `margins` times the margin.

    The chi-square test of a variance, one-sided, of normal scores. There is no p where all runs diverged.
    """
    values = _array(measured.of("metric", cell))
    threshold, std = margins * margin, float(values.std(ddof=1)) if values.size > 1 else math.nan
    p = math.nan
    if values.size > 1 and not measured.all_diverged(cell):
        p = float(special.chdtr(values.size - 1, (values.size - 1) * (std / threshold) ** 2))
    return Evidence(f"− spread of {' '.join(cell)}", -std, -threshold, p, values.size)


def welch_p(above: NDArray[np.float64], below: NDArray[np.float64], threshold: float) -> float:
    """One-sided p of mean(above) - mean(below) > threshold; NaN if either has fewer than two values.

    Where neither varies, the difference itself decides.
    """
    return _welch("", above, below, threshold).p


def student_p(values: NDArray[np.float64], threshold: float = 0.0) -> float:
    """One-sided p of a mean above the threshold; NaN below two values, and with an infinite one.

    Where values do not vary, their difference from the threshold decides.
    """
    return _student("", values, threshold).p


def _welch(what: str, above: NDArray[np.float64], below: NDArray[np.float64], threshold: float) -> Evidence:
    return _contrast(what, [above, below], [1.0, -1.0], threshold)


def _contrast(
    what: str, samples: Sequence[NDArray[np.float64]], weights: Sequence[float], threshold: float
) -> Evidence:
    """A weighted sum of the means of independent samples, by Welch's and Satterthwaite's degrees of freedom."""
    sizes = [sample.size for sample in samples]
    effect = sum(w * float(s.mean()) for w, s in zip(weights, samples, strict=True)) if all(sizes) else math.nan
    found = Evidence(what, effect, threshold, math.nan, min(sizes))
    if found.seeds < 2:
        return found
    if not any(_varies(sample) for sample in samples):
        return found._replace(p=_p_without_spread(effect - threshold), error=0.0, freedom=found.seeds - 1)
    errors = [w**2 * s.var(ddof=1) / s.size for w, s in zip(weights, samples, strict=True)]  # of the means, squared
    freedom = sum(errors) ** 2 / sum(e**2 / (size - 1) for e, size in zip(errors, sizes, strict=True))
    return _by_t(found, math.sqrt(sum(errors)), freedom)


def _student(what: str, values: NDArray[np.float64], threshold: float) -> Evidence:
    effect = float(values.mean()) if values.size else math.nan
    found = Evidence(what, effect, threshold, math.nan, values.size)
    if values.size < 2 or not np.isfinite(values).all():
        return found
    if not _varies(values):
        return found._replace(p=_p_without_spread(values[0] - threshold), error=0.0, freedom=values.size - 1)
    return _by_t(found, float(values.std(ddof=1)) / math.sqrt(values.size), values.size - 1)


def _by_t(found: Evidence, error: float, freedom: float) -> Evidence:
    return found._replace(p=t_tail((found.effect - found.threshold) / error, freedom), error=error, freedom=freedom)


def t_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's distribution."""
    return float(special.stdtr(freedom, -t))


def _array(by_seed: Mapping[int, float]) -> NDArray[np.float64]:
    return np.array(list(by_seed.values()), dtype=np.float64)


def _named(quantity: str) -> str:
    return "" if quantity == "metric" else f"{quantity}: "


def _varies(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) > 1e-9 * max(1.0, np.abs(values).max()))  # more than rounding does


def _p_without_spread(excess: float) -> float:
    return 0.5 if abs(excess) < 1e-9 else float(excess < 0)
