"""What a table can show of a run, from what was measured of it."""

from collections.abc import Mapping

METRICS = {  # in words; all in percent
    "top1": "top-1 accuracy in percent",
    "top5": "top-5 accuracy in percent",
    "error1": "top-1 error in percent",
    "error5": "top-5 error in percent",
}


def value_of(metrics: Mapping[str, float], metric: str) -> float | None:
    """An accuracy as it was measured, or an error, which is 100 minus it; None where it was not measured."""
    accuracy = metrics.get(metric.replace("error", "top"))
    return accuracy if accuracy is None or metric.startswith("top") else 100 - accuracy


def guessed(metric: str, guessing: float) -> float:
    """A metric where top-1 accuracy is `guessing`, and five guesses are five times as good."""
    accuracy = guessing if metric.endswith("1") else min(100.0, 5 * guessing)
    return accuracy if metric.startswith("top") else 100 - accuracy
