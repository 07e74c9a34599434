"""Moving averages of what is no statistic of a layer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normlab.norm.layer import BatchStatistics


class MovingAverage(nn.Module):
    """A moving average of what replicas measure, as of rewards; RunningStatistics (normlab.replicas) moves it as
    it does those of layers.

    So it is the same on any number of devices, and moves once an iteration, by the mean over all replicas.

    Args:
        momentum: what a new value counts.

    Attributes:
        average: (1,), from 0.
        calls: as Normalizer's: None: each value moves it by itself.
    """

    average: Tensor
    num_batches_tracked: Tensor
    sync, tracks_statistics = False, True

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.steady_momentum = momentum
        self.calls: list[Mapping[str, BatchStatistics]] | None = None
        self.register_buffer("average", torch.zeros(1))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @torch.no_grad()
    def note(self, values_R: Tensor) -> None:
        """Count a value of each replica of a pass."""
        if self.calls is None:
            self.average.lerp_(values_R.mean().to(self.average.dtype), self.steady_momentum)
            self.num_batches_tracked.add_(1)
        else:
            values_R1 = values_R.detach()[:, None]
            self.calls.append({"value": BatchStatistics(values_R1, torch.zeros_like(values_R1), 1)})

    def stored_names(self) -> dict[str, tuple[str, str]]:
        return {"average": ("value", "mean")}

    def correction(self, size: int) -> float:
        return 1.0

    def weight_of_step(self, dtype: torch.dtype) -> float:
        return self.steady_momentum
