"""Images of unequal sizes, padded among the images of a replica alone: what detection asks of the core."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from toy_data import Samples

from normlab.data.dataset import SampleError
from normlab.errors import UserError
from normlab.tasks.task import Evaluation, Outcome, Task


def bars(index: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """An upright or a lying bar, in images of 6 to 12 pixels a side."""
    height, width = torch.randint(6, 13, (2,), generator=generator).tolist()
    image = torch.randn(1, height, width, generator=generator)
    image[:, slice(None) if index % 2 else 3, 3 if index % 2 else slice(None)] += 3
    return image, index % 2


class Unequal(Task):
    metrics: ClassVar = {"hits": {"words": "hits"}}

    def __init__(self, model: Any, data: Any, seed: int, *, bad: int = -1, on_error: str = "stop") -> None:
        self.bad, self.on_error = bad, on_error

    def build(self, declared: Any) -> nn.Module:
        first, second = ([nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()] for c in (1, 8))
        return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

    def dataset(self, split: str) -> Samples:
        def make(index: int, generator: torch.Generator) -> tuple[Tensor, int]:
            if index == self.bad:
                raise SampleError(split, index, Path("bars"), f"{index}.png", "it is no image")
            return bars(index, generator)

        return Samples(36, make, self.on_error)

    def collate(self, samples: Any, split: str) -> Any:
        images, labels = zip(*samples, strict=True)
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        padded = [nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
        return torch.stack(padded), torch.tensor(labels)

    def stack(self, batches: Any) -> None:
        return None  # each replica has a size of its own

    def losses(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        return Outcome({"loss": nn.functional.cross_entropy(model(batch[0]), batch[1])[None]}, {})

    def predict(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"hits": 100.0 * (model(batch[0]).argmax(1) == batch[1])}

    def evaluation(self, split: str) -> Evaluation:
        return Evaluation(at_once=1, order=range(35, -1, -1))

    def exported(self, batch: Any) -> Any:
        raise UserError("task Unequal: its images have sizes of their own, which export cannot give")
