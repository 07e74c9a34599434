"""Losses by a helper network that is no part of the model: what stylization asks of the core."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from toy_data import Samples

from normlab.tasks.task import Outcome, Task, by_replica


class Style(Task):
    metrics: ClassVar = {
        "content": {"words": "content loss", "unit": "", "better": "lower", "decimals": 4},
        "style": {"words": "style loss", "unit": "", "better": "lower", "decimals": 4},
    }
    example = (3, 8, 8)

    def __init__(self, model: Any, data: Any, seed: int) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(5)
            self.helper = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
            self.style = torch.rand(1, 3, 8, 8)

    def helpers(self) -> list[nn.Module]:
        return [self.helper]

    def build(self, declared: Any) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 3, 1)
        )

    def dataset(self, split: str) -> Samples:
        return Samples(32, lambda index, generator: torch.rand(3, 8, 8, generator=generator))

    def _both(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        ours, theirs, style = (self.helper(x) for x in (model(images), images, self.style.to(images)))
        gram = [torch.einsum("nchw,ndhw->ncd", f, f) / f[0].numel() for f in (ours, style)]
        return {"content": (ours - theirs).square(), "style": (gram[0] - gram[1]).square()}

    def losses(self, model: nn.Module, batch: Tensor, replicas: int) -> Outcome:
        return Outcome({name: by_replica(loss, replicas) for name, loss in self._both(model, batch).items()}, {})

    def predict(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return {name: loss.flatten(1).mean(1) for name, loss in self._both(model, batch).items()}
