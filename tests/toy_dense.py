"""A small dense prediction task with ignored pixels: what segmentation will ask of the engine."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn

from normlab.tasks.task import Metric, Outcome

VOID, CLASSES = 255, 3


class Blobs(torch.utils.data.Dataset):
    """Noise, labelled pixel by pixel by its own values; a share of the pixels, another in each image, is void."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[Tensor, Tensor]:
        _, index = key
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(2, 8, 8, generator=generator)
        labels = (image.sum(0) > 0).long() + (image[0] > 1).long()
        void = torch.rand(8, 8, generator=generator) < torch.rand((), generator=generator)
        return image, labels.masked_fill(void, VOID)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.scores = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.decoder(self.backbone(images)))


class Dense:
    headline = "accuracy"
    parts: Mapping[str, str] = {"backbone": "", "decoder": "decoder"}
    example = (2, 8, 8)

    def __init__(self, model: Any, data: Any, seed: int, *, stackable: bool = True) -> None:
        self.stackable = stackable

    def build(self) -> nn.Module:
        return Net()

    def dataset(self, split: str) -> Blobs:
        return Blobs()

    def collate(self, samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(labels)

    def stack(self, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        images, labels = zip(*batches, strict=True)
        return (torch.cat(images), torch.cat(labels)) if self.stackable else None

    def losses(self, model: nn.Module, batch: tuple[Tensor, Tensor], replicas: int) -> Outcome:
        images, labels = batch
        pixels = nn.functional.cross_entropy(model(images), labels, ignore_index=VOID, reduction="none")
        counted = (labels != VOID).view(replicas, -1).sum(1)
        return Outcome({"loss": pixels.view(replicas, -1).sum(1) / counted}, {})

    def predict(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0])

    def metric(self) -> Metric:
        return torchmetrics.classification.MulticlassAccuracy(CLASSES, average="micro", ignore_index=VOID)

    def update(self, metric: Metric, predictions: Tensor, batch: tuple[Tensor, Tensor]) -> None:
        metric.update(predictions, batch[1])

    def results(self, metric: Metric) -> dict[str, float]:
        return {"accuracy": 100 * metric.compute().item()}
