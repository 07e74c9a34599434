"""Two phases with an optimizer each that take turns in every epoch: what architecture search asks of the core."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normlab.tasks.task import Outcome, Phase, Task, by_replica


class Points(torch.utils.data.Dataset):
    def __init__(self, length: int, first: int) -> None:
        self.length, self.first = length, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[Tensor, Tensor]:
        x = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(self.first + key[1]))
        return x, x[:2].mean((1, 2)) * torch.tensor([1.0, -1.0])


class Net(nn.Module):
    """Two branches; a gate, learned on data of its own, weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 4, k, padding=k // 2), nn.BatchNorm2d(4)) for k in (1, 3)
        )
        self.last = nn.Linear(4, 2)
        self.gate = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, sampled: int | None = None) -> Tensor:
        weight = self.gate.softmax(0)
        used = [k for k in range(2) if sampled is None or k == sampled]
        return self.last(sum(self.branches[k](x).relu().mean((2, 3)) * weight[k] for k in used))


class Search(Task):
    metrics: ClassVar = {"error": {"words": "squared error", "unit": "", "better": "lower", "decimals": 4}}
    parts: ClassVar = {"child": "", "controller": "gate"}
    splits: ClassVar = {"train": "training", "search": "search", "val": "validation", "test": "test"}
    tested = ("val", "test")

    def __init__(self, model: Any, data: Any, seed: int) -> None:
        pass

    @property
    def phases(self) -> Any:
        child = Phase("child", self.losses, parts=("child",), skips=True)
        return (child, Phase("controller", self.policy, parts=("controller",), split="search", updates=2))

    def build(self, declared: Any) -> nn.Module:
        return Net()

    def dataset(self, split: str) -> Points:
        return Points(
            {"train": 40, "search": 24}.get(split, 20), {"train": 0, "search": 100, "val": 200}.get(split, 300)
        )

    def losses(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        path = int(torch.randint(2, ()))  # by the seed of the pass
        return Outcome({"loss": by_replica((model(batch[0], path) - batch[1]).square(), replicas)}, {})

    def policy(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        loss = by_replica((model(batch[0]) - batch[1]).square(), replicas)
        return Outcome({"loss": loss}, {"reward": -loss.detach()})

    def predict(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"error": (model(batch[0]) - batch[1]).square().mean(1)}
