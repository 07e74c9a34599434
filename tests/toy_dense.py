"""A dense prediction task with ignored pixels: what segmentation asks of the core."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from toy_data import Samples

from normlab.tasks.task import Outcome, Task

VOID, CLASSES = 255, 3


def blobs(index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise, labelled pixel by pixel by its own values; a share of the pixels, another in each image, is void."""
    image = torch.randn(2, 8, 8, generator=generator)
    labels = (image.sum(0) > 0).long() + (image[0] > 1).long()
    void = torch.rand(8, 8, generator=generator) < torch.rand((), generator=generator)
    return image, labels.masked_fill(void, VOID)


class Dense(Task):
    metrics: ClassVar = {"accuracy": {"words": "pixel accuracy", "decimals": 1, "per_class": True}}
    parts: ClassVar = {"backbone": "", "decoder": "1"}
    example = (2, 8, 8)

    def __init__(self, model: Any, data: Any, seed: int, *, stackable: bool = True) -> None:
        self.stackable = stackable

    def build(self, declared: Any) -> nn.Module:
        blocks = (nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for c in (2, 8))
        return nn.Sequential(*blocks, nn.Conv2d(8, CLASSES, 1))

    def dataset(self, split: str) -> Samples:
        return Samples(40, blobs)

    def stack(self, batches: Any) -> Any:
        return super().stack(batches) if self.stackable else None

    def losses(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        pixels = nn.functional.cross_entropy(model(batch[0]), batch[1], ignore_index=VOID, reduction="none")
        counted = (batch[1] != VOID).view(replicas, -1).sum(1)
        return Outcome({"loss": pixels.view(replicas, -1).sum(1) / counted}, {})

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    def metric(self, split: str) -> Any:
        return MulticlassAccuracy(CLASSES, average="none", ignore_index=VOID)

    def update(self, metric: Any, predictions: Tensor, batch: Any, indices: Any) -> None:
        metric.update(predictions, batch[1])

    def results(self, metric: Any) -> dict[str, float]:
        found = (100 * metric.compute()).tolist()
        return {"accuracy": sum(found) / CLASSES} | {f"accuracy.{k}": value for k, value in enumerate(found)}
