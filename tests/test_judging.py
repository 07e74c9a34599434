"""Verdicts on made-up measurements whose answers are known, and how often they are wrong, by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from normlab.report.judging import ALPHA, POWER, benjamini_hochberg, holm, rule, seeds_needed
from normlab.report.quantities import Measured
from normlab.report.verdicts import Evidence, exceeds

NAN = math.nan


def measured(**cells: list[float]) -> Measured:
    """Cells of a row, by column; every run is another, unless two cells are given by one list."""
    keys = {(("r", column), seed): value for column, values in cells.items() for seed, value in enumerate(values)}
    runs = {
        ("r", column, seed): f"{id(values)}-{seed}" for column, values in cells.items() for seed in range(len(values))
    }
    return Measured({"metric": {(*cell, seed): value for (cell, seed), value in keys.items()}}, runs=runs)


def ahead(found: Measured, of: str = "a", than: str = "b", margin: float = 1.0, margins: float = 0.0) -> Evidence:
    return exceeds(found, margin, of=["r", of], than=["r", than], margins=margins)


def verdict(*tests: Evidence) -> str:
    return rule({"claim": tests})["claim"].verdict


# ---- each kind of verdict --------------------------------------------------------------------------------------------

NEAR = [90.1, 90.0, 89.9, 90.05, 89.95]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([92.0, 92.2, 91.9], [90.0, 90.1, 89.9], "holds"),
        ([88.0, 88.2, 87.9], [90.0, 90.1, 89.9], "does not hold"),
        (NEAR, [value + 0.02 for value in NEAR[::-1]], "equal within the margin"),
        ([90.0, 95.0, 85.0], [91.0, 94.0, 86.0], "points the other way"),
        ([91.0, 96.0, 86.0], [90.0, 94.0, 86.0], "not enough seeds"),
        ([91.0], [90.0], "not enough seeds"),
        ([89.0], [90.0], "not enough seeds"),
    ],
)
def test_two_cells(a: list[float], b: list[float], expected: str) -> None:
    assert verdict(ahead(measured(a=a, b=b))) == expected


def test_a_claim_that_allows_for_a_margin_is_not_called_equal() -> None:
    """It holds where the two are equal: not behind by a margin."""
    found = measured(a=NEAR, b=[value + 0.02 for value in NEAR[::-1]])
    assert verdict(ahead(found, margins=-1)) == "holds"


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01], "holds"),
        ([0.01, 0.049], "holds"),
        ([0.01, 0.051], "not enough seeds"),
        ([0.96], "does not hold"),
        ([0.01, 0.96], "not enough seeds"),  # two tests: 1 - p must be below 0.025
        ([0.01, 0.98], "does not hold"),
        ([NAN], "not enough seeds"),
        ([0.01, NAN], "not enough seeds"),
        ([NAN, 0.99], "does not hold"),
    ],
)
def test_several_tests(p: list[float], expected: str) -> None:
    assert verdict(*(Evidence("", 0.0, 0.0, value, 3) for value in p)) == expected


def test_the_claims_of_a_table_are_judged_together() -> None:
    tests = {name: [Evidence("", 1.0, 0.0, p, 3)] for name, p in {"a": 0.02, "b": 0.04, "c": NAN, "d": 0.6}.items()}
    assert rule({"a": tests["a"]})["a"].verdict == "holds"
    ruled = rule(tests)
    assert {name: ruling.verdict for name, ruling in ruled.items()} == dict.fromkeys(tests, "not enough seeds")
    assert [ruled[name].p for name in "abd"] == [0.02, 0.04, 0.6]
    assert [ruled[name].adjusted for name in "abd"] == pytest.approx([0.06, 0.08, 0.6])


def test_numbers_of_one_run_are_paired() -> None:
    """Accuracies of the same weights under two estimators: spreads over seeds cancel."""
    base = [80.0, 90.0, 85.0, 95.0]
    better = [value + lead for value, lead in zip(base, [1.0, 1.1, 0.9, 1.05], strict=True)]
    keys = {("r", column, seed): value for column, of in (("a", better), ("b", base)) for seed, value in enumerate(of)}
    one_run_each = Measured({"metric": keys}, runs={key: f"run {key[2]}" for key in keys})
    found = ahead(one_run_each)
    assert found.is_paired and found.p == pytest.approx(
        stats.ttest_rel(better, base, alternative="greater").pvalue, rel=1e-9
    )
    other = ahead(Measured({"metric": keys}, runs={key: str(key) for key in keys}))
    assert not other.is_paired and other.p == pytest.approx(
        stats.ttest_ind(better, base, equal_var=False, alternative="greater").pvalue, rel=1e-9
    )


# ---- against their definitions ---------------------------------------------------------------------------------------


def test_equivalence_is_two_one_sided_tests() -> None:
    a, b = np.array([90.0, 90.4, 89.7, 90.2]), np.array([90.3, 89.8, 90.5])
    found = ahead(measured(a=list(a), b=list(b)))
    sides = [
        stats.ttest_ind(a + 1.0, b, equal_var=False, alternative="greater").pvalue,
        stats.ttest_ind(a - 1.0, b, equal_var=False, alternative="less").pvalue,
    ]
    assert found.p_equal == pytest.approx(max(sides), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_p_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = dict(zip("abcdefg", rng.uniform(0, 0.2, 7), strict=True))
    order = sorted(p, key=p.__getitem__)
    for name in p:  # by definition: the smallest level at which the procedure rejects it
        rank = order.index(name)
        stepped_down = max(min(1.0, (len(p) - k) * p[order[k]]) for k in range(rank + 1))
        stepped_up = min(min(1.0, p[order[k]] * len(p) / (k + 1)) for k in range(rank, len(p)))
        assert holm(p)[name] == pytest.approx(stepped_down)
        assert benjamini_hochberg(p)[name] == pytest.approx(stepped_up)
    assert list(benjamini_hochberg(p).values()) == pytest.approx(list(stats.false_discovery_control(list(p.values()))))
    with_nan = p | {"h": NAN}
    assert math.isnan(holm(with_nan)["h"]) and holm(with_nan)["a"] == holm(p)["a"]


def test_seeds_needed_have_the_power() -> None:
    """Simulated: effect 1, spread 1.2 in both cells."""
    rng = np.random.default_rng(0)
    n = 6
    error = 1.2 * math.sqrt(2 / n)
    needed = seeds_needed(Evidence("", 1.0, 0.0, 0.2, n, error, 2 * (n - 1)))

    def power(seeds: int) -> float:
        a, b = rng.normal(1.0, 1.2, (4000, seeds)), rng.normal(0.0, 1.2, (4000, seeds))
        return float(np.mean(stats.ttest_ind(a, b, axis=1, equal_var=False, alternative="greater").pvalue < ALPHA))

    assert power(int(needed)) > POWER - 0.03 and power(int(needed) - 3) < POWER


def test_seeds_needed_where_there_is_no_number() -> None:
    assert math.isnan(seeds_needed(Evidence("", 1.0, 0.0, NAN, 1)))
    assert seeds_needed(Evidence("", -1.0, 0.0, 0.9, 3, 0.5, 4)) == math.inf
    assert seeds_needed(Evidence("", 1e-9, 0.0, 0.4, 3, 0.5, 4)) == math.inf


# ---- how often a verdict is wrong ------------------------------------------------------------------------------------


def shares(effect: float, claims: int, rounds: int = 400, seeds: int = 4, std: float = 0.5) -> dict[str, float]:
    """Of simulated tables: in what share any claim has each verdict, where all have the same true effect."""
    rng = np.random.default_rng(1)
    counts: dict[str, int] = {}
    for _ in range(rounds):
        evidence = {}
        for claim in range(claims):
            cells = {"a": list(rng.normal(effect, std, seeds)), "b": list(rng.normal(0, std, seeds))}
            evidence[str(claim)] = [ahead(measured(**cells))]
        for found in {ruling.verdict for ruling in rule(evidence).values()}:
            counts[found] = counts.get(found, 0) + 1
    return {name: count / rounds for name, count in counts.items()}


@pytest.mark.parametrize("claims", [1, 12])
def test_false_claims_hold_in_at_most_five_per_cent_of_the_tables(claims: int) -> None:
    slack = 2.6 * math.sqrt(0.05 * 0.95 / 400)
    assert shares(0.0, claims).get("holds", 0) <= ALPHA + slack
    assert shares(0.0, claims).get("does not hold", 0) <= ALPHA + slack
    assert shares(1.0, claims).get("equal within the margin", 0) <= ALPHA + slack  # at the margin itself


def test_true_claims_hold_more_often_with_more_of_an_effect() -> None:
    assert shares(2.0, 1)["holds"] > 0.95 > shares(0.5, 1)["holds"] > 0.1
