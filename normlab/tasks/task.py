"""What the engine asks of a task. Classification is one; dense prediction, detection, ... need no change of the engine.

Shapes: R replicas of N samples pass through the model together as rows (R*N, ...), replica by replica.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

Batch = Any  # tensors, or lists, tuples and dicts of them
Metric = Any  # of torchmetrics: it adds up over ranks by itself


class Declaration(NamedTuple):
    """The normalizer and the weight parametrization of a part of the model; None for none."""

    norm: Callable[[int], nn.Module] | None
    weight: Callable[[nn.Module], None] | None


class Outcome(NamedTuple):
    """Of a training pass, each value (R,): a replica's own mean, over whatever it has to count."""

    losses: dict[str, Tensor]  # the objective is the mean over replicas of their sum
    measures: dict[str, Tensor]  # reported beside them


class Task(Protocol):
    """A model, its data, its losses and its test protocol. A target's positional parameters: model, data, seed."""

    headline: str  # the metric that a run is known by, higher is better

    @property
    def parts(self) -> Mapping[str, str]:
        """Names of the model's parts -> prefix of their modules; the longest prefix that fits a module wins."""
        ...

    @property
    def example(self) -> tuple[int, ...]:
        """Shape of one sample's input, to trace the network."""
        ...

    def build(self) -> nn.Module:
        """The model as its authors normalize it; the engine converts its parts."""
        ...

    def dataset(self, split: str) -> Dataset:
        """Split "train" or "val": a map from (epoch, index) to a sample; epoch None: no augmentation."""
        ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """The samples of one replica."""
        ...

    def stack(self, batches: Sequence[Batch]) -> Batch | None:
        """Batches of several replicas as one; None where no single pass gives each replica exactly its own result."""
        ...

    def losses(self, model: nn.Module, batch: Batch, replicas: int) -> Outcome:
        """A training pass of `replicas` stacked replicas."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Predictions by the test protocol, as the metric takes them."""
        ...

    def metric(self) -> Metric:
        """A fresh torchmetrics metric for a pass over a split."""
        ...

    def update(self, metric: Metric, predictions: Any, batch: Batch) -> None:
        """Count a batch's predictions."""
        ...

    def results(self, metric: Metric) -> dict[str, float]:
        """What was counted on all ranks, by name; accuracies in percent."""
        ...
