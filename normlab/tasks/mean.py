"""The metric of most tasks: a mean over samples."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Mean(nn.Module):
    """A mean over samples, added up over ranks, as torchmetrics' MeanMetric.

    torchmetrics stays for what is more than a mean. Importing it takes as long as some epochs of a small run: with it
    come torchvision, scipy, matplotlib and torch's compiler.
    """

    sum_and_count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sum_and_count", torch.zeros(2, dtype=torch.float64))

    def update(self, values_N: Tensor) -> None:
        """Count the values of some samples."""
        self.sum_and_count[0] += values_N.double().sum()
        self.sum_and_count[1] += values_N.numel()

    def compute(self) -> Tensor:
        """The mean over all samples of all ranks, which all ask for it together; NaN without any."""
        everyone = [self.sum_and_count]
        if dist.is_initialized():
            everyone = [torch.empty_like(self.sum_and_count) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, self.sum_and_count)
        total, count = torch.stack(everyone).sum(0)
        return total / count
