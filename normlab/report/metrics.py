"""What claims can ask of runs, by name, and what a metric is of a network that guesses."""

from collections.abc import Mapping
from itertools import combinations, product

from normlab.dynamics.ratios import MOMENTS, RF_RANGES
from normlab.errors import UserError
from normlab.norm.scopes import KINDS
from normlab.tasks.metrics import MetricInfo, curves_of, value_of

CHOICES_AT = (0.3, 0.6, 0.9)  # moments of a run at which choices are recorded: Distinct, Fig. 2
_RANGES = RF_RANGES[:-1]
_LAYERS = ("", ".first", ".later")
_PARTS = ("backbone", "decoder", "fpn", "box", "mask")  # of models, as tasks call them
_RATIOS = list(product(MOMENTS, KINDS))
_ESTIMATORS = ("", "batch_average.")
_OF_ANY_RUN = (
    *("metric", "diverged", "train.loss", "gap", "early_lead", "divergence", "differing"),
    *(f"{statistics}{what}" for statistics in _ESTIMATORS for what in ("learning", "setbacks")),
    *(f"{what}.{moment}.{scope}" for what in ("ratio", "first", "depth") for moment, scope in _RATIOS),
    *(f"ratio.{moment}.{scope}.{fields}" for (moment, scope), fields in product(_RATIOS, _RANGES)),
    *(f"divergence.{fields}" for fields in _RANGES),
    *(f"differing@{at:g}" for at in CHOICES_AT),
    *(f"changed@{earlier:g}@{later:g}" for earlier, later in combinations(CHOICES_AT, 2)),
    *(f"fluctuation.{of}_{what}{layers}" for of in ("bn", "en") for what in ("mean", "std") for layers in _LAYERS),
    *("apart.mean", "apart.std", "taken.division", "taken.centring"),
    *(f"{start}moved.{moment}" for start in ("", "start.") for moment in MOMENTS),
    *(f"{part}.{moment}.{scope}" for part in _PARTS for moment, scope in _RATIOS),
    *(f"start.backbone.{moment}.{scope}" for moment, scope in _RATIOS),
)


def quantities_of(metrics: Mapping[str, MetricInfo]) -> tuple[str, ...]:
    """What claims can ask of the runs of a task with these metrics; report/quantities.py says what it is."""
    return (*_OF_ANY_RUN, *(f"{statistics}area.{name}" for statistics in _ESTIMATORS for name in curves_of(metrics)))


def guessed(metric: str, guessing: float | Mapping[str, float], metrics: Mapping[str, MetricInfo]) -> float:
    """What a metric is of a network that guesses; a single number is that of the metric that runs are known by.
    It guesses alike on every test set.

    Raises UserError where it is not known.
    """
    known = guessing if isinstance(guessing, Mapping) else {next(iter(metrics)): guessing}
    found = value_of(known, metric.rpartition("/")[2], metrics)
    if found is None:
        raise UserError(f"guessing: there is no value for {metric}; expected one beside {', '.join(known)}")
    return found
