"""Pooling (N, C) moments over a scope: how the statistics of every pixel set follow from those of single maps.

A scope is two facts here: whether its sets reach across the samples of a replica, and its width W, the number of sets
in a row of C channels (C for in and bn, 1 for ln, the groups for gn and en).

Shapes: R replicas of N samples with C channels; compact statistics have W values in the last axis and 1 in each axis
that the scope pools over: (R, N or 1, W).
"""

import torch.distributed as dist
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # mean and biased variance


def num_ranks() -> int:
    """Processes that share the replicas; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def pool(t_RNC: Tensor, across: bool, width: int, sync: bool = False) -> Tensor:
    """Average over the sets, compact. `sync` joins the samples of all ranks where the sets reach across samples."""
    R, N, C = t_RNC.shape
    if width < C:
        t_RNC = t_RNC.reshape(R, N, width, C // width).mean(3)
    if not across:
        return t_RNC
    mean = t_RNC.mean(1, keepdim=True)
    if sync and num_ranks() > 1:
        dist.all_reduce(mean)
        mean = mean / num_ranks()
    return mean


def spread(compact: Tensor, num_channels: int) -> Tensor:
    """(..., W) -> (..., C or 1), which broadcasts over the channels."""
    width = compact.shape[-1]
    return compact if width in (1, num_channels) else compact.repeat_interleave(num_channels // width, dim=-1)


def statistics(mean_RNC: Tensor, var_RNC: Tensor, across: bool, width: int, sync: bool = False) -> Pair:
    """Mean and biased variance of the sets, compact, by the law of total variance.

    var = mean(var) + mean((mean - pooled mean)^2); E[x^2] - E[x]^2 would lose all digits where |mean| >> std.
    """
    if width == mean_RNC.shape[-1] and not across:
        return mean_RNC, var_RNC
    mean = pool(mean_RNC, across, width, sync)
    deviation_RNC = mean_RNC - spread(mean, mean_RNC.shape[-1])
    return mean, pool(var_RNC + deviation_RNC.square(), across, width, sync)
