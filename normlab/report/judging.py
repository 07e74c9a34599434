"""From the evidence of a table's claims to their verdicts: many claims are judged at once.

A claim is a list of tests. That all must pass needs no correction (an intersection-union test): its p is the largest of
theirs. That one of them is contradicted, or two cells equal, may come out of any: the smallest p times their number
(Bonferroni). These are p-values of a claim. Over the claims of a table they are adjusted by Holm's method, and a
verdict goes by the adjusted ones: a table has a wrong verdict of a kind in at most ALPHA of the cases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from normlab.report.verdicts import Evidence

ALPHA = 0.05  # of a table, for each kind of verdict
POWER = 0.8  # with which the seeds that a claim needs would show it
MOST_SEEDS = 1000
_ROUNDING = 1e-9  # by which equal numbers may differ
Verdict = Literal[
    "holds",
    "does not hold",
    "equal within the margin",
    "points the other way",
    "not enough seeds",
    "not trained",
    "mixed versions",
    "stated later",
]


@dataclass(frozen=True)
class Ruling:
    """What the evidence of a claim comes to.

    Attributes:
        p: how likely evidence as good would be if the claim were not true; NaN where a test has none.
        adjusted: p by Holm's method over the claims of the table.
    """

    verdict: Verdict
    p: float
    adjusted: float


def rule(claims: Mapping[str, Sequence[Evidence]]) -> dict[str, Ruling]:
    """Judge the claims of a table together, each by its tests."""
    supports = {name: _largest([e.p for e in tests]) for name, tests in claims.items()}
    contradicts = {name: _any_of([1 - e.p for e in tests]) for name, tests in claims.items()}
    equals = {name: _any_of([e.p_equal for e in tests if e.is_lead]) for name, tests in claims.items()}
    adjusted, against, equal = map(holm, (supports, contradicts, equals))
    return {
        name: Ruling(_verdict(tests, adjusted[name], against[name], equal[name]), supports[name], adjusted[name])
        for name, tests in claims.items()
    }


def _verdict(tests: Sequence[Evidence], support: float, against: float, equal: float) -> Verdict:
    if support < ALPHA:
        return "holds"
    if against < ALPHA:
        return "does not hold"
    if equal < ALPHA:
        return "equal within the margin"
    if any(e.effect < e.threshold - _ROUNDING for e in tests if not math.isnan(e.p)):
        return "points the other way"
    return "not enough seeds"


def _largest(values: Sequence[float]) -> float:
    return math.nan if not values or any(map(math.isnan, values)) else max(values)


def _any_of(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return min(1.0, min(known) * len(values)) if known else math.nan


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: the chance that any true null of the family is rejected stays below the level (Holm 1979).

    NaN stays, and does not count.
    """
    adjusted, largest = dict(p), 0.0
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    for place, (value, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * value))
        adjusted[name] = largest
    return adjusted


def benjamini_hochberg(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: of those below a level, that share at most is expected to be wrong (Benjamini, Hochberg 1995).

    NaN stays, and does not count.
    """
    adjusted, smallest = dict(p), 1.0
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    for place in range(len(known), 0, -1):
        value, name = known[place - 1]
        smallest = min(smallest, value * len(known) / place)
        adjusted[name] = smallest
    return adjusted


def seeds_needed(evidence: Evidence, level: float = ALPHA) -> float:
    """Seeds with which the test would pass at a level with a chance of POWER, were effect and spread as they are seen.

    NaN where nothing is known of the spread; infinite where the effect points the other way, or MOST_SEEDS do not do.
    """
    excess, n = evidence.effect - evidence.threshold, evidence.seeds
    if math.isnan(evidence.error) or n < 2:
        return math.nan
    if excess <= 0:
        return math.inf
    if evidence.error == 0:
        return 2
    for seeds in range(2, MOST_SEEDS + 1):
        freedom = evidence.freedom * (seeds - 1) / (n - 1)
        shift = excess / (evidence.error * math.sqrt(n / seeds))
        critical = special.stdtrit(freedom, 1 - level)
        if 1 - special.nctdtr(freedom, shift, critical) >= POWER:
            return seeds
    return math.inf
