"""Tests of claims against formulas written out and numbers worked by hand."""

import math

import numpy as np
import pytest
from scipy import special, stats

from normlab.report.quantities import Measured
from normlab.report.verdicts import (
    Evidence,
    departs,
    exceeds,
    gains_more,
    gains_most_of,
    lies_above,
    lies_below,
    rises,
    student_p,
    varies_less,
    welch_p,
)


def t_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t, by the incomplete beta function."""
    half = 0.5 * special.betainc(df / 2, 0.5, df / (df + t * t))
    return half if t > 0 else 1 - half


@pytest.mark.parametrize("seed", range(5))
def test_p_is_that_of_scipy_stats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.3, 1.0, 3 + seed), rng.normal(0.0, 3.0, 2 + seed)
    welch = stats.ttest_ind(a - 0.1, b, equal_var=False, alternative="greater").pvalue
    assert welch_p(a, b, 0.1) == pytest.approx(welch, rel=1e-12)
    assert student_p(a, 0.1) == pytest.approx(stats.ttest_1samp(a, 0.1, alternative="greater").pvalue, rel=1e-12)


def test_one_pair_gains_more_than_another():
    """By Welch's and Satterthwaite's formulas, written out: the means of four cells, each with its own spread."""
    cells = {("a", "ap"): [13, 15, 17], ("b", "ap"): [10, 11, 12.5], ("c", "ap"): [6.0, 7.5], ("d", "ap"): [5.0, 6.0]}
    metric = {(*cell, seed): value for cell, values in cells.items() for seed, value in enumerate(values)}
    pairs = [[["a", "ap"], ["b", "ap"]], [["c", "ap"], ["d", "ap"]]]
    found = gains_more(Measured({"metric": metric}), 1.0, pairs=pairs)
    a, b, c, d = (np.array(values, float) for values in cells.values())
    errors = [x.var(ddof=1) / x.size for x in (a, b, c, d)]
    freedom = sum(errors) ** 2 / sum(e**2 / (x.size - 1) for e, x in zip(errors, (a, b, c, d), strict=True))
    effect = a.mean() - b.mean() - c.mean() + d.mean()
    assert found.effect == pytest.approx(effect) and found.threshold == 0 and found.seeds == 2
    assert found.p == pytest.approx(stats.t.sf(effect / math.sqrt(sum(errors)), freedom))
    assert gains_more(Measured({"metric": metric}), 1.0, pairs=pairs[::-1]).p == pytest.approx(1 - found.p)
    assert math.isnan(gains_more(Measured({"metric": {}}), 1.0, pairs=pairs).effect)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, 5.0])
def test_welch(threshold):
    a, b = np.array([98.0, 98.5, 99.1]), np.array([95.0, 96.2, 97.9, 94.0])
    va, vb = (sum((x - x.mean()) ** 2) / (len(x) - 1) / len(x) for x in (a, b))
    t = (a.mean() - b.mean() - threshold) / math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    assert welch_p(a, b, threshold) == pytest.approx(t_tail(t, df))


def test_student():
    values = np.array([0.02, 0.01, 0.03])  # mean 0.02, standard error 0.01 / sqrt(3), t = 2 sqrt(3), 2 degrees
    assert student_p(values) == pytest.approx(t_tail(2 * math.sqrt(3), 2))
    assert student_p(values) == pytest.approx(0.0370900, abs=1e-6)  # 0.5 - t / (2 sqrt(t^2 + 2))


@pytest.mark.parametrize(("above", "p"), [(99.0, 0.0), (97.0, 1.0), (98.0, 0.5)])
def test_without_spread_the_difference_decides(above, p):
    assert welch_p(np.full(3, above), np.full(2, 97.0), threshold=1.0) == p
    assert student_p(np.full(3, above - 98.0)) == p


def test_one_constant_sample_is_no_special_case(recwarn):
    a, b = np.array([98.3, 98.3, 98.3]), np.array([95.0, 96.2, 97.9])
    t = (a.mean() - b.mean()) / math.sqrt(b.var(ddof=1) / 3)
    assert welch_p(a, b, 0.0) == pytest.approx(t_tail(t, 2))
    assert not recwarn.list


@pytest.mark.parametrize("sizes", [(0, 3), (1, 3), (3, 1), (1, 1)])
def test_below_two_seeds_there_is_no_p(sizes):
    assert math.isnan(welch_p(np.arange(sizes[0], dtype=float), np.arange(sizes[1], dtype=float), 0.0))
    assert math.isnan(student_p(np.array([1.0])))


RATIO = {("sn", column, s): 0.3 + 0.02 * x + 0.01 * s * x for s in range(3) for x, column in enumerate("abc")}
MEASURED = Measured(
    {
        "metric": {("bn", "a", s): 98.0 + s for s in range(3)} | {("bn", "b", s): 95.0 + 2 * s for s in range(2)},
        "ratio": RATIO,
        "other": {key: value - 0.1 for key, value in RATIO.items()},
    }
)


def test_exceeds():
    found = exceeds(MEASURED, 0.5, of=["bn", "a"], than=["bn", "b"], margins=-2)
    assert (found.effect, found.threshold, found.seeds) == (3.0, -1.0, 2)
    assert found.p == pytest.approx(welch_p(np.array([98.0, 99.0, 100.0]), np.array([95.0, 97.0]), -1.0))
    between = exceeds(MEASURED, 1.0, of=["sn", "c"], than=["sn", "c"], quantity="ratio", than_quantity="other")
    assert between.effect == pytest.approx(0.1) and between.threshold == 0
    missing = exceeds(MEASURED, 0.5, of=["bn", "a"], than=["gn", "b"])
    assert math.isnan(missing.effect) and math.isnan(missing.p) and missing.seeds == 0


def test_cells_where_all_diverged_tell_nothing_of_each_other():
    """Both count as guessing, so that one would never be behind the other, and its spread would be small."""
    lost = {("bn", column, seed): 10.0 for column in "ab" for seed in range(3)}
    all_lost = Measured({"metric": lost, "diverged": dict.fromkeys(lost, 1.0)})
    found = exceeds(all_lost, 1.0, of=["bn", "a"], than=["bn", "b"], margins=-1)
    assert math.isnan(found.p) and (found.effect, found.threshold, found.seeds) == (0.0, -1.0, 3)
    assert math.isnan(varies_less(all_lost, 1.0, cell=["bn", "a"], margins=1).p)
    one_left = Measured({"metric": lost, "diverged": dict.fromkeys(lost, 1.0) | {("bn", "b", 0): 0.0}})
    assert exceeds(one_left, 1.0, of=["bn", "a"], than=["bn", "b"], margins=-1).p == 0
    assert varies_less(one_left, 1.0, cell=["bn", "b"], margins=1).p == 0


def test_rises():
    """Slopes per column are 0.02, 0.03, 0.04 by seed."""
    found = rises(MEASURED, 1.0, quantity="ratio", row="sn", columns=["a", "b", "c"])
    assert found.effect == pytest.approx(0.03) and found.seeds == 3
    assert found.p == pytest.approx(t_tail(3 * math.sqrt(3), 2))
    back = rises(MEASURED, 1.0, quantity="ratio", row="sn", columns=["c", "b", "a"])
    assert back.effect == pytest.approx(-0.03) and back.p == pytest.approx(1 - found.p)


def test_rises_leaves_out_seeds_that_lack_a_column():
    measured = Measured({"ratio": {k: v for k, v in RATIO.items() if k != ("sn", "b", 0)}})
    found = rises(measured, 1.0, quantity="ratio", row="sn", columns=["a", "b", "c"])
    assert found.effect == pytest.approx(0.035) and found.seeds == 2
    assert math.isnan(rises(Measured({}), 1.0, quantity="ratio", row="sn", columns=["a", "b"]).effect)


def test_a_number_is_exceeded_or_not():
    """0.34, 0.36, 0.38 less 0.3 have the mean 0.06, standard error 0.02 / sqrt(3)."""
    above = lies_above(MEASURED, 1.0, cell=["sn", "c"], quantity="ratio", value=0.3)
    assert above.effect == pytest.approx(0.36) and above.threshold == 0.3 and above.seeds == 3
    assert above.p == pytest.approx(t_tail(3 * math.sqrt(3), 2))
    below = lies_below(MEASURED, 1.0, cell=["sn", "c"], quantity="ratio", value=0.3)
    assert below.p == pytest.approx(1 - above.p) and below.effect == -above.effect


def test_spread():
    """Of three values with a standard deviation of 1, below 2: P(chi2 of 2 degrees < 2 / 4) = 1 - exp(-1 / 4)."""
    found = varies_less(MEASURED, 0.5, cell=["bn", "a"], margins=4)
    assert (found.effect, found.threshold, found.seeds) == (-1.0, -2.0, 3)
    assert found.p == pytest.approx(1 - math.exp(-0.25))
    assert math.isnan(varies_less(MEASURED, 0.5, cell=["gn", "a"], margins=4).p)


def layers(*shares: float) -> list[dict]:
    """Of a switchable layer each: the BN ratio of the mean; the variance has twice the odds."""
    rows = []
    for share in shares:
        odds = 2 * share / (1 - share)
        var = {"in": 1 / (1 + odds), "bn": odds / (1 + odds)}
        rows.append({"mean": {"in": 1 - share, "bn": share}, "var": var})
    return rows


def symmetric_kl(p: float, q: float) -> float:
    """Of two coins."""
    return sum(a * math.log(a / b) + b * math.log(b / a) for a, b in ((p, q), (1 - p, 1 - q)))


RATIOS = Measured(
    {},
    {("sn", "home", s): layers(0.5, 0.4 + 0.01 * s) for s in range(3)}
    | {("sn", "near", s): layers(0.5, 0.5) for s in range(3)}
    | {("sn", "far", s): layers(0.8, 0.6) for s in range(3)},
)


def test_departs():
    found = departs(RATIOS, 1.0, of=["sn", "far"], than=["sn", "near"], reference=["sn", "home"], moment="mean")
    far = [(symmetric_kl(0.8, 0.5) + symmetric_kl(0.6, 0.4 + 0.01 * s)) / 2 for s in range(3)]
    near = [symmetric_kl(0.5, 0.4 + 0.01 * s) / 2 for s in range(3)]
    assert found.effect == pytest.approx(np.mean(far) - np.mean(near)) and found.seeds == 3
    assert found.p == pytest.approx(student_p(np.array(far) - near)) and found.p < 0.05


def test_departs_more_than_seeds_do():
    found = departs(RATIOS, 1.0, of=["sn", "far"], than=["sn", "home"], reference=["sn", "home"], moment="mean")
    far = [(symmetric_kl(0.8, 0.5) + symmetric_kl(0.6, 0.4 + 0.01 * s)) / 2 for s in range(3)]
    seeds = [symmetric_kl(0.4 + 0.01 * ((s + 1) % 3), 0.4 + 0.01 * s) / 2 for s in range(3)]
    assert found.effect == pytest.approx(np.mean(far) - np.mean(seeds)) and found.seeds == 3
    one = Measured({}, {key: value for key, value in RATIOS.layers.items() if key[2] == 0})
    assert departs(one, 1.0, of=["sn", "far"], than=["sn", "home"], reference=["sn", "home"], moment="mean").seeds == 0


def test_most_of_a_gain():
    """From 10 down to 4; at 6 most of it is reached: (10 + 4) / 2 - 6 = 1, by Welch of the three."""
    cells = {"start": [9.8, 10.2, 10.0], "mo": [6.1, 5.9, 6.0], "do": [9.0, 9.3, 8.7], "end": [4.0, 4.1, 3.9]}
    runs = {(name, "e", seed): value for name, values in cells.items() for seed, value in enumerate(values)}

    def gained(of: str) -> Evidence:
        change = {"start": ["start", "e"], "end": ["end", "e"], "better": "lower"}
        return gains_most_of(Measured({"metric": runs}), 1.0, of=[of, "e"], **change)

    found = gained("mo")
    assert found.effect == pytest.approx(1.0) and found.seeds == 3
    parts = [w**2 * np.var(cells[name], ddof=1) / 3 for name, w in (("mo", 1), ("start", 0.5), ("end", 0.5))]
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    assert found.p == pytest.approx(t_tail(1.0 / math.sqrt(sum(parts)), freedom))
    assert gained("do").effect == pytest.approx(-2.0) and gained("do").p > 0.95
    assert math.isnan(gained("no").effect) and math.isnan(gained("no").p)


def test_two_quantities_of_one_cell_are_paired():
    runs = {key: str(key) for key in RATIO}
    measured = Measured(MEASURED.at_once, runs=runs)
    found = exceeds(measured, 1.0, of=["sn", "c"], than=["sn", "c"], quantity="ratio", than_quantity="other")
    assert found.is_paired and found.effect == pytest.approx(0.1) and found.seeds == 3
