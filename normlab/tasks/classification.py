"""Image classification."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.utils.data import Dataset

from normlab.models.classifier import find_classifier
from normlab.schema import bind
from normlab.tasks.task import Metric, Outcome

Images = tuple[Tensor, Tensor]  # images (rows, C, H, W) and labels (rows,)


class Classification:
    """Cross entropy; top-1 and top-5 accuracy in percent on single crops.

    Args:
        model, data: settings of the network and of the dataset.
        seed: of the augmentation.
        label_smoothing: share of the target spread over all classes.
        dropout: probability before the last layer (seed 000, Sec. 5: 0.5).
    """

    headline = "top1"

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        self._model, self._data, self._seed = model, data, seed
        self.label_smoothing, self.dropout = label_smoothing, dropout
        self._splits: dict[str, Any] = {}
        self._classifier = ""

    def dataset(self, split: str) -> Dataset:
        if split not in self._splits:
            self._splits[split] = bind(self._data)(split, self._seed)
        return self._splits[split]

    @property
    def example(self) -> tuple[int, ...]:
        return self.dataset("train").shape  # type: ignore[attr-defined]

    @property
    def num_classes(self) -> int:
        return self.dataset("train").num_classes  # type: ignore[attr-defined]

    @property
    def parts(self) -> Mapping[str, str]:
        return {"backbone": "", "head": self._classifier}

    def build(self) -> nn.Module:
        model = bind(self._model)(self.example, self.num_classes)
        self._classifier = find_classifier(model)
        if self.dropout:
            classifier = model.get_submodule(self._classifier)
            model.set_submodule(self._classifier, nn.Sequential(nn.Dropout(self.dropout), classifier))
        return model

    def collate(self, samples: Sequence[tuple[Tensor, int]]) -> Images:
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.tensor(labels)

    def stack(self, batches: Sequence[Images]) -> Images:
        if len(batches) == 1:
            return batches[0]  # a copy of a batch takes as long as decoding an image or two
        images, labels = zip(*batches, strict=True)
        return torch.cat(images), torch.cat(labels)

    def losses(self, model: nn.Module, batch: Images, replicas: int) -> Outcome:
        images, labels = batch
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        correct = (logits.argmax(1) == labels).to(loss.dtype) * 100
        return Outcome({"loss": loss.view(replicas, -1).mean(1)}, {"top1": correct.view(replicas, -1).mean(1)})

    def predict(self, model: nn.Module, batch: Images) -> Tensor:
        return model(batch[0])

    def metric(self) -> Metric:
        import torchmetrics  # takes a second to import, and training is not to wait for it

        accuracy = torchmetrics.classification.MulticlassAccuracy
        top = {f"top{k}": min(k, self.num_classes) for k in (1, 5)}
        return torchmetrics.MetricCollection(
            {name: accuracy(self.num_classes, top_k=k, average="micro") for name, k in top.items()},
            compute_groups=False,
        )

    def update(self, metric: Metric, predictions: Tensor, batch: Images) -> None:
        metric.update(predictions, batch[1])

    def results(self, metric: Metric) -> dict[str, float]:
        return {name: 100 * fraction.item() for name, fraction in metric.compute().items()}
