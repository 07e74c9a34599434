"""Pooling (N, C) moments over a scope: how the statistics of every pixel set follow from the two primitives.

Shapes: R replicas of N samples with C channels; compact statistics have W = scope.width(C) values in the last axis and
1 in each axis that the scope pools over: (R or 1, N or 1, W).
"""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from normlab.norm.scopes import Scope


def num_ranks() -> int:
    """Processes that share the replicas; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def pool(scope: Scope, t_RNC: Tensor, sync: bool = False) -> Tensor:
    """Average over the pixel set, compact. `sync` joins the samples of all replicas and ranks in a batch scope."""
    if scope.kind == "in":
        return t_RNC
    if scope.kind in ("ln", "gn", "en"):
        R, N, C = t_RNC.shape
        t_RNC = t_RNC.reshape(R, N, scope.groups, C // scope.groups).mean(3)
    if not scope.across_samples:
        return t_RNC
    if not sync:
        return t_RNC.mean(1, keepdim=True)
    mean = t_RNC.mean((0, 1), keepdim=True)
    return all_reduce(mean) / num_ranks() if num_ranks() > 1 else mean


def spread(compact: Tensor, num_channels: int) -> Tensor:
    """(..., W) -> (..., C or 1), which broadcasts over the channels."""
    width = compact.shape[-1]
    return compact if width in (1, num_channels) else compact.repeat_interleave(num_channels // width, dim=-1)


def statistics(scope: Scope, mean_RNC: Tensor, var_RNC: Tensor, sync: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the pixel set, compact, by the law of total variance.

    var = mean(var) + mean((mean - pooled mean)^2); E[x^2] - E[x]^2 would lose all digits where |mean| >> std.
    """
    if scope.kind == "in":
        return mean_RNC, var_RNC
    mean = pool(scope, mean_RNC, sync)
    deviation_RNC = mean_RNC - spread(mean, mean_RNC.shape[-1])
    return mean, pool(scope, var_RNC + deviation_RNC.square(), sync)
