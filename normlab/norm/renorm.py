"""Batch Renormalization (Ioffe 2017), which SN is compared with (SN, Sec. 4.1: r_max 1.5, d_max 0.5)."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from normlab.errors import UserError
from normlab.norm.layer import Normalizer
from normlab.norm.normalize import moments
from normlab.norm.pooling import statistics


class BatchRenorm(Normalizer):
    """BN whose training output is corrected towards the running statistics, within bounds:

        y = weight * ((x - mean) / std * r + d) + bias
        r = clip(std / running_std, 1/r_max, r_max),  d = clip((mean - running_mean) / running_std, -d_max, d_max)

    r and d are constants in the backward pass. A layer that advances its own running statistics (calls is None) has
    others when activation checkpointing recomputes it: set `calls` there, as the engine does. Shapes, errors and
    attributes are those of Normalizer.

    Args:
        num_channels: C.
        r_max: bound of the ratio of standard deviations, at least 1.
        d_max: bound of the shift of the mean, at least 0.
        warmup: steps of plain BN at the start, while the running statistics settle.
        eps, momentum, affine: as in Normalizer.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        r_max: Annotated[float, Ge(1)] = 1.5,
        d_max: Annotated[float, Ge(0)] = 0.5,
        warmup: Annotated[int, Ge(0)] = 0,
        eps: Annotated[float, Gt(0)] = 1e-5,
        momentum: Annotated[float, Ge(0), Le(1)] | None = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__(num_channels, mean=["bn"], var=["bn"], eps=eps, momentum=momentum, affine=affine)
        if r_max < 1:
            raise UserError(f"norm.r_max={r_max} is below 1; allowed: 1 (plain BN) or more")
        if d_max < 0:
            raise UserError(f"norm.d_max={d_max} is negative; allowed: 0 or more")
        self.r_max, self.d_max, self.warmup = r_max, d_max, warmup

    def _moments(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return moments(x)

    def _gain(
        self, mean_NC: Tensor | None, var_NC: Tensor | None, replicas: int
    ) -> tuple[Tensor | None, Tensor | None]:
        assert mean_NC is not None and var_NC is not None
        mean_RNC, var_RNC = (t_NC.detach().view(replicas, -1, self.num_channels) for t_NC in (mean_NC, var_NC))
        pooled = statistics(mean_RNC, var_RNC, across=True, width=self.num_channels)
        mean_RC, var_RC = (t.squeeze(1) for t in pooled)
        running_rstd_C = torch.rsqrt(self.running_var.to(var_RC.dtype) + self.eps)
        r_RC = (torch.sqrt(var_RC + self.eps) * running_rstd_C).clamp(1 / self.r_max, self.r_max)
        d_RC = ((mean_RC - self.running_mean) * running_rstd_C).clamp(-self.d_max, self.d_max)
        if self.warmup:  # as values, not as a branch, which torch.compile would have to leave its graph for
            settled = self.num_batches_tracked >= self.warmup
            r_RC, d_RC = torch.where(settled, r_RC, 1), torch.where(settled, d_RC, 0)
        if self.weight is None or self.bias is None:
            return r_RC, d_RC
        return self.weight * r_RC, self.bias + self.weight * d_RC

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"
