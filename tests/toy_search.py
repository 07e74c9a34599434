"""Two phases with an optimizer each that take turns in every epoch: what architecture search asks of the core."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from toy_data import Samples

from normlab.tasks.task import Outcome, Phase, Task, by_replica


def points(index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(6, 4, 4, generator=generator)
    return x, x[:2].mean((1, 2))


class Net(nn.Module):
    """Two branches; a gate, learned on data of its own, weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Conv2d(6, 4, k), nn.BatchNorm2d(4)) for k in (1, 3))
        self.last, self.gate = nn.Linear(4, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, sampled: int | None = None) -> Tensor:
        used = [k for k in range(2) if sampled is None or k == sampled]
        return self.last(sum(self.branches[k](x).relu().mean((2, 3)) * self.gate.softmax(0)[k] for k in used))


class Search(Task):
    metrics: ClassVar = {"error": {"words": "squared error", "unit": "", "better": "lower", "decimals": 4}}
    parts: ClassVar = {"child": "", "controller": "gate"}
    splits: ClassVar = {"train": "training", "search": "search", "val": "validation", "test": "test"}
    tested = ("val", "test")

    @property
    def phases(self) -> Any:
        child = Phase("child", self.losses, parts=("child",), skips=True)
        return (child, Phase("controller", self.policy, parts=("controller",), split="search", updates=2))

    def build(self, declared: Any) -> nn.Module:
        return Net()

    def dataset(self, split: str) -> Samples:
        return Samples({"train": 40, "search": 24}.get(split, 20), points)

    def stack(self, batches: Any) -> None:
        return None  # each replica has a path of its own

    def losses(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        path = int(torch.randint(2, ()))  # by the seed of the replica
        return Outcome({"loss": by_replica((model(batch[0], path) - batch[1]).square(), replicas)}, {})

    def policy(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        loss = by_replica(self.predict(model, batch)["error"], replicas)
        return Outcome({"loss": loss}, {"reward": -loss.detach()})

    def predict(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"error": (model(batch[0]) - batch[1]).square().mean(1)}
