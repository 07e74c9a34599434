"""What a table can show of a run, from what was measured of it, and what its claims can ask of runs."""

from collections.abc import Mapping
from itertools import combinations, product

from normlab.dynamics.ratios import MOMENTS, RF_RANGES
from normlab.norm.scopes import KINDS

METRICS = {  # in words; all in percent
    "top1": "top-1 accuracy in percent",
    "top5": "top-5 accuracy in percent",
    "error1": "top-1 error in percent",
    "error5": "top-5 error in percent",
}


CHOICES_AT = (0.3, 0.6, 0.9)  # moments of a run at which choices are recorded: seed 000, Fig. 2
_RANGES = RF_RANGES[:-1]
_LAYERS = ("", ".first", ".later")
_RATIOS = list(product(MOMENTS, KINDS))
QUANTITIES = (  # report/quantities.py says what they are
    *("metric", "diverged", "learning", "train.loss", "gap", "early_lead", "divergence", "differing"),
    *(f"{what}.{moment}.{scope}" for what in ("ratio", "first", "depth") for moment, scope in _RATIOS),
    *(f"ratio.{moment}.{scope}.{fields}" for (moment, scope), fields in product(_RATIOS, _RANGES)),
    *(f"divergence.{fields}" for fields in _RANGES),
    *(f"differing@{at:g}" for at in CHOICES_AT),
    *(f"changed@{earlier:g}@{later:g}" for earlier, later in combinations(CHOICES_AT, 2)),
    *(f"fluctuation.{of}_{what}{layers}" for of in ("bn", "en") for what in ("mean", "std") for layers in _LAYERS),
    *("apart.mean", "apart.std", "taken.division", "taken.centring"),
)


def value_of(metrics: Mapping[str, float], metric: str) -> float | None:
    """An accuracy as it was measured, or an error, which is 100 minus it; None where it was not measured."""
    accuracy = metrics.get(metric.replace("error", "top"))
    return accuracy if accuracy is None or metric.startswith("top") else 100 - accuracy


def guessed(metric: str, guessing: float) -> float:
    """A metric where top-1 accuracy is `guessing`, and five guesses are five times as good."""
    accuracy = guessing if metric.endswith("1") else min(100.0, 5 * guessing)
    return accuracy if metric.startswith("top") else 100 - accuracy
