"""A network that is none of images, in two norm layers of (rows, C) and (rows, C, P): what point clouds ask."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from toy_data import Samples

from normlab.tasks.task import Outcome, Task, by_replica


def clouds(index: int, generator: torch.Generator) -> dict[str, Any]:
    """12 points on a sphere or about its centre."""
    points = torch.randn(3, 12, generator=generator)
    return {"points": points / points.norm(dim=0) if index % 2 else points, "label": index % 2}


class Net(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU())
        # With a norm a layer needs no bias of its own: known when it is built, as in an FPN.
        self.all = nn.Sequential(nn.Linear(8, 8, bias=norm is None), norm(8) if norm else nn.Identity())
        self.last = nn.Linear(8, 2)

    def forward(self, points: Tensor) -> dict[str, Tensor]:
        per_point = self.each(points)
        return {"logits": self.last(self.all(per_point.amax(2)).relu()), "points": per_point}


class Vectors(Task):
    metrics: ClassVar = {"accuracy": {"words": "accuracy"}, "error": {"words": "error", "complement": "accuracy"}}
    parts: ClassVar = {"each": "each", "head": ("all", "last"), "all": "all", "last": "last"}

    def build(self, declared: Any) -> nn.Module:
        return Net(declared["all"].norm)

    def dataset(self, split: str) -> Samples:
        return Samples(48, clouds)

    def losses(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        loss = nn.functional.cross_entropy(model(batch["points"])["logits"], batch["label"], reduction="none")
        return Outcome({"loss": by_replica(loss, replicas)}, {})

    def predict(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"accuracy": 100.0 * (model(batch["points"])["logits"].argmax(1) == batch["label"])}
