"""Classification of clouds of points."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlab.norm.weight import Convolution
from normlab.schema import bind
from normlab.tasks.metrics import plain_names
from normlab.tasks.task import Declaration, Evaluation, Metric, Outcome, Task, by_replica

_AT_ONCE = 32  # the edges of larger batches take gigabytes


class Clouds(NamedTuple):
    """Points (rows, P, 3), in any order, and labels (rows,)."""

    points: Tensor
    labels: Tensor


class Points(Task):
    """Cross entropy; the accuracy over all clouds, and the mean of the accuracies of each class, in percent.

    Args:
        model, data: settings of the network and of the dataset.
        seed: of the augmentation.
        label_smoothing: share of the target spread over all classes (DGCNN's code: 0.2).
    """

    metrics: ClassVar = {
        "accuracy": {"words": "overall accuracy", "per_class": True},
        "class_accuracy": {"words": "mean accuracy of classes"},
    }
    takes: ClassVar = {"model": ["point_classifier"], "data": ["clouds"]}
    weighs = Convolution | nn.Linear  # as in Weight Standardization's code

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.2,
    ) -> None:
        super().__init__(model, data, seed)
        self.label_smoothing = label_smoothing
        self._unweighted: frozenset[str] = frozenset()

    @property
    def shape(self) -> tuple[int, int]:
        return self.of_data("shape", "(P, 3)")

    @property
    def num_classes(self) -> int:
        return self.of_data("num_classes", "a whole number")

    @property
    def parts(self) -> Mapping[str, str]:
        return {"backbone": "", "transform": "transform", "head": "head"}

    def build(self, declared: Mapping[str, Declaration]) -> nn.Module:
        model = bind(self.model)(self.shape, self.num_classes)
        # The last layer of each part gives a matrix, or the logits, and no norm follows it.
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        last = {name.partition(".")[0]: name for name in linear}
        self._unweighted = frozenset(last.values())
        return model

    def weighted(self, name: str) -> bool:
        return name not in self._unweighted

    def collate(self, samples: Sequence[tuple[Tensor, int]], split: str) -> Clouds:
        points, labels = zip(*samples, strict=True)
        return Clouds(torch.stack(points), torch.tensor(labels))

    def losses(self, model: nn.Module, batch: Clouds, replicas: int) -> Outcome:
        logits = model(batch.points)
        loss = cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing, reduction="none")
        hits = 100 * (logits.argmax(1) == batch.labels).to(loss.dtype)
        return Outcome({"loss": by_replica(loss, replicas)}, {"accuracy": by_replica(hits, replicas)})

    def evaluation(self, split: str) -> Evaluation:
        return Evaluation(at_once=_AT_ONCE)

    def predict(self, model: nn.Module, batch: Clouds) -> Tensor:
        """The class of each cloud, (rows,)."""
        return model(batch.points).argmax(1)

    def metric(self, split: str) -> Metric:
        from torchmetrics.classification import MulticlassConfusionMatrix  # takes a second, which training has not

        return MulticlassConfusionMatrix(self.num_classes, validate_args=False)

    def update(self, metric: Metric, predictions: Tensor, batch: Clouds, indices: Sequence[int]) -> None:
        metric.update(predictions, batch.labels)

    def results(self, metric: Metric) -> dict[str, float]:
        """Classes of which there is no cloud have no accuracy, and no part in the mean."""
        counts_KK = metric.compute().double()  # labels x predictions
        labels_K = counts_KK.sum(1)
        accuracy_K = 100 * counts_KK.diag() / labels_K
        names = plain_names(getattr(self.dataset("train"), "classes", ()), self.num_classes)
        return {
            "accuracy": (100 * counts_KK.diag().sum() / counts_KK.sum()).item(),
            "class_accuracy": accuracy_K[labels_K > 0].mean().item(),
            **{f"accuracy.{name}": accuracy_K[k].item() for k, name in enumerate(names) if labels_K[k]},
        }
