"""Image classification."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.utils.data import default_collate

from normlab.errors import UserError
from normlab.models.classifier import find_classifier, norm_of_features, start_residuals_at_zero
from normlab.schema import bind
from normlab.tasks.task import Declaration, Metric, Outcome, Task, by_replica
from normlab.writing import write_text

Images = tuple[Tensor, Tensor]  # images (rows, C, H, W) and labels (rows,)


class Classification(Task):
    """Cross entropy; top-1 and top-5 accuracy in percent on single crops.

    Args:
        model, data: settings of the network and of the dataset.
        seed: of the augmentation.
        label_smoothing: share of the target spread over all classes.
        dropout: probability before the last layer (Distinct, Sec. 5: 0.5).
        pooled_norm: a norm layer before the last layer, behind the pooling. The papers advise against it (Distinct,
            Table 4, practice 5): IN and LN of a 1x1 map are unstable.
        zero_init_residual: gammas of the last norm of each residual block start at 0 (SN, Sec. 4.1, footnote 2).
    """

    metrics: ClassVar = {
        "top1": {"words": "top-1 accuracy"},
        "top5": {"words": "top-5 accuracy"},
        "error1": {"words": "top-1 error", "better": "lower", "complement": "top1"},
        "error5": {"words": "top-5 error", "better": "lower", "complement": "top5"},
        "loss": {"words": "cross entropy", "unit": "nats", "better": "lower", "decimals": 4, "partial": True},
    }
    takes: ClassVar = {"model": ["classifier"], "data": ["images"]}

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        pooled_norm: bool = False,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__(model, data, seed)
        self.pooled_norm, self.zero_init_residual = pooled_norm, zero_init_residual
        self.label_smoothing, self.dropout = label_smoothing, dropout
        self._classifier = ""

    @property
    def example(self) -> tuple[int, ...]:
        return self.of_data("shape", "(C, H, W)")

    @property
    def num_classes(self) -> int:
        number = self.of_data("num_classes", "a whole number")
        if isinstance(number, int) and number < 2:
            raise UserError(f"the data have {number} class, and there is nothing to tell it from; it takes two or more")
        return number

    @property
    def parts(self) -> Mapping[str, str]:
        return {"backbone": "", "head": self._classifier}

    def build(self, declared: Mapping[str, Declaration]) -> nn.Module:
        model = bind(self.model)(self.example, self.num_classes)
        self._classifier = find_classifier(model)
        if self.zero_init_residual:
            start_residuals_at_zero(model)
        classifier = model.get_submodule(self._classifier)
        ahead: list[nn.Module] = [norm_of_features(classifier)] if self.pooled_norm else []
        ahead += [nn.Dropout(self.dropout)] if self.dropout else []
        if ahead:
            model.set_submodule(self._classifier, nn.Sequential(*ahead, classifier))
        return model

    def collate(self, samples: Sequence[tuple[Tensor, int]], split: str) -> Images:
        images, labels = default_collate(list(samples))  # in a worker, right into the memory that it shares
        return images, labels

    def prepare(self, batch: Images, split: str) -> Images:
        images, labels = batch
        return self.normalized(images, split), labels

    def losses(self, model: nn.Module, batch: Images, replicas: int) -> Outcome:
        images, labels = batch
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        correct = (logits.argmax(1) == labels).to(loss.dtype) * 100
        return Outcome({"loss": by_replica(loss, replicas)}, {"top1": by_replica(correct, replicas)})

    def predict(self, model: nn.Module, batch: Images) -> Tensor:
        return model(batch[0])

    def write(self, predicted: Iterable[tuple[Tensor, Sequence[int]]], split: str, folder: Path) -> int:
        """predictions.csv: of each sample its index and the class of the highest logit; classes count from 0."""
        rows = ["index,predicted"]
        for logits_NK, indices in predicted:
            best_N = logits_NK.argmax(1).tolist()
            rows += [f"{index},{best}" for index, best in zip(indices, best_N, strict=True)]
        write_text(folder / "predictions.csv", "\n".join(rows) + "\n")
        return 1

    def update(self, metric: Metric, predictions: Tensor, batch: Images, indices: Sequence[int]) -> None:
        labels_N = batch[1]
        for k in (1, 5):
            best_NK = predictions.topk(min(k, self.num_classes)).indices
            metric[f"top{k}"].update((best_NK == labels_N[:, None]).any(1) * 100)
        if "loss" in metric:  # tasks that are made of this one may measure other things
            metric["loss"].update(self.loss_of(predictions, labels_N))

    def loss_of(self, predictions: Tensor, labels_N: Tensor) -> Tensor:
        """Cross entropy of each sample of a test, (N,), without label smoothing."""
        return nn.functional.cross_entropy(predictions.float(), labels_N, reduction="none")

    def results(self, metric: Metric) -> dict[str, float]:
        """A network whose logits are not finite has accuracies and no loss."""
        found = super().results(metric)
        return {name: value for name, value in found.items() if math.isfinite(value) or name != "loss"}
