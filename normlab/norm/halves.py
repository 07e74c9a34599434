"""Half of batch normalization: its mean alone, or its standard deviation alone.

Behind weight normalization they tell what each half is good for (Distinct, Sec. 2; mean-only BN is of Salimans and
Kingma 2016, Sec. 3).
"""

import math
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.autograd import Function

from normlab.norm import ops
from normlab.norm.kernels import needs_operations
from normlab.norm.layer import Normalizer
from normlab.norm.pooling import statistics


class _Moments(Function):
    """Mean and biased variance over the positions, with derivatives: x (N, C, *L) -> (N, C) each; x alone is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean_NC, var_NC = torch.ops.normlab.moments(x)
        ctx.save_for_backward(x, mean_NC)
        return mean_NC, var_NC

    @staticmethod
    def backward(ctx: Any, dmean_NC: Tensor, dvar_NC: Tensor) -> Tensor:
        x, mean_NC = ctx.saved_tensors
        dmean, dvar, mean = (t.view(*t.shape, *[1] * (x.ndim - 2)) for t in (dmean_NC, dvar_NC, mean_NC))
        return ((dmean + 2 * dvar * (x - mean)) / math.prod(x.shape[2:])).to(x.dtype)


class HalfBatchNorm(Normalizer):
    """x - mean, or x / std, of the batch: y = weight * (x - mean) + bias, or y = weight * x / std + bias.

    Shapes, errors and attributes are those of Normalizer, evaluation with stored statistics included.

    Args:
        num_channels: C.
        half: "mean" or "std".
        eps, momentum, affine: as in Normalizer.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        half: Literal["mean", "std"],
        eps: Annotated[float, Gt(0)] = 1e-5,
        momentum: Annotated[float, Ge(0), Le(1)] | None = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__(num_channels, mean=["bn"], var=["bn"], eps=eps, momentum=momentum, affine=affine)
        self.kept = half

    def _moments(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return ops.moments(x) if needs_operations() else _Moments.apply(x)

    def _gain(
        self, mean_NC: Tensor | None, var_NC: Tensor | None, replicas: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """What takes the other half of (x - mean) / std back; gradients go through it."""
        assert mean_NC is not None and var_NC is not None
        mean_RNC, var_RNC = (t_NC.view(replicas, -1, self.num_channels) for t_NC in (mean_NC, var_NC))
        pooled = statistics(mean_RNC, var_RNC, across=True, width=self.num_channels)
        mean_RC, var_RC = (t.squeeze(1) for t in pooled)
        return self._taking_back(mean_RC, var_RC)

    def stored_gain(self) -> tuple[Tensor | None, Tensor | None]:
        gain_1C, offset_1C = self._taking_back(self.running_mean[None], self.running_var[None])
        return None if gain_1C is None else gain_1C[0], None if offset_1C is None else offset_1C[0]

    def _taking_back(self, mean_RC: Tensor, var_RC: Tensor) -> tuple[Tensor | None, Tensor | None]:
        std_RC = torch.sqrt(var_RC + self.eps)
        gain = torch.ones_like(std_RC) if self.weight is None else self.weight.expand_as(std_RC)
        offset = torch.zeros_like(std_RC) if self.bias is None else self.bias.expand_as(std_RC)
        if self.kept == "mean":
            return gain * std_RC, offset
        return gain, offset + gain * mean_RC / std_RC

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, half={self.kept}"
