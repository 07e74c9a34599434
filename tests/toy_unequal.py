"""Images of unequal sizes, padded among the images of a replica alone: what detection asks of the core."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normlab.data.dataset import SampleError
from normlab.errors import UserError
from normlab.tasks.task import Evaluation, Outcome, Task


class Bars(torch.utils.data.Dataset):
    """An upright or a lying bar, in images of 6 to 12 pixels a side; one file of them may be bad."""

    def __init__(self, bad: int, on_error: str) -> None:
        self.bad, self.on_error = bad, on_error

    def __len__(self) -> int:
        return 36

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[Tensor, int]:
        if key[1] == self.bad:
            raise SampleError("train", key[1], "bars", f"{key[1]}.png", "it is no image")
        generator = torch.Generator().manual_seed(key[1])
        height, width = torch.randint(6, 13, (2,), generator=generator).tolist()
        image = torch.randn(1, height, width, generator=generator)
        label = key[1] % 2
        image[:, slice(None) if label else 3, 3 if label else slice(None)] += 3
        return image, label


class Unequal(Task):
    metrics: ClassVar = {"hits": {"words": "hits"}}

    def __init__(self, model: Any, data: Any, seed: int, *, bad: int = -1, on_error: str = "stop") -> None:
        self.data = Bars(bad, on_error)

    def build(self, declared: Any) -> nn.Module:
        convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, (3, 1), padding=1)]
        return nn.Sequential(
            *convolutions, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        )

    def dataset(self, split: str) -> Bars:
        return self.data

    def collate(self, samples: Sequence[tuple[Tensor, int]], split: str) -> list[Any]:
        images, labels = zip(*samples, strict=True)
        size = [max(image.shape[axis] for image in images) for axis in (1, 2)]
        padded = [nn.functional.pad(i, (0, size[1] - i.shape[2], 0, size[0] - i.shape[1])) for i in images]
        return [torch.stack(padded), torch.tensor(labels)]

    def stack(self, batches: Sequence[Any]) -> None:
        return None

    def losses(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        return Outcome({"loss": nn.functional.cross_entropy(model(batch[0]), batch[1])[None]}, {})

    def predict(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"hits": 100.0 * (model(batch[0]).argmax(1) == batch[1])}

    def evaluation(self, split: str) -> Evaluation:
        return Evaluation(at_once=1, order=sorted(range(36), key=lambda index: index % 2))

    def exported(self, batch: Any) -> Any:
        raise UserError("task Unequal: its images have sizes of their own, which export cannot give")
