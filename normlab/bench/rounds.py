"""Interleaved rounds: each candidate is measured once a round, in a new order each time, and compared within the round.

A slow spell of the machine then meets all of them alike, and ratios vary less than the times they are made of.
"""

import random
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)
Spread = dict[str, float]  # median, and the quartiles low and high


def interleave(
    candidates: Mapping[Name, Callable[[], float]], rounds: int, done: Callable[[], None], seed: int = 0
) -> dict[Name, list[float]]:
    """What each candidate measures, round by round; `done` is called after each measurement."""
    order, rng = list(candidates), random.Random(seed)
    measured: dict[Name, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            measured[name].append(candidates[name]())
            done()
    return measured


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def ratio(values: Sequence[float], to: Sequence[float], factor: float = 1.0) -> Spread:
    """Spread of factor * value / to, each taken within its round."""
    return spread([factor * value / base for value, base in zip(values, to, strict=True)])
