"""What a task measures, read from its source: tables and reports need it without torch.

metrics_of("normlab.tasks.classification.Classification")["top1"].words -> "top-1 accuracy"
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from normlab import schema
from normlab.errors import UserError


@dataclass(frozen=True)
class MetricInfo:
    """A metric of a task.

    Attributes:
        words: what it is, as "top-1 accuracy".
        unit: "%", or "" for a number without one.
        better: which way is better.
        decimals: that are shown.
        complement: the metric that this is 100 less, and is not measured itself.
        per_class: whether there is a value for each class beside it, called NAME.CLASS.
        bounds: its smallest and its largest value; None: 0 and 100 in percent, any number elsewhere.
        partial: whether data may have none of it, as no large objects: a table shows a dash then.
        curve: whether records keep it of each evaluation on the way, as of what runs are known by: its curve is drawn,
            and the area under it is tested.
    """

    words: str
    unit: str = "%"
    better: Literal["higher", "lower"] = "higher"
    decimals: int = 2
    complement: str | None = None
    per_class: bool = False
    bounds: tuple[float, float] | None = None
    partial: bool = False
    curve: bool = False

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and the largest value; None where nothing tells."""
        if self.bounds is not None:
            return self.bounds[0], self.bounds[1]
        return (0.0, 100.0) if self.unit == "%" else None

    @property
    def in_words(self) -> str:
        """top-1 accuracy in percent."""
        return (
            f"{self.words} in percent" if self.unit == "%" else f"{self.words} {self.unit and f'({self.unit})'}".strip()
        )

    @property
    def label(self) -> str:
        """For an axis: top-1 accuracy (%)."""
        return f"{self.words} ({self.unit})" if self.unit else self.words


@cache
def metrics_of(target: str) -> dict[str, MetricInfo]:
    """The metrics that a task declares, the one that a run is known by first. Raises UserError on a task without."""
    declared = schema.class_attribute(target, "metrics")
    if not isinstance(declared, Mapping) or not declared:
        raise UserError(f"_target_={target}: a task needs `metrics`, a literal of {{name: {{'words': ...}}}}")
    fields = schema.parameters_of(MetricInfo)
    found = {
        name: MetricInfo(**schema.check(node, fields, f"{target}.metrics.{name}")) for name, node in declared.items()
    }
    for name, info in found.items():
        if info.complement is not None and info.complement not in found:
            raise UserError(f"{target}.metrics.{name}.complement={info.complement}: there is no such metric")
    return found


def curves_of(metrics: Mapping[str, MetricInfo]) -> list[str]:
    """The metrics of which records keep each evaluation on the way; what runs are known by comes first."""
    return [name for k, (name, info) in enumerate(metrics.items()) if k == 0 or info.curve]


def value_of(measured: Mapping[str, float], metric: str, metrics: Mapping[str, MetricInfo]) -> float | None:
    """A metric as it was measured, or as 100 less its complement; None where neither was.

    That of a further test set is called by it, as test/top1.
    """
    split, slash, name = metric.rpartition("/")
    info = metrics.get(name)
    if metric in measured or info is None or info.complement is None:
        return measured.get(metric)
    other = split + slash + info.complement
    return 100 - measured[other] if other in measured else None


def plain_names(classes: Sequence[str], number: int) -> list[str]:
    """Of the classes, as records write them behind a metric's name: no spaces, no dots; else their numbers."""
    plain = ["_".join(name.replace(".", " ").replace("/", " ").split()) for name in classes]
    return plain if len(plain) == number else [str(k) for k in range(number)]


def info_of(metric: str, metrics: Mapping[str, MetricInfo]) -> MetricInfo | None:
    """Of a metric, or of that whose value for one class it is (iou.person), also of a further test set (test/iou).

    None where there is none.
    """
    name, dot, _ = metric.rpartition("/")[2].partition(".")
    info = metrics.get(name)
    return info if info is not None and (not dot or info.per_class) else None
